"""Trains the networks of image tokenizers by gradients: patches as codes, or as latents.

Codes: van den Oord et al. 2017 (VQ-VAE) with one of the quantisers of mmtok.train.quantizers.
Latents: Kingma and Welling 2014, with the weight of the KL term as a setting (Rombach et al. 2022,
section 3.1). Both: Esser et al. 2021 (VQGAN, arXiv 2012.09841) for the perceptual term and the
discriminator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtok.core.units import psnr_db
from mmtok.errors import UserError
from mmtok.io.serialize import to_plain
from mmtok.nn.autoencoder import KLAutoencoder, PatchAutoencoder, Posterior
from mmtok.nn.precision import Precision
from mmtok.nn.quantize import codebook_figures
from mmtok.tokenizers.any_size import AnySizePatchesConfig
from mmtok.tokenizers.image_latents import KLPatches, KLPatchesConfig
from mmtok.tokenizers.images import VQPatches, VQPatchesConfig
from mmtok.tokenizers.patch_rows import PatchRowsConfig
from mmtok.tokenizers.patches import IMAGES_AT_ONCE, to_tensor
from mmtok.tokenizers.quantizers import VQ, ResidualVQ
from mmtok.train.image_losses import Losses
from mmtok.train.image_tiles import tiles
from mmtok.train.network_fit import NetworkFit, Report, collapse, products_in, seeded
from mmtok.train.quantizers import Learner, learner

BATCH = 32  # images per step
LEARNING_RATE = 4e-3
# Standard deviation of noise on half of the images that the encoder reads, whose values are in
# [-1, 1]. The decoder learns to return the clean image.
PIXEL_NOISE = 0.06
# Patches per code for the k-means start; more are no better (512 images: 0.2 dB worse, mean of 3
# seeds).
START_PER_CODE = 16
N_HEALTH = 1000  # images that the log's figures are of at most, where none are held out


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

    def remark(self, figures: Mapping[str, float], n_images: int) -> str:
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

    def remark(self, figures: Mapping[str, float], n_images: int) -> str:
        """A codebook of which few codes are used."""
        n_frames = n_images * self.config.n_patches
        said = collapse(figures["codebook_use"], self.config.quantizer, n_frames)
        return said and f"image: {said}"

    def tokenizer(self) -> VQPatches:
        """With the codebook as it stands."""
        with torch.no_grad():
            self.between.write_to(self.network.codebook)
        return self.config.trained(self.network)


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
    PatchRowsConfig: ("patch codes", Codes),
    KLPatchesConfig: ("patch latents", Latents),
}


class ImageFit(NetworkFit):
    """The state of such a training."""

    what = "image tokenizer"
    learning_rate = LEARNING_RATE

    def __init__(
        self, problem: Autoencoding, heldout: Tensor, seed: int, folder: Path, progress: Report
    ):
        config = problem.config
        settings = to_plain(config) | {"seed": seed, "n_images": len(problem.images)}
        network = problem.network
        super().__init__(network, problem.between, config.steps, settings, folder, progress)
        self.problem = problem
        self.heldout = heldout  # that figures are of
        self.losses = Losses(config, self.steps)

    def start(self) -> None:
        """The problem's."""
        self.problem.start()

    def parts(self) -> dict[str, Tensor]:
        """Of images, and of what lies between the networks."""
        problem = self.problem
        wanted = problem.images[torch.randint(len(problem.images), (BATCH,))]
        made, further = problem.decoded(wanted)
        self._seen = (made.detach(), wanted)
        return self.losses.parts(made, wanted, problem.network.decoder, self.step) | further

    def after_step(self) -> None:
        """One step of the discriminator."""
        self.losses.update(*self._seen, self.step)

    def health(self) -> dict[str, float]:
        """The problem's."""
        return self.problem.health(self.heldout)

    def remark(self, figures: Mapping[str, float]) -> str:
        """The problem's."""
        return self.problem.remark(figures, len(self.heldout))

    def tokenizer(self) -> Any:
        """The problem's."""
        return self.problem.tokenizer()

    def further_state(self) -> dict[str, dict[str, Tensor]]:
        """The discriminator's."""
        return self.losses.state()

    def restore_further(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The discriminator's."""
        self.losses.restore(tensors)


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
    with seeded(seed):
        problem = KINDS[type(config)][1](config, images, precision)
        return ImageFit(problem, others, seed, folder, progress).run()


def _noisy(images: Tensor) -> Tensor:
    """Noise on half of the images, at random."""
    chosen = torch.rand(len(images), 1, 1, 1) < 0.5
    return images + PIXEL_NOISE * chosen * torch.randn_like(images)
