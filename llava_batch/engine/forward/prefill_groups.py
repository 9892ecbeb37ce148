"""Which prompts are prefilled together: groups of like length, each within the budget of tokens."""

import math
from dataclasses import dataclass

from llava_batch.engine.sequence import Sequence


@dataclass(frozen=True)
class Load:
    """What a prefill group takes beside its weights, in tokens fed. held: tokens that its rows have with the pass."""

    gathering: float
    fed: int = 0
    held: int = 0
    has_past: bool = False

    def plus(self, sequence: Sequence, size: int) -> "Load":
        """With one row more, for which `size` tokens are fed."""
        return Load(
            self.gathering,
            self.fed + size,
            self.held + len(sequence.ids),
            self.has_past or sequence.num_cached > 0,
        )

    @property
    def tokens(self) -> int:
        """Those fed, and as many as would take what is gathered."""
        return self.fed + (math.ceil(self.gathering * self.held) if self.has_past else 0)


def groups(
    sequences: list[Sequence], max_tokens: int, *, padded: bool = True, gathering: float = 0.0
) -> list[list[Sequence]]:
    """Sequences of like length together, at most `max_tokens` a group, its padding counted.

    gathering: see `memory.gathered_share`; so much of a token is counted for each that a group's rows hold,
    past and new, where it has a row with a past.
    """
    made: list[list[Sequence]] = []
    load = Load(gathering)
    for sequence in sorted(sequences, key=lambda s: s.num_pending, reverse=True):
        # The first of a group is its longest: it sets the padded length.
        size = made[-1][0].num_pending if made and padded else sequence.num_pending
        together = load.plus(sequence, size)
        if made and together.tokens <= max_tokens:
            made[-1].append(sequence)
            load = together
        else:
            made.append([sequence])
            load = Load(gathering).plus(sequence, sequence.num_pending)
    return made
