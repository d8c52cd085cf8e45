"""Named tasks: what they build, what they refuse, and a few steps of each by the command line."""

import os
import sys
from pathlib import Path

import pytest
import torch

from gflow.cli import main
from gflow.conditions import Conditions
from gflow.config import ConfigError, PolicySettings, RunConfig, SamplingSettings
from gflow.draw import draw, load_sampler
from gflow.objectives.catalog import METHODS
from gflow.pareto import non_dominated
from gflow.report.run import read_run
from gflow.sampling import OnPolicy, Scorer
from gflow.seeding import generator
from gflow.setup import prepare
from gflow.store import CandidateStore
from gflow.tasks import TASKS, make_task
from tests.envs.data import table

TINY = "--steps 2 --samples 2 --baseline false --sampling.batch_size 4 --policy.hidden 8"
FILES = {
    "tf_binding": "tf_binding.parquet",
    "qm9_blocks": "qm9str.parquet",
    "nas_bench_201": "nas_bench_201.parquet",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("GFLOW_DATA", raising=False)
    return tmp_path


def options(name):
    """What a task needs to be built here, and built quickly; skips where its file is missing."""
    if name in FILES:
        return {"path": str(table(FILES[name]))}
    if name.startswith("arithmetic"):
        return {"warm_start": "2"}
    return {"epochs": "1"} if name == "nas_training" else {}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_by_the_command_line(name, folder):
    words = " ".join(f"--options.{key} {value}" for key, value in options(name).items())
    main(f"train {name} {words} {TINY} --oracle.workers 0 --out run".split())
    task = make_task(name, None, options(name))
    with CandidateStore("run/candidates.sqlite") as store:
        found = store.candidates()
        assert [r.name for r in store.rewards] == [r.name for r in task.oracle.rewards]
    assert found and Path("run/report.html").is_file()
    if task.describe is not None:
        return
    states = task.env.encode([candidate.object for candidate in found])
    if task.oracle.on_states:
        recorded = torch.tensor([candidate.rewards for candidate in found]).double()
        torch.testing.assert_close(task.oracle(states), recorded, check_dtype=False)


@pytest.mark.parametrize("name", TASKS)
def test_docstrings_describe_every_option(name, capsys):
    main(["tasks"])
    shown = capsys.readouterr().out
    text = shown[shown.index(f"{name}: ") :].partition("\n\n")[0]
    for option in TASKS[name].__annotations__:
        if option != "return":
            flag = "--rewards" if option == "rewards" else f"--options.{option}"
            assert f"    {flag} (default " in text
    assert "Args:" not in shown


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_a_grid_or_says_why_not(method, folder, capsys):
    command = f"train grid_objectives --options.side 6 --method {method} {TINY} --out run"
    row = METHODS[method]
    if row.requires or {"outcome-conditional", "clean rewards"} & set(row.tags):
        with pytest.raises(SystemExit):
            main(command.split())
        page = "objectives" if "outcome-conditional" in row.tags else "denoising"
        assert f"see docs/{page}.md" in capsys.readouterr().err and not Path("run").exists()
    elif "paths" in row.defaults:
        with pytest.raises(SystemExit):
            main(command.split())
        assert "docs/denoising.md" in capsys.readouterr().err and not Path("run").exists()
    else:
        main(command.split())
        assert Path("run/CARD.md").is_file()


@pytest.mark.parametrize(
    "method", [name for name, row in METHODS.items() if "paths" in row.defaults]
)
def test_every_method_on_paths_fine_tunes_scenes(method, folder):
    main(f"train scenevec --method {method} {TINY} --out run".split())
    assert Path("run/CARD.md").is_file()


def test_what_methods_on_paths_have_learned_is_drawn_without_noise(folder, capsys):
    main(f"train scenevec --method flow_grpo {TINY} --out run".split())
    assert "step 2  mean_strict 0" in capsys.readouterr().out
    setup = load_sampler(Path("run"))
    drawn = draw(setup, None, 4, seed=0)
    # Only the starting noise has a density: the first numbers of the draw's generator.
    start = setup.task.env.noise(8, 4, generator(0, "rollout"), torch.float32, "cpu")[0]
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(start).sum(1)
    assert torch.allclose(drawn.log_pf, expected, atol=1e-4)
    assert setup.policy.env is setup.task.env


@pytest.mark.parametrize(
    ("words", "kept"),
    [("scenevec --method dance_grpo --options.prompt=1-square", 64), ("gmm9 --method vargrad", 32)],
)
def test_every_point_that_was_scored_is_a_call(words, kept, folder):
    """Scenes that read alike differ, and batches that are not kept were scored all the same."""
    command = f"train {words} {TINY} --sampling.batch_size 32 --out run".split()
    main([word.replace("1-square", "1 square") for word in command])
    with CandidateStore("run/candidates.sqlite") as store:
        found = store.candidates()
        assert store.oracle_calls == 64 and len(found) == kept
        assert kept == 32 or len({candidate.object for candidate in found}) < 64
    run = read_run(Path("run"))
    assert run.oracle_calls == 64 and len(run.samples[0].candidates) == 2
    assert not {c.key for c in run.samples[0].candidates} & {c.key for c in found}
    assert "64 objects scored" in Path("run/CARD.md").read_text()


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("--sampling.epsilon 0.1", "sampling.epsilon has no effect"),
        ("--sampling.temperature 2", "sampling.temperature has no effect"),
        ("--sampling.replay 8", "sampling.replay has no effect"),
        ("--sampling.inverse_temperature 8", "sampling.inverse_temperature has no effect"),
        ("--sampling.concentration 0.5", "sampling.concentration has no effect"),
        ("--options.steps 1", "at least 2 steps"),
    ],
)
def test_settings_that_paths_have_no_use_for_are_refused(words, refused, folder, capsys):
    with pytest.raises(SystemExit):
        main(f"train scenevec --method flow_grpo {words} {TINY} --out run".split())
    assert refused in capsys.readouterr().err and not Path("run").exists()


