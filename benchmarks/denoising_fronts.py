"""One denoiser for every preference, where the exact front is known.

    python benchmarks/denoising_fronts.py [plane] [scenes] [shapes16]

`plane`: two goals a_1, a_2 in the plane, rewards 1 - |x - a_k|^2 / 9, and a normal base away from
both; the Pareto set is the segment between them and the front is concave. `scenes`: "4 squares" of
scenevec with the rewards soft, warm and cool; scenes that meet the prompt have a front of 5 points
on a line (0 to 4 warm squares), where weighted sums only reach the ends, so the rewards are
scalarized by Tchebycheff. Two more points belong to it: three squares are half right (soft 1/2),
and one or two warm ones among them are shares that four squares do not have. `shapes16`: the same
problem on pictures of 16 x 16 pixels; its front is that of pictures with at most four things, which
is all that the base has seen. Each preference of a lattice (41, 28 and 28 of them) is asked for 16
samples. Results are printed as JSON and take the place of their problem's in
benchmarks/results/denoising_fronts.json.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gflow.conditions import Conditions, PromptConditions, simplex_lattice
from gflow.envs.denoising.schedules import flow
from gflow.envs.denoising.shapes import SPACES, SceneRewards, find_prompts
from gflow.envs.denoising.steps import time_grid
from gflow.mdp import Condition, Reward, States
from gflow.objectives.policy_gradient import PathGradient
from gflow.objectives.policy_gradient.paths import scaled_clip
from gflow.pareto import hypervolume, igd_plus
from gflow.policies.denoiser import DenoiserPolicy, TimeMLP, on_schedule
from gflow.policies.reference import Anchored
from gflow.policies.scenes import base_network
from gflow.sampling import Scorer, rollout
from gflow.sampling.paths import OnPaths
from gflow.scalarize import tchebycheff, weighted_sum
from gflow.seeding import generator
from gflow.training import Trainer, TrainerSettings

GOALS = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
UPDATES = {"plane": 400, "scenes": 150, "shapes16": 100}
SPACE_OF = {"scenes": "scenevec", "shapes16": "shapes16"}


class Plane:
    """Two goals in the plane, each as good as it is near."""

    rewards = (Reward("left"), Reward("right"))
    version, on_states, seconds = "1", True, 0.0

    def __call__(self, states: States) -> Tensor:
        square = (states.data.unsqueeze(1) - GOALS).square().sum(-1)
        return (1 - square / 9).clamp(0, 1)


class Normal(nn.Module):
    """The exact velocity of N((0, 2), 0.5^2), plus what is learned."""

    def __init__(self, condition_size: int):
        super().__init__()
        self.learned = TimeMLP(2, 2, condition_size=condition_size, hidden=64)

    def forward(self, x: Tensor, t: Tensor, encoding: Tensor) -> Tensor:
        left, mean = (1 - t).unsqueeze(1), torch.tensor([0.0, 2.0])
        variance, noise = 0.25 * left.square(), t.unsqueeze(1).square()
        slope = (t.unsqueeze(1) - 0.25 * left) / (variance + noise)
        moved: Tensor = slope * (x - left * mean) - mean + self.learned(x, t, encoding)
        return moved


def plane_front() -> Tensor:
    s = torch.linspace(0, 1, 401, dtype=torch.float64)
    return torch.stack([1 - 4 * s.square() / 9, 1 - 4 * (1 - s).square() / 9], 1)


def scenes_front() -> Tensor:
    """0 to 4 warm ones of four squares, 1 or 2 of three; every other scene is dominated."""
    points = [(1.0, k / 4) for k in range(5)] + [(0.5, k / 3) for k in (1, 2)]
    soft, warm = torch.tensor(points, dtype=torch.float64).unbind(1)
    return torch.stack([soft, warm, 1 - warm], 1)


def run(name: str, seed: int) -> dict[str, Any]:
    """Train for random preferences, then ask for those of a lattice."""
    further = Conditions(2 if name == "plane" else 3, concentration=1.0)
    conditions: Any
    if name == "plane":
        conditions, oracle, front = further, Plane(), plane_front()
        network: nn.Module = Normal(further.encoding_size)
        shape, settings = (2,), {"clip": (0.98, 1.02)}
    else:
        space = SPACE_OF[name]
        rows = find_prompts(["4 squares"]).float()
        conditions = PromptConditions(1, 3, rows, further)
        oracle, front = SceneRewards(space, ("soft", "warm", "cool")), scenes_front()
        network = base_network(space, further.encoding_size)
        shape = SPACES[space].state_shape
        clip = scaled_clip((0.995, 1.005), math.prod(shape), 32)
        settings = {"clip": clip, "combine": "scalarized"}
    env = flow(shape, time_grid(10), "flow_sde", noise=0.7)
    policy = DenoiserPolicy(env, Anchored(network), condition_size=conditions.encoding_size)
    scalarization = weighted_sum if name == "plane" else tchebycheff
    scorer = Scorer(env, oracle, scalarization)  # type: ignore[arg-type]
    sampler = OnPaths(policy, conditions, scorer, 256, seed, group_size=16)
    lattice = simplex_lattice(conditions.n_rewards, 41 if name == "plane" else 7).float()

    def condition(weights: Tensor) -> Condition:
        made = further.make(weights, torch.ones(len(weights)))
        if name == "plane":
            return made
        return conditions.make(torch.zeros(len(weights), dtype=torch.int64), torch.float32, made)

    def ask() -> tuple[Tensor, Tensor]:
        """Preferences and rewards along the deterministic path in 40 steps."""
        weights = lattice.repeat_interleave(16, 0)
        asked = condition(weights)
        with on_schedule(policy, flow(shape, time_grid(40), "euler")):
            start = policy.env.initial(len(weights))
            batch = rollout(policy, start, asked, generator(seed, "ask"))
        return weights, scorer.rewards(batch)[0].double()

    result: dict[str, Any] = {"problem": name, "seed": seed, "updates": UPDATES[name]}
    result["before"] = scores(front, *ask(), scalarization)
    started = time.process_time()
    objective = PathGradient(scale="batch_std", ddof=0, eps=1e-4, **settings)  # type: ignore[arg-type]
    rate = 2e-3 if name == "plane" else 3e-4
    trainer = Trainer(
        policy, objective, sampler,  # type: ignore[arg-type]
        TrainerSettings(learning_rate=rate, clip_norm=1.0, updates=2, minibatches=2, log_every=0),
    )  # fmt: skip
    trainer.run(UPDATES[name])
    result["cpu_s"] = round(time.process_time() - started, 1)
    result["after"] = scores(front, *ask(), scalarization)
    return result


def scores(
    front: Tensor, weights: Tensor, rewards: Tensor, scalarization: Callable[..., Tensor]
) -> dict[str, float]:
    """How much of the exact front the samples of all preferences reach, and each its own part."""
    reference = torch.zeros(front.shape[1], dtype=torch.float64)
    volume = float(hypervolume(rewards, reference) / hypervolume(front, reference))
    reached = (torch.cdist(front, rewards).amin(1) < 0.02).double().mean()
    best = torch.stack(
        [scalarization(front, w.double().expand(len(front), -1)).max() for w in weights]
    )
    lost = best.exp() - scalarization(rewards, weights.double()).exp()
    return {
        "hypervolume_share": round(volume, 4),
        "igd_plus": round(float(igd_plus(rewards, front)), 4),
        "front_reached": round(float(reached), 4),
        "regret": round(float(lost.mean()), 4),
    }


def main() -> None:
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "denoising_fronts.json"
    for name in sys.argv[1:] or UPDATES:
        rows = [run(name, seed) for seed in range(3)]
        print(json.dumps(rows, indent=1), flush=True)
        kept = [row for row in json.loads(path.read_text()) if row["problem"] != name]
        path.write_text(json.dumps(kept + rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
