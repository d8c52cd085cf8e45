"""Samplers of points by GFlowNet objectives, where log Z or the posterior is known.

    python -m benchmarks.denoising [gmm25] [many_well] [many_well_long] [targets] [cox] [rtb]
        [speed] [memory] [images] [--quick]

Run from the repository's root. Every part prints its budget and a Markdown table; seconds are CPU
seconds of one thread. Trained samplers are kept in `runs/denoising` and a killed part goes on from
its newest checkpoint. `--quick` takes a fiftieth of the steps.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.denoising_cost import images, memory, speed
from benchmarks.tables import print_table
from gflow.conditions import Conditions
from gflow.envs.denoising import Denoising, brownian, denoising_diffusion, flow, time_grid
from gflow.envs.denoising.energies import (
    Energy,
    EnergyOracle,
    Funnel,
    GaussianMixture,
    LogGaussianCox,
    ManyWell,
    gaussians25,
    gaussians40,
)
from gflow.estimators import eubo, log_z_bounds, mode_shares, wasserstein
from gflow.mdp import Objective, evaluate
from gflow.objectives.balance import TrajectoryBalance, VarGrad
from gflow.policies.denoiser import DenoiserPolicy, GradientGuided, TimeMLP
from gflow.policies.exact import MixtureVelocity
from gflow.sampling import Exploration, Joined, OnPolicy, Scorer, Strategy
from gflow.sampling.langevin import LangevinSearch, chains_at, langevin_step
from gflow.sampling.rollout import rollout
from gflow.scalarize import log_linear
from gflow.seeding import generator
from gflow.training import Trainer, TrainerSettings
from gflow.training.checkpoint import list_checkpoints

RUNS = Path("runs/denoising")
DRAWN = 20_000
"""Samples that every figure is taken from."""


def train(
    name: str, policy: DenoiserPolicy, objective: Objective, sampler: object, steps: int,
    rate: float = 1e-3, clip: float = 0.0,
) -> float:  # fmt: skip
    """Train with a rate that falls to a tenth, or go on where a run of this name was; seconds."""
    folder = RUNS / name
    settings = TrainerSettings(
        rate, 0.1, clip_norm=clip, log_every=0, checkpoint_every=100, keep_checkpoints=1
    )
    run = Trainer(policy, objective, sampler, settings, folder=folder)  # type: ignore[arg-type]
    rates = [group["lr"] for group in run.optimizer.param_groups]
    seconds, spent = folder / "seconds.txt", 0.0
    if found := list_checkpoints(folder / "checkpoints"):
        run.load(found[-1])
        spent = float(seconds.read_text())
    while run.step < steps:
        for group, first in zip(run.optimizer.param_groups, rates, strict=True):
            group["lr"] = first * 0.1 ** (run.step / steps)
        began = time.process_time()
        run.run(min(run.step + 100, steps))
        spent += time.process_time() - began
        seconds.write_text(str(spent))
    return spent


def figures(policy: DenoiserPolicy, score: Scorer, energy: Energy) -> tuple[list[float], Tensor]:
    """log Z estimate and ELBO and EUBO minus the truth, share of effective samples; samples."""
    condition = Conditions().sample(DRAWN)
    fresh = rollout(policy, policy.env.initial(DRAWN), condition, generator(0, "figures"))
    bounds = log_z_bounds(policy, score(fresh))
    exact = energy.sample(DRAWN, generator(0, "exact")).float()
    back = rollout(
        policy, policy.env.terminal(exact), condition, generator(0, "back"), backward=True
    )
    truth = energy.log_z or 0.0
    found = [float(bounds.log_z), float(bounds.elbo), float(eubo(policy, score(back)))]
    share = float(bounds.effective_sample_size) / DRAWN
    return [*(value - truth for value in found), share], fresh.terminal.data


def target(
    env: Denoising, energy: Energy, batch: int, temperature: float, cooling: int, guide: bool
) -> tuple[DenoiserPolicy, Scorer, OnPolicy]:
    """Policy, scorer and on-policy batches of an energy."""
    network: nn.Module = TimeMLP(energy.dim, energy.dim)
    if guide:
        network = GradientGuided(network, energy.log_density, seed=1)
    policy = DenoiserPolicy(env, network)
    score = Scorer(env, EnergyOracle(energy, env), log_linear)
    explore = Exploration(temperature=temperature)
    fresh = OnPolicy(policy, Conditions(), score, batch, 0, exploration=explore, cooling=cooling)
    return policy, score, fresh


def gmm25(quick: int) -> None:
    """25 Gaussians from a wide normal source: modes, log Z, distance."""
    energy, steps = gaussians25(), max(600 // quick, 2)
    settings: list[tuple[str, Objective, float, bool]] = [
        ("VarGrad", VarGrad(), 1.5, True),
        ("trajectory balance", TrajectoryBalance(), 1.5, True),
        ("VarGrad, no gradient of log R", VarGrad(), 1.5, False),
    ]

    def rows() -> Iterable[Sequence]:
        for name, objective, temperature, guide in settings:
            env = denoising_diffusion((2,), 40, 50.0)
            policy, score, fresh = target(env, energy, 200, temperature, steps // 2, guide)
            folder = f"gmm25-{name.replace(' ', '-')}-{steps}"
            seconds = train(folder, policy, objective, fresh, steps)
            numbers, x = figures(policy, score, energy)
            shares = mode_shares(x, energy.modes, 2.0)
            exact = energy.sample(2000, generator(1, "exact"))
            distance = float(wasserstein(x[:2000], exact))
            found = int((shares > 0.004).sum())
            yield [name, found, float(shares.sum()), *numbers, distance, round(seconds)]

    floor = wasserstein(*energy.sample(4000, generator(2, "exact")).chunk(2))
    print_table(
        "25 Gaussians",
        f"{steps} steps of 200 trajectories, 40 denoising steps from N(0, 50), rate 1e-3 falling "
        "to 1e-4, variance of exploration x 1.5 cooling down over half the steps. A mode is found "
        "with at least 0.4 % of the samples (even: 4 %) within 2. W2 of two exact samples of 2000: "
        f"{float(floor):.2f}.",
        ["method", "modes", "in modes", "log Z error", "ELBO", "EUBO", "effective", "W2", "s"],
        rows(),
    )


MANY_WELL: list[tuple[str, Objective, bool]] = [
    ("VarGrad", VarGrad(), False),
    ("VarGrad with local search", VarGrad(), True),
    ("trajectory balance", TrajectoryBalance(), False),
]


def many_well(
    quick: int, settings: list[tuple[str, Objective, bool]] = MANY_WELL, steps: int = 900,
    batch: int = 200, rate: float = 2e-3,
) -> None:  # fmt: skip
    """The 32-dimensional many-well: log Z learned or averaged, Langevin local search."""
    energy, steps = ManyWell(32), max(steps // quick, 2)
    truth = energy.wells(energy.sample(100_000, generator(3, "exact")))

    def rows() -> Iterable[Sequence]:
        for name, objective, search in settings:
            env = brownian((32,), 40, 1.0)
            size = batch // 2 if search else batch
            policy, score, fresh = target(env, energy, size, 1.5, steps // 2, True)
            sampler: Strategy = fresh
            if search:
                sampler = LangevinSearch(
                    fresh, policy, score, energy.log_density, 0, size, chains=200, steps=150,
                    burn_in=50, step_size=0.02,
                )  # fmt: skip
            folder = f"many-well-{name.replace(' ', '-')}-{steps}"
            seconds = train(folder, policy, objective, sampler, steps, rate=rate, clip=20.0)
            numbers, x = figures(policy, score, energy)
            wells = float((energy.wells(x) - truth).abs().mean())
            yield [name, *numbers, wells, round(seconds)]

    print_table(
        "Many-well, 32 dimensions, log Z = 164.696",
        f"{steps} steps of {batch} trajectories (with local search half of them noised from found "
        f"points), 40 denoising steps from 0 with sigma^2 = 1, gradient guidance, rate {rate:g} "
        "falling to a tenth, gradient norm at most 20. Wells: mean error of the 16 shares of the "
        "deeper well.",
        ["method", "log Z error", "ELBO", "EUBO", "effective", "wells", "s"],
        rows(),
    )


def many_well_long(quick: int) -> None:
    """The same with the published number of paths."""
    many_well(quick, MANY_WELL[1::-1], steps=25_000, batch=300, rate=1e-3)


def targets(quick: int) -> None:
    """Other densities with known log Z, by one setting."""
    steps = max(300 // quick, 2)
    problems: list[tuple[str, Energy, Denoising]] = [
        ("40 Gaussians", gaussians40(), denoising_diffusion((2,), 40, 800.0)),
        ("funnel", Funnel(10, 1.0), brownian((10,), 40, 1.0)),
        ("hard funnel", Funnel(10, 3.0), brownian((10,), 40, 9.0)),
    ]

    def rows() -> Iterable[Sequence]:
        for name, energy, env in problems:
            policy, score, fresh = target(env, energy, 200, 1.5, steps // 2, True)
            folder = f"targets-{name.replace(' ', '-')}-{steps}"
            seconds = train(folder, policy, VarGrad(), fresh, steps, clip=20.0)
            numbers, x = figures(policy, score, energy)
            exact = energy.sample(4000, generator(1, "exact")).to(x.dtype)
            near = float(wasserstein(x[:2000], exact[:2000]))
            floor = float(wasserstein(exact[:2000], exact[2000:]))
            yield [name, *numbers, near, floor, round(seconds)]

    print_table(
        "40 Gaussians and funnels",
        f"VarGrad, {steps} steps of 200 trajectories, 40 denoising steps, gradient guidance, rate "
        "1e-3 falling to 1e-4, gradient norm at most 20. Exact: W2 of two exact samples of 2000.",
        ["target", "log Z error", "ELBO", "EUBO", "effective", "W2", "exact", "s"],
        rows(),
    )


def annealed_log_z(energy: LogGaussianCox, chains: int = 64, steps: int = 1000) -> Tensor:
    """log Z by annealed importance sampling from the Gaussian at the mode (Neal, 2001)."""
    precision, mode = torch.cholesky_inverse(energy.root), torch.full((energy.dim,), energy.mean)
    mode = mode.double()
    for _ in range(20):
        rates = mode.exp() / energy.dim
        root = torch.linalg.cholesky(precision + rates.diag())
        slope = energy.counts - rates - precision @ (mode - energy.mean)
        mode = mode + torch.cholesky_solve(slope.unsqueeze(1), root).squeeze(1)
    spread = torch.linalg.inv(root)
    log_volume = 0.5 * energy.dim * math.log(2 * math.pi) - root.diagonal().log().sum()

    def ratio(z: Tensor) -> Tensor:
        return energy.log_density(mode + z @ spread) + log_volume + 0.5 * z.square().sum(1)

    random = generator(0, "annealing")
    z = torch.empty(chains, energy.dim, dtype=torch.float64).normal_(generator=random)
    log_weights = z.new_zeros(chains)
    for k in range(steps):
        log_weights += ratio(z) / steps
        share = (k + 1) / steps

        def tempered(z: Tensor, share: float = share) -> Tensor:
            return share * ratio(z) - 0.5 * z.square().sum(1)

        moved, _ = langevin_step(chains_at(z, tempered), tempered, 0.03, random)
        z = moved.points
    return log_weights


def cox(quick: int) -> None:
    """The log-Gaussian Cox process on 40 x 40 cells, beside annealed importance sampling."""
    energy, steps = LogGaussianCox(), max(1000 // quick, 2)
    weights = annealed_log_z(energy, steps=max(1000 // quick, 10))
    log_z = float(weights.logsumexp(0)) - math.log(len(weights))
    env = brownian((energy.dim,), 20, 2.0)
    policy, score, fresh = target(env, energy, 50, 1.0, 0, True)
    seconds = train(f"cox-{steps}", policy, VarGrad(), fresh, steps, rate=1e-2, clip=20.0)
    drawn = rollout(policy, env.initial(500), Conditions().sample(500), generator(0, "figures"))
    bounds = log_z_bounds(policy, score(drawn))
    print_table(
        "Log-Gaussian Cox process, 1,600 dimensions",
        f"VarGrad, {steps} steps of 50 trajectories, 20 denoising steps from 0 with sigma^2 = 2, "
        "gradient guidance, rate 1e-2 falling to 1e-3, gradient norm at most 20; 500 samples. "
        f"Annealed importance sampling, {len(weights)} chains of {max(1000 // quick, 10)} steps: "
        f"log Z {log_z:.1f}, mean of the log-weights {float(weights.mean()):.1f}.",
        ["method", "log Z", "ELBO", "s"],
        [["VarGrad", float(bounds.log_z), float(bounds.elbo), round(seconds)]],
    )


CHOSEN = ((-10, -5), (-5, -10), (-5, 0), (10, -5), (0, 0), (0, 5), (5, -5), (5, 0), (5, 10))
WEIGHTS = (4, 10, 4, 5, 10, 5, 4, 15, 4)


class Corrected(nn.Module):
    """The prior's velocity plus a network of the point and of the prior's clean estimate.

    The change starts at 0.
    """

    def __init__(self, prior: nn.Module):
        super().__init__()
        self.prior, self.change = prior, TimeMLP(4, 2)

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        velocity = self.prior(x, t, encoding)
        clean = x - t.unsqueeze(1) * velocity
        change: Tensor = self.change(torch.cat([x, clean], 1), t, encoding)
        return velocity + change


class Ratio:
    """log posterior - log prior of points, a reward whose log Z is 0."""

    log_z = 0.0
    dim = 2

    def __init__(self) -> None:
        self.prior = gaussians25()
        means = torch.tensor(CHOSEN, dtype=torch.float64)
        weights = torch.tensor(WEIGHTS, dtype=torch.float64).log()
        self.posterior = GaussianMixture(means, self.prior.std, weights)

    def log_density(self, x: Tensor) -> Tensor:
        # Between modes both densities vanish; a floor keeps the quotient bounded there.
        floor = x.new_tensor(-12.0)
        return torch.logaddexp(self.posterior.log_density(x), floor) - torch.logaddexp(
            self.prior.log_density(x), floor
        )

    def sample(self, n: int, random: torch.Generator | None) -> Tensor:
        return self.posterior.sample(n, random)


def rtb(quick: int) -> None:
    """Relative trajectory balance: nine of the prior's 25 modes with given weights."""
    reward, steps = Ratio(), max(8000 // quick, 2)
    # Memoryless noise: the end must not depend on the source, which no training moves.
    env = flow((2,), time_grid(20), noise=math.sqrt(2))
    prior = DenoiserPolicy(env, MixtureVelocity(reward.prior.means, reward.prior.std))
    prior.requires_grad_(False)
    exact = reward.posterior
    closed = MixtureVelocity(exact.means, exact.std, exact.log_weights)
    score = Scorer(env, EnergyOracle(reward, env), log_linear)
    wanted = torch.tensor(WEIGHTS) / sum(WEIGHTS)
    modes = torch.tensor(CHOSEN)

    @torch.no_grad()
    def row(name: str, policy: DenoiserPolicy, seconds: float) -> Sequence:
        condition = Conditions().sample(DRAWN)
        batch = score(rollout(policy, env.initial(DRAWN), condition, generator(0, "figures")))
        x = batch.terminal.data
        shares = mode_shares(x, modes, 2.0)
        inside = float(shares.sum())
        distance = 0.5 * float((shares - wanted).abs().sum() + 1 - shares.sum())
        w2 = float(wasserstein(x[:2000], reward.sample(2000, generator(1, "exact"))))
        assert batch.log_reward is not None
        of_prior, of_policy = (
            evaluate(p, batch, frozenset()).log_pf.sum(1) for p in (prior, policy)
        )
        log_weights = batch.log_reward + of_prior - of_policy
        log_z = float(log_weights.logsumexp(0)) - math.log(DRAWN)
        return [name, inside, distance, w2, float(log_weights.mean()), log_z, round(seconds)]

    def rows() -> Iterable[Sequence]:
        yield row("prior", prior, 0)
        yield row("exact posterior's flow in closed form", DenoiserPolicy(env, closed), 0)
        objective = TrajectoryBalance(relative=True, regression="half_squared", prior=prior)
        policy = DenoiserPolicy(env, Corrected(prior.network))
        fresh = OnPolicy(policy, Conditions(), score, 150, 0)
        sampler = Joined(fresh, OnPolicy(prior, Conditions(), score, 50, 1))
        seconds = train(f"rtb-{steps}", policy, objective, sampler, steps, rate=1e-2, clip=1.0)
        yield row("relative trajectory balance", policy, seconds)

    floor = wasserstein(*reward.sample(4000, generator(2, "exact")).chunk(2))
    print_table(
        "Posterior under a mixture prior",
        "Prior: the closed-form flow of 25 Gaussians, 20 steps of Flow-SDE with memoryless noise. "
        f"Reward: posterior over prior density, log Z = 0. {steps} steps of 200 trajectories, a "
        "quarter of them by the prior, rate 1e-2 falling to 1e-3, gradient norm at most 1. Mode "
        "TV: total variation between the shares of the nine modes (and elsewhere) and their "
        "weights. "
        f"W2 of two exact samples of 2000: {float(floor):.2f}.",
        ["sampler", "in the nine modes", "mode TV", "W2", "ELBO", "log Z", "s"],
        rows(),
    )


PARTS: dict[str, Callable[[int], None]] = {
    "gmm25": gmm25, "many_well": many_well, "many_well_long": many_well_long, "targets": targets,
    "cox": cox, "rtb": rtb, "speed": speed, "memory": memory, "images": images,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.parts or PARTS:
        PARTS[name](50 if options.quick else 1)


if __name__ == "__main__":
    main()