def test_clip_bounds_of_methods_on_paths_suit_the_size_of_a_point():
    def objective(task, **sampling):
        settings = SamplingSettings(**sampling)
        return prepare(RunConfig(task=task, method="flow_grpo", sampling=settings)).objective

    for task, size in (("scenevec", 32), ("shapes16", 768)):
        low, high = objective(task).clip
        assert high - 1 == pytest.approx(1e-4 * (65_536 / size) ** 0.5) == 1 - low
    assert objective("scenevec").combine == "sum_then_norm"
    assert objective("scenevec", scalarization="tchebycheff").combine == "scalarized"


def test_guidance_makes_pictures_follow_their_prompts(folder):
    scores = []
    for guidance in (1.0, 2.0):
        words = f"train scenevec --method flow_grpo {TINY} --trainer.learning_rate 1e-9"
        main(f"{words} --options.guidance {guidance} --out run{guidance}".split())
        setup = load_sampler(Path(f"run{guidance}"))
        scores.append(float(draw(setup, None, 212, seed=0).rewards.mean()))
    assert scores[1] > scores[0] + 0.1


def test_prompts_come_with_preferences(folder, capsys):
    words = f"train scenevec --method flow_grpo --rewards soft,warm {TINY} --out run".split()
    main([*words, "--options.preferences=true", "--options.prompt=2 squares"])
    main("sample run -n 3 --preference soft=0.25,warm=0.75 -o drawn.csv".split())
    assert "3 drawn" in capsys.readouterr().out
    with CandidateStore("run/candidates.sqlite") as store:
        assert all(c.object.startswith("2 squares: ") for c in store.candidates())
        assert all(c.preference is not None for c in store.candidates())


