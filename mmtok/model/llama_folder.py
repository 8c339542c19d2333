"""The files of a checkpoint folder of `transformers`: its config.json and its tensors.

A widened folder is one whose Llama never generates some ids (llama_suppress.py). It is read as the
model from before it was widened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmtok.errors import UserError
from mmtok.io.filenames import inside
from mmtok.io.strict_json import read_json
from mmtok.model.architectures import ARCHITECTURES, architecture_of, exported_as, refused
from mmtok.model.llama_suppress import (
    READ,
    WRITE,
    check_kept,
    narrow,
    narrow_shape,
    widened_eps,
    widened_width,
)
from mmtok.model.lm import LM
from mmtok.nn.attention import Llama3Scaling
from mmtok.nn.transformer import TransformerConfig

# The context length written for a trunk without one: a Llama must name one, though its rotary
# positions have no limit.
MAX_POSITIONS = 32_768
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
FINGERPRINT = "mmtok_vocabulary"  # keys of config.json that transformers carries along unread
WIDENED = "mmtok_trunk"  # the width, norm_eps and tied tables of a trunk before it was widened


# ---- config.json


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json, with the sizes before widening where it was widened."""
    where = folder / CONFIG
    config = _read_json(where)
    kept = config.get(WIDENED)
    if kept is None:
        return config
    if not isinstance(kept, dict) or not isinstance(kept.get("tied"), bool):
        raise UserError(
            f"{where}: its {WIDENED} is {kept!r}, where the width, norm_eps and tied of a trunk"
            " belong"
        )
    return config | {
        "hidden_size": _number(kept, "width", int, where),
        "rms_norm_eps": _number(kept, "norm_eps", float, where),
        "tie_word_embeddings": kept["tied"],
    }


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint folder. Raises UserError where there is none."""
    try:
        found = read_json(path, nan=True)  # fields that are not ours may hold NaN
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a checkpoint folder: it has no {path.name}"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError for a config.json of a model that this package has no place for."""
    kind = architecture_of(config, folder)
    for key, type_, what in (
        ("rope_parameters", dict, "an object"),
        ("rope_scaling", dict, "an object"),
        ("layer_types", list, "a list"),
        ("tie_word_embeddings", bool, "true or false"),
    ):
        if not isinstance(config.get(key) or type_(), type_):
            raise UserError(
                f"{folder / CONFIG} does not describe a {kind.model_type} that fits: its {key} is"
                f" {config[key]!r}, where {what} belongs"
            )
    rope = _rope(config)
    reasons = {
        f"its rotary positions are scaled in the way {rope['rope_type']!r}, not 'llama3'": (
            rope["rope_type"] not in ("default", "llama3")
        ),
        "it turns only a part of each head by its position": (
            rope.get("partial_rotary_factor", 1.0) != 1.0
        ),
        refused(config, kind): refused(config, kind) != "",
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{folder} cannot be opened: {reason}")


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's output layer is its embedding."""
    default = ARCHITECTURES[config["model_type"]].default("tie_word_embeddings")
    return bool(config.get("tie_word_embeddings", default or False))


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings, from the fields of transformers 5 or of earlier versions.

    Version 5 has `rope_parameters`; earlier ones have `rope_theta` and `rope_scaling`.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {
        "rope_theta": _without_nulls(config).get("rope_theta", 10_000.0),
        **given,
        "rope_type": given.get("rope_type", given.get("type", "default")),
    }


def trunk_config(config: Mapping[str, Any], folder: Path, dropout: float) -> TransformerConfig:
    """The trunk that a config.json describes.

    Raises UserError for sizes that are missing, no numbers, or do not fit each other.
    """
    where = folder / CONFIG
    kind = architecture_of(config, folder)
    given = {**kind.defaults, **config}
    n_heads = _number(config, "num_attention_heads", int, where)
    defaults = {"num_key_value_heads": n_heads, "rms_norm_eps": 1e-6}
    config = defaults | _without_nulls(given)
    width = _number(config, "hidden_size", int, where)
    sizes = {
        "depth": _number(config, "num_hidden_layers", int, where),
        "width": width,
        "n_heads": n_heads,
        "n_kv_heads": _number(config, "num_key_value_heads", int, where),
        "feed_forward": _number(config, "intermediate_size", int, where),
        "rope_theta": _number(_rope(config), "rope_theta", float, where),
        "norm_eps": _number(config, "rms_norm_eps", float, where),
    }
    if "max_position_embeddings" in config:
        sizes["max_positions"] = _number(config, "max_position_embeddings", int, where)
    if "head_dim" in config:
        head_dim = _number(config, "head_dim", int, where)
        if head_dim * n_heads != width:
            sizes["head_dim"] = head_dim
    if kind.has_window and "sliding_window" in config:
        sizes["sliding_window"] = _number(config, "sliding_window", int, where)
    try:
        return TransformerConfig(
            **sizes,
            dropout=dropout,
            rope_scaling=_scaling(config, where),
            qkv_bias=kind.qkv_bias,
            qk_norm=kind.qk_norm,
            norms=kind.norms,
            activation=kind.activation,
            scale_embedding=kind.scale_embedding,
        )
    except ValueError as error:
        raise UserError(
            f"{where} does not describe a {kind.model_type} that fits: {error}"
        ) from None


def _scaling(config: Mapping[str, Any], where: Path) -> Llama3Scaling | None:
    """The scaling of a config's rotary positions, if any."""
    rope = _without_nulls(_rope(config))
    if rope["rope_type"] == "default":
        return None
    rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return Llama3Scaling(
        factor=_number(rope, "factor", float, where),
        low_freq_factor=_number(rope, "low_freq_factor", float, where),
        high_freq_factor=_number(rope, "high_freq_factor", float, where),
        original_positions=_number(rope, "original_max_position_embeddings", int, where),
    )


def _without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that are set: null stands for a field's default."""
    return {key: value for key, value in config.items() if value is not None}


def _number(config: Mapping[str, Any], key: str, kind: type, where: Path) -> Any:
    """A finite number above 0 from a config, a whole one if `kind` is int.

    Raises UserError, naming the file, for anything else.
    """
    value = config.get(key)
    is_number = type(value) in (int, kind)
    if is_number and 0 < cast(float, value) < math.inf:
        return value
    found = f"it has no {key}"
    if key in config:
        found = f"its {key} is {value!r}"
    wanted = "number"
    if kind is int:
        wanted = "whole number"
    raise UserError(
        f"{where} does not describe a model that fits: {found}, where a {wanted} above 0 belongs"
    )


def _rope_config(trunk: TransformerConfig) -> dict[str, Any]:
    """A trunk's rotary settings, as `rope_parameters` of transformers 5."""
    scaling = trunk.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": trunk.rope_theta}
    return {
        "rope_type": "llama3",
        "rope_theta": trunk.rope_theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }


def llama_config(lm: LM) -> dict[str, Any]:
    """The config.json of an LM, as a Llama or as another architecture that has its switches.

    Raises UserError where none has.
    """
    trunk = lm.config.trunk
    vocabulary = lm.vocabulary
    kind = exported_as(trunk, lm.config.model_type)
    dtype = str(lm.model.embed_tokens.weight.dtype).removeprefix("torch.")
    rope = _rope_config(trunk)
    scaling = None
    if trunk.rope_scaling is not None:
        scaling = rope
    config = {
        "architectures": [kind.model],
        "model_type": kind.model_type,
        "vocab_size": vocabulary.size,
        "hidden_size": trunk.width,
        "intermediate_size": trunk.feed_forward,
        "num_hidden_layers": trunk.depth,
        "num_attention_heads": trunk.n_heads,
        "num_key_value_heads": trunk.n_kv_heads,
        "head_dim": trunk.head_size,
        "hidden_act": kind.default("hidden_act") or "silu",
        "max_position_embeddings": trunk.max_positions or MAX_POSITIONS,
        "rms_norm_eps": trunk.norm_eps,
        "rope_theta": trunk.rope_theta,  # before transformers 5
        "rope_parameters": rope,
        "rope_scaling": scaling,  # before transformers 5
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
    if kind.has_window:
        config["sliding_window"] = trunk.sliding_window
    return config


def widened_config(lm: LM) -> dict[str, Any]:
    """The fields of config.json that differ in a widened export, where some ids are unreachable."""
    trunk = lm.config.trunk
    kept = {"width": trunk.width, "norm_eps": trunk.norm_eps, "tied": not lm.config.untied}
    return {
        "hidden_size": widened_width(trunk),
        "rms_norm_eps": widened_eps(trunk),
        "tie_word_embeddings": False,
        WIDENED: kept,
    }


# ---- tensors


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's tensors, before widening where it was widened."""
    shapes = read_files(folder, _shapes)
    config = read_config(folder)
    if WIDENED not in config:
        return shapes
    width = config["hidden_size"]
    return {name: narrow_shape(name, shape, width) for name, shape in shapes.items()}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors as a trunk has them: norms' weights are what they multiply by.

    They are narrowed again where the checkpoint was widened.
    """
    weights = read_files(folder, load_file)
    config = read_config(folder)
    kind = architecture_of(config, folder)
    weights = {name: with_offset(name, x, kind.gain_offset) for name, x in weights.items()}
    if WIDENED not in config:
        return weights
    width = config["hidden_size"]
    try:
        check_kept(weights, width)
    except UserError as error:
        raise UserError(f"{folder} cannot be opened: {error}") from None
    weights = {
        name: narrow(name, x, width, kind)
        for name, x in weights.items()
        if name.endswith((".weight", ".bias"))
    }
    # where one table was two, that of the output was not multiplied, and so not rounded
    if is_tied(config) and torch.allclose(weights[READ], weights[WRITE], rtol=1e-6, atol=0):
        weights[READ] = weights[WRITE]
    return weights


def with_offset(name: str, x: Tensor, offset: float) -> Tensor:
    """A tensor; of a norm's with `offset` added, in float32 at least."""
    if offset == 0 or not name.endswith("norm.weight"):
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32)) + offset


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, from its header."""
    with safe_open(path, "pt") as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _file_names(folder: Path) -> list[str]:
    """The safetensors files of a checkpoint folder."""
    if not (folder / INDEX).exists():
        return [WEIGHTS]
    index = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise UserError(
            f"{folder / INDEX} names no files: its weight_map is not an object of names"
        )
    return sorted(set(index.values()))


def read_files(folder: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The results of `read` of a folder's files, joined.

    A folder has one file, or several that its index names.
    """
    # A snapshot of the hub's cache holds links to files elsewhere in the same model's folder.
    cache: Path | None = None
    if folder.parent.name == "snapshots":
        cache = folder.parents[1]
    found: dict[str, Any] = {}
    for name in _file_names(folder):
        try:
            found |= read(inside(folder, name, cache))
        except FileNotFoundError:
            raise UserError(
                f"{folder} has no {name}; weights are read from safetensors files only"
            ) from None
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder / name} cannot be read as safetensors: {str(error).splitlines()[0]}"
            ) from None
    return found
