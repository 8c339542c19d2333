"""Recordings longer than a recogniser's rows, read by windows; and when each word is said.

A window is at most as long as rows leave room for: `train.seq_len` less the text's `max_frames`. It
holds what is said between two pauses, else the next one overlaps it by a quarter. Where two
readings of an overlap have words in common they are joined there; else each window gives the words
up to the middle of the overlap, by the times at which they are said.

Times come from forced scores. Word k is scored given the clip's first frames, for more and more of
them; when half of what the whole clip says about it has been heard, its middle has passed. That
needs no alignment in the model, and is as fine as `STEP_FRAMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np

from mmtok.commands.pauses import OVERLAP, Span, loudness, pauses, spoken_windows, windows
from mmtok.core.segment import Document, Segment
from mmtok.errors import UserError
from mmtok.io.files import write_text
from mmtok.io.terminal import print_status
from mmtok.model.likelihood import last_nats
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run

MARKS = 5  # of a document of two segments
LEAST_SHARE = 0.25  # of a row that a window may have at the least
WINDOWS_AT_ONCE = 16  # bounds the memory
STEP_FRAMES = 2  # between two times at which words are scored


@dataclass(frozen=True)
class Word:
    """A word of a reading.

    Attributes:
        text: as the run writes it.
        nats: -log p of its letters and the blank before it, given the clip and the words before.
        start_s: when it begins in the recording, where times were asked for.
        end_s: likewise, its end.
    """

    text: str
    nats: float
    start_s: float | None = None
    end_s: float | None = None

    @property
    def nats_per_letter(self) -> float:
        """By which words of different lengths are compared."""
        return self.nats / len(self.text)


@dataclass(frozen=True)
class Reading:
    """What a recogniser read in a recording.

    Attributes:
        words: in order.
        stop: "end", or "cap" where the text of any window reached its cap.
    """

    words: tuple[Word, ...]
    stop: str

    @property
    def text(self) -> str:
        """The words with blanks between them."""
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, eq=False)
class ReadSample(Sampled):
    """A text that was read in a recording, with its words where their times were asked for."""

    words: tuple[Word, ...] = ()


def is_long_recording(run: Run, prompt: Document) -> bool:
    """Whether a prompt asks for the text of more speech than a row holds."""
    asked = [segment.modality for segment in prompt.segments if segment is not None]
    if asked != ["speech", "text"] or len(prompt.target):
        return False
    speech = prompt.segments[0]
    return speech is not None and len(speech) > window_frames(run)


def read_samples(
    run: Run,
    prompt: Document,
    n: int,
    seed: int,
    draw: Callable[[Sequence[Document], int], list[Sampled]],
    with_times: bool,
) -> list[Sampled]:
    """N readings of a recording.

    Raises UserError for a prompt that asks for anything else.
    """
    modalities = [segment.modality for segment in prompt.segments if segment is not None]
    if modalities != ["speech", "text"]:
        raise UserError(
            "sample: --timestamps are those of a text that is read in a clip: --prompt clip.wav"
            " --to text"
        )
    speech = prompt.segments[0]
    assert speech is not None, "it is one of the modalities"
    n_windows = len(spans_of(run, speech))
    samples: list[Sampled] = []
    for i in range(n):
        found = read_recording(run, speech, seed + i * n_windows, draw, with_times, said=bool(i))
        text = run.tokenizers["text"].encode(found.text)
        samples.append(ReadSample(text, found.stop, words=found.words))
    return samples


def write_word_times(samples: Sequence[Sampled], paths: Sequence[Path]) -> None:
    """Write NAME.words.csv beside each text whose words have times."""
    for sample, path in zip(samples, paths, strict=False):
        if not isinstance(sample, ReadSample) or any(w.start_s is None for w in sample.words):
            continue
        rows = ["word,start_s,end_s,nats"]
        rows += [f"{w.text},{w.start_s:.3f},{w.end_s:.3f},{w.nats:.4f}" for w in sample.words]
        write_text(path.with_suffix(".words.csv"), "\n".join(rows) + "\n")


def window_frames(run: Run) -> int:
    """The most frames of speech that a row of the run holds with a text."""
    row = run.recipe.train.seq_len
    return max(int(LEAST_SHARE * row), row - run.sampling("text").max_frames - MARKS)


def read_recording(
    run: Run,
    speech: Segment,
    seed: int,
    draw: Callable[[Sequence[Document], int], list[Sampled]],
    with_times: bool = False,
    said: bool = False,
) -> Reading:
    """Read a recording of any length, by windows where it is longer than a row holds.

    Args:
        run: one that was trained on speech -> text.
        speech: the whole recording.
        seed: of all random numbers; a batch of windows has that of its first one.
        draw: called with prompts and a seed.
        with_times: find when each word is said.
        said: whether it was said that there are windows.
    """
    spans = spans_of(run, speech)
    frame_s = frame_seconds(run, speech)
    if len(spans) > 1 and not said:
        print_status(windows_note(spans, frame_s, window_frames(run)))
    words: list[Word] = []
    last: _Window | None = None
    stop = "end"
    for first in range(0, len(spans), WINDOWS_AT_ONCE):
        some = spans[first : first + WINDOWS_AT_ONCE]
        pieces = [part(speech, start, end) for start, end in some]
        prompts = [run.prompt([piece], "text") for piece in pieces]
        drawn = draw(prompts, seed + first)
        if any(found.stop == "cap" for found in drawn):
            stop = "cap"
        texts = [found.segment for found in drawn]
        for piece, text, found, (start, _) in zip(
            pieces, texts, read_words(run, pieces, texts), some, strict=True
        ):
            if with_times:
                found = timed(run, piece, text, found, frame_s, start * frame_s)
            window = _Window(run, piece, text, start, len(found))
            if last is None or last.stop <= start:
                words += found
            else:
                words = join(words, found, last.n_words, partial(_beyond_seam, last, window))
            last = window
    return Reading(tuple(words), stop)


def spans_of(run: Run, speech: Segment) -> list[Span]:
    """The windows in which a recording is read; one where a row holds it."""
    size = window_frames(run)
    if len(speech) <= size:
        return [(0, len(speech))]
    levels = loudness(run.tokenizers["speech"], speech)
    if levels is None:
        return windows(len(speech), size)
    frame_s = frame_seconds(run, speech)
    return spoken_windows(len(speech), size, pauses(levels, frame_s), frame_s)


def windows_note(spans: Sequence[Span], frame_s: float, size: int) -> str:
    """What is said of windows of at most `size` frames, each of `frame_s` seconds."""
    seconds = frame_s * spans[-1][1]
    n_cut = sum(a[1] <= b[0] for a, b in pairwise(spans))
    cuts = [f"{n_cut} cut in pauses"] * bool(n_cut)
    n_overlapping = len(spans) - 1 - n_cut
    cuts += [f"{n_overlapping} with an overlap"] * bool(n_overlapping)
    return (
        f"{seconds:.1f} s are read in {len(spans)} windows, {' and '.join(cuts)}, as rows hold no"
        f" more than {frame_s * size:.1f} s"
    )


def frame_seconds(run: Run, speech: Segment) -> float:
    """How long a frame of a clip that was encoded lasts, by the clip's length."""
    rate_hz = run.recipe.tokenizers["speech"].takes["rate_hz"]
    return speech.info["n_samples"] / rate_hz / max(1, len(speech))


