"""The figures of one task's samples: a question per pair of modalities, asked of a run.

Judges are trained on real training signals only and share nothing with the tokenizers; beside each stands its accuracy on
real held-out signals, raw and after the tokenizer's round trip, so that a figure can be read against what is possible.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtok.ask import write_samples
from mmtok.data.convert import write_signal
from mmtok.data.loader import Task
from mmtok.files import write_text
from mmtok.metrics.images import copy_share, frechet_pixels, psnr_db, train_image_judge
from mmtok.metrics.jets import jet_distances
from mmtok.metrics.speech import entropy_share, train_speech_judge, train_voice_judge, word_error_rate
from mmtok.progress import say
from mmtok.run import Run
from mmtok.segment import Document

MAX_CLASSES = 100  # a judge of captions makes sense up to about so many
MAX_JUDGED = 5_000  # pictures that a judge learns from: a support vector machine takes the square of them
N_JETS = 1000  # per class and set, as the distances' denominators are defined


@dataclass(frozen=True)
class Setting:
    """One task of a run, asked as a question: the given field, the made field, and examples of them."""

    run: Run
    task: Task

    @property
    def given(self) -> str:
        return self.task.given[0]

    @property
    def made(self) -> str:
        return self.task.make[0]

    def examples(self, split: str) -> tuple[list, list]:
        """All (given signals, made signals) of a split."""
        rows = [(e[self.given], e[self.made]) for e in self.run.examples(split, self.given, self.made)]
        return [a for a, _ in rows], [b for _, b in rows]

    def tokenizer(self, field: str) -> Any:
        return self.run.tokenizers[self.run.recipe.fields[field]]

    def prompts(self, signals: Sequence[Any]) -> list[Document]:
        """Open documents that ask for the made field given each signal."""
        to = self.run.recipe.fields[self.made]
        return [self.run.prompt([s], to) for s in self.tokenizer(self.given).encode_batch(signals)]

    def draw(self, signals: Sequence[Any]) -> list:
        """Sample the made field for each given signal, the recipe's way, from the recipe's seed."""
        to = self.run.recipe.fields[self.made]
        return self.run.draw(self.prompts(signals), self.run.sampling(to), self.run.recipe.train.seed)

    def keep(self, name: str, stems: Sequence[str], drawn: Sequence) -> None:
        """Write the samples to RUN/samples/NAME, where others can judge them."""
        write_samples(self.run, self.run.folder / "samples" / name, stems, drawn)


# ---- one function per pair of modalities


def image_from_text(s: Setting) -> dict[str, float]:
    """Do samples show what was asked, and are they new?"""
    names, real = s.examples("train")
    real_names, held = s.examples("heldout")
    tokenizer = s.tokenizer(s.made)
    clean = clean_images(s)
    classes = sorted(set(names))[:MAX_CLASSES]
    asked = [classes[i % len(classes)] for i in range(s.run.recipe.n_samples)]
    drawn = s.draw(asked)
    s.keep("image_from_text", [f"{name}-{i:03d}" for i, name in enumerate(asked)], drawn)
    samples = tokenizer.decode_batch([d.segment for d in drawn])
    round_trip = tokenizer.decode_batch(tokenizer.encode_batch(held))
    codes = lambda images: np.stack([x.codes for x in tokenizer.encode_batch(images)])
    known = np.concatenate([codes(clean[0]), codes(real)])
    n = min(len(samples), len(held) // 2)
    figures = {}
    if _can_be_judged(s, clean[1]):
        chosen = _spread(len(clean[0]), MAX_JUDGED)
        judge = train_image_judge(*([column[i] for i in chosen] for column in clean))
        figures = {
            "judge_accuracy": judge.accuracy(samples, asked),
            "judge_heldout": judge.accuracy(held, real_names),
            "judge_round_trip": judge.accuracy(round_trip, real_names),
        }
    figures |= {
        "copies": copy_share(np.stack([d.segment.codes for d in drawn]), known),
        "copies_heldout": copy_share(codes(held), known),
        "round_trip_psnr_db": psnr_db(held, round_trip),
        "codebook_use": len(np.unique(codes(held))) / s.run.vocabulary.signatures["image"].levels[0],
    }
    if n >= 2:  # a covariance needs two
        figures["frechet"] = frechet_pixels(clean[0], samples[:n], held[:n])
        figures["frechet_real"] = frechet_pixels(clean[0], held[n : 2 * n], held[:n])
    return figures


def _can_be_judged(s: Setting, names: Sequence[str]) -> bool:
    """Whether a judge can learn to tell these names apart; says so when it cannot."""
    n = len(set(names))
    if not 2 <= n <= MAX_CLASSES:
        say(f"no judge for {s.task}: its training examples have {n} names, a judge takes 2 to {MAX_CLASSES}")
    return 2 <= n <= MAX_CLASSES


def _spread(n: int, most: int) -> np.ndarray:
    """At most `most` of n examples, evenly spread over them: in a sorted folder every class has some."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int))


