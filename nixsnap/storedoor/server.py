"""The door's loop: who connects is counted, and served by a thread of his own, so that nobody waits for another.

A thread lasts as long as looking the user up, then at most `REQUEST_SECONDS`: that is all that a silent client can
take up, and only of his own user's share (`limits`).
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from nixsnap.errors import InvalidArgumentError, NixsnapError, ResourceExhaustedError, UnavailableError
from nixsnap.storedoor import grant, peer, protocol
from nixsnap.storedoor.limits import Gate, Limits
from nixsnap.storedoor.policy import Authority, Grant, Peer, decide

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 5.0
"""What a client may take between connecting and asking; ours asks at once."""

_STARVED_SECONDS: Final = 0.2


@attrs.frozen(kw_only=True)
class Door:
    """What is served.

    Attributes:
        store: The only directory that is ever shown.
        limits: How much may be asked.
        look_up: Says what a user may map to.
        request_seconds: What a client may take to ask.
    """

    store: Path
    limits: Limits = attrs.field(factory=Limits)
    look_up: Callable[[Peer], Authority] = peer.look_up
    request_seconds: float = REQUEST_SECONDS


class Server:
    """Serves a door on a listening socket, which stays the caller's."""

    def __init__(self, door: Door, listener: socket.socket) -> None:
        self._door = door
        self._listener = listener
        self._gate = Gate(door.limits)
        self._lock = threading.Lock()
        self._complained_of: set[int] = set()

    def run(self, stop: socket.socket, *, idle_seconds: float | None = None) -> None:
        """Serve until `stop` can be read, or until nobody has come for `idle_seconds`; then let those inside finish."""
        self._listener.setblocking(False)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(stop, select.POLLIN)
        timeout = None if idle_seconds is None else idle_seconds * 1000
        while True:
            ready = [number for number, _events in poll.poll(timeout)]
            if stop.fileno() in ready:
                break
            if ready:
                self._accept()
            elif not self._gate.connections:
                log.info("nobody came for %g seconds", idle_seconds)
                break
        self._finish()

    def _finish(self) -> None:
        for thread in threading.enumerate():
            if thread.name.startswith(_THREAD_PREFIX):
                thread.join(self._door.request_seconds)

    def _accept(self) -> None:
        try:
            connection, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it went while it waited
            return
        except OSError as exc:  # no descriptors, no memory: what is inside will soon give some back
            log.warning("cannot accept a connection error=%s", exc)
            select.select([], [], [], _STARVED_SECONDS)
            return
        client = peer.identify(connection)
        try:
            self._gate.enter(client.uid)
        except ResourceExhaustedError as exc:
            self._turn_away(connection, client, exc)
            return
        try:
            threading.Thread(
                target=self._serve,
                args=(connection, client),
                name=f"{_THREAD_PREFIX}{client.pid}",
                daemon=True,
            ).start()
        except RuntimeError as exc:  # can't start new thread
            self._gate.leave(client.uid)
            self._turn_away(connection, client, ResourceExhaustedError(f"no thread to be had: {exc}"))

    def _turn_away(self, connection: socket.socket, client: Peer, error: NixsnapError) -> None:
        """Refuse at once. A user who is turned away a thousand times gets one line in the log, until he is let in."""
        with connection:
            connection.setblocking(False)
            _answer(connection, protocol.refusal(error.message))
        with self._lock:
            if client.uid in self._complained_of:
                return
            self._complained_of.add(client.uid)
        log.warning("turned away uid=%d pid=%d reason=%r", client.uid, client.pid, error.message)

    def _serve(self, connection: socket.socket, client: Peer) -> None:
        try:
            with connection:
                connection.settimeout(self._door.request_seconds)
                self._grant_or_refuse(connection, client)
        except Exception:
            log.exception("failed uid=%d pid=%d", client.uid, client.pid)
        finally:
            self._gate.leave(client.uid)

    def _grant_or_refuse(self, connection: socket.socket, client: Peer) -> None:
        try:
            # Before it is heard: who has no claim cannot keep us waiting either.
            given = self._decide(connection, client)
            self._hear(connection)
            self._gate.spend(client.uid)
            tree = grant.make_mount(self._door.store, given)
        except ResourceExhaustedError as exc:
            self._turn_away(connection, client, exc)
            return
        except NixsnapError as exc:
            log.warning("refused uid=%d pid=%d reason=%r", client.uid, client.pid, exc.message)
            _answer(connection, protocol.refusal(exc.message))
            return
        except OSError as exc:
            log.error("cannot show the store uid=%d pid=%d error=%s", client.uid, client.pid, exc)  # noqa: TRY400 - it says all
            _answer(connection, protocol.refusal(f"the store cannot be shown: {exc}"))
            return
        with tree:
            delivered = _answer(connection, protocol.GRANTED, descriptor=tree.fileno())
        with self._lock:
            self._complained_of.discard(client.uid)
        log.info("%s uid=%d pid=%d %s", "granted" if delivered else "left", client.uid, client.pid, given)

    def _decide(self, connection: socket.socket, client: Peer) -> Grant:
        authority = self._door.look_up(client)
        uid_map, gid_map = peer.read_id_maps(connection, client)
        return decide(
            authority, uid_map=uid_map, gid_map=gid_map, store_gid=grant.store_group(self._door.store)
        )

    def _hear(self, connection: socket.socket) -> None:
        """Read the request. A descriptor that comes with it is closed by the kernel, since we take none."""
        try:
            record = connection.recv(len(protocol.REQUEST) + 1)
        except TimeoutError as exc:
            raise UnavailableError(f"no request came in {self._door.request_seconds:g} seconds") from exc
        except ConnectionError as exc:
            raise UnavailableError(f"hung up: {exc.strerror}") from exc
        if not record:
            raise UnavailableError("hung up without a request")
        if not protocol.is_request(record):
            raise InvalidArgumentError(f"no request of this protocol: {record!r}")


_THREAD_PREFIX: Final = "door-"


def _answer(connection: socket.socket, record: bytes, *, descriptor: int | None = None) -> bool:
    """Send the one record that a connection gets, for which its buffer has room; False if the client has gone."""
    try:
        if descriptor is None:
            connection.send(record)
        else:
            socket.send_fds(connection, [record], [descriptor])
        _drain(connection)
    except OSError:  # EPIPE, ECONNRESET: nobody is there to be told
        return False
    return True


def _drain(connection: socket.socket) -> None:
    """Throw away what was sent but not read: with it there at the close, the client gets ECONNRESET and no answer.

    It can be no more than a socket's buffer holds, for nothing can be sent any longer.
    """
    connection.shutdown(socket.SHUT_RD)
    with contextlib.suppress(BlockingIOError):
        while connection.recv(1, socket.MSG_DONTWAIT):
            pass
