"""Colored shapes: prompts, scenes, pictures, the detector and the rewards."""

import pytest
import torch

from gflow.envs.denoising.schedules import flow
from gflow.envs.denoising.shapes import (
    FIELD_SIZES,
    SPACES,
    Detections,
    SceneRewards,
    Scenes,
    alignment,
    all_prompts,
    find_prompts,
    held_out,
    images,
    novel_prompts,
    prompt_text,
    sample_scenes,
    train_prompts,
    vectors,
)
from gflow.envs.denoising.steps import time_grid
from gflow.mdp import Condition, States, Trajectories
from gflow.sampling import Scorer

BOTH = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
# color, count, position, two, relation: means of `soft` where half of all scenes miss.
SOFT = {1: 5 / 6, 2: 3 / 4, 3: 7 / 9, 4: 7 / 9, 5: 2 / 3}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some(n, seed=0, corruption=0.0):
    prompts = all_prompts()[torch.randint(126, (n,), generator=generator(seed))]
    return prompts, sample_scenes(prompts, generator(seed + 1), corruption)


def objects(scenes):
    """Scenes as the detector would describe them in the middle of their quadrants."""
    number = torch.arange(4)
    center = torch.stack([number // 2, number % 2], -1) * 8.0 + 3.5
    return Detections(*scenes, center.expand(len(scenes.present), -1, -1))


def test_there_are_126_prompts_with_20_held_out():
    prompts = all_prompts()
    assert prompts.shape == (126, 8) and len(prompts.unique(dim=0)) == 126
    assert torch.bincount(prompts[:, 0]).tolist() == [0, 12, 12, 12, 66, 24]
    assert torch.bincount(novel_prompts()[:, 0]).tolist() == [0, 0, 0, 0, 14, 6]
    assert len(train_prompts()) == 106
    assert (prompts.max(0).values < torch.tensor(FIELD_SIZES)).all()


def test_a_relation_and_its_mirror_are_held_out_together():
    held = {prompt_text(row) for row in novel_prompts().tolist()}
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    relations = [text for text in held for word in mirror if f" {word} " in text]
    assert len(relations) == 6
    for text in relations:
        word = next(word for word in mirror if f" {word} " in text)
        first, second = text.split(f" {word} ")
        assert f"{second} {mirror[word]} {first}" in held


def test_prompts_read_as_words_and_are_found_again():
    texts = [prompt_text(row) for row in all_prompts().tolist()]
    assert len(set(texts)) == 126
    assert "3 pluses" in texts and "1 square" in texts and "a plus in the top left" in texts
    assert "a red square and a blue plus" in texts and "a plus above a square" in texts
    assert torch.equal(find_prompts(texts), all_prompts())
    with pytest.raises(ValueError, match="no prompt reads 'a dog'"):
        find_prompts(["a dog"])
    assert held_out().sum() == 20


def test_scenes_follow_their_prompts_and_corrupted_ones_do_not():
    prompts, scenes = some(20_000)
    aligned = alignment(objects(scenes), prompts)
    assert aligned.strict.min() == 1 and aligned.soft.min() == 1
    prompts, scenes = some(20_000, corruption=1.0)
    assert alignment(objects(scenes), prompts).strict.max() == 0


def test_corruption_of_one_half_gives_the_known_means():
    for family, mean in SOFT.items():
        prompts = all_prompts()
        prompts = prompts[prompts[:, 0] == family]
        prompts = prompts[torch.randint(len(prompts), (40_000,), generator=generator(family))]
        scenes = sample_scenes(prompts, generator(family + 10), 0.5)
        aligned = alignment(objects(scenes), prompts)
        assert abs(float(aligned.strict.mean()) - 0.5) < 0.01
        assert abs(float(aligned.soft.mean()) - mean) < 0.01


def test_open_attributes_are_uniform():
    prompts = find_prompts(["2 squares"]).expand(40_000, -1)
    scenes = sample_scenes(prompts, generator(3))
    assert (scenes.present.sum(1) == 2).all()
    assert (scenes.present.double().mean(0) - 0.5).abs().max() < 0.01
    colors = torch.bincount(scenes.color[scenes.present], minlength=4) / 80_000
    assert (colors - 0.25).abs().max() < 0.01
    prompts = find_prompts(["a plus above a square"]).expand(40_000, -1)
    scenes = sample_scenes(prompts, generator(4))
    assert (scenes.shape[:, 0] == 2)[scenes.present[:, 0]].all()
    assert torch.equal(scenes.present[:, 0], scenes.present[:, 2])
    assert abs(float(scenes.present[:, 0].double().mean()) - 0.5) < 0.01


def test_scenes_are_reproducible():
    one, two = some(100)[1], some(100)[1]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def a_scene(*things):
    """One scene from (slot, color, shape) triples."""
    made = Scenes(
        torch.zeros(1, 4, dtype=torch.bool),
        torch.zeros(1, 4, dtype=torch.int64),
        torch.zeros(1, 4, dtype=torch.int64),
    )
    for slot, color, shape in things:
        made.present[0, slot], made.color[0, slot], made.shape[0, slot] = True, color, shape
    return made


@pytest.mark.parametrize(
    ("text", "things", "soft", "strict"),
    [
        ("a red square", [(0, 0, 0)], 1, 1),
        # Both words are there, but not on one object.
        ("a red square", [(0, 0, 1), (1, 2, 0)], 2 / 3, 0),
        ("a red square", [(0, 0, 1)], 2 / 3, 0),
        ("2 pluses", [(0, 0, 2), (3, 1, 2)], 1, 1),
        ("2 pluses", [(0, 0, 2), (3, 1, 1)], 1 / 2, 0),
        ("2 pluses", [], 1 / 2, 0),
        ("a plus in the top right", [(1, 3, 2)], 1, 1),
        ("a plus in the top right", [(0, 3, 2)], 2 / 3, 0),
        ("a red square and a red plus", [(2, 0, 2), (1, 0, 0)], 1, 1),
        ("a red square and a red plus", [(2, 0, 2), (1, 1, 0)], 2 / 3, 0),
        ("a square left of a plus", [(0, 1, 0), (1, 1, 2)], 1, 1),
        ("a square left of a plus", [(1, 1, 0), (0, 1, 2)], 2 / 3, 0),
        ("a square left of a plus", [(0, 1, 0), (2, 1, 2)], 2 / 3, 0),
        ("a square right of a plus", [(1, 1, 0), (0, 1, 2)], 1, 1),
        ("a square above a plus", [(1, 1, 0), (3, 1, 2)], 1, 1),
        ("a square below a plus", [(2, 1, 0), (1, 1, 2)], 1, 1),
    ],
)
def test_conditions_of_the_prompts(text, things, soft, strict):
    aligned = alignment(objects(a_scene(*things)), find_prompts([text]), torch.float64)
    assert float(aligned.soft) == pytest.approx(soft)
    assert float(aligned.strict) == strict


def test_a_count_that_is_wrong_costs_nothing_where_it_is_not_counted():
    aligned = alignment(
        objects(a_scene((0, 0, 0), (1, 0, 0), (2, 0, 0))), find_prompts(["2 squares"])
    )
    assert (float(aligned.uncounted), float(aligned.soft), float(aligned.strict)) == (1, 0.5, 0)


@BOTH
def test_what_is_drawn_is_detected(space):
    _, scenes = some(500, seed=5)
    x = space.draw(scenes, generator(6))
    assert x.shape == (500, *space.state_shape) and x.dtype == torch.float32
    seen = space.detect(x)
    for i in range(500):
        present = scenes.present[i]
        wanted = sorted(
            zip(
                present.nonzero().flatten().tolist(),
                scenes.color[i][present].tolist(),
                scenes.shape[i][present].tolist(),
                strict=True,
            )
        )
        found = seen.found[i]
        got = sorted(
            zip(
                seen.quadrant[i][found].tolist(),
                seen.color[i][found].tolist(),
                seen.shape[i][found].tolist(),
                strict=True,
            )
        )
        assert got == wanted
    assert space.crispness(x).min() > 0.94


def test_pictures_hold_the_masks_at_their_offsets():
    scene = a_scene((3, 3, 1))
    picture = images.draw(scene, generator(0))[0]
    yellow = (picture[0] == 1) & (picture[1] == 1) & (picture[2] == -1)
    assert int(yellow.sum()) == 13 and int((picture == -1).all(0).sum()) == 256 - 13
    rows, columns = yellow.nonzero(as_tuple=True)
    assert int(rows.min()) in (9, 10) and int(columns.min()) in (9, 10)
    assert [int(yellow[row].sum()) for row in range(int(rows.min()), int(rows.max()) + 1)] == [
        1, 1, 3, 3, 5,
    ]  # fmt: skip
    mask = images.masks().flatten(1)
    assert mask.sum(1).tolist() == [25, 13, 9]
    both = mask @ mask.T
    union = mask.sum(1, keepdim=True) + mask.sum(1) - both
    overlap = (both / union)[[0, 0, 1], [1, 2, 2]].tolist()
    assert overlap == pytest.approx([0.52, 0.36, 0.467], abs=1e-3)


def test_centers_are_those_of_the_masks():
    _, scenes = some(50, seed=8)
    x = images.draw(scenes, generator(9))
    seen = images.detect(x)
    for i in range(50):
        for row, column in seen.center[i][seen.found[i]].long().tolist():
            assert (x[i, :, row, column] != -1).any()


@pytest.mark.parametrize(
    ("noise", "exact"), [(0.1, 1.0), (0.2, 1.0), (0.3, 0.99), (0.4, 0.88), (0.5, 0.63)]
)
def test_noise_costs_detections_as_measured(noise, exact):
    prompts, scenes = some(600, seed=11)
    x = images.draw(scenes, generator(12))
    noisy = x + noise * torch.randn(x.shape, generator=generator(13))
    share = float(alignment(images.detect(noisy), prompts).strict.mean())
    # Two published implementations differ by up to 0.12 at the largest noise.
    assert share == pytest.approx(exact, abs=0.02 if noise < 0.35 else 0.13)


def test_snakes_are_one_component():
    picture = images.draw(a_scene(), generator(0))
    assert not images.detect(picture).found.any()
    for row in range(0, 16, 2):
        picture[0, 0, row] = 1.0
        picture[0, 0, row + 1, 15 if row % 4 == 0 else 0] = 1.0
    # 16 rows joined end to end: one component, which is no shape.
    label = images._components((picture[:, :1] > 0).expand(-1, 4, -1, -1))
    assert len(label[0, 0].unique()) == 2
    assert not images.detect(picture).found.any()


def condition(prompts):
    return Condition(prompts.float(), None, torch.ones(len(prompts)))


@BOTH
def test_rewards_come_in_the_order_asked_for(space):
    name = next(key for key, value in SPACES.items() if value is space)
    prompts, scenes = some(64, seed=20, corruption=0.5)
    x = space.draw(scenes, generator(21))
    states = States(x, torch.zeros(64, dtype=torch.int64), torch.ones(64, dtype=torch.bool))
    names = ("warm", "strict", "crisp", "cool", "top", "soft", "uncounted")
    oracle = SceneRewards(name, names)
    values = oracle(states, condition(prompts))
    assert values.shape == (64, 7) and [reward.name for reward in oracle.rewards] == list(names)
    assert values.min() >= 0 and values.max() <= 1
    aligned = alignment(objects(scenes), prompts)
    assert torch.equal(values[:, 1], aligned.strict) and torch.equal(values[:, 5], aligned.soft)
    assert torch.equal(values[:, 0] + values[:, 3], scenes.present.any(1).float())
    # One row at a time gives the same rewards.
    for i in range(5):
        one = States(*(value[i : i + 1] for value in states))
        assert torch.allclose(oracle(one, condition(prompts[i : i + 1]))[0], values[i])


def test_empty_pictures_are_neither_warm_nor_cool_nor_high():
    x = images.draw(a_scene(), generator(0))
    states = States(x, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool))
    oracle = SceneRewards("shapes16", ("warm", "cool", "top", "crisp"))
    assert oracle(states, condition(all_prompts()[:1])).tolist() == [[0, 0, 0, 1]]


def test_vectors_of_a_scene():
    x = vectors.draw(a_scene((1, 2, 0)), generator(0)).view(4, 8)
    wanted = torch.tensor([1, -1, -1, 1, -1, 1, -1, -1.0])
    assert (x[1] - wanted).abs().max() < 0.25
    assert (x[0] - torch.tensor([-1.0, *[0] * 7])).abs().max() < 0.25
    assert float(vectors.crispness(torch.zeros(1, 32))) == pytest.approx(1 - 4 / 32)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no scene space 'shapes'"):
        SceneRewards("shapes")
    with pytest.raises(ValueError, match="no reward 'nice'"):
        SceneRewards("scenevec", ("nice",))
    with pytest.raises(ValueError, match="need a reward"):
        SceneRewards("scenevec", ())


def test_the_detector_works_in_double_precision():
    _, scenes = some(20, seed=30)
    x = images.draw(scenes, generator(31))
    one, two = images.detect(x), images.detect(x.double())
    assert two.center.dtype == torch.float64
    assert all(torch.equal(a.double(), b.double()) for a, b in zip(one, two, strict=True))


def test_rewards_that_are_not_per_picture_are_refused():
    class Mean(SceneRewards):
        def __call__(self, objects, condition=None):
            return super().__call__(objects, condition).mean(0)

    env = flow((32,), time_grid(2), "euler")
    prompts, scenes = some(4)
    x = vectors.draw(scenes, generator(0))
    batch = Trajectories(
        torch.stack([x, x], 1), *[torch.zeros(4, 1, 0)] * 2, torch.ones(4, 1).bool(),
        condition(prompts),
    )  # fmt: skip
    assert Scorer(env, SceneRewards("scenevec"))(batch).rewards.shape == (4, 1)
    with pytest.raises(ValueError, match=r"shape \(1,\): one row for each of 4 objects"):
        Scorer(env, Mean("scenevec"))(batch)
    with pytest.raises(ValueError, match="give their conditions"):
        SceneRewards("scenevec")(batch.terminal)
