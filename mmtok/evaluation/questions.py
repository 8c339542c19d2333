"""The figures of one task's samples: a question per pair of modalities, asked of a run.

Judges are trained on real training signals only and share nothing with the tokenizers; beside each
stands its accuracy on real held-out signals, raw and after the tokenizer's round trip, so that a
figure can be read against what is possible.
Training signals go by one at a time: only those that a judge learns from are held.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from mmtok.commands.sample import NOTHING
from mmtok.data.subset import random_subset
from mmtok.evaluation.task import Setting, labelled
from mmtok.io.filenames import file_names
from mmtok.io.files import write_text
from mmtok.io.terminal import print_status
from mmtok.metrics.images import (
    FITTED_ROWS,
    copied,
    frechet_pixels,
    psnr_db,
    train_image_judge,
)
from mmtok.metrics.jets import jet_distances
from mmtok.metrics.speech import (
    entropy_share,
    train_speech_judge,
    train_voice_judge,
    word_error_rate,
)
from mmtok.model.sampling import Sampled

MAX_CLASSES = 100  # a judge of captions makes sense up to about so many
MAX_JUDGED = (
    5_000  # pictures that a judge learns from: a support vector machine takes the square of them
)
MAX_CLIPS = 10_000  # clips that a judge of words learns from; of a second each they take 640 MB
N_VOICED = 1_500  # clips that a judge of voices learns from
N_HEARD = 200  # real clips that judges hear beside samples
N_JETS = 1000  # per class and set, as the distances' denominators are defined


# ---- one function per pair of modalities


def image_from_text(s: Setting) -> dict[str, float]:
    """Do samples show what was asked, and are they new?"""
    names, images, all_names = labelled(s.clean_rows(), FITTED_ROWS, s.seed)
    real_names, held = s.examples("heldout")
    classes = sorted(all_names)[:MAX_CLASSES]
    asked = [classes[i % len(classes)] for i in range(s.run.recipe.n_samples)]
    drawn = s.draw(asked)
    s.keep(s.name, asked, drawn)
    figures, samples, round_trip = _novelty(s, images, held, drawn)
    chosen = _spread(len(images), MAX_JUDGED)
    if _can_be_judged(s, all_names, judged := [names[i] for i in chosen]):
        print_status("training the judge of images on real ones")
        judge = train_image_judge([images[i] for i in chosen], judged)
        figures = {
            "judge_accuracy": judge.accuracy(samples, asked),
            "judge_heldout": judge.accuracy(held, real_names),
            "judge_round_trip": judge.accuracy(round_trip, real_names),
        } | figures
    return figures


def image_from_nothing(s: Setting) -> dict[str, float]:
    """Are samples new, and spread as real images are?"""
    drawn = s.draw_from_nothing(s.run.recipe.n_samples)
    s.keep(s.name, [NOTHING] * len(drawn), drawn)
    _, images, _ = labelled(s.clean_rows(), FITTED_ROWS, s.seed)
    return _novelty(s, images, s.examples("heldout")[1], drawn)[0]


def _novelty(
    s: Setting, clean: Sequence, held: Sequence, drawn: Sequence[Sampled]
) -> tuple[dict[str, float], list, list]:
    """How many samples are copies, how far they lie from held-out images, and what the tokenizer
    makes of these; the samples and the held-out images through the tokenizer.

    clean: real training images, for the axes of the Fréchet distance; copies are sought among all,
    those passed over too.
    """
    tokenizer = s.tokenizer(s.made)
    encoded = tokenizer.encode_batch(held)
    samples, round_trip = (
        tokenizer.decode_batch(segments) for segments in ([d.segment for d in drawn], encoded)
    )
    figures = {"round_trip_psnr_db": psnr_db(held, round_trip)}
    if tokenizer.signature.levels:
        codes = np.stack([x.codes for x in [*(d.segment for d in drawn), *encoded]])
        copies = copied(codes, s.training_codes())
        figures["codebook_use"] = (
            len(np.unique(codes[len(drawn) :])) / tokenizer.signature.levels[0]
        )
    else:  # latents of two images never agree to the last bit, the pictures that they stand for may
        copies = copied(np.stack([*samples, *round_trip]), s.training_round_trips())
    figures |= {
        "copies": float(copies[: len(drawn)].mean()),
        "copies_heldout": float(copies[len(drawn) :].mean()),
    }
    n = min(len(samples), len(held) // 2)
    if n >= 2:  # a covariance needs two
        order = np.random.default_rng(s.seed).permutation(
            len(held)
        )  # a folder of pictures comes sorted by class
        a, b = ([held[i] for i in order[start : start + n]] for start in (0, n))
        figures["frechet"] = frechet_pixels(clean, samples[:n], a)
        figures["frechet_real"] = frechet_pixels(clean, b, a)
    return figures, samples, round_trip


def _can_be_judged(s: Setting, names: Iterable[str], learnt: Iterable[str]) -> bool:
    """Whether a judge can learn to tell these names apart from examples of those learnt; says so
    when it cannot.
    """
    n, n_learnt = len(set(names)), len(set(learnt))
    if not 2 <= n_learnt <= n <= MAX_CLASSES:
        print_status(
            f"no judge for {s.task}: its training examples have {n} names ({n_learnt} where they"
            f" are sampled), a judge takes 2 to {MAX_CLASSES}"
        )
    return 2 <= n_learnt <= n <= MAX_CLASSES


def _spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n examples, evenly spread over them: in a sorted folder every class has
    some.
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int))


def text_from_image(s: Setting) -> dict[str, float]:
    """Share of held-out images whose name is read exactly."""
    images, names = s.examples("heldout")
    if not images:
        return {"n": 0}
    read = _read(s, images)
    _keep_readings(s, "text_from_image", names, read)
    return {"accuracy": float(np.mean([a == b for a, b in zip(read, names)])), "n": len(names)}


def _read(s: Setting, signals: Sequence[Any]) -> list[str]:
    """The texts that the run reads from signals; nothing from a clip that ended before it began."""
    full = [i for i, signal in enumerate(signals) if len(signal)]
    texts = s.tokenizer(s.made).decode_batch(
        [d.segment for d in s.draw([signals[i] for i in full])]
    )
    read = dict(zip(full, texts))
    return [read.get(i, "") for i in range(len(signals))]


def _keep_readings(s: Setting, name: str, truth: Sequence[str], read: Sequence[str]) -> None:
    readings = [{"truth": a, "read": b} for a, b in zip(truth, read)]
    write_text(s.run.folder / "samples" / f"{name}.json", json.dumps(readings, indent=0))


def speech_from_text(s: Setting) -> dict[str, float]:
    """Single words, judged by a convnet on its own features; three-word strings, read by the run's
    own recognition.
    """
    single = lambda split: ((word, clip) for word, clip in s.rows(split) if " " not in word)
    words, clips, all_words = labelled(single("train"), MAX_CLIPS, s.seed)
    held_words, held_clips, _ = labelled(single("heldout"))
    tokenizer, figures = s.tokenizer(s.made), {}
    if held_words and _can_be_judged(s, all_words, words):
        rate_hz = tokenizer.config.mel.rate_hz
        print_status("training the judge of words on real clips")
        judge = train_speech_judge(clips, words, rate_hz, s.seed)
        classes = sorted(all_words)[:MAX_CLASSES]
        asked = [classes[i % len(classes)] for i in range(s.run.recipe.n_samples)]
        drawn = s.draw(asked)
        s.keep(s.name, asked, drawn)
        samples = tokenizer.decode_batch([d.segment for d in drawn])
        heard = random_subset(range(len(held_clips)), N_HEARD, s.seed)
        round_trip = tokenizer.decode_batch(tokenizer.encode_batch([held_clips[i] for i in heard]))
        figures = {
            "judge_accuracy": judge.accuracy(samples, asked),
            "judge_heldout": judge.accuracy(held_clips, held_words),
            "judge_round_trip": judge.accuracy(round_trip, [held_words[i] for i in heard]),
            "stopped": _stopped(drawn),
            **_voices(s, samples, rate_hz),
        }
    return figures | _strings(s)


def speech_from_nothing(s: Setting) -> dict[str, float]:
    """Do samples end by themselves, and how evenly do they spread over the voices?"""
    tokenizer, drawn = s.tokenizer(s.made), s.draw_from_nothing(s.run.recipe.n_samples)
    s.keep(s.name, [NOTHING] * len(drawn), drawn)
    samples = tokenizer.decode_batch([d.segment for d in drawn])
    return {"stopped": _stopped(drawn), **_voices(s, samples, tokenizer.config.mel.rate_hz)}


def _stopped(drawn: Sequence[Sampled]) -> float:
    """Share of samples that end by themselves."""
    return float(np.mean([d.stop == "end" for d in drawn]))


def _voices(s: Setting, samples: Sequence[np.ndarray], rate_hz: int) -> dict[str, float]:
    """How evenly samples spread over the training voices, where the source knows them: 1 is as
    evenly as can be.
    """
    source = next(
        (x for x in s.run.recipe.sources if s.made in x.fields and hasattr(x, "utterances")), None
    )
    if source is None:
        return {}

    def voiced(split: str, n: int) -> tuple[list[np.ndarray], list[str]]:
        """N clips of a split and their voices, drawn by the seed."""
        examples = zip(
            s.run.examples_of(source, split), source.utterances(split, s.run.folder / "data")
        )
        rows = random_subset(
            ((example[s.made], utterance.voice) for example, utterance in examples), n, s.seed
        )
        return [clip for clip, _ in rows], [voice for _, voice in rows]

    print_status("training the judge of voices on real clips")
    judge = train_voice_judge(*voiced("train", N_VOICED), rate_hz)
    held, held_voices = voiced("heldout", N_HEARD)
    n = len({u.voice for u in source.utterances("train", s.run.folder / "data")})
    return {
        "voice_entropy": entropy_share(judge.predict(samples), n),
        "voice_entropy_real": entropy_share(held_voices, n),
        "voice_judge_heldout": judge.accuracy(held, held_voices),
    }


def _strings(s: Setting, n: int = 100) -> dict[str, float]:
    """Word errors of the run's own recognition on strings it made itself, beside those on real
    clips of the same strings.
    """
    fields = s.run.recipe.fields
    back = next(
        (t for t in s.run.recipe.tasks if t.modalities(fields) == (("speech",), ("text",))),
        None,
    )
    strings = list(
        islice(((words, clip) for words, clip in s.rows("heldout") if len(words.split()) == 3), n)
    )
    if back is None or not strings:
        return {}
    asked = [words for words, _ in strings]
    drawn = s.draw(asked)
    s.keep("speech_from_text_strings", asked, drawn)
    samples = s.tokenizer(s.made).decode_batch([d.segment for d in drawn])
    ears = Setting(s.run, back)
    return {
        "string_word_error": word_error_rate(asked, _read(ears, samples)),
        "string_word_error_real": word_error_rate(
            asked, _read(ears, [clip for _, clip in strings])
        ),
        "string_stopped": _stopped(drawn),
    }


def text_from_speech(s: Setting) -> dict[str, float]:
    """Word error rate on held-out clips of known voices, and of unknown ones where the source has
    them.

    The first figure is of strings that training never holds; where a source has none (single words
    only), of all held-out clips.
    """
    clips, words = s.examples("heldout")
    if not clips:
        return {"n_unseen_strings": 0}
    read = _read(s, clips)
    _keep_readings(s, "text_from_speech", words, read)
    known = {words for _, words in s.rows("train")}
    unseen = [i for i, w in enumerate(words) if w not in known] or range(len(words))
    figures = {
        "word_error_rate": word_error_rate([words[i] for i in unseen], [read[i] for i in unseen]),
        "n_unseen_strings": len(unseen),
        "word_error_rate_all_heldout": word_error_rate(words, read),
    }
    for length in sorted({len(w.split()) for w in words})[:5]:
        chosen = [i for i, w in enumerate(words) if len(w.split()) == length]
        figures[f"word_error_rate_{length}_words"] = word_error_rate(
            [words[i] for i in chosen], [read[i] for i in chosen]
        )
    clips, words = s.examples("unseen_voices")
    if clips:
        figures["unseen_voice_word_error_rate"] = word_error_rate(words, _read(s, clips))
    return figures


def jets_from_text(s: Setting) -> dict[str, dict[str, float]]:
    """Per class: distances of generated to real jets, in units of what two sets of real jets differ
    by.
    """
    real: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, jet in s.rows("heldout"):
        if (name in real or len(real) < MAX_CLASSES) and len(real[name]) < 2 * N_JETS:
            real[name].append(jet)
    figures = {}
    for (name, jets), stem in zip(real.items(), file_names(list(real), space="_")):
        if n := min(N_JETS, len(jets) // 2):
            figures[stem.removesuffix("_jet")] = _distances(s, name, stem, s.draw([name] * n), jets)
    return figures


def jets_from_nothing(s: Setting) -> dict[str, dict[str, float]]:
    """The same of all jets as one class."""
    jets = random_subset((jet for _, jet in s.rows("heldout")), 2 * N_JETS, s.seed)
    jets = [
        jets[i] for i in np.random.default_rng(s.seed).permutation(len(jets))
    ]  # so that both halves have jets of all kinds
    n = len(jets) // 2
    return {"all": _distances(s, NOTHING, NOTHING, s.draw_from_nothing(n), jets)} if n else {}


def _distances(
    s: Setting, name: str, stem: str, drawn: Sequence[Sampled], real: Sequence[np.ndarray]
) -> dict[str, float]:
    """Distances of n samples of this name, which are kept under the stem, to the first n real jets,
    which the next n stand beside.

    Where the tokenizer scales constituents to their jet's totals, `_unscaled` are the distances of
    what they are on their own.
    """
    tokenizer, n = s.tokenizer(s.made), len(drawn)
    s.keep(s.name, [name] * n, drawn, [stem] * n)
    a, b = real[:n], real[n : 2 * n]
    encoded, segments = tokenizer.encode_batch(a), [d.segment for d in drawn]
    at_cap, at_cap_real = (
        float(np.mean(cut))
        for cut in ([d.stop == "cap" for d in drawn], [x.truncated for x in encoded])
    )
    figures = jet_distances(tokenizer.decode_batch(segments), tokenizer.decode_batch(encoded), a, b)
    figures |= {"at_cap": at_cap, "at_cap_real": at_cap_real, "n": n}
    if tokenizer.config.totals:
        unscaled = jet_distances(tokenizer.unscaled(segments), tokenizer.unscaled(encoded), a, b)
        figures |= {f"{key}_unscaled": unscaled[key] for key in ("mass_w1", "pt_w1")}
    return figures


QUESTIONS = {
    ("text", "image"): image_from_text,
    ("image", "text"): text_from_image,
    ("text", "speech"): speech_from_text,
    ("speech", "text"): text_from_speech,
    ("text", "jets"): jets_from_text,
    (NOTHING, "image"): image_from_nothing,
    (NOTHING, "speech"): speech_from_nothing,
    (NOTHING, "jets"): jets_from_nothing,
}
