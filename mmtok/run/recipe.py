"""A recipe is a value: one frozen dataclass that says everything about a run.

This file composes the config dataclasses of the parts, loads them from a Python file, and writes
them to JSON and back (`mmtok.io.serialize`).

In JSON a dataclass has its name as `kind`. It is looked up among the classes that its field allows:
the members of `PackageTokenizers`, `PackageSources` or `PackageHeads`, which are the package's own,
and the classes that a recipe from outside the package brings along. Those are found in the recipe
file's value by `kinds_of`, and passed to `Recipe.from_json` as `kinds`. That is why `mmtok sample
RUN --recipe FILE` takes the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
import traceback
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from torch.nn import ModuleDict

from mmtok.core.interleaved import INTERLEAVED
from mmtok.data.image_preparation import ImagePreparation
from mmtok.data.preparation import DEFAULTS, PreparationConfig
from mmtok.data.tasks import Contrast, InputMasking, Task, task_text
from mmtok.errors import UserError
from mmtok.heads.regression import Regression
from mmtok.heads.sampling import Sampling
from mmtok.io.filenames import is_name
from mmtok.io.messages import listed
from mmtok.io.overrides import leaves, set_fields
from mmtok.io.serialize import Kinds, from_plain, to_plain
from mmtok.io.strict_json import parse_json
from mmtok.model.lm import DecoderConfig
from mmtok.run.prompt_format import format_fields
from mmtok.sources.base import Source
from mmtok.sources.conformers import Conformers
from mmtok.sources.degraded import Degraded
from mmtok.sources.fsdd import FSDD
from mmtok.sources.handwritten import HandwrittenDigits
from mmtok.sources.hub import HubTable
from mmtok.sources.idx import IdxImages
from mmtok.sources.images import ImageFolder, ScannedDigits
from mmtok.sources.interleaved import InterleavedFile
from mmtok.sources.jets import JetFile
from mmtok.sources.linear_gaussian import LinearGaussian
from mmtok.sources.neutrinos import NeutrinoEvents
from mmtok.sources.pythia import PythiaJets
from mmtok.sources.sentences import SpokenSentences
from mmtok.sources.sounds import SoundFolder
from mmtok.sources.speech import SpeechFolder, SpokenDigits
from mmtok.sources.text import TextFile
from mmtok.sources.videos import MovingDigits, VideoFolder
from mmtok.tokenizers.any_size import AnySizePatchesConfig
from mmtok.tokenizers.base import TokenizerConfig
from mmtok.tokenizers.codecs import CodecConfig
from mmtok.tokenizers.image_checkpoints import ImageCheckpointConfig
from mmtok.tokenizers.image_latents import KLPatchesConfig, PixelLatentsConfig
from mmtok.tokenizers.images import PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.jet_autoencoder import JetAutoencoderConfig
from mmtok.tokenizers.jet_codes import JetCodesConfig
from mmtok.tokenizers.jet_latents import JetLatentsConfig
from mmtok.tokenizers.jet_vq import JetVQConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.molecules import ConformerConfig, MoleculeConfig
from mmtok.tokenizers.numbers import NumberConfig
from mmtok.tokenizers.patch_rows import PatchRowsConfig
from mmtok.tokenizers.pretrained import PretrainedTextConfig
from mmtok.tokenizers.published import SentencePieceFile
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig
from mmtok.tokenizers.vectors import VectorConfig
from mmtok.tokenizers.video import VideoConfig
from mmtok.tokenizers.voices import VoiceConfig
from mmtok.train.config import TrainConfig

PackageTokenizers = (
    BytesConfig
    | SentencePieceConfig
    | SentencePieceFile
    | PretrainedTextConfig
    | PixelsConfig
    | VQPatchesConfig
    | AnySizePatchesConfig
    | PatchRowsConfig
    | PixelLatentsConfig
    | KLPatchesConfig
    | ImageCheckpointConfig
    | DMelConfig
    | LogMelConfig
    | CodecConfig
    | JetGridConfig
    | JetCodesConfig
    | JetLatentsConfig
    | JetVQConfig
    | JetAutoencoderConfig
    | NumberConfig
    | VectorConfig
    | VideoConfig
    | VoiceConfig
    | MoleculeConfig
    | ConformerConfig
)
PackageSources = (
    TextFile
    | ScannedDigits
    | HandwrittenDigits
    | ImageFolder
    | IdxImages
    | SpokenDigits
    | SpokenSentences
    | SpeechFolder
    | FSDD
    | SoundFolder
    | PythiaJets
    | JetFile
    | HubTable
    | InterleavedFile
    | LinearGaussian
    | NeutrinoEvents
    | Degraded
    | MovingDigits
    | VideoFolder
    | Conformers
)


OF_FILE = "recipe:"  # and its path: the name of the module of a recipe file
# fields that only recipes of older versions have
OLD_FIELD = re.compile(
    r"corrupt"
    r"|train\.(rows|row_length|clip|average|weights|accumulate|recompute|shard)"
    r"|tasks\.\d+\.(given|make|drop_given|predict_given|first|hole)"
)


@dataclass(frozen=True)
class Recipe:
    """One run. Fields of the examples come from the sources; two fields may share a modality.

    Attributes:
        name: a plain folder name: a run's folder is runs/ and the name, unless --out says
            otherwise.
        tokenizers: modality -> config.
        sources: where examples come from; together they yield every field that the tasks name.
        tasks: what is learned: orders of fields, with weights. None: tokenizers are all that is
            made, which is how a vocoder is trained.
        contrasts: fields whose vectors are to be alike; they need `model.embedding`.
        model: sizes of the decoder, and its heads.
        train: how it is trained.
        preparation: modality -> how raw signals become those that the tokenizer takes; the
            modality's default if not named.
        input_masking: field -> which of its frames the model may not read in training.
        sampling: modality -> how `sample` and `evaluate` sample it.
        n_samples: how many samples `evaluate` draws for each of its metrics.
        start: a checkpoint's folder or hub id, of an architecture in model/architectures.py. Its
            trunk and its text tokenizer replace the recipe's. Or a finished run's folder, whose
            tokenizers and weights are taken; the recipe may add to them (run/finetune.py).
        prompt_format: how one text gives all inputs of a task, "{caption}, pt {pt_gev} GeV"; a
            prompt must match it exactly. "": texts are texts.
    """

    name: str
    tokenizers: Mapping[str, Annotated[TokenizerConfig, Kinds(PackageTokenizers)]]
    sources: tuple[Annotated[Source, Kinds(PackageSources)], ...]
    tasks: tuple[Task, ...]
    model: DecoderConfig = DecoderConfig()
    train: TrainConfig = TrainConfig()
    preparation: Mapping[str, PreparationConfig] = field(default_factory=dict)
    input_masking: Mapping[str, InputMasking] = field(default_factory=dict)
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    n_samples: int = 200
    start: str | None = None
    prompt_format: str = ""
    contrasts: tuple[Contrast, ...] = ()

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise UserError(
                f"recipe: name is {self.name!r}; it must be a plain folder name, as a run's folder"
                " is runs/ and the name"
            )
        if self.n_samples < 1:
            raise UserError(
                f"recipe {self.name!r}: n_samples is {self.n_samples}; it must be at least 1"
            )
        if not self.tokenizers:
            raise UserError(f"recipe {self.name!r} has no tokenizers; name at least one")
        for modality in self.tokenizers:
            # torch keeps the weights of a modality under its name
            if not is_name(modality) or "." in modality or hasattr(ModuleDict, modality):
                raise UserError(
                    f"recipe {self.name!r}: a tokenizer's modality is {modality!r}; it must be a"
                    " plain name without dots, as its folder and its weights have it, and no word"
                    " of Python's such as keys"
                )
        named = {m: config.named(m) for m, config in self.tokenizers.items()}
        object.__setattr__(self, "tokenizers", named)
        self._fill_preparation()
        self._check_signals()
        self._check_fields()
        self._check_modalities("sampling", self.sampling)
        self._check_modalities("train.loss_weights", self.train.loss_weights)
        self.weights_of_sources()
        self._check_prompt_format()
        self._check_adapters()
        self._check_contrasts()
        self._check_laws()

    def _fill_preparation(self) -> None:
        """Add the default preparations. Raises UserError for one of another modality."""
        for m, preparation in self.preparation.items():
            # the default of a tokenizer that was replaced may remain
            unused = m not in self.tokenizers and preparation != DEFAULTS.get(m)
            if preparation.modality != m or unused:
                raise UserError(
                    f"recipe {self.name!r}: preparation.{m} is {type(preparation).__name__}, of"
                    f" {preparation.modality}; the recipe has tokenizers for"
                    f" {', '.join(self.tokenizers)}"
                )
        filled = {}
        for m in self.tokenizers:
            chosen = self.preparation.get(m) or DEFAULTS.get(m)
            if isinstance(chosen, ImagePreparation):
                chosen.check_takes(self.tokenizers[m].takes)
            if chosen is not None:
                filled[m] = chosen
        object.__setattr__(self, "preparation", filled)

    def _check_signals(self) -> None:
        """Raise UserError for a source whose signals are not what their tokenizer takes.

        What a file holds is known only when it is read.
        """
        for i, source in enumerate(self.sources):
            for modality, settings in source.gives.items():
                config = self.tokenizers.get(modality)
                if config is not None:
                    self._check_settings(f"sources.{i}", settings, config)

    def _check_settings(
        self, source: str, settings: Mapping[str, Sequence[str]], config: TokenizerConfig
    ) -> None:
        """Raise UserError for a setting of a source that differs from what a tokenizer takes."""
        for name, given in settings.items():
            taken = config.takes.get(name, given)
            if tuple(given) != tuple(taken):
                raise UserError(
                    f"recipe {self.name!r}: {source}.{name} are {', '.join(given)}, but the"
                    f" tokenizer of {config.modality} takes {', '.join(taken)}; set {source}.{name}"
                    f" and tokenizers.{config.modality}.{name} alike"
                )

    def _check_fields(self) -> None:
        """Raise UserError if tasks or masks name fields without a source or a tokenizer."""
        fields = self.fields
        for any_task in self.learned:
            for name in any_task.fields:
                if name not in fields:
                    raise UserError(
                        f"recipe {self.name!r}: {task_text(any_task)} names the field {name!r}, but"
                        f" the sources yield {', '.join(fields)}"
                    )
                if fields[name] not in (*self.tokenizers, INTERLEAVED):
                    raise UserError(
                        f"recipe {self.name!r}: field {name!r} is {fields[name]}, for which the"
                        " recipe has no tokenizer"
                    )
        for task in self.tasks:
            if task.max_target_frames and fields[task.targets[-1]] == INTERLEAVED:
                raise UserError(
                    f"recipe {self.name!r}: task {task} has max_target_frames, which"
                    f" {task.targets[-1]!r} cannot have, as it is interleaved; set it to 0"
                )
            for name in task.predicted:
                config = self.tokenizers.get(fields[name])
                if config is not None and config.is_input_only:
                    raise UserError(
                        f"recipe {self.name!r}: task {task} predicts {name!r}, whose tokenizer,"
                        f" tokenizers.{fields[name]}, is of conditions only; name it among the"
                        " inputs, or give it n_bins or n_classes"
                    )
        for name in self.input_masking:
            if name not in fields:
                raise UserError(
                    f"recipe {self.name!r}: input_masking names the field {name!r}, but the sources"
                    f" yield {', '.join(fields)}"
                )

    def _check_prompt_format(self) -> None:
        """Raise UserError for a form that names other fields than the inputs of a task."""
        if not self.prompt_format:
            return
        names = format_fields(self.prompt_format)
        for name in names:
            if self.fields.get(name) not in ("text", *self.numbers):
                raise UserError(
                    f"recipe {self.name!r}: prompt_format names {name!r}; its fields of text and"
                    f" numbers are {listed(self._words)}"
                )
        if not any(set(task.inputs) == set(names) for task in self.tasks):
            raise UserError(
                f"recipe {self.name!r}: prompt_format gives {' and '.join(names)}, which are not"
                " the inputs of any task"
            )

    def _check_adapters(self) -> None:
        """Raise UserError for adapters of a trunk that is not pretrained, or that is sharded."""
        if not self.model.lora:
            return
        if self.start is None:
            raise UserError(
                f"recipe {self.name!r}: --lora {self.model.lora} trains adapters of a pretrained"
                " trunk, and there is none: name a checkpoint with --start, or train all weights"
            )
        if self.train.fsdp:
            raise UserError(
                f"recipe {self.name!r}: adapters (--lora) are trained whole in every process: leave"
                " --train.fsdp out; --lora_base int8 takes a quarter of the memory"
            )

    def _check_contrasts(self) -> None:
        """Raise UserError for contrasts without an embedding, and the other way round."""
        if self.contrasts and self.model.embedding is None:
            raise UserError(
                f"recipe {self.name!r}: contrasts are of vectors, and the decoder makes none: set"
                " model.embedding, EmbeddingConfig()"
            )
        if self.model.embedding is not None and not self.contrasts:
            raise UserError(
                f"recipe {self.name!r}: model.embedding learns from contrasts, and there are none:"
                ' name fields, contrasts=(Contrast(("caption", "image")),)'
            )

    def _check_laws(self) -> None:
        """Raise UserError for laws of quantities whose mean is subtracted."""
        for m, head in self.model.heads.items():
            config = self.tokenizers.get(m)
            one_unit = isinstance(config, VectorConfig) and config.one_unit
            if isinstance(head, Regression) and head.laws and not one_unit:
                raise UserError(
                    f"recipe {self.name!r}: model.heads.{m} has laws, which are of quantities as"
                    f" they are; set tokenizers.{m}.one_unit"
                )

    @property
    def learned(self) -> tuple[Task | Contrast, ...]:
        """All that the decoder learns: tasks, then contrasts. None: there is no decoder."""
        return (*self.tasks, *self.contrasts)

    @property
    def _words(self) -> list[str]:
        """The fields that words can give."""
        return [f for f, m in self.fields.items() if m in ("text", *self.numbers)]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The modalities that are single numbers, each under a name of its own."""
        return tuple(m for m, c in self.tokenizers.items() if isinstance(c, NumberConfig))

    @property
    def vectors(self) -> tuple[str, ...]:
        """The modalities that are vectors of quantities, each under a name of its own."""
        return tuple(m for m, c in self.tokenizers.items() if isinstance(c, VectorConfig))

    def _check_modalities(self, where: str, names: Iterable[str]) -> None:
        """Raise UserError for a modality without a tokenizer."""
        for name in names:
            if name not in self.tokenizers:
                hint = ""
                if near := difflib.get_close_matches(name, self.tokenizers, 1):
                    hint = f"; did you mean {near[0]!r}?"
                raise UserError(
                    f"recipe {self.name!r}: {where} names the modality {name!r}, "
                    f"but the recipe has tokenizers for {', '.join(self.tokenizers)}{hint}"
                )

    def weights_of_sources(self) -> list[float]:
        """The weight of each source, by `train.source_weights`.

        Raises UserError for a name that no source has, and where two names disagree on a source.
        """
        names = [
            {str(i), type(source).__name__, *source.fields, *source.fields.values()}
            for i, source in enumerate(self.sources)
        ]
        weights: dict[int, tuple[str, float]] = {}
        for name, weight in self.train.source_weights.items():
            having = [i for i, own in enumerate(names) if name in own]
            if not having:
                known = sorted(set().union(*names))
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(
                    f"recipe {self.name!r}: train.source_weights names {name!r}, but sources are"
                    f" called {', '.join(known)}{hint}"
                )
            for i in having:
                other, set_before = weights.setdefault(i, (name, weight))
                if set_before != weight:
                    raise UserError(
                        f"recipe {self.name!r}: train.source_weights gives source {i} the weights"
                        f" {set_before:g} ({other}) and {weight:g} ({name}); name it once, as {i}"
                    )
        found = [weights.get(i, ("", 1.0))[1] for i in range(len(self.sources))]
        if not any(found):
            raise UserError(f"recipe {self.name!r}: train.source_weights leaves all sources out")
        return found

    @property
    def fields(self) -> dict[str, str]:
        """Field name -> modality, over all sources. Raises UserError if two sources disagree."""
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
        """The text of a run folder's recipe.json."""
        return json.dumps(to_plain(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, kinds: Sequence[type] = ()) -> Recipe:
        """The inverse of `to_json`; `kinds` are classes from outside the package."""
        return from_plain(parse_json(text, "recipe"), cls, "recipe", kinds)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The value named `recipe` of a Python file, or a recipe.json, with fields overridden.

    Raises UserError for a missing file, a file without a recipe, an unknown field (naming the
    nearest) or a value of another type.

    Args:
        path: the file.
        overrides: ["--train.steps", "30", ...].
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no recipe at {path}; recipes are Python files holding one value named 'recipe' (see"
            " recipes/)"
        )
    if path.suffix == ".json":
        return override(read_recipe(path), overrides)
    recipe = getattr(run_file(path.resolve()), "recipe", None)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} holds no value named 'recipe' of type mmtok.run.recipe.Recipe")
    return override(recipe, overrides)


