"""What scripts/fuzz.py feeds to the package: sound files of every kind, made here, and ways to
damage them.
"""

from __future__ import annotations

import binascii
import gzip
import io
import json
import lzma
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

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
RAW = (  # of JSON: written as they stand
    "9" * 5000, "-1", "0", "1e308", "1e999", "NaN", "-Infinity", "null", "true", '"x"', '"\\ud800"', "[]", "{}", "[[]]", '["x"]', '{"a": 1}',
    "[" * 2000 + "]" * 2000, "0.5", "1000000", "1099511627776", "9223372036854775807", '"../../x"', '"\\u001b[2J"', '""', "[-4]", '{"kind": "x"}',
)  # fmt: skip
SINE = (0.3 * np.sin(np.arange(4000) / 9)).astype(np.float32)
JETS = [np.array([(9.0, 0.1, 0.1), (5.0, 0.0, -0.1), (2.0, 0.2, 0.0)], np.float32)] * 2
SENTINEL = "\u0001raw\u0001"

Dice = np.random.Generator
Change = Callable[[bytes, Dice], bytes]


# ---- ways to damage any bytes


def flipped(data: bytes, dice: Dice) -> bytes:
    """One to eight bits, mostly near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(int(dice.integers(1, 9))):
        changed[_place(data, dice)] ^= 1 << int(dice.integers(8))
    return bytes(changed)


def cut(data: bytes, dice: Dice) -> bytes:
    return data[: int(dice.integers(len(data)))]


def extreme(data: bytes, dice: Dice) -> bytes:
    """A number of 1, 2, 4 or 8 bytes set to an extreme, in either order of bytes."""
    width = int(dice.choice([1, 2, 4, 8]))
    value = EXTREMES[dice.integers(len(EXTREMES))] % 2 ** (8 * width)
    at = _place(data, dice)
    return (
        data[:at]
        + value.to_bytes(width, "big" if dice.random() < 0.5 else "little")
        + data[at + width :]
    )


def moved(data: bytes, dice: Dice) -> bytes:
    """A stretch left out, doubled, or put elsewhere."""
    a, b = sorted(int(x) for x in dice.integers(len(data), size=2))
    at = int(dice.integers(len(data)))
    return [data[:a] + data[b:], data[:b] + data[a:], data[:at] + data[a:b] + data[at:]][
        dice.integers(3)
    ]


def noise(data: bytes, dice: Dice) -> bytes:
    a, b = sorted(int(x) for x in dice.integers(len(data), size=2))
    return data[:a] + dice.bytes(b - a) + data[b:]


def _place(data: bytes, dice: Dice) -> int:
    return int(dice.integers(min(len(data), 512) if dice.random() < 0.7 else len(data)))


ANY: tuple[Change, ...] = (flipped, cut, extreme, moved, noise)


# ---- ways that know the format


def json_changed(data: bytes, dice: Dice) -> bytes:
    """A value replaced, a key left out, given twice or added; or the text as a whole."""
    if dice.random() < 0.15:
        return [b"", b"\xef\xbb\xbf" + data, data.replace(b'"', b'"\xff', 1), b"[" * 100_000, data[: len(data) // 2], data + data,
                b"null", b"[]", b"{}", data.decode().encode("utf-16")][dice.integers(10)]  # fmt: skip
    value = json.loads(data)
    places = list(_places(value))
    node, key = places[dice.integers(len(places))] if places else ([value], 0)
    way = dice.random()
    if way < 0.15 and isinstance(node, dict):
        del node[key]
    elif way < 0.3 and isinstance(node, dict):
        node["surprise" if dice.random() < 0.5 else f"{key} "] = node[key]
    else:
        node[key] = SENTINEL
    text = json.dumps(value)
    raw = RAW[dice.integers(len(RAW))]
    if isinstance(node, dict) and way > 0.9:  # the same key twice
        return text.replace(json.dumps(SENTINEL), f"0, {json.dumps(key)}: {raw}").encode()
    return text.replace(json.dumps(SENTINEL), raw).encode()


def _places(node: object):
    for key, child in (
        list(node.items())
        if isinstance(node, dict)
        else list(enumerate(node))
        if isinstance(node, list)
        else ()
    ):
        yield node, key
        yield from _places(child)


def lines_changed(data: bytes, dice: Dice) -> bytes:
    """One line of JSON lines."""
    lines = data.splitlines()
    i = int(dice.integers(len(lines)))
    lines[i] = json_changed(lines[i], dice)
    return b"\n".join(lines)


def png_changed(data: bytes, dice: Dice) -> bytes:
    """Sizes, depth or colours of a PNG's header, with the right checksum."""
    width, height = (
        int(dice.choice([1, 2**7, 13_000, 2**16, 2**31 - 1, 2**32 - 1, 0])) for _ in range(2)
    )
    kind = struct.pack(">IIBBBBB", width, height, int(dice.choice([1, 2, 4, 8, 16, 3])), int(dice.choice([0, 2, 3, 4, 6, 9])),
                       0, 0, int(dice.integers(2)))  # fmt: skip
    return data[:16] + kind + struct.pack(">I", binascii.crc32(b"IHDR" + kind)) + data[33:]


