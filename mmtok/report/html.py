"""How a report looks: tags, small pictures, the style sheet.

It knows words and arrays; `report.py` knows the run.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

# pixels up to which a picture is kept exactly; larger ones are shrunk to THUMB_SIDE and kept as
# JPEG
PNG_SIDE = 40
THUMB_SIDE = 96


# ---- tags


class Markup(str):
    """Text that is HTML already. Every other string is escaped on its way into a tag."""


def join(*parts: object) -> Markup:
    """Parts one after the other, escaped where they are not HTML."""
    return Markup(
        "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in parts)
    )


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """<name attribute="value">children</name>; `cls` stands for class, True for an attribute
    without a value, None for none.
    """
    named = [
        ("class" if key == "cls" else key, value)
        for key, value in attributes.items()
        if value is not None
    ]
    words = [
        name,
        *(key if value is True else f'{key}="{html.escape(str(value))}"' for key, value in named),
    ]
    opening = f"<{' '.join(words)}>"
    return Markup(
        opening if name in ("img", "source", "meta") else f"{opening}{join(*children)}</{name}>"
    )


def table(head: Sequence[object], rows: Sequence[Sequence[object]], cls: str = "") -> Markup:
    """A table whose first column is words and whose others are figures."""
    line = lambda kind, cells: tag(
        "tr", *(tag(kind, c, cls="num" if i else None) for i, c in enumerate(cells))
    )
    body = tag("tbody", *(line("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", line("th", head)), body, cls=cls), cls="wide")


def number(value: object) -> str:
    """Four figures, a dash for what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if np.isfinite(value) else "–"


def visible(text: str, longest: int = 80) -> str:
    """Text on one line: a character that comes eight times or more counted, unprintable ones as
    their escapes, what is too long cut.
    """
    counted = lambda run: f"{'space' if run[1] == ' ' else run[1]} × {len(run[0])}"
    line = re.sub(r"(.)\1{7,}", counted, text, flags=re.DOTALL)
    line = (
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        or "(nothing)"
    )
    return line if len(line) <= longest else line[: longest - 1] + "…"


def page(title: str, body: Sequence[Markup]) -> str:
    """The whole document."""
    head = tag("head", tag("meta", charset="utf-8"), tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
               tag("title", title), tag("style", Markup(STYLE)))  # fmt: skip
    return "<!doctype html>\n" + tag("html", head, tag("body", *body), lang="en") + "\n"


# ---- pictures


def data_uri(kind: str, data: bytes) -> str:
    """A file inside the page: its bytes as an address. kind: its media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def encoded(picture: Image.Image, kind: str) -> bytes:
    """The bytes of a PNG or JPEG file."""
    file = io.BytesIO()
    picture.save(file, kind, **({"optimize": True} if kind == "PNG" else {"quality": 85}))
    return file.getvalue()


def thumbnail(image: np.ndarray, alt: str, cls: str = "", n_tiles: int = 1) -> Markup:
    """uint8 (height, width) or (height, width, 3) as <img>: exact while it is small, where its
    pixels stay squares.

    n_tiles: how many pictures stand in it side by side, with gaps of up to an eighth between them;
    each is small or not by itself.
    """
    picture = Image.fromarray(image)
    room = n_tiles * 9 / 8 if n_tiles > 1 else 1
    if max(picture.height, picture.width / room) <= PNG_SIDE:
        return tag(
            "img", src=data_uri("image/png", encoded(picture, "PNG")), alt=alt, cls=f"pixels {cls}"
        )
    picture.thumbnail((round(THUMB_SIDE * room), THUMB_SIDE))
    return tag("img", src=data_uri("image/jpeg", encoded(picture, "JPEG")), alt=alt, cls=cls)


STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #ffffff; --ink: #1d2228; --soft: #57616c; --line: #dde2e7; --link: #0b62b8;
  --bad: #a3200f; --bad-paper: #fde8e4; }
@media (prefers-color-scheme: dark) { :root { --page: #121519; --card: #1b1f24; --ink: #e4e8ec; --soft: #a0abb6; --line: #333b44;
  --link: #62b0f5; --bad: #ffb4a6; --bad-paper: #4a1f18; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .75rem; } h2 { font-size: 1.3rem; margin: 0 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; } p { margin: .35rem 0 .8rem; max-width: 48rem; } a { color: var(--link); }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem 1.5rem; margin: 0 0 1.2rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-top: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0; }
dt, .soft, figcaption { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; } td code { color: var(--soft); }
code, pre { font: .86em/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
pre, .wide { overflow-x: auto; } summary { cursor: pointer; }
table { border-collapse: collapse; font-size: .94rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--soft); font-weight: 600; }
.columns { columns: 2 28rem; column-gap: 2rem; } .columns > div { break-inside: avoid; } .columns h3 { margin-top: 0; padding-top: .8rem; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-left: .6rem; } th.num { white-space: normal; vertical-align: bottom; }
.columns .num { padding-inline: .5rem .3rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .75rem; margin-bottom: .75rem; }
.chart img { width: 100%; height: auto; display: block; }
.prompts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; }
.prompt h3 { margin: 0 0 .3rem; } .strip { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-start; }
figure { margin: 0; text-align: center; } figcaption { font-size: .875rem; }
.strip img { display: block; width: 64px; height: auto; margin: 0 auto .3rem; } .strip img.near { width: 40px; }
td img { display: block; width: 32px; height: auto; }
.pixels { image-rendering: pixelated; } .full { width: 100%; }
.walks { display: flex; flex-wrap: wrap; gap: .6rem 2rem; } .walk { height: 48px; max-width: 100%; display: block; }
.large .strip img { width: 96px; } .large .strip img.near { width: 64px; }
.sounds { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .8rem 1.2rem; }
.sounds audio { width: 100%; height: 34px; margin-top: .3rem; }
.mel { display: grid; grid-template-columns: 3.6rem 1fr; font-size: .75rem; color: var(--soft); line-height: 1.2; }
.mel .y { display: flex; flex-direction: column; justify-content: space-between; height: 110px; text-align: right; padding-right: .4rem; }
.mel .x { display: flex; justify-content: space-between; padding-top: .15rem; } .shot img { width: 100%; height: 110px; display: block; }
.readings { display: flex; flex-wrap: wrap; gap: .5rem 2rem; }
.words .num { text-align: left; white-space: normal; overflow-wrap: anywhere; padding-left: 0; } .words td { padding-block: .2rem; }
.wrong { background: var(--bad-paper); color: var(--bad); border-radius: 4px; padding: .05rem .4rem; }
"""
