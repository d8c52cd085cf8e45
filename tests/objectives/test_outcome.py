"""Outcome-conditioned pre-training and adaptation (2310.03419), exact on the diamond."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gflow.conditions import Conditions
from gflow.envs.grids import HyperGrid
from gflow.estimators import exact_flows, terminating_distribution, total_variation
from gflow.mdp import States, concat_trajectories, evaluate
from gflow.objectives.balance import DetailedBalance
from gflow.objectives.outcome import (
    AmortizedAdaptation,
    OutcomeMixture,
    outcome_condition,
    outcome_log_reward,
)
from gflow.policies import MLPPolicy
from gflow.sampling import Exploration, rollout
from tests.diamond import (
    PATHS,
    A,
    B,
    close,
    diamond,
    diamond_batch,
    diamond_log_reward,
    diamond_policy,
    distribution,
    set_number,
)
from tests.tabular import TabularPolicy

EMPTY = -40.0
"""Stands for log 0 in tables."""


def outcome_number(condition):
    """Set number of the outcome that a condition asks for."""
    return condition.encoding.long() @ torch.tensor([1, 2])


def outcomes():
    return diamond().all_terminal_states()


def asked(n, number):
    """n conditions that ask for the set `number`."""
    states = outcomes()
    index = (set_number(states) == number).nonzero().squeeze(1).repeat(n)
    return outcome_condition(diamond(), states.rows(index), torch.float64)


def solved_outcome_policy():
    """F(s | y) and P_F(s' | s, y) for every y, from the exact flow of R(x | y) = 1[x = y]."""
    policy = TabularPolicy(diamond(), 2, n_slots=4, slot=outcome_number)
    for y in range(4):

        def log_reward(states, y=y):
            return torch.where(set_number(states) == y, 0.0, EMPTY).double()

        policy.solve(exact_flows(diamond(), log_reward), slot=y)
    return policy


def relabelled(paths, number):
    batch = diamond_batch(paths)
    batch.condition = asked(len(paths), number)
    batch.log_reward = outcome_log_reward(diamond(), batch)
    return batch


def test_flows_towards_an_outcome_are_reach_probabilities_of_p_b():
    flow = solved_outcome_policy().flow.exp()
    close(flow[3], [1.0, 0.5, 0.5, 1.0])
    close(flow[1], [1.0, 1.0, 0.0, 0.0])
    # Mixed by the rewards they are the exact flow.
    close((torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None] * flow).sum(0), [10.0, 4.0, 5.0, 4.0])


def test_success_and_failure():
    batch = relabelled([*PATHS], 3)
    close(batch.log_reward, [math.log(1e-3)] * 3 + [0.0, 0.0])
    close(outcome_log_reward(diamond(), batch, miss=1e-6)[:1], [math.log(1e-6)])


def test_teleportation_puts_the_reward_on_every_edge():
    policy = solved_outcome_policy()
    generator = torch.Generator().manual_seed(0)
    policy.logits.data = torch.randn(policy.logits.shape, generator=generator).double()
    policy.flow.data = torch.randn(policy.flow.shape, generator=generator).double()
    teleport, plain = DetailedBalance(potential="teleport"), DetailedBalance()
    # On successes log R = 0: plain detailed balance with terminal flow 1.
    success = relabelled(PATHS[3:], 3)
    close(teleport(policy, success).value, plain(policy, success).value, 1e-12)
    failure = relabelled([[B, A, 2]], 2)
    ev = evaluate(policy, failure, plain.needs)
    log_r = float(failure.log_reward)
    x = (ev.log_pf - ev.log_pb)[0]
    flow = torch.cat([ev.log_flow[0], torch.zeros(1).double()])
    edges = flow[:-1] + x - flow[1:]
    close(teleport(policy, failure).value, (edges - log_r).square().mean())
    # The wrong reading charges the terminal edge alone.
    last = edges - torch.tensor([0.0, 0.0, log_r])
    close(plain(policy, failure).value, last.square().mean())


