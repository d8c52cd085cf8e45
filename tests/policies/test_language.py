"""Language models as policies: what is sampled is what is scored."""

import itertools
import math

import pytest
import torch

from gflow.conditions import PromptConditions
from gflow.envs.language import Completions, Prompt
from gflow.envs.language.arithmetic import letter_tokenizer, sums
from gflow.mdp import evaluate
from gflow.objectives.policy_gradient.aggregation import turns_of
from gflow.policies.language import LanguagePolicy
from gflow.sampling.rollout import Exploration, rollout
from tests.language_models import gpt2, llama, qwen, with_lora, word_tokenizer

ON_POLICY = Exploration()
NEEDS = frozenset({"log_pb", "log_z", "log_flow", "entropy"})
MODELS = {"llama": llama, "qwen": qwen, "gpt2": gpt2, "lora": lambda n: with_lora(llama(n))}


def make(model=llama, prompts=None, new=8, **settings):
    tokenizer = letter_tokenizer()
    reply = {k: settings.pop(k) for k in ("reply", "max_turns") if k in settings}
    env = Completions(tokenizer, prompts or sums(12), new, **reply)
    return LanguagePolicy(env, model(len(tokenizer)), flow=True, **settings)


def draw(policy, n=24, seed=0, exploration=ON_POLICY, dtype=torch.float32):
    env = policy.env
    condition = PromptConditions(len(env.prompts)).sample(
        n, torch.Generator().manual_seed(seed), dtype
    )
    return rollout(
        policy, env.begin(condition), condition, torch.Generator().manual_seed(seed),
        exploration=exploration, keep_log_pf=True,
    )  # fmt: skip


class ByState:
    """The same policy without its own ways to sample and score."""

    def __init__(self, policy):
        self.policy, self.env = policy, policy.env
        self.backward, self.log_z = policy.backward, policy.log_z

    def __call__(self, *arguments):
        return self.policy(*arguments)


