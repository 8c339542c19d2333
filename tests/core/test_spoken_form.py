"""The spoken form of a text: numbers as they are said, nothing of how it is written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtok.core.spoken_form import ordinal, spelled, spoken_form


@pytest.mark.parametrize(
    "written, said",
    [
        ("Anna found 3 keys.", "anna found three keys"),
        ("Don’t — stop!", "don't stop"),
        ("'quoted' o'clock rock 'n'", "quoted o'clock rock n"),
        ("well-known\tﬁne\n  ＡＢＣ", "well known fine abc"),
        ("1,250 and 12 and 007", "one thousand two hundred fifty and twelve and zero zero seven"),
        ("3.05, 10.", "three point zero five ten"),
        ("the 3rd, 12th, 20th, 21st", "the third twelfth twentieth twenty first"),
        ("at 7:30, 7:05 or 5:00", "at seven thirty seven oh five or five o'clock"),
        ("$2.50, $1, £1.01", "two dollars fifty cents one dollar one pound one penny"),
        ("4% & -2 + 1 = -1", "four percent and minus two plus one equals minus one"),
        ("covid-19", "covid nineteen"),
        ("Über 5 Äpfel", "über five äpfel"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_texts_by_hand(written, said):
    assert spoken_form(written) == said


@given(st.text(max_size=40))
def test_twice_is_as_once(text):
    once = spoken_form(text)
    assert spoken_form(once) == once
    assert once == once.lower() == " ".join(once.split())


@given(st.text("0123456789.,:$%-+ thsnrd'", max_size=24))
def test_no_digit_is_left(text):
    said = spoken_form(text)
    assert spoken_form(said) == said
    assert not any(c.isdigit() for c in said)


def test_numbers_are_told_apart():
    """Every number below 10,000 and around the groups has words of its own."""
    numbers = [*range(10_000), *(10**k + d for k in range(4, 15) for d in (-1, 0, 1))]
    assert len({spelled(n) for n in numbers}) == len(set(numbers))
    assert len({ordinal(n) for n in range(1000)}) == 1000
    assert spelled(-1_000_007) == "minus one million seven"
    assert spelled(999_999).startswith("nine hundred ninety nine thousand nine hundred")
    assert spelled(10**15) == " ".join(["one", *["zero"] * 15])
