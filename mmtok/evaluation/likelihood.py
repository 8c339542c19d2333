"""Likelihoods of held-out signals, also under simpler models; zero-shot classification."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmtok.commands.score import kind_of, kind_text, n_units
from mmtok.core.interleaved import INTERLEAVED
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.units import counted, customary, is_density
from mmtok.data.subset import random_subset
from mmtok.data.tasks import Task
from mmtok.evaluation.task import MAX_CLASSES, TaskEvaluation
from mmtok.io.terminal import print_status
from mmtok.model.likelihood import LogLikelihood
from mmtok.model.lm import LM
from mmtok.run.run import Run

N_SCORED = 300  # held-out documents per modality
# the same, and images to be classified, where each likelihood is an ODE to be solved ("estimate")
N_SCORED_SLOW = 64
N_CLASSIFIED_SLOW = 20


def held_out_scores(run: Run) -> dict[str, dict[str, float | int | str]]:
    """-log p of held-out signals per modality, in the customary unit, given the task's inputs.

    Keys, for a unit of bits/byte:

    - bits_per_byte: the trained decoder.
    - bits_per_byte_untrained: the same decoder before training.
    - bits_per_byte_unigram: a unigram model of the training codes or latents, without the inputs.
    - bits_per_byte_without_condition: the trained decoder without the inputs, where training
      dropped them at times. This is the figure that compares fairly with the unigram model.
    - n_bytes: the number of units that the sums were divided by. A jet's totals are shared out
      over its particles.
    - kind, n: what the score is (exact, bound, estimate), and of how many documents. Estimates are
      slow, so they are of fewer documents.
    """
    documents, unconditional = _held_out_documents(run)
    untrained = run.untrained()
    figures: dict[str, dict[str, float | int | str]] = {}
    for m, docs in documents.items():
        if reason := run.lm.no_score(m):
            print_status(f"not scoring {m}: {reason}")
            continue
        targets = [d.target for d in docs]
        total = sum(n_units(run, segment) for segment in targets)
        if not total:
            continue
        signature = run.vocabulary.signatures[m]
        nll = {"": _nll(run, docs), "_untrained": _nll(run, docs, untrained)}
        nll["_unigram"] = unigram_nll(run, m, targets)
        if len(unconditional[m]) == len(docs):
            nll["_without_condition"] = _nll(run, unconditional[m])
        unit = customary(signature, 0.0, 1)[1]
        key = unit.replace("/", "_per_")
        figures[m] = {key + of: customary(signature, x / total, 1)[0] for of, x in nll.items()}
        figures[m][f"n_{counted(unit)}"] = total
        figures[m]["kind"] = kind_text(kind_of(run, m), is_density(signature))
        figures[m]["n"] = len(docs)
    return figures


def _held_out_documents(
    run: Run,
) -> tuple[Mapping[str, list[Document]], Mapping[str, list[Document]]]:
    """Held-out documents by the modality of their last target: with inputs, and without."""
    fields = run.recipe.fields
    documents: dict[str, list[Document]] = defaultdict(list)
    unconditional: dict[str, list[Document]] = defaultdict(list)
    for task in run.recipe.tasks:
        if task.max_target_frames:
            continue
        names = task.fields
        rows = random_subset(
            run.examples("heldout", *names), _n_scored(run, task), run.recipe.train.seed
        )
        if INTERLEAVED in map(fields.get, names):
            for i, example in enumerate(rows):
                for document in _each_target(run, task, example, f"held-out document {i}"):
                    documents[document.target.modality].append(document)
            continue
        segments_of = [run.tokenizers[fields[f]].encode_batch([e[f] for e in rows]) for f in names]
        n_inputs = len(task.inputs)
        predict = (False,) * n_inputs + (True,) * len(task.targets)
        no_inputs = (None,) * n_inputs
        m = fields[task.targets[-1]]
        for segments in zip(*segments_of, strict=True):
            documents[m].append(Document(segments, predict))
            if task.cond_dropout and not task.loss_on_inputs:
                unconditional[m].append(Document(no_inputs + segments[n_inputs:], predict))
    return documents, unconditional


def _each_target(run: Run, task: Task, example: Mapping[str, Any], name: str) -> Iterator[Document]:
    """Each predicted segment of an example with interleaved documents, given those before it."""
    before: list[Segment | None] = []
    for k, field in enumerate(task.fields):
        modality = run.recipe.fields[field]
        if modality == INTERLEAVED:
            document = run.prepared_document(example[field], name)
            parts = zip(document.segments, document.predict, strict=True)
        else:
            parts = zip([run.tokenizers[modality].encode(example[field])], [True], strict=True)
        for segment, is_asked in parts:
            before.append(segment)
            if is_asked and k >= len(task.inputs):
                yield Document(tuple(before), (False,) * (len(before) - 1) + (True,))


def _n_scored(run: Run, task: Task) -> int:
    made = [run.recipe.fields[f] for f in task.targets]
    if INTERLEAVED in made:
        made = list(run.recipe.tokenizers)
    slow = any(run.lm.kind(m) == "estimate" for m in made)
    return N_SCORED_SLOW if slow else N_SCORED


def _nll(run: Run, documents: Sequence[Document], lm: LM | None = None) -> float:
    """-log p of the documents' last segments, in nats. lm: by default the run's own."""
    return sum(map(last_nll, run.score_documents(documents, lm)))


def last_nll(scored: LogLikelihood) -> float:
    """-log p of a document's last segment, in nats."""
    nll = scored.nats[-1]
    assert nll is not None, "the last segment is predicted"
    return nll


