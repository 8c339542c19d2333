"""What `mmtok sample` does: words and files in, samples written to files out."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mmtok.commands.long_texts import joined, prompts_by_sentence
from mmtok.commands.prompts import condition_segments, first_segment, is_file
from mmtok.commands.recordings import is_long_recording, read_samples, write_word_times
from mmtok.commands.signal_files import all_files, files_for, write_signal
from mmtok.commands.trajectories import named_prompt, prompt_of, write_trajectories
from mmtok.core.interleaved import INTERLEAVED
from mmtok.core.segment import Document, Segment, segment_of
from mmtok.errors import UserError
from mmtok.io.filenames import file_names, inside
from mmtok.io.files import check_folder_fits, remove_leftovers_of, write_text
from mmtok.io.serialize import Within, check_known
from mmtok.io.strict_json import read_json
from mmtok.io.tally import Tally
from mmtok.io.terminal import print_status
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run
from mmtok.tokenizers.other_vocoder import vocoder_name

NOTHING = "nothing"  # the name of samples without a prompt
INDEX = "index.json"  # of a folder of samples
ROW = {  # of the index
    "file": str,
    "frames": Annotated[int, Within(0)],
    "stop": str,
    "prompt": str,
    "modality": str,
    "vocoder": str,
}
SPAN = r"-?\d+:-?\d+"  # of frames, START:STOP


def sample(
    run: Run,
    prompt: Sequence[str],
    to: str,
    n: int = 8,
    out: Path | None = None,
    seed: int = 0,
    infill: str | None = None,
    draw: Callable[..., list[Sampled]] | None = None,
    timestamps: bool = False,
    prompts: Sequence[Sequence[str]] = (),
    **changes: Any,
) -> list[Path]:
    """Draw n samples and write them to files; return the paths.

    That is n files, or where a file holds many signals (jets) one file of n. They are named after
    the prompt and listed in index.json (see `write_samples`). The same call again replaces files of
    the same names. Files of an earlier call with a larger n stay, and stay listed.

    Args:
        run: the opened run.
        prompt: words or files, in the order of a trained task. Of a file of jets the first is
            taken. One more, of the modality `to`, is the beginning of each sample: "Once upon a
            time" of a text, the upper rows of a picture's codes.
        to: a modality or a field of the recipe.
        n: how many samples.
        out: the folder, by default RUN/samples/asked.
        seed: of all random numbers.
        infill: "FILE:START:STOP" draws frames START to STOP of FILE anew instead. The run must have
            been trained with infilling, or draw codes in any order (MaskedDiffusion), which also
            takes several spans, "FILE:0:3,8:12".
        draw: called instead of `run.draw`, with the same arguments and result.
        timestamps: of texts that were read in a recording: write NAME.words.csv beside each.
        prompts: several prompts instead of `prompt`, n samples of each.
        changes: temperature, top_k, top_p, guidance, max_frames, precision, compiled, steps,
            aug_noise instead of the recipe's.
    """
    modality = target_modality(run, to)
    folder = out or run.folder / "samples" / "asked"
    check_folder_fits(folder)
    prompts = prompts or [prompt]
    texts = list(map(_prompt_text, prompts))
    names = file_names(texts, {prompt_of(path.stem) for path in folder.glob("*")})
    files = all_files(run.recipe.tokenizers.values()).get(modality)
    stems = [f"{name}-{i:03d}" for name in names for i in range(n)]
    if files is not None and files.many:
        stems = [name for name in names for _ in range(n)]
    _check_prompts_stay([word for words in prompts for word in words], stems, folder)
    sampling = run.sampling(modality, **changes)

    def draw_so(documents: Sequence[Document], seed: int) -> list[Sampled]:
        """Samples of documents, as this call asks for them."""
        return (draw or run.draw)(documents, sampling, seed)

    samples = draw_prompts(run, prompts, modality, n, seed, infill, draw_so, timestamps)
    noted_by_player = draw is not None and not any(len(s.segment) for s in samples)
    if not noted_by_player:
        note_empty(stems, samples)
    paths = write_samples(run, folder, stems, samples, [text for text in texts for _ in range(n)])
    write_word_times(samples, paths)
    return paths


def draw_prompts(
    run: Run,
    prompts: Sequence[Sequence[str]],
    modality: str,
    n: int,
    seed: int,
    infill: str | None,
    draw: Callable[[Sequence[Document], int], list[Sampled]],
    timestamps: bool = False,
) -> list[Sampled]:
    """N samples of each prompt, one prompt after the other.

    A long text is spoken sentence by sentence, and a long recording is read by windows; both are
    said. Sentence i of a prompt has the seed `seed` + i; all have the same voice where the prompt
    names one. Prompts that are neither are drawn together where there are several.

    Raises UserError for timestamps of what is not read in a recording.
    """
    found: dict[int, list[Sampled]] = {}
    whole: dict[int, Document] = {}  # by the prompt's number
    for number, prompt in enumerate(prompts):
        parts = [list(prompt)]
        if infill is None:
            parts = prompts_by_sentence(run, prompt, modality)
        documents = [prompt_document(run, part, modality, infill) for part in parts]
        if timestamps or is_long_recording(run, documents[0]):
            found[number] = read_samples(run, documents[0], n, seed, draw, timestamps)
        elif len(parts) == 1:
            whole[number] = documents[0]
        else:
            print_status(f"{len(parts)} sentences, spoken one after the other")
            drawn = [draw([document] * n, seed + i) for i, document in enumerate(documents)]
            found[number] = [joined(run, row) for row in zip(*drawn, strict=True)]
    if whole:
        together = draw([document for document in whole.values() for _ in range(n)], seed)
        for i, number in enumerate(whole):
            found[number] = together[i * n : (i + 1) * n]
    return [sample for number in sorted(found) for sample in found[number]]


def target_modality(run: Run, to: str) -> str:
    """The modality that `to` names, itself or by a field of the recipe."""
    modality = run.recipe.fields.get(to, to)
    if modality not in run.tokenizers:
        raise UserError(f"--to {to}: this run makes {', '.join(run.tokenizers)}")
    if run.recipe.tokenizers[modality].is_input_only:
        raise UserError(f"--to {to}: it is a condition, which is read and never made")
    return modality


def _prompt_text(prompt: Sequence[str]) -> str:
    """The prompt's words and the names of its files, joined."""
    if not prompt:
        return NOTHING
    return "-".join(map(_word_text, prompt))


