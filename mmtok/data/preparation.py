"""Preparation of raw signals before they are tokenised.

The config of a tokenizer says which signals it takes (`takes`: a rate, a size, channels); a
preparation, a value of the recipe, says how a raw signal becomes one. Both together are a
`Preparer`. It is applied to the examples of sources by `prepared_examples`, and to files and words
by the verbs. The preparation is kept in the tokenizer's folder as preparation.json, so that both
are used together.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mmtok.data.image_preparation import ImagePreparation
from mmtok.data.speech_preparation import SpeechPreparation, VoicePreparation
from mmtok.data.text_preparation import TextPreparation
from mmtok.data.video_preparation import VideoPreparation
from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.overrides import set_fields
from mmtok.io.serialize import from_plain, read_json_as, to_plain
from mmtok.io.tally import Tally
from mmtok.sources.signal_files import CONDITION_FILES, SIGNAL_FILES
from mmtok.tokenizers.base import TokenizerConfig

PreparationConfig = (
    TextPreparation | SpeechPreparation | VoicePreparation | ImagePreparation | VideoPreparation
)
# modality -> its default preparation; jets are what they are
DEFAULTS: dict[str, PreparationConfig] = {
    preparation.modality: preparation
    for preparation in (
        TextPreparation(),
        SpeechPreparation(),
        VoicePreparation(),
        ImagePreparation(),
        VideoPreparation(),
    )
}
FILE = "preparation.json"


class Preparation(Protocol):
    """A frozen dataclass of choices, with `modality` as a class variable."""

    modality: ClassVar[str]

    @property
    def prepare(self) -> Callable[..., Any]:
        """A function (signal, name, tally, **takes) -> a signal that the tokenizer takes.

        What it does to the signal is added to the tally.
        """


@dataclass(frozen=True)
class Preparer:
    """Turns raw signals of one modality into those that its tokenizer takes.

    Without a preparation they stay as they are.

    Attributes:
        takes: what the tokenizer's config says of the signals that it takes.
    """

    modality: str
    preparation: Preparation | None = None
    takes: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, signal: Any, name: str = "", tally: Tally | None = None) -> Any:
        """One signal, prepared; what was done is added to the tally, or reported at once.

        Raises UserError, beginning with the name where there is one, for what cannot be prepared.
        """
        if self.preparation is None:
            return signal
        if tally is None:
            with Tally(self.unit) as tally:
                return self(signal, name, tally)
        tally.count()
        name = getattr(signal, "name", "") or name
        shown_name = name or f"the {self.modality}"
        try:
            return self.preparation.prepare(signal, shown_name, tally, **self.takes)
        except UserError as error:
            if not name:
                raise
            raise UserError(f"{name}: {error}") from None

    @property
    def unit(self) -> str:
        """What signals of this modality are called where they are counted."""
        return unit_of(self.modality)


def unit_of(modality: str) -> str:
    """What signals of a modality are called where they are counted, in the plural."""
    files = (SIGNAL_FILES | CONDITION_FILES).get(modality)
    if files is None:
        return modality
    return files.unit


def preparer(
    modality: str, config: TokenizerConfig, preparation: Preparation | None = None
) -> Preparer:
    """A preparer for the tokenizer of this config; without a preparation by the default one.

    Raises UserError for a preparation of pictures that does not fit what the tokenizer takes.
    """
    if isinstance(preparation, ImagePreparation):
        preparation.check_takes(config.takes)
    return Preparer(modality, preparation or DEFAULTS.get(modality), config.takes)


def prepared_examples(
    examples: Iterable[dict[str, Any]],
    preparers: Mapping[str, Preparer],
    of: str = "",
    reported: set[tuple[str, str]] | None = None,
) -> Iterator[dict[str, Any]]:
    """The examples of a source, with the signals of some fields prepared.

    Args:
        examples: What the source yields.
        preparers: Field -> its preparer; other fields stay as they are.
        of: Which examples these are, in reports.
        reported: What was reported of them before, see `Tally`.
    """
    with ExitStack() as stack:
        tallies = {}
        for f, preparer in preparers.items():
            unit = f"{of} {preparer.unit}".strip()
            tallies[f] = stack.enter_context(Tally(unit, reported))
        for i, example in enumerate(examples):
            where = getattr(example, "name", f"example {i}")
            prepared = copy(example)  # an `Example` keeps its name
            for f in example:
                if f in preparers:
                    prepared[f] = preparers[f](example[f], f"{f} of {where}", tallies[f])
            yield prepared


# ---- in the folder of a tokenizer


def save_preparation(folder: Path, preparation: Preparation | None) -> None:
    """Write FOLDER/preparation.json; without a preparation nothing."""
    if preparation is not None:
        write_text(Path(folder) / FILE, json.dumps(to_plain(preparation), indent=2) + "\n")


def load_preparation(folder: Path | None, modality: str) -> Preparation | None:
    """The preparation in a tokenizer's folder; without a file, or a folder, the default one.

    Raises UserError for a file that is broken or of another modality.
    """
    if folder is None or not (folder / FILE).exists():
        return DEFAULTS.get(modality)
    path = folder / FILE
    found = read_json_as(path, PreparationConfig)
    if found.modality != modality:
        raise UserError(f"{path} prepares {found.modality}, not {modality}")
    return found


def _warn_where_missing(folder: Path, modality: str) -> None:
    """Warn where a tokenizer of a run, RUN/tokenizers/MODALITY, has lost its preparation.json."""
    run = folder.resolve().parent.parent
    of_run = (run / "recipe.json").exists()
    if not of_run or modality not in DEFAULTS or (folder / FILE).exists():
        return
    warnings.warn(
        f"{folder} has no {FILE}, which its run wrote there: {unit_of(modality)} are prepared by"
        f" the defaults, which need not be the run's; put it back, or give what"
        f" {run / 'recipe.json'} says as --prepare FIELD=VALUE",
        stacklevel=3,
    )


def chosen_preparation(
    folder: Path | None, modality: str, choices: Sequence[str]
) -> Preparation | None:
    """As `load_preparation`, with fields set as ["channel=left", ...].

    Warns where the tokenizer of a run has lost its file, and the default one is taken.

    Raises UserError for an unknown field, and for choices where the folder has a preparation of its
    own: all signals of one tokenizer are prepared alike.
    """
    if not choices:
        if folder is not None:
            _warn_where_missing(folder, modality)
        return load_preparation(folder, modality)
    if folder is not None and (folder / FILE).exists():
        raise UserError(
            f"{folder / FILE} says how signals are prepared for this tokenizer; leave"
            f" --prepare {choices[0]} out"
        )
    default = DEFAULTS.get(modality)
    names = []
    if default is not None:
        names = [field.name for field in fields(default)]
    for choice in choices:
        name, equals, _ = choice.partition("=")
        if name not in names or not equals:
            raise UserError(
                f"--prepare {choice!r} must be FIELD=VALUE; of {modality} the fields are"
                f" {', '.join(names) or 'none'}"
            )
    plain = to_plain(default)
    set_fields(plain, [f"--{choice}" for choice in choices])
    return from_plain(plain, type(default), "prepare")
