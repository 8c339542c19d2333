"""What `mmtok score` does: files and words in, -log p in nats and the customary unit out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmtok.commands.prompts import first_segment, read_segments, spread
from mmtok.core.segment import Document, Segment
from mmtok.core.units import counted, customary, is_density, units_of
from mmtok.run.run import Run
from mmtok.tokenizers.text import Bytes


@dataclass(frozen=True)
class Scored:
    """One line of `mmtok score`: nats of a segment, its frames and how many of its unit (bytes of a
    text) these are, the kind, and the customary unit; whether the segment is only a passage of a
    longer text, scored without the passages before it; whether the nats are of a density (of
    standardised latents), and so may be below 0.

    headers  of the frames, those that the unit does not count: their nats (of a jet's totals) are
             shared out over the others' units
    cut      segments that were cut off at a cap: scored is how they begin, and neither their rest
             nor their end
    """

    name: str
    modality: str
    nats: float
    frames: int
    units: int
    kind: str
    value: float
    unit: str
    passage: bool = False
    density: bool = False
    headers: int = 0
    cut: int = 0

    def __str__(self) -> str:
        frames = f"{self.frames} frames" + f" ({self.headers} of them totals)" * bool(self.headers)
        units = f" over {self.units} {counted(self.unit)}" * (self.units != self.frames)
        value = f"{self.value:.4f} {self.unit}{units}" if self.units else f"no {counted(self.unit)}"
        kind = kind_text(
            self.kind, self.density
        ) + f", {self.cut} cut at the cap: scored as what begins so" * bool(self.cut)
        return f"{self.name}: {self.nats:.4f} nats over {frames}, {value} ({kind})"


def kind_text(kind: str, density: bool) -> str:
    """What nats are, in words."""
    return f"{kind}, density" if density else kind


def totals(rows: Sequence[Scored]) -> list[Scored]:
    """One line for each modality that has several rows: their sum, in the customary unit over all
    of them.

    The sum is -log p of the rows as separate documents, which is what several files are, and the
    jets of one file. The passages of a
    longer text are no such thing: the decoder gave the text as a whole no probability, and their
    sum is no bound on one, since each was scored without what comes before it. So where passages
    are among the rows the kind says that it holds of them one by one.
    """
    lines = []
    for modality in dict.fromkeys(row.modality for row in rows):
        mine = [row for row in rows if row.modality == modality]
        if len(mine) > 1:
            nats, units = sum(row.nats for row in mine), sum(row.units for row in mine)
            kinds = {row.kind for row in mine}
            kind = next(
                kind for kind in ("estimate", "bound", "exact") if kind in kinds
            )  # a sum is what the weakest of its terms is
            kind += " for each passage by itself, not for the text" * any(
                row.passage for row in mine
            )
            value = sum(row.value * max(1, row.units) for row in mine) / max(1, units)
            frames, headers, cut = (
                sum(getattr(row, name) for row in mine) for name in ("frames", "headers", "cut")
            )
            lines.append(
                replace(
                    mine[0],
                    name=f"all {len(mine)}",
                    nats=nats,
                    frames=frames,
                    units=units,
                    kind=kind,
                    value=value,
                    passage=False,
                    headers=headers,
                    cut=cut,
                )
            )
    return lines


def n_units(run: Run, segment: Segment) -> int:
    """How many of what the customary unit counts a segment has, as `units_of` says."""
    return units_of(run.tokenizers[segment.modality], segment)


def score(run: Run, files: Sequence[str], given: Sequence[str] = ()) -> list[Scored]:
    """-log p of every file (or word; or file below a folder), each given the condition, under the
    run's decoder.

    Raises UserError for an order that was never trained: a condition left out needs a run trained
    with the null condition.
    """
    condition = [first_segment(run, word) for word in given]
    names, documents, passage = [], [], []
    for word in spread(files):
        segments = read_segments(run, word)
        for i, segment in enumerate(segments):
            task = run.task_for([s.modality for s in condition], segment.modality)
            head = tuple(condition) or (None,) * len(task.inputs)
            documents.append(Document((*head, segment), (False,) * len(head) + (True,)))
            names.append(word if len(segments) == 1 else f"{word}[{i}]")
            passage.append(segment.modality == "text" and len(segments) > 1)
    rows = []
    for name, document, part, scored in zip(
        names, documents, passage, run.score_documents(documents)
    ):
        segment = document.segments[-1]
        nats, units = scored.nats[-1], n_units(run, segment)
        # text is scored under its tokenizer's own segmentation: with pieces, other segmentations of
        # the string add to its probability
        kind = (
            "bound"
            if segment.modality == "text" and not isinstance(run.tokenizers["text"], Bytes)
            else scored.kind
        )
        signature = run.vocabulary.signatures[segment.modality]
        rows.append(
            Scored(
                name,
                segment.modality,
                nats,
                len(segment),
                units,
                kind,
                *customary(signature, nats, units),
                part,
                is_density(signature),
                min(signature.headers, len(segment)),
                int(segment.truncated),
            )
        )
    return rows
