"""Order-preserving objectives (2310.00386): losses, minimisers, and what they train to."""

import math

import pytest
import torch
from scipy.optimize import minimize

from gflow.conditions import Conditions
from gflow.envs.grid_rewards import GridObjectives
from gflow.envs.grids import HyperGrid
from gflow.mdp import Reward, evaluate
from gflow.objectives.balance import (
    BackwardUniformity,
    DetailedBalance,
    FlowMatching,
    SubTrajectoryBalance,
    Sum,
    TrajectoryBalance,
)
from gflow.objectives.ordering import (
    Ordering,
    dominance,
    pair_cross_entropy,
    set_cross_entropy,
)
from gflow.sampling import Exploration, OnPolicy, Scorer
from gflow.training import Trainer, TrainerSettings
from tests.diamond import close, diamond, diamond_batch, diamond_policy, distribution, set_number

ALL = torch.ones(4, 4, dtype=torch.bool)
FRONT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.4, 0.4], [0.5, 0.5]], dtype=torch.float64)
"""Two rewards of the empty set, a, b, ab; only b is dominated (by ab)."""


def grid():
    """The 32 x 32 grid of the published comparison."""
    return HyperGrid(2, 32, stop_at_border=True)


def order(values, tie=0.0):
    """dominated_by of a list of candidates."""
    return dominance(torch.as_tensor(values, dtype=torch.float64).reshape(len(values), -1), tie).T


def test_whole_batch_cross_entropy():
    log_value = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log().requires_grad_()
    dominated_by = order([[2.0, 1.0], [1.0, 1.0], [1.0, 1.5], [1.0, 2.0]])
    assert (~dominated_by.any(1)).tolist() == [True, False, False, True]
    value = set_cross_entropy(log_value, dominated_by, ALL)
    close(value, math.log(5))
    # The divergence is the cross-entropy less the entropy of the even target.
    close(value - math.log(2), 0.916291)
    (gradient,) = torch.autograd.grad(value, log_value)
    close(gradient, [-0.4, 0.2, 0.3, -0.1], 1e-12)


def test_pairs():
    log_value = torch.tensor([0.5, 0.0], dtype=torch.float64)
    pair = torch.tensor([[False, True], [True, False]])
    close(pair_cross_entropy(log_value, order([2.0, 1.0]), pair), 0.474077)
    close(pair_cross_entropy(log_value, order([1.0, 1.0]), pair), 0.724077)
    # Neither of two incomparable candidates is dominated: the same even target as a tie.
    close(pair_cross_entropy(log_value, order([[1.0, 2.0], [2.0, 1.0]]), pair), 0.724077)


def test_a_tiny_lead_is_a_tie_in_both_directions():
    """A one-sided band would count a lead below 1e-6 as a win, the same deficit as a tie."""
    near = order([1.0, 1.0 - 5e-7], tie=1e-6)
    assert not near.any()
    assert order([1.0, 1.0 - 5e-6], tie=1e-6).tolist() == [[False, False], [True, False]]


def test_all_pairs_are_what_random_partners_average_to():
    generator = torch.Generator().manual_seed(0)
    log_value = torch.randn(4, generator=generator, dtype=torch.float64)
    dominated_by = order([3.0, 1.0, 2.0, 2.0])
    whole = pair_cross_entropy(log_value, dominated_by, ALL)
    draws = []
    for _ in range(3000):
        partner = torch.randperm(4, generator=generator)
        met = torch.zeros(4, 4, dtype=torch.bool)
        met[torch.arange(4), partner] = True
        draws.append(pair_cross_entropy(log_value, dominated_by, met))
    close(torch.stack(draws).mean(), whole, 0.02)
    # A candidate that meets itself costs log 2.
    close(pair_cross_entropy(log_value, dominated_by, torch.eye(4).bool()), math.log(2))


def test_a_constant_on_all_values_changes_nothing():
    """So a scalar log Z has no gradient under OP-TB and is not identified."""
    log_z = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    log_value = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64)
    for loss in (set_cross_entropy, pair_cross_entropy):
        value = loss(log_z + log_value, order([1.0, 3.0, 2.0, 2.0]), ALL)
        (gradient,) = torch.autograd.grad(value, log_z)
        assert abs(float(gradient)) < 1e-7
    policy, batch = diamond_policy(), ordered_batch()
    Ordering()(policy, batch).value.backward()
    assert policy.log_z.bias.grad is None
    assert "log_z" not in Ordering()(policy, batch).metrics


