r"""Figures of runs of recipes/fsdd.py: digits of real speakers, read and spoken.

    python scripts/bench_fsdd.py runs/fsdd
    python scripts/bench_fsdd.py runs/fsdd runs/fsdd2 --json out.json

The others may have several frames in a position (--tokenizers.speech.reduction_factor 2), or frames
without levels, drawn by diffusion:

    mmtok train recipes/fsdd.py --path recordings -o runs/diffused --tokenizers.speech \
        '{"kind": "LogMelConfig", "mel": {"hop_samples": 400}}' --heads.speech \
        '{"kind": "FrameDiffusion", "schedule": {"kind": "CondOT"}, "draws": 2, "steps": 18}'

Recognition is of the 300 clips for testing, and of 100 strings of three of them that training does
not have. Speech is two samples of each digit by each speaker. Its judges share nothing with the
tokenizer: a convnet of words and a linear classifier of voices, both trained on the real training
clips, and pocketsphinx, where that is installed, which hears one of ten words. Of several runs the
others are compared with the first. In brackets: 95 % bootstrap intervals over clips.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Line, called, machine, report
from speech_text import span

from mmtok.errors import UserError
from mmtok.evaluation.task import TaskEvaluation, share_ended
from mmtok.evaluation.text import read_signals
from mmtok.io.terminal import print_status
from mmtok.metrics.intervals import Estimate, mean_difference, mean_estimate
from mmtok.metrics.speech import train_speech_judge, train_voice_judge
from mmtok.metrics.speech_text import word_counts
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run, open_run
from mmtok.sources.fsdd import FSDD
from mmtok.sources.speech import DIGITS

N_SAMPLES = 2  # of each word by each speaker
N_ALONE = 20  # clips that are read one by one too
RATE_HZ = 16_000
PACKAGES = ("torch", "numpy", "pocketsphinx")
Hear = Callable[[Sequence[np.ndarray]], list[str]]


@dataclass
class Clips:
    """Clips (N_i,) with their words and speakers."""

    sounds: list[np.ndarray] = field(repr=False)
    words: list[str]
    speakers: list[str]

    @classmethod
    def of(cls, run: Run, split: str, n_words: int) -> Clips:
        """Those of a split that have so many words."""
        found = cls([], [], [])
        for example in run.examples(split, "speech", "caption", "speaker"):
            if len(example["caption"].split()) == n_words:
                found.sounds.append(example["speech"])
                found.words.append(example["caption"])
                found.speakers.append(example["speaker"])
        return found

    @property
    def examples(self) -> list[dict[str, str]]:
        """What is asked for to have the like of them."""
        pairs = zip(self.words, self.speakers, strict=True)
        return [{"caption": word, "speaker": speaker} for word, speaker in pairs]


class Judges:
    """Trained on real clips for training; `phones` is None without pocketsphinx."""

    def __init__(self, run: Run) -> None:
        clips = Clips.of(run, "train", 1)
        print_status("training the judges of words and of voices on real clips")
        self.words = train_speech_judge(clips.sounds, clips.words, RATE_HZ)
        self.voices = train_voice_judge(clips.sounds, clips.speakers, RATE_HZ)
        self.phones: Hear | None = None
        if find_spec("pocketsphinx") is not None:
            self.phones = pocketsphinx_hears()
        else:
            print("not installed, left out: pocketsphinx")


def pocketsphinx_hears() -> Hear:
    """Clips (N_i,) -> which of ten words pocketsphinx hears; "" for none."""
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=float(RATE_HZ), lm=None, loglevel="FATAL")
    grammar = f"#JSGF V1.0; grammar digits; public <digit> = {' | '.join(DIGITS)};"
    decoder.add_jsgf_string("digits", grammar)
    decoder.activate_search("digits")

    def hear(sound: np.ndarray) -> str:
        if not len(sound):
            return ""
        decoder.start_utt()
        pcm = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        if found is None:
            return ""
        return found.hypstr

    return lambda sounds: [hear(sound) for sound in sounds]


@dataclass
class Measured:
    """A run and what was measured of it."""

    run: Run
    judges: Judges

    @cached_property
    def recognition(self) -> TaskEvaluation:
        """speech -> caption."""
        return self._task(("speech",), "caption")

    @cached_property
    def synthesis(self) -> TaskEvaluation:
        """speaker, caption -> speech."""
        return self._task(("speaker", "caption"), "speech")

    def _task(self, inputs: tuple[str, ...], target: str) -> TaskEvaluation:
        for task in self.run.recipe.tasks:
            if task.inputs == inputs and task.targets == (target,):
                return TaskEvaluation(self.run, task)
        raise UserError(
            f"{self.run.folder}: has no task {' + '.join(inputs)} -> {target}, as recipes/fsdd.py"
            " has"
        )

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return self.run.folder.name

    @property
    def tokenizer(self) -> Any:
        """Of speech."""
        return self.synthesis.target_tokenizer

    @property
    def k(self) -> int:
        """Frames of the spectrogram in one of the stream."""
        return getattr(self.tokenizer.config, "reduction_factor", 1)

    @cached_property
    def asked(self) -> Clips:
        """Each word by each speaker, N_SAMPLES times; no sounds."""
        speakers = sorted(set(Clips.of(self.run, "heldout", 1).speakers))
        pairs = [(w, s) for s in speakers for w in DIGITS for _ in range(N_SAMPLES)]
        return Clips([], [word for word, _ in pairs], [speaker for _, speaker in pairs])

    @cached_property
    def drawn(self) -> tuple[list[Sampled], float]:
        """Samples of what is asked for, and the processor's seconds."""
        start = time.process_time()
        sampled = self.synthesis.sample_examples(self.asked.examples)
        return sampled, time.process_time() - start

    @cached_property
    def right(self) -> list[bool]:
        """Whether each sample is heard as its word."""
        return self.judges.words.right(self.sounds, self.asked.words)

    @cached_property
    def sounds(self) -> list[np.ndarray]:
        """Of the samples."""
        return self.synthesis.decode(self.drawn[0])


