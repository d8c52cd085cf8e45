"""Time, memory and agreement of the Pareto metrics against pymoo, moocore and botorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gflow.pareto._timing import Row, Work, compare, table
from gflow.pareto.archive import ParetoArchive
from gflow.pareto.distances import (
    epsilon_additive,
    epsilon_multiplicative,
    gd,
    gd_plus,
    igd,
    igd_plus,
)
from gflow.pareto.dominance import non_dominated
from gflow.pareto.hypervolume import Method, hypervolume, hypervolume_contributions
from gflow.pareto.polar import polar_hypervolume

METHODS: tuple[Method, ...] = ("auto", "slices")


def sphere(*shape: int, seed: int = 0) -> Tensor:
    """Mutually non-dominated points on the positive part of the unit sphere, float64."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(*shape, generator=generator, dtype=torch.float64).abs()
    return torch.nn.functional.normalize(points, dim=-1)


def _hypervolumes(quick: bool) -> Iterator[Row]:
    import moocore

    def pair(n: int, m: int) -> tuple[Work, Work]:
        points = sphere(n, m)
        rows, ref = points.numpy(), [0.0] * m
        return (
            lambda: hypervolume(points, ref),
            lambda: moocore.hypervolume(rows, ref=ref, maximise=True),
        )

    for m in (2, 3, 4):
        for n in (10, 1000, 10_000):
            ours, theirs = pair(n, m)
            repeats = 501 if n < 10_000 else 101 if m < 4 else 15
            row = compare("hypervolume", f"{n} x {m}", ours, "moocore", theirs, repeats=repeats)
            overhead = row.ours - row.theirs
            met = overhead <= 100e-6 if n == 10 else row.ratio >= 1 / 1.3
            bar = "+ 100 us" if n == 10 else "time x 1.3"
            yield replace(row, bar=bar, met=met)
    cases: list[tuple[int, int, float | None]] = [(1000, 5, None), (10_000, 5, 3), (1000, 6, 10)]
    for n, m, faster in cases:
        ours, theirs = pair(n, m)
        repeats = 1 if quick else 3
        yield compare(
            "hypervolume", f"{n} x {m}", ours, "moocore", theirs, repeats=repeats, faster=faster
        )
    if not quick:
        ours, _ = pair(10_000, 6)
        yield compare("hypervolume", "10000 x 6", ours, "moocore (over a minute)", None, repeats=1)


def _contributions(quick: bool) -> Iterator[Row]:
    import moocore

    for m, repeats in ((4, 3),) if quick else ((4, 3), (5, 1)):
        points = sphere(1000, m)

        def ours(points: Tensor = points) -> Tensor:
            return hypervolume_contributions(points, [0.0] * points.shape[-1])

        def theirs(points: Tensor = points) -> Any:
            ref = [0.0] * points.shape[-1]
            return moocore.hv_contributions(points.numpy(), ref=ref, maximise=True)

        setting = f"1000 x {m}"
        # The library gives 0 for contributions below the square root of the rounding error.
        yield compare(
            "contributions",
            setting,
            ours,
            "moocore",
            theirs,
            repeats=repeats,
            faster=5,
            zeros=False,
        )


def _batches(devices: list[str]) -> Iterator[Row]:
    import moocore

    for m, cuda_bar in ((3, 5e-3), (4, 20e-3)):
        points, ref = sphere(1024, 128, m), [0.0] * m
        costs = (-points).numpy()

        def loop(costs: Any = costs, ref: list[float] = ref) -> list[float]:
            return [moocore.hypervolume(front, ref=ref) for front in costs]

        for device in devices:
            there = points.to(device)
            yield compare(
                "hypervolume, batch",
                f"1024 x 128 x {m} {device}",
                partial(hypervolume, there, ref),
                "loop over moocore",
                loop,
                repeats=5,
                device=device,
                faster=1 / 1.2 if device == "cpu" else None,
                within=None if device == "cpu" else cuda_bar,
            )


def _filters(devices: list[str]) -> Iterator[Row]:
    import moocore
    from botorch.utils.multi_objective import is_non_dominated

    points = sphere(10_000, 3)
    costs = (-points).numpy()
    for device in devices:
        there = points.to(device)
        yield compare(
            "non-dominated",
            f"10000 x 3 {device}",
            partial(non_dominated, there),
            "moocore",
            lambda: moocore.is_nondominated(costs, keep_weakly=True),
            repeats=9,
            faster=0.5 if device == "cpu" else None,
            device=device,
        )
    few = sphere(1000, 3)
    yield compare(
        "non-dominated",
        "1000 x 3",
        lambda: non_dominated(few),
        "botorch",
        lambda: is_non_dominated(few, deduplicate=False),
        repeats=5,
    )