def _word_text(word: str) -> str:
    """A word, or the name of the file that it stands for: voice=clips/anna.wav is voice=anna."""
    field, equals, value = word.partition("=")
    if is_file(word):
        return Path(word).stem
    if equals and is_file(value):
        return f"{field}={Path(value).stem}"
    return word


def _check_prompts_stay(prompt: Sequence[str], stems: Sequence[str], folder: Path) -> None:
    """Raise UserError if samples of these names would replace a file of the prompt."""
    for word in prompt:
        if not is_file(word):
            continue
        path = Path(word)
        if path.resolve().parent == folder.resolve() and path.stem in stems:
            raise UserError(
                f"sample: {word} lies where a sample of that name goes, and might be replaced:"
                " choose another --out"
            )


# ---- the document to continue


def prompt_document(
    run: Run, prompt: Sequence[str], modality: str, infill: str | None = None
) -> Document:
    """The open document that `sample` continues, from the same arguments."""
    condition = condition_segments(run, prompt, modality)
    known = None
    if _is_beginning(run, condition, modality):
        known = condition.pop()
        if len(known) == run.vocabulary.signatures[modality].frames:
            raise UserError(
                f"sample: {prompt[-1]} is a whole {modality}, of which nothing is left to draw;"
                " give a part of it, or --infill FILE:START:STOP"
            )
    if infill:
        known = _to_infill(run, modality, infill)
    return run.prompt(condition, modality, known)


def _is_beginning(run: Run, segments: Sequence[Segment], modality: str) -> bool:
    """Whether the last segment is the beginning of the sample, not part of its condition.

    So it is if it has the sample's modality and no task reads all these segments as its input.
    """
    modalities = tuple(s.modality for s in segments)
    orders = [task.modalities(run.recipe.fields) for task in run.recipe.tasks]
    trained = [inputs for inputs, targets in orders if targets[0] == modality]
    return modalities[-1:] == (modality,) and modalities not in trained


def _to_infill(run: Run, modality: str, infill: str) -> Segment:
    """The segment of "FILE:START:STOP" with the spans to infill.

    Their frames are taken out. A head that draws codes in any order needs the number of frames, so
    for it they stay.
    """
    file, spans = _parsed_infill(infill)
    signature = run.vocabulary.signatures[modality]
    in_any_order = not run.lm.autoregressive(modality)
    if in_any_order and signature.latent_size:
        raise UserError(
            f"--infill: {modality} is drawn by a diffusion over whole segments of latents, of which"
            " no part can be kept; a head of MaskedDiffusion over codes can infill"
        )
    if not in_any_order:
        _check_infill_trained(run, modality, spans)
    segment = first_segment(run, file)
    if segment.modality != modality or not all(0 <= a < b <= len(segment) for a, b in spans):
        raise UserError(
            f"--infill {infill!r}: {file} is {segment.modality} of {len(segment)} frames"
        )
    if any(stop > start for (_, stop), (start, _) in pairwise(spans)):
        raise UserError(f"--infill {infill!r}: the spans overlap")
    if in_any_order:
        return replace(segment, infill_spans=spans)
    ((start, stop),) = spans
    values = np.delete(segment.values, slice(start, stop), 0)
    return segment_of(signature, values, info=segment.info, infill_spans=((start, start),))


