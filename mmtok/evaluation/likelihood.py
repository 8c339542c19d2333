"""How likely a run finds what is real: held-out scores beside those of models that know less, and
naming by likelihood.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mmtok.commands.score import kind_text, n_units
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.units import counted, customary, is_density
from mmtok.data.subset import random_subset
from mmtok.evaluation.questions import MAX_CLASSES
from mmtok.evaluation.task import Setting
from mmtok.run.run import Run

N_SCORED = 300  # held-out documents per modality
N_SLOW, N_NAMED_SLOW = (
    64,
    20,
)  # the same, and images to be named, where a likelihood is an ODE to be solved ("estimate")


def held_out_scores(run: Run) -> dict[str, dict[str, float | int | str]]:
    """Per modality: held-out nats in the customary unit, given what the task gives (a caption, a
    signal to read).

    Beside them an untrained decoder's, a unigram model's of the training codes or latents (which is
    given nothing), and, where the task was trained without its condition too, the decoder's own
    without it: that one is fair beside the unigram. Then how many units (`n_bytes`, `n_particles`)
    the nats were divided by; those of a jet's totals are shared out over its particles. Where the
    nats are not exact, what they are (`kind`), and of how many documents (`n`): of estimates, which
    take long, of fewer.
    """
    fields, untrained, figures = run.recipe.fields, run.untrained(), {}
    documents: dict[str, list[Document]] = defaultdict(list)
    without: dict[str, list[Document]] = defaultdict(list)
    for task in (t for t in run.recipe.tasks if not t.max_target_frames):
        m = fields[task.targets[-1]]
        names = task.fields
        n_scored = (
            N_SLOW if any(run.lm.kind(fields[f]) == "estimate" for f in task.targets) else N_SCORED
        )
        rows = random_subset(run.examples("heldout", *names), n_scored, run.recipe.train.seed)
        columns = [run.tokenizers[fields[f]].encode_batch([e[f] for e in rows]) for f in names]
        predict = (False,) * len(task.inputs) + (True,) * len(task.targets)
        documents[m] += [Document(segments, predict) for segments in zip(*columns)]
        if task.cond_dropout and not task.loss_on_inputs:
            n = len(task.inputs)
            without[m] += [
                Document((None,) * n + segments[n:], predict) for segments in zip(*columns)
            ]
    for m, docs in documents.items():
        last = [d.segments[-1] for d in docs]
        total = sum(n_units(run, segment) for segment in last)
        if not total:
            continue
        signature = run.vocabulary.signatures[m]
        per_unit = lambda lm, docs=docs: (
            sum(x.nats[-1] for x in run.score_documents(docs, lm)) / total
        )
        key = customary(signature, 0.0, 1)[1].replace("/", "_per_")
        values = {
            "": per_unit(None),
            "_untrained": per_unit(untrained),
            "_unigram": unigram_nats(run, m, last) / total,
        }
        if len(without[m]) == len(docs):
            values["_without_condition"] = per_unit(None, without[m])
        figures[m] = {key + suffix: customary(signature, x, 1)[0] for suffix, x in values.items()}
        figures[m][f"n_{counted(customary(signature, 0.0, 1)[1])}"] = total
        if run.lm.kind(m) != "exact":
            figures[m] |= {"kind": kind_text(run.lm.kind(m), is_density(signature)), "n": len(docs)}
    return figures


def unigram_nats(run: Run, modality: str, segments: Sequence[Segment]) -> float:
    """-log p of segments when every channel of every frame, and every end, is drawn on its own at
    its training frequency.

    Where the frames are a set, that of the set: such frames come in all orders, of which its list
    is one, and p is their sum. (Of a set
    cut at a cap it stays that of the list: what was left out decides which orders were possible.)
    Of latents every dimension is drawn on its own: of those that are cells of an axis, the cell at
    its frequency; of continuous ones from the Gaussian of its training mean and variance.
    """
    signature = run.vocabulary.signatures[modality]
    frames = _Gaussians(signature.latent_size) if is_density(signature) else _Counts(signature)
    n_ends = n_frames = 1
    made = {f for task in run.recipe.tasks for f in task.targets}
    for file in run.token_files():
        for f in file.fields:
            if file.signatures[f].modality == modality and f in made:
                for i in np.flatnonzero(file.has(f)):
                    segment = file.segment(f, i)
                    n_frames, n_ends = n_frames + len(segment), n_ends + (not segment.truncated)
                    frames.add(segment.values)
    nats = sum(frames.nats(s.values) for s in segments)
    if signature.descending:
        nats -= sum(log_orders(s.values[signature.headers :]) for s in segments if not s.truncated)
    if signature.frames is None:
        end = n_ends / (n_ends + n_frames)
        nats -= sum(len(s) * np.log(1 - end) + (not s.truncated) * np.log(end) for s in segments)
    return nats


def log_orders(frames: np.ndarray) -> float:
    """The logarithm of the number of different orders of frames (T, C): T! over the factorial of
    every frame's count.
    """
    same = np.unique(frames, axis=0, return_counts=True)[1]
    return math.lgamma(len(frames) + 1) - sum(math.lgamma(n + 1) for n in same.tolist())


class _Counts:
    """How often each value of each channel of a frame came, or each cell of each of its dimensions,
    and once more.
    """

    def __init__(self, signature: Signature):
        self.cells = signature.cells
        self.counts = [
            np.ones(k) for k in signature.levels or (signature.cells,) * signature.latent_size
        ]

    def add(self, values: np.ndarray) -> None:
        """Count frames (T, C), or (T, D)."""
        for counts, column in zip(self.counts, self._codes(values).T):
            counts += np.bincount(column, minlength=len(counts))

    def nats(self, values: np.ndarray) -> float:
        """-log p of frames, the ends not counted."""
        return -sum(
            float(np.log(k[column] / k.sum()).sum())
            for k, column in zip(self.counts, self._codes(values).T)
        )

    def _codes(self, values: np.ndarray) -> np.ndarray:
        """Latents are the centres of so many even cells from -1 to 1."""
        return (
            np.floor((values + 1) / 2 * self.cells).astype(np.int64).clip(0, self.cells - 1)
            if self.cells
            else values
        )


class _Gaussians:
    """Mean and variance of each dimension (D,) over all frames and one more pair at -1 and 1, as
    standardised ones are.
    """

    def __init__(self, size: int):
        self.n, self.total, self.squares = 2, np.zeros(size), np.full(size, 2.0)

    def add(self, values: np.ndarray) -> None:
        """Count frames (T, D)."""
        values = values.astype(np.float64)
        self.n, self.total, self.squares = (
            self.n + len(values),
            self.total + values.sum(0),
            self.squares + np.square(values).sum(0),
        )

    def nats(self, values: np.ndarray) -> float:
        """-log of the density of frames, the ends not counted."""
        mean = self.total / self.n
        variance = self.squares / self.n - mean**2
        return float((np.square(values - mean) / variance + np.log(2 * np.pi * variance)).sum() / 2)


def zero_shot(s: Setting) -> dict[str, float]:
    """Name held-out images by the caption under which they are likeliest; of slow likelihoods only
    some images, drawn by the seed.

    What is random in an estimate or a bound is the same under all captions.
    """
    classes = sorted(set(s.examples("train")[0]))
    if len(classes) > MAX_CLASSES:
        return {}
    slow = s.run.lm.kind(s.pair[-1]) == "estimate"
    rows = (
        random_subset(s.rows("heldout"), N_NAMED_SLOW, s.seed) if slow else list(s.rows("heldout"))
    )
    names, images = [name for name, _ in rows], [image for _, image in rows]
    captions = s.tokenizer(s.given).encode_batch(classes)
    encoded = s.tokenizer(s.made).encode_batch(images)
    documents = [
        Document((caption, image), (False, True)) for caption in captions for image in encoded
    ]
    scores = s.run.score_documents(documents, at_once=max(1, len(images)))
    nats = np.array([x.nats[-1] for x in scores]).reshape(len(classes), len(images))
    return {
        "accuracy": float(np.mean([classes[k] == name for k, name in zip(nats.argmin(0), names)])),
        "n": len(images),
    }
