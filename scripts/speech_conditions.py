"""What a speech tokenizer does with sound that is noisy, quiet, loud, odd, long or not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from side_by_side import Line
from speech_clips import Clip
from speech_text import as_json, value_text
from speech_tokenizers import RATE_HZ, Trip

from mmtok.data.speech_preparation import SpeechPreparation
from mmtok.errors import UserError, reason_of
from mmtok.io.tally import Tally
from mmtok.metrics.intervals import Estimate, mean_estimate
from mmtok.metrics.speech_distances import stoi
from mmtok.metrics.speech_panel import Panel
from mmtok.nn.resample import resample
from mmtok.sources.base import Sound

N_CLIPS = 5  # that each condition is tried on
LONG_S = 600
LEVEL_STOI = 0.02  # how much STOI may change with the level
SNRS_DB = (20, 10, 0)
GAINS = (0.03, 0.25, 0.5, 2.0)
RATES_HZ = (8_000, 11_025, 22_050, 44_100, 48_000)
DC = 0.2
N_CLICKS = 10
# figure -> heading and digits
FIGURES = {
    "to_input": ("STOI to the input", 3),
    "to_clean": ("STOI to the clean", 3),
    "mos": ("DistillMOS", 2),
}

Sounds = list[tuple[np.ndarray, int]]  # (samples, rate) of each input


def conditions(clips: list[np.ndarray]) -> Iterator[tuple[str, Sounds]]:
    """A name and its inputs: those of the clips (N_i,) first, then those that need none."""
    rng = np.random.default_rng(0)

    def at_16_khz(change: Callable[[np.ndarray], np.ndarray]) -> Sounds:
        return [(change(clip).astype(np.float32), RATE_HZ) for clip in clips]

    yield "as it is", at_16_khz(np.copy)
    for snr_db in SNRS_DB:
        gain = 10 ** (-snr_db / 20)
        yield (
            f"white noise, {snr_db} dB",
            at_16_khz(lambda x, g=gain: x + g * x.std() * rng.standard_normal(len(x))),
        )
    for gain in GAINS:
        yield f"gain x{gain:g}", at_16_khz(lambda x, g=gain: g * x)
    for rate_hz in RATES_HZ:
        yield f"input of {rate_hz} Hz", [(resample(x, RATE_HZ, rate_hz), rate_hz) for x in clips]
    yield f"DC of {DC:g}", at_16_khz(lambda x: x + DC)
    yield f"{N_CLICKS} clicks", at_16_khz(lambda x: _clicked(x, rng))
    yield "one sample", [(np.full(1, 0.5, np.float32), RATE_HZ)]
    yield "silence, 1 s", [(np.zeros(RATE_HZ, np.float32), RATE_HZ)]
    yield (
        "full scale square",
        [(np.sign(np.sin(np.arange(RATE_HZ) * 0.1)).astype(np.float32), RATE_HZ)],
    )
    joined = np.concatenate(clips)
    n_copies = -(-LONG_S * RATE_HZ // len(joined))
    yield "ten minutes", [(np.tile(joined, n_copies)[: LONG_S * RATE_HZ], RATE_HZ)]


def _clicked(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A clip with single samples at full scale."""
    out = clip.copy()
    places = rng.integers(0, len(clip), N_CLICKS)
    out[places] = np.resize([1.0, -1.0], N_CLICKS)
    return out


