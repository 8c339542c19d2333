"""The log of a training, RUN/log.jsonl: a header, then a line per window of steps.

    step               steps done at the end of the window
    loss               the weighted loss, a mean over the window like all that follows
    nats               modality -> nats per predicted frame or end mark; None where it was absent
    training_loss      modality -> the same for heads without an exact likelihood, and for all
                       behind mixture-of-depths: their training loss, which is no likelihood
    customary          modality -> the nats in its customary unit, {"bits/byte": 2.1}; end marks
                       count to the frames before them
    gradient_norm      before clipping
    learning_rate      of the window's last step
    positions_per_s    positions of the stream, without padding
    model_gflop_per_s  of the matrix products that the model needs for them
    matrix_share       model_gflop_per_s over the rate of plain matrix products on these machines,
                       in their fastest precision

The header has no step. It says the precision of the products, and what the training runs on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from mmtok.core.units import customary
from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.io.serialize import Within, check_known
from mmtok.io.strict_json import parse_json
from mmtok.model.lm import LM
from mmtok.model.origin import Origin
from mmtok.nn.precision import DTYPES, matmul_rate, matmul_rates
from mmtok.nn.transformer import Block, RoutedBlock
from mmtok.nn.weight_decay import matrices

# fields that differ when the same training is run again
MEASURED = ("positions_per_s", "model_gflop_per_s", "matrix_share")
# The fields of a line and their types. Numbers may be NaN, as where a training diverged.
LINE = {
    "step": Annotated[int, Within(0)],
    "loss": float,
    "nats": dict[str, float | None],
    "training_loss": dict[str, float | None],
    "customary": dict[str, dict[str, float]],
    "gradient_norm": float,
    "learning_rate": float,
    **dict.fromkeys(MEASURED, float),
}
HEADER = {**dict.fromkeys(("precision", "asked", "device"), str), "start": Origin}
# of fields that a line lacks
DEFAULTS: dict[str, Any] = {"loss": math.nan, "nats": {}, "positions_per_s": math.nan}
MATRIX_SIZES = {"cpu": 1024, "cuda": 4096}
MATRIX_SECONDS = 0.1


class Gauge:
    """Makes lines of the log from windows of steps.

    A step is what `Trainer.update` returns, with its `seconds`.

    units_per_frame: modality -> how many of its customary unit a frame holds on average (bytes of a
    text piece); 1 by default.
    """

    def __init__(self, lm: LM, seq_len: int, units_per_frame: Mapping[str, float]):
        self.kinds = {m: lm.loss_kind(m) for m in lm.vocabulary.signatures}
        self.units_per_frame = units_per_frame
        trunk = lm.config.trunk
        # Chowdhery et al. 2022, appendix B
        attention = 12 * trunk.depth * trunk.width * seq_len
        self.flop_per_position = sum(map(_block_flop, lm.model.blocks())) + attention
        self.flop_per_predicted = {m: _head_flop(lm, m) for m in lm.vocabulary.signatures}

    def line(self, step: int, window: Sequence[Mapping], matrix_flop_per_s: float) -> dict:
        """The line of the log after `step`.

        matrix_flop_per_s: the sum of `matrix_rate` over the processes.
        """
        nats: dict[str, float | None] = {}
        training_loss: dict[str, float | None] = {}
        in_units: dict[str, dict[str, float]] = {}
        # steps in a checkpoint of an earlier version have no count of frames
        has_frames = all("frames" in w for w in window)
        for m, kind in self.kinds.items():
            total = sum(w["parts"][m][0] for w in window)
            count = sum(w["parts"][m][1] for w in window)
            losses = nats if kind == "exact" else training_loss
            losses[m] = total / count if count else None
            if kind != "exact" or not has_frames:
                continue
            n_frames = sum(w["frames"][m] for w in window)
            if n_frames:
                value, unit = customary(m, total, n_frames * self.units_per_frame.get(m, 1.0))
                in_units[m] = {unit: value}
        seconds = sum(w["seconds"] for w in window)
        flop_per_s = sum(self.flop(w) for w in window) / seconds
        line: dict[str, Any] = {"step": step, "loss": _mean(window, "loss"), "nats": nats}
        if training_loss:
            line["training_loss"] = training_loss
        return line | {
            "customary": in_units,
            "gradient_norm": _mean(window, "norm"),
            "learning_rate": window[-1]["rate"],
            "positions_per_s": sum(w["positions"] for w in window) / seconds,
            "model_gflop_per_s": flop_per_s / 1e9,
            "matrix_share": flop_per_s / matrix_flop_per_s,
        }

    def flop(self, step: Mapping) -> float:
        """FLOP of the matrix products that a step's forward and backward pass need.

        The trunk counts at every position, ids and heads where something is predicted. A head that
        runs several times per frame, as diffusion heads do, counts once. Embedding of frames, and
        activations that are computed again, do not count.
        """
        predicted = sum(n * self.flop_per_predicted[m] for m, (_, n) in step["parts"].items())
        return step["positions"] * self.flop_per_position + predicted


def _mean(window: Sequence[Mapping], key: str) -> float:
    return sum(w[key] for w in window) / len(window)


def _flop(module: nn.Module) -> int:
    """FLOP per position of the products with matrices and kernels, forward and backward.

    A frozen one has no gradient of its own, so it takes two products, not three. Embeddings and
    biases do not count.
    """
    return sum(_flop_per_number(p) * p.numel() for p in matrices(module))


def _block_flop(block: Block) -> float:
    """FLOP of a block per position of a row: of one of mixture-of-depths for its share of them."""
    if isinstance(block, RoutedBlock):
        return block.capacity * _flop(block)
    return _flop(block)


def _flop_per_number(p: Tensor) -> int:
    if p.requires_grad:
        return 6
    return 4


def _head_flop(lm: LM, m: str) -> int:
    n_ids = len(lm.vocabulary.span(m)) + 1
    if lm.vocabulary.signatures[m].one_channel and not lm.autoregressive(m):
        n_ids = 0
    flop = _flop_per_number(lm.id_weight) * lm.config.trunk.width * n_ids
    if m in lm.heads:
        flop += _flop(lm.heads[m])
    return flop


def matrix_rate(device: torch.device) -> float:
    """FLOP per second of products of square matrices in this process.

    In the device's fastest precision, whatever it trains in.
    """
    return _matrix_rate(device, torch.get_num_threads())


@lru_cache
def _matrix_rate(device: torch.device, n_threads: int) -> float:
    dtype = DTYPES[matmul_rates(device).best]
    return matmul_rate(device, dtype, MATRIX_SIZES.get(device.type, 1024), MATRIX_SECONDS)


def read_header(path: Path) -> dict:
    """The header of a log.jsonl, {"precision": "float32", "asked": "auto", ...}; {} without one."""
    return _read(path)[0]


def read_log(path: Path) -> list[dict]:
    """The lines of a log.jsonl, one per window of steps.

    Lines that a crash cut short or damaged are left out, with one warning.
    """
    _, lines, wrong = _read(path)
    if wrong:
        warnings.warn(
            f"{path}: left out {counted(len(wrong), 'damaged line')}, the first: {wrong[0]}",
            stacklevel=2,
        )
    return lines


def _read(path: Path) -> tuple[dict, list[dict], list[str]]:
    """The header, the lines of steps, and what is wrong with those left out."""
    header: dict = {}
    lines: list[dict] = []
    wrong: list[str] = []
    if not path.exists():
        return header, lines, wrong
    for number, text in enumerate(path.read_text(errors="replace").splitlines(), 1):
        where = f"line {number}"
        try:
            line = parse_json(text, where, nan=True)
            if number == 1 and isinstance(line, dict) and "step" not in line:
                check_known(line, HEADER, where)
                header = line
                continue
            check_known(line, LINE, where, ("step",))
        except UserError as error:
            wrong.append(str(error))
        else:
            lines.append(line | {key: value for key, value in DEFAULTS.items() if key not in line})
    return header, lines, wrong
