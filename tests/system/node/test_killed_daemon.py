"""SIGKILL at any moment: what was acknowledged is there at the next start, and nothing is half made."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import grpc
from lab import NixsnapDaemon
from rpc import Rpc, connect, store_path_labels

NO_IMAGES = "[image_service]\nenable = false\n"
KILLS = 8
CLIENTS = 4


class Client:
    """Makes snapshots and removes them until the daemon is gone.

    Attributes:
        known: Whether a key must be there, by what was acknowledged; what a call is under way for is not among them.
        end: How the last call ended.
    """

    def __init__(self, daemon: NixsnapDaemon, name: str, labels: dict[str, str]) -> None:
        self.known: dict[str, bool] = {}
        self.end: grpc.StatusCode | None = None
        self._daemon, self._name, self._labels = daemon, name, labels
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        with connect(self._daemon.address) as rpc:
            number = 0
            while self._lives_through(rpc, f"{self._name}-{number}", nix_layer=number % 3 == 0):
                number += 1

    def _lives_through(self, rpc: Rpc, name: str, *, nix_layer: bool) -> bool:
        extract, image, container = f"{name} extract", f"{name} image", f"{name} container"
        try:
            rpc.prepare(extract, labels=self._labels if nix_layer else {})
            rpc.commit(image, extract)
            self.known |= {extract: False, image: True}
            rpc.prepare(container, image)
            self.known[container] = True
            if nix_layer:
                return True
            del self.known[container]
            rpc.remove(container)
            self.known[container] = False
            del self.known[image]
            rpc.remove(image)
            self.known[image] = False
        except grpc.RpcError as error:
            self.end = error.code()
            return False
        return True


def numbers(directory: Path) -> set[int]:
    return {int(path.name) for path in directory.iterdir() if path.name.isdecimal()}


def test_nothing_is_lost_or_half_made(directory, closure):
    """Rows, directories, roots and views agree after each kill, and all of it can be removed."""
    (directory / "n").mkdir()
    moments = random.Random(11)
    labels = store_path_labels([closure.top])
    known: dict[str, bool] = {}
    for turn in range(KILLS + 1):
        daemon = NixsnapDaemon.start(directory / "n", config=NO_IMAGES)
        with connect(daemon.address) as rpc:
            present = rpc.list()
            assert {key for key, there in known.items() if there} <= set(present)
            assert not {key for key, there in known.items() if not there} & set(present)
            made = numbers(daemon.root / "snapshots")
            assert len(made) == len(present)
            for place in ("gcroots", "views", "work", "stubs/overlay"):
                assert not (daemon.root / place).is_dir() or numbers(daemon.root / place) <= made
            for suffix in ("container", "extract", "image"):
                for key in present:
                    if key.endswith(suffix):
                        rpc.remove(key)
            assert numbers(daemon.root / "snapshots") == numbers(daemon.root / "gcroots") == set()
            if turn < KILLS:
                clients = [Client(daemon, f"{turn}-{number}", labels) for number in range(CLIENTS)]
                time.sleep(moments.uniform(0.05, 0.6))
                daemon.kill()
                for client in clients:
                    client.join()
                    assert client.end is grpc.StatusCode.UNAVAILABLE
                known = {key: there for client in clients for key, there in client.known.items()}
    daemon.destroy()
