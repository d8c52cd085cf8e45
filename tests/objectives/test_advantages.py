"""Advantages: every published vector, and what must never happen to them."""

import itertools
import math

import pytest
import torch

from gflow.objectives.policy_gradient import (
    Gate,
    Groups,
    advantage,
    generalized_advantage,
    group_relative,
    moments,
    overlong_penalty,
    whiten,
)
from tests.diamond import close

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def column(*values):
    return tensor(*values).unsqueeze(1)


def of(rewards, group=None, lengths=None, **settings):
    """Advantages of rows of rewards, all of one group unless said otherwise; no epsilon."""
    rewards = torch.as_tensor(rewards, dtype=F64)
    rewards = rewards.unsqueeze(1) if rewards.ndim == 1 else rewards
    n = len(rewards)
    group = torch.zeros(n, dtype=torch.int64) if group is None else torch.tensor(group)
    lengths = torch.ones(n) if lengths is None else torch.tensor(lengths)
    return advantage(rewards, group, lengths, **{"eps": 0.0, **settings})


GDPO = {"combine": "norm_then_sum", "whitening": "sequence"}
PAIRS = [0, 0, 1, 1]
FOURS = [0, 0, 0, 0, 1, 1, 1, 1]
COLLAPSE = [(0, 0), (1, 0), (0, 0), (1, 1)]
CONTINUOUS = [(1, 0.2), (0, 0.9), (1, 0.5), (0, 0), (1, 1), (1, 1), (0, 1), (1, 0)]


def test_grpo():
    close(of([1, 0, 0, 0]), tensor(1.5, -0.5, -0.5, -0.5))
    close(of([1, 0, 0, 0], ddof=0), tensor(math.sqrt(3), *[-1 / math.sqrt(3)] * 3))
    close(of([1, 0, 0, 0], eps=1e-4), tensor(1.5, -0.5, -0.5, -0.5) * 0.5 / 0.5001)
    close(of([1, 0, 0, 1]), tensor(0.8660254, -0.8660254, -0.8660254, 0.8660254))
    close(of([1, 2, 3, 6]), tensor(-0.925820, -0.462910, 0, 1.388730))
    close(of([3, -7]), tensor(1, -1) / math.sqrt(2))


@pytest.mark.parametrize("n", [2, 5, 16])
def test_the_largest_grpo_advantage(n):
    close(of([1] + [0] * (n - 1)).max(), (n - 1) / math.sqrt(n))


def test_grpo_without_standard_deviation():
    close(of([1, 0, 0, 0], scale="none"), tensor(0.75, -0.25, -0.25, -0.25))


def test_leave_one_out():
    settings = {"baseline": "leave_one_out", "scale": "none"}
    close(of([1, 0, 0, 1], **settings), tensor(2, -2, -2, 2) / 3)
    close(of([1, 2, 3, 6], **settings), tensor(-8 / 3, -4 / 3, 0, 4))
    close(of([5.0], **settings), tensor(0))
    by_group_std = of([1, 0, 0, 1], baseline="leave_one_out")
    close(by_group_std, of([1, 0, 0, 1]) * 4 / 3)


def test_plain_and_baseline_reinforce_plus_plus_and_lite_ppo():
    rewards, group, lengths = [1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1], [1, 3, 2, 2, 2, 2]
    token = {"scale": "none", "whitening": "token"}
    plain = of(rewards, group, lengths, baseline="none", **token)
    close(plain, tensor(1.132843, -0.809174, -0.809174, 1.132843, 1.132843, -0.809174))
    relative = of(rewards, group, lengths, **token)
    close(relative, tensor(1.658312, -0.552771, -0.552771, 0.921285, 0.921285, -1.289798))
    biased = of(rewards, group, lengths, ddof=0, **token)
    close(biased[[0, 1, 3, 5]], tensor(1.732051, -0.577350, 0.962250, -1.347151))
    lite = of(rewards, group, scale="batch_std")
    close(lite, tensor(1.217161, -0.608581, -0.608581, 0.608581, 0.608581, -1.217161))


def test_collapse_of_two_rewards_into_one_advantage():
    half = 1 / math.sqrt(2)
    close(of(COLLAPSE, PAIRS), tensor(-half, half, -half, half))
    close(of(COLLAPSE, PAIRS, scale="none"), tensor(-0.5, 0.5, -1, 1))
    apart = {"combine": "norm_then_sum"}
    close(of(COLLAPSE, PAIRS, **apart), tensor(-half, half, -2 * half, 2 * half))
    close(of(COLLAPSE, PAIRS, **GDPO), tensor(-0.547723, 0.547723, -1.095445, 1.095445))
    # An epsilon enters both divisions.
    close(of(COLLAPSE, PAIRS, eps=1e-4, **GDPO), tensor(-0.547680, 0.547680, -1.095360, 1.095360),
          2e-5)  # fmt: skip


