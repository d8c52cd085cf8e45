"""The oracle runner: each accident costs the one object that caused it, and nothing else."""

import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from gflow.conditions import Conditions
from gflow.mdp import Reward, States
from gflow.oracles import OracleError, OracleRunner, Outcome, load_callable
from gflow.sampling import OnPolicy, Scorer
from gflow.sampling.scoring import Scored
from tests.diamond import diamond, diamond_policy
from tests.oracle_zoo import Traces, Unloadable, WithNone, WrongShape, Zoo


class Memory:
    """A cache in a dictionary."""

    def __init__(self, known: dict[str, Outcome]) -> None:
        self.known = known

    def lookup(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        return {key: self.known[key] for key in keys if key in self.known}


def test_each_distinct_object_is_scored_once() -> None:
    oracle = Zoo()
    scores = OracleRunner(oracle, str.lower).evaluate(["ab", "AB", "abc", "AB"])
    assert oracle.calls == [["ab", "abc"]]
    assert scores.fresh == 2
    assert scores.keys == ["ab", "ab", "abc", "ab"]
    assert scores.rewards.dtype == torch.float64
    assert scores.rewards[:, 0].tolist() == [2.0, 2.0, 3.0, 2.0]
    assert scores.reasons == [None] * 4


def test_an_empty_batch_calls_nothing() -> None:
    oracle = Zoo()
    scores = OracleRunner(oracle, str).evaluate([])
    assert scores.rewards.shape == (0, 2) and scores.fresh == 0 and not oracle.calls


def test_known_outcomes_come_from_the_cache() -> None:
    oracle = Zoo()
    cache = Memory({"ab": (7.0, 0.25), "bad": "ValueError: odd"})
    scores = OracleRunner(oracle, str, cache=cache).evaluate(["ab", "bad", "abcd", "abc"])
    assert oracle.calls == [["abcd", "abc"]] and scores.fresh == 2
    assert scores.rewards[0].tolist() == [7.0, 0.25]
    assert scores.rewards[1].isnan().all() and scores.reasons[1] == "ValueError: odd"


GOOD = [f"good{i}" for i in range(8)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("culprit", "reason"),
    [
        ("raise", "RuntimeError: cannot dock raise"),
        ("nan", "length is NaN"),
        ("range", r"a outside its range \[0, 1\]: 1.5"),
    ],
)
def test_only_the_culprit_fails(workers: int, culprit: str, reason: str) -> None:
    with OracleRunner(Zoo(), str, workers=workers) as runner:
        scores = runner.evaluate([*GOOD[:4], culprit, *GOOD[4:]])
    assert scores.rewards[4].isnan().all()
    failure = scores.reasons.pop(4)
    assert failure is not None and re.fullmatch(reason, failure)
    assert scores.reasons == [None] * 8
    assert scores.rewards.isnan().any(1).sum() == 1


def test_none_for_one_object_is_its_failure() -> None:
    scores = OracleRunner(WithNone(), str).evaluate(["ab", "none", "abc"])
    assert scores.reasons == [None, "no value", None]
    assert scores.rewards[2].tolist() == [3.0, 1 / 3]


def test_values_keep_double_precision_and_forgive_rounding_at_the_ends() -> None:
    class Rounded(Zoo):
        def __call__(self, objects: list[str]) -> list[list[float]]:  # type: ignore[override]
            return [[20.000001, 0.1], [1.0, -1e-7]]

    scores = OracleRunner(Rounded(), str).evaluate(["x", "y"])
    assert scores.reasons == [None, None] and scores.rewards[0, 1].item() == 0.1
    assert scores.rewards[:, 0].tolist() == [20.0, 1.0] and scores.rewards[1, 1].item() == 0.0


def test_an_object_without_key_fails_alone() -> None:
    def key(item: object) -> str:
        if item == "?":
            raise ValueError("not a molecule")
        return str(item)

    scores = OracleRunner(Zoo(), key).evaluate(["ab", "?", "abc"])
    assert scores.reasons == [None, "ValueError: not a molecule", None]
    assert scores.fresh == 2 and len(set(scores.keys)) == 3


class OneGood:
    """The first of a batch has the height `first`, that of all others is out of range."""

    rewards = (Reward("height"), Reward("width"))
    version, seconds = "1", 0.0

    def __init__(self, on_states: bool, first: float) -> None:
        self.on_states, self.first = on_states, first

    def __call__(self, objects: States | list[object]) -> torch.Tensor:
        n = objects.n if isinstance(objects, States) else len(objects)
        values = torch.full((n, 2), 0.5)
        values[1:] = torch.tensor([2.0, 0.5])
        values[0, 0] = self.first
        return values


@pytest.mark.parametrize("kind", ["states", "objects", "runner"])
def test_values_out_of_range_are_failures_for_every_kind_of_oracle(kind: str) -> None:
    def sampler(first: float) -> OnPolicy:
        oracle: OneGood | OracleRunner = OneGood(kind == "states", first)
        if kind == "runner":
            number = itertools.count()
            oracle = OracleRunner(oracle, lambda item: str(next(number)), max_failed=1.0)
        told.clear()
        score = Scorer(diamond(), oracle, listeners=(told.append,))
        return OnPolicy(diamond_policy(), Conditions(2), score, 8, 0, dtype=torch.float64)

    told: list[Scored] = []
    batch = sampler(1 + 1e-7)()
    assert batch.n == 1 and torch.isfinite(batch.log_reward).all()
    why = "height outside its range [0, 1]: 2"
    assert told[0].reasons == [None, *[why] * 7] and told[0].batch.rewards[1:].isnan().all()
    with pytest.raises(OracleError, match=r"OneGood failed on all 8 objects of a batch, .*: -1$"):
        sampler(-1.0)()
    assert len(told) == 1 and None not in told[0].reasons


def test_too_many_failures_stop_with_the_commonest_reason() -> None:
    batch = ["raise", "nan", *GOOD[:1], "range"]
    with pytest.raises(OracleError, match=r"Zoo failed on 3 of 4 objects.*most often") as caught:
        OracleRunner(Zoo(), str).evaluate(batch)
    assert caught.value.scores is not None
    assert caught.value.scores.rewards[2, 0] == 5.0
    assert sum(reason is not None for reason in caught.value.scores.reasons) == 3
    OracleRunner(Zoo(), str, max_failed=0.75).evaluate(batch)


def test_one_failure_never_stops_a_run() -> None:
    assert OracleRunner(Zoo(), str).evaluate(["nan", "nan"]).reasons[1] is not None


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(OracleError, match=r"returned \(1, 1\) instead of \(1, 2\)"):
        OracleRunner(WrongShape(), str).evaluate(GOOD)


def test_a_hung_and_a_dying_worker_cost_one_object_each() -> None:
    with OracleRunner(Zoo(), str, workers=2, timeout=1.0) as runner:
        scores = runner.evaluate([*GOOD, "hang", *[f"more{i}" for i in range(8)], "die"])
        assert scores.reasons[8] == "timeout: no answer within 1 s"
        assert scores.reasons[17] == "the worker process died (exit code 3)"
        assert sum(reason is None for reason in scores.reasons) == 16
        again = runner.evaluate(["abc"])  # the pool was rebuilt
    assert again.rewards[0, 0] == 3.0


def test_workers_share_the_load_with_one_thread_each(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(20)]
    with OracleRunner(Traces(tmp_path, 0.05), str, workers=2, timeout=30.0) as runner:
        scores = runner.evaluate(names)
    assert scores.reasons == [None] * 20
    traces = [(tmp_path / name).read_text().split() for name in names]
    assert {trace[3] for trace in traces} == {"1"}
    assert len(Counter(trace[0] for trace in traces)) == 2


def test_an_oracle_that_workers_cannot_get_says_so() -> None:
    class Local(Zoo):
        pass

    with pytest.raises(OracleError, match="Local cannot be sent to worker processes"):
        OracleRunner(Local(), str, workers=1)
    OracleRunner(Local(), str)
    with OracleRunner(Unloadable(), str, workers=1) as runner:
        with pytest.raises(OracleError, match="no module named docking"):
            runner.evaluate(["ab"])


def test_bad_settings_are_refused() -> None:
    for settings in ({"workers": -1}, {"timeout": 0.0}, {"max_failed": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            OracleRunner(Zoo(), str, **settings)  # type: ignore[arg-type]


def test_load_callable_finds_and_explains() -> None:
    assert load_callable("math:sqrt")(4.0) == 2.0
    with pytest.raises(ValueError, match=r"near names: .*sqrt"):
        load_callable("math:sqrtt")
    with pytest.raises(ValueError, match="cannot import 'no_such_module'"):
        load_callable("no_such_module:f")
    with pytest.raises(ValueError, match=r"package\.module:function"):
        load_callable("math.sqrt")
    with pytest.raises(ValueError, match="is a float"):
        load_callable("math:pi")


def test_runner_and_store_import_nothing_heavy() -> None:
    code = (
        "import sys, gflow.oracles, gflow.store, gflow.export\n"
        "heavy = {'rdkit', 'plotly', 'pyarrow', 'ray', 'pymoo', 'botorch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
