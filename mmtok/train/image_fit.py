"""Trains the networks of image tokenizers by gradients: patches as codes, or as latents.

Codes: van den Oord et al. 2017 (VQ-VAE) with one of the quantisers of mmtok.train.quantizers.
Latents: Kingma and Welling 2014, with the weight of the KL term as a setting (Rombach et al. 2022,
section 3.1). Both: Esser et al. 2021 (VQGAN, arXiv 2012.09841) for the perceptual term and the
discriminator.

Random numbers come from torch's global generator, from which vector-quantize-pytorch draws too. Its
state is in checkpoints with all else, so a training that goes on has the same weights, bit for bit
on the same machine with as many threads.
"""

from __future__ import annotations

import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.core.units import psnr_db
from mmtok.errors import UserError
from mmtok.io.overrides import leaves
from mmtok.io.serialize import to_plain
from mmtok.io.terminal import print_status
from mmtok.nn.autoencoder import KLAutoencoder, PatchAutoencoder, Posterior
from mmtok.nn.precision import Precision
from mmtok.nn.quantize import codebook_figures
from mmtok.nn.weight_decay import decay_groups
from mmtok.tokenizers.any_size import AnySizePatches, AnySizePatchesConfig
from mmtok.tokenizers.image_latents import KLPatches, KLPatchesConfig
from mmtok.tokenizers.images import VQPatches, VQPatchesConfig
from mmtok.tokenizers.patches import IMAGES_AT_ONCE, to_tensor
from mmtok.tokenizers.quantizers import FSQ, LFQ, VQ, ResidualVQ
from mmtok.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from mmtok.train.image_losses import Losses
from mmtok.train.image_tiles import tiles
from mmtok.train.quantizers import Learner, learner
from mmtok.train.trainer import Interrupted, stop_signals

CPU = torch.device("cpu")  # where tokenizers learn
BATCH = 32  # images per step
LEARNING_RATE = 4e-3
WARM_STEPS = 50
WEIGHT_DECAY = 0.01
# Standard deviation of noise on half of the images that the encoder reads, whose values are in
# [-1, 1]. The decoder learns to return the clean image.
PIXEL_NOISE = 0.06
# Patches per code for the k-means start; more are no better (512 images: 0.2 dB worse, mean of 3
# seeds).
START_PER_CODE = 16
N_HEALTH = 1000  # images that the log's figures are of at most, where none are held out
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


