"""Pictures in the report."""

import base64
import io

import torch
from PIL import Image

from gflow.mdp import Condition, States, Trajectories
from gflow.report import write_report
from gflow.report.pictures import caption, draw_picture
from gflow.store import CandidateStore
from gflow.tasks import make_task
from gflow.tasks.scenes import data_uri

RED = torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand(3, 16, 16)


def test_pictures_are_png_files():
    uri = data_uri(RED)
    file = io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    image = Image.open(file)
    assert image.size == (16, 16) and image.getpixel((3, 4)) == (255, 0, 0)
    left = RED.clone()
    left[:, 2, 7] = torch.tensor([-5.0, 0, 5])
    file = io.BytesIO(base64.b64decode(data_uri(left).partition(",")[2]))
    # Row 2, column 7; values beyond the range are cut.
    assert Image.open(file).getpixel((7, 2)) == (0, 128, 255)


def test_only_pictures_are_drawn():
    picture = {"prompt": 'a "red" <square>', "image": data_uri(RED)}
    drawn = draw_picture(picture)
    assert drawn.startswith('<img alt="a &quot;red&quot; &lt;square&gt;" src="data:image/png;')
    assert caption(picture) == 'a "red" <square>'
    for other in (
        "text", [1.0], {"a": 1}, {"image": "javascript:alert(1)"},
        {"image": 'data:image/png;base64,AA" onload="x'}, {"image": "data:image/png;base64,"},
    ):  # fmt: skip
        assert draw_picture(other) == "" and caption(other) == ""


def test_the_page_shows_pictures_with_their_prompts(tmp_path):
    task = make_task("shapes16", "strict,warm", {"prompt": "2 squares"})
    condition = task.conditions.sample(3, torch.Generator().manual_seed(0))
    x = torch.stack([RED, -RED, RED * 0.5])
    states = torch.stack([x, x], 1)
    batch = Trajectories(states, *[torch.zeros(3, 1, 0)] * 2, torch.ones(3, 1).bool(), condition)
    objects = task.objects(batch)
    assert [item["prompt"] for item in objects] == ["2 squares"] * 3
    with CandidateStore(tmp_path / "candidates.sqlite", task.oracle.rewards, "1") as store:
        rewards = torch.tensor([[0.0, 1], [1, 0], [0.5, 0.5]]).double()
        store.add(objects, task.keys(batch), rewards)
    page = write_report(tmp_path).read_text()
    assert "2 squares" in page and "javascript:alert" not in page


def test_scenes_are_told_in_words():
    task = make_task("scenevec", options={"prompt": "2 squares"})
    x = torch.zeros(1, 32)
    x.view(1, 4, 8)[0, :, 0] = torch.tensor([-1.0, 1, -1, -1])
    x.view(1, 4, 8)[0, 1, 3], x.view(1, 4, 8)[0, 1, 5] = 1.0, 1.0
    asked = task.conditions.sample(1, torch.Generator().manual_seed(0))
    batch = Trajectories(
        torch.stack([x, x], 1), *[torch.zeros(1, 1, 0)] * 2, torch.ones(1, 1).bool(), asked
    )
    assert task.objects(batch) == ["2 squares: blue square top right"]
    assert isinstance(asked, Condition) and isinstance(batch.terminal, States)
