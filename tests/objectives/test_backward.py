"""Backward policies: uniform, path counts, regularised, trained by likelihood; frozen priors."""

import math
from dataclasses import replace

import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.grids import HyperGrid
from gflow.envs.sets import Sets
from gflow.estimators import exact_flows
from gflow.mdp import States, evaluate
from gflow.objectives.balance import (
    BackwardLikelihood,
    BackwardUniformity,
    DetailedBalance,
    SubTrajectoryBalance,
    Sum,
    TrajectoryBalance,
    VarGrad,
)
from gflow.policies import fixed_backward_kernel
from tests.diamond import (
    A,
    B,
    close,
    diamond,
    diamond_batch,
    diamond_log_reward,
    diamond_policy,
    distribution,
    set_number,
    walk,
)
from tests.tabular import TabularPolicy


def test_uniform_and_maximum_entropy_parents_on_the_grid():
    env = HyperGrid(2, 4)
    state = States(torch.tensor([[2, 1]]), torch.tensor([3]), torch.tensor([False]))
    uniform = fixed_backward_kernel(env, state, "uniform", torch.float64).log_probs().exp()
    paths = fixed_backward_kernel(env, state, "paths", torch.float64).log_probs().exp()
    # Lowering the first coordinate leads to (1, 1), lowering the second to (2, 0).
    close(uniform, [[0.5, 0.5, 0.0]])
    close(paths, [[2 / 3, 1 / 3, 0.0]])


def test_kl_to_uniform():
    policy, batch = diamond_policy(backward="learned"), diamond_batch()
    # Probability 0.8 of having come from b, that is of removing a.
    policy.back.data[0, 3, A] = math.log(0.8 / 0.2)
    wanted = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    loss = BackwardUniformity()(policy, batch)
    # Two of the six construction steps enter ab, the only state with two parents.
    close(loss.value, 2 * wanted / 6)
    loss.value.backward()
    assert policy.logits.grad is None or not policy.logits.grad.any()
    close(policy.back.grad[0, 3, [A, B]], torch.tensor([0.3, -0.3]) * 2 / 6)
    policy.back.data.zero_()
    close(BackwardUniformity()(policy, batch).value, 0.0)
    with pytest.raises(ValueError, match="no parameters"):
        BackwardUniformity()(diamond_policy(), batch)


def test_likelihood_term_trains_the_backward_policy_alone():
    policy, batch = diamond_policy(backward="learned"), diamond_batch()
    policy.logits.data.normal_(generator=torch.Generator().manual_seed(0))
    both = Sum(((1.0, TrajectoryBalance(backward_gradient=False)), (1.0, BackwardLikelihood())))
    value = both(policy, batch).value
    likelihood = BackwardLikelihood()(policy, batch).value
    wanted = torch.autograd.grad(likelihood, policy.back)[0]
    close(torch.autograd.grad(value, policy.back)[0], wanted, 1e-12)
    (joint,) = torch.autograd.grad(TrajectoryBalance()(policy, batch).value, policy.back)
    assert float(joint.abs().max()) > 0.01
    with pytest.raises(ValueError, match="no parameters"):
        BackwardLikelihood()(diamond_policy(), batch)


