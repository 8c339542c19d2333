"""Figures of vectors: retrieval across fields, and linear probes of what a field's vectors know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from mmtok.data.subset import random_subset
from mmtok.data.tasks import Contrast
from mmtok.io.terminal import print_status
from mmtok.metrics.intervals import mean_estimate
from mmtok.metrics.probe import linear_probe, pairwise_aucs
from mmtok.model.embed import embed
from mmtok.run.run import Run

N_HELDOUT = 1_000  # examples of a contrast, at most
N_TRAINING = 3_000  # vectors that a probe is fitted to, at most
MAX_CLASSES = 20  # of a probe; of more the pairs are too many to read


@dataclass(frozen=True, eq=False)
class Labelled:
    """Vectors (n, D) of a field, and the labels (n,) of its signals: partners have equal ones."""

    vectors: np.ndarray
    labels: np.ndarray


def embedding_figures(run: Run) -> dict[str, Any]:
    """Of held-out examples, at most N_HELDOUT of each contrast.

    Keys:

    - A_to_B: {top1, top1_low, top1_high, n}: how often the vector of B that is nearest to one of A
      is right: has the same text, where a field of the contrast is one; else is of the same
      example. A and B need not share a contrast: a picture and a clip of "seven" are partners.
      Signals of A without any partner in B do not count. Of texts, each counts once.
    - probe_A: {accuracy, n, and the AUC of each pair of texts}: of a linear probe on vectors of
      training examples.
    """
    of_contrasts = [_labelled(run, c, "heldout", N_HELDOUT) for c in run.recipe.contrasts]
    texts = {_text_field(run, contrast) for contrast in run.recipe.contrasts}
    names = dict.fromkeys(f for found in of_contrasts for f in found)
    fields = {
        f: _joined([found[f] for found in of_contrasts if f in found], f in texts) for f in names
    }
    figures: dict[str, Any] = {}
    for a, b in permutations(fields, 2):
        hits = top1_hits(fields[a], fields[b])
        if len(hits):
            seed = run.recipe.train.seed
            figures[f"{a}_to_{b}"] = mean_estimate(hits, seed).named("top1") | {"n": len(hits)}
    for contrast, found in zip(run.recipe.contrasts, of_contrasts, strict=True):
        if _text_field(run, contrast) is not None:
            figures |= _probes(run, contrast, found)
    return figures


def _joined(parts: Sequence[Labelled], is_text: bool) -> Labelled:
    """What several contrasts have of a field; of texts, which are their own labels, each once."""
    vectors = np.concatenate([part.vectors for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    if not is_text:
        return Labelled(vectors, labels)
    first = np.sort(np.unique(labels, return_index=True)[1])
    return Labelled(vectors[first], labels[first])


def top1_hits(queries: Labelled, candidates: Labelled) -> np.ndarray:
    """(n,) 0 or 1: whether the nearest candidate has the query's label, where any has."""
    asked = np.isin(queries.labels, candidates.labels)
    if not asked.any():
        return np.zeros(0)
    cosines = queries.vectors[asked] @ candidates.vectors.T
    return (candidates.labels[cosines.argmax(1)] == queries.labels[asked]).astype(float)


def _text_field(run: Run, contrast: Contrast) -> str | None:
    """The field whose texts say what is alike; None: only signals of one example are."""
    return next((f for f in contrast.fields if run.recipe.fields[f] == "text"), None)


def _labelled(run: Run, contrast: Contrast, split: str, n: int) -> dict[str, Labelled]:
    """Field -> its vectors and labels, of at most n random examples of a split."""
    examples = run.examples(split, *contrast.fields)
    chosen = random_subset(examples, n, run.recipe.train.seed)
    text = _text_field(run, contrast)
    found = {}
    for f in contrast.fields:
        rows: Sequence[tuple[str, Any]]
        if text is None:
            rows = [(f"{contrast} {i}", example[f]) for i, example in enumerate(chosen)]
        else:
            rows = [(example[text], example[f]) for example in chosen]
        if f == text:
            rows = list(dict.fromkeys(rows))
        found[f] = _embedded(run, f, rows)
    return found


def _embedded(run: Run, f: str, rows: Sequence[tuple[str, Any]]) -> Labelled:
    """The vectors of prepared signals of a field, with their labels."""
    tokenizer = run.tokenizers[run.recipe.fields[f]]
    segments = tokenizer.encode_batch([signal for _, signal in rows])
    return Labelled(embed(run.lm, segments), np.array([label for label, _ in rows]))


def _probes(run: Run, contrast: Contrast, heldout: dict[str, Labelled]) -> dict[str, Any]:
    """Field -> figures of a probe for its text, where there are few texts."""
    text = _text_field(run, contrast)
    asked = [f for f in contrast.fields if f != text]
    n_texts = len(set(heldout[text or ""].labels))
    if not 2 <= n_texts <= MAX_CLASSES:
        print_status(
            f"no linear probe of contrast {contrast}: it has {n_texts} texts, a probe takes 2 to"
            f" {MAX_CLASSES}"
        )
        return {}
    training = _labelled(run, contrast, "train", N_TRAINING)
    figures = {}
    for f in asked:
        labels = training[f].labels.tolist()
        log_p, classes = linear_probe(training[f].vectors, labels, heldout[f].vectors)
        right = np.array(classes)[log_p.argmax(1)] == heldout[f].labels
        aucs = pairwise_aucs(log_p, classes, heldout[f].labels.tolist())
        if len(aucs) > 6:  # their least says enough
            aucs = {"least": min(aucs.values())}
        figures[f"probe_{f}"] = {
            "accuracy": float(right.mean()),
            "n": len(right),
            **{f"auc {pair}": value for pair, value in aucs.items()},
        }
    return figures
