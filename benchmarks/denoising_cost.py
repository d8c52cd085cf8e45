"""What denoising costs: training beside a flat loop, memory over T, rollouts beside the network."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.tables import print_table
from gflow.conditions import Conditions, PromptConditions
from gflow.envs.denoising import brownian, flow, time_grid
from gflow.envs.denoising.energies import EnergyOracle, gaussians9
from gflow.envs.denoising.shapes import FIELDS, SPACES, train_prompts
from gflow.objectives.balance import TrajectoryBalance
from gflow.policies.denoiser import DenoiserPolicy, TimeMLP
from gflow.policies.networks import time_features
from gflow.policies.scenes import base_network
from gflow.sampling import OnPolicy, Scorer, rollout
from gflow.scalarize import log_linear
from gflow.seeding import generator
from gflow.training import Trainer, TrainerSettings

VARIANCE = 5.0


def make_trainer(batch: int, steps: int, hidden: int = 64, recompute: int = 0) -> Trainer:
    """Trajectory balance on 9 Gaussians; rates of 0, so that nothing drifts between loops."""
    energy = gaussians9()
    env = brownian((2,), steps, VARIANCE)
    policy = DenoiserPolicy(env, TimeMLP(2, 2, hidden=hidden), recompute=recompute)
    score = Scorer(env, EnergyOracle(energy, env), log_linear)
    sampler = OnPolicy(policy, Conditions(), score, batch, 0)
    return Trainer(policy, TrajectoryBalance(), sampler, TrainerSettings(0.0, 0.0, log_every=0))


class FlatLoop:
    """The same arithmetic by hand: scalars for the schedule, one pass over all steps."""

    def __init__(self, batch: int, steps: int, hidden: int = 64):
        self.batch, self.steps = batch, steps
        self.net, self.energy = TimeMLP(2, 2, hidden=hidden), gaussians9()
        self.log_z = nn.Parameter(torch.zeros(1))
        groups = [{"params": list(self.net.parameters())}, {"params": [self.log_z]}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)
        self.random = torch.Generator().manual_seed(0)
        self.times = 1 - torch.arange(steps) / steps

    def drift(self, x: Tensor, timed: Tensor) -> Tensor:
        """The network's output, the time's share of its first layer given."""
        drift: Tensor = self.net.trunk(self.net.point(x) + timed)
        return drift

    def step(self) -> None:
        n, steps = self.batch, self.steps
        h = 1 / steps
        std = math.sqrt(VARIANCE * h)
        constant = math.log(std) + 0.5 * math.log(2 * math.pi)
        x, path = torch.zeros(n, 2), []
        with torch.no_grad():
            timed = self.net.time(time_features(self.times, 64))
            for k in range(steps):
                path.append(x)
                noise = torch.empty(n, 2).normal_(generator=self.random)
                x = x + h * self.drift(x, timed[k]) + std * noise
            log_r = self.energy.log_density(x)
        states = torch.stack([*path, x], 1)
        here, there = states[:, :-1], states[:, 1:]
        timed = self.net.time(time_features(self.times, 64))
        mean = here + h * self.drift(here, timed)
        log_pf = (-0.5 * ((there - mean) / std).square() - constant).sum((1, 2))
        k = torch.arange(1, steps, dtype=torch.float32)
        back = std * (k / (k + 1)).sqrt()
        off = (here[:, 1:] - there[:, 1:] * (k / (k + 1)).unsqueeze(1)) / back.unsqueeze(1)
        log_pb = (
            -0.5 * off.square().sum((1, 2)) - 2 * (back.log() + 0.5 * math.log(2 * math.pi)).sum()
        )
        loss = (self.log_z + log_pf - log_pb - log_r).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        grads = [p.grad for g in self.optimizer.param_groups for p in g["params"]]
        if bool(torch.isfinite(nn.utils.get_total_norm(grads) + loss.detach())):
            self.optimizer.step()
        self.loss = loss.detach()


def run(loop: Trainer | FlatLoop, iterations: int) -> None:
    """Some training steps."""
    if isinstance(loop, Trainer):
        loop.run(loop.step + iterations)
    else:
        for _ in range(iterations):
            loop.step()


def speed(quick: int) -> None:
    """Milliseconds of a training step, loops taking turns."""

    def rows() -> Iterable[Sequence]:
        for batch, steps, hidden in ((64, 20, 64), (256, 20, 64), (256, 50, 64), (256, 20, 256)):
            loops: list[Trainer | FlatLoop] = [
                FlatLoop(batch, steps, hidden), make_trainer(batch, steps, hidden)
            ]  # fmt: skip
            iterations = max(20_000 // (batch * steps), 2)
            seconds: list[list[float]] = [[], []]
            for window in range(8 if quick == 1 else 2):
                for loop, kept in zip(loops, seconds, strict=True):
                    start = time.process_time()
                    run(loop, iterations)
                    if window:
                        kept.append((time.process_time() - start) / iterations)
            flat, ours = (1e3 * statistics.median(values) for values in seconds)
            yield [batch, steps, hidden, flat, ours, ours / flat]

    print_table(
        "Trainer beside a flat loop",
        "Trajectory balance on 9 Gaussians, float32, one thread; medians of 7 windows of this "
        "process's CPU time, the loops taking turns. The bar is 1.15.",
        ["batch", "denoising steps", "width", "flat loop, ms", "Trainer, ms", "ratio"],
        rows(),
    )


def kept_bytes(trainer: Trainer) -> tuple[int, int]:
    """Bytes of a batch, and of the largest set of activations alive for its gradient."""
    batch = trainer.sampler()
    path = sum(
        value.untyped_storage().nbytes()
        for value in batch.state_dict().values()
        if isinstance(value, Tensor)
    )
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.objective(trainer.policy, batch)  # type: ignore[arg-type]
    held = sum(saved.values())
    loss.value.backward()
    return path, held


def memory(quick: int) -> None:
    """Bytes of a path and of what its gradient keeps, over the number of steps."""

    def rows() -> Iterable[Sequence]:
        for steps in (10, 20, 40, 80, 160):
            path, held = kept_bytes(make_trainer(64, steps))
            _, less = kept_bytes(make_trainer(64, steps, recompute=256))
            yield [steps, *(f"{value / 1e6:.3f}" for value in (path, held, less))]

    print_table(
        "Memory over the number of steps",
        "64 trajectories on 9 Gaussians, width 64, megabytes: the record of a batch, and what is "
        "kept for the gradient; recompute keeps the activations of 256 rows at a time, which come "
        "on top while they are used.",
        ["denoising steps", "batch", "kept for the gradient", "with recompute"],
        rows(),
    )


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: this process's own on the CPU, until the device is done elsewhere."""
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started


