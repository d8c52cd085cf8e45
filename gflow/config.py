"""Settings of a run, as they stand in `config.yaml`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from gflow.training.checkpoint import write_atomically
from gflow.training.trainer import TrainerSettings

_Settings = TypeVar("_Settings")

BACKWARD = ("uniform", "learned", "paths", "tree")


class ConfigError(ValueError):
    """A setting that cannot be used; the message names it."""


def one_sentence(error: Exception) -> str:
    """What to tell the user of an error met while reading their input."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def require(settings: Any, **rules: tuple[bool, str]) -> None:
    """Refuse settings out of their range; a rule is whether it is met, and what is wanted.

    Raises:
        ConfigError: naming the first setting whose rule is not met.
    """
    for name, (met, wanted) in rules.items():
        if not met:
            raise ConfigError(f"{name} must be {wanted}, not {getattr(settings, name)}")


@dataclass
class PolicySettings:
    """The policy network.

    Attributes:
        hidden: width of the hidden layers; 0 takes the task's default.
        layers: number of layers; 0 takes the task's default.
        backward: backward policy: uniform, learned, paths or tree; none takes the task's default.
    """

    hidden: int = 0
    layers: int = 0
    backward: str | None = None

    def __post_init__(self) -> None:
        require(
            self,
            hidden=(self.hidden >= 0, "0 or more"),
            layers=(self.layers >= 0, "0 or more"),
            backward=(
                self.backward in (None, *BACKWARD),
                f"one of {', '.join(BACKWARD)}",
            ),
        )


@dataclass
class SamplingSettings:
    """Where the batches come from.

    Attributes:
        batch_size: new trajectories per step.
        group_size: trajectories that share one preference and inverse temperature; none takes the
            method's default.
        epsilon: probability of an even choice among legal actions, at each step; none takes the
            method's default, or 0.1, or 0 where actions are points.
        temperature: logits of the behaviour policy are divided by it; the variance of the steps
            of points is multiplied by it.
        cooling: batches over which epsilon falls to 0 and the temperature to 1; 0 keeps them.
        replay: replayed trajectories added to each batch, 0 for none; none takes the method's
            default.
        replay_capacity: trajectories kept for replay.
        scalarization: weighted_sum, weighted_log_sum, tchebycheff, focus or log_linear; none
            takes the method's or the task's default.
        inverse_temperature: exponent of the scalarised reward: a number, or a distribution such
            as uniform:1..32 or gamma:16..1, which the policy then sees; none takes the task's
            or the method's default.
        concentration: Dirichlet parameter of the preferences; none takes the method's default.
        pool: preferences drawn once and asked for again and again, for methods that keep statistics
            of each; 0 draws new ones every time, none takes the method's default.
        redraw: batches drawn in place of one, at most, until it is full of groups whose rewards
            differ; 1 keeps all groups, none takes the method's default.
    """

    batch_size: int = 64
    group_size: int | None = None
    epsilon: float | None = None
    temperature: float = 1.0
    cooling: int = 0
    replay: int | None = None
    replay_capacity: int = 10_000
    scalarization: str | None = None
    inverse_temperature: str | None = None
    concentration: float | None = None
    pool: int | None = None
    redraw: int | None = None

    def __post_init__(self) -> None:
        group = 1 if self.group_size is None else self.group_size
        whole = group >= 1 and self.batch_size % group == 0
        require(
            self,
            batch_size=(self.batch_size >= 1, "at least 1"),
            group_size=(whole, f"a divisor of the batch size {self.batch_size}"),
            epsilon=(self.epsilon is None or 0 <= self.epsilon <= 1, "in [0, 1]"),
            temperature=(self.temperature > 0, "positive"),
            cooling=(self.cooling >= 0, "0 or more"),
            replay=(self.replay is None or self.replay >= 0, "0 or more"),
            replay_capacity=(self.replay_capacity >= 1, "at least 1"),
            concentration=(self.concentration is None or self.concentration > 0, "positive"),
            pool=(self.pool is None or self.pool >= 0, "0 or more"),
            redraw=(self.redraw is None or self.redraw >= 1, "at least 1"),
        )


