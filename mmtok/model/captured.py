"""Drawing on a GPU: a whole step is captured once as a CUDA graph, and replayed.

The step has no answer from the host in it: ids, frames, the end of a row, the next embedding and
the trunk are computed on the device from the device. The host looks at what was drawn every few
steps, and leaves out what was drawn beyond an end. The draws are those of the plain sampler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mmtok.core.segment import Document
from mmtok.heads.base import Callback
from mmtok.heads.sampling import Sampling, mix_guidance, pick
from mmtok.model.autoregressive import AutoregressiveSampler
from mmtok.model.frame_decoder import FrameDecoder
from mmtok.model.lm import LM
from mmtok.nn.compiled import can_compile
from mmtok.nn.device import constant
from mmtok.nn.fixed_step import FixedStep
from mmtok.nn.kv_cache import capacity_for

MAX_BURST = 16  # steps between two looks of the host


def make_sampler(
    lm: LM,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> AutoregressiveSampler:
    """What draws these prompts: by captured steps on a GPU, where the head can be captured."""
    modality = prompts[0].target.modality
    head = lm.head(modality)
    can_be_captured = (
        lm.device.type == "cuda"
        and callback is None
        and (head is None or head.can_be_captured)
        and sampling.precision != "int8"
        and not lm.config.trunk.odd_blocks  # whose positions are chosen on the host
        and not lm.vocabulary.signatures[modality].rows  # whose rows are counted on the host
    )
    if can_be_captured:
        return CapturedSampler(lm, prompts, sampling, generator)
    return AutoregressiveSampler(lm, prompts, sampling, generator, callback)


class DrawStep:
    """One step of drawing as operations on tensors at fixed addresses.

    N prompts; under guidance S = 2 streams each. `frames` holds what was drawn since `rewind`.

    Attributes:
        h: (S N, M) the states to draw from.
        frames: (MAX_BURST, N, 1 + C) ids and frames by step; C is 0 without a head.
    """

    def __init__(self, sampler: AutoregressiveSampler, trunk: FixedStep):
        lm = sampler.lm
        n = len(sampler.rows)
        device = lm.device
        signature = sampler.signature
        self.signature = signature
        self.sampling = sampler.sampling
        self.n_streams = sampler.n_streams
        self.decoder: FrameDecoder = sampler.decoder
        self.trunk = trunk
        self.end = len(lm.vocabulary.span(sampler.modality))
        self.limits: tuple[int, ...] = (self.end,)
        n_columns = 1
        if self.decoder.head is not None:
            self.limits = tuple(signature.levels)
            n_columns += len(signature.levels)
        self.h = torch.zeros_like(sampler.h)
        self.frames = torch.zeros(MAX_BURST, n, n_columns, dtype=torch.long, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.alive = torch.zeros(n, dtype=torch.bool, device=device)
        self.endless = torch.zeros_like(self.alive)
        self.left = torch.zeros(n, dtype=torch.long, device=device)
        self.n_seen = torch.zeros(n, dtype=torch.long, device=device)
        self.ceiling: Tensor | None = None
        if sampler.ceiling is not None:
            self.ceiling = torch.zeros_like(sampler.ceiling)
        self.totals = torch.zeros_like(sampler.totals)
        self.generator = torch.Generator(device)
        self.graph: Any = None
        self.offset_per_step = 0
        # the weights where they are now: a model that is moved takes its parameters elsewhere
        self.read = [x.detach() for x in (*trunk.weights(), *self.decoder.tensors())]

    def load(self, sampler: AutoregressiveSampler) -> None:
        """Begin with the state of a sampler that has read its prompts."""
        self.trunk.load(sampler.trunk)
        self.h.copy_(sampler.h)
        for own, value in (
            (self.alive, sampler.alive),
            (self.endless, sampler.endless),
            (self.left, sampler.left),
            (self.n_seen, sampler.n_known),
        ):
            own.copy_(torch.from_numpy(value))
        if self.ceiling is not None and sampler.ceiling is not None:
            self.ceiling.copy_(sampler.ceiling)
        self.totals.copy_(sampler.totals)
        self.generator.set_state(sampler.numbers.get_state())

    def __call__(self) -> None:
        """Draw one id and its frame for every row, and read them."""
        logits = mix_guidance(
            self.decoder.id_logits(self.h).chunk(self.n_streams), self.sampling.guidance
        )
        logits[:, self.end].masked_fill_(self.endless, float("-inf"))
        ids = pick(logits, self.sampling, self.generator)[:, None]
        values = ids
        drawn = ids
        if self.decoder.head is not None:
            hs = self.h.chunk(self.n_streams)
            values = self.decoder.head.sample(
                hs, self.sampling, self.generator, ceiling=self.ceiling
            )
            drawn = torch.cat([ids, values], 1)
        self.frames.index_copy_(0, self.slot, drawn[None])
        self.slot += 1
        goes_on = (ids[:, 0] != self.end) & self.alive
        self.left -= (self.left > 0).long()
        self.alive.copy_(goes_on & (self.left != 0))
        self._read(values)

    def _read(self, values: Tensor) -> None:
        """Read the frames just drawn (N, C) in all streams."""
        highest = constant(self.limits, values.device) - 1
        # an id that is no number is refused once the host looks
        values = torch.minimum(values, highest)
        if self.ceiling is not None:
            self.n_seen += 1
            before = (self.n_seen <= self.signature.headers)[:, None]
            self.ceiling.copy_(torch.where(before, highest, values))
        values = values.masked_fill(~self.alive[:, None], 0)
        x, totals = self.decoder.embed(values, self.totals)
        self.totals.copy_(totals)
        if self.n_streams > 1:
            x = x.repeat(self.n_streams, 1)
        self.h.copy_(self.trunk(x))

    def draw(self, n: int) -> np.ndarray:
        """What n steps draw: (n, N, 1 + C)."""
        self.slot.zero_()
        for _ in range(n):
            self._step()
        return self.frames[:n].cpu().numpy()

    def _step(self) -> None:
        """A step: the first one is done as it is, and captured then."""
        if self.graph is not None:
            self.graph.replay()
            return
        before = self.generator.get_offset() if self.h.is_cuda else 0
        self()
        if self.h.is_cuda:
            self.offset_per_step = self.generator.get_offset() - before
            self.graph = captured(self, self.generator)

    def rewind(self, n: int) -> None:
        """Give the random numbers of the last n steps back."""
        if self.h.is_cuda:
            offset = self.generator.get_offset() - n * self.offset_per_step
            self.generator.set_offset(offset)


def captured(step: Callable[[], None], generator: torch.Generator) -> torch.cuda.CUDAGraph:
    """A graph of the step, which is not done while it is captured."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    stream = _side_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            step()
        finally:  # else everything after an error would be captured too
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The stream to capture on: one, as the libraries keep memory for each."""
    return torch.cuda.Stream(device)


# LM -> what its last step was made for, and the step, unless it is in use
_kept: WeakKeyDictionary[LM, tuple[tuple, DrawStep]] = WeakKeyDictionary()


class CapturedSampler(AutoregressiveSampler):
    """The sampler's bookkeeping over steps that the device makes in bursts.

    Rows stay to the end. A burst doubles from one step to MAX_BURST, so that the first frames come
    at once.
    """

    def __init__(
        self,
        lm: LM,
        prompts: Sequence[Document],
        sampling: Sampling,
        generator: torch.Generator,
    ):
        self._waiting: deque[np.ndarray] = deque()
        self._burst = 1
        self._draw_step: DrawStep | None = None
        self._key: tuple = ()
        super().__init__(lm, prompts, replace(sampling, compiled=False), generator)
        if not self.alive.any():
            self.rows = self.rows[:0]
            return
        compiled = sampling.compiled and can_compile(lm.device)
        self._draw_step = self._prepared(compiled)
        self._draw_step.load(self)

    def _prepared(self, compiled: bool) -> DrawStep:
        """The step of the last call, where it was for equal sizes and weights; else a new one."""
        most = self.signature.frames or self.sampling.max_frames
        capacity = capacity_for(self.trunk.length + most)
        settings = replace(self.sampling, max_frames=1)
        key = (self.modality, settings, compiled, len(self.h), capacity, self.precision)
        self._key = key
        last = _kept.pop(self.lm, None)  # others that draw meanwhile make their own
        new = [*self.trunk.weights(), *self.decoder.tensors()]
        if last is not None and last[0] == key and all_equal(last[1].read, new):
            return last[1]
        fixed = FixedStep(self.lm.model, self.trunk, len(self.h), capacity, compiled)
        return DrawStep(self, fixed)

    def _draw(self) -> tuple[np.ndarray, Tensor, np.ndarray]:
        assert self._draw_step is not None
        if not self._waiting:
            n = min(self._burst, self._most_left())
            self._waiting.extend(self._draw_step.draw(n))
            self._burst = min(2 * self._burst, MAX_BURST)
        on_host = self._waiting.popleft()
        self._check_drawn(on_host, self._draw_step.end + 1)
        goes_on = (on_host[:, 0] != self._draw_step.end) & self.alive
        n_columns = max(1, on_host.shape[1] - 1)
        return goes_on, self.h, on_host[:, -n_columns:]

    def _most_left(self) -> int:
        """The most steps that there can be yet."""
        if self.signature.frames is not None:
            return int(self.left[self.alive].max())
        return self.sampling.max_frames - len(self.drawn)

    def _next_ceiling(self, values: Tensor) -> Tensor:
        assert self.ceiling is not None
        return self.ceiling  # the step has its own

    def _keep(self, alive: np.ndarray) -> Tensor | None:
        self.alive = alive
        return None

    def _finish(self) -> None:
        """Leave the caller's generator as if no step had been made too many."""
        super()._finish()
        assert self._draw_step is not None
        self._draw_step.rewind(len(self._waiting))
        self._waiting.clear()
        self.numbers.set_state(self._draw_step.generator.get_state())
        _kept[self.lm] = self._key, self._draw_step

    def _read(self, values: Tensor) -> None:
        """The step has read them."""
        self.trunk.length += 1
        self.trunk.config.check_length(self.trunk.length)


def all_equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether tensors are equal one by one; waits for the device once."""
    if len(a) != len(b):
        return False
    equal = []
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape or x.dtype != y.dtype or x.device != y.device:
            return False
        if x.data_ptr() != y.data_ptr():
            equal.append((x == y).all())
    return not equal or bool(torch.stack(equal).all())
