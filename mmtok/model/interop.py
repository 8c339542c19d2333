"""To `transformers` and back: over one-channel modalities the trunk is a Llama, weight by weight.

What a Llama cannot say is refused in both directions rather than dropped. The grammar is no part of it: its logits are
`LM.logits`, over all ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmtok.files import write_tensors, write_text
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.attention import Llama3Scaling
from mmtok.nn.transformer import TransformerConfig
from mmtok.segment import BadInput
from mmtok.vocabulary import Vocabulary

MAX_POSITIONS = 32_768  # a Llama must name one; the rotary positions themselves have no limit
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
READ, WRITE = "model.embed_tokens.weight", "lm_head.weight"  # the tables of ids; the second where they are untied
FINGERPRINT = "mmtok_vocabulary"  # a key of config.json that transformers carries along unread


def to_llama(lm: LM, folder: Path | str) -> None:
    """Write `config.json` and `model.safetensors`, which `AutoModelForCausalLM.from_pretrained(folder)` opens with equal logits.

    Document mark, end marks and padding become its special ids. Raises BadInput when the vocabulary has many-channel or latent modalities.
    """
    _check_one_channel(lm.vocabulary)
    folder = Path(folder)
    write_tensors(folder / WEIGHTS, _llama_weights(lm), {"format": "pt"})
    write_text(folder / CONFIG, json.dumps(_llama_config(lm), indent=2) + "\n")  # last, so that a new folder that has one is whole


def from_llama(folder: Path | str, vocabulary: Vocabulary, dropout: float = 0.0) -> LM:
    """Open a Llama checkpoint folder as an LM over a `vocabulary` of one-channel modalities, in float32 on the CPU.

    Raises BadInput as `llama_sizes` and `load_llama` do.
    """
    _check_one_channel(vocabulary)
    lm = LM(llama_sizes(folder, DecoderConfig(TransformerConfig(dropout=dropout))), vocabulary)
    load_llama(lm, folder)
    return lm


def llama_sizes(folder: Path | str, config: DecoderConfig = DecoderConfig()) -> DecoderConfig:
    """`config` with the trunk of a Llama checkpoint folder: its sizes, rotary positions and tables of ids; dropout stays.

    Raises BadInput for a folder without a config, another architecture, rotary positions scaled otherwise than Llama 3's, biases or
    quantised weights.
    """
    folder = Path(folder)
    llama = _read_json(folder / CONFIG)
    _check_config(llama, folder)
    return replace(config, trunk=_trunk_config(llama, folder, config.trunk.dropout), untied=not llama.get("tie_word_embeddings", False))


def exported_vocabulary(folder: Path | str) -> str | None:
    """The fingerprint of the vocabulary that a checkpoint folder was written with by `to_llama`, or None for anybody else's."""
    return _read_json(Path(folder) / CONFIG).get(FINGERPRINT)


@torch.no_grad()
def load_llama(lm: LM, folder: Path | str) -> None:
    """Put a Llama checkpoint's weights into an LM made with its `llama_sizes`; what a Llama lacks (heads, channels) stays as it is.

    The checkpoint holds either a row for each id of the vocabulary, or the text's alone (a pretrained language model: its ids come
    first here too). Then the other rows stay as an untrained model's, but for the marks around a text, which start as what the
    language model knows in their place: its beginning of a document and its end. Raises BadInput for broken files, or weights that
    are not this LM's.
    """
    folder, vocabulary = Path(folder), lm.vocabulary
    config = _read_json(folder / CONFIG)
    if FINGERPRINT in config:
        vocabulary.check(config[FINGERPRINT], str(folder))
    weights, mine = _read_weights(folder), _llama_weights(lm)
    _check_names(mine, weights, folder)
    n_text = len(vocabulary.span("text")) if "text" in vocabulary.signatures else 0
    n_rows = len(weights[READ])
    if n_rows not in (vocabulary.size, n_text):
        raise BadInput(f"{folder} has {n_rows} ids, but this vocabulary {vocabulary.size} ({n_text} of text): another tokenizer's model?")
    if WRITE not in mine and WRITE in weights and not torch.equal(weights[WRITE], weights[READ]):
        raise BadInput(f"{folder} says its embeddings are tied, but its {WRITE} differs: set tie_word_embeddings to false")
    for name, x in mine.items():
        mine_part = x[:n_rows] if name in (READ, WRITE) else x
        if mine_part.shape != weights[name].shape:
            shapes = tuple(weights[name].shape), tuple(mine_part.shape)
            raise BadInput(f"{folder}: {name} has shape {shapes[0]}, but its config.json asks for {shapes[1]}")
        mine_part.copy_(weights[name])
    if n_rows == n_text:
        for table in {READ, WRITE} & mine.keys():
            for mark, special in _aliases(config, vocabulary).items():
                mine[table][mark] = mine[table][special]


