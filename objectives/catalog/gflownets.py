"""The rows of the GFlowNet family: balance, ordering, outcome-conditional."""

from __future__ import annotations

from typing import Any

from gflow.mdp import Objective
from gflow.objectives.balance import (
    BackwardLikelihood,
    BackwardUniformity,
    DetailedBalance,
    EnergyDecomposition,
    FlowMatching,
    SoftQLearning,
    SubTrajectoryBalance,
    Sum,
    TrajectoryBalance,
    VarGrad,
)
from gflow.objectives.catalog.method import Method, Paper
from gflow.objectives.ordering import Ordering
from gflow.objectives.outcome import AmortizedAdaptation

_FM: Paper = (
    "Flow Network based Generative Models for Non-Iterative Diverse Candidate Generation",
    2021,
    "2106.04399",
)
_FOUNDATIONS: Paper = ("GFlowNet Foundations", 2021, "2111.09266")
_TB: Paper = ("Trajectory Balance: Improved Credit Assignment in GFlowNets", 2022, "2201.13259")
_MDB: Paper = ("Bayesian Structure Learning with Generative Flow Networks", 2022, "2202.13903")
_SUBTB: Paper = (
    "Learning GFlowNets from Partial Episodes for Improved Convergence and Stability",
    2022,
    "2209.12782",
)
_MOGFN: Paper = ("Multi-Objective GFlowNets", 2022, "2210.12765")
_FL: Paper = (
    "Better Training of GFlowNets with Local Credit and Incomplete Trajectories",
    2023,
    "2302.01687",
)
_LED: Paper = (
    "Learning Energy Decompositions for Partial Inference in GFlowNets",
    2023,
    "2310.03301",
)
_VARGRAD: Paper = ("Robust Scheduling with GFlowNets", 2023, "2302.05446")
_GOAL: Paper = (
    "Goal-conditioned GFlowNets for Controllable Multi-Objective Molecular Design",
    2023,
    "2306.04620",
)
_OP: Paper = ("Order-Preserving GFlowNets", 2023, "2310.00386")
_OC: Paper = ("Pre-Training and Fine-Tuning Generative Flow Networks", 2023, "2310.03419")
_MAX_ENTROPY: Paper = ("Maximum Entropy GFlowNets with Soft Q-Learning", 2023, "2312.14331")
_SOFT_RL: Paper = ("Generative Flow Networks as Entropy-Regularized RL", 2023, "2310.12934")
_PESSIMISTIC: Paper = ("Pessimistic Backward Policy for GFlowNets", 2024, "2405.16012")
_RTB: Paper = (
    "Amortizing intractable inference in diffusion models for vision, language, and control",
    2024,
    "2405.20971",
)
_REGRESSION: Paper = (
    "Beyond Squared Error: Exploring Loss Design for Enhanced Training of Generative Flow Networks",
    2024,
    "2410.02596",
)
_TLM: Paper = (
    "Optimizing Backward Policies in GFlowNets via Trajectory Likelihood Maximization",
    2024,
    "2410.15474",
)

_ORDER_TAGS = ("order", "multi-objective")
_LEARNED_BACKWARD: dict[str, object] = {"backward": "learned"}
_PREFERENCES: dict[str, object] = {"inverse_temperature": "16", "concentration": 1.0}


def _row(
    name: str, summary: str, paper: Paper, objective: Objective, *tags: str, **settings: Any
) -> Method:
    return Method(name, summary, *paper, ("gflownet", "discrete", *tags), objective, **settings)


