"""Calls of `datasets`, which are kept quiet, and do not wait for a hub that cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtok.errors import UserError, reason_of
from mmtok.io.tally import Tally

PROBE_S = 5.0  # after which the hub counts as out of reach


@contextmanager
def calling(datasets: Any, of_hub: bool) -> Iterator[None]:
    """Around calls of `datasets`: without its log lines, whose errors are raised too.

    A hub that does not answer is not asked again and again; what is stored here is used.

    of_hub: whether the table is of the hub.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    loggers = (datasets.logging, hub_logging)
    levels = [logger.get_verbosity() for logger in loggers]
    settings: list[tuple[Any, bool]] = [(constants, constants.HF_HUB_OFFLINE)]
    settings.append((datasets.config, datasets.config.HF_HUB_OFFLINE))
    for logger in loggers:
        logger.set_verbosity(logger.CRITICAL)
    try:
        if of_hub and not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):
            for module, _ in settings:
                module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in settings:
            module.HF_HUB_OFFLINE = value
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)


def _answers(endpoint: str) -> bool:
    """Whether a hub answers at all, whatever it says; proxies and certificates are the hub's."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=PROBE_S)
    except Exception:  # of requests or of httpx, by the version of huggingface_hub
        return False
    return True


def filled_parquet(files: Sequence[Path]) -> list[Path]:
    """The Parquet files that have rows; others are counted.

    Raises UserError for a file that is none, and where none has rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_rows: dict[Path, int] = {}
    for path in files:
        if not path.stat().st_size:
            raise UserError(f"{path}: the file is empty; copy or make it again")
        try:
            n_rows[path] = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"{path}: not a Parquet file that can be read ({reason_of(error).rstrip('.')});"
                " copy or make it again"
            ) from None
    if not any(n_rows.values()):
        raise UserError(f"{files[0]}: the table has no rows")
    with Tally("files") as tally:
        tally.count(len(files))
        for path in files:
            if not n_rows[path]:
                tally.add("left out: they have no rows", path)
    return [path for path in files if n_rows[path]]
