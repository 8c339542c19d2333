"""Tokenising: the same bytes whoever does it, whatever interrupted it; nothing is lost."""

import json
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmtok.data import parts as parts_room
from mmtok.data import tokenise as room
from mmtok.data.encoder import Encoder, Job
from mmtok.data.parts import part_path, read_mark
from mmtok.data.preparation import preparer
from mmtok.data.token_writer import OWN_GROUP
from mmtok.data.tokenise import PartSet, write_file
from mmtok.data.tokens import read_tokens
from mmtok.errors import UserError
from mmtok.io.progress import Progress
from mmtok.io.tally import Tally
from mmtok.sources import pictures as pictures_room
from mmtok.sources import screen
from mmtok.sources.base import Example, Items, Listing, Made
from mmtok.sources.images import ImageFolder
from mmtok.sources.sound_files import write_sound
from mmtok.sources.speech import SpeechFolder
from mmtok.sources.text import TextFile
from mmtok.tokenizers import default


@pytest.fixture
def few(monkeypatch):
    """Chunks of 4 examples, parts of 2 chunks."""
    monkeypatch.setattr(screen, "CHUNK", 4)
    monkeypatch.setattr(pictures_room, "CHUNK", 4)
    monkeypatch.setattr(room, "CHUNK", 4)
    monkeypatch.setattr(parts_room, "CHUNKS", 2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """22 pictures with opacity, of which two are held out."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(22):
        pixels = rng.integers(0, 256, (4 + i % 3, 6, 4), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return ImageFolder(str(folder))


def encoder_of(source, **settings):
    tokenizers = {f: default(m) for f, m in source.fields.items()}
    preparers = {f: preparer(t.signature.modality, t.config) for f, t in tokenizers.items()}
    return Encoder(tokenizers, preparers, **settings)


def quiet():
    return Progress("", quiet=True).__enter__()


def noted(work):
    """What `work` returns, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    return result, [str(warning.message) for warning in caught]


def set_of(folder, source, made_from="a"):
    return PartSet(folder, source.listing("train"), encoder_of(source), made_from)


# ---- one process or several


def test_two_processes_write_the_file_of_one(few, pictures, tmp_path):

    def write(n):
        path = tmp_path / f"{n}.parquet"
        return write_file(path, pictures.listing("train"), encoder_of(pictures), quiet(), n)

    (one, said), (two, said_by_two) = (noted(lambda n=n: write(n)) for n in (1, 2))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    assert one.n_rows == two.n_rows == len(read_tokens(tmp_path / "2.parquet")) == 20
    assert (
        said
        == said_by_two
        == [
            "20 of 20 images were laid over white where there is transparency (first:"
            f" {pictures.path}/00.png)"
        ]
    )


def test_chunks_of_many_numbers_are_row_groups_of_their_own(tmp_path):
    """Each is encoded where its rows were made; the few numbers between them share a group."""
    texts = ["a", "b" * OWN_GROUP, "c", "d", "e" * OWN_GROUP, "f" * OWN_GROUP, "g"]
    for n in (1, 2):
        listing = Listing([Made([{"text": text}]) for text in texts], n=len(texts))
        write_file(tmp_path / f"{n}", listing, Encoder({"text": default("text")}, {}), quiet(), n)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    about = pq.read_metadata(tmp_path / "1")
    assert [about.row_group(g).num_rows for g in range(6)] == [1, 1, 2, 1, 1, 1]
    file = read_tokens(tmp_path / "1")
    found = [bytes(file.segment("text", i).codes[:, 0].tolist()).decode() for i in range(7)]
    assert found == texts


def test_what_one_thread_encodes_is_what_examples_give(few, pictures, tmp_path):
    encoder = encoder_of(pictures)
    noted(lambda: write_file(tmp_path / "t.parquet", pictures.listing("train"), encoder, quiet()))
    file = read_tokens(tmp_path / "t.parquet")
    for i, example in enumerate(pictures.examples("train")):
        signal = encoder.preparers["image"](example["image"], "", Tally())
        expected = encoder.tokenizers["image"].encode(signal)
        np.testing.assert_array_equal(file.segment("image", i).codes, expected.codes)


def test_long_work_alone_starts_processes(monkeypatch):
    monkeypatch.setenv("MMTOK_WORKERS", "2")
    assert not room._is_long(1.0, 1, 10) and room._is_long(1.0, 1, 12)
    assert not room._is_long(9.0, 3, None) and room._is_long(10.1, 3, None)

    def none(*_):
        raise AssertionError("processes for a moment's work")

    monkeypatch.setattr(room.Workers, "__init__", none)
    encoder = Encoder({"text": default("text")}, {})
    jobs = [Job(0, i, Made([{"text": "a"}])) for i in range(3)]
    assert [x.counts["rows"] for x in room.encode_jobs(encoder, jobs, 3)] == [1, 1, 1]
    monkeypatch.setenv("MMTOK_WORKERS", "1")
    monkeypatch.setattr(room, "PAY_S", -1.0)
    assert len(list(room.encode_jobs(encoder, jobs, 3))) == 3


def test_processes_take_over_where_the_first_chunks_were_slow(few, pictures, tmp_path, monkeypatch):
    noted(
        lambda: write_file(tmp_path / "1", pictures.listing("train"), encoder_of(pictures), quiet())
    )
    monkeypatch.setenv("MMTOK_WORKERS", "2")
    monkeypatch.setattr(room, "PAY_S", -1.0)
    noted(
        lambda: write_file(tmp_path / "2", pictures.listing("train"), encoder_of(pictures), quiet())
    )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_classes_of_this_process_alone_are_used_here(few, pictures, tmp_path):
    """A reader that cannot be sent reads here, a tokenizer that cannot be sent encodes here."""
    listing = pictures.listing("train")
    noted(lambda: write_file(tmp_path / "1", listing, encoder_of(pictures), quiet(), 1))
    listing = pictures.listing("train")
    chunks = [Items(c.items, lambda item, c=c: c.reader(item), c.name) for c in listing.chunks]
    local = Listing(chunks, listing.faults, listing.n)
    noted(lambda: write_file(tmp_path / "2", local, encoder_of(pictures), quiet(), 2))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    encoder = encoder_of(pictures)
    encoder.tokenizers["image"].extra = threading.Lock()  # cannot be pickled
    noted(lambda: write_file(tmp_path / "3", pictures.listing("train"), encoder, quiet(), 2))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


# ---- what is counted


def read_number(i):
    if i % 5 == 3:
        raise UserError(f"number {i} cannot be read")
    if i == 90:
        warnings.warn("number 90 is strange", stacklevel=1)
    jet = np.array([[5.0 + i, 0.1, 0.0], [1.0, 5.0 * (i == 12), 0.0]], np.float32)
    return Example({"jets": jet, "caption": "a"}, f"number {i}")


def numbers(n, tolerance):
    items = range(n)
    looked = screen.Screen(items, lambda i: {}, tolerance, "numbers")
    return looked.listing(list(items), read_number)


def jets_encoder():
    tokenizers = {"jets": default("jets"), "caption": default("text")}
    return Encoder(tokenizers, {"caption": preparer("text", tokenizers["caption"].config)})


@pytest.mark.parametrize("workers", [1, 2])
def test_counts_of_all_chunks_are_said_once_as_of_one(few, tmp_path, workers, monkeypatch):
    """Also where they stand in the metadata of parts that were made before."""
    tolerant = screen.Tolerance(max_error_share=0.5)
    expected, said = noted(
        lambda: write_file(tmp_path / "t", numbers(20, tolerant), jets_encoder(), quiet(), 1)
    )
    assert expected.n_rows == 16
    assert any("4 of 20 numbers were passed over as unusable (first: number 3" in x for x in said)
    assert any("1 of 32 particles was clipped in eta_rel" in x for x in said)
    assert any("(first: jet 10)" in x for x in said)  # the 11th jet that could be read
    found = []
    for _ in range(2):  # made, and found made
        made = PartSet(tmp_path / "parts", numbers(20, tolerant), jets_encoder(), "a")
        made.write(quiet(), workers)
        counts, said_of_parts = noted(made.finish)
        found.append((counts.n_rows, counts.n_frames, sorted(said_of_parts)))
    assert found == [(16, expected.n_frames, sorted(said))] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_that_cannot_be_read_are_refused(few, tmp_path, workers):
    refused = r"number 3 cannot be read.*of 40 numbers cannot be used, and at most 0.1 of all"
    strict = screen.Tolerance(max_error_share=0.1)
    with pytest.raises(UserError, match=refused):
        write_file(tmp_path / "t", numbers(40, strict), jets_encoder(), quiet(), workers)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=refused):
        PartSet(tmp_path / "p", numbers(40, strict), jets_encoder(), "a").write(quiet(), 1)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]


