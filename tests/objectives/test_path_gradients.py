"""Gradients of policies on denoising paths against the closed form of a normal target."""

import math
from dataclasses import replace

import pytest
import torch

from gflow.conditions import PromptConditions
from gflow.envs.denoising import steps as tables
from gflow.envs.denoising.schedules import at_times, on_linear_path
from gflow.envs.denoising.shapes import SceneRewards, train_prompts
from gflow.mdp import States
from gflow.objectives.catalog import METHODS
from gflow.objectives.policy_gradient.path_objective import PathGradient, step_table
from gflow.objectives.policy_gradient.paths import (
    path_weights,
    ratio_powers,
)
from gflow.policies.denoiser import DenoiserPolicy, on_schedule
from gflow.policies.reference import Anchored
from gflow.policies.scenes import ValueNetwork, base_network
from gflow.sampling import Scorer
from gflow.sampling.paths import OnPaths, Window
from tests import gauss1d
from tests.gauss1d import PLAIN, paths


def estimate(policy, objective, batch):
    """Gradient of the mean reward by each theta, and its standard error, [N]."""
    policy.zero_grad()
    batch = objective.prepare(policy, batch)
    objective(policy, batch).value.backward()
    steps = batch.valid.shape[1] - 1
    noise = table_noise(policy, batch)
    path = step_table(policy)
    coefficient = path.b / path.s * ratio_powers(objective.power, path)
    trained = batch.stochastic[0]
    coefficient = coefficient * path_weights(objective.weight, path, trained)
    better = batch.advantage
    if objective.baseline == "value":
        better = better - gauss1d.MEAN
    single = better * noise * coefficient
    error = single.std(0)[1:] / math.sqrt(batch.n)
    return -policy.network.theta.grad * steps, error, (coefficient * path.s / path.b)[1:]


def table_noise(policy, batch):
    """The noise of each step, from the points, [B, T]."""
    column = torch.arange(batch.valid.shape[1])
    noise = []
    for k in column.tolist():
        states = States(batch.states[:, k], column[k].expand(batch.n), batch.valid[:, k] & False)
        with torch.no_grad():
            kernel = policy.step(states, batch.condition)
        noise.append(((batch.states[:, k + 1] - kernel.mean) / kernel.std).squeeze(1))
    return torch.stack(noise, 1)


ROWS = [name for name, row in METHODS.items() if "paths" in row.defaults]


class Expected(torch.nn.Module):
    """V(x, t): the mean reward, whatever the point."""

    def forward(self, x, t, encoding):
        return x.new_full((len(x), 1), gauss1d.MEAN)


def of_row(name, n):
    """A row's objective and policy; its divergence starts at 0, a buffer holds the whole batch."""
    if name == "equalized":
        return replace(PLAIN, weight="equal"), gauss1d.make("sage_sde")
    row = METHODS[name]
    head = Expected() if row.needs_flow else None
    policy = gauss1d.make(head=head, **row.defaults["schedule"])
    policy.network = Anchored(policy.network)
    objective = row.objective
    return replace(objective, buffer=n if objective.buffer else 0).fresh(), policy


@pytest.mark.parametrize("name", [*ROWS, "equalized"])
def test_gradient_is_the_closed_form(name):
    n = 100_000
    objective, policy = of_row(name, n)
    # CPS and DPM-Solver have no noise in their last step, which therefore teaches nothing.
    last = policy.env.forward.s[-1] > 0
    batch = paths(policy, n, seed=1)
    found, error, factor = estimate(policy, objective, batch)
    if not last:
        found, error, factor = found[:-1] * 4 / 5, error[:-1], factor[:-1]
    truth = gauss1d.gradient_of_the_mean(policy.env)[: len(found)]
    if objective.scale != "none":
        truth = truth / batch.rewards.std()
    assert ((found - factor * truth).abs() < 3 * error).all()
    assert (error < 0.2 * truth.abs().max() * factor.max()).all()


def test_the_closed_form_is_the_published_one():
    policy = gauss1d.make()
    wanted = [-0.033281, -0.088593, -0.156456, -0.233749, -0.249]
    truth = gauss1d.gradient_of_the_mean(policy.env)
    assert truth.tolist() == pytest.approx(wanted, abs=1e-6)
    assert float(truth.sum()) == pytest.approx(-0.761078, abs=1e-6)


def test_where_it_sampled_the_ratio_is_one_and_nothing_is_clipped():
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 64))
    loss = replace(PLAIN, clip=(1 - 1e-6, 1 + 1e-6))(policy, batch)
    assert float(loss.metrics["clipped"]) == 0
    assert float(loss.metrics["log_ratio_spread"]) < 1e-12
    assert loss.value.item() == pytest.approx(-float(batch.advantage[:, 1:].mean()), abs=1e-12)


