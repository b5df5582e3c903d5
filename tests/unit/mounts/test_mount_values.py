"""OwnedFd and the checks of the other values."""

from __future__ import annotations

import os

import pytest

from nixsnap.mounts.values import IdRange, OwnedFd, StubCounts


def is_open(fd: int) -> bool:
    """Whether the number is a descriptor of ours."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_the_with_block_closes():
    """The descriptor is open in the block and closed after it."""
    with OwnedFd(os.open("/", os.O_PATH)) as owned:
        number = owned.fileno()
        assert is_open(number)
    assert not is_open(number)


def test_close_twice_is_fine():
    """The second close touches nothing: the number may be somebody else's by then."""
    owned = OwnedFd(os.open("/", os.O_PATH))
    owned.close()
    with OwnedFd(os.open("/", os.O_PATH)) as other:
        owned.close()
        assert is_open(other.fileno())


def test_a_detached_descriptor_stays_open():
    """Who detaches it closes it."""
    with OwnedFd(os.open("/", os.O_PATH)) as owned:
        number = owned.detach()
    assert is_open(number)
    os.close(number)


def test_a_closed_one_has_no_number():
    """A stale number must not be used by mistake."""
    owned = OwnedFd(os.open("/", os.O_PATH))
    owned.close()
    with pytest.raises(ValueError, match="closed"):
        owned.fileno()


def test_one_that_is_forgotten_warns_and_closes():
    """As files do: the leak is reported, and does not last."""
    owned = OwnedFd(os.open("/", os.O_PATH))
    number = owned.fileno()
    with pytest.warns(ResourceWarning, match="unclosed descriptor"):
        del owned
    assert not is_open(number)


@pytest.mark.parametrize(
    ("container_id", "host_id", "length"),
    [
        (-1, 0, 1),
        (0, -1, 1),
        (0, 0, 0),
        (0, 0, -5),
        (0, 2**32, 1),  # which the kernel would read as 0, root
        (0, 2**32 - 1, 1),
        (2**32 - 2, 0, 2),
        (0, 0, 2**32),
    ],
)
def test_ranges_of_ids_are_checked(container_id, host_id, length):
    """No negative id, no empty range, nothing beyond 32 bits."""
    with pytest.raises(ValueError, match=r"must be|beyond"):
        IdRange(container_id=container_id, host_id=host_id, length=length)


def test_all_ids_are_a_range():
    """What the initial user namespace has."""
    assert IdRange(container_id=0, host_id=0, length=2**32 - 1).length == 2**32 - 1


def test_files_of_a_stub_layer_are_counted_together():
    """However a file got there it is one."""
    assert StubCounts(directories=9, symlinks=9, linked=1, cloned=2, copied=3).files == 6
