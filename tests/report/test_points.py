"""Clouds of points and bounds of log Z on the page."""

import json
import re

import pytest

from gflow.cli import main
from gflow.report.points import MAX_POINTS, bound_facts, is_point, plane
from gflow.report.run import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points") / "run"
    words = "train gmm25 --method vargrad --steps 4 --trainer.eval_every 2 --samples 16"
    more = f"--options.steps 5 --sampling.batch_size 8 --policy.hidden 8 --out {folder}"
    main(f"{words} {more}".split())
    return read_run(folder)


def test_what_is_a_point():
    assert is_point((0.5, -1.0)) and is_point([0.5, 1.0, 2.0])
    assert not is_point((1, 2)) and not is_point((0.5,)) and not is_point("CCO")


def test_cloud_and_bounds_of_a_run(run):
    shown = plane(run)
    assert shown["axes"] == 2
    assert len(shown["sampler"]["x"]) == len(shown["sampler"]["y"]) == 16
    assert 8 <= len(shown["training"]["x"]) <= MAX_POINTS
    first = run.candidates[0].object
    assert (shown["training"]["x"][0], shown["training"]["y"][0]) == pytest.approx(first, abs=1e-4)
    last = [row for row in run.metrics if "elbo" in row][-1]
    facts = bound_facts(run)
    assert facts[0]["value"] == f"{last['log_z_estimate']:.3f}"
    assert f"{last['log_z_error']:+.3f}" in facts[0]["note"]
    assert last["elbo"] <= last["log_z_estimate"] and f"{last['eubo']:.3f}" in facts[1]["value"]


def test_the_page_holds_them(run):
    page = (run.folder / "report.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    document = json.loads(data[1])
    assert document["cloud"]["axes"] == 2
    assert "bounds of log Z" in [fact["label"] for fact in document["facts"]]
    assert 'id="cloud-plot"' in page and "function drawCloud" in page


def test_runs_resume_exactly(tmp_path):
    """Four steps in one go, or two and two with exploration that cools down."""
    words = (
        "train gmm9 --method tb --trainer.checkpoint_every 2 --trainer.eval_every 2 --samples 4 "
        "--options.steps 4 --sampling.batch_size 8 --sampling.temperature 2 --sampling.cooling 3 "
        "--policy.hidden 8"
    )
    main(f"{words} --steps 4 --out {tmp_path / 'one'}".split())
    main(f"{words} --steps 2 --out {tmp_path / 'two'}".split())
    main(f"resume {tmp_path / 'two'} --steps 4".split())
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    keys = ("step", "loss", "elbo", "log_z_estimate", "eubo")
    last = [{key: row[-1][key] for key in keys} for row in rows]
    assert last[0] == last[1] and last[0]["step"] == 4
