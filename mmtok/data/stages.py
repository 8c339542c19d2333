"""Stages of a training that begins before all of its token files are made.

A stage reads the first parts of each source's token files, from its first step to that of the next
stage. The record stages.json is only appended to, before the first step of a stage is trained. So
the batch of step k is a function of (seed, k, record), however often the training is interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.serialize import Within, read_json_as, to_plain

RECORD = "stages.json"


@dataclass(frozen=True)
class Stage:
    """What is read from a step on.

    Attributes:
        step: the first one.
        parts: how many parts of each source's token files, from the first on.
    """

    step: Annotated[int, Within(0)]
    parts: tuple[Annotated[int, Within(1)], ...]


@dataclass(frozen=True)
class Stages:
    """The content of stages.json."""

    stages: tuple[Stage, ...]


def read_stages(folder: Path, n_sources: int) -> list[Stage]:
    """The stages of a run, by its folder of token files; [] where there is no record.

    Raises UserError for a record that is damaged, or of another number of sources.
    """
    path = folder / RECORD
    if not path.exists():
        return []
    stages = list(read_json_as(path, Stages).stages)
    grows = all(a.step < b.step and _holds(b.parts, a.parts) for a, b in pairwise(stages))
    if not grows or not stages or stages[0].step or {len(s.parts) for s in stages} != {n_sources}:
        raise UserError(
            f"{path} is damaged: its stages must begin at step 0 and grow, with {n_sources} counts"
            f" of parts each; train into another --out, or remove {folder} and the checkpoints"
        )
    return stages


def write_stages(folder: Path, stages: Sequence[Stage]) -> None:
    """Write the record of all stages so far."""
    plain = to_plain(Stages(tuple(stages)))
    write_text(folder / RECORD, json.dumps(plain) + "\n")


def _holds(parts: Sequence[int], other: Sequence[int]) -> bool:
    """Whether all parts of another stage are among these."""
    return all(n >= m for n, m in zip(parts, other, strict=False))
