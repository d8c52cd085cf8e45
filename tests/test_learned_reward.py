import pytest
import torch

from gflow.conditions import Conditions
from gflow.envs.sets import Sets
from gflow.learned_reward import LearnedReward
from gflow.mdp import Reward
from gflow.objectives.catalog import METHODS
from gflow.policies import Anchored, MLPPolicy
from gflow.sampling import OnPolicy, Scorer
from gflow.seeding import generator
from gflow.training import Trainer, TrainerSettings

ENV = Sets(8, 4, stop=False)
REWARDS = (Reward("first"), Reward("even"), Reward("late", low=-5.0, high=5.0))


def true_rewards(states):
    """Whether item 0 is in, the share of even items, and the mean number of the items."""
    data = states.data.double()
    late = data @ torch.arange(8.0).double() / 4
    return torch.stack([data[:, 0], data[:, ::2].mean(1), late], 1)


def labelled(n=40, seed=0):
    every = ENV.all_terminal_states()
    chosen = torch.randperm(every.n, generator=generator(seed))
    return every.rows(chosen[:n]), every.rows(chosen[n:])


def test_it_predicts_objects_it_has_not_seen():
    known, other = labelled(50)
    oracle = LearnedReward(ENV, REWARDS, known, true_rewards(known))
    error = (oracle(other) - true_rewards(other)).square().mean(0).sqrt()
    assert (error < 0.2 * true_rewards(other).std(0)).all(), error
    assert oracle.rewards[2].low == true_rewards(known)[:, 2].min()


def test_equal_inputs_get_the_mean_of_their_labels():
    one = ENV.all_terminal_states().rows(torch.zeros(4, dtype=torch.int64))
    labels = torch.tensor([[0.0, 1, 2], [1, 1, 4], [1, 0, 0], [0, 0, 2]]).double()
    found = LearnedReward(ENV, REWARDS, one, labels)(one)
    assert torch.allclose(found, labels.mean(0).expand(4, -1), atol=1e-3)


def test_predictions_stay_in_the_range_of_the_labels():
    known, other = labelled(6)
    labels = true_rewards(known)
    found = LearnedReward(ENV, REWARDS, known, labels)(other)
    assert (found <= labels.amax(0)).all() and (found >= labels.amin(0)).all()


def test_multi_objective_grpo_on_learned_rewards_raises_the_true_ones():
    known, _ = labelled()
    oracle = LearnedReward(ENV, REWARDS, known, true_rewards(known))
    policy = Anchored(MLPPolicy(ENV, (32,), seed=0).double())
    score = Scorer(ENV, oracle, scalarization=None)
    sampler = OnPolicy(policy, Conditions(3), score, 32, 0, keep_log_pf=True, dtype=torch.float64)

    def mean():
        return true_rewards(sampler().terminal).mean(0)

    before = mean()
    settings = TrainerSettings(learning_rate=1e-2, log_every=0)
    Trainer(policy, METHODS["mo_grpo"].objective, sampler, settings).run(40)
    assert mean().sum() > before.sum() + 0.3


@pytest.mark.parametrize("labels, message", [
    (torch.zeros(3, 3), r"must be \[40, 3\], not \[3, 3\]"),
    (torch.full((40, 3), torch.nan), "the labels of object 0 are not finite"),
])  # fmt: skip
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        LearnedReward(ENV, REWARDS, labelled()[0], labels)
