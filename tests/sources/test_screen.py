"""A few broken things are passed over and counted, many stop the run; both before the long work."""

import warnings

import pytest

from mmtok.errors import UserError
from mmtok.sources.screen import Limit, Screen, Tolerance


def look(bad, sizes=None):
    def looked(item):
        if item in bad:
            raise UserError(f"{item}: is broken")
        return sizes(item) if sizes else {}

    return looked


def test_one_in_a_hundred_is_passed_over_and_counted_once():
    with pytest.warns(UserWarning) as said:
        screen = Screen(range(200), look({7, 9}), Tolerance(), "clips")
    assert screen.items == [i for i in range(200) if i not in (7, 9)]
    assert [str(w.message) for w in said] == [
        "2 of 200 clips were passed over as unusable (first: 7: is broken)"
    ]


def test_more_stop_the_run_with_the_first_ten():
    with pytest.raises(UserError) as error:
        Screen(range(200), look(set(range(10, 25))), Tolerance(), "clips")
    assert (
        str(error.value)
        == "10: is broken; likewise 11, 12, 13, 14, 15, 16, 17, 18, 19 and 5 more: 15 of 200 clips"
        " cannot be used, and at most 0.01 of all are passed over; mend or remove them, or set"
        " max_error_share"
    )
    assert len(Screen(range(4), look({1, 2}), Tolerance(max_error_share=0.5), "clips").items) == 2


def test_the_first_is_raised_where_that_is_asked():
    with pytest.raises(UserError, match="^7: is broken$"):
        Screen(range(200), look({7, 9}), Tolerance(on_error="raise"), "clips")


def test_limits_count_what_they_leave_out():
    limits = (Limit("duration_s", 1, 5), Limit("chars", 0, 3))
    with pytest.warns(UserWarning) as said:
        screen = Screen(
            range(9),
            look((), lambda i: {"duration_s": i, "chars": 8 - i}),
            Tolerance(),
            "clips",
            limits,
        )
    assert screen.items == [5]
    assert {str(w.message) for w in said} == {
        "1 of 9 clips was left out: fewer seconds than 1 (first: 0)",
        "3 of 9 clips were left out: more seconds than 5 (first: 6)",
        "4 of 9 clips were left out: more characters than 3 (first: 1)",
    }


def test_what_cannot_be_read_after_all_counts_with_what_was_seen_before():
    def read(item):
        if item in (20, 30):
            raise UserError(f"{item}: cannot be read")
        return -item

    with warnings.catch_warnings(action="ignore"):
        screen = Screen(range(200), look({7}), Tolerance(), "clips")
        for _ in range(2):  # every pass counts anew
            assert list(screen.listing([19, 20, 21], read).examples()) == [-19, -21]
        with pytest.raises(UserError, match="7: is broken; likewise 20, 30: 3 of 200 clips"):
            list(screen.listing([20, 30], read).examples())


def test_settings_are_checked():
    for wrong in ({"on_error": "ignore"}, {"max_error_share": 1.5}):
        with pytest.raises(UserError, match="Tolerance: "):
            Tolerance(**wrong)
    for least, most in ((-1, 0), (3, 2), (float("nan"), 0)):
        with pytest.raises(UserError, match="min_chars"):
            Limit("chars", least, most)


def test_two_faults_of_one_name_are_two():
    faults = iter(["line 2: no time", "line 3: no time"])

    def looked(item):
        if item < 2:
            raise UserError(next(faults))
        return {}

    with pytest.raises(UserError, match=r"line 2: no time; likewise a\.wav: 2 of 100 clips cannot"):
        Screen(range(100), looked, Tolerance(), "clips", name=lambda item: "a.wav")


def unread(item):
    if item < 2:
        raise UserError(f"{item}: is broken inside")
    return {"text": str(item)}


@pytest.mark.parametrize("split, left", [((0, 1), 0), ((0, 5), 1), ((), 0)])
def test_a_split_that_ends_empty_as_all_is_unusable_says_so(split, left):
    listing = Screen(range(200), look(()), Tolerance(), "clips").listing(split, unread)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert len(list(listing.examples())) == left
    empty = [str(w.message) for w in said if "so the split is empty" in str(w.message)]
    assert len(empty) == (split == (0, 1))
    assert not empty or empty[0].startswith("0: is broken inside: all of its split is unusable")
