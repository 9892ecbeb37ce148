"""The slot table and the scheduler lose nothing, whatever arrives and however long it stays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_batch.engine import Request
from llava_batch.engine import scheduler as scheduling
from llava_batch.engine.scheduler import Scheduler, common_prefix
from llava_batch.engine.sequence import sequences
from llava_batch.engine.slots import SlotTable


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


def test_adjacent_slots_are_given_taken_back_and_never_given_twice():
    table = SlotTable(6, lowest=True)
    assert table.take("a", width=2) == 0
    assert table.take("b") == 2
    assert table.take("c", width=3) == 3
    assert table.find() is None
    table.release(0)
    assert (table.find(1), table.find(2), table.find(3)) == (0, 0, None)
    table.release(2)
    assert table.find(3) == 0
    assert table.find(3, kept=range(2, 3)) is None
    assert table.emptiest(4) == range(4)
    with pytest.raises(RuntimeError, match="slot 1 is not free, or one of the 3 from it on"):
        table.take("d", 1, width=3)
    with pytest.raises(RuntimeError, match="slots of 4 adjacent are taken"):
        table.take("d", width=4)
    table.check()


def test_of_adjacent_slots_those_that_are_all_free_for_longest_are_given():
    table = SlotTable(6)
    for _ in range(6):
        table.take("a")
    for slot in (5, 2, 4, 3, 0, 1):
        table.release(slot)
    assert table.find(1) == 5
    assert table.find(2) == 4, "4 and 5 were free before 2 and 3 were"


def needs(count, tokens):
    return [
        sequences(Request(id=f"{n}", prompt_ids=[n, 1], max_new_tokens=tokens - 2), [], -1, [])[0]
        for n in range(count)
    ]


def test_slots_are_kept_for_one_that_needs_them_adjacent_and_others_pass_it():
    scheduler = Scheduler(6, slot_tokens=10, reuse=False)
    scheduler.add(needs(6, 10))
    assert len(scheduler.admit()) == 6
    (wide,) = needs(1, 30)
    scheduler.add([wide, *needs(9, 10)])
    for slot in (0, 2, 5):
        scheduler.release(scheduler.active[slot])
        scheduler.admit()
        assert wide.slot < 0
    assert set(scheduler.active) == {1, 3, 4, 5}, "0 and 2 are kept, 5 is not"
    scheduler.release(scheduler.active[1])
    scheduler.admit()
    assert (wide.slot, wide.width) == (0, 3)
    scheduler.check()


def test_what_a_row_of_several_slots_left_is_gone_once_one_of_them_is_taken():
    scheduler = Scheduler(4, slot_tokens=50, reuse=True)
    first, again = (
        sequences(Request(id=i, prompt_ids=[7] * 90, max_new_tokens=9), [], -1, [])[0] for i in "ab"
    )
    scheduler.add([first])
    scheduler.admit()
    first.num_cached = 90
    scheduler.cached(first)
    scheduler.release(first)
    for _ in range(2):
        scheduler.slots.take("others")  # 2 and 3, free for longest
    scheduler.add(needs(1, 10))
    (small,) = scheduler.admit()
    assert small.sequence.slot == 0
    scheduler.release(small.sequence)
    scheduler.add([again])
    (admission,) = scheduler.admit()
    assert (again.slot, again.width, admission.num_shared) == (0, 2, 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"reuse": True}, 3), ({"reuse": True, "packed": True}, 0), ({"reuse": False}, 0)],
)
def test_what_all_prompts_begin_with_is_taken_where_it_lies_and_never_copied(options, expected):
    scheduler = Scheduler(2, slot_tokens=200, **options)
    asked = [
        sequences(Request(id=f"{n}", prompt_ids=[1, 2, 3] + [7 + n] * 40), [], -1, [])[0]
        for n in range(3)
    ]
    scheduler.add(asked[:2])
    for admission in scheduler.admit():
        assert admission.num_shared == 0
        admission.sequence.num_cached = 43
        scheduler.cached(admission.sequence)
    scheduler.release(asked[1])
    scheduler.add(asked[2:])
    (admission,) = scheduler.admit()
    assert (admission.num_shared, admission.donor) == (expected, asked[2].slot)
    assert asked[2].num_cached == expected
    assert (asked[2].origin, asked[2].num_shared) == (-1, 0)
    scheduler.check()


def queue(count):
    return [sequences(Request(id=str(n), prompt_ids=[n, 1]), [], -1, [])[0] for n in range(count)]


def test_prompts_are_admitted_together_once_slots_for_them_are_free(monkeypatch):
    monkeypatch.setattr(scheduling, "TOGETHER", 2)
    scheduler = Scheduler(8, slot_tokens=500, reuse=False, packed=True)
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
    made = Scheduler(256, slot_tokens=500, reuse=False, packed=True)
    made.most = 8
    made.add(queue(40))
    made.admit()
    assert len(made.active) == 8
    made.release(made.active[3])
    assert made.is_time(), "one of eight slots is free"


def test_room_comes_back_more_slowly_each_time_that_it_was_too_much():
    made = Scheduler(16, slot_tokens=500, reuse=False)
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
    slot_tokens=st.integers(30, 200),
    reuse=st.booleans(),
    packed=st.booleans(),
    arrivals=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(34, 60), st.integers(1, 6)),
        max_size=40,
    ),
)
def test_every_sequence_gets_its_slots_once_and_gives_them_back(
    num_slots, slot_tokens, reuse, packed, arrivals
):
    num_slots = max(num_slots, -(-192 // slot_tokens))  # the longest finds place
    scheduler = Scheduler(num_slots, slot_tokens=slot_tokens, reuse=reuse, packed=packed)
    waiting = [
        (
            sequences(Request(id=str(n), prompt_ids=[9] * begin + [image] * length), [], -1, [])[0],
            stay,
        )
        for n, (begin, image, length, stay) in enumerate(arrivals)
    ]
    held: dict[int, tuple[int, list[int]]] = {}
    """What was last written from a slot on, and in how many."""
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
                sequence = admission.sequence
                assert admission.num_shared < len(sequence.ids)
                assert sequence.width * slot_tokens >= sequence.max_tokens
                mine = range(sequence.slot, sequence.slot + sequence.width)
                others = range(admission.donor, admission.donor + admission.donor_width)
                apart = mine.stop <= others.start or others.stop <= mine.start
                assert apart or mine == others, "a fork would write over what it copies"
                if admission.num_shared:
                    width, ids = held[admission.donor]
                    assert width == admission.donor_width
                    assert ids[: admission.num_shared] == list(sequence.ids[: admission.num_shared])
                for slot in range(num_slots):
                    if slot in held and slot < mine.stop and slot + held[slot][0] > mine.start:
                        del held[slot]
                held[sequence.slot] = sequence.width, list(sequence.ids)
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
