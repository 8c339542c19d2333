"""Documents of text that are in both splits: rows of tables, and what stands between marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mmtok.sources.leaks import refuse_leaks
from mmtok.sources.screen import Tolerance
from mmtok.sources.text_corpus import Reader, Window


def check_document_leaks(
    windows: Mapping[str, Sequence[Window]], reader: Reader, tolerance: Tolerance
) -> None:
    """Raise UserError where too many of the held-out documents are in training too; see `leaks`.

    Of very many those with the least hashes are compared.
    """
    found = {
        split: [(window, found) for window in some if (found := reader.sample(window.path))]
        for split, some in windows.items()
    }
    if not found["heldout"]:
        return
    bound = min(bound for some in found.values() for _, (_, bound) in some)
    held = [(window, _within(window, sample, bound)) for window, (sample, _) in found["heldout"]]
    train = [_within(window, sample, bound)[:, 0] for window, (sample, _) in found["train"]]
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *train]))
    n = 0
    first = ""
    for window, sample in held:
        leaked = np.flatnonzero(np.isin(sample[:, 0], known))
        n += len(leaked)
        if len(leaked) and not first:
            first = reader.name_at(window.path, int(sample[leaked[0], 1]))
    if n:
        refuse_leaks(n, sum(len(sample) for _, sample in held), first, tolerance, reader.unit)


def _within(window: Window, sample: np.ndarray, bound: int) -> np.ndarray:
    """The sample of the documents that begin in a window."""
    hashes, places = sample.T
    is_in = (places >= window.first) & (hashes <= np.uint64(bound - 1))
    if window.last is not None:
        is_in &= places < window.last
    return sample[is_in]
