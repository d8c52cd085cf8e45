"""Hypervolume against rounds of active learning: docs/figures/active_learning.png.

Read from benchmarks/results/active.jsonl, which `python benchmarks/active.py --table` writes.
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import save

sys.path.insert(0, str(Path(__file__).parents[1]))
from active import BATCH, METHODS, RESULTS, TASKS, exact

TITLES = {"tf_binding": "TF binding: SIX6, CRX, not PAX4", "rna": "RNA: energy, stems, pairs"}
COLORS = {"random": "0.6", "qnehvi": "C1", "gflow": "C0"}


def main() -> None:
    rows = [json.loads(line) for line in RESULTS.with_suffix(".jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(1, len(TASKS), figsize=(8.4, 3.2), layout="constrained")
    for axis, name in zip(axes, TASKS, strict=True):
        whole = exact(name)
        for method in METHODS:
            values = torch.tensor(
                [r["hypervolume"] for r in rows if (r["task"], r["method"]) == (name, method)]
            ) / (whole or 1.0)  # fmt: skip
            mean, error = (
                values.mean(0),
                values.std(0) / len(values) ** 0.5 if len(values) > 1 else 0,
            )
            measured = BATCH * torch.arange(1, len(mean) + 1)
            axis.plot(measured, mean, "o-", ms=3, color=COLORS[method], label=method)
            axis.fill_between(
                measured, mean - error, mean + error, color=COLORS[method], alpha=0.25, lw=0
            )
        axis.set(title=TITLES[name], xlabel="objects measured", xticks=measured.tolist())
        axis.set_ylabel("share of the exact hypervolume" if whole else "hypervolume")
    axes[0].legend(frameon=False)
    save(figure, "active_learning.png")


if __name__ == "__main__":
    main()
