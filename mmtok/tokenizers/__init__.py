"""Tokenizers: one raw signal <-> one `Segment`. Each modality has its files.

This page opens a saved tokenizer of any kind. It imports nothing until it is asked, so that a text
tokenizer needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok.errors import UserError

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Tokenizer

# the class that tokenizer.json names as its kind -> its file
KINDS = {
    "Bytes": "text",
    "SentencePiece": "text",
    "PublishedPieces": "published",
    "PretrainedText": "pretrained",
    "DMel": "speech",
    "LogMel": "speech_latents",
    "Codec": "codecs",
    "Pixels": "images",
    "VQPatches": "images",
    "AnySizePatches": "any_size",
    "PatchRows": "patch_rows",
    "ImageCheckpoint": "image_checkpoints",
    "PixelLatents": "image_latents",
    "KLPatches": "image_latents",
    "JetGrid": "jets",
    "JetCodes": "jet_codes",
    "JetLatents": "jet_latents",
    "JetVQ": "jet_vq",
    "JetAutoencoder": "jet_autoencoder",
    "Molecule": "molecules",
    "Conformation": "molecules",
    "Number": "numbers",
    "Vector": "vectors",
    "Videos": "video",
    "Voice": "voices",
}
MODALITIES = ("text", "speech", "image", "jets")
# tokenizers without anything learned that have a name -> file and class of the config
PRESETS = dict.fromkeys(
    ("dmel-80hz", "dmel-40hz", "dmel-40hz-causal", "inkling-20hz"), ("speech", "DMelConfig")
) | {"jetclass": ("jets", "JetGridConfig")}


def load(folder: Path, known: Sequence[type[Tokenizer]] = ()) -> Tokenizer:
    """Open a tokenizer: a folder, whichever class wrote it, a preset, or a published one.

    A preset goes by its name in `PRESETS`, unless a folder has it. A published text tokenizer is a
    sentencepiece `.model` file, or a folder whose tokenizer.json is of the package `tokenizers`; a
    published codec of speech, or tokenizer of images, is a folder with its config.json.

    known: classes from outside this package that the folder may also hold.
    Raises UserError for a folder that is not a tokenizer's or names an unknown class.
    """
    from mmtok.tokenizers.base import is_codec, is_image_model, is_published, naming, read_config

    folder = Path(folder)
    if is_preset(folder):
        return preset(str(folder))
    if folder.suffix == ".model" and not folder.is_dir():
        from mmtok.tokenizers.published import SentencePieceFile

        return SentencePieceFile(str(folder)).build()
    if is_published(folder):
        from mmtok.tokenizers.pretrained import PretrainedTextConfig

        return PretrainedTextConfig(str(folder)).build()
    if is_codec(folder):
        from mmtok.tokenizers.codecs import opened_checkpoint

        return opened_checkpoint(folder)
    if is_image_model(folder):
        from mmtok.tokenizers import image_checkpoints

        return image_checkpoints.opened_checkpoint(folder)
    found = _class_of_kind(read_config(folder).get("kind"), folder, known)
    with naming(folder):  # settings that do not fit together, too
        return found.load(folder)


def is_preset(folder: Path) -> bool:
    """Whether a path is the name of a preset, and nothing lies there."""
    return str(folder) in PRESETS and not folder.exists()


def preset(name: str) -> Tokenizer:
    """The tokenizer of this name, "dmel-40hz"."""
    module, config = PRESETS[name]
    make = getattr(import_module(f"mmtok.tokenizers.{module}"), config)
    found: Tokenizer = getattr(make, name.replace("-", "_"))().build()
    return found


def _class_of_kind(kind: object, folder: Path, known: Sequence[type[Tokenizer]]) -> type[Tokenizer]:
    from mmtok.io.messages import shown

    if isinstance(kind, str) and kind in KINDS:
        module = import_module(f"mmtok.tokenizers.{KINDS[kind]}")
        found: type[Tokenizer] = getattr(module, kind)
        return found
    for outside in known:
        if outside.__name__ == kind:
            return outside
    raise UserError(
        f"{folder}/tokenizer.json: unknown kind of tokenizer {shown(kind)}, of another version"
        " of mmtok, or a class of your own (then name its recipe too: --recipe FILE)"
    )


def default(modality: str) -> Tokenizer:
    """The tokenizer of a modality that needs no training.

    UTF-8 bytes, dMel at 80 Hz, pixels of 256 levels (any picture, nothing lost), the jet grid
    41/61/61, fine about the axis.
    """
    match modality:
        case "text":
            from mmtok.tokenizers.text import BytesConfig

            return BytesConfig().build()
        case "speech":
            from mmtok.tokenizers.speech import DMelConfig

            return DMelConfig().build()
        case "image":
            from mmtok.tokenizers.images import PixelsConfig

            return PixelsConfig(n_levels=256).build()
        case "jets":
            from mmtok.tokenizers.jets import JetGridConfig

            return JetGridConfig().build()
    raise UserError(
        f"no training-free tokenizer for modality {modality!r}; one of {', '.join(MODALITIES)}"
    )
