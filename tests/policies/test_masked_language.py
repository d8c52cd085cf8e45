"""Masked diffusion models: unmasking steps, finished rows, and the exact distribution of both."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gflow.conditions import PromptConditions
from gflow.envs.language import Prompt
from gflow.envs.language.arithmetic import letter_tokenizer, sums
from gflow.envs.language.completions import EMPTY
from gflow.envs.language.masked import MaskedCompletions
from gflow.estimators.masked import count_masks
from gflow.mdp import States, Trajectories, evaluate
from gflow.objectives.balance import TrajectoryBalance
from gflow.policies.masked_language import MaskedLanguagePolicy, MaskedLikelihood
from gflow.sampling.rollout import Exploration, rollout
from tests.language_models import bert

F64 = torch.float64
PAIRS = torch.tensor([[0.4, 0.1], [0.2, 0.3]], dtype=F64)
END, MASK = 2, 3


class Bits:
    """A tokenizer of "0" and "1"."""

    eos_token_id, mask_token_id = END, MASK

    def __len__(self):
        return 4

    def encode(self, text, add_special_tokens=True):
        return [int(letter) for letter in text]

    def batch_decode(self, rows, skip_special_tokens=True):
        return ["".join(str(v) for v in row if v < END) for row in rows]


class Table(nn.Module):
    """The exact conditionals of a joint distribution over bits [2] * L, behind a prompt."""

    config = SimpleNamespace(vocab_size=4)

    def __init__(self, joint, prompt_width=1):
        super().__init__()
        self.width, length = prompt_width, joint.ndim
        self.table = torch.full((*[3] * length, length, 4), -torch.inf, dtype=F64)
        for seen in itertools.product((0, 1, None), repeat=length):
            left = joint[tuple(slice(None) if v is None else v for v in seen)]
            for axis, i in enumerate(i for i in range(length) if seen[i] is None):
                other = tuple(a for a in range(left.ndim) if a != axis)
                marginal = (left.sum(other) if other else left) / left.sum()
                self.table[tuple(2 if v is None else v for v in seen)][i, :2] = marginal.log()
        # What the network says of places that are shown must not matter.
        self.table[self.table.isinf().all(-1)] = 0.3

    def forward(self, input_ids, attention_mask):
        seen = input_ids[:, self.width :].clamp(max=2)
        prompt = torch.zeros(len(seen), self.width, 4, dtype=F64)
        return SimpleNamespace(logits=torch.cat([prompt, self.table[seen.unbind(1)]], 1))


def bits(joint, times):
    env = MaskedCompletions(Bits(), [Prompt("1")], joint.ndim, times)
    return MaskedLanguagePolicy(env, Table(joint))


def letters(length=6, times=4, model=bert, **settings):
    env = MaskedCompletions(letter_tokenizer(), sums(12), length, times)
    return MaskedLanguagePolicy(env, model(env.vocabulary), **settings)


def draw(policy, n=24, seed=0, dtype=torch.float32, exploration=None):
    env = policy.env
    noise = torch.Generator().manual_seed(seed)
    condition = PromptConditions(len(env.prompts)).sample(n, noise, dtype)
    return rollout(
        policy, env.begin(condition), condition, noise,
        exploration=exploration or Exploration(), keep_log_pf=True,
    )  # fmt: skip


def path(env, *rows):
    """A record of one path through the given rows of bits (None is masked)."""
    condition = PromptConditions(1).sample(1, None, F64)
    states = env.begin(condition)
    actions, undone, data = [], [], [states.data]
    for row in rows:
        action = torch.tensor([[4 if v is None else v for v in row]])
        action = torch.where(env.masked(states.data), action, 4)
        undone.append(env.backward_action(states, action))
        states = env.step(states, action)
        actions.append(action)
        data.append(states.data)
    valid = torch.ones(1, len(rows), dtype=torch.bool)
    parts = (torch.stack(x, 1) for x in (data, actions, undone))
    return Trajectories(*parts, valid, condition)


def exact_distribution(policy):
    """Probability of every finished row of bits, summed over all orders of unmasking."""
    env = policy.env
    length, condition = env.length, PromptConditions(1)
    found = {(EMPTY,) * length: torch.ones((), dtype=F64)}
    for step in range(env.max_steps):
        rows = list(found)
        states = env.begin(condition.sample(len(rows), None, F64))
        data = torch.cat([states.data[:, :1], torch.tensor(rows)], 1)
        states = States(data, torch.full((len(rows),), step), states.done)
        kernel = policy(states, condition.sample(len(rows), None, F64), frozenset({"log_pf"}))
        log_p = kernel.forward.each.log_probs().view(len(rows), length, 5)
        then = {}
        for i, row in enumerate(rows):
            for action in itertools.product((0, 1, 4), repeat=length):
                p = found[row] * log_p[i, range(length), action].sum().exp()
                if p > 0:
                    child = tuple(v if a == 4 else a for v, a in zip(row, action, strict=True))
                    then[child] = then.get(child, 0) + p
        found = then
    return found


def test_states_and_moves():
    env = bits(PAIRS, (1.0, 0.5, 0.0)).env
    batch = path(env, (0, None), (0, 1))
    assert batch.states[0].tolist() == [[-3, -1, -1], [-3, 0, -1], [-3, 0, 1]]
    assert batch.backward_actions[0].tolist() == [[1, 1], [0, 1]]
    one = States(batch.states[:, 1], torch.tensor([1]), torch.tensor([False]))
    end = batch.terminal
    assert env.forward_action(end, batch.backward_actions[:, 1]).tolist() == [[4, 1]]
    back = env.backstep(end, batch.backward_actions[:, 1])
    assert all(torch.equal(x, y) for x, y in zip(back, one, strict=True))
    rest = env.step(end, torch.zeros(1, 2, dtype=torch.int64))
    assert all(torch.equal(x, y) for x, y in zip(rest, end, strict=True))
    start = env.initial(1)
    again = env.backstep(start, torch.ones(1, 2, dtype=torch.int64))
    assert all(torch.equal(x, y) for x, y in zip(again, start, strict=True))
    tokens, attended = env.observe(one)
    assert tokens.tolist() == [[1, 0, MASK]] and attended.all()


def test_masks_of_places():
    env = bits(PAIRS, 2).env
    start = env.initial(1)
    assert env.forward_mask(start).tolist() == [[True, True, True, False, True]]
    last = States(torch.tensor([[-3, 0, -1]]), torch.tensor([1]), torch.tensor([False]))
    assert env.forward_mask(last).tolist() == [[False] * 4 + [True]]
    assert env.forward_mask(last, torch.tensor([4])).tolist() == [[True] * 3 + [False] * 2]
    done = States(torch.tensor([[-3, 0, 1]]), torch.tensor([2]), torch.tensor([True]))
    assert env.forward_mask(done).tolist() == [[False] * 4 + [True]]


def test_probabilities_of_steps():
    env = bits(PAIRS, (1.0, 0.8, 0.5, 0.0)).env
    assert torch.allclose(env.reveals(torch.arange(4)), torch.tensor([0.2, 0.375, 1, 1], dtype=F64))
    assert torch.allclose(env.remasks(torch.arange(4)), torch.tensor([1, 1, 0.6, 0.5], dtype=F64))


@pytest.mark.parametrize("times", [(0.9, 0.0), (1.0, 0.5), (1.0, 0.5, 0.5, 0.0), (1.0,), 0])
def test_times_fall_from_one_to_zero(times):
    with pytest.raises(ValueError, match="must fall from 1 to 0"):
        bits(PAIRS, times)


def test_one_token_at_a_time_balances_exactly():
    policy = bits(PAIRS, (1.0, 0.5, 0.0))
    batch = path(policy.env, (0, None), (0, 0))
    found = evaluate(policy, batch, frozenset({"log_pb"}))
    assert torch.allclose(found.log_pf, torch.tensor([[-2.0794415, -0.2231436]], dtype=F64))
    assert torch.allclose(found.log_pb, torch.tensor([[0, -1.3862944]], dtype=F64))
    assert math.isclose((found.log_pf - found.log_pb).sum(), math.log(0.4), abs_tol=1e-7)


def test_two_tokens_at_once_leave_the_factorisation_error():
    policy = bits(PAIRS, (1.0, 0.5, 0.0))
    batch = path(policy.env, (None, None), (0, 0))
    found = evaluate(policy, batch, frozenset({"log_pb"}))
    error = math.log(0.4) - (found.log_pf - found.log_pb).sum()
    assert math.isclose(error, 0.2876821, abs_tol=1e-7)


def test_trajectory_balance_reads_unmasking_steps():
    policy = bits(PAIRS, 64)
    batch = draw(policy, 64, dtype=F64)
    ends = batch.terminal.data[:, 1:]
    batch.log_reward = PAIRS[ends.unbind(1)].log()
    one_by_one = (~(batch.states[:, :, 1:] == EMPTY)).sum(-1).diff(dim=1).amax(1) == 1
    residual = TrajectoryBalance()(policy, batch.rows(one_by_one)).value
    assert int(one_by_one.sum()) > 40 and float(residual.detach()) < 1e-12


def test_the_exact_distribution_approaches_the_joint_and_samples_follow_it():
    joint = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    joint = joint / joint.sum()
    distances = []
    for times in (1, 2, 8, 32):
        policy = bits(joint, times)
        found = exact_distribution(policy)
        assert math.isclose(sum(found.values()), 1) and len(found) == 8
        distances.append(sum(abs(p - joint[row]) for row, p in found.items()).item() / 2)
        batch = draw(policy, 4000, dtype=F64)
        ends = [tuple(row) for row in batch.terminal.data[:, 1:].tolist()]
        share = {row: ends.count(row) / 4000 for row in found}
        assert sum(abs(share[row] - p) for row, p in found.items()) / 2 < 0.035
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.05 and distances[-1] < 0.01
    product = torch.einsum("i,j,k->ijk", joint.sum((1, 2)), joint.sum((0, 2)), joint.sum((0, 1)))
    alone = exact_distribution(bits(joint, 1))
    assert all(math.isclose(p, product[row], abs_tol=1e-12) for row, p in alone.items())


def test_steps_are_scored_as_they_were_sampled():
    for exploration in (Exploration(), Exploration(0.2, 1.5)):
        policy = letters()
        batch = draw(policy, exploration=exploration)
        assert batch.valid.shape == (24, 4) and batch.actions.shape == (24, 4, 6)
        assert not policy.env.masked(batch.terminal.data).any()
        assert (batch.terminal.data[:, -6:] != policy.env.mask).all()
        if exploration.epsilon == 0:
            found = evaluate(policy, batch, frozenset({"entropy"}))
            assert (found.log_pf - batch.log_pf_old).abs().max() < 1e-4
            assert (found.entropy[:, :2] > 0).all()


def test_words_end_with_their_first_end_token():
    env = MaskedCompletions(letter_tokenizer(), [Prompt("1+1=", 2)], 5, 2)
    done = env.completed(torch.zeros(1), ["(2)"])
    assert (done.data[0, -2:] == env.end).all()
    assert all(torch.equal(a, b) for a, b in zip(env.encode(env.decode(done)), done, strict=True))
    data = done.data.clone()
    data[0, -1] = env.tokenizer.encode("7")[0]
    (found,) = env.decode(done._replace(data=data))
    assert (found.text, found.ended, found.n_tokens) == ("(2)", True, 4)
    data[0, -2] = data[0, -1]
    (found,) = env.decode(done._replace(data=data))
    assert (found.text, found.ended, found.n_tokens) == ("(2)77", False, 5)


def test_a_mask_token_is_needed():
    tokenizer = letter_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="no mask token"):
        MaskedCompletions(tokenizer, [Prompt("1")], 4, 2)
    assert MaskedCompletions(tokenizer, [Prompt("1")], 4, 2, mask=0).mask == 0


@pytest.mark.parametrize("estimator", ["elbo", "one_step"])
def test_finished_rows_are_scored_as_they_were_sampled(estimator):
    policy = MaskedLikelihood(letters(), estimator, nodes=3)
    batch = draw(policy)
    env = policy.env
    lengths = [c.n_tokens for c in env.decode(batch.terminal)]
    assert batch.stochastic.sum(1).tolist() == lengths and len(set(lengths)) > 2
    assert batch.valid.all() and not env.masked(batch.terminal.data).any()
    found = evaluate(policy, batch, frozenset()).log_pf
    assert (found - batch.log_pf_old).abs().max() < 1e-4
    assert (found[~batch.stochastic] == 0).all() and (found[batch.stochastic] <= 0).all()
    index = torch.tensor([20, 3, 7])
    part = evaluate(policy, batch.rows(index), frozenset()).log_pf
    assert torch.allclose(part, found[index], atol=1e-4)


def test_one_step_reads_each_token_from_the_row_without_any():
    policy = MaskedLikelihood(letters(), "one_step", prompt_mask=0.4)
    batch = draw(policy)
    env, inner = policy.env, policy.policy
    tokens, attended = env.observe(env.begin(batch.condition))
    width = env.prompt_width
    hidden = batch.draws[:, 0] < 0.4
    assert 0.2 < hidden.float().mean() < 0.6
    tokens[:, :width][hidden] = env.mask
    log_p = inner.log_probs(tokens, attended)[:, : batch.valid.shape[1]]
    expected = log_p.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    found = evaluate(policy, batch, frozenset()).log_pf
    assert torch.allclose(found, torch.where(batch.stochastic, expected, 0.0), atol=1e-5)


def test_the_estimate_is_the_sum_over_masked_rows():
    policy = MaskedLikelihood(bits(PAIRS, 8), "elbo", nodes=3, masks=4)
    batch = draw(policy, 5, dtype=F64)
    found = evaluate(policy, batch, frozenset()).log_pf.sum(1)
    t = torch.tensor(policy.times, dtype=F64)
    masks, weights = count_masks(batch.draws, batch.valid, t)
    for i, ends in enumerate(batch.terminal.data[:, 1:].tolist()):
        total = 0.0
        for m, (weight, share) in enumerate(zip(weights[i], policy.shares, strict=True)):
            seen = [2 if h else v for h, v in zip(masks[i, m].tolist(), ends, strict=True)]
            log_p = policy.policy.model.table[tuple(seen)].log_softmax(-1)
            inside = sum(log_p[j, v] for j, v in enumerate(ends) if seen[j] == 2)
            total += float(weight * share * inside)
        assert math.isclose(found[i], total, abs_tol=1e-9)


def test_every_count_of_masks_gives_the_bound_itself():
    joint = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    joint = joint / joint.sum()
    policy = MaskedLikelihood(bits(joint, 8), "elbo", nodes=0, masks=400)
    assert len(policy.times) == 1200
    batch = draw(policy, 8, dtype=F64)
    found = evaluate(policy, batch, frozenset()).log_pf.sum(1)
    exact = joint[batch.terminal.data[:, 1:].unbind(1)].log()
    assert torch.allclose(found, exact, atol=0.1)


def test_what_stands_behind_the_end_is_seen_but_adds_nothing():
    policy = MaskedLikelihood(letters(), "elbo", nodes=3)
    batch = draw(policy)
    env = policy.env
    cut = (~batch.stochastic).any(1).nonzero().squeeze(1)
    assert len(cut) > 2
    before = evaluate(policy, batch, frozenset()).log_pf
    # Other tokens at the last place, which is behind the end in these rows.
    batch.states[cut, -1, -1] = (batch.states[cut, -1, -1] + 2) % 2 + 4
    after = evaluate(policy, batch, frozenset()).log_pf
    assert env.up_to_end(batch.terminal.data)[cut, -1].eq(EMPTY).all()
    assert (after[cut] - before[cut]).abs().max() > 1e-3
    assert (after[~batch.stochastic] == 0).all()


def test_ratios_on_the_same_draws_are_free_of_mask_noise():
    policy = MaskedLikelihood(letters(), "elbo")
    batch = draw(policy)
    other = draw(policy, seed=0)
    assert torch.equal(batch.draws, other.draws)
    redrawn = batch.rows(torch.arange(24))
    redrawn.draws = torch.rand(batch.draws.shape, generator=torch.Generator().manual_seed(9))
    noise = evaluate(policy, redrawn, frozenset()).log_pf.sum(1) - batch.log_pf_old.sum(1)
    assert noise.abs().mean() > 0.1


def test_the_reference_of_finished_rows():
    reference = bert(len(letter_tokenizer()), seed=1)
    policy = MaskedLikelihood(letters(reference=reference), "elbo")
    other = MaskedLikelihood(letters(model=lambda n: bert(n, seed=1)), "elbo")
    batch = draw(policy)
    with policy.reference():
        found = evaluate(policy, batch, frozenset()).log_pf
    assert torch.equal(found, evaluate(other, batch, frozenset()).log_pf)
    assert (evaluate(policy, batch, frozenset()).log_pf - batch.log_pf_old).abs().max() < 1e-4


def test_gradients_are_finite_and_reach_the_network():
    for estimator in ("elbo", "one_step"):
        policy = MaskedLikelihood(letters(), estimator)
        evaluate(policy, draw(policy), frozenset()).log_pf.sum().backward()
        grads = [w.grad for w in policy.policy.model.parameters() if w.grad is not None]
        assert grads and all(torch.isfinite(g).all() for g in grads)
        assert sum(float(g.abs().sum()) for g in grads) > 0


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="unknown estimator 'exact'"):
        MaskedLikelihood(letters(), "exact")
    with pytest.raises(ValueError, match="needs nodes >= 0, masks >= 1"):
        MaskedLikelihood(letters(), nodes=-1)
    with pytest.raises(ValueError, match="log-probabilities only"):
        policy = MaskedLikelihood(letters())
        evaluate(policy, draw(policy), frozenset({"log_pb"}))
    with pytest.raises(ValueError, match="the model scores only 12"):
        letters(model=lambda n: bert(12))
