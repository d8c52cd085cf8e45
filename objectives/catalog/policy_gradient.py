"""The rows of policy optimisation: GRPO, GDPO and their family."""

from __future__ import annotations

from typing import Any

from gflow.objectives.catalog.method import Method, Paper
from gflow.objectives.policy_gradient import Advantage, PolicyGradient

_BASICS: Paper = (
    "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in "
    "LLMs",
    2024,
    "2402.14740",
)
_PPO: Paper = ("Proximal Policy Optimization Algorithms", 2017, "1707.06347")
_GRPO: Paper = (
    "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    2024,
    "2402.03300",
)
_DR_GRPO: Paper = (
    "Understanding R1-Zero-Like Training: A Critical Perspective",
    2025,
    "2503.20783",
)
_DAPO: Paper = (
    "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
    2025,
    "2503.14476",
)
_LITE_PPO: Paper = (
    "Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning",
    2025,
    "2508.08221",
)
_CISPO: Paper = (
    "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
    2025,
    "2506.13585",
)
_GSPO: Paper = ("Group Sequence Policy Optimization", 2025, "2507.18071")
_REINFORCE_PP: Paper = (
    "REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models",
    2025,
    "2501.03262",
)
_GDPO: Paper = (
    "Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization",
    2026,
    "2601.05242",
)
_DCPO: Paper = ("DCPO: Dynamic Clipping Policy Optimization", 2025, "2509.02333")
_SPO: Paper = ("Single-stream Policy Optimization", 2025, "2509.13232")
_DISPO: Paper = (
    "DISPO: Enhancing Training Efficiency and Stability in Reinforcement Learning for Large "
    "Language Model Mathematical Reasoning",
    2026,
    "2602.00983",
)
_DISCO: Paper = (
    "DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained Optimization",
    2025,
    "2505.12366",
)
_MO_GRPO: Paper = (
    "Optimizing Safe and Aligned Language Generation: A Multi-Objective GRPO Approach",
    2025,
    "2503.21819",
)
_AGENTFLOW: Paper = (
    "In-the-Flow Agentic System Optimization for Effective Planning and Tool Use",
    2025,
    "2510.05592",
)

_GROUPS: dict[str, object] = {"group_size": 8, "epsilon": 0.0, "concentration": 1.0}
_PARTS: dict[str, object] = {**_GROUPS, "minibatches": 4}
_BARE = Advantage(scale="none")


def _row(
    name: str, summary: str, paper: Paper, objective: PolicyGradient, *tags: str, **settings: Any
) -> Method:
    settings = {"conditional": True, "defaults": _GROUPS, **settings}
    return Method(name, summary, *paper, ("policy gradient", *tags), objective, **settings)


