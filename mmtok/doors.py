"""Where files come in: what a library's reader raises on a damaged one becomes one line that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmtok.segment import BadInput

LONGEST = 200  # characters of a library's own words


@contextmanager
def reading(name: object, what: str) -> Iterator[None]:
    """Around a library's reader of the file `name`: whatever it raises becomes BadInput, "cannot be read as {what}".

    Readers of foreign files raise some thirty types, of which several derive from Exception alone (zlib.error, struct.error,
    tokenize.TokenError), and extensions in Rust panic. So all are taken here; therefore only the library's calls belong inside:
    what our own code raises must stay a traceback. BadInput passes as it is.
    """
    try:
        yield
    except BadInput:
        raise
    except BaseException as error:
        panicked = type(error).__module__ == "pyo3_runtime"
        if not (isinstance(error, Exception) or panicked):
            raise  # Ctrl-C
        raise BadInput(f"{name}: cannot be read as {what} ({reason_of(error)})") from None


def reason_of(error: BaseException) -> str:
    """What an exception says, in one short line."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = getattr(error, "strerror", None) or str(error)
    lines = str(said).strip().splitlines() or [type(error).__name__]
    return "".join(letter if letter.isprintable() else "?" for letter in lines[0][:LONGEST])
