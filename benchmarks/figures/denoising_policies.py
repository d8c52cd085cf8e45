"""Figure: methods on denoising paths at equal reward calls, from the benchmark's results.

Run `python benchmarks/figures/denoising_policies.py` after `benchmarks/denoising_policies.py run`.
"""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
from common import save
from matplotlib.axes import Axes

RESULTS = Path(__file__).parents[1] / "results"
BASES = {"scenevec": 0.4585, "shapes16": 0.425}
"""Strict rewards of the base models on training prompts."""
LABELS = {
    "base_2": "base, guidance 2",
    "base_4": "base, guidance 4",
    "ddpo_sf": "DDPO, score function",
    "ddpo": "DDPO",
    "dpok": "DPOK",
    "flow_grpo": "Flow-GRPO",
    "flow_grpo_fast": "Flow-GRPO-Fast",
    "flow_grpo_cps": "CPS",
    "dance_grpo": "DanceGRPO",
    "mix_grpo": "MixGRPO",
    "mix_grpo_flash": "MixGRPO-Flash",
    "temp_flow_grpo": "TempFlow-GRPO",
    "grpo_guard": "GRPO-Guard",
}


def draw(space: str, bars: Axes, trade: Axes) -> None:
    """Strict rewards at the end, and what they cost."""
    ends = defaultdict(list)
    for line in (RESULTS / f"denoising_policies_{space}.jsonl").read_text().splitlines():
        row = json.loads(line)
        ends[row["method"]].append(row["curve"][-1])
    names = [name for name in LABELS if name in ends]
    colors = dict(zip(LABELS, plt.get_cmap("tab20").colors, strict=False))
    for place, name in enumerate(reversed(names)):
        for key, alpha in (("strict_train", 1.0), ("strict_novel", 0.45)):
            values = [end[key] for end in ends[name]]
            mean = sum(values) / len(values)
            bars.plot([0, mean], [place, place], color=colors[name], alpha=alpha, linewidth=1)
            filled = "full" if key == "strict_train" else "none"
            places = [place] * len(values)
            bars.plot(values, places, "o", color=colors[name], fillstyle=filled, ms=5)
    bars.set_yticks(range(len(names)), [LABELS[name] for name in reversed(names)])
    bars.axvline(BASES[space], color="0.6", linestyle=":", linewidth=1)
    bars.set(xlim=(0.2, 1), ylim=(-0.5, len(names) - 0.5))
    calls = max(end["calls"] for row in ends.values() for end in row)
    bars.set_title(f"{space} after {calls:,} reward calls; base dotted", fontsize=9)
    for name in names:
        x, y = ([end[key] for end in ends[name]] for key in ("kl", "strict_train"))
        trade.plot(x, y, "o", color=colors[name], label=LABELS[name], ms=5)
    trade.set(ylabel="strict reward")
    trade.set_title(f"{space}: what it costs", fontsize=9)


def main() -> None:
    figure, rows = plt.subplots(
        2, 2, figsize=(8.2, 5.6), layout="constrained", height_ratios=(3.4, 2)
    )
    for space, axes in zip(BASES, rows, strict=True):
        draw(space, *axes)
    rows[1][0].set_xlabel("strict reward (filled: training prompts, open: held out)")
    rows[1][1].set_xlabel("divergence of paths from the base (nats)")
    save(figure, "denoising_policies.svg")


if __name__ == "__main__":
    main()
