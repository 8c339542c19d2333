"""The weights of one decoder in another whose vocabulary contains its own.

Rows of ids are copied by what the ids mean, everything else by its name. So the new decoder gives
the old one's states and logits of documents of the old vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmtok.core.vocabulary import NAMED_CONTROLS, Vocabulary
from mmtok.errors import UserError
from mmtok.model.lm import LM
from mmtok.model.origin import Origin
from mmtok.nn.lora import adapters, is_adapter
from mmtok.nn.sharded import copy_part
from mmtok.nn.tokenformer import Pattention

ID_TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # a row for each id


def id_blocks(old: Vocabulary, new: Vocabulary) -> list[tuple[int, int, int]]:
    """(first id of the old one, first of the new one, how many) of ids of the same meaning.

    Raises UserError where the new vocabulary does not contain the old one.
    """
    if old.fingerprint == new.fingerprint:
        return [(0, 0, old.size)]
    blocks = [(old.pad, new.pad, len(NAMED_CONTROLS))]
    for m, signature in old.signatures.items():
        if new.signatures.get(m) != signature:
            raise UserError(
                f"the vocabulary has other ids of {m} than the one to start from, or none: use the"
                " tokenizer that was used there"
            )
        blocks.append((old.begin(m), new.begin(m), 2))
        blocks.append((old.span(m)[0], new.span(m)[0], len(old.span(m))))
    return blocks


@torch.no_grad()
def transfer(old: LM, new: LM) -> Origin:
    """Copy the weights of an old decoder into a new one, which may be sharded.

    Tables of ids may have more rows, the trunk more parameter tokens (which are silenced, so that
    they change nothing yet) and adapters: those of the old one are merged into its weights, unless
    both have the same.

    Raises UserError where the vocabulary is none that contains the old one's, or sizes differ.
    """
    blocks = id_blocks(old.vocabulary, new.vocabulary)
    theirs = _weights(old, new)
    mine = new.state_dict()
    bases = {f"{name}.weight": layer for name, layer in adapters(new)}
    same_adapters = old.config.adapters() == new.config.adapters()
    n_copied = 0
    for name in mine.keys() & theirs.keys():
        source = theirs[name]
        if name in ID_TABLES:
            for first, begin, n in blocks:
                copy_part(mine[name], source[first : first + n], (begin, 0))
                n_copied += n * source.shape[1]
            continue
        if mine[name].shape != source.shape:
            raise UserError(
                f"{name} has shape {tuple(source.shape)} in the run to start from, and"
                f" {tuple(mine[name].shape)} in this recipe's model"
            )
        if name in bases and not same_adapters:
            bases[name].set_weight(source)
        else:
            copy_part(mine[name], source)
        n_copied += source.numel()
    _silence_added(new, theirs)
    n_all = sum(x.numel() for x in mine.values())
    left_out = {_part(name) for name in theirs.keys() - mine.keys()}
    return Origin(n_copied, n_all - n_copied, tuple(sorted(left_out)))


def _part(name: str) -> str:
    """The part of a decoder that a tensor belongs to: heads.jets, lm_head."""
    return ".".join(name.split(".")[:-1][:2])


def _weights(old: LM, new: LM) -> Mapping[str, Tensor]:
    """The old decoder's weights; without adapters, merged, where the new one has not the same."""
    weights = old.state_dict()
    if old.config.adapters() == new.config.adapters():
        return weights
    plain = {name: x for name, x in weights.items() if not is_adapter(name)}
    for name, layer in adapters(old):
        plain[f"{name}.weight"] = layer.merged_weight()
    return plain


def _silence_added(new: nn.Module, theirs: Mapping[str, Tensor]) -> None:
    """Let parameter tokens that the old decoder has not change nothing yet."""
    for name, module in new.named_modules():
        if isinstance(module, Pattention):
            n_before = sum(key.startswith(f"{name}.key_") for key in theirs)
            if n_before:
                module.silence(n_before)