def _peers() -> Iterator[Row]:
    from botorch.utils.multi_objective.box_decompositions import DominatedPartitioning
    from pymoo.indicators.hv import HV

    points = sphere(100, 4)
    ref, costs = torch.zeros(4, dtype=points.dtype), (-points).numpy()
    yield compare(
        "hypervolume",
        "100 x 4",
        lambda: hypervolume(points, ref),
        "botorch boxes",
        lambda: DominatedPartitioning(ref, points).compute_hypervolume(),
        repeats=3,
    )
    indicator = HV(ref_point=ref.numpy())
    yield compare(
        "hypervolume",
        "100 x 4",
        lambda: hypervolume(points, ref),
        "pymoo",
        lambda: indicator(costs),
        repeats=51,
    )


def _polar(devices: list[str]) -> Iterator[Row]:
    points, ref = sphere(1000, 6), [0.0] * 6
    exact = hypervolume(points, ref).item()
    for device in devices:
        there = points.to(device)
        value, error = polar_hypervolume(there, ref)
        off = abs(value.item() - exact) / error.item()
        row = compare(
            "polar, 16384 directions",
            f"1000 x 6 {device}",
            partial(hypervolume, there, ref, method="polar"),
            "exact",
            lambda: hypervolume(points, ref),
            repeats=1,
            device=device,
        )
        yield replace(row, bar=f"{off:.1f} of 4 std. errors", met=off <= 4)


def _gradients() -> Iterator[Row]:
    step = 1e-6
    for m in (2, 3, 4, 5, 6):
        points, ref = sphere(12, m), [0.0] * m
        dominated = points[:3] * 0.9
        leaf = torch.cat([points, dominated]).requires_grad_()

        def ours(leaf: Tensor = leaf, ref: list[float] = ref) -> Tensor:
            (gradient,) = torch.autograd.grad(hypervolume(leaf, ref), leaf)
            return gradient

        def differences(leaf: Tensor = leaf, ref: list[float] = ref) -> Tensor:
            moves = torch.eye(leaf.numel(), dtype=leaf.dtype).view(-1, *leaf.shape) * step
            up, down = leaf.detach() + moves, leaf.detach() - moves
            return ((hypervolume(up, ref) - hypervolume(down, ref)) / (2 * step)).view_as(leaf)

        row = compare("gradient", f"15 x {m}", ours, "finite differences", differences, repeats=3)
        met = row.error < 1e-6 and not bool(ours()[12:].any())
        yield replace(row, bar="6 digits, 0 if dominated", met=met)


def _archive(quick: bool, devices: list[str]) -> Iterator[Row]:
    """A full archive meets batches of which about a tenth enters, or all of them.

    Where all enter, the sum alone is less than `add` works out, which is why it has no bar.
    """
    import moocore

    ref = [0.0] * 4
    generator = torch.Generator().manual_seed(1)
    lengths = 0.8 + 0.195 * torch.rand(1000, 1, generator=generator, dtype=torch.float64)
    for share, batch in (("a tenth enters", sphere(1000, 4, seed=1) * lengths),) + (
        () if quick else (("all enter", sphere(1000, 4, seed=1)),)
    ):
        for device in devices:
            archive = ParetoArchive(10_000, ref, dtype=torch.float64, device=device)
            archive.add(sphere(10_000, 4).to(device))
            state = {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in archive.state_dict().items()
            }
            old, new = state["points"].cpu(), batch.to(device)

            def insert(archive: Any = archive, state: Any = state, new: Tensor = new) -> Tensor:
                archive.load_state_dict(state)
                gains: Tensor = archive.add(new).sum()
                return gains

            def total(old: Tensor = old, batch: Tensor = batch) -> float:
                before = moocore.hypervolume(old.numpy(), ref=ref, maximise=True)
                joint = moocore.filter_dominated(torch.cat([old, batch]).numpy(), maximise=True)
                return float(moocore.hypervolume(joint, ref=ref, maximise=True) - before)

            def each(old: Tensor = old, batch: Tensor = batch) -> float:
                """The gain of every new point, each from the hypervolume with it and without."""
                entered = non_dominated(torch.cat([old, batch]))[len(old) :]
                rows, gained = old, 0.0
                before = moocore.hypervolume(rows.numpy(), ref=ref, maximise=True)
                for point in batch[entered]:
                    rows = torch.cat([rows, point[None]])
                    after = moocore.hypervolume(rows.numpy(), ref=ref, maximise=True)
                    gained, before = gained + after - before, after
                return gained

            setting = f"10000 x 4 + 1000, {share} {device}"
            yield compare(
                "archive, sum of gains",
                setting,
                insert,
                "moocore, two hypervolumes",
                total,
                repeats=5,
                faster=10 if share.startswith("a tenth") else None,
                device=device,
            )
            if share.startswith("a tenth") and not quick:
                yield compare(
                    "archive, gain of each",
                    setting,
                    insert,
                    "moocore, one hypervolume each",
                    each,
                    repeats=1,
                    faster=10,
                    device=device,
                )