ROWS: tuple[Method, ...] = (
    _row(
        "tb", "Trajectory balance: one residual per complete trajectory", _TB,
        TrajectoryBalance(), "balance"
    ),
    _row(
        "subtb", "Sub-trajectory balance: all pieces of a trajectory, geometrically weighted",
        _SUBTB, SubTrajectoryBalance(), "balance"
    ),
    _row(
        "db", "Detailed balance: one residual per transition", _FOUNDATIONS,
        DetailedBalance(), "balance"
    ),
    _row(
        "vargrad", "Trajectory balance with log Z estimated by the group's mean, not learned",
        _VARGRAD, VarGrad(), "balance"
    ),
    _row(
        "fm", "Flow matching: inflow equals outflow in every visited state", _FM,
        FlowMatching(), "balance"
    ),
    _row(
        "mdb", "Modified detailed balance: no flow network where every state may stop", _MDB,
        DetailedBalance(potential="modified", regression="huber"), "balance",
        "partial rewards"
    ),
    _row(
        "fl_db", "Forward-looking detailed balance: partial rewards credit every step", _FL,
        DetailedBalance(potential="forward_looking"), "balance", "partial rewards"
    ),
    _row(
        "fl_subtb", "Forward-looking sub-trajectory balance", _FL,
        SubTrajectoryBalance(potential="forward_looking"), "balance", "partial rewards"
    ),
    _row(
        "fl_tb",
        "Forward-looking trajectory balance: log Z is the start's flow and partial reward",
        _FL, TrajectoryBalance(potential="forward_looking"), "balance", "partial rewards"
    ),
    _row(
        "led_db",
        "Detailed balance with learned energies of transitions in place of partial rewards",
        _LED, Sum(((1.0, DetailedBalance(potential="energy")), (1.0, EnergyDecomposition()))),
        "balance", "learned energies"
    ),
    _row(
        "led_subtb", "Sub-trajectory balance with learned energies of transitions", _LED,
        Sum(((1.0, SubTrajectoryBalance(potential="energy")), (1.0, EnergyDecomposition()))),
        "balance", "learned energies"
    ),
    _row(
        "rtb", "Relative trajectory balance: sample prior(x) R(x) for a frozen prior sampler",
        _RTB, TrajectoryBalance(relative=True, regression="half_squared"), "balance", "prior",
        requires=("prior",)
    ),
    _row(
        "rtb_vargrad", "Relative trajectory balance without a learned log Z", _RTB,
        VarGrad(relative=True, regression="half_squared"), "balance", "prior",
        requires=("prior",)
    ),
    _row(
        "tb_linex", "Trajectory balance with the linex loss, which covers modes first",
        _REGRESSION, TrajectoryBalance(regression="linex"), "balance", "regression"
    ),
    _row(
        "tb_shifted_cosh", "Trajectory balance with the shifted-cosh loss", _REGRESSION,
        TrajectoryBalance(regression="shifted_cosh"), "balance", "regression"
    ),
    _row(
        "tb_max_entropy",
        "Trajectory balance with every construction sequence of an object equally likely",
        _MAX_ENTROPY, TrajectoryBalance(), "balance", "backward policy",
        defaults={"backward": "paths"}
    ),
    _row(
        "tb_tlm", "Trajectory balance with P_B trained to imitate the sampled trajectories",
        _TLM,
        Sum(((1.0, TrajectoryBalance(backward_gradient=False)), (1.0, BackwardLikelihood()))),
        "balance", "backward policy", defaults=_LEARNED_BACKWARD
    ),
    _row(
        "tb_pessimistic", "Trajectory balance with P_B fitted to replayed trajectories",
        _PESSIMISTIC,
        Sum(((1.0, TrajectoryBalance(backward_gradient=False)), (1.0, BackwardLikelihood()))),
        "balance", "backward policy", "replay", defaults={**_LEARNED_BACKWARD, "replay": 64}
    ),
    _row(
        "soft_dqn", "Soft Q-learning with log P_B as the reward of a step", _SOFT_RL,
        SoftQLearning(), "reinforcement learning"
    ),
    _row(
        "munchausen_dqn",
        "Soft Q-learning that also rewards the policy's own log-probability", _SOFT_RL,
        SoftQLearning(munchausen=0.15), "reinforcement learning"
    ),
    _row(
        "mogfn_pc",
        "Preference-conditional trajectory balance: one sampler for every trade-off", _MOGFN,
        TrajectoryBalance(), "balance", "multi-objective", "conditional", conditional=True,
        defaults=_PREFERENCES
    ),
    _row(
        "goal_conditioned",
        "Trajectory balance towards a direction of reward space, reward only in its cone",
        _GOAL, TrajectoryBalance(), "balance", "multi-objective", "conditional",
        conditional=True,
        defaults={"scalarization": "focus", "inverse_temperature": "60", "concentration": 1.0}
    ),
    _row(
        "op_tb",
        "Order-preserving trajectory balance: rank the batch's Pareto members highest", _OP,
        Ordering(), *_ORDER_TAGS
    ),
    _row(
        "op_tb_kl", "Order-preserving trajectory balance with P_B kept near uniform", _OP,
        Sum(((1.0, Ordering()), (0.1, BackwardUniformity()))), *_ORDER_TAGS,
        "backward policy", defaults=_LEARNED_BACKWARD
    ),
    _row(
        "op_tb_pairs", "Order-preserving trajectory balance for one reward: rank all pairs",
        _OP, Ordering(order="total", candidates="pairs"), "order"
    ),
    _row(
        "op_db",
        "Order-preserving detailed balance: terminal values are ranked, not regressed", _OP,
        Sum(((1.0, DetailedBalance(boundary=False)), (0.1, Ordering(starts="last")))),
        *_ORDER_TAGS
    ),
    _row(
        "op_fm", "Order-preserving flow matching", _OP,
        Sum(((1.0, FlowMatching(leaf_weight=0.0)), (0.1, Ordering(starts="last")))),
        *_ORDER_TAGS
    ),
    _row(
        "op_subtb",
        "Order-preserving sub-trajectory balance: pieces of equal length are ranked", _OP,
        Sum(((1.0, SubTrajectoryBalance(boundary=False)), (0.1, Ordering(starts="all")))),
        *_ORDER_TAGS
    ),
    _row(
        "oc_gfn", "Outcome-conditioned pre-training without a reward: reach any given object",
        _OC, DetailedBalance(potential="teleport"), "balance", "pre-training",
        "outcome-conditional"
    ),
    _row(
        "oc_gfn_terminal", "Outcome-conditioned pre-training with the reward on the last edge",
        _OC, DetailedBalance(), "balance", "pre-training", "outcome-conditional"
    ),
    _row(
        "oc_gfn_adapt",
        "Turn a frozen outcome-conditioned sampler into the sampler of a new reward", _OC,
        AmortizedAdaptation(), "adaptation", "outcome-conditional", requires=("outcomes",)
    ),
)  # fmt: skip
