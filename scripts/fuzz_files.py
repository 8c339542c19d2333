"""Ways to damage files, for scripts/fuzz.py.

Each takes a file's bytes and a random generator, and returns other bytes.
"""

from __future__ import annotations

import binascii
import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
JSON_VALUES = (  # written as they are
    "9" * 5000,
    "-1",
    "0",
    "1e308",
    "1e999",
    "NaN",
    "-Infinity",
    "null",
    "true",
    '"x"',
    '"\\ud800"',
    "[]",
    "{}",
    "[[]]",
    '["x"]',
    '{"a": 1}',
    "[" * 2000 + "]" * 2000,
    "0.5",
    "1000000",
    "1099511627776",
    "9223372036854775807",
    '"../../x"',
    '"\\u001b[2J"',
    '""',
    "[-4]",
    '{"kind": "x"}',
)
SINE = (0.3 * np.sin(np.arange(4000) / 9)).astype(np.float32)
JETS = [np.array([(9.0, 0.1, 0.1), (5.0, 0.0, -0.1), (2.0, 0.2, 0.0)], np.float32)] * 2
SENTINEL = "\u0001raw\u0001"

Generator = np.random.Generator
Change = Callable[[bytes, Generator], bytes]
T = TypeVar("T")


def choice(values: Sequence[T], generator: Generator) -> T:
    """One of the values, as it is: numpy's own choice would make arrays of them."""
    return values[generator.integers(len(values))]


# ---- ways to damage any bytes


def flipped(data: bytes, generator: Generator) -> bytes:
    """One to eight bits flipped, mostly near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 9))):
        changed[_place(data, generator)] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def cut(data: bytes, generator: Generator) -> bytes:
    """The file up to anywhere."""
    return data[: int(generator.integers(len(data)))]


def extreme(data: bytes, generator: Generator) -> bytes:
    """A number of 1, 2, 4 or 8 bytes set to an extreme, in either order of bytes."""
    width = int(generator.choice([1, 2, 4, 8]))
    value = choice(EXTREMES, generator) % 2 ** (8 * width)
    order = "big" if generator.random() < 0.5 else "little"
    at = _place(data, generator)
    return data[:at] + value.to_bytes(width, order) + data[at + width :]


def moved(data: bytes, generator: Generator) -> bytes:
    """A stretch left out, doubled, or put elsewhere."""
    a, b = sorted(int(x) for x in generator.integers(len(data), size=2))
    at = int(generator.integers(len(data)))
    changed = (data[:a] + data[b:], data[:b] + data[a:], data[:at] + data[a:b] + data[at:])
    return choice(changed, generator)


def noise(data: bytes, generator: Generator) -> bytes:
    """A stretch of random bytes in the place of another."""
    a, b = sorted(int(x) for x in generator.integers(len(data), size=2))
    return data[:a] + generator.bytes(b - a) + data[b:]


def _place(data: bytes, generator: Generator) -> int:
    most = len(data)
    if generator.random() < 0.7:
        most = min(most, 512)
    return int(generator.integers(most))


ANY: tuple[Change, ...] = (flipped, cut, extreme, moved, noise)


# ---- ways that know the format


def json_changed(data: bytes, generator: Generator) -> bytes:
    """A value replaced, a key left out, doubled or added; or the text as a whole."""
    if generator.random() < 0.15:
        texts = (
            b"",
            b"\xef\xbb\xbf" + data,
            data.replace(b'"', b'"\xff', 1),
            b"[" * 100_000,
            data[: len(data) // 2],
            data + data,
            b"null",
            b"[]",
            b"{}",
            data.decode().encode("utf-16"),
        )
        return choice(texts, generator)
    value = json.loads(data)
    places = list(_places(value))
    node, key = choice(places, generator) if places else ([value], 0)
    way = generator.random()
    if way < 0.15 and isinstance(node, dict):
        del node[key]
    elif way < 0.3 and isinstance(node, dict):
        other = "surprise" if generator.random() < 0.5 else f"{key} "
        node[other] = node[key]
    else:
        node[key] = SENTINEL
    text = json.dumps(value)
    raw = choice(JSON_VALUES, generator)
    if isinstance(node, dict) and way > 0.9:  # the same key twice
        return text.replace(json.dumps(SENTINEL), f"0, {json.dumps(key)}: {raw}").encode()
    return text.replace(json.dumps(SENTINEL), raw).encode()


def _places(node: object) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) in a JSON value."""
    children: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, list):
        children = list(enumerate(node))
    for key, child in children:
        yield node, key
        yield from _places(child)


