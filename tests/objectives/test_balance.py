"""Trajectory, detailed and sub-trajectory balance, VarGrad and modified balance: exact numbers."""

import pytest
import torch

from gflow.envs.sets import Sets
from gflow.mdp import evaluate
from gflow.objectives.balance import (
    DetailedBalance,
    SubTrajectoryBalance,
    Sum,
    TrajectoryBalance,
    VarGrad,
    detailed_balance,
    potentials,
    subtrajectory_balance,
    trajectory_balance,
    trajectory_score,
    vargrad,
)
from tests.diamond import (
    PATHS,
    STOP,
    A,
    B,
    close,
    diamond_batch,
    diamond_log_reward,
    diamond_policy,
    distribution,
    walk,
)
from tests.tabular import TabularPolicy

FIXED_TARGET = {
    "tb": TrajectoryBalance(),
    "vargrad": VarGrad(),
    "db": DetailedBalance(),
    "mdb": DetailedBalance(potential="modified"),
    "subtb": SubTrajectoryBalance(),
    "subtb_linear": SubTrajectoryBalance(lam=1.0),
    "subtb_long": SubTrajectoryBalance(lam=1.9),
    "subtb_modified": SubTrajectoryBalance(potential="modified"),
}
NEEDS = frozenset({"log_pb", "log_flow", "log_z"})


def residuals(objective, batch=None, policy=None):
    """u of the objective's potential on the diamond."""
    policy, batch = policy or diamond_policy(), batch or diamond_batch()
    evaluation = evaluate(policy, batch, objective.needs)
    return objective.potentials(evaluation, batch).detach()


def test_uniform_policy_terminates_as_computed_by_hand():
    close(distribution(diamond_policy()), [1 / 3, 1 / 6, 1 / 6, 1 / 3])


def test_trajectory_balance_numbers():
    policy, batch = diamond_policy(), diamond_batch()
    ev = evaluate(policy, batch, NEEDS)
    residual = trajectory_balance(ev.log_pf, ev.log_pb, ev.log_z, batch.log_reward)
    close(residual, [-1.098612, -2.484907, -2.890372, -2.484907, -2.484907])
    loss = TrajectoryBalance()(policy, batch)
    close(loss.value, 5.617096)
    close(loss.metrics["residual"], 2.288741)
    # The gradient with respect to log Z is twice the mean residual.
    loss.value.backward()
    close(policy.log_z.bias.grad, [-2 * 2.288741])


def test_log_z_that_minimises_the_loss():
    policy, batch = diamond_policy(), diamond_batch()
    policy.log_z.bias.data.fill_(2.288741)
    best = TrajectoryBalance()(policy, batch).value
    close(best, 0.378762)
    close(VarGrad()(policy, batch).value, best)
    close(VarGrad()(policy, batch).metrics["log_z"], 2.288741)


def test_a_constant_on_the_log_reward_moves_log_z_alone():
    policy, batch = diamond_policy(), diamond_batch()
    before = TrajectoryBalance()(policy, batch).value
    batch.log_reward = batch.log_reward + 1.7
    policy.log_z.bias.data += 1.7
    close(TrajectoryBalance()(policy, batch).value, before, 1e-12)


def test_vargrad_ignores_the_scale_of_the_reward():
    batch = diamond_batch()
    before = VarGrad()(diamond_policy(), batch).value
    batch.log_reward = batch.log_reward + 5.0
    close(VarGrad()(diamond_policy(), batch).value, before, 1e-12)


def test_vargrad_groups():
    score = torch.tensor([1.0, 2.0, 5.0, 7.0, 9.0])
    close(vargrad(score, torch.tensor([3, 3, 8, 8, 8])), [-0.5, 0.5, -2.0, 0.0, 2.0])
    with pytest.raises(ValueError, match="at least two"):
        vargrad(score, torch.arange(5))


def test_gradient_of_vargrad_is_that_of_trajectory_balance_at_the_batch_optimum():
    policy, batch = diamond_policy(), diamond_batch()
    VarGrad()(policy, batch).value.backward()
    centred = policy.logits.grad.clone()
    policy.zero_grad()
    policy.log_z.bias.data.fill_(2.2887407)
    TrajectoryBalance()(policy, batch).value.backward()
    close(policy.logits.grad, centred)


