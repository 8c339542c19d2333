"""Laws of the stream: the same values as Python's own reader, wherever the pieces end."""

import gzip
import json

import pytest

from mmtok.errors import UserError
from mmtok.io import compressed, json_stream
from mmtok.io.json_stream import stream_json, stream_list

VALUE = {
    "info": {"year": 2017, "a": [1, 2, [3]]},
    "n": 123456,
    "images": [{"id": i, "file_name": f"{i:012}.jpg", "größe": 1.5e-3} for i in range(20)],
    "none": [],
    "annotations": [1, -2.5, 'a "quoted" text ]}', None, True],
}


def collected(path):
    found = {}
    for key, value in stream_json(path):
        if isinstance(VALUE[key], list):
            found.setdefault(key, []).append(value)
        else:
            found[key] = value
    return found


@pytest.mark.parametrize("piece", [1, 7, 100, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces_give_the_whole(tmp_path, monkeypatch, piece, indent):
    monkeypatch.setattr(json_stream, "PIECE", piece)
    monkeypatch.setattr(compressed, "BLOCK", piece)
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(VALUE, indent=indent).encode())
    assert collected(path) | {"none": []} == VALUE


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "expected {, found the end"),
        ("[1]", r"expected {, found \["),
        ('{"a": [1, 2', "expected , or ], found the end"),
        ('{"a": [{"b": 1, ', "not JSON at character 7"),
        ('{"a" 1}', "expected :, found 1"),
        ('{"a": 1} x', "something follows"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=f"a.json: not JSON at character .*{said}|{said}"):
        list(stream_json(tmp_path / "a.json"))
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="a.json: not UTF-8"):
        list(stream_json(tmp_path / "a.json"))


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_places_of_elements_are_their_bytes(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(json_stream, "PIECE", piece)
    monkeypatch.setattr(compressed, "BLOCK", piece)
    values = [{"größe": i, "b": ["€"] * i} for i in range(9)] + [12345, "ü", None]
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(values, indent=1, ensure_ascii=False).encode())
    content = path.read_bytes()
    elements = list(stream_list(path))
    assert [json.loads(content[e.first :][: e.n_bytes]) for e in elements] == values
    assert [e.value for e in elements] == values
    zipped = tmp_path / "a.json.gz"
    zipped.write_bytes(gzip.compress(content))
    assert list(stream_list(zipped)) == elements
    for i, j in [(0, 3), (3, 4), (4, 12)]:
        last = elements[j].first if j < len(elements) else None
        assert list(stream_list(zipped, elements[i].first * bool(i), last)) == elements[i:j]


@pytest.mark.parametrize(
    "text, said",
    [
        ("{}", "holds no list in JSON; lines of JSON, one each, are read as .jsonl"),
        ("[1, 2", "expected , or ], found the end"),
        ("[1, ", "not JSON at character 4"),
        ("[1]\n[2]", "something follows the list"),
    ],
)
def test_faults_of_lists(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=said):
        list(stream_list(tmp_path / "a.json"))


def test_numbers_may_stay_text(tmp_path):
    (tmp_path / "a.json").write_text('[1.10, {"a": [7e0]}]')
    assert [e.value for e in stream_list(tmp_path / "a.json", numbers_as_text=True)] == [
        "1.10",
        {"a": ["7e0"]},
    ]


def test_a_key_that_comes_twice_is_refused_at_once(tmp_path, monkeypatch):
    """JSON's own reader would keep the last one; nor is the rest of the file read for it."""
    monkeypatch.setattr(json_stream, "PIECE", 64)
    monkeypatch.setattr(compressed, "BLOCK", 64)
    path = tmp_path / "t.json"
    path.write_text('{"images": [{"id": 1, "id": 2}, ' + '{"id": 3}, ' * 1000 + '{"id": 4}]}')
    with pytest.raises(UserError, match="not JSON at character 12: the key id comes twice"):
        list(stream_json(path))