def test_equal_candidates_have_no_gradient():
    log_value = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    equal = order([1.0] * 4)
    for loss, expected in ((set_cross_entropy, math.log(4)), (pair_cross_entropy, math.log(2))):
        value = loss(log_value, equal, ALL)
        close(value, expected)
        close(torch.autograd.grad(value, log_value)[0], torch.zeros(4), 1e-12)


def test_duplicates_of_a_front_member_all_count():
    dominated_by = order([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    value = set_cross_entropy(torch.zeros(4).double(), dominated_by, ALL)
    close(value, math.log(4))
    assert (~dominated_by.any(1)).tolist() == [True, True, True, False]


def test_standard_and_not_weak_dominance():
    """Weak dominance asks for a strict lead everywhere and would keep the second candidate."""
    assert order([[1.0, 1.0], [1.0, 0.5]]).tolist() == [[False, False], [True, False]]
    values = GridObjectives(("shubert", "beale"))(grid().all_terminal_states())
    assert len(values) == 1023
    weakly = (values.unsqueeze(1) > values).all(-1)
    assert int((~dominance(values).any(0)).sum()) == 22
    assert int((~weakly.any(0)).sum()) == 30


def test_groups_are_never_compared():
    log_value = torch.tensor([0.1, 0.7, -0.3, 1.1, 0.4], dtype=torch.float64)
    values = torch.tensor([1.0, 2.0, 5.0, 4.0, 3.0], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1, 1])
    together = group[:, None] == group
    joint = set_cross_entropy(log_value, order(values), together)
    first = set_cross_entropy(log_value[:2], order(values[:2]), ALL[:2, :2])
    second = set_cross_entropy(log_value[2:], order(values[2:]), ALL[:3, :3])
    close(joint, (first + second) / 2)
    batch = ordered_batch()
    batch.group = torch.arange(5)
    with pytest.raises(ValueError, match="at least two trajectories"):
        Ordering()(diamond_policy(), batch)


def test_absent_rows_take_no_part():
    together = torch.ones(4, 4, dtype=torch.bool)
    together[3] = together[:, 3] = False
    log_value = torch.tensor([0.0, 1.0, 2.0, 50.0], dtype=torch.float64, requires_grad=True)
    values = [1.0, 2.0, 3.0, 9.0]
    for loss in (set_cross_entropy, pair_cross_entropy):
        value = loss(log_value, order(values), together)
        close(value, loss(log_value[:3], order(values[:3]), ALL[:3, :3]), 1e-12)
        gradient = torch.autograd.grad(value, log_value)[0]
        assert torch.isfinite(gradient).all() and gradient[3] == 0
    nobody = torch.zeros(4, 4, dtype=torch.bool)
    close(set_cross_entropy(log_value, order(values), nobody), 0.0)


def minimiser(pairs, ranks, gamma=10.0):
    """log R^ / log gamma that minimises the pair loss of 5 items within [-log gamma, log gamma]."""
    together = torch.zeros(5, 5, dtype=torch.bool)
    for i, j in pairs:
        together[i, j] = together[j, i] = True
    dominated_by, bound = order(ranks), math.log(gamma)

    def loss(point):
        x = torch.tensor(point, requires_grad=True)
        value = pair_cross_entropy(x, dominated_by, together)
        value.backward()
        return float(value.detach()), x.grad.numpy()

    found = minimize(
        loss, [0.0] * 5, jac=True, bounds=[(-bound, bound)] * 5, options={"ftol": 1e-15}
    )
    return torch.tensor(found.x) / bound


NEIGHBOURS = [(i, i + 1) for i in range(4)]
EVERY = [(i, j) for i in range(5) for j in range(i + 1, 5)]


@pytest.mark.parametrize(
    ("pairs", "ranks", "expected"),
    [
        (NEIGHBOURS, [0.0, 1.0, 2.0, 3.0, 4.0], [-1, -0.5, 0, 0.5, 1]),
        (EVERY, [0.0, 1.0, 2.0, 3.0, 4.0], [-1, -0.5999, 0, 0.5999, 1]),
        (NEIGHBOURS, [0.0, 1.0, 1.0, 3.0, 4.0], [-1, -0.244, -0.512, 0.244, 1]),
        (EVERY, [0.0, 1.0, 1.0, 3.0, 4.0], [-1, -0.304, -0.304, 0.561, 1]),
    ],
)
def test_minimisers_are_log_linear_in_the_rank(pairs, ranks, expected):
    """Comparing neighbours only turns a tie into an inversion; all pairs keep the order."""
    close(minimiser(pairs, ranks), expected, 6e-4)


def test_neighbours_are_log_linear_for_every_bound():
    close(minimiser(NEIGHBOURS, list(range(5)), gamma=100.0), [-1, -0.5, 0, 0.5, 1], 1e-3)


def ordered_batch():
    """The five trajectories of the diamond with two rewards each."""
    batch = diamond_batch()
    batch.rewards = FRONT[set_number(batch.terminal)]
    return batch


def test_implied_rewards_of_whole_trajectories():
    policy, batch = diamond_policy(), ordered_batch()
    # log P_F - log P_B of the five paths under the uniform policy, all but b (path 2) on the front.
    implied = torch.tensor([1 / 3, 1 / 6, 1 / 6, 1 / 3, 1 / 3]).log().log_softmax(0)
    expected = -implied[[0, 1, 3, 4]].mean()
    loss = Ordering()(policy, batch)
    close(loss.value, expected)
    close(loss.metrics["best_share"], 0.8)
    total = Ordering(order="total", candidates="pairs")(policy, batch).value
    implied_value = torch.tensor([1 / 3, 1 / 6, 1 / 6, 1 / 3, 1 / 3]).double().log()
    everyone = torch.ones(5, 5, dtype=torch.bool)
    close(total, pair_cross_entropy(implied_value, order([1.0, 2.0, 3.0, 4.0, 4.0]), everyone))


def test_increasing_transforms_change_nothing():
    policy, batch = diamond_policy(), ordered_batch()
    before = Ordering()(policy, batch).value
    batch.rewards = torch.stack([batch.rewards[:, 0].exp(), batch.rewards[:, 1] ** 3 + 7], 1)
    assert torch.equal(Ordering()(policy, batch).value, before)
    pairs = Ordering(order="total", candidates="pairs")
    before = pairs(policy, batch).value
    batch.log_reward = 3 * batch.log_reward - 5
    assert torch.equal(pairs(policy, batch).value, before)


def test_terminal_values_of_detailed_balance():
    policy, batch = diamond_policy(), ordered_batch()
    policy.flow.data.normal_(generator=torch.Generator().manual_seed(0))
    number = set_number(batch.terminal)
    stop = torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64).log()
    terminal = policy.flow[0, number] - stop[number]
    expected = set_cross_entropy(terminal, order(batch.rewards), torch.ones(5, 5).bool())
    close(Ordering(starts="last")(policy, batch).value, expected)
    # Interior edges squared; terminal edges are zeroed but kept in the mean over 11.
    ev = evaluate(policy, batch, DetailedBalance().needs)
    x = ev.log_pf - ev.log_pb
    edges = ev.log_flow[:, :-1] + x[:, :-1] - ev.log_flow[:, 1:]
    interior = edges[batch.valid[:, 1:]].square().sum() / 11
    both = Sum(((1.0, DetailedBalance(boundary=False)), (0.1, Ordering(starts="last"))))
    close(both(policy, batch).value, interior + 0.1 * expected)
    # The reward's value enters nowhere.
    batch.log_reward = batch.log_reward * 7 + 1
    close(both(policy, batch).value, interior + 0.1 * expected, 1e-12)


