"""Arrays of numpy's files: as numpy reads them, or refused by what their headers say."""

import io
import zipfile

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.io.arrays import ArrayRows, names_in, read_npy, read_npz


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(2, 3, 2),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(["a", "bé"]),
        np.zeros((0, 3), np.float32),
        np.arange(4, dtype=">i2"),
        np.array(3.5),
    ],
)
def test_they_are_as_numpy_reads_them(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", a=array, b=1)
    for again in (read_npy(tmp_path / "a.npy", "x"), read_npz(tmp_path / "a.npz", ["a"], "x")[0]):
        assert again.dtype == array.dtype and np.array_equal(again, array)
    assert names_in(tmp_path / "a.npz", "x") == ["a", "b"]


def header(words):
    text = (words + " " * (-(len(words) + 11) % 64) + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "words, part",
    [
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 3), }",
            "promises 13.2 TB",
        ),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }",
            "not a numpy file of numbers",
        ),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", "not a numpy file of numbers"),
        (
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }",
            "not a numpy file of numbers",
        ),
        ("{'descr': '<U1', 'fortran_order': False, 'shape': (2,), }", "no character"),
        ("{'descr': '<f4', 'shape': ((((", "cannot be read as x"),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }",
            "cannot be read as x",
        ),
    ],
)
def test_headers_are_not_believed(tmp_path, words, part):
    content = header(words) + b"\xff" * 100
    (tmp_path / "a.npy").write_bytes(content)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", content)
    (tmp_path / "a.npz").write_bytes(packed.getvalue())
    for read in (
        lambda: read_npy(tmp_path / "a.npy", "x"),
        lambda: read_npz(tmp_path / "a.npz", ["a"], "x"),
    ):
        with pytest.raises(UserError) as caught:
            read()
        line = str(caught.value)
        assert (
            str(tmp_path) in line
            and part in line
            and len(line.splitlines()) == 1
            and len(line) < 500
        )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_an_array_are_those_of_the_whole(tmp_path, save, order):
    array = np.asarray(np.arange(60.0).reshape(10, 3, 2), order=order)
    save(tmp_path / "a.npz", other=np.ones(3), a=array)
    np.save(tmp_path / "a.npy", array)
    for rows in (ArrayRows(tmp_path / "a.npz", "x", "a"), ArrayRows(tmp_path / "a.npy", "x")):
        assert (len(rows), rows.shape) == (10, (10, 3, 2))
        for start, stop in ((4, 7), (0, 2), (9, 10), (3, 3), (0, 10)):
            np.testing.assert_array_equal(rows.rows(start, stop), array[start:stop])
        rows.verify()
        rows.close()


def test_a_member_that_declares_more_than_there_is_ends(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(9))
    rows = ArrayRows(tmp_path / "a.npz", "x", "a")
    rows._info.file_size += 10**9
    with pytest.raises(UserError, match="a.npz: 'a': cannot be read as x .its checksum"):
        rows.verify()
