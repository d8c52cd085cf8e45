"""Completions of prompts: states, replies, words and rewards."""

import itertools

import pytest
import torch

from gflow.conditions import PromptConditions
from gflow.envs.language import Completion, Completions, Prompt
from gflow.envs.language.arithmetic import (
    arithmetic_rewards,
    demonstrations,
    letter_tokenizer,
    sums,
)
from gflow.envs.language.rewards import RewardFunctionError, TextReward, TextRewards
from gflow.mdp import States
from tests.language_models import word_tokenizer


def letters(**settings):
    prompts = settings.pop("prompts", [Prompt("1+1=", 2), Prompt("10+2=", 12)])
    return Completions(letter_tokenizer(), prompts, **{"max_new_tokens": 4, **settings})


def write(env, prompt, *tokens):
    """The states on the way when `tokens` are written behind one prompt."""
    states = [env.start(torch.tensor([prompt]))]
    for token in tokens:
        states.append(env.step(states[-1], torch.tensor([token])))
    return states


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_prompts_are_padded_on_the_left():
    env = letters()
    assert env.prompt_width == 5 and env.state_shape == (9,)
    start = env.start(torch.tensor([0, 1]))
    tokens, attended = env.observe(start)
    assert attended.tolist() == [[False] + [True] * 4 + [False] * 4, [True] * 5 + [False] * 4]
    assert tokens[1, :5].tolist() == env.tokenizer.encode("10+2=")
    assert tokens[0, 1:5].tolist() == env.tokenizer.encode("1+1=")
    assert not start.done.any() and not start.step.any()


def test_initial_states_go_through_the_prompts():
    env = letters()
    assert same(env.initial(3), env.start(torch.tensor([0, 1, 0])))


def test_the_end_token_or_the_last_place_finishes_a_row():
    env = letters()
    two, end = env.tokenizer.encode("2")[0], env.end
    ended = write(env, 0, two, end, two)
    assert [bool(s.done) for s in ended] == [False, False, True, True]
    assert same(ended[2], ended[3]) and int(ended[2].step) == 2
    full = write(env, 0, two, two, two, two)
    assert [bool(s.done) for s in full] == [False] * 4 + [True]
    assert env.decode(ended[2]) == [Completion("1+1=", "2", ("2",), True, 2, 2)]
    assert env.decode(full[4]) == [Completion("1+1=", "2222", ("2222",), False, 4, 2)]
    assert env.decode(full[0]) == [Completion("1+1=", "", (), False, 0, 2)]


def test_moves_back_undo_moves_on_every_short_row():
    tokenizer = letter_tokenizer("ab")
    env = Completions(tokenizer, [Prompt("a"), Prompt("ba")], 3)
    for prompt, row in itertools.product((0, 1), itertools.product(range(4), repeat=3)):
        states = write(env, prompt, *row)
        for token, before, after in zip(row, states, states[1:], strict=False):
            if bool(before.done):
                assert same(before, after)
                assert env.forward_mask(after).tolist() == [[False] * 3 + [True]]
                continue
            assert env.forward_mask(before).all()
            assert env.forward_action(after, torch.tensor([0])).tolist() == [token]
            back = env.backstep(after, torch.tensor([0]))
            assert same(back, before)
    start = env.initial(2)
    assert same(env.backstep(start, torch.zeros(2, dtype=torch.int64)), start)


def test_a_history_is_what_steps_make():
    env = letters()
    rows = [write(env, 0, 5, env.end), write(env, 1, 7, 8, 9, 4), write(env, 1, env.end)]
    data = torch.cat([states[-1].data for states in rows])
    condition = PromptConditions(2).make(torch.tensor([0, 1, 1]), torch.float32)
    batch = env.history(data, condition)
    assert batch.lengths.tolist() == [2, 4, 1] and batch.actions.shape == (3, 4)
    assert batch.actions[0, :2].tolist() == [5, env.end]
    assert batch.actions[1].tolist() == [7, 8, 9, 4]
    assert torch.equal(batch.stochastic, batch.valid)
    for i, row in enumerate(rows):
        for t in range(5):
            assert torch.equal(batch.states[i, t], row[min(t, len(row) - 1)].data[0])


