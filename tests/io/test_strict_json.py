"""JSON from outside: what is ambiguous, too large or no text gets one line that names file and
field.
"""

import json

import pytest

from mmtok.errors import UserError
from mmtok.io.strict_json import parse_json, read_json

WRONG = {
    "digits": (
        b'{"a": {"b": [0, ' + b"9" * 5000 + b"]}}",
        "a.b.1 is a whole number of 5,000 digits",
    ),
    "large": (b'{"a": 1e999}', "a is a number too large"),
    "nan": (b'{"a": NaN}', "a is NaN"),
    "infinity": (b'{"a": [-Infinity]}', "a.0 is -Infinity"),
    "twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "b.c occurs twice"),
    "surrogate": (b'{"a": "\\ud800"}', "a holds a lone surrogate"),
    "surrogate key": (b'{"\\udfff": 1}', "lone surrogate"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    "deeper than ours": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
    "bom": (b'\xef\xbb\xbf{"a": 1}', "BOM"),
    "bytes": (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    "empty": (b"", "it is empty"),
    "blank": (b" \n", "it is empty"),
    "cut": (b'{"a": 1', "is not valid JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_names_file_and_field(tmp_path, name):
    content, part = WRONG[name]
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    line = str(caught.value)
    assert (
        line.startswith(str(path))
        and part in line
        and len(line.splitlines()) == 1
        and len(line) < 400
    )


def test_all_else_is_as_json_reads_it():
    value = {
        "a": [1, -2.5, 1e300, True, None, "é\U0001f600"],
        "b": {"c": {}, "d": [[]]},
        "e": 2**63 - 1,
    }
    assert (
        parse_json(json.dumps(value), "x") == value == parse_json(json.dumps(value).encode(), "x")
    )


def test_measurements_may_be_no_numbers():
    assert str(parse_json("[NaN, -Infinity]", "x", nan=True)) == "[nan, -inf]"
