"""Tokenizers: one raw signal <-> one `Segment`.

Each modality has its file; this page only finds them again.

Nothing is imported here until it is asked for, so that text costs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok.errors import UserError

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Tokenizer

MODALITIES = ("text", "speech", "image", "jets")


def load(folder: Path, known: Sequence[type] = ()) -> Tokenizer:
    """Open a tokenizer's folder, of whichever class wrote it; or a sentencepiece `.model` file, or
    the folder of a published text tokenizer, whose tokenizer.json is of the package `tokenizers`.

    known: classes from outside this package (a new modality's) that the folder may also hold.
    Raises UserError for a folder that is not a tokenizer's or names an unknown class.
    """
    from mmtok.io.messages import shown
    from mmtok.tokenizers.base import is_published, read_config

    if Path(folder).suffix == ".model" and not Path(folder).is_dir():
        from mmtok.tokenizers.published import SentencePieceFile

        return SentencePieceFile(str(folder)).build()
    if is_published(Path(folder)):
        from mmtok.tokenizers.pretrained import PretrainedTextConfig

        return PretrainedTextConfig(str(folder)).build()
    kind = read_config(Path(folder)).get("kind")
    match kind:
        case "Bytes":
            from mmtok.tokenizers.text import Bytes as found
        case "SentencePiece":
            from mmtok.tokenizers.text import SentencePiece as found
        case "PublishedPieces":
            from mmtok.tokenizers.published import PublishedPieces as found
        case "PretrainedText":
            from mmtok.tokenizers.pretrained import PretrainedText as found
        case "DMel":
            from mmtok.tokenizers.speech import DMel as found
        case "Pixels":
            from mmtok.tokenizers.images import Pixels as found
        case "VQPatches":
            from mmtok.tokenizers.images import VQPatches as found
        case "PixelLatents":
            from mmtok.tokenizers.image_latents import PixelLatents as found
        case "KLPatches":
            from mmtok.tokenizers.image_latents import KLPatches as found
        case "LogMel":
            from mmtok.tokenizers.speech_latents import LogMel as found
        case "JetGrid":
            from mmtok.tokenizers.jets import JetGrid as found
        case _:
            found = next((cls for cls in known if cls.__name__ == kind), None)
    if found is None:
        raise UserError(
            f"{folder}/tokenizer.json: unknown kind of tokenizer {shown(kind)}, of another version"
            " of mmtok or a class of your own"
        )
    try:
        return found.load(Path(folder))
    except UserError as error:  # of settings that do not fit together, too
        raise error if str(folder) in str(error) else UserError(f"{folder}: {error}") from None


def default(modality: str) -> Tokenizer:
    """The tokenizer that needs no training: UTF-8 bytes, dMel at 80 Hz, pixel levels, the jet grid
    41/31/31.
    """
    match modality:
        case "text":
            from mmtok.tokenizers.text import BytesConfig as config
        case "speech":
            from mmtok.tokenizers.speech import DMelConfig as config
        case "image":
            from mmtok.tokenizers.images import PixelsConfig

            return PixelsConfig(levels=256).build()  # any picture, nothing lost
        case "jets":
            from mmtok.tokenizers.jets import JetGridConfig as config
        case _:
            raise UserError(
                f"no training-free tokenizer for modality {modality!r}; one of"
                f" {', '.join(MODALITIES)}"
            )
    return config().build()
