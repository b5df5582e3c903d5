"""TLS settings of an endpoint, as contexts of the standard library."""

from __future__ import annotations

import ssl

from nixsnap.errors import FailedPreconditionError
from nixsnap.registry.endpoint import Endpoint


def make_context(endpoint: Endpoint, *, verified: bool) -> ssl.SSLContext:
    """Make a context that trusts the system's certificate authorities and the endpoint's.

    Of several client certificates, OpenSSL keeps one of each kind of key: the last.

    Args:
        endpoint: What is configured.
        verified: Whether the other side's certificate must be good.

    Raises:
        FailedPreconditionError: A certificate or key file cannot be used; the message names it.
    """
    context = ssl.create_default_context()
    # Python 3.13 asks of certificates what RFC 5280 does and many a company's own authority does not care for. Go, and
    # with it containerd on the nodes, takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for file in endpoint.ca_files:
        try:
            context.load_verify_locations(file)
        except (OSError, ssl.SSLError) as exc:
            raise _unusable(endpoint, "certificate authority", file, exc) from exc
    for pair in endpoint.client_certificates:
        try:
            # The password is asked for on the terminal otherwise, once for each of our threads.
            context.load_cert_chain(pair.certificate, pair.key, password=lambda: "")
        except (OSError, ssl.SSLError) as exc:
            files = f"{pair.certificate} with the key {pair.key or 'in the same file'}"
            raise _unusable(endpoint, "client certificate", files, exc) from exc
    return context


def describe_trust(endpoint: Endpoint) -> str:
    """Name the certificate authorities that are trusted, for a message."""
    return " and ".join(["the system's certificate authorities", *endpoint.ca_files])


def _unusable(endpoint: Endpoint, kind: str, file: str, exc: OSError) -> FailedPreconditionError:
    # ssl.SSLError is an OSError whose `strerror` is long where OpenSSL knows a reason.
    reason = (exc.reason if isinstance(exc, ssl.SSLError) else "") or exc.strerror or "it is no PEM file"
    return FailedPreconditionError(
        f"{kind} {file} for {endpoint.registry} cannot be used: {reason.replace('_', ' ').lower()}",
        hint=f"it is named in {endpoint.source}" if endpoint.source else None,
    )
