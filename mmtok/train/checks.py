"""Pre-training checks: head settings against tasks and data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Signature
from mmtok.data.subset import random_subset
from mmtok.data.tasks import InputMasking, Task, orders
from mmtok.data.tokens import TokenFile
from mmtok.errors import UserError
from mmtok.heads.base import Head, SetHead, Sizes
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import LM

N_SEGMENTS = 2_000  # whose spread is measured


def check_targets(lm: LM, tasks: Sequence[Task], modality_of: Mapping[str, str]) -> None:
    """Raise UserError for a task that cuts what its head draws as a whole.

    modality_of: of each field.
    """
    for task in tasks:
        head = lm.head(modality_of[task.targets[-1]])
        if head is not None:
            head.validate(task=task)


def check_variances(lm: LM, tasks: Sequence[Task], modality_of: Mapping[str, str]) -> None:
    """Raise UserError for learned variances of which none is of a loss that training has.

    modality_of: of each field.
    """
    if lm.variances is None:
        return
    predicted = {modality_of[f] for task in tasks for f in task.predicted}
    if predicted <= set(lm.vocabulary.signatures) - set(lm.variances.parameters_of):
        raise UserError(
            "model.learned_sigma is true, but no task predicts a modality whose loss it could weigh"
            f" (predicted: {', '.join(sorted(predicted)) or 'none'}; densities have a variance of"
            " their own): leave it out"
        )


def check_guidance(
    tasks: Sequence[Task], modality_of: Mapping[str, str], sampling: Mapping[str, Sampling]
) -> None:
    """Raise UserError for guidance of a modality whose conditions training never drops."""
    asked: set[tuple[tuple[str, ...], str]] = set()
    for inputs, m, task in orders(tasks, modality_of):
        guidance = sampling[m].guidance if m in sampling else 1.0
        is_new = (inputs, m) not in asked
        if is_new and inputs and guidance != 1 and not task.leaves_out(len(inputs)):
            raise UserError(
                f"sampling.{m}.guidance is {guidance}, but task {task} never leaves out"
                f" {' + '.join(inputs)}, which guidance needs: set"
                f" tasks.{list(tasks).index(task)}.cond_dropout above 0 (0.1), or the guidance to 1"
            )
        asked.add((inputs, m))


def warn_pairing(lm: LM, tasks: Sequence[Task], modality_of: Mapping[str, str]) -> None:
    """Warn of every head that pairs noise with data by transport under a task's condition.

    modality_of: of each field.
    """
    for task in tasks:
        m = modality_of[task.targets[-1]]
        head = lm.head(m)
        if head is None:
            continue
        for note in head.task_notes(task):
            warnings.warn(f"{m}: {note}", stacklevel=2)


def check_freq_masks(
    input_masking: Mapping[str, InputMasking],
    modality_of: Mapping[str, str],
    signatures: Mapping[str, Signature],
    where: str = "input_masking",
) -> None:
    """Raise UserError for frequency masks of a field whose frames have one channel.

    modality_of: of each field. where: of the recipe the masking is.
    """
    for name, hidden in input_masking.items():
        m = modality_of[name]
        if hidden.n_freq_masks and m in signatures and signatures[m].one_channel:
            raise UserError(
                f"{where}.{name}.n_freq_masks is {hidden.n_freq_masks}, but a frame of {m}"
                " has one channel, no bands of them: set it to 0, or use drop_prob"
            )


def check_sets(lm: LM, files: Callable[[], Sequence[TokenFile]], made: Mapping[str, str]) -> None:
    """Raise UserError for sets whose numbers of frames a head of sets cannot learn.

    Args:
        lm: the decoder.
        files: opens the token files.
        made: field -> modality of the fields that are made.
    """
    for field, m in made.items():
        head = lm.head(m)
        if not isinstance(head, SetHead):
            continue
        for file in files():
            if field not in file.fields:
                continue
            rows = file.has(field)
            n_frames = torch.from_numpy(file.lengths(field)[rows])
            head.check_training(Sizes(n_frames, torch.from_numpy(file.truncated(field)[rows])))


def warn_sigma_data(
    lm: LM, files: Callable[[], Sequence[TokenFile]], made: Mapping[str, str], seed: int
) -> None:
    """Warn of every EDM schedule whose sigma_data does not fit the latents that it will denoise.

    The warning has both numbers.

    Args:
        lm: the decoder.
        files: opens the token files, where a head needs them.
        made: field -> modality of the fields that are made.
        seed: of the choice of segments that are measured.
    """
    for m, head in lm.heads.items():
        assert isinstance(head, Head)
        learned = [f for f, modality in made.items() if modality == m]
        for note in head.data_notes(_segments(files, learned, seed)):
            warnings.warn(f"{m}: {note}", stacklevel=2)


def _segments(
    files: Callable[[], Sequence[TokenFile]], fields: Sequence[str], seed: int
) -> Iterator[Tensor]:
    """The latents (T, D) of random whole segments of these fields; files: opens the token files."""

    def places() -> Iterator[tuple[TokenFile, str, int]]:
        for file in files():
            for field in (f for f in file.fields if f in fields):
                yield from ((file, field, int(i)) for i in np.flatnonzero(file.has(field)))

    for file, field, i in random_subset(places(), N_SEGMENTS, seed):
        segment = file.segment(field, i)
        if not segment.truncated:
            yield torch.from_numpy(segment.latents)