def test_detailed_balance_numbers():
    u = residuals(DetailedBalance())
    batch = diamond_batch()
    residual = detailed_balance(u, batch.lengths)
    third = -1.098612
    close(
        residual,
        [
            [third, 0.0, 0.0],
            [third, -1.386294, 0.0],
            [third, -1.791759, 0.0],
            [third, 0.0, -1.386294],
            [third, 0.0, -1.386294],
        ],
    )
    loss = DetailedBalance()(diamond_policy(), batch)
    # The mean runs over the 11 transitions, not over trajectories first.
    close(loss.value, residual.square().sum() / 11)
    assert int(loss.weight) == 11


def test_modified_balance_numbers():
    u = residuals(DetailedBalance(potential="modified"))
    residual = detailed_balance(u, diamond_batch().lengths)
    close(residual[1, 0], -1.386294)
    close(residual[2, 0], -1.791759)
    close(residual[3, :2], [-1.386294, 0.0])
    close(residual[4, :2], [-1.791759, 0.405465])
    # Stop transitions have residual 0 by construction and do not count in the mean.
    stops = residual.gather(1, diamond_batch().lengths[:, None] - 1)
    close(stops, torch.zeros(5, 1), 1e-12)
    loss = DetailedBalance(potential="modified")(diamond_policy(), diamond_batch())
    close(loss.value, residual.square().sum() / 6)
    assert int(loss.weight) == 6


def test_modified_balance_sees_only_reward_differences():
    objective = DetailedBalance(potential="modified")
    batch = diamond_batch()
    before = objective(diamond_policy(), batch).value
    batch.log_reward = batch.log_reward + 3.0
    batch.partial_log_reward = batch.partial_log_reward + 3.0
    close(objective(diamond_policy(), batch).value, before, 1e-12)


def test_modified_balance_of_immediate_stops_is_zero():
    loss = DetailedBalance(potential="modified")(diamond_policy(), diamond_batch([[STOP], [STOP]]))
    close(loss.value, 0.0)
    loss.value.backward()


def test_modified_balance_refuses_states_that_cannot_stop():
    fixed = Sets(3, 2)
    policy = TabularPolicy(fixed, 2)
    batch = walk(fixed, [[0, 1]], lambda states: states.data.sum(1).double())
    with pytest.raises(ValueError, match="needs a stop action in every state, and Sets has none"):
        DetailedBalance(potential="modified")(policy, batch)

    class LateStop(Sets):
        """Stops at one item or more."""

        def forward_mask(self, states, *chosen):
            mask = super().forward_mask(states)
            mask[:, -1] &= states.step > 0
            return mask

    class FullStop(Sets):
        """Stops when empty or full."""

        def forward_mask(self, states, *chosen):
            mask = super().forward_mask(states)
            mask[:, -1] &= states.step != 1
            return mask

    objective = DetailedBalance(potential="modified")
    with pytest.raises(ValueError, match="LateStop cannot stop at its start"):
        objective.check(LateStop(2, 2, stop=True))
    env = FullStop(2, 2, stop=True)
    batch = walk(env, [[A, B, STOP]], diamond_log_reward)
    with pytest.raises(ValueError, match="one state has none"):
        objective(TabularPolicy(env, 2), batch)


def test_modified_balance_needs_rewards_of_all_states():
    batch = diamond_batch()
    batch.partial_log_reward = None
    with pytest.raises(ValueError, match="log-reward of unfinished objects"):
        DetailedBalance(potential="modified")(diamond_policy(), batch)


@pytest.mark.parametrize(
    ("lam", "expected"), [(1.0, 2.072047), (0.9, 1.951195), (1e-7, 1.042920), (1e9, 6.174761)]
)
def test_subtrajectory_balance_numbers(lam, expected):
    batch = diamond_batch([[A, STOP], [A, B, STOP]])
    u = residuals(SubTrajectoryBalance(), batch)
    close(u[1] - u[1, :1], -torch.tensor([0.0, -1.098612, -1.098612, -2.484907]))
    value = subtrajectory_balance(u, batch.lengths, lam)
    # Tolerance of the limits: lam itself stands for 0 or infinity.
    close(value[1], expected, 2e-6)
    alone = diamond_batch([[A, B, STOP]])
    close(SubTrajectoryBalance(lam=lam)(diamond_policy(), alone).value, expected, 2e-6)


