"""What RUN/log.jsonl says of a training: a line per window of steps.

    step, loss               the weighted loss that is lowered, a mean over the window like all that
                             follows
    nats                     modality -> nats per frame or end predicted; None where it was absent
    training_loss            modality -> the same of one whose head has no exact likelihood: what
                             its training lowers, no nats
    customary                modality -> the nats in its customary unit, {"bits/byte": 2.1}, ends
                             counted with the frames before them
    gradient_norm, learning_rate
    positions_per_s          positions of the stream, padding not counted
    model_gflop_per_s        the products that the model needs for them
    matrix_share             of the rate at which these machines multiply matrices alone, in the
                             precision that they are fastest in

Before them stands a line without a step, the header: the precision of the products, and where the
training runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from mmtok.core.units import customary
from mmtok.errors import UserError
from mmtok.io.messages import counted
from mmtok.io.serialize import Within, check_known
from mmtok.io.strict_json import parse_json
from mmtok.model.lm import LM
from mmtok.nn.precision import DTYPES, matmul_rate, matmul_rates
from mmtok.nn.weight_decay import matrices

MEASURED = (
    "positions_per_s",
    "model_gflop_per_s",
    "matrix_share",
)  # they differ when the same training is made again
# what a line of the log is held against when it is read; numbers may be NaN, as where a training
# diverged
LINE = {
    "step": Annotated[int, Within(0)], "loss": float, "nats": dict[str, float | None], "training_loss": dict[str, float | None],
    "customary": dict[str, dict[str, float]], "gradient_norm": float, "learning_rate": float,
    **dict.fromkeys(MEASURED, float),
}  # fmt: skip
HEADER = dict.fromkeys(("precision", "asked", "device"), str)
UNTOLD = {
    "loss": math.nan,
    "nats": {},
    "positions_per_s": math.nan,
}  # in the place of what a line does not say
MATRIX_SIZES = {"cpu": 1024, "cuda": 4096}
MATRIX_SECONDS = 0.1


class Gauge:
    """Makes the log's lines from windows of steps, each as `Trainer.update` tells of it, with its
    `seconds`.

    units_per_frame: modality -> how many of its customary unit a frame holds on average (bytes of a
    text piece); 1 unless given.
    """

    def __init__(self, lm: LM, seq_len: int, units_per_frame: Mapping[str, float]):
        self.kinds = {m: lm.kind(m) for m in lm.vocabulary.signatures}
        self.units_per_frame = units_per_frame
        trunk = lm.config.trunk
        # Chowdhery et al. 2022, appendix B
        self.flop_per_position = (
            6 * _n_weights(lm.model.layers) + 12 * trunk.depth * trunk.width * seq_len
        )
        self.flop_per_predicted = {m: 6 * _n_head_weights(lm, m) for m in lm.vocabulary.signatures}

    def line(self, step: int, window: Sequence[Mapping], matrix_flop_per_s: float) -> dict:
        """The line of the log after `step`.

        matrix_flop_per_s: of all processes together, see `matrix_rate`.
        """
        mean = lambda key: sum(w[key] for w in window) / len(window)
        nats, lowered, told = {}, {}, {}
        for m, kind in self.kinds.items():
            total, count = (sum(w["parts"][m][k] for w in window) for k in (0, 1))
            (nats if kind == "exact" else lowered)[m] = total / count if count else None
            n_frames = sum(
                w["frames"][m] for w in window if "frames" in w
            )  # a checkpoint may be older than that count
            if kind == "exact" and n_frames and all("frames" in w for w in window):
                value, unit = customary(m, total, n_frames * self.units_per_frame.get(m, 1.0))
                told[m] = {unit: value}
        seconds = sum(w["seconds"] for w in window)
        flop_per_s = sum(self.flop(w) for w in window) / seconds
        return {
            "step": step, "loss": mean("loss"), "nats": nats, **({"training_loss": lowered} if lowered else {}), "customary": told,
            "gradient_norm": mean("norm"), "learning_rate": window[-1]["rate"],
            "positions_per_s": sum(w["positions"] for w in window) / seconds,
            "model_gflop_per_s": flop_per_s / 1e9, "matrix_share": flop_per_s / matrix_flop_per_s,
        }  # fmt: skip

    def flop(self, step: Mapping) -> float:
        """Of the products that a step's forward and backward pass need, what is computed again not
        counted.

        The trunk's at every position, the ids' and the heads' where something is predicted; a head
        that is asked several times for a frame, as diffusion heads are, counts once, and reading
        frames in does not count.
        """
        return step["positions"] * self.flop_per_position + sum(
            n * self.flop_per_predicted[m] for m, (_, n) in step["parts"].items()
        )


def _n_weights(module: nn.Module) -> int:
    """Numbers in matrices and kernels that something is multiplied with; a table that is looked up
    in is none, nor is what is added.
    """
    return sum(p.numel() for p in matrices(module))


def _n_head_weights(lm: LM, m: str) -> int:
    n_ids = (
        0
        if lm.vocabulary.signatures[m].one_channel and not lm.autoregressive(m)
        else len(lm.vocabulary.span(m)) + 1
    )
    return lm.config.trunk.width * n_ids + (_n_weights(lm.heads[m]) if m in lm.heads else 0)


def matrix_rate(device: torch.device) -> float:
    """FLOP per second of this process's products of square matrices in the precision that it is
    fastest in, whatever it trains in.
    """
    return _matrix_rate(device, torch.get_num_threads())


@lru_cache
def _matrix_rate(device: torch.device, n_threads: int) -> float:
    dtype = DTYPES[matmul_rates(device).best]
    return matmul_rate(device, dtype, MATRIX_SIZES.get(device.type, 1024), MATRIX_SECONDS)


def read_header(path: Path) -> dict:
    """The first line of a log.jsonl: {"precision": "float32", "asked": "auto", "device": "cpu",
    ...}; empty where none is there.
    """
    return _read(path)[0]


def read_log(path: Path) -> list[dict]:
    """The lines of a log.jsonl, one per window of steps; what a crash cut short or damaged is left
    out, with a warning that says how many and why the first.
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
    header, lines, wrong = {}, [], []
    for number, text in enumerate(
        path.read_text(errors="replace").splitlines() if path.exists() else [], 1
    ):
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
            lines.append(line | {key: value for key, value in UNTOLD.items() if key not in line})
    return header, lines, wrong
