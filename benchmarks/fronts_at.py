"""Results of `gflow bench fronts` after some numbers of oracle calls, as tables on the screen.

    python benchmarks/fronts_at.py selectivity runs/bench-selectivity \
        --calls 1311,3277,6554 --metrics regret,front_share

The first argument is the plan, the second the folder it was run in; cells not finished yet are left
out, and the number of seeds is in the table.
"""

import argparse
from pathlib import Path

from gflow.bench.plan import read_plan
from gflow.bench.summary import cell_text, collect, intervals


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calls", required=True)
    parser.add_argument("--metrics", default="regret,front_share")
    arguments = parser.parse_args()
    calls = [int(number) for number in arguments.calls.split(",")]
    metrics = arguments.metrics.split(",")
    plan = read_plan(arguments.plan)
    results = collect(arguments.folder, plan)
    for problem in plan.problems:
        rows = [row for row in results.rows if row["problem"] == problem.name]
        measured = sorted({row["calls"] for row in rows})
        at = [number for number in calls if number in measured]
        if not at:
            print(f"{problem.name}: measured at {measured}\n")
            continue
        names = [f"{metric}, {number} calls" for metric in metrics for number in at]
        print(f"## {problem.name}\n\n| method | seeds | " + " | ".join(names) + " |")
        print("|" + " --- |" * (len(names) + 2))
        for contestant in plan.contestants:
            mine = [row for row in rows if row["contestant"] == contestant.name]
            if mine:
                texts = [
                    cell_text(*intervals([row for row in mine if row["calls"] == number], metric))
                    for metric in metrics
                    for number in at
                ]
                seeds = len({row["seed"] for row in mine})
                print(f"| {contestant.name} | {seeds} | " + " | ".join(texts) + " |")
        print()


if __name__ == "__main__":
    main()
