"""A recording that is longer than a recogniser's rows, read as `mmtok sample` reads it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from side_by_side import Line

from mmtok.commands.recordings import frame_seconds, window_frames
from mmtok.commands.sample import draw_prompts
from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.evaluation.speech_judged import recognition_of
from mmtok.metrics.speech_text import word_counts
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run, open_run
from mmtok.sources.sound_files import write_sound

LONG_S = 79.0
MOST = 1000  # clips that are looked at
PAUSE_S = 0.3  # between the clips that are joined
UNTRAINED = 0.5  # word error of clips alone of a run whose reading says nothing
WORSE = 0.10  # by which the word error may be above that of the clips alone


def long_recording(folder: Path, rows: list[dict[str, Any]]) -> Iterator[Line]:
    """Held-out clips of a run joined to LONG_S seconds: word errors, beside those of each alone.

    Raises UserError for a run that does not read speech.
    """
    run = open_run(folder, None, torch.device("cpu"), None)
    recognition = recognition_of(run)
    if recognition is None:
        raise UserError(f"{folder}: has no task that reads speech as text")
    rate_hz = run.recipe.tokenizers["speech"].takes["rate_hz"]
    clips, texts = joinable(recognition.rows("heldout"), rate_hz)
    pause = np.zeros(round(PAUSE_S * rate_hz), np.float32)
    joined = np.concatenate([part for clip in clips for part in (clip, pause)])
    heard = io.StringIO()
    with TemporaryDirectory() as home, contextlib.redirect_stderr(heard):
        alone = read(run, [_written(Path(home) / f"{i}.wav", x, rate_hz)
                           for i, x in enumerate(clips)])  # fmt: skip
        heard.seek(0)
        heard.truncate()
        whole = read(run, [_written(Path(home) / "long.wav", joined, rate_hz)])[0]
    said = [line.strip() for line in heard.getvalue().splitlines() if "windows" in line]
    errors = word_counts([" ".join(texts)], [whole]).rate
    each = word_counts(texts, alone).rate
    frame_s = frame_seconds(run, run.encode("speech", [clips[0]])[0])
    row_s = frame_s * window_frames(run)
    seconds = len(joined) / rate_hz
    print(f"long recording: {seconds:.0f} s, {len(clips)} clips of {folder}, rows of {row_s:.1f} s")
    print(f"said: {' '.join(said)}")
    rows.append({"long": str(folder), "seconds": seconds, "row_s": row_s, "said": said})
    rows[-1] |= {"word_error": errors, "word_error_alone": each, "read": whole}
    wrong = ""
    if not said:
        wrong = "nothing was said of windows"
    if each > UNTRAINED:
        wrong = "the run does not read its own clips"
    what = f"{seconds:.0f} s into rows of {row_s:.1f} s: word error"
    yield Line(
        what, "", errors, "clips alone", each, "above", errors - each, WORSE, None, False, wrong
    )


def joinable(rows: Iterator[tuple[Any, Any]], rate_hz: int) -> tuple[list[np.ndarray], list[str]]:
    """Clips (N_i,) of LONG_S seconds in all, the first ones again and again where they are few.

    With what is said in each. Raises UserError where there are none.
    """
    pairs = list(islice(rows, MOST))
    if not sum(len(clip) for clip, _ in pairs):
        raise UserError("the run has no held-out clips with a text")
    clips: list[np.ndarray] = []
    texts: list[str] = []
    n = 0
    for clip, text in cycle(pairs):
        if n >= LONG_S * rate_hz:
            break
        clips.append(clip)
        texts.append(text)
        n += len(clip) + round(PAUSE_S * rate_hz)
    return clips, texts


def read(run: Run, paths: Sequence[Path]) -> list[str]:
    """The text that the run reads in each file."""
    sampling = run.sampling("text")

    def draw(documents: Sequence[Document], seed: int) -> list[Sampled]:
        return run.draw(documents, sampling, seed)

    samples = draw_prompts(run, [[str(path)] for path in paths], "text", 1, 0, None, draw)
    return [run.tokenizers["text"].decode(sample.segment) for sample in samples]


def _written(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    write_sound(path, samples, rate_hz)
    return path
