"""Forward-looking objectives and learned energies (2302.01687, 2310.03301)."""

import math

import pytest
import torch

from gflow.envs.sets import Sets
from gflow.estimators import exact_flows
from gflow.mdp import States, evaluate
from gflow.objectives.balance import (
    DetailedBalance,
    EnergyDecomposition,
    SubTrajectoryBalance,
    Sum,
    TrajectoryBalance,
    dropout_variance,
    energy_decomposition,
    spread_energy,
)
from tests.diamond import STOP, A, B, close, diamond_batch, diamond_policy, walk
from tests.tabular import TabularPolicy

ITEMS = torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)
PAIRS = [[i, j] for i in range(4) for j in range(4) if i != j]
FORWARD = {
    "db": (DetailedBalance(), DetailedBalance(potential="forward_looking")),
    "subtb": (SubTrajectoryBalance(), SubTrajectoryBalance(potential="forward_looking")),
    "tb": (TrajectoryBalance(potential="flow"), TrajectoryBalance(potential="forward_looking")),
}


def log_reward(states):
    """The product of the items' rewards, of partial sets too."""
    return states.data.double() @ ITEMS.log()


def pairs_of_four():
    """Sets of 2 out of 4 items with rewards 1, 2, 3, 1: the environment and all its 12 paths."""
    env = Sets(4, 2)
    return env, walk(env, PAIRS, log_reward)


def forward_looking_solution(env):
    """log F~ = log F - l at the exact flow."""
    policy = TabularPolicy(env, 2).solve(exact_flows(env, log_reward))
    rows = torch.tensor([[n >> i & 1 for i in range(4)] for n in range(16)])
    sizes = rows.sum(1)
    partial = log_reward(States(rows, sizes, sizes == 2))
    policy.flow.data -= partial.to(policy.flow.dtype)
    return policy


def test_flows_of_the_reduced_problem():
    env, batch = pairs_of_four()
    policy = forward_looking_solution(env)
    close(policy.flow[0, [0, 1, 2, 4, 8]].exp(), [17.0, 3.0, 2.5, 2.0, 3.0])
    ev = evaluate(policy, batch, frozenset())
    first = [ev.log_pf[PAIRS.index([i, (i + 1) % 4]), 0].exp().item() for i in range(4)]
    close(first, [6 / 34, 10 / 34, 12 / 34, 6 / 34])
    for _, objective in FORWARD.values():
        close(objective(policy, batch).value, 0.0, 1e-20)


@pytest.mark.parametrize("name", FORWARD)
def test_without_partial_rewards_they_are_the_plain_objectives(name):
    plain, forward = FORWARD[name]
    policy, batch = diamond_policy(), diamond_batch()
    policy.flow.data.normal_(generator=torch.Generator().manual_seed(0))
    batch.partial_log_reward = torch.zeros_like(batch.partial_log_reward)
    assert torch.equal(forward(policy, batch).value, plain(policy, batch).value)


@pytest.mark.parametrize("name", FORWARD)
def test_the_shift_moves_between_flow_and_partial_reward(name):
    """Same residuals, same optimal P_F: log F~ = log F - l for any l of interior states."""
    plain, forward = FORWARD[name]
    policy, batch = diamond_policy(), diamond_batch()
    generator = torch.Generator().manual_seed(1)
    policy.logits.data.normal_(generator=generator)
    table = torch.randn(4, generator=generator, dtype=torch.float64)
    wanted = plain(policy, batch).value
    batch.partial_log_reward = table[batch.states @ torch.tensor([1, 2])]
    policy.flow.data = policy.flow - table
    close(forward(policy, batch).value, wanted, 1e-12)


def test_the_terminal_flow_is_pinned():
    """log F~(x) = 0: a free terminal head would shift the target to R(x) F~(x)."""
    env, batch = pairs_of_four()
    policy = forward_looking_solution(env)
    objective = DetailedBalance(potential="forward_looking")
    (gradient,) = torch.autograd.grad(objective(policy, batch).value, policy.flow)
    full = [n for n in range(16) if bin(n).count("1") == 2]
    policy.flow.data[0, full] = 3.0
    close(objective(policy, batch).value, 0.0, 1e-20)
    assert (gradient[0, full] == 0).all()


def test_cut_short_trajectories_teach_forward_looking_objectives_only():
    env = Sets(4, 3)
    paths, finished = [[0, 1], [3, 2], [2, 0]], []

    def gradient(objective, scale):
        policy = TabularPolicy(env, 2)
        policy.register_forward_pre_hook(lambda _, seen: finished.append(seen[0].done))
        batch = walk(env, paths, lambda s: scale * log_reward(s), complete=[False] * 3)
        batch.log_reward = torch.full_like(batch.log_reward, torch.nan)
        value = objective(policy, batch).value
        return torch.autograd.grad(value, policy.logits)[0]

    plain, forward = FORWARD["db"]
    assert torch.equal(gradient(plain, 1.0), gradient(plain, 3.0))
    assert float((gradient(forward, 1.0) - gradient(forward, 3.0)).abs().max()) > 0.01
    assert not torch.cat(finished).any()


def test_edge_rewards_of_the_forward_looking_flow():
    """The residual of an edge is that of log F~ minus the reward e_k the step earns."""
    env, batch = pairs_of_four()
    policy = TabularPolicy(env, 2)
    residual = -math.log(4) + 0.0 - math.log(2.0)
    last = -math.log(3) + math.log(2) - math.log(3.0)
    row = batch.rows(torch.tensor([PAIRS.index([1, 2])]))
    value = DetailedBalance(potential="forward_looking")(policy, row).value
    close(value, (residual**2 + last**2) / 2)
    # TB sees the telescoped sum only.
    whole = TrajectoryBalance(potential="forward_looking")(policy, row).value
    close(whole, (residual + last) ** 2)
    close(TrajectoryBalance()(policy, row).value, whole)