@pytest.mark.parametrize("name", ROWS)
def test_in_single_precision_the_ratio_of_a_shipped_model_is_one(name):
    row = METHODS[name]
    env = gauss1d.flow((32,), tables.time_grid(10), **row.defaults["schedule"])
    value = ValueNetwork("scenevec") if row.needs_flow else None
    policy = DenoiserPolicy(env, Anchored(base_network("scenevec")), condition_size=8, flow=value)
    prompts = train_prompts()
    conditions = PromptConditions(len(prompts), rows=prompts.float())
    score = Scorer(env, SceneRewards("scenevec", ("crisp",)))
    walk = OnPaths(policy, conditions, score, 24, 0, group_size=24, **row.defaults["paths"])
    objective = replace(row.objective, clip=(1 - 1e-6, 1 + 1e-6)).fresh()
    batch = objective.prepare(policy, walk())
    assert float(objective(policy, batch).metrics["clipped"]) == 0
    # Rows laid out otherwise, as in a minibatch.
    assert float(objective(policy, batch.rows(torch.arange(5))).metrics["clipped"]) == 0


def test_importance_sampling_starts_as_the_score_function():
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 64))
    gradients = []
    for clip in ((0.0, math.inf), (1 - 1e-4, 1 + 1e-4)):
        policy.zero_grad()
        replace(PLAIN, clip=clip)(policy, batch).value.backward()
        gradients.append(policy.network.theta.grad.clone())
    policy.zero_grad()
    noise, path = table_noise(policy, batch), step_table(policy)
    score = -(batch.advantage * noise * path.b / path.s)[:, 1:].mean(0) / 5
    assert torch.allclose(gradients[0], gradients[1]) and torch.allclose(gradients[0], score)


def test_equal_rewards_teach_nothing():
    policy = gauss1d.make()
    batch = paths(policy, 64)
    batch.rewards = torch.full_like(batch.rewards, 0.5)
    for objective in (PathGradient(), PathGradient(scale="batch_std"), PLAIN):
        policy.zero_grad()
        with pytest.warns(RuntimeWarning, match="nothing to teach"):
            prepared = objective.prepare(policy, batch)
        objective(policy, prepared).value.backward()
        assert float(policy.network.theta.grad.abs().max()) < 1e-15


def test_only_steps_with_noise_are_learned_from():
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 64))
    batch.stochastic = batch.stochastic & (torch.arange(6) == 3)
    PLAIN(policy, batch).value.backward()
    assert (policy.network.theta.grad != 0).tolist() == [False, False, True, False, False]
    batch.stochastic = batch.stochastic & False
    with pytest.raises(ValueError, match="no step of the batch was drawn with noise"):
        PLAIN(policy, batch)


def test_the_best_and_the_worst_of_a_group_with_the_advantages_of_all():
    policy = gauss1d.make()
    batch = paths(policy, 48)
    batch.group = torch.arange(48) % 2
    plain = PathGradient().prepare(policy, batch)
    chosen = PathGradient(best_of=8).prepare(policy, batch)
    assert chosen.n == 16
    for group in range(2):
        rows = plain.rows(plain.group == group)
        order = rows.rewards[:, 0].argsort()
        wanted = torch.cat([order[:4], order[-4:]]).sort().values
        found = chosen.rows(chosen.group == group)
        assert torch.equal(found.states, rows.states[wanted])
        assert torch.equal(found.advantage, rows.advantage[wanted])
    # Groups no larger than that are kept whole.
    assert PathGradient(best_of=24).prepare(policy, batch).n == 48
    assert PathGradient(best_of=60).prepare(policy, batch).n == 48


def test_even_groups_can_be_left_out():
    policy = gauss1d.make()
    batch = paths(policy, 12)
    batch.group = torch.arange(12) // 4
    batch.rewards[4:8] = 1.0
    plain, fewer = PathGradient(), PathGradient(drop_even=True)
    gradients = []
    for objective in (plain, fewer):
        policy.zero_grad()
        prepared = objective.prepare(policy, batch)
        objective(policy, prepared).value.backward()
        gradients.append(policy.network.theta.grad.clone())
    assert prepared.group.unique().tolist() == [0, 2]
    # The same direction: means run over 8 paths, not 12.
    assert torch.allclose(gradients[0] * 12 / 8, gradients[1])
    batch.rewards[:] = 1.0
    with pytest.warns(RuntimeWarning, match="nothing to teach"):
        assert fewer.prepare(policy, batch).n == 12


