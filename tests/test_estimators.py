import math
import warnings

import pytest
import torch
from scipy import stats

from gflow.conditions import Conditions
from gflow.envs.grids import HyperGrid
from gflow.envs.sequences import PrependAppendSequences
from gflow.envs.sets import Sets
from gflow.estimators import (
    anderson_darling,
    correlation,
    distinct,
    eubo,
    exact_flows,
    flow_residuals,
    jensen_shannon,
    kl_divergence,
    log_probability,
    log_weights,
    log_z_bounds,
    modes_found,
    policy_log_pb,
    reward_test,
    target_trajectories,
    terminating_distribution,
    total_variation,
)
from gflow.mdp import evaluate
from gflow.objectives.balance import TrajectoryBalance
from gflow.pareto import top_k_diversity, top_k_reward
from gflow.policies import MLPPolicy
from gflow.sampling import rollout
from gflow.seeding import generator
from tests.diamond import (
    DiamondOracle,
    close,
    diamond,
    diamond_batch,
    diamond_log_reward,
    diamond_policy,
    distribution,
    set_number,
)
from tests.objectives.training import trainer
from tests.tabular import TabularPolicy

LOG_Z = math.log(10)
UNIFORM = torch.tensor([2.0, 1, 1, 2], dtype=torch.float64) / 6
TARGET = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
ONE = Conditions().sample(1, dtype=torch.float64)


def path_probabilities(policy):
    """Probabilities of the diamond's five trajectories by P_F, and by p* and P_B."""
    batch = diamond_batch()
    found = evaluate(policy, batch, frozenset({"log_pb"}))
    target = (batch.log_reward - LOG_Z + found.log_pb.sum(1)).exp()
    return found.log_pf.sum(1).exp().detach(), target.detach()


def random_policy(env, base, seed=0, **settings):
    policy = TabularPolicy(env, base, **settings)
    for parameter in (policy.logits, policy.back, policy.flow):
        torch.nn.init.normal_(parameter, generator=generator(seed))
    return policy


# Exact distributions and flows


