"""Makes a tokenizer from its config: built, fitted in closed form, or trained by gradients.

Image patches are trained by gradients. Codes: van den Oord et al. 2017 (VQ-VAE), with the codebook
as a moving average (appendix A.1). The library vector-quantize-pytorch starts it by k-means and
replaces dead codes; it is used only here, and what is kept is a plain (K, D) codebook. Latents:
Kingma and Welling 2014, with the weight of the KL term as a setting (Rombach et al. 2022, section
3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import UserError
from mmtok.io.progress import Progress
from mmtok.nn.autoencoder import KLAutoencoder, PatchAutoencoder, Posterior
from mmtok.nn.precision import Precision, resolve_precision
from mmtok.nn.weight_decay import decay_groups
from mmtok.tokenizers.base import Tokenizer, TokenizerConfig
from mmtok.tokenizers.image_latents import KLPatches, KLPatchesConfig
from mmtok.tokenizers.images import VQPatches, VQPatchesConfig
from mmtok.tokenizers.mel import MelConfig
from mmtok.tokenizers.patches import IMAGES_AT_ONCE, NetworkConfig, to_tensor
from mmtok.train.vocoder_fit import fit_networks

if TYPE_CHECKING:
    from vector_quantize_pytorch import VectorQuantize

CPU = torch.device("cpu")  # where tokenizers learn
BATCH = 32  # images per step
LEARNING_RATE = 4e-3
WARM_STEPS = 50
WEIGHT_DECAY = 0.01
# Standard deviation of noise on half of the images that the encoder reads, whose values are in
# [-1, 1]. The decoder learns to return the clean image.
PIXEL_NOISE = 0.06
COMMITMENT = 0.25  # weight of |encoder output - its code|^2
DECAY = 0.99  # of the codebook's moving average; the library's own 0.8 follows single batches
# A code is replaced when it is used less than this share of an even use.
DEAD_SHARE = 1 / 8
# Patches per code for the k-means start; more are no better (512 images: 0.2 dB worse, mean of 3
# seeds).
START_PER_CODE = 16

Report = Callable[[int, int, str], None]


def fit_tokenizer(
    config: Any,
    signals: Sequence,
    seed: int = 0,
    progress: Report | None = None,
    precision: Precision = "auto",
    folder: Path | None = None,
) -> Tokenizer:
    """The tokenizer that `config` describes, learned from `signals` where it learns.

    Raises UserError when the signals cannot be learned from, TypeError for a config that is no
    tokenizer's.

    Args:
        config: of the tokenizer.
        signals: prepared as the config asks.
        seed: of what is drawn while training by gradients; the same seed gives the same weights on
            the same machine.
        progress: called as progress(steps done, steps in all, note) while training by gradients;
            without it, stderr shows the steps.
        precision: of the networks' products while training by gradients; losses, codebooks and
            latents are in float32 in any case.
        folder: for work that goes on where it was interrupted: of vocoders, which are trained in
            float32 and report by themselves. None: a temporary one.
    """
    if not isinstance(config, TokenizerConfig):
        raise TypeError(f"{type(config).__name__} is not a tokenizer's config")
    if isinstance(config, MelConfig) and config.has_training:
        return _with_networks(config, signals, seed, folder)
    if not config.learns:
        return config.build()
    if not isinstance(config, NetworkConfig) or type(config) not in TRAINERS:
        return config.fit(signals)
    what, trained = TRAINERS[type(config)]
    chosen = resolve_precision(precision, CPU)
    if progress is not None:
        return trained(config, signals, seed, progress, chosen)
    with Progress(f"learning {what}", config.steps, "steps") as shown:
        return trained(config, signals, seed, lambda done, total, note: shown.advance(), chosen)


def _with_networks(
    config: MelConfig, signals: Sequence, seed: int, folder: Path | None
) -> Tokenizer:
    """The tokenizer of a config whose vocoder or de-quantiser are trained with it."""
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
        saved = fit_networks(config, signals, seed, folder)
        if config.learns:
            return config.fit(signals, saved)
        return config.build(saved)


def _train_codes(
    config: VQPatchesConfig, signals: Sequence, seed: int, progress: Report, precision: Precision
) -> VQPatches:
    images = _images(config, signals)
    with _seeded(seed):
        network = config.network()
        _learn_codes(network, _quantizer(config), images, config.steps, progress, precision)
    return VQPatches(config, network)


def _train_latents(
    config: KLPatchesConfig, signals: Sequence, seed: int, progress: Report, precision: Precision
) -> KLPatches:
    images = _images(config, signals)
    with _seeded(seed):
        network = config.network()
        _learn_latents(network, config.kl_weight, images, config.steps, progress, precision)
    return KLPatches(config, network)


TRAINERS: dict[type[NetworkConfig], tuple[str, Callable[..., Tokenizer]]] = {
    VQPatchesConfig: ("patch codes", _train_codes),
    KLPatchesConfig: ("patch latents", _train_latents),
}


def _images(config: VQPatchesConfig | KLPatchesConfig, signals: Sequence) -> Tensor:
    if not len(signals):
        raise UserError(f"{type(config).__name__}: no images to learn from; give at least one")
    return to_tensor(signals, config, torch.float32)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, from which the codebook library draws, and restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _quantizer(config: VQPatchesConfig) -> VectorQuantize:
    """The codebook while it is learned: moving averages, straight-through gradients."""
    from vector_quantize_pytorch import VectorQuantize

    rows, columns = config.grid
    even_use = BATCH * rows * columns / config.n_codes
    return VectorQuantize(
        config.code_size,
        config.n_codes,
        decay=DECAY,
        kmeans_init=True,
        kmeans_iters=20,
        rotation_trick=False,
        commitment_weight=COMMITMENT,
        threshold_ema_dead_code=DEAD_SHARE * even_use,
    )


def _learn_codes(
    network: PatchAutoencoder,
    quantizer: VectorQuantize,
    images: Tensor,
    steps: int,
    progress: Report,
    precision: Precision,
) -> None:
    """Train encoder and decoder on images (N, C, Y, X), and set the network's codebook."""
    network.train()
    with torch.no_grad():
        n_patches = math.prod(network.encoder(images[:1]).shape[1:3])
        n_start = math.ceil(START_PER_CODE * len(network.codebook.vectors) / n_patches)
        _quantize(quantizer, network.encoder(images[torch.randperm(len(images))[:n_start]]))

    def loss(target: Tensor) -> Tensor:
        with products_in(precision):
            encoded = network.encoder(_noisy(target))
        vectors, commitment = _quantize(quantizer, encoded.float())
        with products_in(precision):
            decoded = network.decoder(vectors)
        return F.mse_loss(decoded.float(), target) + commitment

    _descend([network.encoder, network.decoder], loss, images, steps, progress)
    network.codebook.vectors.copy_(quantizer.codebook.detach())