def clean_images(s: Setting) -> tuple[list, list[str]]:
    """Real training images and their names for the judge, each once: where a source augments them, from its clean twin."""
    sources = [x.clean() if hasattr(x, "clean") else x for x in s.run.recipe.sources if {s.given, s.made} <= set(x.fields)]
    rows = [e for x in sources for e in x.examples("train", s.run.folder / "data")]
    return [e[s.made] for e in rows], [e[s.given] for e in rows]


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
    texts = s.tokenizer(s.made).decode_batch([d.segment for d in s.draw([signals[i] for i in full])])
    read = dict(zip(full, texts))
    return [read.get(i, "") for i in range(len(signals))]


def _keep_readings(s: Setting, name: str, truth: Sequence[str], read: Sequence[str]) -> None:
    readings = [{"truth": a, "read": b} for a, b in zip(truth, read)]
    write_text(s.run.folder / "samples" / f"{name}.json", json.dumps(readings, indent=0))


def speech_from_text(s: Setting) -> dict[str, float]:
    """Single words, judged by a convnet on its own features; three-word strings, read by the run's own recognition."""
    words, clips = s.examples("train")
    held_words, held_clips = s.examples("heldout")
    tokenizer, rate_hz = s.tokenizer(s.made), s.tokenizer(s.made).config.mel.rate_hz
    single = lambda names, sounds: tuple(map(list, zip(*[(c, w) for w, c in zip(names, sounds) if " " not in w])))
    figures = {}
    if any(" " not in w for w in held_words) and _can_be_judged(s, [w for w in words if " " not in w]):
        judge = train_speech_judge(*single(words, clips), rate_hz, s.run.recipe.train.seed)
        classes = sorted({w for w in words if " " not in w})[:MAX_CLASSES]
        asked = [classes[i % len(classes)] for i in range(s.run.recipe.n_samples)]
        drawn = s.draw(asked)
        s.keep("speech_from_text", [f"{name}-{i:03d}" for i, name in enumerate(asked)], drawn)
        samples = tokenizer.decode_batch([d.segment for d in drawn])
        held = single(held_words, held_clips)
        round_trip = tokenizer.decode_batch(tokenizer.encode_batch(held[0][:200]))
        figures = {
            "judge_accuracy": judge.accuracy(samples, asked),
            "judge_heldout": judge.accuracy(*held),
            "judge_round_trip": judge.accuracy(round_trip, held[1][:200]),
            "stopped": float(np.mean([d.stop == "end" for d in drawn])),
            **_voices(s, clips, samples, rate_hz),
        }
    return figures | _strings(s, held_words, held_clips)


def _voices(s: Setting, clips: Sequence[np.ndarray], samples: Sequence[np.ndarray], rate_hz: int) -> dict[str, float]:
    """How evenly samples spread over the training voices, where the source knows them: 1 is as evenly as can be."""
    source = next((x for x in s.run.recipe.sources if s.made in x.fields and hasattr(x, "utterances")), None)
    if source is None:
        return {}
    voices = [u.voice for u in source.utterances("train", s.run.folder / "data")]
    held_voices = [u.voice for u in source.utterances("heldout", s.run.folder / "data")]
    _, held = s.examples("heldout")
    judge = train_voice_judge(clips[:1500], voices[:1500], rate_hz)
    n = len(set(voices))
    return {"voice_entropy": entropy_share(judge.predict(samples), n), "voice_entropy_real": entropy_share(held_voices[:200], n),
            "voice_judge_heldout": judge.accuracy(held[:200], held_voices[:200])}