def test_partial_rewards_are_asked_for():
    batch = diamond_batch()
    batch.partial_log_reward = None
    for _, objective in FORWARD.values():
        with pytest.raises(ValueError, match="forward-looking objective needs the log-reward"):
            objective(diamond_policy(), batch)
        assert objective.batch_needs == {"partial_log_reward"}


def test_corrected_energies():
    energy = torch.tensor([[0.2, 0.3, 0.1, 0.0]], dtype=torch.float64)
    edges = torch.tensor([[True, True, True, False]])
    close(spread_energy(energy, torch.tensor([1.2]), edges), [[0.4, 0.5, 0.3, 0.0]])
    nothing = spread_energy(torch.zeros(1, 4), torch.tensor([1.2]), edges)
    close(nothing, [[0.4, 0.4, 0.4, 0.0]])
    # The mean runs over the edges of each trajectory, not over the padded length.
    ragged = torch.tensor([[True, False, False, False], [True, True, True, False]])
    both = spread_energy(torch.zeros(2, 4), torch.tensor([1.2, 1.2]), ragged)
    close(both.sum(1), [1.2, 1.2])


def test_edge_dropout_rescales_by_the_kept_share():
    energy = torch.tensor([[1.0, 2.0, 4.0, 0.0]], dtype=torch.float64)
    edges = torch.tensor([[True, True, True, False]])
    keep = torch.tensor([[True, False, True, True]])
    close(energy_decomposition(energy, torch.tensor([5.0]), edges, keep), [1.5 * 5 - 5])
    close(energy_decomposition(energy, torch.tensor([5.0]), edges, edges), [2.0])


@pytest.mark.parametrize("dropout", [0.1, 0.6])
def test_expected_dropout_loss_by_enumeration(dropout):
    energy = torch.tensor([1.0, -2.0, 4.0, 0.5], dtype=torch.float64)
    log_r, n = torch.tensor([5.0], dtype=torch.float64), 4
    edges = torch.ones(1, n, dtype=torch.bool)
    total = weight = 0.0
    for mask in range(1, 2**n):
        keep = torch.tensor([[bool(mask >> i & 1) for i in range(n)]])
        kept = int(keep.sum())
        chance = (1 - dropout) ** kept * dropout ** (n - kept)
        weight += chance
        total += chance * energy_decomposition(energy[None], log_r, edges, keep).square()
    full = (energy.sum() - 5.0).square()
    close(full + dropout_variance(energy[None], edges, dropout), total / weight, 1e-10)


def test_dropout_prefers_even_energies_to_true_ones():
    """The true decomposition log 2 + log 3 of a pair of items costs something under dropout."""
    env, batch = pairs_of_four()
    policy = TabularPolicy(env, 2)
    policy.energy.data[:] = ITEMS.log()
    row = batch.rows(torch.tensor([PAIRS.index([1, 2])]))
    close(EnergyDecomposition(0.0)(policy, row).value, 0.0, 1e-12)
    # One of two edges is kept with probability 2 p (1 - p) / (1 - p^2): then n psi_k - log R.
    chance = 2 * 0.1 * 0.9 / 0.99
    close(EnergyDecomposition(0.1)(policy, row).value, chance * math.log(1.5) ** 2)
    policy.energy.data[:] = math.log(6) / 2
    close(EnergyDecomposition(0.1)(policy, row).value, 0.0, 1e-12)


def test_energies_learn_to_add_up_and_the_policy_does_not_move_them():
    policy, batch = diamond_policy(), diamond_batch()
    balance = DetailedBalance(potential="energy")
    value = balance(policy, batch).value
    assert torch.autograd.grad(value, policy.energy, allow_unused=True)[0] is None
    (gradient,) = torch.autograd.grad(EnergyDecomposition(0.0)(policy, batch).value, policy.energy)
    # Edges a, b, ab, ba with log-rewards log 2, log 3, log 4 twice; the stop carries nothing.
    assert (gradient[..., STOP] == 0).all()
    close(gradient[0, 0, A], -2 * (math.log(2) + math.log(4)) / 5)
    close(gradient[0, 1, B], -2 * math.log(4) / 5)


def test_energy_decomposition_leaves_the_optimum_where_it_was():
    """Any energies give zero loss for log F~ = log F - earned, at the exact P_F."""
    env, batch = pairs_of_four()
    policy = TabularPolicy(env, 2).solve(exact_flows(env, log_reward))
    policy.energy.data[:] = ITEMS.log()
    policy.flow.data = forward_looking_solution(env).flow.data
    both = Sum(((1.0, DetailedBalance(potential="energy")), (1.0, EnergyDecomposition(0.0))))
    close(both(policy, batch).value, 0.0, 1e-20)
    subtb = SubTrajectoryBalance(potential="energy")
    close(subtb(policy, batch).value, 0.0, 1e-20)


def test_energies_need_a_head_and_a_sensible_dropout():
    policy, batch = diamond_policy(), diamond_batch()

    class Bare:
        env, backward, log_z = policy.env, "uniform", policy.log_z

        def __call__(self, states, condition, needs):
            return policy(states, condition, needs)._replace(energy=None)

    with pytest.raises(ValueError, match="learned energies"):
        EnergyDecomposition()(Bare(), batch)
    with pytest.raises(ValueError, match="dropout"):
        EnergyDecomposition(dropout=1.0)