def test_shares_that_are_too_bad_only_together_are_refused_at_the_end(few, tmp_path):
    strict = screen.Tolerance(max_error_share=0.15)
    sets = [PartSet(tmp_path, numbers(40, strict), jets_encoder(), "a") for _ in range(2)]
    for i, half in enumerate(sets):
        half.write(quiet(), 1, (i, 2))
    with pytest.raises(UserError, match="of 40 numbers cannot be used"):
        sets[0].finish()
    assert read_mark(tmp_path) is None


def test_jets_out_of_range_are_refused_before_a_part_is_written(few, tmp_path):
    jets = [{"jets": np.full((3, 3), 9e9, np.float32)}] * 8
    listing = Listing([Made(jets[:4]), Made(jets[4:])], n=8)
    with pytest.raises(UserError, match="would be clipped in pt_gev"):
        PartSet(tmp_path, listing, Encoder({"jets": default("jets")}, {}), "a").write(quiet(), 1)
    assert not list(tmp_path.iterdir())


def test_warnings_of_a_reader_are_passed_on_once(few, tmp_path):
    tolerant = screen.Tolerance(max_error_share=0.5)
    for workers in (1, 2):
        path = tmp_path / "t"
        _, said = noted(
            lambda: write_file(path, numbers(100, tolerant), jets_encoder(), quiet(), workers)
        )
        assert said.count("number 90 is strange") == 1


