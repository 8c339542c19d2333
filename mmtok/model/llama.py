"""To `transformers` and back: over one-channel modalities the trunk is a Llama, weight by weight.

What a Llama cannot hold is refused in both directions, not dropped. The grammar is no part of a
Llama: its logits are `LM.logits`, over all ids, but for suppressed ones (llama_suppress.py).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.io.filenames import inside
from mmtok.io.files import write_tensors, write_text
from mmtok.io.strict_json import read_json
from mmtok.model.llama_suppress import (
    READ,
    WRITE,
    check_kept,
    narrow,
    narrow_shape,
    widen,
    widened_eps,
    widened_width,
)
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.attention import Llama3Scaling
from mmtok.nn.transformer import TransformerConfig

# of a trunk that names none: a Llama must; the rotary positions themselves have no limit
MAX_POSITIONS = 32_768
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
FINGERPRINT = "mmtok_vocabulary"  # keys of config.json that transformers carries along unread
WIDENED = "mmtok_trunk"  # the width, norm_eps and tied tables of a trunk before it was widened


def to_llama(lm: LM, folder: Path | str, unreachable: Sequence[int] = ()) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` opens with equal logits.

    unreachable: ids that the Llama never generates, at the cost of a few more axes and of two
    tables of ids (llama_suppress.py). Document mark, end marks and padding become its special ids.

    Raises UserError when the vocabulary has many-channel or latent modalities.
    """
    check_one_channel(lm.vocabulary)
    folder, weights, config = Path(folder), _llama_weights(lm), _llama_config(lm)
    if unreachable:
        weights = widen(weights, lm.config.trunk, unreachable)
        config |= _widened_config(lm)
    write_tensors(folder / WEIGHTS, weights, {"format": "pt"})
    write_text(
        folder / CONFIG, json.dumps(config, indent=2) + "\n"
    )  # last, so that a new folder that has one is whole


def from_llama(folder: Path | str, vocabulary: Vocabulary, dropout: float = 0.0) -> LM:
    """Open a Llama checkpoint folder as an LM over a `vocabulary` of one-channel modalities, in
    float32 on the CPU.

    Raises UserError as `llama_sizes` and `load_llama` do.
    """
    check_one_channel(vocabulary)
    lm = LM(llama_sizes(folder, DecoderConfig(TransformerConfig(dropout=dropout))), vocabulary)
    load_llama(lm, folder)
    return lm


def llama_sizes(folder: Path | str, config: DecoderConfig = DecoderConfig()) -> DecoderConfig:
    """`config` with the trunk of a Llama checkpoint folder: its sizes, rotary positions, context
    length and tables of ids; dropout stays.

    Raises UserError for a folder without a config, another architecture, rotary positions scaled
    otherwise than Llama 3's, biases or quantised weights.
    """
    folder = Path(folder)
    llama = _read_config(folder)
    _check_config(llama, folder)
    return replace(
        config,
        trunk=_trunk_config(llama, folder, config.trunk.dropout),
        untied=not llama.get("tie_word_embeddings", False),
    )


def exported_vocabulary(folder: Path | str) -> str | None:
    """The fingerprint of the vocabulary that a checkpoint folder was written with by `to_llama`, or
    None for anybody else's.
    """
    return _read_config(Path(folder)).get(FINGERPRINT)


def check_llama(folder: Path | str, config: DecoderConfig, text: Signature) -> None:
    """Raise UserError unless a checkpoint's weights are whole files that fit its `llama_sizes` and
    its text's ids. Reads headers alone.
    """
    with torch.device("meta"):
        lm = LM(DecoderConfig(config.trunk, untied=config.untied), Vocabulary([text]))
    _check_shapes(_llama_weights(lm), _read_shapes(Path(folder)), lm.vocabulary, Path(folder))


@torch.no_grad()
def load_llama(lm: LM, folder: Path | str) -> None:
    """Put a Llama checkpoint's weights into an LM made with its `llama_sizes`; what a Llama lacks
    (heads, channels) stays as it is.

    The checkpoint holds either a row for each id of the vocabulary, or the text's alone (a
    pretrained language model: its ids come first here too). Then the other rows stay as an
    untrained model's, but for the marks around a text, which start as what the
    language model knows in their place: its beginning of a document and its end. Raises UserError
    for broken files, or weights that are not this LM's.
    """
    folder, vocabulary = Path(folder), lm.vocabulary
    config = _read_config(folder)
    if FINGERPRINT in config:
        vocabulary.check(config[FINGERPRINT], str(folder))
    mine = _llama_weights(lm)
    _check_shapes(mine, _read_shapes(folder), vocabulary, folder)
    weights = _read_weights(folder)
    if WRITE not in mine and WRITE in weights and not torch.equal(weights[WRITE], weights[READ]):
        raise UserError(
            f"{folder} says its embeddings are tied, but its {WRITE} differs: set"
            " tie_word_embeddings to false"
        )
    n_rows = len(weights[READ])
    for name, x in mine.items():
        (x[:n_rows] if name in (READ, WRITE) else x).copy_(weights[name])
    if n_rows != vocabulary.size:  # the text's alone
        aliases = _aliases(config, vocabulary)
        for table in {READ, WRITE} & mine.keys():
            for mark, special in aliases.items():
                mine[table][mark] = mine[table][special]


