"""From token files to batches: which documents a step reads, and what of them is masked.

Everything here is a function of (seed, step): the order of documents of (seed, round), their
packing of that order and the lengths, noise of (seed, step, document). So a run can be interrupted
at any step, and resumed on any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from mmtok.core.batch import Batch, InputMask, pack, plan_rows
from mmtok.core.grammar import Stream, to_stream
from mmtok.core.interleaved import INTERLEAVED
from mmtok.core.segment import Document, Segment
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.contrasts import equal_groups, with_groups
from mmtok.data.tasks import Contrast, InputMasking, Task, task_text
from mmtok.data.tokens import TokenFile
from mmtok.errors import UserError

# A round holds the positions of so many steps: enough to pack well, few enough to plan in
# milliseconds.
STEPS_PER_ROUND = 32
# Documents without noise of up to so many positions are kept, up to so many of all: to write one
# takes longer than a small model's step needs for it. They take some 4 kB each.
SHORT = 32
MOST_KEPT = 50_000
STAGED = 2**62  # in seeds, where no step, task or round is: of the orders of later stages


@dataclass(frozen=True)
class _Item:
    """One document of a round: row `row` of `file`, under task `task`."""

    task: int
    file: int
    row: int


@dataclass(frozen=True)
class Mixture:
    """How often token files are read, where a task has several.

    A file has the share w n^(1 / temperature) of a task's positions, up to a common factor: n are
    its own positions, w its weight. Source: Xue et al. 2021, mT5, section 3.1.

    Attributes:
        weights: of each file; empty is 1 for all.
        temperature: 1 reads each in proportion to its size; above it small ones more often.
    """

    weights: Sequence[float] = ()
    temperature: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether all examples are read equally often."""
        return self.temperature == 1 and all(weight == 1 for weight in self.weights)


@dataclass(frozen=True, eq=False)
class _Pool:
    """The examples that are drawn from together, n of them.

    Attributes:
        task: its number.
        weight: share of the training's positions, up to a common factor.
        rows: (n, 2), file and row.
        lengths: (n,), of the documents.
    """

    task: int
    weight: float
    rows: np.ndarray
    lengths: np.ndarray


class NoExamples(UserError):
    """No example has all fields of a task."""


class Batches(Protocol):
    """What a training reads.

    is_pure: whether `batch` depends on its arguments alone, so that it can be called ahead.
    """

    vocabulary: Vocabulary
    is_pure: bool

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step; this process's share of its rows."""