class Autoencoding(ABC):
    """What is trained: an encoder and a decoder, and what lies between them.

    Attributes:
        config: of the tokenizer.
        images: all that is learned from (N, C, Y, X), values in -1..1.
        network: with `encoder` and `decoder`.
        between: what learns otherwise than by gradients; None where nothing does.
    """

    network: Any
    between: Learner | None = None

    def __init__(self, config: Any, images: Tensor, precision: Precision):
        self.config = config
        self.images = images
        self.precision = precision

    def start(self) -> None:
        """What comes before the first step."""
        return

    @abstractmethod
    def decoded(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (B, C, Y, X) -> what the network makes of them, float32, and losses by name."""

    @abstractmethod
    def tokenizer(self) -> Any:
        """What was trained; nothing can be trained on after it."""

    @abstractmethod
    def coded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, Y, X) -> (their copies, frames (B, rows, columns, n)) without noise."""

    @torch.no_grad()
    def health(self, images: Tensor) -> dict[str, float]:
        """Figures of images (N, C, Y, X): the error of their copies, and of their frames."""
        squares = 0.0
        frames = []
        for part in images.split(IMAGES_AT_ONCE):
            copies, found = self.coded(part)
            frames.append(found)
            # in grey values
            squares += float((copies.clamp(-1, 1) - part).square().sum()) * 127.5**2
        figures = {"psnr_db": psnr_db(squares / images.numel())}
        return figures | self._figures(torch.cat(frames))

    def _figures(self, frames: Tensor) -> dict[str, float]:
        return {}

    def remark(self, figures: dict[str, float], n_images: int) -> str:
        """What is wrong with figures of `health` of so many images, and what to do; or ""."""
        return ""


class Codes(Autoencoding):
    """Images as codes."""

    network: PatchAutoencoder
    between: Learner

    def __init__(self, config: VQPatchesConfig, images: Tensor, precision: Precision):
        super().__init__(config, images, precision)
        self._check_enough(len(images))
        self.network = config.network().train()
        self.between = learner(config.quantizer, BATCH * config.n_patches)

    def _check_enough(self, n_images: int) -> None:
        """Raise UserError where fewer patches than codes are learned from."""
        config = self.config
        n_patches = n_images * config.n_patches
        if isinstance(config.quantizer, (VQ, ResidualVQ)) and n_patches < config.quantizer.n_codes:
            raise UserError(
                f"VQPatchesConfig: {n_images} images of {config.n_patches} patches each are"
                f" {n_patches:,} patches, fewer than the {config.quantizer.n_codes:,} codes to be"
                " learned: give more images, or set quantizer.n_codes lower"
            )

    def start(self) -> None:
        """Let codebooks begin where vectors lie, by k-means."""
        config = self.config
        if not isinstance(config.quantizer, (VQ, ResidualVQ)):
            return
        with torch.no_grad():
            n_start = math.ceil(START_PER_CODE * config.quantizer.n_codes / config.n_patches)
            chosen = self.images[torch.randperm(len(self.images))[:n_start]]
            self.between(self.network.encoder(chosen))

    def decoded(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Through codes; the encoder reads noisy images."""
        with products_in(self.precision):
            encoded = self.network.encoder(_noisy(images))
        vectors, loss = self.between(encoded)
        with products_in(self.precision):
            decoded = self.network.decoder(vectors)
        return decoded.float(), {"quantizer": loss}

    def coded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Through the look-up, as it stands."""
        self.between.write_to(self.network.codebook)
        codes = self.network.codes(images)
        return self.network.images(codes), codes

    def _figures(self, frames: Tensor) -> dict[str, float]:
        use, perplexity = codebook_figures(frames, self.config.quantizer.levels)
        return {"codebook_use": use, "codebook_perplexity": perplexity}

    def remark(self, figures: dict[str, float], n_images: int) -> str:
        """A codebook of which few codes are used."""
        n_codes = self.config.quantizer.levels[0]
        even = 1 - math.exp(-n_images * self.config.n_patches / n_codes)
        use = figures["codebook_use"]
        if use >= COLLAPSED * even:
            return ""
        return (
            f"image: only {use:.1%} of the {n_codes:,} codes are used, where as many even draws"
            f" would show {even:.1%}: {REMEDIES[type(self.config.quantizer)]}"
        )

    def tokenizer(self) -> VQPatches:
        """With the codebook as it stands."""
        with torch.no_grad():
            self.between.write_to(self.network.codebook)
        if isinstance(self.config, AnySizePatchesConfig):
            return AnySizePatches(self.config, self.network)
        return VQPatches(self.config, self.network)


class Latents(Autoencoding):
    """Images as Gaussian latents."""

    network: KLAutoencoder

    def __init__(self, config: KLPatchesConfig, images: Tensor, precision: Precision):
        super().__init__(config, images, precision)
        self.network = config.network().train()

    def decoded(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Through a sample of the posterior."""
        with products_in(self.precision):
            q = self.network.posterior(images)
        q = Posterior(q.mean.float(), q.log_variance.float())
        with products_in(self.precision):
            decoded = self.network.decode(q.sample())
        kl = self.config.kl_weight * q.kl().mean() / images[0].numel()
        return decoded.float(), {"kl": kl}

    def coded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Through the mean of the posterior."""
        means = self.network.posterior(images).mean
        return self.network.decode(means), means

    def tokenizer(self) -> KLPatches:
        """Its latents get mean 0 and variance 1 over the images that it learned from."""
        parts = self.images.split(IMAGES_AT_ONCE)
        with torch.no_grad():
            means = torch.cat([self.network.posterior(part).mean for part in parts])
        try:
            self.network.standardise_over(means)
        except ValueError as error:  # a channel says nothing
            raise UserError(f"KLPatchesConfig: {error}") from None
        return KLPatches(self.config, self.network)


KINDS: dict[type, tuple[str, type[Autoencoding]]] = {
    VQPatchesConfig: ("patch codes", Codes),
    AnySizePatchesConfig: ("patch codes", Codes),
    KLPatchesConfig: ("patch latents", Latents),
}


class ImageFit:
    """The state of such a training; checkpoints and a log are in `folder`."""

    def __init__(
        self, problem: Autoencoding, heldout: Tensor, seed: int, folder: Path, progress: Report
    ):
        self.problem = problem
        self.heldout = heldout  # that figures are of
        self.steps: int = problem.config.steps
        self.folder = folder
        self.progress = progress
        self.settings = to_plain(problem.config) | {"seed": seed, "n_images": len(problem.images)}
        self.step = 0
        self.sums: dict[str, float] = {}  # of the losses since the last line of the log
        self.names = {p: name for name, p in problem.network.named_parameters()}
        self.optimizer = torch.optim.AdamW(decay_groups(WEIGHT_DECAY, problem.network))
        self.losses = Losses(problem.config, self.steps)
        self.has_warned = False

    def run(self) -> Any:
        """Train to the last step; the tokenizer.

        After Ctrl-C or SIGTERM writes a checkpoint and raises Interrupted: the same call goes on.
        """
        problem = self.problem
        if not self.resume():
            problem.start()
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
                        f"the image tokenizer is trained to step {self.step}; the same command goes"
                        " on from there"
                    )
        return problem.tokenizer()

    def update(self) -> None:
        """One step."""
        problem = self.problem
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.step, self.steps)
        target = problem.images[torch.randint(len(problem.images), (BATCH,))]
        decoded, further = problem.decoded(target)
        parts = self.losses.parts(decoded, target, problem.network.decoder, self.step)
        parts |= further
        error = torch.stack(list(parts.values())).sum()
        self.optimizer.zero_grad()
        error.backward()
        norm = nn.utils.clip_grad_norm_(problem.network.parameters(), 1.0)
        if not math.isfinite(norm):
            raise UserError(
                f"the image tokenizer's gradient is not finite at step {self.step}: lower the"
                " weights of its losses"
            )
        self.optimizer.step()
        self.losses.update(decoded.detach(), target, self.step)
        self.step += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps

    def _log(self) -> None:
        """A line on stderr and in log.jsonl: losses since the last one, figures of held-out images.

        Warns once where a codebook has collapsed.
        """
        every = math.ceil(self.steps / N_LINES)
        n = self.step % every or every
        figures = {name: total / n for name, total in self.sums.items()}
        self.sums = {}
        figures |= self.problem.health(self.heldout)
        if self.problem.between is not None:
            figures["codes_revived"] = self.problem.between.n_revived
            self.problem.between.n_revived = 0
        words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print_status(f"image tokenizer {self.step}/{self.steps}: {words}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": self.step} | figures) + "\n")
        remark = self.problem.remark(figures, len(self.heldout))
        if remark and self.step > self.steps / 2 and not self.has_warned:
            self.has_warned = True
            warnings.warn(remark, stacklevel=2)

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint of this step."""
        tensors = {
            "weights": self.problem.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
            "random": {"state": torch.get_rng_state()},
            **self.losses.state(),
        }
        n_revived = 0
        if self.problem.between is not None:
            tensors["quantizer"] = self.problem.between.state_dict()
            n_revived = self.problem.between.n_revived
        state = {
            "step": self.step,
            "settings": self.settings,
            "sums": self.sums,
            "n_revived": n_revived,
        }
        save_checkpoint(self.folder / "checkpoints", Checkpoint(tensors, state), keep=1)

    def resume(self) -> bool:
        """Restore the newest sound checkpoint, if there is one.

        Raises UserError where it was begun with other settings or images.
        """
        found = load_checkpoint(self.folder / "checkpoints")
        if found is None:
            return False
        old = leaves(found.state["settings"])
        new = leaves(self.settings)
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                raise UserError(
                    f"{self.folder} holds an image tokenizer that is being trained with {name}"
                    f" {old.get(name)}, not {new.get(name)}: remove the folder to begin anew, or"
                    " set it as it was"
                )
        self.problem.network.load_state_dict(found.tensors["weights"])
        if self.problem.between is not None:
            self.problem.between.load_state_dict(found.tensors["quantizer"])
            self.problem.between.n_revived = found.state["n_revived"]
        restore_optimizer(self.optimizer, self.names, found.tensors["optimizer"])
        self.losses.restore(found.tensors)
        self.step = found.state["step"]
        self.sums = found.state["sums"]
        print_status(f"the image tokenizer goes on from step {self.step}")
        torch.set_rng_state(found.tensors["random"]["state"])
        return True


def train_images(
    config: VQPatchesConfig | KLPatchesConfig,
    signals: Sequence,
    seed: int,
    progress: Report,
    precision: Precision,
    folder: Path,
    heldout: Sequence = (),
) -> Any:
    """The tokenizer that `config` describes, learned from images.

    heldout: that the figures of the log are of; without any, of the images that are learned from.

    Raises UserError without images, for images of another size, and for fewer patches than codes.
    """
    if not len(signals):
        raise UserError(f"{type(config).__name__}: no images to learn from; give at least one")
    if isinstance(config, AnySizePatchesConfig):
        signals = tiles(signals, config, seed)
        heldout = tiles(heldout, config, seed)
    images = to_tensor(signals, config, torch.float32)
    others = images[:N_HEALTH]
    if len(heldout):
        others = to_tensor(heldout, config, torch.float32)
    with _seeded(seed):
        problem = KINDS[type(config)][1](config, images, precision)
        return ImageFit(problem, others, seed, folder, progress).run()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, from which the codebook library draws, and restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def products_in(precision: Precision) -> torch.autocast:
    """A context in which matrix products and convolutions run in this precision."""
    return torch.autocast(CPU.type, torch.bfloat16, enabled=precision == "bf16")


def _noisy(images: Tensor) -> Tensor:
    """Noise on half of the images, at random."""
    chosen = torch.rand(len(images), 1, 1, 1) < 0.5
    return images + PIXEL_NOISE * chosen * torch.randn_like(images)


def _learning_rate(step: int, steps: int) -> float:
    """A linear rise, then half a cosine down to a thousandth."""
    warm = min(1.0, (step + 1) / WARM_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return LEARNING_RATE * warm * (0.001 + 0.999 * cosine)
