"""Steps made one ahead by a thread: the same, in order, and their errors where they belong."""

import threading

import pytest

from mmtok.data.feed import Feed
from mmtok.errors import UserError


@pytest.mark.parametrize("ahead", [False, True])
def test_steps_are_those_that_are_asked_for_in_any_order(ahead):
    feed = Feed(lambda step: step * step, ahead)
    assert feed.work(7) == 49  # also before it is entered
    with feed:
        assert [feed.work(step) for step in (3, 4, 5, 9, 2)] == [9, 16, 25, 81, 4]
    assert feed.work(6) == 36


def test_the_next_step_is_made_while_one_is_used():
    begun = threading.Event()

    def make(step):
        if step == 1:
            begun.set()
        return threading.get_ident()

    with Feed(make, ahead=True) as feed:
        assert feed.work(0) != threading.get_ident()
        assert begun.wait(10)
    n_threads = threading.active_count()
    with Feed(make, ahead=False) as feed:
        assert feed.work(0) == threading.get_ident() and threading.active_count() == n_threads


def test_an_error_is_raised_at_its_own_step():
    def make(step):
        if step == 2:
            raise UserError("row 17 is broken")
        return step

    with Feed(make, ahead=True) as feed:
        assert [feed.work(0), feed.work(1)] == [0, 1]
        with pytest.raises(UserError, match="row 17"):
            feed.work(2)