# ---- the unigram model


def unigram_nll(run: Run, modality: str, segments: Sequence[Segment]) -> float:
    """-log p of segments, in nats, under a unigram model of the training tokens.

    It draws every channel of every frame independently, at its training frequency, and after every
    frame the end mark. Of latents it draws every dimension independently: from cells at their
    frequencies where the latents are cells of an axis, counts from a Poisson distribution, all
    others from a Gaussian, in the caller's unit where there is one.

    Where frames are a set, p is that of the set: the sum over all orders of its frames. (Of a set
    that was cut at a cap it is that of the one list: what was left out decides which orders were
    possible.) Where numbers of each element are given, it is that of the others: the elements are
    told apart, and their number is known.
    """
    signature = run.vocabulary.signatures[modality]
    frames = _unigram_of(signature)
    n_ends = n_frames = 1
    for segment in _training_targets(run, modality):
        n_frames += len(segment)
        n_ends += not segment.truncated
        frames.add(_drawn(segment, signature))
    nll = sum(frames.nll(_drawn(segment, signature)) for segment in segments)
    if signature.given:
        return nll
    if signature.descending or signature.unordered:
        complete = [segment for segment in segments if not segment.truncated]
        nll -= sum(log_orders(segment.values[signature.headers :]) for segment in complete)
    if signature.frames is None:
        end = n_ends / (n_ends + n_frames)
        nll -= sum(
            len(segment) * np.log(1 - end) + (not segment.truncated) * np.log(end)
            for segment in segments
        )
    return nll


def _drawn(segment: Segment, signature: Signature) -> np.ndarray:
    """The values of a segment without those that are given."""
    if signature.given:
        return segment.values[:, : signature.n_free]
    return segment.values


def _training_targets(run: Run, modality: str) -> Iterator[Segment]:
    """The training segments of a modality, of fields that some task predicts."""
    targets = {field for task in run.recipe.tasks for field in task.targets}
    for file in run.token_files():
        for field in targets.intersection(file.fields):
            if file.signatures[field].modality not in (modality, INTERLEAVED):
                continue
            for i in np.flatnonzero(file.has(field)).tolist():
                for segment, is_asked in file.segments(field, i):
                    if segment.modality == modality and is_asked:
                        yield segment


def log_orders(frames: np.ndarray) -> float:
    """Log of the number of different orders of frames (T, C): T! / product of multiplicities!."""
    counts = np.unique(frames, axis=0, return_counts=True)[1]
    return math.lgamma(len(frames) + 1) - sum(math.lgamma(n + 1) for n in counts.tolist())


def _unigram_of(signature: Signature) -> _Histograms | _Gaussians | _Counts:
    if signature.counts:
        return _Counts(signature.latent_size)
    if is_density(signature):
        return _Gaussians(signature.n_free, signature.scales[: signature.n_free])
    return _Histograms(signature)


