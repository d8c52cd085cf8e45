"""Denoising paths for policy gradients: windows, what groups share, and the rest of the way."""

import pytest
import torch
from torch import nn

from gflow.conditions import PromptConditions
from gflow.envs.denoising.schedules import at_times, diffusion, flow
from gflow.envs.denoising.steps import time_grid
from gflow.mdp import States
from gflow.policies.denoiser import DenoiserPolicy, on_schedule
from gflow.sampling.paths import Compression, OnPaths, Window
from tests import gauss1d

STEPS = 6


class Pull(nn.Module):
    """Towards a point that the prompt names."""

    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.7))
        self.calls = 0

    def forward(self, x, t, encoding):
        self.calls += 1
        return (x - encoding[:, :1]) * self.strength


def make(steps=STEPS, size=3, sampler="flow_sde", shift=1.0):
    env = flow((size,), time_grid(steps, shift), sampler)
    return DenoiserPolicy(env, Pull(), condition_size=1, reduction="mean")


def score(batch):
    batch.rewards = batch.terminal.data[:, :1]
    return batch


def strategy(policy=None, batch_size=8, group_size=4, seed=0, prompts=5, **options):
    conditions = PromptConditions(prompts)
    return OnPaths(
        policy or make(), conditions, score, batch_size, seed, group_size=group_size, **options
    )


def number(mask):
    return mask.nonzero().flatten().tolist()


def test_all_steps_but_the_last():
    random = torch.Generator().manual_seed(0)
    assert number(Window().mask(10, 0, random)) == list(range(9))


def test_sliding_windows_visit_every_place_in_turn():
    window = Window("sliding", size=4, every=25)
    random = torch.Generator().manual_seed(0)
    found = {update: number(window.mask(25, update, random)) for update in range(1000)}
    assert found[0] == found[24] == [0, 1, 2, 3] and found[25] == [1, 2, 3, 4]
    assert found[475] == [19, 20, 21, 22]
    # None is ever cut short, and after the last place it starts again.
    assert found[500] == [20, 21, 22, 23] and found[525] == [0, 1, 2, 3]
    assert all(len(steps) == 4 for steps in found.values())
    fast = Window("sliding", size=2, every=3, stride=2)
    assert [number(fast.mask(10, u, random))[0] for u in (0, 2, 3, 6, 9, 12)] == [0, 0, 2, 4, 6, 0]


def test_sliding_windows_may_stay_less_and_less():
    # 21 places of 4 in the 24 steps with noise: linear from 25 to 5, and 25 exp(-0.1 (l - 13)).
    linear = Window("sliding", size=4, every=25, least=5).stays(21)
    assert linear == [25 - k for k in range(21)]
    falling = Window("sliding", size=4, every=25, decay=0.1).stays(21)
    assert falling == [25] * 14 + [23, 21, 19, 17, 16, 14, 13]
    assert Window("sliding", size=4, every=25).stays(21) == [25] * 21
    random = torch.Generator().manual_seed(0)
    window = Window("sliding", size=4, every=25, least=5)
    starts = [number(window.mask(25, u, random))[0] for u in range(2 * sum(linear))]
    assert starts == 2 * [place for place, stay in enumerate(linear) for _ in range(stay)]
    # Each place keeps its own stay when strides visit them in another order.
    window = Window("sliding", size=3, every=4, least=1, stride=2)
    assert window.stays(5) == [4, 3, 2, 1, 1]
    starts = [number(window.mask(8, u, random))[0] for u in range(11)]
    assert starts == [0] * 4 + [2] * 2 + [4] + [1] * 3 + [3]


def test_a_frozen_window_is_a_random_one_without_a_choice():
    window = Window("random", size=4, before=4)
    random = torch.Generator().manual_seed(0)
    assert all(number(window.mask(25, u, random)) == [0, 1, 2, 3] for u in range(50))


def test_random_windows_are_even_over_their_range():
    window = Window("random", size=2, before=5)
    random = torch.Generator().manual_seed(0)
    starts = torch.tensor([number(window.mask(10, 0, random))[0] for _ in range(4000)])
    share = torch.bincount(starts, minlength=4) / 4000
    assert len(share) == 4 and (share - 0.25).abs().max() < 0.03
    # A window of all trainable steps is no choice at all.
    assert number(Window("random", size=9).mask(10, 0, random)) == list(range(9))


