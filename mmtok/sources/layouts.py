"""Layouts of corpora: which one a place has, by its evidence or by the name that the user gives.

A modality has a table of layouts, in the order in which messages name them. Each looks at a place
(a folder or a file) and says why it could read it.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mmtok.errors import UserError
from mmtok.io.messages import counted

P = TypeVar("P")  # a place, as the modality sees it
R = TypeVar("R", covariant=True)  # its reader


@dataclass(frozen=True)
class Layout(Generic[P, R]):
    """One way in which a corpus is published.

    Attributes:
        name: in lower case, as the user gives it: librispeech.
        about: what it looks like, in a few words: SPEAKER/CHAPTER folders with .trans.txt.
        evidence: what speaks for this layout in a place, such as the file that shows it; "" for
            nothing.
        reader: what reads it.
        plain: whether it is read without a word where nothing else matches.
    """

    name: str
    about: str
    evidence: Callable[[P], str]
    reader: R
    plain: bool = False


def check_layout(layouts: Sequence[Layout], wanted: str, who: str) -> None:
    """Raise UserError where the user wants a layout that there is not; "" is any."""
    names = [layout.name for layout in layouts]
    if wanted and wanted not in names:
        raise UserError(f"{who}: layout is {wanted!r}; the layouts are {', '.join(names)}")


def chosen_layout(
    layouts: Sequence[Layout[P, R]], place: P, wanted: str, where: object, is_said: bool = True
) -> Layout[P, R] | None:
    """The layout of a place: the one that is wanted, else the one that has evidence.

    A detected layout is said, unless it is a plain one.

    Args:
        layouts: those that there are; a plain one counts where no other has evidence.
        place: where to look.
        wanted: its name; "" for any.
        where: the place, in messages.
        is_said: whether a detected layout is said here; else the caller does so.

    Returns:
        None where none has evidence.

    Raises:
        UserError: two have evidence.
    """
    if wanted:
        return next(layout for layout in layouts if layout.name == wanted)
    found = [(layout, evidence) for layout in layouts if (evidence := layout.evidence(place))]
    special = [(layout, evidence) for layout, evidence in found if not layout.plain]
    if len(special) > 1:
        shown = " and ".join(f"{layout.name} ({evidence})" for layout, evidence in special)
        choices = " or ".join(f"--layout {layout.name}" for layout, _ in special)
        raise UserError(f"{where}: could be read as {shown}; say which: {choices}")
    if special:
        layout, evidence = special[0]
        if is_said:
            warnings.warn(f"{where}: read as {layout.name} ({evidence})", stacklevel=3)
        return layout
    return next((layout for layout, _ in found), None)


def found_text(layout: str, counts: Mapping[str, int], unit: str) -> str:
    """What `mmtok show` says of a place.

    counts: of the examples of each split; unit: what they are called, in the plural.
    """
    parts = ", ".join(f"{n:,} for {split}" for split, n in counts.items())
    return f"read as {layout}: {counted(sum(counts.values()), unit.removesuffix('s'))}, {parts}"


# ---- the splits that a corpus publishes

HELDOUT_NAMES = ("test", "val", "valid", "validation", "dev", "heldout")


def is_part(name: str, part: str) -> bool:
    """Whether a user's name of a split means a part of a corpus: a folder, a file or a cell.

    "train" means train, train.tsv, captions_train2017.json and train-00000-of-00010.parquet, but
    not training; "fold1" means fold1.csv and not fold10; "dev*.tsv" is a pattern.
    """
    if name == part or fnmatch.fnmatchcase(part, name):
        return True
    before = "A-Za-z0-9" if name[:1].isdigit() else "A-Za-z"
    after = "A-Za-z0-9" if name[-1:].isdigit() else "A-Za-z"
    return bool(re.search(rf"(?<![{before}]){re.escape(name)}(?![{after}])", part))


def own_heldout(parts: Iterable[str]) -> tuple[str, str] | None:
    """The name of a split that a corpus holds out, and the first part that is of it.

    None where the corpus has not both that and parts to train on.

    parts: names of its folders, files or cells that could be of splits.
    """
    there = dict.fromkeys(parts)
    if not any(is_part("train", part) for part in there):
        return None
    found = ((name, part) for name in HELDOUT_NAMES for part in there if is_part(name, part))
    return next(found, None)


def check_lost(name: str, where: str, reasons: Sequence[str], unit: str) -> None:
    """Raise UserError where a split has examples, and none of them can be used.

    Args:
        name: of the split, as the user gives it.
        where: the corpus, as messages begin; "" for none.
        reasons: why each of its unusable examples is; none for a split that there is not.
        unit: what examples are called, in the plural.
    """
    if reasons:
        raise UserError(
            f"{where}the split {name!r} has {counted(len(reasons), unit.removesuffix('s'))}, and"
            f" none can be used; the first: {reasons[0]}"
        )
