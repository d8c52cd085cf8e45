"""The command line; `COMMANDS` lists what it knows."""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Never

from gflow.active.cli import propose, tell
from gflow.active.settings import SessionConfig
from gflow.config import ConfigError, RunConfig, one_sentence
from gflow.importing import import_file

DESCRIPTION = "Many different good candidates under conflicting goals."


def train(config: RunConfig) -> None:
    """Train a sampler: gflow train TASK --rewards ... --method ... --out FOLDER."""
    from gflow.run import Run

    run = Run(config)
    _train(run, config.steps)


def resume(folder: str, steps: int = 0) -> None:
    """Go on with a run that was stopped or killed.

    Args:
        folder: the run's folder.
        steps: train to this many steps in all; 0 takes the number the run was started with.
    """
    from gflow.run import Run

    config = RunConfig.load(Path(folder) / "config.yaml")
    config.out = folder
    run = Run(config, resume=True)
    _train(run, steps or config.steps)


def _train(run: Any, steps: int) -> None:
    from gflow.card import write_card
    from gflow.draw import write_samples
    from gflow.report import write_report
    from gflow.run import run_baseline

    folder, setup = run.folder, run.setup
    started = time.perf_counter()
    try:
        run.train(steps)
        if run.trainer.step < steps:
            print(
                f"stopped at step {run.trainer.step} and saved: gflow resume {folder}", flush=True
            )
            return
        seconds = time.perf_counter() - started
        if not run.runtime.is_main:
            return
        if setup.config.baseline and not setup.task.env.continuous:
            print("random construction at the same number of oracle calls", flush=True)
            run_baseline(setup, folder, run.store.oracle_calls)
        samples = write_samples(setup, folder, run.store)
        _copy_known(setup, folder)
    finally:
        run.close()
    write_card(setup, folder, samples, seconds)
    path = write_report(folder)
    print(f"report: {path}\nask again: gflow sample {folder} -n 100 -o more.csv", flush=True)


def _copy_known(setup: Any, folder: Path) -> None:
    """Keep the known objects beside the run, for the report's novelty."""
    from gflow.export import read_objects

    if setup.config.known is not None:
        lines = [text for _, text in read_objects(setup.config.known)]
        (folder / "known.smi").write_text("\n".join(lines) + "\n")


def sample(
    folder: str,
    n: int = 100,
    preference: str | None = None,
    inverse_temperature: float | None = None,
    output: str = "samples.csv",
    seed: int = 0,
) -> None:
    """Ask the sampler of a finished or running run for candidates.

    Args:
        folder: the run's folder.
        n: how many to draw.
        preference: what to ask for, such as qed=0.7,sa=0.3; drawn as in training when left out.
        inverse_temperature: how sharply; only for runs trained with a range.
        output: file to write: .csv, .sdf, .smi, .jsonl or .parquet.
        seed: another seed gives other candidates.
    """
    import torch

    from gflow.candidates import Candidate
    from gflow.draw import draw, load_sampler, parse_preference
    from gflow.export import export, writer_of
    from gflow.store import CandidateStore

    place = Path(folder)
    writer_of(Path(output))
    setup = load_sampler(place)
    torch.set_num_threads(setup.config.threads)
    rewards = setup.task.oracle.rewards
    weights = None if preference is None else parse_preference(preference, rewards)
    with CandidateStore(place / "candidates.sqlite") as store:
        drawn = draw(setup, weights, n, seed, inverse_temperature, store)
    now = time.time()
    distinct: dict[str, Candidate] = {}
    for i, key in enumerate(drawn.keys):
        failed = drawn.reasons[i] is not None or bool(drawn.rewards[i].isnan().any())
        asked = drawn.condition.preference
        distinct.setdefault(
            key,
            Candidate(
                key=key,
                object=drawn.objects[i],
                rewards=None if failed else tuple(drawn.rewards[i].tolist()),
                reason=drawn.reasons[i],
                oracle_call=None,
                preference=None if asked is None else tuple(asked[i].tolist()),
                inverse_temperature=float(drawn.condition.inverse_temperature[i]),
                log_reward=None,
                log_pf=float(drawn.log_pf[i]),
                source="policy",
                step=0,
                first_seen=now,
                last_seen=now,
                count=drawn.keys.count(key),
            ),
        )
    column = "smiles" if setup.task.kind == "molecule" else "object"
    good = [candidate for candidate in distinct.values() if candidate.rewards is not None]
    path = export(list(distinct.values()), output, rewards, column=column)
    means = ", ".join(
        f"{reward.name} {sum(c.rewards[k] for c in good if c.rewards) / max(len(good), 1):.3f}"
        for k, reward in enumerate(rewards)
    )
    print(f"{n} drawn, {len(distinct)} distinct, {len(good)} valid; mean {means}\n{path}")


