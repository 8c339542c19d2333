"""Settings of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mmtok.errors import UserError
from mmtok.nn.precision import PRECISIONS, Precision

OPTIMIZERS = ("adamw", "muon")
POSITIVE_COUNTS = (
    "steps",
    "batch_size",
    "seq_len",
    "grad_accum_steps",
    "replicas",
    "checkpoint_every",
    "log_every",
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. One step reads `batch_size` x `seq_len` positions.

    Attributes:
        steps: optimiser steps in all.
        batch_size: rows per step, over all processes and micro-batches.
        seq_len: positions per row.
        optimizer: "adamw", or "muon": Muon for the trunk's matrices, AdamW for all other
            parameters, both at one learning rate.
        learning_rate: the peak. Linear warm-up over `warmup` steps, then linear decay to 0 at
            `steps`.
        weight_decay: of the parameters that `decay_groups` chooses.
        grad_clip: largest norm of the gradient over all parameters.
        ema_decay: decay of the moving average of the weights, which is what the run keeps. 0 is
            off.
        ema_power: above 0, step t has weight t to this power in the average instead. 6.94 spreads
            it over a tenth of the training, however long that is.
        precision: of matrix products. "auto" is bfloat16 where this machine multiplies it faster,
            else float32; or "bf16", "float32". Weights and optimiser stay in float32. A resumed
            training keeps the precision that it began with.
        loss_weights: modality -> weight of its nats in the loss, on top of 1 / sqrt(C) per channel.
        source_weights: of the recipe's sources, where tasks read several of them: how often one is
            read, relative to its size. By its place ("0"), or by a field, modality or class that is
            its own alone or that several share. 1 where it is not named, 0 leaves it out.
        source_temperature: of the sources' sizes. A source is read in proportion to its size to the
            power 1 / temperature: 1 as they are, above it small sources more often than that.
        grad_accum_steps: micro-batches per step. The loss is normalised over all of them together.
        fsdp: split weights, gradients and optimiser over the processes (FSDP2), for a model that
            one device cannot hold.
        replicas: with fsdp, copies of the weights. Processes form so many groups of successive
            ranks, and each group holds one copy in shares. With a group per machine, only gradients
            travel between machines.
        activation_checkpointing: how many of the trunk's blocks keep no activations and compute
            them again in the backward pass: less memory, more time, the same weights. More than
            there are blocks means all.
        compile: run the trunk's blocks by one compiled graph. The first step takes a minute longer,
            and dropout draws other numbers.
        checkpoint_every: steps between checkpoints.
        log_every: steps per line of the log.
        seed: of the order of the data and of dropout.
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
    source_weights: Mapping[str, float] = field(default_factory=dict)
    source_temperature: float = 1.0
    grad_accum_steps: int = 1
    fsdp: bool = False
    replicas: int = 1
    activation_checkpointing: int = 0
    compile: bool = False
    checkpoint_every: int = 200
    log_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in POSITIVE_COUNTS:
            if getattr(self, name) < 1:
                self._refuse(name, "it must be at least 1")
        for name in ("learning_rate", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "it must be above 0, and finite")
        counts = (self.warmup, self.seed, self.activation_checkpointing)
        if min(counts) < 0 or not 0 <= self.weight_decay < math.inf:
            raise UserError(
                "TrainConfig: warmup, seed, activation_checkpointing and weight_decay must not be"
                " negative"
            )
        if self.replicas > 1 and not self.fsdp:
            self._refuse("replicas", "it needs fsdp true; without, each process has a copy")
        for modality, weight in self.loss_weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(
                    f"TrainConfig: loss_weights of {modality} is {weight}; it must not be negative,"
                    " and finite"
                )
        for name, weight in self.source_weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(
                    f"TrainConfig: source_weights of {name} is {weight}; it must not be negative,"
                    " and finite"
                )
        if not 1 <= self.source_temperature < math.inf:
            self._refuse("source_temperature", "it must be at least 1, and finite")
        if not 0 <= self.ema_decay < 1:
            self._refuse("ema_decay", "it must be at least 0 and below 1")
        if not 0 <= self.ema_power < math.inf or (self.ema_power and not self.ema_decay):
            raise UserError(
                f"TrainConfig: ema_power is {self.ema_power} and ema_decay {self.ema_decay}; the"
                " power must be finite and not negative, and an average of 0 is none at all"
            )
        if self.optimizer not in OPTIMIZERS:
            self._refuse("optimizer", f"it must be one of {', '.join(OPTIMIZERS)}")
        if self.precision not in PRECISIONS:
            self._refuse("precision", f"it must be one of {', '.join(PRECISIONS)}")
        if self.grad_accum_steps > self.batch_size:
            raise UserError(
                f"TrainConfig: {self.batch_size} rows cannot be shared out over"
                f" {self.grad_accum_steps} micro-batches; lower grad_accum_steps"
            )

    def _refuse(self, name: str, why: str) -> None:
        value = getattr(self, name)
        shown = repr(value) if isinstance(value, str) else value
        raise UserError(f"TrainConfig: {name} is {shown}; {why}")
