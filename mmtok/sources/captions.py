"""Captions as tables, texts and tars have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmtok.errors import UserError
from mmtok.io.tables import as_text

# how the column of captions is called, likeliest first
CAPTION_COLUMNS = (
    "caption", "text", "captions", "title", "description", "sentence", "sentences", "comment",
    "alt_text", "prompt", "label", "labels", "class", "class_name", "category", "species", "txt",
)  # fmt: skip


def caption_of(text: str, names: Sequence[str], where: str) -> str:
    """A caption without a byte order mark and white space around it, or the name of its class.

    Raises UserError where it is empty, or the number of a class that has no name.
    """
    caption = text.removeprefix("\ufeff").strip()
    if not caption:
        raise UserError(f"{where}: the caption is empty; write it, or remove the picture")
    if names and caption.isdecimal():
        if int(caption) >= len(names):
            raise UserError(
                f"{where}: the class {caption} has no name; names has {len(names)}, from 0 on"
            )
        return names[int(caption)]
    return caption


def texts_of(cell: Any, where: str) -> list[str | None]:
    """The texts of a cell: one, or a list of them, as of several captions."""
    if isinstance(cell, (list, tuple)):
        return [as_text(text, where) for text in cell]
    return [as_text(cell, where)]