def test_order_of_paths_and_steps_does_not_matter():
    policy = gauss1d.make()
    batch = PLAIN.prepare(policy, paths(policy, 64))
    values = []
    for part in (batch, batch.rows(torch.randperm(64, generator=torch.Generator().manual_seed(3)))):
        policy.zero_grad()
        PLAIN(policy, part).value.backward()
        values.append(policy.network.theta.grad.clone())
    assert torch.allclose(*values, atol=1e-14)


def anchored(**options):
    policy = gauss1d.make(**options)
    policy.network = Anchored(policy.network)
    return policy


def test_divergence_to_the_reference():
    policy = anchored()
    batch = paths(policy, 32)
    objective = replace(PLAIN, kl_weight=2.0)
    batch = objective.prepare(policy, batch)
    plain, loss = PLAIN(policy, batch), objective(policy, batch)
    assert float(loss.metrics["kl"]) == 0 and loss.value.item() == plain.value.item()
    policy.zero_grad()
    (loss.value - plain.value).backward()
    assert float(policy.network.policy.theta.grad.abs().max()) == 0
    with torch.no_grad():
        policy.network.policy.theta += 0.2
    path = step_table(policy)
    exact = (path.b * 0.2).square() / (2 * path.s.square())
    found = objective(policy, batch).metrics["kl"]
    assert float(found) == pytest.approx(float(exact[1:].mean()))
    timed = replace(objective, kl_scale="time")(policy, batch).metrics["kl"]
    assert float(timed) == pytest.approx(float((exact * path.h)[1:].mean()))


def test_centering_uses_the_means_of_the_batch():
    policy = gauss1d.make()
    objective = replace(PLAIN, centered=True)
    batch = objective.prepare(policy, paths(policy, 4096))
    assert torch.isfinite(batch.mean_old).all()
    with torch.no_grad():
        policy.network.theta += 0.3
    path = step_table(policy)
    wanted = (path.b * 0.3).square() / (2 * path.s.square())
    plain, centered = PLAIN(policy, batch), objective(policy, batch)
    assert float(plain.metrics["log_ratio_spread"]) > 0
    kernel_shift = wanted[1:].mean()
    noise = table_noise(gauss1d.make(), batch)[:, 1:]
    exact = (noise * (path.b * 0.3 / path.s)[1:]).exp()
    value = -(batch.advantage[:, 1:] * exact).mean()
    assert float(kernel_shift) > 0.01
    assert centered.value.item() == pytest.approx(float(value))