@pytest.mark.parametrize(
    ("steps", "first", "share", "points"),
    [(25, 4, 0.4, 8), (25, 4, 0.2, 4), (16, 4, 0.4, 5), (10, 9, 0.1, 2)],
)
def test_compressed_grids(steps, first, share, points):
    times = Compression(share).times(time_grid(steps), first)
    assert len(times) == points and float(times[-1]) == 0
    assert float(times[0]) == pytest.approx(1 - first / steps)
    assert (times.diff() + times[0] / (points - 1)).abs().max() < 1e-12
    # A shifted grid is even before its shift.
    shifted = Compression(share).times(time_grid(steps, 3.0), first)
    assert torch.allclose(shifted, 3 * times / (1 + 2 * times))
    # Another grid keeps its own nodes.
    bent = time_grid(steps).square()
    assert torch.allclose(Compression(1.0).times(bent, first), bent[first:])


def test_steps_outside_the_window_are_eulers():
    policy = make()
    batch = strategy(policy, window=Window("random", size=2))()
    times = time_grid(STEPS).float()
    window = number(batch.stochastic[0])
    assert len(window) == 2 and (batch.stochastic == batch.stochastic[0]).all()
    table = policy.env.quiet
    for k in range(STEPS):
        x, x_next = batch.states[:, k + 1], batch.states[:, k + 2]
        with torch.no_grad():
            v = policy.network(x, times[k].expand(len(x)), batch.condition.encoding)
        euler = table.a[k].float() * x + table.b[k].float() * v
        assert torch.equal(euler, x_next) == (k + 1 not in window)


def test_old_log_probabilities_are_those_of_the_full_schedule():
    policy = make()
    for options in (
        {},
        {"window": Window("sliding", size=3)},
        {"shared": "noise"},
        {"shared": "prefix", "window": Window("random", size=2)},
        {"shared": "prefix", "separate": True},
        {"window": Window("sliding", size=2), "compression": Compression()},
    ):
        batch = strategy(policy, **options)()
        row, column = batch.stochastic.nonzero(as_tuple=True)
        states = States(batch.states[row, column], column, torch.zeros_like(row, dtype=torch.bool))
        kernel = policy.step(states, batch.condition.rows(row))
        again = kernel.log_prob(batch.states[row, column + 1])
        assert (again - batch.log_pf_old[row, column]).abs().max() < 1e-6
        assert batch.states.shape[1] == STEPS + 2 and batch.valid.all()
        assert not batch.stochastic[:, -1].any() and not batch.stochastic[:, 0].any()


def same_within_groups(values, batch):
    """Whether rows of one group are equal, and whether any two groups are."""
    first = {}
    inside = outside = False
    for row, group in zip(values, batch.group.tolist(), strict=True):
        if group in first:
            inside |= not torch.equal(row, first[group])
        else:
            outside |= any(torch.equal(row, other) for other in first.values())
            first[group] = row
    return not inside, outside


def test_groups_share_what_they_should():
    nothing = strategy()()
    assert same_within_groups(nothing.states[:, 1], nothing) == (False, False)
    noise = strategy(shared="noise")()
    assert same_within_groups(noise.states[:, 1], noise) == (True, False)
    assert same_within_groups(noise.states[:, 2], noise) == (False, False)
    prefix = strategy(shared="prefix", window=Window("random", size=1))()
    first = number(prefix.stochastic[0])[0]
    assert same_within_groups(prefix.states[:, first], prefix) == (True, False)
    assert same_within_groups(prefix.states[:, first + 1], prefix) == (False, False)


def test_separate_steps_branch_from_one_path():
    batch = strategy(shared="prefix", separate=True, trunks=2, group_size=4)()
    # Two prompts, five steps with noise, four branches each.
    assert batch.n == 2 * 5 * 4 and len(batch.group.unique()) == 10
    assert (batch.stochastic.sum(1) == 1).all()
    for group in batch.group.unique():
        rows = batch.rows(batch.group == group)
        step = number(rows.stochastic[0])[0]
        assert (rows.stochastic == rows.stochastic[0]).all()
        assert (rows.condition.encoding == rows.condition.encoding[0]).all()
        # Two trunks with two branches each.
        assert torch.equal(rows.states[0, : step + 1], rows.states[1, : step + 1])
        assert torch.equal(rows.states[2, : step + 1], rows.states[3, : step + 1])
        assert not torch.equal(rows.states[0, 1], rows.states[2, 1])
        assert len(rows.states[:, step + 1].unique(dim=0)) == 4
    # Branches of every step leave the same trunk.
    steps = batch.stochastic.int().argmax(1)
    ones = [batch.rows(steps == k).states[0] for k in steps.unique()]
    assert all(torch.equal(ones[-1][:2], path[:2]) for path in ones)


