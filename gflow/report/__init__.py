"""A self-contained HTML report of a run: one file, opened in any browser, without network."""

from __future__ import annotations

import os
from pathlib import Path

from gflow.report.content import Draw, build
from gflow.report.page import render
from gflow.report.run import ReportError, read_run

__all__ = ["ReportError", "write_report"]


def write_report(
    run_folder: str | Path,
    out: str | Path | None = None,
    *,
    title: str | None = None,
    draw: Draw | None = None,
) -> Path:
    """Make the report of a finished or running run.

    Args:
        run_folder: the run; `candidates.sqlite` must be there, everything else may be missing
            (`config.yaml`, `environment.json`, `metrics.jsonl`, `baseline.sqlite`,
            `samples.json`, `known.smi`, `CARD.md`).
        out: the HTML file; `report.html` in the run folder by default.
        title: headline; task and objectives by default.
        draw: SVG or HTML of an object; structure formulas by default where the configured task
            is about molecules, plain text elsewhere. Its output goes into the page as it is.

    Returns:
        Path of the file, which appears only when it is complete.

    Raises:
        ReportError: the folder is missing, has no scored candidate, or holds a damaged file.
    """
    folder = Path(run_folder)
    run = read_run(folder)
    document, drawings = build(run, title, draw)
    path = Path(out) if out is not None else folder / "report.html"
    if not path.parent.is_dir():
        raise ReportError(f"{path}: there is no folder {path.parent}")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    unfinished.write_text(render(document, drawings), encoding="utf-8")
    os.replace(unfinished, path)
    return path
