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

_SCRIPTS = ("common.js", "report.js", "front.js", "panels.js")


def render(document: dict[str, Any], drawings: Sequence[str]) -> str:
    """The page: `document` as JSON, `drawings` compressed, plotly.js and everything else inline."""
    packed = base64.b64encode(zlib.compress(_dump(list(drawings)).encode(), 9)).decode()
    scripts = [template(name) for name in _SCRIPTS]
    return fill(template("page.html"), document, scripts, drawings=packed)


def fill(page: str, document: dict[str, Any], scripts: Sequence[str], **more: str) -> str:
    """A page with its placeholders filled: title, style, plotly, script, data and `more`.

    Args:
        page: HTML with placeholders such as {{title}}.
        document: what the scripts read; its "title" is the page's.
        scripts: texts of the scripts, in their order.
        more: further parts by the name of their placeholder.
    """
    from plotly.offline import get_plotlyjs

    parts = {
        "title": html.escape(document["title"]),
        "style": template("style.css"),
        "plotly": get_plotlyjs(),
        "script": "\n".join(scripts),
        "data": _embed(document),
        **more,
    }
    # One pass, so that nothing inside a part is taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def template(name: str, package: str = "gflow.report") -> str:
    """Text of a file among the package's templates."""
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")


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
