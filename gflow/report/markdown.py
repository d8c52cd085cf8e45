"""The little Markdown that a run's card needs, as HTML without links to anywhere."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

_CODE = re.compile(r"`([^`]+)`")
_BOLD = re.compile(r"\*\*([^*]+)\*\*")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def to_html(text: str) -> str:
    """Headings, paragraphs, lists, tables and code blocks; anything else stays text.

    Headings go two levels down, as the page has its own. Links become text with the address in
    brackets, since the page must not refer to anything outside itself.
    """
    parts: list[str] = []
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        if not line.strip():
            continue
        if line.startswith("```"):
            block = _take(lines, lambda line: not line.startswith("```"))
            lines = lines[1:]
            parts.append(f"<pre>{html.escape(chr(10).join(block))}</pre>")
        elif heading := re.match(r"(#+)\s+(.*)", line):
            level = min(len(heading[1]) + 2, 6)
            parts.append(f"<h{level}>{_inline(heading[2])}</h{level}>")
        elif re.match(r"\s*[-*]\s", line):
            items = [line, *_take(lines, lambda line: bool(re.match(r"\s*[-*]\s|\s+\S", line)))]
            parts.append(_list(items))
        elif line.lstrip().startswith("|"):
            rows = [line, *_take(lines, lambda line: line.lstrip().startswith("|"))]
            parts.append(_table(rows))
        else:
            more = _take(lines, lambda line: bool(line.strip()) and line[0] not in "#|`-")
            parts.append(f"<p>{_inline(' '.join([line, *more]))}</p>")
    return "\n".join(parts)


def _take(lines: list[str], wanted: Callable[[str], bool]) -> list[str]:
    """Remove and return the leading lines that are wanted."""
    taken = []
    while lines and wanted(lines[0]):
        taken.append(lines.pop(0))
    return taken


def _list(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        if re.match(r"\s*[-*]\s", line):
            items.append(re.sub(r"^\s*[-*]\s+", "", line))
        else:
            items[-1] += " " + line.strip()
    return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    body = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    cells = ["".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in body]
    head = cells.pop(0).replace("td>", "th>") if len(body) < len(rows) else ""
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>"
        + "".join(f"<tr>{row}</tr>" for row in cells)
        + "</tbody></table></div>"
    )


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = _LINK.sub(lambda m: m[1] if m[1] == m[2] else f"{m[1]} ({m[2]})", text)
    text = _CODE.sub(r"<code>\1</code>", text)
    return _BOLD.sub(r"<strong>\1</strong>", text)
