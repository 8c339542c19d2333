"""Trains a run's decoder: loader and trainer from the recipe, the log, the saved model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch

from mmtok.data.loader import Loader, Mixture
from mmtok.data.tokens import TokenFile
from mmtok.io.files import atomic_write, digest, write_text
from mmtok.io.messages import counted
from mmtok.io.progress import Progress, span_text
from mmtok.io.tensor_stream import TensorStream, stream_order
from mmtok.io.terminal import print_status
from mmtok.model.lm import LM
from mmtok.nn.sharded import full_tensor
from mmtok.run.run import Run
from mmtok.run.staged import StagedLoader
from mmtok.train.checkpoint import planned_steps
from mmtok.train.config import TrainConfig
from mmtok.train.distributed import SINGLE_PROCESS, Processes
from mmtok.train.log import read_log
from mmtok.train.schedule import schedule_text
from mmtok.train.trainer import Trainer

ESTIMATE_AFTER = 10  # steps after which the duration of a training is estimated
N_COUNTED = 200  # segments of a field whose customary units are counted

Listener = Callable[[dict], None]  # takes a line of the log


def train_decoder(
    run: Run,
    lm: LM,
    processes: Processes,
    open_board: Callable[[], Listener | None],
    initialise: Callable[[], None] | None,
    staged: StagedLoader | None = None,
) -> dict[str, torch.Tensor]:
    """Train from the newest checkpoint or from the start; return the weights to keep.

    Args:
        run: its tokens are written.
        lm: the decoder, untrained or with the weights that the recipe starts from.
        processes: that share the training.
        open_board: called once on rank 0; the log's lines go to what it returns, too.
        initialise: gives it these values, where it has none yet; see `Trainer`.
        staged: gives the batches where the tokens are not all written when training begins.
    """
    config = run.recipe.train
    progress = Progress("train", config.steps, "steps")
    log = _Log(run.folder / "log.jsonl", progress)
    trainer = _trainer(run, lm, processes, log.add, initialise, staged)
    resumed = trainer.resume()
    if staged is not None:
        _take_stages(run, trainer, staged, log)

    def begin() -> None:
        """Say what is trained, and start the log."""
        if resumed:
            print_status(f"resuming at step {trainer.step}")
        if len(trainer.planned) > 1:
            print_status(schedule_text(config, trainer.planned))
        log.begin(trainer.header() | stages_header(staged), trainer.step)
        log.board = open_board()
        print_status(_training_text(trainer, lm, config, processes))

    processes.on_rank0(begin)
    if processes.is_rank0:
        first = trainer.step
        progress.done = first
        with progress:
            trainer.run(lambda step: _count_step(progress, first, config))
    else:
        trainer.run()
    return trainer.weights()


def _take_stages(run: Run, trainer: Trainer, staged: StagedLoader, log: _Log) -> None:
    """Open the stage that training goes on in; follow the stages after it."""

    def on_stage(files: Sequence[TokenFile]) -> None:
        trainer.gauge.units_per_frame = _units_per_frame(run, files)
        if trainer.processes.is_rank0:
            log.begin(trainer.header() | stages_header(staged), trainer.step)

    staged.on_stage.append(on_stage)
    if trainer.step < trainer.config.steps:
        staged.prepare(trainer.step)


class _Log:
    """The log of a training: its lines go to a file, to stderr and, where there is one, to a board.

    Attributes:
        board: is called with every line, too.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path = path
        self.progress = progress
        self.board: Listener | None = None

    def begin(self, header: dict, step: int) -> None:
        """Write the file anew: the header, and the lines that it has up to this step."""
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in [header, *kept]))

    def add(self, line: dict) -> None:
        """Add a line everywhere."""
        _append(self.path, line)
        _print_line(line, self.progress.left)
        if self.board is not None:
            self.board(line)


def _trainer(
    run: Run,
    lm: LM,
    processes: Processes,
    log: Listener,
    initialise: Callable[[], None] | None,
    staged: StagedLoader | None,
) -> Trainer:
    """The trainer of a run's decoder, with the loader of its token files, or with `staged`."""
    folder = run.folder / "checkpoints"
    config = run.recipe.train
    if staged is not None:
        return Trainer(lm, staged, config, folder, log, processes, initialise=initialise)
    files = _token_files(run, processes)
    units = _units_per_frame(run, files)
    loader = loader_of(run, files)
    return Trainer(lm, loader, config, folder, log, processes, units, initialise)


def loader_of(run: Run, files: Sequence[TokenFile]) -> Loader:
    """The loader of a run's tasks from its token files.

    Raises UserError for examples that do not fit.
    """
    recipe = run.recipe
    config = recipe.train
    return Loader(
        files,
        recipe.learned,
        run.vocabulary,
        recipe.input_masking,
        config.batch_size,
        config.seq_len,
        config.seed,
        Mixture(recipe.weights_of_sources(), config.source_temperature),
    )


def stages_header(staged: StagedLoader | None) -> dict:
    """What the log's first line says of stages; nothing where there are none."""
    if staged is None:
        return {}
    return staged.header()


