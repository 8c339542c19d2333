"""To `transformers` and back: over one-channel modalities the trunk is a Llama, weight by weight.

Or it is another of the table in architectures.py, by its switches.

What a Llama cannot hold is refused in both directions, not dropped. The grammar is no part of a
Llama: its logits are `LM.logits`, over all ids, but for suppressed ones (llama_suppress.py).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.io.files import write_tensors, write_text
from mmtok.model.architectures import ARCHITECTURES
from mmtok.model.llama_folder import (
    CONFIG,
    FINGERPRINT,
    WEIGHTS,
    check_config,
    is_tied,
    llama_config,
    read_config,
    read_shapes,
    read_weights,
    trunk_config,
    widened_config,
    with_offset,
)
from mmtok.model.llama_suppress import READ, WRITE, widen
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.lora import adapters, is_adapter
from mmtok.nn.sharded import copy_part
from mmtok.nn.transformer import TransformerConfig


def to_llama(lm: LM, folder: Path | str, unreachable: Sequence[int] = ()) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` opens with equal logits.

    unreachable: ids that the Llama never generates, at the cost of a few more axes and of two
    tables of ids (llama_suppress.py). Document mark, end marks and padding become its special ids.

    Raises UserError when the vocabulary has many-channel or latent modalities.
    """
    check_one_channel(lm.vocabulary)
    folder = Path(folder)
    weights = _llama_weights(lm)
    for name, layer in adapters(lm):
        weights[f"{name}.weight"] = layer.merged_weight().detach()
    config = llama_config(lm)
    if unreachable:
        weights = widen(weights, lm.config.trunk, unreachable)
        config |= widened_config(lm)
    offset = ARCHITECTURES[config["model_type"]].gain_offset
    weights = {name: with_offset(name, x, -offset) for name, x in weights.items()}
    write_tensors(folder / WEIGHTS, weights, {"format": "pt"})
    # The config comes last, so that a new folder that has one is complete.
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def from_llama(folder: Path | str, vocabulary: Vocabulary, dropout: float = 0.0) -> LM:
    """Open a checkpoint folder as an LM over a vocabulary of one-channel modalities.

    The LM is in float32 on the CPU.

    Raises UserError as `llama_sizes` and `load_llama` do.
    """
    check_one_channel(vocabulary)
    lm = LM(llama_sizes(folder, DecoderConfig(TransformerConfig(dropout=dropout))), vocabulary)
    load_llama(lm, folder)
    return lm


def llama_sizes(folder: Path | str, config: DecoderConfig) -> DecoderConfig:
    """A config with its trunk replaced by that of a Llama checkpoint folder.

    Sizes, switches, rotary positions, context length, architecture and whether the output layer has
    its own table are the checkpoint's; heads and dropout stay.

    Raises UserError for a folder without a config, an architecture that is not in the table, rotary
    positions scaled otherwise than Llama 3's, and other things that no trunk here can be.
    """
    folder = Path(folder)
    llama = read_config(folder)
    check_config(llama, folder)
    return replace(
        config,
        trunk=trunk_config(llama, folder, config.trunk.dropout),
        untied=not is_tied(llama),
        model_type=llama["model_type"],
    )


def exported_vocabulary(folder: Path | str) -> str | None:
    """The fingerprint of the vocabulary that `to_llama` wrote a checkpoint folder with.

    None for folders that others wrote.
    """
    return read_config(Path(folder)).get(FINGERPRINT)


def check_llama(folder: Path | str, config: DecoderConfig, text: Signature) -> None:
    """Raise UserError unless a checkpoint's weights fit its `llama_sizes` and its text's ids.

    Reads only the headers of the files, which must not be cut short.
    """
    with torch.device("meta"):
        lm = LM(DecoderConfig(config.trunk, untied=config.untied), Vocabulary([text]))
    _check_shapes(_llama_weights(lm), read_shapes(Path(folder)), lm.vocabulary, Path(folder))


