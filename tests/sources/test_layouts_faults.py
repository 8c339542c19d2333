"""What is wrong in a corpus is one line, whatever its layout: all layouts against all faults.

The corpora are those of layout_trees.py.
"""

import re
import shutil
import sys
import warnings
from itertools import combinations
from pathlib import Path

import pytest

from mmtok.errors import UserError
from mmtok.sources.hub import HubTable
from mmtok.sources.images import ImageFolder
from mmtok.sources.jets import JetFile
from mmtok.sources.speech import SpeechFolder
from mmtok.sources.text import TextFile

sys.path.insert(0, str(Path(__file__).parent))
from layout_trees import TREES, put_picture, put_sound  # noqa: E402

WITHOUT_SPLITS = ("SpeechFolder-vctk",)
HELDOUT = {"ImageFolder-idx": "t10k"}  # other names of the split "test"


def trees(**wanted):
    """The layouts with these attributes set, or not set, as a parameter `tree`."""
    found = [t for t in TREES if all(bool(getattr(t, k)) == v for k, v in wanted.items())]
    return pytest.mark.parametrize("tree", found, ids=str)


def read(source, cache):
    """How many examples the splits have."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source.check()
        counts = {split: len(list(source.examples(split, cache))) for split in source.splits}
    return counts, "\n".join(str(w.message) for w in said)


def refused(source, cache, *parts):
    """The one line that says what is wrong."""
    with pytest.raises(UserError) as error:
        read(source, cache)
    line = str(error.value)
    assert "\n" not in line and len(line) < 1500
    assert all(re.search(part, line) for part in parts), line
    return line


@trees()
def test_each_corpus_is_read(tree, tmp_path):
    tree.write(tmp_path / "data", range(20), "train")
    counts, _ = read(tree.open(tmp_path / "data"), tmp_path / "cache")
    assert sum(counts.values()) in (20, 21)  # characters may be cut within a text
    assert counts["heldout"] == 2


@trees()
def test_splits_that_are_published_and_one_that_is_not(tree, tmp_path):
    if str(tree) in WITHOUT_SPLITS:
        pytest.skip("has no splits")
    heldout = HELDOUT.get(str(tree), "test")
    tree.write(tmp_path / "data", range(20), "train")
    tree.write(tmp_path / "data", range(20, 26), "test")
    source = tree.open(tmp_path / "data", train="train", heldout=heldout)
    assert read(source, tmp_path / "cache")[0] == {"train": 20, "heldout": 6}
    refused(tree.open(tmp_path / "data", train="train", heldout="dev"), tmp_path, "'dev'")


@pytest.mark.parametrize("tree", [t for t in TREES if t.source is not HubTable], ids=str)
def test_a_column_that_is_not_there(tree, tmp_path):
    tree.write(tmp_path / "data", range(20), "train")
    field = tree.column or ("text" if tree.source is TextFile else "caption")
    columns = {**tree.settings.get("columns", {}), field: "nope"}
    line = refused(tree.open(tmp_path / "data", columns=columns), tmp_path, str(tmp_path))
    if tree.column:
        assert "has no column 'nope'; nearest: " in line
    else:
        assert re.search(r"columns|has no column|has no nope", line)


def test_a_column_of_a_hub_table_that_is_not_there(tmp_path):
    tree = TREES[-1]
    tree.write(tmp_path / "data", range(20), "train")
    source = tree.open(tmp_path / "data", columns={"caption": "txt"})
    refused(source, tmp_path, "has no column 'txt'; nearest: text")


@trees(signals=True)
def test_a_table_without_its_files(tree, tmp_path):
    tree.write(tmp_path / "data", range(20), "train")
    for path in (tmp_path / "data").glob(tree.signals):
        path.unlink()
    refused(tree.open(tmp_path / "data"), tmp_path, str(tmp_path))


@trees(signals=True, table=True)
def test_files_without_their_rows(tree, tmp_path):
    tree.write(tmp_path / "data", range(20), "train")
    more = next(iter(sorted((tmp_path / "data").glob(tree.signals))))
    put = put_picture if tree.source is ImageFolder else put_sound
    put(more.with_name(f"more{more.suffix}"), 30)
    counts, _ = read(tree.open(tmp_path / "data"), tmp_path)
    assert counts == {"train": 18, "heldout": 2}


@pytest.mark.parametrize("tree", [t for t in TREES if t.table], ids=str)
def test_a_table_without_rows(tree, tmp_path):
    tree.write(tmp_path / "data", range(20), "train")
    for path in (tmp_path / "data").glob(tree.table):
        first = path.read_text().splitlines(True)[0]
        has_header = path.suffix in (".csv", ".tsv") and tree.layout != "ljspeech"
        path.write_text(first if has_header else "")
    refused(tree.open(tmp_path / "data"), tmp_path, str(tmp_path))


@pytest.mark.parametrize("tree", [t for t in TREES if t.source is not HubTable], ids=str)
def test_an_empty_folder(tree, tmp_path):
    (tmp_path / "data" / tree.place).mkdir(parents=True)
    refused(tree.open(tmp_path / "data"), tmp_path, str(tmp_path / "data"))
    refused(tree.open(tmp_path / "data", layout=tree.layout), tmp_path, str(tmp_path / "data"))


@trees(per_file=True)
def test_a_file_in_both_splits(tree, tmp_path):
    data = tmp_path / "data"
    tree.write(data, range(40), "train")
    tree.write(data, range(40, 46), "test")
    files = sorted(data.glob(tree.signals))
    source = tree.open(data, train="train", heldout="test")
    if str(tree) in WITHOUT_SPLITS:
        source = tree.open(data)
    copied = files[-6:]
    if str(tree) in WITHOUT_SPLITS:
        copied = files[1:]
    for path in copied:
        shutil.copy(files[0], path)
    line = refused(source, tmp_path, "held out, and its content is in training too")
    assert "max_leak_share" in line
    all_of_them = tree.open(data, max_leak_share=1.0)
    read(all_of_them, tmp_path)


@pytest.mark.parametrize(
    "tree", [t for t in TREES if t.layout in ("webdataset", "idx", "parquet", "csv")], ids=str
)
def test_an_example_in_both_splits(tree, tmp_path):
    tree.write(tmp_path / "data", range(20), "train")
    tree.write(tmp_path / "data", range(17, 26), "test")
    heldout = HELDOUT.get(str(tree), "test")
    source = tree.open(tmp_path / "data", train="train", heldout=heldout)
    refused(source, tmp_path / "cache", r"\b3 of 9\b")


# ---- two layouts in one folder

SPEECH = [t for t in TREES if t.source is SpeechFolder]
IMAGE = [t for t in TREES if t.source is ImageFolder]
YIELD = ("plain", "folder")  # loose files: a table beside them says which of them count
NESTED = ("kaldi",)


@pytest.mark.parametrize(
    "a, b",
    [
        (a, b)
        for some in (SPEECH, IMAGE)
        for a, b in combinations(some, 2)
        if not {a.layout, b.layout} & {*YIELD, *NESTED}
    ],
    ids=str,
)
def test_two_layouts_in_one_folder(a, b, tmp_path):
    """One line asks which, or names what is in the way; with --layout either is read."""
    a.write(tmp_path / "data", range(4), "train")
    b.write(tmp_path / "data", range(4, 8), "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            a.open(tmp_path / "data").check()
        except UserError as error:
            line = str(error)
            assert "\n" not in line
            if "--layout" in line:
                assert f"--layout {a.layout}" in line and f"--layout {b.layout}" in line, line
        else:
            pytest.fail("read as one of two layouts without a question")
        for tree in (a, b):
            assert sum(read(tree.open(tmp_path / "data", layout=tree.layout), tmp_path)[0].values())


def test_jets_of_two_layouts_in_one_folder(tmp_path):
    pytest.importorskip("h5py")
    jets = [t for t in TREES if t.source is JetFile]
    for i, tree in enumerate(jets[:2]):
        tree.write(tmp_path / "data", range(20), f"part{i}")
    source = JetFile(str(tmp_path / "data"))
    refused(source, tmp_path, "--layout (plain or --layout jetnet|jetnet or --layout plain)")


# ---- what is mixed


def test_mixed_rates_are_kept_and_said_where_they_are_resampled(tmp_path):
    tree = SPEECH[0]
    tree.write(tmp_path, range(20), "train")
    put_sound(tmp_path / "train" / "003.wav", 3, 16_000)
    source = tree.open(tmp_path)
    rates = [e["speech"].rate_hz for split in source.splits for e in source.examples(split)]
    assert sorted(set(rates)) == [8_000, 16_000] and rates.count(16_000) == 1
