"""Interleaved documents as rows of segments: one for the order, one for each modality's frames.

A field F of documents whose segments come in any order is stored as several fields of one row:

    F             codes (S, 4), a frame for each of the S segments: the number of its modality among
                  those of F, its number of frames, whether it is predicted, whether it is truncated
    F/MODALITY    the frames of all segments of this modality, one after another

What decoding needs of each segment, its info, is kept with the order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmtok.core.segment import MOST_LEVELS, Segment, Signature
from mmtok.errors import UserError

INTERLEAVED = "interleaved"  # the modality of such fields, and of their order
INFOS = "infos"


def part_field(field: str, modality: str) -> str:
    """The field that holds the frames of a modality of interleaved documents."""
    return f"{field}/{modality}"


def interleaved_signatures(field: str, signatures: Mapping[str, Signature]) -> dict[str, Signature]:
    """The fields that store a field of interleaved documents, and their signatures.

    signatures: of the modalities that may occur, in the order of their numbers.
    """
    makers = json.dumps([[m, s.fingerprint] for m, s in signatures.items()])
    order = Signature(
        INTERLEAVED,
        (len(signatures), MOST_LEVELS, 2, 2),
        fingerprint=hashlib.sha256(makers.encode()).hexdigest()[:12],
    )
    # several segments of a fixed length may follow each other
    parts = {part_field(field, m): replace(s, frames=None) for m, s in signatures.items()}
    return {field: order, **parts}


def join_segments(
    field: str,
    segments: Sequence[Segment],
    predict: Sequence[bool],
    modalities: Sequence[str],
) -> dict[str, Segment]:
    """A document as the segments of its row, field -> segment.

    modalities: those that may occur, in the order of their numbers.
    """
    number = {m: k for k, m in enumerate(modalities)}
    codes = [
        (number[s.modality], len(s), predicted, s.truncated)
        for s, predicted in zip(segments, predict, strict=True)
    ]
    infos = [dict(s.info) for s in segments]
    info = {}
    if any(infos):
        info[INFOS] = json.dumps(infos, default=_plain)
    row = {field: Segment(INTERLEAVED, codes=np.array(codes, np.int64).reshape(-1, 4), info=info)}
    for m in modalities:
        mine = [s for s in segments if s.modality == m]
        if not mine:
            continue
        values: Any = np.concatenate([s.values for s in mine])
        mask = None
        if any(s.predict is not None for s in mine):
            mask = np.concatenate([s.asked for s in mine])
        kind = "latents" if mine[0].codes is None else "codes"
        row[part_field(field, m)] = Segment(m, predict=mask, **{kind: values})
    return row


def split_segments(
    order: Segment, joined: Mapping[str, Segment], modalities: Sequence[str], name: str
) -> list[tuple[Segment, bool]]:
    """The inverse of `join_segments`: (segment, whether it is predicted) in the document's order.

    Args:
        order: of the document.
        joined: modality -> the frames of its segments.
        modalities: as for `join_segments`.
        name: of the row, in messages.

    Raises:
        UserError: the order does not fit the frames.
    """
    infos = json.loads(order.info[INFOS]) if INFOS in order.info else [{}] * len(order)
    used = dict.fromkeys(modalities, 0)
    parts = []
    for (k, n, predicted, truncated), info in zip(order.values.tolist(), infos, strict=True):
        m = modalities[k]
        frames = joined.get(m)
        start = used[m]
        used[m] += n
        if frames is None or used[m] > len(frames):
            raise UserError(f"{name}: has fewer frames of {m} than its order says; it is damaged")
        span = slice(start, used[m])
        mask = None if frames.predict is None else frames.predict[span]
        if mask is not None and mask.all():
            mask = None
        values: Any = frames.values[span]
        kind = "latents" if frames.codes is None else "codes"
        part = Segment(m, info=info, truncated=bool(truncated), predict=mask, **{kind: values})
        parts.append((part, bool(predicted)))
    for m, frames in joined.items():
        if used[m] != len(frames):
            raise UserError(f"{name}: has more frames of {m} than its order says; it is damaged")
    return parts


def _plain(value: object) -> object:
    """A numpy scalar as JSON's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"info holds a {type(value).__name__}; only scalars can be stored")
