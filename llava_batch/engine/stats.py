"""What the engine has done so far, in counts."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class Stats:
    """Counters since the engine was made; they only grow.

    A slot-step is one slot in one decode step. `slot_steps - occupied_slot_steps` is what refill
    saves. `tokens_reused` counts prompt tokens whose K/V was forked, or lay in the slot, instead of computed,
    `tokens_wasted` those that were picked behind an answer's end before the host knew of it.
    `memory_backoffs` counts how often memory ran out and a smaller pass was taken.
    """

    requests: int = 0
    completions: int = 0
    errors: int = 0
    images_encoded: int = 0
    tokens_prefilled: int = 0
    tokens_padded: int = 0
    tokens_reused: int = 0
    tokens_decoded: int = 0
    tokens_wasted: int = 0
    steps: int = 0
    slot_steps: int = 0
    occupied_slot_steps: int = 0
    memory_backoffs: int = 0

    @property
    def occupancy(self) -> float:
        """Share of the slots that were at work, over all decode steps; 0 before the first."""
        return self.occupied_slot_steps / self.slot_steps if self.slot_steps else 0.0

    def note_step(self, num_rows: int, occupied: int, num_slots: int) -> None:
        """One more decode step, of `num_rows` rows in `occupied` slots."""
        self.tokens_decoded += num_rows
        self.steps += 1
        self.slot_steps += num_slots
        self.occupied_slot_steps += min(occupied, num_slots)
