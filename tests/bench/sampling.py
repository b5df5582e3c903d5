"""Taking samples so that they can be compared: in turn, after a warm-up, the order changing from round to round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Sample = Callable[[], float]
"""Does the work once and returns the sample; what it does beside the timed part is its own business."""


def seconds(action: Callable[[], object]) -> float:
    """How long the action took."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def interleaved(
    variants: Mapping[str, Sample], *, rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Sample every variant once a round.

    The machine's state drifts (caches, frequency, neighbours), and what ran just before leaves work behind:
    so no variant keeps its place in the order, each round begins with the next.

    Args:
        variants: What to sample, by name.
        rounds: How many samples to take of each.
        warm_up: Begin with one round whose samples are dropped, so that none pays for cold caches.

    Returns:
        The samples of each, in the order taken.
    """
    names = list(variants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    if warm_up:
        for name in names:
            variants[name]()
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            taken[name].append(variants[name]())
    return taken
