import math

import pytest
import torch

from gflow.pareto import modes, top_k_diversity, top_k_reward

REWARDS = torch.tensor([0.1, 0.9, 0.5, 0.7])
DISTANCES = torch.tensor(
    [[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 4.0, 5.0], [2.0, 4.0, 0.0, 6.0], [3.0, 5.0, 6.0, 0.0]]
)


def test_top_k_takes_the_largest():
    assert top_k_reward(REWARDS, 2).item() == pytest.approx(0.8)
    mask = torch.tensor([True, False, True, True])
    assert top_k_reward(REWARDS, 2, mask).item() == pytest.approx(0.6)
    batch = torch.stack([REWARDS, REWARDS * torch.tensor([1.0, math.nan, 1.0, 1.0])])
    assert top_k_reward(batch, 3).tolist() == pytest.approx([0.7, 1.3 / 3])
    low = torch.tensor([-math.inf, math.nan, 1.0])
    assert top_k_reward(low, 2).item() == -math.inf


def test_top_k_reward_has_a_gradient():
    rewards = REWARDS.clone().requires_grad_()
    top_k_reward(rewards, 2).backward()
    assert rewards.grad.tolist() == [0, 0.5, 0, 0.5]


def test_top_k_diversity():
    assert top_k_diversity(REWARDS, DISTANCES, 2).item() == 5
    assert top_k_diversity(REWARDS, DISTANCES, 3).item() == 5
    assert top_k_diversity(REWARDS, DISTANCES, 4).item() == 3.5
    edits = top_k_diversity(REWARDS, DISTANCES.long(), 4)
    assert edits.item() == 3.5 and edits.dtype is REWARDS.dtype
    batch = top_k_diversity(torch.stack([REWARDS, -REWARDS]), DISTANCES.expand(2, 4, 4), 2)
    assert batch.tolist() == [5, 2]


def test_modes_are_unlike_every_better_one():
    similarity = torch.eye(4)
    similarity[1, 3] = similarity[3, 1] = 0.8
    similarity[2, 3] = similarity[3, 2] = 0.9
    yes, no = True, False
    assert modes(REWARDS, similarity).tolist() == [yes, yes, yes, no]
    assert modes(REWARDS, similarity, k=2).tolist() == [no, yes, yes, no]
    assert modes(REWARDS, similarity, threshold=0.85).tolist() == [yes, yes, no, yes]
    rewards = REWARDS.clone()
    rewards[1] = math.nan
    assert modes(rewards, similarity).tolist() == [yes, no, no, yes]
    assert modes(REWARDS, similarity, REWARDS < 0.8).tolist() == [yes, no, no, yes]
    assert modes(rewards[:0], similarity[:0, :0]).tolist() == []


def test_modes_of_many_sets_are_those_of_each():
    random = torch.Generator().manual_seed(0)
    rewards = torch.rand(3, 2, 15, generator=random).round(decimals=1)
    similarity = torch.rand(3, 2, 15, 15, generator=random)
    similarity, mask = (similarity + similarity.mT) / 2, rewards > 0.2
    for k in (None, 3):
        together = modes(rewards, similarity, mask, threshold=0.6, k=k)
        for i in range(3):
            for j in range(2):
                kept = []
                for a in rewards[i, j].argsort(descending=True, stable=True).tolist():
                    alike = any(similarity[i, j, a, b] >= 0.6 for b in kept)
                    if mask[i, j, a] and not alike and len(kept) != k:
                        kept.append(a)
                assert together[i, j].nonzero().flatten().tolist() == sorted(kept)
        assert 0 < together.sum() < mask.sum()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: top_k_reward(REWARDS), ValueError, "k is 10 but a set has only 4"),
        (lambda: top_k_reward(REWARDS, 0), ValueError, "k must be at least 1"),
        (lambda: top_k_reward(REWARDS.long()), TypeError, "rewards must be a floating tensor"),
        (lambda: top_k_reward(REWARDS, 1, torch.ones(4)), TypeError, "bool tensor"),
        (lambda: top_k_diversity(REWARDS, DISTANCES, 1), ValueError, "at least 2"),
        (lambda: top_k_diversity(REWARDS, DISTANCES[:2], 2), ValueError, "distances must have"),
        (lambda: modes(REWARDS, DISTANCES, k=0), ValueError, "k must be at least 1, not 0"),
        (lambda: modes([0.5], DISTANCES), TypeError, "rewards must be a floating tensor"),
        (lambda: modes(DISTANCES, DISTANCES), ValueError, r"must have shape \[4, 4, 4\]"),
        (lambda: modes(REWARDS, DISTANCES.to("meta")), ValueError, "similarity is on meta"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
