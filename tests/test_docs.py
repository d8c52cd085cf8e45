"""The documentation: its code runs, its links lead somewhere, its figures can be made again."""

import re
from pathlib import Path

import pytest

from gflow.tasks import TASKS
from tests.envs.conformance import Conformance

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FIGURES = sorted((ROOT / "docs" / "figures").iterdir())


def blocks(page):
    """Line number and text of each Python block of a page."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def run(page):
    """What a page's blocks define; blocks that do not begin with an import or a function are not
    meant to run by themselves."""
    names = {"__name__": page.stem}
    for line, text in blocks(page):
        if text.startswith(("import ", "from ", "def ")):
            # Blank lines in front give tracebacks the page's own line numbers.
            exec(compile("\n" * line + text, str(page), "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Nothing that a page does outlives its test."""
    monkeypatch.chdir(tmp_path)
    before = dict(TASKS)
    yield tmp_path
    TASKS.clear()
    TASKS.update(before)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_code_runs_as_it_stands(page, folder):
    run(page)


def test_most_code_is_run():
    texts = [text for page in PAGES for _, text in blocks(page)]
    assert sum(text.startswith(("import ", "from ", "def ")) for text in texts) >= 10


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("figure", FIGURES, ids=[figure.name for figure in FIGURES])
def test_figures_are_small_shown_and_made_by_a_script(figure):
    assert figure.stat().st_size < 200_000
    assert any(f"figures/{figure.name}" in page.read_text() for page in PAGES)
    script = ROOT / "benchmarks" / "figures" / f"{figure.stem}.py"
    assert f'"{figure.name}"' in script.read_text()


def test_every_task_is_on_its_page():
    text = (ROOT / "docs" / "environments.md").read_text()
    assert not [name for name in TASKS if f"| `{name}` |" not in text]


def test_the_example_objective_learns_the_example_task(folder, capsys):
    names = run(ROOT / "docs" / "extending.md")
    assert names["distance"] < 0.05
    assert "total variation to the target: 0.0" in capsys.readouterr().out


class TestTheExampleEnvironment(Conformance):
    @staticmethod
    def make():
        names = {"__name__": "extending"}
        exec(blocks(ROOT / "docs" / "extending.md")[0][1], names)
        return names["Bags"](kinds=3, size=3)

    def model_children(self, data):
        children = {(data, True)}
        if sum(data) < 3:
            for kind in range(3):
                more = tuple(count + (i == kind) for i, count in enumerate(data))
                children.add((more, False))
        return children

    def test_pickling(self):
        pytest.skip("a class made from a page has no module to be found in")