def _strings(s: Setting, words: Sequence[str], clips: Sequence[np.ndarray], n: int = 100) -> dict[str, float]:
    """Word errors of the run's own recognition on strings it made itself, beside those on real clips of the same strings."""
    fields = s.run.recipe.fields
    back = next((t for t in s.run.recipe.tasks if [fields[f] for f in (*t.given, *t.make)] == ["speech", "text"]), None)
    chosen = [i for i, w in enumerate(words) if len(w.split()) == 3][:n]
    if back is None or not chosen:
        return {}
    asked = [words[i] for i in chosen]
    drawn = s.draw(asked)
    s.keep("speech_from_text_strings", [f"{name.replace(' ', '_')}-{i:03d}" for i, name in enumerate(asked)], drawn)
    samples = s.tokenizer(s.made).decode_batch([d.segment for d in drawn])
    ears = Setting(s.run, back)
    return {
        "string_word_error": word_error_rate(asked, _read(ears, samples)),
        "string_word_error_real": word_error_rate(asked, _read(ears, [clips[i] for i in chosen])),
        "string_stopped": float(np.mean([d.stop == "end" for d in drawn])),
    }


def text_from_speech(s: Setting) -> dict[str, float]:
    """Word error rate on held-out clips of known voices, and of unknown ones where the source has them.

    The first figure is of strings that training never holds; where a source has none (single words only), of all held-out clips.
    """
    clips, words = s.examples("heldout")
    if not clips:
        return {"n_unseen_strings": 0}
    read = _read(s, clips)
    _keep_readings(s, "text_from_speech", words, read)
    known = set(s.examples("train")[1])
    unseen = [i for i, w in enumerate(words) if w not in known] or range(len(words))
    figures = {
        "word_error_rate": word_error_rate([words[i] for i in unseen], [read[i] for i in unseen]),
        "n_unseen_strings": len(unseen),
        "word_error_rate_all_heldout": word_error_rate(words, read),
    }
    for length in sorted({len(w.split()) for w in words})[:5]:
        chosen = [i for i, w in enumerate(words) if len(w.split()) == length]
        figures[f"word_error_rate_{length}_words"] = word_error_rate([words[i] for i in chosen], [read[i] for i in chosen])
    clips, words = s.examples("unseen_voices")
    if clips:
        figures["unseen_voice_word_error_rate"] = word_error_rate(words, _read(s, clips))
    return figures


def jets_from_text(s: Setting) -> dict[str, dict[str, float]]:
    """Per class: distances of generated to real jets, in units of what two sets of real jets differ by.

    Where the tokenizer scales constituents to their jet's totals, `_unscaled` are the distances of what they are on their own.
    """
    tokenizer = s.tokenizer(s.made)
    real = defaultdict(list)
    for name, jet in zip(*s.examples("heldout")):
        real[name].append(jet)
    figures = {}
    for name, jets in list(real.items())[:MAX_CLASSES]:
        n = min(N_JETS, len(jets) // 2)
        if n == 0:
            continue
        a, b = jets[:n], jets[n : 2 * n]
        drawn = s.draw([name] * n)
        samples = tokenizer.decode_batch([d.segment for d in drawn])
        _keep_jets(s, name, samples)
        detokenised = tokenizer.decode_batch(tokenizer.encode_batch(a))
        at_cap = float(np.mean([d.stop == "cap" for d in drawn]))
        at_cap_real = float(np.mean([x.truncated for x in tokenizer.encode_batch(a)]))
        short = name.removesuffix(" jet").replace(" ", "_")
        figures[short] = jet_distances(samples, detokenised, a, b) | {"at_cap": at_cap, "at_cap_real": at_cap_real, "n": n}
        if tokenizer.config.totals:
            own, theirs = (tokenizer.unscaled(segments) for segments in ([d.segment for d in drawn], tokenizer.encode_batch(a)))
            distances = jet_distances(own, theirs, a, b)
            figures[short] |= {f"{key}_unscaled": distances[key] for key in ("mass_w1", "pt_w1")}
    return figures


def _keep_jets(s: Setting, name: str, jets: Sequence[np.ndarray]) -> None:
    folder = s.run.folder / "samples" / "jets_from_text"
    folder.mkdir(parents=True, exist_ok=True)
    write_signal(folder / name.replace(" ", "_"), "jets", jets, s.tokenizer(s.made))


QUESTIONS = {
    ("text", "image"): image_from_text,
    ("image", "text"): text_from_image,
    ("text", "speech"): speech_from_text,
    ("speech", "text"): text_from_speech,
    ("text", "jets"): jets_from_text,
}
