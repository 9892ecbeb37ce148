"""What one forward pass works on: `Rows` left-padded; or, on the packed path, a prefill without padding
(`Packed`) or one decode step over a prefix of the slots (`Prefix`).

Legend: B rows, Q their left-padded length, T their new tokens one behind the other, S slots, b the slots
of a bucket, L slot length, H K/V heads, D head size. The packed path's tensors lie on the device before
the pass begins, so that nothing in it waits for the host.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from llava_batch.engine import views
from llava_batch.engine.device import on_device

KV = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which slots one forward pass works on, and where in them.

    slots[b]: the row's first slot. past[b]: tokens that it holds already. new[b]: tokens that this pass
    adds, the last `new[b]` of the row's Q; the ones before are padding. widths[b]: how many slots it has; left out, every row has one.
    scored: how many of the Q are wanted behind the last layer, the last ones; None is all of them.
    origins[b]: a slot that holds the same first shared[b] tokens, which other rows may read, too; left out, its own.
    """

    slots: tuple[int, ...]
    past: tuple[int, ...]
    new: tuple[int, ...]
    widths: tuple[int, ...] = ()
    scored: int | None = None
    origins: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()
    _sent: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if not self.widths:
            object.__setattr__(self, "widths", (1,) * len(self.slots))
        if not self.origins:
            object.__setattr__(self, "origins", self.slots)
            object.__setattr__(self, "shared", (0,) * len(self.slots))

    @property
    def length(self) -> int:
        """Q: the common length that the rows are padded to."""
        return max(self.new)

    @property
    def is_decode(self) -> bool:
        """Whether every row has one new token."""
        return self.length == 1

    @cached_property
    def last(self) -> "Rows":
        """The rows as they are to whoever adds only the places that are scored."""
        if self.scored is None:
            return self
        new = tuple(min(n, self.scored) for n in self.new)
        every = zip(self.past, self.new, new, strict=True)
        past = tuple(p + before - now for p, before, now in every)
        return Rows(slots=self.slots, past=past, new=new, widths=self.widths)

    @cached_property
    def array(self) -> np.ndarray:
        """int64 `[6, B]`: slots, past, new, widths, origins, shared, as the kernels take them."""
        fields = (self.slots, self.past, self.new, self.widths, self.origins, self.shared)
        return np.array(fields, dtype=np.int64)

    @cached_property
    def wide(self) -> list[int]:
        """Numbers of the rows that have several slots."""
        return [number for number, width in enumerate(self.widths) if width > 1]

    def room(self, slot_tokens: int) -> int:
        """Tokens that the widest row's slots hold, each `slot_tokens`."""
        return max(self.widths) * slot_tokens

    def part(self, numbers: list[int]) -> "Rows":
        """These of the rows."""
        fields = (self.slots, self.past, self.new, self.widths)
        slots, past, new, widths = (tuple(field[n] for n in numbers) for field in fields)
        return Rows(slots=slots, past=past, new=new, widths=widths)

    def places(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 `[B]` each on the device: slots and past, sent there once a pass."""
        if device not in self._sent:
            slots, past = on_device(self.array[:2], device)
            self._sent[device] = slots, past
        return self._sent[device]

    def store(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> KV:
        """Write `[B, H, Q, D]` to the rows' slots `[S, H, L, D]`; return these, whole."""
        if self.is_decode and not self.wide:
            slots, past_on_device = self.places(keys.device)
            keys[slots, :, past_on_device] = new_keys[:, :, 0]
            values[slots, :, past_on_device] = new_values[:, :, 0]
            return keys, values
        rows = zip(self.slots, self.past, self.new, self.widths, strict=True)
        for row, (slot, past, new, width) in enumerate(rows):
            span = slice(past, past + new)
            views.row(keys, slot, width)[:, span] = new_keys[row, :, -new:]
            views.row(values, slot, width)[:, span] = new_values[row, :, -new:]
        return keys, values


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A prefill pass of `[1, T]` tokens: each row's new tokens, one row behind the other.

    slots, past, new: as in `Rows`. token_slots, token_places: int64 `[T]`, where each token goes.
    q_offsets, k_offsets: int32 `[B + 1]`, where each row's queries and keys begin.
    """

    slots: tuple[int, ...]
    past: tuple[int, ...]
    new: tuple[int, ...]
    token_slots: torch.Tensor
    token_places: torch.Tensor
    q_offsets: torch.Tensor
    k_offsets: torch.Tensor
    _known: dict[object, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows, device: torch.device, slot_tokens: int) -> "Packed":
        """Send one pass's places in slots of `slot_tokens` to the device, in one copy."""
        slots, past, new = rows.slots, rows.past, rows.new
        parts = [
            *_places(slots, past, new, slot_tokens),
            np.cumsum([0, *new], dtype=np.int64),
            np.cumsum([0, *(p + n for p, n in zip(past, new, strict=True))], dtype=np.int64),
        ]
        sent = on_device(np.concatenate(parts), device).split([len(part) for part in parts])
        return cls(
            slots=slots,
            past=past,
            new=new,
            token_slots=sent[0],
            token_places=sent[1],
            q_offsets=sent[2].int(),
            k_offsets=sent[3].int(),
        )

    @property
    def is_decode(self) -> bool:
        """A prefill, also of one token a row."""
        return False

    @property
    def max_keys(self) -> int:
        """Keys of the row that sees most."""
        return max(p + n for p, n in zip(self.past, self.new, strict=True))

    def room(self, slot_tokens: int) -> int:
        """As of `Rows`, of slots of which none is left empty."""
        return -(-self.max_keys // slot_tokens) * slot_tokens

    @property
    def is_fresh(self) -> bool:
        """Whether no row holds anything yet: the pass's own keys are then all there are."""
        return not any(self.past)

    def store(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> KV:
        """Write `[1, H, T, D]` to slots `[S, H, L, D]`.

        Returns the pass's own keys and values where these are all that a row sees, else the slots.
        """
        keys[self.token_slots, :, self.token_places] = new_keys[0].transpose(0, 1)
        values[self.token_slots, :, self.token_places] = new_values[0].transpose(0, 1)
        return (new_keys, new_values) if self.is_fresh else (keys, values)

    def packed(self, slots: torch.Tensor) -> torch.Tensor:
        """What `store` returned, as `[sum of past and new, H, D]`, row behind row."""
        if self.is_fresh:
            return slots[0].transpose(0, 1)
        if "keys" not in self._known:
            lengths = tuple(p + n for p, n in zip(self.past, self.new, strict=True))
            places = _places(self.slots, (0,) * len(lengths), lengths, slots.shape[2])
            self._known["keys"] = on_device(np.stack(places), slots.device)
        key_slots, key_positions = self._known["keys"]
        return slots[key_slots, :, key_positions]

    def held(self, slots: torch.Tensor, row: int) -> torch.Tensor:
        """All that a row holds of slots `[S, H, L, D]`, as `[1, H, past + new, D]`."""
        count = self.past[row] + self.new[row]
        width = -(-count // slots.shape[2])
        return views.row(slots, self.slots[row], width)[None, :, :count]

    def mask(self, row: int, window: int | None, device: torch.device) -> torch.Tensor:
        """bool `[new, past + new]`: which keys each of the row's queries sees."""
        key = (row, window)
        if key not in self._known:
            past, new = self.past[row], self.new[row]
            keys = torch.arange(past + new, device=device)[None]
            queries = torch.arange(past, past + new, device=device)[:, None]
            seen = keys <= queries
            if window is not None:
                seen &= keys > queries - window
            self._known[key] = seen
        return self._known[key]


def _places(
    slots: tuple[int, ...], past: tuple[int, ...], new: tuple[int, ...], slot_tokens: int
) -> list[np.ndarray]:
    """Slot and place in it, int64 each, of the tokens `[past, past + new)` of every row."""
    positions = [np.arange(p, p + n, dtype=np.int64) for p, n in zip(past, new, strict=True)]
    together = np.concatenate(positions)
    return [
        np.repeat(np.asarray(slots, dtype=np.int64), new) + together // slot_tokens,
        together % slot_tokens,
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """A decode step over the slots `[0, b)`, one token each; idle slots compute and are not read.

    places: int64 `[b]`, where each slot's token goes, counted through all slots' tokens. lengths: int32
    `[b]`, how many of its keys the token sees, itself included. span: no row of interest that has one slot
    sees more keys than this. window: none that has several sees more; 0 where there is none such.
    wide: the first slots of those that have several, and how many keys each sees; empty where the step is
    captured, whose kernels have no need of it.
    """

    places: torch.Tensor
    lengths: torch.Tensor
    span: int
    window: int = 0
    wide: tuple[tuple[int, int], ...] = ()
    _known: dict[object, torch.Tensor] = field(default_factory=dict)

    @property
    def is_decode(self) -> bool:
        """One token a slot."""
        return True

    def room(self, slot_tokens: int) -> int:
        """As of `Rows`."""
        return max(self.window, slot_tokens)

    def store(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> KV:
        """Write `[b, H, 1, D]` to slots `[S, H, L, D]`; return the first b of them, as long as `window`."""
        size, length = len(self.places), keys.shape[2]
        every = keys.shape[0] * length + 1  # the one behind the last is for idle rows
        views.tokens(keys, every).index_copy_(0, self.places, new_keys[:, :, 0])
        views.tokens(values, every).index_copy_(0, self.places, new_values[:, :, 0])
        longest = max(length, self.window)
        return views.windows(keys, size, longest), views.windows(values, size, longest)

    @property
    def q_offsets(self) -> torch.Tensor:
        """int32 `[b + 1]`: where each slot's query begins."""
        return torch.arange(len(self.lengths) + 1, dtype=torch.int32, device=self.lengths.device)

    def bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """`[b, 1, 1, span]`: 0 where a key is seen, minus infinity elsewhere; made once a pass."""
        key = (window, dtype)
        if key not in self._known:
            places = torch.arange(self.span, device=self.lengths.device)[None]
            seen = places < self.lengths[:, None]
            if window is not None:
                seen &= places >= self.lengths[:, None] - window
            zero = torch.zeros((), dtype=dtype, device=self.lengths.device)
            self._known[key] = torch.where(seen, zero, float("-inf"))[:, None, None]
        return self._known[key]


Pass = Rows | Packed | Prefix
