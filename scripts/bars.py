"""The quickstart's figures beside their bars: python scripts/bars.py runs/digits/evaluation.json

A Markdown table. `missed` marks what lies beyond its bar; rows without one are reported only.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

JUDGE = 0.97  # what a judge must get right of real signals, for its word on samples to count
JETS = ("mass_w1", "multiplicity_w1", "pt_w1")


def rows(f: dict) -> Iterator[tuple[str, str, bool, str, str]]:
    """(figure, bar, whether it is met, value, what stands beside it) of an evaluation.json of
    recipes/digits.py; what a shortened run has no figure for is left out.
    """
    for row in (
        pictures,
        readings,
        speech,
        strings,
        ears,
        *(jets(name) for name in f.get("jets_from_text", {})),
        zero_shot,
        *(score(m) for m in f.get("score", {})),
    ):
        try:
            yield from row(f)
        except KeyError:
            continue


def pictures(f: dict):
    image = f["image_from_text"]
    yield least("image from text: judge", 0.93, image["judge_accuracy"], judged(image, "scans"))
    yield least("judge of images on real held-out scans", JUDGE, image["judge_heldout"], "")
    yield most(
        "copies of training codes",
        0.05,
        image["copies"],
        f"held-out real scans {image['copies_heldout']:.3f}",
    )
    yield reported(
        "Fréchet distance, 16 principal components",
        image["frechet"],
        f"real against real {image['frechet_real']:.3f}",
    )


def readings(f: dict):
    yield least(
        "text from image: accuracy",
        0.90,
        f["text_from_image"]["accuracy"],
        f"{f['text_from_image']['n']} held-out scans",
    )


def speech(f: dict):
    figures = f["speech_from_text"]
    yield least(
        "speech from text: judge", 0.95, figures["judge_accuracy"], judged(figures, "words")
    )
    yield least("judge of words on real held-out words", JUDGE, figures["judge_heldout"], "")
    yield least("stopped by itself", 0.97, figures["stopped"], "")
    beside = (
        f"real {figures['voice_entropy_real']:.3f}, voice judge"
        f" {figures['voice_judge_heldout']:.3f}"
    )
    yield reported("entropy of the samples' voices", figures["voice_entropy"], beside)


def strings(f: dict):
    figures = f["speech_from_text"]
    name, _, met, value, beside = most(
        "three-word strings read back: word errors",
        figures["string_word_error_real"] + 0.10,
        figures["string_word_error"],
        f"real clips {figures['string_word_error_real']:.3f}",
    )
    yield name, "≤ real + 0.10", met, value, beside


def ears(f: dict):
    figures = f["text_from_speech"]
    beside = f"unseen voices {figures['unseen_voice_word_error_rate']:.3f}"
    yield most(
        "text from speech: word errors, unseen strings", 0.10, figures["word_error_rate"], beside
    )


def zero_shot(f: dict):
    yield least(
        "zero-shot digit by ten scores",
        0.90,
        f["zero_shot"]["accuracy"],
        f"{f['zero_shot']['n']} held-out scans",
    )


def jets(name: str):
    def row(everything: dict):
        f, bars = everything["jets_from_text"][name], (5 if name == "top" else 4, 4, 4)
        joined = lambda end: " / ".join(f"{f[key + end]:.2f}" for key in JETS)
        unscaled = " / ".join(f"{f[key + '_unscaled']:.2f}" for key in ("mass_w1", "pt_w1"))
        yield (
            f"{name} jets, W1 ratios: mass / multiplicity / pt",
            f"≤ {' / '.join(map(str, bars))}",
            all(f[key] <= bar for key, bar in zip(JETS, bars)),
            joined(""),
            f"against raw jets {joined('_raw')}; unscaled mass / pt {unscaled}",
        )

    return row


def score(modality: str):
    def row(everything: dict):
        f = everything["score"][modality]
        key = next(iter(f))
        beside = {
            end: f[f"{key}_{end}"]
            for end in ("untrained", "unigram", "without_condition")
            if f"{key}_{end}" in f
        }
        text = ", ".join(
            f"{end.replace('without_', 'without the ')} {x:.3f}" for end, x in beside.items()
        )
        name = f"score of {modality}: {key.replace('_per_', '/').replace('_', ' ')}"
        yield (
            name,
            "below both",
            f[key] < min(beside["untrained"], beside["unigram"]),
            f"{f[key]:.3f}",
            text,
        )

    return row


def least(name: str, bar: float, value: float, beside: str):
    return name, f"≥ {bar:.2f}", value >= bar, f"{value:.3f}", beside


def most(name: str, bar: float, value: float, beside: str):
    return name, f"≤ {bar:.2f}", value <= bar, f"{value:.3f}", beside


def reported(name: str, value: float, beside: str):
    return name, "reported", True, f"{value:.3f}", beside


def judged(figures: dict, of: str) -> str:
    return (
        f"judge on real held-out {of} {figures['judge_heldout']:.3f}, after the round trip"
        f" {figures['judge_round_trip']:.3f}"
    )


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        figures = json.loads(Path(sys.argv[1]).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]} is no evaluation.json ({error}): make one with mmtok evaluate RUN")
    lines = ["| figure | bar | here | beside |", "|---|---|---|---|"]
    for name, bar, met, value, beside in rows(figures):
        lines.append(f"| {name} | {bar} | {value}{'' if met else ' missed'} | {beside} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