def test_zero_loss_on_successes_of_the_exact_flow():
    policy = solved_outcome_policy()
    objective = DetailedBalance(potential="teleport")
    for number, paths in ((3, PATHS[3:]), (1, PATHS[1:2]), (0, PATHS[:1])):
        close(objective(policy, relabelled(paths, number)).value, 0.0, 1e-20)
        found = distribution(policy, asked(1, number))
        close(found, [float(n == number) for n in range(4)], 1e-9)
        close(policy.flow[number, 0], 0.0, 1e-12)


def test_failures_that_share_edges_with_successes():
    """Charged on the last edge they are consistent with the flow of R = 1[x = y] + eps 1[x != y].

    Teleported they are not: the edge to a would have to satisfy two different equations.
    """
    miss = 1e-3
    policy = TabularPolicy(diamond(), 2, n_slots=4, slot=outcome_number)

    def log_reward(states):
        return torch.where(set_number(states) == 3, 0.0, math.log(miss)).double()

    policy.solve(exact_flows(diamond(), log_reward), slot=3)
    batch = relabelled([*PATHS], 3)
    close(DetailedBalance()(policy, batch).value, 0.0, 1e-20)
    assert float(DetailedBalance(potential="teleport")(policy, batch).value.detach()) > 1.0


def test_conversion_to_a_reward_needs_no_training():
    policy, states = solved_outcome_policy(), outcomes()
    log_reward = diamond_log_reward(states)
    mixture = OutcomeMixture(policy, states, log_reward)
    close(distribution(mixture), [0.1, 0.2, 0.3, 0.4], 1e-9)
    condition = Conditions().sample(1)
    close(mixture.log_z(condition), [math.log(10)], 1e-9)
    start = mixture(diamond().initial(1), condition, frozenset({"log_pf"})).forward
    close(start.log_probs().exp(), [[0.4, 0.5, 0.1]], 1e-9)
    # The scale of the reward does not matter, and r = 1[y] gives back P_F(. | s, y).
    close(distribution(OutcomeMixture(policy, states, log_reward + 3)), [0.1, 0.2, 0.3, 0.4], 1e-9)
    one = torch.where(set_number(states) == 2, 0.0, EMPTY).double()
    close(distribution(OutcomeMixture(policy, states, one)), [0.0, 0.0, 1.0, 0.0], 1e-9)


class Adapted(nn.Module):
    """A tabular policy for N, and a table Q(y | s, a)."""

    def __init__(self):
        super().__init__()
        self.policy = TabularPolicy(diamond(), 2)
        self.env, self.backward, self.log_z = diamond(), "uniform", self.policy.log_z
        self.table = nn.Parameter(torch.zeros(4, 3, 4, dtype=torch.float64))

    def forward(self, states, condition, needs):
        assert condition.encoding.shape[1] == 0, "the adapted policy must not see the outcome"
        return self.policy(states, condition, needs)

    def outcome_log_prob(self, states, actions, outcome):
        log_q = self.table[self.policy.number(states), actions].log_softmax(-1)
        return log_q.gather(1, outcome_number(outcome).unsqueeze(1)).squeeze(1)


def every_outcome():
    """All five trajectories with every y, log-rewards of y."""
    parts = []
    for y in range(4):
        batch = diamond_batch()
        batch.condition = asked(5, y)
        batch.log_reward = torch.full((5,), math.log(y + 1), dtype=torch.float64)
        parts.append(batch)
    return concat_trajectories(parts)


def solved_adaptation(leak=0.0):
    """N and Q in closed form; with `leak` Q keeps that share for outcomes no edge leads to."""
    adapted, flow = Adapted(), solved_outcome_policy()
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    with torch.no_grad():
        edges = (flow.flow.unsqueeze(-1) + flow.logits.log_softmax(-1)).exp()
        edges = (edges * reward[:, None, None]).permute(1, 2, 0)
        n = edges.sum(-1) / (1 - leak)
        adapted.policy.logits[0] = n.log()
        adapted.policy.flow[0] = n.sum(-1).log()
        reached = edges > 1e-9
        spare = (~reached).sum(-1, keepdim=True)
        adapted.table.copy_(torch.where(reached, edges / n[..., None], leak / spare).log())
    return adapted


