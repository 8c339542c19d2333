"""Laws of token files: what is read is what was written, and nothing unsound is read at all."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.core.segment import Segment, Signature
from mmtok.data.tokens import groups, is_tokens, read_tokens, write_tokens
from mmtok.errors import UserError
from mmtok.io.parquet_groups import GroupWriter

SIGNATURES = {
    "caption": Signature("text", (256,), fingerprint="text-a"),
    "speech": Signature("speech", (16,) * 80, fingerprint="speech-a"),
    "image": Signature("image", (17,), frames=4, fingerprint="image-a"),
    "jet": Signature("jets", (43, 300, 33), fingerprint="jets-a", descending=True),
    "voice": Signature("voice", latent_size=5, fingerprint="voice-a"),
}


def random_segment(signature, rng, frames=None):
    T = signature.frames or (rng.integers(0, 9) if frames is None else frames)
    more = {
        "info": {"n_samples": np.int64(rng.integers(100)), "name": "é\n", "gain": 0.5},
        "truncated": bool(rng.integers(2)) and signature.frames is None,
    }
    if signature.modality in ("text", "voice") and T and rng.integers(2):
        more["predict"] = rng.random(T) < 0.5
    if signature.latent_size:
        latents = rng.normal(size=(T, signature.latent_size)).astype(np.float32)
        return Segment(signature.modality, latents=latents, **more)
    codes = rng.integers(0, signature.levels, size=(T, len(signature.levels)))
    return Segment(signature.modality, codes=codes, **more)


def random_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {name: random_segment(s, rng) for name, s in SIGNATURES.items() if rng.random() < 0.7}
        for _ in range(n)
    ]


def same(a, b):
    if (a.predict is None) != (b.predict is None) or not np.array_equal(a.asked, b.asked):
        return False
    values_equal = np.array_equal(a.values, b.values) and a.values.shape == b.values.shape
    return values_equal and (a.modality, a.truncated, dict(a.info)) == (
        b.modality,
        b.truncated,
        dict(b.info),
    )


def write_one(path, field, codes, **changes):
    signature = SIGNATURES[field]
    return write_tokens(
        path,
        {field: signature},
        [{field: Segment(signature.modality, codes=np.array(codes), **changes)}],
    )


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 30), row_group=st.integers(1, 7), seed=st.integers(0, 1000))
def test_reading_inverts_writing(tmp_path_factory, n, row_group, seed):
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    rows = random_rows(n, seed)
    assert write_tokens(path, SIGNATURES, iter(rows), row_group) == n
    file = read_tokens(path, SIGNATURES)
    assert len(file) == n and file.fields == tuple(SIGNATURES) and file.signatures == SIGNATURES
    for i, row in enumerate(rows):
        back = file.row(i)
        assert set(back) == set(row)
        assert all(same(row[name], back[name]) for name in row)
    for name in SIGNATURES:
        assert file.lengths(name).tolist() == [len(row[name]) if name in row else 0 for row in rows]
        assert file.has(name).tolist() == [name in row for row in rows]


def test_masks_that_do_not_fit_their_frames_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_one(path, "caption", [[1], [2], [3]], predict=np.array([True, False, True]))
    table = pq.read_table(path)
    at = table.schema.names.index("caption.predict")
    for mask in ([True, False], [True, None, True]):
        column = pa.array([mask], pa.list_(pa.bool_()))
        pq.write_table(table.set_column(at, table.schema.field(at), column), path)
        with pytest.raises(UserError, match="masks that do not fit its frames"):
            read_tokens(path)
    pq.write_table(table.drop_columns("caption.predict"), path)
    assert read_tokens(path).segment("caption", 0).predict is None
    pq.write_table(table.set_column(at, "caption.predict", pa.array(["yes"])), path)
    with pytest.raises(UserError, match="'caption.predict' holds string"):
        read_tokens(path)


def test_segments_can_be_computed_with_without_wrapping(tmp_path):
    write_one(tmp_path / "t.parquet", "speech", np.full((3, 80), 15))
    codes = read_tokens(tmp_path / "t.parquet").segment("speech", 0).codes
    assert ((codes + 250) == 265).all()


def test_a_missing_field_and_a_missing_row_are_said(tmp_path):
    path = tmp_path / "t.parquet"
    write_tokens(path, SIGNATURES, [{}])
    file = read_tokens(path)
    assert file.row(0) == {}
    with pytest.raises(KeyError):
        file.segment("caption", 0)
    with pytest.raises(IndexError):
        file.segment("caption", 1)


def test_anyone_can_read_them_with_pyarrow_alone(tmp_path):
    """The format of the module's docstring, seen from outside."""
    path = tmp_path / "t.parquet"
    rows = random_rows(50)
    write_tokens(path, SIGNATURES, rows)
    table = pq.read_table(path)
    assert table.schema.field("caption").type == pa.list_(pa.int32())
    assert table.schema.field("speech").type == pa.list_(pa.list_(pa.uint8(), 80))
    assert table.schema.field("jet").type == pa.list_(pa.list_(pa.uint16(), 3))
    assert table.schema.field("voice").type == pa.list_(pa.list_(pa.float32(), 5))
    i = next(i for i, row in enumerate(rows) if "speech" in row)
    assert np.array_equal(
        np.array(table["speech"][i].as_py()).reshape(-1, 80), rows[i]["speech"].codes
    )
    assert json.loads(table["speech.info"][i].as_py()) == rows[i]["speech"].info
    assert table["speech.tokenizer"][i].as_py() == "speech-a"
    assert json.loads(table.schema.metadata[b"mmtok"])["fields"]["speech"]["levels"] == [16] * 80