def test_completed_texts():
    env = letters()
    states = env.completed(torch.tensor([1, 0]), ["12", "(2)"])
    assert [c.text for c in env.decode(states)] == ["12", "(2)"]
    assert states.step.tolist() == [3, 4] and states.done.all()
    assert same(env.encode(env.decode(states)), states)
    cut = write(env, 0, *env.tokenizer.encode("2222"))[-1]
    assert same(env.encode([list(c) for c in env.decode(cut)]), cut)
    assert env.encode([]).n == 0
    with pytest.raises(ValueError, match=r"object 0 completes another prompt: '7\+1='"):
        env.encode([Completion("7+1=", "8", ("8",), True, 2, 8)])
    with pytest.raises(ValueError, match="object 0 has several turns"):
        env.encode([Completion("1+1=", "2", ("2", ""), True, 2, 2)])
    with pytest.raises(ValueError, match="text 1 has 5 tokens, more than 4"):
        env.completed(torch.tensor([1, 0]), ["12", "1234"])


def adder(completions):
    """A tool that answers questions such as "1+2?" once."""
    answers = []
    for c in completions:
        question = c.turns[-1]
        answers.append(f" {eval(question[:-1])}=" if question.endswith("?") else None)
    return answers


def conversation(**settings):
    return letters(**{"max_new_tokens": 14, "reply": adder, "max_turns": 3, **settings})


def ask(env, prompt, *turns):
    """The states on the way; behind each turn one transition is the environment's."""
    states = [env.start(torch.tensor([prompt]))]
    for turn in turns:
        for token in (*env.tokenizer.encode(turn), env.end, 0):
            states.append(env.step(states[-1], torch.tensor([token])))
    return states


def test_replies_are_written_by_the_environment():
    env = conversation()
    states = ask(env, 0, "1+1?", "2")
    last = states[-1]
    assert [int(s.step) for s in states] == list(range(10)) and bool(last.done)
    assert not any(bool(s.done) for s in states[:-1])
    assert env.decode(last) == [Completion("1+1=", "1+1? 2=2", ("1+1?", "2"), True, 7, 2)]
    own = last.data[0] >= 0
    assert own.tolist() == [False] * 5 + [True] * 5 + [False] * 3 + [True] * 2 + [False] * 4
    asking = [i for i, s in enumerate(states) if bool(env.awaiting(s))]
    assert asking == [5, 8]
    for i in asking:
        mask = env.forward_mask(states[i])
        assert mask[0, -1] and not mask[0, :-1].any()
    for before, after in itertools.pairwise(states):
        assert same(env.backstep(after, torch.tensor([0])), before)
        redone = env.forward_action(after, torch.tensor([0]))
        assert same(env.step(before, redone), after)
    batch = env.history(last.data, PromptConditions(2).make(torch.tensor([0]), torch.float32))
    assert batch.valid.all() and batch.actions.shape == (1, 9)
    assert batch.stochastic.tolist() == [[True] * 5 + [False] + [True] * 2 + [False]]
    assert all(torch.equal(batch.states[0, t], s.data[0]) for t, s in enumerate(states))


def test_rows_are_answered_one_by_one():
    env = conversation()
    start = env.start(torch.tensor([0, 1, 0]))
    for place in range(4):
        token = torch.tensor([env.tokenizer.encode(t)[place] for t in ("1+1?", "1111", "2+2?")])
        start = env.step(start, token)
    asking = env.step(start, torch.full((3,), env.end))
    assert not asking.done.any() and env.awaiting(asking).all()
    ended = env.step(asking, torch.full((3,), env.end))
    assert ended.done.tolist() == [False, True, False]
    assert [c.text for c in env.decode(ended)] == ["1+1? 2=", "1111", "2+2? 4="]


def test_turns_and_room_are_limited():
    env = conversation(max_turns=1)
    assert bool(ask(env, 0, "1+1?")[-1].done)
    env = conversation(max_new_tokens=8)
    cut = ask(env, 0, "1+1?")[-1]
    assert bool(cut.done) and env.decode(cut)[0].text == "1+1?"
    env = conversation(max_new_tokens=9)
    assert not bool(ask(env, 0, "1+1?")[-1].done)


