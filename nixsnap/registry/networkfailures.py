"""What urllib3's exceptions mean, as errors that say who did not answer and why."""

from __future__ import annotations

import socket
import ssl
from typing import Any, Final

from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as SilenceError

from nixsnap.errors import FailedPreconditionError, NixsnapError, NotFoundError, UnavailableError
from nixsnap.registry.endpoint import Endpoint
from nixsnap.registry.tls import describe_trust

# What OpenSSL's releases say of an answer that is no TLS record.
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"})
# X509_V_ERR_…: an issuer that is not to be had (2, 20), a certificate that issued itself (18, 19), one alone (21).
_UNTRUSTED: Final = frozenset({2, 18, 19, 20, 21})


class UnreachableError(UnavailableError):
    """No connection came about, so nothing was sent."""


class BrokenConnectionError(UnavailableError):
    """A connection broke or fell silent; the request may have arrived or not."""


class NoTlsError(FailedPreconditionError):
    """Who answered does not speak TLS."""


def explain(exc: HTTPError, host: str, endpoint: Endpoint) -> NixsnapError:
    """Make the error for an exchange that came to no answer.

    Args:
        exc: What urllib3 raised.
        host: Who did not answer.
        endpoint: What is configured.
    """
    reason = _reason(exc)
    if isinstance(exc, SSLError):
        return _explain_tls(exc, host, endpoint)
    if isinstance(exc, NameResolutionError):
        return _explain_name(exc, host)
    if isinstance(exc, (NewConnectionError, ProxyError)):
        who = f"the proxy for {host}" if isinstance(exc, ProxyError) else host
        return UnreachableError(f"{who} does not answer: {reason}")
    if isinstance(exc, ConnectTimeoutError):  # which the above is too, in some releases
        return UnreachableError(f"{host} does not answer within {endpoint.connect_timeout_seconds:g} s")
    if isinstance(exc, SilenceError):
        return BrokenConnectionError(f"{host} fell silent")
    return BrokenConnectionError(f"the connection to {host} broke: {reason}")


def _explain_tls(exc: SSLError, host: str, endpoint: Endpoint) -> NixsnapError:
    cause = _find_cause(exc, ssl.SSLError)
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = cause.verify_message.rstrip(".")
        why = why[:1].lower() + why[1:]
        hint = f'name its certificate authority as "ca" in the hosts.toml of {endpoint.registry}'
        return FailedPreconditionError(
            f"the certificate of {host} is not good: {why}; trusted are {describe_trust(endpoint)}",
            hint=hint if cause.verify_code in _UNTRUSTED else None,
        )
    if cause is not None and cause.reason in _NO_TLS:
        return NoTlsError(
            f"{host} does not speak TLS", hint="use --plain-http if the registry really has none"
        )
    return FailedPreconditionError(
        f"TLS with {host} failed: {_reason(exc)}",
        hint='if it wants a client certificate: that is named as "client" in hosts.toml',
    )


def _explain_name(exc: NameResolutionError, host: str) -> NixsnapError:
    cause = _find_cause(exc, socket.gaierror)
    if cause is not None and cause.errno == socket.EAI_AGAIN:
        return UnreachableError(f"the name {host} cannot be looked up now: {cause.strerror}")
    return NotFoundError(f"there is no host {host}", hint="look at the reference, and at hosts.toml")


def _find_cause(exc: BaseException, kind: type[Any]) -> Any:
    """Find an exception of a kind among the causes of one; urllib3 nests them in several ways."""
    seen: list[BaseException] = []
    pending = [exc]
    while pending:
        current = pending.pop()
        if isinstance(current, kind):
            return current
        if current not in seen:
            seen.append(current)
            nested = (current.__cause__, current.__context__, *current.args)
            pending.extend(each for each in nested if isinstance(each, BaseException))
    return None


def _reason(exc: BaseException) -> str:
    """Say in a few words what went wrong below urllib3."""
    cause = _find_cause(exc, OSError)
    if isinstance(cause, ssl.SSLError):
        return (cause.reason or cause.strerror or "unknown").replace("_", " ").lower()
    if cause is not None and cause.strerror:
        return str(cause.strerror).lower()
    return str(cause or exc)
