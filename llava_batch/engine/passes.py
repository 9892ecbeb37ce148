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

from llava_batch.engine.device import on_device

KV = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which slots one forward pass works on, and where in them.

    slots[b]: the row's slot. past[b]: tokens that it holds already. new[b]: tokens that this pass
    adds, the last `new[b]` of the row's Q; the ones before are padding.
    """

    slots: tuple[int, ...]
    past: tuple[int, ...]
    new: tuple[int, ...]
    _sent: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def length(self) -> int:
        """Q: the common length that the rows are padded to."""
        return max(self.new)

    @property
    def is_decode(self) -> bool:
        """Whether every row has one new token."""
        return self.length == 1

    @cached_property
    def array(self) -> np.ndarray:
        """int64 `[3, B]`: slots, past, new, as the kernels take them."""
        return np.array([self.slots, self.past, self.new], dtype=np.int64)

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
        if self.is_decode:
            slots, past_on_device = self.places(keys.device)
            keys[slots, :, past_on_device] = new_keys[:, :, 0]
            values[slots, :, past_on_device] = new_values[:, :, 0]
            return keys, values
        for row, (slot, past, new) in enumerate(zip(self.slots, self.past, self.new, strict=True)):
            keys[slot, :, past : past + new] = new_keys[row, :, -new:]
            values[slot, :, past : past + new] = new_values[row, :, -new:]
        return keys, values


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """A prefill pass of `[1, T]` tokens: each row's new tokens, one row behind the other.

    slots, past, new: as in `Rows`. token_slots, positions: int64 `[T]`, where each token goes.
    q_offsets, k_offsets: int32 `[B + 1]`, where each row's queries and keys begin.
    """

    slots: tuple[int, ...]
    past: tuple[int, ...]
    new: tuple[int, ...]
    token_slots: torch.Tensor
    positions: torch.Tensor
    q_offsets: torch.Tensor
    k_offsets: torch.Tensor
    _known: dict[object, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> "Packed":
        """Send one pass's places to the device, in one copy."""
        slots, past, new = rows.slots, rows.past, rows.new
        places = [np.arange(p, p + n, dtype=np.int64) for p, n in zip(past, new, strict=True)]
        parts = [
            np.repeat(np.asarray(slots, dtype=np.int64), new),
            np.concatenate(places),
            np.cumsum([0, *new], dtype=np.int64),
            np.cumsum([0, *(p + n for p, n in zip(past, new, strict=True))], dtype=np.int64),
        ]
        sent = on_device(np.concatenate(parts), device).split([len(part) for part in parts])
        return cls(
            slots=slots,
            past=past,
            new=new,
            token_slots=sent[0],
            positions=sent[1],
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
        keys[self.token_slots, :, self.positions] = new_keys[0].transpose(0, 1)
        values[self.token_slots, :, self.positions] = new_values[0].transpose(0, 1)
        return (new_keys, new_values) if self.is_fresh else (keys, values)

    def packed(self, slots: torch.Tensor) -> torch.Tensor:
        """What `store` returned, as `[sum of past and new, H, D]`, row behind row."""
        if self.is_fresh:
            return slots[0].transpose(0, 1)
        if "keys" not in self._known:
            lengths = [p + n for p, n in zip(self.past, self.new, strict=True)]
            parts = [
                np.repeat(np.asarray(self.slots, dtype=np.int64), lengths),
                np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            ]
            self._known["keys"] = on_device(np.stack(parts), slots.device)
        key_slots, key_positions = self._known["keys"]
        return slots[key_slots, :, key_positions]

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """A decode step over the slots `[0, b)`, one token each; idle slots compute and are not read.

    positions: int64 `[b]`, where each slot's token goes. lengths: int32 `[b]`, how many of its keys
    the token sees, itself included. span: no row of interest sees more keys than this.
    """

    positions: torch.Tensor
    lengths: torch.Tensor
    span: int
    _known: dict[object, torch.Tensor] = field(default_factory=dict)

    @property
    def is_decode(self) -> bool:
        """One token a slot."""
        return True

    def store(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        new_keys: torch.Tensor,
        new_values: torch.Tensor,
    ) -> KV:
        """Write `[b, H, 1, D]` to slots `[S, H, L, D]`; return the first b of them, as views."""
        size = len(self.positions)
        every = torch.arange(size, device=keys.device)
        keys[every, :, self.positions] = new_keys[:, :, 0]
        values[every, :, self.positions] = new_values[:, :, 0]
        return keys[:size], values[:size]

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
