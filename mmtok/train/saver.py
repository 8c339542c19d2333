"""Writes a training's checkpoints; those of several processes beside the training."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import cast

from torch import Tensor

from mmtok.train.checkpoint import Checkpoint, save_checkpoint
from mmtok.train.distributed import Processes
from mmtok.train.shards import to_write


class Saver:
    """Writes checkpoints into `folder`, one after the other.

    Several processes copy what each will write into main memory, and write that in a thread
    while they train on. A checkpoint counts once it is complete; one at a time is written. A single
    process writes before it goes on.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder
        self.processes = processes
        self.pending: Future[Path] | None = None

    def start(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, or begin to; all processes must call it.

        The one before it is completed first. Raises what went wrong with that.
        """
        self.wait()
        if self.processes.world_size == 1:
            save_checkpoint(self.folder, checkpoint)
            return
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        stager = DefaultStager(StagingOptions(False, False, False, False))
        tensors = to_write(checkpoint.tensors, self.processes)
        staged = cast(dict[str, dict[str, Tensor]], stager.stage(tensors))
        names = {stem: list(named) for stem, named in checkpoint.tensors.items()}
        copied = Checkpoint(staged, deepcopy(checkpoint.state), names)
        thread = ThreadPoolExecutor(1, "checkpoint")
        background = self.processes.in_background()
        self.pending = thread.submit(save_checkpoint, self.folder, copied, processes=background)
        thread.shutdown(wait=False)

    def __enter__(self) -> None:
        """Begin a training."""

    def __exit__(self, raised: object, *_: object) -> None:
        """Complete the last checkpoint; what ended the training matters more than its error."""
        try:
            self.wait()
        except BaseException:
            if raised is None:
                raise

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; raises what went wrong with it."""
        if self.pending is not None:
            pending = self.pending
            self.pending = None
            pending.result()
