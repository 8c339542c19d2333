"""Where a long recording is cut into windows: in its pauses, else with an overlap.

Clips that recognisers learn from hold a sentence and begin and end with little silence. So a window
is what is said from one pause of a sentence's end to the next. One that is longer than may be ends
in the longest pause of its last three quarters, and the next one begins there. Where there is none,
it is as long as may be and the next one overlaps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmtok.core.segment import Segment
from mmtok.tokenizers.base import Tokenizer
from mmtok.tokenizers.mel import MelTokenizer

OVERLAP = 0.25  # of a window without a pause
EARLIEST = 0.25  # of a window that it has at the least
PAUSE_S = 0.15  # of a pause, at the least
SENTENCE_S = 0.2  # of one in which every window ends
EDGE_S = 0.05  # of it that a window has; more of it would be a silence that no clip begins with
LEAST_S = 0.5  # of a window, where it can have its neighbour too
QUIET = 0.25  # of the way from the quietest to the loudest frames
QUANTILES = (0.05, 0.95)  # that count as these

Span = tuple[int, int]  # frames [start, stop)


def loudness(tokenizer: Tokenizer, speech: Segment) -> np.ndarray | None:
    """The mean log-mel (T,) of each frame; None for a tokenizer without a spectrogram."""
    if not isinstance(tokenizer, MelTokenizer):
        return None
    mel = tokenizer.log_mel(speech)  # (T k, C)
    config: Any = tokenizer.config
    k = getattr(config, "reduction_factor", 1)
    means = mel.mean(1).numpy()
    missing = -len(means) % k
    return np.pad(means, (0, missing), mode="edge").reshape(-1, k).mean(1)[: len(speech)]


def pauses(levels: np.ndarray, frame_s: float) -> list[Span]:
    """The spans of quiet frames, by their levels (T,), that last PAUSE_S at least."""
    low, high = np.quantile(levels, QUANTILES)
    quiet = np.concatenate([[False], levels <= low + QUIET * (high - low), [False]])
    edges = np.flatnonzero(quiet[1:] != quiet[:-1])
    spans = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(start, stop) for start, stop in spans if (stop - start) * frame_s >= PAUSE_S]


def spoken_windows(n_frames: int, size: int, quiet: Sequence[Span], frame_s: float) -> list[Span]:
    """Spans of what is between the pauses of so many frames, each at most `size` long.

    Args:
        n_frames: of the recording.
        size: frames.
        quiet: the pauses.
        frame_s: how long a frame lasts.
    """
    ends = [(start, stop) for start, stop in quiet if (stop - start) * frame_s >= SENTENCE_S]
    edge = max(1, round(EDGE_S / frame_s))
    spans: list[Span] = []
    for start, stop in _stretches(n_frames, size, ends, edge, LEAST_S / frame_s):
        within = [(a - start, b - start) for a, b in quiet if start < a and b < stop]
        cut = windows(stop - start, size, within)
        spans += [(start + first, start + last) for first, last in cut]
    return spans or windows(n_frames, size)


def _stretches(
    n_frames: int, size: int, quiet: Sequence[Span], edge: int, least: float
) -> list[Span]:
    """What is between pauses, with `edge` frames of these.

    One of less than `least` frames is joined with the one before or after, where both fit `size`.
    """
    bounds = [0, *(frame for pause in quiet for frame in pause), n_frames]
    found: list[Span] = []
    for first, last in zip(bounds[::2], bounds[1::2], strict=True):
        if last == first:  # it begins or ends in a pause
            continue
        start = max(0, first - edge)
        stop = min(n_frames, last + edge)
        is_short = found and min(stop - start, found[-1][1] - found[-1][0]) < least
        if is_short and stop - found[-1][0] <= size:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def windows(n_frames: int, size: int, quiet: Sequence[Span] = ()) -> list[Span]:
    """Spans that cover so many frames, each at most `size` long.

    quiet: the pauses. A span ends in the middle of one, where the next begins; else they overlap.
    """
    spans: list[Span] = []
    start = 0
    while start + size < n_frames:
        cut = _best_pause(quiet, start + max(1, int(EARLIEST * size)), start + size)
        if cut is None:
            spans.append((start, start + size))
            start += size - int(OVERLAP * size)
        else:
            spans.append((start, cut))
            start = cut
    if spans and spans[-1][1] > start:
        start = n_frames - size  # the last one is a whole window too
    spans.append((start, n_frames))
    return spans


def _best_pause(quiet: Sequence[Span], earliest: int, latest: int) -> int | None:
    """The middle of the longest pause whose middle is in [earliest, latest]; None without one."""
    found = [
        (stop - start, (start + stop) // 2)
        for start, stop in quiet
        if earliest <= (start + stop) // 2 <= latest
    ]
    if not found:
        return None
    return max(found)[1]
