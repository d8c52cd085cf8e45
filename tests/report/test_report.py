"""The report: one self-contained page that holds what the run holds."""

import base64
import json
import math
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from gflow.mdp import Reward
from gflow.report import ReportError, write_report
from gflow.report.markdown import to_html
from gflow.report.molecules import draw_molecule
from gflow.report.progress import training_curves
from gflow.store import CandidateStore
from tests.report.fake_run import grid_run, molecule_run, molecules, score


class Page(HTMLParser):
    """The parts of a page: ids, open elements, addresses, contents of scripts."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts: dict[str, str] = {}
        self.script = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.addresses += [values[name] for name in ("src", "href", "srcset") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "script":
            self.script = values.get("id", f"script {len(self.scripts)}")
            self.scripts[self.script] = ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self.script] += data

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.scripts["data"], parse_constant=pytest.fail)  # type: ignore[no-any-return]

    @property
    def drawings(self) -> list[str]:
        packed = base64.b64decode(self.scripts["drawings"])
        return json.loads(zlib.decompress(packed))  # type: ignore[no-any-return]


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return molecule_run(tmp_path_factory.mktemp("runs") / "two", n=120)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    path = write_report(folder, title="A <b>front</b> & </script>")
    assert path == folder / "report.html"
    assert [p.name for p in folder.iterdir() if p.name.endswith(".part")] == []
    return page_of(path)


def test_the_page_is_whole_and_refers_to_nothing_outside(page: Page) -> None:
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert {"data", "drawings", "front-plot", "card", "best-table"} <= set(page.ids)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    own = page.scripts[list(page.scripts)[-1]]
    assert "http" not in own and "fetch(" not in own and "showSendToCloud: false" in own
    assert page.document["title"] == "A <b>front</b> & </script>"


def test_every_candidate_is_a_point_and_the_front_is_marked(page: Page) -> None:
    points = page.document["points"]
    assert len(points["text"]) == len(set(points["text"])) == 120
    assert {len(column) for column in points.values()} == {120}
    rewards = torch.tensor(points["rewards"], dtype=torch.float64)
    better = (rewards[:, None] >= rewards).all(2) & (rewards[:, None] > rewards).any(2)
    assert points["front"] == (~better.any(0)).tolist()
    assert "C" not in points["text"]  # it failed
    assert points["rewards"][0] == pytest.approx(score(points["text"][0])[:2], rel=1e-5)


def test_drawings_are_svg_each_once(page: Page) -> None:
    points, drawings = page.document["points"], page.drawings
    assert min(points["drawing"]) == 0 and max(points["drawing"]) == len(drawings) - 1
    assert len(set(drawings)) == len(drawings)
    for drawing in drawings:
        assert drawing.startswith("<svg class='themed' viewBox=") and drawing.endswith("</svg>")
    assert draw_molecule("no molecule") == ""


def test_samples_that_the_search_never_met_join_the_front(tmp_path: Path) -> None:
    folder = molecule_run(tmp_path / "run", n=40, samples=False)
    entry = {
        "preference": [0.5, 0.5],
        "objects": ["CCO", "CCN", "CCO", "CCF"],
        "rewards": [[0.99, 1.0], [0.1, 0.1], [0.99, 1.0], None],
    }
    (folder / "samples.json").write_text(json.dumps([entry]))
    document = page_of(write_report(folder)).document
    points, (table,) = document["points"], document["tables"]
    assert [t for t, on in zip(points["text"], points["front"], strict=True) if on] == ["CCO"]
    assert [points["text"][i] for i in table["rows"]] == ["CCO", "CCN"]
    assert table["n"] == 4 and table["mean"] == pytest.approx([2.08 / 3, 0.7])
    assert document["n_shown"] == document["n_candidates"] == 40
    assert points["source"][points["text"].index("CCN")] == "the trained sampler"


def test_tables_rank_different_molecules_for_each_preference(page: Page) -> None:
    document = page.document
    assert [table["preference"] for table in document["tables"]] == [[1, 0], [0.5, 0.5], [0, 1]]
    for table in document["tables"]:
        assert 3 <= len(table["rows"]) == len(table["scores"]) <= 12
        assert table["scores"] == sorted(table["scores"], reverse=True)
        assert table["n"] == 64
    first, _, last = document["tables"]
    assert first["mean"][0] > last["mean"][0] and first["mean"][1] < last["mean"][1]
    top = document["points"]["rewards"][first["rows"][0]]
    assert top[0] == max(row[0] for row in document["points"]["rewards"])


def test_hypervolume_is_compared_at_equal_calls(page: Page) -> None:
    document = page.document
    run, baseline = document["hypervolume"]["run"], document["hypervolume"]["baseline"]
    assert run["x"][-1] == 121 and baseline["x"][-1] == document["baseline_calls"] == 61
    for curve in (run, baseline):
        assert curve["y"] == sorted(curve["y"]) and curve["y"][0] > 0
    rewards = torch.tensor(document["points"]["rewards"], dtype=torch.float64)
    front = rewards[torch.tensor(document["points"]["front"])]
    x, y = zip(*sorted(front.tolist()), strict=True)
    area = sum((b - a) * h for a, b, h in zip((0, *x), x, y, strict=False))
    assert run["y"][-1] == pytest.approx(area, abs=2e-5)
    mine = document["headline"][2]
    assert mine["note"].endswith("by random assembly, both after 61 oracle calls")
    assert mine["value"] == f"{run['y'][run['x'].index(61)]:.3f}"


def test_failures_and_facts_are_told(page: Page) -> None:
    document = page.document
    assert document["headline"][1] == {
        "value": "120",
        "label": "different candidates scored",
        "note": "1 more could not be scored",
    }
    labels = " ".join(fact["label"] for fact in document["facts"])
    assert "Tanimoto" in labels and "scaffolds" in labels and "not among the known" in labels


def test_the_card_is_rendered_and_cannot_break_out(page: Page) -> None:
    document = page.document
    assert "<strong>MOGFN-PC</strong>" in document["card"]
    assert "&lt;script&gt;alert(1)" in document["card"] and "<a" not in document["card"]
    assert document["config"]["trainer"] == {"learning_rate": 0.001, "steps": 600}
    assert [curve["name"] for curve in document["curves"]][:2] == ["loss", "log_z"]


def test_other_objects_rewards_without_limits_and_nothing_else(tmp_path: Path) -> None:
    page = page_of(write_report(grid_run(tmp_path / "grid"), tmp_path / "grid.html"))
    document = page.document
    assert document["title"] == "sum, left and low" and not document["molecules"]
    assert document["points"]["text"][0].startswith("[") and page.drawings == []
    assert document["curves"] == document["facts"] == [] and document["card"] == ""
    assert list(document["hypervolume"]) == ["run"] and "note" not in document["headline"][2]
    assert [reward["low"] for reward in document["rewards"]] == [None, 0, 0]
    assert len(document["tables"]) == 4 and document["tables"][0]["mean"] is None


def test_a_drawing_of_ones_own(tmp_path: Path) -> None:
    def draw(cell: object) -> str:
        assert isinstance(cell, tuple)
        return f"<svg><text>{cell[0]}</text></svg>"

    page = page_of(write_report(grid_run(tmp_path / "grid"), draw=draw))
    assert sorted(page.drawings) == [f"<svg><text>{x}</text></svg>" for x in range(8)]


def test_large_runs_are_thinned_but_keep_the_front(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gflow.report import content

    monkeypatch.setattr(content, "MAX_POINTS", 40)
    monkeypatch.setattr(content, "MAX_DRAWINGS", 10)
    page = page_of(write_report(folder, tmp_path / "small.html"))
    with CandidateStore(folder / "candidates.sqlite") as store:
        front = {candidate.object for candidate in store.front()}
    points = page.document["points"]
    on = {t for t, flag in zip(points["text"], points["front"], strict=True) if flag}
    assert on == front and page.document["n_candidates"] == 120
    assert len(points["text"]) < 120 and len(page.drawings) == 10


def test_five_objectives_are_estimated(tmp_path: Path) -> None:
    names = [Reward(f"r{k}") for k in range(5)]
    rewards = torch.rand(50, 5, generator=torch.Generator().manual_seed(0))
    with CandidateStore(tmp_path / "candidates.sqlite", names) as store:
        store.add(list(range(50)), [str(i) for i in range(50)], rewards)
    document = page_of(write_report(tmp_path)).document
    assert document["estimated"] and 0 < document["hypervolume"]["run"]["y"][-1] < 1


def broken(folder: Path, name: str, text: str) -> Path:
    grid_run(folder)
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("candidates.sqlite", "not a database at all", "not a candidate store"),
        ("baseline.sqlite", "not a database at all", "baseline.sqlite"),
        ("config.yaml", "a: [1", "config.yaml: cannot be read"),
        ("config.yaml", "- 1", "expected a dict, found a list"),
        ("environment.json", "{", "environment.json: cannot be read"),
        ("metrics.jsonl", '{"step": 1}\n{"step"\n{"step": 2}\n', "line 2 is not a JSON object"),
        ("samples.json", '[{"preference": [1, 0]}]', "entry 0 is malformed"),
        ("samples.json", '[{"preference": [1], "objects": [], "rewards": []}]', "entry 0"),
    ],
)
def test_a_damaged_run_is_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = broken(tmp_path / "run", name, text)
    with pytest.raises(ReportError, match=message) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_a_missing_or_empty_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no such run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ReportError, match=r"no candidates\.sqlite"):
        write_report(tmp_path)
    with CandidateStore(tmp_path / "candidates.sqlite", [Reward("qed")]) as store:
        store.add(["C"], ["C"], torch.tensor([[math.nan]]))
    with pytest.raises(ReportError, match="no candidate has been scored yet"):
        write_report(tmp_path)
    grid_run(tmp_path / "grid")
    with pytest.raises(ReportError, match="there is no folder"):
        write_report(tmp_path / "grid", tmp_path / "no" / "report.html")


def test_curves_skip_gaps_and_are_averaged() -> None:
    rows = [{"step": float(i), "loss": float(i % 2)} for i in range(1000)]
    rows[0]["loss"] = math.nan
    rows[3] |= {"once": 1.0}
    (curve,) = training_curves(rows)
    assert curve["name"] == "loss" and len(curve["x"]) <= 400 and curve["x"][-1] == 999
    assert all(0.3 < value < 0.7 for value in curve["y"][:-1])


def test_markdown_of_a_card() -> None:
    text = (
        "# A\nfirst\nline `x<y`\n\n- one\n  more\n- two\n\n```\n<b>\n```\n"
        "| a | b |\n|--|--|\n| 1 | 2 |"
    )
    found = re.sub(r"\s*\n\s*", "", to_html(text))
    assert found == (
        "<h3>A</h3><p>first line <code>x&lt;y</code></p><ul><li>one more</li><li>two</li></ul>"
        "<pre>&lt;b&gt;</pre><div class='scroll'><table><thead><tr><th>a</th><th>b</th></tr>"
        "</thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>"
    )


def test_fake_molecules_are_different() -> None:
    assert len(set(molecules(50))) == 50
