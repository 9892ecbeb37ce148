"""Drawing each row's token at a given point of its distribution: temperature, top-k, top-p, transformers' order.

Legend: R rows, V vocabulary, H the likeliest tokens that are looked at first. The likeliest token comes
first, of equally likely ones the one with the lower id, and the token is the one under which `point`
falls when their masses are laid end to end. On CPU the H likeliest nearly always tell which one that is,
and only where they do not is the whole row put in order, which takes ten times as long; on a device the
host would have to ask which rows these are, so there all rows are. Both ways name the same token.
"""

import torch

HEAD = 1024
MARGIN = 1e-9
"""Two orders of summing V masses in double differ by less than a hundredth of this: what falls nearer to a
border between two tokens is decided by the whole row."""


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    point: torch.Tensor,
) -> torch.Tensor:
    """Sample every row of `[R, V]` by inverting its cumulative distribution at `point`, in [0, 1).

    The rules are float64 `[R]`; a top_k of 0 and a top_p of 1 switch those filters off. A row that is
    not finite names some token that exists.
    """
    scaled = logits / temperature.float()[:, None]
    if scaled.device.type != "cpu" or scaled.shape[-1] <= 2 * HEAD:
        return from_all(scaled, top_k, top_p, point)
    chosen, decided = from_head(scaled, top_k, top_p, point)
    (left,) = torch.nonzero(~decided, as_tuple=True)
    if len(left):
        chosen[left] = from_all(scaled[left], top_k[left], top_p[left], point[left])
    return chosen


def from_all(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, point: torch.Tensor
) -> torch.Tensor:
    """The tokens `[R]` by putting each row of `[R, V]` in order."""
    ordered, order = torch.sort(scaled, dim=-1, descending=True, stable=True)
    size = scaled.shape[-1]
    places = torch.arange(size, device=scaled.device)
    limit = torch.where(top_k > 0, top_k, size)[:, None]
    ordered.masked_fill_(places >= limit, float("-inf"))
    probabilities = torch.softmax(ordered, dim=-1, dtype=torch.float64)
    del ordered
    total = probabilities.cumsum(dim=-1)
    before = torch.sub(total, probabilities, out=probabilities)
    # The smallest set whose mass reaches top_p: a token stays if the mass before it is less.
    kept = (before < top_p[:, None]).logical_or_(top_p[:, None] >= 1).logical_and_(places < limit)
    # What is not finite keeps nothing, and must still name a token that exists.
    last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    place = torch.searchsorted(total, point[:, None] * total.gather(1, last), right=True)
    return order.gather(1, torch.minimum(place, last))[:, 0]


def from_head(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, point: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens `[R]` by the H likeliest of each row, and bool `[R]`: whether these decide it."""
    ordered, order = head(scaled, HEAD)
    top = ordered[:, :1].double()
    places = torch.arange(HEAD)
    within = (places < top_k[:, None]) | (top_k[:, None] == 0)
    masses = torch.where(within, (ordered.double() - top).exp(), 0.0)
    unlimited = top_k == 0
    whole = masses.sum(dim=-1)
    whole[unlimited] = scaled[unlimited].double().sub_(top[unlimited]).exp_().sum(dim=-1)
    shares = masses / whole[:, None]
    total = shares.cumsum(dim=-1)
    before = total - shares
    nucleus = top_p < 1
    kept = within & ((before < top_p[:, None]) | ~nucleus[:, None])
    last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    # With neither filter all that is behind the head is kept too, and sums to one with it.
    end = torch.where(unlimited & ~nucleus, 1.0, total.gather(1, last)[:, 0])
    target = (point * end)[:, None]
    place = torch.searchsorted(total, target, right=True).clamp(max=HEAD - 1)
    decided = (total.gather(1, place) > target)[:, 0]
    decided &= ((total - target).abs() > MARGIN).all(dim=-1)
    decided &= ~nucleus | ((before - top_p[:, None]).abs() > MARGIN).all(dim=-1)
    # Where more than the head may be kept, how much is?
    decided &= (top_k <= HEAD) & (~kept[:, -1] | (top_k == HEAD) | (unlimited & ~nucleus))
    # Of those as likely as the head's last some may stand behind it.
    decided &= (ordered.gather(1, place) > ordered[:, -1:])[:, 0]
    return order.gather(1, place)[:, 0], decided


def head(scaled: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `size` largest of each row in order, and where they stand; of equal ones the first is first."""
    values, places = scaled.topk(size, dim=-1, sorted=False)
    places, order = places.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, places.gather(-1, order)
