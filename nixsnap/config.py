"""The daemon's configuration: defaults, the TOML file and the flags, in that order, each over the one before.

File name, keys, flags and defaults are those of pdtpartners/nix-snapshotter (`pkg/config`), so that its users can
change over without an edit; the keys it does not know are ours. Paths default to those of whoever runs it (`places`).
"""

from __future__ import annotations

import enum
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from nixsnap.errors import InvalidArgumentError
from nixsnap.places import default_places
from nixsnap.storedoor.protocol import DEFAULT_ADDRESS as DEFAULT_DOOR

_NIX_OPTION: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)


class StoreView(enum.StrEnum):
    """How a rootfs view shows store paths; `AUTO` takes the first kind that a probe at start-up finds working."""

    AUTO = "auto"
    OVERLAY = "overlay"
    DATA_ONLY = "data-only"
    BIND = "bind"
    FUSE = "fuse"


class NixAccess(enum.StrEnum):
    """How the store is asked; `AUTO` asks a daemon that answers on its socket, else a `nix-daemon --stdio` of ours."""

    AUTO = "auto"
    DAEMON = "daemon"
    PROGRAM = "program"


class PlainIdmap(enum.StrEnum):
    """Who maps the ids of images without a nix layer: containerd can from 2.0 on, and cannot be asked."""

    CONTAINERD = "containerd"
    NIXSNAP = "nixsnap"


def _to_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise TypeError("must be a string")
    path = Path(value)
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {value!r}")
    return path


def _to_optional_path(value: object) -> Path | None:
    """An empty string means that the key is not set, as in the Go original."""
    return None if value is None or value == "" else _to_path(value)


def _to_layer_root(value: object) -> Path:
    # Mount options separate by comma and lowerdir by colon, and containerd joins them without escaping
    # (plugins/snapshots/overlay/overlay.go), so no directory below the root could be mounted.
    path = _to_path(value)
    if bad := set(str(path)) & set(":,\\"):
        raise ValueError(f"must not contain {' or '.join(map(repr, sorted(bad)))}: {str(path)!r}")
    return path


def _to_bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("must be true or false")
    return value


@attrs.frozen(kw_only=True)
class ImageServiceConfig:
    """The `[image_service]` table.

    Attributes:
        enable: Serve the CRI image service on the same socket.
        containerd_address: containerd's own socket, which the image service passes calls on to.
    """

    enable: bool = attrs.field(default=True, converter=_to_bool)
    containerd_address: Path = attrs.field(
        factory=lambda: default_places().containerd_address, converter=_to_path
    )


def _to_words(value: object) -> tuple[str, ...]:
    """A list of strings that Nix takes as a setting of words."""
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise TypeError("must be a list of strings")
    for word in value:
        if not word or word.split() != [word]:
            raise ValueError(f"must have no white space in an element, and no empty one: {word!r}")
    return tuple(value)


def _to_nix_options(value: object) -> tuple[tuple[str, str], ...]:
    """A table of Nix settings, as `{ access-tokens = "github.com=…" }`."""
    items = value.items() if isinstance(value, dict) else value
    if not isinstance(items, Iterable) or isinstance(items, str):
        raise TypeError("must be a table")
    return tuple((name, _to_nix_value(name, setting)) for name, setting in items)


def _to_nix_value(name: str, value: object) -> str:
    if not isinstance(value, str | int):
        raise TypeError(f"must have strings, numbers or booleans as values: {name!r}")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not _NIX_OPTION.fullmatch(name) or "\n" in text:
        raise ValueError(f"is no setting of Nix: {name!r}")
    return text


def _to_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("must be a whole number")
    if value < 1:
        raise ValueError(f"must be 1 or more, not {value}")
    return value


def _to_seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("must be a number of seconds")
    if not 0 <= value < math.inf:
        raise ValueError(f"must be 0 or more, not {value}")
    return float(value)


@attrs.frozen(kw_only=True)
class NixConfig:
    """The `[nix]` table: how Nix is called. Nothing here changes the system's own nix.conf.

    Attributes:
        access: How the store is asked: `auto`, `daemon` (its socket alone) or `program` (`nix-store` each time).
        max_jobs: Nix calls that fetch or build, at once; what is more waits its turn.
        substituters: Binary caches beside those of the system's nix.conf.
        trusted_public_keys: Keys of caches beside those of the system's nix.conf.
        netrc_file: Passwords for caches, in place of the system's `netrc-file`.
        extra_options: Any other settings of Nix, by name: `connect-timeout`, `ssl-cert-file`.
        allow_build: Build what no cache has and whose derivation the store knows. An image still cannot name a build.
        stall_seconds: Stop a fetch of which nothing has been heard for so long; 0 never does.
        grace_seconds: How long a fetch goes on after the last caller that waited for it has gone.
    """

    access: NixAccess = attrs.field(default=NixAccess.AUTO, converter=NixAccess)
    max_jobs: int = attrs.field(default=4, converter=_to_count)
    substituters: tuple[str, ...] = attrs.field(default=(), converter=_to_words)
    trusted_public_keys: tuple[str, ...] = attrs.field(default=(), converter=_to_words)
    netrc_file: Path | None = attrs.field(default=None, converter=_to_optional_path)
    extra_options: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_to_nix_options)
    allow_build: bool = attrs.field(default=False, converter=_to_bool)
    stall_seconds: float = attrs.field(default=600.0, converter=_to_seconds)
    grace_seconds: float = attrs.field(default=30.0, converter=_to_seconds)


