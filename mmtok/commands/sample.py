"""What `mmtok sample` does: words and files in, samples written to files out."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmtok.commands.prompts import first_segment, is_file
from mmtok.commands.strips import named_prompt, prompt_of, write_strips
from mmtok.commands.tokenize import named_signal, write_signal
from mmtok.core.segment import Document, Segment, segment_of
from mmtok.errors import UserError
from mmtok.io.filenames import file_names, inside
from mmtok.io.files import remove_leftovers_of, write_text
from mmtok.io.serialize import Within, check_known
from mmtok.io.strict_json import read_json
from mmtok.io.tally import Tally
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run

NOTHING = "nothing"  # what samples that nothing was given for are named after
ROW = {
    "file": str,
    "frames": Annotated[int, Within(0)],
    "stop": str,
    "prompt": str,
}  # of a folder's index
INDEX = "index.json"  # of a folder of samples
SPAN = r"-?\d+:-?\d+"  # of frames, START:STOP


def modality_to(run: Run, to: str) -> str:
    """The modality of what is asked for: a modality's or a field's name."""
    modality = run.recipe.fields.get(to, to)
    if modality not in run.tokenizers:
        raise UserError(f"--to {to}: this run makes {', '.join(run.tokenizers)}")
    return modality


# ---- sampling


def sample(
    run: Run,
    prompt: Sequence[str],
    to: str,
    n: int = 8,
    out: Path | None = None,
    seed: int = 0,
    infill: str | None = None,
    draw: Callable[..., list[Sampled]] | None = None,
    **changes: float | int | str | None,
) -> list[Path]:
    """Draw n samples and write them to `out` (default RUN/samples/asked); returns the paths: n
    files, of jets one file of n jets.

    Files are named after the prompt, and listed in index.json (see `write_samples`). Asking for the
    same again replaces files of the same names; of an earlier call with a larger n the files with
    higher numbers stay, and stay listed. Take another `out` to keep them apart.

    prompt: words or files, in the order of a trained task; of a file of jets the first is taken.
    One more, of the modality asked for,
    is its beginning: "Once upon a time" of a text, the upper rows of a picture's codes.
    infill: "FILE:START:STOP", frames START to STOP of FILE are drawn anew instead. The run must
    have been trained with holes, or draw codes in any order (MaskedDiffusion), which needs no such
    training and takes several spans, "FILE:0:3,8:12".
    draw: is asked instead of `run.draw`, with the same arguments, for the same result.
    changes: temperature, top_k, top_p, guidance, max_frames, precision, compiled, steps, level
    instead of the recipe's.
    """
    modality = modality_to(run, to)
    folder = out or run.folder / "samples" / "asked"
    stem = _stem(prompt, {prompt_of(path.stem) for path in folder.glob("*")})
    stems = [stem] * n if modality == "jets" else [f"{stem}-{i:03d}" for i in range(n)]
    _keep_prompts(prompt, stems, folder)
    document = asked(run, prompt, modality, infill)
    drawn = (draw or run.draw)([document] * n, run.sampling(modality, **changes), seed)
    told = draw is not None and not any(len(d.segment) for d in drawn)  # by the player
    if not told:
        note_empty(stems, drawn)
    return write_samples(run, folder, stems, drawn, [_words(prompt)] * n)


def _words(prompt: Sequence[str]) -> str:
    """What samples are asked for by, in words: those of the prompt, and the names of its files."""
    return "-".join(Path(w).stem if is_file(w) else w for w in prompt) if prompt else NOTHING


def _stem(prompt: Sequence[str], there: Iterable[str] = ()) -> str:
    """What samples of a prompt are named after; there: names in the folder already."""
    return file_names([_words(prompt)], there)[0]


def _keep_prompts(prompt: Sequence[str], stems: Sequence[str], folder: Path) -> None:
    """Raise UserError for a file among the words that samples of these names would replace."""
    for word in prompt:
        if (
            is_file(word)
            and Path(word).resolve().parent == folder.resolve()
            and Path(word).stem in stems
        ):
            raise UserError(
                f"sample: {word} lies where a sample of that name goes, and might be replaced:"
                " choose another --out"
            )


def asked(run: Run, prompt: Sequence[str], modality: str, infill: str | None = None) -> Document:
    """The open document that words or files ask for, as `sample` takes them."""
    given = [first_segment(run, word) for word in prompt]
    begun = given.pop() if _goes_on(run, given, modality) else None
    if begun is not None and len(begun) == run.vocabulary.signatures[modality].frames:
        raise UserError(
            f"sample: {prompt[-1]} is a whole {modality}, of which nothing is left to draw; give a"
            " part of it, or --infill FILE:START:STOP"
        )
    return run.prompt(given, modality, _holed(run, modality, infill) if infill else begun)


def _goes_on(run: Run, given: Sequence[Segment], modality: str) -> bool:
    """Whether the last prompt is the beginning of what is asked for: the modality is the same, and
    no task makes one from another.
    """
    modalities = tuple(s.modality for s in given)
    orders = [task.modalities(run.recipe.fields) for task in run.recipe.tasks]
    read = [inputs for inputs, targets in orders if targets[0] == modality]
    return modalities[-1:] == (modality,) and modalities not in read


def _holed(run: Run, modality: str, infill: str) -> Segment:
    """The file's segment with a span of its frames taken out; where codes are drawn in any order,
    with the spans to draw anew.
    """
    parts = re.fullmatch(rf"(.+):({SPAN}(?:,{SPAN})*)", infill, re.DOTALL)
    if not parts:
        raise UserError(
            f"--infill {infill!r} must be FILE:START:STOP, frames counted from 0; several spans are"
            " START:STOP,START:STOP"
        )
    file, spans = (
        parts[1],
        tuple(
            sorted((int(a), int(b)) for a, b in (span.split(":") for span in parts[2].split(",")))
        ),
    )
    in_any_order = run.lm.draws_whole(modality)
    if in_any_order and run.vocabulary.signatures[modality].latent_size:
        raise UserError(
            f"--infill: {modality} is drawn by a diffusion over whole segments of latents, of which"
            " no part can be kept; a head of MaskedDiffusion over codes can fill holes in"
        )
    if not in_any_order:
        _need_holes_trained(run, modality, spans)
    segment = first_segment(run, file)
    if segment.modality != modality or not all(0 <= a < b <= len(segment) for a, b in spans):
        raise UserError(
            f"--infill {infill!r}: {file} is {segment.modality} of {len(segment)} frames"
        )
    if any(b > a for (_, b), (a, _) in zip(spans, spans[1:])):
        raise UserError(f"--infill {infill!r}: the spans overlap")
    if in_any_order:
        return replace(segment, holes=spans)
    ((a, b),) = spans
    return segment_of(
        run.vocabulary.signatures[modality],
        np.delete(segment.values, slice(a, b), 0),
        info=segment.info,
        holes=((a, a),),
    )


def _need_holes_trained(run: Run, modality: str, spans: Sequence[tuple[int, int]]) -> None:
    """Raise UserError unless the decoder, which draws frames one after another, has learned to fill
    one hole in.
    """
    fields = run.recipe.fields
    if not any(t.infill > 0 and fields[t.targets[-1]] == modality for t in run.recipe.tasks):
        raise UserError(
            f"holes in {modality} need a run trained with infill > 0 on a task that makes"
            f" {modality}"
        )
    if len(spans) > 1:
        raise UserError(
            f"--infill: {modality} was trained with one hole at a time; several need a head that"
            " draws codes in any order (MaskedDiffusion)"
        )


def write_samples(
    run: Run,
    folder: Path,
    stems: Sequence[str],
    drawn: Sequence[Sampled],
    words: Sequence[str] = (),
) -> list[Path]:
    """Decode and write samples, a file per stem; jets of one stem share its file.

    Returns the files.

    stems: names that `file_names` made. words: what each sample was asked for by, where the stem
    does not say it.

    Where states on the way were gathered, steps/ in the folder shows those of the first sample of
    each prompt (`mmtok.model.trajectory`). index.json in the folder has a row for each sample: its
    file, its frames, how it stopped ("end" or "cap"), and, where the name does not say it, the
    prompt; of the jets in one file the rows stand in their order. Rows of files that were there
    before, and still are, stay, unless the file is written anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    modality = drawn[0].segment.modality
    tokenizer = run.tokenizers[modality]
    signals = tokenizer.decode_batch([d.segment for d in drawn])
    groups: dict[str, list[int]] = {}
    for i, stem in enumerate(stems):
        groups.setdefault(stem, []).append(i)
    remove_leftovers_of(
        [folder / INDEX, *(named_signal(folder / stem, modality, signals[0]) for stem in groups)]
    )
    rows, paths = _rows_there(folder), []
    for stem, group in groups.items():
        signal = [signals[i] for i in group] if modality == "jets" else signals[group[0]]
        paths.append(path := write_signal(inside(folder, stem), modality, signal, tokenizer))
        said = (
            {"prompt": words[group[0]]} if words and words[group[0]] != named_prompt(path) else {}
        )
        rows[path.name] = [
            {"file": path.name, "frames": len(drawn[i].segment), "stop": drawn[i].stop} | said
            for i in group
        ]
    file_of = dict(zip(groups, paths))
    write_strips([file_of[stem] for stem in stems], drawn, tokenizer)
    write_text(
        folder / INDEX, json.dumps([row for mine in rows.values() for row in mine], indent=1)
    )
    return paths


def note_empty(stems: Sequence[str], drawn: Sequence[Sampled]) -> None:
    """Say, once, how many samples ended before their first frame, and which was the first."""
    with Tally("samples") as tally:
        tally.count(len(drawn))
        for stem, sampled in zip(stems, drawn):
            if not len(sampled.segment):
                tally.add("drawn without a frame: nothing is in it", stem)


def _rows_there(folder: Path) -> dict[str, list[dict]]:
    """The index's rows of files that are there, by file.

    A damaged index costs no samples just drawn: it is begun anew, with a warning.
    """
    try:
        rows = read_index(folder)
    except UserError as error:
        warnings.warn(f"{error}; it is begun anew", stacklevel=3)
        rows = []
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["file"], []).append(row)
    return {file: mine for file, mine in found.items() if (folder / file).is_file()}


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's index.json, which `write_samples` describes; [] without one.

    Raises UserError for what is no such list, and for a file that is none of this folder.
    """
    path = folder / INDEX
    rows = read_json(path) if path.exists() else []
    try:
        if not isinstance(rows, list):
            raise UserError("it is no list of rows")
        for number, row in enumerate(rows):
            check_known(row, ROW, f"row {number}", ("file",))
            inside(folder, row["file"])
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; remove it") from None
    return rows
