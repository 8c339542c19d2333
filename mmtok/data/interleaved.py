"""Interleaved documents on their way to tokens: each part prepared and encoded by its modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmtok.core.interleaved import INTERLEAVED, interleaved_signatures, join_segments
from mmtok.core.segment import Segment, Signature
from mmtok.data.preparation import Preparer
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.sources.base import Interleaved, Part
from mmtok.tokenizers.base import Tokenizer, encode_named


@dataclass(frozen=True)
class InterleavedPreparer(Preparer):
    """Prepares the parts of documents.

    Attributes:
        preparers: modality -> what makes its signals ready.
    """

    preparers: Mapping[str, Preparer] = field(default_factory=dict)

    def __call__(self, signal: Any, name: str = "", tally: Tally | None = None) -> Any:
        """A document with its parts prepared.

        Raises UserError for a modality without a tokenizer.
        """
        parts = []
        for i, part in enumerate(signal.parts):
            if part.modality not in self.preparers:
                raise UserError(
                    f"{name}: part {i} is {part.modality}, for which the recipe has no tokenizer,"
                    f" only for {', '.join(self.preparers)}"
                )
            prepared = self.preparers[part.modality](part.signal, f"{name}, part {i}", tally)
            parts.append(replace(part, signal=prepared))
        return Interleaved(tuple(parts))

    @property
    def unit(self) -> str:
        """Parts are what is counted."""
        return "parts of documents"


def interleaved_preparer(preparers: Mapping[str, Preparer]) -> InterleavedPreparer:
    """A preparer of documents; preparers: of each modality that may occur."""
    return InterleavedPreparer(INTERLEAVED, preparers=preparers)


@dataclass(frozen=True)
class Interleaver:
    """Encodes documents, in the place of a tokenizer.

    Attributes:
        tokenizers: of each modality that may occur, in the order of their numbers.
    """

    tokenizers: Mapping[str, Tokenizer]

    def signatures(self, name: str) -> dict[str, Signature]:
        """The fields that store a field of documents."""
        own = {m: tokenizer.signature for m, tokenizer in self.tokenizers.items()}
        return interleaved_signatures(name, own)

    def encode(
        self, documents: Sequence[tuple[str, Interleaved]]
    ) -> list[list[tuple[Segment, bool]]]:
        """(segment, whether it is predicted) of each part of each (name, document).

        Raises UserError, with the document's name and the part, for a signal that is refused.
        """
        found: list[list[Segment | None]] = [[None] * len(d.parts) for _, d in documents]
        for m, tokenizer in self.tokenizers.items():
            places = [
                (d, p)
                for d, (_, document) in enumerate(documents)
                for p, part in enumerate(document.parts)
                if part.modality == m
            ]
            named = [
                (f"{documents[d][0]}, part {p}", documents[d][1].parts[p].signal) for d, p in places
            ]
            for (d, p), segment in zip(places, encode_named(tokenizer, named), strict=True):
                found[d][p] = segment
        return [
            [
                (segment, part.predict)
                for segment, part in zip(segments, document.parts, strict=True)
                if segment is not None
            ]
            for segments, (_, document) in zip(found, documents, strict=True)
        ]

    def rows(
        self, name: str, documents: Sequence[tuple[str, Interleaved]]
    ) -> list[dict[str, Segment]]:
        """Each document as the segments of its row. Raises UserError as `encode` does."""
        modalities = list(self.tokenizers)
        return [
            join_segments(name, [s for s, _ in parts], [p for _, p in parts], modalities)
            for parts in self.encode(documents)
        ]


def encoders_of(
    preparers: Mapping[str, Preparer], tokenizers: Mapping[str, Tokenizer]
) -> dict[str, Tokenizer | Interleaver]:
    """Field -> what encodes it; preparers: of the fields; tokenizers: of each modality."""
    return {
        f: Interleaver(tokenizers) if p.modality == INTERLEAVED else tokenizers[p.modality]
        for f, p in preparers.items()
    }


def fields_of(
    fields: Mapping[str, str], tokenizers: Mapping[str, Tokenizer]
) -> dict[str, Signature]:
    """The fields that a token file has of a source's fields (name -> modality), and signatures."""
    found: dict[str, Signature] = {}
    for name, modality in fields.items():
        if modality == INTERLEAVED:
            found |= Interleaver(tokenizers).signatures(name)
        elif modality in tokenizers:
            found[name] = tokenizers[modality].signature
    return found


def signals_in(signal: Any, modality: str) -> Iterable[Any]:
    """The signals of a modality in a document."""
    return (part.signal for part in signal.parts if part.modality == modality)


__all__ = [
    "Interleaved",
    "InterleavedPreparer",
    "Interleaver",
    "Part",
    "encoders_of",
    "fields_of",
    "interleaved_preparer",
    "signals_in",
]