def report(folder: str, output: str | None = None) -> None:
    """Write the report of a finished or running run as one HTML file.

    Args:
        folder: the run's folder.
        output: the file; report.html in the run's folder by default.
    """
    from gflow.report import write_report

    print(write_report(Path(folder), None if output is None else Path(output)))


def fragments(
    known: str,
    output: str = "fragments.csv",
    column: str | None = None,
    min_count: int = 2,
    max_fragments: int = 200,
) -> None:
    """Cut known molecules into a vocabulary of fragments.

    Args:
        known: CSV or SMILES file of molecules.
        output: the vocabulary to write.
        column: name of the SMILES column; guessed when left out.
        min_count: occurrences a fragment needs.
        max_fragments: keep so many of the most frequent ones.
    """
    from gflow.envs.molecules import fragment_molecules

    try:
        cut = fragment_molecules(
            known, column=column, min_count=min_count, max_fragments=max_fragments
        )
    except (ValueError, OSError) as error:
        raise ConfigError(one_sentence(error)) from error
    cut.vocabulary.save(output)
    print(cut.summary())


def tasks() -> None:
    """List the tasks and their options."""
    from gflow.tasks import TASKS

    for name, function in TASKS.items():
        documentation = inspect.getdoc(function) or ""
        first, _, rest = documentation.partition("\n")
        print(f"{name}: {first}")
        defaults = {p.name: p.default for p in inspect.signature(function).parameters.values()}
        for line in rest.splitlines():
            option, _, text = line.strip().partition(": ")
            if option in defaults:
                flag = "--rewards" if option == "rewards" else f"--options.{option}"
                print(f"    {flag} (default {defaults[option]}): {text}")
            elif text or (line.strip() and line.strip() != "Args:"):
                print(f"        {line.strip()}")


def methods() -> None:
    """List the methods with their papers."""
    from gflow.objectives.catalog import METHODS

    for method in METHODS.values():
        print(f"{method.name}: {method.summary}")
        print(f"    {method.paper} ({method.year}, arXiv {method.arxiv}); {', '.join(method.tags)}")


def bench(
    name: str,
    quick: bool = False,
    plan: str | None = None,
    out: str | None = None,
    problems: str = "",
    contestants: str = "",
    seeds: int = 0,
    workers: int = 0,
    ray: bool = False,
) -> None:
    """Run a benchmark and print its table; a killed one goes on where it was.

    Args:
        name: pareto-metrics, fronts or policies.
        quick: a smaller setting.
        plan: YAML file of problems, contestants and seeds, in place of the shipped plan.
        out: folder of the benchmark; runs/bench-PLAN when left out.
        problems: only these problems of the plan, separated by commas.
        contestants: only these contestants of the plan, separated by commas.
        seeds: number of seeds; 0 takes the plan's.
        workers: runs at a time; 0 takes one for each processor.
        ray: hand the runs to Ray (needs the extra gflow[distributed]).
    """
    from gflow.tasks import near

    if name == "pareto-metrics":
        from gflow.pareto.bench import run as metrics

        metrics(quick=quick)
    elif name in ("fronts", "policies"):
        from gflow.bench.cli import run

        run(name, quick, plan, out, problems, contestants, seeds, workers, ray)
    else:
        known = ("pareto-metrics", "fronts", "policies")
        raise ConfigError(f"there is no benchmark {name!r}: {near(name, known)}")


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "resume": resume,
    "sample": sample,
    "report": report,
    "fragments": fragments,
    "import": import_file,
    "propose": propose,
    "tell": tell,
    "tasks": tasks,
    "methods": methods,
    "bench": bench,
}
SHORT = {"output": "-o", "n": "-n"}


