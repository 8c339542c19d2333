"""The parts of a set of token files, made by a Ray cluster: a task a part.

Tasks write their files themselves, so all machines must see the folder, and the files that are
read, under the same paths. The files are those that one process would write.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mmtok.data.encoder import Encoder, Job
from mmtok.data.parts import part_path
from mmtok.data.tokenise import Monitor, PartSet, write_part
from mmtok.errors import UserError, missing_extra
from mmtok.io.progress import Progress

PLACE = re.compile(r"(ray://)?(?P<host>[^:/]+):(?P<port>\d{1,5})")
ANSWER_S = 10.0  # a cluster answers within
AHEAD = 2  # tasks that wait, for each that a core is at


def write_on_ray(
    parts: PartSet, progress: Progress, address: str = "", share: tuple[int, int] = (0, 1)
) -> None:
    """Make the parts that do not stand, one core a part.

    Args:
        parts: the set.
        progress: counts rows.
        address: of the cluster; "" is that of RAY_ADDRESS, or else one of this machine.
        share: (i, n), only every n-th part from part i on.

    Raises:
        UserError: as `PartSet.write`; also where there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise missing_extra("--ray", "ray") from None
    began = not ray.is_initialized()
    if began:
        _connect(ray, address)
    try:
        _write(ray, parts, progress, share)
    finally:
        if began:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Join a cluster, or start one on this machine.

    Raises UserError at once where nobody answers: Ray itself tries for minutes, and then exits.
    """
    place = PLACE.fullmatch(address)
    try:
        if place:
            socket.create_connection((place["host"], int(place["port"])), ANSWER_S).close()
        ray.init(address or None, log_to_driver=False, include_dashboard=False)
    except (OSError, RuntimeError, ValueError, SystemExit) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--ray {address}: no cluster can be reached there ({reason})") from None


def _write(ray: Any, parts: PartSet, progress: Progress, share: tuple[int, int]) -> None:
    n_cores = int(ray.cluster_resources().get("CPU", 1))
    encoder = ray.put(parts.encoder)
    make = ray.remote(num_cpus=1, max_retries=2)(_make_part)
    monitor = parts.monitor(progress)
    waiting: list[Any] = []

    def take_in(tasks: list[Any], most: int) -> list[Any]:
        """Wait until at most so many tasks are left, and return these."""
        while len(tasks) > most:
            ended, tasks = ray.wait(tasks)
            for plain in ray.get(ended):
                monitor.add_chunk(plain)
                monitor.add_part(plain)
        return tasks

    try:
        for k, jobs in groupby(parts.jobs(progress, share), key=_part_of):
            waiting = take_in(waiting, AHEAD * n_cores)
            path = part_path(parts.folder.absolute(), k)
            waiting.append(make.remote(encoder, path, parts.key, k, list(jobs)))
        take_in(waiting, 0)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    parts.end(monitor, share)


def _part_of(job: Job) -> int:
    return job.part


def _make_part(
    encoder: Encoder, path: Path, key: str, k: int, jobs: Sequence[Job]
) -> dict[str, Any]:
    """Write one part; the work of a task. Returns what was counted."""
    monitor = Monitor(encoder.counts(), None, Progress("", quiet=True))
    with monitor.progress:
        return write_part(path, key, k, encoder, map(encoder, jobs), monitor)