def lines_changed(data: bytes, generator: Generator) -> bytes:
    """One line of JSON lines changed."""
    lines = data.splitlines()
    i = int(generator.integers(len(lines)))
    lines[i] = json_changed(lines[i], generator)
    return b"\n".join(lines)


def png_changed(data: bytes, generator: Generator) -> bytes:
    """Sizes, depth or colours of a PNG's header, with the right checksum."""
    sizes = [1, 2**7, 13_000, 2**16, 2**31 - 1, 2**32 - 1, 0]
    width, height = (int(generator.choice(sizes)) for _ in range(2))
    depth = int(generator.choice([1, 2, 4, 8, 16, 3]))
    colours = int(generator.choice([0, 2, 3, 4, 6, 9]))
    interlaced = int(generator.integers(2))
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)
    checksum = struct.pack(">I", binascii.crc32(b"IHDR" + header))
    return data[:16] + header + checksum + data[33:]


def npy_changed(data: bytes, generator: Generator) -> bytes:
    """An npy header's words."""
    descr = [
        "'<f4'",
        "'>f8'",
        "'|O'",
        "'<U9'",
        "'|V0'",
        "'<f4",
        "[('a', '<f4')]",
        "'<M8[s]'",
        "9",
        "'" + "9" * 5000 + "'",
    ]
    shape = [
        "(2, 3, 3)",
        "(1099511627776, 3)",
        "(2, 3, 1000000)",
        "(-1, 3)",
        "(" + "9" * 5000 + ",)",
        "()",
        "(2.5, 3)",
        "((((",
        "(0, 3)",
    ]
    order = ["False", "True", "None", "1"]
    d, s, f = (choice(some, generator) for some in (descr, shape, order))
    header = f"{{'descr': {d}, 'fortran_order': {f}, 'shape': {s}, }}"
    header = (header + " " * (-(len(header) + 11) % 64) + "\n").encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) % 2**16) + header + data[128:]


def npz_changed(data: bytes, generator: Generator) -> bytes:
    """One member of an npz damaged, or grown to a bomb of zeros, and packed again."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        names = old.namelist()
        chosen = choice(names, generator)
        for name in names:
            member = old.read(name)
            if name == chosen:
                member = choice((npy_changed, *ANY, bomb), generator)(member, generator)
            new.writestr(name, member)
    return out.getvalue()


def bomb(data: bytes, generator: Generator) -> bytes:
    """Zeros that pack well, under a header that promises them."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 3), }" % (10 * 2**20)
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(120 * 2**20)


def safetensors_changed(data: bytes, generator: Generator) -> bytes:
    """The JSON at the head of a safetensors file, its length right or wrong."""
    (size,) = struct.unpack("<Q", data[:8])
    head = json_changed(data[8 : 8 + size], generator)
    declared = len(head)
    if generator.random() >= 0.8:
        declared = choice(EXTREMES, generator)
    return struct.pack("<Q", declared) + head + data[8 + size :]


def idx_changed(data: bytes, generator: Generator) -> bytes:
    """Sizes in the header of MNIST's format."""
    axes = int(generator.choice([0, 1, 3, 200]))
    sizes = [int(generator.choice([0, 1, 3, 2**16, 2**31, 2**32 - 1])) for _ in range(axes)]
    kind = int(generator.choice([8, 13]))
    return bytes([0, 0, kind, axes]) + struct.pack(f">{axes}I", *sizes) + data[16:]


def packed_idx(data: bytes, generator: Generator) -> bytes:
    """A gzip file of MNIST's format, damaged inside or a bomb."""
    return _packed(data, generator, idx_changed)


def packed_table(data: bytes, generator: Generator) -> bytes:
    """A gzip file of a table, damaged inside or a bomb."""
    return _packed(data, generator, table_changed)


def _packed(data: bytes, generator: Generator, changed: Change) -> bytes:
    plain = gzip.decompress(data)
    longer = plain
    if generator.random() < 0.05:
        longer = plain + bytes(300 * 2**20)
    inside = [changed(plain, generator), longer, *(way(plain, generator) for way in ANY)]
    return gzip.compress(choice(inside, generator), 1)


