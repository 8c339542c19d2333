"""What a recipe says of its signatures, and so of its decoder's size, before anything is fitted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.model.lm import LM, DecoderConfig
from mmtok.run.recipe import Recipe
from mmtok.tokenizers.image_latents import KLPatchesConfig
from mmtok.tokenizers.images import VQPatchesConfig
from mmtok.tokenizers.pretrained import PretrainedTextConfig
from mmtok.tokenizers.published import SentencePieceFile
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.text import SentencePieceConfig


def planned_signatures(recipe: Recipe) -> dict[str, Signature]:
    """Modality -> the signature that its tokenizer will have, as far as its config says it; without
    a fingerprint where it is learned.
    """
    found = {m: _planned_signature(config) for m, config in recipe.tokenizers.items()}
    if recipe.start:
        found["text"] = None  # the text tokenizer will be the start's
    return {m: signature for m, signature in found.items() if signature}


def _planned_signature(config: Any) -> Signature | None:
    match config:
        case VQPatchesConfig():
            return Signature("image", (config.n_codes,), frames=math.prod(config.grid))
        case KLPatchesConfig():
            return Signature("image", latent_size=config.latent_size, frames=math.prod(config.grid))
        case LogMelConfig():
            return Signature("speech", latent_size=config.mel.n_mels)
        case SentencePieceConfig():
            return Signature("text", (config.n_pieces,))
        case PretrainedTextConfig():
            return None  # it may have to be fetched
        case SentencePieceFile() if not Path(config.path).is_file():
            return None  # a run that is fitted has a copy
    if not hasattr(config, "build"):
        return None
    return (
        replace(config.build().signature, fingerprint="")
        if hasattr(config, "fit")
        else config.build().signature
    )


def size_of_decoder(config: DecoderConfig, vocabulary: Vocabulary) -> int:
    """How many parameters a decoder has, without the memory for them.

    Raises UserError for a config that does not fit the vocabulary.
    """
    with torch.device("meta"):
        return sum(p.numel() for p in LM(config, vocabulary).parameters())
