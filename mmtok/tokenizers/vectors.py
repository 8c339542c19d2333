"""Vectors of quantities, to be read and to be predicted: one frame of D standardised numbers.

A number with an unknown of its own (a neutrino's momentum, a parameter of a simulation) is a vector
of size 1. `Regression` and the diffusion heads predict them; log p is in the caller's unit. A
number that is only read is better a `NumberConfig`, whose Fourier features resolve more.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from mmtok.core.segment import MOST_CHANNELS, Segment, Signature
from mmtok.errors import UserError, reading
from mmtok.io.files import atomic_write, read_tensors, write_tensors
from mmtok.io.messages import counted, shown
from mmtok.io.numbers import as_number
from mmtok.io.signal_files import SignalFiles
from mmtok.tokenizers import MODALITIES
from mmtok.tokenizers.base import (
    BatchTokenizer,
    TokenizerConfig,
    checked_latents,
    fingerprint,
    load_config,
    write_config,
)

MOST_COUNT = 400_000  # log(1 + n) in float32 gives larger ones back wrong
LEARNED = "standard.safetensors"


@dataclass(frozen=True)
class VectorConfig(TokenizerConfig):
    """A vector of quantities; the modality's name is the recipe's own.

    tokenizers={"theta": VectorConfig(size=3, unit="GeV")}. `fit` learns what standardises each
    quantity: its mean and standard deviation over training examples.

    Attributes:
        size: quantities of a vector.
        unit: of the quantities, for people; "" where they have none.
        counts: they are counts, 0 to 400,000: kept as log(1 + n), and predicted by
            `Regression(Poisson())` or `NegativeBinomial()` with a probability, not a density.
        one_unit: all are divided by one number, their root mean square, and nothing is subtracted,
            so that latents are the quantities in another unit and sums and masses of them are those
            of the quantities (`Regression.laws`).
        modality: set by the recipe.
    """

    learns: ClassVar[bool] = True

    size: int = 1
    unit: str = ""
    counts: bool = False
    one_unit: bool = False
    modality: str = "vector"  # type: ignore[misc]  # of every recipe its own

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MOST_CHANNELS:
            raise UserError(
                f"VectorConfig: size is {self.size}; it must be 1 to {MOST_CHANNELS}, the"
                " quantities of a vector"
            )
        if self.counts and self.one_unit:
            raise UserError("VectorConfig: counts have no unit; leave out one_unit")

    @property
    def settings(self) -> dict[str, Any]:
        """Its fields as files and fingerprints have them: these do not change by what is unused."""
        fields = asdict(self)
        if not self.one_unit:
            del fields["one_unit"]
        return fields

    def named(self, modality: str) -> Self:
        """The same settings under a recipe's name.

        Raises UserError for the name of another kind of signal.
        """
        if modality in MODALITIES:
            raise UserError(
                f"tokenizers.{modality} is a VectorConfig, but {modality} is no vector; name it by"
                " the quantities, such as momentum"
            )
        return replace(self, modality=modality)

    def signature(self) -> Signature:
        """Without the scales and the fingerprint, which are of what was learned."""
        return Signature(self.modality, latent_size=self.size, frames=1, counts=self.counts)

    def signal_files(self) -> SignalFiles:
        """Tables of text without a header, such as samples.theta.csv: a vector on each line."""
        suffix = f".{self.modality.lower()}.csv"
        return SignalFiles((suffix,), suffix, read_vectors, write_vectors, True, "vectors")

    def fit(self, signals: Sequence[Any]) -> Vector:
        """Learn mean and standard deviation of each quantity, or their unit; of counts nothing.

        Raises UserError for no vectors, and for what is no vector of this size.
        """
        if not len(signals):
            raise UserError(f"{self.modality}: no vectors to learn from; give at least one")
        rows = np.stack([as_vector(signal, self) for signal in signals])
        mean = np.zeros(self.size)
        scale = np.ones(self.size)
        if self.one_unit:
            scale *= np.sqrt(np.square(rows).mean()) or 1.0
        elif not self.counts:
            mean = rows.mean(0)
            scale = rows.std(0)
            constant = np.flatnonzero(scale <= 1e-12 * np.abs(mean))
            scale[constant] = 1
            if len(constant):
                warnings.warn(
                    f"{self.modality}: {len(constant)} of its {self.size} numbers never change;"
                    f" the first is number {constant[0]} (from 0), always {mean[constant[0]]:g}",
                    stacklevel=2,
                )
        return Vector(self, mean, scale)

    def load(self, folder: Path) -> Vector:
        """Open the tokenizer that was saved in `folder`."""
        return Vector.load(folder)

    def rate_texts(self, signature: Signature, fidelity: Mapping[str, float]) -> list[str]:
        """What they are, with their unit."""
        unit = f" in {self.unit}" if self.unit else ""
        if self.counts:
            return [f"{counted(self.size, 'count')}{unit}"]
        return [f"{counted(self.size, 'number')}{unit}"]


def as_vector(signal: Any, config: VectorConfig) -> np.ndarray:
    """A number, a sequence of numbers, or a text of them ("0.5,-1") as (D,) float64.

    Raises UserError for another count of numbers, what is no finite number, and what is no count.
    """
    m = config.modality
    parts: Sequence[Any]
    if isinstance(signal, str):
        parts = re.split(r"\s*[,;]\s*|\s+", signal.strip())
    elif isinstance(signal, (list, tuple, np.ndarray)) and np.ndim(signal):
        parts = list(np.ravel(signal)) if isinstance(signal, np.ndarray) else signal
    else:
        parts = [signal]
    if len(parts) != config.size:
        raise UserError(
            f"{m}: {shown(signal)} is {counted(len(parts), 'number')}, but a vector of {m} has"
            f" {config.size} (tokenizers.{m}.size)"
        )
    row = np.array([as_number(part, m) for part in parts], np.float64)
    if config.counts:
        wrong = (row != row.round()) | (row < 0) | (row > MOST_COUNT)
        if wrong.any():
            raise UserError(
                f"{m}: {row[np.argmax(wrong)]:g} is no count; they are whole numbers from 0 to"
                f" {MOST_COUNT}, or set tokenizers.{m}.counts to false"
            )
    return row


def read_vectors(path: Path, takes: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a file, a vector each; commas, semicolons or white space part its numbers.

    Raises UserError for an empty line.
    """
    with reading(path, "vectors"):
        lines = path.read_text("utf-8-sig").splitlines()
    for k, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"{path}: line {k} is empty; write a vector on each line")
        yield line


