"""Tests of `nixsnap.registry.endpoint`: what is so by default; expected values are those of containerd's tests.

(`TestHTTPFallback` and `TestDefaultHosts` in `core/remotes/docker/config/hosts_test.go`.)
"""

from __future__ import annotations

import pytest

from nixsnap.errors import InvalidArgumentError
from nixsnap.image.reference import Reference
from nixsnap.registry.endpoint import Verify, default_endpoint, is_loopback


@pytest.mark.parametrize(
    ("registry", "scheme", "tries_tls_first", "verify"),
    [
        ("registry.invalid", "https", False, Verify.EVERYONE),
        ("registry.invalid:5000", "https", False, Verify.EVERYONE),
        ("localhost", "https", False, Verify.ALL_BUT_LOOPBACK),
        ("localhost:443", "https", False, Verify.ALL_BUT_LOOPBACK),
        ("localhost:80", "http", False, Verify.ALL_BUT_LOOPBACK),
        ("localhost:5000", "http", True, Verify.ALL_BUT_LOOPBACK),
        ("127.0.0.2:5000", "http", True, Verify.ALL_BUT_LOOPBACK),
        ("[::1]:5000", "http", True, Verify.ALL_BUT_LOOPBACK),
    ],
)
def test_default(registry, scheme, tries_tls_first, verify):
    """TLS for everyone but this machine itself, where the port says or both are tried."""
    endpoint = default_endpoint(registry, plain_http=False)
    assert (endpoint.scheme, endpoint.tries_tls_first, endpoint.verify) == (scheme, tries_tls_first, verify)
    assert endpoint.base_url(scheme) == f"{scheme}://{registry}/v2"
    assert not endpoint.is_proxy


def test_plain_http():
    """Is what it is asked for, without another try."""
    for registry in ("registry.invalid", "localhost:5000"):
        endpoint = default_endpoint(registry, plain_http=True)
        assert (endpoint.scheme, endpoint.tries_tls_first) == ("http", False)


@pytest.mark.parametrize("registry", ["registry.invalid:99999", "[:]", "[::1]:99999", "[1:2]"])
def test_no_address(registry):
    """What a reference may well have in the place of a host."""
    assert Reference.parse(f"{registry}/app").domain == registry
    with pytest.raises(InvalidArgumentError, match="is no registry"):
        default_endpoint(registry, plain_http=False)


def test_hub_is_elsewhere():
    """Docker Hub's API has a host of its own, which serves no other name."""
    endpoint = default_endpoint("docker.io", plain_http=False)
    assert endpoint.host.endswith(".docker.io")
    assert not endpoint.is_proxy


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1:1", True),
        ("[::1]", True),
        ("localhost.invalid", False),
        ("127.0.0.1.invalid", False),
        ("10.0.0.1:80", False),
        ("[fe80::1]:1", False),
        ("[", False),
    ],
)
def test_is_loopback(host, expected):
    """Only what cannot be another machine."""
    assert is_loopback(host) is expected
