"""Texts are left as they are unless the recipe says otherwise; what changes is counted."""

import pytest

from mmtok.data.text_preparation import TextPreparation
from mmtok.io.tally import Tally

CAFE = "  Cafe\u0301 ﬁne\n"  # an accent of its own, a ligature


@pytest.mark.parametrize(
    "how, expected",
    [
        ({}, CAFE),
        ({"normal_form": "NFC"}, "  Caf\u00e9 ﬁne\n"),
        ({"normal_form": "NFKC", "lower_case": True}, "  caf\u00e9 fine\n"),
        ({"strip": True}, "Cafe\u0301 ﬁne"),
        ({"spoken_form": "en"}, "caf\u00e9 fine"),
    ],
)
def test_texts_are_prepared_as_said_and_twice_is_as_once(how, expected):
    prepare = TextPreparation(**how).prepare
    tally = Tally("texts")
    assert prepare(CAFE, "a", tally) == expected
    assert list(tally.counts.values()) == [1] * (expected != CAFE)
    assert prepare(expected, "a", Tally()) == expected
    assert prepare(b"bytes", "a", tally) == b"bytes"  # the tokenizer refuses it


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_twice_is_as_once_for_every_character(form):
    prepare = TextPreparation(form, lower_case=True, strip=True).prepare
    for code in range(0x110000):
        once = prepare(chr(code), "a", Tally())
        assert once == once.lower() == prepare(once, "a", Tally())
    assert prepare("\U0001d400", "a", Tally()) == (
        "a" if "K" in form else "\U0001d400"
    )  # a bold A is one by its form only
