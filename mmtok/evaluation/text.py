"""Figures of text: signals read as text, compared with their true captions or transcripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmtok.evaluation.task import TaskEvaluation
from mmtok.io.files import write_text
from mmtok.metrics.speech_text import character_counts, word_counts, word_error_rate

MAX_LENGTHS = 5  # lengths of transcripts, in words, that have a figure of their own


def text_from_image(task: TaskEvaluation) -> dict[str, float]:
    """Share of held-out images whose caption is read exactly."""
    images, captions = task.examples("heldout")
    if not images:
        return {"n": 0}
    readings = read_signals(task, images)
    _save_readings(task, captions, readings)
    exact = [reading == caption for reading, caption in zip(readings, captions, strict=True)]
    return {"accuracy": float(np.mean(exact)), "n": len(captions)}


def text_from_speech(task: TaskEvaluation) -> dict[str, float]:
    """Word error rates on held-out clips of known voices and, where there are any, of unseen ones.

    The first figure is of transcripts that training never holds. Where a source has none (single
    words only), it is of all held-out clips.
    """
    clips, words = task.examples("heldout")
    if not clips:
        return {"n_unseen_strings": 0}
    readings = read_signals(task, clips)
    _save_readings(task, words, readings)

    def error_rate(chosen: Sequence[int]) -> float:
        return word_error_rate([words[i] for i in chosen], [readings[i] for i in chosen])

    known = {transcript for _, transcript in task.rows("train")}
    unseen = [i for i, transcript in enumerate(words) if transcript not in known]
    unseen = unseen or list(range(len(words)))
    chosen_words = [words[i] for i in unseen]
    chosen_readings = [readings[i] for i in unseen]
    figures = {
        **word_counts(chosen_words, chosen_readings).estimate().named("word_error_rate"),
        **character_counts(chosen_words, chosen_readings).estimate().named("character_error_rate"),
        "word_error_rate": error_rate(unseen),
        "n_unseen_strings": len(unseen),
        "word_error_rate_all_heldout": word_error_rate(words, readings),
    }
    n_words = [len(transcript.split()) for transcript in words]
    for length in sorted(set(n_words))[:MAX_LENGTHS]:
        chosen = [i for i, n in enumerate(n_words) if n == length]
        figures[f"word_error_rate_{length}_words"] = error_rate(chosen)
    clips, words = task.examples("unseen_voices")
    if clips:
        error = word_error_rate(words, read_signals(task, clips))
        figures["unseen_voice_word_error_rate"] = error
    return figures


def read_signals(task: TaskEvaluation, signals: Sequence[Any]) -> list[str]:
    """The text that the run reads from each signal; "" for an empty one."""
    filled = [i for i, signal in enumerate(signals) if len(signal)]
    texts = task.decode(task.sample([signals[i] for i in filled]))
    readings = dict(zip(filled, texts, strict=True))
    return [readings.get(i, "") for i in range(len(signals))]


def _save_readings(task: TaskEvaluation, truth: Sequence[str], readings: Sequence[str]) -> None:
    rows = [{"truth": true, "read": read} for true, read in zip(truth, readings, strict=True)]
    write_text(task.run.folder / "samples" / f"{task.name}.json", json.dumps(rows, indent=0))
