"""What `mmtok show` says of a recipe, a run, a token file and a tokenizer's folder: sizes,
parameters, bitrates, fingerprints.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.data.tokens import TokenFile, read_tokens
from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.io.overrides import field_groups
from mmtok.io.serialize import to_plain
from mmtok.io.strict_json import read_json
from mmtok.io.terminal import lines_text
from mmtok.preparation import load_preparation
from mmtok.run.folder import NOTES, read_fidelity, read_notes
from mmtok.run.recipe import Recipe
from mmtok.run.run import Run
from mmtok.run.signatures import planned_signatures, size_of_decoder
from mmtok.tokenizers import load
from mmtok.tokenizers.published import PublishedPieces
from mmtok.tokenizers.text import SentencePieceConfig
from mmtok.train.checkpoint import planned_steps
from mmtok.train.log import read_header, read_log

MOST_NOTES = 10

# ---- recipes and runs


def describe(recipe: Recipe) -> str:
    """A recipe as text: its parts, its sizes as far as they hang on no data, and every field by the
    name that sets it.
    """
    return lines_text(
        [*_parts(recipe, planned_signatures(recipe), {}), *_decoder(recipe, None), *_fields(recipe)]
    )


def describe_run(run: Run) -> str:
    """A run as text, as far as it is made: its tokenizers may not be fitted, its training not be
    through.
    """
    folder, recipe = run.folder, run.recipe
    fitted = all((folder / "tokenizers" / m / "tokenizer.json").exists() for m in recipe.tokenizers)
    trained = (folder / "model.safetensors").exists()
    vocabulary = run.vocabulary if fitted else None
    n_parameters = sum(p.numel() for p in run.lm.parameters()) if trained else None
    fidelity = (
        {m: read_fidelity(folder / "tokenizers" / m) for m in recipe.tokenizers}
        if vocabulary
        else {}
    )
    lines = _parts(
        recipe,
        vocabulary.signatures if vocabulary else planned_signatures(recipe),
        fidelity,
        folder / "data",
    )
    lines.append(f"run {folder}")
    lines += (
        _decoder(recipe, vocabulary)
        if n_parameters is None
        else [f"  decoder: {n_parameters:,} parameters"]
    )
    lines.append(
        f"  vocabulary {vocabulary.fingerprint}: {vocabulary.size:,} ids"
        if vocabulary
        else "  tokenizers not fitted"
    )
    steps = read_log(folder / "log.jsonl")
    at = f"step {steps[-1]['step']} of {recipe.train.steps}" if steps else "not started"
    planned = planned_steps(folder / "checkpoints")
    plans = "".join(
        f", until step {until} planned for {steps}"
        for (_, steps), (until, _) in zip(planned, planned[1:])
    )
    header = read_header(folder / "log.jsonl")
    products = f", in {header['precision']} on {header['device']}" if header else ""
    lines.append(f"  training: {'done, ' if n_parameters is not None else ''}{at}{plans}{products}")
    return lines_text([*lines, *_notes(folder), *_fields(recipe)])


def _notes(folder: Path) -> list[str]:
    """What was done to the data, as far as it was said: the first lines of it."""
    notes = read_notes(folder)
    more = (
        [f"    and {len(notes) - MOST_NOTES} more in {folder / NOTES}"]
        if len(notes) > MOST_NOTES
        else []
    )
    return (
        ["  said while it was made:" for _ in notes[:1]]
        + [f"    {note}" for note in notes[:MOST_NOTES]]
        + more
    )


def _source_text(source: Any, data: Path | None) -> str:
    fields = ", ".join(f"{field} ({modality})" for field, modality in source.fields.items())
    return f"  source {type(source).__name__}: {fields}" + (
        f", {source.described(data)}" if hasattr(source, "described") else ""
    )


def _parts(
    recipe: Recipe,
    signatures: Mapping[str, Signature],
    fidelity: Mapping[str, Mapping[str, float]],
    data: Path | None = None,
) -> list[str]:
    lines = [f"recipe {recipe.name}" + (f", starting from {recipe.start}" if recipe.start else "")]
    for m, config in recipe.tokenizers.items():
        facts = [type(config).__name__]
        if m in signatures:
            s, measured = signatures[m], fidelity.get(m, {})
            most = "at most " * (
                isinstance(config, SentencePieceConfig) and not s.fingerprint
            )  # few texts give fewer pieces
            facts += [
                most + frame_text(s),
                *rate_texts(s, config, measured),
                f"tokenizer {s.fingerprint}" if s.fingerprint else "not fitted",
            ]
            facts[-1] += _fidelity_text(measured)
        else:
            facts.append("sizes known once it is fitted")
        lines.append(f"  {m}: {', '.join(facts)}")
    lines += [_source_text(source, data) for source in recipe.sources]
    lines += [
        f"  task {task}, weight {task.weight:g}"
        + f", first {task.max_target_frames} frames" * bool(task.max_target_frames)
        for task in recipe.tasks
    ]
    return lines


def _fields(recipe: Recipe) -> Iterator[str]:
    """Every field by the name and with the words that set it, under the part it belongs to."""
    yield (
        "fields, set with fit and train by --NAME VALUE (shortened while the name stays unique;"
        " whole parts as JSON, --input_masking '{...}'):"
    )
    for name, kind, fields in field_groups(to_plain(recipe)):
        indent = "    " if name else "  "
        if name:
            yield f"  {name}: {kind}"
        width = max(map(len, fields), default=0)
        yield from (
            f"{indent}--{field:<{width}} {shlex.quote(value)}" for field, value in fields.items()
        )


# ---- sizes


def _decoder(recipe: Recipe, vocabulary: Vocabulary | None) -> list[str]:
    """Parameters and ids of the decoder that a recipe makes; vocabulary: None before the tokenizers
    are fitted.
    """
    planned = {} if vocabulary else planned_signatures(recipe)
    if vocabulary is None and (recipe.start or len(planned) < len(recipe.tokenizers)):
        return ["  decoder: parameters known once the tokenizers are fitted"]
    most = (
        "at most "
        if vocabulary is None
        and any(isinstance(c, SentencePieceConfig) for c in recipe.tokenizers.values())
        else ""
    )
    try:
        vocabulary = vocabulary or Vocabulary(list(planned.values()))
        n_parameters = size_of_decoder(recipe.model, vocabulary)
    except (
        UserError
    ) as error:  # a head for a modality that is not there: training would say the same
        return [f"  decoder: cannot be made: {error}"]
    return [f"  decoder: {most}{n_parameters:,} parameters, {vocabulary.size:,} ids"]


def frame_bits(signature: Signature) -> float:
    """log2 of how many different frames there are; 0 for continuous latents."""
    if signature.latent_size:
        return signature.latent_size * math.log2(signature.cells) if signature.cells else 0.0
    return sum(map(math.log2, signature.levels))


def frame_text(signature: Signature) -> str:
    """A frame's make-up and its size in bits."""
    if signature.latent_size:
        shape = f"{signature.latent_size} floats a frame"
        return (
            f"{shape} of {signature.cells} cells each, {frame_bits(signature):.4g} bits a frame"
            if signature.cells
            else shape
        )
    levels = [str(k) for k in signature.levels]
    shape = (
        f"{len(levels)} x {levels[0]}"
        if len(set(levels)) == 1 and len(levels) > 1
        else " x ".join(levels)
    )
    return f"{shape} levels, {frame_bits(signature):.4g} bits a frame"