def _learn_latents(
    network: KLAutoencoder,
    kl_weight: float,
    images: Tensor,
    steps: int,
    progress: Report,
    precision: Precision,
) -> None:
    """Train encoder and decoder on images (N, C, Y, X), and set the latents' mean and scale."""
    network.train()

    def loss(target: Tensor) -> Tensor:
        with products_in(precision):
            q = network.posterior(target)
        q = Posterior(q.mean.float(), q.log_variance.float())
        with products_in(precision):
            decoded = network.decode(q.sample())
        return F.mse_loss(decoded.float(), target) + kl_weight * q.kl().mean() / target[0].numel()

    _descend([network], loss, images, steps, progress)
    with torch.no_grad():
        means = torch.cat([network.posterior(part).mean for part in images.split(IMAGES_AT_ONCE)])
    try:
        network.standardise_over(means)
    except ValueError as error:  # a channel says nothing
        raise UserError(f"KLPatchesConfig: {error}") from None


def _descend(
    networks: list[nn.Module],
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    steps: int,
    progress: Report,
) -> None:
    """Lower loss(batch of images) by AdamW."""
    optimizer = torch.optim.AdamW(decay_groups(WEIGHT_DECAY, *networks))
    parameters = [p for network in networks for p in network.parameters()]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        error = loss(images[torch.randint(len(images), (BATCH,))])
        optimizer.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress(step + 1, steps, "")


def products_in(precision: Precision) -> torch.autocast:
    """A context in which matrix products and convolutions run in this precision."""
    return torch.autocast(CPU.type, torch.bfloat16, enabled=precision == "bf16")


def _quantize(quantizer: VectorQuantize, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder output (B, rows, columns, D) -> the vectors of its codes, and the commitment loss.

    Gradients pass straight through.
    """
    flat, _, loss = quantizer(vectors.reshape(1, -1, vectors.shape[-1]))
    return flat.reshape(vectors.shape), loss.sum()


def _noisy(images: Tensor) -> Tensor:
    """Noise on half of the images, at random."""
    chosen = torch.rand(len(images), 1, 1, 1) < 0.5
    return images + PIXEL_NOISE * chosen * torch.randn_like(images)


def _learning_rate(step: int, steps: int) -> float:
    """A linear rise, then half a cosine down to a thousandth."""
    warm = min(1.0, (step + 1) / WARM_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return LEARNING_RATE * warm * (0.001 + 0.999 * cosine)
