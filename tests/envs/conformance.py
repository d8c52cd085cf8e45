"""What every discrete environment must satisfy, checked on a small instance by brute force."""

import pickle
from functools import cached_property

import pytest
import torch

from gflow.conditions import Conditions
from gflow.estimators import exact_flows, terminating_distribution, total_variation
from gflow.kernels import Categorical
from gflow.mdp import Heads, evaluate
from gflow.policies import MLPPolicy
from gflow.sampling.rollout import rollout

VERBS = ("forward_mask", "backward_mask", "observe")


def pseudo_log_reward(states):
    """An arbitrary log R in [-1, 1] that separates states."""
    data = states.data.flatten(1).double()
    weights = torch.arange(1, data.shape[1] + 1, dtype=torch.float64).sqrt()
    return torch.sin(3 * data @ weights + 1)


def keys(states):
    """Hashable states."""
    done = states.done.tolist()
    return [(tuple(row), d) for row, d in zip(states.data.flatten(1).tolist(), done, strict=True)]


def same(a, b):
    """Whether two batches of states are equal in all three tensors."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Graph:
    """The whole state graph of a small environment, with its exact flow."""

    def __init__(self, env):
        self.env = env
        self.flows = exact_flows(env, pseudo_log_reward)
        self.states = self.flows.states
        self.going = self.states.rows(~self.states.done)
        self.started = self.states.rows(self.states.step > 0)

    @cached_property
    def parents(self):
        return self.states.rows(self.flows.parent)

    @cached_property
    def children(self):
        return self.states.rows(self.flows.child)

    @cached_property
    def undoing(self):
        return self.env.backward_action(self.parents, self.flows.action)

    @cached_property
    def backward_edges(self):
        """Every legal backward move: the started state and the action."""
        row, action = self.env.backward_mask(self.started).nonzero(as_tuple=True)
        return self.started.rows(row), action


class ExactPolicy:
    """The policy of the exact flow, by table."""

    backward = "uniform"

    def __init__(self, graph):
        self.env, self.flows = graph.env, graph.flows
        self.row = {key: i for i, key in enumerate(keys(graph.states))}
        self.logits = torch.zeros(graph.states.n, sum(self.env.action_sizes), dtype=torch.float64)
        self.logits[self.flows.parent, self.flows.action] = self.flows.log_pf

    def __call__(self, states, condition, needs):
        row = torch.tensor([self.row[key] for key in keys(states)])
        return Heads(Categorical(self.logits[row], self.env.forward_mask(states)))

    def log_z(self, condition):
        return self.flows.log_flow[0].expand(len(condition.inverse_temperature))


class Conformance:
    """Inherit, and set `make` to a function that builds a small environment.

    Attributes:
        counts_paths: the environment has `log_n_paths`.
        encodes: the environment has `encode`.
    """

    counts_paths = True
    encodes = True

    @staticmethod
    def make():
        raise NotImplementedError

    def model_children(self, data):
        """An independent model in plain Python: the set of (data, done) after one action."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def graph(self):
        return Graph(type(self).make())

    @pytest.fixture(scope="class")
    def env(self, graph):
        return graph.env

    def test_initial_states(self, env):
        states = env.initial(3)
        assert states.data.dtype == states.step.dtype == torch.int64
        assert states.done.dtype == torch.bool and not states.done.any()
        assert states.data.shape == (3, *env.state_shape) and not states.step.any()
        assert (states.data == states.data[0]).all()

    def test_masks_agree_with_a_model_in_plain_python(self, env, graph):
        children = {}
        for parent, child in zip(keys(graph.parents), keys(graph.children), strict=True):
            children.setdefault(parent, set()).add(child)
        for data, done in keys(graph.going):
            assert children[data, done] == self.model_children(data), data

    def test_legal_actions_lead_to_distinct_children(self, graph):
        edges = torch.stack([graph.flows.parent, graph.flows.child], 1)
        assert len(edges.unique(dim=0)) == len(edges)

    def test_step_then_backstep_returns_the_state(self, env, graph):
        assert same(env.step(graph.parents, graph.flows.action), graph.children)
        assert same(env.backstep(graph.children, graph.undoing), graph.parents)
        legal = env.backward_mask(graph.children).gather(1, graph.undoing.unsqueeze(1))
        assert legal.all()
        redone = env.forward_action(graph.children, graph.undoing)
        assert torch.equal(redone, graph.flows.action)

    def test_backstep_then_step_returns_the_state(self, env, graph):
        children, undone = graph.backward_edges
        parents = env.backstep(children, undone)
        assert set(keys(parents)) <= set(keys(graph.going))
        redone = env.forward_action(children, undone)
        assert same(env.step(parents, redone), children)
        assert torch.equal(env.backward_action(parents, redone), undone)
        pairs = list(zip(keys(children), keys(parents), strict=True))
        assert len(set(pairs)) == len(pairs) == len(graph.flows.child)

    def test_finished_rows_rest(self, env, graph):
        done = graph.states.rows(graph.states.done)
        mask = env.forward_mask(done)
        assert mask[:, -1].all() and not mask[:, :-1].any()
        for action in range(env.action_sizes[0]):
            assert same(env.step(done, torch.full((done.n,), action)), done)

    def test_initial_rows_rest_backward(self, env):
        start = env.initial(2)
        mask = env.backward_mask(start)
        assert mask[:, -1].all() and not mask[:, :-1].any()
        for action in range(env.n_backward_actions):
            assert same(env.backstep(start, torch.full((2,), action)), start)

    def test_probabilities_sum_to_one(self, graph):
        flows, n = graph.flows, graph.states.n
        leaving = torch.zeros(n, dtype=torch.float64).index_add(0, flows.parent, flows.log_pf.exp())
        entering = torch.zeros(n, dtype=torch.float64).index_add(0, flows.child, flows.log_pb.exp())
        one = torch.ones(n, dtype=torch.float64)
        assert torch.allclose(leaving[~graph.states.done], one[~graph.states.done])
        assert torch.allclose(entering[1:], one[1:])

    def test_flow_is_conserved_and_samples_the_reward(self, env, graph):
        terminal = env.all_terminal_states()
        log_z = torch.logsumexp(pseudo_log_reward(terminal), 0)
        assert torch.allclose(graph.flows.log_flow[0], log_z)
        found = terminating_distribution(ExactPolicy(graph), Conditions().sample(1))
        target = (pseudo_log_reward(found.states) - log_z).exp()
        assert found.states.n == terminal.n
        assert total_variation(found.probability, target) < 1e-12

    def test_rollouts_of_the_exact_policy_balance(self, env, graph):
        n = 32
        noise_source = torch.Generator().manual_seed(0)
        policy, condition = ExactPolicy(graph), Conditions().sample(n)
        batch = rollout(policy, env.initial(n), condition, noise_source)
        result = evaluate(policy, batch, frozenset({"log_pb", "log_z"}))
        inside = (result.log_pf - result.log_pb).sum(1)
        residual = result.log_z + inside - pseudo_log_reward(batch.terminal)
        assert residual.abs().max() < 1e-9

    def test_forward_and_backward_rollouts_agree(self, env):
        n, condition = 24, Conditions().sample(24)
        generator = torch.Generator().manual_seed(1)
        policy = self.policy(env)
        forward = rollout(policy, env.initial(n), condition, generator)
        backward = rollout(policy, forward.terminal, condition, generator, backward=True)
        for batch in (forward, backward):
            states = env.initial(n)
            for t in range(batch.valid.shape[1]):
                assert torch.equal(states.data, batch.states[:, t])
                undone = env.backward_action(states, batch.actions[:, t])
                assert torch.equal(
                    undone[batch.valid[:, t]], batch.backward_actions[batch.valid[:, t], t]
                )
                states = env.step(states, batch.actions[:, t])
            assert states.done.all() and same(states, forward.terminal)

    def policy(self, env):
        return MLPPolicy(env, hidden=(8,))

    def test_terminal_states_are_those_reachable(self, env, graph):
        assert env.enumerable
        listed = keys(env.all_terminal_states())
        assert len(set(listed)) == len(listed)
        assert set(listed) == {key for key in keys(graph.states) if key[1]}
        steps = dict(zip(keys(graph.states), graph.states.step.tolist(), strict=True))
        assert [steps[key] for key in listed] == env.all_terminal_states().step.tolist()

    def test_declared_shape_of_the_graph(self, env, graph):
        lengths = graph.states.step[graph.states.done]
        assert int(lengths.max()) == env.max_steps
        assert env.fixed_length == (int(lengths.min()) == env.max_steps)
        n_parents = env.backward_mask(graph.started).sum(1)
        assert env.tree == bool((n_parents == 1).all())
        last = graph.children.rows(graph.children.done)
        if env.has_stop:
            unchanged = graph.parents.data[graph.children.done] == last.data
            assert unchanged.all() and env.backward_mask(last)[:, -1].all()

    def test_path_counts(self, env, graph):
        if not self.counts_paths:
            with pytest.raises(NotImplementedError):
                env.log_n_paths(graph.states)
            return
        counts = torch.zeros(graph.states.n, dtype=torch.float64)
        counts[0] = 1
        for parent, child in zip(
            graph.flows.parent.tolist(), graph.flows.child.tolist(), strict=True
        ):
            counts[child] += counts[parent]
        assert torch.allclose(env.log_n_paths(graph.states), counts.log())

    def test_a_batch_is_its_rows(self, env, graph):
        for verb in VERBS:
            whole = getattr(env, verb)(graph.states)
            for i in range(0, graph.states.n, 7):
                row = graph.states.rows(torch.tensor([i]))
                assert torch.equal(getattr(env, verb)(row)[0], whole[i])
        for i in range(0, len(graph.flows.action), 11):
            at = torch.tensor([i])
            child = env.step(graph.parents.rows(at), graph.flows.action[at])
            assert same(child, graph.children.rows(at))

    def test_observations_tell_states_apart(self, env, graph):
        seen = env.observe(graph.going)
        assert seen.shape == (graph.going.n, env.observation_size)
        assert seen.dtype == torch.get_default_dtype()
        assert len(seen.unique(dim=0)) == graph.going.n
        ones = env.indices(graph.going)
        if ones is not None:
            assert torch.equal(torch.zeros_like(seen).scatter(1, ones, 1.0), seen)

    def test_numbers_tell_states_apart(self, env, graph):
        numbers = env.identify(graph.states)
        if numbers is None:
            pytest.skip("this environment numbers no states")
        assert numbers.unique().numel() == len(set(keys(graph.states)))

    def test_equal_states_evaluated_once_give_what_each_gives(self, env, monkeypatch):
        if env.identify(env.initial(1)) is None:
            pytest.skip("this environment numbers no states")
        policy = MLPPolicy(env, (8,), backward="learned", flow=True, seed=1).double()
        condition = Conditions().sample(40, dtype=torch.float64)
        random = torch.Generator().manual_seed(0)
        batch = rollout(policy, env.initial(40), condition, random)
        names = ["log_pf", "log_pb", "log_flow", "entropy"] + ["backward_kl"] * (not env.tree)
        asked = frozenset(names[1:])
        found = []
        for number in (env.identify, lambda states: None):
            monkeypatch.setattr(env, "identify", number)
            policy.zero_grad()
            at = evaluate(policy, batch, asked)
            terms = torch.stack([getattr(at, name) for name in names])
            terms.square().sum().backward()
            found.append([terms, *(p.grad for p in policy.parameters() if p.grad is not None)])
        for shared, each in zip(*found, strict=True):
            torch.testing.assert_close(shared, each, rtol=1e-10, atol=1e-12)

    def test_observations_follow_the_default_dtype(self, env):
        torch.set_default_dtype(torch.float64)
        try:
            assert env.observe(env.initial(2)).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)

    def test_pickling(self, env, graph):
        copy = pickle.loads(pickle.dumps(env))
        for verb in VERBS:
            assert torch.equal(getattr(copy, verb)(graph.states), getattr(env, verb)(graph.states))

    def test_decode_and_encode(self, env):
        terminal = env.all_terminal_states()
        objects = env.decode(terminal)
        assert len(set(objects)) == terminal.n
        if self.encodes:
            assert same(env.encode(objects), terminal)
            assert env.encode([]).n == 0

    def test_steps_look_at_no_value_and_make_no_tensor_elsewhere(self, env):
        # Tensors on "meta" hold no values, and refuse to meet those of another device.
        states = env.initial(3, "meta")
        actions = torch.zeros(3, dtype=torch.int64, device="meta")
        for verb in VERBS:
            assert getattr(env, verb)(states).device.type == "meta"
        for move in (env.step, env.backstep):
            assert all(column.device.type == "meta" for column in move(states, actions))
        for translate in (env.forward_action, env.backward_action):
            assert translate(states, actions).device.type == "meta"

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_the_gpu_agrees(self, env, graph):
        there = graph.states.to("cuda")
        for verb in VERBS:
            assert torch.equal(getattr(env, verb)(there).cpu(), getattr(env, verb)(graph.states))
        child = env.step(graph.parents.to("cuda"), graph.flows.action.cuda())
        assert same(child.to("cpu"), graph.children)
        parent = env.backstep(graph.children.to("cuda"), graph.undoing.cuda())
        assert same(parent.to("cpu"), graph.parents)
