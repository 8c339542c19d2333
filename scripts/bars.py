"""Figures of the quickstart, and of runs of speech, with their bars.

    python scripts/bars.py runs/digits/evaluation.json

Prints a Markdown table. `missed` marks what lies beyond its bar; rows without a bar are only
reported. Speech of held-out texts is judged beside its round trip through the tokenizer, with 95 %
intervals; single words have bars of their own, so there these rows are only reported.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

JUDGE = 0.97  # accuracy on real signals that a judge needs, for its word on samples to count
JETS = ("mass_w1", "multiplicity_w1", "pt_w1")

# figures of judged speech
JUDGED = (
    "stopped",
    "phoneme_error",
    "mos",
    "speaker_above_others",
    "word_error",
    "character_error",
    "speaker_similarity",
)

# figure, bar, whether it is met, value, a note
Row = tuple[str, str, bool, str, str]


def rows(figures: dict[str, Any]) -> Iterator[Row]:
    """The rows of an evaluation.json of recipes/digits.py, or of a run of speech.

    What a shortened run has no figures for is left out.
    """
    tables: list[Callable[[dict[str, Any]], Iterator[Row]]] = [
        pictures,
        readings,
        speech,
        strings,
        recognition,
        *(partial(judged_speech, name) for name in figures if name.endswith("_judged")),
        *(partial(jets, name) for name in figures.get("jets_from_text", {})),
        *(partial(jet_halves, name) for name in figures.get("jets_from_text", {})),
        zero_shot,
        *(partial(score, modality) for modality in figures.get("score", {})),
    ]
    for table in tables:
        try:
            yield from table(figures)
        except KeyError:
            continue


def pictures(figures: dict[str, Any]) -> Iterator[Row]:
    """Images from text."""
    f = figures["image_from_text"]
    yield least("image from text: judge", 0.93, f["judge_accuracy"], judged(f, "digits"))
    yield least("judge of images on real held-out digits", JUDGE, f["judge_heldout"], "")
    note = f"held-out real digits {f['copies_heldout']:.3f}{compared(f, 'copies')}"
    yield most("copies of training codes", 0.05, f["copies"], note)
    note = f"real against real {f['frechet_real']:.3f}{compared(f, 'frechet')}"
    yield reported("Fréchet distance, 16 principal components", f["frechet"], note)


def readings(figures: dict[str, Any]) -> Iterator[Row]:
    """Text from images."""
    f = figures["text_from_image"]
    yield least("text from image: accuracy", 0.90, f["accuracy"], f"{f['n']} held-out digits")


def speech(figures: dict[str, Any]) -> Iterator[Row]:
    """Speech from text."""
    f = figures["speech_from_text"]
    yield least("speech from text: judge", 0.95, f["judge_accuracy"], judged(f, "words"))
    yield least("judge of words on real held-out words", JUDGE, f["judge_heldout"], "")
    yield least("stopped by itself", 0.97, f["stopped"], "")
    note = f"real {f['voice_entropy_real']:.3f}, voice judge {f['voice_judge_heldout']:.3f}"
    note += compared(f, "voice_entropy")
    yield reported("entropy of the samples' voices", f["voice_entropy"], note)


def strings(figures: dict[str, Any]) -> Iterator[Row]:
    """Speech of three words, read back."""
    f = figures["speech_from_text"]
    real = f["string_word_error_real"]
    name, _, met, value, note = most(
        "three-word strings read back: word errors",
        real + 0.10,
        f["string_word_error"],
        f"real clips {real:.3f}{compared(f, 'string_word_error')}",
    )
    yield name, "≤ real + 0.10", met, value, note


def recognition(figures: dict[str, Any]) -> Iterator[Row]:
    """Text from speech."""
    f = figures["text_from_speech"]
    note = f"unseen voices {with_interval(f, 'unseen_voice_word_error_rate')}"
    name = "text from speech: word errors, unseen strings"
    bar = 0.12
    if has_single_words(figures):
        bar = 0.10
    yield most(name, bar, f["word_error_rate"], note)


def judged_speech(name: str, figures: dict[str, Any]) -> Iterator[Row]:
    """Speech of held-out texts beside the round trip (copy synthesis) and the recordings.

    Without bars where the run's words are judged one by one.
    """
    ours = figures[name]["samples"]
    trip = figures[name]["round_trip"]
    recorded = figures[name]["recordings"]
    what = name.removesuffix("_judged").replace("_", " ")
    for key in JUDGED:
        if key not in ours:
            continue
        bar = "reported"
        met = True
        if not has_single_words(figures):
            bar, met = judged_bar(key, ours[key], trip.get(key, 0.0))
        note = f"round trip {with_interval(trip, key)}, recordings {with_interval(recorded, key)}"
        yield f"{what}: {key.replace('_', ' ')}", bar, met, with_interval(ours, key), note


def judged_bar(key: str, value: float, trip: float) -> tuple[str, bool]:
    """The bar of a figure of judged speech beside the round trip's, and whether it is met."""
    if key == "stopped":
        return "≥ 0.98", value >= 0.98
    if key == "phoneme_error":
        return "≤ round trip + 0.08", value <= trip + 0.08
    if key == "mos":
        return "≥ round trip - 0.3", value >= trip - 0.3
    if key == "speaker_above_others":
        return "≥ 0.15", value >= 0.15
    return "reported", True


