"""Policy optimisation on denoising paths: one objective, and how its paths are walked.

`defaults["schedule"]` names the step sampler, `defaults["paths"]` holds the settings of
`gflow.sampling.paths.OnPaths`. Clip ranges are the published ones, chosen at about 65,536 numbers a
sample; the spread of a ratio falls with the square root of that number, so scale them
(`gflow.objectives.policy_gradient.paths.scaled_clip`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from gflow.objectives.catalog.method import Method, Paper
from gflow.objectives.policy_gradient.path_objective import PathGradient

_DDPO: Paper = ("Training Diffusion Models with Reinforcement Learning", 2023, "2305.13301")
_DPOK: Paper = (
    "DPOK: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models",
    2023,
    "2305.16381",
)
_FLOW: Paper = ("Flow-GRPO: Training Flow Matching Models via Online RL", 2025, "2505.05470")
_CPS: Paper = (
    "Coefficients-Preserving Sampling for Reinforcement Learning with Flow Matching",
    2025,
    "2509.05952",
)
_DANCE: Paper = ("DanceGRPO: Unleashing GRPO on Visual Generation", 2025, "2505.07818")
_MIX: Paper = (
    "MixGRPO: Unlocking Flow-based GRPO Efficiency with Mixed ODE-SDE",
    2025,
    "2507.21802",
)
_TEMP: Paper = (
    "TempFlow-GRPO: When Timing Matters for GRPO in Flow Models",
    2025,
    "2508.04324",
)
_GUARD: Paper = (
    "GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping",
    2025,
    "2510.22319",
)

_ANCESTRAL = {"sampler": "dpm_sde"}
_FLOW_SDE = {"sampler": "flow_sde", "noise": 0.7}
_SLIDING = {"kind": "sliding", "size": 4, "every": 25}


def _around_one(width: float) -> tuple[float, float]:
    return 1 - width, 1 + width


def _row(
    name: str,
    summary: str,
    paper: Paper,
    objective: PathGradient,
    schedule: dict[str, Any],
    *tags: str,
    group_size: int = 16,
    **paths: Any,
) -> Method:
    return Method(
        name, summary, *paper, ("policy gradient", "denoising", *tags), objective,
        defaults={"group_size": group_size, "schedule": schedule, "paths": paths},
    )  # fmt: skip


# Mean and standard deviation of a prompt's last rewards, earlier batches included.
_RUNNING = PathGradient(buffer=32, least=16, ddof=0, eps=1e-6)
_OVER_BATCH = PathGradient(scale="batch_std", ddof=0, eps=1e-4)
_OVER_GROUP = PathGradient(scale="group_std", ddof=0, eps=1e-4)

ROWS = (
    _row(
        "ddpo_sf", "Score-function gradient on denoising steps, one update for each batch", _DDPO,
        replace(_RUNNING, clip=(0.0, math.inf)), _ANCESTRAL
    ),
    _row(
        "ddpo", "Importance-sampled policy gradient on denoising steps", _DDPO,
        _RUNNING, _ANCESTRAL
    ),
    _row(
        "dpok", "Policy gradient on denoising steps with a learned baseline, near its reference",
        _DPOK,
        # The release weighs the divergence by 0.01 and the reward by 100.
        PathGradient(baseline="value", scale="none", pessimistic=False, kl_weight=0.01 / 100),
        _ANCESTRAL, "reference"
    ),
    _row(
        "flow_grpo", "Group-relative policy optimisation on a flow sampled by an SDE", _FLOW,
        replace(_OVER_BATCH, kl_weight=0.04, kl_scale="time"), _FLOW_SDE, "group",
        "reference"
    ),
    _row(
        "flow_grpo_fast", "Flow-GRPO with noise in a few consecutive steps, which share a prefix",
        _FLOW,
        replace(_OVER_BATCH, clip=_around_one(1e-5)), _FLOW_SDE, "group",
        window={"kind": "random", "size": 3, "before": 5}, shared="prefix"
    ),
    _row(
        "flow_grpo_cps", "Flow-GRPO on a sampler that keeps the path's coefficients", _CPS,
        replace(_OVER_BATCH, clip=_around_one(1e-5), power="density"),
        {"sampler": "cps", "noise": 0.8}, "group"
    ),
    _row(
        "dance_grpo", "Group-relative policy optimisation from shared noise, on some of the steps",
        _DANCE,
        PathGradient(), {"sampler": "dance_sde", "noise": 0.3}, "group",
        shared="noise", share=0.6
    ),
    _row(
        "mix_grpo", "Noise and training in a sliding window of steps, the ODE elsewhere", _MIX,
        PathGradient(combine="norm_then_sum"), _FLOW_SDE, "group", window=_SLIDING, shared="noise"
    ),
    _row(
        "mix_grpo_flash", "MixGRPO with a higher-order solver in fewer steps behind the window",
        _MIX,
        PathGradient(combine="norm_then_sum"), _FLOW_SDE, "group",
        window={**_SLIDING, "every": 20}, shared="noise", compression={"share": 0.4}
    ),
    _row(
        "temp_flow_grpo", "Each step's credit by branches of its own, weighed by its noise", _TEMP,
        replace(_OVER_GROUP, weight="noise", kl_weight=0.004), _FLOW_SDE, "group",
        "reference", group_size=24, shared="prefix", trunks=4, separate=True
    ),
    _row(
        "grpo_guard", "Ratios of zero mean and even spread, gradients even over the steps", _GUARD,
        replace(
            _OVER_GROUP, clip=_around_one(2e-6), power="noise", centered=True,
            weight="time"
        ),
        _FLOW_SDE, "group"
    ),
)  # fmt: skip
