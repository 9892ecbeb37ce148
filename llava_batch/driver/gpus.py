"""The cluster's cards, as torch sees them on their own nodes: looked at once, before any actor starts.

The driver may have no card of its own, and needs to know what the workers will find: the dtype that
"auto" means there, and whether the model fits.
"""

from dataclasses import dataclass, replace

from llava_batch.errors import UsageError

LOOK_TIMEOUT_S = 120.0
"""Longer than a node takes to start a process and load torch. Other jobs may hold all cards."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card, or what can be relied on of several: the least of each."""

    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    """CUDA's compute capability: (8, 0) is an A100, (9, 0) an H100."""


def look() -> Card | None:
    """The least card of the connected cluster; None where all cards are busy, and nothing is known.

    Raises:
        UsageError: torch sees no card on a node that has one by Ray's count.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The smallest share of a card: it only has to be visible, and to go beside what runs there.
    see = ray.remote(num_cpus=0, num_gpus=0.01, max_retries=1)(_see)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    looks = [
        see.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    ]
    done, busy = ray.wait(looks, num_returns=len(looks), timeout=LOOK_TIMEOUT_S)
    for one in busy:
        ray.cancel(one, force=True)
    seen = dict(zip(looks, nodes, strict=True))
    cards = []
    for one in done:
        try:
            card = ray.get(one, timeout=LOOK_TIMEOUT_S)
        except RayError:  # its node was lost meanwhile
            continue
        if card is None:
            raise UsageError(
                f"node {seen[one]['NodeManagerAddress']} has a GPU, and torch there sees none; install "
                "a CUDA build of torch that fits its driver, or start Ray there with --num-gpus=0"
            )
        cards.append(card)
    return least(cards) if cards else None


def least(cards: list[Card]) -> Card:
    """The card with the least memory, with the lowest compute capability of them all."""
    small = min(cards, key=lambda card: card.total_bytes)
    return replace(small, capability=min(card.capability for card in cards))


def _see() -> Card | None:
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return Card(
        name=torch.cuda.get_device_name(),
        total_bytes=total,
        free_bytes=free,
        capability=torch.cuda.get_device_capability(),
    )
