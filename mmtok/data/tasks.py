"""Tasks: which fields of an example are the input and which the target, and what training masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtok.core.interleaved import INTERLEAVED
from mmtok.errors import UserError


@dataclass(frozen=True)
class InputMasking:
    """What training hides of a field's input; targets are never touched.

    Attributes:
        drop_prob: share of frames hidden one by one.
        span_prob: share of frames hidden in spans of about `span_length` frames (dMel, section
            3.3.1: 0.5 with spans of 3).
        apply_prob: probability that spans are hidden in a document at all.
        n_freq_masks: how many bands of up to `freq_mask_width` neighbouring channels are hidden
            (SpecAugment's frequency masks, Park et al. 2019, section 2); hidden latents read as 0,
            their mean where they are standardised.
    """

    drop_prob: float = 0.0
    span_prob: float = 0.0
    span_length: int = 3
    apply_prob: float = 1.0
    n_freq_masks: int = 0
    freq_mask_width: int = 10

    def __post_init__(self) -> None:
        for name in ("drop_prob", "span_prob", "apply_prob"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"InputMasking: {name} is {value}; it is a share, from 0 to 1")
        for name, least in (("span_length", 1), ("n_freq_masks", 0), ("freq_mask_width", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"InputMasking: {name} is {value}; it must be at least {least}")


@dataclass(frozen=True)
class Task:
    """An order of fields: the inputs, then the targets, which the model learns to predict.

    Attributes:
        inputs: names of the fields that are given.
        targets: names of the fields that are predicted, at least one.
        weight: the share of training positions, relative to the other tasks.
        cond_dropout: probability that the inputs are replaced by the null mark; guidance needs it.
        loss_on_inputs: predict the inputs too (a joint distribution); else they carry no loss.
        infill: probability that a span of the last field is cut out and put last, so that missing
            spans can be filled in.
        max_target_frames: read at most so many frames of the last field, as a truncated segment; 0
            reads all. Where what matters comes first (jets by falling pt), more examples fit into
            the same positions.
        target_masking: what training hides of the targets' frames when later ones are predicted
            from them, instead of the recipe's `input_masking` of that field. Speech says by itself
            how it goes on: with long spans hidden, what to say is learned from the text.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    weight: float = 1.0
    cond_dropout: float = 0.0
    loss_on_inputs: bool = False
    infill: float = 0.0
    max_target_frames: int = 0
    target_masking: InputMasking | None = None

    def __post_init__(self) -> None:
        are_tuples = isinstance(self.inputs, tuple) and isinstance(self.targets, tuple)
        if not are_tuples or not self.targets:
            raise UserError(
                "Task: inputs and targets are tuples of field names, targets of at least one; got"
                f" {self.inputs!r} and {self.targets!r}"
            )
        if not 0 < self.weight < np.inf:
            raise UserError(f"task {self}: weight is {self.weight}; it must be above 0, and finite")
        if not (0 <= self.cond_dropout <= 1 and 0 <= self.infill <= 1):
            raise UserError(
                f"task {self}: cond_dropout is {self.cond_dropout} and infill {self.infill}; both"
                " are shares, from 0 to 1"
            )
        if self.max_target_frames < 0 or (self.max_target_frames and self.infill):
            raise UserError(
                f"task {self}: max_target_frames is {self.max_target_frames}; it counts frames, 0"
                " for all of them, and goes without infill"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields in the order of the document."""
        return (*self.inputs, *self.targets)

    @property
    def predicted(self) -> tuple[str, ...]:
        """The fields that carry loss: the targets, and the inputs under `loss_on_inputs`."""
        if self.loss_on_inputs:
            return (*self.targets, *self.inputs)
        return self.targets

    def modalities(self, modality_of: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The modalities of the inputs and those of the targets.

        modality_of: of each field.
        """
        return (
            tuple(modality_of[field] for field in self.inputs),
            tuple(modality_of[field] for field in self.targets),
        )

    def positions(self, n_frames: Sequence[Any]) -> Any:
        """How many positions of a row a document takes.

        n_frames: of each field, not truncated; numbers, or arrays (n,) for n documents at once.
        """
        last = n_frames[-1]
        if self.max_target_frames:
            last = np.minimum(last, self.max_target_frames)
        marks = 1 + 2 * len(n_frames) + 3 * bool(self.infill)
        return sum([*n_frames[:-1], last]) + marks

    def leaves_out(self, n_inputs: int) -> bool:
        """Whether training dropped exactly the first `n_inputs` fields; guidance needs it."""
        return self.cond_dropout > 0 and n_inputs == len(self.inputs)

    def __str__(self) -> str:
        return f"{' + '.join(self.inputs) or 'nothing'} -> {' + '.join(self.targets)}"


@dataclass(frozen=True)
class Contrast:
    """Fields of an example whose vectors are to be alike, and unlike those of other examples.

    Each field is a document of its own, so none reads another. Examples of equal signals count as
    one: what has the caption "seven" is alike, be it a picture or a clip, whichever contrast it is
    of.

    Attributes:
        fields: names of two fields or more.
        weight: the share of training positions, relative to the tasks and other contrasts.
    """

    fields: tuple[str, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        names = self.fields
        if not isinstance(names, tuple) or len(set(names)) != len(names) or len(names) < 2:
            raise UserError(
                f"Contrast: fields are two different names or more, in a tuple; got {names!r}"
            )
        if not 0 < self.weight < np.inf:
            raise UserError(
                f"contrast {self}: weight is {self.weight}; it must be above 0, and finite"
            )

    def positions(self, n_frames: Sequence[Any]) -> Any:
        """How many positions of a row its documents take, see `Task.positions`."""
        return sum(n_frames) + 3 * len(n_frames)

    def __str__(self) -> str:
        return " ~ ".join(self.fields)


def orders(
    tasks: Sequence[Task], modality_of: Mapping[str, str]
) -> list[tuple[tuple[str, ...], str, Task]]:
    """What prompts can ask for: (modalities read, modality predicted, the task that trained it).

    Of equal orders the first counts. Of several targets each is predicted from those before it too.
    Truncated tasks never saw an end, so they cannot be asked for.

    modality_of: of each field.
    """
    asked = [task for task in tasks if not task.max_target_frames]
    found: list[tuple[tuple[str, ...], str, Task]] = []
    for task in asked:
        inputs, targets = task.modalities(modality_of)
        found += [((*inputs, *targets[:k]), target, task) for k, target in enumerate(targets)]
    for task in asked:  # without the condition
        if task.inputs and task.cond_dropout > 0:
            found.append(((), modality_of[task.targets[0]], task))
    return found


def order_fits(condition: tuple[str, ...], to: str, inputs: tuple[str, ...], target: str) -> bool:
    """Whether an order can be one of a task with interleaved documents, which may have any.

    Args:
        condition: the modalities that are given.
        to: the one that is asked for.
        inputs: the modalities of the task's inputs, or what stands before its target.
        target: that of its target.
    """
    first = len(inputs)
    behind: tuple[str, ...] = ()
    if INTERLEAVED in inputs:
        first = inputs.index(INTERLEAVED)
        behind = inputs[len(inputs) - inputs[::-1].index(INTERLEAVED) :]
    if condition[:first] != inputs[:first]:
        return False
    if target == INTERLEAVED:
        return True
    rest = condition[first:]
    is_long = len(rest) >= len(behind)
    return (
        INTERLEAVED in inputs
        and to == target
        and is_long
        and rest[len(rest) - len(behind) :] == behind
    )


def check_rows(tasks: Sequence[Task | Contrast], seq_len: int, n_frames: Mapping[str, int]) -> None:
    """Raise UserError for a task of which no document fits into a row.

    n_frames: of each field, the least that are known before any is made.
    """
    for task in tasks:
        least = task.positions([n_frames[name] for name in task.fields])
        if least > seq_len:
            raise UserError(
                f"{task_text(task)}: a document takes {least} positions or more, but rows are"
                f" {seq_len} long: raise --train.seq_len to at least {least}"
            )


def task_text(task: Task | Contrast) -> str:
    """A task or a contrast as messages name it."""
    kind = "contrast" if isinstance(task, Contrast) else "task"
    return f"{kind} {task}"
