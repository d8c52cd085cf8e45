"""Short training runs shared by the tests of convergence."""

from gflow.conditions import Conditions
from gflow.estimators import terminating_distribution, total_variation
from gflow.objectives.balance import (
    BackwardLikelihood,
    DetailedBalance,
    EnergyDecomposition,
    FlowMatching,
    SoftQLearning,
    SubTrajectoryBalance,
    Sum,
    TrajectoryBalance,
    VarGrad,
)
from gflow.sampling import Exploration, OnPolicy, Scorer
from gflow.training import Trainer, TrainerSettings

FIXED_TARGET = {
    "tb": TrajectoryBalance(),
    "tb_huber": TrajectoryBalance(regression="huber"),
    "tb_shifted_cosh": TrajectoryBalance(regression="shifted_cosh"),
    "tb_linex": TrajectoryBalance(regression="linex"),
    "vargrad": VarGrad(),
    "db": DetailedBalance(),
    "subtb": SubTrajectoryBalance(),
    "subtb_linear": SubTrajectoryBalance(lam=1.0),
    "mdb": DetailedBalance(potential="modified"),
    "fm": FlowMatching(),
    "fl_db": DetailedBalance(potential="forward_looking"),
    "fl_subtb": SubTrajectoryBalance(potential="forward_looking"),
    "fl_tb": TrajectoryBalance(potential="forward_looking"),
    "led_db": Sum(((1.0, DetailedBalance(potential="energy")), (1.0, EnergyDecomposition(0.0)))),
    "soft_q": SoftQLearning(),
    "munchausen": SoftQLearning(munchausen=0.15),
    "tlm": Sum(((1.0, TrajectoryBalance(backward_gradient=False)), (1.0, BackwardLikelihood()))),
}
"""Every objective whose optimum is P_T(x) = R(x) / Z."""


def trainer(policy, objective, oracle, seed=0, rate=0.05, batch_size=16, epsilon=0.1, wrap=None):
    """A Trainer without conditions, in the policy's dtype."""
    dtype = next(policy.parameters()).dtype
    sampler = OnPolicy(
        policy,
        Conditions(),
        Scorer(policy.env, oracle, partial=True),
        batch_size,
        seed,
        exploration=Exploration(epsilon=epsilon),
        dtype=dtype,
    )
    settings = TrainerSettings(learning_rate=rate, log_every=0)
    return Trainer(policy, objective, wrap(sampler) if wrap else sampler, settings)


def anneal(run, steps):
    """Train `steps` steps, the learning rates falling to a hundredth over the last half."""
    run.run(steps // 2)
    full = [group["lr"] for group in run.optimizer.param_groups]
    pieces = 10
    for piece in range(1, pieces + 1):
        for group, rate in zip(run.optimizer.param_groups, full, strict=True):
            group["lr"] = rate * 0.01 ** (piece / pieces)
        run.run(steps // 2 + (steps - steps // 2) * piece // pieces)


def distance(policy, oracle):
    """Total variation between the exact terminating distribution and R / Z."""
    found = terminating_distribution(policy, Conditions().sample(1))
    target = oracle(found.states).squeeze(-1).double()
    return float(total_variation(found.probability, target / target.sum()))


def learned_log_z(run):
    """What the objective says log Z is, on a fresh batch."""
    metrics = run.objective(run.policy, run.sampler()).metrics
    return float(metrics["log_z"])
