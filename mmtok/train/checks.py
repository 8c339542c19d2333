"""What a decoder's heads take for granted, held against the tasks and the data before the long
work.
"""

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
from mmtok.diffusion.losses import check_sigma_data
from mmtok.diffusion.schedules import EDM
from mmtok.errors import UserError
from mmtok.heads.cascade import CascadeHead
from mmtok.heads.diffusion import DiffusionHead
from mmtok.model.lm import LM
from mmtok.model.sampling import Sampling

N_SEGMENTS = 2_000  # whose spread is measured


def check_cuts(lm: LM, tasks: Sequence[Task], modality_of: Mapping[str, str]) -> None:
    """Raise UserError for a task that cuts what its head draws as a whole.

    modality_of: of each field.
    """
    for task in tasks:
        m = modality_of[task.targets[-1]]
        for dial, value in (("infill", task.infill), ("max_target_frames", task.max_target_frames)):
            if value and lm.draws_whole(m):
                raise UserError(
                    f"task {task}: its {dial} is {value}, but {type(lm.config.heads[m]).__name__}"
                    f" draws {m} as a whole: in training such segments can neither be cut short nor"
                    f" have holes; set {dial} to 0"
                )


def check_guidance(
    tasks: Sequence[Task], modality_of: Mapping[str, str], sampling: Mapping[str, Sampling]
) -> None:
    """Raise UserError for a modality that is to be drawn under guidance, though training never
    leaves out what it is made from.
    """
    asked: set[tuple[tuple[str, ...], str]] = set()
    for given, m, task in orders(tasks, modality_of):
        guidance = sampling[m].guidance if m in sampling else 1.0
        if (given, m) not in asked and given and guidance != 1 and not task.leaves_out(len(given)):
            raise UserError(
                f"sampling.{m}.guidance is {guidance}, but task {task} never leaves out"
                f" {' + '.join(given)}, which guidance needs: set"
                f" tasks.{list(tasks).index(task)}.cond_dropout above 0 (0.1), or the guidance to 1"
            )
        asked.add((given, m))


def note_pairing(lm: LM, tasks: Sequence[Task], modality_of: Mapping[str, str]) -> None:
    """Warn of every head that pairs noise with data by transport although a task gives it a
    condition. modality_of: of each field.
    """
    for task in tasks:
        m = modality_of[task.targets[-1]]
        if (
            getattr(
                getattr(lm.heads[m], "config", None) if m in lm.heads else None, "pairing", False
            )
            and task.cond_dropout < 1
            and task.inputs
        ):
            warnings.warn(
                f"{m}: pairing noise by optimal transport ties it to the condition of task {task},"
                " which sampling does not do: conditional samples will be skewed; set"
                f" model.heads.{m}.pairing to false",
                stacklevel=2,
            )


def check_bands(
    input_masking: Mapping[str, InputMasking],
    modality_of: Mapping[str, str],
    signatures: Mapping[str, Signature],
) -> None:
    """Raise UserError for bands of a field whose frames have one channel.

    modality_of: of each field.
    """
    for name, hidden in input_masking.items():
        m = modality_of[name]
        if hidden.n_freq_masks and m in signatures and signatures[m].one_channel:
            raise UserError(
                f"input_masking.{name}.n_freq_masks is {hidden.n_freq_masks}, but a frame of {m}"
                " has one channel, no bands of them: set it to 0, or use drop_prob"
            )


def note_spreads(
    lm: LM, files: Callable[[], Sequence[TokenFile]], made: Mapping[str, str], seed: int
) -> None:
    """Warn of every head whose EDM column has a sigma_data that does not fit the latents that it
    will learn, with both numbers.

    files: opens the token files, where a head needs them. made: field -> modality of the fields
    that are made.
    """
    for m, head in lm.heads.items():
        stages = (
            list(head.stages)
            if isinstance(head, CascadeHead)
            else [head] * isinstance(head, DiffusionHead)
        )
        if not any(isinstance(stage.config.schedule, EDM) for stage in stages):
            continue
        segments = list(
            _segments(files(), [f for f, modality in made.items() if modality == m], seed)
        )
        if not segments:
            continue
        if isinstance(head, CascadeHead):
            learned, groups = (
                head.pictures(torch.from_numpy(np.stack(segments))),
                torch.arange(len(segments)),
            )
        else:
            learned = [torch.from_numpy(np.concatenate(segments))]
            groups = torch.arange(len(segments)).repeat_interleave(
                torch.tensor([len(x) for x in segments])
            )
        for i, (stage, y) in enumerate(zip(stages, learned)):
            for text in (
                _complaints(stage, y, groups) if isinstance(stage.config.schedule, EDM) else ()
            ):
                warnings.warn(
                    f"{m}, stage {i}: {text}" if len(stages) > 1 else f"{m}: {text}", stacklevel=2
                )


def _segments(files: Sequence[TokenFile], fields: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    """The latents (T, D) of random segments of these fields, whole ones."""

    def places() -> Iterator[tuple[TokenFile, str, int]]:
        for file in files:
            for field in (f for f in file.fields if f in fields):
                yield from ((file, field, int(i)) for i in np.flatnonzero(file.has(field)))

    for file, field, i in random_subset(places(), N_SEGMENTS, seed):
        segment = file.segment(field, i)
        if not segment.truncated:
            yield segment.latents


def _complaints(head: DiffusionHead, y: Tensor, groups: Tensor) -> list[str]:
    """What `check_sigma_data` says of latents y (N, ...), rows of groups (N,); discrete ones spread
    as in training over their cells.
    """
    if head.levels and head.config.dequantise:
        y = y + head.levels.width * (
            torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) - 0.5
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_sigma_data(head.config.schedule, y, groups=groups)
    return [str(warning.message) for warning in caught]
