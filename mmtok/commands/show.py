"""What `mmtok show` prints of a recipe, a run, a token file or a tokenizer's folder."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mmtok.commands.show_tokens import describe_tokens, frame_text
from mmtok.commands.signal_files import configs_of
from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.preparation import load_preparation
from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.io.overrides import field_groups
from mmtok.io.serialize import from_plain, to_plain
from mmtok.io.strict_json import read_json
from mmtok.io.terminal import lines_text
from mmtok.model.origin import Origin
from mmtok.run.folder import NOTES, read_fidelity, read_notes
from mmtok.run.recipe import Recipe, load_recipe
from mmtok.run.run import Run, open_run
from mmtok.run.signatures import planned_signatures, size_of_decoder
from mmtok.run.staged import stages_by_name
from mmtok.sources.base import Source
from mmtok.tokenizers import is_preset, load
from mmtok.tokenizers.base import Tokenizer, TokenizerConfig, is_codec, is_image_model
from mmtok.train.checkpoint import planned_steps
from mmtok.train.log import read_header, read_log

MOST_NOTES = 10
PLACE = re.compile(r"--(sources\.\d+\.)?path(=|$)")  # the option that names a corpus


def describe_path(
    path: Path, recipe_file: Path | None = None, overrides: Sequence[str] = ()
) -> str:
    """Whatever is at a path, as lines of text.

    Raises UserError if nothing is there.

    Args:
        path: a recipe, a run's folder, a token file, a tokenizer's folder, a preset, a codec's
            folder or a .model file.
        recipe_file: of a run or a tokenizer, its recipe file if it defines classes of its own.
        overrides: of a recipe, fields to set: ["--train.steps", "30"].
    """
    if is_preset(path):
        return describe_tokenizer(path, {})
    if not path.exists():
        raise UserError(f"show: {path} does not exist")
    if path.suffix in (".py", ".json"):
        recipe = load_recipe(path, overrides)
        if any(PLACE.match(word) for word in overrides):
            found = [source.found() for source in recipe.sources]
        else:
            found = [_found(source) for source in recipe.sources]
        return describe(recipe, found)
    if overrides:
        raise UserError(
            f"show: {overrides[0]} is for recipes, and {path} is none: what is made has the fields"
            " that it was made with"
        )
    if (path / "recipe.json").exists():
        from mmtok.nn.device import resolve_device

        return describe_run(open_run(path, recipe_file, resolve_device("cpu")))
    if (path / "tokenizer.json").exists() or path.suffix == ".model" or _is_published(path):
        return describe_tokenizer(path, configs_of(recipe_file))
    return describe_tokens(path)


# ---- recipes and runs


def _is_published(path: Path) -> bool:
    """Whether a folder is that of a published codec or tokenizer of images."""
    return is_codec(path) or is_image_model(path)


def describe(recipe: Recipe, found: Sequence[str] = ()) -> str:
    """A recipe as lines of text: its parts, their sizes, and every field by its name.

    Sizes that depend on the data are left out.

    found: what lies at the path of each source; none is looked at here.
    """
    parts = _parts(recipe, planned_signatures(recipe), {}, found=found)
    return lines_text([*parts, *_decoder(recipe, None), *_fields(recipe)])


def _found(source: Source) -> str:
    """What lies at a source's path, or why it cannot be read: the recipe is shown all the same."""
    if not getattr(source, "path", ""):
        return ""
    try:
        return source.found()
    except UserError as error:
        return f"cannot be read: {error}"


def describe_run(run: Run) -> str:
    """A run as lines of text, as far as it is made: fitted or not, trained or not."""
    folder = run.folder
    recipe = run.recipe
    if all((folder / "tokenizers" / m / "tokenizer.json").exists() for m in recipe.tokenizers):
        vocabulary = run.vocabulary
        signatures = vocabulary.signatures
        fidelity = {m: read_fidelity(folder / "tokenizers" / m) for m in recipe.tokenizers}
        of_vocabulary = f"  vocabulary {vocabulary.fingerprint}: {vocabulary.size:,} ids"
    else:
        vocabulary = None
        signatures = planned_signatures(recipe)
        fidelity = {}
        of_vocabulary = "  tokenizers not fitted"
    configs = {m: run.tokenizer_config(m) for m in recipe.tokenizers}
    kept = dataclasses.replace(recipe, tokenizers=configs)
    trained = (folder / "model.safetensors").exists()
    if trained:
        n_parameters = sum(p.numel() for p in run.lm.parameters())
        decoder = [f"  decoder: {n_parameters:,} parameters{_learning(run)}"]
    else:
        decoder = _decoder(recipe, vocabulary)
    return lines_text(
        [
            *_parts(kept, signatures, fidelity, folder / "data"),
            f"run {folder}",
            *decoder,
            of_vocabulary,
            _training(folder, recipe, trained),
            *_origin(folder),
            *_stages(run),
            *_notes(folder),
            *_fields(recipe),
        ]
    )