@pytest.mark.parametrize("model", MODELS)
def test_scoring_finds_the_sampled_log_probabilities(model):
    policy = make(MODELS[model])
    batch = draw(policy, 80)
    assert len(batch.lengths.unique()) > 2
    found = evaluate(policy, batch, frozenset()).log_pf
    assert (found - batch.log_pf_old).abs().max() < 2e-5
    assert (found[~batch.valid] == 0).all() and (found[batch.valid] < 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_one_pass_over_rows_is_one_pass_over_all_prefixes(model):
    policy = make(MODELS[model])
    batch = draw(policy)
    rows, prefixes = evaluate(policy, batch, NEEDS), evaluate(ByState(policy), batch, NEEDS)
    for name in ("log_pf", "log_pb", "log_flow", "log_z", "entropy", "construction"):
        one, other = getattr(rows, name), getattr(prefixes, name)
        assert one.shape == other.shape and torch.allclose(one.float(), other.float(), atol=3e-5)


def test_sampling_with_the_cache_is_sampling_without():
    policy = make()
    batch = draw(policy)
    start = policy.env.begin(batch.condition)
    assert torch.equal(batch.states[:, 0], start.data)
    plain = rollout(
        ByState(policy), start, batch.condition, torch.Generator().manual_seed(0), keep_log_pf=True
    )
    # Noise is drawn in blocks there, so only the first token is drawn from equal noise.
    assert torch.equal(batch.actions[:, 0], plain.actions[:, 0])
    assert torch.allclose(batch.log_pf_old[:, 0], plain.log_pf_old[:, 0], atol=1e-5)


def test_samples_follow_the_exact_distribution():
    tokenizer = letter_tokenizer("ab")
    env = Completions(tokenizer, [Prompt("ab")], 2)
    policy = LanguagePolicy(env, llama(len(tokenizer)))
    rows = [list(r) for r in itertools.product(range(4), repeat=2)]
    rows = [r for r in rows if r[0] != env.end] + [[env.end, -1]]
    data = torch.cat([env.initial(len(rows)).data[:, :2], torch.tensor(rows)], 1)
    listed = env.history(data, PromptConditions(1).sample(len(rows)))
    log_p = evaluate(policy, listed, frozenset()).log_pf.sum(1)
    assert math.isclose(log_p.exp().sum().item(), 1, abs_tol=1e-6)
    batch = draw(policy, 8000)
    ends = batch.terminal.data[:, 2:]
    counts = (ends[:, None] == data[None, :, 2:]).all(-1).sum(0)
    assert int(counts.sum()) == 8000
    spread = (counts / 8000 - log_p.exp()).abs().sum() / 2
    # Expected distance of a sample of this size from its own distribution.
    expected = (log_p.exp() * (1 - log_p.exp()) / 8000 * 2 / math.pi).sqrt().sum() / 2
    assert spread < 2 * expected


def test_explored_tokens_carry_the_probability_that_drew_them():
    policy = make()
    batch = draw(policy, exploration=Exploration(0.3, 1.7))
    logits = []
    with torch.no_grad():
        for t in range(batch.valid.shape[1]):
            states = policy.env.initial(24)._replace(data=batch.states[:, t])
            logits.append(policy(states, batch.condition, frozenset()).forward.logits)
    log_p = (torch.stack(logits, 1) / 1.7).log_softmax(-1)
    log_p = log_p.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    mixed = (0.7 * log_p.exp() + 0.3 / policy.env.vocabulary).log()
    assert torch.allclose(batch.log_pf_old, torch.where(batch.valid, mixed, 0.0), atol=3e-5)


def test_rows_do_not_depend_on_their_batch():
    policy = make()
    batch = draw(policy)
    whole = evaluate(policy, batch, NEEDS)
    index = torch.tensor([20, 3, 7])
    part = evaluate(policy, batch.rows(index), NEEDS)
    assert torch.allclose(part.log_pf, whole.log_pf[index], atol=1e-5)
    assert torch.allclose(part.log_flow, whole.log_flow[index], atol=1e-4)


def test_bfloat16_networks_are_scored_in_float32():
    policy = make()
    policy.model.to(torch.bfloat16)
    batch = draw(policy)
    found = evaluate(policy, batch, frozenset({"entropy"}))
    assert found.log_pf.dtype == found.entropy.dtype == torch.float32
    assert (found.log_pf - batch.log_pf_old).abs().max() < 0.2


def test_float64_stays_float64():
    policy = make(lambda n: llama(n, dtype=torch.float64))
    batch = draw(policy, dtype=torch.float64)
    assert batch.log_pf_old.dtype == torch.float64
    found = evaluate(policy, batch, frozenset()).log_pf
    assert (found - batch.log_pf_old).abs().max() < 1e-12


def test_dropout_stays_off():
    policy = make(gpt2).train()
    batch = draw(policy)
    one, other = (evaluate(policy, batch, frozenset()).log_pf for _ in range(2))
    assert torch.equal(one, other)


def test_gradients_reach_the_adapters_and_only_those():
    policy = make(MODELS["lora"])
    evaluate(policy, draw(policy), frozenset()).log_pf.sum().backward()
    named = dict(policy.model.named_parameters())
    assert all((w.grad is not None) == ("lora" in name) for name, w in named.items())


def test_the_reference_is_the_model_without_its_adapters():
    policy, plain = make(MODELS["lora"]), make(llama)
    batch = draw(policy)
    with policy.reference():
        found = evaluate(policy, batch, frozenset()).log_pf
    assert torch.equal(found, evaluate(plain, batch, frozenset()).log_pf)
    again = evaluate(policy, batch, frozenset()).log_pf
    assert (again - batch.log_pf_old).abs().max() < 2e-5
    assert (again - found).abs().max() > 0.1
    assert any(w.requires_grad for w in policy.model.parameters())


def test_another_model_may_be_the_reference():
    policy = make(reference=llama(len(letter_tokenizer()), seed=1))
    other = make(lambda n: llama(n, seed=1))
    batch = draw(policy)
    with policy.reference():
        found = evaluate(policy, batch, frozenset()).log_pf
    assert torch.equal(found, evaluate(other, batch, frozenset()).log_pf)
    assert not any(w.requires_grad for w in policy.fixed.parameters())
    assert torch.equal(policy.model.lm_head.weight, make().model.lm_head.weight)


def test_bad_models_are_refused():
    tokenizer = letter_tokenizer()
    env = Completions(tokenizer, [Prompt("1+1="), Prompt("1" * 60)], 8)
    message = "prompt 1 has 60 tokens: with 8 new ones that is more than the model's context of 64"
    with pytest.raises(ValueError, match=message):
        LanguagePolicy(env, llama(len(tokenizer)))
    with pytest.raises(ValueError, match="tokenizer has 18 tokens and the model scores only 12"):
        make(lambda n: llama(12))
    with pytest.raises(ValueError, match="reference scores 30 tokens and the policy 18"):
        make(reference=llama(30))
    assert not hasattr(make(), "reference")
    plain = LanguagePolicy(Completions(tokenizer, [Prompt("1+1=")], 8), llama(len(tokenizer)))
    with pytest.raises(ValueError, match="flow=True"):
        evaluate(plain, draw(plain), NEEDS)


def test_checkpoints_of_adapters_leave_out_the_base():
    policy = make(MODELS["lora"])
    state = policy.state_dict()
    assert all("lora" in name or not name.startswith("model.") for name in state)
    assert {"flow_head.weight", "log_z.bias"} <= set(state)
    fresh = make(lambda n: with_lora(llama(n), seed=5))
    batch = draw(policy)
    fresh.load_state_dict(state)
    one, other = (evaluate(p, batch, NEEDS) for p in (policy, fresh))
    assert torch.equal(one.log_pf, other.log_pf) and torch.equal(one.log_flow, other.log_flow)
    whole = make()
    assert set(whole.state_dict()) == {name for name, _ in whole.named_parameters()}


def test_models_are_loaded_from_a_folder(tmp_path):
    tokenizer = word_tokenizer()
    llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prompts = [Prompt("the cat"), Prompt("a dog")]
    policy = LanguagePolicy.from_pretrained(tmp_path / "model", prompts, 6, lora=4)
    batch = draw(policy, 6)
    assert (evaluate(policy, batch, frozenset()).log_pf - batch.log_pf_old).abs().max() < 2e-5
    assert [c.prompt for c in policy.env.decode(policy.env.initial(2))] == ["the cat", "a dog"]
    with policy.reference():
        pass
    trained = [name for name, w in policy.model.named_parameters() if w.requires_grad]
    assert trained and all("lora" in name for name in trained)


def test_the_reference_must_use_the_same_tokenizer(tmp_path):
    tokenizer, other = word_tokenizer(), letter_tokenizer()
    for name, each in (("one", tokenizer), ("two", other)):
        llama(len(tokenizer)).save_pretrained(tmp_path / name)
        each.save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=r"tokenizer of the reference .*two.* is another"):
        LanguagePolicy.from_pretrained(
            tmp_path / "one", [Prompt("the cat")], 6, reference=tmp_path / "two"
        )
    policy = LanguagePolicy.from_pretrained(
        tmp_path / "one", [Prompt("the cat")], 6, reference=tmp_path / "one"
    )
    batch = draw(policy, 3)
    with policy.reference():
        found = evaluate(policy, batch, frozenset()).log_pf
    assert (found - batch.log_pf_old).abs().max() < 2e-5


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"gflow\[llm\]"):
        LanguagePolicy.from_pretrained("model", [Prompt("1")], 4)
    with pytest.raises(ImportError, match=r"gflow\[llm\]"):
        letter_tokenizer()


