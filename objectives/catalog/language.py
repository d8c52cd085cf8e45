"""The rows of policy optimisation for masked diffusion language models."""

from __future__ import annotations

from gflow.objectives.catalog.method import Method, Paper
from gflow.objectives.policy_gradient import Advantage, PolicyGradient

_D1: Paper = (
    "d1: Scaling Reasoning in Diffusion Large Language Models via Reinforcement Learning",
    2025,
    "2504.12216",
)
_GDPO: Paper = (
    "Improving Reasoning for Diffusion Language Models via Group Diffusion Policy Optimization",
    2025,
    "2510.08554",
)
_TAGS = ("policy gradient", "group", "masked language model")

ROWS: tuple[Method, ...] = (
    Method(
        "diffu_grpo",
        "GRPO on one-step estimates of each token's log-probability, the others masked",
        *_D1,
        _TAGS,
        PolicyGradient(
            Advantage(scale="none"),
            clip=(0.5, 1.5),
            aggregation="token_mean",
            kl="k3",
            kl_weight=0.04,
        ),
        defaults={"group_size": 6, "epsilon": 0.0, "updates": 12, "likelihood": "one_step"},
    ),
    Method(
        "gdpo_elbo",
        "Clipped ratios of bounds on the log-probabilities of whole sequences",
        *_GDPO,
        _TAGS,
        PolicyGradient(Advantage(scale="none"), ratio="elbo", kl="k2", kl_weight=0.04),
        defaults={"group_size": 6, "epsilon": 0.0, "updates": 4, "likelihood": "elbo"},
    ),
)