def rate_texts(signature: Signature, config: Any, fidelity: Mapping[str, float]) -> list[str]:
    """What the bits come to in the modality's own measure, as far as a tokenizer's config and its
    measured fidelity say it.
    """
    bits = frame_bits(signature)
    match signature.modality:
        case "speech" if hasattr(config, "mel"):
            per_s = config.mel.rate_hz / config.mel.hop_samples
            return [f"{per_s:.4g} frames/s", *[f"{bits * per_s:.5g} bit/s"] * bool(bits)]
        case "image" if signature.frames and getattr(config, "height", None):
            total, n_pixels = bits * signature.frames, config.height * config.width
            count = (
                f"{signature.frames} {'patches' if hasattr(config, 'patch') else 'values'} an image"
            )
            return (
                [count, f"{total:.4g} bits an image", f"{total / n_pixels:.4g} bits a pixel"]
                if bits
                else [count]
            )
        case "image" if hasattr(config, "levels"):
            return [f"{bits:.4g} bits a value of a pixel"]
        case "jets" if hasattr(config, "features"):
            n_totals = len(config.totals)
            return [
                f"{bits:.4g} bits a particle"
                + f", the jet's totals before them: {n_totals}" * bool(n_totals)
            ]
        case "text" if fidelity.get("bytes_per_code"):
            return [f"{bits / fidelity['bytes_per_code']:.4g} bits a byte"]
    return []


