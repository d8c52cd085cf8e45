"""Pre-train the base models of the colored shapes by conditional flow matching; resumable.

    python benchmarks/pretrain_scenes.py scenevec        # 20,000 steps, minutes on one core
    python benchmarks/pretrain_scenes.py shapes16        # 34,000 steps, 33 minutes of one core

Half of the scenes break their prompt by one attribute, so a perfect base has a strict reward of
one half. A run that was stopped goes on where it was when started again. The average weights are
written to gflow/policies/data in half precision.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gflow.envs.denoising.shapes import (
    SPACES,
    alignment,
    novel_prompts,
    sample_scenes,
    train_prompts,
)
from gflow.objectives.matching import Draws, flow_matching, logit_normal_times
from gflow.policies.scenes import save_base, scene_network
from gflow.sampling.strategies import Resumable
from gflow.seeding import generator
from gflow.training import Events, Trainer, TrainerSettings
from gflow.training.checkpoint import list_checkpoints

DATA = Path(__file__).parents[1] / "gflow" / "policies" / "data"
SETTINGS = {
    "scenevec": {"steps": 20_000, "batch": 128, "rate": 2e-3, "average": 0.999, "dropout": 0.0},
    "shapes16": {"steps": 34_000, "batch": 128, "rate": 2e-3, "average": 0.999, "dropout": 0.1},
}
WARM_UP = 200


class Data(Resumable):
    """Fresh scenes for random training prompts, half of them corrupted, with times and noise."""

    saved = ("generator",)

    def __init__(self, space: str, batch: int, dropout: float, seed: int):
        self.space, self.batch, self.dropout = SPACES[space], batch, dropout
        self.prompts = train_prompts()
        self.generator = generator(seed, "pretrain", space)

    def __call__(self) -> Draws:
        n, source = self.batch, self.generator
        prompts = self.prompts[torch.randint(len(self.prompts), (n,), generator=source)]
        x = self.space.draw(sample_scenes(prompts, source, corruption=0.5), source)
        t = logit_normal_times(torch.randn(n, generator=source), mean=0.5)
        asked = torch.rand(n, generator=source) >= self.dropout
        noise = torch.randn(x.shape, generator=source)
        return Draws(x, noise, t, (prompts * asked.unsqueeze(1)).float())


class Average:
    """Exponential moving average of a network's weights, with early weights forgotten faster."""

    def __init__(self, network: torch.nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: torch.nn.Module) -> None:
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(
            list(self.weights.values()), list(network.state_dict().values()), 1 - keep
        )

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.weights = state["steps"], state["weights"]


@torch.no_grad()
def measure(network: torch.nn.Module, space: str, n: int, steps: int, seed: int = 0) -> dict:
    """Mean rewards of n samples along the deterministic path in `steps` Euler steps."""
    network.eval()
    source, found = generator(seed, "measure"), {}
    for name, prompts in (("train", train_prompts()), ("novel", novel_prompts())):
        asked = prompts[torch.arange(n) % len(prompts)]
        x = torch.randn(n, *SPACES[space].state_shape, generator=source)
        for t, after in zip(range(steps, 0, -1), range(steps - 1, -1, -1), strict=True):
            now = torch.full((n,), t / steps)
            x += (after - t) / steps * network(x, now, asked.float())
        seen = SPACES[space].detect(x)
        aligned = alignment(seen, asked)
        for kind in ("strict", "soft"):
            found[f"{kind}_{name}"] = round(float(getattr(aligned, kind).mean()), 4)
        found[f"crisp_{name}"] = round(float(SPACES[space].crispness(x).mean()), 4)
    network.train()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("space", choices=list(SETTINGS))
    parser.add_argument("--out", default="runs/pretrain")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings: dict[str, Any] = SETTINGS[given.space]
    steps = given.steps or settings["steps"]
    folder = Path(given.out) / f"{given.space}_{given.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    network = scene_network(given.space, seed=given.seed)
    average = Average(network, settings["average"])
    started = time.process_time()

    def on_step(trainer: Trainer, info: dict[str, float]) -> None:
        average.update(network)
        warm, progress = (trainer.step + 1) / WARM_UP, trainer.step / steps
        rate = settings["rate"] * min(1.0, warm) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate

    def on_log(trainer: Trainer, info: dict[str, float]) -> None:
        line = {"step": trainer.step, "loss": round(info["loss"], 4)}
        print(json.dumps(line | {"cpu_s": round(time.process_time() - started)}), flush=True)

    smooth = scene_network(given.space)

    def on_eval(trainer: Trainer, info: dict[str, float]) -> None:
        smooth.load_state_dict(average.weights)
        found = measure(smooth, given.space, 424, steps=10)
        print(json.dumps({"step": trainer.step} | found), flush=True)

    trainer = Trainer(
        network,
        flow_matching,  # type: ignore[arg-type]
        Data(given.space, settings["batch"], settings["dropout"], given.seed),  # type: ignore[arg-type]
        TrainerSettings(
            learning_rate=settings["rate"] / WARM_UP,
            clip_norm=1.0,
            log_every=200,
            eval_every=1000,
            checkpoint_every=200,
        ),
        folder=folder,
        events=Events(on_step=[on_step], on_log=[on_log], on_eval=[on_eval]),
        extra_state={"average": average},
    )
    if found := list_checkpoints(folder / "checkpoints"):
        trainer.load(found[-1])
    trainer.run(steps)
    if trainer.step < steps:
        sys.exit(f"stopped at step {trainer.step}: start again to go on")
    smooth.load_state_dict(average.weights)
    DATA.mkdir(exist_ok=True)
    save_base(smooth, str(DATA / f"{given.space}.safetensors"))
    result = measure(smooth, given.space, 2120, steps=40)
    print(json.dumps({"final": result, "cpu_s": round(time.process_time() - started)}), flush=True)


if __name__ == "__main__":
    main()