def test_branches_credit_their_own_noise_exactly():
    policy = gauss1d.make(steps=5)
    walk = OnPaths(
        policy, PromptConditions(1), score, 4000, 0, group_size=4000, shared="prefix",
        trunks=4000, separate=True, dtype=torch.float64,
    )  # fmt: skip
    batch = walk()
    steps = batch.stochastic.int().argmax(1)
    c = gauss1d.slope(time_grid(5)[:-1])
    for k in range(4):
        rows = batch.rows(steps == k + 1)
        x, after = rows.states[:, k + 1], rows.states[:, k + 2]
        states = States(x, torch.full((rows.n,), k + 1), torch.zeros(rows.n, dtype=torch.bool))
        kernel = policy.step(states, rows.condition)
        noise = ((after - kernel.mean) / kernel.std).squeeze(1)
        exact = float(policy.env.forward.s[k + 1] * (1 - 0.2 * c[k + 1 :]).prod())
        reward = rows.rewards.squeeze(1)
        # The rest of the way is linear, so the reward is linear in the noise and the start.
        start = rows.states[:, 1].squeeze(1)
        design = torch.stack([torch.ones_like(noise), start, noise], 1)
        found = torch.linalg.lstsq(design, reward.unsqueeze(1)).solution[2, 0]
        assert float(found.detach()) == pytest.approx(exact, rel=1e-9)


def test_a_share_of_the_steps_is_learned_from():
    batch = strategy(share=0.6, batch_size=400, group_size=400)()
    kept = batch.stochastic[:, 1:-1]
    assert (kept.sum(1) == 3).all() and not batch.stochastic[:, -1].any()
    assert (kept.double().mean(0) - 0.6).abs().max() < 0.1
    assert len(kept.unique(dim=0)) == 10
    assert strategy(share=1.0)().stochastic[:, 1:-1].all()


def test_compression_saves_network_calls_and_ends_at_data():
    policy = make(steps=25)
    window = Window("sliding", size=4)
    strategy(policy, window=window)()
    full, policy.network.calls = policy.network.calls, 0
    batch = strategy(policy, window=window, compression=Compression(0.4))()
    assert full == 25
    # The window, the estimate before the solver starts, and seven steps of the solver.
    assert policy.network.calls == 4 + 1 + 7
    assert number(batch.stochastic[0]) == [1, 2, 3, 4]
    assert torch.equal(batch.states[:, 6], batch.terminal.data)
    assert not torch.equal(batch.states[:, 5], batch.terminal.data)


def test_the_solver_is_more_exact_than_euler():
    policy = gauss1d.make(steps=100)
    walk = OnPaths(
        policy, PromptConditions(1), score, 4, 0, compression=Compression(0.2), dtype=torch.float64
    )
    x = torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
    condition = PromptConditions(1).make(torch.zeros(4, dtype=torch.int64), torch.float64)
    # The flow of a normal variable keeps its standardized value.
    t = 0.9
    spread = ((1 - t) ** 2 * gauss1d.SPREAD**2 + t**2) ** 0.5
    exact = gauss1d.MEAN + gauss1d.SPREAD * (x - (1 - t) * gauss1d.MEAN) / spread
    times = torch.linspace(t, 0, 21, dtype=torch.float64)
    silent = policy.env.only(torch.zeros(100, dtype=torch.bool))
    before = x + 0.01 * policy.predict(x, torch.full((4,), t).double(), condition.encoding)
    policy.network = _Exact()
    error = {}
    grid = at_times(policy.env, times)
    error["solver"] = (walk.solve(x, grid, condition, (10, before)) - exact).abs().max()
    with on_schedule(policy, grid):
        states = States(x, torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool))
        for _ in range(20):
            states = grid.step(states, policy.step(states, condition).mean)
    error["euler"] = (states.data - exact).abs().max()
    assert silent.deterministic
    assert error["solver"] < 0.2 * error["euler"] and error["solver"] < 0.02