# ---- the lines


def at_most(what: str, unit: str, estimate: Estimate, bar: float) -> Line:
    """A figure that must not be above its bar, with its interval."""
    held = f"{span(estimate)}:"
    return Line(what, unit, estimate.value, "", None, held, estimate.value, bar, None, False)


def at_least(
    what: str, estimate: Estimate, bar: float, peer: str = "", theirs: float | None = None
) -> Line:
    """The same of one that must not be below."""
    held = f"{span(estimate)}:"
    return Line(what, "", estimate.value, peer, theirs, held, estimate.value, bar)


def reading(m: Measured) -> Iterator[Line]:
    """Recognition: A1 to A3."""
    words = Clips.of(m.run, "heldout", 1)
    strings = Clips.of(m.run, "heldout", 3)
    read = read_signals(m.recognition, words.sounds)
    yield at_most(
        f"{m.name} A1: word error, {len(words.words)} words",
        "",
        word_counts(words.words, read).estimate(),
        0.05,
    )
    read_strings = read_signals(m.recognition, strings.sounds)
    yield at_most(
        f"{m.name} A2: word error, {len(strings.words)} strings of 3",
        "",
        word_counts(strings.words, read_strings).estimate(),
        0.10,
    )
    alone = [read_signals(m.recognition, [sound])[0] for sound in words.sounds[:N_ALONE]]
    same = [a == b for a, b in zip(alone, read, strict=False)]
    what = f"{m.name} A3: read alone as among others, {N_ALONE} clips"
    yield at_least(what, mean_estimate(same), 1.0)