class Idle(nn.Module):
    """A network that takes no time: it predicts the point it is shown."""

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        return x


def rollout_seconds(batch: int, device: torch.device, windows: int) -> list[float]:
    """Medians of a rollout by the shapes16 base, and of one by a network that takes no time."""
    env = flow(SPACES["shapes16"].state_shape, time_grid(10), noise=0.7)
    prompts = train_prompts().float()
    condition = PromptConditions(len(prompts), rows=prompts).sample(batch, generator(0, "prompts"))
    condition, random = condition.to(device), generator(0, "rollout", device=device)
    kept: dict[DenoiserPolicy, list[float]] = {
        DenoiserPolicy(env, network, condition_size=len(FIELDS)).to(device): []
        for network in (base_network("shapes16"), Idle())
    }
    for window in range(windows + 1):
        for policy, seconds in kept.items():
            start = env.initial(batch, device)
            walk = partial(rollout, policy, start, condition, random, keep_log_pf=True)
            spent = seconds_of(walk, device)
            if window:
                seconds.append(spent)
    return [statistics.median(seconds) for seconds in kept.values()]


def images(quick: int) -> None:
    """Pictures of a second, and what of it the library takes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def rows() -> Iterable[Sequence]:
        for batch in (16, 64, 256) if device.type == "cpu" else (16, 256, 4096):
            whole, outside = rollout_seconds(batch, device, 7 if quick == 1 else 1)
            yield [batch, batch / whole, 1e3 * whole, 1e3 * outside, outside / whole]

    clock = "CPU time, one thread" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print_table(
        "Pictures per second",
        f"10 steps of Flow-SDE by the shapes16 base, float32, {clock}; medians of 7 windows, "
        "taking turns with the same rollout by a network that takes no time, which is what happens "
        "outside of it.",
        ["batch", "images/s", "rollout, ms", "outside the network, ms", "share outside"],
        rows(),
    )