def test_likelihood_fits_the_posterior_of_the_sampled_trajectories():
    """The optimum is P(parent | child) under the sampler: here 3 of 4 ab's came through a."""
    batch = diamond_batch([[A, B, 2]] * 3 + [[B, A, 2]])
    policy = diamond_policy(backward="learned")
    optimizer = torch.optim.LBFGS([policy.back], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = BackwardLikelihood()(policy, batch).value
        value.backward()
        return value

    optimizer.step(closure)
    share = policy.back[0, 3, [A, B]].softmax(0)
    # Removing b undoes the path through a.
    close(share, [0.25, 0.75], 1e-4)


@pytest.mark.parametrize("kind", ["uniform", "paths", "learned"])
def test_any_backward_policy_has_the_same_terminal_optimum(kind):
    """Only interior flows differ: solve TB by full-batch descent under each P_B."""
    policy = diamond_policy(backward=kind)
    policy.back.data[0, 3, A] = 1.3
    policy.back.requires_grad_(False)
    batch = diamond_batch()
    parameters = [policy.logits, policy.log_z.bias]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = TrajectoryBalance()(policy, batch).value
        value.backward()
        return value

    optimizer.step(closure)
    close(distribution(policy), [0.1, 0.2, 0.3, 0.4], 1e-5)
    close(policy.log_z.bias, [math.log(10)], 1e-5)


def test_trees_have_no_backward_choice():
    class Chain(Sets):
        """One item only: a tree."""

        tree = True

    env = Chain(1, 1, stop=True)
    batch = walk(env, [[0, 1], [1]])
    ev = evaluate(TabularPolicy(env, 2, backward="learned"), batch, frozenset({"log_pb"}))
    close(ev.log_pb, torch.zeros(2, 2))


def prior_policy():
    prior = diamond_policy()
    generator = torch.Generator().manual_seed(5)
    prior.logits.data.normal_(generator=generator)
    return prior


def test_relative_balance_samples_prior_times_reward():
    """Posterior p(tau) proportional to prior(tau) R(x): zero loss there, for both versions."""
    prior, batch = prior_policy(), diamond_batch()
    with torch.no_grad():
        mass = evaluate(prior, batch, frozenset()).log_pf.sum(1).exp() * batch.log_reward.exp()
    log_z = mass.sum().log()
    posterior = diamond_policy()
    for path, share in zip(batch.actions.tolist(), mass, strict=True):
        state = 0
        for action in path:
            posterior.logits.data[0, state, action] += share
            state |= (1 << action) if action < 2 else 0
            if action == 2:
                break
    posterior.logits.data = posterior.logits.data.log()
    posterior.log_z.bias.data.fill_(log_z)
    objective = TrajectoryBalance(relative=True, prior=prior, regression="half_squared")
    close(objective(posterior, batch).value, 0.0, 1e-20)
    close(VarGrad(relative=True, prior=prior)(posterior, batch).value, 0.0, 1e-20)
    close(VarGrad(relative=True, prior=prior)(posterior, batch).metrics["log_z"], log_z, 1e-10)
    # Plain trajectory balance is not solved by it.
    assert float(TrajectoryBalance()(posterior, batch).value.detach()) > 0.01


def test_relative_balance_with_no_reward_returns_the_prior():
    prior, batch = prior_policy(), diamond_batch()
    batch.log_reward = torch.zeros_like(batch.log_reward)
    objective = TrajectoryBalance(relative=True, prior=prior)
    loss = objective(prior, batch)
    close(loss.value, 0.0, 1e-20)
    close(loss.metrics["log_z"], 0.0)


def test_half_of_the_squared_residual_and_a_prior_without_gradient():
    prior, policy, batch = prior_policy(), diamond_policy(), diamond_batch()
    whole = TrajectoryBalance(relative=True, prior=prior)
    half = replace(whole, regression="half_squared")
    close(half(policy, batch).value, whole(policy, batch).value / 2, 1e-12)
    gradient = torch.autograd.grad(whole(policy, batch).value, prior.logits, allow_unused=True)
    assert gradient == (None,)
    # Sums over time, not means: with the exact numbers of the uniform policy and a uniform prior.
    uniform = TrajectoryBalance(relative=True, prior=diamond_policy())
    close(uniform(policy, batch).value, batch.log_reward.square().mean())


def test_uniform_prior_on_a_tree_is_trajectory_balance_up_to_a_constant():
    env = Sets(2, 1, stop=True)
    env.tree = True
    log_reward = diamond_log_reward
    batch = walk(env, [[2], [0, 2], [1, 2]], log_reward)
    prior = TabularPolicy(env, 2)
    # Three equally likely trajectories: a constant log-probability of -log 3.
    policy = TabularPolicy(env, 2).solve(exact_flows(env, log_reward))
    close(TrajectoryBalance()(policy, batch).value, 0.0, 1e-20)
    policy.log_z.bias.data -= math.log(3)
    close(TrajectoryBalance(relative=True, prior=prior)(policy, batch).value, 0.0, 1e-20)


@pytest.mark.parametrize("cls", [DetailedBalance, SubTrajectoryBalance, TrajectoryBalance, VarGrad])
def test_relative_objectives_ask_for_their_prior(cls):
    objective = cls(relative=True)
    with pytest.raises(ValueError, match="no prior sampler"):
        objective(diamond_policy(), diamond_batch())
    close(
        replace(objective, prior=diamond_policy())
        .loss(evaluate(diamond_policy(), diamond_batch(), objective.needs), diamond_batch())
        .weight
        > 0,
        True,
    )
    with pytest.raises(ValueError, match="relative=True"):
        cls(prior=diamond_policy())


def test_a_condition_free_batch_is_enough():
    """The helpers build batches whose terminal states are what the paths say."""
    batch = diamond_batch()
    assert set_number(batch.terminal).tolist() == [0, 1, 2, 3, 3]
    assert batch.condition.encoding.shape == (5, Conditions().encoding_size)
    assert diamond().enumerable