def test_sub_trajectories_of_equal_length_are_ranked():
    policy, batch = diamond_policy(), ordered_batch()
    generator = torch.Generator().manual_seed(0)
    policy.flow.data.normal_(generator=generator)
    policy.logits.data.normal_(generator=generator)
    ev = evaluate(policy, batch, SubTrajectoryBalance().needs)
    x, lengths = ev.log_pf - ev.log_pb, batch.lengths.tolist()
    lam, total = 0.7, 0.0
    weight = torch.tensor([lam, lam**2, lam**3]) / (lam + lam**2 + lam**3)
    for size in (1, 2, 3):
        rows = [b for b in range(5) if lengths[b] >= size]
        start = [lengths[b] - size for b in rows]
        value = torch.stack(
            [ev.log_flow[b, i] + x[b, i:].sum() for b, i in zip(rows, start, strict=True)]
        )
        everyone = torch.ones(len(rows), len(rows), dtype=torch.bool)
        rank = order(batch.rewards[rows])
        total += weight[size - 1] * set_cross_entropy(value, rank, everyone)
    close(Ordering(starts="all", lam=lam)(policy, batch).value, total)


def test_interior_of_sub_trajectory_balance_leaves_the_end_out():
    policy, batch = diamond_policy(), ordered_batch()
    policy.flow.data.normal_(generator=torch.Generator().manual_seed(0))
    objective = SubTrajectoryBalance(boundary=False)
    before = objective(policy, batch).value
    batch.log_reward = batch.log_reward + torch.arange(5.0)
    close(objective(policy, batch).value, before, 1e-12)
    # One interior edge: its square; no interior edge: 0.
    one = objective(policy, batch.rows(torch.tensor([1]))).value
    edge = policy.flow[0, 0] - math.log(3) - policy.flow[0, 1]
    close(one, edge.square())
    close(objective(policy, batch.rows(torch.tensor([0]))).value, 0.0)


