"""Write the tables of docs/howto/layouts.md from the package's own: `python docs/layouts.py`.

With --check nothing is written, and the exit status says whether the page is up to date.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmtok.io.compressed import COMPRESSED
from mmtok.io.tables import TEXT_TABLE, TEXTS
from mmtok.sources.hub_cells import COLUMN_KINDS
from mmtok.sources.hub_tables import KINDS
from mmtok.sources.image_files import PICTURES
from mmtok.sources.image_layouts import IMAGE_LAYOUTS
from mmtok.sources.interleaved import TYPES
from mmtok.sources.jet_formats import LAYOUTS as JET_LAYOUTS
from mmtok.sources.media import SOUNDS
from mmtok.sources.speech_layouts import LAYOUTS as SPEECH_LAYOUTS
from mmtok.sources.text_layouts import layouts_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "howto" / "layouts.md"
TABLE = re.compile(r"(<!-- (\w+) -->\n\n).*?\n*(<!-- end -->)", re.DOTALL)


def rows(layouts: Iterable) -> str:
    """A table of layouts: their names, and what they look like."""
    lines = ["| layout | what is there |", "|---|---|"]
    lines += [f"| `{layout.name}` | {plain(layout.about)} |" for layout in layouts]
    return "\n".join(lines)


def plain(text: str) -> str:
    """A text without signs that Markdown reads."""
    return re.sub(r"([*|_])", r"\\\1", text)


def jet_rows() -> str:
    """A table of layouts of jets, with the suffixes of their files."""
    lines = ["| layout | what is there | files |", "|---|---|---|"]
    for layout in JET_LAYOUTS:
        suffixes = " ".join(f"`{suffix}`" for suffix in layout.suffixes)
        lines.append(f"| `{layout.name}` | {plain(layout.about)} | {suffixes} |")
    return "\n".join(lines)


def suffixes(names: Sequence[str]) -> str:
    """Suffixes in a line."""
    return ", ".join(f"`{name}`" for name in names)


def tables() -> dict[str, str]:
    """Name of a table on the page -> its text."""
    known = suffixes([*TEXTS, TEXT_TABLE])
    packed = " or ".join(f"`{suffix}`" for suffix in COMPRESSED)
    return {
        "speech": rows(SPEECH_LAYOUTS),
        "sounds": suffixes(SOUNDS),
        "image": rows(IMAGE_LAYOUTS),
        "pictures": suffixes(PICTURES),
        "text": rows(layouts_of()),
        "jets": jet_rows(),
        "files": f"{known}, each also with {packed}; {suffixes(list(KINDS))}",
        "columns": ", ".join(COLUMN_KINDS),
        "parts": ", ".join(f"`{name}`" for name in TYPES),
    }


def written(page: str) -> str:
    """The page with its tables as the package has them."""
    known = tables()
    return TABLE.sub(lambda match: f"{match[1]}{known[match[2]]}\n\n{match[3]}", page)


def main() -> int:
    """Write the page, or check it."""
    before = PAGE.read_text()
    new = written(before)
    if "--check" in sys.argv:
        return int(new != before)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
