import math

import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.denoising import brownian, flow, time_grid
from gflow.envs.denoising.energies import EnergyOracle, GaussianMixture, ManyWell
from gflow.envs.grids import HyperGrid
from gflow.mdp import evaluate
from gflow.policies import MLPPolicy
from gflow.policies.denoiser import DenoiserPolicy, TimeMLP
from gflow.sampling import LocalSearch, OnPolicy, Scorer
from gflow.sampling.langevin import LangevinSearch, chains_at, langevin_step
from gflow.sampling.local_search import log_ratio, propose
from gflow.scalarize import log_linear
from tests.sampling.records import same_batches

TARGET = GaussianMixture(torch.tensor([[1.0, -2.0]], dtype=torch.float64), 0.7)


def parts(env, energy, n=8, dtype=torch.float64):
    size = energy.dim
    policy = DenoiserPolicy(env, TimeMLP(size, size)).to(dtype)
    score = Scorer(env, EnergyOracle(energy, env), log_linear)
    return policy, score, OnPolicy(policy, Conditions(), score, n, 0, dtype=dtype)


def search(energy=TARGET, **options):
    env = brownian((energy.dim,), 6, 2.0)
    policy, score, fresh = parts(env, energy)
    settings = {"every": 3, "chains": 16, "steps": 40, "burn_in": 20} | options
    return LangevinSearch(fresh, policy, score, energy.log_density, 4, 5, **settings)


def test_the_target_is_invariant():
    """Chains that start as exact samples stay so, whatever the step size."""
    n = 20_000
    source = torch.Generator().manual_seed(0)
    chains = chains_at(TARGET.sample(n, source), TARGET.log_density)
    for size in (0.05, 0.4, 1.0):
        rejected = 0
        for _ in range(5):
            chains, moved = langevin_step(chains, TARGET.log_density, size, source)
            rejected += int((~moved).sum())
        # Steps this long are refused often, and it is refusing that keeps the target.
        assert rejected > 0
        spread = 4 * 0.7 / math.sqrt(n)
        assert ((chains.points.mean(0) - TARGET.means[0]).abs() < spread).all()
        assert ((chains.points.std(0) - 0.7).abs() < spread).all()
    again = chains_at(chains.points, TARGET.log_density)
    assert torch.equal(chains.log_reward, again.log_reward)
    assert torch.equal(chains.gradient, again.gradient)


def test_chains_reach_the_target_from_elsewhere():
    source = torch.Generator().manual_seed(1)
    chains = chains_at(torch.zeros(2000, 2, dtype=torch.float64) + 4, TARGET.log_density)
    for _ in range(150):
        chains, _ = langevin_step(chains, TARGET.log_density, 0.1, source)
    assert ((chains.points.mean(0) - TARGET.means[0]).abs() < 0.08).all()


def test_batches_hold_fresh_and_found_trajectories():
    strategy = search()
    batch = strategy()
    assert batch.n == 13
    assert torch.allclose(batch.log_reward, TARGET.log_density(batch.terminal.data))
    evaluation = evaluate(strategy.policy, batch, frozenset({"log_pb"}))
    assert torch.isfinite(evaluation.log_pf).all() and torch.isfinite(evaluation.log_pb).all()
    # What the chains found lies in the target, where the untrained sampler seldom goes.
    assert batch.log_reward[8:].mean() > batch.log_reward[:8].mean() + 2
    searched = len(strategy.found.points)
    assert searched == 8 + 2 * 16
    strategy(), strategy()
    assert len(strategy.found.points) == searched
    strategy()
    assert len(strategy.found.points) == 2 * searched


def test_better_points_come_more_often_and_old_ones_leave():
    strategy = search(capacity=50)
    strategy(), strategy(), strategy(), strategy()
    found = strategy.found
    assert len(found.points) == len(found.log_reward) == 50
    row = found.log_reward.argmax()
    draws = found.draw(5000, torch.Generator().manual_seed(0))
    best = (draws == found.points[row]).all(1).double().mean()
    weights = 1 / (0.5 + torch.arange(50).double())
    assert abs(best - weights[0] / weights.sum()) < 0.03


def test_resumed_search_goes_on_exactly():
    first, second = search(), search()
    for _ in range(2):
        first()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        assert same_batches(first(), second())


def test_what_is_refused():
    grid = HyperGrid(2, 4)
    with pytest.raises(ValueError, match="states of HyperGrid are none"):
        LangevinSearch(None, MLPPolicy(grid), None, None, 0, 4)
    with pytest.raises(ValueError, match="burn_in < steps"):
        search(steps=5, burn_in=5)


@pytest.mark.parametrize("accept", ["greedy", "metropolis"])
@pytest.mark.parametrize(
    "env", [brownian((2,), 6, 2.0), flow((2,), time_grid(6))], ids=["brownian", "flow"]
)
def test_local_search_back_and_forth_works_on_points_too(env, accept):
    policy, score, fresh = parts(env, ManyWell(2))
    strategy = LocalSearch(fresh, policy, score, 0, rounds=2, steps=3, accept=accept)
    batch = strategy()
    assert batch.n == 24 and batch.clock is not None
    assert torch.isfinite(evaluate(policy, batch, frozenset({"log_pb"})).log_pb).all()
    first = fresh()
    move = propose(policy, first.terminal, first.condition, 3, torch.Generator().manual_seed(0))
    kept = env.max_steps - 3
    assert torch.equal(move.old.states[:, : kept + 1], move.new.states[:, : kept + 1])
    assert not torch.equal(move.old.states[:, kept + 1 :], move.new.states[:, kept + 1 :])
    # By hand: only the rebuilt steps count.
    new = score(move.new).log_reward
    delta = log_ratio(policy, move, first.log_reward, new, 3)
    by_hand = new - first.log_reward
    for batch, sign in ((move.old, 1), (move.new, -1)):
        e = evaluate(policy, batch, frozenset({"log_pb"}))
        by_hand = by_hand + sign * (e.log_pf - e.log_pb)[:, kept:].sum(1)
    assert torch.allclose(delta, by_hand)