class FrontOracle:
    """The two rewards of the diamond, read from states."""

    rewards = (Reward("first"), Reward("second"))
    version = "1"
    on_states = True
    seconds = 0.0

    def __call__(self, states):
        return FRONT[set_number(states)]


def train(objective, steps, backward="uniform", seed=0, rate=0.01):
    policy = diamond_policy(backward=backward)
    sampler = OnPolicy(
        policy,
        Conditions(2),
        Scorer(diamond(), FrontOracle()),
        64,
        seed,
        exploration=Exploration(epsilon=0.1),
        dtype=torch.float64,
    )
    settings = TrainerSettings(learning_rate=rate, log_every=0)
    Trainer(policy, objective, sampler, settings).run(steps)
    return distribution(policy)


def test_the_sampler_becomes_even_over_the_front():
    """Even in object space: ab, with two construction sequences, gets no more than the others."""
    close(train(Ordering(), 1000), [0.331, 0.331, 0.006, 0.331], 0.004)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sampler_after_three_thousand_steps(seed):
    close(train(Ordering(), 3000, seed=seed), [0.333, 0.333, 0.002, 0.333], 0.002)


@pytest.mark.parametrize(
    "objective",
    [
        Sum(((1.0, DetailedBalance(boundary=False)), (0.1, Ordering(starts="last")))),
        Sum(((1.0, FlowMatching(leaf_weight=0.0)), (0.1, Ordering(starts="last")))),
        Sum(((1.0, SubTrajectoryBalance(boundary=False)), (0.1, Ordering(starts="all")))),
    ],
    ids=["db", "fm", "subtb"],
)
def test_every_parametrisation_leaves_the_dominated_object(objective):
    found = train(objective, 300, rate=0.05)
    assert float(found[2]) < 0.05, found
    assert float(found[[0, 1, 3]].min()) > 0.2, found


def test_pairs_of_a_partial_order_hold_incomparable_candidates_level():
    """b loses to ab alone and ties with the rest, so pairs thin it out and do not remove it."""
    found = train(Ordering(candidates="pairs"), 300, rate=0.05)
    assert int(found.argmin()) == 2 and 0.05 < float(found[2]) < 0.2, found


def test_total_order_concentrates_on_the_best():
    """Diamond rewards 1, 2, 3, 4: the maximum is ab, and ranks decide, not values."""
    objective = Ordering(order="total", candidates="pairs")
    policy, batch = diamond_policy(), diamond_batch()
    optimizer = torch.optim.Adam([policy.logits], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        objective(policy, batch).value.backward()
        optimizer.step()
    found = distribution(policy)
    assert (found[1:] > found[:-1]).all() and float(found[3]) > 0.8


def test_backward_policy_may_be_kept_near_uniform():
    both = Sum(((1.0, Ordering()), (0.1, BackwardUniformity())))
    found = train(both, 500, backward="learned", rate=0.03)
    assert float(found[2]) < 0.05


def test_what_orderings_need():
    batch = diamond_batch()
    with pytest.raises(ValueError, match="raw reward vectors"):
        Ordering()(diamond_policy(), batch)
    assert Ordering().batch_needs == {"rewards"}
    assert Ordering(order="total").batch_needs == frozenset()
    for settings in ({"order": "best"}, {"candidates": "few"}, {"starts": "middle"}):
        with pytest.raises(ValueError, match="choose from"):
            Ordering(**settings)
    batch.complete = torch.tensor([True, False, True, True, True])
    with pytest.raises(ValueError, match="complete trajectories"):
        Ordering(order="total")(diamond_policy(), batch)
    assert TrajectoryBalance().batch_needs == frozenset()