def test_examples_without_a_name_are_named_by_their_number(few, tmp_path):
    signals = [{"text": "a"}] * 5 + [{"text": 7}]
    listing = Listing([Made(signals[:4]), Made(signals[4:])])
    with pytest.raises(UserError, match="^text of example 5: "):
        write_file(tmp_path / "t", listing, Encoder({"text": default("text")}, {}), quiet(), 1)


# ---- parts


def test_parts_are_whole_chunks_and_read_as_the_one_file(few, pictures, tmp_path):
    noted(
        lambda: write_file(tmp_path / "t", pictures.listing("train"), encoder_of(pictures), quiet())
    )
    made = set_of(tmp_path / "p", pictures)
    noted(lambda: made.write(quiet()))
    with pytest.raises(UserError, match=r"p: its token files are not all made yet"):
        read_tokens(tmp_path / "p")
    noted(made.finish)
    one = read_tokens(tmp_path / "t")
    many = read_tokens(tmp_path / "p")
    assert [len(read_tokens(path)) for path in many.parts] == [8, 8, 4] and len(many) == 20
    for i in range(20):
        for f in one.fields:
            np.testing.assert_array_equal(one.segment(f, i).codes, many.segment(f, i).codes)
    part_path(tmp_path / "p", 1).unlink()
    with pytest.raises(UserError, match="it has 2 token files, and complete.json says 3"):
        read_tokens(tmp_path / "p")


