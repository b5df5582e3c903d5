"""Mappings of ids as nobody should write them, and what the rules say about each."""

from __future__ import annotations

import random
from collections.abc import Iterator

# Ends of what there is, numbers that wrap around, and what int() takes but the kernel does not.
NUMBERS = (
    *(
        "0",
        "1",
        "9",
        "10",
        "65536",
        "100000",
        "2147483647",
        "2147483648",
        "4294967294",
        "4294967295",
        "4294967296",
    ),
    *(
        "18446744073709551616",
        "00",
        "010",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1_0",
        "0x1",
        "1e3",
        "",
        "\u0661",
        "\uff11",
        "1\0",
    ),
)
SEPARATORS = (",", ",", ",", ",,", ";", "\n", " ", "/")
SALT = 20


def _ugly_mapping(source: random.Random) -> str:
    """A mapping that may be in order, or wrong in any of many ways."""
    few = source.choice([NUMBERS, NUMBERS[:9], ("0", "1", "9", "10")])
    ranges = [":".join(source.choices(few, k=source.choice([3] * SALT + [0, 1, 2, 4]))) for _ in range(3)]
    return source.choice(SEPARATORS).join(ranges[: source.randint(1, 3)])


def ugly_mappings(count: int) -> Iterator[str]:
    """So many of them, the same ones each time."""
    source = random.Random("mappings")
    return (_ugly_mapping(source) for _ in range(count))


def taken_by_the_rules(value: str) -> bool:
    """The rules once more, in another way: as the ids themselves, of which ranges may share none."""
    taken: list[list[range]] = [[], []]
    for text in value.split(","):
        words = text.split(":")
        if len(words) != 3 or not all(
            word.isascii() and word.isdigit() and len(word) <= 10 for word in words
        ):
            return False
        *firsts, length = map(int, words)
        for first, others in zip(firsts, taken, strict=True):
            ids = range(first, first + length)
            if not ids or ids.stop > 2**32 - 1:
                return False
            if any(ids.start < other.stop and other.start < ids.stop for other in others):
                return False
            others.append(ids)
    return any(0 in ids for ids in taken[0])