def _fidelity_text(fidelity: Mapping[str, float]) -> str:
    return (
        "; held-out round trip: " + ", ".join(f"{k} {x:.4g}" for k, x in fidelity.items())
        if fidelity
        else ""
    )


# ---- tokenizers and token files


def describe_tokenizer(folder: Path) -> str:
    """A tokenizer's folder, or a sentencepiece .model file, as lines of text."""
    tokenizer = load(folder)
    signature, fidelity = tokenizer.signature, read_fidelity(folder)
    rates = rate_texts(signature, getattr(tokenizer, "config", None), fidelity)
    length = "until its end" if signature.frames is None else f"{signature.frames} frames"
    lines = [
        f"{folder}: {type(tokenizer).__name__} tokenizer of {signature.modality}, {length}",
        f"  {', '.join([frame_text(signature), *rates])}",
        f"  fingerprint {signature.fingerprint}{_fidelity_text(fidelity)}",
    ]
    if (weights := folder / "weights.safetensors").exists():
        lines.append(f"  {n_numbers(weights):,} numbers learned")
    if isinstance(tokenizer, PublishedPieces):
        lines += [f"  {line}" for line in tokenizer.remarks()]
    if folder.is_dir():
        lines.append(f"  {json.dumps(read_json(folder / 'tokenizer.json'))}")
    if preparation := load_preparation(folder, signature.modality):
        lines.append(f"  signals are prepared by {json.dumps(to_plain(preparation))}")
    return lines_text(lines)


def n_numbers(weights: Path) -> int:
    """How many numbers a safetensors file holds, without reading them.

    Raises UserError when it cannot be opened.
    """
    try:
        with safe_open(weights, "np") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    except SafetensorError as error:
        raise UserError(f"{weights} cannot be read: {error}") from None


def describe_tokens(path: Path) -> str:
    """What a token file holds, as lines of text: rows, fields, frames, bits, fingerprints."""
    file = read_tokens(path)
    lines = [f"{path}: token file, {counted(len(file), 'row')}"]
    for name in file.fields:
        signature, lengths, there = file.signatures[name], file.lengths(name), file.has(name)
        n = int(lengths.sum())
        spread = (
            f"{counted(n, 'frame')} ({lengths[there].min()} to {lengths[there].max()} a row)"
            if there.any()
            else "no frames"
        )
        n_truncated = sum(file.segment(name, i).truncated for i in np.flatnonzero(there))
        cut = f", {n_truncated} truncated" if n_truncated else ""
        lines += [
            f"  {name}: {signature.modality}, in {counted(int(there.sum()), 'row')}, {spread}{cut}",
            f"    {', '.join([frame_text(signature), *_spent(file, name)])}",
            f"    tokenizer {signature.fingerprint}",
        ]
    return lines_text(lines)


def _spent(file: TokenFile, name: str) -> list[str]:
    """Bits a row; beside them bits a second where the info holds durations, bits a pixel where it
    holds sizes.
    """
    segments = [file.segment(name, i) for i in np.flatnonzero(file.has(name))]
    bits = sum(map(len, segments)) * frame_bits(file.signatures[name])
    if not bits:
        return []
    mean, infos = f"{bits / len(segments):.4g} bits a row", [segment.info for segment in segments]
    if all("n_samples" in info and "rate_hz" in info for info in infos):
        seconds = sum(info["n_samples"] / info["rate_hz"] for info in infos)
        return [mean, f"{bits / seconds:.4g} bit/s over {seconds:.4g} s"] if seconds else [mean]
    if all("height" in info and "width" in info for info in infos):
        n_pixels = sum(info["height"] * info["width"] for info in infos)
        return [mean, f"{bits / n_pixels:.4g} bits a pixel"] if n_pixels else [mean]
    return [mean]
