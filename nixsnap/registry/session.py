"""Requests to one repository of a registry: authorised, redirected and retried."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import attrs

from nixsnap.errors import FailedPreconditionError, NixsnapError
from nixsnap.nix.storepath import shorten
from nixsnap.registry import failures
from nixsnap.registry.authorizer import Authorizer
from nixsnap.registry.credentials import DockerConfig
from nixsnap.registry.endpoint import Endpoint
from nixsnap.registry.networkfailures import BrokenConnectionError, NoTlsError, UnreachableError
from nixsnap.registry.progress import SILENCE, Progress
from nixsnap.registry.retry import Attempts, Clock, is_transient
from nixsnap.registry.transport import Answer, Request, Transport

_REDIRECTS_MAX: Final = 5
_KEEP_METHOD: Final = frozenset({HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT})
_REDIRECTS: Final = _KEEP_METHOD | {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.SEE_OTHER}
# Without a token, with one, and with a fresh one or one for more scopes.
_CHALLENGES_MAX: Final = 3


class Session:
    """A repository of a registry, open for requests. Several threads may use it, after the first request.

    Args:
        endpoint: Where the API is.
        repository: The name there.
        transport: Connections.
        config: Where credentials are looked up.
        clock: Pauses between attempts.
        progress: Told of what is tried again.

    Attributes:
        registry: The registry's name.
        repository: The name there.
        clock: Pauses between attempts.
        progress: Told of what is tried again.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        repository: str,
        *,
        transport: Transport,
        config: DockerConfig,
        clock: Clock,
        progress: Progress = SILENCE,
    ) -> None:
        self.registry = endpoint.registry
        self.repository = repository
        self.clock = clock
        self.progress = progress
        self._endpoint = endpoint
        self._transport = transport
        self._scheme = "https" if endpoint.tries_tls_first else endpoint.scheme
        self._has_answered = False
        self._authorizer = Authorizer(
            endpoint.host if endpoint.is_proxy else endpoint.registry,
            look_up=lambda: config.find(endpoint),
            searched=str(config),
            send=self._ask_token_server,
        )

    def url(self, *path: str, query: Mapping[str, str] | None = None) -> str:
        """Make the URL of something in the repository; parts of the path are taken as they are."""
        url = f"{self._endpoint.base_url(self._scheme)}/{self.repository}/{'/'.join(path)}"
        return self._with_namespace(with_query(url, query or {}))

    def location(self, answer: Answer) -> str:
        """Where the registry wants the next request to go.

        Raises:
            FailedPreconditionError: It does not say, or not in HTTP.
        """
        value = answer.headers.get("Location", "")
        if not _is_location(value):
            raise FailedPreconditionError(
                f"{self.registry} sends us on without saying where: Location {shorten(value)}"
            )
        url = urljoin(answer.url, value)
        before, after = urlsplit(answer.url), urlsplit(url)
        if (before.scheme, after.scheme) == ("https", "http") and before.netloc == after.netloc:
            # A registry behind a proxy that does TLS for it, and that has not been told so.
            url = after._replace(scheme="https").geturl()
        return self._with_namespace(url)

    def call(self, request: Request) -> Answer:
        """Send a request that may be repeated, until there is an answer that will not change.

        Raises:
            AbandonedError: The push has ended meanwhile.
            NixsnapError: As for `Transport.send`, or we cannot be authorised.
        """
        attempts = Attempts(self.clock)
        while True:
            self.clock.check()
            try:
                answer = self.once(request)
            except (UnreachableError, BrokenConnectionError) as exc:
                # Nobody there from the beginning: a wrong name or port, most likely, and no use in waiting.
                if (isinstance(exc, UnreachableError) and not self._has_answered) or attempts.are_over():
                    raise
                self.wait(attempts, exc)
            else:
                if not is_transient(answer) or attempts.are_over():
                    return answer
                self.wait(attempts, answer)

    def once(self, request: Request) -> Answer:
        """Send a request once, but for challenges that can be answered.

        Raises:
            NixsnapError: As for `Transport.send`, or we cannot be authorised.
        """
        needed = (f"repository:{self.repository}:pull,push", *request.scopes)
        for challenges in range(1, _CHALLENGES_MAX + 1):
            request = self._in_scheme(request)
            shown = self._authorizer.header(needed) if self._is_ours(request.url) else {}
            try:
                answer = self._redirected(request, shown)
            except NoTlsError:
                if not self._may_do_without_tls(request):
                    raise
                self._scheme = "http"
                return self.once(request)
            self._has_answered = True
            if answer.status != HTTPStatus.UNAUTHORIZED or not self._is_ours(answer.url):
                return answer
            if challenges == _CHALLENGES_MAX or not self._authorizer.answer(answer, needed, shown=shown):
                return answer
        raise AssertionError  # the loop returns

    def wait(self, attempts: Attempts, failed: Answer | NixsnapError) -> None:
        """Pause before the next attempt, and say why.

        Raises:
            AbandonedError: The push has ended meanwhile.
        """
        if isinstance(failed, Answer):
            self.progress.retrying(f"{urlsplit(failed.url).netloc} answers {failed.status}")
            attempts.pause(failed)
        else:
            self.progress.retrying(failed.message)
            attempts.pause()

    def error(self, answer: Answer, doing: str) -> NixsnapError:
        """Make the error for an answer; `doing` as for `failures.refusal`."""
        is_denied = answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
        if is_denied and self._is_ours(answer.url) and not failures.says_full(answer):
            return self._authorizer.denial(answer, doing)
        return failures.refusal(answer, registry=self.registry, doing=doing)

    def _redirected(self, request: Request, shown: Mapping[str, str]) -> Answer:
        for _ in range(_REDIRECTS_MAX):
            # What the configuration adds, and who we are, is for the registry and not for where it sends us.
            own = {**dict(self._endpoint.headers), **shown} if self._is_ours(request.url) else {}
            answer = self._transport.send(attrs.evolve(request, headers={**request.headers, **own}))
            may_follow = request.method in {"GET", "HEAD"} or answer.status in _KEEP_METHOD
            if answer.status not in _REDIRECTS or not may_follow:
                return answer
            request = attrs.evolve(request, url=self.location(answer))
        raise FailedPreconditionError(f"{self.registry} sends us around in circles")

    def _may_do_without_tls(self, request: Request) -> bool:
        """Whether the first request may be sent again in the clear, since there is no TLS and need not be any."""
        return self._endpoint.tries_tls_first and not self._has_answered and self._is_ours(request.url)

    def _in_scheme(self, request: Request) -> Request:
        """Mend a URL that was made before it was known that there is no TLS."""
        if not self._endpoint.tries_tls_first or self._scheme == "https":
            return request
        parts = urlsplit(request.url)
        if (parts.scheme, parts.netloc) != ("https", self._endpoint.host):
            return request
        return attrs.evolve(request, url=parts._replace(scheme="http").geturl())

    def _ask_token_server(self, request: Request) -> Answer:
        attempts = Attempts(self.clock)
        while True:
            try:
                answer = self._transport.send(request)
            except BrokenConnectionError as exc:
                if attempts.are_over():
                    raise
                self.wait(attempts, exc)
            else:
                if not is_transient(answer) or attempts.are_over():
                    return answer
                self.wait(attempts, answer)

    def _is_ours(self, url: str) -> bool:
        """Whether a URL leads to the registry itself."""
        parts = urlsplit(url)
        return (parts.scheme, parts.netloc.lower()) == (self._scheme, self._endpoint.host.lower())

    def _with_namespace(self, url: str) -> str:
        """Tell a host that serves other registries than its own which one is meant, as containerd does."""
        if not self._endpoint.is_proxy or not self._is_ours(url) or "ns" in parse_qs(urlsplit(url).query):
            return url
        return with_query(url, {"ns": self.registry})


def _is_location(value: str) -> bool:
    """Whether a header is a URL of HTTP, absolute or not."""
    try:
        parts = urlsplit(value)
        is_host = parts.port != 0 and bool(parts.hostname)
    except ValueError:
        return False
    if not value or not value.isprintable():
        return False
    return not parts.scheme or (parts.scheme in {"http", "https"} and is_host)


def with_query(url: str, query: Mapping[str, str]) -> str:
    """Add to a URL's query and leave what is there as it is."""
    if not query:
        return url
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}"
