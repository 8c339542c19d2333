"""HTML for a report: tags, tables, small pictures, the style sheet.

Nothing in this file knows a run: it turns words and arrays into markup.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Images of at most PNG_SIDE pixels a side are kept exactly. Larger ones become JPEG of THUMB_SIDE.
PNG_SIDE = 40
THUMB_SIDE = 96
JPEG_QUALITY = 85
VOID_TAGS = ("img", "source", "meta")  # have no closing tag


# ---- tags


class Markup(str):
    """Text that is HTML already. Every other string is escaped on its way into a tag."""


def join(*parts: object) -> Markup:
    """Parts one after the other, escaped where they are not HTML."""
    return Markup("".join(map(_escaped, parts)))


def _escaped(part: object) -> str:
    return part if isinstance(part, Markup) else html.escape(str(part))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """<name attribute="value">children</name>.

    `cls` is written as class. An attribute that is True has no value; one that is None is left out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key if key != "cls" else "class"
        if value is True:
            words.append(key)
        elif value is not None:
            words.append(f'{key}="{html.escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    if name in VOID_TAGS:
        return Markup(opening)
    return Markup(f"{opening}{join(*children)}</{name}>")


def table(head: Sequence[object], rows: Sequence[Sequence[object]], cls: str = "") -> Markup:
    """A table whose first column is words and whose others are figures."""
    body = tag("tbody", *(_table_row("td", row) for row in rows))
    contents = tag("table", tag("thead", _table_row("th", head)), body, cls=cls)
    return tag("div", contents, cls="wide")


def _table_row(cell: str, values: Sequence[object]) -> Markup:
    """<tr> with a cell, "td" or "th", for each value."""
    cells = [tag(cell, value, cls="num" if i else None) for i, value in enumerate(values)]
    return tag("tr", *cells)


def number(value: object) -> str:
    """Four significant digits, all of a whole number; a dash for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if np.isfinite(value) else "–"


def one_line(text: str, max_chars: int = 80) -> str:
    """Text on one line of printable characters.

    A character that comes eight times or more in a row is counted, unprintable ones become their
    escapes, and what is too long is cut.
    """
    line = re.sub(r"(.)\1{7,}", _counted_run, text, flags=re.DOTALL)
    line = "".join(map(_printable, line)) or "(nothing)"
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def _counted_run(run: re.Match[str]) -> str:
    name = "space" if run[1] == " " else run[1]
    return f"{name} × {len(run[0])}"


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def page(title: str, body: Sequence[Markup]) -> str:
    """A whole HTML document."""
    width = "width=device-width, initial-scale=1"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content=width),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", *body), lang="en") + "\n"


# ---- pictures


def data_uri(media_type: str, data: bytes) -> str:
    """A file inside the page, as an address. media_type: such as image/png."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def png(picture: Image.Image) -> str:
    """A picture as the address of a PNG file inside the page."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return data_uri("image/png", file.getvalue())


def jpeg(picture: Image.Image) -> str:
    """A picture as the address of a JPEG file inside the page."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return data_uri("image/jpeg", file.getvalue())


def thumbnail(image: np.ndarray, alt: str, cls: str = "", n_tiles: int = 1) -> Markup:
    """An image, uint8 (Y, X) or (Y, X, 3), as <img>; small ones exactly, with square pixels.

    n_tiles: How many images lie side by side in it, with gaps of at most an eighth of their width.
    Each counts as small or large by itself.
    """
    picture = Image.fromarray(image)
    n_widths = n_tiles * 9 / 8 if n_tiles > 1 else 1
    if max(picture.height, picture.width / n_widths) <= PNG_SIDE:
        return tag("img", src=png(picture), alt=alt, cls=f"pixels {cls}")
    picture.thumbnail((round(THUMB_SIDE * n_widths), THUMB_SIDE))
    return tag("img", src=jpeg(picture), alt=alt, cls=cls)


STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8;
  --card: #ffffff;
  --ink: #1d2228;
  --soft: #57616c;
  --line: #dde2e7;
  --link: #0b62b8;
  --bad: #a3200f;
  --bad-paper: #fde8e4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121519;
    --card: #1b1f24;
    --ink: #e4e8ec;
    --soft: #a0abb6;
    --line: #333b44;
    --link: #62b0f5;
    --bad: #ffb4a6;
    --bad-paper: #4a1f18;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto;
  padding: 2rem 1.25rem 4rem;
  max-width: 76rem;
  background: var(--page);
  color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.3rem; margin: 0 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p { margin: .35rem 0 .8rem; max-width: 48rem; }
a { color: var(--link); }
section, header {
  background: var(--card);
  border: 1px solid var(--line);
  border-radius: 10px;
  padding: 1.2rem 1.5rem;
  margin: 0 0 1.2rem;
}
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-top: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0; }
dt, .soft, figcaption { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
td code { color: var(--soft); }
code, pre { font: .86em/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
pre, .wide { overflow-x: auto; }
summary { cursor: pointer; }
table { border-collapse: collapse; font-size: .94rem; }
th, td {
  text-align: left;
  padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--line);
  vertical-align: middle;
}
th { color: var(--soft); font-weight: 600; }
.columns { columns: 2 28rem; column-gap: 2rem; }
.columns > div { break-inside: avoid; }
.columns h3 { margin-top: 0; padding-top: .8rem; }
.num {
  text-align: right;
  font-variant-numeric: tabular-nums;
  white-space: nowrap;
  padding-left: .6rem;
}
th.num { white-space: normal; vertical-align: bottom; }
.columns .num { padding-inline: .5rem .3rem; }
.charts {
  display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
  gap: .75rem;
  margin-bottom: .75rem;
}
.chart img { width: 100%; height: auto; display: block; }
.prompts { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; }
.prompt h3 { margin: 0 0 .3rem; }
.strip { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-start; }
figure { margin: 0; text-align: center; }
figcaption { font-size: .875rem; }
.strip img { display: block; width: 64px; height: auto; margin: 0 auto .3rem; }
.strip img.near { width: 40px; }
td img { display: block; width: 32px; height: auto; }
.pixels { image-rendering: pixelated; }
.full { width: 100%; }
.trajectories { display: flex; flex-wrap: wrap; gap: .6rem 2rem; }
.trajectory { height: 48px; max-width: 100%; display: block; }
.large .strip img { width: 96px; }
.large .strip img.near { width: 64px; }
.sounds {
  display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr));
  gap: .8rem 1.2rem;
}
.sounds audio { width: 100%; height: 34px; margin-top: .3rem; }
.mel {
  display: grid;
  grid-template-columns: 3.6rem 1fr;
  font-size: .75rem;
  color: var(--soft);
  line-height: 1.2;
}
.mel .y {
  display: flex;
  flex-direction: column;
  justify-content: space-between;
  height: 110px;
  text-align: right;
  padding-right: .4rem;
}
.mel .x { display: flex; justify-content: space-between; padding-top: .15rem; }
.shot img { width: 100%; height: 110px; display: block; }
.readings { display: flex; flex-wrap: wrap; gap: .5rem 2rem; }
.words .num { text-align: left; white-space: normal; overflow-wrap: anywhere; padding-left: 0; }
.words td { padding-block: .2rem; }
.wrong {
  background: var(--bad-paper);
  color: var(--bad);
  border-radius: 4px;
  padding: .05rem .4rem;
}
"""