def has_single_words(figures: dict[str, Any]) -> bool:
    """Whether the run's speech is of single words, which a judge of their own hears."""
    return "judge_accuracy" in figures.get("speech_from_text", {})


def with_interval(figures: dict[str, float], key: str) -> str:
    """A figure with its interval, or a dash."""
    if key not in figures:
        return "-"
    if f"{key}_low" not in figures:
        return f"{figures[key]:.3f}"
    return f"{figures[key]:.3f} ({figures[key + '_low']:.3f} to {figures[key + '_high']:.3f})"


def zero_shot(figures: dict[str, Any]) -> Iterator[Row]:
    """Which of ten names is the likeliest for a scan."""
    f = figures["zero_shot"]
    note = f"{f['n']} held-out digits"
    yield least("zero-shot digit by ten scores", 0.90, f["accuracy"], note)


def jets(name: str, figures: dict[str, Any]) -> Iterator[Row]:
    """Jets of one class from text."""
    f = figures["jets_from_text"][name]
    bars = (5 if name == "top" else 4, 4, 4)
    unscaled = " / ".join(f"{f[key + '_unscaled']:.2f}" for key in ("mass_w1", "pt_w1"))
    raw = " / ".join(f"{f[key + '_raw']:.2f}" for key in JETS)
    yield (
        f"{name} jets, W1 ratios: mass / multiplicity / pt",
        f"≤ {' / '.join(map(str, bars))}",
        all(f[key] <= bar for key, bar in zip(JETS, bars, strict=True)),
        " / ".join(f"{f[key]:.2f}" for key in JETS),
        f"against raw jets {raw}; unscaled mass / pt {unscaled}",
    )


def jet_halves(name: str, figures: dict[str, Any]) -> Iterator[Row]:
    """Are generated jets as near to real ones as two halves of the real ones are to each other?

    A harder question than the bars above, which stand; reported.
    """
    f = figures["jets_from_text"][name]
    limits = " / ".join(f"{f[key + '_halves']:.2f}" for key in JETS)
    where = []
    for key in JETS:
        place = "outside"
        if f[key] <= f[f"{key}_halves"]:
            place = "inside"
        where.append(place)
    ratios = "; ".join(f"{with_interval(f, key)}, p {f[key + '_p']:.3f}" for key in JETS)
    bar = f"real halves: {limits} (reported)"
    yield f"{name} jets, within what real halves do", bar, True, " / ".join(where), ratios


def score(modality: str, figures: dict[str, Any]) -> Iterator[Row]:
    """The score of one modality, which must be below two baselines'."""
    f = figures["score"][modality]
    key = next(iter(f))
    baselines = {
        name: f[f"{key}_{name}"]
        for name in ("untrained", "unigram", "without_condition")
        if f"{key}_{name}" in f
    }
    notes = [
        f"{name.replace('without_', 'without the ')} {value:.3f}"
        for name, value in baselines.items()
    ]
    yield (
        f"score of {modality}: {key.replace('_per_', '/').replace('_', ' ')}",
        "below both",
        f[key] < min(baselines["untrained"], baselines["unigram"]),
        f"{f[key]:.3f}",
        ", ".join(notes),
    )


def least(name: str, bar: float, value: float, note: str) -> Row:
    """A row whose value must be at least the bar."""
    return name, f"≥ {bar:.2f}", value >= bar, f"{value:.3f}", note


def most(name: str, bar: float, value: float, note: str) -> Row:
    """A row whose value must be at most the bar."""
    return name, f"≤ {bar:.2f}", value <= bar, f"{value:.3f}", note


def reported(name: str, value: float, note: str) -> Row:
    """A row without a bar."""
    return name, "reported", True, f"{value:.3f}", note


def compared(figures: dict[str, Any], key: str) -> str:
    """A note: the interval of a figure and the p-value of its being as real signals' is."""
    if f"{key}_p" not in figures:
        return ""
    return f"; interval and p: {with_interval(figures, key)}, p {figures[key + '_p']:.3f}"


def judged(figures: dict[str, Any], signals: str) -> str:
    """A note: how right the judge is about real signals."""
    return (
        f"judge on real held-out {signals} {figures['judge_heldout']:.3f}, after the round trip"
        f" {figures['judge_round_trip']:.3f}"
    )


def main() -> None:
    """Prints the table of the file that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a run's evaluation.json")
    path = parser.parse_args().file
    try:
        figures = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{path} is no evaluation.json ({error}): make one with mmtok evaluate RUN")
    if not isinstance(figures, dict):
        sys.exit(f"{path} is no evaluation.json: make one with mmtok evaluate RUN")
    print("| figure | bar | here | beside |")
    print("|---|---|---|---|")
    for name, bar, met, value, note in rows(figures):
        print(f"| {name} | {bar} | {value}{'' if met else ' missed'} | {note} |")


if __name__ == "__main__":
    main()