def test_a_methods_own_settings_hold_unless_the_user_says_otherwise():
    def setup(task="grid_objectives", **settings):
        policy = settings.pop("policy", PolicySettings())
        method = settings.pop("method")
        return prepare(
            RunConfig(task, method, policy=policy, sampling=SamplingSettings(**settings))
        )

    goal = setup(method="goal_conditioned")
    assert goal.scalarization == "focus" and goal.conditions.inverse_temperature.a == 60
    assert setup(method="goal_conditioned", scalarization="weighted_sum").scalarization[0] == "w"
    pessimistic = setup(method="tb_pessimistic")
    assert pessimistic.replay == 64 and pessimistic.policy.backward == "learned"
    assert setup(method="tb_pessimistic", replay=0).replay == 0
    chosen = setup(method="tb_tlm", policy=PolicySettings(backward="paths"))
    assert chosen.policy.backward == "paths"
    usual = METHODS["mogfn_pc"].defaults["concentration"]
    assert setup(method="mogfn_pc").conditions.concentration == usual
    assert setup(method="mogfn_pc", concentration=0.5).conditions.concentration == 0.5
    # Orders do not see an exponent, so that a range of them would only split the groups.
    assert setup("molecules", method="op_tb").conditions.encoding_size == 0
    assert setup("bit_sequences", method="tb").conditions.inverse_temperature.a == 20


@pytest.mark.parametrize("method", ["gdpo_elbo", "diffu_grpo", "grpo", "tb"])
def test_masked_language_models_by_the_command_line(method, folder):
    # The method says which likelihood of finished rows it wants; others train on paths.
    size = "--steps 2 --samples 2 --baseline false --sampling.batch_size 12 --policy.hidden 8"
    task = "arithmetic_masked --options.warm_start 2"
    main(f"train {task} --method {method} {size} --out run".split())
    main("sample run -n 4 -o some.csv".split())
    assert len(Path("some.csv").read_text().splitlines()) > 1


@pytest.mark.parametrize("name", ["hypergrid", "grid_objectives", "sets"])
def test_partial_rewards_end_in_the_reward(name):
    task = make_task(name)
    assert task.partial_rewards
    policy = task.make_policy(PolicySettings(hidden=8), 0, flow=False, energy=False, seed=0)
    scorer = Scorer(task.env, task.oracle, partial=True)
    batch = OnPolicy(policy, Conditions(len(task.oracle.rewards)), scorer, 16, 0)()
    row = torch.arange(batch.n)
    ends = batch.partial_log_reward[row, batch.lengths]
    torch.testing.assert_close(ends, batch.log_reward)
    assert len(batch.partial_log_reward[:, 0].unique()) == 1


def test_the_border_decides_which_grid_points_exist():
    published = make_task("grid_objectives")
    assert published.env.all_terminal_states().n == 1023
    front = non_dominated(published.oracle(published.env.all_terminal_states()))
    assert int(front.sum()) == 36
    whole = make_task("grid_objectives", "branin,currin,beale", {"border": "false", "side": "8"})
    assert whole.env.all_terminal_states().n == 64 and len(whole.oracle.rewards) == 3


def test_bit_rewards_stay_within_what_scalarisations_can_tell_apart():
    task = make_task("bit_sequences", None, {"bits": 16, "modes": 3, "word": 4})
    states = task.env.encode(["0" * 16, "01" * 8])
    assert float(task.oracle(states).min()) > 1e-8
    assert make_task("bit_sequences").oracle.rewards[0].low > 1e-8


@pytest.mark.parametrize("order", ["slots", "append", "prepend_append", "insert"])
def test_bits_are_built_in_any_order(order):
    env = make_task("bit_sequences", None, {"bits": 8, "word": 2, "order": order}).env
    assert env.decode(env.encode(["01101100"])) == ["01101100"]


