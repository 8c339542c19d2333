"""Trains a tokenizer's network by gradients: the steps, the log, and checkpoints to go on from.

What is learned from is the subclass's: images (mmtok.train.image_fit), jets (mmtok.train.jet_fit).

Random numbers come from torch's global generator, from which vector-quantize-pytorch draws too. Its
state is in checkpoints with all else, so a training that goes on has the same weights, bit for bit
on the same machine with as many threads.
"""

from __future__ import annotations

import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmtok.errors import UserError
from mmtok.io.overrides import leaves
from mmtok.io.terminal import print_status
from mmtok.nn.precision import Precision
from mmtok.nn.weight_decay import decay_groups
from mmtok.tokenizers.quantizers import FSQ, LFQ, VQ, ResidualVQ
from mmtok.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from mmtok.train.quantizers import Learner
from mmtok.train.trainer import Interrupted, stop_signals

CPU = torch.device("cpu")  # where tokenizers learn
WARM_STEPS = 50
WEIGHT_DECAY = 0.01
N_LINES = 7  # of the log, about
CHECKPOINT_EVERY = 500  # steps
# Fewer than this share of the codes that as many even draws would show is a collapse.
COLLAPSED = 0.5
REMEDIES = {
    VQ: "set quantizer.normalised, or quantizer.n_codes lower, or take the quantizer FSQ",
    ResidualVQ: "set quantizer.n_codes or quantizer.n_books lower",
    FSQ: "train for more steps, or set fewer quantizer.n_levels",
    LFQ: "set quantizer.entropy_weight higher, or quantizer.n_bits lower",
}

Report = Callable[[int, int, str], None]