def speaking(m: Measured) -> Iterator[Line]:
    """Synthesis: S1 to S4, S6."""
    clips = Clips.of(m.run, "heldout", 1)
    codes = m.tokenizer.encode_batch(clips.sounds)
    copies = m.tokenizer.decode_batch(codes)
    sampled, _ = m.drawn
    real = np.mean(m.judges.words.right(clips.sounds, clips.words))
    copied = np.mean(m.judges.words.right(copies, clips.words))
    print(f"{m.name}: the judge of words is right on {real:.3f} of real clips, {copied:.3f} copied")
    wrong = mean_estimate([not right for right in m.right])
    yield at_most(f"{m.name} S1: word error of {len(sampled)} samples", "", wrong, 0.10)
    if m.judges.phones is not None:
        yield from _by_pocketsphinx(m, clips, copies)
    stopped = mean_estimate([sample.stop == "end" for sample in sampled])
    greedy = share_ended(m.synthesis.sample_examples(m.asked.examples, temperature=0.0))
    yield at_least(f"{m.name} S3: stopped by themselves", stopped, 0.97, "greedy", greedy)
    real_frames = m.k * sum(len(segment.values) for segment in codes) / len(codes)
    frames = mean_estimate([m.k * len(sample.segment.values) for sample in sampled])
    off = abs(frames.value / real_frames - 1)
    held = f"{span(frames)}, off by"
    what = f"{m.name} S4: mean frames"
    yield Line(what, "", frames.value, "data", real_frames, held, off, 0.2, None, False)
    heard = m.judges.voices.predict(m.sounds)
    own = [a == b for a, b in zip(heard, m.asked.speakers, strict=True)]
    real_voice = m.judges.voices.accuracy(clips.sounds, clips.speakers)
    what = f"{m.name} S6: heard as the speaker (chance 1/6)"
    yield at_least(what, mean_estimate(own), 0.5, "real", real_voice)


def _by_pocketsphinx(m: Measured, clips: Clips, copies: list[np.ndarray]) -> Iterator[Line]:
    """S2: how often it hears what it should, over copy synthesis."""
    assert m.judges.phones is not None
    heard = {
        "real": share(m.judges.phones(clips.sounds), clips.words),
        "copied": share(m.judges.phones(copies), clips.words),
        "samples": share(m.judges.phones(m.sounds), m.asked.words),
    }
    shares = ", ".join(f"{whose} {found:.3f}" for whose, found in heard.items())
    print(f"{m.name}: pocketsphinx is right on {shares}")
    yield Line.ratio(
        f"{m.name} S2: pocketsphinx right",
        "",
        heard["samples"],
        "copied",
        heard["copied"],
        0.65,
    )


def share(heard: Sequence[str], asked: Sequence[str]) -> float:
    """Of clips that are heard as what they are."""
    return float(np.mean([a == b for a, b in zip(heard, asked, strict=True)]))


def compared(first: Measured, other: Measured) -> Iterator[Line]:
    """Another run beside the first; S7 where it has another number of frames in a position."""
    lost = mean_difference(first.right, other.right)
    if first.k == other.k:
        yield at_most(f"{other.name}: words lost beside {first.name}", "", lost, 0.03)
        return
    what = f"{other.name} S7: words lost, k {first.k} to {other.k}"
    yield at_most(what, "", lost, 0.03)
    yield Line.ratio(
        f"{other.name} S7: sampling",
        "s",
        other.drawn[1],
        first.name,
        first.drawn[1],
        0.6,
        least=False,
    )


def lines(runs: Sequence[Run]) -> Iterator[Line]:
    """Those of all runs."""
    judges = Judges(runs[0])
    first: Measured | None = None
    for run in runs:
        m = Measured(run, judges)
        yield from reading(m)
        yield from speaking(m)
        if first is None:
            first = m
        else:
            yield from compared(first, m)


def opened(folder: Path) -> Run:
    """A run of real digits. Raises UserError for another."""
    run = open_run(folder, None, torch.device("cpu"), None)
    if not any(isinstance(source, FSDD) for source in run.recipe.sources):
        raise UserError(f"{folder}: is no run of recipes/fsdd.py, whose source is FSDD")
    return run


def main() -> None:
    """Measures the runs that the command line names."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("runs", nargs="+", type=Path, help="folders of runs of recipes/fsdd.py")
    made.add_argument("--json", type=Path, help="write the figures to this file too")
    options = made.parse_args()
    torch.set_num_threads(1)
    runs = [opened(folder) for folder in options.runs]
    report(lines(runs), options.json, machine=machine(PACKAGES))


if __name__ == "__main__":
    sys.exit(called(main))
