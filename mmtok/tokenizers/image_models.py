"""Published image tokenizers in a folder: their sizes, and their weights under one set of names.

LlamaGen's and Janus's (Sun et al. 2024, arXiv 2406.06525), Chameleon's, the AutoencoderKL of
`diffusers`, and Emu3's, whose network is that of `transformers`.

A folder has config.json, where there is any, and weights: safetensors in one or several files, or
one .pt, .pth or .ckpt file of tensors. They may be those of a whole model that has the tokenizer
inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.errors import UserError, missing_extra, reading
from mmtok.io import memory_budget
from mmtok.io.strict_json import read_json
from mmtok.nn.vqgan import VQGAN, VQGANSizes, sizes_of
from mmtok.tokenizers.base import EMU3, JANUS, image_model_folder, image_model_kind

CONFIG = "config.json"
PREFIXES = ("", "model.vqmodel.", "vqmodel.", "model.", "first_stage_model.")
PICKLES = (".pt", ".pth", ".ckpt")
FIRST = ("encoder.conv_in.weight", "encoder.conv_in.bias")  # what every tokenizer here has
EMU3_SETTINGS = (
    "codebook_size",
    "embed_dim",
    "latent_channels",
    "double_latent",
    "in_channels",
    "out_channels",
    "temporal_downsample_factor",
    "base_channels",
    "channel_multiplier",
    "num_res_blocks",
    "attn_resolutions",
    "hidden_size",
    "num_attention_heads",
)
# names of LlamaGen and of `diffusers` -> names of Janus
LLAMAGEN = (
    (r"^encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"^decoder\.conv_blocks\.(\d+)\.res\.", r"decoder.up.\1.block."),
    (r"^decoder\.conv_blocks\.", "decoder.up."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)
DIFFUSERS = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(to_q|query)\.", ".q."),
    (r"\.(to_k|key)\.", ".k."),
    (r"\.(to_v|value)\.", ".v."),
    (r"\.(to_out\.0|proj_attn)\.", ".proj_out."),
)


@dataclass(frozen=True)
class VQGANModel:
    """A network of `mmtok.nn.vqgan`; latents are (mean - shift) x scale."""

    sizes: VQGANSizes
    scale: float = 1.0
    shift: float = 0.0

    @property
    def stride(self) -> int:
        """Pixels between patches."""
        return self.sizes.stride

    @property
    def n_codes(self) -> int:
        """Of the codebook; 0: latents."""
        return self.sizes.n_codes

    def make(self) -> VQGAN:
        """A new network."""
        return VQGAN(self.sizes)


@dataclass(frozen=True)
class Emu3Model:
    """Emu3's tokenizer; settings: of its config in `transformers`."""

    settings: Mapping[str, Any]

    @property
    def stride(self) -> int:
        """Pixels between patches."""
        return 2 ** (len(self.settings["channel_multiplier"]) - 1)

    @property
    def n_codes(self) -> int:
        """Of the codebook."""
        return int(self.settings["codebook_size"])

    def make(self) -> Emu3Network:
        """A new network. Raises UserError without `transformers`."""
        return Emu3Network(self.settings)


