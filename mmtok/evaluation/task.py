"""One task of a run under evaluation, and what the evaluations of all modalities share."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mmtok.commands.sample import NOTHING, note_empty, write_samples
from mmtok.core.segment import Document, Segment
from mmtok.data.subset import random_subset
from mmtok.data.tasks import Task
from mmtok.io.filenames import file_names, inside
from mmtok.io.terminal import print_status
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run

MAX_CLASSES = 100  # a classifier of captions makes sense up to about this many
ENCODE_BATCH = 256  # training signals that are encoded at once


@dataclass(frozen=True)
class TaskEvaluation:
    """One task under evaluation: its examples, samples and output folder.

    The task has one target field, and one input field or none. Numbers may be given beside it: then
    samples are asked for with those of held-out examples.
    """

    run: Run
    task: Task

    def __str__(self) -> str:
        return str(self.task)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the inputs (NOTHING where there are none), then those of the targets.

        Without numbers. A pair, except where a task joins several fields.
        """
        inputs, targets = self.task.modalities(self.run.recipe.fields)
        inputs = tuple(m for m in inputs if m not in self.run.recipe.numbers)
        return (*(inputs or (NOTHING,)), *targets)

    @property
    def name(self) -> str:
        """The key of the figures and the name of the samples' folder: image_from_text."""
        inputs, (target, *_) = self.task.modalities(self.run.recipe.fields)
        return f"{target}_from_{'_and_'.join(inputs or (NOTHING,))}"

    @property
    def numbers(self) -> tuple[str, ...]:
        """The input fields that are numbers."""
        fields = self.run.recipe.fields
        return tuple(f for f in self.task.inputs if fields[f] in self.run.recipe.numbers)

    @property
    def _signal_inputs(self) -> tuple[str, ...]:
        """The other input fields."""
        return tuple(f for f in self.task.inputs if f not in self.numbers)

    @property
    def input_field(self) -> str:
        """The input field, of a task that has one beside numbers."""
        return self._signal_inputs[0]

    @property
    def target_field(self) -> str:
        """The field that is sampled."""
        return self.task.targets[0]

    @property
    def seed(self) -> int:
        """The recipe's seed, for whatever is random in an evaluation."""
        return self.run.recipe.train.seed

    @property
    def input_tokenizer(self) -> Any:
        """The tokenizer of the input field."""
        return self.run.tokenizers[self.run.recipe.fields[self.input_field]]

    @property
    def target_tokenizer(self) -> Any:
        """The tokenizer of the target field."""
        return self.run.tokenizers[self.run.recipe.fields[self.target_field]]

    # ---- examples

    def rows(self, split: str) -> Iterator[tuple[Any, Any]]:
        """(input, target) signals of a split's examples; the input is None where there is none."""
        for example in self.run.examples(split, *self.task.inputs, self.target_field):
            yield self._row(example)

    def examples(self, split: str) -> tuple[list, list]:
        """All inputs and all targets of a split."""
        rows = list(self.rows(split))
        return [x for x, _ in rows], [y for _, y in rows]

    def clean_rows(self) -> Iterator[tuple[Any, Any]]:
        """The rows of "train" without augmentation, each once."""
        needed = {*self.task.inputs, self.target_field}
        for source in self.run.recipe.sources:
            if needed <= set(source.fields):
                for example in self.run.examples_of(source.clean(), "train"):
                    yield self._row(example)

    def training_codes(self) -> Iterator[np.ndarray]:
        """Codes (T, C) of every training target, and of their unaugmented originals."""
        for segments in self._training_segments():
            yield from (segment.values for segment in segments)

    def training_round_trips(self) -> Iterator[Any]:
        """The same targets, encoded and decoded: what a decoder of latents could copy."""
        for segments in self._training_segments():
            yield from self.target_tokenizer.decode_batch(segments)

    def _training_segments(self) -> Iterator[list[Segment]]:
        targets = self._training_targets()
        while batch := list(islice(targets, ENCODE_BATCH)):
            yield self.target_tokenizer.encode_batch(batch)

    def _training_targets(self) -> Iterator[Any]:
        for _, target in self.rows("train"):
            yield target
        if any(source.clean() is not source for source in self.run.recipe.sources):
            for _, target in self.clean_rows():
                yield target

    def _row(self, example: dict[str, Any]) -> tuple[Any, Any]:
        inputs = example[self.input_field] if self._signal_inputs else None
        return inputs, example[self.target_field]

    # ---- samples

    def sample(self, inputs: Sequence[Any], **changes: Any) -> list[Sampled]:
        """One sample for each input signal, with the recipe's sampling and seed.

        changes: of the sampling, see `Run.sampling`.
        """
        modality = self.run.recipe.fields[self.target_field]
        segments = {self.input_field: self.input_tokenizer.encode_batch(inputs)}
        segments |= self._number_segments(self._numbers_for(inputs))
        rows = zip(*(segments[f] for f in self.task.inputs), strict=True)
        return self._sampled([self.run.prompt(row, modality) for row in rows], **changes)

    def sample_examples(
        self, examples: Sequence[Mapping[str, Any]], **changes: Any
    ) -> list[Sampled]:
        """One sample for the inputs of each example, with the recipe's sampling and seed.

        changes: of the sampling, see `Run.sampling`.
        """
        fields = self.run.recipe.fields
        modality = fields[self.target_field]
        segments = {
            f: self.run.tokenizers[fields[f]].encode_batch([example[f] for example in examples])
            for f in self.task.inputs
        }
        rows = zip(*(segments[f] for f in self.task.inputs), strict=True)
        return self._sampled([self.run.prompt(row, modality) for row in rows], **changes)

    def sample_unconditional(self, n: int) -> list[Sampled]:
        """`n` samples of a task without inputs, with the recipe's sampling and seed.

        Of one with numbers alone, given those of random held-out examples.
        """
        modality = self.run.recipe.fields[self.target_field]
        if not self.numbers:
            return self._sampled([self.run.prompt([], modality)] * n)
        examples = random_subset(self._held_out(), n, self.seed)
        chosen = [examples[i % len(examples)] for i in range(n)]
        segments = self._number_segments(chosen)
        rows = zip(*(segments[f] for f in self.task.inputs), strict=True)
        return self._sampled([self.run.prompt(row, modality) for row in rows])

    def _held_out(self) -> Iterator[dict[str, Any]]:
        """The inputs of held-out examples."""
        for example in self.run.examples("heldout", *self.task.inputs, self.target_field):
            yield {f: example[f] for f in self.task.inputs}

    def _number_segments(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Segment]]:
        """Number field -> its segments in these examples."""
        fields = self.run.recipe.fields
        return {
            f: self.run.tokenizers[fields[f]].encode_batch([example[f] for example in examples])
            for f in self.numbers
        }

    def _numbers_for(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Numbers for each input: those of held-out examples, in their order, again and again.

        For texts of the examples that have this text.
        """
        if not self.numbers:
            return [{} for _ in inputs]
        are_texts = self.run.recipe.fields[self.input_field] == "text"
        pools: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for example in self._held_out():
            pools[example[self.input_field] if are_texts else ""].append(example)
        n_taken: Counter[Any] = Counter()
        chosen = []
        for signal in inputs:
            key = signal if are_texts else ""
            pool = pools[key] or [example for pool in pools.values() for example in pool]
            chosen.append(pool[n_taken[key] % len(pool)])
            n_taken[key] += 1
        return chosen

    def _sampled(self, prompts: Sequence[Document], **changes: Any) -> list[Sampled]:
        sampling = self.run.sampling(self.run.recipe.fields[self.target_field], **changes)
        return self.run.draw(prompts, sampling, self.seed)

    def decode(self, samples: Sequence[Sampled]) -> list[Any]:
        """Samples as signals."""
        return self.target_tokenizer.decode_batch([sampled.segment for sampled in samples])

    def save_samples(
        self,
        name: str,
        prompts: Sequence[str],
        samples: Sequence[Sampled],
        stems: Sequence[str] = (),
    ) -> None:
        """Write samples to RUN/samples/NAME, where people and other programs can judge them.

        Args:
            name: The folder's name.
            prompts: What each sample was asked for with.
            samples: As many.
            stems: File names without suffix, made by `file_names`. Default: prompt and number.
        """
        if not stems:
            names = file_names(prompts, space="_")
            stems = [f"{stem}-{i:03d}" for i, stem in enumerate(names)]
        note_empty(stems, samples)
        folder = inside(self.run.folder / "samples", name)
        write_samples(self.run, folder, stems, samples, prompts)


# ---- what several modalities need


def share_ended(samples: Sequence[Sampled]) -> float:
    """Share of samples that end by their own end mark, not at a cap."""
    return float(np.mean([sampled.stop == "end" for sampled in samples]))


def random_labelled(
    rows: Iterable[tuple[Any, Any]], n_max: int = sys.maxsize, seed: int = 0
) -> tuple[list, list, set]:
    """At most `n_max` random rows of a stream of (label, signal), in the stream's order.

    Returns:
        Their labels, their signals, and the set of the labels of all rows.
    """
    all_labels = set()

    def noting_labels() -> Iterator[tuple[Any, Any]]:
        for label, signal in rows:
            all_labels.add(label)
            yield label, signal

    chosen = random_subset(noting_labels(), n_max, seed)
    return [label for label, _ in chosen], [signal for _, signal in chosen], all_labels


def can_be_classified(
    task: TaskEvaluation, all_labels: Iterable[str], training_labels: Iterable[str]
) -> bool:
    """Whether a classifier can be trained: 2 to MAX_CLASSES labels. Says so where it cannot."""
    n = len(set(all_labels))
    n_training = len(set(training_labels))
    if 2 <= n_training <= n <= MAX_CLASSES:
        return True
    print_status(
        f"no judge for {task}: its training examples have {n} names ({n_training} where they"
        f" are sampled), a judge takes 2 to {MAX_CLASSES}"
    )
    return False