def _aliases(config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[int, int]:
    """Marks around a text -> the special ids of a language model that stand there.

    Warns where it names none.
    """

    def first(ids: Any) -> Any:
        return ids[0] if isinstance(ids, list) and ids else ids

    begin, end = first(config.get("bos_token_id")), first(config.get("eos_token_id"))
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
    """What of an LM is a Llama's, under a Llama's names."""
    return {
        name: x for name, x in lm.state_dict().items() if name.startswith("model.") or name == WRITE
    }


# ---- what a Llama cannot say


def check_one_channel(vocabulary: Vocabulary) -> None:
    """Raise UserError for modalities that a Llama has no place for."""
    beyond = [m for m, s in vocabulary.signatures.items() if not s.one_channel]
    if beyond:
        raise UserError(
            f"{', '.join(beyond)} spend one id per frame and carry channels or latents beside it: a"
            " Llama has no place for their embeddings and heads; only a vocabulary of one-channel"
            " modalities can be one"
        )


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise UserError(f"{folder} holds a model of type {kind!r}; only 'llama' can be opened")
    for key, kind in (
        ("rope_parameters", dict),
        ("rope_scaling", dict),
        ("tie_word_embeddings", bool),
    ):
        what = "true or false" if kind is bool else "an object"
        if not isinstance(config.get(key) or kind(), kind):
            raise UserError(
                f"{folder / CONFIG} does not describe a Llama that fits: its {key} is"
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
        "its layers have biases": config.get("attention_bias") or config.get("mlp_bias"),
        f"its activation is {config.get('hidden_act')!r}, not 'silu'": (
            config.get("hidden_act", "silu") != "silu"
        ),
        "its weights are quantised": config.get("quantization_config") is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"{folder} cannot be opened: {reason}")


def _check_shapes(
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, tuple[int, ...]],
    vocabulary: Vocabulary,
    folder: Path,
) -> None:
    missing = sorted(mine.keys() - theirs.keys())
    extra = sorted(
        n
        for n in theirs.keys() - mine.keys()
        if n != WRITE and not n.endswith("rotary_emb.inv_freq")
    )
    if missing or extra:
        raise UserError(
            f"{folder}: its weights do not fit its config.json; missing {missing[:3]}, unknown"
            f" {extra[:3]}"
        )
    n_text = len(vocabulary.span("text")) if "text" in vocabulary.signatures else 0
    n_rows = theirs[READ][0]
    if n_rows not in (vocabulary.size, n_text):
        raise UserError(
            f"{folder} has {n_rows} ids, but this vocabulary {vocabulary.size} ({n_text} of text):"
            " another tokenizer's model?"
        )
    for name, x in mine.items():
        asked = (n_rows, *x.shape[1:]) if name in (READ, WRITE) else tuple(x.shape)
        if asked != theirs[name]:
            raise UserError(
                f"{folder}: {name} has shape {theirs[name]}, but its config.json asks for {asked}"
            )


# ---- the two configs


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings as they are kept since transformers 5 (`rope_parameters`) or before
    (`rope_theta`, `rope_scaling`).
    """
    given, base = (
        config.get("rope_parameters") or config.get("rope_scaling") or {},
        _set(config).get("rope_theta", 10_000.0),
    )
    return {
        "rope_theta": base,
        **given,
        "rope_type": given.get("rope_type", given.get("type", "default")),
    }


def _trunk_config(config: Mapping[str, Any], folder: Path, dropout: float) -> TransformerConfig:
    given, where = _rope(config), folder / CONFIG
    n_heads = _number(config, "num_attention_heads", int, where)
    sizes = {
        "depth": _number(config, "num_hidden_layers", int, where),
        "width": _number(config, "hidden_size", int, where),
        "n_heads": n_heads,
        "n_kv_heads": _number(
            {"num_key_value_heads": n_heads} | _set(config), "num_key_value_heads", int, where
        ),
        "feed_forward": _number(config, "intermediate_size", int, where),
        "rope_theta": _number(given, "rope_theta", float, where),
        "norm_eps": _number({"rms_norm_eps": 1e-6} | _set(config), "rms_norm_eps", float, where),
    }
    if config.get("max_position_embeddings") is not None:
        sizes["max_positions"] = _number(config, "max_position_embeddings", int, where)
    try:
        trunk = TransformerConfig(**sizes, dropout=dropout, rope_scaling=_scaling(config, where))
    except ValueError as error:
        raise UserError(f"{where} does not describe a Llama that fits: {error}") from None
    head_size = _number({"head_dim": trunk.width // n_heads} | _set(config), "head_dim", int, where)
    if head_size * n_heads != trunk.width:
        raise UserError(
            f"{folder} cannot be opened: its {n_heads} heads of size {head_size} do not make up its"
            f" width {trunk.width}"
        )
    return trunk


def _scaling(config: Mapping[str, Any], where: Path) -> Llama3Scaling | None:
    rope = _set(_rope(config))
    if rope["rope_type"] == "default":
        return None
    rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    factors = (
        _number(rope, name, float, where)
        for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    return Llama3Scaling(*factors, _number(rope, "original_max_position_embeddings", int, where))


def _set(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config is set: null stands for its default."""
    return {key: value for key, value in config.items() if value is not None}


