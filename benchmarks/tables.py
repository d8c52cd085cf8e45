"""Tables of benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(title: str, budget: str, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A Markdown table, each row as soon as it is known."""
    print(f"\n## {title}\n\n{' '.join(budget.split())}\n")
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header), flush=True)
    for row in rows:
        print("| " + " | ".join(_cell(value) for value in row) + " |", flush=True)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
