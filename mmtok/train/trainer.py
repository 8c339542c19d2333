"""Train the decoder: one loop, which receives its objects and builds none but the optimiser."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from mmtok.core.batch import Batch, pack, rows_of
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.loader import Loader
from mmtok.errors import UserError
from mmtok.model.lm import LM, loss_sums
from mmtok.nn.compiled import lacking
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
from mmtok.train.distributed import ALONE, Processes, is_sharded, part_of, shard, whole
from mmtok.train.log import Gauge, matrix_rate
from mmtok.train.muon import Muon

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainConfig:
    """The budget is stated in steps of rows x seq_len positions.

    optimizer      "adamw", or "muon": the trunk's matrices by Muon, all else by AdamW, at one
                   learning rate
    learning_rate  the peak: linear warm-up over `warmup` steps, then linear decay to zero at
                   `steps`
    loss_weights   modality -> weight of its nats in the loss (on top of 1 / sqrt(C) per channel)
    ema_decay      decay of the moving average of the weights, which is what the run keeps; 0 is off
    ema_power      above 0: step t counts by t to this power instead (6.94: spread over a tenth of
                   the training, however long it is)
    precision      of matrix products: "auto" is bfloat16 where this machine multiplies it faster,
                   else float32; or "bf16", "float32". Weights and optimiser stay in float32; a
                   resumed training keeps what it began with
    grad_accum_steps  micro-batches per step; the sum over positions is exact, whatever the number
    fsdp           on several processes, split weights, gradients and optimiser over them: for a
                   model that one device cannot hold
    activation_checkpointing  so many of the trunk's blocks keep no activations for the backward
                              pass, which computes them again: less memory, more
                   time, the same weights; as many as there are at most
    compile        run the trunk's blocks by one compiled graph, which takes a minute at the first
                   step and draws dropout by other numbers
    """

    steps: int = 1000
    batch_size: int = 16
    seq_len: int = 256
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    ema_decay: float = 0.99
    ema_power: float = 0.0
    precision: Precision = "auto"
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    grad_accum_steps: int = 1
    fsdp: bool = False
    activation_checkpointing: int = 0
    compile: bool = False
    checkpoint_every: int = 200
    log_every: int = 20
    seed: int = 0

    def __post_init__(self):
        for name in (
            "steps",
            "batch_size",
            "seq_len",
            "grad_accum_steps",
            "checkpoint_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    f"TrainConfig: {name} is {getattr(self, name)}; it must be at least 1"
                )
        for name in ("learning_rate", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"TrainConfig: {name} is {getattr(self, name)}; it must be above 0, and finite"
                )
        if (
            min(self.warmup, self.seed, self.activation_checkpointing) < 0
            or not 0 <= self.weight_decay < math.inf
        ):
            raise UserError(
                "TrainConfig: warmup, seed, activation_checkpointing and weight_decay must not be"
                " negative"
            )
        for modality, weight in self.loss_weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(
                    f"TrainConfig: loss_weights of {modality} is {weight}; it must not be negative,"
                    " and finite"
                )
        if not 0 <= self.ema_decay < 1:
            raise UserError(
                f"TrainConfig: ema_decay is {self.ema_decay}; it must be at least 0 and below 1"
            )
        if not 0 <= self.ema_power < math.inf or self.ema_power and not self.ema_decay:
            raise UserError(
                f"TrainConfig: ema_power is {self.ema_power} and ema_decay {self.ema_decay}; the"
                " power must be finite and not negative, and an average of 0 is none at all"
            )
        if self.optimizer not in OPTIMIZERS:
            raise UserError(
                f"TrainConfig: optimizer is {self.optimizer!r}; it must be one of"
                f" {', '.join(OPTIMIZERS)}"
            )
        if self.precision not in PRECISIONS:
            raise UserError(
                f"TrainConfig: precision is {self.precision!r}; it must be one of"
                f" {', '.join(PRECISIONS)}"
            )
        if self.grad_accum_steps > self.batch_size:
            raise UserError(
                f"TrainConfig: {self.batch_size} rows cannot be shared out over"
                f" {self.grad_accum_steps} micro-batches; lower grad_accum_steps"
            )


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, raised after the checkpoint of the current step stands."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the update number `step`, counted from 0: linear warm-up, linear decay to 0 at
    `config.steps`.

    It follows from the step and the number of steps alone. So a training whose number of steps is
    changed on the way goes on at the rate that the new number plans for the step it is at, and
    decays from there to 0 at the new end; a warm-up that is over is not repeated. The steps before
    were made at the rates of the old plan: the weights are not those of the new number planned from
    the start.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.learning_rate * warm * (1 - step / config.steps)


def schedule_text(config: TrainConfig, planned: Sequence[Sequence[int]]) -> str:
    """What the learning rate did and will do in a training whose number of steps was changed.

    planned: as `Trainer.planned`; two at least.
    """
    (_, before), (step, steps) = planned[-2:]
    was = learning_rate(replace(config, steps=before), step - 1)
    goes_on = f"goes on at {learning_rate(config, step):.3g} and falls" if step < steps else "ends"
    return (
        f"trained on from step {step}: {before} steps were planned before, now {steps}; the"
        f" learning rate, {was:.3g} at step {step}, {goes_on} linearly to 0 at step {steps},"
        f" without a second warm-up, so this is not what {steps} steps planned from the start would"
        " give"
    )


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
        processes: Processes = ALONE,
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
        self.precision = self._precision(processes.device if processes.world > 1 else lm.device)
        lm.model.recompute_blocks(config.activation_checkpointing)
        if config.compile:
            missing = lacking(lm.device)
            if missing:
                raise UserError(
                    f"--train.compile true needs {missing}, which is not installed: install it, or"
                    " train uncompiled"
                )
            lm.model.compile_blocks()
        self.sharded = config.fsdp and processes.world > 1
        if self.sharded:
            shard(lm, list(lm.model.layers), processes, self.precision)
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
        if began is not None and chosen != began and self.processes.first:
            warnings.warn(
                f"this training began in {began} and stays with it; this machine would choose"
                f" {chosen} ({matmul_rates(device)})",
                stacklevel=2,
            )
        by_rank = self.processes.everyones(PRECISIONS.index(began or chosen))
        return PRECISIONS[int(by_rank[0])]

    def header(self) -> dict:
        """The first line of the log: in what this training computes, and on what."""
        return {
            "precision": self.precision,
            "asked": self.config.precision,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "processes": self.processes.world,
            "torch": torch.__version__,
        }

    # ---- one step

    def update(self) -> dict:
        """One optimiser step on the batch of this step; returns what is worth logging."""
        config, processes = self.config, self.processes
        torch.manual_seed(
            _mix(config.seed, self.step) ^ (processes.rank << 40)
        )  # dropout is a function of (seed, step, rank)
        batch = self.loader.batch(self.step, processes.rank, processes.world)
        frames = predicted_frames(batch, self.loader.vocabulary)
        n_predicted, positions, *n_frames = map(
            int,
            processes.total(
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
            self.processes.world > 1
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
        if self.processes.world == 1:
            return loss, parts
        loss, *rest = self.processes.total(loss, *(x for pair in parts.values() for x in pair))
        return loss, {m: (nats, int(n)) for m, nats, n in zip(parts, rest[::2], rest[1::2])}

    # ---- many steps

    def run(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Train to the last step, checkpointing on the way.

        Ctrl-C or SIGTERM in any process: checkpoint, then Interrupted in all.
        """
        peak = (
            self.processes.total(matrix_rate(self.device))[0]
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
                    if self.processes.first:
                        self.log(self.gauge.line(self.step, self.window, peak))
                    self.window = []
                stop = self.processes.total(len(asked)) != [0]
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
        tensors = {stem: whole(named, self.processes) for stem, named in tensors.items()}
        state = {
            "step": self.step,
            "vocabulary": self.loader.vocabulary.fingerprint,
            "precision": self.precision,
            "planned": self.planned,
            "window": self.window,
        }
        self.processes.by_first(lambda: save_checkpoint(self.folder, Checkpoint(tensors, state)))

    def resume(self) -> bool:
        """Go on from the newest sound checkpoint, if there is one.

        What a process that was killed left beside it is removed.
        """
        checkpoint = load_checkpoint(self.folder)
        seen = self.processes.everyones(checkpoint.state["step"] if checkpoint else -1)
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
                k: part_of(x, like[k]) if k in like else x
                for k, x in checkpoint.tensors["weights"].items()
            }
        )
        restore_optimizer(self.optimizer, self.names, checkpoint.tensors["optimizer"])
        for name, value in checkpoint.tensors.get("ema", {}).items():
            self.ema[name].copy_(part_of(value, self.ema[name]))
        self.step, self.window = checkpoint.state["step"], checkpoint.state.get("window", [])
        self.planned = replanned(
            checkpoint.state.get("planned", self.planned), self.step, self.config.steps
        )
        self.processes.by_first(lambda: tidy(self.folder, self.step))
        return True

    def weights(self) -> dict[str, Tensor]:
        """What the run keeps: the moving average where there is one.

        Sharded, it is gathered in the first process.
        """
        return whole({**self.lm.state_dict(), **self.ema}, self.processes)


def replanned(planned: list[list[int]], step: int, steps: int) -> list[list[int]]:
    """`Trainer.planned` where `steps` are planned from `step` on; a plan by which no step was made
    is forgotten.
    """
    kept = [plan for plan in planned if plan[0] < step] or [[0, steps]]
    return kept if kept[-1][1] == steps else [*kept, [step, steps]]


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
