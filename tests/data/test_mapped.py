"""Mapped token files: the same segments as from memory, from a flat copy that is made anew whenever
it is not the file's own.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtok.core.segment import Segment, Signature
from mmtok.data import mapped
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.errors import UserError
from mmtok.io.files import remove_leftovers

SIGNATURES = {
    "caption": Signature("text", (256,), fingerprint="a"),
    "title": Signature("text", (70_000,), fingerprint="b"),
    "speech": Signature("speech", (16,) * 80, fingerprint="c"),
    "image": Signature("image", (300,), frames=4, fingerprint="d"),
    "jet": Signature("jets", (43, 300, 33), fingerprint="e", descending=True),
    "voice": Signature("voice", latent_size=5, fingerprint="f"),
    "nowhere": Signature("text", (256,), fingerprint="g"),
}


def random_segment(signature, rng):
    truncated = bool(rng.integers(2))
    n = (
        int(rng.integers(0, 4))
        if signature.frames and truncated
        else signature.frames or int(rng.integers(0, 9)) * int(rng.integers(0, 2))
    )
    kind = "latents" if signature.latent_size else "codes"
    shape = (n, mapped.width_of(signature))
    values = (
        rng.normal(size=shape).astype(np.float32)
        if signature.latent_size
        else rng.integers(0, signature.levels, shape)
    )
    info = [{}, {"rate_hz": 16_000}, {"n_samples": int(rng.integers(1000)), "name": "é\n"}][
        rng.integers(3)
    ]
    more = {"info": info, "truncated": truncated}
    if signature.modality in ("text", "voice") and n and rng.integers(2):
        more["predict"] = rng.random(n) < 0.5
    return Segment(signature.modality, **{kind: values}, **more)


def random_rows(n, seed):
    rng = np.random.default_rng(seed)
    return [
        {
            f: random_segment(s, rng)
            for f, s in SIGNATURES.items()
            if rng.random() < 0.7 and f != "nowhere"
        }
        for _ in range(n)
    ]


def write(path, n=9, seed=0):
    write_tokens(path, SIGNATURES, random_rows(n, seed), row_group=4)
    return path


def same(a, b):
    """Whether two token files say the same of every row."""
    assert len(a) == len(b) and a.fields == b.fields and a.signatures == b.signatures
    for f in a.fields:
        assert np.array_equal(a.has(f), b.has(f)) and np.array_equal(a.lengths(f), b.lengths(f))
        assert [x.dtype for x in vars(a._columns[f]).values()] == [
            x.dtype for x in vars(b._columns[f]).values()
        ]
        for i in np.flatnonzero(a.has(f)):
            x = a.segment(f, i)
            y = b.segment(f, i)
            assert (
                np.array_equal(x.values, y.values)
                and x.values.dtype == y.values.dtype
                and x.values.shape == y.values.shape
            )
            assert (x.modality, x.truncated, x.info) == (y.modality, y.truncated, y.info)
            assert (x.predict is None) == (y.predict is None)
            assert np.array_equal(x.asked, y.asked)
    return True


def flats(folder):
    """The flat files below a folder, with when each was written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.flat") if p.is_file()}


# ---- the law


@settings(max_examples=5, deadline=None)
@given(
    n=st.integers(0, 30),
    batch=st.sampled_from([1, 700, 2**20]),
    n_files=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_a_map_says_what_memory_says(tmp_path_factory, n, batch, n_files, seed):
    """Of one file and of a folder of them, read in batches of any size; the map a second time from
    what the first time wrote.
    """
    home = tmp_path_factory.mktemp("t") / "set"
    for i in range(n_files):
        write(home / f"{i}.parquet", n, seed + i)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "BATCH", batch)
        patch.setattr(os, "fsync", lambda _: None)  # slow, and of no matter here
        for path in (home, home / "0.parquet"):
            assert same(read_tokens(path, map_from=0), read_tokens(path)) and same(
                read_tokens(path, map_from=0), read_tokens(path)
            )
    assert len(flats(home.parent)) == 2 * len(SIGNATURES)


def test_a_mapped_segment_is_the_readers_own(tmp_path):
    file = read_tokens(write(tmp_path / "t.parquet"), map_from=0)
    for f in ("caption", "voice"):
        i = int(np.flatnonzero(file.lengths(f))[0])
        before = file.segment(f, i).values.copy()
        file.segment(f, i).values[:] = 0
        assert np.array_equal(file.segment(f, i).values, before)


