"""Wrong input from outside is one kind of exception, whose message is the one line that a user
reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 200  # characters of a library's own words


class UserError(ValueError):
    """Wrong input from outside: the message is one line that says what was wrong, where, and what
    to do.

    The command line prints it without a traceback and exits with code 2; every other exception is a
    bug.
    """


def missing_extra(what: str, extra: str) -> UserError:
    """What to raise where packages are not installed that `what` needs: it names the one command
    that brings them.
    """
    return UserError(f"{what} needs the extra: pip install 'mmtok[{extra}]'")


@contextmanager
def reading(name: object, what: str) -> Iterator[None]:
    """Around a library's reader of the file `name`: whatever it raises becomes UserError, "cannot
    be read as {what}".

    Readers of foreign files raise some thirty types, of which several derive from Exception alone
    (zlib.error, struct.error, tokenize.TokenError), and extensions in Rust panic. So all are taken
    here; therefore only the library's calls belong inside: what our own code raises must stay a
    traceback. UserError passes as it is.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        panicked = type(error).__module__ == "pyo3_runtime"
        if not (isinstance(error, Exception) or panicked):
            raise  # Ctrl-C
        raise UserError(f"{name}: cannot be read as {what} ({reason_of(error)})") from None


def reason_of(error: BaseException) -> str:
    """What an exception says, in one short line."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = getattr(error, "strerror", None) or str(error)
    lines = str(said).strip().splitlines() or [type(error).__name__]
    return "".join(letter if letter.isprintable() else "?" for letter in lines[0][:LONGEST])
