"""The slot table: which slot of the K/V cache belongs to whom. Plain Python, no torch.

A released slot keeps its contents until it is taken again, so that a later request with the same
prefix can fork from it; the slot that was released first is therefore given out first. Where a decode
step works on the first slots up to the highest taken, the lowest free one is given out instead.
"""


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