def _number(config: Mapping[str, Any], key: str, kind: type, where: Path) -> Any:
    """A number above 0 of a config, whole where `kind` is int.

    Raises UserError, naming the file, for anything else.
    """
    value = config.get(key)
    if type(value) not in (int, kind) or not 0 < value < math.inf:
        said = f"its {key} is {value!r}" if key in config else f"it has no {key}"
        raise UserError(
            f"{where} does not describe a Llama that fits: {said}, where a"
            f" {'whole ' * (kind is int)}number above 0 belongs"
        )
    return value


def _rope_config(trunk: TransformerConfig) -> dict[str, Any]:
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
        "max_position_embeddings": trunk.max_positions or MAX_POSITIONS,
        "rms_norm_eps": trunk.norm_eps,
        "rope_theta": trunk.rope_theta,  # before transformers 5
        "rope_parameters": _rope_config(trunk),
        "rope_scaling": (
            None if trunk.rope_scaling is None else _rope_config(trunk)
        ),  # before transformers 5
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


def _widened_config(lm: LM) -> dict[str, Any]:
    """What of a config is another one's where ids are out of reach."""
    trunk = lm.config.trunk
    kept = {"width": trunk.width, "norm_eps": trunk.norm_eps, "tied": not lm.config.untied}
    return {
        "hidden_size": widened_width(trunk),
        "rms_norm_eps": widened_eps(trunk),
        "tie_word_embeddings": False,
        WIDENED: kept,
    }


# ---- files


def _read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; of a widened one, with the sizes from before."""
    config, where = _read_json(folder / CONFIG), folder / CONFIG
    kept = config.get(WIDENED)
    if kept is None:
        return config
    if not isinstance(kept, dict) or not isinstance(kept.get("tied"), bool):
        raise UserError(
            f"{where}: its {WIDENED} is {kept!r}, where the width, norm_eps and tied of a trunk"
            " belong"
        )
    width, eps = _number(kept, "width", int, where), _number(kept, "norm_eps", float, where)
    return config | {"hidden_size": width, "rms_norm_eps": eps, "tie_word_embeddings": kept["tied"]}


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    shapes, config = _read_files(folder, _shapes), _read_config(folder)
    if WIDENED not in config:
        return shapes
    return {
        name: narrow_shape(name, shape, config["hidden_size"]) for name, shape in shapes.items()
    }


def _read_weights(folder: Path) -> dict[str, Tensor]:
    weights, config = _read_files(folder, load_file), _read_config(folder)
    if WIDENED not in config:
        return weights
    try:
        check_kept(weights, config["hidden_size"])
    except UserError as error:
        raise UserError(f"{folder} cannot be opened: {error}") from None
    return {
        name: narrow(name, x, config["hidden_size"])
        for name, x in weights.items()
        if name.endswith(".weight")
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, nan=True)  # a foreign file's other fields may hold what they like
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a checkpoint folder: it has no {path.name}"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object")
    return found


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def _read_files(folder: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What `read` gives of every tensor of a folder, from one file or from the shards that its
    index names.
    """
    index = (
        _read_json(folder / INDEX).get("weight_map") if (folder / INDEX).exists() else {"": WEIGHTS}
    )
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise UserError(
            f"{folder / INDEX} names no files: its weight_map is not an object of names"
        )
    found: dict[str, Any] = {}
    copies = (
        folder.parents[1] if folder.parent.name == "snapshots" else None
    )  # of the hub: links to files of the same model
    for name in sorted(set(index.values())):
        try:
            found |= read(inside(folder, name, copies))
        except FileNotFoundError:
            raise UserError(
                f"{folder} has no {name}; weights are read from safetensors files only"
            ) from None
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder / name} cannot be read as safetensors: {str(error).splitlines()[0]}"
            ) from None
    return found