def test_value_baseline_learns_what_a_state_is_worth():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(6, 2, dtype=torch.float64))
            self.register_buffer("times", torch.cat([torch.ones(1), tables.time_grid(5)])[1:])

        def forward(self, x, t, encoding):
            step = (t.unsqueeze(1) - self.times).abs().argmin(1)
            return self.weight[step, 0] + self.weight[step, 1] * x.squeeze(1)

    policy = gauss1d.make(head=Linear())
    objective = replace(PLAIN, baseline="value", value_weight=1.0)
    assert objective.needs == {"log_flow"}
    batch = objective.prepare(policy, paths(policy, 8_000))
    optimizer = torch.optim.LBFGS(policy.flow_network.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = objective(policy, batch).value
        loss.backward()
        return loss

    optimizer.step(closure)
    path = policy.env.forward
    c = gauss1d.slope(tables.time_grid(5)[:-1])
    kept = (path.a[1:] + path.b[1:] * c).flip(0).cumprod(0).flip(0)
    found = policy.flow_network.weight[:5, 1].detach()
    assert (found - kept).abs().max() < 0.03
    with pytest.raises(ValueError, match="build the policy with flow="):
        objective(gauss1d.make(), batch)


@pytest.mark.parametrize("prediction", ["noise", "clean"])
def test_weights_by_time_do_not_depend_on_what_is_predicted(prediction):
    times = 0.98 * tables.time_grid(5)
    made = [gauss1d.flow((1,), times, prediction=name) for name in ("velocity", prediction)]
    tried = [step_table(gauss1d.DenoiserPolicy(env, gauss1d.Shifted(times))) for env in made]
    weights = [path_weights("time", table, table.s > 0)[1:] for table in tried]
    assert torch.allclose(*weights) and torch.allclose(weights[0], -1 / times.diff())


# Long enough that windows are not all there is, and that the solver takes several steps.
LENGTHS = {"mix_grpo": 7, "mix_grpo_flash": 12}


def kept_by_the_solver(walk, mask):
    """d E[x_0] / d theta_k, [N], where the solver walks the rest: the shift is walked there."""
    last, env = int(mask.nonzero()[-1]), walk.env.only(mask)
    rest = at_times(env, walk.compression.times(on_linear_path(env)[0], last + 1))
    condition = PromptConditions(1).make(torch.zeros(2, dtype=torch.int64), torch.float64)
    truth = torch.zeros(len(mask), dtype=torch.float64)
    for k in mask.nonzero().flatten().tolist():
        x, before = torch.tensor([[0.0], [1.0]]).double(), torch.zeros(2, 1).double()
        with on_schedule(walk.policy, env):
            for column in range(k + 2, last + 2):
                states = States(x, torch.full((2,), column), torch.zeros(2, dtype=torch.bool))
                before, x = x, walk.policy.step(states, condition).mean.detach()
        end = walk.solve(x, rest, condition, (last + 1, before))
        truth[k] = env.forward.b[k + 1] * (end[1] - end[0]).item()
    return truth


@pytest.mark.parametrize("name", ROWS)
def test_gradient_is_the_closed_form_however_paths_are_walked(name):
    row = METHODS[name]
    policy = gauss1d.make(steps=LENGTHS.get(name, 5))
    n = policy.env.max_steps - 1

    def score(batch):
        batch.rewards = batch.terminal.data
        return batch

    paths = dict(row.defaults["paths"])
    walk = OnPaths(
        policy, PromptConditions(1), score, 3072, 0, group_size=row.defaults["group_size"],
        dtype=torch.float64, **paths,
    )  # fmt: skip
    found, wrong = [], []
    for _ in range(20):
        policy.zero_grad()
        batch = PLAIN.prepare(policy, walk())
        PLAIN(policy, batch).value.backward()
        steps = batch.stochastic.any(0)[1:]
        truth = torch.zeros(n, dtype=torch.float64)
        for mask in torch.eye(n).bool()[steps] if walk.separate else [steps]:
            exact = gauss1d.gradient_of_the_mean(policy.env.only(mask)) * mask
            if walk.compression is not None:
                assert not torch.allclose(exact, kept_by_the_solver(walk, mask), atol=1e-3)
                exact = kept_by_the_solver(walk, mask)
            truth += exact / steps.sum()
        found.append(-policy.network.theta.grad.clone())
        wrong.append(found[-1] - truth)
        assert (found[-1][~steps] == 0).all()
    size = walk.window.size or n - 1
    assert int(steps.sum()) == size
    wrong = torch.stack(wrong)
    error = wrong.std(0) / math.sqrt(20)
    assert (wrong.mean(0).abs() <= 3 * error).all()
    assert (error < 0.25 * truth.abs().max()).all()


def walked(policy, **options):
    def score(batch):
        batch.rewards = batch.terminal.data
        return batch

    return OnPaths(policy, PromptConditions(1), score, 8, 0, dtype=torch.float64, **options)()


def test_methods_meet_where_their_settings_do():
    policy = gauss1d.make()
    full = walked(policy, group_size=4)
    for window in (Window("random", size=4), Window("sliding", size=4)):
        batch = walked(policy, group_size=4, window=window, share=1.0)
        assert torch.equal(batch.states, full.states)
        assert torch.equal(batch.log_pf_old, full.log_pf_old)
        assert torch.equal(batch.stochastic, full.stochastic)


def test_one_branch_has_nobody_to_be_better_than():
    policy = gauss1d.make()
    alone = walked(policy, group_size=1, shared="prefix", separate=True)
    for objective in (PathGradient(), PathGradient(scale="none"), PLAIN):
        with pytest.raises(ValueError, match="a group of one has nothing to be compared with"):
            objective.prepare(policy, alone)
    # Alone beside others it counts, and says nothing.
    alone.group[:2] = alone.group[0]
    found = PathGradient().prepare(policy, alone).advantage[:, 1]
    assert (found[:2] != 0).all() and (found[2:] == 0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_a_plain_clamp_has_no_gradient_outside_its_bounds(sign, shift):
    policy = gauss1d.make()
    batch = replace(PLAIN, baseline="none").prepare(policy, paths(policy, 1))
    batch.advantage = torch.full_like(batch.advantage, sign)
    with torch.no_grad():
        policy.network.theta += shift
    bounds = (1 - 1e-9, 1 + 1e-9)
    moved = PathGradient(clip=bounds)(policy, batch)
    assert float(moved.metrics["clipped"]) == 1
    replace(PLAIN, clip=bounds, pessimistic=False)(policy, batch).value.backward()
    assert (policy.network.theta.grad == 0).all()
    # PPO's keeps the gradient of steps whose ratio went the wrong way.
    moved.value.backward()
    noise, path = table_noise(gauss1d.make(), batch)[0, 1:], step_table(policy)
    log_ratio = noise * (path.b * shift / path.s)[1:] - ((path.b * shift / path.s)[1:] ** 2) / 2
    assert torch.equal(policy.network.theta.grad != 0, sign * log_ratio < 0)
