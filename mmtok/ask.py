"""What `mmtok sample` and `mmtok score` do, as functions: files and words in, files and numbers out."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmtok.data.convert import named_signal, write_signal
from mmtok.files import sweep_beside, write_text
from mmtok.metrics.units import counted, customary, is_density, units_of
from mmtok.model.generate import Sampled
from mmtok.names import file_names, inside
from mmtok.plain import Within, check_known
from mmtok.run import Run
from mmtok.segment import BadInput, Document, Segment, segment_of
from mmtok.strict import read_json
from mmtok.strips import named_prompt, prompt_of, write_strips
from mmtok.tally import Tally
from mmtok.tokenizers.text import Bytes
from mmtok.words import first_segment, is_file, read_segments, spread

NOTHING = "nothing"  # what samples that nothing was given for are named after
ROW = {"file": str, "frames": Annotated[int, Within(0)], "stop": str, "prompt": str}  # of a folder's index
INDEX = "index.json"  # of a folder of samples
SPAN = r"-?\d+:-?\d+"  # of frames, START:STOP


def modality_to(run: Run, to: str) -> str:
    """The modality of what is asked for: a modality's or a field's name."""
    modality = run.recipe.fields.get(to, to)
    if modality not in run.tokenizers:
        raise BadInput(f"--to {to}: this run makes {', '.join(run.tokenizers)}")
    return modality


# ---- sampling


def sample(run: Run, prompt: Sequence[str], to: str, n: int = 8, out: Path | None = None, seed: int = 0, hole: str | None = None,
           draw: Callable[..., list[Sampled]] | None = None, **changes: float | int | str | None) -> list[Path]:
    """Draw n samples and write them to `out` (default RUN/samples/asked); returns the paths: n files, of jets one file of n jets.

    Files are named after the prompt, and listed in index.json (see `write_samples`). Asking for the same again replaces files of the same
    names; of an earlier call with a larger n the files with higher numbers stay, and stay listed. Take another `out` to keep them apart.

    prompt: words or files, in the order of a trained task; of a file of jets the first is taken. One more, of the modality asked for,
    is its beginning: "Once upon a time" of a text, the upper rows of a picture's codes.
    hole: "FILE:START:STOP", frames START to STOP of FILE are drawn anew instead. The run must have been trained with holes, or draw codes
    in any order (MaskedCodes), which needs no such training and takes several spans, "FILE:0:3,8:12".
    draw: is asked instead of `run.draw`, with the same arguments, for the same result.
    changes: temperature, top_k, top_p, guidance, max_frames, precision, compiled, steps, level instead of the recipe's.
    """
    modality = modality_to(run, to)
    folder = out or run.folder / "samples" / "asked"
    stem = _stem(prompt, {prompt_of(path.stem) for path in folder.glob("*")})
    stems = [stem] * n if modality == "jets" else [f"{stem}-{i:03d}" for i in range(n)]
    _keep_prompts(prompt, stems, folder)
    document = asked(run, prompt, modality, hole)
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
    """Raise BadInput for a file among the words that samples of these names would replace."""
    for word in prompt:
        if is_file(word) and Path(word).resolve().parent == folder.resolve() and Path(word).stem in stems:
            raise BadInput(f"sample: {word} lies where a sample of that name goes, and might be replaced: choose another --out")


def asked(run: Run, prompt: Sequence[str], modality: str, hole: str | None = None) -> Document:
    """The open document that words or files ask for, as `sample` takes them."""
    given = [first_segment(run, word) for word in prompt]
    begun = given.pop() if _goes_on(run, given, modality) else None
    if begun is not None and len(begun) == run.vocabulary.signatures[modality].frames:
        raise BadInput(f"sample: {prompt[-1]} is a whole {modality}, of which nothing is left to draw; give a part of it, or --hole FILE:START:STOP")
    return run.prompt(given, modality, _holed(run, modality, hole) if hole else begun)


def _goes_on(run: Run, given: Sequence[Segment], modality: str) -> bool:
    """Whether the last prompt is the beginning of what is asked for: the modality is the same, and no task makes one from another."""
    fields, modalities = run.recipe.fields, [s.modality for s in given]
    read = [[fields[f] for f in t.given] for t in run.recipe.tasks if fields[t.make[0]] == modality]
    return modalities[-1:] == [modality] and modalities not in read


def _holed(run: Run, modality: str, hole: str) -> Segment:
    """The file's segment with a span of its frames taken out; where codes are drawn in any order, with the spans to draw anew."""
    parts = re.fullmatch(rf"(.+):({SPAN}(?:,{SPAN})*)", hole, re.DOTALL)
    if not parts:
        raise BadInput(f"--hole {hole!r} must be FILE:START:STOP, frames counted from 0; several spans are START:STOP,START:STOP")
    file, spans = parts[1], tuple(sorted((int(a), int(b)) for a, b in (span.split(":") for span in parts[2].split(","))))
    in_any_order = run.lm.draws_whole(modality)
    if in_any_order and run.vocabulary.signatures[modality].latent_size:
        raise BadInput(f"--hole: {modality} is drawn by a diffusion over whole segments of latents, of which no part can be kept; a head of "
                       "MaskedCodes over codes can fill holes in")
    if not in_any_order:
        _need_holes_trained(run, modality, spans)
    segment = first_segment(run, file)
    if segment.modality != modality or not all(0 <= a < b <= len(segment) for a, b in spans):
        raise BadInput(f"--hole {hole!r}: {file} is {segment.modality} of {len(segment)} frames")
    if any(b > a for (_, b), (a, _) in zip(spans, spans[1:])):
        raise BadInput(f"--hole {hole!r}: the spans overlap")
    if in_any_order:
        return replace(segment, holes=spans)
    (a, b), = spans
    return segment_of(run.vocabulary.signatures[modality], np.delete(segment.values, slice(a, b), 0), info=segment.info, holes=((a, a),))