def table_changed(data: bytes, generator: Generator) -> bytes:
    """Quotes, separators, nulls and long cells in a table of text."""
    insertions = [
        b'"',
        b",",
        b"\t",
        b"\0",
        b"\r",
        b"\n",
        b"x" * 200_000,
        b"\xff",
        b"\xef\xbb\xbf",
        b"''",
        b"a,b,c,d\n",
    ]
    at = int(generator.integers(len(data)))
    return data[:at] + choice(insertions, generator) + data[at:]


def flac_changed(data: bytes, generator: Generator) -> bytes:
    """The rate, channels, depth and number of samples that a FLAC stream declares."""
    bits = int.from_bytes(data[18:26], "big")
    n = int(generator.choice([0, 1, 2**20, 2**31, 2**36 - 1]))
    rate = int(generator.choice([0, 1, 8000, 44_100, 655_350, 2**20 - 1]))
    bits = bits >> 36 << 36 | n
    if generator.random() < 0.5:
        channels = int(generator.integers(8))
        depth = int(generator.integers(32))
        bits = rate << 44 | channels << 41 | depth << 36 | n
    return data[:18] + bits.to_bytes(8, "big") + data[26:]


def wav_changed(data: bytes, generator: Generator) -> bytes:
    """Codec, channels, rate, depth and sizes of a WAV's header."""
    codec = int(generator.choice([1, 3, 6, 7, 17, 0xFFFE, 2]))
    channels = int(generator.choice([0, 1, 2, 1024, 65_535]))
    rate = int(generator.choice([0, 1, 44_099, 22_254, 16_000, 2**31 - 1, 2**32 - 1]))
    depth = int(generator.choice([0, 1, 8, 16, 24, 32, 64, 65_535]))
    size = int(generator.choice([0, 2, len(data), 2**31, 2**32 - 1]))
    header = struct.pack("<HHIIHH", codec, channels, rate, 2**16, 4, depth)
    return data[:20] + header + data[36:40] + struct.pack("<I", size) + data[44:]


# ---- Parquet: written again with other contents


def parquet_changed(data: bytes, generator: Generator) -> bytes:
    """A token file or table whose metadata, info or columns are others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data))
    metadata = dict(table.schema.metadata or {})
    names = [name for name in table.column_names if name.endswith(".info")]
    way = generator.random()
    if b"mmtok" in metadata and way < 0.35:
        table = table.replace_schema_metadata(
            {b"mmtok": json_changed(metadata[b"mmtok"], generator)}
        )
    elif names and way < 0.75:
        name = choice(names, generator)
        old = next((x for x in table[name].to_pylist() if x), '{"a": 1}')
        new = json_changed(old.encode(), generator).decode("utf-8", "surrogateescape")
        new = new.encode("utf-8", "replace").decode()
        column = pa.array([new] * len(table), pa.string())
        table = table.set_column(table.column_names.index(name), name, column)
    else:
        i = int(generator.integers(table.num_columns))
        values = (1.5, "x", None, [1, None], [[1.0]], [2.0**40], {"a": 1})
        column = pa.array([choice(values, generator)] * len(table))
        name = table.column_names[i] if generator.random() < 0.8 else "other"
        table = table.set_column(i, name, column)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def h5_changed(data: bytes, generator: Generator) -> bytes:
    """A JetNet file with other sizes and types; datasets without contents may be of any size."""
    import h5py

    shapes = [(2, 3, 4), (2**20, 2**20, 4), (2, 3), (), (0, 3, 4), (2, 3, 3), (2**40,)]
    kinds = ["f4", "f8", "i8", h5py.string_dtype(), "c8", np.dtype([("a", "f4")])]
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name in ("particle_features", "jet_features"):
            shape = choice(shapes, generator)
            kind = choice(kinds, generator)
            if generator.random() < 0.1:
                file.create_group(name)
            elif generator.random() < 0.9:
                chunks = None
                if len(shape) > 0 and np.prod(shape, dtype=float) > 1e6:
                    chunks = tuple(min(n, 64) for n in shape)
                file.create_dataset(name, shape, kind, chunks=chunks)
    return out.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files by their paths in a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def written(path: Path, content: bytes) -> Path:
    """Writes a file, and returns its path."""
    path.write_bytes(content)
    return path
