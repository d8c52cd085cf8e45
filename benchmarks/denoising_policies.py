"""Policy optimisation on denoising paths: every method on scenes on request, at equal reward calls.

    python benchmarks/denoising_policies.py run scenevec     # a quarter of an hour, one core
    python benchmarks/denoising_policies.py run shapes16 --methods flow_grpo,mix_grpo --updates 60
    python benchmarks/denoising_policies.py guidance scenevec     # the base alone, no training
    python benchmarks/denoising_policies.py table scenevec

Each (method, seed) is one line of benchmarks/results/denoising_policies_SPACE.jsonl; what is there
already is not run again. All start from the same base model and take 256 reward calls an update
(the strict reward; TempFlow-GRPO 252). `guidance` scores the base model under classifier-free
guidance, which takes no training and twice the network calls. Scores are taken along the
deterministic path in 40 steps, on the 106 training prompts and the 20 held-out ones. The divergence
to the base is that of whole paths of the trained model under Flow-SDE (0.7, 10 steps, the last
without noise), in nats.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_scenes import measure

from gflow.conditions import PromptConditions
from gflow.envs.denoising.schedules import flow
from gflow.envs.denoising.shapes import FIELDS, SPACES, SceneRewards, train_prompts
from gflow.envs.denoising.steps import time_grid
from gflow.objectives.catalog import get_method
from gflow.objectives.policy_gradient.paths import scaled_clip
from gflow.policies.denoiser import DenoiserPolicy
from gflow.policies.reference import Anchored
from gflow.policies.scenes import ValueNetwork, base_network
from gflow.sampling import Scorer
from gflow.sampling.paths import OnPaths
from gflow.seeding import generator
from gflow.training import Events, Trainer, TrainerSettings

RESULTS = Path(__file__).parent / "results"
STEPS = 10
METHODS = (
    "ddpo_sf", "ddpo", "dpok", "flow_grpo", "flow_grpo_fast", "flow_grpo_cps", "dance_grpo",
    "mix_grpo", "mix_grpo_flash", "temp_flow_grpo", "grpo_guard",
)  # fmt: skip
GUIDANCE = (1.0, 2.0, 4.0)
SIZES = {"scenevec": (3e-4, 100), "shapes16": (1e-4, 60)}
"""Learning rate and updates."""
# The published window of 4 in 25 steps is 2 in 10; a ratio to the power s spreads s times less.
ADAPTED: dict[str, dict[str, Any]] = {
    "mix_grpo": {"window": {"kind": "sliding", "size": 2, "every": 5}},
    "mix_grpo_flash": {"window": {"kind": "sliding", "size": 2, "every": 5}},
}
# Nine steps with branches of their own: seven of each of four trunks of one prompt, 252 calls.
BATCHES = {"temp_flow_grpo": (28, 28)}
WIDTHS = {"one": 5e-3, "noise": 1.5e-3, "density": 1.5e-3}
"""Clip ranges at 32 numbers a point by the power of the ratio: about one in ten is outside."""


def build(space: str, name: str, seed: int) -> tuple[DenoiserPolicy, Any, OnPaths]:
    """Policy, objective and sampler of one run."""
    method = get_method(name)
    settings = dict(method.defaults)
    shape = SPACES[space].state_shape
    env = flow(shape, time_grid(STEPS), **settings["schedule"])  # type: ignore[arg-type]
    value = ValueNetwork(space, seed=seed) if method.needs_flow else None
    policy = DenoiserPolicy(
        env, Anchored(base_network(space)), condition_size=len(FIELDS), flow=value
    )
    # DDPO's remembers the rewards of every prompt.
    objective = method.objective.fresh()  # type: ignore[attr-defined]
    if objective.clip[1] < 2:
        width = WIDTHS[objective.power]
        clip = scaled_clip((1 - width, 1 + width), math.prod(shape), 32)
        objective = replace(objective, clip=clip)
    prompts = train_prompts()
    conditions = PromptConditions(len(prompts), 1, prompts.float())
    batch, group = BATCHES.get(name, (256, 16))
    sampler = OnPaths(
        policy, conditions, Scorer(env, SceneRewards(space)), batch, seed, group_size=group,
        **{**settings["paths"], **ADAPTED.get(name, {})},
    )  # fmt: skip
    return policy, objective, sampler


@torch.no_grad()
def divergence(policy: DenoiserPolicy, space: str, n: int = 106) -> float:
    """KL of whole paths to those of the base, in nats."""
    env = flow(SPACES[space].state_shape, time_grid(STEPS), "flow_sde", noise=0.7)
    mine = DenoiserPolicy(env, policy.network, condition_size=len(FIELDS))
    prompts = train_prompts()
    asked = torch.arange(n) % len(prompts)
    condition = PromptConditions(len(prompts), 1, prompts.float()).make(asked, torch.float32)
    states, source, total = env.initial(n), generator(0, "divergence"), 0.0
    for k, noise in enumerate(env.noise(STEPS, n, source, torch.float32, "cpu")):
        kernel = mine.step(states, condition)
        if k:
            with mine.reference():
                total += float(kernel.kl(mine.step(states, condition)).mean())
        states = env.step(states, kernel.sample(noise))
    return total


def run(space: str, name: str, seed: int, updates: int) -> dict[str, Any]:
    """Train once; scores on the way."""
    policy, objective, sampler = build(space, name, seed)
    network, curve = policy.network, []
    spent = {"train": 0.0, "since": time.process_time()}
    n = 636 if space == "scenevec" else 424
    calls = 252 if name in BATCHES else 256

    def score(step: int, info: dict[str, float]) -> None:
        spent["train"] += time.process_time() - spent["since"]
        point = {"update": step, "calls": step * calls, "cpu_s": round(spent["train"], 1)}
        point |= measure(network, space, n, steps=40)
        point |= {"kl": round(divergence(policy, space), 3)}
        point |= {k: round(info[k], 4) for k in ("clipped", "reward") if k in info}
        curve.append(point)
        print(json.dumps({"method": name, "seed": seed} | point), flush=True)
        spent["since"] = time.process_time()

    latest: dict[str, float] = {}

    def on_log(trainer: Trainer, info: dict[str, float]) -> None:
        latest.update(info)
        if trainer.step % 50 == 0 or trainer.step == updates:
            score(trainer.step, latest)

    once = name == "ddpo_sf"
    rate = SIZES[space][0]
    trainer = Trainer(
        policy,
        objective,
        sampler,  # type: ignore[arg-type]
        TrainerSettings(
            learning_rate=rate, clip_norm=1.0, log_every=1,
            updates=1 if once else 2, minibatches=1 if once else 2,
        ),
        events=Events(on_log=[on_log]),
    )  # fmt: skip
    trainer.run(updates)
    return {"method": name, "seed": seed, "updates": updates, "curve": curve}


class Guided(torch.nn.Module):
    """The base model with classifier-free guidance, and itself as its reference."""

    def __init__(self, space: str, guidance: float):
        super().__init__()
        self.network, self.guidance = base_network(space), guidance

    def forward(self, x: torch.Tensor, t: torch.Tensor, encoding: torch.Tensor) -> torch.Tensor:
        asked = self.network(x, t, encoding)
        if self.guidance == 1:
            return asked
        return torch.lerp(self.network(x, t, torch.zeros_like(encoding)), asked, self.guidance)

    @contextmanager
    def reference(self) -> Iterator[None]:
        kept, self.guidance = self.guidance, 1.0
        yield
        self.guidance = kept


@torch.no_grad()
def guided(space: str, guidance: float) -> dict[str, Any]:
    """Scores of the base model, which nothing has trained further."""
    network = Guided(space, guidance)
    env = flow(SPACES[space].state_shape, time_grid(STEPS))
    point = {"update": 0, "calls": 0} | measure(network, space, 2120, steps=40)
    policy = DenoiserPolicy(env, network, condition_size=len(FIELDS))
    point |= {"kl": round(divergence(policy, space), 3)}
    return {"method": f"base_{guidance:g}", "seed": 0, "updates": 0, "curve": [point]}


def results(space: str) -> list[dict[str, Any]]:
    path = RESULTS / f"denoising_policies_{space}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(space: str, row: dict[str, Any]) -> None:
    with open(RESULTS / f"denoising_policies_{space}.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "guidance", "table"])
    parser.add_argument("space", choices=list(SPACES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "run":
        updates = given.updates or SIZES[given.space][1]
        for seed in range(given.seeds):
            for name in given.methods.split(","):
                if any(
                    (row["method"], row["seed"]) == (name, seed) for row in results(given.space)
                ):
                    continue
                keep(given.space, run(given.space, name, seed, updates))
    elif given.what == "guidance":
        for guidance in GUIDANCE:
            keep(given.space, guided(given.space, guidance))
    else:
        print(table(given.space))


def table(space: str) -> str:
    """Means over seeds at the end, and their spread."""
    rows = results(space)
    lines = [
        "| method | seeds | strict | held out | crisp | KL (nats) | outside clip | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (*(f"base_{guidance:g}" for guidance in GUIDANCE), *METHODS):
        ends = [row["curve"][-1] for row in rows if row["method"] == name]
        if not ends:
            continue
        trained = name in METHODS
        named = f"`{name}`" if trained else f"base, guidance {name.removeprefix('base_')}"
        cells = [named, str(len(ends)) if trained else ""]
        for key in ("strict_train", "strict_novel", "crisp_train", "kl"):
            values = torch.tensor([end[key] for end in ends]).double()
            spread = f" ± {float(values.std()):.3f}" if len(ends) > 1 else ""
            cells.append(f"{float(values.mean()):.3f}{spread}")
        for key, digits in (("clipped", 2), ("cpu_s", 0)):
            cells.append(f"{sum(e[key] for e in ends) / len(ends):.{digits}f}" if trained else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
