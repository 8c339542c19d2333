"""From token files to batches: which documents step k reads, and what the model may not read of
them.

Everything here is a function of (seed, step): the order of documents of (seed, round), their
packing of the order and the lengths, noise of (seed, step, document). So a run can be cut anywhere,
and resumed on any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmtok.core.batch import Batch, Corruption, pack, plan_rows
from mmtok.core.grammar import Stream, to_stream
from mmtok.core.segment import Document, Segment
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.tasks import InputMasking, Task
from mmtok.data.tokens import TokenFile
from mmtok.errors import UserError


@dataclass(frozen=True)
class _Item:
    """One document of a round: row `row` of `file`, under task `task`."""

    task: int
    file: int
    row: int


class Loader:
    """Batches by step.

    files: token files of the training split; every task reads the rows that have all its fields.
    rows, seq_len: B and L of a step's batch, over all processes.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        tasks: Sequence[Task],
        vocabulary: Vocabulary,
        input_masking: Mapping[str, InputMasking],
        rows: int,
        seq_len: int,
        seed: int,
    ):
        self.files, self.tasks, self.vocabulary, self.input_masking = (
            files,
            tasks,
            vocabulary,
            input_masking,
        )
        self.batch_size, self.seq_len, self.seed = rows, seq_len, seed
        self.pools, self.lengths = zip(*(self._pool(task) for task in tasks))
        self._check_lengths()
        mean = np.array([lengths.mean() for lengths in self.lengths])
        share = np.array([t.weight for t in tasks]) / mean
        # a round holds about 32 steps' worth of positions: long enough to pack well, short enough
        # to plan in milliseconds
        self.per_round = np.maximum(
            1, np.round(share / (share @ mean) * 32 * rows * seq_len)
        ).astype(int)
        self._round: tuple[int, list[list[_Item]]] = (-1, [])
        self._orders: dict[
            int, tuple[int, np.ndarray]
        ] = {}  # task -> its newest epoch and the order of that
        self._first_step = [0]  # of every round planned so far

    def _pool(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """(n, 2) file and row of every example that has the task's fields, and (n,) its document's
        length.
        """
        names, pool, lengths = (*task.inputs, *task.targets), [], []
        for f, file in enumerate(self.files):
            if set(names) <= set(file.fields):
                rows = np.flatnonzero(np.all([file.has(name) for name in names], 0))
                number = _number_below(len(file))
                pool.append(np.stack([np.full(len(rows), f, number), rows.astype(number)], 1))
                lengths.append(task.positions([file.lengths(name)[rows] for name in names]))
        if not pool or not sum(map(len, pool)):
            raise UserError(f"no example has all fields of task {task}")
        made = self.files[next(p for p in pool if len(p))[0, 0]].signatures[task.targets[-1]]
        if task.infill and made.descending:
            raise UserError(
                f"task {task}: holes are not possible in {made.modality}, whose frames are ordered;"
                " set its infill to 0"
            )
        together = np.concatenate(lengths)
        return np.concatenate(pool), together.astype(_number_below(together.max() + 1))

    def _check_lengths(self) -> None:
        """Raise UserError, naming the field to blame, when the longest document of all tasks does
        not fit into a row.
        """
        t = int(np.argmax([lengths.max() for lengths in self.lengths]))
        task, longest = self.tasks[t], int(self.lengths[t].max())
        if longest > self.seq_len:
            f, row = self.pools[t][self.lengths[t].argmax()]
            n_frames = {
                name: int(self.files[f].lengths(name)[row])
                for name in (*task.inputs, *task.targets)
            }
            field = max(n_frames, key=n_frames.get)
            raise UserError(
                f"task {task}: a document with {field!r} of {n_frames[field]} frames takes"
                f" {longest} positions, but rows are {self.seq_len} long: raise --train.seq_len to"
                f" at least {longest}, or shorten {field!r}"
            )

    def _plan(self, round: int) -> list[list[_Item]]:
        """The rows of a round, each a list of documents."""
        if self._round[0] != round:
            items, lengths = [], []
            for t, (pool, pool_lengths, n) in enumerate(
                zip(self.pools, self.lengths, self.per_round)
            ):
                for at in self._endless(t, len(pool), round * n, n):
                    items.append(_Item(t, *map(int, pool[at])))
                    lengths.append(int(pool_lengths[at]))
            order = np.random.default_rng((self.seed, round, 1)).permutation(len(items))
            rows = plan_rows([lengths[i] for i in order], self.seq_len)
            shuffled = np.random.default_rng((self.seed, round, 2)).permutation(len(rows))
            self._round = (round, [[items[order[i]] for i in rows[r]] for r in shuffled])
        return self._round[1]

    def _endless(self, task: int, n_examples: int, start: int, n: int) -> np.ndarray:
        """Examples start..start+n of the task's endless order: one permutation after another."""
        first, last = start // n_examples, (start + n - 1) // n_examples
        cut = lambda epoch: slice(
            max(0, start - epoch * n_examples), start + n - epoch * n_examples
        )
        return np.concatenate(
            [self._order(task, e, n_examples)[cut(e)] for e in range(first, last + 1)]
        )

    def _order(self, task: int, epoch: int, n_examples: int) -> np.ndarray:
        """(n_examples,) the order of one epoch.

        The newest is kept: an epoch has many rounds, and permuting 10^8 examples takes seconds.
        """
        if self._orders.get(task, (-1,))[0] != epoch:
            order = np.random.default_rng((self.seed, task, epoch, 3)).permutation(n_examples)
            self._orders[task] = epoch, order.astype(_number_below(n_examples))
        return self._orders[task][1]

    def items(self, step: int) -> list[list[_Item]]:
        """The rows of this step, over all processes."""
        while self._first_step[-1] <= step:
            n_rows = len(self._plan(len(self._first_step) - 1))
            self._first_step.append(self._first_step[-1] + max(1, n_rows // self.batch_size))
        round = int(np.searchsorted(self._first_step, step, "right")) - 1
        plan, n_steps = self._plan(round), self._first_step[round + 1] - self._first_step[round]
        # rows that do not fill a last step are spread over the steps of their round
        return plan[step - self._first_step[round] :: n_steps]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step; this process's share of its rows."""
        rows, corruptions = [], []
        for row in self.items(step)[rank::world]:
            pairs = [
                self._document(
                    item, np.random.default_rng((self.seed, step, item.task, item.file, item.row))
                )
                for item in row
            ]
            rows.append([stream for stream, _ in pairs])
            corruptions.append([corruption for _, corruption in pairs])
        return pack(self.vocabulary, rows, self.seq_len, corruptions)

    def _document(self, item: _Item, rng: np.random.Generator) -> tuple[Stream, Corruption]:
        task, file = self.tasks[item.task], self.files[item.file]
        names = (*task.inputs, *task.targets)
        segments: list[Segment | None] = [file.segment(name, item.row) for name in names]
        predict = [task.loss_on_inputs] * len(task.inputs) + [True] * len(task.targets)
        if task.inputs and rng.random() < task.cond_dropout:
            segments[: len(task.inputs)] = [None] * len(task.inputs)
            predict[: len(task.inputs)] = [False] * len(task.inputs)
        if (
            0 < task.max_target_frames <= len(segments[-1])
        ):  # also at exactly so many: an end told only there would look certain
            segments[-1] = cut(segments[-1], task.max_target_frames)
        if rng.random() < task.infill and not segments[-1].truncated:
            a, b = np.sort(rng.integers(0, len(segments[-1]) + 1, 2))
            segments[-1] = replace(segments[-1], holes=((int(a), int(b)),))
        stream = to_stream(self.vocabulary, Document(tuple(segments), tuple(predict)))
        return stream, self._corruption(stream, names, rng)

    def _corruption(
        self, stream: Stream, names: Sequence[str], rng: np.random.Generator
    ) -> Corruption:
        hidden = np.zeros(len(stream), bool)
        channels = {m: np.zeros(x.shape, bool) for m, x in stream.values.items()}
        for i, name in enumerate(names):
            c = self.input_masking.get(name)
            k = stream.modality[stream.segment == i][-1]
            if c is None or k < 0:
                continue
            m = list(self.vocabulary.signatures)[k]
            span = self.vocabulary.span(m)
            frames = np.flatnonzero(
                (stream.segment == i) & (stream.ids >= span[0]) & (stream.ids <= span[-1])
            )
            hidden[frames] = _hide(len(frames), c, rng)
            if c.n_freq_masks and m in channels:
                mine = np.flatnonzero(np.isin(np.flatnonzero(stream.ids == span[0]), frames))
                for _ in range(c.n_freq_masks):
                    width = int(rng.integers(0, min(c.freq_mask_width, channels[m].shape[1]) + 1))
                    start = int(rng.integers(0, channels[m].shape[1] - width + 1))
                    channels[m][mine, start : start + width] = True
        return Corruption(hidden, channels)


def _number_below(n: int) -> type[np.integer]:
    """What holds the numbers below n: there is one for every example of a task, in every process."""
    return np.int32 if n <= 2**31 else np.int64


def cut(segment: Segment, n_frames: int) -> Segment:
    """The first frames of a segment, as one that was truncated there."""
    kind = "codes" if segment.codes is not None else "latents"
    return replace(segment, **{kind: segment.values[:n_frames]}, truncated=True)


def _hide(n: int, c: InputMasking, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: which frames of a field are hidden."""
    hidden = rng.random(n) < c.drop_prob
    if c.span_prob and rng.random() < c.apply_prob:
        for start in np.flatnonzero(rng.random(n) < c.span_prob / c.span_length):
            hidden[start : start + 1 + rng.poisson(c.span_length - 1)] = True
    return hidden
