"""Train the decoder: one loop, which receives its objects and builds none but the optimiser."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mmtok.core.batch import Batch, pack, rows_of
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import Loader
from mmtok.errors import UserError
from mmtok.model.lm import LM, loss_sums
from mmtok.nn.compiled import missing_for_compile
from mmtok.nn.ema import ema_update, exponential, power
from mmtok.nn.precision import PRECISIONS, Precision, matmul_rates, resolve_precision
from mmtok.nn.weight_decay import decay_groups
from mmtok.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    precision_of,
    restore_optimizer,
    save_checkpoint,
    tidy,
)
from mmtok.train.config import TrainConfig
from mmtok.train.distributed import (
    SINGLE_PROCESS,
    Processes,
    full_tensors,
    is_sharded,
    shard_like,
    shard_model,
)
from mmtok.train.log import Gauge, matrix_rate
from mmtok.train.muon import Muon
from mmtok.train.schedule import learning_rate, replan


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, raised after the checkpoint of the current step stands."""


def make_optimizer(lm: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), or Muon; of the parameters those decay that
    `decay_groups` says.
    """
    if config.optimizer == "muon":
        return Muon(lm, lm.model.layers, config.learning_rate, config.weight_decay)
    groups = decay_groups(config.weight_decay, lm)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


class Trainer:
    """The state of a training run: decoder, optimiser, moving average, step; saved to and restored
    from checkpoints.

    log: receives one dict per `log_every` steps, of which log.py says what is in it.
    processes: who shares the work; each calls every method, with the same weights at the start. The
    first one writes.
    units_per_frame: modality -> how many of its customary unit a frame holds on average; only the
    log speaks of them.
    """

    def __init__(
        self,
        lm: LM,
        loader: Loader,
        config: TrainConfig,
        folder: Path,
        log: Callable[[dict], None],
        processes: Processes = SINGLE_PROCESS,
        units_per_frame: Mapping[str, float] = MappingProxyType({}),
    ):
        self.lm, self.loader, self.config, self.folder, self.log, self.processes = (
            lm,
            loader,
            config,
            folder,
            log,
            processes,
        )
        self.gauge = Gauge(lm, config.seq_len, units_per_frame)
        self.precision = self._precision(
            processes.device if processes.world_size > 1 else lm.device
        )
        lm.model.checkpoint_activations(config.activation_checkpointing)
        if config.compile:
            missing = missing_for_compile(lm.device)
            if missing:
                raise UserError(
                    f"--train.compile true needs {missing}, which is not installed: install it, or"
                    " train uncompiled"
                )
            lm.model.compile_blocks()
        self.sharded = config.fsdp and processes.world_size > 1
        if self.sharded:
            shard_model(lm, list(lm.model.layers), processes, self.precision)
        self.names: dict[Tensor, str] = {p: name for name, p in lm.named_parameters()}
        self.optimizer = make_optimizer(lm, config)
        self.ema = (
            {name: p.detach().clone() for p, name in self.names.items()} if config.ema_decay else {}
        )
        self.decay = power(config.ema_power) if config.ema_power else exponential(config.ema_decay)
        self.step = 0
        self.planned = [
            [0, config.steps]
        ]  # from which step on how many steps were planned; more than one where they were changed
        self.window: list[dict] = []  # the steps since the last line of the log
        self.device = next(lm.parameters()).device

    def _precision(self, device: torch.device) -> Precision:
        """What this training began with, else what it is asked for on this device; the first
        process decides for all.
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
        return PRECISIONS[int(by_rank[0])]

    def header(self) -> dict:
        """The first line of the log: in what this training computes, and on what."""
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
        """One optimiser step on the batch of this step; returns what is worth logging."""
        config, processes = self.config, self.processes
        torch.manual_seed(
            _mix(config.seed, self.step) ^ (processes.rank << 40)
        )  # dropout is a function of (seed, step, rank)
        batch = self.loader.batch(self.step, processes.rank, processes.world_size)
        frames = predicted_frames(batch, self.loader.vocabulary)
        n_predicted, positions, *n_frames = map(
            int,
            processes.all_reduce(
                int(batch.predict.sum()), int((batch.document >= 0).sum()), *frames.values()
            ),
        )
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, parts = self._totals(*self._accumulate(batch, n_predicted))
        if not self.sharded:  # where they are sharded, they are summed in the backward pass
            processes.sum_gradients(list(self.names))
        norm = torch.nn.utils.clip_grad_norm_(self.lm.parameters(), config.grad_clip)
        norm = float(norm.full_tensor() if is_sharded(norm) else norm)
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of step {self.step} is not finite (loss {loss:.4g}): "
                "train with a lower --train.learning_rate, into another --out"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema:
            ema_update(self.ema, {name: p for p, name in self.names.items()}, self.decay(self.step))
        return {
            "loss": loss,
            "parts": parts,
            "norm": norm,
            "rate": rate,
            "positions": positions,
            "frames": dict(zip(frames, n_frames)),
        }

    def _accumulate(
        self, batch: Batch, n_predicted: int
    ) -> tuple[float, dict[str, tuple[float, int]]]:
        loss, totals = 0.0, {}
        if (
            self.processes.world_size > 1
        ):  # a share may be short of rows, but each process makes every backward pass
            batch = with_rows(batch, self.loader.vocabulary, self.config.grad_accum_steps)
        for part in split_rows(batch, self.loader.vocabulary, self.config.grad_accum_steps):
            part = part.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                nats = self.lm(part)
            total, parts = loss_sums(nats, part, self.loader.vocabulary, self.config.loss_weights)
            (total / n_predicted).backward()
            loss += float(total.detach()) / n_predicted
            for m, (x, n) in parts.items():
                before = totals.get(m, (0.0, 0))
                totals[m] = (before[0] + float(x), before[1] + n)
        return loss, totals

    def _totals(
        self, loss: float, parts: dict[str, tuple[float, int]]
    ) -> tuple[float, dict[str, tuple[float, int]]]:
        """What `_accumulate` gave, summed over the processes."""
        if self.processes.world_size == 1:
            return loss, parts
        loss, *rest = self.processes.all_reduce(loss, *(x for pair in parts.values() for x in pair))
        return loss, {m: (nats, int(n)) for m, nats, n in zip(parts, rest[::2], rest[1::2])}

    # ---- many steps

    def run(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Train to the last step, checkpointing on the way.

        Ctrl-C or SIGTERM in any process: checkpoint, then Interrupted in all.
        """
        peak = (
            self.processes.all_reduce(matrix_rate(self.device))[0]
            if self.step < self.config.steps
            else 0.0
        )
        asked = []
        previous = (
            {
                s: signal.signal(s, lambda *_: asked.append(True))
                for s in (signal.SIGINT, signal.SIGTERM)
            }
            if _main_thread()
            else {}
        )
        self.lm.train()
        try:
            while self.step < self.config.steps:
                start = time.perf_counter()
                done = self.update()
                self.window.append(done | {"seconds": time.perf_counter() - start})
                on_step(self.step)
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    if self.processes.is_rank0:
                        self.log(self.gauge.line(self.step, self.window, peak))
                    self.window = []
                stop = self.processes.all_reduce(len(asked)) != [0]
                if (
                    stop
                    or self.step % self.config.checkpoint_every == 0
                    or self.step == self.config.steps
                ):
                    self.save()
                if stop and self.step < self.config.steps:
                    raise Interrupted(
                        f"stopped at step {self.step}; the same command goes on from there"
                    )
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)

    def save(self) -> None:
        """Write a checkpoint of this step, the same for any number of processes."""
        tensors = {
            "weights": self.lm.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
        }
        if self.ema:
            tensors["ema"] = self.ema
        tensors = {stem: full_tensors(named, self.processes) for stem, named in tensors.items()}
        state = {
            "step": self.step,
            "vocabulary": self.loader.vocabulary.fingerprint,
            "precision": self.precision,
            "planned": self.planned,
            "window": self.window,
        }
        self.processes.on_rank0(lambda: save_checkpoint(self.folder, Checkpoint(tensors, state)))

    def resume(self) -> bool:
        """Go on from the newest sound checkpoint, if there is one.

        What a process that was killed left beside it is removed.
        """
        checkpoint = load_checkpoint(self.folder)
        seen = self.processes.all_gather(checkpoint.state["step"] if checkpoint else -1)
        if len(set(seen)) > 1:
            raise UserError(
                f"the processes see different checkpoints in {self.folder}: it must be on a file"
                " system that all of them share"
            )
        if checkpoint is None:
            return False
        self.loader.vocabulary.check(
            checkpoint.state["vocabulary"], f"the checkpoint in {self.folder}"
        )
        like = self.lm.state_dict()
        self.lm.load_state_dict(
            {
                k: shard_like(x, like[k]) if k in like else x
                for k, x in checkpoint.tensors["weights"].items()
            }
        )
        restore_optimizer(self.optimizer, self.names, checkpoint.tensors["optimizer"])
        for name, value in checkpoint.tensors.get("ema", {}).items():
            self.ema[name].copy_(shard_like(value, self.ema[name]))
        self.step, self.window = checkpoint.state["step"], checkpoint.state.get("window", [])
        self.planned = replan(
            checkpoint.state.get("planned", self.planned), self.step, self.config.steps
        )
        self.processes.on_rank0(lambda: tidy(self.folder, self.step))
        return True

    def weights(self) -> dict[str, Tensor]:
        """What the run keeps: the moving average where there is one.

        Sharded, it is gathered in the first process.
        """
        return full_tensors({**self.lm.state_dict(), **self.ema}, self.processes)


def predicted_frames(batch: Batch, vocabulary: Vocabulary) -> dict[str, int]:
    """Modality -> how many of its frames are predicted, end marks not counted."""
    spans = {m: vocabulary.span(m) for m in vocabulary.signatures}
    return {
        m: int((batch.predict & (batch.ids >= span[0]) & (batch.ids <= span[-1])).sum())
        for m, span in spans.items()
    }


def split_rows(batch: Batch, vocabulary: Vocabulary, n: int) -> list[Batch]:
    """The batch as n batches of fewer rows; their sums add up to the batch's."""
    if n == 1:
        return [batch]
    return [rows_of(batch, vocabulary, slice(i, None, n)) for i in range(n)]


def with_rows(batch: Batch, vocabulary: Vocabulary, n: int) -> Batch:
    """The batch with rows of padding added until it has n."""
    if len(batch.ids) >= n:
        return batch
    padding = pack(vocabulary, [[]] * (n - len(batch.ids)), batch.ids.shape[1])
    return replace(
        batch,
        **{
            name: torch.cat([x, getattr(padding, name)])
            for name, x in vars(batch).items()
            if isinstance(x, Tensor)
        },
    )


def _mix(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
