"""A short share of scripts/fuzz.py: damaged files of every kind are read, or refused in one line
that names them.
"""

import sys
from pathlib import Path

import pytest

from mmtok.io import memory_budget

SCRIPTS = Path(__file__).parents[2] / "scripts"
SMALL = (
    "text",
    "csv",
    "csv.gz",
    "jsonl",
    "wav",
    "flac",
    "png",
    "jpg",
    "tif",
    "npy",
    "npz",
    "h5",
    "parquet",
    "idx.gz",
    "tokens",
    "recipe",
    "tokenizer-sentencepiece",
    "tokenizer-dmel",
    "tokenizer-klpatches",
    "tokenizer-jetgrid",
    "tokenizer-pretrained",
)


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(SCRIPTS))
    import fuzz

    memory_budget.set_limit(str(fuzz.BUDGET))
    yield fuzz
    memory_budget.set_limit(None)
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def home(fuzz, tmp_path_factory):
    from fuzz_kinds import make_sound

    home = tmp_path_factory.mktemp("fuzz")
    make_sound(home, SMALL)
    return home


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SMALL)
def test_damaged_files_are_read_or_refused_in_one_line(fuzz, home, kind):
    if kind == "h5":
        pytest.importorskip("h5py")
    for i in range(5):
        what, said = fuzz.outcome_of(kind, 7, i, home, home / "damaged" / f"{kind}-{i}")
        assert what in ("read", "refused"), said


def test_what_is_no_refusal_is_a_fault(fuzz, home, monkeypatch):
    from fuzz_kinds import KINDS, Kind

    def fails(path):
        raise TypeError("ours")

    monkeypatch.setitem(KINDS, "text", Kind(KINDS["text"].make, fails))
    assert fuzz.outcome_of("text", 7, 0, home, home / "damaged" / "fault")[0] == "traceback"
