"""What the report knows about pictures: objects that hold a PNG file and what was asked for."""

from __future__ import annotations

import html

_START = "data:image/png;base64,"


def caption(item: object) -> str:
    """What a picture was asked for; "" if it is no picture."""
    return str(item.get("prompt", "picture")) if isinstance(item, dict) and _file(item) else ""


def draw_picture(item: object) -> str:
    """The picture as an image element; "" if it is no picture."""
    file = _file(item) if isinstance(item, dict) else ""
    return f'<img alt="{html.escape(caption(item))}" src="{file}">' if file else ""


def _file(item: dict[str, object]) -> str:
    """The PNG file as a data URI; nothing else is put on the page."""
    file = item.get("image")
    code = file.removeprefix(_START) if isinstance(file, str) and file.startswith(_START) else ""
    plain = code.replace("+", "").replace("/", "").rstrip("=")
    return str(file) if plain.isascii() and plain.isalnum() else ""
