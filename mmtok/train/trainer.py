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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from mmtok.core.batch import Batch, pack, rows_of
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import Batches
from mmtok.errors import UserError
from mmtok.model.lm import LM, loss_sums
from mmtok.nn.compiled import missing_for_compile
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
        self.names: dict[Tensor, str] = {p: name for name, p in lm.named_parameters()}
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
        }

    # ---- one step

    def update(self) -> dict:
        """One optimiser step on the batch of this step; returns what is logged of it."""
        config = self.config
        processes = self.processes
        # dropout is a function of (seed, step, rank)
        torch.manual_seed(mixed_seed(config.seed, self.step) ^ (processes.rank << 40))
        batch = self.loader.batch(self.step, processes.rank, processes.world_size)
        frames = predicted_frames(batch, self.loader.vocabulary)
        counts = [int(batch.predict.sum()), int((batch.document >= 0).sum()), *frames.values()]
        n_predicted, positions, *n_frames = map(int, processes.all_reduce(*counts))
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, parts = self._totals(*self._accumulate(batch, n_predicted))
        if not self.sharded:  # FSDP sums them in the backward pass
            processes.sum_gradients(list(self.names))
        norm_tensor = torch.nn.utils.clip_grad_norm_(self.lm.parameters(), config.grad_clip)
        norm = float(full_tensor(norm_tensor))
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of step {self.step} is not finite (loss {loss:.4g}): "
                "train with a lower --train.learning_rate, into another --out"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            weights = {name: p for p, name in self.names.items()}
            ema_update(self.ema, weights, self.ema_decay(self.step))
        return {
            "loss": loss,
            "parts": parts,
            "norm": norm,
            "rate": rate,
            "positions": positions,
            "frames": dict(zip(frames, n_frames, strict=True)),
        }

    def _accumulate(
        self, batch: Batch, n_predicted: int
    ) -> tuple[float, dict[str, tuple[float, int]]]:
        """The backward pass of every micro-batch.

        Returns the loss, and modality -> (sum of nats, how many were predicted).
        """
        loss = 0.0
        totals: dict[str, tuple[float, int]] = {}
        if self.processes.world_size > 1:
            # a share may be short of rows, but each process must make every backward pass
            batch = with_rows(batch, self.loader.vocabulary, self.config.grad_accum_steps)
        parts_of_batch = split_rows(batch, self.loader.vocabulary, self.config.grad_accum_steps)
        for i, part in enumerate(parts_of_batch, 1):
            if self.sharded:
                sum_after_last(self.lm, i == len(parts_of_batch), self.config.replicas)
            part = part.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                nats = self.lm(part)
            total, parts = loss_sums(nats, part, self.loader.vocabulary, self.config.loss_weights)
            (total / n_predicted).backward()
            loss += float(total.detach()) / n_predicted
            for m, (x, n) in parts.items():
                nats_before, n_before = totals.get(m, (0.0, 0))
                totals[m] = (nats_before + float(x), n_before + n)
        return loss, totals

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
        with stop_signals() as stops, self.saver:
            while self.step < self.config.steps:
                start = time.perf_counter()
                done = self.update()
                self.window.append(done | {"seconds": time.perf_counter() - start})
                on_step(self.step)
                if self._is_due(self.config.log_every):
                    if self.processes.is_rank0:
                        self.log(self.gauge.line(self.step, self.window, matrix_flop_per_s))
                    self.window = []
                stop = self.processes.all_reduce(len(stops)) != [0]
                if stop or self._is_due(self.config.checkpoint_every):
                    self.saver.start(self.checkpoint())
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
