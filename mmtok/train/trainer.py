"""The training loop of the decoder.

It receives its objects and builds none but the optimiser. Checkpoints are written by
`Trainer.save`, into RUN/checkpoints (see checkpoint.py).
"""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from mmtok.core.batch import Batch, pack, rows_of, with_index
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.feed import Feed
from mmtok.data.loader import Batches
from mmtok.errors import UserError
from mmtok.io.serialize import from_plain, to_plain
from mmtok.model.embedder import n_vectors
from mmtok.model.lm import LM
from mmtok.model.origin import Origin
from mmtok.model.position_nll import loss_sums
from mmtok.nn.compiled import missing_for_compile
from mmtok.nn.device import Reading, sum_dtype
from mmtok.nn.ema import ema_update, exponential, power
from mmtok.nn.precision import PRECISIONS, Precision, matmul_rates, resolve_precision
from mmtok.nn.sharded import full_tensor
from mmtok.nn.weight_decay import decay_groups
from mmtok.train.checkpoint import (
    Checkpoint,
    Found,
    empty_state,
    find_checkpoint,
    optimizer_tensors,
    precision_of,
    tidy,
)
from mmtok.train.config import TrainConfig
from mmtok.train.distributed import SINGLE_PROCESS, Processes, shard_model, sum_after_last
from mmtok.train.log import Gauge, matrix_rate
from mmtok.train.muon import Muon
from mmtok.train.saver import Saver
from mmtok.train.schedule import learning_rate, replan
from mmtok.train.shards import names_in, read_into


@dataclass(frozen=True, eq=False)
class Work:
    """What a step reads: its micro-batches, and counts over all of them."""

    parts: list[Batch]
    n_predicted: int
    n_vectors: int
    positions: int
    frames: dict[str, int]


@dataclass(frozen=True, eq=False)
class Launched:
    """A step that the device may not have done yet.

    Attributes:
        step: its number.
        figures: the norm of the gradient, the loss, and the nats of each modality.
        counts: modality -> how many were predicted.
        rate: the learning rate.
        positions: without padding.
        frames: modality -> its predicted frames.
    """

    step: int
    figures: Reading
    counts: dict[str, int]
    rate: float
    positions: int
    frames: dict[str, int]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in training, raised once the checkpoint of the current step is written."""


def make_optimizer(lm: LM, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), or Muon; `decay_groups` says what decays."""
    if config.optimizer == "muon":
        return Muon(lm, lm.model.layers, config.learning_rate, config.weight_decay)
    groups = decay_groups(config.weight_decay, lm)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