class NetworkFit(ABC):
    """The state of such a training; checkpoints and a log are in `folder`.

    Attributes:
        what: "image tokenizer", in messages.
        learning_rate: the highest.
        network: with an encoder and a decoder.
        between: what learns otherwise than by gradients; None where nothing does.
        step: so many are done.
    """

    what: ClassVar[str]
    learning_rate: ClassVar[float]

    def __init__(
        self,
        network: nn.Module,
        between: Learner | None,
        steps: int,
        settings: Mapping[str, Any],
        folder: Path,
        progress: Report,
    ):
        """settings: what a training that goes on must share with its beginning."""
        self.network = network
        self.between = between
        self.steps = steps
        self.folder = folder
        self.progress = progress
        self.settings = settings
        self.step = 0
        self.sums: dict[str, float] = {}  # of the losses since the last line of the log
        self.names: dict[Tensor, str] = {p: name for name, p in network.named_parameters()}
        self.optimizer = torch.optim.AdamW(decay_groups(WEIGHT_DECAY, network))
        self.has_warned = False

    def start(self) -> None:
        """What comes before the first step."""
        return

    @abstractmethod
    def parts(self) -> dict[str, Tensor]:
        """The losses () of this step's examples, by name; their sum is lowered."""

    def after_step(self) -> None:
        """What else learns from this step's examples."""
        return

    @abstractmethod
    def health(self) -> dict[str, float]:
        """Figures of held-out signals."""

    def remark(self, figures: Mapping[str, float]) -> str:
        """What is wrong with figures of `health`, and what to do; or ""."""
        return ""

    @abstractmethod
    def tokenizer(self) -> Any:
        """What was trained; nothing can be trained on after it."""

    def further_state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps besides."""
        return {}

    def restore_further(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of `further_state`; tensors: all of the checkpoint."""
        return

    # ---- steps

    def run(self) -> Any:
        """Train to the last step; the tokenizer.

        After Ctrl-C or SIGTERM writes a checkpoint and raises Interrupted: the same call goes on.
        """
        if not self.resume():
            self.start()
        with stop_signals() as stops:
            while self.step < self.steps:
                self.update()
                self.progress(self.step, self.steps, "")
                if self._is_due(math.ceil(self.steps / N_LINES)):
                    self._log()
                if stops or self.step % CHECKPOINT_EVERY == 0:
                    self.save()
                if stops and self.step < self.steps:
                    raise Interrupted(
                        f"the {self.what} is trained to step {self.step}; the same command goes on"
                        " from there"
                    )
        return self.tokenizer()

    def update(self) -> None:
        """One step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        parts = self.parts()
        error = torch.stack(list(parts.values())).sum()
        self.optimizer.zero_grad()
        error.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if not math.isfinite(norm):
            raise UserError(
                f"the {self.what}'s gradient is not finite at step {self.step}: lower the weights"
                " of its losses"
            )
        self.optimizer.step()
        self.after_step()
        self.step += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def _learning_rate(self) -> float:
        """A linear rise, then half a cosine down to a thousandth."""
        warm = min(1.0, (self.step + 1) / WARM_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        return self.learning_rate * warm * (0.001 + 0.999 * cosine)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps

    def _log(self) -> None:
        """A line on stderr and in log.jsonl: losses since the last one, figures of `health`.

        Warns once of a remark on these.
        """
        every = math.ceil(self.steps / N_LINES)
        n = self.step % every or every
        figures = {name: total / n for name, total in self.sums.items()}
        self.sums = {}
        figures |= self.health()
        if self.between is not None:
            figures["codes_revived"] = self.between.n_revived
            self.between.n_revived = 0
        words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print_status(f"{self.what} {self.step}/{self.steps}: {words}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": self.step} | figures) + "\n")
        remark = self.remark(figures)
        if remark and self.step > self.steps / 2 and not self.has_warned:
            self.has_warned = True
            warnings.warn(remark, stacklevel=2)

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint of this step."""
        tensors = {
            "weights": self.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
            "random": {"state": torch.get_rng_state()},
            **self.further_state(),
        }
        n_revived = 0
        if self.between is not None:
            tensors["quantizer"] = self.between.state_dict()
            n_revived = self.between.n_revived
        state = {
            "step": self.step,
            "settings": self.settings,
            "sums": self.sums,
            "n_revived": n_revived,
        }
        save_checkpoint(self.folder / "checkpoints", Checkpoint(tensors, state), keep=1)

    def resume(self) -> bool:
        """Restore the newest sound checkpoint, if there is one.

        Raises UserError where it was begun with other settings or signals.
        """
        found = load_checkpoint(self.folder / "checkpoints")
        if found is None:
            return False
        old = leaves(found.state["settings"])
        new = leaves(self.settings)
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                raise UserError(
                    f"{self.folder} holds the {self.what} that is being trained with {name}"
                    f" {old.get(name)}, not {new.get(name)}: remove the folder to begin anew, or"
                    " set it as it was"
                )
        self.network.load_state_dict(found.tensors["weights"])
        if self.between is not None:
            self.between.load_state_dict(found.tensors["quantizer"])
            self.between.n_revived = found.state["n_revived"]
        restore_optimizer(self.optimizer, self.names, found.tensors["optimizer"])
        self.restore_further(found.tensors)
        self.step = found.state["step"]
        self.sums = found.state["sums"]
        print_status(f"the {self.what} goes on from step {self.step}")
        torch.set_rng_state(found.tensors["random"]["state"])
        return True


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, from which the codebook library draws, and restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def products_in(precision: Precision) -> torch.autocast:
    """A context in which matrix products and convolutions run in this precision."""
    return torch.autocast(CPU.type, torch.bfloat16, enabled=precision == "bf16")


def collapse(use: float, quantizer: Any, n_frames: int) -> str:
    """What to say where few of the codes are used; "" where enough are.

    Args:
        use: the share of the codes that occur in the frames.
        quantizer: its settings, a `Quantizer`.
        n_frames: so many; even draws would use 1 - exp(-n_frames / K) of K codes.
    """
    n_codes = quantizer.levels[0]
    even = 1 - math.exp(-n_frames / n_codes)
    if use >= COLLAPSED * even:
        return ""
    return (
        f"only {use:.1%} of the {n_codes:,} codes are used, where as many even draws would show"
        f" {even:.1%}: {REMEDIES[type(quantizer)]}"
    )
