"""Measured sequence spaces: transcription-factor binding of DNA 8-mers, five-block molecules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gflow.envs.sequences.kmers import e_scores, factor_file
from gflow.envs.sequences.orders import AppendSequences
from gflow.envs.tables import TableOracle, column, read_columns, rescaled
from gflow.mdp import Reward

DNA = "ACGT"
"""Symbols of the binding data; sequences have 8 of them."""

QM9_SYMBOLS = "0123456789a"
"""Symbols of the block molecules; sequences have 5 of them."""

QM9_BLOCKS = (
    "C", "O", "N", "C-F", "C=O", "C=C", "C#C", "c1ccccc1", "C1CCCCC1", "C1CCNC1", "CCC",
)  # fmt: skip
"""The building block behind each of `QM9_SYMBOLS`."""


def tf_binding(
    path: str | Path, bind: Sequence[str] = ("SIX6",), avoid: Sequence[str] = ()
) -> TableOracle:
    """Binding of all 65,536 DNA 8-mers to human transcription factors.

    Each reward is a factor's E-score mapped to [0, 1]; one minus that for factors to avoid.
    `bind=("SIX6",)` is TFBind8 of the literature. Serves any order of building sequences over
    `DNA` of length 8. (Barrera et al., 2016, doi 10.1126/science.aad2257.)

    Args:
        path: Parquet file with the column `sequence` and one column per factor; or a folder of
            text tables, see `gflow.envs.sequences.kmers`, one file per factor called FACTOR.txt
            or FACTOR_anything.txt.
        bind: factors to bind.
        avoid: factors not to bind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no factor, one named twice, one without a column or file, or missing, repeated
            or malformed rows.
    """
    factors = [*bind, *avoid]
    if not factors or len(set(factors)) < len(factors):
        raise ValueError(f"name at least one factor, and each once, not {factors}")
    env = AppendSequences(DNA, 8)
    if Path(path).is_dir():
        words = env.decode(env.all_terminal_states())
        scores = {factor: e_scores(factor_file(path, factor)) for factor in factors}
    else:
        table = read_columns(path, ["sequence", *factors])
        words = table["sequence"]
        scores = {factor: column(table[factor]) for factor in factors}
    rewards, columns = [], []
    for factor in factors:
        shunned = factor in avoid
        scaled = rescaled(scores[factor])
        columns.append(1 - scaled if shunned else scaled)
        verb = "avoid" if shunned else "bind"
        rewards.append(
            Reward(f"{verb} {factor}", flipped=shunned, description="E-score scaled to [0, 1]")
        )
    return TableOracle(env, words, torch.stack(columns, 1), tuple(rewards), path)


def qm9_blocks(path: str | Path, floor: float = 1e-3) -> TableOracle:
    """HOMO-LUMO gap of all 161,051 molecules of five blocks, as a share of the largest.

    R = max(gap, floor) / max gap; the published reward R^5, scaled to 100, is an inverse
    temperature of 5. Serves any order of building sequences over `QM9_SYMBOLS` of length 5;
    published runs prepend or append. (Shen et al., 2023, arXiv 2305.07170.)

    Args:
        path: Parquet file with the columns `blocks` and `gap`.
        floor: smaller gaps, and negative ones of the surrogate, count as this; in eV.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: missing columns, or missing, repeated or malformed rows.
    """
    table = read_columns(path, ["blocks", "gap"])
    gap = column(table["gap"]).clamp(min=floor)
    top = gap[~gap.isnan()].max()
    reward = Reward("gap", low=floor / float(top), description="HOMO-LUMO gap / largest gap")
    env = AppendSequences(QM9_SYMBOLS, 5)
    return TableOracle(env, table["blocks"], (gap / top).unsqueeze(1), (reward,), path)