def _parsed_infill(infill: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The file and the sorted spans of "FILE:START:STOP,START:STOP"."""
    match = re.fullmatch(rf"(.+):({SPAN}(?:,{SPAN})*)", infill, re.DOTALL)
    if not match:
        raise UserError(
            f"--infill {infill!r} must be FILE:START:STOP, frames counted from 0; several spans are"
            " START:STOP,START:STOP"
        )
    spans = []
    for span in match[2].split(","):
        start, stop = span.split(":")
        spans.append((int(start), int(stop)))
    return match[1], tuple(sorted(spans))


def _check_infill_trained(run: Run, modality: str, spans: Sequence[tuple[int, int]]) -> None:
    """Raise UserError unless an autoregressive decoder was trained to infill one span."""
    fields = run.recipe.fields
    makes = (modality, INTERLEAVED)
    tasks = [task for task in run.recipe.tasks if fields[task.targets[-1]] in makes]
    if not any(task.infill > 0 for task in tasks):
        raise UserError(
            f"--infill: {modality} needs a run trained with infill > 0 on a task that makes"
            f" {modality}"
        )
    if len(spans) > 1:
        raise UserError(
            f"--infill: {modality} was trained to infill one span at a time; several need a head"
            " that draws codes in any order (MaskedDiffusion)"
        )


# ---- a folder of samples


def write_samples(
    run: Run,
    folder: Path,
    stems: Sequence[str],
    samples: Sequence[Sampled],
    prompts: Sequence[str] = (),
) -> list[Path]:
    """Decode samples and write a file per stem; where files hold many, those of a stem share it.

    If samples have trajectories, steps/ in the folder shows that of each prompt's first sample
    (`mmtok.model.trajectory`). index.json in the folder has a row for each sample: its file, its
    modality, its frames, how it stopped ("end" or "cap"), of speech which vocoder spoke, and the
    prompt unless the name says it.
    Rows of one file keep their order. Rows of other files that are still there stay.

    Args:
        run: the opened run.
        folder: made if need be.
        stems: one per sample, names that `file_names` made.
        samples: what `Run.draw` returned, of one modality.
        prompts: one per sample, for the index.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    modality = samples[0].segment.modality
    tokenizer = run.tokenizers[modality]
    signals = tokenizer.decode_batch([s.segment for s in samples])
    groups: dict[str, list[int]] = {}
    for i, stem in enumerate(stems):
        groups.setdefault(stem, []).append(i)
    files = files_for(tokenizer.config, signals[0])
    targets = [files.named(folder / stem) for stem in groups]
    remove_leftovers_of([folder / INDEX, *targets])
    rows = _kept_rows(folder)
    file_of: dict[str, Path] = {}
    for stem, group in groups.items():
        signal = signals[group[0]]
        if files.many:
            signal = [signals[i] for i in group]
        path = write_signal(inside(folder, stem), files, signal, tokenizer.config)
        file_of[stem] = path
        of_file = {"file": path.name, "modality": modality}
        if spoken_by := vocoder_name(tokenizer):
            of_file["vocoder"] = spoken_by
        if prompts and prompts[group[0]] != named_prompt(path):
            of_file["prompt"] = prompts[group[0]]
        rows[path.name] = [
            {**of_file, "frames": len(samples[i].segment), "stop": samples[i].stop} for i in group
        ]
    write_trajectories([file_of[stem] for stem in stems], samples, tokenizer)
    all_rows = [row for some in rows.values() for row in some]
    write_text(folder / INDEX, json.dumps(all_rows, indent=1))
    return list(file_of.values())


def note_empty(stems: Sequence[str], samples: Sequence[Sampled]) -> None:
    """Say, once, how many samples have no frame, and which is the first."""
    with Tally("samples") as tally:
        tally.count(len(samples))
        for stem, sampled in zip(stems, samples, strict=True):
            if not len(sampled.segment):
                tally.add("drawn without a frame: nothing is in it", stem)


def _kept_rows(folder: Path) -> dict[str, list[dict]]:
    """The index's rows by file, of files that still exist.

    A damaged index is begun anew, with a warning: it must not cost the samples just drawn.
    """
    try:
        rows = read_index(folder)
    except UserError as error:
        warnings.warn(f"{error}; it is begun anew", stacklevel=3)
        rows = []
    found: dict[str, list[dict]] = {}
    for row in rows:
        if (folder / row["file"]).is_file():
            found.setdefault(row["file"], []).append(row)
    return found


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's index.json, which `write_samples` describes; [] without one.

    Raises UserError if the file is no such list, or names a file outside the folder.
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
