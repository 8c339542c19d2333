"""What `mmtok score` does: files and words in, -log p in nats and the customary unit out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmtok.commands.documents import documents_in, is_documents
from mmtok.commands.prompts import are_chunks, condition_segments, expand_folders, read_segments
from mmtok.core.segment import Document, Segment
from mmtok.core.units import counted, customary, is_density
from mmtok.errors import UserError
from mmtok.heads.base import Kind
from mmtok.model.likelihood import KINDS, LogLikelihood
from mmtok.run.run import Run


@dataclass(frozen=True)
class Scored:
    """One line of `mmtok score`.

    Attributes:
        name: of the file, or the words.
        modality: of the segment.
        nats: -log p of the segment, its end included.
        frames: how many frames it has.
        units: how many of the customary unit it has, such as the bytes of a text.
        kind: "exact", "bound" or "estimate".
        value: -log p in the customary unit.
        unit: its name, such as "bits/byte".
        chunk: the segment is a chunk of a longer text, scored without the chunks before it.
        density: p is a density (of standardised latents), so nats may be negative.
        headers: how many frames the unit does not count (a jet's totals). Their nats are shared out
            over the others.
        cut: how many segments were cut off at a cap. Only their beginning is scored: neither the
            rest nor the end.
    """

    name: str
    modality: str
    nats: float
    frames: int
    units: int
    kind: str
    value: float
    unit: str
    chunk: bool = False
    density: bool = False
    headers: int = 0
    cut: int = 0

    def __str__(self) -> str:
        frames = f"{self.frames} frames"
        if self.headers:
            frames += f" ({self.headers} of them totals)"
        units = counted(self.unit)
        if not self.units:
            value = f"no {units}"
        elif self.units == self.frames:
            value = f"{self.value:.4f} {self.unit}"
        else:
            value = f"{self.value:.4f} {self.unit} over {self.units} {units}"
        kind = kind_text(self.kind, self.density)
        if self.cut:
            kind += f", {self.cut} cut at the cap: scored as what begins so"
        return f"{self.name}: {self.nats:.4f} nats over {frames}, {value} ({kind})"


def kind_text(kind: str, density: bool) -> str:
    """The kind of a likelihood in words."""
    return f"{kind}, density" if density else kind


def totals(rows: Sequence[Scored]) -> list[Scored]:
    """One line for each modality with several rows: their sum, in the customary unit over all.

    The sum is -log p of the rows as separate documents, as several files and the jets of one file
    are. It is no bound for the chunks of a longer text: each was scored without the text before it.
    If there are chunks among the rows, the kind says that it holds for each by itself.
    """
    lines = []
    for modality in dict.fromkeys(row.modality for row in rows):
        mine = [row for row in rows if row.modality == modality]
        if len(mine) > 1:
            lines.append(_total(mine))
    return lines


def _total(rows: Sequence[Scored]) -> Scored:
    kind = max((row.kind for row in rows), key=KINDS.index)
    if any(row.chunk for row in rows):
        kind += " for each chunk by itself, not for the text"
    units = sum(row.units for row in rows)
    value = sum(row.value * max(1, row.units) for row in rows) / max(1, units)
    return replace(
        rows[0],
        name=f"all {len(rows)}",
        nats=sum(row.nats for row in rows),
        frames=sum(row.frames for row in rows),
        units=units,
        kind=kind,
        value=value,
        chunk=False,
        headers=sum(row.headers for row in rows),
        cut=sum(row.cut for row in rows),
    )


def kind_of(run: Run, modality: str) -> Kind:
    """What a score of a signal of this modality is: the less certain of head and tokenizer.

    The model scores one list of codes. Where several lists decode to the same signal, the others
    add to its probability, so that an exact score of one is a bound for the signal.
    """
    kind = run.lm.kind(modality)
    if kind == "exact" and run.tokenizers[modality].is_ambiguous:
        return "bound"
    return kind


def n_units(run: Run, segment: Segment) -> int:
    """How many of the customary unit a segment has as its tokenizer counts them."""
    return run.tokenizers[segment.modality].n_units(segment)


def score(
    run: Run,
    files: Sequence[str],
    condition: Sequence[str] = (),
    reading: Mapping[str, Any] = MappingProxyType({}),
) -> list[Scored]:
    """-log p of every file or word, each given the condition.

    A folder stands for the files below it. No condition needs a run trained with the null
    condition. Raises UserError for an order of modalities that was never trained.

    reading: how the files are read, instead of as the run's own were; see `SignalFiles.options`.
    """
    before = condition_segments(run, condition)
    names: list[str] = []
    documents: list[Document] = []
    scored_segments: list[tuple[int, int]] = []  # of a document, which of its segments
    is_chunk: list[bool] = []
    for word in expand_folders(run, files):
        if is_documents(run, word):
            if before:
                raise UserError(
                    f"{word}: a document holds all that its parts are given: leave --condition out"
                )
            if reading:
                raise UserError(
                    f"{word}: a document says itself how it is read: leave"
                    f" --{next(iter(reading))} out"
                )
            for name, document in documents_in(run, Path(word)):
                for k in _predicted(run, document):
                    names.append(f"{name}[{k}]")
                    scored_segments.append((len(documents), k))
                    is_chunk.append(False)
                documents.append(document)
            continue
        segments = read_segments(run, word, reading)
        several = len(segments) > 1
        chunks = are_chunks(run, segments)
        for i, segment in enumerate(segments):
            document = _document(run, before, segment)
            scored_segments.append((len(documents), len(document.segments) - 1))
            documents.append(document)
            names.append(f"{word}[{i}]" if several else word)
            is_chunk.append(chunks)
    scores = run.score_documents(documents)
    return [
        _scored(run, name, documents[d].segments[k], chunk, scores[d], k)
        for name, (d, k), chunk in zip(names, scored_segments, is_chunk, strict=True)
    ]


def _predicted(run: Run, document: Document) -> list[int]:
    """The numbers of the segments whose p a document asks for.

    Raises UserError where the run was never trained on that order, or there are none.
    """
    modalities = [s.modality for s in document.segments if s is not None]
    asked = [k for k, is_asked in enumerate(document.predict) if is_asked]
    for k in asked:
        run.task_for(modalities[:k], modalities[k])
    return asked


def _document(run: Run, condition: Sequence[Segment], segment: Segment) -> Document:
    """The condition, of which p is not asked, then the segment."""
    task = run.task_for([s.modality for s in condition], segment.modality)
    head = tuple(condition) or (None,) * len(task.inputs)
    return Document((*head, segment), (False,) * len(head) + (True,))


def _scored(
    run: Run, name: str, segment: Segment | None, chunk: bool, found: LogLikelihood, k: int
) -> Scored:
    """The line of a document's segment number k."""
    nats = found.nats[k]
    assert segment is not None and nats is not None, "the segment is predicted"
    signature = run.vocabulary.signatures[segment.modality]
    units = n_units(run, segment)
    value, unit = customary(signature, nats, units)
    return Scored(
        name=name,
        modality=segment.modality,
        nats=nats,
        frames=len(segment),
        units=units,
        kind=kind_of(run, segment.modality),
        value=value,
        unit=unit,
        chunk=chunk,
        density=is_density(signature),
        headers=min(signature.headers, len(segment)),
        cut=int(segment.truncated),
    )