def test_amortised_adaptation_finds_the_sums_over_outcomes():
    objective = AmortizedAdaptation(outcomes=solved_outcome_policy(), floor=-12.0)
    adapted, batch = Adapted(), every_outcome()
    optimizer = torch.optim.LBFGS(
        adapted.parameters(), max_iter=300, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = objective(adapted, batch).value
        value.backward()
        return value

    optimizer.step(closure)
    table = adapted.policy
    close(distribution(adapted), [0.1, 0.2, 0.3, 0.4], 2e-3)
    edge = (table.flow[0, :, None] + table.logits[0].log_softmax(-1)).exp().detach()
    close(edge[0, [A, B]], [4.0, 5.0], 0.05)
    # In a and b one action is illegal, so normalise over the legal ones.
    legal = table.logits[0, 1, [B, 2]].softmax(0)
    close(legal, [0.5, 0.5], 2e-3)
    q = adapted.table.softmax(-1)
    close(q[0, A], [0.0, 0.5, 0.0, 0.5], 2e-3)
    close(q[0, B], [0.0, 0.0, 0.6, 0.4], 2e-3)


def test_outcomes_an_edge_cannot_reach_matter():
    """Trained on reached outcomes only, Q may keep mass elsewhere and N is inflated."""
    objective = AmortizedAdaptation(outcomes=solved_outcome_policy())
    batch = every_outcome()
    reached = batch.rows(outcome_number(batch.condition) == set_number(batch.terminal))
    honest, leaky = solved_adaptation(), solved_adaptation(leak=0.5)
    close(objective(honest, reached).value, 0.0, 1e-10)
    close(objective(leaky, reached).value, 0.0, 1e-10)
    close(leaky.policy.flow[0, 0], math.log(20), 1e-9)
    assert float(objective(leaky, batch).value.detach()) > 10.0


def test_adaptation_never_moves_the_pretrained_policy():
    frozen = solved_outcome_policy()
    objective = AmortizedAdaptation(outcomes=frozen)
    loss = objective(Adapted(), every_outcome())
    gradient = torch.autograd.grad(loss.value, frozen.logits, allow_unused=True)
    assert gradient == (None,)


def test_what_adaptation_needs():
    with pytest.raises(ValueError, match="no outcome-conditioned policy"):
        AmortizedAdaptation()(Adapted(), every_outcome())
    objective = replace(AmortizedAdaptation(), outcomes=solved_outcome_policy())
    with pytest.raises(ValueError, match="outcome_log_prob"):
        objective(diamond_policy(), every_outcome())
    with pytest.raises(ValueError, match="unknown regression"):
        AmortizedAdaptation(regression="none")

    class Record(HyperGrid):
        def observe(self, states):
            return {"x": states.data}

    with pytest.raises(ValueError, match="flat observations"):
        outcome_condition(Record(2, 4), Record(2, 4).all_terminal_states(), torch.float32)


def contrastive_batch(policy, n, generator, shuffled=True):
    """Trajectories to even outcomes, new ones asked for the same, and the first asked for others.

    The policy's own failures become rare, so that flows of states that lead away from an outcome
    are learned from the last part alone.
    """
    env = policy.env
    goals = env.all_terminal_states()
    wanted = goals.rows(torch.randint(goals.n, (n,), generator=generator))
    condition = outcome_condition(env, wanted, torch.float32)
    reached = rollout(policy, wanted, condition, generator, backward=True)
    tried = rollout(policy, env.initial(n), condition, generator)
    parts = [reached, tried]
    if shuffled:
        others = condition.rows(torch.randperm(n, generator=generator))
        parts.append(replace(reached, condition=others))
    batch = concat_trajectories(parts)
    batch.log_reward = outcome_log_reward(env, batch)
    return batch


def learn(objective, policy, draw, steps):
    """Train on the batches that `draw` makes, the learning rate falling to 0."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(policy, draw()).value.backward()
        optimizer.step()
        schedule.step()
    return policy


GRID = HyperGrid(2, 8)
GOALS = GRID.all_terminal_states()


def grid_reward(data):
    """A reward that pre-training never sees."""
    return 0.1 + (data.double().sum(1) / 14) ** 2


def grid_distance(policy):
    """Total variation to the new reward's target."""
    with torch.no_grad():
        found = terminating_distribution(policy, Conditions().sample(1))
    target = grid_reward(found.states.data)
    return float(total_variation(found.probability, target / target.sum()))


def pretrain(objective, shuffled):
    """A policy that learned to reach the points of the grid, and how often it does."""
    generator = torch.Generator().manual_seed(0)
    policy = MLPPolicy(GRID, (128, 128), condition_size=GRID.observation_size, flow=True)
    learn(objective, policy, lambda: contrastive_batch(policy, 32, generator, shuffled), 2500)
    condition = outcome_condition(GRID, GOALS, torch.float32)
    batch = rollout(policy, GRID.initial(GOALS.n), condition, generator)
    return policy, float((batch.terminal.data == GOALS.data).all(-1).double().mean())


class AdaptedGrid(nn.Module):
    """N and Q(y | s, a) as networks, Q over the 64 points."""

    def __init__(self):
        super().__init__()
        self.policy = MLPPolicy(GRID, (64, 64), flow=True)
        self.env, self.backward, self.log_z = GRID, "uniform", self.policy.log_z
        self.predictor = nn.Sequential(nn.Linear(16 + 3, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, states, condition, needs):
        return self.policy(states, condition, needs)

    def outcome_log_prob(self, states, actions, outcome):
        x = torch.cat([GRID.observe(states), nn.functional.one_hot(actions, 3).float()], -1)
        point = outcome.encoding.view(-1, 2, 8).argmax(-1) @ torch.tensor([8, 1])
        return self.predictor(x).log_softmax(-1).gather(1, point.unsqueeze(1)).squeeze(1)


def adaptation_batch(policy, n, generator):
    """Trajectories with the outcome they reached, and again with even ones."""
    explore = Exploration(epsilon=0.1)
    condition = Conditions().sample(n)
    batch = rollout(policy, GRID.initial(n), condition, generator, exploration=explore)
    even = torch.randint(GOALS.n, (2, n), generator=generator)
    parts = []
    for wanted in (batch.terminal, *(GOALS.rows(index) for index in even)):
        asked_for = outcome_condition(GRID, wanted, torch.float32)
        log_reward = grid_reward(wanted.data).log().float()
        parts.append(replace(batch, condition=asked_for, log_reward=log_reward))
    return concat_trajectories(parts)


@pytest.mark.slow
def test_adaptation_to_a_new_reward_on_a_grid():
    """Flows for mixing need mismatched outcomes on the last edge; a network can learn the sum."""
    policy, success = pretrain(DetailedBalance(), shuffled=True)
    mixture = OutcomeMixture(policy, GOALS, grid_reward(GOALS.data).log().float())
    assert success > 0.8 and grid_distance(mixture) < 0.1
    generator, adapted = torch.Generator().manual_seed(1), AdaptedGrid()
    objective = AmortizedAdaptation(outcomes=policy, floor=-10.0)
    learn(objective, adapted, lambda: adaptation_batch(adapted, 32, generator), 2000)
    assert grid_distance(adapted) < 0.15


@pytest.mark.slow
def test_teleportation_reaches_outcomes_and_leaves_other_flows_open():
    policy, success = pretrain(DetailedBalance(potential="teleport"), shuffled=False)
    mixture = OutcomeMixture(policy, GOALS, grid_reward(GOALS.data).log().float())
    assert success > 0.9 and grid_distance(mixture) > 0.3


def test_states_are_compared_as_they_are_observed():
    states = States(torch.tensor([[1, 0]]), torch.tensor([2]), torch.tensor([True]))
    close(outcome_condition(diamond(), states, torch.float64).encoding, [[1.0, 0.0]])
