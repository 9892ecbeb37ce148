"""Who gets a slot when, and whose K/V can be forked. Plain Python and numpy, no torch.

Requests are admitted in the order they came, with one exception: a sequence that could fork from
one which is admitted but not prefilled yet waits for that, and others may pass it meanwhile.
A released slot keeps its contents until it is taken again, so that a later request with the same
prefix can fork from it; the slot that was released first is therefore given out first. Where a decode
step works on the first slots up to the highest taken, the lowest free one is given out instead.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llava_batch.engine.sequence import Sequence

MIN_SHARED_TOKENS = 32
"""A shorter common prefix is not worth a copy."""

TOGETHER = 16
"""One slot in so many is let run empty before prompts are prefilled together. Not measured on a card; simulated
(benchmarks/simulate.py), anything up to a quarter of the slots is within 1 %."""

PATIENCE = 64
"""Decode steps that must go well after the first back-off before a quarter more rows are let in; twice
as many after each further one, so that a memory that stays short is tried ever more seldom."""


class SlotTable:
    """A free list over `num_slots` slots, with their owners."""

    def __init__(self, num_slots: int, *, lowest: bool = False) -> None:
        """lowest: give out the lowest free slot, not the one that has been free for longest."""
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}, must be at least 1")
        self.num_slots, self.lowest = num_slots, lowest
        self._free: dict[int, None] = dict.fromkeys(range(num_slots))
        self._owner: dict[int, object] = {}

    @property
    def num_free(self) -> int:
        """How many slots nobody owns."""
        return len(self._free)

    def is_free(self, slot: int) -> bool:
        """Whether nobody owns `slot`."""
        return slot in self._free

    def take(self, owner: object, slot: int | None = None) -> int:
        """Give `owner` the slot asked for, or the next one."""
        if not self._free:
            raise RuntimeError(f"all {self.num_slots} slots are taken")
        chosen = slot
        if chosen is None:
            chosen = min(self._free) if self.lowest else next(iter(self._free))
        if chosen not in self._free:
            raise RuntimeError(f"slot {chosen} is not free")
        del self._free[chosen]
        self._owner[chosen] = owner
        return chosen

    def release(self, slot: int) -> None:
        """Take `slot` back; its contents stay until it is taken again."""
        if slot not in self._owner:
            raise RuntimeError(f"slot {slot} is released but nobody owns it")
        del self._owner[slot]
        self._free[slot] = None

    def check(self) -> None:
        """Raise unless every slot is either free or owned, and none is both."""
        seen = sorted([*self._free, *self._owner])
        if seen != list(range(self.num_slots)):
            raise RuntimeError(f"slot table is broken: free {self._free}, owned {[*self._owner]}")


@dataclass(frozen=True, kw_only=True)
class Admission:
    """`sequence` now owns its slot, and begins with `num_shared` tokens of slot `donor`."""

    sequence: Sequence
    donor: int
    num_shared: int


class Scheduler:
    """The waiting queue, the slot table, and what each slot holds."""

    def __init__(self, num_slots: int, *, reuse: bool, packed: bool = False) -> None:
        """reuse: fork prompts that begin alike.

        packed: give out the lowest free slot, since decode works on a prefix of the slots, and let
        some slots run empty before prompts are admitted, since one prefilled alone reads all weights.
        """
        self.slots = SlotTable(num_slots, lowest=packed)
        self.packed = packed
        self.most = num_slots
        """Sequences that may be active; fewer than there are slots after a back-off."""
        self._patience = self._steps_to_go = PATIENCE
        self.reuse = reuse
        self.waiting: deque[Sequence] = deque()
        self.active: dict[int, Sequence] = {}
        self._held = [np.empty(0, dtype=np.int64) for _ in range(num_slots)]

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences at the end."""
        self.waiting.extend(sequences)

    @property
    def together(self) -> int:
        """How many slots are let run empty before others are admitted."""
        return max(1, self.most // TOGETHER) if self.packed else 1

    def is_time(self) -> bool:
        """Whether to admit now: once `together` slots are free, or room for all that wait."""
        wanted = min(self.together, len(self.waiting))
        return not self.active or self.most - len(self.active) >= wanted

    def admit(self) -> list[Admission]:
        """Move waiting sequences to free slots; call again once these are prefilled."""
        admitted: list[Admission] = []
        passed: list[Sequence] = []
        while self.waiting and len(self.active) < self.most:
            sequence = self.waiting.popleft()
            if self._should_wait(sequence):
                passed.append(sequence)
                continue
            admitted.append(self._place(sequence))
        self.waiting.extendleft(reversed(passed))
        return admitted

    def cached(self, sequence: Sequence) -> None:
        """Note that `sequence`'s prompt is now in its slot, for others to fork from."""
        self._held[sequence.slot] = sequence.prefix[: sequence.num_cached]

    def release(self, sequence: Sequence) -> None:
        """Take the slot of a sequence that has ended; what it holds can still be forked."""
        del self.active[sequence.slot]
        self.slots.release(sequence.slot)
        sequence.slot = -1

    def back_off(self) -> None:
        """Half as many slots from now on: the upper half of the active sequences wait once more.

        They keep what they have answered, and feed it again when they get a slot.
        """
        keep = max(1, len(self.active) // 2)
        self.most = keep
        self._steps_to_go = self._patience
        self._patience *= 2
        for slot in sorted(self.active)[keep:][::-1]:
            sequence = self.active[slot]
            self.release(sequence)
            self.waiting.appendleft(sequence)

    def step_went_well(self) -> None:
        """A decode step found its memory: after enough of them more slots may be filled again."""
        if self.most == self.slots.num_slots:
            return
        self._steps_to_go -= 1
        if self._steps_to_go == 0:
            self.most = min(self.slots.num_slots, self.most + max(1, self.most // 4))
            self._steps_to_go = self._patience // 2

    def forget(self, slot: int) -> None:
        """Never fork from what `slot` holds now."""
        self._held[slot] = self._held[slot][:0]

    def check(self) -> None:
        """Raise unless slots, owners and active sequences agree."""
        self.slots.check()
        for slot, sequence in self.active.items():
            if sequence.slot != slot or self.slots.is_free(slot):
                raise RuntimeError(f"slot {slot} and its sequence {sequence.request.id!r} disagree")
        if len(self.active) + self.slots.num_free != self.slots.num_slots:
            raise RuntimeError(f"{len(self.active)} active, {self.slots.num_free} free slots")

    def _place(self, sequence: Sequence) -> Admission:
        donor, num_shared = self._best_donor(sequence)
        in_place = num_shared > 0 and self.slots.is_free(donor)
        slot = self.slots.take(sequence, donor if in_place else None)
        sequence.slot, sequence.num_cached = slot, num_shared
        self.active[slot] = sequence
        self._held[slot] = sequence.prefix[:num_shared]
        return Admission(
            sequence=sequence, donor=donor if num_shared else slot, num_shared=num_shared
        )

    def _best_donor(self, sequence: Sequence) -> tuple[int, int]:
        """The slot that holds most of the prompt, and how much; at least one token is left over."""
        if not self.reuse:
            return 0, 0
        shared = [common_prefix(held, sequence.prefix) for held in self._held]
        donor = max(range(len(shared)), key=shared.__getitem__)
        num_shared = min(shared[donor], len(sequence.prefix) - sequence.num_scores)
        return (donor, num_shared) if num_shared >= MIN_SHARED_TOKENS else (0, 0)

    def _should_wait(self, sequence: Sequence) -> bool:
        """Whether a sequence about to be prefilled will hold much more of this prompt than any now."""
        if not self.reuse:
            return False
        promised = max(
            (
                common_prefix(other.prefix, sequence.prefix)
                for other in self.active.values()
                if len(self._held[other.slot]) < len(other.prefix) and other.needs_prefill
            ),
            default=0,
        )
        promised = min(promised, len(sequence.prefix) - sequence.num_scores)
        return promised >= self._best_donor(sequence)[1] + MIN_SHARED_TOKENS


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the longest common prefix of two int64 arrays."""
    size = min(len(left), len(right))
    if size == 0 or left[0] != right[0]:
        return 0
    differ = left[:size] != right[:size]
    return int(differ.argmax()) if differ.any() else size
