"""The training loop, checkpoints and the distributed runtime."""

from gflow.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gflow.training.runtime import Runtime
from gflow.training.trainer import Events, Trainer, TrainerSettings, TrainingError

__all__ = [
    "CheckpointError",
    "Events",
    "Runtime",
    "Trainer",
    "TrainerSettings",
    "TrainingError",
    "load_checkpoint",
    "save_checkpoint",
]