def _aliases(config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[int, int]:
    """Marks around a text -> the special ids of a language model that stand there."""
    first = lambda ids: ids[0] if isinstance(ids, list) and ids else ids
    begin, end = first(config.get("bos_token_id")), first(config.get("eos_token_id"))
    wanted = {vocabulary.document_mark: begin, vocabulary.begin("text"): begin, vocabulary.end("text"): end}
    return {mark: special for mark, special in wanted.items() if isinstance(special, int) and special in vocabulary.span("text")}


def _llama_weights(lm: LM) -> dict[str, Tensor]:
    """What of an LM is a Llama's, under a Llama's names."""
    return {name: x for name, x in lm.state_dict().items() if name.startswith("model.") or name == WRITE}


# ---- what a Llama cannot say


def _check_one_channel(vocabulary: Vocabulary) -> None:
    beyond = [m for m, s in vocabulary.signatures.items() if not s.one_channel]
    if beyond:
        raise BadInput(
            f"{', '.join(beyond)} spend one id per frame and carry channels or latents beside it: a Llama has no place for "
            "their embeddings and heads; only a vocabulary of one-channel modalities can be one"
        )


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise BadInput(f"{folder} holds a model of type {kind!r}; only 'llama' can be opened")
    rope = _rope(config)
    reasons = {
        f"its rotary positions are scaled in the way {rope['rope_type']!r}, not 'llama3'": rope["rope_type"] not in ("default", "llama3"),
        "it turns only a part of each head by its position": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "its layers have biases": config.get("attention_bias") or config.get("mlp_bias"),
        f"its activation is {config.get('hidden_act')!r}, not 'silu'": config.get("hidden_act", "silu") != "silu",
        "its weights are quantised": config.get("quantization_config") is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise BadInput(f"{folder} cannot be opened: {reason}")


def _check_names(mine: Mapping[str, Tensor], weights: Mapping[str, Tensor], folder: Path) -> None:
    missing = sorted(mine.keys() - weights.keys())
    extra = sorted(n for n in weights.keys() - mine.keys() if n != WRITE and not n.endswith("rotary_emb.inv_freq"))
    if missing or extra:
        raise BadInput(f"{folder}: its weights do not fit its config.json; missing {missing[:3]}, unknown {extra[:3]}")


# ---- the two configs


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings as they are kept since transformers 5 (`rope_parameters`) or before (`rope_theta`, `rope_scaling`)."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": config.get("rope_theta", 10_000.0), **given, "rope_type": given.get("rope_type", given.get("type", "default"))}


def _trunk_config(config: Mapping[str, Any], folder: Path, dropout: float) -> TransformerConfig:
    try:
        n_heads = config["num_attention_heads"]
        trunk = TransformerConfig(
            depth=config["num_hidden_layers"],
            width=config["hidden_size"],
            n_heads=n_heads,
            n_kv_heads=config.get("num_key_value_heads") or n_heads,
            feed_forward=config["intermediate_size"],
            rope_theta=_rope(config)["rope_theta"],
            norm_eps=config.get("rms_norm_eps", 1e-6),
            dropout=dropout,
            rope_scaling=_scaling(config),
        )
    except (KeyError, ValueError) as error:
        raise BadInput(f"{folder / CONFIG} does not describe a Llama that fits: {error}") from None
    head_size = config.get("head_dim") or trunk.width // n_heads
    if head_size * n_heads != trunk.width:
        raise BadInput(f"{folder} cannot be opened: its {n_heads} heads of size {head_size} do not make up its width {trunk.width}")
    return trunk


def _scaling(config: Mapping[str, Any]) -> Llama3Scaling | None:
    rope = _rope(config)
    if rope["rope_type"] == "default":
        return None
    positions = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    return Llama3Scaling(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], positions)


def _rope_config(trunk: TransformerConfig) -> dict[str, Any]:
    scaling = trunk.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": trunk.rope_theta}
    return {"rope_type": "llama3", "rope_theta": trunk.rope_theta, "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor, "original_max_position_embeddings": scaling.original_positions}


def _llama_config(lm: LM) -> dict[str, Any]:
    trunk, vocabulary = lm.config.trunk, lm.vocabulary
    dtype = str(lm.model.embed_tokens.weight.dtype).removeprefix("torch.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary.size,
        "hidden_size": trunk.width,
        "intermediate_size": trunk.feed_forward,
        "num_hidden_layers": trunk.depth,
        "num_attention_heads": trunk.n_heads,
        "num_key_value_heads": trunk.n_kv_heads,
        "head_dim": trunk.width // trunk.n_heads,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": trunk.norm_eps,
        "rope_theta": trunk.rope_theta,  # before transformers 5
        "rope_parameters": _rope_config(trunk),
        "rope_scaling": None if trunk.rope_scaling is None else _rope_config(trunk),  # before transformers 5
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": not lm.config.untied,
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.document_mark,
        "eos_token_id": [vocabulary.end(m) for m in vocabulary.signatures],
        "dtype": dtype,
        "torch_dtype": dtype,  # before transformers 5
        FINGERPRINT: vocabulary.fingerprint,
    }


# ---- files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path.parent} is not a checkpoint folder: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is not a JSON object")
    return found


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or from the shards that its index names."""
    names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values())) if (folder / INDEX).exists() else [WEIGHTS]
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            weights |= load_file(folder / name)
        except FileNotFoundError:
            raise BadInput(f"{folder} has no {name}; weights are read from safetensors files only") from None
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{folder / name} cannot be read as safetensors: {str(error).splitlines()[0]}") from None
    return weights
