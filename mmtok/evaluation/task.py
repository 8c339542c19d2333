"""One task of a run, asked as a question: its examples, its draws, and where its samples are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from mmtok.commands.sample import NOTHING, note_empty, write_samples
from mmtok.core.segment import Document, Segment
from mmtok.data.subset import random_subset
from mmtok.data.tasks import Task
from mmtok.io.filenames import file_names, inside
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run


@dataclass(frozen=True)
class Setting:
    """A task of a run that makes one field, from one given or from nothing."""

    run: Run
    task: Task

    @property
    def pair(self) -> tuple[str, ...]:
        """The modalities of what is given (NOTHING, where it is nothing) and of what is made; more
        than two where fields are joined.
        """
        inputs, targets = self.task.modalities(self.run.recipe.fields)
        return (*(inputs or (NOTHING,)), *targets)

    @property
    def name(self) -> str:
        """Of the figures and of the folder of samples: image_from_text, jets_from_nothing."""
        *given, made = self.pair
        return f"{made}_from_{'_and_'.join(given)}"

    @property
    def given(self) -> str:
        """The given field, of a task that has one."""
        return self.task.inputs[0]

    @property
    def made(self) -> str:
        """The field that is made."""
        return self.task.targets[0]

    def rows(self, split: str) -> Iterator[tuple[Any, Any]]:
        """(given signal, made signal) of the examples of a split, one at a time; None is given
        where the task gives nothing.
        """
        for example in self.run.examples(split, *self.task.inputs, self.made):
            yield example[self.given] if self.task.inputs else None, example[self.made]

    def examples(self, split: str) -> tuple[list, list]:
        """All (given signals, made signals) of a split."""
        rows = list(self.rows(split))
        return [a for a, _ in rows], [b for _, b in rows]

    def clean_rows(self) -> Iterator[tuple[Any, Any]]:
        """The rows of "train"; of a source that augments its signals, those of its clean twin, each
        once.
        """
        for source in self.run.recipe.sources:
            if {*self.task.inputs, self.made} <= set(source.fields):
                for example in self.run.examples_of(
                    source.clean() if hasattr(source, "clean") else source, "train"
                ):
                    yield example[self.given] if self.task.inputs else None, example[self.made]

    def training_codes(self) -> Iterator[np.ndarray]:
        """Codes (T, C) of every signal that is made in training, as trained on and, where a source
        augments it, clean too.
        """
        for segments in self._training_segments():
            yield from (segment.codes for segment in segments)

    def training_round_trips(self) -> Iterator[Any]:
        """The same signals, encoded and decoded again: what they are to a decoder that draws
        latents.
        """
        for segments in self._training_segments():
            yield from self.tokenizer(self.made).decode_batch(segments)

    def _training_segments(self) -> Iterator[list[Segment]]:
        twins = (
            self.clean_rows()
            if any(hasattr(source, "clean") for source in self.run.recipe.sources)
            else ()
        )
        signals = (made for _, made in chain(self.rows("train"), twins))
        while batch := list(islice(signals, 256)):
            yield self.tokenizer(self.made).encode_batch(batch)

    def tokenizer(self, field: str) -> Any:
        """The tokenizer of a field's modality."""
        return self.run.tokenizers[self.run.recipe.fields[field]]

    @property
    def seed(self) -> int:
        """The recipe's, of all that is drawn."""
        return self.run.recipe.train.seed

    def draw(self, signals: Sequence[Any]) -> list[Sampled]:
        """Sample the made field for each given signal, the recipe's way, from the recipe's seed."""
        to = self.run.recipe.fields[self.made]
        return self._drawn(
            [self.run.prompt([s], to) for s in self.tokenizer(self.given).encode_batch(signals)]
        )

    def draw_from_nothing(self, n: int) -> list[Sampled]:
        """Sample the made field n times, likewise, where the task gives nothing."""
        return self._drawn([self.run.prompt([], self.run.recipe.fields[self.made])] * n)

    def _drawn(self, prompts: Sequence[Document]) -> list[Sampled]:
        return self.run.draw(
            prompts, self.run.sampling(self.run.recipe.fields[self.made]), self.seed
        )

    def keep(
        self, name: str, words: Sequence[str], drawn: Sequence[Sampled], stems: Sequence[str] = ()
    ) -> None:
        """Write the samples to RUN/samples/NAME, where others can judge them.

        words: what each was asked for by. stems: names of their files, made by `file_names`; by
        default the words and a number.
        """
        stems = stems or [f"{stem}-{i:03d}" for i, stem in enumerate(file_names(words, space="_"))]
        note_empty(stems, drawn)
        write_samples(self.run, inside(self.run.folder / "samples", name), stems, drawn, words)


def labelled(
    rows: Iterable[tuple[Any, Any]], most: float = math.inf, seed: int = 0
) -> tuple[list, list, set]:
    """Labels and signals of at most so many rows of a stream, drawn by the seed, in its order; and
    the labels of all of them.
    """
    labels = set()

    def passing() -> Iterator[tuple[Any, Any]]:
        for label, signal in rows:
            labels.add(label)
            yield label, signal

    kept = random_subset(passing(), most, seed)
    return [label for label, _ in kept], [signal for _, signal in kept], labels
