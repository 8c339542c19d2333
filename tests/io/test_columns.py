"""Columns by name: as users name them, and as tables spell them."""

import pytest

from mmtok.errors import UserError
from mmtok.io.columns import (
    cell_of,
    check_named,
    chosen_column,
    known_column,
    named_column,
    whole_columns,
)

THERE = ("client_id", "Path", "sentence", "up_votes", "File Name")


def test_a_named_column_wins_and_case_does_not_count():
    assert named_column("path", THERE, "t.tsv") == "Path"
    assert chosen_column("caption", THERE, {"caption": "sentence"}, ("text",), "t") == "sentence"
    assert chosen_column("caption", THERE, {}, ("text", "sentence"), "t") == "sentence"
    assert chosen_column("caption", THERE, {}, ("text",), "t") is None


def test_a_part_of_a_column_of_records():
    there = ("id", "Meta", "a.b")
    assert named_column("meta.en", there, "t", has_records=True) == "Meta.en"
    assert named_column("a.b", there, "t", has_records=True) == "a.b"
    for name, has_records in (("meta.en", False), ("mata.en", True), ("meta.", True)):
        with pytest.raises(UserError, match="has no column"):
            named_column(name, there, "t", has_records)
    row = {"id": 1, "Meta": {"en": "x", "of": {"it": 2}}, "a.b": 3}
    cells = [
        cell_of(row, name) for name in ("Meta.en", "Meta.of.it", "a.b", "id", "Meta.fr", "c.d")
    ]
    assert cells == ["x", 2, 3, 1, None, None]
    assert whole_columns(["Meta.en", "a.b", "c.d", "Meta.fr"], there) == ["Meta", "a.b"]


def test_spellings_of_headers():
    assert known_column(("file_name",), THERE) == "File Name"
    assert known_column(("file_name",), ('\ufeff"FILE-NAME"',)) == '\ufeff"FILE-NAME"'
    assert known_column(("path", "file_name"), THERE) == "Path"  # the likeliest first


def test_a_column_that_is_not_there_names_the_three_nearest():
    with pytest.raises(
        UserError, match="t.tsv: has no column 'sentense'; nearest: sentence, "
    ) as e:
        named_column("sentense", THERE, "t.tsv")
    assert str(e.value).split("(of")[0].count(",") == 2


def test_case_counts_where_two_differ_in_it_alone():
    assert named_column("pt", ("PT", "pt"), "f") == "pt"
    with pytest.raises(UserError, match="no column 'Pt'"):
        named_column("Pt", ("PT", "pt"), "f")


def test_fields_that_there_are_not():
    with pytest.raises(UserError, match="SpeechFolder: columns names speker; the fields are file"):
        check_named({"speker": "x"}, ("file", "caption"), "SpeechFolder")
