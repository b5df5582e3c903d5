"""`nix2container push` to registries that want TLS, passwords, certificates or tokens, and to mirrors."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

import pytest
from certificates import Authority
from droppingproxy import dropping
from pushable import BIG_BYTES
from registries import HTPASSWD, PASSWORD, USER, Registry, has_tag, manifest
from tokenserver import TokenServer

CREDENTIALS = ("--tls-verify=false", "--creds", f"{USER}:{PASSWORD}")
AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
RIGHTS = {USER: {"team/app": "pull,push", "team/base": "pull", "other/app": "pull"}, "": {"team/app": "pull"}}


@pytest.fixture
def guarded(start: Callable[..., Registry], authority: Authority, tmp_path) -> Registry:
    """A registry with TLS, by a certificate authority that nobody knows, and a password."""
    server = authority.issue_for_loopback()
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    return start(
        http={"tls": {"certificate": str(server.certificate), "key": str(server.key)}},
        auth={"htpasswd": {"realm": "the registry", "path": str(tmp_path / "htpasswd")}},
    )


@pytest.fixture
def tokens(authority: Authority) -> Iterator[Callable[..., TokenServer]]:
    """Starts a token server that knows the user and what the user may do."""
    servers: list[TokenServer] = []

    def start(**settings: object) -> TokenServer:
        defaults = {"passwords": {USER: PASSWORD}, "rights": RIGHTS}
        servers.append(TokenServer(authority.own, **{**defaults, **settings}))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_tls_and_password(guarded, client, authority, archive):
    """With the certificate authority from hosts.toml and the password from Docker's configuration."""
    client.configure(guarded.host, f'server = "https://{guarded.host}"\nca = "{authority.own.certificate}"\n')
    client.docker_config(auths={guarded.host: {"auth": AUTH}})
    client.pushed("--ref", f"{guarded.host}/team/app:1", archive)
    assert manifest(f"{guarded.host}/team/app:1", *CREDENTIALS)


def test_certificate_file_beside_no_hosts_toml(guarded, client, authority, archive):
    """Docker's own way, which containerd takes too: any *.crt in the registry's directory."""
    client.configure(guarded.host, "").rename(client.directory / "empty")
    (client.hosts_dir / guarded.host).mkdir()
    authority.own.certificate.rename(client.hosts_dir / guarded.host / "ca.crt")
    client.docker_config(auths={f"https://{guarded.host}/v2/": {"auth": AUTH}})
    client.pushed("--ref", f"{guarded.host}/team/app:1", archive)


def test_loopback_needs_no_good_certificate(guarded, client, archive):
    """As Docker has it; nothing is configured."""
    client.docker_config(auths={guarded.host: {"username": USER, "password": PASSWORD}})
    client.pushed("--ref", f"{guarded.host}/team/app:1", archive)


def test_unknown_certificate_authority(guarded, client, archive, tmp_path):
    """The message names those that are known."""
    other = Authority.create(tmp_path / "other", "another-ca").own.certificate
    client.configure(guarded.host, f'server = "https://{guarded.host}"\nca = ["{other}"]\n')
    result = client.push("--ref", f"{guarded.host}/team/app:1", archive)
    assert result.returncode == 5
    assert f"the certificate of {guarded.host} is not good" in result.stderr
    assert f"trusted are the system's certificate authorities and {other}" in result.stderr
    assert guarded.requests() == []


def test_certificate_for_another_name(start, client, authority, archive):
    """It says what the certificate is not for."""
    server = authority.issue("server", "subjectAltName=DNS:other.invalid")
    registry = start(http={"tls": {"certificate": str(server.certificate), "key": str(server.key)}})
    client.configure(
        registry.host, f'server = "https://{registry.host}"\nca = "{authority.own.certificate}"\n'
    )
    result = client.push("--ref", f"{registry.host}/team/app:1", archive)
    assert result.returncode == 5
    assert "certificate is not valid for 'localhost'" in result.stderr


def test_skip_verify(guarded, client, archive):
    """For a host that the configuration trusts blindly."""
    client.configure(guarded.host, f'server = "https://{guarded.host}"\nskip_verify = true\n')
    client.docker_config(auths={guarded.host: {"auth": AUTH}})
    client.pushed("--ref", f"{guarded.host}/team/app:1", archive)


