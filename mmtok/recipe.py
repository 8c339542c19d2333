"""A recipe is a value: one frozen dataclass that says everything about a run.

This file only composes the parts' own config dataclasses; it loads them from a Python file, overrides single fields, and
writes them to JSON and back. Where a field offers a choice (which tokenizer, which source, which head) JSON carries `kind`,
the class's own name, looked up among the members of that field's union only.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtok.data.hub import HubTable
from mmtok.data.images import ImageFolder, ScannedDigits
from mmtok.data.jets import JetFile
from mmtok.data.loader import Corrupt, Task
from mmtok.data.pythia import PythiaJets
from mmtok.data.speech import SpeechFolder, SpokenDigits
from mmtok.data.text import TextFileConfig
from mmtok.model.generate import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.segment import BadInput
from mmtok.tokenizers.image import PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.image_latents import PixelLatentsConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.pretrained import PretrainedTextConfig
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig
from mmtok.train.fit_lm import TrainConfig

TokenizerConfig = (
    BytesConfig | SentencePieceConfig | PretrainedTextConfig | PixelsConfig | VQPatchesConfig | PixelLatentsConfig | DMelConfig | JetGridConfig
)
SourceConfig = TextFileConfig | ScannedDigits | ImageFolder | SpokenDigits | SpeechFolder | PythiaJets | JetFile | HubTable


@dataclass(frozen=True)
class Recipe:
    """One run. Fields of the examples come from the sources; two fields may share a modality.

    tokenizers  modality -> config
    sources     where examples come from; together they yield every field that the tasks name
    tasks       what is learned: orders of fields, with weights
    corrupt     field -> what the model may not read of it in training
    sampling    modality -> how `sample` and `evaluate` draw it
    n_samples   how many samples per question `evaluate` draws
    start       a Llama's checkpoint folder or hub id: its trunk and its text tokenizer take the place of the recipe's
    """

    name: str
    tokenizers: Mapping[str, TokenizerConfig]
    sources: tuple[SourceConfig, ...]
    tasks: tuple[Task, ...]
    model: DecoderConfig = DecoderConfig()
    train: TrainConfig = TrainConfig()
    corrupt: Mapping[str, Corrupt] = field(default_factory=dict)
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    n_samples: int = 200
    start: str | None = None

    def __post_init__(self):
        fields = self.fields
        for task in self.tasks:
            for name in (*task.given, *task.make):
                if name not in fields:
                    raise BadInput(f"recipe {self.name!r}: task {task} names the field {name!r}, but the sources yield {', '.join(fields)}")
                if fields[name] not in self.tokenizers:
                    raise BadInput(f"recipe {self.name!r}: field {name!r} is {fields[name]}, for which the recipe has no tokenizer")
        for name in self.corrupt:
            if name not in fields:
                raise BadInput(f"recipe {self.name!r}: corrupt names the field {name!r}, but the sources yield {', '.join(fields)}")

    @property
    def fields(self) -> dict[str, str]:
        """Field name -> modality, over all sources. Raises BadInput when two sources disagree."""
        merged: dict[str, str] = {}
        for source in self.sources:
            for name, modality in source.fields.items():
                if merged.setdefault(name, modality) != modality:
                    raise BadInput(f"recipe {self.name!r}: field {name!r} is {merged[name]} in one source and {modality} in another")
        return merged

    def to_json(self) -> str:
        return json.dumps(_plain(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, kinds: Sequence[type] = ()) -> Recipe:
        """The inverse of `to_json`. kinds: classes that a recipe from outside the package brings along."""
        return _build(json.loads(text), cls, "recipe", kinds)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The value named `recipe` of a Python file, or a recipe.json, with fields overridden: ["--train.steps", "30", ...].

    Raises BadInput for a missing file, a file without a recipe, an unknown field (naming the nearest) or a value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no recipe at {path}; recipes are Python files holding one value named 'recipe' (see recipes/)")
    if path.suffix == ".json":
        recipe = read_recipe(path)
    else:
        recipe = getattr(_imported(path.resolve()), "recipe", None)
    if not isinstance(recipe, Recipe):
        raise BadInput(f"{path} holds no value named 'recipe' of type mmtok.recipe.Recipe")
    return override(recipe, overrides)


def read_recipe(path: Path, kinds: Sequence[type] = ()) -> Recipe:
    """A recipe.json; `kinds` as in `Recipe.from_json`. Raises BadInput, naming the file, when it is broken."""
    try:
        return Recipe.from_json(path.read_text(), kinds)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except ValueError as error:  # not JSON, or no text at all
        raise BadInput(f"{path} is not valid JSON: {error}") from None


def _imported(path: Path) -> types.ModuleType:
    """Run a Python file, which may import its neighbours. The module is entered under a name of its own among Python's modules,
    so that the type hints of classes that it defines can be resolved."""
    module = types.ModuleType(f"recipe:{path}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BadInput:
        raise
    except Exception as error:  # whatever the user's own code raises is told in one line
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise BadInput(f"{where}: the recipe cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def kinds_of(value: Any) -> set[type]:
    """Every dataclass used anywhere in a recipe: what `from_json` needs to read a recipe that brings its own classes."""
    if dataclasses.is_dataclass(value):
        return {type(value)}.union(*(kinds_of(getattr(value, f.name)) for f in dataclasses.fields(value)))
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return set().union(*map(kinds_of, parts))


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A copy with fields set from ["--train.steps", "30", "--width=128"]; a name may be shortened while it stays unique."""
    if not overrides:
        return recipe
    plain = _plain(recipe)
    for name, text in _pairs(overrides):
        *way, last = _resolve(name, list(_paths(plain)))
        node: Any = plain
        for step in way:
            node = node[step]
        node[last] = text if isinstance(node[last], str) else _value(text)
    return _build(plain, Recipe, "recipe", tuple(kinds_of(recipe)))


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs, words = [], list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise BadInput(f"expected --field value, got {word!r}")
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise BadInput(f"--{name} needs a value")
            text = words.pop(0)
        pairs.append((name.replace("-", "_"), text))
    return pairs