class Loader:
    """Batches by step.

    Attributes:
        files: token files of the training split; a task reads the rows that have all its fields.
        tasks: what is read of them: tasks, and contrasts, whose fields are documents of their own.
        input_masking: field -> what training hides of its input.
        batch_size: B, rows of a step's batch, over all processes.
        seq_len: L, positions of a row.
        mixture: how often each of the files is read.
    """

    is_pure = True

    def __init__(
        self,
        files: Sequence[TokenFile],
        tasks: Sequence[Task | Contrast],
        vocabulary: Vocabulary,
        input_masking: Mapping[str, InputMasking],
        batch_size: int,
        seq_len: int,
        seed: int,
        mixture: Mixture | None = None,
    ) -> None:
        self.files = files
        self.tasks = tasks
        self.vocabulary = vocabulary
        self.input_masking = input_masking
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self.order_seed: tuple[int, ...] = (seed,)
        self.first_step = 0  # where the order begins
        self.mixture = mixture or Mixture()
        of_contrasts = (task.fields for task in tasks if isinstance(task, Contrast))
        self._contrasted = sorted({name for fields in of_contrasts for name in fields})
        self.pools = [pool for t in range(len(tasks)) for pool in self._pools(t)]
        self._check_lengths()
        mean = np.array([pool.lengths.mean() for pool in self.pools])
        share = np.array([pool.weight for pool in self.pools]) / mean
        n_documents = share / (share @ mean) * STEPS_PER_ROUND * batch_size * seq_len
        self.per_round = np.maximum(1, np.round(n_documents)).astype(int)
        # the newest round, and its rows
        self._round: tuple[int, list[list[_Item]]] = (-1, [])
        # pool -> its newest epoch, and the order of examples in it
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        # of every round planned so far, and of the one after it
        self._first_step = [0]
        self._kept: dict[_Item, tuple[Stream, InputMask]] = {}

    def _pools(self, t: int) -> list[_Pool]:
        """The examples that have all fields of task t: one pool, or one per file of a mixture."""
        task = self.tasks[t]
        found = []
        for f, file in enumerate(self.files):
            if set(task.fields) <= set(file.fields):
                rows = np.flatnonzero(np.all([file.has(name) for name in task.fields], 0))
                dtype = _int_type(len(file))
                pairs = np.stack([np.full(len(rows), f, dtype), rows.astype(dtype)], 1)
                n_frames = [file.n_frames(name)[rows] for name in task.fields]
                # `positions` takes each field as one segment, with two marks
                more = sum(2 * (file.n_segments(name)[rows] - 1) for name in task.fields)
                found.append((f, pairs, task.positions(n_frames) + more))
        if not any(len(pairs) for _, pairs, _ in found):
            raise NoExamples(f"no example has all fields of {task_text(task)}")
        if isinstance(task, Task):
            self._check_target(task, found)
        if not self.mixture.is_plain:
            return self._mixed(t, found)
        pairs = np.concatenate([pairs for _, pairs, _ in found])
        return [_pool(t, task.weight, pairs, np.concatenate([lengths for *_, lengths in found]))]

    def _check_target(self, task: Task, found: list[tuple[int, np.ndarray, np.ndarray]]) -> None:
        """Raise UserError for what a task does with a target that cannot be cut or infilled.

        found: the number of each file that has the task's fields, its rows and their lengths.
        """
        first_file = next(f for f, pairs, _ in found if len(pairs))
        target = self.files[first_file].signatures[task.targets[-1]]
        if task.max_target_frames and target.modality == INTERLEAVED:
            raise UserError(
                f"task {task}: max_target_frames is not possible in {task.targets[-1]!r}, which is"
                " interleaved; set it to 0"
            )
        if task.infill and (target.descending or target.rows):
            why = "whose frames are ordered"
            if target.rows:
                why = "which is of any size, in rows of one length"
            raise UserError(
                f"task {task}: infilling is not possible in {target.modality}, {why}; set its"
                " infill to 0"
            )

    def _mixed(self, t: int, found: list[tuple[int, np.ndarray, np.ndarray]]) -> list[_Pool]:
        """A pool for each file (number, rows, lengths) of task t, by the mixture."""
        found = [one for one in found if len(one[1])]
        given = self.mixture.weights or [1.0] * len(self.files)
        power = 1 / self.mixture.temperature
        weights = np.array([given[f] * float(lengths.sum()) ** power for f, _, lengths in found])
        task = self.tasks[t]
        if not weights.any():
            raise UserError(
                f"{task_text(task)}: all sources that have its fields have the weight 0 in"
                " train.source_weights"
            )
        shares = task.weight * weights / weights.sum()
        return [
            _pool(t, float(share), pairs, lengths)
            for share, (_, pairs, lengths) in zip(shares, found, strict=True)
            if share > 0
        ]

    def _check_lengths(self) -> None:
        """Raise UserError, naming the longest field, where the longest document exceeds a row."""
        pool = max(self.pools, key=_longest)
        longest = _longest(pool)
        if longest <= self.seq_len:
            return
        task = self.tasks[pool.task]
        f, row = pool.rows[pool.lengths.argmax()]
        n_frames = {name: int(self.files[f].n_frames(name)[row]) for name in task.fields}
        field = max(n_frames, key=lambda name: n_frames[name])
        raise UserError(
            f"{task_text(task)}: a document with {field!r} of {n_frames[field]} frames takes"
            f" {longest} positions, but rows are {self.seq_len} long: raise --train.seq_len to"
            f" at least {longest}, or shorten {field!r}"
        )

    def _plan(self, round: int) -> list[list[_Item]]:
        """The rows of a round, each a list of documents."""
        if self._round[0] == round:
            return self._round[1]
        items = []
        lengths = []
        for p, (pool, n) in enumerate(zip(self.pools, self.per_round, strict=True)):
            for i in self._examples(p, round * n, n):
                file, row = pool.rows[i]
                items.append(_Item(pool.task, int(file), int(row)))
                lengths.append(int(pool.lengths[i]))
        order = np.random.default_rng((*self.order_seed, round, 1)).permutation(len(items))
        rows = plan_rows([lengths[i] for i in order], self.seq_len)
        shuffled = np.random.default_rng((*self.order_seed, round, 2)).permutation(len(rows))
        self._round = (round, [[items[order[i]] for i in rows[r]] for r in shuffled])
        return self._round[1]

    def _examples(self, p: int, start: int, n: int) -> np.ndarray:
        """Examples start..start+n of a pool's endless order: one permutation after another."""
        n_examples = len(self.pools[p].rows)
        stop = start + n
        pieces = []
        for epoch in range(start // n_examples, (stop - 1) // n_examples + 1):
            first = epoch * n_examples
            pieces.append(self._order(p, epoch)[max(0, start - first) : stop - first])
        return np.concatenate(pieces)

    def _order(self, p: int, epoch: int) -> np.ndarray:
        """(n_examples,) the order of one epoch.

        The newest is kept: an epoch has many rounds, and permuting 10^8 examples takes seconds.
        """
        if p not in self._orders or self._orders[p][0] != epoch:
            n_examples = len(self.pools[p].rows)
            order = np.random.default_rng((*self.order_seed, p, epoch, 3)).permutation(n_examples)
            self._orders[p] = (epoch, order.astype(_int_type(n_examples)))
        return self._orders[p][1]

    def as_stage(self, number: int, first_step: int) -> Self:
        """This loader, with the order of stage `number`, which begins at a step.

        The order of stage 0 from step 0 on is the one that it has anyhow. Noise depends on the true
        step.
        """
        if number:
            self.order_seed = (self.seed, STAGED, number)
        self.first_step = first_step
        return self

    def begins_round(self, step: int) -> bool:
        """Whether a round begins with this step."""
        self.items(step)
        return step - self.first_step in self._first_step

    def items(self, step: int) -> list[list[_Item]]:
        """The rows of this step, over all processes."""
        step -= self.first_step
        while self._first_step[-1] <= step:
            n_rows = len(self._plan(len(self._first_step) - 1))
            self._first_step.append(self._first_step[-1] + max(1, n_rows // self.batch_size))
        round = int(np.searchsorted(self._first_step, step, "right")) - 1
        n_steps = self._first_step[round + 1] - self._first_step[round]
        # rows that do not fill a last step are spread over the steps of their round
        return self._plan(round)[step - self._first_step[round] :: n_steps]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step; this process's share of its rows."""
        rows = []
        input_masks = []
        marks = []
        for row in self.items(step)[rank::world]:
            documents = [document for item in row for document in self._documents(item, step)]
            rows.append([stream for stream, _, _ in documents])
            input_masks.append([input_mask for _, input_mask, _ in documents])
            marks.append([mark for *_, mark in documents])
        batch = pack(self.vocabulary, rows, self.seq_len, input_masks)
        if not self._contrasted:
            return batch
        return with_groups(batch, *equal_groups(rows, marks))

    def _documents(
        self, item: _Item, step: int
    ) -> list[tuple[Stream, InputMask, tuple[int, int, int] | None]]:
        """The documents of an item: one of a task; one for each field of a contrast.

        Each with what is hidden of its input and, of contrasts, the file, the row and the number of
        the field.
        """
        task = self.tasks[item.task]
        if isinstance(task, Task):
            return [(*self._kept_document(item, step), None)]
        rng = np.random.default_rng((self.seed, step, item.task, item.file, item.row))
        documents: list[tuple[Stream, InputMask, tuple[int, int, int] | None]] = []
        for name in task.fields:
            segments = [segment for segment, _ in self.files[item.file].segments(name, item.row)]
            document = Document(tuple(segments), (False,) * len(segments))
            stream = to_stream(self.vocabulary, document)
            maskings = [self.input_masking.get(name)] * len(segments)
            mark = (item.file, item.row, self._contrasted.index(name))
            documents.append((stream, self._corruption(stream, maskings, rng), mark))
        return documents

    def _kept_document(self, item: _Item, step: int) -> tuple[Stream, InputMask]:
        """As `_document`; short ones that are the same at every step are written once."""
        if item in self._kept:
            return self._kept[item]
        made = self._document(item, step)
        task = self.tasks[item.task]
        assert isinstance(task, Task)
        is_noisy = task.cond_dropout or task.infill or task.target_masking is not None
        is_masked = any(name in self.input_masking for name in task.fields)
        is_kept = len(made[0]) <= SHORT and len(self._kept) < MOST_KEPT
        if is_kept and not is_noisy and not is_masked:
            self._kept[item] = made
        return made

    def _document(self, item: _Item, step: int) -> tuple[Stream, InputMask]:
        """A document of a task at this step, and what is hidden of its input."""
        rng = np.random.default_rng((self.seed, step, item.task, item.file, item.row))
        task = self.tasks[item.task]
        assert isinstance(task, Task)
        file = self.files[item.file]
        n_inputs = len(task.inputs)
        names: list[str] = []
        segments: list[Segment | None] = []
        predict: list[bool] = []
        left_out = bool(task.inputs) and rng.random() < task.cond_dropout
        for k, name in enumerate(task.fields):
            parts: Sequence[tuple[Segment | None, bool]] = file.segments(name, item.row)
            if k < n_inputs and left_out:
                parts = [(None, False)]
            is_asked = task.loss_on_inputs or k >= n_inputs
            names += [name] * len(parts)
            segments += [segment for segment, _ in parts]
            predict += [own and is_asked for _, own in parts]
        last = segments.pop()
        assert last is not None, "the last field is a target, which is never left out"
        # also at exactly so many frames: an end mark that is seen only there would look certain
        if 0 < task.max_target_frames <= len(last):
            last = cut(last, task.max_target_frames)
        if rng.random() < task.infill and predict[-1] and self._can_infill(last):
            start, stop = np.sort(rng.integers(0, len(last) + 1, 2))
            last = replace(last, infill_spans=((int(start), int(stop)),))
        stream = to_stream(self.vocabulary, Document((*segments, last), tuple(predict)))
        maskings = [self.input_masking.get(name) for name in names]
        if task.target_masking is not None:
            maskings = [
                task.target_masking if name in task.targets else masking
                for name, masking in zip(names, maskings, strict=True)
            ]
        return stream, self._corruption(stream, maskings, rng)

    def _can_infill(self, segment: Segment) -> bool:
        """Whether frames of a segment can be put last; those of a set stand where they must."""
        signature = self.vocabulary.signatures[segment.modality]
        is_ordered = signature.descending or signature.rows
        return not segment.truncated and not is_ordered

    def _corruption(
        self, stream: Stream, maskings: Sequence[InputMasking | None], rng: np.random.Generator
    ) -> InputMask:
        """What training hides of a document, by the masking of each segment.

        Returns which positions are hidden, and by modality which channels (T, C) of its frames.
        """
        hidden = np.zeros(len(stream), bool)
        channels = {m: np.zeros(x.shape, bool) for m, x in stream.values.items()}
        for i, masking in enumerate(maskings):
            modality = stream.modality[stream.segment == i][-1]
            if masking is None or modality < 0:  # below 0: the null mark in place of a segment
                continue
            m = list(self.vocabulary.signatures)[modality]
            span = self.vocabulary.span(m)
            is_frame = (stream.ids >= span[0]) & (stream.ids <= span[-1])
            positions = np.flatnonzero((stream.segment == i) & is_frame)
            hidden[positions] = _hidden_frames(len(positions), masking, rng)
            if masking.n_freq_masks and m in channels:
                rows = np.isin(np.flatnonzero(stream.ids == span[0]), positions)
                _mask_channels(channels[m], np.flatnonzero(rows), masking, rng)
        return InputMask(hidden, channels)


def _pool(task: int, weight: float, rows: np.ndarray, lengths: np.ndarray) -> _Pool:
    """A pool whose lengths take no more memory than they need."""
    return _Pool(task, weight, rows, lengths.astype(_int_type(lengths.max() + 1)))


def _longest(pool: _Pool) -> int:
    return int(pool.lengths.max())


def _int_type(n: int) -> type[np.integer]:
    """An integer type for the numbers below n; every process has one number per example."""
    if n <= 2**31:
        return np.int32
    return np.int64


def cut(segment: Segment, n_frames: int) -> Segment:
    """The first frames of a segment, as one that was truncated there."""
    predict = segment.predict
    if predict is not None:
        predict = predict[:n_frames]
    if segment.codes is not None:
        return replace(segment, codes=segment.codes[:n_frames], truncated=True, predict=predict)
    return replace(segment, latents=segment.values[:n_frames], truncated=True, predict=predict)


def _hidden_frames(n_frames: int, masking: InputMasking, rng: np.random.Generator) -> np.ndarray:
    """(n_frames,) bool: which frames of a field are hidden."""
    hidden = rng.random(n_frames) < masking.drop_prob
    if masking.span_prob and rng.random() < masking.apply_prob:
        is_start = rng.random(n_frames) < masking.span_prob / masking.span_length
        for start in np.flatnonzero(is_start):
            hidden[start : start + 1 + rng.poisson(masking.span_length - 1)] = True
    return hidden


def _mask_channels(
    channels: np.ndarray, rows: np.ndarray, masking: InputMasking, rng: np.random.Generator
) -> None:
    """Set bands of neighbouring channels (T, C) to True in these rows."""
    n_channels = channels.shape[1]
    for _ in range(masking.n_freq_masks):
        width = int(rng.integers(0, min(masking.freq_mask_width, n_channels) + 1))
        start = int(rng.integers(0, n_channels - width + 1))
        channels[rows, start : start + width] = True