def test_no_password(guarded, client, archive):
    """The message says where one was looked for and how to get one there."""
    result = client.push("--ref", f"{guarded.host}/team/app:1", archive)
    assert result.returncode == 7
    assert f"{guarded.host} wants a user and a password (401" in result.stderr
    assert str(client.directory / "docker/config.json") in result.stderr
    assert f"docker login {guarded.host}" in result.stderr


def test_wrong_password(guarded, client, archive):
    """The message says whose, from where, and not the password."""
    client.docker_config(auths={guarded.host: {"username": USER, "password": "hunter2"}})
    result = client.push("--ref", f"{guarded.host}/team/app:1", archive)
    assert result.returncode == 7
    assert "401 Unauthorized" in result.stderr
    assert f"the user '{USER}' from {client.directory / 'docker/config.json'}" in result.stderr
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize("field", ["credsStore", "credHelpers"])
def test_credential_helper(guarded, client, archive, tmp_path, field):
    """The password comes from a program, asked for this registry by Docker's protocol."""
    program = tmp_path / "docker-credential-test"
    answer = json.dumps({"ServerURL": guarded.host, "Username": USER, "Secret": PASSWORD})
    program.write_text(f'#!/bin/sh\n[ "$1" = get ] && [ "$(cat)" = "{guarded.host}" ] && echo \'{answer}\'\n')
    program.chmod(0o755)
    client.environment["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    client.docker_config(**{field: "test" if field == "credsStore" else {guarded.host: "test"}})
    client.pushed("--ref", f"{guarded.host}/team/app:1", archive)


def test_missing_credential_helper(guarded, client, archive):
    """The message names it and who asks for it."""
    client.docker_config(credsStore="nowhere")
    result = client.push("--ref", f"{guarded.host}/team/app:1", archive)
    assert result.returncode == 5
    assert "docker-credential-nowhere is not on PATH" in result.stderr
    assert "credsStore" in result.stderr


def test_client_certificate(start, client, authority, archive):
    """Shown where it is asked for; without it TLS fails, and the message says how it is configured."""
    server, mine = authority.issue_for_loopback(), authority.issue("client")
    tls = {"certificate": str(server.certificate), "key": str(server.key)}
    registry = start(http={"tls": {**tls, "clientcas": [str(authority.own.certificate)]}})
    without = f'server = "https://{registry.host}"\nca = "{authority.own.certificate}"\n'
    file = client.configure(registry.host, without)
    refused = client.push("--ref", f"{registry.host}/app:1", archive)
    assert refused.returncode == 5, refused.stderr
    assert '"client" in hosts.toml' in refused.stderr
    file.write_text(f'{without}client = [["{mine.certificate}", "{mine.key}"]]\n')
    client.pushed("--ref", f"{registry.host}/app:1", archive)


def test_plain_http(registry, client, archive):
    """TLS is not even tried."""
    client.pushed("--plain-http", "--ref", f"{registry.host}/app:1", archive)
    assert "TLS" not in registry.process.log_text()


def test_mirror(start, client, archive):
    """Another host in its place: the first that may be pushed to, told the registry's name in each request."""
    reader, writer = start(), start()
    client.configure(
        "registry.invalid",
        f'server = "https://registry.invalid"\n'
        f'[host."http://{reader.host}"]\ncapabilities = ["pull", "resolve"]\n'
        f'[host."http://{writer.host}"]\ncapabilities = ["pull", "resolve", "push"]\n'
        f'[host."http://{writer.host}".header]\nX-Test = "yes"\n',
    )
    printed = client.pushed("--ref", "registry.invalid/team/app:1", archive)
    assert printed.startswith("registry.invalid/team/app:1@sha256:")
    assert reader.requests() == []
    assert len(writer.requests()) == 7
    assert all("ns=registry.invalid" in each for each in writer.requests())
    assert has_tag(f"{writer.host}/team/app:1")


def test_nothing_may_be_pushed_to(client, archive):
    """Where the configuration says that every host is for reading."""
    file = client.configure(
        "registry.invalid",
        'server = "https://registry.invalid"\ncapabilities = ["pull"]\n'
        '[host."https://mirror.invalid"]\ncapabilities = ["pull", "resolve"]\n',
    )
    result = client.push("--ref", "registry.invalid/app:1", archive)
    assert result.returncode == 5
    assert str(file) in result.stderr


def test_token(start, tokens, client, archive):
    """A token is got once, for the password, and docker-registry takes it for all requests."""
    server = tokens()
    registry = start(auth=server.registry_settings())
    client.docker_config(auths={registry.host: {"auth": AUTH}})
    client.pushed("--ref", f"{registry.host}/team/app:1", archive)
    assert server.asked == [f"GET {USER} repository:team/app:pull,push"]
    assert manifest(f"{registry.host}/team/app:1", *CREDENTIALS)


def test_identity_token(start, tokens, client, archive):
    """What `docker login` keeps where the password may not be kept; it goes to the token server by POST."""
    server = tokens(identity_tokens={"my identity": USER})
    registry = start(auth=server.registry_settings())
    client.docker_config(auths={registry.host: {"identitytoken": "my identity"}})
    client.pushed("--ref", f"{registry.host}/team/app:1", archive)
    assert server.asked == [f"POST {USER} repository:team/app:pull,push"]


def test_token_runs_out_during_the_push(start, tokens, client, big_archive):
    """A new one is got, and nothing is lost."""
    server = tokens(lifetime_seconds=1)
    registry = start(auth=server.registry_settings())
    client.docker_config(auths={registry.host: {"auth": AUTH}})
    with dropping(registry.port, pause_seconds=0.006) as proxy:
        client.docker_config(auths={f"localhost:{proxy.port}": {"auth": AUTH}})
        client.pushed("--ref", f"localhost:{proxy.port}/team/app:1", big_archive)
        assert BIG_BYTES < proxy.sent < BIG_BYTES * 1.1
    assert len(server.asked) > 1


def test_token_server_refuses_password(start, tokens, client, archive):
    """It says who refused whom."""
    server = tokens()
    registry = start(auth=server.registry_settings())
    client.docker_config(auths={registry.host: {"username": USER, "password": "hunter2"}})
    result = client.push("--ref", f"{registry.host}/team/app:1", archive)
    assert result.returncode == 7
    assert f"localhost:{server.port} answers 401 Unauthorized (UNAUTHORIZED: wrong password)" in result.stderr
    assert f"the user '{USER}'" in result.stderr
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize("known", [True, False])
def test_no_right_to_push(start, tokens, client, archive, known):
    """To this repository, or for those who have not logged in; nothing is uploaded."""
    server = tokens()
    registry = start(auth=server.registry_settings())
    client.docker_config(auths={registry.host: {"auth": AUTH}} if known else {})
    name = f"{registry.host}/other/app:1" if known else f"{registry.host}/team/app:1"
    result = client.push("--ref", name, archive)
    assert result.returncode == 7
    assert f"{registry.host} answers 401 Unauthorized" in result.stderr
    assert (f"the user '{USER}'" if known else f"docker login {registry.host}") in result.stderr
    assert registry.requests("PUT") == []


def test_mount_with_a_token_for_both(start, tokens, client, archive):
    """The token covers the repository that is mounted from."""
    server = tokens(rights={USER: {"team/app": "pull,push", "team/base": "pull,push"}})
    registry = start(auth=server.registry_settings())
    client.docker_config(auths={registry.host: {"auth": AUTH}})
    client.pushed("--ref", f"{registry.host}/team/base:1", archive)
    result = client.push("--ref", f"{registry.host}/team/app:1", "--mount-from", "team/base", archive)
    assert result.stderr.count(": mounted") == 2
    assert f"GET {USER} repository:team/app:pull,push repository:team/base:pull" in server.asked


def test_mount_from_where_we_may_not_read(start, tokens, client, archive):
    """It is pushed then."""
    registry = start(auth=(server := tokens()).registry_settings())
    client.docker_config(auths={registry.host: {"auth": AUTH}})
    result = client.push("--ref", f"{registry.host}/team/app:1", "--mount-from", "secret/base", archive)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(": pushed") == 2
    assert any("secret/base" in each for each in server.asked)