def test_continuous_rewards_in_two_groups():
    grpo = [0.462910, 0, 0.925820, -1.388730, 0.866025, 0.866025, -0.866025, -0.866025]
    close(of(CONTINUOUS, FOURS), tensor(*grpo))
    before = [0.355271, 0.410859, 1.121402, -1.887533, 1, 1, -1, -1]
    close(of(CONTINUOUS, FOURS, combine="norm_then_sum"), tensor(*before))
    final = [0.311331, 0.360044, 0.982707, -1.654082, 0.876319, 0.876319, -0.876319, -0.876319]
    close(of(CONTINUOUS, FOURS, **GDPO), tensor(*final))
    weighted = [0.656428, -0.244645, 1.068212, -1.479996, 0.806227, 0.806227, -1.343712, -0.268742]
    close(of(CONTINUOUS, FOURS, weights=tensor(1, 0.5), **GDPO), tensor(*weighted))
    gated = [0.566572, -0.936664, 1.306757, -0.936664, 0.796388, 0.796388, -1.379384, -0.213391]
    close(of(CONTINUOUS, FOURS, gates=[Gate(1, 0, 1.0)], **GDPO), tensor(*gated))


def test_rewards_normalised_apart_do_not_see_scales():
    rewards = tensor(*CONTINUOUS)
    changed = rewards * tensor(1, 10) + tensor(-3, 0.5)
    close(of(changed, FOURS, **GDPO), of(rewards, FOURS, **GDPO), 1e-12)
    difference = of(rewards * tensor(1, 10), FOURS) - of(rewards, FOURS)
    close(difference.abs().max(), 1.226, 5e-4)


def test_normalised_apart_they_weigh_by_their_rarity():
    """Before whitening it is a centred weighted sum with weights w / std of the group."""
    rewards, groups = tensor(*CONTINUOUS), Groups.of(torch.tensor(FOURS))
    weights = tensor(1, 0.5)
    std = groups.spread(moments(rewards, groups)[0].std)
    by_hand = group_relative((rewards / std * weights).sum(1), groups, scale="none")
    close(of(rewards, FOURS, combine="norm_then_sum", weights=weights), by_hand)
    total = groups.sum(by_hand)
    close(total, torch.zeros(2), 1e-12)


def test_one_reward_normalised_apart_is_grpo_up_to_one_factor():
    rewards = [1, 0, 0, 0, 0.3, 0.1, 0.9, 0.2]
    factor = math.sqrt((8 - 1) / (2 * (4 - 1)))
    close(of(rewards, FOURS, **GDPO), of(rewards, FOURS) * factor)
    close(factor, 1.080123)