def _need_holes_trained(run: Run, modality: str, spans: Sequence[tuple[int, int]]) -> None:
    """Raise BadInput unless the decoder, which draws frames one after another, has learned to fill one hole in."""
    fields = run.recipe.fields
    if not any(t.hole > 0 and fields[t.make[-1]] == modality for t in run.recipe.tasks):
        raise BadInput(f"holes in {modality} need a run trained with hole > 0 on a task that makes {modality}")
    if len(spans) > 1:
        raise BadInput(f"--hole: {modality} was trained with one hole at a time; several need a head that draws codes in any order (MaskedCodes)")


def write_samples(run: Run, folder: Path, stems: Sequence[str], drawn: Sequence[Sampled], words: Sequence[str] = ()) -> list[Path]:
    """Decode and write samples, a file per stem; jets of one stem share its file. Returns the files.

    stems: names that `file_names` made. words: what each sample was asked for by, where the stem does not say it.

    Where states on the way were gathered, steps/ in the folder shows those of the first sample of each prompt (`mmtok.strips`).
    index.json in the folder has a row for each sample: its file, its frames, how it stopped ("end" or "cap"), and, where the name does
    not say it, the prompt; of the jets in one file the rows stand in their order. Rows of files that were there before, and still are, stay, unless the file is written anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    modality = drawn[0].segment.modality
    tokenizer = run.tokenizers[modality]
    signals = tokenizer.decode_batch([d.segment for d in drawn])
    groups: dict[str, list[int]] = {}
    for i, stem in enumerate(stems):
        groups.setdefault(stem, []).append(i)
    sweep_beside([folder / INDEX, *(named_signal(folder / stem, modality, signals[0]) for stem in groups)])
    rows, paths = _rows_there(folder), []
    for stem, group in groups.items():
        signal = [signals[i] for i in group] if modality == "jets" else signals[group[0]]
        paths.append(path := write_signal(inside(folder, stem), modality, signal, tokenizer))
        said = {"prompt": words[group[0]]} if words and words[group[0]] != named_prompt(path) else {}
        rows[path.name] = [{"file": path.name, "frames": len(drawn[i].segment), "stop": drawn[i].stop} | said for i in group]
    file_of = dict(zip(groups, paths))
    write_strips([file_of[stem] for stem in stems], drawn, tokenizer)
    write_text(folder / INDEX, json.dumps([row for mine in rows.values() for row in mine], indent=1))
    return paths


def note_empty(stems: Sequence[str], drawn: Sequence[Sampled]) -> None:
    """Say, once, how many samples ended before their first frame, and which was the first."""
    with Tally("samples") as tally:
        tally.seen(len(drawn))
        for stem, sampled in zip(stems, drawn):
            if not len(sampled.segment):
                tally.add("drawn without a frame: nothing is in it", stem)


def _rows_there(folder: Path) -> dict[str, list[dict]]:
    """The index's rows of files that are there, by file. A damaged index costs no samples just drawn: it is begun anew, with a warning."""
    try:
        rows = read_index(folder)
    except BadInput as error:
        warnings.warn(f"{error}; it is begun anew", stacklevel=3)
        rows = []
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["file"], []).append(row)
    return {file: mine for file, mine in found.items() if (folder / file).is_file()}


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's index.json, which `write_samples` describes; [] without one.

    Raises BadInput for what is no such list, and for a file that is none of this folder.
    """
    path = folder / INDEX
    rows = read_json(path) if path.exists() else []
    try:
        if not isinstance(rows, list):
            raise BadInput("it is no list of rows")
        for number, row in enumerate(rows):
            check_known(row, ROW, f"row {number}", ("file",))
            inside(folder, row["file"])
    except BadInput as error:
        raise BadInput(f"{path} is damaged: {error}; remove it") from None
    return rows


# ---- scoring


@dataclass(frozen=True)
class Scored:
    """One line of `mmtok score`: nats of a segment, its frames and how many of its unit (bytes of a text) these are, the kind, and
    the customary unit; whether the segment is only a passage of a longer text, scored without the passages before it; whether the nats
    are of a density (of standardised latents), and so may be below 0.

    headers  of the frames, those that the unit does not count: their nats (of a jet's totals) are shared out over the others' units
    cut      segments that were cut off at a cap: scored is how they begin, and neither their rest nor their end
    """

    name: str
    modality: str
    nats: float
    frames: int
    units: int
    kind: str
    value: float
    unit: str
    passage: bool = False
    density: bool = False
    headers: int = 0
    cut: int = 0

    def __str__(self) -> str:
        frames = f"{self.frames} frames" + f" ({self.headers} of them totals)" * bool(self.headers)
        units = f" over {self.units} {counted(self.unit)}" * (self.units != self.frames)
        value = f"{self.value:.4f} {self.unit}{units}" if self.units else f"no {counted(self.unit)}"
        kind = kind_text(self.kind, self.density) + f", {self.cut} cut at the cap: scored as what begins so" * bool(self.cut)
        return f"{self.name}: {self.nats:.4f} nats over {frames}, {value} ({kind})"


def kind_text(kind: str, density: bool) -> str:
    """What nats are, in words."""
    return f"{kind}, density" if density else kind


def totals(rows: Sequence[Scored]) -> list[Scored]:
    """One line for each modality that has several rows: their sum, in the customary unit over all of them.

    The sum is -log p of the rows as separate documents, which is what several files are, and the jets of one file. The passages of a
    longer text are no such thing: the decoder gave the text as a whole no probability, and their sum is no bound on one, since each was
    scored without what comes before it. So where passages are among the rows the kind says that it holds of them one by one.
    """
    lines = []
    for modality in dict.fromkeys(row.modality for row in rows):
        mine = [row for row in rows if row.modality == modality]
        if len(mine) > 1:
            nats, units = sum(row.nats for row in mine), sum(row.units for row in mine)
            kinds = {row.kind for row in mine}
            kind = next(kind for kind in ("estimate", "bound", "exact") if kind in kinds)  # a sum is what the weakest of its terms is
            kind += " for each passage by itself, not for the text" * any(row.passage for row in mine)
            value = sum(row.value * max(1, row.units) for row in mine) / max(1, units)
            frames, headers, cut = (sum(getattr(row, name) for row in mine) for name in ("frames", "headers", "cut"))
            lines.append(replace(mine[0], name=f"all {len(mine)}", nats=nats, frames=frames, units=units, kind=kind, value=value,
                                 passage=False, headers=headers, cut=cut))
    return lines


def n_units(run: Run, segment: Segment) -> int:
    """How many of what the customary unit counts a segment has, as `units_of` says."""
    return units_of(run.tokenizers[segment.modality], segment)


def score(run: Run, files: Sequence[str], given: Sequence[str] = ()) -> list[Scored]:
    """-log p of every file (or word; or file below a folder), each given the condition, under the run's decoder.

    Raises BadInput for an order that was never trained: a condition left out needs a run trained with the null condition.
    """
    condition = [first_segment(run, word) for word in given]
    names, documents, passage = [], [], []
    for word in spread(files):
        segments = read_segments(run, word)
        for i, segment in enumerate(segments):
            task = run.task_for([s.modality for s in condition], segment.modality)
            head = tuple(condition) or (None,) * len(task.given)
            documents.append(Document((*head, segment), (False,) * len(head) + (True,)))
            names.append(word if len(segments) == 1 else f"{word}[{i}]")
            passage.append(segment.modality == "text" and len(segments) > 1)
    rows = []
    for name, document, part, scored in zip(names, documents, passage, run.score_documents(documents)):
        segment = document.segments[-1]
        nats, units = scored.nats[-1], n_units(run, segment)
        # text is scored under its tokenizer's own segmentation: with pieces, other segmentations of the string add to its probability
        kind = "bound" if segment.modality == "text" and not isinstance(run.tokenizers["text"], Bytes) else scored.kind
        signature = run.vocabulary.signatures[segment.modality]
        rows.append(Scored(name, segment.modality, nats, len(segment), units, kind, *customary(signature, nats, units), part,
                           is_density(signature), min(signature.headers, len(segment)), int(segment.truncated)))
    return rows
