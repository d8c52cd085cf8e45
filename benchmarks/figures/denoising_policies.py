"""Figure: methods on denoising paths at equal reward calls, from the benchmark's results.

Run `python benchmarks/figures/denoising_policies.py scenevec` (or shapes16) after
`benchmarks/denoising_policies.py run`.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
from common import save

RESULTS = Path(__file__).parents[1] / "results"
BASES = {"scenevec": 0.4585, "shapes16": 0.425}
"""Strict rewards of the base models on training prompts."""
LABELS = {
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


def main(space: str) -> None:
    ends = defaultdict(list)
    for line in (RESULTS / f"denoising_policies_{space}.jsonl").read_text().splitlines():
        row = json.loads(line)
        ends[row["method"]].append(row["curve"][-1])
    names = [name for name in LABELS if name in ends]
    colors = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    figure, (bars, trade) = plt.subplots(1, 2, figsize=(8.2, 3.6), layout="constrained")
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
    bars.set(xlim=(0.15, 1), xlabel="strict reward (filled: training prompts, open: held out)")
    calls = next(iter(ends.values()))[0]["calls"]
    bars.set_title(f"after {calls:,} reward calls; base dotted", fontsize=9)
    for name in names:
        x, y = ([end[key] for end in ends[name]] for key in ("kl", "strict_train"))
        trade.plot(x, y, "o", color=colors[name], label=LABELS[name], ms=5)
    trade.set(xlabel="divergence of paths from the base (nats)", ylabel="strict reward")
    trade.set_title("what it costs", fontsize=9)
    save(figure, f"denoising_policies_{space}.svg")


if __name__ == "__main__":
    main(sys.argv[1])
