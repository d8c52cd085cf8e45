"""Sequences of tokens: orders of construction, and rewards read from tokens."""

from gflow.envs.sequences.orders import AppendSequences, InsertSequences, PrependAppendSequences
from gflow.envs.sequences.slots import Slots

__all__ = ["AppendSequences", "InsertSequences", "PrependAppendSequences", "Slots"]
