"""The slot table and the scheduler lose nothing, whatever arrives and however long it stays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.engine import Request
from llava_batch.engine import scheduler as scheduling
from llava_batch.engine.scheduler import Scheduler, SlotTable, common_prefix
from llava_batch.engine.sequence import sequences


def test_a_slot_is_never_given_twice():
    table = SlotTable(2)
    assert {table.take("a"), table.take("b")} == {0, 1}
    with pytest.raises(RuntimeError, match="all 2 slots are taken"):
        table.take("c")


def test_a_slot_that_nobody_owns_cannot_be_released():
    table = SlotTable(2)
    with pytest.raises(RuntimeError, match="nobody owns"):
        table.release(1)


def test_the_check_sees_a_lost_slot():
    table = SlotTable(3)
    table.check()
    del table._free[1]
    with pytest.raises(RuntimeError, match="broken"):
        table.check()


def test_the_lowest_free_slot_or_the_one_that_is_free_for_longest_is_given():
    for lowest, expected in ((True, [0, 2]), (False, [2, 0])):
        table = SlotTable(3, lowest=lowest)
        for _ in range(3):
            table.take("a")
        table.release(2)
        table.release(0)
        assert [table.take("b"), table.take("c")] == expected


def queue(count):
    return [sequences(Request(id=str(n), prompt_ids=[n, 1]), [], -1, [])[0] for n in range(count)]


def test_prompts_are_admitted_together_once_slots_for_them_are_free(monkeypatch):
    monkeypatch.setattr(scheduling, "TOGETHER", 2)
    scheduler = Scheduler(8, reuse=False, packed=True)
    scheduler.add(queue(20))
    assert scheduler.is_time(), "nothing is at work"
    scheduler.admit()
    for ended, is_time in ((0, False), (1, False), (2, False), (3, True)):
        scheduler.release(scheduler.active[ended])
        assert scheduler.is_time() == is_time, f"{ended + 1} of 8 slots are free"
    scheduler.waiting.clear()
    scheduler.add(queue(1))
    for _ in range(3):
        scheduler.slots.take("other")
    assert scheduler.is_time(), "all that wait have room"


def test_after_a_back_off_slots_are_filled_again_as_they_become_free():
    made = Scheduler(256, reuse=False, packed=True)
    made.most = 8
    made.add(queue(40))
    made.admit()
    assert len(made.active) == 8
    made.release(made.active[3])
    assert made.is_time(), "one of eight slots is free"


def test_room_comes_back_more_slowly_each_time_that_it_was_too_much():
    made = Scheduler(16, reuse=False)
    waited = []
    for _ in range(4):
        made.admit()
        made.back_off()
        steps = 0
        while made.most < 16:
            made.step_went_well()
            steps += 1
        waited.append(steps)
    assert waited == sorted(waited)
    assert waited[-1] >= 4 * waited[0]


@settings(max_examples=200, deadline=None)
@given(
    num_slots=st.integers(1, 7),
    reuse=st.booleans(),
    packed=st.booleans(),
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.integers(34, 60), st.integers(1, 6)), max_size=40
    ),
)
def test_every_sequence_gets_a_slot_once_and_gives_it_back(num_slots, reuse, packed, arrivals):
    scheduler = Scheduler(num_slots, reuse=reuse, packed=packed)
    waiting = [
        (sequences(Request(id=str(n), prompt_ids=[image] * length), [], -1, [])[0], stay)
        for n, (image, length, stay) in enumerate(arrivals)
    ]
    left = {id(sequence): stay for sequence, stay in waiting}
    out, turns = [], 0
    while waiting or scheduler.waiting or scheduler.active:
        turns += 1
        assert turns < 1000, "the scheduler is stuck"
        scheduler.add(sequence for sequence, _ in waiting[:3])
        del waiting[:3]
        while admitted := scheduler.admit():
            scheduler.check()
            for admission in admitted:
                assert admission.num_shared < len(admission.sequence.ids)
                admission.sequence.num_cached = len(admission.sequence.ids)
                scheduler.cached(admission.sequence)
        for sequence in list(scheduler.active.values()):
            left[id(sequence)] -= 1
            if left[id(sequence)] == 0:
                out.append(sequence.request.id)
                scheduler.release(sequence)
        scheduler.check()
    assert sorted(out, key=int) == [str(n) for n in range(len(arrivals))]


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_what_a_loop_finds(left, right):
    expected = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        expected += 1
    assert common_prefix(np.array(left, dtype=int), np.array(right, dtype=int)) == expected
