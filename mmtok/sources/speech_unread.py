"""Tables in the folder of a corpus of speech that its layout does not read, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.tables import suffix_of
from mmtok.io.tally import Tally
from mmtok.io.tars import PACKED_TARS
from mmtok.sources.layouts import is_part
from mmtok.sources.media import SOUNDS
from mmtok.sources.speech_columns import (
    SPELLINGS,
    find_columns,
    headless,
    need_columns,
    sound_among,
)
from mmtok.sources.speech_evidence import (
    AUDIOFOLDER,
    COMMON_VOICE,
    PIPED_NAME,
    Place,
    commonvoice_tables,
    nemo_tables,
    piped_tables,
)
from mmtok.sources.speech_tables import columns_in, held_sounds, stem_of_table
from mmtok.sources.unread_tables import check_unread, fault_in, seems_list

# layout -> the table that holds the others' clips, and is read alone unless splits are named
WHOLE = {"commonvoice": "validated", "ljspeech": "metadata"}


def check_tables(place: Place, layout: str, used: Sequence[Path], wanted: str) -> None:
    """Count the tables of a folder that are not read: without the columns, or damaged.

    Args:
        place: where the corpus lies.
        layout: its layout, one of tables.
        used: the tables that it reads.
        wanted: what these are, in messages.

    Raises:
        UserError: there is none that is read, one that the user means cannot be, or more cannot be
            than may be passed over.
    """
    faults = {path: fault for path in _others(place, layout, used) if (fault := _fault(path))}
    if not used:
        fault = next(iter(faults.values()), "")
        raise UserError(fault or f"{place.path}: this layout wants {wanted}, and there is none")
    settings = place.settings
    train = settings.train
    if layout == "commonvoice" and settings.heldout and not train:
        train = "train"  # of the other tables none is for training
    if WHOLE.get(layout, "") in map(stem_of_table, used) and not (
        settings.train or settings.heldout
    ):
        return
    with Tally("tables") as tally:
        tally.count(len(used) + len(faults))
        known = (*SPELLINGS["file"], *settings.columns.values())
        lists = [path for path in faults if seems_list(path, used, known, SOUNDS)]
        check_unread(used, faults, lists, train, settings.heldout, settings.tolerance, tally)
        for path in _others(place, layout, used):
            columns = columns_in(path)
            if path in faults or not columns:
                continue
            tally.count()
            _check_meant(place, path, columns, used)
            what = "left out: they have no columns of files and texts"
            tally.add(what, f"{path.name}, which has {listed(columns, 5)}")


def check_packed(path: Path) -> None:
    """Raise UserError for a packed tar."""
    if path.name.lower().endswith(PACKED_TARS) and path.is_file():
        raise UserError(
            f"{path}: is packed, and sounds in tars are read by their offset; unpack it to a .tar"
            " first"
        )


def check_held(place: Place, whole: Path) -> None:
    """Raise UserError where the tables of a folder hold sounds.

    whole: the folder above that the user named.
    """
    for path in place.tables:
        columns = find_columns(columns_in(path), place.settings, path)
        if {"file", "caption"} <= set(columns) and (held := held_sounds(path, columns, whole)):
            raise UserError(f"{path}: {held}")


def check_no_table(place: Place) -> None:
    """Raise UserError for what cannot be read in a folder which has nothing else to read."""
    if not place.path.is_dir():
        return
    for name in place.names:
        check_packed(place.path / name)
    metadata = [path for path in place.sample if path.name.lower() in AUDIOFOLDER]
    for path in (*place.tables, *metadata):
        if fault := _fault(path):
            raise UserError(fault)


def check_no_columns(place: Place) -> None:
    """Raise UserError for the tables of a folder, where sounds have no transcripts of their own."""
    for path in place.tables:
        columns = columns_in(path)
        if len(columns) > 1:
            need_columns({}, columns, path)


def _others(place: Place, layout: str, used: Sequence[Path]) -> list[Path]:
    """The tables beside those that a layout reads which could be its own, and no other's."""
    if not place.path.is_dir():
        return []
    read_otherwise = [*piped_tables(place), *nemo_tables(place), *commonvoice_tables(place)]
    others = [path for path in place.tables if path not in used and path not in read_otherwise]
    if layout == "commonvoice":
        return [path for path in others if stem_of_table(path) in COMMON_VOICE]
    if layout == "ljspeech":
        return [path for path in others if PIPED_NAME.fullmatch(path.name.lower())]
    return others


def _fault(path: Path) -> str:
    """Why a table cannot be read; "" where it can."""
    if fault := fault_in(path):
        return fault
    named = sound_among(columns_in(path)) if suffix_of(path) != ".json" else None
    return headless(path, named) if named else ""


def _check_meant(place: Place, path: Path, columns: Sequence[str], used: Sequence[Path]) -> None:
    """Raise UserError where the user names this table as a split, and none that is read."""
    for name in (place.settings.train, place.settings.heldout):
        is_meant = name and is_part(name, path.name)
        if is_meant and not any(is_part(name, other.name) for other in used):
            need_columns({}, columns, path)
