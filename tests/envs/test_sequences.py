"""The orders of building a sequence, and slots."""

from gflow.envs.sequences import AppendSequences, InsertSequences, PrependAppendSequences, Slots
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
    counts_paths = False
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
