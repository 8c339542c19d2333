"""Sizes in headers are not believed: a small file that declares a large content gets one line, at
once, before there is memory for it.
"""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from mmtok.cli import main
from mmtok.core.segment import Segment
from mmtok.data.tokens import write_tokens
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.tables import read_table
from mmtok.tokenizers import default

FEW = 50 * 10**6  # bytes that a refusal may take


def npy_header(shape, descr="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def picture(path):
    Image.new("1", (13_000, 13_000)).save(path)


def array(path):
    path.write_bytes(npy_header((2**40, 3)) + bytes(100))


def packed(path):
    """A bomb: 150 MB of zeros in 150 kB."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("values.npy", "w") as member,
    ):
        member.write(npy_header((150, 10**6 // 12, 3)) + bytes(150 * 10**6))


def empty_table(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("particle_features", (2**20, 2**20, 4), chunks=(1, 64, 4))
        file.create_dataset("jet_features", (2**20, 4), chunks=(64, 4))


def silence(path):
    soundfile.write(path, np.zeros(4000, np.float32), 16_000)
    data = bytearray(path.read_bytes())
    data[21] |= 15  # of 36 bits
    data[22:26] = b"\xff" * 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "modality, name, make, parts",
    [
        (
            "image",
            "a.png",
            picture,
            (
                (
                    "picture: 13,000 x 13,000 pixels would take 4.06 GB of memory, and 200 MB are"
                    " allowed (--max-memory)"
                ),
            ),
        ),
        ("jets", "a.npy", array, ("its header promises 13.2 TB, and 100 bytes are there",)),
        ("jets", "a.npz", packed, ("would take 300 MB",)),
        ("jets", "a.h5", empty_table, ("1,024 jets of its particle_features would take 172 GB",)),
        (
            "speech",
            "a.flac",
            silence,
            ("a sound of 68,719,476,735 samples in 1 channels would take 1.65 TB",),
        ),
    ],
)
def test_a_declared_size_is_refused_before_it_is_allocated(
    tmp_path, said, modality, name, make, parts
):
    make(tmp_path / name)
    tracemalloc.start()
    line = said(
        [
            "tokenize",
            modality,
            tmp_path / name,
            "-o",
            tmp_path / "t.parquet",
            "--max-memory",
            "200MB",
        ]
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(tmp_path / name) in line and all(part in line for part in parts) and peak < FEW
    assert not (tmp_path / "t.parquet").exists()


INFOS = {
    '{"height": 1000000, "width": 1000000}': (
        "a picture of 1000000 x 1000000 x 1 values would take 24 TB"
    ),
    '{"height": -4, "width": 3}': "info.height is -4; it must be at least 1",
    '{"n_samples": NaN}': "n_samples is NaN",
    '{"height": "4", "width": 3}': "info.height must be int, got '4'",
    '{"height": 4, "height": 4}': "height occurs twice",
    "[3]": "info must be an object",
    '{"a": [1]}': "info.a must be a single value",
}


@pytest.mark.parametrize("info", INFOS)
def test_what_decoding_is_told_is_checked(tmp_path, said, info, monkeypatch):
    tokenizer = default("image")
    path = tmp_path / "t.parquet"
    monkeypatch.setattr(
        "mmtok.data.tokens.json.dumps",
        lambda value, **more: info if value == {"x": 1} else json.JSONEncoder(**more).encode(value),
    )
    write_tokens(
        path,
        {"image": tokenizer.signature},
        [{"image": Segment("image", codes=np.zeros((4, 1), int), info={"x": 1})}],
    )
    line = said(["detokenize", path, "-o", tmp_path / "out", "--max-memory", "1GB"])
    assert str(path) in line and "'image'" in line and INFOS[info] in line


@pytest.mark.parametrize("levels", [["x"], [-1], [2**40], [], "x", [1.5], [True]])
def test_levels_in_a_token_files_metadata(tmp_path, said, levels, monkeypatch):
    tokenizer = default("image")
    path = tmp_path / "t.parquet"
    write_tokens(path, {"image": tokenizer.signature}, [])
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"mmtok"])
    about["fields"]["image"]["levels"] = levels
    pq.write_table(table.replace_schema_metadata({"mmtok": json.dumps(about)}), path)
    line = said(["show", path])
    assert f"{path}: its mmtok metadata: " in line and "image" in line and "levels" in line


def test_a_tokenizer_in_anothers_place(tiny_copy, said):
    speech = tiny_copy / "tokenizers" / "speech"
    text = tiny_copy / "tokenizers" / "text"
    (speech / "tokenizer.json").write_bytes((text / "tokenizer.json").read_bytes())
    line = said(["show", tiny_copy])
    assert f"{speech}/tokenizer.json describes a 'Bytes' tokenizer, expected 'DMel'" in line
    assert "put back what was fitted there" in line


def test_what_is_no_size(tmp_path, said):
    assert "--max-memory is 'many'; give a size such as 8GB" in said(
        ["tokenize", "text", "a.txt", "-o", tmp_path / "t", "--max-memory", "many"]
    )


def test_within_the_budget_all_is_as_ever(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    assert (
        main(
            [
                "tokenize",
                "image",
                str(tmp_path / "a.png"),
                "-o",
                str(tmp_path / "t.parquet"),
                "--max-memory",
                "1MB",
            ]
        )
        == 0
    )


def slow(path):
    """At 16 kHz it takes sixteen times as much."""
    soundfile.write(path, np.zeros(10**6, np.int16), 1000)


def test_sound_is_held_against_the_budget_at_the_rate_that_it_gets(tmp_path, said):
    slow(tmp_path / "a.flac")
    line = said(
        [
            "tokenize",
            "speech",
            tmp_path / "a.flac",
            "-o",
            tmp_path / "t.parquet",
            "--max-memory",
            "100MB",
        ]
    )
    assert (
        f"{tmp_path / 'a.flac'}: " in line
        and "16,000,000 samples at 16,000 Hz would take 256 MB of memory" in line
    )


def many_words(path):
    """300 MB of words in a few kB."""
    words = pa.DictionaryArray.from_arrays(np.zeros(3 * 10**5, np.int32), ["x" * 1000])
    pq.write_table(pa.table({"caption": words}), path)


def many_nulls(path):
    pq.write_table(pa.table({"caption": pa.nulls(10**7, pa.string())}), path)


def large(path):
    with path.open("wb") as file:
        file.write(b"caption\nx\n")
        file.truncate(2**40)  # a sparse file


def many_cells(path):
    path.write_text("caption,\n" + ",\n" * 2 * 10**5)


@pytest.mark.parametrize(
    "name, make, part",
    [
        ("a.parquet", many_words, "its 300,000 rows would take"),
        ("b.parquet", many_nulls, "its 10,000,000 rows would take"),
        ("a.csv", large, "would take 6.6 TB"),
        ("a.jsonl", large, "would take 6.6 TB"),
        ("b.csv", many_cells, "its 400,002 cells would take"),
    ],
)
def test_tables_are_held_against_the_budget(tmp_path, name, make, part):
    make(tmp_path / name)
    memory_budget.set_limit("20MB")
    tracemalloc.start()
    with pytest.raises(UserError, match=part) as caught:
        read_table(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    memory_budget.set_limit(None)
    assert str(tmp_path / name) in str(caught.value) and peak < FEW
