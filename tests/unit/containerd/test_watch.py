"""Watching fetches is a courtesy: whoever cannot be asked is not."""

from __future__ import annotations

from fake_containerd import on_fake

from nixsnap.containerd.watch import watch_fetches


def test_a_containerd_that_does_not_tell(tmp_path):
    """One without introspection, or a snapshotter that is none of ours: it ends, and nothing is told."""
    told = []

    async def test(_fake, client):
        await watch_fetches(client, "nix", ["sha256:0"], told.append)

    on_fake(tmp_path, test)
    assert told == []