def test_small_files_are_read_into_memory_and_nothing_is_written(tmp_path):
    path = write(tmp_path / "t.parquet")
    read_tokens(path)
    read_tokens(path, map_from=mapped.MAP_FROM)
    assert os.listdir(tmp_path) == ["t.parquet"]
    n_numbers = sum(
        c.values.nbytes + 22 * len(c.present) for c in read_tokens(path)._columns.values()
    )
    n_empty = 4 * sum(
        int((read_tokens(path).lengths(f) == 0).sum()) for f in SIGNATURES
    )  # each counts as a number, of four bytes at most
    assert read_tokens(path, map_from=n_numbers + n_empty + 1) and os.listdir(tmp_path) == [
        "t.parquet"
    ]
    assert read_tokens(path, map_from=n_numbers) and (tmp_path / ".flat").is_dir()


# ---- whose copy it is


def test_what_was_written_is_used_again(tmp_path, monkeypatch):
    path = write(tmp_path / "t.parquet")
    first = read_tokens(path, map_from=0)
    written = flats(tmp_path)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)  # no row is read
    assert same(read_tokens(path, map_from=0), first) and flats(tmp_path) == written


def test_another_file_under_the_name_is_noticed_and_the_old_map_stays(tmp_path):
    path = write(tmp_path / "t.parquet")
    in_memory = read_tokens(path)
    old = read_tokens(path, map_from=0)
    write(path, seed=1)
    assert same(read_tokens(path, map_from=0), read_tokens(path))
    assert same(old, in_memory)  # of a training that goes on
    with pytest.raises(AssertionError):
        same(old, read_tokens(path))


def test_another_file_in_the_folder_is_noticed(tmp_path):
    write(tmp_path / "set" / "0.parquet")
    assert len(read_tokens(tmp_path / "set", map_from=0)) == 9
    write(tmp_path / "set" / "1.parquet", seed=1)
    assert (
        same(read_tokens(tmp_path / "set", map_from=0), read_tokens(tmp_path / "set"))
        and len(read_tokens(tmp_path / "set")) == 18
    )


def test_another_tokenizer_is_refused_though_there_is_a_map(tmp_path):
    path = write(tmp_path / "t.parquet")
    read_tokens(path, map_from=0)
    with pytest.raises(UserError, match="a, but z is expected"):
        read_tokens(path, {"caption": Signature("text", (256,), fingerprint="z")}, map_from=0)


DAMAGE = {
    "gone": lambda content: None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\0",
    "head": lambda content: bytes(content[:10]) + b"\xff" * 10 + content[20:],
    "no object": lambda content: b"7".ljust(4096) + content[4096:],
    "zeros": lambda content: content[:4096] + bytes(len(content) - 4096),
    "a bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_copy_that_is_not_whole_is_made_anew(tmp_path, what):
    path = write(tmp_path / "t.parquet")
    read_tokens(path, map_from=0)
    flat = tmp_path / ".flat" / "t.parquet" / "speech.flat"
    whole = flat.read_bytes()
    damaged = DAMAGE[what](flat.read_bytes())
    shutil.rmtree(tmp_path / ".flat") if damaged is None else flat.write_bytes(damaged)
    assert same(read_tokens(path, map_from=0), read_tokens(path)) and flat.read_bytes() == whole


def test_unsound_rows_are_refused_at_the_first_opening_and_leave_no_copy(tmp_path):
    path = tmp_path / "t.parquet"
    write_tokens(
        path,
        {"caption": SIGNATURES["caption"]},
        [{"caption": Segment("text", codes=np.array([[200]]))}],
    )
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"mmtok"])
    about["fields"]["caption"]["levels"] = [200]
    pq.write_table(table.replace_schema_metadata({"mmtok": json.dumps(about)}), path)
    for _ in range(2):
        with pytest.raises(UserError, match=f"{path}.*outside"):
            read_tokens(path, map_from=0)
        assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path]


def test_a_flipped_bit_of_the_file_is_noticed(tmp_path):
    path = tmp_path / "t.parquet"
    codes = np.random.default_rng(0).integers(0, 16, (400, 80))
    write_tokens(
        path, {"speech": SIGNATURES["speech"]}, [{"speech": Segment("speech", codes=codes)}]
    )
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}.*damaged"):
        read_tokens(path, map_from=0)


def test_where_no_copy_can_be_kept_memory_is_used_and_it_is_said_once(tmp_path):
    path = write(tmp_path / "t.parquet")
    (tmp_path / ".flat").write_text("in the way")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        file = read_tokens(path, map_from=0)
    assert same(file, read_tokens(path)) and len(caught) == 1
    text = str(caught[0].message)
    assert (
        str(path) in text
        and str(tmp_path / ".flat") in text
        and "main memory" in text
        and "\n" not in text
    )


# ---- several processes, and how much memory one takes

