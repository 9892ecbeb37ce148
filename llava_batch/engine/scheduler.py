"""Who gets a slot when, and whose K/V can be forked. Plain Python and numpy, no torch.

A sequence has one slot, or as many adjacent ones as hold what it may come to need (its width).
Requests are admitted in the order they came, with two exceptions. A sequence that could fork from
one which is admitted but not prefilled yet waits for that, and others may pass it meanwhile. One that
finds no adjacent slots free has those kept for it of which most are, and others may pass it elsewhere.
A released slot keeps its contents until it is taken again, so that a later request with the same
prefix can fork from it; whoever is given it keeps what its own prompt begins with, however short.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llava_batch.engine.sequence import Sequence
from llava_batch.engine.slots import NOBODY, SlotTable

MIN_SHARED_TOKENS = 32
"""A shorter common prefix is not worth a copy; one that lies in the slot already is taken however short."""

TOGETHER = 16
"""One slot in so many is let run empty before prompts are prefilled together. Not measured on a card; simulated
(benchmarks/simulate.py), anything up to a quarter of the slots is within 1 %."""

PATIENCE = 64
"""Decode steps that must go well after the first back-off before a quarter more rows are let in; twice
as many after each further one, so that a memory that stays short is tried ever more seldom."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """`sequence` now owns its slots, and begins with `num_shared` tokens of those from `donor` on."""

    sequence: Sequence
    donor: int
    donor_width: int
    num_shared: int


class Scheduler:
    """The waiting queue, the slot table, and what each slot holds."""

    def __init__(
        self,
        num_slots: int,
        *,
        slot_tokens: int,
        reuse: bool,
        packed: bool = False,
        most: int | None = None,
    ) -> None:
        """slot_tokens: what one slot holds. reuse: fork prompts that begin alike.

        packed: give out the lowest free slot, since decode works on a prefix of the slots, and let
        some slots run empty before prompts are admitted, since one prefilled alone reads all weights.
        most: sequences that may be active, by default as many as there are slots.
        """
        self.slots = SlotTable(num_slots, lowest=packed)
        self.packed, self.slot_tokens = packed, slot_tokens
        self.most = self._most_ever = most or num_slots
        """Sequences that may be active; fewer after a back-off."""
        self._patience = self._steps_to_go = PATIENCE
        self.reuse = reuse
        self.waiting: deque[Sequence] = deque()
        self.active: dict[int, Sequence] = {}
        self._held = [np.empty(0, dtype=np.int64) for _ in range(num_slots)]
        self._widths = [1] * num_slots
        """Of what each slot holds, or held."""
        self._kept = NOBODY
        """Slots that are kept for a sequence which needs them adjacent."""

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
        room = min(self.most - len(self.active), self.slots.num_free)
        return not self.active or room >= wanted

    def admit(self) -> list[Admission]:
        """Move waiting sequences to free slots; call again once these are prefilled."""
        admitted: list[Admission] = []
        passed: list[Sequence] = []
        self._kept = NOBODY
        narrowest = self.slots.num_slots + 1  # of the widths that found no room
        while self.waiting and self.slots.num_free and len(self.active) < self.most:
            sequence = self.waiting.popleft()
            width = self.width_of(sequence)
            if width >= narrowest or self._should_wait(sequence):
                passed.append(sequence)
                continue
            admission = self._place(sequence, width)
            if admission is not None:
                admitted.append(admission)
                continue
            passed.append(sequence)
            narrowest = width
            if not self._kept:
                self._kept = self.slots.emptiest(width)
            if width == 1:
                break
        self.waiting.extendleft(reversed(passed))
        return admitted

    def width_of(self, sequence: Sequence) -> int:
        """How many adjacent slots hold all that a sequence may come to need."""
        return -(-sequence.max_tokens // self.slot_tokens)

    def cached(self, sequence: Sequence) -> None:
        """Note that `sequence`'s prompt is now in its slot, for others to fork from."""
        self._held[sequence.slot] = sequence.prefix[: sequence.num_cached]

    def release(self, sequence: Sequence) -> None:
        """Take the slot of a sequence that has ended; what it holds can still be forked."""
        del self.active[sequence.slot]
        self.slots.release(sequence.slot)
        sequence.slot = -1

    def back_off(self) -> None:
        """Half as many rows from now on: the upper half of the active sequences wait once more.

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
        if self.most == self._most_ever:
            return
        self._steps_to_go -= 1
        if self._steps_to_go == 0:
            self.most = min(self._most_ever, self.most + max(1, self.most // 4))
            self._steps_to_go = self._patience // 2

    def forget(self, slot: int) -> None:
        """Never fork from what `slot` holds now, nor read there what has been forked from it."""
        self._held[slot] = self._held[slot][:0]
        for sequence in self.active.values():
            if sequence.origin == slot:
                sequence.origin, sequence.num_shared = -1, 0

    def check(self) -> None:
        """Raise unless slots, owners and active sequences agree."""
        self.slots.check()
        for slot, sequence in self.active.items():
            if sequence.slot != slot or self.slots.is_free(slot):
                raise RuntimeError(f"slot {slot} and its sequence {sequence.request.id!r} disagree")
        taken = sum(sequence.width for sequence in self.active.values())
        if taken + self.slots.num_free != self.slots.num_slots:
            raise RuntimeError(f"{taken} slots of active rows, {self.slots.num_free} free")
        for sequence in self.active.values():
            held = self._held[sequence.origin]
            if common_prefix(held, sequence.prefix) < sequence.num_shared:
                raise RuntimeError(f"slot {sequence.origin} does not hold what is read there")

    def _place(self, sequence: Sequence, width: int) -> Admission | None:
        """Give a sequence its slots; None where so many adjacent ones are not free."""
        donor, num_shared = self._best_donor(sequence)
        slot = self._in_place(donor, num_shared, width)
        if slot is None:
            slot = self.slots.find(width, self._kept)
            if slot is None:
                return None
            if slot < donor + self._widths[donor] and donor < slot + width:
                num_shared = 0  # what is to be copied would be written over
        if not num_shared:
            donor, num_shared = slot, self._lies_there(sequence, slot, width)
        found = Admission(
            sequence=sequence,
            donor=donor,
            donor_width=self._widths[donor] if num_shared else width,
            num_shared=num_shared,
        )
        self.slots.take(sequence, slot, width)
        sequence.slot, sequence.width, sequence.num_cached = slot, width, num_shared
        self.active[slot] = sequence
        self._hold(slot, width, sequence.prefix[:num_shared])
        sequence.origin, sequence.num_shared = self._origin(found)
        return found

    def _origin(self, admission: Admission) -> tuple[int, int]:
        """Where all that fork from one slot read what they share, and how much; -1 and 0 where there is no such place.

        Of less than half a prompt it is not worth taking rows out of their order. Of rows of several slots the
        heads lie apart otherwise.
        """
        sequence, num_shared = admission.sequence, admission.num_shared
        forked = num_shared > 0 and admission.donor != sequence.slot
        if not forked or 2 * num_shared < len(sequence.prefix):
            return -1, 0
        if max(admission.donor_width, sequence.width) > 1:
            return -1, 0
        donor = self.active.get(admission.donor)
        if donor is not None and donor.num_shared >= num_shared:
            return donor.origin, num_shared
        return admission.donor, num_shared

    def _in_place(self, donor: int, num_shared: int, width: int) -> int | None:
        """The donor's own slots, where the sequence can have these as they are."""
        fits = num_shared > 0 and self._widths[donor] == width
        taken = not self.slots.is_free(donor, width) or (self._kept and (
            donor < self._kept.stop and self._kept.start < donor + width
        ))  # fmt: skip
        return donor if fits and not taken else None

    def _lies_there(self, sequence: Sequence, slot: int, width: int) -> int:
        """How much of a prompt the slots that it is given happen to hold: what all prompts begin with.

        Not on the packed path, where a row with a past may have all that it holds gathered.
        """
        if not self.reuse or self.packed or self._widths[slot] != width:
            return 0
        return self._useful(common_prefix(self._held[slot], sequence.prefix), sequence)

    def _useful(self, num_shared: int, sequence: Sequence) -> int:
        """As much of what is shared as leaves over the places that are scored."""
        return min(num_shared, len(sequence.prefix) - sequence.num_scores)

    def _hold(self, slot: int, width: int, prefix: np.ndarray) -> None:
        """Note what these slots hold now; whatever had any of them before is gone."""
        for other in range(slot + width):
            if other + self._widths[other] > slot:
                self.forget(other)
        for n in range(slot, slot + width):
            self._widths[n] = 1
        self._held[slot], self._widths[slot] = prefix, width

    def _best_donor(self, sequence: Sequence) -> tuple[int, int]:
        """The slot that holds most of the prompt, and how much; at least one token is left over."""
        if not self.reuse:
            return 0, 0
        shared = [shared_prefix(held, sequence.prefix) for held in self._held]
        donor = max(range(len(shared)), key=shared.__getitem__)
        num_shared = self._useful(shared[donor], sequence)
        return (donor, num_shared) if num_shared >= MIN_SHARED_TOKENS else (0, 0)

    def _should_wait(self, sequence: Sequence) -> bool:
        """Whether a sequence about to be prefilled will hold much more of this prompt than any now."""
        if not self.reuse:
            return False
        promised = max(
            (
                shared_prefix(other.prefix, sequence.prefix)
                for other in self.active.values()
                if len(self._held[other.slot]) < len(other.prefix) and other.needs_prefill
            ),
            default=0,
        )
        promised = self._useful(promised, sequence)
        if promised < MIN_SHARED_TOKENS:
            return False
        return promised >= self._best_donor(sequence)[1] + MIN_SHARED_TOKENS


def shared_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """`common_prefix`, or 0 where that is less than MIN_SHARED_TOKENS: one comparison mostly tells."""
    last = MIN_SHARED_TOKENS - 1
    if min(len(left), len(right)) <= last or left[last] != right[last]:
        return 0
    size = common_prefix(left, right)
    return size if size > last else 0


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the longest common prefix of two int64 arrays."""
    size = min(len(left), len(right))
    if size == 0 or left[0] != right[0]:
        return 0
    differ = left[:size] != right[:size]
    return int(differ.argmax()) if differ.any() else size
