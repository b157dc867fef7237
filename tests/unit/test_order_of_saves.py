"""What came first is counted: clocks go back, and hosts differ in theirs."""

from itertools import pairwise

import pytest

from lamincli import order
from lamincli.checkpoint_file import saved_by
from lamincli.commands.sync import _began_at
from lamincli.offline import beginning_in, next_number
from lamincli.resume import _latest_of
from lamincli.spool import Job, Spool


def test_numbers_grow_with_every_save_over_calls_and_attempts():
    saves = [
        (0, 1, 0),
        (0, 1, 1),
        (0, 1, 9_999_999),
        (0, 2, 0),
        (0, 9_999, 7),
        (1, 0, 0),
        (2, 1, 5),
    ]
    numbers = [order.number_of_save(*save) for save in saves]
    assert all(one < two for one, two in pairwise(numbers))
    assert [order.attempt_of(number) for number in numbers] == [0, 0, 0, 0, 0, 1, 2]
    assert order.number_of_save(90_000, 9_999, 9_999_999) < 2**53, "JSON keeps it exactly"


@pytest.mark.parametrize("notes", [{}, {"order": None}, {"order": "7"}, {"order": True}])
def test_notes_without_a_number_come_first(notes):
    assert order.of_notes(notes) == -1 < order.of_notes({"order": 0})
    assert order.attempt_of(order.of_notes(notes)) == 0


def test_checkpoint_tells_who_has_saved_it_last():
    old, new = ({"saved": {"run": "R", "order": number}, "x": 1} for number in (3, 8))
    assert saved_by({"callbacks": {"A": new, "B": old, "C": {}}}) == ("R", 8)
    for none in (
        {},
        {"callbacks": None},
        {"callbacks": {"A": 1}},
        {"callbacks": {"A": {"saved": 1}}},
    ):
        assert saved_by(none) == (None, -1)


def begin(folder, uid, started_at, **notes):
    """Leave the beginning of a run in a spool."""
    spool = Spool(folder / ".lamin_spool" / uid)
    job = Job("begin", uid, "me/here", "ab", started_at)
    spool.add(Job(**{**vars(job), "notes": {"goes_on": False, "started_at": started_at, **notes}}))
    return spool


def test_runs_that_wait_are_ordered_as_they_began_although_the_clock_went_back(project):
    assert next_number() == 1
    spools = [begin(project, f"run{n}", f"2026-01-0{9 - n}T00:00:00", number=n) for n in (1, 2, 3)]
    assert next_number() == 4
    old = begin(project, "old", "2026-02-01T00:00:00")
    assert sorted([*spools, old], key=_began_at) == [old, *spools]
    began = {spool.folder.name: beginning_in(spool.folder) for spool in [*spools, old]}
    assert _latest_of(began) == ["run3"]
    assert _latest_of({"old": began["old"]}) == ["old"]
    assert _latest_of({**began, "in LaminDB": None}) == ["run3", "in LaminDB"], "either may be it"
