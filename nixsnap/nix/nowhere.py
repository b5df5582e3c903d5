"""What no cache has: whether it may be built instead, and whether a cache only refused to show it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from nixsnap.config import NixConfig
from nixsnap.nix.caches import refusals
from nixsnap.nix.failures import Failure
from nixsnap.nix.options import SYSTEM_NETRC, nix_options
from nixsnap.nix.storepath import StorePath


def with_unknown(
    failure: Failure,
    unknown: Collection[StorePath],
    derivations: Mapping[StorePath, str],
    *,
    config: NixConfig,
) -> Failure:
    """A failure with what is known of the paths that no cache has.

    Where builds are allowed, and there are derivations for some of them only, it is the others that are missing. Caches
    are asked again, by ourselves, unless all of it can be built.
    """
    failure = attrs.evolve(failure, unknown=sorted(unknown), derivations=derivations)
    if not unknown or may_build(failure, config):
        return failure
    if config.allow_build:
        failure = attrs.evolve(failure, unknown=[path for path in failure.unknown if path not in derivations])
    netrc_file = Path(nix_options(config).get("netrc-file", SYSTEM_NETRC))
    return failure.after(refusals(failure.caches, failure.unknown[0], netrc_file=netrc_file))


def may_build(failure: Failure, config: NixConfig) -> bool:
    """Whether builds are allowed, and there are derivations for all that no cache has."""
    return config.allow_build and failure.can_be_built
