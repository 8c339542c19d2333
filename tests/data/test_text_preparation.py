"""Texts are left as they are unless the recipe says otherwise; what changes is counted."""

import unicodedata

import pytest

from mmtok.data.text_preparation import TextPreparation
from mmtok.errors import UserError
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


ASSIGNED = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Co")]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_twice_is_as_once_for_every_character(form):
    """Of all that Unicode knows; some of the others stand for the million that it does not."""
    prepare = TextPreparation(form, lower_case=True, strip=True).prepare
    for character in (*ASSIGNED, *map(chr, range(0, 0x110000, 999))):
        once = prepare(character, "a", Tally())
        assert once == once.lower() == prepare(once, "a", Tally())
    assert prepare("\U0001d400", "a", Tally()) == (
        "a" if "K" in form else "\U0001d400"
    )  # a bold A is one by its form only


def test_phonemes_are_those_of_what_is_said_and_stay_as_they_are():
    pytest.importorskip("espeakng_loader")
    prepare = TextPreparation(phonemes="en-us").prepare

    def said(text):
        return prepare(text, "a", Tally())

    assert said("I read a book, I have read 2.") == "/aɪ ɹˈiːd ɐ bˈʊk aɪ hæv ɹˈɛd tˈuː/"
    assert said("2 cats!") == said("two cats") == said(said("two cats"))
    assert said("") == said("?!") == "//"
    sentences = " ".join(["A cat sat. Two dogs ran, and left!"] * 40)
    assert said(sentences).count("kˈæt") == 40  # clause after clause, to the end
    german = TextPreparation(phonemes="de").prepare("Guten Tag", "a", Tally())
    assert german == "/ɡˈuːtən tˈɑːk/" and said("Guten Tag") != german
    with pytest.raises(UserError, match="no language 'xx'"):
        TextPreparation(phonemes="xx").prepare("a", "a", Tally())
