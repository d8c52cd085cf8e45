"""Rows of samplers of points: GFlowNet objectives on denoising paths."""

from __future__ import annotations

from gflow.mdp import Objective
from gflow.objectives.balance import (
    DetailedBalance,
    GradientBalance,
    SubTrajectoryBalance,
    VarGrad,
)
from gflow.objectives.catalog.method import Method, Paper

_LOG_VARIANCE: Paper = ("Improved sampling via learned diffusions", 2023, "2307.01198")
_OFF_POLICY: Paper = ("Improved off-policy training of diffusion samplers", 2024, "2402.05098")
_DAG: Paper = ("Improving GFlowNets for Text-to-Image Diffusion Alignment", 2024, "2406.00633")
_NABLA: Paper = (
    "Efficient Diversity-Preserving Diffusion Alignment via Gradient-Informed GFlowNets",
    2024,
    "2412.07775",
)


def _row(
    name: str,
    summary: str,
    paper: Paper,
    objective: Objective,
    *tags: str,
    requires: tuple[str, ...] = (),
) -> Method:
    tags = ("gflownet", "denoising", "balance", *tags)
    return Method(name, summary, *paper, tags, objective, requires=requires)


ROWS: tuple[Method, ...] = (
    _row(
        "log_variance", "Variance of the batch's log-weights, which no log Z is needed for",
        _LOG_VARIANCE, VarGrad()
    ),
    _row(
        "diffusion_subtb",
        "Forward-looking sub-trajectory balance with long pieces weighed most, for points",
        _OFF_POLICY, SubTrajectoryBalance(potential="forward_looking", lam=2.0), "partial rewards"
    ),
    _row(
        "dag", "Detailed balance of a denoiser, credited by the reward of its clean estimate",
        _DAG, DetailedBalance(potential="forward_looking"), "fine-tuning", "clean rewards"
    ),
    _row(
        "nabla_db", "Gradients of detailed balance relative to a frozen denoiser", _NABLA,
        GradientBalance(), "fine-tuning", "prior", requires=("log_reward", "reference")
    ),
)  # fmt: skip