def _training_text(trainer: Trainer, lm: LM, config: TrainConfig, processes: Processes) -> str:
    n_parameters = sum(p.numel() for p in lm.parameters())
    n_learning = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    size = f"{n_parameters / 1e6:.2f}"
    if n_learning < n_parameters:
        size = f"{n_learning / 1e6:.2g} of {size}"
    text = (
        f"training {size} M parameters in {trainer.precision},"
        f" {counted(config.steps, 'step')} of {config.batch_size} x {config.seq_len} positions"
    )
    if processes.world_size > 1:
        how = "sharded over" if trainer.sharded else "shared by"
        text += f", {how} {processes.world_size} processes"
    return text


def _count_step(progress: Progress, first: int, config: TrainConfig) -> None:
    """Count a step; ESTIMATE_AFTER steps from `first` on, say how long the training will take."""
    progress.advance()
    seconds_per_step = progress.pace.seconds
    is_last = progress.done >= config.steps
    if progress.done - first != ESTIMATE_AFTER or is_last or seconds_per_step is None:
        return
    if first:
        n = config.steps - progress.done
        what = f"the {n:,} steps that are left"
    else:
        n = config.steps
        what = f"{n:,} steps"
    text = f"about {span_text(seconds_per_step * n)} for {what} at {seconds_per_step:.2g} s a step"
    if config.checkpoint_every < config.steps:
        text += f"; checkpoints every {config.checkpoint_every}"
    print_status(text)


def _token_files(run: Run, processes: Processes) -> Sequence[TokenFile]:
    """The run's token files.

    Rank 0 opens them first, as it writes the maps that all ranks share. It alone warns if these
    cannot be written.
    """
    files = processes.on_rank0(run.token_files)
    if files is None:
        with warnings.catch_warnings(action="ignore"):
            files = run.token_files()
    return files


def _units_per_frame(run: Run, files: Sequence[TokenFile]) -> dict[str, float]:
    """Modality -> customary units (bytes of a text, particles of a jet) per predicted frame.

    Counted on segments spread evenly over the token files, so a resumed training has the same.
    """
    predicted = {field for task in run.recipe.tasks for field in task.predicted}
    n_units: dict[str, int] = {}
    n_frames: dict[str, int] = {}
    for file in files:
        for field in predicted.intersection(file.fields):
            having = np.flatnonzero(file.has(field))
            places = np.linspace(0, len(having) - 1, min(len(having), N_COUNTED)).astype(int)
            for i in having[places]:
                for segment, is_predicted in file.segments(field, int(i)):
                    if is_predicted:
                        m = segment.modality
                        n_units[m] = n_units.get(m, 0) + run.tokenizers[m].n_units(segment)
                        n_frames[m] = n_frames.get(m, 0) + len(segment)
    return {m: n_units[m] / n_frames[m] for m in n_units if n_units[m]}


def _append(path: Path, line: dict) -> None:
    """Add a line to the log."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _print_line(line: dict, left: str) -> None:
    """Print a line of the log; `left` says how long the training will take yet, or nothing."""
    text = f"step {line['step']}: loss {line['loss']:.4f}"
    for name, key in (("nats", "nats"), ("training loss", "training_loss")):
        figures = [f"{m} {x:.3f}" for m, x in line.get(key, {}).items() if x is not None]
        if figures:
            text += f", {name} {' '.join(figures)}"
    text += f", {line['positions_per_s']:.0f} positions/s"
    if left:
        text += f", {left}"
    print_status(text)


def save_model(
    run: Run, weights: Mapping[str, torch.Tensor], processes: Processes = SINGLE_PROCESS
) -> None:
    """Write model.safetensors and config.json; all processes must call it.

    Sharded weights are gathered one at a time. config.json has the file's SHA-256, and a model type
    of its own, so that no loader for another type drops the heads silently.
    """
    with ExitStack() as stack:

        def begin() -> tuple[Path, TensorStream]:
            path = stack.enter_context(atomic_write(run.folder / "model.safetensors"))
            file = stack.enter_context(closing(TensorStream(path, weights)))
            return path, file

        # nothing on other ranks, which call neither of the two functions
        begun = cast(tuple[Path, TensorStream], processes.on_rank0(begin))
        for name in stream_order(weights):
            x = full_tensor(weights[name])
            processes.on_rank0(partial(_write_next, begun, x))
        processes.on_rank0(partial(_end_model, run, begun))


def _write_next(begun: tuple[Path, TensorStream], x: torch.Tensor) -> None:
    begun[1].write(x)


def _end_model(run: Run, begun: tuple[Path, TensorStream]) -> None:
    """Close model.safetensors, which has no name yet, and describe it in config.json."""
    path, file = begun
    file.close()
    config = {
        "model_type": "mmtok",
        "vocabulary": run.vocabulary.fingerprint,
        "recipe": "recipe.json",
        "sha256": digest(path),
        "planned": planned_steps(run.folder / "checkpoints"),
    }
    write_text(run.folder / "config.json", json.dumps(config, indent=1))
