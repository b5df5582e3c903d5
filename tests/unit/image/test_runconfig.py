"""Tests of `nixsnap.image.runconfig`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.runconfig import inherit, read_run_config

EVERY_OCI_FIELD = {
    "User": "1000:1000",
    "ExposedPorts": {"6379/tcp": {}, "53/udp": {}},
    "Env": ["A=1", "B=", "C=x=y"],
    "Entrypoint": ["/bin/sh"],
    "Cmd": ["-c", "true"],
    "Volumes": {"/data": {}},
    "WorkingDir": "/",
    "Labels": {"b": "2", "a": "1"},
    "StopSignal": "SIGTERM",
    "ArgsEscaped": False,
}


@pytest.fixture
def read(tmp_path: Path):
    def read_value(value: object) -> dict:
        path = tmp_path / "config.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return read_run_config(str(path))

    return read_value


@pytest.mark.parametrize("spell", [str, str.lower, str.upper, lambda name: name[0].lower() + name[1:]])
def test_names_in_any_case_become_ocis(read, spell) -> None:
    """Go's decoder does not look at case, and README's examples have `config.entrypoint`."""
    assert read({spell(name): value for name, value in EVERY_OCI_FIELD.items()}) == EVERY_OCI_FIELD


def test_fields_have_one_order(read) -> None:
    """OCI's, with maps sorted: two spellings of one config are one config."""
    given = read(dict(reversed(EVERY_OCI_FIELD.items())))

    assert list(given) == list(EVERY_OCI_FIELD)
    assert list(given["Labels"]) == ["a", "b"]
    assert list(given["ExposedPorts"]) == ["53/udp", "6379/tcp"]


@pytest.mark.parametrize("value", [{}, {"Env": None, "cmd": None}, None])
def test_null_is_unset(read, value) -> None:
    """Nix writes null for what a module leaves out."""
    assert read(value) == {}


def test_dockers_fields_are_let_through(read) -> None:
    """They matter to `docker load`, and nixpkgs' dockerTools takes them."""
    config = {
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**9},
        "Shell": ["/bin/sh", "-c"],
        "StopTimeout": 3,
    }

    assert read(config) == config


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"Entrypiont": ["x"]}, "has 'Entrypiont', which OCI's image config has not"),
        ({"config": {}}, "has 'config', which"),
        ({"Env": ["A=1"], "env": []}, "has 'Env' twice"),
        ({"Env": {"A": "1"}}, r'\.Env is {"A": "1"}, not an array'),
        ({"Env": ["A"]}, r"\.Env\[0\] is 'A', not NAME=VALUE"),
        ({"env": ["A=1", "=1"]}, r"\.env\[1\] is '=1', not NAME=VALUE"),
        ({"Entrypoint": "/bin/sh"}, r'\.Entrypoint is "/bin/sh", not an array'),
        ({"Cmd": [1]}, r"\.Cmd\[0\] is 1, not a string"),
        ({"Cmd": [None]}, r"\.Cmd\[0\] is null, not a string"),
        ({"User": 1000}, r"\.User is 1000, not a string"),
        ({"ExposedPorts": ["80"]}, r'\.ExposedPorts is \["80"\], not an object'),
        ({"Volumes": {"/x": 1}}, r"\.Volumes\['/x'\] is 1, not an object"),
        ({"Labels": {"x": 1}}, r"\.Labels\['x'\] is 1, not a string"),
        ({"ArgsEscaped": 1}, r"\.ArgsEscaped is 1, not true or false"),
        ([], r"is \[\], not an object"),
        ("x", "is not valid JSON"),
        ('{"Env": [], "Env": []}', "'Env' stands twice"),
    ],
)
def test_what_is_no_config_is_refused(read, value, reason: str) -> None:
    """The file, the field and the value are named."""
    with pytest.raises(InvalidArgumentError, match=rf"^config '.*config\.json'.*{reason}"):
        read(value)


def test_a_missing_file_is_named() -> None:
    """As every input."""
    with pytest.raises(NotFoundError, match="config '/absent' does not exist"):
        read_run_config("/absent")


def test_inherit_replaces_merges_and_keeps() -> None:
    """Each field as `FROM` and the instruction for it have it."""
    base = {
        "Env": ["PATH=/bin", "LANG=C", "TERM=x"],
        "Labels": {"a": "base", "b": "base"},
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/base": {}},
        "User": "base",
        "WorkingDir": "/base",
        "StopSignal": "SIGINT",
        "Domainname": "base",
        "OnBuild": ["RUN x"],
        "Future": {"x": 1},
        "Shell": None,
    }
    own = {
        "User": "own",
        "ExposedPorts": {"443/tcp": {}},
        "Env": ["LANG=de", "NEW=1"],
        "Volumes": {"/own": {}},
        "Labels": {"b": "own", "c": "own"},
        "WorkingDir": "",
    }

    assert inherit(base, own) == {
        "User": "own",
        "ExposedPorts": {"443/tcp": {}, "80/tcp": {}},
        "Env": ["PATH=/bin", "LANG=de", "TERM=x", "NEW=1"],
        "Volumes": {"/base": {}, "/own": {}},
        "WorkingDir": "",
        "Labels": {"a": "base", "b": "own", "c": "own"},
        "StopSignal": "SIGINT",
        "Domainname": "base",
        "Future": {"x": 1},
    }


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"Entrypoint": ["base"], "Cmd": ["base"]}),
        ({"Entrypoint": ["own"]}, {"Entrypoint": ["own"]}),
        ({"Cmd": ["own"]}, {"Entrypoint": ["base"], "Cmd": ["own"]}),
        ({"Entrypoint": ["own"], "Cmd": ["own"]}, {"Entrypoint": ["own"], "Cmd": ["own"]}),
        ({"Entrypoint": []}, {"Entrypoint": []}),
    ],
)
def test_an_entry_point_drops_the_bases_cmd(own, expected) -> None:
    """The base's arguments were for the base's program."""
    assert inherit({"Entrypoint": ["base"], "Cmd": ["base"]}, own) == expected


def test_inherit_changes_neither() -> None:
    """Both may be used again."""
    base, own = {"Env": ["A=1"], "Labels": {"a": "1"}}, {"Env": ["A=2"], "Labels": {"a": "2"}}
    inherit(base, own)

    assert (base, own) == ({"Env": ["A=1"], "Labels": {"a": "1"}}, {"Env": ["A=2"], "Labels": {"a": "2"}})


@pytest.mark.parametrize("field", ["Env", "Labels", "Volumes"])
def test_a_bases_null_is_unset(field: str) -> None:
    """Docker writes null into configs."""
    value = {"Env": ["A=1"], "Labels": {"a": "1"}, "Volumes": {"/v": {}}}[field]

    assert inherit({field: None}, {field: value}) == {field: value}