def npy_changed(data: bytes, dice: Dice) -> bytes:
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
    d, s, f = (some[dice.integers(len(some))] for some in (descr, shape, order))
    header = f"{{'descr': {d}, 'fortran_order': {f}, 'shape': {s}, }}"
    header = (header + " " * (-(len(header) + 11) % 64) + "\n").encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) % 2**16) + header + data[128:]


def npz_changed(data: bytes, dice: Dice) -> bytes:
    """One member of an npz damaged, or grown to a bomb of zeros, and packed again."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        names = old.namelist()
        chosen = names[dice.integers(len(names))]
        for name in names:
            member = old.read(name)
            if name == chosen:
                member = (npy_changed, *ANY, bomb)[dice.integers(7)](member, dice)
            new.writestr(name, member)
    return out.getvalue()


def bomb(data: bytes, dice: Dice) -> bytes:
    """Zeros that pack well, under a header that promises them."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 3), }" % (10 * 2**20)
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(120 * 2**20)


def safetensors_changed(data: bytes, dice: Dice) -> bytes:
    """The JSON at the head of a safetensors file, its length right or wrong."""
    (size,) = struct.unpack("<Q", data[:8])
    head = json_changed(data[8 : 8 + size], dice)
    said = len(head) if dice.random() < 0.8 else EXTREMES[dice.integers(len(EXTREMES))]
    return struct.pack("<Q", said) + head + data[8 + size :]


def idx_changed(data: bytes, dice: Dice) -> bytes:
    """Sizes in the header of MNIST's format."""
    axes = int(dice.choice([0, 1, 3, 200]))
    sizes = [int(dice.choice([0, 1, 3, 2**16, 2**31, 2**32 - 1])) for _ in range(axes)]
    return (
        bytes([0, 0, int(dice.choice([8, 13])), axes])
        + struct.pack(f">{axes}I", *sizes)
        + data[16:]
    )


def packed_idx(data: bytes, dice: Dice) -> bytes:
    """A packed file, damaged inside or a bomb."""
    return _packed(data, dice, idx_changed)


def packed_table(data: bytes, dice: Dice) -> bytes:
    """A packed table, likewise."""
    return _packed(data, dice, table_changed)


def _packed(data: bytes, dice: Dice, changed: Callable[[bytes, Dice], bytes]) -> bytes:
    plain = gzip.decompress(data)
    inside = [
        changed(plain, dice),
        plain + bytes(300 * 2**20) if dice.random() < 0.05 else plain,
        *(way(plain, dice) for way in ANY),
    ]
    return gzip.compress(inside[dice.integers(len(inside))], 1)