class _Predicting(nn.Module):
    """Of a normal variable: velocity, clean point or noise, exactly; fed t or a multiple of it."""

    def __init__(self, prediction, unit):
        super().__init__()
        self.prediction, self.unit, self.fed = prediction, unit, []
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, t, encoding):
        self.fed.append(float(t[0]) / self.unit)
        t = t.double().unsqueeze(1) / self.unit
        velocity = gauss1d.slope(t) * (x - (1 - t) * gauss1d.MEAN) - gauss1d.MEAN
        whole = {"velocity": velocity, "clean": x - t * velocity, "noise": x + (1 - t) * velocity}
        return whole[self.prediction] + 0 * self.weight


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_rest_of_the_way_is_the_same_however_the_network_is_fed_and_read(shift):
    # Inside (0, 1) all predictions say the same.
    times = 0.98 * time_grid(12, shift)
    ends, fed = [], []
    for prediction, unit in (("velocity", 1.0), ("velocity", 1000.0), ("clean", 1.0), ("noise", 7)):
        env = flow((1,), times, prediction=prediction, clock=unit * times)
        policy = DenoiserPolicy(env, _Predicting(prediction, unit)).double()
        walk = OnPaths(
            policy, PromptConditions(1), score, 8, 0, window=Window("sliding", size=2),
            compression=Compression(0.4), dtype=torch.float64,
        )  # fmt: skip
        ends.append(walk().terminal.data)
        fed.append(policy.network.fed)
    for end, seen in zip(ends, fed, strict=True):
        assert torch.allclose(end, ends[0], atol=1e-9) and seen == pytest.approx(fed[0])
    # Two steps, the estimate before the rest, and three steps where the grid is.
    assert fed[0][:3] == pytest.approx([float(times[0]), float(times[1]), float(times[1])])
    wanted = torch.linspace(1 - 2 / 12, 0, 4)[:3].double()
    assert fed[0][3] == pytest.approx(float(times[2]))
    if shift == 1.0:
        assert fed[0][3:] == pytest.approx((0.98 * wanted).tolist(), abs=0.01)


def test_a_rest_that_nothing_defines_is_refused():
    options = {"window": Window("sliding", size=2), "compression": Compression(0.4)}
    signal = torch.linspace(0.1, 0.998, STEPS + 1)
    env = diffusion((3,), signal, clock=1000 * time_grid(STEPS))
    with pytest.raises(ValueError, match="only a schedule of `flow`"):
        strategy(DenoiserPolicy(env, Pull(), condition_size=1), **options)
    env = flow((3,), time_grid(STEPS), clock=time_grid(STEPS).sqrt())
    with pytest.raises(ValueError, match="clock that is linear in time"):
        strategy(DenoiserPolicy(env, Pull(), condition_size=1), **options)


class _Exact(nn.Module):
    def forward(self, x, t, encoding):
        t = t.unsqueeze(1)
        return gauss1d.slope(t) * (x - (1 - t) * gauss1d.MEAN) - gauss1d.MEAN


def test_a_resumed_strategy_goes_on_exactly():
    options = {"window": Window("sliding", size=2, every=2), "shared": "prefix", "share": 0.5}
    walk = strategy(**options)
    for _ in range(3):
        walk()
    state = walk.state_dict()
    wanted = [walk() for _ in range(3)]
    again = strategy(seed=1, **options)
    again.load_state_dict(state)
    for batch in wanted:
        other = again()
        assert torch.equal(batch.states, other.states)
        assert torch.equal(batch.stochastic, other.stochastic)


def test_settings_that_make_no_sense_are_refused():
    for options, words in (
        ({"shared": "everything"}, "unknown share"),
        ({"separate": True}, "only on a shared prefix"),
        ({"shared": "prefix", "trunks": 3}, "4 paths cannot branch evenly from 3 trunks"),
        ({"share": 0.0}, "must lie in"),
        ({"batch_size": 6}, "no multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            strategy(**options)
    with pytest.raises(ValueError, match="unknown window"):
        Window("some")
    with pytest.raises(ValueError, match="at least 1"):
        Window("random")
    with pytest.raises(ValueError, match="does not fit"):
        strategy(window=Window("random", size=6))()
    for window in (Window(), Window("random", size=1), Window("sliding", size=1)):
        with pytest.raises(ValueError, match="no step of 1 can be learned from"):
            strategy(make(steps=1), window=window)()
    with pytest.raises(ValueError, match="cannot end before step -2"):
        Window(before=-2)
    for stay in ({"least": 30}, {"least": -1}, {"decay": -0.1}):
        with pytest.raises(ValueError, match="a window's stay must fall"):
            Window("sliding", size=4, **stay)
    with pytest.raises(ValueError, match="not both"):
        Window("sliding", size=4, least=5, decay=0.1)