@dataclass
class OracleSettings:
    """How rewards are computed.

    Attributes:
        workers: worker processes for oracles on objects; 0 scores in this process, -1 takes one
            per processor when the oracle is slow enough to gain from it.
        timeout: seconds one object may take; none waits for ever.
        max_failed: largest tolerated share of failed objects in a batch.
        cluster: run the workers on a Ray cluster: auto, local, or its address (needs the extra
            gflow[distributed]); -1 workers are then as many as it has processors.
    """

    workers: int = -1
    timeout: float | None = None
    max_failed: float = 0.5
    cluster: str | None = None

    def __post_init__(self) -> None:
        require(
            self,
            workers=(self.workers >= -1, "-1 or more"),
            timeout=(self.timeout is None or self.timeout > 0, "a positive number of seconds"),
            max_failed=(0 < self.max_failed <= 1, "in (0, 1]"),
        )


@dataclass
class RunConfig:
    """Everything that decides a run.

    Attributes:
        task: name of the problem, see `gflow tasks`.
        method: name of the method, see `gflow methods`.
        rewards: the task's rewards, for molecules for example qed,sa,logp:1..4.
        options: further settings of the task, such as --options.vocabulary mine.csv.
        out: folder of the run; must not hold a run yet.
        steps: training steps.
        seed: seeds weights, conditions, rollouts and replay.
        policy: the network.
        sampling: where batches come from.
        trainer: learning rates and intervals.
        oracle: how rewards are computed.
        baseline: compare with random construction at the same number of oracle calls; points
            have none.
        samples: objects drawn from the trained sampler for each preference of the report.
        known: file of known objects (CSV or SMILES) to report novelty against.
        tensorboard: also write TensorBoard files (needs the extra gflow[log]).
        compile: compile blocks of rollout steps.
        device: cpu or cuda.
        dtype: float32 or float64.
        threads: threads of tensor operations; small networks are fastest with 1.
    """

    task: str = "molecules"
    method: str = "mogfn_pc"
    rewards: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    out: str = "runs/latest"
    steps: int = 600
    seed: int = 0
    policy: PolicySettings = field(default_factory=PolicySettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    trainer: TrainerSettings = field(
        default_factory=lambda: TrainerSettings(
            learning_rate=2e-3, clip_norm=10.0, log_every=5, eval_every=25, checkpoint_every=50
        )
    )
    oracle: OracleSettings = field(default_factory=OracleSettings)
    baseline: bool = True
    samples: int = 128
    known: str | None = None
    tensorboard: bool = False
    compile: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        require(
            self,
            steps=(self.steps >= 0, "0 or more"),
            samples=(self.samples >= 1, "at least 1"),
            threads=(self.threads >= 1, "at least 1"),
        )

    def save(self, path: Path) -> None:
        """Write the settings as YAML."""
        save_settings(self, path)

    @staticmethod
    def load(path: Path) -> RunConfig:
        """Read settings written by `save`.

        Raises:
            ConfigError: no such file, not YAML, or an unknown setting.
        """
        return load_settings(RunConfig(), path)


def save_settings(settings: Any, path: Path) -> None:
    """Write a dataclass of settings as YAML, atomically."""
    import yaml

    text = yaml.safe_dump(asdict(settings), sort_keys=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def load_settings(defaults: _Settings, path: Path) -> _Settings:
    """Read settings written by `save_settings`; what is left out is as in `defaults`.

    Raises:
        ConfigError: no such file, not YAML, or an unknown setting.
    """
    import yaml

    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file, so this is no run folder")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    return filled(defaults, values, str(path))


def from_dict(values: dict[str, Any], where: str) -> RunConfig:
    """Settings from nested dictionaries; what is left out keeps its default."""
    return filled(RunConfig(), values, where)


def filled(target: _Settings, values: Any, where: str) -> _Settings:
    """`target`, a dataclass, with the values of nested dictionaries put in.

    Raises:
        ConfigError: an unknown setting, or a value that it refuses.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected settings by name, found {type(values).__name__}")
    known = {item.name for item in fields(target)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown setting {unknown[0]!r}, known are {sorted(known)}")
    changes = {}
    for name, value in values.items():
        old = getattr(target, name)
        changes[name] = filled(old, value, f"{where}: {name}") if is_dataclass(old) else value
    names = [item.name for item in fields(target)]  # type: ignore[arg-type]
    values = {name: getattr(target, name) for name in names} | changes
    try:
        return type(target)(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
