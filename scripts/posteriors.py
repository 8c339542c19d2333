"""What the benchmarks of posteriors share: many draws of one head for many conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmtok.core.batch import pack, with_index
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import evaluating
from mmtok.run.run import Run

PER_BATCH = 500
MOST_ROWS = 20_000  # of draws at once


def documents_of(run: Run, examples: Sequence[Mapping[str, Any]], task: int = 0) -> list[Document]:
    """The documents of one of the recipe's tasks, its one target predicted."""
    names = run.recipe.tasks[task].fields
    fields = run.recipe.fields
    columns = [run.tokenizers[fields[f]].encode_batch([e[f] for e in examples]) for f in names]
    predict = (False,) * (len(names) - 1) + (True,)
    return [Document(row, predict) for row in zip(*columns, strict=True)]


def states(run: Run, examples: Sequence[Mapping[str, Any]], task: int = 0) -> torch.Tensor:
    """The decoder's states (N, M) that the target's frames are drawn from."""
    m = run.recipe.fields[run.recipe.tasks[task].targets[0]]
    streams = [to_stream(run.vocabulary, d) for d in documents_of(run, examples, task)]
    found = []
    for start in range(0, len(streams), PER_BATCH):
        rows = [[stream] for stream in streams[start : start + PER_BATCH]]
        batch = with_index(pack(run.vocabulary, rows), run.vocabulary)
        assert batch.index is not None
        places = batch.index.places[m]
        with evaluating(run.lm):
            hidden = run.lm.hidden(batch).flatten(0, 1)
        found.append(hidden[places.predicted - 1][places.framed])
    return torch.cat(found)


def draws(
    run: Run,
    examples: Sequence[Mapping[str, Any]],
    n: int,
    seed: int = 0,
    task: int = 0,
    **sampling: Any,
) -> np.ndarray:
    """Draws (N, n, D) of the target for each example's inputs, in the caller's unit."""
    m = run.recipe.fields[run.recipe.tasks[task].targets[0]]
    head = run.lm.head(m)
    assert head is not None
    generator = torch.Generator().manual_seed(seed)
    repeated = states(run, examples, task).repeat_interleave(n, 0)
    with torch.no_grad():
        parts = [
            head.sample([h], Sampling(**sampling), generator) for h in repeated.split(MOST_ROWS)
        ]
    latents = torch.cat(parts).numpy()
    tokenizer: Any = run.tokenizers[m]
    y = latents * tokenizer.scale + tokenizer.mean
    if tokenizer.config.counts:
        y = np.expm1(latents).round()
    return y.reshape(len(examples), n, -1)


def nll(run: Run, examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """-log p (N,) in nats, in the caller's unit."""
    scored = run.score_documents(documents_of(run, examples))
    return np.array([each.total for each in scored])
