"""The clips that a layout of a speech corpus lists: small rows, and which of them are held out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from mmtok.errors import UserError
from mmtok.io.messages import listed
from mmtok.io.tally import Tally
from mmtok.sources.layouts import check_lost, is_part

MOST_LEAKED = 0.01  # of the held-out clips that may be among the training clips too


class Clip(NamedTuple):
    """A clip that is listed, not read: a file or a part of one, and what is said in it."""

    path: str  # of the file
    caption: str  # its transcript
    speaker: str = ""  # "" where it is unknown
    split: str = ""  # the part of the corpus that it is in, as the corpus calls it
    start_s: float = 0.0  # where it begins in the file
    duration_s: float = 0.0  # how long the part is; 0: all that follows
    length_s: float = 0.0  # its length as the corpus says; 0 where it does not
    group: str = ""  # clips of one group are in one split; "": the file's path without suffix
    fault: str = ""  # why it cannot be used; "" where it can
    numbers: tuple[tuple[str, float], ...] = ()  # (field, number), of those that are there
    member: tuple[str, int, int] | None = None  # of a tar: where, from which byte, how many

    @property
    def name(self) -> str:
        """The clip in messages."""
        if self.start_s or self.duration_s:
            return f"{self.path} from {self.start_s:g} s"
        return self.path

    @property
    def unit(self) -> str:
        """What is in one split: the clips of a file, and files that differ in their suffix."""
        return self.group or os.path.splitext(self.path)[0]


def in_order(clips: Sequence[Clip], tally: Tally, by_split: bool = True) -> list[Clip]:
    """Clips ordered by folders and file names, then by time; a row that comes twice is taken once.

    A part of a file that has several transcripts is kept with each, and counted.

    by_split: whether a row counts in each of the corpus's own splits, as these are to be used.
    """
    ordered = sorted(clips, key=_start)
    ordered.sort(key=_path_key)
    kept: list[Clip] = []
    at: tuple[object, ...] = ()
    captions: set[str] = set()  # of the part at hand
    for clip in ordered:
        part = (clip.path, clip.start_s, clip.duration_s, by_split and clip.split)
        if part != at:
            at = part
            captions.clear()
        elif clip.fault:
            pass  # it counts with what cannot be used
        elif clip.caption in captions:
            tally.add("listed more than once and taken once", clip.name)
            continue
        else:
            tally.add("given several transcripts, and taken with each", clip.name)
        captions.add(clip.caption)
        kept.append(clip)
    return kept


def _start(clip: Clip) -> tuple[float, float, str]:
    return clip.start_s, clip.duration_s, clip.split


def _path_key(clip: Clip) -> str:
    """Orders paths as their parts are ordered: a/b before a-b."""
    return clip.path.replace("/", "\0")


# ---- splits


def wanted_clips(
    clips: list[Clip], train: str, heldout: str, lost: Sequence[tuple[Clip, str]] = ()
) -> list[Clip]:
    """The clips of the corpus's own splits that are named; all where `heldout` alone is, or none.

    lost: as of `split_clips`.

    Raises UserError for a split that the corpus does not have.
    """
    if not train and not heldout:
        return clips
    names = dict.fromkeys(clip.split for clip in clips)
    wanted = _parts(train, names, lost) | _parts(heldout, names, lost)
    if not train:
        return clips
    return [clip for clip in clips if clip.split in wanted]


def split_clips(
    clips: list[Clip],
    train: str,
    heldout: str,
    most_leaked: float = MOST_LEAKED,
    lost: Sequence[tuple[Clip, str]] = (),
) -> dict[str, list[Clip]]:
    """The clips of "train" and of "heldout".

    A tenth of the files is held out, by the hash of their names, unless the corpus's own splits are
    named: with `heldout` alone all others are for training, with `train` alone a tenth of that one
    is held out.

    lost: clips that cannot be used, each with the reason.

    Raises UserError for a split that is empty, and for one that leaks.
    """
    if not heldout:
        return _by_hash(wanted_clips(clips, train, heldout, lost))
    names = dict.fromkeys(clip.split for clip in clips)
    in_heldout = _parts(heldout, names, lost)
    in_train = _parts(train, names, lost) or set(names)
    held = [clip for clip in clips if clip.split in in_heldout]
    training = [clip for clip in clips if clip.split in in_train - in_heldout]
    if not training:
        raise UserError(
            f"no clip is left to train on: train is {train!r} and heldout {heldout!r}, and the"
            f" corpus has {listed([name for name in names if name])}"
        )
    return {"train": _without_leaks(training, held, most_leaked), "heldout": held}


def _parts(name: str, there: dict[str, None], lost: Sequence[tuple[Clip, str]]) -> set[str]:
    """The corpus's own splits that a name means; none for "". Raises UserError for no split."""
    found = {part for part in there if name and is_part(name, part)}
    if name and not found:
        check_lost(name, "", [why for clip, why in lost if is_part(name, clip.split)], "clips")
        raise UserError(
            f"no clip is in a split {name!r}; the corpus has"
            f" {listed([part for part in there if part]) or 'none of its own'}"
        )
    return found


def _without_leaks(training: list[Clip], held: list[Clip], most: float) -> list[Clip]:
    """The training clips without those whose files are held out.

    Raises UserError where these are more than the share `most` of the held-out files.
    """
    units = {clip.unit for clip in held}
    leaked = {clip.unit for clip in training} & units
    if not leaked:
        _count_captions(training, held)
        return training
    first = next(clip for clip in training if clip.unit in leaked)
    if len(leaked) > most * len(units):
        raise UserError(
            f"{first.path}: in the training split and in the held-out one, as are {len(leaked):,}"
            f" of {len(units):,} held-out files; name splits that share none"
        )
    with Tally("training clips") as tally:
        tally.count(len(training))
        kept = [clip for clip in training if clip.unit not in leaked]
        tally.add("left out: their files are held out", first.path, len(training) - len(kept))
    _count_captions(kept, held)
    return kept


def _count_captions(training: list[Clip], held: list[Clip]) -> None:
    """Say how many held-out transcripts training has too, as other people say the same."""
    known = {clip.caption for clip in training}
    again = [clip for clip in held if clip.caption in known]
    with Tally("held-out clips") as tally:
        tally.count(len(held))
        if again:
            tally.add("of a transcript that training has too", again[0].name, len(again))


def _by_hash(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """A tenth of the files, at least one of two, is held out, by the hash of their names.

    Clips of one unit stay together.
    """
    units = dict.fromkeys(clip.path for clip in clips)
    held = held_out(clips, list(units))
    return {
        "train": [clip for clip in clips if clip.unit not in held],
        "heldout": [clip for clip in clips if clip.unit in held],
    }


def held_out(clips: Sequence[Clip], paths: Sequence[str]) -> set[str]:
    """The units that are held out. paths: the files of the clips, each once, in order."""
    if len(paths) < 2:
        return set()
    unit_of = {clip.path: clip.unit for clip in clips}
    by_hash = sorted(paths, key=lambda path: _digest(unit_of[path]))
    n = max(1, len(paths) // 10)
    while n < len(paths) and unit_of[by_hash[n]] == unit_of[by_hash[n - 1]]:
        n += 1
    if n == len(paths):
        return set()
    return {unit_of[path] for path in by_hash[:n]}


def _digest(unit: str) -> bytes:
    return hashlib.sha256(os.path.basename(unit).encode()).digest()