@pytest.mark.parametrize("lam", [1.0, 0.5, 1.9])
def test_subtrajectory_balance_by_its_definition(lam):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 4, 7])
    u = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    u = torch.where(torch.arange(8) <= lengths[:, None], u, 0.0)
    expected = []
    for row, length in zip(u, lengths.tolist(), strict=True):
        pairs = [(i, j) for i in range(length + 1) for j in range(i + 1, length + 1)]
        weights = sum(lam ** (j - i) for i, j in pairs)
        expected.append(sum(lam ** (j - i) * (row[i] - row[j]) ** 2 for i, j in pairs) / weights)
    close(subtrajectory_balance(u, lengths, lam), torch.stack(expected), 1e-10)


def test_linear_time_formula_equals_the_triangle():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([3, 9, 20])
    u = torch.randn(3, 21, generator=generator, dtype=torch.float64) * 10
    u = torch.where(torch.arange(21) <= lengths[:, None], u, 0.0).requires_grad_()
    linear = subtrajectory_balance(u, lengths, 1.0)
    triangle = subtrajectory_balance(u, lengths, 1.0, lambda t: t.pow(2))
    close(linear, triangle, 1e-10)
    slow, fast = (torch.autograd.grad(v.sum(), u, retain_graph=True)[0] for v in (triangle, linear))
    close(fast, slow, 1e-10)


def test_long_trajectories_neither_overflow_nor_vanish():
    u = torch.zeros(1, 601).requires_grad_()
    shifted = u + torch.arange(601) * 0.01
    for lam in (0.5, 1.9):
        value = subtrajectory_balance(shifted, torch.tensor([600]), lam)
        assert torch.isfinite(value).all() and value > 0
        (gradient,) = torch.autograd.grad(value.sum(), u)
        assert torch.isfinite(gradient).all()


def test_small_lambda_is_detailed_balance_per_trajectory():
    tiny = SubTrajectoryBalance(lam=1e-9)
    for path in PATHS:
        batch = diamond_batch([path])
        one = DetailedBalance()(diamond_policy(), batch).value
        close(tiny(diamond_policy(), batch).value, one)
    # On ragged batches the limit averages per trajectory first and detailed balance does not.
    batch = diamond_batch()
    difference = (
        tiny(diamond_policy(), batch).value - DetailedBalance()(diamond_policy(), batch).value
    )
    assert abs(float(difference.detach())) > 0.01


def test_a_constant_on_all_flows_and_the_reward_changes_nothing():
    policy, batch = diamond_policy(), diamond_batch()
    objectives = (SubTrajectoryBalance(), DetailedBalance())
    before = [objective(policy, batch).value for objective in objectives]
    policy.flow.data += 2.5
    batch.log_reward = batch.log_reward + 2.5
    for objective, value in zip(objectives, before, strict=True):
        close(objective(policy, batch).value, value, 1e-12)


def test_both_ends_of_an_edge_receive_gradient():
    policy, batch = diamond_policy(), diamond_batch([[A, B, STOP]])
    DetailedBalance()(policy, batch).value.backward()
    # Edges empty -> a (residual -log 3), a -> ab (0), ab -> end (-log 4), each 2 d / 3.
    close(policy.flow.grad[0], torch.tensor([-1.098612, 1.098612, 0.0, -1.386294]) * 2 / 3)


@pytest.mark.parametrize("name", FIXED_TARGET)
def test_zero_at_exact_flows(name):
    loss = FIXED_TARGET[name](diamond_policy(solved=True), diamond_batch())
    close(loss.value, 0.0, 1e-20)
    # And not elsewhere: a solution of other rewards does not pass.
    other = diamond_batch(log_reward=lambda states: 2 * diamond_log_reward(states))
    wrong = FIXED_TARGET[name](diamond_policy(solved=True), other).value
    assert float(wrong.detach()) > 0.01


@pytest.mark.parametrize("name", FIXED_TARGET)
def test_gradient_by_finite_differences(name):
    policy, batch = diamond_policy(backward="learned"), diamond_batch()
    generator = torch.Generator().manual_seed(2)
    tables = [policy.logits, policy.flow, policy.back]
    for table in tables:
        table.data.normal_(generator=generator)

    def loss():
        return FIXED_TARGET[name](policy, batch).value

    gradients = torch.autograd.grad(loss(), tables, allow_unused=True)
    for table, gradient in zip(tables, gradients, strict=True):
        if gradient is None:
            assert table is policy.flow and "log_flow" not in FIXED_TARGET[name].needs
            continue
        numeric = torch.zeros_like(table)
        flat, out = table.data.view(-1), numeric.view(-1)
        for i in range(len(flat)):
            flat[i] += 1e-5
            up = loss().detach()
            flat[i] -= 2e-5
            out[i] = (up - loss().detach()) / 2e-5
            flat[i] += 1e-5
        close(gradient, numeric, 1e-7)