def write_vectors(path: Path, vectors: Sequence[np.ndarray], takes: Mapping[str, Any]) -> None:
    """Write one vector per line, each number so that it is read as the same."""
    lines = [",".join(repr(float(x)) for x in np.ravel(vector)) + "\n" for vector in vectors]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), "utf-8")


class Vector(BatchTokenizer):
    """(D,) numbers <-> latents (1, D): (y - mean) / scale, or log(1 + n) of counts.

    The round trip's error is that of float32, 6e-8 of |y - mean|; of counts 0.
    """

    config_type = VectorConfig

    def __init__(self, config: VectorConfig, mean: np.ndarray, scale: np.ndarray) -> None:
        super().__init__(config)
        self.mean = mean
        self.scale = scale
        scales: tuple[float, ...] = ()
        if not config.counts:
            scales = tuple(scale.tolist())
        self.signature = replace(
            config.signature(),
            scales=scales,
            fingerprint=fingerprint("Vector", config.settings, mean.tobytes(), scale.tobytes()),
        )

    def encode_batch(self, signals: Sequence[Any]) -> list[Segment]:
        """See `as_vector` for what a signal may be, and for what is refused."""
        c = self.config
        rows = [as_vector(signal, c) for signal in signals]
        if c.counts:
            latents = [np.log1p(row) for row in rows]
        else:
            latents = [(row - self.mean) / self.scale for row in rows]
        return [Segment(c.modality, latents=row[None].astype(np.float32)) for row in latents]

    def decode_batch(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """(D,) float64 each, in the caller's unit.

        Raises UserError for other frames.
        """
        rows = [checked_latents(s, self.signature)[0].astype(np.float64) for s in segments]
        if self.config.counts:
            return [np.expm1(row).round().clip(0) for row in rows]
        return [row * self.scale + self.mean for row in rows]

    def fidelity(self, signals: Sequence[Any]) -> dict[str, float]:
        """The largest error of the round trip, in standard deviations (of counts in counts)."""
        if not len(signals):
            return {}
        back = np.stack(self.decode_batch(self.encode_batch(signals)))
        rows = np.stack([as_vector(signal, self.config) for signal in signals])
        return {"max_error": float((np.abs(back - rows) / self.scale).max())}

    def save(self, folder: Path) -> None:
        """Write the config and what was learned."""
        import torch

        learned = {"mean": torch.from_numpy(self.mean), "scale": torch.from_numpy(self.scale)}
        write_tensors(Path(folder) / LEARNED, learned)
        write_config(Path(folder), "Vector", self.config.settings)

    @classmethod
    def load(cls, folder: Path) -> Vector:
        """Open what `save` wrote.

        Raises UserError when the numbers are missing, broken, of another size or no scales.
        """
        config = load_config(folder, "Vector", VectorConfig)
        path = Path(folder) / LEARNED
        tensors = read_tensors(path)
        found = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        shapes = {name: array.shape for name, array in found.items()}
        if shapes != dict.fromkeys(("mean", "scale"), (config.size,)):
            raise UserError(f"{path}: holds no mean and scale of {config.size} quantities")
        if not (np.isfinite(found["mean"]).all() and (found["scale"] > 0).all()):
            raise UserError(f"{path}: its mean or scale cannot be; fit the tokenizer again")
        return cls(config, found["mean"], found["scale"])