def _training(folder: Path, recipe: Recipe, trained: bool) -> str:
    """How far the training is."""
    text = "  training: "
    if trained:
        text += "done, "
    log = read_log(folder / "log.jsonl")
    if log:
        text += f"step {log[-1]['step']} of {recipe.train.steps}"
    else:
        text += "not started"
    for (_, steps), (until, _) in pairwise(planned_steps(folder / "checkpoints")):
        text += f", until step {until} planned for {steps}"
    header = read_header(folder / "log.jsonl")
    if header:
        text += f", in {header['precision']} on {header['device']}"
    return text


def _origin(folder: Path) -> list[str]:
    """What the training began with, where that was a run."""
    origin = read_header(folder / "log.jsonl").get("start")
    if not origin:
        return []
    return [f"  began with {from_plain(origin, Origin, 'start')}"]


def _stages(run: Run) -> list[str]:
    """The stages of a training that began before all token files were made."""
    stages = stages_by_name(run)
    if not stages:
        return []
    lines = [f"  token files were read in {counted(len(stages), 'stage')}:"]
    for stage in stages:
        parts = ", ".join(f"{name} {n}" for name, n in stage["parts"].items())
        lines.append(f"    from step {stage['step']}, the first parts: {parts}")
    return lines


def _learning(run: Run) -> str:
    """How many parameters learned, where adapters did."""
    config = run.recipe.model
    if not config.lora:
        return ""
    n = sum(p.numel() for p in run.lm.parameters() if p.requires_grad)
    return f", of which {n:,} learned (adapters of rank {config.lora}, base {config.lora_base})"


def _notes(folder: Path) -> list[str]:
    """The first notes on what was done to the data."""
    notes = read_notes(folder)
    if not notes:
        return []
    lines = ["  said while it was made:", *(f"    {note}" for note in notes[:MOST_NOTES])]
    if len(notes) > MOST_NOTES:
        lines.append(f"    and {len(notes) - MOST_NOTES} more in {folder / NOTES}")
    return lines


def _parts(
    recipe: Recipe,
    signatures: Mapping[str, Signature],
    fidelity: Mapping[str, Mapping[str, float]],
    data: Path | None = None,
    found: Sequence[str] = (),
) -> list[str]:
    """The recipe's name, tokenizers, sources and tasks.

    Args:
        recipe: the recipe.
        signatures: of the modalities whose tokenizers' are known.
        fidelity: of fitted tokenizers, by modality.
        data: the run's folder of cached data, if there is one.
        found: what lies at the path of each source.
    """
    lines = [f"recipe {recipe.name}"]
    if recipe.start:
        lines[0] += f", starting from {recipe.start}"
    for m, config in recipe.tokenizers.items():
        facts = [type(config).__name__]
        if m in signatures:
            facts += _tokenizer_facts(config, signatures[m], fidelity.get(m, {}))
        else:
            facts.append("sizes known once it is fitted")
        lines.append(f"  {m}: {', '.join(facts)}")
    for i, source in enumerate(recipe.sources):
        facts = [f"{field} ({modality})" for field, modality in source.fields.items()]
        if description := source.description(data):
            facts.append(description)
        lines.append(f"  source {type(source).__name__}: {', '.join(facts)}")
        lines += [f"    {text}" for text in found[i : i + 1] if text]
    for task in recipe.tasks:
        lines.append(f"  task {task}, weight {task.weight:g}")
        if task.max_target_frames:
            lines[-1] += f", first {task.max_target_frames} frames"
    for contrast in recipe.contrasts:
        lines.append(f"  contrast {contrast}, weight {contrast.weight:g}")
    if recipe.model.embedding is not None:
        embedding = recipe.model.embedding
        ways = "both ways" if embedding.bidirectional else "causal"
        lines.append(f"  vectors of {embedding.size} numbers by {embedding.loss}, {ways}")
    return lines