def run_folder(path: Path, recipe: Recipe) -> Path:
    """The run folder of a recipe at a path: a run's own recipe.json means that run."""
    if path.name == "recipe.json":
        return path.parent
    return Path("runs") / recipe.name


def read_recipe(path: Path, kinds: Sequence[type] = ()) -> Recipe:
    """A recipe.json; `kinds` as in `Recipe.from_json`.

    Raises UserError, naming the file, if it is broken or was written by an older version.
    """
    try:
        text = path.read_text()
    except ValueError as error:  # no text at all
        raise UserError(f"{path} is not valid JSON: {error}") from None
    try:
        return Recipe.from_json(text, kinds)
    except UserError as error:
        check_not_older(_parsed_or_none(text), path)
        raise UserError(f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _parsed_or_none(text: str) -> Any:
    try:
        return parse_json(text, "")
    except UserError:
        return None


def check_not_older(stored: Any, path: Path) -> None:
    """Raise UserError if a recipe.json has fields of an older version."""
    old = dict.fromkeys(m[0] for field in leaves(stored) if (m := OLD_FIELD.match(field)))
    if old:
        raise UserError(
            f"{path} was made by an older version of mmtok ({', '.join(list(old)[:3])}): make the"
            " run anew, from its recipe's Python file and in another folder"
        )


def run_file(path: Path) -> types.ModuleType:
    """Run a Python file, which may import its neighbours.

    The module gets a name of its own in sys.modules, so that the type hints of classes that it
    defines can be resolved. Raises UserError, with the line, for whatever the file raises.
    """
    module = types.ModuleType(f"{OF_FILE}{path}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except UserError:
        raise
    except Exception as error:
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
    """The classes of all dataclasses in a recipe, however deep (see the module's docstring)."""
    kinds: set[type] = set()
    parts: Iterable[Any] = ()
    if dataclasses.is_dataclass(value):
        kinds.add(type(value))
        parts = [getattr(value, f.name) for f in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (tuple, list)):
        parts = value
    return kinds.union(*map(kinds_of, parts))


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A copy with fields set from ["--train.steps", "30", "--width=128"].

    A name may be shortened while it stays unique. Raises UserError as `load_recipe` does.
    """
    if not overrides:
        return recipe
    plain = to_plain(recipe)
    set_fields(plain, overrides)
    return from_plain(plain, Recipe, "recipe", tuple(kinds_of(recipe)))
