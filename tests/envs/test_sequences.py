"""The orders of building a sequence, and slots."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gflow.conditions import Conditions
from gflow.envs.sequences import AppendSequences, InsertSequences, PrependAppendSequences, Slots
from gflow.envs.sequences.ngrams import PROTEIN
from gflow.mdp import States
from gflow.policies import MLPPolicy
from gflow.sampling.rollout import rollout
from tests.envs.conformance import Conformance


def text(data):
    return "".join("abc"[token] for token in data if token >= 0)


def row(string, length):
    return tuple("abc".index(symbol) for symbol in string) + (-1,) * (length - len(string))


class Growing(Conformance):
    """Variable length 2..3 over two symbols, with stop."""

    symbols, longest, shortest = "ab", 3, 2

    def grown(self, string):
        raise NotImplementedError

    def model_children(self, data):
        string = text(data)
        stops = self.shortest < self.longest
        result = {(data, True)} if stops and len(string) >= self.shortest else set()
        if len(string) < self.longest:
            for child in self.grown(string):
                done = not stops and len(child) == self.longest
                result.add((row(child, self.longest), done))
        return result


class Fixed:
    """Length 4 over three symbols, without stop; mix in before an order."""

    symbols, longest, shortest = "abc", 4, 4


class TestAppend(Growing):
    make = staticmethod(lambda: AppendSequences("ab", 3, 2))

    def grown(self, string):
        return [string + symbol for symbol in self.symbols]


class TestAppendFixed(Fixed, TestAppend):
    make = staticmethod(lambda: AppendSequences("abc", 4))


class TestAppendFromNothing(TestAppend):
    shortest = 0
    make = staticmethod(lambda: AppendSequences("ab", 3, 0))


class TestPrependAppend(Growing):
    make = staticmethod(lambda: PrependAppendSequences("ab", 3, 2))

    def grown(self, string):
        return [new for symbol in self.symbols for new in (string + symbol, symbol + string)]


class TestPrependAppendFixed(Fixed, TestPrependAppend):
    make = staticmethod(lambda: PrependAppendSequences("abc", 4))


class TestInsert(Growing):
    make = staticmethod(lambda: InsertSequences("ab", 3, 2))

    def grown(self, string):
        places = range(len(string) + 1)
        return [string[:i] + symbol + string[i:] for symbol in self.symbols for i in places]


class TestInsertFixed(Fixed, TestInsert):
    make = staticmethod(lambda: InsertSequences("abc", 4))


class TestSlots(Conformance):
    stop = False
    make = staticmethod(lambda: Slots("abc", 4))

    def model_children(self, data):
        empty = [i for i, token in enumerate(data) if token < 0]
        done = len(empty) == 1 and not self.stop
        children = {((*data[:i], token, *data[i + 1 :]), done) for i in empty for token in range(3)}
        return children or {(data, True)}


class TestSlotsWithStop(TestSlots):
    stop = True
    make = staticmethod(lambda: Slots("abc", 3, stop=True))


ORDERS = (AppendSequences, PrependAppendSequences, InsertSequences)


@pytest.mark.parametrize(
    ("string", "paths"),
    [("a", 1), ("aaaa", 1), ("ab", 2), ("aab", 3), ("aba", 4), ("abca", 8), ("baab", 6)],
)
def test_paths_of_prepend_append_by_hand(string, paths):
    env = PrependAppendSequences("abc", 4, 1)
    assert float(env.log_n_paths(env.encode([string])).exp()) == pytest.approx(paths)


@pytest.mark.parametrize(("string", "paths"), [("aaaa", 1), ("ab", 2), ("aba", 5), ("abc", 6)])
def test_paths_of_insert_by_hand(string, paths):
    env = InsertSequences("abc", 4, 1)
    assert float(env.log_n_paths(env.encode([string])).exp()) == pytest.approx(paths)


@given(st.integers(1, 4), st.lists(st.integers(0, 3), max_size=6))
def test_insert_has_one_action_per_child_and_one_removal_per_run(n_symbols, tokens):
    tokens = [token % n_symbols for token in tokens]
    env = InsertSequences(range(n_symbols), 7, 0)
    states = States(
        torch.tensor([tokens + [-1] * (7 - len(tokens))]),
        torch.tensor([len(tokens)]),
        torch.tensor([False]),
    )
    moves = int(env.forward_mask(states)[0, :-1].sum())
    assert moves == len(tokens) * (n_symbols - 1) + n_symbols
    runs = sum(1 for _ in itertools.groupby(tokens))
    assert int(env.backward_mask(states).sum()) == max(runs, 1)


@pytest.mark.parametrize("order", ORDERS)
def test_any_symbols_make_a_vocabulary(order):
    env = order(["Al", 7, ("x",)], 3, 1)
    assert env.decode(env.encode([("Al", 7), [7, ("x",), 7]])) == [("Al", 7), (7, ("x",), 7)]


def test_words_of_one_width_make_strings():
    env = AppendSequences(["CG", "AT"], 3, 1)
    assert env.decode(env.encode(["CGAT", "ATATCG"])) == ["CGAT", "ATATCG"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (["ACG", "ACX"], "object 1, 'ACX': unknown symbol 'X' at position 2"),
        (["ACGTACGTA"], "has 9 symbols: at least 2 and at most 8"),
        (["A"], "has 1 symbols: at least 2"),
    ],
)
def test_bad_sequences(order, objects, message):
    with pytest.raises(ValueError, match=message):
        order("ACGT", 8, 2).encode(objects)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("AA", 3), "distinct symbols"),
        (("", 3), "distinct symbols"),
        (("AC", 0), "at least 1"),
        (("AC", 3, 4), r"0\.\.3, not 4"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        AppendSequences(*arguments)


@pytest.mark.parametrize("env", [AppendSequences("ACGT", 30), Slots("ACGT", 30)])
def test_large_spaces_say_so(env):
    assert not env.enumerable
    with pytest.raises(NotImplementedError, match=r"4 symbols .* too many to enumerate"):
        env.all_terminal_states()


@pytest.mark.parametrize("order", ORDERS)
def test_long_sequences_walk_there_and_back(order):
    env, n = order(PROTEIN, 36, 32), 6
    generator = torch.Generator().manual_seed(0)
    policy = MLPPolicy(env, hidden=(4,))
    condition = Conditions().sample(n)
    forward = rollout(policy, env.initial(n), condition, generator)
    assert ((forward.lengths >= 33) & (forward.lengths <= 37)).all()
    back = rollout(policy, forward.terminal, condition, generator, backward=True)
    assert torch.equal(back.states[:, 0], env.initial(n).data)
    assert torch.equal(back.terminal.data, forward.terminal.data)