def _tokenizer_facts(
    config: Any, signature: Signature, fidelity: Mapping[str, float]
) -> Iterator[str]:
    # few texts give fewer pieces than a config asks for
    at_most = config.signature_is_bound and not signature.fingerprint
    yield ("at most " if at_most else "") + frame_text(signature)
    yield from config.rate_texts(signature, fidelity)
    fitted = f"tokenizer {signature.fingerprint}" if signature.fingerprint else "not fitted"
    yield fitted + _fidelity_text(fidelity)


def _fields(recipe: Recipe) -> Iterator[str]:
    """Every field by the name and with the value that sets it, under its part of the recipe."""
    yield (
        "fields, set with fit and train by --NAME VALUE (shortened while the name stays unique;"
        " whole parts as JSON, --input_masking '{...}'):"
    )
    for name, kind, fields in field_groups(to_plain(recipe)):
        indent = "  "
        if name:
            yield f"  {name}: {kind}"
            indent = "    "
        width = max(map(len, fields), default=0)
        for field, value in fields.items():
            yield f"{indent}--{field:<{width}} {shlex.quote(value)}"


# ---- sizes


def _decoder(recipe: Recipe, vocabulary: Vocabulary | None) -> list[str]:
    """Parameters and ids of the decoder that a recipe makes.

    The vocabulary is None before the tokenizers are fitted.
    """
    if not recipe.learned:
        return ["  no tasks, so no decoder: tokenizers are all that is made"]
    at_most = ""
    try:
        if vocabulary is None:
            planned = planned_signatures(recipe)
            if recipe.start or len(planned) < len(recipe.tokenizers):
                return ["  decoder: parameters known once the tokenizers are fitted"]
            if any(config.signature_is_bound for config in recipe.tokenizers.values()):
                at_most = "at most "
            vocabulary = Vocabulary(list(planned.values()))
        n_parameters = size_of_decoder(recipe.model, vocabulary)
    except UserError as error:  # such as a head for a missing modality; training says the same
        return [f"  decoder: cannot be made: {error}"]
    odd = recipe.model.trunk.odd_blocks
    blocks = f", trunk of {odd}" if odd else ""
    return [f"  decoder: {at_most}{n_parameters:,} parameters, {vocabulary.size:,} ids{blocks}"]


def _fidelity_text(fidelity: Mapping[str, float]) -> str:
    if not fidelity:
        return ""
    return "; held-out round trip: " + ", ".join(f"{k} {x:.4g}" for k, x in fidelity.items())


# ---- tokenizers and token files


def describe_tokenizer(folder: Path, configs: Mapping[str, TokenizerConfig]) -> str:
    """A tokenizer's folder, or a sentencepiece .model file, as lines of text.

    configs: of tokenizers from outside the package, one of which may have written the folder.
    """
    tokenizer = _opened(folder, configs)
    signature = tokenizer.signature
    fidelity = read_fidelity(folder)
    rates = tokenizer.config.rate_texts(signature, fidelity)
    length = "until its end" if signature.frames is None else f"{signature.frames} frames"
    lines = [
        f"{folder}: {type(tokenizer).__name__} tokenizer of {signature.modality}, {length}",
        f"  {', '.join([frame_text(signature), *rates])}",
        f"  fingerprint {signature.fingerprint}{_fidelity_text(fidelity)}",
    ]
    if (weights := folder / "weights.safetensors").exists():
        lines.append(f"  {n_numbers(weights):,} numbers learned")
    lines += [f"  {line}" for line in tokenizer.remarks()]
    if (folder / "tokenizer.json").exists():
        lines.append(f"  {json.dumps(read_json(folder / 'tokenizer.json'))}")
    if preparation := load_preparation(folder, signature.modality):
        lines.append(f"  signals are prepared by {json.dumps(to_plain(preparation))}")
    return lines_text(lines)


def _opened(folder: Path, configs: Mapping[str, TokenizerConfig]) -> Tokenizer:
    """The tokenizer in a folder, by the first config whose class wrote it."""
    for config in configs.values():
        try:
            return config.load(folder)
        except UserError:  # of another class
            continue
    return load(folder)


def n_numbers(weights: Path) -> int:
    """How many numbers a safetensors file holds, without reading them.

    Raises UserError if it cannot be opened.
    """
    try:
        with safe_open(weights, "np") as file:
            names = file.keys()
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except SafetensorError as error:
        raise UserError(f"{weights} cannot be read: {error}") from None
