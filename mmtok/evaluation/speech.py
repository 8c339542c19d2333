"""Figures of speech: are samples heard as what was asked for, do they end, in whose voice?

The judges of words and of voices are trained on real training clips only and share nothing with
the tokenizer. Their accuracy on real held-out clips is given too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from mmtok.commands.sample import NOTHING
from mmtok.data.subset import random_subset
from mmtok.evaluation.speech_judged import recognition_of
from mmtok.evaluation.task import (
    MAX_CLASSES,
    TaskEvaluation,
    can_be_classified,
    random_labelled,
    share_ended,
)
from mmtok.evaluation.text import read_signals
from mmtok.io.terminal import print_status
from mmtok.metrics.distance_tests import Comparison, label_test, share_test
from mmtok.metrics.intervals import paired_difference
from mmtok.metrics.speech import entropy_share, train_speech_judge, train_voice_judge
from mmtok.metrics.speech_text import word_counts, word_error_rate
from mmtok.sources.base import Source

MAX_CLIPS = 10_000  # clips that the judge of words learns from; of a second each they take 640 MB
N_VOICE_CLIPS = 1_500  # clips that the judge of voices learns from
N_HEARD = 200  # real clips that the judges hear
N_STRINGS = 100  # strings of three words


def speech_from_text(task: TaskEvaluation) -> dict[str, float]:
    """Single words heard by a convnet, strings of three words by the run's own recognition."""
    return _single_words(task) | _strings(task)


def speech_from_nothing(task: TaskEvaluation) -> dict[str, float]:
    """Do samples end by themselves, and how evenly do they spread over the voices?"""
    sampled = task.sample_unconditional(task.run.recipe.n_samples)
    task.save_samples(task.name, [NOTHING] * len(sampled), sampled)
    rate_hz = task.target_tokenizer.config.takes["rate_hz"]
    return {"stopped": share_ended(sampled), **voice_figures(task, task.decode(sampled), rate_hz)}


def _single_words(task: TaskEvaluation) -> dict[str, float]:
    """Single words, heard by a convnet that was trained on real clips; {} without such clips."""
    words, clips, all_words = random_labelled(_word_rows(task, "train"), MAX_CLIPS, task.seed)
    heldout_words, heldout, _ = random_labelled(_word_rows(task, "heldout"))
    if not heldout_words or not can_be_classified(task, all_words, words):
        return {}
    tokenizer = task.target_tokenizer
    rate_hz = tokenizer.config.takes["rate_hz"]
    print_status("training the judge of words on real clips")
    judge = train_speech_judge(clips, words, rate_hz, task.seed)
    classes = sorted(all_words)[:MAX_CLASSES]
    prompts = [classes[i % len(classes)] for i in range(task.run.recipe.n_samples)]
    sampled = task.sample(prompts)
    task.save_samples(task.name, prompts, sampled)
    samples = task.decode(sampled)
    heard = random_subset(range(len(heldout)), N_HEARD, task.seed)
    round_trip = tokenizer.decode_batch(tokenizer.encode_batch([heldout[i] for i in heard]))
    right = judge.right(samples, prompts)
    right_heldout = judge.right(heldout, heldout_words)
    return {
        "judge_accuracy": float(np.mean(right)),
        **share_test(right, right_heldout).named("judge_accuracy"),
        "judge_heldout": float(np.mean(right_heldout)),
        "judge_round_trip": judge.accuracy(round_trip, [heldout_words[i] for i in heard]),
        "stopped": share_ended(sampled),
        **voice_figures(task, samples, rate_hz),
    }


def _word_rows(task: TaskEvaluation, split: str) -> Iterator[tuple[str, np.ndarray]]:
    return ((words, clip) for words, clip in task.rows(split) if " " not in words)


def voice_figures(
    task: TaskEvaluation, samples: Sequence[np.ndarray], rate_hz: int
) -> dict[str, float]:
    """How evenly samples (N_i,) spread over the training voices, 1 being evenly.

    {} where no source knows the voices of its clips.
    """
    source = _source_with_voices(task)
    if source is None:
        return {}
    n_voices = len(set(_voices(task, source, "train")))
    print_status("training the judge of voices on real clips")
    judge = train_voice_judge(*_clips_and_voices(task, source, "train", N_VOICE_CLIPS), rate_hz)
    heldout, heldout_voices = _clips_and_voices(task, source, "heldout", N_HEARD)
    heard = judge.predict(samples)

    def entropy(voices: Sequence[str]) -> float:
        return entropy_share(voices, n_voices)

    return {
        "voice_entropy": entropy(heard),
        **label_test(heard, heldout_voices, entropy).named("voice_entropy"),
        "voice_entropy_real": entropy_share(heldout_voices, n_voices),
        "voice_judge_heldout": judge.accuracy(heldout, heldout_voices),
    }


def _source_with_voices(task: TaskEvaluation) -> Source | None:
    """The first source of the target field that knows several voices of its clips, or None."""
    for source in task.run.recipe.sources:
        if task.target_field not in source.fields:
            continue
        if len(set(_voices(task, source, "train"))) > 1:
            return source
    return None


def _voices(task: TaskEvaluation, source: Source, split: str) -> Sequence[str]:
    """The voice of each of a source's clips; empty where they are unknown."""
    return source.voices(split, task.run.folder / "data") or ()


def _clips_and_voices(
    task: TaskEvaluation, source: Source, split: str, n: int
) -> tuple[list[np.ndarray], list[str]]:
    """N random clips of a split, and their voices."""
    examples = task.run.examples_of(source, split)
    voices = _voices(task, source, split)
    clips_and_voices = (
        (example[task.target_field], voice) for example, voice in _with_voices(examples, voices)
    )
    rows = random_subset(clips_and_voices, n, task.seed)
    return [clip for clip, _ in rows], [voice for _, voice in rows]


def _with_voices(
    examples: Iterator[dict[str, Any]], voices: Sequence[str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Each example with its voice: its own where it knows that, as broken ones are passed over."""
    for example, voice in zip_longest(examples, voices):
        if example is not None:
            yield example, getattr(example, "voice", "") or voice or ""


def _strings(task: TaskEvaluation) -> dict[str, float]:
    """Word error rates of the run's own recognition on strings of three words.

    On samples, and on real clips of the same strings. {} without a task of recognition, or without
    such strings.
    """
    recognition = recognition_of(task.run)
    rows = ((words, clip) for words, clip in task.rows("heldout") if len(words.split()) == 3)
    strings = list(islice(rows, N_STRINGS))
    if recognition is None or not strings:
        return {}
    prompts = [words for words, _ in strings]
    clips = [clip for _, clip in strings]
    sampled = task.sample(prompts)
    task.save_samples(f"{task.name}_strings", prompts, sampled)
    read = read_signals(recognition, task.decode(sampled))
    read_real = read_signals(recognition, clips)
    errors = word_counts(prompts, read)
    _, p = paired_difference(errors.edits, word_counts(prompts, read_real).edits)
    estimate = errors.estimate()
    return {
        "string_word_error": errors.rate,
        **Comparison(estimate.low, estimate.high, p).named("string_word_error"),
        "string_word_error_real": word_error_rate(prompts, read_real),
        "string_stopped": share_ended(sampled),
    }
