"""Trains a network by a distance first, and against discriminators from a stated share on.

Every random number is a function of (seed, step), so a training that goes on from a checkpoint has
the same weights, bit for bit on the same machine with as many threads.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.errors import UserError
from mmtok.io.overrides import leaves
from mmtok.io.progress import Progress
from mmtok.io.terminal import print_status
from mmtok.nn.ema import ema_update, exponential
from mmtok.tokenizers.istft import AdversarialTraining
from mmtok.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from mmtok.train.discriminators import hinge_loss, matching_loss
from mmtok.train.trainer import Interrupted, mixed_seed, stop_signals

WARM_STEPS = 200  # or a tenth of the training, where that is less
LEAST_RATE = 0.02  # of the learning rate, at the last step
BETAS = (0.8, 0.95)
WEIGHT_DECAY = 0.01
JUDGED = ("discriminators", "adversarial", "matching")  # figures of later steps
DISCRIMINATOR_RATE = 0.5  # of the network's learning rate


class Problem(ABC):
    """What is trained: a network, what it is given, and how far what it makes is off.

    Attributes:
        what: in messages: "vocoder".
        network: to be trained.
        discriminators: that judge what it makes.
        distance_weight: of the distance in the loss.
        adversarial_weight: of the discriminators' verdict.
        matching_weight: of the distance of their features.
        grad_clip: largest norm of the gradient over all parameters.
    """

    what: str
    network: nn.Module
    discriminators: nn.ModuleList
    distance_weight: float
    adversarial_weight: float
    matching_weight: float
    grad_clip: float

    @abstractmethod
    def batch(self, generator: torch.Generator) -> Any:
        """What a step is made of."""

    @abstractmethod
    def made(self, batch: Any) -> Tensor:
        """What the network makes of it."""

    def made_with_losses(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """`made`, and further losses that are added as they are, by name."""
        return self.made(batch), {}

    @abstractmethod
    def wanted(self, batch: Any) -> Tensor:
        """What it should have made."""

    @abstractmethod
    def distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        """How far the one is off the other."""

    def conditions(self, batch: Any) -> tuple[Tensor, ...]:
        """What discriminators are given besides."""
        return ()


class AdversarialFit:
    """The state of such a training; checkpoints and a log are in `folder`."""

    def __init__(
        self,
        problem: Problem,
        training: AdversarialTraining,
        settings: Mapping[str, Any],
        seed: int,
        folder: Path,
    ):
        self.problem = problem
        self.training = training
        self.settings = dict(settings)  # that a training goes on with only where they are the same
        self.seed = seed
        self.folder = folder
        self.step = 0
        self.sums: dict[str, float] = {}  # of the figures since the last line of the log
        networks = (problem.network, problem.discriminators)
        self.names: list[dict[Tensor, str]] = [
            {p: name for name, p in network.named_parameters()} for network in networks
        ]
        self.optimizers = [
            torch.optim.AdamW(
                network.parameters(),
                training.learning_rate,
                betas=BETAS,
                weight_decay=WEIGHT_DECAY,
                foreach=True,
            )
            for network in networks
        ]
        self.ema = {name: p.detach().clone() for p, name in self.names[0].items()}
        self.ema_decay = exponential(training.ema_decay)

    # ---- one step

    def update(self) -> dict[str, Tensor]:
        """One step; its figures."""
        problem = self.problem
        rate = self.learning_rate()
        for optimizer, share in zip(self.optimizers, (1.0, DISCRIMINATOR_RATE), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.step))
        batch = problem.batch(generator)
        wanted = problem.wanted(batch)
        made, further = problem.made_with_losses(batch)
        distance = problem.distance(made, wanted)
        figures = {"distance": distance.detach()}
        figures |= {name: value.detach() for name, value in further.items()}
        loss = sum(further.values(), problem.distance_weight * distance)
        if self.step >= self.training.adversarial_from * self.training.steps:
            conditions = problem.conditions(batch)
            figures["discriminators"] = self._update_discriminators(
                made.detach(), wanted, conditions
            )
            verdict, matching = self._judged(made, wanted, conditions)
            figures |= {"adversarial": verdict.detach(), "matching": matching.detach()}
            loss = loss + problem.adversarial_weight * verdict + problem.matching_weight * matching
        self.optimizers[0].zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(problem.network.parameters(), problem.grad_clip)
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of the {problem.what} is not finite at step {self.step}: train with"
                " a lower learning_rate"
            )
        self.optimizers[0].step()
        self.step += 1
        weights = {name: p for p, name in self.names[0].items()}
        ema_update(self.ema, weights, self.ema_decay(self.step))
        return figures

    def learning_rate(self) -> float:
        """A linear rise, then half a cosine down to LEAST_RATE of the highest."""
        training = self.training
        warm = min(1.0, (self.step + 1) / max(1, min(WARM_STEPS, training.steps // 10)))
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / training.steps))
        return training.learning_rate * warm * (LEAST_RATE + (1 - LEAST_RATE) * cosine)

    def _update_discriminators(
        self, made: Tensor, wanted: Tensor, conditions: tuple[Tensor, ...]
    ) -> Tensor:
        """One step of the discriminators; their loss."""
        parts = [d(wanted, *conditions)[0] for d in self.problem.discriminators]
        others = [d(made, *conditions)[0] for d in self.problem.discriminators]
        loss = torch.stack([hinge_loss(*pair) for pair in zip(parts, others, strict=True)]).sum()
        self.optimizers[1].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[1].step()
        return loss.detach()

    def _judged(
        self, made: Tensor, wanted: Tensor, conditions: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """The discriminators' verdict of what was made, and the distance of their features."""
        verdicts = []
        distances = []
        self.problem.discriminators.requires_grad_(False)
        for discriminator in self.problem.discriminators:
            with torch.no_grad():
                features = discriminator(wanted, *conditions)[1]
            scores, own = discriminator(made, *conditions)
            verdicts.append(-scores.mean())
            distances.append(matching_loss(features, own))
        self.problem.discriminators.requires_grad_(True)
        return torch.stack(verdicts).sum(), torch.stack(distances).sum()

    # ---- many steps

    def run(self) -> None:
        """Train to the last step.

        After Ctrl-C or SIGTERM writes a checkpoint and raises Interrupted: the same call goes on.
        """
        training = self.training
        self.resume()
        what = f"training the {self.problem.what}"
        with (
            stop_signals() as stops,
            Progress(what, training.steps, "steps", self.step) as progress,
        ):
            while self.step < training.steps:
                for name, value in self.update().items():
                    self.sums[name] = self.sums.get(name, 0.0) + float(value)
                progress.advance()
                if self._is_due(training.log_every):
                    self._log()
                if stops or self._is_due(training.checkpoint_every):
                    self.save()
                if stops and self.step < training.steps:
                    raise Interrupted(
                        f"the {self.problem.what} is trained to step {self.step}; the same command"
                        " goes on from there"
                    )

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.training.steps

    def _log(self) -> None:
        """A line on stderr and in log.jsonl: means over the steps since the last one."""
        n = self.step % self.training.log_every or self.training.log_every
        first = self.training.adversarial_from * self.training.steps
        n_judged = min(n, max(1, self.step - math.ceil(first)))
        means = {
            name: total / (n_judged if name in JUDGED else n) for name, total in self.sums.items()
        }
        self.sums = {}
        words = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        print_status(f"{self.problem.what} {self.step}/{self.training.steps}: {words}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": self.step} | means) + "\n")

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint of this step."""
        problem = self.problem
        tensors = {
            "weights": problem.network.state_dict(),
            "ema": self.ema,
            "discriminators": problem.discriminators.state_dict(),
            "optimizer": optimizer_tensors(self.optimizers[0], self.names[0]),
            "discriminator_optimizer": optimizer_tensors(self.optimizers[1], self.names[1]),
        }
        state = {"step": self.step, "settings": self.settings, "sums": self.sums}
        save_checkpoint(self.folder / "checkpoints", Checkpoint(tensors, state), keep=1)

    def resume(self) -> None:
        """Restore the newest sound checkpoint, if there is one.

        Raises UserError where it was begun with other settings.
        """
        found = load_checkpoint(self.folder / "checkpoints")
        if found is None:
            return
        old = leaves(found.state["settings"])
        new = leaves(self.settings)
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                raise UserError(
                    f"{self.folder} holds a {self.problem.what} that is being trained with"
                    f" {name} {old.get(name)}, not {new.get(name)}: remove the folder to begin"
                    " anew, or set it as it was"
                )
        self.problem.network.load_state_dict(found.tensors["weights"])
        self.problem.discriminators.load_state_dict(found.tensors["discriminators"])
        stems = ("optimizer", "discriminator_optimizer")
        for optimizer, names, stem in zip(self.optimizers, self.names, stems, strict=True):
            restore_optimizer(optimizer, names, found.tensors.get(stem, {}))
        for name, value in found.tensors["ema"].items():
            self.ema[name].copy_(value)
        self.step = found.state["step"]
        self.sums = found.state["sums"]
        print_status(f"the {self.problem.what} goes on from step {self.step}")

    def averaged(self) -> nn.Module:
        """The network with the moving average of its weights."""
        weights = self.problem.network.state_dict() | self.ema
        self.problem.network.load_state_dict(weights)
        return self.problem.network