@attrs.frozen(kw_only=True)
class Config:
    """What `nixsnap serve` runs with.

    Attributes:
        address: The Unix socket to serve on.
        root: Directory of snapshots, views, stub layers, GC roots and metadata.
        external_builder: A program called with an out-link and a store path in place of nix-store.
        store_view: Kind of rootfs view.
        readonly_store: Put a read-only mount over `/nix/store` in every rootfs view.
        store_dir: Where containers see the store, and what store paths begin with.
        store_root: A prefix under which the store lies on this host, for stores elsewhere.
        store_door: The socket of the helper that shows root's store to users (docs/security.md); empty: do not ask.
            Only a daemon in a user namespace asks.
        infer_nix_layers: Recognise a nix layer that arrives without annotations by its content.
        plain_idmap: Who maps the ids of images without a nix layer, for containers in user namespaces.
        slow_chown: Copy the files of layers that cannot be idmapped, and give the copies to the mapped ids.
        image_service: The `[image_service]` table.
        nix: The `[nix]` table.
    """

    address: Path = attrs.field(factory=lambda: default_places().address, converter=_to_path)
    root: Path = attrs.field(factory=lambda: default_places().root, converter=_to_layer_root)
    external_builder: Path | None = attrs.field(default=None, converter=_to_optional_path)
    store_view: StoreView = attrs.field(default=StoreView.AUTO, converter=StoreView)
    readonly_store: bool = attrs.field(default=False, converter=_to_bool)
    store_dir: Path = attrs.field(default=Path("/nix/store"), converter=_to_layer_root)
    store_root: Path | None = attrs.field(default=None, converter=_to_optional_path)
    store_door: Path | None = attrs.field(default=DEFAULT_DOOR, converter=_to_optional_path)
    infer_nix_layers: bool = attrs.field(default=True, converter=_to_bool)
    plain_idmap: PlainIdmap = attrs.field(default=PlainIdmap.CONTAINERD, converter=PlainIdmap)
    slow_chown: bool = attrs.field(default=False, converter=_to_bool)
    image_service: ImageServiceConfig = attrs.field(factory=ImageServiceConfig)
    nix: NixConfig = attrs.field(factory=NixConfig)

    @property
    def host_store(self) -> Path:
        """Where the store lies on this host."""
        if self.store_root is None:
            return self.store_dir
        return self.store_root / self.store_dir.relative_to("/")


_TABLES: Final = {"image_service": ImageServiceConfig, "nix": NixConfig}


def load(path: Path, *, required: bool, overrides: Mapping[str, Any]) -> Config:
    """Read the configuration file at `path` and put `overrides`, the flags that were given, over it.

    Args:
        path: A TOML file.
        required: Whether a missing file is an error; the default file may be missing, one that was named may not.
        overrides: Values for attributes of `Config`, by name.

    Raises:
        InvalidArgumentError: The file is missing though required, cannot be read, is no TOML, or has an unknown key
            or a bad value, which the message names.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        if required:
            raise InvalidArgumentError(f"configuration file {str(path)!r} does not exist") from exc
        values = {}
    except OSError as exc:
        raise InvalidArgumentError(
            f"configuration file {str(path)!r}: {exc.strerror}", hint="--config names another"
        ) from exc
    except ValueError as exc:  # TOMLDecodeError and UnicodeDecodeError are that
        raise InvalidArgumentError(f"configuration file {str(path)!r}: {exc}") from exc
    source = f"configuration file {str(path)!r}"
    for name, cls in _TABLES.items():
        if name in values:
            values[name] = _build(cls, values[name], prefix=f"{name}.", source=source)
    config: Config = _build(Config, values, prefix="", source=source)
    return _evolve(config, overrides)


def _build(cls: type[Any], values: object, *, prefix: str, source: str) -> Any:
    if not isinstance(values, dict):
        raise InvalidArgumentError(f"{source}: {prefix.rstrip('.')!r} must be a table")
    known = attrs.fields_dict(cls)
    for key, value in values.items():
        if key not in known:
            raise InvalidArgumentError(
                f"{source}: unknown key {prefix + key!r}", hint=f"known keys: {', '.join(sorted(known))}"
            )
        _check(cls, key, value, where=f"{source}: {prefix + key!r}")
    return cls(**values)


def _evolve(config: Config, overrides: Mapping[str, Any]) -> Config:
    for key, value in overrides.items():
        _check(Config, key, value, where=f"flag --{key.replace('_', '-')}")
    return attrs.evolve(config, **overrides)


def _check(cls: type[Any], key: str, value: object, *, where: str) -> None:
    """Convert one value by itself, so that the error can name the key it belongs to."""
    try:
        cls(**{key: value})
    except (TypeError, ValueError) as exc:
        raise InvalidArgumentError(f"{where}: {exc}") from exc
