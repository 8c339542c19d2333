"""Tests of mmtok.io.parquet_groups: row groups that are encoded apart are one sound file."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtok.io.parquet_groups import GroupWriter, encoded_group

SCHEMA = pa.schema(
    [
        ("frames", pa.list_(pa.list_(pa.uint8(), 3))),
        ("info", pa.string()),
        ("maker", pa.dictionary(pa.int32(), pa.string())),
        ("latents", pa.list_(pa.float32())),
        ("whole", pa.bool_()),
        *((f"more {i}", pa.int64()) for i in range(12)),  # a list of 15 or more has a longer head
    ],
    metadata={"about": "these"},
)


def random_table(n, seed):
    generator = np.random.default_rng(seed)
    rows = [
        {
            "frames": generator.integers(0, 256, (generator.integers(0, 9), 3)).tolist(),
            "info": None if i % 5 == 0 else f"{{é {i}}}",
            "maker": "ab"[i % 2],
            "latents": None if i % 3 == 0 else generator.normal(size=i % 4).tolist(),
            "whole": bool(i % 2),
            **{f"more {k}": i * k for k in range(12)},
        }
        for i in range(n)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def joined(tables, metadata=()):
    file = io.BytesIO()
    writer = GroupWriter(file, SCHEMA)
    for table in tables:
        writer.append(encoded_group(table))
    writer.close(dict(metadata))
    return file.getvalue()


@pytest.mark.parametrize("sizes", [(), (7,), (1, 300, 2), (3,) * 40])
def test_joined_groups_are_the_tables_one_after_the_other(sizes):
    tables = [random_table(n, seed) for seed, n in enumerate(sizes)]
    file = pq.ParquetFile(io.BytesIO(joined(tables)), page_checksum_verification=True)
    assert file.read().equals(pa.concat_tables([SCHEMA.empty_table(), *tables]))
    assert file.metadata.num_rows == sum(sizes)
    for g, table in enumerate(tables):
        assert file.read_row_group(g).equals(table)
        assert file.metadata.row_group(g).num_rows == len(table)
        assert file.metadata.row_group(g).column(1).statistics is not None


def test_a_group_joined_alone_has_the_bytes_that_arrow_writes():
    content = encoded_group(random_table(50, 0))
    file = io.BytesIO()
    writer = GroupWriter(file, SCHEMA)
    writer.append(content)
    writer.close({})
    assert file.getvalue() == content


def test_metadata_join_those_of_the_schema():
    file = joined([random_table(3, 0)], {"part": '{"é": 1}', "empty": ""})
    found = pq.read_metadata(io.BytesIO(file)).metadata
    assert found[b"about"] == b"these"
    assert found[b"part"] == '{"é": 1}'.encode()
    assert found[b"empty"] == b""


def test_another_reader_finds_the_same(tmp_path):
    dataset = pytest.importorskip("pyarrow.dataset")
    tables = [random_table(n, n) for n in (5, 9)]
    path = tmp_path / "t.parquet"
    path.write_bytes(joined(tables))
    whole = dataset.dataset(path).to_table(filter=dataset.field("more 1") >= 4)
    assert whole.column("more 1").to_pylist() == [4, 4, 5, 6, 7, 8]
