"""What libraries raise on damaged files is one line; what our own code raises stays what it is."""

import struct
import tokenize
import zlib

import pytest

from mmtok.errors import UserError, reading

RAISED = [
    ValueError("two\nlines"),
    MemoryError(),
    RecursionError("deep"),
    OverflowError("large"),
    struct.error("short"),
    zlib.error("x"),
    tokenize.TokenError("x", (1, 1)),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    RuntimeError(),
    OSError("cut"),
    OSError(13, "Permission denied", "x"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_a_reader_raises_is_one_line_that_names_the_file(error):
    with pytest.raises(UserError) as caught, reading("a.bin", "numbers"):
        raise error
    assert str(caught.value).startswith("a.bin: cannot be read as numbers (") and "\n" not in str(
        caught.value
    )


@pytest.mark.parametrize(
    "error",
    [UserError("ours"), KeyboardInterrupt(), SystemExit(1)],
    ids=lambda error: type(error).__name__,
)
def test_what_passes(error):
    with pytest.raises(type(error)) as caught, reading("a.bin", "numbers"):
        raise error
    assert caught.value is error
