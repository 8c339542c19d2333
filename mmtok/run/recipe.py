"""A recipe is a value: one frozen dataclass that says everything about a run.

This file only composes the parts' own config dataclasses, loads them from a Python file, overrides
single fields, and writes them to JSON and back; how a dataclass is listed, set and written is in
plain.py.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtok.data.preparation import DEFAULTS, PreparationConfig
from mmtok.data.tasks import InputMasking, Task
from mmtok.errors import UserError
from mmtok.io.filenames import is_name
from mmtok.io.overrides import set_fields
from mmtok.io.serialize import from_plain, to_plain
from mmtok.io.strict_json import parse_json
from mmtok.model.lm import DecoderConfig
from mmtok.model.sampling import Sampling
from mmtok.sources.hub import HubTable
from mmtok.sources.idx import IdxImages
from mmtok.sources.images import ImageFolder, ScannedDigits
from mmtok.sources.jets import JetFile
from mmtok.sources.pythia import PythiaJets
from mmtok.sources.speech import SpeechFolder, SpokenDigits
from mmtok.sources.text import TextFile
from mmtok.tokenizers.image_latents import KLPatchesConfig, PixelLatentsConfig
from mmtok.tokenizers.images import PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.pretrained import PretrainedTextConfig
from mmtok.tokenizers.published import SentencePieceFile
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig
from mmtok.train.config import TrainConfig

TokenizerConfig = (
    BytesConfig
    | SentencePieceConfig
    | SentencePieceFile
    | PretrainedTextConfig
    | PixelsConfig
    | VQPatchesConfig
    | PixelLatentsConfig
    | KLPatchesConfig
    | DMelConfig
    | LogMelConfig
    | JetGridConfig
)
SourceConfig = (
    TextFile
    | ScannedDigits
    | ImageFolder
    | IdxImages
    | SpokenDigits
    | SpeechFolder
    | PythiaJets
    | JetFile
    | HubTable
)


@dataclass(frozen=True)
class Recipe:
    """One run. Fields of the examples come from the sources; two fields may share a modality.

    name        a plain folder name: a run's folder is runs/ and the name, unless --out says
                otherwise
    tokenizers  modality -> config
    sources     where examples come from; together they yield every field that the tasks name
    tasks       what is learned: orders of fields, with weights
    preparation modality -> how raw signals become those that the tokenizer takes; what is not named
    is prepared as ever
    input_masking  field -> what the model may not read of it in training
    sampling    modality -> how `sample` and `evaluate` draw it
    n_samples   how many samples per question `evaluate` draws
    start       a Llama's checkpoint folder or hub id: its trunk and its text tokenizer take the
                place of the recipe's
    """

    name: str
    tokenizers: Mapping[str, TokenizerConfig]
    sources: tuple[SourceConfig, ...]
    tasks: tuple[Task, ...]
    model: DecoderConfig = DecoderConfig()
    train: TrainConfig = TrainConfig()
    preparation: Mapping[str, PreparationConfig] = field(default_factory=dict)
    input_masking: Mapping[str, InputMasking] = field(default_factory=dict)
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    n_samples: int = 200
    start: str | None = None

    def __post_init__(self):
        if not is_name(self.name):
            raise UserError(
                f"recipe: name is {self.name!r}; it must be a plain folder name, as a run's folder"
                " is runs/ and the name"
            )
        if self.n_samples < 1:
            raise UserError(
                f"recipe {self.name!r}: n_samples is {self.n_samples}; it must be at least 1"
            )
        if not self.tasks:
            raise UserError(
                f"recipe {self.name!r} has no tasks; name at least one, such as Task((),"
                ' ("caption",))'
            )
        for modality in self.tokenizers:
            if not is_name(modality):
                raise UserError(
                    f"recipe {self.name!r}: a tokenizer's modality is {modality!r}; it must be a"
                    " plain name, as its folder has it"
                )
        self._prepare()
        fields = self.fields
        for task in self.tasks:
            for name in task.fields:
                if name not in fields:
                    raise UserError(
                        f"recipe {self.name!r}: task {task} names the field {name!r}, but the"
                        f" sources yield {', '.join(fields)}"
                    )
                if fields[name] not in self.tokenizers:
                    raise UserError(
                        f"recipe {self.name!r}: field {name!r} is {fields[name]}, for which the"
                        " recipe has no tokenizer"
                    )
        for name in self.input_masking:
            if name not in fields:
                raise UserError(
                    f"recipe {self.name!r}: input_masking names the field {name!r}, but the sources"
                    f" yield {', '.join(fields)}"
                )
        for where, named in (
            ("sampling", self.sampling),
            ("train.loss_weights", self.train.loss_weights),
        ):
            for name in named:
                if name not in self.tokenizers:
                    near = difflib.get_close_matches(name, self.tokenizers, 1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    raise UserError(
                        f"recipe {self.name!r}: {where} names the modality {name!r}, "
                        f"but the recipe has tokenizers for {', '.join(self.tokenizers)}{hint}"
                    )

    def _prepare(self) -> None:
        """Fill in the preparations that are not named.

        Raises UserError for one of another modality, and for a source of jets whose columns are not
        the tokenizer's: what columns a file has it alone can say.
        """
        for m, preparation in self.preparation.items():
            idle = m not in self.tokenizers and preparation != DEFAULTS.get(
                m
            )  # what was filled in for a tokenizer may outlive it
            if preparation.modality != m or idle:
                raise UserError(
                    f"recipe {self.name!r}: preparation.{m} is {type(preparation).__name__}, of"
                    f" {preparation.modality}; the recipe has tokenizers for"
                    f" {', '.join(self.tokenizers)}"
                )
        filled = {m: self.preparation.get(m, DEFAULTS.get(m)) for m in self.tokenizers}
        object.__setattr__(
            self,
            "preparation",
            {m: preparation for m, preparation in filled.items() if preparation is not None},
        )
        takes = getattr(self.tokenizers.get("jets"), "takes", {}).get("features")
        for i, source in enumerate(self.sources):
            gives = getattr(source, "features", None)
            if (
                takes
                and gives
                and "jets" in source.fields.values()
                and tuple(gives) != tuple(takes)
            ):
                raise UserError(
                    f"recipe {self.name!r}: sources.{i}.features are {', '.join(gives)}, but the"
                    f" tokenizer of jets takes {', '.join(takes)}; set sources.{i}.features and"
                    " tokenizers.jets.features alike"
                )

    @property
    def fields(self) -> dict[str, str]:
        """Field name -> modality, over all sources. Raises UserError when two sources disagree."""
        merged: dict[str, str] = {}
        for source in self.sources:
            for name, modality in source.fields.items():
                if merged.setdefault(name, modality) != modality:
                    raise UserError(
                        f"recipe {self.name!r}: field {name!r} is {merged[name]} in one source and"
                        f" {modality} in another"
                    )
        return merged

    def to_json(self) -> str:
        """What a run folder keeps as recipe.json."""
        return json.dumps(to_plain(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, kinds: Sequence[type] = ()) -> Recipe:
        """The inverse of `to_json`.

        kinds: classes that a recipe from outside the package brings along.
        """
        return from_plain(parse_json(text, "recipe"), cls, "recipe", kinds)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The value named `recipe` of a Python file, or a recipe.json, with fields overridden:
    ["--train.steps", "30", ...].

    Raises UserError for a missing file, a file without a recipe, an unknown field (naming the
    nearest) or a value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no recipe at {path}; recipes are Python files holding one value named 'recipe' (see"
            " recipes/)"
        )
    if path.suffix == ".json":
        recipe = read_recipe(path)
    else:
        recipe = getattr(_imported(path.resolve()), "recipe", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} holds no value named 'recipe' of type mmtok.run.recipe.Recipe")
    return override(recipe, overrides)


def run_folder(path: Path, recipe: Recipe) -> Path:
    """The run folder of a recipe at a path: a run's own recipe.json means that run."""
    return path.parent if path.name == "recipe.json" else Path("runs") / recipe.name