class _Counts:
    """The mean count of each dimension (D,), with one more frame of ones: a Poisson rate."""

    def __init__(self, size: int):
        self.n = 1
        self.total = np.ones(size)

    def add(self, values: np.ndarray) -> None:
        """Add frames (T, D) of log(1 + n)."""
        self.n += len(values)
        self.total += np.expm1(values.astype(np.float64)).sum(0)

    def nll(self, values: np.ndarray) -> float:
        """-log p of frames (T, D), in nats, without end marks."""
        rate = self.total / self.n
        counts = np.expm1(values.astype(np.float64)).round()
        factorials = sum(math.lgamma(n + 1) for n in counts.ravel().tolist())
        return float((rate - counts * np.log(rate)).sum()) + factorials


class _Histograms:
    """Counts of each value of each channel, or of each cell of each dimension, plus one."""

    def __init__(self, signature: Signature):
        self.cells = signature.cells
        sizes = signature.sizes or (signature.cells,) * signature.latent_size
        self.counts = [np.ones(size) for size in sizes]

    def add(self, values: np.ndarray) -> None:
        """Count frames: codes (T, C) or latents (T, D)."""
        for counts, channel in zip(self.counts, self._codes(values).T, strict=True):
            counts += np.bincount(channel, minlength=len(counts))

    def nll(self, values: np.ndarray) -> float:
        """-log p of frames (T, C) or (T, D), in nats, without end marks."""
        return -sum(
            float(np.log(counts[channel] / counts.sum()).sum())
            for counts, channel in zip(self.counts, self._codes(values).T, strict=True)
        )

    def _codes(self, values: np.ndarray) -> np.ndarray:
        """Codes as they are; latents, cell centres of an even grid on [-1, 1], as cells."""
        if not self.cells:
            return values
        cells = np.floor((values + 1) / 2 * self.cells).astype(np.int64)
        return cells.clip(0, self.cells - 1)


class _Gaussians:
    """Mean and variance of each dimension (D,) over all frames, and over one pair at -1 and 1.

    The pair keeps the variance positive. It is what two standardised frames would be.
    """

    def __init__(self, size: int, scales: Sequence[float] = ()):
        self.log_volume = math.fsum(map(math.log, scales))
        self.n = 2
        self.total = np.zeros(size)
        self.squares = np.full(size, 2.0)

    def add(self, values: np.ndarray) -> None:
        """Add frames (T, D)."""
        values = values.astype(np.float64)
        self.n += len(values)
        self.total += values.sum(0)
        self.squares += np.square(values).sum(0)

    def nll(self, values: np.ndarray) -> float:
        """-log of the density of frames (T, D), in nats, without end marks."""
        mean = self.total / self.n
        variance = self.squares / self.n - mean**2
        nll = (np.square(values - mean) / variance + np.log(2 * np.pi * variance)).sum() / 2
        return float(nll) + len(values) * self.log_volume


# ---- zero-shot classification


def zero_shot(task: TaskEvaluation) -> dict[str, float]:
    """Classify held-out images by the caption under which they are likeliest.

    Where a likelihood is slow (an estimate), some random images only. What is random in an estimate
    or a bound is the same under all captions. {} where there are too many captions.
    """
    captions = sorted(set(task.examples("train")[0]))
    if len(captions) > MAX_CLASSES:
        return {}
    heldout = task.rows("heldout")
    if task.run.lm.kind(task.modalities[-1]) == "estimate":
        rows = random_subset(heldout, N_CLASSIFIED_SLOW, task.seed)
    else:
        rows = list(heldout)
    encoded_captions = task.input_tokenizer.encode_batch(captions)
    encoded_images = task.target_tokenizer.encode_batch([image for _, image in rows])
    documents = [
        Document((caption, image), (False, True))
        for caption in encoded_captions
        for image in encoded_images
    ]
    scores = task.run.score_documents(documents, group_size=max(1, len(rows)))
    nll = np.array([last_nll(scored) for scored in scores]).reshape(len(captions), len(rows))
    right = [captions[k] == true for k, (true, _) in zip(nll.argmin(0), rows, strict=True)]
    return {"accuracy": float(np.mean(right)), "n": len(rows)}
