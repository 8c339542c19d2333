"""Sampling: continue prompts frame by frame with a cache, under the grammar, until their segments
end or reach the cap.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, segment_of
from mmtok.errors import UserError
from mmtok.heads.cascade import CascadeHead
from mmtok.model.frame_decoder import FrameDecoder
from mmtok.model.lm import LM, evaluating
from mmtok.model.non_autoregressive import draw_whole
from mmtok.model.sampling import (
    ROUNDED,
    Sampled,
    Sampling,
    draw,
    mix_guidance,
    pick,
    weight_precision,
)
from mmtok.nn.kv_cache import KVCacheDecoder

__all__ = [
    "Sampled",
    "Sampling",
    "draw",
    "fill_holes",
    "generate",
    "mix_guidance",
    "pick",
    "stream",
]


def generate(
    lm: LM,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    on_frames: Callable[[np.ndarray, np.ndarray], None] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> list[Sampled]:
    """Continue open documents, all to the same modality, as one batch.

    prompts: documents with `open_end`; the last segment holds the frames known so far (T0 may be
    0).
    generator: on the model's device. on_frames: called after every step with the rows (n,) that got
    a frame and the frames (n, C), for streaming. watch: where a head draws in steps, is given every
    step's number, from 0, and what it left: of heads that draw whole segments these, as of
    `draw_whole`; of latents drawn frame by frame the next frame (N, 1, D), once per frame and step,
    NaN where a prompt gets none any more. Raises UserError for an input-only modality and for a
    dial that does not apply, ValueError for prompts that are not such.
    """
    if not prompts:
        return []
    modality = _checked(lm, prompts, sampling)
    if lm.draws_whole(modality):
        return draw_whole(lm, modality, prompts, sampling, generator, callback)
    with evaluating(lm), torch.inference_mode():
        walk = _Walk(lm, prompts, sampling, generator, callback)
        while len(walk.rows):
            rows, frames = walk.step()
            if on_frames is not None and len(rows):
                on_frames(rows, frames)
    return walk.results()


def stream(
    lm: LM, prompts: Sequence[Document], sampling: Sampling, generator: torch.Generator
) -> Generator[tuple[np.ndarray, np.ndarray], None, list[Sampled]]:
    """`generate` as an iterator: after every step the rows (n,) that got a frame and the frames (n,
    C); at the end it returns the samples.

    The next step is made when it is asked for. A row that got no frame is done. What a head draws
    as a whole comes frame by frame too, but only once it is all there. Raises ValueError for
    prompts with holes, whose frames would not come in their order.
    """
    if not prompts:
        return []
    modality, known = (
        _checked(lm, prompts, sampling),
        np.array([len(p.segments[-1]) for p in prompts]),
    )
    if any(p.segments[-1].holes for p in prompts):
        raise ValueError("what fills holes cannot be streamed")
    if lm.draws_whole(modality):
        drawn = draw_whole(lm, modality, prompts, sampling, generator)
        for t in range(known.min(), max(len(d.segment) for d in drawn)):
            rows = np.flatnonzero(known <= t)
            yield rows, np.stack([drawn[row].segment.values[t] for row in rows])
        return drawn
    with evaluating(lm), torch.inference_mode():
        walk = _Walk(lm, prompts, sampling, generator)
    while len(walk.rows):
        with evaluating(lm), torch.inference_mode():  # not while whoever asked has its turn
            rows, frames = walk.step()
        if len(rows):
            yield rows, segment_of(walk.signature, frames).values
    return walk.results()


def _checked(lm: LM, prompts: Sequence[Document], sampling: Sampling) -> str:
    """The modality that all prompts ask for, once it is sure that it can be drawn so."""
    modality = _check(lm, prompts)
    if sampling.aug_noise is not None and not isinstance(
        lm.heads[modality] if modality in lm.heads else None, CascadeHead
    ):
        raise UserError(f"{modality} is not drawn by a cascade; leave out level")
    _check_sampling(lm, modality, sampling)
    return modality


def _check(lm: LM, prompts: Sequence[Document]) -> str:
    """The modality that all prompts ask for."""
    last = [p.segments[-1] if p.open_end and p.segments else None for p in prompts]
    if None in last or len({s.modality for s in last}) != 1:
        raise ValueError("prompts must be open, and their last segments of one modality")
    for p, s in zip(prompts, last):
        if (
            s.holes
            and not lm.draws_whole(s.modality)
            and not (p.n_filled < len(s.holes) and all(a == b for a, b in s.holes[p.n_filled :]))
        ):
            raise ValueError(
                f"holes to fill must be empty spans, and one must be left; got {s.holes},"
                f" {p.n_filled} of them filled"
            )
    modality = last[0].modality
    if modality not in lm.vocabulary.signatures:
        raise UserError(
            f"modality {modality!r} is not in this model, which has"
            f" {', '.join(lm.vocabulary.signatures)}"
        )
    if not lm.vocabulary.signatures[modality].one_channel and modality not in lm.heads:
        raise UserError(
            f"the model has no head for {modality}: it reads {modality} but cannot make it"
        )
    return modality


def _check_sampling(lm: LM, modality: str, sampling: Sampling) -> None:
    """Raise UserError for a dial that what draws this modality does not have."""
    latents = bool(lm.vocabulary.signatures[modality].latent_size)
    if latents and (sampling.top_k or sampling.top_p < 1):
        raise UserError(
            f"{modality} is drawn by diffusion, which knows no top_k or top_p; use the temperature"
        )
    if latents and (sampling.compiled or sampling.precision in ROUNDED):
        raise UserError(
            f"{modality} is drawn by diffusion: its head cannot be compiled or rounded; leave out"
            " compiled and precision"
        )
    if sampling.steps and not latents and not lm.draws_whole(modality):
        raise UserError(f"{modality} is drawn code by code, not in steps; leave out steps")


class _Walk:
    """The state of one batch of streams being drawn: n rows; under guidance as many null rows
    follow them.

    Bookkeeping is the host's, in numpy, so that a step waits for the device once. Rows that are
    done stay along, unheeded, until
    an eighth of all are: to drop a row costs a copy of the whole cache.
    """

    def __init__(
        self,
        lm: LM,
        prompts: Sequence[Document],
        sampling: Sampling,
        generator: torch.Generator,
        callback: Callable[[int, Tensor], None] | None = None,
    ):
        self.lm, self.sampling, self.generator, self.prompts, self.callback = (
            lm,
            sampling,
            generator,
            prompts,
            callback,
        )
        self.modality = _check(lm, prompts)
        self.signature = lm.vocabulary.signatures[self.modality]
        self.n_streams = 1 if sampling.guidance == 1 else 2
        documents = list(prompts)
        if self.n_streams == 2:
            documents += [
                replace(p, segments=(None,) * (len(p.segments) - 1) + p.segments[-1:])
                for p in prompts
            ]
        self.precision = (
            "float32"
            if self.signature.latent_size
            else weight_precision(sampling.precision, lm.model.norm.weight)
        )
        self.writer = FrameDecoder(lm, self.modality, self.precision, len(documents))
        self._prefill(documents)
        known = [p.segments[-1] for p in prompts]
        self.rows = np.arange(len(prompts))  # the prompt that each row continues
        self.left = np.array(
            [-1 if self.signature.frames is None else self.signature.frames - len(s) for s in known]
        )  # -1: open-ended
        later_holes = np.array([len(s.holes) - p.n_filled > 1 for p, s in zip(prompts, known)])
        self.endless = (self.left >= 0) & ~later_holes  # the end is certain, so it is not drawn
        self.drawn: list[
            tuple[np.ndarray, np.ndarray]
        ] = []  # per step the prompts that got a frame, and the frames
        self.states: list[
            Tensor
        ] = []  # of latents that are watched: what each step of a frame's own walk left, (n, D)
        self.stop = ["end"] * len(prompts)
        self.n_known = np.array([len(s) for s in known])
        self.ceiling = (
            None  # the highest legal next frame (n, C), where frames are a set in falling order
        )
        if self.signature.descending:
            self.ceiling = torch.from_numpy(
                np.stack([self.signature.ceilings(s.codes)[-1] for s in known])
            ).to(lm.device)
        inner = lm.frame_in[self.modality] if self.modality in lm.frame_in else None
        self.totals = (
            None
            if inner is None
            else torch.stack(
                [inner.totals(torch.as_tensor(s.codes, device=lm.device).long()) for s in known]
            )
        )
        self._keep(self.left != 0)  # where no frame is left to place, the end is certain

    def _prefill(self, documents: Sequence[Document]) -> None:
        """Read all prompts at once; they end together, so that shorter ones begin later."""
        streams = [to_stream(self.lm.vocabulary, d) for d in documents]
        batch = pack(self.lm.vocabulary, [[s] for s in streams]).to(self.lm.device)
        x = self.lm.embed(batch)
        start = x.shape[1] - torch.tensor([len(s) for s in streams], device=x.device)
        slot = (torch.arange(x.shape[1], device=x.device) - start[:, None]).clamp(min=0)
        most = self.signature.frames or self.sampling.max_frames
        slots = x.shape[1] + most if self.sampling.compiled else None
        self.reader = KVCacheDecoder(self.lm.model, self.precision, start, len(streams), slots)
        self.h = self.reader.forward(x[torch.arange(len(x), device=x.device)[:, None], slot])[:, -1]

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw one id, and its frame, for every alive row; returns the prompts' rows that got a
        frame, and the frames.
        """
        goes_on, values, frames = self._draw()
        rows, frames = self.rows[goes_on], frames[goes_on]
        self.drawn.append((rows, frames))
        if self.states and len(rows):
            self._tell(rows, goes_on)
        self.left = self.left - (self.left > 0)
        alive = goes_on & (self.left != 0)
        if self.signature.frames is None and len(self.drawn) == self.sampling.max_frames:
            for r in rows:
                self.stop[r] = "cap"
            alive[:] = False
        if self.ceiling is not None:
            self.ceiling = self._next_ceiling(values)
        if alive.any():
            kept = self._keep(alive)
            self._read(values if kept is None else values[kept])
        else:
            self.rows = self.rows[:0]
        return rows, frames

    def _draw(self) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Which rows go on (n,), and the frames (n, C) on the device and on the host; those of the
        other rows mean nothing.
        """
        end = len(self.lm.vocabulary.span(self.modality))
        mix = lambda x: mix_guidance(x, self.sampling.guidance)
        pick_ids = lambda x: pick(x, self.sampling, self.generator)
        logits = mix(list(self.writer.id_logits(self.h).chunk(self.n_streams)))
        if self.endless.all():
            logits = logits[:, :end]
        elif self.endless.any():
            logits[:, end].masked_fill_(
                torch.from_numpy(self.endless).to(logits.device), float("-inf")
            )
        ids = values = pick_ids(logits)[:, None]
        hs = list(self.h.chunk(self.n_streams))
        if self.writer.latents:
            s, shape, self.states = self.sampling, (self.signature.latent_size,), []
            seen = None if self.callback is None else lambda _, x: self.states.append(x)
            values = self.writer.head.draw(
                hs, shape, s.steps, s.temperature, s.guidance, self.generator, seen
            ).to(self.h.dtype)
        elif self.writer.head is not None:
            values = self.writer.head.sample(hs, mix, pick_ids, self.ceiling)
        told = (
            (
                ids
                if values is ids
                else (
                    torch.cat([ids, values], 1)
                    if not self.writer.latents
                    else torch.cat([ids.double(), values], 1)
                )
            )
            .cpu()
            .numpy()
        )
        if (
            told[:, : 1 + len(self.signature.levels)]
            >= (logits.shape[1], *(() if values is ids else self.signature.levels))
        ).any():
            raise UserError(
                f"the model's {self.modality} logits are not numbers: its weights have overflowed;"
                " train with a lower learning rate"
            )
        return (told[:, 0] != end) & self.alive, values, told[:, -values.shape[1] :]

    def _next_ceiling(self, values: Tensor) -> Tensor:
        """The frames just drawn (n, C), or no bound where the order begins only after the next
        frame.
        """
        before = self.n_known[self.rows] + len(self.drawn) <= self.signature.headers
        if not before.any():
            return values
        highest = torch.tensor(self.signature.levels, device=values.device) - 1
        return torch.where(torch.from_numpy(before).to(values.device)[:, None], highest, values)

    def _tell(self, rows: np.ndarray, goes_on: np.ndarray) -> None:
        """Tell who watches of the frame just drawn; only now it is known who got one."""
        states = torch.stack(self.states)  # (steps, n, D)
        told = states.new_full((len(states), len(self.prompts), 1, states.shape[-1]), float("nan"))
        rows, goes_on = (torch.from_numpy(x).to(states.device) for x in (rows, goes_on))
        told[:, rows, 0] = states[:, goes_on]
        for step, frames in enumerate(told):
            self.callback(step, frames)

    def _keep(self, alive: np.ndarray) -> Tensor | None:
        """Note which rows go on; drop the others, and their null rows, once it is worth it.

        Returns the rows kept if any were dropped.
        """
        self.alive = alive
        kept = alive.nonzero()[0]
        if (
            len(kept) > 7 / 8 * len(alive) or self.reader.compiled is not None and len(kept)
        ):  # a compiled step has one size
            return None
        self.rows, self.left, self.endless, self.alive = (
            self.rows[kept],
            self.left[kept],
            self.endless[kept],
            alive[kept],
        )
        n, kept = len(alive), torch.from_numpy(kept).to(self.h.device)
        streams = torch.cat([kept + k * n for k in range(self.n_streams)])
        self.reader.select(streams)
        self.h = self.h[streams]
        self.ceiling = None if self.ceiling is None else self.ceiling[kept]
        self.totals = None if self.totals is None else self.totals[kept]
        return kept

    def _read(self, values: Tensor) -> None:
        """Feed the frames just drawn (n, C) to both streams."""
        if not self.alive.all():
            values = values.masked_fill(~torch.from_numpy(self.alive).to(values.device)[:, None], 0)
        x, self.totals = self.writer.embed(values, self.totals)
        x = x.repeat(self.n_streams, 1) if self.n_streams > 1 else x
        self.h = self.reader.forward(x[:, None])[:, 0]

    def results(self) -> list[Sampled]:
        """One sampled segment per prompt.

        In a prompt with holes the new frames go into the hole being filled.
        """
        done = []
        for prompt, new, stop in zip(self.prompts, self._frames(), self.stop):
            known = prompt.segments[-1]
            at = known.holes[prompt.n_filled][0] if known.holes else len(known)
            k, n = prompt.n_filled, len(new)
            holes = tuple(
                (a + n * (i > k), b + n * (i >= k)) for i, (a, b) in enumerate(known.holes)
            )
            values = np.concatenate([known.values[:at], new, known.values[at:]])
            done.append(
                Sampled(
                    segment_of(
                        self.signature, values, truncated=stop == "cap" and not holes, holes=holes
                    ),
                    stop,
                )
            )
        return done

    def _frames(self) -> list[np.ndarray]:
        """Per prompt the frames drawn for it (T, C)."""
        nothing = np.zeros(0, np.int64), segment_of(self.signature).values
        rows, frames = (np.concatenate(x) for x in zip(nothing, *self.drawn))
        return np.split(
            frames[rows.argsort(kind="stable")],
            np.bincount(rows, minlength=len(self.prompts)).cumsum()[:-1],
        )


def fill_holes(
    lm: LM,
    prompts: Sequence[Document],
    sampling: Sampling,
    generator: torch.Generator,
    callback: Callable[[int, Tensor], None] | None = None,
) -> list[Sampled]:
    """Fill every hole of the last segments, in order.

    Holes given as empty spans (a, a); all prompts have as many of them.

    The stop reason is "cap" where any hole reached it. watch: as of `generate`, of one hole after
    another. Raises ValueError when prompts differ in their number of holes.
    """
    if prompts and lm.draws_whole(prompts[0].segments[-1].modality):
        return generate(lm, prompts, sampling, generator, callback=callback)
    open_holes = {len(p.segments[-1].holes) - p.n_filled for p in prompts}
    if len(open_holes) != 1 or 0 in open_holes:
        raise ValueError(
            "prompts must all have the same number of holes, at least one; got"
            f" {sorted(open_holes)}"
        )
    results: list[Sampled] = []
    for _ in range(open_holes.pop()):
        before, results = results, generate(lm, prompts, sampling, generator, callback=callback)
        results = [
            replace(r, stop="cap") if b.stop == "cap" else r
            for r, b in zip(results, before or results)
        ]
        prompts = [
            replace(p, segments=(*p.segments[:-1], r.segment), n_filled=p.n_filled + 1)
            for p, r in zip(prompts, results)
        ]
    return results
