"""What a `HubTable` refuses in one line, without a word of the libraries that it calls."""

import socket
import time
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtok.errors import UserError
from mmtok.sources.hub import HubTable

pytest.importorskip("datasets")


def text_table(path, **settings):
    return HubTable(str(path), {"text": "text"}, {"text": "text"}, **settings)


def put_rows(path, n):
    texts = pa.array([f"text {i} of {path.stem}" for i in range(n)], pa.string())
    pq.write_table(pa.table({"text": texts}), path)


def refused(source, cache, capfd, said):
    with pytest.raises(UserError, match=said) as error:
        source.listing("train", cache)
    assert "\n" not in str(error.value)
    out = capfd.readouterr()
    assert not out.out and not out.err


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "content, said",
    [
        (None, "a.parquet: the table has no rows"),
        (b"", "a.parquet: the file is empty; copy or make it again"),
        (b"PAR1" + b"x" * 300, r"a.parquet: not a Parquet file that can be read \(Parquet magic"),
    ],
)
def test_empty_and_broken_parquet_files(tmp_path, capfd, content, said, streaming):
    put_rows(tmp_path / "a.parquet", 0)
    if content is not None:
        (tmp_path / "a.parquet").write_bytes(content)
    refused(text_table(tmp_path / "a.parquet", streaming=streaming), tmp_path / "c", capfd, said)


def test_files_without_rows_among_others_are_counted(tmp_path):
    for name, n in (("a", 20), ("b", 0), ("c", 20)):
        put_rows(tmp_path / f"{name}.parquet", n)
    source = text_table(tmp_path / "*.parquet")
    with pytest.warns(UserWarning, match="1 of 3 files was left out: they have no rows"):
        train = source.listing("train", tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = source.listing("heldout", tmp_path / "c")
    assert (train.n, held.n) == (36, 4)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"subset": "en"}, "names files, which have no subset 'en' as tables of the hub have"),
        ({"train": "dev"}, "names files, without a split 'dev'; leave train out"),
    ],
)
def test_settings_that_mean_nothing_of_files_are_refused(tmp_path, capfd, settings, said):
    put_rows(tmp_path / "a.parquet", 20)
    refused(text_table(tmp_path / "a.parquet", **settings), tmp_path / "c", capfd, said)


def test_a_hub_out_of_reach_is_said_at_once(tmp_path, capfd, monkeypatch):
    from huggingface_hub import constants

    def no_network(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.chdir(tmp_path)
    offline = constants.HF_HUB_OFFLINE
    start = time.monotonic()
    said = r"nobody/nothing: no file .* the Hugging Face hub cannot be reached \(it does not answer"
    refused(text_table("nobody/nothing"), tmp_path / "c", capfd, said)
    assert time.monotonic() - start < 10
    assert offline == constants.HF_HUB_OFFLINE