@torch.no_grad()
def load_llama(lm: LM, folder: Path | str) -> None:
    """Load a Llama checkpoint's weights into an LM made with its `llama_sizes`.

    What a Llama lacks (heads, channels) stays as it is.

    The checkpoint holds a row for each id of the vocabulary, or only for the ids of text, as a
    pretrained language model does. Text ids come first in both. In the second case the other rows
    stay untrained, except for the marks around a text: they start as copies of the language model's
    own begin and end of a document.

    Raises UserError for broken files, and for weights that do not fit this LM.
    """
    folder = Path(folder)
    vocabulary = lm.vocabulary
    config = read_config(folder)
    if FINGERPRINT in config:
        vocabulary.check(config[FINGERPRINT], str(folder))
    mine = _llama_weights(lm)
    _check_shapes(mine, read_shapes(folder), vocabulary, folder)
    weights = read_weights(folder)
    if WRITE not in mine and WRITE in weights and not torch.equal(weights[WRITE], weights[READ]):
        raise UserError(
            f"{folder} says its embeddings are tied, but its {WRITE} differs: set"
            " tie_word_embeddings to false"
        )
    n_rows = len(weights[READ])
    adapted = {f"{name}.weight": layer for name, layer in adapters(lm)}
    for name, x in mine.items():
        if name in adapted:
            adapted[name].set_weight(weights[name])
        else:
            copy_part(x, weights[name])  # of a table the first rows
    if n_rows != vocabulary.size:  # only the ids of text
        aliases = _aliases(config, vocabulary)
        for table in {READ, WRITE} & mine.keys():
            for mark, special in aliases.items():
                copy_part(mine[table], weights[table][special : special + 1], (mark, 0))


def _aliases(config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[int, int]:
    """Marks around a text -> the language model's special ids that mean the same.

    A model without an id for the beginning (Qwen, OLMo2) learned texts with its end between them,
    so there the end stands for both. Warns where its config names neither.
    """

    def first(key: str) -> Any:
        ids = config.get(key)
        if isinstance(ids, list) and ids:
            return ids[0]
        return ids

    begin = first("bos_token_id")
    end = first("eos_token_id")
    if begin is None:
        begin = end
    wanted = {
        vocabulary.document_mark: begin,
        vocabulary.begin("text"): begin,
        vocabulary.end("text"): end,
    }
    for name, special in (("bos_token_id", begin), ("eos_token_id", end)):
        if special not in vocabulary.span("text"):
            warnings.warn(
                f"the checkpoint's {CONFIG} names no {name} among its ids, so the mark in its place"
                " starts untrained",
                stacklevel=3,
            )
    return {
        mark: special
        for mark, special in wanted.items()
        if isinstance(special, int) and special in vocabulary.span("text")
    }


def _llama_weights(lm: LM) -> dict[str, Tensor]:
    """The weights of an LM that a Llama has too, under a Llama's names; adapters are left out."""
    return {
        name: x
        for name, x in lm.state_dict().items()
        if (name.startswith("model.") or name == WRITE) and not is_adapter(name)
    }


def check_one_channel(vocabulary: Vocabulary) -> None:
    """Raise UserError for modalities that a Llama has no place for."""
    beyond = [m for m, s in vocabulary.signatures.items() if not s.one_channel]
    if beyond:
        raise UserError(
            f"{', '.join(beyond)} spend one id per frame, and its channels or latents are no ids: a"
            " Llama has no place for their embeddings and heads; only a vocabulary of"
            " one-channel modalities can be one"
        )


def _check_shapes(
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, tuple[int, ...]],
    vocabulary: Vocabulary,
    folder: Path,
) -> None:
    """Raise UserError unless a checkpoint's tensors have the LM's names and shapes.

    The tables may hold the ids of text only.
    """
    missing = sorted(mine.keys() - theirs.keys())
    unknown = theirs.keys() - mine.keys() - {WRITE}
    extra = sorted(name for name in unknown if not name.endswith("rotary_emb.inv_freq"))
    if missing or extra:
        raise UserError(
            f"{folder}: its weights do not fit its config.json; missing {missing[:3]}, unknown"
            f" {extra[:3]}"
        )
    n_text = 0
    if "text" in vocabulary.signatures:
        n_text = len(vocabulary.span("text"))
    n_rows = theirs[READ][0]
    if n_rows not in (vocabulary.size, n_text):
        raise UserError(
            f"{folder} has {n_rows} ids, but this vocabulary {vocabulary.size} ({n_text} of text):"
            " another tokenizer's model?"
        )
    for name, x in mine.items():
        asked = tuple(x.shape)
        if name in (READ, WRITE):
            asked = (n_rows, *asked[1:])
        if asked != theirs[name]:
            raise UserError(
                f"{folder}: {name} has shape {theirs[name]}, but its config.json asks for {asked}"
            )
