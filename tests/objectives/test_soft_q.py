"""GFlowNets as entropy-regularised reinforcement learning (2310.12934)."""

import copy
import math

import pytest
import torch

from gflow.mdp import evaluate
from gflow.objectives.balance import (
    DetailedBalance,
    SoftQLearning,
    detailed_balance,
    move_towards,
    soft_bellman_target,
)
from tests.diamond import (
    STOP,
    A,
    B,
    close,
    diamond_batch,
    diamond_policy,
    distribution,
)

REWARDS = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
CHILD = {(0, A): 1, (0, B): 2, (1, B): 3, (2, A): 3}


def soft_value_iteration(log_pb, alpha=0.0, sweeps=400):
    """Q and V of the diamond; the reward of a construction step is `log_pb` of the child."""
    lam = 1 / (1 - alpha)
    q = torch.full((4, 3), -torch.inf, dtype=torch.float64)
    q[:, STOP] = 0.0
    for edge in CHILD:
        q[edge] = 0.0
    for _ in range(sweeps):
        value = lam * torch.logsumexp(q / lam, 1)
        log_pi = lam * torch.log_softmax(q / lam, 1)
        new = q.clone()
        for (state, action), child in CHILD.items():
            new[state, action] = log_pb[child] + value[child] + alpha * log_pi[state, action]
        new[:, STOP] = REWARDS.log() + alpha * log_pi[:, STOP]
        q = new
    return q, lam * torch.logsumexp(q / lam, 1)


UNIFORM = torch.tensor([0.0, 0.0, 0.0, -math.log(2)], dtype=torch.float64)


def terminal(q, lam):
    """P_T of softmax(Q / lam)."""
    p = torch.softmax(q / lam, 1)
    reach = torch.stack([torch.ones(()).double(), p[0, A], p[0, B], torch.zeros(()).double()])
    reach[3] = p[0, A] * p[1, B] + p[0, B] * p[2, A]
    return reach * p[:, STOP]


def test_soft_values_are_flows():
    q, value = soft_value_iteration(UNIFORM)
    close(value.exp(), [10.0, 4.0, 5.0, 4.0], 1e-9)
    close(terminal(q, 1.0), [0.1, 0.2, 0.3, 0.4], 1e-9)


def test_without_log_pb_objects_with_more_paths_win():
    q, _ = soft_value_iteration(torch.zeros(4, dtype=torch.float64))
    close(terminal(q, 1.0), [1 / 14, 2 / 14, 3 / 14, 8 / 14], 1e-9)


def test_munchausen_has_the_same_policy_and_value():
    q, value = soft_value_iteration(UNIFORM, alpha=0.15, sweeps=2000)
    close(terminal(q, 1 / 0.85), [0.1, 0.2, 0.3, 0.4], 1e-9)
    close(value[0], 2.302585)
    close(q[0], [1.224596, 1.487118, -0.406339])
    # With the entropy coefficient left at 1 the policy is another one.
    lam_one = torch.softmax(q, 1)[0]
    assert float((lam_one - torch.tensor([0.4, 0.5, 0.1])).abs().max()) > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.15, 0.5])
def test_zero_loss_at_the_exact_flow(alpha):
    policy, batch = diamond_policy(solved=True), diamond_batch()
    close(SoftQLearning(munchausen=alpha)(policy, batch).value, 0.0, 1e-20)
    # The Q it stands for is that of value iteration.
    q, _ = soft_value_iteration(UNIFORM, alpha, sweeps=3000)
    ev = evaluate(policy, batch, frozenset({"log_flow"}))
    close((ev.log_flow + ev.log_pf / (1 - alpha))[3, :2], [q[0, A], q[1, B]], 1e-9)


def test_soft_q_is_detailed_balance_with_a_fixed_target():
    policy, batch = diamond_policy(), diamond_batch()
    generator = torch.Generator().manual_seed(0)
    policy.logits.data.normal_(generator=generator)
    policy.flow.data.normal_(generator=generator)
    soft = SoftQLearning(regression="squared")
    close(soft(policy, batch).value, DetailedBalance()(policy, batch).value, 1e-12)
    gradient = torch.autograd.grad(soft(policy, batch).value, policy.flow)[0]
    ev = evaluate(policy, batch, DetailedBalance().needs)
    u = DetailedBalance().potentials(ev, batch)
    residual = detailed_balance(u, batch.lengths)
    semi = torch.zeros(4, dtype=torch.float64)
    number = batch.states[:, :-1] @ torch.tensor([1, 2])
    semi.index_add_(0, number[batch.valid], 2 * residual.detach()[batch.valid] / 11)
    close(gradient[0], semi, 1e-12)


def test_one_backup_of_the_stop_edge_is_the_reward():
    zeros = torch.zeros(1, 1)
    close(soft_bellman_target(zeros, torch.tensor([[1.7]]), zeros - 3.0), [[1.7]])


def test_the_bonus_is_clipped():
    zeros, log_pi = torch.zeros(1), torch.tensor([-10.0])
    close(soft_bellman_target(zeros, zeros, log_pi, 0.5, clip=-100.0), [-10.0])
    close(soft_bellman_target(zeros, zeros, log_pi, 0.5, clip=-2.0), [-1.0])


def test_too_tight_a_clip_biases_the_policy():
    """The clip of -2 that is usual in games cuts real log-probabilities."""
    policy, batch = diamond_policy(solved=True), diamond_batch()
    close(SoftQLearning(munchausen=0.15)(policy, batch).value, 0.0, 1e-20)
    tight = SoftQLearning(munchausen=0.15, clip=-2.0)(policy, batch).value
    assert float(tight.detach()) > 1e-4


def train(objective, policy, steps, after=lambda: None):
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    batch = diamond_batch()
    for _ in range(steps):
        optimizer.zero_grad()
        objective(policy, batch).value.backward()
        optimizer.step()
        after()
    return distribution(policy)


@pytest.mark.parametrize("alpha", [0.0, 0.15])
def test_learning_with_a_moving_target(alpha):
    policy = diamond_policy()
    target = copy.deepcopy(policy)
    objective = SoftQLearning(munchausen=alpha, target=target)
    found = train(objective, policy, 500, lambda: move_towards(target, policy, 0.25))
    close(found, [0.1, 0.2, 0.3, 0.4], 0.01)
    close(policy.flow[0, 0], math.log(10), 0.02)


def test_a_target_that_never_moves_is_one_backup():
    policy = diamond_policy()
    objective = SoftQLearning(target=copy.deepcopy(policy))
    train(objective, policy, 500)
    # From a target of zero flows: stop edges know R, construction edges only log P_B.
    first = policy.flow[0, 0] + policy.logits[0, 0].log_softmax(0)
    close(first, [0.0, 0.0, 0.0], 0.02)


def test_bad_settings():
    with pytest.raises(ValueError, match="munchausen"):
        SoftQLearning(munchausen=1.0)
    with pytest.raises(ValueError, match="munchausen"):
        SoftQLearning(clip=1.0)
    with pytest.raises(ValueError, match="prior"):
        SoftQLearning(relative=True)
