"""How Sphinx builds the site: `python -m sphinx -W --keep-going docs build/docs`."""

import ast
import re
from pathlib import Path

import mmtok

project = "mmtok"
author = "The mmtok authors"
copyright = "The mmtok authors"
version = release = mmtok.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
html_theme = "furo"
html_title = f"mmtok {version}"

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
smartquotes_action = "qe"  # quotes and ellipses; -- starts an option
default_role = "code"  # docstrings name things in single backquotes
highlight_language = "none"  # literal blocks of docstrings are formulas and layouts, not Python
suppress_warnings = ["ref.python"]  # two classes may have an attribute of one name


def write_rooms() -> None:
    """A page of the reference per room, so that a new file needs no edit here."""
    house = Path(mmtok.__file__).parent
    folder = Path(__file__).parent / "reference" / "rooms"
    folder.mkdir(exist_ok=True)
    rooms = sorted(path.parent for path in house.glob("*/__init__.py"))
    for stale in folder.glob("*.rst"):
        if stale.stem not in {room.name for room in rooms}:
            stale.unlink()
    for room in rooms:
        summary = (ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or "").strip()
        lines = [room.name, "=" * len(room.name), "", *escaped(summary.splitlines()), ""]
        for path in sorted(room.rglob("*.py")):
            parts = path.relative_to(house.parent).with_suffix("").parts
            if parts[-1] == "__init__":
                continue
            name = ".".join(parts)
            lines += [name, "-" * len(name), "", f".. automodule:: {name}", ""]
        page = folder / f"{room.name}.rst"
        text = "\n".join(lines)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


# ---- docstrings are plain English, not reStructuredText


SECTION = re.compile(r"(Args|Returns|Yields|Raises|Example|Examples|Note|Notes|Attributes):$")
ITEM = re.compile(r"(?:[-*]|\d+\.) +(?=\S)")  # of a list
ROW = re.compile(r"(\S+(?: \S+)*) {2,}(\S.*)")  # aligned columns: a name, spaces, what it is


def escaped(lines: list[str]) -> list[str]:
    """The lines, with nothing in them that reStructuredText reads as markup, but backquotes.

    A word with a colon inside is escaped as well: `FILE:START` looks like a link.
    """
    parts = re.split(r"(``[^`]*``|`[^`]*`)", "\n".join(lines))
    parts[::2] = [
        re.sub(r"([*|\\]|_(?=\W|$)|`|(?<=\w):(?=\w))", r"\\\1", part) for part in parts[::2]
    ]
    return "".join(parts).split("\n")


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Runs of lines without an empty one between them; a list after a colon is one of its own."""
    found: list[list[str]] = [[]]
    for line in lines:
        if ITEM.match(line.strip()) and found[-1] and found[-1][-1].endswith(":"):
            found.append([])
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [part for part in found if part]


def definitions(lines: list[str]) -> list[str] | None:
    """A table of two columns as a definition list; None for other paragraphs.

    Further lines of a row are indented.
    """
    indent = len(lines[0]) - len(lines[0].lstrip())
    rows: list[tuple[str, list[str]]] = []
    for line in lines:
        text = line[indent:]
        row = ROW.fullmatch(text)
        if row and not line[:indent].strip():
            rows.append((row[1], [row[2]]))
        elif rows and text.startswith("  "):
            rows[-1][1].append(text.strip())
        else:
            return None
    made = []
    for name, text in rows:
        made += [f"``{name}``", *(f"    {line}" for line in escaped(text))]
    return made


def items(lines: list[str]) -> list[str] | None:
    """A list with its items escaped; None for other paragraphs.

    Further lines of an item are indented.
    """
    indent = len(lines[0]) - len(lines[0].lstrip())
    starts = []
    texts = []
    for line in lines:
        item = ITEM.match(line[indent:])
        if item is None and not (starts and line[indent:].startswith("  ")):
            return None
        starts.append(line[: indent + item.end()] if item else "")
        texts.append(line.removeprefix(starts[-1]))
    return [start + text for start, text in zip(starts, escaped(texts), strict=True)]


def as_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Make tables definition lists, keep the layout of indented lines, and escape the rest."""
    made = []
    for part in paragraphs(lines):
        if SECTION.match(part[0]):  # napoleon reads these
            made += [*escaped(part), ""]
        elif made_of_items := items(part):
            made += [*made_of_items, ""]
        elif table := definitions(part):
            made += [*table, ""]
        elif any(ROW.match(line.strip()) or line.startswith(" ") for line in part):
            made += ["::", "", *(f"    {line}" for line in part), ""]
        else:
            made += [*escaped(part), ""]
    if what in ("attribute", "data", "property"):
        made[:0] = ["..", ""]  # a comment; else napoleon takes words before a colon for a type
    lines[:] = made


UNION = re.compile(r"~[\w.]+\.Annotated\[(~[\w.]+), ~[\w.]+\.Kinds\(union=[^()]*\)\]")


def short_signature(app, what, name, obj, options, signature, returns) -> tuple[str | None, str]:
    """A field that takes any class of a union shows their base alone."""
    return signature and UNION.sub(r"\1", signature), returns


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_rst, priority=100)
    app.connect("autodoc-process-signature", short_signature)


write_rooms()
