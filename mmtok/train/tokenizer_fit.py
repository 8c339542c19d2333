"""Makes a tokenizer from its config: built, fitted in closed form, or trained by gradients.

Patches of images, and of the pictures of videos, are trained by mmtok.train.image_fit, networks of
jets by mmtok.train.jet_fit and jet_set_fit, networks that make sound by mmtok.train.vocoder_fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmtok.io.progress import Progress
from mmtok.nn.precision import Precision, resolve_precision
from mmtok.tokenizers.base import Tokenizer, TokenizerConfig
from mmtok.tokenizers.image_latents import KLPatchesConfig
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.jet_autoencoder import JetAutoencoderConfig
from mmtok.tokenizers.jet_vq import JetVQConfig
from mmtok.tokenizers.mel import MelConfig
from mmtok.tokenizers.video import VideoConfig, Videos, as_video
from mmtok.train.image_fit import KINDS, train_images
from mmtok.train.jet_fit import train_jets
from mmtok.train.jet_set_fit import train_jet_sets
from mmtok.train.network_fit import CPU, Report
from mmtok.train.vocoder_fit import fit_networks

JETS: dict[type, str] = {JetVQConfig: "codes of jets", JetAutoencoderConfig: "latents of jets"}


def fit_tokenizer(
    config: Any,
    signals: Sequence,
    seed: int = 0,
    progress: Report | None = None,
    precision: Precision = "auto",
    folder: Path | None = None,
    heldout: Sequence = (),
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
        folder: for work that goes on where it was interrupted: of what is trained by gradients.
            Vocoders are trained in float32 and report by themselves. None: a temporary one.
        heldout: images or jets that are not learned from, of which the log's figures are.
    """
    if not isinstance(config, TokenizerConfig):
        raise TypeError(f"{type(config).__name__} is not a tokenizer's config")
    if isinstance(config, MelConfig) and config.has_training:
        return _with_networks(config, signals, seed, folder)
    if not config.learns:
        return config.build()
    if isinstance(config, VideoConfig):
        of_pictures = (_pictures(signals), seed, progress, precision, folder, _pictures(heldout))
        return Videos(config, fit_tokenizer(config.picture, *of_pictures))
    of_images = (VQPatchesConfig, KLPatchesConfig)
    if not isinstance(config, (*of_images, JetVQConfig, JetAutoencoderConfig)):
        return config.fit(signals)
    chosen = resolve_precision(precision, CPU)
    with ExitStack() as stack:
        if progress is None:
            kind: type = type(config)
            label = f"learning {JETS.get(kind) or KINDS[kind][0]}"
            shown = stack.enter_context(Progress(label, config.steps, "steps"))
            progress = _advancing(shown)
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
        if isinstance(config, JetVQConfig):
            place = folder / "constituents"
            return train_jets(config, signals, seed, progress, chosen, place, heldout)
        if isinstance(config, JetAutoencoderConfig):
            place = folder / "jets"
            return train_jet_sets(config, signals, seed, progress, chosen, place, heldout)
        place = folder / "patches"
        return train_images(config, signals, seed, progress, chosen, place, heldout)


def _pictures(videos: Sequence) -> list:
    """The pictures of all videos."""
    return [picture for video in videos for picture in as_video(video)]


def _advancing(shown: Progress) -> Report:
    def report(done: int, total: int, note: str) -> None:
        shown.advance(max(0, done - shown.done), note)

    return report


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