def build_parser() -> Any:
    """The argument parser with one subcommand per function."""
    from jsonargparse import ArgumentParser as Parser

    class ArgumentParser(Parser):  # type: ignore[misc]
        """Says what is wrong in one line."""

        def error(self, message: str, ex: Exception | None = None) -> Never:
            """Print `message` and leave."""
            text = " ".join(message.split())
            print(f"gflow: {text} (gflow --help, or gflow COMMAND --help)", file=sys.stderr)
            raise SystemExit(2)

    parser = ArgumentParser(prog="gflow", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=_version())
    subcommands = parser.add_subcommands(dest="command", required=True)
    for name, function in COMMANDS.items():
        first = (inspect.getdoc(function) or "").partition("\n")[0]
        command = ArgumentParser(description=first)
        if name == "train":
            command.add_argument("--config", action="config", help="YAML file of settings")
            command.add_class_arguments(RunConfig)
        else:
            for parameter in inspect.signature(function).parameters.values():
                if parameter.kind is not parameter.VAR_KEYWORD:
                    _add_parameter(command, function, parameter)
        if name == "propose":
            command.add_class_arguments(SessionConfig)
        subcommands.add_subcommand(name, command, help=first)
    return parser


def _add_parameter(
    command: Any, function: Callable[..., None], parameter: inspect.Parameter
) -> None:
    import typing

    kind = typing.get_type_hints(function)[parameter.name]
    lines = (inspect.getdoc(function) or "").splitlines()
    texts = [
        line.split(": ", 1)[1] for line in lines if line.strip().startswith(f"{parameter.name}: ")
    ]
    options: dict[str, Any] = {"type": kind, "help": " ".join(texts)}
    if parameter.default is inspect.Parameter.empty:
        command.add_argument(parameter.name, **options)
        return
    names = [SHORT[parameter.name]] if parameter.name in SHORT else []
    if len(parameter.name) > 1:
        names.append(f"--{parameter.name}")
    if kind is bool:
        options = {"action": "store_true", "help": options["help"]}
    command.add_argument(*names, default=parameter.default, **options)


def _version() -> str:
    from gflow import __version__

    return f"gflow {__version__}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `gflow` command."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if len(argv) > 1 and argv[0] == "train" and not argv[1].startswith("-"):
        # TASK may come from a file too; given on the command line it comes last and wins.
        argv = [argv[0], *argv[2:], f"--task={argv[1]}"]
    # Users' reward functions lie in the folder they work in.
    sys.path.insert(0, os.getcwd())
    parser = build_parser()
    chosen = parser.parse_args(argv)
    settings = chosen[chosen.command]
    function = COMMANDS[chosen.command]
    try:
        if function is train:
            settings.pop("config", None)
            from gflow.config import from_dict

            train(from_dict(settings.as_dict(), "command line"))
        else:
            function(**settings.as_dict())
    except _known_errors() as error:
        print(f"gflow: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("gflow: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _known_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is all a user needs."""
    from gflow.active.settings import SessionError
    from gflow.oracles import OracleError
    from gflow.report import ReportError
    from gflow.store import StoreError
    from gflow.training import CheckpointError, TrainingError

    stores = (StoreError, SessionError)
    return (ConfigError, OracleError, ReportError, *stores, CheckpointError, TrainingError)


if __name__ == "__main__":
    main()
