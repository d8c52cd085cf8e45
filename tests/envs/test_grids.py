"""HyperGrid with free and forced stops, and its rewards."""

from gflow.envs.grids import HyperGrid
from tests.envs.conformance import Conformance


class TestGrid(Conformance):
    side, border = 4, False
    make = staticmethod(lambda: HyperGrid(3, 4))

    def model_children(self, data):
        children = {(data, True)}
        if self.border and self.side - 1 in data:
            return children
        for d, x in enumerate(data):
            if x < self.side - 1:
                children.add(((*data[:d], x + 1, *data[d + 1 :]), False))
        return children


class TestGridStoppingAtItsBorder(TestGrid):
    border = True
    make = staticmethod(lambda: HyperGrid(3, 4, stop_at_border=True))
