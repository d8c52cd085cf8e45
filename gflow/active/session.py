"""Ask for objects to measure, tell what was measured, in any order and over any number of days."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from gflow.active.features import Features, featurizer
from gflow.active.files import Results, parser, read_results, write_plate
from gflow.active.proposer import Proposer
from gflow.active.rounds import Round, active_set, fit_surrogate
from gflow.active.settings import SessionConfig, SessionError
from gflow.candidates import Candidate, stack_rewards
from gflow.config import ConfigError, load_settings, one_sentence, save_settings
from gflow.mdp import Reward, States
from gflow.oracles import OracleRunner
from gflow.pareto import hypervolume
from gflow.seeding import generator
from gflow.store import CandidateStore
from gflow.tasks import Task, make_task
from gflow.training import load_checkpoint, save_checkpoint
from gflow.training.checkpoint import list_checkpoints, write_atomically

PROPOSED = "proposed"
"""Source of the objects that a session asked to be measured."""


class Told(NamedTuple):
    """What became of the results that were told.

    Attributes:
        stored: how many objects have results now that had none.
        corrected: keys of objects whose earlier results were replaced.
        repeated: how many objects had the same results already.
        unproposed: keys of stored objects that no round had proposed.
    """

    stored: int
    corrected: list[str]
    repeated: int
    unproposed: list[str]


@dataclass(frozen=True)
class Progress:
    """Where a session stood after the results of a round.

    Attributes:
        round: its number; 0 is what was known before the first.
        proposed: objects it proposed.
        measured: objects with results of this and all earlier rounds.
        hypervolume: of those, from the session's reference point.
    """

    round: int
    proposed: int
    measured: int
    hypervolume: float


class Session:
    """An active-learning session in a folder, whose state is the candidate store there.

    Every call reads the store and changes it in one transaction, so the process may end at any
    moment, and other processes may tell results meanwhile. Random numbers depend on the seed, the
    number of the round and what is known: an `ask` that was interrupted and is called again
    proposes the same batch. (MOGFN-AL of Multi-Objective GFlowNets, 2022, arXiv 2210.12765.)

    Args:
        folder: made when it is missing.
        config: settings of a new session; None continues the one in the folder.
        task: the task, when it is none of the named ones; else `config.task` is built.

    Attributes:
        rewards: the K rewards, measured ones first, then those the task computes.
        n_measured: how many of them are measured; all of them unless `config.measure` is set.
        started_from: what was taken from `config.start`, where this call started the session.

    Raises:
        ConfigError: bad settings, or settings that differ from those of the folder's session.
        StoreError: the store cannot be opened.
    """

    def __init__(
        self, folder: str | Path, config: SessionConfig | None = None, task: Task | None = None
    ):
        self.folder = Path(folder)
        path = self.folder / "session.yaml"
        fresh = config is not None and not path.exists()
        self.config = config = config if fresh and config is not None else self._saved(path, config)
        try:
            self.task = task or make_task(config.task, config.rewards, config.options)
        except (ValueError, OSError, ImportError) as error:
            raise ConfigError(one_sentence(error)) from error
        measured = config.measured()
        computed = self.task.oracle.rewards if measured else ()
        self.rewards: tuple[Reward, ...] = (measured or self.task.oracle.rewards) + computed
        self.n_measured = len(self.rewards) - len(computed)
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ConfigError(f"rewards {', '.join(names)}: every name must be there once")
        lows = [reward.low for reward in measured]
        self.reference = torch.tensor([*lows, *self.task.reference_point], dtype=torch.float64)
        if self.task.kind == "molecule":
            from gflow.envs.molecules.chemistry import canonical_smiles

            self.key: Callable[[Any], str] = canonical_smiles
        else:
            self.key = self.task.key
        describe = featurizer(self.task.env, self.task.kind)
        self.features = Features(
            (lambda objects: torch.cat([describe(objects), self._computed(objects)], 1))
            if computed
            else describe
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store = CandidateStore(self.folder / "candidates.sqlite", self.rewards)
        self.started_from: str | None = None
        if fresh:
            try:
                self._start(config)
            except BaseException:
                self.close()
                raise
            # Last: until then the next call starts again.
            save_settings(config, path)

    @staticmethod
    def _saved(path: Path, config: SessionConfig | None) -> SessionConfig:
        if not path.is_file():
            raise ConfigError(f"{path.parent} holds no session; gflow propose starts one")
        saved = load_settings(SessionConfig(), path)
        kept, usual = asdict(saved), asdict(SessionConfig())
        for name, value in asdict(config or saved).items():
            if value not in (usual[name], kept[name]):
                raise ConfigError(
                    f"{path.parent} holds a session with {name} {kept[name]!r}, not {value!r}: "
                    "leave it out to go on, or choose another folder"
                )
        return saved

    def _start(self, config: SessionConfig) -> None:
        if config.start is not None:
            found = self.read(config.start)
            self.started_from = found.account
            self.tell(found.objects, found.values, found.reasons)

    def ask(self, n: int) -> list[Any]:
        """Propose a batch of `n` new objects and note them as pending.

        With fewer than two measured objects the batch is random.

        Returns:
            The objects; fewer than `n` when the sampler met fewer that are new.

        Raises:
            ValueError: n below 1.
            SessionError: the sampler met nothing new, or another process was faster.
        """
        if n < 1:
            raise ValueError(f"a batch holds at least 1 object, not {n}")
        torch.set_num_threads(self.config.threads)
        number = self.round + 1
        known = self.store.candidates("1")
        measured = [candidate for candidate in known if candidate.rewards is not None]
        proposer = Proposer(self.task, len(self.rewards), self.config, self.key)
        if len(measured) < 2:
            batch = self._random(proposer, n, number, known)
        else:
            self._continue(proposer)
            batch = self._search(proposer, n, number, known, measured)
        if not batch:
            raise SessionError(
                f"{self.folder}: the sampler met nothing that is not measured or pending already"
            )
        if self.round >= number:
            raise SessionError(
                f"{self.folder}: another process proposed round {number} meanwhile; ask again"
            )
        self.store.add(batch, [self.key(item) for item in batch], source=PROPOSED, step=number)
        if len(measured) >= 2:
            # After the batch: what a killed ask has not noted, the next one trains again.
            state = {"policy": proposer.policy.state_dict()}
            save_checkpoint(self.folder / "checkpoints", number, state, keep=1)
        self._write_progress()
        return batch

    def tell(
        self,
        objects: Sequence[Any],
        values: Tensor | Sequence[Sequence[float]],
        reasons: Sequence[str | None] | None = None,
    ) -> Told:
        """Store results, in one transaction.

        Results may come late, in parts, in any order and twice; a later result of an object
        replaces an earlier one. Objects that were never proposed are as welcome as the others.

        Args:
            objects: n objects.
            values: [n, number of measured rewards], maximised; a row with NaN is a failure.
            reasons: n reasons of failure, None where there is none.

        Raises:
            ValueError: wrong shapes, or values that are infinite.
        """
        given = torch.as_tensor(values, dtype=torch.float64)
        if given.shape != (len(objects), self.n_measured):
            raise ValueError(
                f"values of {len(objects)} objects must be [{len(objects)}, {self.n_measured}], "
                f"not {list(given.shape)}"
            )
        if bool(given.isinf().any()):
            raise ValueError(f"value {int(given.isinf().any(1).nonzero()[0])} is infinite")
        keys = [self.key(item) for item in objects]
        why = list(reasons or [None] * len(keys))
        rewards = given
        if self.n_measured < len(self.rewards):
            computed = self._computed(objects)
            rewards = torch.cat([given, computed], 1)
            for i in computed.isnan().any(1).nonzero().squeeze(1).tolist():
                why[i] = why[i] or "its computed rewards failed"
        known = {c.key: c for c in self.store.candidates("1")}
        # Of an object told twice the last result counts.
        last = {key: i for i, key in enumerate(keys)}
        fresh, corrected = [], []
        for key, i in last.items():
            old = known.get(key)
            if old is None or (old.rewards is None and old.reason is None):
                fresh.append(i)
            elif not _same(old, rewards[i], why[i]):
                corrected.append(i)
        rows = fresh + corrected
        self.store.add(
            [objects[i] for i in rows],
            [keys[i] for i in rows],
            rewards[rows],
            [why[i] for i in rows],
            source="told",
            step=self.round,
            replace=True,
        )
        self._write_progress()
        proposed = {c.key for c in known.values() if c.source == PROPOSED}
        return Told(
            len(fresh),
            [keys[i] for i in corrected],
            len(last) - len(rows),
            [keys[i] for i in rows if keys[i] not in proposed],
        )

    def read(self, path: str | Path) -> Results:
        """Results from a file, as `tell` takes them; see `read_results`."""
        columns = self.config.measured()
        if not columns:
            # A task's rewards are scores on a scale of their own, turned round already.
            columns = tuple(reward._replace(flipped=False) for reward in self.rewards)
        return read_results(path, columns, parser(self.task.env, self.task.kind), self.key)

    def undelivered(self) -> int | None:
        """The earliest round whose batch no `deliver` has handed over."""
        rounds = sorted({candidate.step for candidate in self._proposed()})
        return next((number for number in rounds if not self._plate(number).exists()), None)

    def deliver(self, number: int, path: Path) -> list[Candidate]:
        """Write a round's batch to a CSV file, and keep a copy in the folder's `plates`."""
        batch, measured = self.batch(number), self.rewards[: self.n_measured]
        write_plate(path, batch, measured, self.task.kind)
        # The copy comes last: it says that the batch was handed over.
        self._plate(number).parent.mkdir(exist_ok=True)
        write_plate(self._plate(number), batch, measured, self.task.kind)
        return batch

    def _plate(self, number: int) -> Path:
        return self.folder / "plates" / f"round_{number:03d}.csv"

    @property
    def round(self) -> int:
        """Number of the last round, 0 before the first."""
        steps = [candidate.step for candidate in self._proposed()]
        return max(steps, default=0)

    def batch(self, number: int) -> list[Candidate]:
        """What a round proposed."""
        return self.store.candidates("source = ? AND step = ?", (PROPOSED, number))

    def pending(self) -> list[Candidate]:
        """Proposed objects without a result."""
        return [c for c in self._proposed() if c.rewards is None and c.reason is None]

    def measured(self) -> list[Candidate]:
        """Objects with results, in the order in which they were told."""
        return self.store.candidates()

    def progress(self) -> list[Progress]:
        """Round by round, what was measured and its hypervolume; late results count in theirs."""
        proposed = [candidate.step for candidate in self._proposed()]
        measured = self.measured()
        rewards = stack_rewards(measured, len(self.rewards))
        steps = torch.tensor([candidate.step for candidate in measured], dtype=torch.int64)
        rounds = []
        for number in range(self.round + 1):
            so_far = rewards[steps <= number]
            above = so_far[(so_far > self.reference).all(1)]
            volume = float(hypervolume(above, self.reference)) if len(above) else 0.0
            rounds.append(Progress(number, proposed.count(number), len(so_far), volume))
        return rounds

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _proposed(self) -> list[Candidate]:
        return self.store.candidates("source = ?", (PROPOSED,))

    def _random(
        self, proposer: Proposer, n: int, number: int, known: Sequence[Candidate]
    ) -> list[Any]:
        taken = {candidate.key for candidate in known}
        drawn = {self.key(item): item for item in proposer.random(max(4 * n, 256), number)}
        return [item for key, item in drawn.items() if key not in taken][:n]

    def _search(
        self,
        proposer: Proposer,
        n: int,
        number: int,
        known: Sequence[Candidate],
        measured: Sequence[Candidate],
    ) -> list[Any]:
        """Fit, train the sampler on the acquisition, and choose from all it met."""
        n_computed = len(self.rewards) - self.n_measured
        rewards = stack_rewards(measured, len(self.rewards))
        features = self.features([candidate.object for candidate in measured])
        awaited = [c.object for c in known if c.rewards is None and c.reason is None]
        pending = self.features(awaited) if awaited else features[:0]
        seed = self.config.seed
        surrogate = fit_surrogate(self.config.surrogate, features, rewards, n_computed, seed)
        taken = {candidate.key for candidate in known}
        this = Round(
            surrogate, self.features, features, pending, rewards, self.reference, taken, self.key,
            generator(seed, "acquisition", number),
        )  # fmt: skip
        value = this.upper_bounds if proposer.vector else this.log_improvement
        starts = [measured[place].object for place in active_set(rewards)]
        met = proposer.search(value, number, starts)
        objects = [item for item, _ in met.values()]
        if proposer.vector:
            values = this.log_improvement(objects).squeeze(1)
        else:
            values = torch.stack([value for _, value in met.values()]).squeeze(1)
        return this.choose(objects, values, n)

    def _continue(self, proposer: Proposer) -> None:
        """Take over the weights of the last round, if there was one."""
        if found := list_checkpoints(self.folder / "checkpoints"):
            proposer.policy.load_state_dict(load_checkpoint(found[-1])["policy"])

    def _computed(self, objects: Sequence[Any]) -> Tensor:
        """What the task's oracle says of n objects, [n, K] float64; NaN rows where it fails."""
        oracle = self.task.oracle
        if oracle.on_states:
            states: States = self.task.env.encode(objects)
            return oracle(states).double()
        runner = OracleRunner(oracle, self.key, max_failed=1.0)
        return runner.evaluate(objects).rewards

    def _write_progress(self) -> None:
        """The rounds as `metrics.jsonl`, for the report."""
        lines = [
            json.dumps(
                {
                    "step": row.round,
                    "hypervolume": row.hypervolume,
                    "measured": row.measured,
                    "proposed": row.proposed,
                }
            )
            for row in self.progress()
        ]
        text = "".join(line + "\n" for line in lines).encode()
        write_atomically(self.folder / "metrics.jsonl", lambda file: file.write(text))


def _same(old: Candidate, rewards: Tensor, reason: str | None) -> bool:
    if reason is not None or bool(rewards.isnan().any()):
        return old.rewards is None and old.reason == (reason or "no value")
    return old.rewards == tuple(rewards.tolist())
