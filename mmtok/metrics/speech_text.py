"""Word, character and phoneme errors of transcripts, after one normalisation: `spoken_form`.

All are Levenshtein distances, summed over all pairs before they are divided by the length of the
references.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from mmtok.core.spoken_form import spoken_form
from mmtok.metrics.intervals import Estimate, ratio_estimate


@dataclass(frozen=True)
class EditCounts:
    """Edits and reference lengths (n,) of n pairs of sequences."""

    edits: np.ndarray
    lengths: np.ndarray

    @property
    def rate(self) -> float:
        """Edits per unit of the references.

        Without any, 0 where nothing was heard either, else infinity.
        """
        n_edits = int(self.edits.sum())
        if not self.lengths.sum():
            return math.inf if n_edits else 0.0
        return n_edits / int(self.lengths.sum())

    def estimate(self, seed: int = 0) -> Estimate:
        """The rate, with its bootstrap interval over pairs."""
        return ratio_estimate(self.edits, self.lengths, seed)


def edit_counts(
    references: Sequence[Sequence[Hashable]], hypotheses: Sequence[Sequence[Hashable]]
) -> EditCounts:
    """Substitutions, insertions and deletions of each pair of sequences of words or phonemes.

    Raises ValueError when there are not as many.
    """
    pairs = list(zip(references, hypotheses, strict=True))
    edits = np.array([_edits(reference, heard) for reference, heard in pairs], int)
    return EditCounts(edits, np.array([len(reference) for reference in references], int))


def word_counts(references: Sequence[str], hypotheses: Sequence[str]) -> EditCounts:
    """`edit_counts` of the words of the spoken forms of texts."""
    return edit_counts(
        *([spoken_form(x).split() for x in side] for side in (references, hypotheses))
    )


def character_counts(references: Sequence[str], hypotheses: Sequence[str]) -> EditCounts:
    """`edit_counts` of the characters of the spoken forms of texts, spaces included."""
    return edit_counts(*([spoken_form(x) for x in side] for side in (references, hypotheses)))


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word edits per word of the references, of the spoken forms of texts.

    Without any reference word it is 0 where nothing was heard either, else infinity.
    """
    return word_counts(references, hypotheses).rate


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Edits of characters per character of the references, of the spoken forms of texts."""
    return character_counts(references, hypotheses).rate


def _edits(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein distance, row by row. Source: Wagner and Fischer 1974."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above = row
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]