def part(speech: Segment, start: int, stop: int) -> Segment:
    """Frames [start, stop) of a clip; it decodes by its own length."""
    if (start, stop) == (0, len(speech)):
        return speech
    if speech.codes is not None:
        return replace(speech, codes=speech.codes[start:stop], info={})
    return replace(speech, latents=speech.values[start:stop], info={})


@dataclass(frozen=True, eq=False)
class _Window:
    """A window that was read: its frames, which begin at frame `start`, and the text of them."""

    run: Run
    speech: Segment
    text: Segment
    start: int
    n_words: int

    @property
    def stop(self) -> int:
        """The frame at which it ends."""
        return self.start + len(self.speech)

    @cached_property
    def middles(self) -> np.ndarray:
        """The frame of the recording at which each word's middle is."""
        if not len(self.text):
            return np.zeros(0)
        return self.start + middle_frames(self.run, self.speech, self.text)


def _beyond_seam(before: _Window, after: _Window) -> tuple[int, int]:
    """How many words of the window before, and of that after, are beyond the overlap's middle."""
    seam = (after.start + before.stop) / 2
    return int((before.middles >= seam).sum()), int((after.middles < seam).sum())


def join(
    words: Sequence[Word],
    more: Sequence[Word],
    n_last: int | None = None,
    seam: Callable[[], tuple[int, int]] | None = None,
) -> list[Word]:
    """The words so far, then those of the next window, which overlaps the last one.

    Args:
        words: so far.
        more: of the next window.
        n_last: how many words the last window gave; all of them by default.
        seam: how many words at the end of `words` and at the beginning of `more` are beyond the
            middle of the overlap; asked where they have nothing in common.
    """
    if n_last is None:
        n_last = len(words)
    if not words or not more:
        return [*words, *more]
    # words that may lie in the overlap
    n = 2 + int(2 * OVERLAP * max(n_last, len(more)))
    tail = [word.text for word in words[-n:]]
    head = [word.text for word in more[:n]]
    match = _common_run(tail, head)
    if match is not None:
        a, b, size = match
        return [*words[: len(words) - len(tail) + a + size], *more[b + size :]]
    if seam is not None:
        n_left, n_right = seam()
        kept = words[: len(words) - n_left]
        added = more[n_right:]
        if kept and added and kept[-1].text == added[0].text:
            added = added[1:]
        return [*kept, *added]
    if words[-1].nats_per_letter > more[0].nats_per_letter:
        return [*words[:-1], *more]
    return [*words, *more[1:]]