def test_on_policy_gradient_is_that_of_the_kl_divergence():
    """The expected TB gradient is 2 grad KL(P_F(tau) || p*(x) P_B(tau | x)) (2210.00580)."""
    policy, batch = diamond_policy(), diamond_batch()
    generator = torch.Generator().manual_seed(3)
    policy.logits.data.normal_(generator=generator)
    policy.log_z.bias.data.fill_(0.7)
    ev = evaluate(policy, batch, NEEDS)
    log_path = ev.log_pf.sum(1)
    divergence = (log_path.exp() * (log_path - ev.log_pb.sum(1) - batch.log_reward)).sum()
    (wanted,) = torch.autograd.grad(2 * divergence, policy.logits, retain_graph=True)
    residual = trajectory_balance(ev.log_pf, ev.log_pb, ev.log_z, batch.log_reward)
    expected = (log_path.exp().detach() * residual.square()).sum()
    (gradient,) = torch.autograd.grad(expected, policy.logits)
    close(gradient, wanted, 1e-10)


def test_importance_weights_average_to_z():
    policy, batch = diamond_policy(), diamond_batch()
    ev = evaluate(policy, batch, NEEDS)
    score = trajectory_score(ev.log_pf, ev.log_pb, batch.log_reward)
    close((ev.log_pf.sum(1).exp() * (-score).exp()).sum(), 10.0, 1e-10)


def test_potentials_past_the_end_are_zero():
    u = residuals(DetailedBalance())
    column = torch.arange(4)
    assert (u[column > diamond_batch().lengths[:, None]] == 0).all()
    phi = torch.full((1, 3), 7.0)
    walked = torch.tensor([[1.0, 0.0]])
    close(potentials(phi, walked, torch.zeros(1, 2), torch.tensor([1])), [[7.0, 6.0, 0.0]])


def test_cut_short_trajectories():
    """What is known ends before the last transition; no reward enters."""
    env, policy = diamond_policy().env, diamond_policy()
    policy.flow.data = torch.tensor([[0.5, 1.0, 2.0, -1.0]], dtype=torch.float64)
    batch = walk(env, [[A, B, STOP], [B, STOP]], diamond_log_reward, complete=[False, True])
    loss = DetailedBalance()(policy, batch)
    half, third = -0.693147, -1.098612
    used = [
        0.5 + third - 1.0,
        1.0 + half + 0.693147 + 1.0,
        0.5 + third - 2.0,
        2.0 + half - 1.098612,
    ]
    close(loss.value, torch.tensor(used).square().sum() / 4)
    assert int(loss.weight) == 4
    batch.log_reward[0] = torch.nan
    close(DetailedBalance()(policy, batch).value, loss.value, 1e-12)
    long = SubTrajectoryBalance(lam=1e9)(policy, batch.rows(torch.tensor([0])))
    # Both ends of the known part: empty set and ab.
    close(long.value, (used[0] + used[1]) ** 2)
    for objective in (TrajectoryBalance(), VarGrad()):
        with pytest.raises(ValueError, match="complete trajectories"):
            objective(policy, batch)


def test_sum_of_terms_shares_one_evaluation():
    policy, batch = diamond_policy(), diamond_batch()
    calls = []
    policy.register_forward_hook(lambda *_: calls.append(1))
    both = Sum(((1.0, TrajectoryBalance()), (0.5, DetailedBalance())))
    value = both(policy, batch).value
    assert len(calls) == 1
    parts = [objective(policy, batch).value for _, objective in both.terms]
    close(value, parts[0] + 0.5 * parts[1])
    with pytest.raises(ValueError, match="has none"):
        Sum(((1.0, DetailedBalance(potential="modified")),)).check(Sets(3, 2))


def test_bad_settings():
    with pytest.raises(ValueError, match="unknown regression 'cubic'"):
        TrajectoryBalance(regression="cubic")
    with pytest.raises(ValueError, match="unknown potential 'height'"):
        DetailedBalance(potential="height")
    with pytest.raises(ValueError, match="unknown potential 'height'"):
        TrajectoryBalance(potential="height")
    with pytest.raises(ValueError, match="lam > 0"):
        SubTrajectoryBalance(lam=0.0)
    batch = diamond_batch()
    batch.log_reward = None
    for objective in (TrajectoryBalance(), DetailedBalance(), VarGrad()):
        with pytest.raises(ValueError, match="no log_reward"):
            objective(diamond_policy(), batch)