ROWS: tuple[Method, ...] = (
    _row(
        "reinforce", "REINFORCE: the score function times the reward still to come", _BASICS,
        PolicyGradient(
            Advantage(baseline="none", scale="none"), "none", "reinforce",
            aggregation="seq_mean_token_sum",
        ),
    ),
    _row(
        "rloo", "REINFORCE with the mean of the group's other rewards as baseline", _BASICS,
        PolicyGradient(
            Advantage(baseline="leave_one_out", scale="none"), "none", "reinforce",
            aggregation="seq_mean_token_sum", kl="in_reward", kl_weight=0.05,
        ),
        "group",
    ),
    _row(
        "ppo", "Clipped ratios, a value head and generalised advantages", _PPO,
        PolicyGradient(
            Advantage(baseline="value", scale="none", whitening="token"),
            aggregation="token_mean", kl="in_reward", kl_weight=0.05, value_clip=0.2,
        ),
        "value", defaults={**_GROUPS, "group_size": 1, "updates": 4},
    ),
    _row(
        "grpo", "Rewards summed, then normalised within the group; clipped ratios", _GRPO,
        PolicyGradient(kl="k3", kl_weight=0.04), "group",
    ),
    _row(
        "dr_grpo", "GRPO without standard deviations and without the bias towards length",
        _DR_GRPO, PolicyGradient(_BARE, aggregation="const_norm"), "group",
    ),
    _row(
        "dapo", "GRPO that clips higher, averages over steps and redraws groups without signal",
        _DAPO, PolicyGradient(clip=(0.8, 1.28), aggregation="token_mean"), "group",
        defaults={**_PARTS, "redraw": 4},
    ),
    _row(
        "lite_ppo", "Group means with the batch's standard deviation, averaged over steps",
        _LITE_PPO, PolicyGradient(Advantage(scale="batch_std"), aggregation="token_mean"), "group",
        defaults=_PARTS,
    ),
    _row(
        "cispo", "Clipped importance weights that no step loses its gradient to", _CISPO,
        PolicyGradient(surrogate="is_clip", clip=(0.0, 5.0), aggregation="token_mean"), "group",
        defaults=_PARTS,
    ),
    _row(
        "gspo", "Ratios of whole trajectories, their geometric mean over the steps", _GSPO,
        PolicyGradient(ratio="seq_geo", clip=(1 - 3e-4, 1 + 4e-4)), "group", defaults=_PARTS,
    ),
    _row(
        "reinforce_pp", "Rewards less the KL still to come, whitened over the steps of the batch",
        _REINFORCE_PP,
        PolicyGradient(
            Advantage(baseline="none", scale="none", whitening="token"),
            aggregation="token_mean", kl="in_reward", kl_weight=0.01,
        ),
        defaults={**_PARTS, "group_size": 1},
    ),
    _row(
        "reinforce_pp_baseline", "Group means, whitened over the steps of the batch",
        _REINFORCE_PP,
        PolicyGradient(
            Advantage(scale="none", whitening="token"),
            aggregation="token_mean", kl="k2", kl_weight=0.01,
        ),
        "group", defaults=_PARTS,
    ),
    _row(
        "gdpo", "Every reward normalised apart within the group, then summed and whitened", _GDPO,
        PolicyGradient(
            Advantage(combine="norm_then_sum", whitening="sequence"), kl="k3", kl_weight=0.04
        ),
        "group", "multi-objective",
    ),
    _row(
        "dcpo", "Bounds that widen for rare actions; statistics over all visits of a condition",
        _DCPO,
        PolicyGradient(
            Advantage(baseline="cumulative", scale="none"),
            surrogate="dyn_clip", clip=(0.16, 0.2), dual_clip=10.0,
        ),
        "group", "memory", defaults={**_PARTS, "pool": 64},
    ),
    _row(
        "spo", "One trajectory for each condition, against a tracked value of the condition", _SPO,
        PolicyGradient(
            Advantage(baseline="tracker", scale="none", whitening="sequence", eps=1e-8),
            clip=(0.8, 1.28), dual_clip=10.0, aggregation="token_mean",
        ),
        "memory", defaults={**_PARTS, "group_size": 1, "pool": 256},
    ),
    _row(
        "dispo", "Clipped importance weights with bounds of their own for either sign", _DISPO,
        PolicyGradient(
            surrogate="is_clip4", clip=(0.8, 11.0, 0.0, 101.0), aggregation="token_mean"
        ),
        "group", defaults=_PARTS,
    ),
    _row(
        "disco", "Scores of successes above those of failures, inside a trust region", _DISCO,
        PolicyGradient(
            Advantage(labels=0.5), "none", "score_diff", kl="constraint", kl_weight=1e3,
            kl_bound=1e-4, score_temperature=10.0,
        ),
        "group", "binary rewards",
    ),
    _row(
        "mo_grpo", "GRPO on the weighted sum of several learned rewards", _MO_GRPO,
        PolicyGradient(kl="k3", kl_weight=0.04), "group", "multi-objective",
    ),
    _row(
        "flow_grpo_turns", "GRPO over turns: one outcome for every turn of an episode",
        _AGENTFLOW,
        PolicyGradient(
            clip=(0.8, 1.3), aggregation="rollout_turn_token", kl="k3", kl_weight=1e-3
        ),
        "group", "turns",
    ),
)  # fmt: skip
