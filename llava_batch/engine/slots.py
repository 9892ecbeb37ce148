"""The slot table: who owns which slots. Plain Python, no torch.

An owner has one slot, or several adjacent ones, by which the first is then meant. What is freed keeps its
contents until it is taken again, so the slot that was freed first is given out first. Where a decode step
works on the first slots up to the highest taken, the lowest free one is given out instead.
"""

NOBODY = range(0)


class SlotTable:
    """A free list over `num_slots` slots, with their owners."""

    def __init__(self, num_slots: int, *, lowest: bool = False) -> None:
        """lowest: give out the lowest free slots, not those that have been free for longest."""
        if num_slots < 1:
            raise ValueError(f"num_slots is {num_slots}, must be at least 1")
        self.num_slots, self.lowest = num_slots, lowest
        self._free: dict[int, None] = dict.fromkeys(range(num_slots))
        self._owner: dict[int, object] = {}
        self._width: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """How many slots nobody owns."""
        return len(self._free)

    def is_free(self, slot: int, width: int = 1) -> bool:
        """Whether nobody owns any of the `width` slots from `slot` on."""
        return all(n in self._free for n in range(slot, slot + width))

    def find(self, width: int = 1, kept: range = NOBODY) -> int | None:
        """Where `width` adjacent slots are free, the first of them; None if nowhere but among those `kept`."""
        if width > len(self._free):
            return None
        age = {slot: n for n, slot in enumerate(self._free) if slot not in kept}
        starts = [slot for slot in age if all(n in age for n in range(slot, slot + width))]
        if self.lowest:
            return min(starts, default=None)
        return min(starts, default=None, key=lambda s: max(age[n] for n in range(s, s + width)))

    def emptiest(self, width: int) -> range:
        """The `width` adjacent slots of which most are free, the lowest of these."""
        starts = range(self.num_slots - width + 1)
        best = max(starts, key=lambda s: (sum(n in self._free for n in range(s, s + width)), -s))
        return range(best, best + width)

    def take(self, owner: object, slot: int | None = None, width: int = 1) -> int:
        """Give `owner` the `width` slots from the one asked for, or the next ones; returns the first."""
        chosen = self.find(width) if slot is None else slot
        if chosen is None:
            some = f"all {self.num_slots} slots" if not self._free else f"slots of {width} adjacent"
            raise RuntimeError(f"{some} are taken")
        if not self.is_free(chosen, width):
            raise RuntimeError(f"slot {chosen} is not free, or one of the {width} from it on")
        for n in range(chosen, chosen + width):
            del self._free[n]
        self._owner[chosen], self._width[chosen] = owner, width
        return chosen

    def release(self, slot: int) -> None:
        """Take back `slot`, and those taken with it; the contents stay until they are taken again."""
        if slot not in self._owner:
            raise RuntimeError(f"slot {slot} is released but nobody owns it")
        del self._owner[slot]
        for n in range(slot, slot + self._width.pop(slot)):
            self._free[n] = None

    def check(self) -> None:
        """Raise unless every slot is either free or owned, and none is both."""
        owned = [n for slot, width in self._width.items() for n in range(slot, slot + width)]
        if sorted([*self._free, *owned]) != list(range(self.num_slots)):
            raise RuntimeError(f"slot table is broken: free {[*self._free]}, owned {owned}")
