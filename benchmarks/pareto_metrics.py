"""Pareto metrics against pymoo, moocore and botorch: `python benchmarks/pareto_metrics.py`."""

import argparse

from gflow.pareto.bench import run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--device", help="cpu or cuda; both where there are both")
    options = parser.parse_args(arguments)
    run(options.quick, options.device)


if __name__ == "__main__":
    main()
