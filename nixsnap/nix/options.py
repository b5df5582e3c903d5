"""Settings of Nix that our calls are made with, over those of the system's nix.conf, which nothing of ours changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nixsnap.config import Config, NixConfig
from nixsnap.nix.storepath import STORE_DIR

SYSTEM_NETRC: Final = Path("/etc/nix/netrc")
"""Nix's own default for `netrc-file`."""

# Paths that are fetched side by side. Nix from 2.19 on reads the one, older releases the other, and each passes over
# what it does not know. Nix's own 16 leave a distant cache idle: most paths are small, and their time is the distance.
_PARALLEL_FETCHES: Final = "64"
_DEFAULTS: Final[Mapping[str, str]] = {
    # A cache that does not answer holds up the pull, and containerd's garbage collector with it; Nix's own default is
    # to wait for as long as the kernel tries.
    "connect-timeout": "15",
    # What a cache does not have Nix remembers on disk, an hour by itself. Not at all would be dear: a call looks for
    # each path twice, the second time one after the other. See `ANEW` for what came to a cache meanwhile.
    "narinfo-cache-negative-ttl": "60",
    "max-substitution-jobs": _PARALLEL_FETCHES,
}
ANEW: Final[Mapping[str, str]] = {"narinfo-cache-negative-ttl": "0"}
"""Put over the settings to have caches asked for what they lacked a moment ago."""
# Nix must not collect garbage in the midst of a fetch of ours: its collector would wait until we let go of `gc.lock`,
# and the fetch, with the lock held for its sake, until the collector has ended (libstore/gc.cc, `autoGC`).
_FIXED: Final[Mapping[str, str]] = {"min-free": "0"}
# Errors are matched and shown by their words: no colours, and not in another language.
_PLAIN_MESSAGES: Final = {"NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C"}


def nix_options(config: NixConfig, *, anew: bool = False) -> dict[str, str]:
    """The settings, by name; what is configured in `extra_options` has the last word, but for `min-free`.

    Args:
        config: What is configured.
        anew: Whether caches are asked for what they lacked a moment ago, whatever is configured.
    """
    options = dict(_DEFAULTS)
    if config.allow_build:
        options |= ANEW  # or what a cache has by now would be built
    else:  # with builds it would be the number of builds as well
        options["max-jobs"] = _PARALLEL_FETCHES
    if config.substituters:
        options["extra-substituters"] = " ".join(config.substituters)
    if config.trusted_public_keys:
        options["extra-trusted-public-keys"] = " ".join(config.trusted_public_keys)
    if config.netrc_file is not None:
        options["netrc-file"] = str(config.netrc_file)
    return {**options, **dict(config.extra_options), **_FIXED, **(ANEW if anew else {})}


def nix_environment(config: Config, *, anew: bool = False) -> dict[str, str]:
    """The environment of a program of Nix's. Settings go there because a command line is everyone's to read.

    Args:
        config: What is configured.
        anew: Whether caches are asked for what they lacked a moment ago.
    """
    lines = [os.environ.get("NIX_CONFIG", "")]
    lines += [f"{name} = {value}" for name, value in nix_options(config.nix, anew=anew).items()]
    environment = {**_PLAIN_MESSAGES, "NIX_CONFIG": "\n".join(lines)}
    if (
        str(config.store_dir) != STORE_DIR
    ):  # Nix takes it from nowhere else; a daemon of it has it from its own start
        environment["NIX_STORE_DIR"] = str(config.store_dir)
    return environment