def test_shares_make_the_parts_of_one(few, pictures, tmp_path, contents):
    whole = set_of(tmp_path / "whole", pictures)
    noted(lambda: whole.write(quiet()))
    _, said = noted(whole.finish)
    for i in (2, 0, 1):
        share = set_of(tmp_path / "shared", pictures)
        noted(lambda: share.write(quiet(), share=(i, 3)))
        counts, said_of_shares = noted(share.finish)
        assert (counts is None) == (i != 1)
    assert said_of_shares == said
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_a_share_reads_its_own_chunks_alone(few, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        sys.modules[__name__], "read_number", lambda i: read.append(i) or {"caption": "a"}
    )
    listing = numbers(20, screen.Tolerance())
    PartSet(tmp_path, listing, Encoder({"caption": default("text")}, {}), "a").write(
        quiet(), share=(1, 2)
    )
    assert read == list(range(8, 16))


def test_parts_of_two_sets_do_not_mix(few, pictures, tmp_path):
    noted(lambda: set_of(tmp_path, pictures).write(quiet()))
    with pytest.raises(UserError, match="part-00000.parquet was made from other data"):
        set_of(tmp_path, pictures, "b").write(quiet())


def test_a_damaged_part_is_made_anew(few, pictures, tmp_path):
    noted(lambda: set_of(tmp_path, pictures).write(quiet()))
    path = part_path(tmp_path, 1)
    before = path.read_bytes()
    path.write_bytes(before[:-100])
    with pytest.warns(UserWarning, match="part-00001.parquet: a damaged token file .*made anew"):
        set_of(tmp_path, pictures).write(quiet())
    assert path.read_bytes() == before


def texts_of(folder):
    (folder / "a.txt").write_text("one two three " * 300)
    (folder / "b.txt").write_text("four five six " * 300)
    return TextFile(str(folder), chunk_chars=64), folder / "b.txt", "seven ate nine " * 280


def rows_of(folder):
    path = folder / "t.jsonl"
    lines = [
        json.dumps({"text": f"text number {i} of many others, all different"}) for i in range(80)
    ]
    path.write_text("\n".join(lines))
    return TextFile(str(path)), path, "\n".join(lines).replace("number 3 ", "number X ")


def clips_of(folder):
    for i in range(30):
        write_sound(folder / f"{i:02}.wav", np.full(400 + i, 0.1, np.float32))
    rows = [f"{i:02}.wav,word {i}" for i in range(30)]
    (folder / "transcripts.csv").write_text("\n".join(["file,text", *rows]))
    changed = "\n".join(["file,text", *rows]).replace("word 5", "another")
    return SpeechFolder(str(folder)), folder / "transcripts.csv", changed


@pytest.mark.parametrize("corpus", [texts_of, rows_of, clips_of])
def test_parts_of_a_corpus_that_was_edited_are_made_anew(few, corpus, tmp_path, contents):
    """Not of other rows than a call that began after the edit would make."""
    (tmp_path / "corpus").mkdir()
    source, path, changed = corpus(tmp_path / "corpus")
    noted(lambda: set_of(tmp_path / "parts", source).write(quiet()))
    _, said = noted(lambda: set_of(tmp_path / "parts", source).write(quiet()))
    assert not [line for line in said if "made anew" in line]
    path.write_text(changed)
    _, said = noted(lambda: set_of(tmp_path / "parts", source).write(quiet()))
    assert [line for line in said if "made anew: files that it was made from have changed" in line]
    noted(lambda: set_of(tmp_path / "whole", source).write(quiet()))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_part_with_a_chunk_without_files_stands(few, pictures, tmp_path):
    """It cannot be compared; nor may only the chunks that can be go into it anew."""

    def mixed():
        listing = pictures.listing("train")
        chunks = list(listing.chunks)
        chunks[0] = Made(list(chunks[0].read()))
        return PartSet(tmp_path, Listing(chunks, n=listing.n), encoder_of(pictures), "a")

    noted(lambda: mixed().write(quiet()))
    before = [path.read_bytes() for path in sorted(tmp_path.glob("*.parquet"))]
    _, said = noted(lambda: mixed().write(quiet()))
    assert not [line for line in said if "made anew" in line]
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.parquet"))] == before


