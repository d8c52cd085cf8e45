"""Tasks: rows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gflow.config import ConfigError

from .registry import Task, data_file, flat_policy, names, near, register

if TYPE_CHECKING:
    from gflow.envs.sequences.base import TokenRows


@register
def bit_sequences(bits: int = 120, word: int = 8, modes: int = 60, order: str = "slots") -> Task:
    """Strings of bits near hidden modes: exp(-(flips to the nearest one) / 10).

    The published reward exp(-flips) squared is an inverse temperature of 20, the default.

    Args:
        bits: length of a string, a multiple of 8 and of the word.
        word: bits added by one action; a string has bits / word places.
        modes: number of hidden modes.
        order: slots (any place first), append, prepend_append or insert.
    """
    from gflow.envs.sequences.bits import BitModes, bit_modes, bit_words

    env = _token_rows(order, bit_words(word), bits // word)
    oracle = BitModes(word, bit_modes(bits, modes), temperature=10.0)
    return Task(env, oracle, flat_policy(env), inverse_temperature="20")


@register
def ngrams(
    rewards: str = "AV,VC", max_length: int = 36, min_length: int = 32, max_score: float = 18.0
) -> Task:
    """Protein sequences that contain given short words often; the words compete for room.

    Args:
        rewards: words over the 20 amino acids, separated by commas.
        max_length: longest sequence.
        min_length: shortest sequence.
        max_score: occurrences that count as a reward of 1.
    """
    from gflow.envs.sequences import AppendSequences
    from gflow.envs.sequences.ngrams import PROTEIN, NGrams

    env = AppendSequences(PROTEIN, max_length, min_length)
    oracle = NGrams(PROTEIN, names(rewards), max_length, max_score)
    return Task(env, oracle, flat_policy(env))


@register
def tf_binding(
    path: str = "", bind: str = "SIX6", avoid: str = "", order: str = "prepend_append"
) -> Task:
    """DNA 8-mers that bind some human transcription factors and not others, as measured.

    Args:
        path: tf_binding.parquet; by default that in the folder GFLOW_DATA.
        bind: factors to bind, separated by commas; SIX6 alone is TFBind8.
        avoid: factors not to bind.
        order: prepend_append, append, insert or slots.
    """
    from gflow.envs.sequences import measured

    env = _token_rows(order, measured.DNA, 8)
    oracle = measured.tf_binding(data_file(path, "tf_binding.parquet"), names(bind), names(avoid))
    # The published exponent of the single reward.
    beta = "3" if len(oracle.rewards) == 1 else None
    return Task(env, oracle, flat_policy(env), inverse_temperature=beta)


@register
def qm9_blocks(path: str = "", order: str = "prepend_append") -> Task:
    """Molecules of five building blocks with a large HOMO-LUMO gap, as tabulated.

    Args:
        path: qm9str.parquet; by default that in the folder GFLOW_DATA.
        order: prepend_append, append, insert or slots.
    """
    from gflow.envs.sequences import measured

    env = _token_rows(order, measured.QM9_SYMBOLS, 5)
    oracle = measured.qm9_blocks(data_file(path, "qm9str.parquet"))
    return Task(env, oracle, flat_policy(env), inverse_temperature="5")


@register
def rna(
    rewards: str = "energy,length",
    material: str = "rna",
    min_length: int | None = None,
    max_length: int | None = None,
    order: str = "append",
) -> Task:
    """RNA or DNA strands by their secondary structure (needs ViennaRNA, the extra gflow[bio]).

    With material dna, energy,length or energy,pairs or energy,stems,pairs are the aptamer tasks of
    the literature, folded by ViennaRNA in place of NUPACK.

    Args:
        rewards: energy (low free energy), pairs, stems, length (short), target:STRUCTURE such as
            target:((((....)))), separated by commas.
        material: rna or dna.
        min_length: shortest strand; by default 30, or the target structure's length.
        max_length: longest strand; by default 60, or the target structure's length.
        order: append, prepend_append or insert.
    """
    from gflow.envs.sequences.rna import ALPHABETS, RNAOracle

    wanted = names(rewards)
    targets = [len(name.partition(":")[2]) for name in wanted if name.startswith("target:")]
    shortest = min_length or min(targets, default=30)
    longest = max_length or max(targets, default=60)
    oracle = RNAOracle(wanted, shortest, longest, material)
    env = _token_rows(order, ALPHABETS[material], longest, shortest)
    # A weighted mean of K rewards moves K times less than each of them.
    return Task(env, oracle, flat_policy(env), inverse_temperature=str(32 * len(wanted)))


def _token_rows(
    order: str, vocabulary: Sequence[str], length: int, shortest: int | None = None
) -> TokenRows:
    """The environment that builds rows of `shortest` to `length` tokens in the given order."""
    from gflow.envs import sequences

    orders: dict[str, Callable[..., TokenRows]] = {
        "append": sequences.AppendSequences,
        "prepend_append": sequences.PrependAppendSequences,
        "insert": sequences.InsertSequences,
    }
    if shortest is None:
        orders["slots"] = sequences.Slots
    if order not in orders:
        raise ConfigError(f"there is no order {order!r}: {near(order, orders)}")
    lengths = (length,) if shortest is None else (length, shortest)
    return orders[order](vocabulary, *lengths)