def test_factors_to_bind_and_to_avoid():
    path = str(table(FILES["tf_binding"]))
    task = make_task("tf_binding", None, {"path": path, "bind": "SIX6, PAX4", "avoid": "VSX1"})
    assert [r.name for r in task.oracle.rewards] == ["bind SIX6", "bind PAX4", "avoid VSX1"]
    assert task.inverse_temperature is None
    assert make_task("tf_binding", None, {"path": path}).inverse_temperature == "3"
    with pytest.raises(ValueError, match="has no column 'SIX9'; it has SIX6"):
        make_task("tf_binding", None, {"path": path, "bind": "SIX9"})


def test_data_is_looked_for_in_the_named_folder(monkeypatch):
    path = table(FILES["nas_bench_201"])
    monkeypatch.setenv("GFLOW_DATA", str(path.parent))
    assert len(make_task("nas_bench_201").oracle.rewards) == 3
    monkeypatch.setenv("GFLOW_DATA", os.devnull)
    with pytest.raises((FileNotFoundError, NotADirectoryError), match=r"nas_bench_201\.parquet"):
        make_task("nas_bench_201")


@pytest.mark.parametrize(
    ("name", "rewards", "given", "said"),
    [
        ("hypergird", None, {}, "there is no task 'hypergird': did you mean hypergrid?"),
        ("hypergrid", None, {"dimension": 2}, "has no option 'dimension': did you mean dim?"),
        ("hypergrid", None, {"side": "wide"}, "'side' must be a whole number, not 'wide'"),
        ("hypergrid", None, {"side": 2.5}, "'side' must be a whole number, not 2.5"),
        ("hypergrid", None, {"r0": "low"}, "'r0' must be a number, not 'low'"),
        ("hypergrid", "corner", {}, "no rewards to choose from"),
        ("grid_objectives", "branin,curin", {}, "no grid objective 'curin'"),
        ("grid_objectives", "", {}, "must be named once each"),
        ("grid_objectives", None, {"border": "maybe"}, "'border' must be true or false"),
        ("sets", None, {"problem": "tiny"}, "no set problem 'tiny': choose from small"),
        ("bit_sequences", None, {"order": "slot"}, "no order 'slot': did you mean slots?"),
        ("bit_sequences", None, {"bits": 12}, "12 is no multiple of 8"),
        ("bit_sequences", None, {"word": 7}, "a multiple of k=7"),
        ("ngrams", "AB", {}, "'AB' can never occur: 'B' is not in the vocabulary"),
        ("ngrams", None, {"min_length": 40}, "min_length must lie in 0..36"),
    ],
)
def test_bad_tasks_are_one_sentence(name, rewards, given, said):
    with pytest.raises(ValueError) as refused:
        make_task(name, rewards, given)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_data_says_what_to_give(name, monkeypatch):
    monkeypatch.delenv("GFLOW_DATA", raising=False)
    with pytest.raises(ConfigError, match=f"the file {FILES[name]}, or set GFLOW_DATA"):
        make_task(name)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("tf_binding", {"path": "lost.parquet"}, "there is no file lost.parquet"),
        ("tf_binding", {"path": "."}, r"\. has no table of 'SIX6'; it has no \.txt or \.tsv file"),
        ("nas_bench_201", {"path": "."}, r"reading \. needs nats_bench: install it"),
        ("nas_bench_201", {"path": "t.parquet", "epochs": 200}, "epochs must be 12"),
        ("nas_digits", {}, "there is no reward 'speed': choose from accuracy"),
        ("nas_training", {"epochs": 0}, "epochs must be at least 1, not 0"),
        ("nas_training", {}, r"needs scikit-learn: .*gflow\[digits\]"),
    ],
)
def test_what_measured_tasks_lack_is_one_sentence(task, options, message, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nats_bench", None)
    if not options and task == "nas_training":
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    rewards = "accuracy,speed" if task == "nas_digits" else None
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(RunConfig(task=task, rewards=rewards, options=options))
    assert "\n" not in str(caught.value)
