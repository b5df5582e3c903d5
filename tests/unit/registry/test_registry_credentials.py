"""Tests of `nixsnap.registry.credentials`: Docker's config.json and its credential helpers."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from nixsnap.errors import FailedPreconditionError, InvalidArgumentError
from nixsnap.registry.credentials import Credentials, DockerConfig
from nixsnap.registry.endpoint import Endpoint, default_endpoint

HOST = "registry.invalid:5000"
HUB = "docker.io"
HUB_KEY = f"https://index.{HUB}/v1/"


def auth_of(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def endpoint(host: str = HOST) -> Endpoint:
    return default_endpoint(host, plain_http=False)


@pytest.fixture
def write(tmp_path):
    """Writes a config.json and reads it."""

    def write_one(value: object) -> DockerConfig:
        (tmp_path / "config.json").write_text(value if isinstance(value, str) else json.dumps(value))
        return DockerConfig(tmp_path / "config.json")

    return write_one


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Puts a credential helper `test` on PATH, which leaves what it was asked in the file `asked`."""

    def write_one(script: str) -> None:
        program = tmp_path / "docker-credential-test"
        program.write_text(f'#!/bin/sh\necho "$1 $(cat)" >> {tmp_path}/asked\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return write_one


def said(credentials: Credentials | None) -> tuple[str, ...] | None:
    if credentials is None:
        return None
    return (
        credentials.username,
        credentials.password,
        credentials.identity_token,
        credentials.registry_token,
    )


@pytest.mark.parametrize(
    "key",
    [HOST, f"https://{HOST}", f"http://{HOST}/", f"https://{HOST}/v1/", f"https://{HOST}/v2/"],
)
def test_auths(write, key):
    """Under the host, or any URL of it, as `docker login` has written them over the years."""
    config = write(
        {"auths": {"other.invalid": {"auth": auth_of("x", "y")}, key: {"auth": auth_of("me", "a:b")}}}
    )
    assert said(config.find(endpoint())) == ("me", "a:b", "", "")
    assert config.find(endpoint("nobody.invalid")) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, None),
        ({"auth": ""}, None),
        ({"username": "me", "password": "pw"}, ("me", "pw", "", "")),
        ({"auth": auth_of("me", "pw\0\0")}, ("me", "pw", "", "")),
        ({"auth": auth_of("me", "ä ö")}, ("me", "ä ö", "", "")),
        ({"identitytoken": "T"}, ("", "", "T", "")),
        ({"registrytoken": "R"}, ("", "", "", "R")),
        ({"auth": auth_of("me", ""), "identitytoken": "T", "email": "x"}, ("me", "", "T", "")),
    ],
)
def test_forms_of_an_entry(write, entry, expected):
    """A name and a password together or apart, or tokens."""
    assert said(write({"auths": {HOST: entry}}).find(endpoint())) == expected


def test_very_key_comes_first(write):
    """Before a URL of the same host."""
    config = write(
        {"auths": {f"https://{HOST}/v1/": {"auth": auth_of("a", "b")}, HOST: {"auth": auth_of("c", "d")}}}
    )
    assert said(config.find(endpoint())) == ("c", "d", "", "")


@pytest.mark.parametrize("key", [HUB_KEY, HUB, f"index.{HUB}", f"https://{HUB}"])
def test_hub(write, key):
    """Docker Hub's are under a URL that nothing else has, or under any of its names."""
    assert said(write({"auths": {key: {"auth": auth_of("me", "pw")}}}).find(endpoint(HUB))) is not None


def test_mirror_has_its_own(write):
    """A host in another registry's place is not shown what that registry would be."""
    config = write({"auths": {HUB: {"auth": auth_of("me", "pw")}, "mirror.invalid": {"identitytoken": "M"}}})
    mirror = Endpoint(registry=HUB, scheme="https", host="mirror.invalid")
    other = Endpoint(registry=HUB, scheme="https", host="other.invalid")
    assert said(config.find(mirror)) == ("", "", "M", "")
    assert config.find(other) is None


@pytest.mark.parametrize(
    "value", [{}, {"auths": {}}, {"auths": None, "credsStore": None}, {"HttpHeaders": {}}]
)
def test_nobody_logged_in(write, value):
    """Is no error."""
    assert write(value).find(endpoint()) is None