def adder(completions):
    """Answers every turn by the number of its letters, and speaks no more after long ones."""
    return [None if len(c.turns[-1]) > 6 else f"={len(c.turns[-1])} " for c in completions]


@pytest.mark.parametrize("model", MODELS)
def test_several_turns_are_scored_as_they_were_sampled(model):
    policy = make(MODELS[model], new=30, reply=adder, max_turns=4)
    env, batch = policy.env, draw(policy, 80)
    _, turns = turns_of(batch.valid & batch.stochastic)
    texts = env.decode(batch.terminal)
    assert turns.tolist() == [len(c.turns) for c in texts]
    assert {1, 2} <= set(turns.tolist()) <= {1, 2, 3, 4} and int(turns.max()) > 2
    own = batch.valid & batch.stochastic
    assert own.sum(1).tolist() == [c.n_tokens for c in texts]
    assert (batch.log_pf_old[~own] == 0).all() and (batch.log_pf_old[own] < 0).all()
    found = evaluate(policy, batch, NEEDS)
    assert (found.log_pf - batch.log_pf_old).abs().max() < 3e-5
    prefixes = evaluate(ByState(policy), batch, NEEDS)
    assert torch.allclose(found.log_pf, prefixes.log_pf, atol=3e-5)
    # Steps of the environment make the same rows.
    states = env.start(batch.condition.encoding[:, 0])
    for t in range(batch.valid.shape[1]):
        assert torch.equal(states.data, batch.states[:, t])
        states = env.step(states, batch.actions[:, t])
    assert torch.equal(states.data, batch.terminal.data) and states.done.all()
