"""Put document, drawings, styles and scripts together into one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import zlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

_SCRIPTS = ("report.js", "front.js", "panels.js")


def render(document: dict[str, Any], drawings: Sequence[str]) -> str:
    """The page: `document` as JSON, `drawings` compressed, plotly.js and everything else inline."""
    from plotly.offline import get_plotlyjs

    parts = {
        "title": html.escape(document["title"]),
        "style": _template("style.css"),
        "plotly": get_plotlyjs(),
        "script": "\n".join(_template(name) for name in _SCRIPTS),
        "data": _embed(document),
        "drawings": base64.b64encode(zlib.compress(_dump(list(drawings)).encode(), 9)).decode(),
    }
    # One pass, so that nothing inside a part is taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _template("page.html"))


def _template(name: str) -> str:
    return (resources.files("gflow.report") / "templates" / name).read_text(encoding="utf-8")


def _embed(value: Any) -> str:
    # "</" would end the script element, "<!--" would hide its end.
    return _dump(value).replace("</", "<\\/").replace("<!--", "<\\!--")


def _dump(value: Any) -> str:
    return json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    """The value with six significant digits and without NaN, which JSON does not know."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