def _paths(node: Any, way: tuple = ()) -> typing.Iterator[tuple]:
    """Ways to every leaf of a plain recipe, and to every list and mapping."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        if key == "kind":
            continue
        if not (isinstance(child, dict) and "kind" in child):
            yield (*way, key)
        yield from _paths(child, (*way, key))


def _resolve(name: str, paths: list[tuple]) -> tuple:
    wanted = tuple(name.split("."))
    texts = {tuple(map(str, p)): p for p in paths}
    if wanted in texts:
        return texts[wanted]
    fits = [p for t, p in texts.items() if t[-len(wanted):] == wanted]
    if len(fits) == 1:
        return fits[0]
    dotted = [".".join(t) for t in texts]
    if fits:
        raise BadInput(f"--{name} is ambiguous: {', '.join('--' + '.'.join(map(str, p)) for p in fits)}")
    last = {t[-1]: ".".join(t) for t in texts}
    near = difflib.get_close_matches(name, dotted, 3, 0.5) or [last[k] for k in difflib.get_close_matches(wanted[-1], last, 3, 0.5)]
    hint = f"; nearest: {', '.join('--' + n for n in near)}" if near else "; `mmtok show RECIPE` lists them"
    raise BadInput(f"the recipe has no field --{name}{hint}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


# ---- dataclasses to plain JSON values and back


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {"kind": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _build(value: Any, hint: Any, where: str, kinds: Sequence[type]) -> Any:
    """A plain value -> what `hint` asks for. Raises BadInput naming the place for a wrong type or an unknown kind or field."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _build_union(value, args, where, kinds)
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(value, hint, where, kinds)
    if origin is tuple:
        if not isinstance(value, list):
            raise BadInput(f"{where} must be a list, got {value!r}")
        each = [args[0]] * len(value) if args[1:] == (...,) else args
        if len(value) != len(each):
            raise BadInput(f"{where} must be a list of {len(each)}, got {value!r}")
        return tuple(_build(v, h, f"{where}.{i}", kinds) for i, (v, h) in enumerate(zip(value, each)))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise BadInput(f"{where} must be a mapping such as {{\"name\": ...}}, got {value!r}")
        return {k: _build(v, args[1], f"{where}.{k}", kinds) for k, v in value.items()}
    if origin is typing.Literal:
        if value not in args:
            raise BadInput(f"{where} must be one of {', '.join(map(repr, args))}, got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise BadInput(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def _build_union(value: Any, members: tuple, where: str, kinds: Sequence[type]) -> Any:
    if isinstance(value, dict) and "kind" in value:
        known = {c.__name__: c for c in (*kinds, *members) if dataclasses.is_dataclass(c)}
        if value["kind"] not in known:
            raise BadInput(f"{where}: unknown kind {value['kind']!r}; known are {', '.join(known)} (a recipe's own classes come with --recipe FILE)")
        return _build_dataclass(value, known[value["kind"]], where, kinds)
    if value is None and type(None) in members:
        return None
    errors = []
    for member in members:
        if member is not type(None):
            try:
                return _build(value, member, where, kinds)
            except BadInput as error:
                errors.append(str(error))
    raise BadInput(errors[-1])


def _build_dataclass(value: Any, hint: type, where: str, kinds: Sequence[type]) -> Any:
    if not isinstance(value, dict):
        raise BadInput(f"{where} must be a {hint.__name__}, got {value!r}")
    hints = typing.get_type_hints(hint)
    names = [f.name for f in dataclasses.fields(hint)]
    for name in value:
        if name != "kind" and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise BadInput(f"{where}: {hint.__name__} has no field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    needed = [f.name for f in dataclasses.fields(hint) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in value]
    if missing:
        raise BadInput(f"{where}: {hint.__name__} needs the field(s) {', '.join(missing)}")
    built = {n: _build(value[n], hints[n], f"{where}.{n}", kinds) for n in names if n in value}
    try:
        return hint(**built)
    except BadInput:
        raise
    except ValueError as error:  # sizes that do not fit together
        raise BadInput(f"{where}: {error}") from None