def table_changed(data: bytes, dice: Dice) -> bytes:
    """Quotes, separators, nulls and long cells in a table of text."""
    what = [
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
    at = int(dice.integers(len(data)))
    return data[:at] + what[dice.integers(len(what))] + data[at:]


def flac_changed(data: bytes, dice: Dice) -> bytes:
    """The rate, channels, depth and number of samples that a FLAC stream declares."""
    bits = int.from_bytes(data[18:26], "big")
    n = int(dice.choice([0, 1, 2**20, 2**31, 2**36 - 1]))
    rate = int(dice.choice([0, 1, 8000, 44_100, 655_350, 2**20 - 1]))
    bits = (
        (rate << 44) | (int(dice.integers(8)) << 41) | (int(dice.integers(32)) << 36) | n
        if dice.random() < 0.5
        else (bits >> 36 << 36) | n
    )
    return data[:18] + bits.to_bytes(8, "big") + data[26:]


def wav_changed(data: bytes, dice: Dice) -> bytes:
    """Codec, channels, rate, depth and sizes of a WAV's header."""
    codec, channels, rate = (
        int(dice.choice([1, 3, 6, 7, 17, 0xFFFE, 2])),
        int(dice.choice([0, 1, 2, 1024, 65_535])),
        int(dice.choice([0, 1, 44_099, 22_254, 16_000, 2**31 - 1, 2**32 - 1])),
    )
    depth, size = (
        int(dice.choice([0, 1, 8, 16, 24, 32, 64, 65_535])),
        int(dice.choice([0, 2, len(data), 2**31, 2**32 - 1])),
    )
    return (
        data[:20]
        + struct.pack("<HHIIHH", codec, channels, rate, 2**16, 4, depth)
        + data[36:40]
        + struct.pack("<I", size)
        + data[44:]
    )


def xz(data: bytes) -> bytes:
    return lzma.compress(data)


# ---- Parquet: written again with other contents


def parquet_changed(data: bytes, dice: Dice) -> bytes:
    """A token file or table whose metadata, info or columns are others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data))
    metadata = dict(table.schema.metadata or {})
    names = [name for name in table.column_names if name.endswith(".info")]
    way = dice.random()
    if b"mmtok" in metadata and way < 0.35:
        table = table.replace_schema_metadata({b"mmtok": json_changed(metadata[b"mmtok"], dice)})
    elif names and way < 0.75:
        name = names[dice.integers(len(names))]
        old = next((x for x in table[name].to_pylist() if x), '{"a": 1}')
        new = (
            json_changed(old.encode(), dice)
            .decode("utf-8", "surrogateescape")
            .encode("utf-8", "replace")
            .decode()
        )
        table = table.set_column(
            table.column_names.index(name), name, pa.array([new] * len(table), pa.string())
        )
    else:
        i = int(dice.integers(table.num_columns))
        others = [pa.array([1.5] * len(table)), pa.array(["x"] * len(table)), pa.nulls(len(table)), pa.array([[1, None]] * len(table)),
                  pa.array([[[1.0]]] * len(table)), pa.array([[2.0**40]] * len(table)), pa.array([{"a": 1}] * len(table))]  # fmt: skip
        name = table.column_names[i] if dice.random() < 0.8 else "other"
        table = table.set_column(i, name, others[dice.integers(len(others))])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def h5_changed(data: bytes, dice: Dice) -> bytes:
    """A JetNet file with other sizes and types; datasets without contents may be of any size."""
    import h5py

    shapes = [(2, 3, 4), (2**20, 2**20, 4), (2, 3), (), (0, 3, 4), (2, 3, 3), (2**40,)]
    kinds = ["f4", "f8", "i8", h5py.string_dtype(), "c8", np.dtype([("a", "f4")])]
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name in ("particle_features", "jet_features"):
            shape, kind = shapes[dice.integers(len(shapes))], kinds[dice.integers(len(kinds))]
            if dice.random() < 0.1:
                file.create_group(name)
            elif dice.random() < 0.9:
                big = len(shape) > 0 and np.prod(shape, dtype=float) > 1e6
                file.create_dataset(
                    name, shape, kind, chunks=tuple(min(n, 64) for n in shape) if big else None
                )
    return out.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def written(path: Path, content: bytes) -> Path:
    """A file with this content."""
    path.write_bytes(content)
    return path