def test_another_tokenizers_file_is_refused_with_both_names(tmp_path):
    path = tmp_path / "t.parquet"
    write_one(path, "caption", [[1]])
    with pytest.raises(UserError, match="text-a.*text-b"):
        read_tokens(path, {"caption": Signature("text", (256,), fingerprint="text-b")})


def test_the_fingerprint_column_outranks_the_metadata(tmp_path):
    """Two tokenizers' rows joined by a careless tool: the metadata of the first does not speak for
    both.
    """
    tables = []
    for fingerprint in ("text-a", "text-b"):
        signature = Signature("text", (256,), fingerprint=fingerprint)
        write_tokens(
            tmp_path / "part.parquet",
            {"caption": signature},
            [{"caption": Segment("text", codes=np.array([[1]]))}],
        )
        tables.append(pq.read_table(tmp_path / "part.parquet"))
    joined = pa.concat_tables(
        [tables[0], tables[1].replace_schema_metadata(tables[0].schema.metadata)]
    )
    pq.write_table(joined, tmp_path / "joined.parquet")
    with pytest.raises(UserError, match="tokenizers text-a, text-b"):
        read_tokens(tmp_path / "joined.parquet")


def test_a_field_that_is_not_there_is_named(tmp_path):
    write_one(tmp_path / "t.parquet", "caption", [[1]])
    with pytest.raises(UserError, match="'image'.*caption"):
        read_tokens(tmp_path / "t.parquet", {"image": SIGNATURES["image"]})


def test_only_expected_fields_are_read(tmp_path):
    write_tokens(tmp_path / "t.parquet", SIGNATURES, random_rows(5))
    assert read_tokens(tmp_path / "t.parquet", {"image": SIGNATURES["image"]}).fields == ("image",)


def test_a_folder_of_shards_is_one_file(tmp_path):
    rows = random_rows(12)
    for i in range(3):
        write_tokens(tmp_path / f"t-{i}.parquet", SIGNATURES, rows[4 * i : 4 * i + 4])
    file = read_tokens(tmp_path)
    assert len(file) == 12
    assert all(
        same(rows[i][name], segment) for i in range(12) for name, segment in file.row(i).items()
    )


def test_shards_of_different_tokenizers_are_refused(tmp_path):
    write_one(tmp_path / "a.parquet", "caption", [[1]])
    write_tokens(
        tmp_path / "b.parquet", {"caption": Signature("text", (256,), fingerprint="text-b")}, []
    )
    with pytest.raises(UserError, match="differ"):
        read_tokens(tmp_path)


