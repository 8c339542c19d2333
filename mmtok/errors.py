"""Wrong input from outside is one kind of exception, whose message is what a user reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MOST_CHARS = 200  # of another library's message


class UserError(ValueError):
    """Wrong input from outside.

    The message is one line that says what was wrong, where, and what to do. The command line prints
    it without a traceback and exits with code 2; every other exception is a bug.
    """


def check_ranges(settings: object, **ranges: tuple[float, float]) -> None:
    """Raise UserError for a field that is not within (least, most), both included."""
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            kind = type(settings).__name__
            raise UserError(f"{kind}: {name} is {value}; it must be from {least:,} to {most:,}")


def missing_extra(what: str, extra: str) -> UserError:
    """The error to raise where `what` needs packages of an extra that is not installed."""
    return UserError(f"{what} needs the extra: pip install 'mmtok[{extra}]'")


@contextmanager
def reading(name: object, what: str) -> Iterator[None]:
    """Turn whatever a library's reader raises for the file `name` into UserError.

    Its message is "cannot be read as {what}". Readers of foreign files raise some thirty types, of
    which several derive from Exception alone (zlib.error, struct.error, tokenize.TokenError), and
    extensions in Rust panic: all are caught. So only calls of the library belong inside; a bug of
    this package must stay a traceback. UserError passes as it is.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        is_panic = type(error).__module__ == "pyo3_runtime"
        if not (isinstance(error, Exception) or is_panic):
            raise  # Ctrl-C
        raise UserError(f"{name}: cannot be read as {what} ({reason_of(error)})") from None


def reason_of(error: BaseException) -> str:
    """The message of an exception, in one short line."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = getattr(error, "strerror", None) or str(error)
    lines = str(said).strip().splitlines() or [type(error).__name__]
    return "".join(c if c.isprintable() else "?" for c in lines[0][:MOST_CHARS])