def robustness(trip: Trip, clips: list[Clip], panel: Panel, rows: list) -> Iterator[Line]:
    """A table of conditions; lines: no crash and valid tokens in all, and STOI at any level."""
    chosen = sorted(clips, key=lambda clip: len(clip.samples))
    middle = len(chosen) // 2  # neither the shortest nor the longest
    samples = [clip.samples for clip in chosen[max(0, middle - N_CLIPS // 2) :][:N_CLIPS]]
    print(f"robustness: {trip.tokens}, {trip.vocoder}; {len(samples)} clips where clips are used")
    heads = ("input", "tokens", "length", *(title for title, _ in FIGURES.values()), "s/s", "said")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    wrong = []
    levels: dict[str, Estimate] = {}
    for name, inputs in conditions(samples):
        row = one_condition(trip, name, inputs, samples, panel)
        print(_as_line(row), flush=True)
        figures = {key: as_json(x) for key, x in row["figures"].items()}
        rows.append({"robustness": trip.vocoder, **row, "figures": figures})
        if row["tokens"] != "valid" or row["length"] != "exact":
            wrong.append(name)
        if name.startswith("gain") or name == "as it is":
            levels[name] = row["figures"]["to_input"]
    n_conditions = sum(1 for _ in conditions(samples))
    yield Line(
        f"{trip.vocoder}: inputs with valid tokens, exact length",
        "",
        n_conditions - len(wrong),
        "",
        None,
        "of all",
        1 - len(wrong) / n_conditions,
        1.0,
        wrong=", ".join(wrong),
    )
    clean = levels.pop("as it is").value
    if np.isfinite(clean):
        change = max(abs(estimate.value - clean) for estimate in levels.values())
        what = f"{trip.vocoder}: STOI, gain x{GAINS[0]:g} to x{GAINS[-1]:g}"
        yield Line(
            what, "", clean, "", None, "largest change", change, LEVEL_STOI, None, least=False
        )


def one_condition(
    trip: Trip, name: str, inputs: Sounds, clean: list[np.ndarray], panel: Panel
) -> dict[str, Any]:
    """What becomes of the inputs of one condition; an exception is a figure too."""
    row: dict[str, Any] = {"input": name, "tokens": "valid", "length": "exact", "said": ""}
    prepared = []
    sounds = []
    seconds = 0.0
    try:
        for samples, rate_hz in inputs:
            sound = Sound(samples.reshape(-1, 1), rate_hz, name)
            clip = SpeechPreparation().prepare(sound, name, Tally("clips"), RATE_HZ)
            start = time.process_time()
            kept = trip.encode(clip)
            out = trip.decode(kept)
            seconds += time.process_time() - start
            if not _valid(trip, kept) or not np.isfinite(out).all():
                row["tokens"] = "NOT VALID"
            if len(out) != len(clip):
                row["length"] = f"{len(out)} of {len(clip)}"
            prepared.append(clip)
            sounds.append(out)
    except UserError as error:
        row |= {"tokens": "refused", "said": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever it raises is what is measured
        row |= {"tokens": "CRASH", "said": f"{type(error).__name__}: {reason_of(error)}"}
    total_s = max(1e-9, sum(map(len, prepared)) / RATE_HZ)
    row["realtime"] = seconds / total_s
    compared = [(a, b) for a, b in zip(prepared, sounds, strict=True) if len(a) == len(b)]
    figures = {"to_input": mean_estimate(_stois(panel, compared))}
    same = len(prepared) == len(clean) and total_s < LONG_S
    pairs = [(a[: len(b)], b[: len(a)]) for a, b in zip(clean, sounds, strict=False) if same]
    figures["to_clean"] = mean_estimate(_stois(panel, pairs))
    scores = []
    if panel.quality is not None and total_s < LONG_S:
        scores = list(panel.quality(sounds, RATE_HZ))
    figures["mos"] = mean_estimate(scores)
    return row | {"figures": figures}


def _valid(trip: Trip, kept: Any) -> bool:
    """Whether all codes are within the tokenizer's levels."""
    if trip.continuous:
        return bool(kept[0].isfinite().all())
    codes = kept.codes
    return bool(codes.size and codes.min() >= 0 and (codes < trip.tokenizer.signature.levels).all())


def _stois(panel: Panel, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    if "pystoi" in panel.missing:
        return []
    return [stoi(a, b, RATE_HZ) for a, b in pairs]


def _as_line(row: dict[str, Any]) -> str:
    cells = [row["input"], row["tokens"], row["length"]]
    cells += [value_text(row["figures"][key], digits) for key, (_, digits) in FIGURES.items()]
    return f"| {' | '.join([*cells, format(row['realtime'], '.3f'), row['said']])} |"