class Trainer:
    """The state of a training: decoder, optimiser, moving average, step.

    It is saved to and restored from checkpoints in `folder`.

    log: called with one line per `log_every` steps, see log.py.
    processes: those that share the work. Each calls every method, with the same weights at the
    start; rank 0 writes.
    units_per_frame: modality -> how many of its customary unit a frame holds on average, for the
    log.
    initialise: gives a decoder on the meta device its first values, when its weights are sharded
    and each process has memory for its part; or any decoder other ones than it has.
    """

    def __init__(
        self,
        lm: LM,
        loader: Batches,
        config: TrainConfig,
        folder: Path,
        log: Callable[[dict], None],
        processes: Processes = SINGLE_PROCESS,
        units_per_frame: Mapping[str, float] = MappingProxyType({}),
        initialise: Callable[[], None] | None = None,
    ):
        self.lm = lm
        self.loader = loader
        self.config = config
        self.folder = folder
        self.log = log
        self.processes = processes
        self.saver = Saver(folder, processes)
        self.gauge = Gauge(lm, config.seq_len, units_per_frame)
        device = lm.device
        if processes.world_size > 1:
            device = processes.device
        self.precision = self._precision(device)
        lm.model.checkpoint_activations(config.activation_checkpointing)
        if config.compile:
            missing = missing_for_compile(device)
            if missing:
                raise UserError(
                    f"--train.compile true needs {missing}, which is not installed: install it, or"
                    " train uncompiled"
                )
            lm.model.compile_blocks()
        self.sharded = config.fsdp and processes.world_size > 1
        if self.sharded:
            shard_model(lm, list(lm.model.layers), processes, self.precision, config.replicas)
            if lm.device.type == "meta":
                lm.to_empty(device=device)
        if initialise is not None:
            initialise()
        self.names: dict[Tensor, str] = {
            p: name for name, p in lm.named_parameters() if p.requires_grad
        }
        self.optimizer = make_optimizer(lm, config)
        self.ema: dict[str, Tensor] = {}
        if config.ema_decay:
            self.ema = {name: p.detach().clone() for p, name in self.names.items()}
        self.ema_decay = exponential(config.ema_decay)
        if config.ema_power:
            self.ema_decay = power(config.ema_power)
        self.step = 0
        # [from_step, steps]: plans of the number of steps; several where it was changed
        self.planned = [[0, config.steps]]
        self.window: list[dict] = []  # the steps since the last line of the log
        self.device = next(lm.parameters()).device
        on_gpu = self.device.type == "cuda"
        # several processes meet in every step anyway
        self.steps_ahead = int(on_gpu and processes.world_size == 1)
        self.feed = Feed(self._work, ahead=on_gpu and loader.is_pure)

    def _precision(self, device: torch.device) -> Precision:
        """The precision that this training began with, else the configured one for this device.

        Rank 0 decides for all.
        """
        began = precision_of(self.folder)
        chosen = resolve_precision(self.config.precision, device)
        if began is not None and chosen != began and self.processes.is_rank0:
            warnings.warn(
                f"this training began in {began} and stays with it; this machine would choose"
                f" {chosen} ({matmul_rates(device)})",
                stacklevel=2,
            )
        by_rank = self.processes.all_gather(PRECISIONS.index(began or chosen))
        return cast(Precision, PRECISIONS[int(by_rank[0])])

    def header(self) -> dict:
        """The first line of the log: the precision, and what the training runs on."""
        return {
            "precision": self.precision,
            "asked": self.config.precision,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "processes": self.processes.world_size,
            "torch": torch.__version__,
            **self._origin(),
        }

    def _origin(self) -> dict:
        """Which run's weights the decoder began with, where it did."""
        if self.lm.origin is None:
            return {}
        return {"start": to_plain(self.lm.origin)}

    # ---- one step

    def update(self) -> dict:
        """One optimiser step on the batch of this step; returns what is logged of it."""
        return self._result(self._launch())

    def _launch(self) -> Launched:
        """Give the device one optimiser step to do, without waiting for it."""
        config = self.config
        processes = self.processes
        # dropout is a function of (seed, step, rank)
        torch.manual_seed(mixed_seed(config.seed, self.step) ^ (processes.rank << 40))
        work = self.feed.work(self.step)
        counts = processes.all_reduce(
            work.n_predicted, work.n_vectors, work.positions, *work.frames.values()
        )
        n_predicted, n_documents, positions, *n_frames = map(int, counts)
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums, counted = self._accumulate(work.parts, n_predicted, n_documents, positions)
        if not self.sharded:  # FSDP sums them in the backward pass
            processes.sum_gradients(list(self.names))
        norm = torch.nn.utils.clip_grad_norm_(self.lm.parameters(), config.grad_clip)
        figures = Reading(torch.cat([full_tensor(norm).to(sums)[None], sums]))
        if not self.steps_ahead:
            self._check(self.step, figures)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            weights = {name: p for p, name in self.names.items()}
            ema_update(self.ema, weights, self.ema_decay(self.step))
        return Launched(
            step=self.step - 1,
            figures=figures,
            counts=counted,
            rate=rate,
            positions=positions,
            frames=dict(zip(work.frames, n_frames, strict=True)),
        )

    def _result(self, launched: Launched) -> dict:
        """What is logged of a step, once the device has done it."""
        self._check(launched.step, launched.figures)
        norm, loss, *nats = launched.figures.numbers()
        by_modality = zip(launched.counts.items(), nats, strict=True)
        parts = {m: (x, n) for (m, n), x in by_modality}
        loss, parts = self._totals(loss, parts)
        return {
            "loss": loss,
            "parts": parts,
            "norm": norm,
            "rate": launched.rate,
            "positions": launched.positions,
            "frames": launched.frames,
        }

    def _check(self, step: int, figures: Reading) -> None:
        """Raise UserError for a gradient that is not finite.

        Where steps are read later the weights are lost then, but none such are ever saved.
        """
        norm, loss, *_ = figures.numbers()
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of step {step} is not finite (loss {loss:.4g}): "
                "train with a lower --train.learning_rate, into another --out"
            )

    def _work(self, step: int) -> Work:
        """A step's micro-batches and counts, made on the host."""
        vocabulary = self.loader.vocabulary
        processes = self.processes
        batch = self.loader.batch(step, processes.rank, processes.world_size)
        frames = predicted_frames(batch, vocabulary)
        n_predicted = int(batch.predict.sum())
        positions = int((batch.document >= 0).sum())
        if processes.world_size > 1:
            # a share may be short of rows, but each process must make every backward pass
            batch = with_rows(batch, vocabulary, self.config.grad_accum_steps)
        parts = split_rows(batch, vocabulary, self.config.grad_accum_steps)
        parts = [with_index(part, vocabulary) for part in parts]
        if self.device.type == "cuda":
            parts = [part.pin_memory() for part in parts]
        return Work(parts, n_predicted, n_vectors(batch), positions, frames)

    def _accumulate(
        self,
        batches: Sequence[Batch],
        n_predicted: int,
        n_documents: int = 0,
        positions: int = 0,
    ) -> tuple[Tensor, dict[str, int]]:
        """The backward pass of every micro-batch.

        n_predicted, n_documents, positions: positions that are predicted, documents that become
        vectors, and positions without padding, over all micro-batches and processes; 0 positions
        are those of these batches.

        Returns the loss and the sum of nats of each modality, as one tensor on the device, and
        modality -> how many were predicted.
        """
        counts = dict.fromkeys(self.loader.vocabulary.signatures, 0)
        sums = torch.zeros(1 + len(counts), dtype=sum_dtype(self.device), device=self.device)
        read = [int((batch.document >= 0).sum()) for batch in batches]
        for i, batch in enumerate(batches, 1):
            self.lm.model.share_batch(read[i - 1] / max(1, positions or sum(read)))
            if self.sharded:
                sum_after_last(self.lm, i == len(batches), self.config.replicas)
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                nats = self.lm(batch)
            weights = self.config.loss_weights
            total, parts = loss_sums(nats, batch, self.loader.vocabulary, weights)
            mean = total / max(1, n_predicted)
            loss = total.detach().to(sums) / max(1, n_predicted)
            if nats.contrast is not None:
                contrast = self._contrast_weight(n_documents) * nats.contrast
                mean = mean + contrast
                loss = loss + contrast.detach().to(sums)
            mean.backward()
            sums += torch.stack([loss, *(x.to(sums) for x, _ in parts.values())])
            for m, (_, n) in parts.items():
                counts[m] += n
        return sums, counts

    def _contrast_weight(self, n_documents: int) -> float:
        """What the sum of the contrastive loss over documents is multiplied by."""
        embedding = self.lm.config.embedding
        assert embedding is not None
        return embedding.loss_weight / max(1, n_documents)

    def _totals(
        self, loss: float, parts: dict[str, tuple[float, int]]
    ) -> tuple[float, dict[str, tuple[float, int]]]:
        """The results of `_accumulate`, summed over the processes."""
        if self.processes.world_size == 1:
            return loss, parts
        loss, *rest = self.processes.all_reduce(loss, *(x for pair in parts.values() for x in pair))
        sums = zip(parts, rest[::2], rest[1::2], strict=True)
        return loss, {m: (nats, int(n)) for m, nats, n in sums}

    # ---- many steps

    def run(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Train to the last step, and write checkpoints.

        on_step: called with the number of steps after each.

        After Ctrl-C or SIGTERM in any process, writes a checkpoint and raises Interrupted in all.
        """
        matrix_flop_per_s = 0.0
        if self.step < self.config.steps:
            matrix_flop_per_s = self.processes.all_reduce(matrix_rate(self.device))[0]
        self.lm.train()
        with stop_signals() as stops, self.feed, self.saver:
            self._loop(on_step, stops, matrix_flop_per_s)

    def _loop(
        self, on_step: Callable[[int], None], stops: list[int], matrix_flop_per_s: float
    ) -> None:
        """As `run`. The device does one step while the host prepares the next."""
        launched: deque[Launched] = deque()
        since = time.perf_counter()

        def read(n_left: int) -> None:
            """Read steps until so many are left."""
            nonlocal since
            while len(launched) > n_left:
                done = self._result(launched.popleft())
                now = time.perf_counter()
                self.window.append(done | {"seconds": now - since})
                since = now

        while self.step < self.config.steps:
            launched.append(self._launch())
            read(self.steps_ahead)
            on_step(self.step)
            is_logged = self._is_due(self.config.log_every)
            if is_logged:
                read(0)
                if self.processes.is_rank0:
                    self.log(self.gauge.line(self.step, self.window, matrix_flop_per_s))
                self.window = []
            stop = self.processes.all_reduce(len(stops)) != [0]
            is_saved = stop or self._is_due(self.config.checkpoint_every)
            if is_saved:
                read(0)
                self.saver.start(self.checkpoint())
            if is_logged or is_saved:
                since = time.perf_counter()
            if stop and self.step < self.config.steps:
                raise Interrupted(
                    f"stopped at step {self.step}; the same command goes on from there"
                )

    def _is_due(self, every: int) -> bool:
        """Whether this step is one of every so many, or the last."""
        return self.step % every == 0 or self.step == self.config.steps

    def save(self) -> None:
        """Write a checkpoint of this step, and wait for it."""
        self.saver.start(self.checkpoint())
        self.saver.wait()

    def checkpoint(self) -> Checkpoint:
        """What this step can be resumed from; of sharded tensors this process's part."""
        tensors = {
            "weights": self.lm.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        if self.ema:
            tensors["ema"] = self.ema
        state = {
            "step": self.step,
            "vocabulary": self.loader.vocabulary.fingerprint,
            "precision": self.precision,
            "planned": self.planned,
            "window": self.window,
            **self._origin(),
        }
        return Checkpoint(tensors, state)

    def resume(self) -> bool:
        """Restore the newest sound checkpoint; returns whether there is one.

        Files that a killed process left half-written are removed. Raises UserError when the
        processes see different checkpoints, or none that stand can be read.
        """
        found = find_checkpoint(self.folder, self.processes)
        if found is None:
            return False
        state = found.state
        self.loader.vocabulary.check(state["vocabulary"], f"the checkpoint in {self.folder}")
        try:
            self._read(found)
        except (ValueError, LookupError) as error:
            raise UserError(
                f"the checkpoint of step {state['step']} in {self.folder} cannot be loaded"
                f" ({error}): it was not made from this recipe"
            ) from None
        self.step = state["step"]
        self.window = state.get("window", [])
        if "start" in state:
            self.lm.origin = from_plain(state["start"], Origin, "start")
        planned = state.get("planned", self.planned)
        self.planned = replan(planned, self.step, self.config.steps)
        self.processes.on_rank0(lambda: tidy(self.folder, self.step))
        return True

    def _read(self, found: Found) -> None:
        """Read the tensors of a checkpoint into this training's own."""
        read_into(found.files["weights"], self.lm.state_dict())
        kept = found.files["optimizer"]
        read_into(kept, empty_state(self.optimizer, self.names, names_in(kept)))
        read_into(found.files.get("ema", ()), self.ema)

    def weights(self) -> dict[str, Tensor]:
        """The weights that the run keeps: the moving average where there is one."""
        return {**self.lm.state_dict(), **self.ema}


def predicted_frames(batch: Batch, vocabulary: Vocabulary) -> dict[str, int]:
    """Modality -> how many of its frames are predicted, end marks not counted."""
    spans = {m: vocabulary.span(m) for m in vocabulary.signatures}
    counts = {}
    for m, span in spans.items():
        inside = (batch.ids >= span[0]) & (batch.ids <= span[-1])
        counts[m] = int((batch.predict & inside).sum())
    return counts


def split_rows(batch: Batch, vocabulary: Vocabulary, n: int) -> list[Batch]:
    """Split a batch into n micro-batches."""
    if n == 1:
        return [batch]
    return [rows_of(batch, vocabulary, slice(i, None, n)) for i in range(n)]


def with_rows(batch: Batch, vocabulary: Vocabulary, n: int) -> Batch:
    """Add rows of padding until the batch has n rows."""
    if len(batch.ids) >= n:
        return batch
    padding = pack(vocabulary, [[]] * (n - len(batch.ids)), batch.ids.shape[1])
    padding = replace(padding, group=padding.document, field=padding.document)  # -1
    padded: dict[str, Any] = {
        name: torch.cat([x, getattr(padding, name)])
        for name, x in vars(batch).items()
        if isinstance(x, Tensor)
    }
    return replace(batch, **padded)


def mixed_seed(seed: int, step: int) -> int:
    """The seed of a step of a training with this seed."""
    return (seed * 1_000_003 + step) % 2**63


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of raising; only the main thread can."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {s: signal.signal(s, receive) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