def test_exact_distribution_of_the_uniform_diamond():
    close(distribution(diamond_policy()), UNIFORM)
    close(distribution(diamond_policy(solved=True)), TARGET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_distributions_sum_to_one(dtype):
    policy = MLPPolicy(HyperGrid(3, 5), (16,), seed=1).to(dtype)
    found = terminating_distribution(policy, Conditions().sample(1, dtype=dtype))
    assert found.states.n == 125
    close(found.probability.sum(), 1.0)


def test_exact_distribution_is_the_frequency_of_samples():
    policy = random_policy(diamond(), 2)
    n = 40_000
    batch = rollout(
        policy, diamond().initial(n), Conditions().sample(n, dtype=torch.float64), generator(0)
    )
    counts = set_number(batch.terminal).bincount(minlength=4) / n
    close(distribution(policy), counts, 0.01)


def test_exact_flows_of_the_diamond():
    flows = exact_flows(diamond(), diamond_log_reward)
    going = ~flows.states.done
    flow = torch.zeros(4, dtype=torch.float64)
    flow[set_number(flows.states.rows(going))] = flows.log_flow[going].exp()
    close(flow, torch.tensor([10.0, 4, 5, 4]))
    edges = sorted(round(p, 6) for p in flows.log_pf.exp().tolist())
    assert edges == [0.1, 0.4, 0.4, 0.5, 0.5, 0.5, 0.6, 1.0]


def test_any_backward_policy_gives_the_same_target_by_another_flow():
    even = exact_flows(diamond(), diamond_log_reward)
    policy = random_policy(diamond(), 2, backward="learned")
    skewed = exact_flows(diamond(), diamond_log_reward, policy_log_pb(policy, ONE))
    close(skewed.log_flow[0], LOG_Z)
    assert (skewed.log_flow - even.log_flow).abs().max() > 0.05
    close(distribution(policy.solve(skewed)), TARGET)
    close(flow_residuals(policy, ONE, diamond_log_reward), torch.zeros(8), 1e-12)


def test_flow_residuals_of_the_uniform_diamond():
    residuals = flow_residuals(diamond_policy(), ONE, diamond_log_reward)
    expected = [-1.791759, -1.386294, -1.386294, -1.098612, -1.098612, -1.098612, 0.0, 0.0]
    close(residuals.sort().values, torch.tensor(expected, dtype=torch.float64))
    close(
        flow_residuals(diamond_policy(solved=True), ONE, diamond_log_reward), torch.zeros(8), 1e-12
    )


def test_flow_residuals_need_a_flow():
    with pytest.raises(ValueError, match="flow=True"):
        flow_residuals(MLPPolicy(diamond(), (8,)), ONE, diamond_log_reward)


def test_unending_environments_are_refused():
    env = HyperGrid(2, 3)
    policy = MLPPolicy(env, (8,)).double()
    env.max_steps = 3
    with pytest.raises(ValueError, match="unfinished states after its 3 steps"):
        terminating_distribution(policy, ONE)


def test_spaces_that_are_too_large_are_refused():
    env = HyperGrid(12, 8)
    with pytest.raises(ValueError, match="HyperGrid is too large for an exact distribution"):
        terminating_distribution(MLPPolicy(env, (8,)).double(), ONE)
    with pytest.raises(ValueError, match="HyperGrid is too large for an exact flow"):
        exact_flows(env, diamond_log_reward)


# Distances


def test_distances_and_their_conventions():
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    close(total_variation(p, q), 0.5)
    close(kl_divergence(p, q), math.log(2))
    assert kl_divergence(q, p) == torch.inf
    # Against the average (3/8, 3/8, 1/4).
    close(jensen_shannon(p, q), 0.5 * math.log(4 / 3) + 0.5 * (0.5 * math.log(4 / 3)))
    close(jensen_shannon(p, q), jensen_shannon(q, p))
    apart = torch.eye(2, dtype=torch.float64)
    close(jensen_shannon(*apart), math.log(2))
    close(total_variation(*apart), 1.0)
    assert total_variation(p, p) == kl_divergence(p, p) == jensen_shannon(p, p) == 0


# log Z


def test_importance_weights_of_the_diamond_average_to_z():
    policy = diamond_policy()
    log_w, (sampled, target) = log_weights(policy, diamond_batch()), path_probabilities(policy)
    close(sampled, torch.tensor([2.0, 1, 1, 1, 1]) / 6)
    close((sampled * log_w.exp()).sum(), 10.0)
    close((sampled * log_w).sum(), 2.090386)
    close((target * log_w).sum(), 2.467917)
    # The gap of the ELBO is KL(P_F || p* P_B).
    close(LOG_Z - (sampled * log_w).sum(), kl_divergence(sampled, target))


def test_bounds_from_samples():
    policy, env, n = diamond_policy(), diamond(), 40_000
    condition = Conditions().sample(n, dtype=torch.float64)
    batch = rollout(policy, env.initial(n), condition, generator(0))
    batch.log_reward = diamond_log_reward(batch.terminal)
    bounds = log_z_bounds(policy, batch)
    close(bounds.elbo, 2.090386, 0.01)
    close(bounds.log_z, LOG_Z, 0.01)
    assert bounds.elbo < bounds.log_z < LOG_Z + 0.01
    assert 0.6 * n < bounds.effective_sample_size < n
    every = env.all_terminal_states()
    exact = target_trajectories(policy, every, diamond_log_reward(every), ONE, n, generator(1))
    close(set_number(exact.terminal).bincount() / n, TARGET, 0.01)
    close(eubo(policy, exact), 2.467917, 0.01)


def test_all_bounds_meet_at_the_optimum_without_variance():
    policy, every = diamond_policy(solved=True), diamond().all_terminal_states()
    log_w = log_weights(policy, diamond_batch())
    close(log_w, torch.full((5,), LOG_Z, dtype=torch.float64), 1e-12)
    bounds = log_z_bounds(policy, diamond_batch())
    exact = target_trajectories(policy, every, diamond_log_reward(every), ONE, 50, generator(0))
    for value in (bounds.elbo, bounds.log_z, eubo(policy, exact)):
        close(value, LOG_Z, 1e-12)
    close(bounds.effective_sample_size, 5.0)


def test_the_elbo_rises_to_log_z_as_the_loss_falls():
    policy = diamond_policy()
    run = trainer(policy, TrajectoryBalance(), DiamondOracle())
    elbos = []
    for steps in (0, 20, 60, 300):
        run.run(steps)
        elbos.append(
            float((path_probabilities(policy)[0] * log_weights(policy, diamond_batch())).sum())
        )
    assert elbos == sorted(elbos)
    assert elbos[0] == pytest.approx(2.090386, abs=1e-5)
    assert LOG_Z - 1e-3 < elbos[-1] <= LOG_Z + 1e-12


def test_weights_need_rewards():
    batch = diamond_batch()
    batch.log_reward = None
    with pytest.raises(ValueError, match="log_reward is not set"):
        log_weights(diamond_policy(), batch)


# log p(x)


def test_log_probability_of_the_uniform_diamond_has_no_variance():
    policy, states = diamond_policy(), diamond().all_terminal_states()
    condition = Conditions().sample(4, dtype=torch.float64)
    for n_trajectories in (1, 7):
        found = log_probability(policy, states, condition, n_trajectories, generator(0))
        order = set_number(states)
        close(found.exp(), UNIFORM[order], 1e-12)


@pytest.mark.parametrize("n_trajectories", [1, 5])
def test_log_probability_is_unbiased_for_the_probability(n_trajectories):
    env = HyperGrid(2, 4)
    policy = random_policy(env, 4, backward="learned")
    truth = terminating_distribution(policy, ONE)
    n = 16
    row = torch.arange(n).repeat_interleave(20_000 // n_trajectories)
    condition = Conditions().sample(len(row), dtype=torch.float64)
    log_p = log_probability(
        policy, truth.states.rows(row), condition, n_trajectories, generator(0)
    ).view(n, -1)
    assert log_p.std(1).max() > 0.1
    close(log_p.exp().mean(1) / truth.probability, torch.ones(n), 0.06)
    assert (log_p.mean(1) < truth.probability.log() + 1e-3).all()


def test_log_probability_is_exact_on_trees():
    env = Sets(3, 1)
    policy = MLPPolicy(env, (8,)).double()
    truth = terminating_distribution(policy, ONE)
    condition = Conditions().sample(3, dtype=torch.float64)
    found = log_probability(policy, truth.states, condition, 1, generator(0))
    close(found.exp(), truth.probability, 1e-12)


# Rewards


def test_correlations_agree_with_scipy():
    a = torch.tensor([1.0, 2, 2, 3, 5, -1, 2])
    b = torch.tensor([0.5, 0.1, 3, 3, 9, 0, 3])
    found = correlation(a, b)
    close(found.linear, stats.pearsonr(a, b).statistic)
    close(found.rank, stats.spearmanr(a, b).statistic)
    with pytest.raises(ValueError, match=r"\[7\] and \[3\]"):
        correlation(a, b[:3])


def test_a_perfect_sampler_correlates_perfectly_and_a_uniform_one_does_not():
    every = diamond().all_terminal_states()
    condition = Conditions().sample(4, dtype=torch.float64)

    def of(policy):
        return correlation(
            log_probability(policy, every, condition, 5, generator(0)), diamond_log_reward(every)
        )

    perfect, uniform = of(diamond_policy(solved=True)), of(diamond_policy())
    close(perfect.linear, 1.0)
    close(perfect.rank, 1.0)
    assert uniform.linear < 0.6 and uniform.rank < 0.6


def test_modes_are_distinct_objects_above_the_threshold():
    env = PrependAppendSequences("ab", 3)
    states = env.encode(["aab", "aab", "bbb", "aba", "aba"])
    rewards = torch.tensor([2.0, 2, 1, 3, 3])
    assert modes_found(states, rewards, 2.0) == 2
    assert modes_found(states, rewards, 0.0) == 3
    assert modes_found(states, rewards, 4.0) == 0
    first, member = distinct(states)
    assert sorted(first.tolist()) == [0, 2, 3]
    assert torch.equal(states.data[first][member], states.data)


def test_top_k_counts_distinct_objects_and_all_pairs():
    states = HyperGrid(1, 9).encode([(8,), (8,), (5,), (2,)])
    rewards = states.data[:, 0].double()
    first = distinct(states)[0]
    close(top_k_reward(rewards[first], 2), 6.5)
    apart = (rewards[first, None] - rewards[first]).abs()
    # Pairs (8, 5), (8, 2), (5, 2): dividing by n (n - 1) would give half of it.
    close(top_k_diversity(rewards[first], apart, 3), (3 + 6 + 3) / 3)
    close(top_k_diversity(torch.ones(4), torch.zeros(4, 4), 4), 0.0)


@pytest.mark.parametrize("ties", [False, True])
def test_anderson_darling_agrees_with_scipy(ties):
    stream = generator(0)
    a, b = torch.randn(60, generator=stream), 0.4 + torch.randn(37, generator=stream)
    if ties:
        a, b = a.round(), b.round()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = stats.anderson_ksamp([a.double().numpy(), b.double().numpy()]).statistic
    close(anderson_darling(a, b), expected)
    with pytest.raises(ValueError, match="not all the same"):
        anderson_darling(torch.ones(5), torch.ones(5))


def test_reward_test_tells_samplers_apart():
    rewards = torch.tensor([1.0, 2, 3, 4])
    n, stream = 1000, generator(0)

    def of(probability):
        row = torch.multinomial(probability, n, replacement=True, generator=stream)
        return reward_test(rewards[row], rewards, stream)

    right, wrong = of(TARGET), of(torch.full((4,), 0.25))
    close(right.target_mean, 3.0)
    close(right.mean, 3.0, 0.1)
    assert right.anderson_darling < 1 < wrong.anderson_darling