def test_a_failing_reply_function_is_named():
    env = conversation(reply=lambda completions: [])
    with pytest.raises(RuntimeError, match="reply function returned 0 replies to 1 turns"):
        ask(env, 0, "1+1?")
    with pytest.raises(RuntimeError, match="the reply function raised SyntaxError"):
        ask(conversation(), 0, "1+?")


def test_messages_become_a_prompt_by_the_chat_template():
    messages = [{"role": "user", "content": "the cat"}]
    env = Completions(word_tokenizer(), [Prompt(messages)], 4)
    assert env.decode(env.initial(1))[0].prompt == "user:the cat\nassistant:"


def test_bad_prompts_are_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        letters(prompts=[])
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        letters(prompts=[Prompt("1"), Prompt("")])
    with pytest.raises(ValueError, match="prompts 0 and 2 have the same words but other targets"):
        letters(prompts=[Prompt("1", 1), Prompt("2", 1), Prompt("1", 3)])
    with pytest.raises(ValueError, match="max_new_tokens and max_turns must be at least 1"):
        letters(max_new_tokens=0)
    tokenizer = letter_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        Completions(tokenizer, [Prompt("1")], 4)


def answers(*texts, ended=True, target=12):
    return [Completion("10+2=", t, (t,), ended, len(t) + ended, target) for t in texts]


def test_arithmetic_rewards():
    oracle = arithmetic_rewards(["format", "correct"])
    assert [reward.name for reward in oracle.rewards] == ["format", "correct"]
    given = answers("(12)", "12", "(11)", "((12)", "", "(12)3", "(012)")
    assert oracle(given).tolist() == [
        [1, 1], [0, 1], [1, 0], [0, 1], [0, 0], [0, 1], [1, 1]
    ]  # fmt: skip
    assert oracle(answers("(12)", ended=False)).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="no reward 'corect'"):
        arithmetic_rewards(["corect"])


def test_demonstrations_are_often_wrong_and_seldom_well_written():
    prompts = sums(9)
    numbers, texts = demonstrations(prompts, 4000, torch.Generator().manual_seed(0), 0.7)
    targets = [prompts[i].target for i in numbers.tolist()]
    given = [answers(t, target=y)[0] for t, y in zip(texts, targets, strict=True)]
    share = arithmetic_rewards(["format", "correct"])(given).mean(0)
    assert torch.allclose(share, torch.tensor(0.3, dtype=torch.float64), atol=0.03)


def test_missing_rewards_are_nan():
    oracle = TextRewards(
        [TextReward(lambda cs: [len(c.text) if c.text else None for c in cs], "length", 0, 9)]
    )
    assert oracle(answers("ab", "", "c")).isnan().tolist() == [[False], [True], [False]]
    assert oracle(answers("")).shape == (1, 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda cs: [1.0], "'one' returned 1 values for 2 completions"),
        (lambda cs: {}["key"], "'one' raised KeyError on a batch of 2 completions: 'key'"),
        (lambda cs: [0.5, "much"], "'one' returned 'much' for completion 1, 'b'"),
        (lambda cs: [0.5, 3.0], "returned 3.0 for completion 1, 'b': it must be None or from 0"),
        (lambda cs: [0.5, float("nan")], "returned nan for completion 1"),
        (lambda cs: None, "'one' raised TypeError"),
    ],
)
def test_reward_functions_that_misbehave_are_named(function, message):
    with pytest.raises(RewardFunctionError, match=message.replace("(", r"\(")):
        TextRewards([TextReward(function, "one")])(answers("a", "b"))


def test_reward_functions_have_distinct_names():
    twice = [TextReward(lambda cs: [], "one")] * 2
    with pytest.raises(ValueError, match="distinct names"):
        TextRewards(twice)


def test_steps_without_replies_look_at_no_value():
    env = letters()
    state = env.start(torch.tensor([0, 1]))
    states = States(*(x.to("meta") for x in state))
    actions = torch.zeros(2, dtype=torch.int64, device="meta")
    for moved in (env.step(states, actions), env.backstep(states, actions)):
        assert all(column.device.type == "meta" for column in moved)
    assert env.forward_mask(states).device.type == "meta"
