"""The roots of `nix:0` images, where two want the same one at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from nixsnap.nix.roots import RootInspector
from nixsnap.services.pulls import NixPuller, Settings

NAME = f"{'a' * 32}-image.tar"


class Realiser:
    """Makes roots; the first to come waits until the other one is there too, or waits for its turn."""

    def __init__(self, other_waits) -> None:
        self.inside = self.most_inside = 0
        self.other_waits = other_waits
        self.met = False

    def realise(self, _request, *, gcroots, **_):
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            while not self.met:
                self.met = self.most_inside > 1 or self.other_waits()
                time.sleep(0.001)
            gcroots.mkdir(exist_ok=True)
        finally:
            self.inside -= 1


def test_roots_of_one_archive_are_made_by_one_at_a_time(tmp_path: Path, monkeypatch) -> None:
    """Upkeep may find a root gone while its image is pulled again; both would seal the same directory."""
    (tmp_path / NAME).write_bytes(b"")
    settings = Settings(
        containerd_address=tmp_path, store=tmp_path, store_dir="/nix/store", gcroots=tmp_path / "gcroots"
    )
    realiser = Realiser(
        lambda: puller._locks._locks[NAME].users > 1 if NAME in puller._locks._locks else False
    )
    puller = NixPuller(
        settings=settings,
        realiser=realiser,
        inspector=RootInspector(store=tmp_path, auto=None),
        cri_knows=lambda _: True,
    )

    async def loaded(*_args) -> str:
        return "sha256:config"

    async def in_use() -> set[str]:
        return {NAME}

    monkeypatch.setattr(puller, "_load", loaded)
    monkeypatch.setattr(puller, "_archives_in_use", in_use)
    checked: list[bool] = []
    upkeep = threading.Thread(target=lambda: checked.append(puller.check_roots()))
    upkeep.start()

    assert puller.pull(f"nix:0/nix/store/{NAME}:latest") == "sha256:config"
    upkeep.join()
    assert checked == [True]
    assert realiser.most_inside == 1
