"""What is done to raw signals before they are tokenised, as values of the recipe: one drawer per
kind of signal.

A tokenizer's config says which signals it takes (`takes`: a rate, a size, channels); a preparation
says how a raw signal becomes one. Both together are a `Preparer`. It is applied at one place for
each door: examples of sources (`prepared_examples`), files and words (data/convert.py, words.py).
The preparation lies beside the tokenizer, as preparation.json, so that whoever uses the one uses
the other.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from mmtok.data.image_preparation import ImagePreparation
from mmtok.data.speech_preparation import SpeechPreparation
from mmtok.data.text_preparation import TextPreparation
from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.overrides import set_fields
from mmtok.io.serialize import from_plain, read_json_as, to_plain
from mmtok.io.tally import Tally

PreparationConfig = TextPreparation | SpeechPreparation | ImagePreparation
DEFAULTS = {"text": TextPreparation(), "speech": SpeechPreparation(), "image": ImagePreparation()}
FILE = "preparation.json"
UNITS = {"text": "texts", "speech": "clips", "image": "images"}


class Preparation(Protocol):
    """A frozen dataclass of choices, with `modality` as a class variable."""

    modality: str

    def prepare(self, signal: Any, name: str, tally: Tally, **takes: Any) -> Any:
        """A raw signal -> one that the tokenizer takes; what is done is added to the tally."""


@dataclass(frozen=True)
class Preparer:
    """Makes raw signals of one modality those that its tokenizer takes.

    Without a preparation they stay as they are.

    takes  the tokenizer's own words of the signals that it takes
    """

    modality: str
    preparation: Preparation | None = None
    takes: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, signal: Any, name: str = "", tally: Tally | None = None) -> Any:
        """One signal, prepared; what was done is added to the tally, or, without one, said at once.

        Raises UserError, beginning with the name where there is one, for what cannot be prepared.
        """
        if self.preparation is None:
            return signal
        if tally is None:
            with Tally(self.unit) as tally:
                return self(signal, name, tally)
        tally.count()
        name = getattr(signal, "name", "") or name
        try:
            return self.preparation.prepare(
                signal, name or f"the {self.modality}", tally, **self.takes
            )
        except UserError as error:
            raise UserError(f"{name}: {error}" if name else str(error)) from None

    @property
    def unit(self) -> str:
        """What signals of this modality are called where they are counted."""
        return UNITS.get(self.modality, self.modality)


def preparer(modality: str, config: Any, preparation: Preparation | None = None) -> Preparer:
    """Of signals for the tokenizer of this config, by this preparation or the modality's own."""
    return Preparer(modality, preparation or DEFAULTS.get(modality), getattr(config, "takes", {}))


def prepared_examples(
    examples: Iterable[dict[str, Any]],
    preparers: Mapping[str, Preparer],
    of: str = "",
    said: set[tuple[str, str]] | None = None,
) -> Iterator[dict[str, Any]]:
    """A source's examples with the signals of the named fields prepared; others stay as they are.

    preparers: field -> its preparer. of: which examples these are, in what is said of them.
    said: what was said of them before, see `Tally`.
    """
    with ExitStack() as stack:
        tally = lambda f: Tally(" ".join(part for part in (of, preparers[f].unit) if part), said)
        tallies = {f: stack.enter_context(tally(f)) for f in preparers}
        for i, example in enumerate(examples):
            where, prepared = (
                getattr(example, "name", f"example {i}"),
                copy(example),
            )  # which keeps where it came from
            prepared.update(
                (f, preparers[f](example[f], f"{f} of {where}", tallies[f]))
                for f in example
                if f in preparers
            )
            yield prepared


# ---- beside a tokenizer


def save_preparation(folder: Path, preparation: Preparation | None) -> None:
    """Write FOLDER/preparation.json; without a preparation nothing."""
    if preparation is not None:
        write_text(Path(folder) / FILE, json.dumps(to_plain(preparation), indent=2) + "\n")


def load_preparation(folder: Path | None, modality: str) -> Preparation | None:
    """The preparation that lies in a tokenizer's folder; without a file, or a folder, the
    modality's own.

    Raises UserError for a file that is broken or of another modality.
    """
    path = None if folder is None else Path(folder) / FILE
    if path is None or not path.exists():
        return DEFAULTS.get(modality)
    found = read_json_as(path, PreparationConfig)
    if found.modality != modality:
        raise UserError(f"{path} prepares {found.modality}, not {modality}")
    return found


def _say_where_lost(folder: Path | None, modality: str) -> None:
    """Warn where a tokenizer of a run folder, RUN/tokenizers/MODALITY, has no preparation.json:
    every run writes one beside it.
    """
    run = None if folder is None else Path(folder).resolve().parent.parent
    if (
        run is None
        or modality not in DEFAULTS
        or (Path(folder) / FILE).exists()
        or not (run / "recipe.json").exists()
    ):
        return
    warnings.warn(
        f"{folder} has no {FILE}, which its run wrote there: {UNITS[modality]} are prepared by the"
        f" defaults, which need not be the run's; put it back, or give what {run / 'recipe.json'}"
        " says as --prepare FIELD=VALUE",
        stacklevel=3,
    )


def chosen_preparation(
    folder: Path | None, modality: str, choices: Sequence[str]
) -> Preparation | None:
    """As `load_preparation`, with fields set as ["channel=left", ...]; of a run's tokenizer that
    has lost its file it is said that the modality's own is taken. Raises UserError for a field that
    there is not, and where
    the folder has a preparation of its own: what was made by one tokenizer was prepared alike.
    """
    if not choices:
        _say_where_lost(folder, modality)
        return load_preparation(folder, modality)
    if folder is not None and (Path(folder) / FILE).exists():
        raise UserError(
            f"{Path(folder) / FILE} says how signals are prepared for this tokenizer; leave"
            f" --prepare {choices[0]} out"
        )
    default = DEFAULTS.get(modality)
    names = [field.name for field in fields(default)] if default is not None else []
    wrong = next(
        (
            choice
            for choice in choices
            if choice.partition("=")[0] not in names or "=" not in choice
        ),
        None,
    )
    if wrong is not None:
        raise UserError(
            f"--prepare {wrong!r} must be FIELD=VALUE; of {modality} the fields are"
            f" {', '.join(names) or 'none'}"
        )
    plain = to_plain(default)
    set_fields(plain, [f"--{choice}" for choice in choices])
    return from_plain(plain, type(default), "prepare")
