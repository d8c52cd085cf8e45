"""Flow matching on the diamond, where the edge flows are 4, 5, 2, 2 and the stops 1, 2, 3, 4."""

import pytest
import torch

from gflow.envs.sets import Sets
from gflow.estimators import exact_flows
from gflow.mdp import evaluate
from gflow.objectives.balance import FlowMatching, flow_matching
from tests.diamond import (
    PATHS,
    STOP,
    A,
    B,
    close,
    diamond_batch,
    diamond_log_reward,
    diamond_policy,
    walk,
)
from tests.tabular import TabularPolicy


def test_inflow_and_edges_at_the_exact_flow():
    policy, batch = diamond_policy(solved=True), diamond_batch()
    ev = evaluate(policy, batch, frozenset({"log_flow", "log_inflow"}))
    close(ev.log_inflow[3].exp(), [4.0, 4.0, 1.0])
    close(ev.log_inflow[4].exp(), [5.0, 4.0, 1.0])
    edges = (ev.log_flow + ev.log_pf).exp()
    close(edges[3], [4.0, 2.0, 4.0], 1e-12)
    close(edges[4], [5.0, 2.0, 4.0], 1e-12)
    close(edges[0, 0], 1.0, 1e-12)
    close(FlowMatching()(policy, batch).value, 0.0, 1e-20)


def test_numbers_of_the_uniform_policy():
    """Interior residuals -log 3 four times and 0 twice; leaves log F(x) P(stop) - log R(x)."""
    policy, batch = diamond_policy(), diamond_batch()
    third = torch.tensor(3.0).log()
    leaf = torch.tensor([1 / 3, 1 / 4, 1 / 6, 1 / 4, 1 / 4]).log().square().mean()
    interior = FlowMatching(leaf_weight=0.0)(policy, batch)
    close(interior.value, 4 * third.square() / 6)
    assert int(interior.weight) == 6
    close(FlowMatching()(policy, batch).value, 4 * third.square() / 6 + leaf)
    close(FlowMatching(leaf_weight=10.0)(policy, batch).value, 4 * third.square() / 6 + 10 * leaf)


def test_scaling_all_flows_changes_only_the_leaves():
    policy, batch = diamond_policy(), diamond_batch()
    generator = torch.Generator().manual_seed(0)
    policy.logits.data.normal_(generator=generator)
    policy.flow.data.normal_(generator=generator)
    interior, whole = FlowMatching(leaf_weight=0.0), FlowMatching()
    before = [objective(policy, batch).value.detach() for objective in (interior, whole)]
    policy.flow.data += 1.5
    close(interior(policy, batch).value, before[0], 1e-12)
    assert abs(float(whole(policy, batch).value.detach() - before[1])) > 0.1


def test_the_initial_state_has_no_inflow_condition():
    policy, batch = diamond_policy(), diamond_batch([[STOP], [STOP]])
    loss = FlowMatching(leaf_weight=0.0)(policy, batch)
    close(loss.value, 0.0)
    # Its flow enters as a parent only.
    policy.zero_grad()
    FlowMatching(leaf_weight=0.0)(policy, diamond_batch([[A, STOP]])).value.backward()
    close(policy.flow.grad[0], torch.tensor([-1.0, 1.0, 0.0, 0.0]) * 2 * 1.098612)


def test_without_a_stop_step_inflow_meets_the_reward():
    env = Sets(3, 2)

    def log_reward(states):
        return (1.0 + states.data @ torch.tensor([1, 2, 4])).double().log()

    batch = walk(env, [[0, 1], [1, 0], [2, 1], [0, 2]], log_reward)
    policy = TabularPolicy(env, 2).solve(exact_flows(env, log_reward))
    close(FlowMatching()(policy, batch).value, 0.0, 1e-20)
    policy.flow.data[0, 1] += 1.0
    assert float(FlowMatching()(policy, batch).value.detach()) > 0.05


def test_smoothed_flows():
    close(
        flow_matching(torch.tensor([-40.0, 1.0]), torch.tensor([-50.0, 0.0]), 1e-5),
        [0.0, 0.999994],
        1e-5,
    )
    # Both sides are smoothed, so that exact flows still have no residual.
    policy, batch = diamond_policy(solved=True), diamond_batch()
    close(FlowMatching(epsilon=0.1)(policy, batch).value, 0.0, 1e-20)


def test_a_state_without_parents_is_an_error():
    class Orphan(Sets):
        def backward_mask(self, states):
            mask = super().backward_mask(states)
            mask[states.data.sum(1) == 2] = False
            return mask

    env = Orphan(2, 2, stop=True)
    batch = walk(env, PATHS, diamond_log_reward)
    with pytest.raises(ValueError, match="Orphan: a state that is not initial has no parent"):
        FlowMatching()(TabularPolicy(env, 2), batch)


def test_cut_short_trajectories_have_no_leaf():
    env, policy = diamond_policy().env, diamond_policy()
    batch = walk(env, [[A, B, STOP], [A, STOP]], diamond_log_reward, complete=[False, True])
    batch.log_reward[0] = torch.nan
    third = torch.tensor(3.0).log()
    leaf = torch.tensor(1 / 4).log().square()
    close(FlowMatching()(policy, batch).value, 2 * third.square() / 3 + leaf)


def test_gradients_are_finite_and_exact():
    policy, batch = diamond_policy(), diamond_batch()
    generator = torch.Generator().manual_seed(1)
    policy.logits.data.normal_(generator=generator)
    objective = FlowMatching()
    (gradient,) = torch.autograd.grad(objective(policy, batch).value, policy.logits)
    assert torch.isfinite(gradient).all()
    for state, action in ((0, A), (0, STOP), (1, B), (2, A), (2, STOP)):
        policy.logits.data[0, state, action] += 1e-5
        up = objective(policy, batch).value.detach()
        policy.logits.data[0, state, action] -= 2e-5
        down = objective(policy, batch).value.detach()
        policy.logits.data[0, state, action] += 1e-5
        close(gradient[0, state, action], (up - down) / 2e-5, 1e-7)


def test_policies_without_flows_are_refused():
    policy, batch = diamond_policy(), diamond_batch()

    def blind(states, condition, needs):
        return policy(states, condition, needs)._replace(log_flow=None)

    class Blind:
        env, backward, log_z = policy.env, "uniform", policy.log_z
        __call__ = staticmethod(blind)

    with pytest.raises(ValueError, match="flow=True"):
        FlowMatching()(Blind(), batch)
    with pytest.raises(ValueError, match="no backward policy"):
        FlowMatching(relative=True)
