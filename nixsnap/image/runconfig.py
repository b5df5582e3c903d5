"""What a container of the image runs with: the `config` object of an image config.

Nix users write it in camel case of either kind (`entrypoint`, `Entrypoint`), since the Go tool reads names
without regard to case. It is written in OCI's names. Docker's additions are let through, for `docker load`;
any other name is an error, because a misspelt one would be an image that lacks its entry point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nixsnap.errors import InvalidArgumentError
from nixsnap.image import document
from nixsnap.nix.storepath import shorten

RunConfig = dict[str, Any]


def _read_env(value: Any, where: str) -> list[str]:
    env = list(document.texts(value, where))
    for index, item in enumerate(env):
        if item.find("=") < 1:
            raise InvalidArgumentError(f"{where}[{index}] is {shorten(item)}, not NAME=VALUE")
    return env


def _read_texts(value: Any, where: str) -> list[str]:
    return list(document.texts(value, where))


def _read_sorted_text_map(value: Any, where: str) -> dict[str, str]:
    return dict(sorted(document.text_map(value, where).items()))


def _read_set(value: Any, where: str) -> dict[str, Any]:
    """Read a set, as Go's JSON has them: an object of empty objects."""
    members = document.mapping_of(document.mapping)(value, where)
    return {key: {} for key in sorted(members)}


# In the order of OCI's structure, then Docker's additions (moby, api/types/container/config.go).
_FIELDS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "User": document.text,
    "ExposedPorts": _read_set,
    "Env": _read_env,
    "Entrypoint": _read_texts,
    "Cmd": _read_texts,
    "Volumes": _read_set,
    "WorkingDir": document.text,
    "Labels": _read_sorted_text_map,
    "StopSignal": document.text,
    "ArgsEscaped": document.boolean,
    "Healthcheck": document.mapping,
    "OnBuild": _read_texts,
    "Shell": _read_texts,
    "StopTimeout": document.integer,
    "Hostname": document.text,
    "Domainname": document.text,
    "AttachStdin": document.boolean,
    "AttachStdout": document.boolean,
    "AttachStderr": document.boolean,
    "Tty": document.boolean,
    "OpenStdin": document.boolean,
    "StdinOnce": document.boolean,
    "NetworkDisabled": document.boolean,
    "MacAddress": document.text,
    "Image": document.text,
}
_CANONICAL: Final = {name.lower(): name for name in _FIELDS}
_MERGED: Final = ("ExposedPorts", "Volumes", "Labels")


def read_run_config(path: str) -> RunConfig:
    """Read what `--config` names.

    Returns:
        The fields that are set, in canonical names and order.

    Raises:
        NotFoundError: There is no such file. InvalidArgumentError: It is not JSON, a name in it is unknown
            or there twice, or a value has another type.
    """
    where = f"config {shorten(path)}"
    given: RunConfig = {}
    fields = document.parse_file(path, where)
    for key, value in ({} if fields is None else document.mapping(fields, where)).items():
        name = _CANONICAL.get(key.lower())
        if name is None:
            raise InvalidArgumentError(
                f"{where} has {shorten(key)}, which OCI's image config has not",
                hint=f"known: {', '.join(_FIELDS)}",
            )
        if name in given:
            raise InvalidArgumentError(f"{where} has {shorten(name)} twice, in different spellings")
        given[name] = None if value is None else _FIELDS[name](value, f"{where}.{key}")
    return _ordered({name: value for name, value in given.items() if value is not None})


def inherit(base: RunConfig, own: RunConfig) -> RunConfig:
    """Put an image's config over that of its base image, as Dockerfile's `FROM` and its instructions do.

    Env is merged by name, and ports, volumes and labels are united; a new entry point drops the base's Cmd,
    which was made for another; and the base's OnBuild is for builders that run instructions. All else is
    the base's unless set.
    """
    result = {name: value for name, value in base.items() if value is not None and name != "OnBuild"}
    if "Entrypoint" in own:
        result.pop("Cmd", None)
    for name, value in own.items():
        if name == "Env":
            result[name] = _merge_env(result.get(name, []), value)
        elif name in _MERGED:
            result[name] = dict(sorted((result.get(name, {}) | value).items()))
        else:
            result[name] = value
    return _ordered(result)


def _merge_env(base: list[str], own: list[str]) -> list[str]:
    """Let a variable keep its place and take its new value; new ones follow in their order."""
    merged = {item.partition("=")[0]: item for item in base}
    merged |= {item.partition("=")[0]: item for item in own}
    return list(merged.values())


def _ordered(config: RunConfig) -> RunConfig:
    """Order the fields as `_FIELDS` does, with a base's unknown ones behind them."""
    rank = {name: number for number, name in enumerate(_FIELDS)}
    return dict(sorted(config.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))
