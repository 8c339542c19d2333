"""Write the annotated tree in docs/design/floor_plan.md: `python docs/floor_plan.py`.

Clauses that stand there are kept; a new file gets its module's summary. With --check nothing is
written, and the exit status says whether the page is up to date.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "design" / "floor_plan.md"
START = "```text\nmmtok/\n"
CLAUSE_AT = 23  # the column at which clauses begin


def summary(path: Path) -> str:
    """The first paragraph of a module's docstring as a clause: one line, no capital, no full stop.

    A first word with other capitals in it (Runge-Kutta, VQ) is a name, and stays.
    """
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    clause = " ".join(text.split("\n\n")[0].split()).removesuffix(".")
    first, space, rest = clause.partition(" ")
    if first[1:] == first[1:].lower():
        first = first.lower()
    return first + space + rest


def known_clauses(tree: str) -> dict[str, str]:
    """Path below mmtok/ -> its clause, of the tree as the page has it."""
    clauses = {}
    folder = ""
    for line in tree.splitlines():
        indent, name, clause = re.fullmatch(r"( +)(\S+) *(.*)", line).groups()
        if len(indent) == 2:
            folder = name if name.endswith("/") else ""
        clauses[name if name == folder or len(indent) == 2 else folder + name] = clause
    return clauses


def line(indent: int, name: str, clause: str) -> str:
    """One line of the tree."""
    start = f"{' ' * indent}{name}"
    return f"{start:<{CLAUSE_AT - 1}} {clause}".rstrip()


def tree(clauses: dict[str, str]) -> str:
    """The tree of the package: files of the top, then each room with its files."""
    house = ROOT / "mmtok"
    top = sorted(house.glob("*.py"))
    rooms = sorted(path.parent for path in house.glob("*/__init__.py"))
    order = list(clauses)
    rooms.sort(key=lambda room: order.index(f"{room.name}/") if f"{room.name}/" in order else 99)
    lines = [line(2, path.name, clauses.get(path.name) or summary(path)) for path in top]
    for room in rooms:
        key = f"{room.name}/"
        lines.append(line(2, key, clauses.get(key) or summary(room / "__init__.py")))
        for path in sorted(room.rglob("*.py")):
            name = path.relative_to(room).as_posix()
            if name != "__init__.py":
                lines.append(line(4, name, clauses.get(key + name) or summary(path)))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or check it."""
    before = PAGE.read_text()
    head, rest = before.split(START)
    old, tail = rest.split("```\n", 1)
    new = head + START + tree(known_clauses(old)) + "```\n" + tail
    if "--check" in sys.argv:
        return int(new != before)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