def relabelled(path, **changes):
    """The same columns under a signature with changes: a damaged or forged file."""
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"mmtok"])
    for fields in about["fields"].values():
        fields.update(changes)
    pq.write_table(table.replace_schema_metadata({"mmtok": json.dumps(about)}), path)


def test_codes_outside_the_levels_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_one(path, "caption", [[200]])
    relabelled(path, levels=[200])
    with pytest.raises(UserError, match="outside"):
        read_tokens(path)
    relabelled(path, levels=[201])
    assert len(read_tokens(path)) == 1


def test_a_fixed_count_of_frames_is_held(tmp_path):
    path = tmp_path / "t.parquet"
    write_one(path, "image", [[1], [2]])
    with pytest.raises(UserError, match="4 frames"):
        read_tokens(path)


@pytest.mark.parametrize("keep", [0, 3, 40, -100, -5])
def test_cut_files_are_refused(tmp_path, keep):
    path = tmp_path / "t.parquet"
    write_tokens(path, SIGNATURES, random_rows(20))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=str(path)):
        read_tokens(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "t.parquet"
    write_one(path, "speech", np.random.default_rng(0).integers(0, 16, (400, 80)))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_tokens(path)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such"):
        read_tokens(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="no token files"):
        read_tokens(tmp_path)
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="not a Parquet file"):
        read_tokens(tmp_path / "text.parquet")
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "foreign.parquet")
    with pytest.raises(UserError, match="no mmtok metadata"):
        read_tokens(tmp_path / "foreign.parquet")


def test_missing_and_retyped_columns_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_one(path, "caption", [[1]])
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("caption.info"), path)
    with pytest.raises(UserError, match="'caption.info' is missing"):
        read_tokens(path)
    strings = pa.array(["x"])
    pq.write_table(table.set_column(0, "caption", strings), path)
    with pytest.raises(UserError, match="holds string"):
        read_tokens(path)


@pytest.mark.parametrize(
    "segment",
    [
        Segment("text", codes=np.array([[256]])),
        Segment("text", codes=np.array([[-1]])),
        Segment("text", codes=np.array([[1, 2]])),
        Segment("text", latents=np.zeros((1, 1), np.float32)),
        Segment("image", codes=np.array([[1]])),
        Segment("text", codes=np.array([[1], [2]]), infill_spans=((0, 1),)),
    ],
)
def test_segments_that_do_not_fit_are_not_written(tmp_path, segment):
    with pytest.raises(ValueError):
        write_tokens(
            tmp_path / "t.parquet", {"caption": SIGNATURES["caption"]}, [{"caption": segment}]
        )
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.parquet"
    write_one(path, "caption", [[7]])

    def rows():
        yield {"caption": Segment("text", codes=np.array([[1]]))}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(path, {"caption": SIGNATURES["caption"]}, rows(), row_group=1)
    assert os.listdir(tmp_path) == ["t.parquet"]
    assert read_tokens(path).segment("caption", 0).codes.tolist() == [[7]]


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, "Error writing bytes to file")

    monkeypatch.setattr(GroupWriter, "append", full)
    with pytest.raises(OSError, match="No space left.*t.parquet"):
        write_one(tmp_path / "t.parquet", "caption", [[1]])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ([1, 1, 1, 1, 1], [[1, 1, 1], [1, 1]]),
        ([4, 4, 3], [[4, 4], [3]]),
        ([99, 1, 99], [[99], [1], [99]]),
        ([], []),
    ],
)
def test_groups_are_bounded_by_number_and_size(monkeypatch, sizes, expected):
    monkeypatch.setattr("mmtok.data.tokens.MOST_VALUES", 10)
    assert list(groups(iter(sizes), 3, lambda size: size)) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_token_file(tmp_path):
    os.mkfifo(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="no such token file"):
        read_tokens(tmp_path / "p.parquet")
    assert not is_tokens(tmp_path / "p.parquet") and not is_tokens(tmp_path / "none.parquet")