def _agreement(quick: bool) -> Iterator[Row]:
    import moocore

    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        worst = 0.0
        for m in range(2, 7):
            for n in (1, 10, 100) if quick or m == 6 else (1, 10, 100, 1000):
                points = sphere(n, m)
                shapes = {
                    "concave": points,
                    "convex": 1.1 - points,
                    "linear": points / points.sum(-1, keepdim=True),
                    "random": sphere(n, m, seed=1) * sphere(n, m, seed=2),
                    "clustered": points[torch.arange(n) % 8 % n] + 0.01 * sphere(n, m, seed=3),
                    "tied": (points * 5).round() / 5 + 0.1,
                    "degenerate": points[:, :1].expand(n, m),
                }
                for front in shapes.values():
                    wanted = moocore.hypervolume(front.numpy(), ref=[0.0] * m, maximise=True)
                    for method in METHODS if n <= 100 or m <= 3 else METHODS[:1]:
                        ours = hypervolume(front.to(dtype), [0.0] * m, method=method).item()
                        worst = max(worst, abs(ours / wanted - 1))
        yield Row(
            "agreement, 7 shapes",
            f"n <= 1000, m = 2..6, {str(dtype)[6:]}",
            math.nan,
            "moocore",
            math.nan,
            worst,
            math.nan,
            f"{tolerance:.0e}",
            worst <= tolerance,
        )


def _distances() -> Iterator[Row]:
    import moocore
    from pymoo.indicators.gd import GD
    from pymoo.indicators.gd_plus import GDPlus

    worst = 0.0
    for m in range(2, 7):
        for n in (1, 10, 200):
            points, front = 0.9 * sphere(n, m, seed=1) + 0.05, sphere(100, m) + 0.1
            y, z = points.numpy(), front.numpy()
            pairs = [
                (igd(points, front), moocore.igd(y, ref=z, maximise=True)),
                (igd_plus(points, front), moocore.igd_plus(y, ref=z, maximise=True)),
                (epsilon_additive(points, front), moocore.epsilon_additive(y, z, maximise=True)),
                (epsilon_multiplicative(points, front), moocore.epsilon_mult(y, z, maximise=True)),
                (gd(points, front), GD(z)(y)),
                (gd_plus(points, front), GDPlus(-z)(-y)),
            ]
            worst = max(worst, *(abs(float(ours) / theirs - 1) for ours, theirs in pairs))
    name = "agreement, 6 distances"
    setting = "n <= 200, m = 2..6, float64"
    nothing = math.nan
    peer = "moocore, pymoo"
    yield Row(name, setting, nothing, peer, nothing, worst, nothing, "1e-12", worst <= 1e-12)


def run(quick: bool = False, device: str | None = None) -> list[Row]:
    """Measure every line in one thread and print the table.

    Args:
        quick: fewer sizes and repeats, under a minute.
        device: "cpu" or a CUDA device; None for the CPU and, where there is one, CUDA.

    Returns:
        the rows of the table.
    """
    if device is None:
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    else:
        devices = [device]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[Row] = []
    try:
        for part in (
            _agreement(quick),
            _distances(),
            _hypervolumes(quick),
            _contributions(quick),
            _batches(devices),
            _filters(devices),
            _gradients(),
            _archive(quick, devices),
            _polar(devices),
            _peers(),
        ):
            rows.extend(part)
    finally:
        torch.set_num_threads(threads)
    print(table(rows))
    return rows
