"""Oracle workers on a Ray cluster: the same contract as worker processes."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from gflow.oracles import OracleError, OracleRunner
from gflow.store import CandidateStore
from tests.oracle_zoo import Traces, Unloadable, Zoo

GOOD = [f"good{i}" for i in range(8)]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OracleError, match=r"cluster 'local': .*pip install gflow\[distributed\]"):
        OracleRunner(Zoo(), str, cluster="local")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "ConnectionError: nothing answers there"),
        ("ray://127.0.0.1:1", "ConnectionError: nothing answers there"),
        ("somewhere", "ValueError: the address must be auto, local, host:port or ray://host:port"),
    ],
)
def test_no_cluster_says_so_at_once(address: str, message: str) -> None:
    pytest.importorskip("ray", reason="needs Ray, the extra gflow[distributed]")
    with pytest.raises(OracleError, match=f"cluster '{address}': {message}"):
        OracleRunner(Zoo(), str, cluster=address)


@pytest.mark.slow
class TestOnALocalCluster:
    """A real one, of two processors."""

    @pytest.fixture(scope="class", autouse=True)
    def ray(self):
        ray = pytest.importorskip("ray", reason="needs Ray, the extra gflow[distributed]")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield ray
        ray.shutdown()

    def test_one_worker_for_each_processor_shares_the_load(self, tmp_path: Path) -> None:
        names = [f"n{i}" for i in range(40)]
        with OracleRunner(Traces(tmp_path, 0.05), str, cluster="auto") as runner:
            scores = runner.evaluate(names)
        assert scores.reasons == [None] * 40
        here = Zoo()(names)
        assert torch.equal(scores.rewards, here)
        traces = [(tmp_path / name).read_text().split() for name in names]
        assert {trace[3] for trace in traces} == {"1"}
        assert len(Counter(trace[0] for trace in traces)) == 2

    def test_accidents_cost_one_object_each(self) -> None:
        objects = [*GOOD, "hang", "nan", *[f"more{i}" for i in range(8)], "die", "raise"]
        with OracleRunner(Zoo(), str, workers=2, timeout=2.0, cluster="auto") as runner:
            scores = runner.evaluate(objects)
            again = runner.evaluate(["abc"])
        assert scores.reasons[8] == "timeout: no answer within 2 s"
        assert scores.reasons[9] == "length is NaN"
        assert scores.reasons[18] == "the worker on the cluster died (ActorDiedError)"
        assert scores.reasons[19] == "RuntimeError: cannot dock raise"
        assert sum(reason is None for reason in scores.reasons) == 16
        assert again.rewards[0, 0] == 3.0

    def test_an_oracle_that_cannot_be_loaded_there_says_so(self) -> None:
        with OracleRunner(Unloadable(), str, workers=1, cluster="auto") as runner:
            with pytest.raises(OracleError, match="no module named docking"):
                runner.evaluate(["ab"])

    def test_a_run_from_the_command_line(self, tmp_path: Path) -> None:
        (tmp_path / "chemist.py").write_text("def half(smiles):\n    return [0.5] * len(smiles)\n")
        command = [sys.executable, "-m", "gflow.cli", "train", "molecules"]
        command += ["--rewards=qed,chemist:half", "--steps=1", "--samples=4", "--out=run"]
        command += ["--oracle.cluster=local", "--oracle.workers=2", "--sampling.batch_size=8"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with CandidateStore(tmp_path / "run" / "candidates.sqlite") as store:
            found = store.candidates()
        assert found and all(one.rewards is not None and one.rewards[1] == 0.5 for one in found)

    def test_closing_gives_the_processors_back(self, ray) -> None:
        for _ in range(3):
            with OracleRunner(Zoo(), str, cluster="auto") as runner:
                runner.evaluate(["ab", "abc", "abcd"])
        assert ray.is_initialized()
