"""Labels that make a snapshot a nix layer."""

from __future__ import annotations

import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.nix.storepath import StorePath
from nixsnap.snapshots.labels import NIX_CLOSURE, NIX_LAYER, NIX_STORE_PATH_PREFIX, parse_closure_request

A = "/nix/store/" + "a" * 32 + "-a"
B = "/nix/store/" + "b" * 32 + "-b"


def parse(labels):
    return parse_closure_request(labels, store_dir="/nix/store")


def test_ordinary_labels_ask_for_nothing():
    """A snapshot without our labels is no nix layer, nor is one that says so."""
    assert parse({}) is None
    assert parse({"containerd.io/snapshot.ref": "x", NIX_LAYER: "false"}) is None


def test_closure_info():
    """The form of upstream 0.3 and later: one label with a closureInfo."""
    request = parse({NIX_CLOSURE: A})
    assert request.closure_info == StorePath.parse(A)
    assert request.store_paths == ()


def test_named_store_paths():
    """The form of upstream 0.2 and earlier: a label for each store path; each counts once."""
    request = parse(
        {
            NIX_LAYER: "true",
            NIX_STORE_PATH_PREFIX + "1": B,
            NIX_STORE_PATH_PREFIX + "0": A,
            NIX_STORE_PATH_PREFIX + "2": A,
        }
    )
    assert list(map(str, request.store_paths)) == [A, B]
    assert request.closure_info is None


def test_both_forms_together():
    """An image for both generations carries both, and everything that either names is wanted."""
    request = parse({NIX_CLOSURE: A, NIX_LAYER: "true", NIX_STORE_PATH_PREFIX + "0": B})
    assert str(request.closure_info) == A
    assert list(map(str, request.store_paths)) == [B]


def test_nix_layer_without_paths_is_refused():
    """A label that claims a nix layer and names nothing would start an empty container."""
    with pytest.raises(InvalidArgumentError, match="nix-layer announces a nix layer"):
        parse({NIX_LAYER: "true"})


@pytest.mark.parametrize(
    "value",
    [
        "",
        "/etc",
        "/nix/store",
        "/nix/store/",
        "/nix/store/..",
        "/nix/store/../../etc",
        A + "/../../../etc",
        A + "/",
        A + "\n",
        A + "\0",
        A + "%2e",
        "/nix/store/" + "a" * 31 + "-a",
        "/nix/store/" + "e" * 32 + "-a",
        "/nix/store/" + "a" * 32 + "-" + "x" * 212,
        "nix/store/" + "a" * 32 + "-a",
        "/nix//store/" + "a" * 32 + "-a",
    ],
)
@pytest.mark.parametrize("name", [NIX_CLOSURE, NIX_STORE_PATH_PREFIX + "0"])
def test_values_that_are_not_store_paths_are_refused(name, value):
    """Whatever is not exactly a store path is refused, and the message names the label."""
    with pytest.raises(InvalidArgumentError) as raised:
        parse({NIX_LAYER: "true", name: value})
    assert name in raised.value.message
    assert "\n" not in raised.value.message