def test_complementary_rewards_cancel_and_weights_keep_them():
    rewards = [(1, 0), (1, 0), (0, 1)]
    close(of(rewards, **GDPO), torch.zeros(3), 0)
    final = of(rewards, weights=tensor(1, 0.5), combine="norm_then_sum")
    close(final, tensor(0.288675, 0.288675, -0.577350))
    equal_totals = [(1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    close(of(equal_totals), torch.zeros(4), 0)
    small = tensor(-1, -1, 1, 1)
    close(of(equal_totals, combine="norm_then_sum"), small * 0.133975)
    close(of(equal_totals, **GDPO), small * 0.866025)


@pytest.mark.parametrize(
    "n, k, counts",
    [(n, 2, c) for n, c in enumerate([(2, 3, 3), (4, 6, 6), (7, 10, 14), (11, 15, 26),
                                      (16, 21, 38), (22, 28, 59), (29, 36, 81)], 2)]
    + [(4, k, c) for k, c in enumerate([(4, 4, 4), (7, 10, 14), (14, 20, 45), (23, 35, 127)], 1)],
)  # fmt: skip
def test_numbers_of_distinct_advantages(n, k, counts):
    """Multisets of binary rewards that GRPO, GRPO without std and GDPO tell apart."""
    rows = list(itertools.product((0, 1), repeat=k))
    cases = torch.tensor(
        list(itertools.combinations_with_replacement(range(len(rows)), n)), dtype=torch.int64
    )
    rewards = torch.tensor(rows, dtype=F64)[cases].flatten(0, 1)
    group = torch.arange(len(cases)).repeat_interleave(n)
    found = []
    for settings in ({}, {"scale": "none"}, {"combine": "norm_then_sum"}):
        values = advantage(rewards, group, group, eps=0.0, **settings).view(-1, n).sort(1).values
        found.append(len((values * 1e6).round().unique(dim=0)))
    assert tuple(found) == counts


def test_whitening_by_steps_gives_groups_without_signal_an_advantage():
    before, lengths = tensor(math.sqrt(2), -math.sqrt(2), 0, 0), tensor(2, 6, 4, 4)
    close(whiten(before, torch.ones(4), 0.0), tensor(1.2247449, -1.2247449, 0, 0))
    close(whiten(before, lengths, 0.0), tensor(1.8298, -1.0979, 0.3660, 0.3660), 1e-4)


def test_learned_rewards_of_four_kinds():
    scores = [(0.9, 0.8, 0.6, 0.2), (0.7, 0.9, 0.8, 0.9), (0.8, 0.4, 0.3, 1), (0.6, 0.7, 0.9, 0.4)]
    close(of(scores), tensor(-0.582568, 1.488785, -0.582568, -0.323649))
    weighted = of(scores, weights=tensor(0.2, 0.2, 0.2, 0.4))
    close(weighted, tensor(-0.991241, 1.296238, 0.228748, -0.533745))
    apart = of(scores, combine="norm_then_sum")
    close(apart, tensor(0.335417, 1.817496, -1.353361, -0.799552))


def test_turns_are_compared_by_rollouts():
    """Two rollouts of 3 and 1 turns: statistics over rollouts, not over turns."""
    close(of([1, 0]), tensor(0.7071068, -0.7071068))
    close(of([1, 1, 1, 0]), tensor(0.5, 0.5, 0.5, -1.5))


def test_generalised_advantages():
    rewards, values = tensor(0, 0, 1).view(1, 3), tensor(0.2, 0.5, 0.6).view(1, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    for discount, lam, expected in [
        (1.0, 0.95, (0.756, 0.48, 0.4)),
        (1.0, 1.0, (0.8, 0.5, 0.4)),
        (0.99, 0.95, (0.737223, 0.4702, 0.4)),
    ]:
        found, target = generalized_advantage(rewards, values, mask, discount, lam)
        close(found[0], tensor(*expected))
        close(target, found + values)
    # A step outside the mask is passed over as if it were not there.
    wide = torch.tensor([[True, False, True, True, False]])
    spaced = torch.zeros(1, 5, dtype=F64).masked_scatter(wide, values)
    spaced[~wide] = 7.0
    paid = torch.zeros(1, 5, dtype=F64).masked_scatter(wide, rewards)
    found, _ = generalized_advantage(paid, spaced, wide)
    close(found[wide], tensor(0.756, 0.48, 0.4))
    close(found[~wide], torch.zeros(2), 0)


def test_overlong_penalty():
    lengths = torch.tensor([16384, 18432, 20480, 30000, 5])
    close(overlong_penalty(lengths, 20480, 4096), tensor(0, -0.5, -1, -1, 0))


def random_case(seed=0, n=60, k=3, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    rewards = torch.rand(n, k, generator=g, dtype=dtype)
    group = torch.randint(-5, 6, (n,), generator=g) * 1000
    return rewards, group, torch.randint(1, 9, (n,), generator=g)


EVERY = [
    {"combine": combine, "baseline": baseline, "scale": scale, "whitening": whitening}
    for combine in ("sum_then_norm", "norm_then_sum")
    for baseline in ("group_mean", "leave_one_out")
    for scale in ("none", "group_std", "batch_std")
    for whitening in ("none", "sequence", "token")
]


@pytest.mark.parametrize("settings", EVERY)
def test_order_shifts_and_scales(settings):
    rewards, group, lengths = random_case()
    found = advantage(rewards, group, lengths, eps=0.0, **settings)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    mixed = advantage(rewards[order], group[order], lengths[order], eps=0.0, **settings)
    close(mixed, found[order], 1e-12)
    if settings["scale"] != "batch_std" and settings["whitening"] == "none":
        shifted = rewards + (group == group[0]).to(F64).unsqueeze(1) * tensor(4.0, 2.0, -1.0)
        close(advantage(shifted, group, lengths, eps=0.0, **settings), found, 1e-12)
    free = settings["scale"] != "none" or settings["whitening"] != "none"
    scaled = advantage(3 * rewards, group, lengths, eps=0.0, **settings)
    close(scaled, found if free else 3 * found, 1e-11)


@pytest.mark.parametrize("settings", EVERY)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (F64, 1e-12)])
def test_groups_by_hand(settings, dtype, tolerance):
    """The same from loops over groups, unequal sizes, one of them of a single row."""
    rewards, group, lengths = random_case()
    group[7] = 77
    found = advantage(rewards.to(dtype), group, lengths, **settings)
    assert found.dtype == dtype

    def each(values):
        result = torch.zeros_like(values)
        for number in group.unique():
            rows = group == number
            r = values[rows]
            n = len(r)
            if n < 2:
                continue
            centred = r - r.mean()
            if settings["baseline"] == "leave_one_out":
                centred = centred * n / (n - 1)
            if settings["scale"] == "group_std":
                centred = centred / (r.std() + 1e-6)
            elif settings["scale"] == "batch_std":
                centred = centred / (values.std() + 1e-6)
            result[rows] = centred
        return result

    if settings["combine"] == "sum_then_norm":
        expected = each(rewards.sum(1))
    else:
        expected = sum(each(rewards[:, k]) for k in range(3))
    if settings["whitening"] != "none":
        counts = torch.ones_like(lengths) if settings["whitening"] == "sequence" else lengths
        tokens = expected.repeat_interleave(counts)
        expected = (expected - tokens.mean()) / (tokens.std() + 1e-6)
    close(found, expected, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1, -0.7])
@pytest.mark.parametrize("n", [3, 64, 1000])
def test_equal_rewards_give_no_advantage(dtype, value, n):
    """Rounding of a mean must not be taken for a spread, whatever the epsilon."""
    rewards = torch.full((n, 2), value, dtype=dtype)
    group = torch.zeros(n, dtype=torch.int64)
    for settings in ({}, {"combine": "norm_then_sum"}, {"scale": "batch_std"}, GDPO):
        found = advantage(rewards, group, group + 1, eps=0.0, **settings)
        assert (found == 0).all(), settings
    rewards[-1, 0] = torch.nan
    assert (advantage(rewards, group, group + 1, eps=0.0, **GDPO) == 0).all()


def test_missing_rewards_are_left_out_of_every_statistic():
    nan = torch.nan
    rewards = tensor((1.0, nan), (0.0, 0.3), (nan, 0.9), (nan, nan), (0.5, 0.5))
    found = advantage(rewards, torch.zeros(5, dtype=torch.int64), torch.ones(5), eps=0.0,
                      combine="norm_then_sum")  # fmt: skip
    a = group_relative(tensor(1, 0, 0.5), Groups.of(torch.zeros(3, dtype=torch.int64)), eps=0.0)
    b = group_relative(tensor(0.3, 0.9, 0.5), Groups.of(torch.zeros(3, dtype=torch.int64)), eps=0.0)
    close(found, torch.stack([a[0], a[1] + b[0], b[1], torch.zeros((), dtype=F64), a[2] + b[2]]))
    # The row without any reward is no part of the whitening either.
    white = advantage(rewards, torch.zeros(5, dtype=torch.int64), torch.ones(5), eps=0.0, **GDPO)
    known = found[[0, 1, 2, 4]]
    close(white[[0, 1, 2, 4]], (known - known.mean()) / known.std())
    assert white[3] == 0
    total = advantage(rewards, torch.zeros(5, dtype=torch.int64), torch.ones(5), scale="none")
    sums = tensor(1.0, 0.3, 0.9, 1.0)
    close(total[[0, 1, 2, 4]], sums - sums.mean())
    assert total[3] == 0


def test_a_reward_seen_once_in_its_group_says_nothing_there():
    nan = torch.nan
    rewards = tensor((1.0, 5.0), (0.0, nan), (0.5, nan))
    found = of(rewards, combine="norm_then_sum")
    close(found, of([1.0, 0.0, 0.5]))


def test_groups_of_one_and_small_spreads():
    close(of([3.0, 1.0, 0.0], group=[4, 9, 9]), tensor(0, 1, -1) / math.sqrt(2))
    tiny = [0.5, 0.5 + 1e-9, 0.5]
    assert of(tiny).abs().max() > 1
    assert of(tiny, min_std=1e-6).abs().max() == 0


def test_no_gradient_reaches_the_rewards():
    rewards = random_case()[0].requires_grad_()
    _, group, lengths = random_case()
    with torch.no_grad():
        assert not advantage(rewards, group, lengths).requires_grad


@pytest.mark.parametrize("number", [[2, 2, 5, 5, 5], [5, 5, 2, 2], [1, 1, 2, 1], [7], []])
def test_groups_whatever_their_order(number):
    group = torch.tensor(number, dtype=torch.int64)
    groups = Groups.of(group)
    assert Groups.of(groups) is groups
    names = group.unique()
    assert (groups.spread(names) == group).all()
    assert groups.sizes.tolist() == [number.count(g) for g in names]
    values = torch.arange(len(number), dtype=F64)
    assert groups.sum(values).tolist() == [values[group == g].sum() for g in names]
    assert (group[groups.order[groups.starts]] == names).all()