def _common_run(tail: Sequence[str], head: Sequence[str]) -> tuple[int, int, int] | None:
    """(place in tail, place in head, length) of the run at which they are joined.

    That with the most words, less half of those that it leaves out at the end of the tail and at
    the beginning of the head. None where each leaves out more than twice as many as it has: a
    single "the" far from the seam is chance.
    """
    best = None
    most = 0.0
    for a in range(len(tail)):
        for b in range(len(head)):
            pairs = zip(tail[a:], head[b:], strict=False)
            size = sum(1 for _ in takewhile(_are_equal, pairs))
            value = size - (len(tail) - a - size + b) / 2
            if size and value >= most:
                best = (a, b, size)
                most = value
    return best


def _are_equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


# ---- words and their scores


def read_words(run: Run, speech: Sequence[Segment], texts: Sequence[Segment]) -> list[list[Word]]:
    """The words of texts, each scored given its clip and the words before it."""
    return [
        [Word(word, float(nats[first:last].sum())) for word, first, last in word_spans(run, text)]
        for text, nats in zip(texts, _nats(run, speech, texts), strict=True)
    ]


def _nats(run: Run, speech: Sequence[Segment], texts: Sequence[Segment]) -> list[np.ndarray]:
    """Nats of each code of each text, and of its end mark: (T + 1,) each."""
    documents = [Document(pair, (False, True)) for pair in zip(speech, texts, strict=True)]
    return last_nats(run.lm, documents)


def word_spans(run: Run, text: Segment) -> list[tuple[str, int, int]]:
    """The words of a text with their codes [first, last); the blank before one is its own."""
    tokenizer = run.tokenizers["text"]
    n_chars = [
        len(tokenizer.decode(replace(text, codes=text.values[: i + 1])).rstrip("\ufffd"))
        for i in range(len(text))
    ]
    spans = []
    first = 0
    at = 0
    whole = tokenizer.decode(text)
    for word in whole.split():
        at = whole.index(word, at) + len(word)
        last = int(np.searchsorted(n_chars, at)) + 1
        spans.append((word, first, last))
        first = last
    return spans


# ---- when words are said


def timed(
    run: Run,
    speech: Segment,
    text: Segment,
    words: Sequence[Word],
    frame_s: float,
    from_s: float = 0.0,
) -> list[Word]:
    """The words of a text with the times at which they begin and end in its clip.

    Args:
        run: that reads speech.
        speech: the clip.
        text: what is said in it.
        words: of the text.
        frame_s: how long a frame lasts.
        from_s: when the clip begins.
    """
    if not words:
        return []
    middles = middle_frames(run, speech, text)
    edges = np.concatenate([[0], (middles[:-1] + middles[1:]) / 2, [len(speech)]])
    times = [from_s + frame_s * edge for edge in edges]
    return [
        replace(word, start_s=float(start), end_s=float(end))
        for word, start, end in zip(words, times, times[1:], strict=False)
    ]


def middle_frames(run: Run, speech: Segment, text: Segment) -> np.ndarray:
    """For each word of a text the frame by which half of what a clip says of it was heard.

    They never fall. Of a word that the clip says nothing about it is that of the word before.
    """
    stops = [*range(0, len(speech), STEP_FRAMES), len(speech)]
    heard = [part(speech, 0, stop) for stop in stops]
    nats = np.stack(_nats(run, heard, [text] * len(stops)))  # (times, codes + 1)
    spans = word_spans(run, text)
    scores = np.stack([nats[:, first:last].sum(1) for _, first, last in spans], 1)
    half = (scores.max(0) + scores[-1]) / 2
    # the last time at which less than half was known, and then the next one
    unknown = scores > half
    after = len(stops) - 1 - np.argmax(unknown[::-1], 0)
    at = np.where(unknown.any(0), np.minimum(after + 1, len(stops) - 1), 0)
    return np.maximum.accumulate(np.array(stops, float)[at])
