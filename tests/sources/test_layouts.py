"""Laws of layouts: evidence decides, two are asked about, a name that is given decides alone."""

import warnings

import pytest

from mmtok.errors import UserError
from mmtok.sources.layouts import Layout, check_layout, chosen_layout, is_part

LAYOUTS = (
    Layout("tars", "tars", lambda place: "a.tar" if "tar" in place else "", "T"),
    Layout("table", "a table", lambda place: "t.csv" if "csv" in place else "", "C"),
    Layout("plain", "files", lambda place: "files" if "png" in place else "", "P", plain=True),
)


def test_evidence_decides_and_is_said():
    with pytest.warns(UserWarning, match=r"^here: read as tars \(a.tar\)$"):
        assert chosen_layout(LAYOUTS, {"tar", "png"}, "", "here").reader == "T"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen_layout(LAYOUTS, {"png"}, "", "here").name == "plain"
        assert chosen_layout(LAYOUTS, {"png", "csv"}, "plain", "here").name == "plain"
        assert chosen_layout(LAYOUTS, {}, "", "here") is None


def test_two_layouts_are_asked_about():
    said = (
        r"here: could be read as tars \(a.tar\) and table \(t.csv\); .* --layout tars or --layout"
    )
    with pytest.raises(UserError, match=said):
        chosen_layout(LAYOUTS, {"tar", "csv"}, "", "here")


def test_an_unknown_layout_is_refused_with_those_that_there_are():
    check_layout(LAYOUTS, "", "Source")
    check_layout(LAYOUTS, "table", "Source")
    with pytest.raises(UserError, match="Source: layout is 'tar'; .* tars, table, plain"):
        check_layout(LAYOUTS, "tar", "Source")


@pytest.mark.parametrize(
    "part",
    ["train", "train.tsv", "captions_train2017.json", "train-00000-of-00010.parquet", "cc-train-1"],
)
def test_a_split_is_a_word_of_the_name(part):
    assert is_part("train", part)
    assert not is_part("test", part)


def test_a_word_within_a_word_is_no_split_and_patterns_match():
    assert not is_part("train", "training")
    assert not is_part("val", "validated.tsv")
    assert is_part("val*.tsv", "validated.tsv")
    for part in ("fold1", "fold1.csv", "data/fold1-0.npz", "fold1_a"):
        assert is_part("fold1", part.split("/")[-1])
    for part in ("fold10", "fold10.csv", "fold11", "myfold1"):
        assert not is_part("fold1", part)
    assert is_part("1", "1") and is_part("1", "1.0") and is_part("1", "part-1.npz")
    assert not is_part("1", "10") and not is_part("1", "21") and not is_part("1", "part-01.npz")
    assert is_part("train2017", "captions_train2017.json")
    assert not is_part("train-clean-10", "train-clean-100")
    assert is_part("shard-00[0-7].tar", "shard-003.tar")
