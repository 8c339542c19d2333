"""What a recipe says before anything is fitted: signatures, and the size of the decoder."""

from __future__ import annotations

import torch

from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.model.lm import LM, DecoderConfig
from mmtok.run.recipe import Recipe


def planned_signatures(recipe: Recipe) -> dict[str, Signature]:
    """Modality -> the signature that its tokenizer will have, where its config says it.

    Without a fingerprint where that depends on what is learned. With `start`, the text tokenizer
    will be that of the pretrained model, so nothing is said of it.
    """
    planned = {}
    for m, config in recipe.tokenizers.items():
        signature = config.signature()
        if signature is not None and not (m == "text" and recipe.start):
            planned[m] = signature
    return planned


def size_of_decoder(config: DecoderConfig, vocabulary: Vocabulary) -> int:
    """How many parameters a decoder has, without the memory for them.

    Raises UserError for a config that does not fit the vocabulary.
    """
    with torch.device("meta"):
        return sum(p.numel() for p in LM(config, vocabulary).parameters())