class Emu3Network(nn.Module):
    """Images in -1..1 to codes and back, by Emu3's network, one picture as a short film."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        try:
            from transformers import Emu3VQVAE, Emu3VQVAEConfig
        except ImportError:
            raise missing_extra("Emu3's tokenizer", "hub") from None
        with reading(CONFIG, "the settings of Emu3's tokenizer"):
            self.network: Any = Emu3VQVAE(Emu3VQVAEConfig(**settings))

    def codes(self, images: Tensor) -> Tensor:
        """(B, C, Y, X) -> codes (B, Y/s, X/s)."""
        sizes = torch.tensor([images.shape[2:]] * len(images))
        return torch.stack(list(self.network.encode(images, sizes).image_tokens))

    def images(self, codes: Tensor) -> Tensor:
        """Codes (B, Y/s, X/s) -> images (B, C, Y, X)."""
        found: Tensor = self.network.decode(codes)
        return found


ImageModel = VQGANModel | Emu3Model


def read_model(folder: Path, weights: bool = True) -> tuple[ImageModel, dict[str, Tensor]]:
    """The model in a folder, and its weights under the names of its network.

    Without `weights` these have shapes only, and no memory.

    Raises UserError for a folder without such weights, and for weights without a decoder.
    """
    folder = image_model_folder(Path(folder))
    kind = image_model_kind(folder)
    tensors = _stripped(folder, dict(_tensors(folder, weights)))
    if not any(name.startswith("decoder.") for name in tensors):
        raise UserError(
            f"{folder}: the weights have no decoder, so that codes would give no pictures (the"
            " tokenizer of Chameleon has none in `transformers`): take a checkpoint with its"
            " decoder, such as Janus's or LlamaGen's"
        )
    if kind in EMU3:
        return _emu3(folder), {f"network.{name}": value for name, value in tensors.items()}
    with reading(folder, "the weights of an image tokenizer"):
        return _vqgan(folder, kind, tensors)


def _vqgan(
    folder: Path, kind: str, tensors: dict[str, Tensor]
) -> tuple[VQGANModel, dict[str, Tensor]]:
    settings: dict[str, Any] = {}
    if (folder / CONFIG).is_file():
        settings = read_json(folder / CONFIG, nan=True)
    if any(name.startswith("encoder.conv_blocks.") for name in tensors):
        tensors = _renamed(tensors, LLAMAGEN)
        tensors.pop("quantize.codebook_used", None)
        return VQGANModel(sizes_of(tensors, normalised=True)), tensors
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        tensors = _as_convolutions(_renamed(tensors, DIFFUSERS))
        model = VQGANModel(sizes_of(tensors, settings.get("norm_num_groups", 32)))
        scale = settings.get("scaling_factor") or 1.0
        return replace(model, scale=scale, shift=settings.get("shift_factor") or 0.0), tensors
    if not any(name.startswith("decoder.up.0.upsample.") for name in tensors):
        tensors = _coarsest_first(tensors)  # as the first VQGANs are saved
    sizes = sizes_of(tensors)
    return VQGANModel(replace(sizes, normalises_codes=kind in JANUS)), tensors


def _emu3(folder: Path) -> Emu3Model:
    settings = read_json(folder / CONFIG, nan=True)
    settings = settings.get("vq_config", settings)
    missing = [name for name in EMU3_SETTINGS if name not in settings]
    if missing:
        raise UserError(f"{folder / CONFIG} does not say {missing[0]} of Emu3's tokenizer")
    return Emu3Model({name: settings[name] for name in EMU3_SETTINGS})


def _tensors(folder: Path, weights: bool) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder's files."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        from safetensors import safe_open

        for path in files:
            if weights:
                memory_budget.check(path.stat().st_size, path)
            with reading(path, "weights"), safe_open(path, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  no mapping
                    if weights:
                        yield name, opened.get_tensor(name)
                    else:
                        shape = opened.get_slice(name).get_shape()
                        yield name, torch.empty(shape, device="meta")
        return
    files = [path for path in sorted(folder.glob("*")) if path.suffix in PICKLES]
    if len(files) != 1:
        raise UserError(
            f"{folder} has {len(files)} files of weights; an image tokenizer's folder has"
            f" .safetensors files, or one of {', '.join(PICKLES)}"
        )
    memory_budget.check(files[0].stat().st_size, files[0])
    with reading(files[0], "weights"):
        found = torch.load(files[0], map_location="cpu", weights_only=True, mmap=True)
        for name in ("model", "state_dict"):
            found = found.get(name, found)
        for name, value in found.items():
            if isinstance(value, Tensor):
                yield name, value


def _stripped(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tokenizer, without the prefix that a whole model has."""
    for prefix in PREFIXES:
        if any(prefix + name in tensors for name in FIRST):
            n = len(prefix)
            return {name[n:]: v for name, v in tensors.items() if name.startswith(prefix)}
    raise UserError(
        f"{folder} holds no image tokenizer that is known here: LlamaGen's, Janus's, Chameleon's or"
        " Emu3's codes, or an AutoencoderKL of `diffusers`"
    )


def _renamed(
    tensors: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def _as_convolutions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Linear layers of attention as convolutions of one pixel."""
    for name, value in tensors.items():
        if ".attn_1." in name and name.endswith("weight") and value.ndim == 2:
            tensors[name] = value[:, :, None, None]
    return tensors


def _coarsest_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The levels of the decoder in the order in which they are used."""
    levels = {int(n.split(".")[2]) for n in tensors if n.startswith("decoder.up.")}
    found = {}
    for name, value in tensors.items():
        if name.startswith("decoder.up."):
            parts = name.split(".")
            parts[2] = str(max(levels) - int(parts[2]))
            name = ".".join(parts)
        found[name] = value
    return found
