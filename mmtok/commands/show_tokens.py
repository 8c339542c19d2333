"""What `mmtok show` prints of token files: counts, sizes, lengths with a histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmtok.core.segment import Signature
from mmtok.data.parts import token_paths
from mmtok.data.tokens import TokenFile, read_tokens
from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.io.terminal import lines_text

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_BINS = 10  # of the histogram
WIDTH = 40  # characters of its longest bar
LEAST_ROWS = 20  # that have quantiles and a histogram


def frame_text(signature: Signature) -> str:
    """A frame's make-up and its size in bits."""
    bits = f"{signature.bits_per_frame:.4g} bits a frame"
    if signature.latent_size:
        shape = f"{signature.latent_size} floats a frame"
        return f"{shape} of {signature.cells} cells each, {bits}" if signature.cells else shape
    sizes = [str(k) for k in signature.levels]
    if len(sizes) > 1 and len(set(sizes)) == 1:
        shape = f"{len(sizes)} x {sizes[0]}"
    else:
        shape = " x ".join(sizes)
    return f"{shape} levels, {bits}"


def describe_tokens(path: Path) -> str:
    """What a token file holds, or a folder of them, or a run's folder of such folders.

    As lines of text: rows, fields, frames, bits, fingerprints; lengths, where there are many rows.
    """
    folders = [path]
    if path.is_dir() and not token_paths(path):
        folders = [folder for folder in sorted(path.iterdir()) if _holds_tokens(folder)]
        if not folders:
            raise UserError(f"{path}: no token files (*.parquet) in this folder")
    return lines_text([line for folder in folders for line in _lines(folder)])


def _holds_tokens(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and bool(token_paths(folder))


def _lines(path: Path) -> Iterator[str]:
    file = read_tokens(path)
    what = "token file"
    if path.is_dir():
        what = counted(len(file.parts), "token file")
    yield f"{path}: {what}, {counted(len(file), 'row')}"
    for name in file.fields:
        yield from _field(file, name)


def _field(file: TokenFile, name: str) -> Iterator[str]:
    signature = file.signatures[name]
    there = file.has(name)
    lengths = file.lengths(name)[there]
    frames = "no frames"
    if len(lengths):
        n_frames = counted(int(lengths.sum()), "frame")
        frames = f"{n_frames} ({lengths.min()} to {lengths.max()} a row)"
    if n_truncated := file.n_truncated(name):
        frames += f", {n_truncated} truncated"
    yield f"  {name}: {signature.modality}, in {counted(len(lengths), 'row')}, {frames}"
    yield f"    {', '.join([frame_text(signature), *_amounts(file, name, lengths)])}"
    yield f"    tokenizer {signature.fingerprint}"
    if len(lengths) >= LEAST_ROWS and lengths.min() < lengths.max():
        yield f"    frames a row: {_quantiles(lengths)}"
        yield from (f"      {line}" for line in histogram(lengths))


def _amounts(file: TokenFile, name: str, lengths: np.ndarray) -> list[str]:
    """Bits a row; bits a second, a pixel or a particle, and how many of these there are."""
    signature = file.signatures[name]
    bits = int(lengths.sum()) * signature.bits_per_frame
    if not bits:
        return []
    amounts = [f"{bits / len(lengths):.4g} bits a row"]
    infos = file.infos(name)
    if all("n_samples" in info and "rate_hz" in info for info, _ in infos):
        seconds = sum(n * info["n_samples"] / info["rate_hz"] for info, n in infos)
        if seconds:
            amounts.append(f"{bits / seconds:.4g} bit/s over {_time(seconds)}")
    elif all("height" in info and "width" in info for info, _ in infos):
        n_pixels = sum(n * info["height"] * info["width"] for info, n in infos)
        if n_pixels:
            amounts.append(f"{bits / n_pixels:.4g} bits a pixel of {n_pixels:,}")
    elif signature.modality == "jets":
        n_particles = int(np.maximum(lengths - signature.headers, 0).sum())
        amounts.append(counted(n_particles, "particle"))
    return amounts


def _time(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds:.4g} s"
    return f"{seconds / 3600:.4g} hours"


def _quantiles(lengths: np.ndarray) -> str:
    values = np.quantile(lengths, QUANTILES)
    parts = [f"{q:.0%} {value:.4g}" for q, value in zip(QUANTILES, values, strict=True)]
    return f"mean {lengths.mean():.4g}; quantiles {', '.join(parts)}"


def histogram(values: np.ndarray) -> Sequence[str]:
    """Whole numbers as bars of text, at most MOST_BINS: "  12 to   23 ####### 1,234"."""
    low = int(values.min())
    width = math.ceil((int(values.max()) + 1 - low) / MOST_BINS)
    counts = np.bincount((values - low) // width)
    edges = [(low + i * width, low + (i + 1) * width - 1) for i in range(len(counts))]
    digits = len(str(edges[-1][1]))
    lines = []
    for (first, last), n in zip(edges, counts.tolist(), strict=True):
        bar = "#" * math.ceil(WIDTH * n / counts.max())
        span = f"{first:{digits}}"
        if width > 1:
            span += f" to {last:{digits}}"
        lines.append(f"{span} {bar:<{WIDTH}} {n:,}")
    return lines