def test_no_example_makes_one_empty_part(tmp_path):
    empty = PartSet(tmp_path, Listing(()), Encoder({"text": default("text")}, {}), "a")
    empty.write(quiet())
    assert empty.finish().n_rows == 0 and len(read_tokens(tmp_path)) == 0


def test_parts_grow_where_there_would_be_too_many():
    assert parts_room.chunks_per_part(None, 256) == 8 == parts_room.chunks_per_part(10**6, 256)
    per_part = parts_room.chunks_per_part(10**8, 256)
    assert 10**8 / 256 / per_part <= 4096 < 10**8 / 256 / (per_part - 1)


def test_a_hundred_thousand_parts_stay_in_order(tmp_path):
    for k in (99_999, 100_000, 2):
        part_path(tmp_path, k).touch()
    (tmp_path / "a.parquet").touch()
    assert [path.stem for path in parts_room.token_paths(tmp_path)] == [
        "a",
        "part-00002",
        "part-99999",
        "part-100000",
    ]


# ---- killed


KILLED = """
import os, signal, sys, time
from pathlib import Path
from mmtok.data import parts, tokenise
from mmtok.sources import pictures
pictures.CHUNK = tokenise.CHUNK = 4
parts.CHUNKS = 2
sys.path.insert(0, sys.argv[3])
from test_tokenise import set_of, quiet
from mmtok.sources.images import ImageFolder
left = int(sys.argv[4])
replace = os.replace
def counted(*paths):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = counted
made = set_of(Path(sys.argv[2]), ImageFolder(sys.argv[1]))
made.write(quiet(), 1)
made.finish()
"""


def test_killed_and_resumed_it_writes_the_same(few, pictures, tmp_path, contents):
    """Killed before the first part has its name, before the second, and before the mark."""
    whole = set_of(tmp_path / "whole", pictures)
    noted(lambda: whole.write(quiet()))
    _, said = noted(whole.finish)
    changed = {}
    for left, n_parts in ((1, 0), (2, 1), (3, 3)):
        words = [pictures.path, str(tmp_path / "killed"), str(Path(__file__).parent), str(left)]
        code = subprocess.run([sys.executable, "-c", KILLED, *words], stderr=subprocess.DEVNULL)
        assert code.returncode == -9
        parts = sorted((tmp_path / "killed").glob("part-*.parquet"))
        assert len(parts) == n_parts and read_mark(tmp_path / "killed") is None
        for path in parts:  # what stands is not touched again
            assert changed.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    again = set_of(tmp_path / "killed", pictures)
    noted(lambda: again.write(quiet()))
    assert noted(again.finish)[1] == said
    for path in changed:
        assert path.stat().st_mtime_ns == changed[path]
    left_behind = set(contents(tmp_path / "killed")) - set(contents(tmp_path / "whole"))
    assert not [name for name in left_behind if "part" in name], left_behind
    assert {
        name: content
        for name, content in contents(tmp_path / "killed").items()
        if name not in left_behind
    } == contents(tmp_path / "whole")


def _unreadable(item):
    raise UserError(f"{item}: is broken inside")


def test_a_split_of_unusable_examples_alone_is_said_to_be_empty(pictures, tmp_path):
    screened = screen.Screen(range(200), lambda item: {}, screen.Tolerance(), "pictures")
    parts = PartSet(tmp_path, screened.listing([0, 1], _unreadable), encoder_of(pictures), "a")
    with quiet() as progress:
        parts.write(progress, workers=1)
    counts, said = noted(parts.finish)
    assert counts.n_rows == 0
    assert sum("0: is broken inside: all of its split is unusable" in text for text in said) == 1