STATUS = Path("/proc/self/status")
TOLD = STATUS.exists() and "RssAnon:" in STATUS.read_text()
OPEN = """
import json, os, sys
from mmtok.data import mapped
from mmtok.data.tokens import read_tokens

def own():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

path, how = sys.argv[1:]
if how == "killed":
    os.fsync = lambda _: os.kill(os.getpid(), 9)
if how == "waits":
    print("ready", flush=True)
    input()
seen, advance = [], mapped.Progress.advance
if how != "waits":
    before = own()
    def noted(self, *more):
        advance(self, *more)
        seen.append(own() - before)
    mapped.Progress.advance = noted
file = read_tokens(path, map_from=None if how == "memory" else 0)
total = sum(
    int(file.segment(f, i).values.sum())
    for f in file.fields for i in range(0, len(file), 99) if file.has(f)[i]
)
grown = how != "waits" and own() - before
print(json.dumps({"sum": total, "own": grown, "most": max(seen, default=0)}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A token file of 96 MB of latents, and their number of bytes."""
    path = tmp_path_factory.mktemp("large") / "t.parquet"
    rng = np.random.default_rng(0)
    some = [rng.normal(size=(250, 1)).astype(np.float32).repeat(64, 1) for _ in range(8)]
    rows = (
        {"voice": Segment("voice", latents=some[i % 8], info={"n_samples": i})} for i in range(1500)
    )
    write_tokens(path, {"voice": Signature("voice", latent_size=64)}, rows, row_group=100)
    return path, 1500 * 64_000


def opened(path, how):
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", OPEN, path, how], check=True, capture_output=True, text=True
        ).stdout
    )


@pytest.mark.skipif(not TOLD, reason="needs what Linux tells of a process's memory")
def test_a_process_keeps_little_of_what_it_maps(large):
    path, n_bytes = large
    in_memory, writing, reading = (opened(path, how) for how in ("memory", "mapped", "mapped"))
    assert in_memory["sum"] == writing["sum"] == reading["sum"]
    assert in_memory["own"] > n_bytes and reading["own"] < n_bytes / 16
    assert reading["most"] == 0 < writing["most"] < n_bytes, (
        "the copy is written batch by batch, once"
    )


def test_several_that_open_a_file_at_once_read_the_same(tmp_path):
    path = write(tmp_path / "t.parquet", n=100)
    piped = dict(
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    others = [
        subprocess.Popen([sys.executable, "-c", OPEN, path, "waits"], **piped) for _ in range(2)
    ]
    assert [p.stdout.readline() for p in others] == ["ready\n"] * 2
    for p in others:
        p.stdin.write("\n")
        p.stdin.flush()
    assert len({json.loads(p.communicate()[0])["sum"] for p in others}) == 1 and not any(
        p.returncode for p in others
    )
    written = flats(tmp_path)
    assert same(read_tokens(path, map_from=0), read_tokens(path)) and flats(tmp_path) == written


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    path = write(tmp_path / "t.parquet")
    assert (
        subprocess.run(
            [sys.executable, "-c", OPEN, path, "killed"], stderr=subprocess.DEVNULL
        ).returncode
        == -signal.SIGKILL
    )
    assert len(list(tmp_path.rglob("*.tmp"))) == 1 and not flats(tmp_path)
    remove_leftovers(tmp_path)
    assert not list(tmp_path.rglob("*.tmp")) and same(
        read_tokens(path, map_from=0), read_tokens(path)
    )


def test_a_training_from_maps_is_the_one_from_memory_and_uses_them_again(
    tiny_recipe, tiny_run, tiny_copy, monkeypatch
):
    from mmtok.run.build import train

    monkeypatch.setattr("mmtok.run.run.MAP_FROM", 0)
    for again in (False, True):
        (tiny_copy / "model.safetensors").unlink()
        shutil.rmtree(tiny_copy / "checkpoints")
        before = flats(tiny_copy)
        start = time.time_ns()
        train(tiny_recipe, tiny_copy)
        assert (tiny_copy / "model.safetensors").read_bytes() == (
            tiny_run / "model.safetensors"
        ).read_bytes()
        assert (
            flats(tiny_copy) == before if again else min(flats(tiny_copy).values()) > start - 10**9
        )


def test_of_several_processes_the_first_opens_first_and_speaks_for_all(tiny_copy, monkeypatch):
    from mmtok.run.run import open_run
    from mmtok.run.training import _token_files
    from mmtok.train.distributed import SINGLE_PROCESS

    class Other:
        def on_rank0(self, work):
            return None

    monkeypatch.setattr("mmtok.run.run.MAP_FROM", 0)
    (tiny_copy / "tokens" / ".flat").write_text("in the way")
    with pytest.warns(UserWarning, match="main memory"):
        first = _token_files(open_run(tiny_copy), SINGLE_PROCESS)
    with warnings.catch_warnings(action="error"):
        other = _token_files(open_run(tiny_copy), Other())
    assert len(first) == len(other) == 3 and all(same(a, b) for a, b in zip(first, other))