def read_recipe(path: Path, kinds: Sequence[type] = ()) -> Recipe:
    """A recipe.json; `kinds` as in `Recipe.from_json`.

    Raises UserError, naming the file, when it is broken.
    """
    try:
        return Recipe.from_json(path.read_text(), kinds)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:  # not JSON, or no text at all
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _imported(path: Path) -> types.ModuleType:
    """Run a Python file, which may import its neighbours.

    The module is entered under a name of its own among Python's modules, so that the type hints of
    classes that it defines can be resolved.
    """
    module = types.ModuleType(f"recipe:{path}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises is told in one line
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(
            f"{where}: the recipe cannot be run: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def kinds_of(value: Any) -> set[type]:
    """Every dataclass used anywhere in a recipe: what `from_json` needs to read a recipe that
    brings its own classes.
    """
    if dataclasses.is_dataclass(value):
        return {type(value)}.union(
            *(kinds_of(getattr(value, f.name)) for f in dataclasses.fields(value))
        )
    parts = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, (tuple, list))
        else ()
    )
    return set().union(*map(kinds_of, parts))


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A copy with fields set from ["--train.steps", "30", "--width=128"]; a name may be shortened
    while it stays unique.

    Raises UserError as `load_recipe` does.
    """
    if not overrides:
        return recipe
    plain = to_plain(recipe)
    set_fields(plain, overrides)
    return from_plain(plain, Recipe, "recipe", tuple(kinds_of(recipe)))
