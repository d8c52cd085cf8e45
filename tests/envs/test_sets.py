"""Sets with and without a stop, and their energies."""

from gflow.envs.sets import Sets
from tests.envs.conformance import Conformance


class TestSets(Conformance):
    size, stop = 3, False
    make = staticmethod(lambda: Sets(5, 3))

    def model_children(self, data):
        done = sum(data) + 1 == self.size and not self.stop
        children = {(data, True)} if self.stop else set()
        if sum(data) < self.size:
            absent = [i for i, x in enumerate(data) if not x]
            children |= {((*data[:i], 1, *data[i + 1 :]), done) for i in absent}
        return children


class TestSetsWithStop(TestSets):
    stop = True
    make = staticmethod(lambda: Sets(5, 3, stop=True))


class TestFullSets(TestSets):
    size = 4
    make = staticmethod(lambda: Sets(4, 4))