def test_no_file(tmp_path, monkeypatch):
    """Neither; it is looked for where Docker looks."""
    assert DockerConfig(tmp_path / "nowhere/config.json").find(endpoint()) is None
    monkeypatch.setenv("HOME", "/home/me")
    assert str(DockerConfig.load({})) == "/home/me/.docker/config.json"
    assert str(DockerConfig.load({"DOCKER_CONFIG": "/conf"})) == "/conf/config.json"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "not an object"),
        ({"auths": {HOST: "secret"}}, r"auths\['registry.invalid:5000'\] is not an object"),
        ({"auths": {HOST: {"auth": ["secret"]}}}, "auth is not a string"),
        ({"auths": {HOST: {"auth": "secret!"}}}, "is not the base64 of user:password"),
        ({"auths": {HOST: {"auth": base64.b64encode(b"secret").decode()}}}, "is not the base64 of"),
        ({"auths": {HOST: {"auth": base64.b64encode(b"\xff:secret").decode()}}}, "is not the base64 of"),
        ({"credHelpers": {HOST: 1}}, "credHelpers"),
        ({"credsStore": "../evil"}, "credsStore in .* is '../evil', not a credential helper"),
    ],
)
def test_damaged(write, tmp_path, value, reason):
    """The message names file and field, and shows no secret."""
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        write(value).find(endpoint())
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "secret" not in str(caught.value)


def test_secrets_are_not_shown():
    """In no text of credentials."""
    credentials = Credentials(
        username="me", password="secret1", identity_token="secret2", registry_token="secret3", source="a file"
    )
    assert "secret" not in f"{credentials} {credentials!r}"
    assert str(credentials) == "the user 'me' from a file"


@pytest.mark.parametrize(
    ("field", "value"),
    [("credsStore", "test"), ("credHelpers", {HOST: "test"})],
)
def test_helper(write, helper, tmp_path, field, value):
    """Asked for the host, by Docker's protocol; it comes before `auths`."""
    helper("""echo '{"ServerURL": "x", "Username": "me", "Secret": "pw"}'""")
    config = write({field: value, "auths": {HOST: {"auth": auth_of("other", "one")}}})
    found = config.find(endpoint())
    assert said(found) == ("me", "pw", "", "")
    assert f"docker-credential-test ({field} in {tmp_path}/config.json)" in str(found)
    assert (tmp_path / "asked").read_text() == f"get {HOST}\n"


def test_helper_of_the_host_comes_before_the_store(write, helper):
    """As with Docker."""
    helper("""echo '{"Username": "me", "Secret": "pw"}'""")
    assert write({"credsStore": "nowhere", "credHelpers": {HOST: "test"}}).find(endpoint()) is not None


def test_helper_is_asked_for_hub_by_its_url(write, helper, tmp_path):
    """The one that Docker stores it under."""
    helper("""echo '{"Username": "<token>", "Secret": "T"}'""")
    assert said(write({"credsStore": "test"}).find(endpoint(HUB))) == ("", "", "T", "")
    assert (tmp_path / "asked").read_text() == f"get {HUB_KEY}\n"


def test_helper_that_has_none(write, helper):
    """Is passed over, for what the file itself has."""
    helper("echo 'credentials not found in native keychain'; exit 1")
    assert write({"credsStore": "test"}).find(endpoint()) is None
    config = write({"credsStore": "test", "auths": {HOST: {"auth": auth_of("me", "pw")}}})
    assert said(config.find(endpoint())) == ("me", "pw", "", "")


@pytest.mark.parametrize(
    ("script", "error", "reason"),
    [
        (
            "echo 'the keychain is locked'; exit 1",
            FailedPreconditionError,
            "failed: 'the keychain is locked'",
        ),
        ("echo trouble >&2; exit 2", FailedPreconditionError, "failed: 'trouble'"),
        ("echo secret", InvalidArgumentError, "the answer of docker-credential-test is not valid JSON"),
        ("echo '\"secret\"'", InvalidArgumentError, "is not an object"),
        (
            """echo '{"Username": "me", "Secret": ["secret"]}'""",
            InvalidArgumentError,
            "Secret is not a string",
        ),
    ],
)
def test_helper_that_fails(write, helper, script, error, reason):
    """In its own words, but for what may be a secret."""
    helper(script)
    with pytest.raises(error, match=reason) as caught:
        write({"credsStore": "test"}).find(endpoint())
    assert "secret" not in str(caught.value)


def test_missing_helper(write, monkeypatch):
    """The message names it, and where it is asked for."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FailedPreconditionError, match="docker-credential-test is not on PATH") as caught:
        write({"credHelpers": {HOST: "test"}}).find(endpoint())
    assert "credHelpers in" in str(caught.value.hint)


def test_helper_that_cannot_run(write, helper, tmp_path):
    """Not executable, for one."""
    helper("")
    Path(tmp_path / "docker-credential-test").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(FailedPreconditionError, match=r"docker-credential-test .* failed: Exec format error"):
        write({"credsStore": "test"}).find(endpoint())
