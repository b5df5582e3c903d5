"""Tests of `nixsnap.registry.hosts`: containerd's registry configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixsnap.errors import FailedPreconditionError, InvalidArgumentError
from nixsnap.registry.endpoint import ClientCertificate, Endpoint, Verify
from nixsnap.registry.hosts import default_hosts_dirs, find_endpoints, push_endpoint

NAME = "registry.invalid"


def configure(root: Path, text: str, name: str = NAME) -> Path:
    (root / name).mkdir()
    (root / name / "hosts.toml").write_text(text)
    return root / name


def endpoints(root: Path, registry: str = NAME, *, plain_http: bool = False) -> tuple[Endpoint, ...]:
    return find_endpoints(registry, hosts_dirs=[root], plain_http=plain_http)


# The first file is the one of containerd's own test, TestParseHostFile, with other names; so are the expected values.
EVERYTHING = """
server = "https://default.invalid"
ca = "/etc/path/default"
[header]
  x-custom-1 = "custom header"

[host."https://mirror.invalid"]
  capabilities = ["pull"]
  ca = "/etc/certs/mirror.pem"
  skip_verify = false
  [host."https://mirror.invalid".header]
    x-custom-2 = ["value1", "value2"]

[host."https://mirror-bak.invalid/us"]
  capabilities = ["pull"]
  skip_verify = true

[host."http://mirror.invalid"]
  capabilities = ["pull"]

[host."https://test-1.invalid"]
  capabilities = ["pull", "resolve", "push", "referrers"]
  ca = ["/etc/certs/test-1-ca.pem", "special.pem"]
  client = [["/etc/certs/client.cert", "/etc/certs/client.key"],["/etc/certs/client.pem", ""]]

[host."https://test-2.invalid"]
  client = "/etc/certs/client.pem"

[host."https://test-3.invalid"]
  client = ["/etc/certs/client-1.pem", "/etc/certs/client-2.pem"]

[host."https://other-root.invalid/v2/prefix"]
  capabilities = ["Pull"]
  override_path = true

[host."https://no-root.invalid"]
  override_path = true

[host."https://only-header.invalid".header]
  x-custom-1 = "just a header"

[host."https://timeout.invalid"]
  dial_timeout = "1m3.5s"
"""


def test_everything(tmp_path):
    """Every field, in the order of the file, and the server last."""
    directory = configure(tmp_path, EVERYTHING)
    found = endpoints(tmp_path)
    assert [each.base_url(each.scheme) for each in found] == [
        "https://mirror.invalid/v2",
        "https://mirror-bak.invalid/us/v2",
        "http://mirror.invalid/v2",
        "https://test-1.invalid/v2",
        "https://test-2.invalid/v2",
        "https://test-3.invalid/v2",
        "https://other-root.invalid/v2/prefix",
        "https://no-root.invalid",
        "https://only-header.invalid/v2",
        "https://timeout.invalid/v2",
        "https://default.invalid/v2",
    ]
    pushing = [each.host.partition(".")[0] for each in found if each.can_push]
    assert pushing == ["test-1", "test-2", "test-3", "no-root", "only-header", "timeout", "default"]
    assert found[0].ca_files == ("/etc/certs/mirror.pem",)
    assert found[0].headers == (("x-custom-2", "value1, value2"),)
    assert found[1].verify is Verify.NOBODY
    assert found[3].ca_files == ("/etc/certs/test-1-ca.pem", str(directory / "special.pem"))
    assert found[3].client_certificates == (
        ClientCertificate(certificate="/etc/certs/client.cert", key="/etc/certs/client.key"),
        ClientCertificate(certificate="/etc/certs/client.pem"),
    )
    assert found[4].client_certificates == (ClientCertificate(certificate="/etc/certs/client.pem"),)
    assert len(found[5].client_certificates) == 2
    assert found[8].headers == (("x-custom-1", "just a header"),)
    assert found[9].connect_timeout_seconds == 63.5
    assert found[10].ca_files == ("/etc/path/default",)
    assert found[10].headers == (("x-custom-1", "custom header"),)
    assert all(each.is_proxy and each.source == str(directory / "hosts.toml") for each in found)
    assert push_endpoint(NAME, hosts_dirs=[tmp_path], plain_http=False) == found[3]


def test_header_is_not_shown(tmp_path):
    """It may be a secret: neither in an endpoint's text nor in an error's."""
    configure(tmp_path, '[header]\nAuthorization = "Bearer secret"\n')
    assert "secret" not in repr(endpoints(tmp_path))
    configure(tmp_path, '[header]\n"no good" = "secret"\n', "other.invalid")
    with pytest.raises(InvalidArgumentError, match="'no good' is no good HTTP header") as caught:
        endpoints(tmp_path, "other.invalid")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("registry", "directories", "expected"),
    [
        (NAME, [NAME, "_default"], NAME),
        (NAME, ["_default"], "_default"),
        (NAME, ["other.invalid"], None),
        (f"{NAME}:5000", [f"{NAME}_5000_", f"{NAME}:5000", NAME], f"{NAME}_5000_"),
        (f"{NAME}:5000", [f"{NAME}:5000", NAME, "_default"], f"{NAME}:5000"),
        (f"{NAME}:5000", [NAME, "_default"], "_default"),
        ("[::1]:5000", ["[::1]_5000_"], "[::1]_5000_"),
        ("[::1]", ["[::1]"], "[::1]"),
    ],
)
def test_directories(tmp_path, registry, directories, expected):
    """The registry's own one, under either name, or else the one for all."""
    for name in directories:
        configure(tmp_path, "ca = 'ca.crt'", name)
    (found,) = endpoints(tmp_path, registry)
    assert found.ca_files == ((str(tmp_path / expected / "ca.crt"),) if expected else ())
    assert found.host == registry


def test_registrys_own_directory_anywhere_comes_before_any_for_all(tmp_path):
    """A `_default` in the first directory does not hide what another one says of the registry."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    configure(tmp_path / "first", "ca = 'a'", "_default")
    own = configure(tmp_path / "second", "ca = 'b'")
    (found,) = find_endpoints(NAME, hosts_dirs=[tmp_path / "first", tmp_path / "second"], plain_http=False)
    assert found.source == str(own / "hosts.toml")


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_certificates_by_name(tmp_path, text):
    """Docker's pattern, where there is no hosts.toml or nothing in it."""
    directory = configure(tmp_path, text)
    for name in ("b.crt", "a.crt", "client.cert", "client.key", "alone.cert", "readme.txt"):
        (directory / name).touch()
    (found,) = endpoints(tmp_path)
    assert found.ca_files == (str(directory / "a.crt"), str(directory / "b.crt"))
    assert found.client_certificates == (
        ClientCertificate(certificate=str(directory / "alone.cert")),
        ClientCertificate(certificate=str(directory / "client.cert"), key=str(directory / "client.key")),
    )


def test_empty_directory(tmp_path):
    """Changes nothing."""
    (tmp_path / NAME).mkdir()
    (found,) = endpoints(tmp_path)
    assert (found.host, found.source, found.ca_files) == (NAME, "", ())


def test_loopback_with_a_certificate_authority_is_verified(tmp_path):
    """Whoever names one means it to be asked; without one, and by skip_verify, it is not."""
    for number, (text, verify) in enumerate(
        [
            ("ca = 'x'", Verify.EVERYONE),
            ("skip_verify = false", Verify.EVERYONE),
            ("skip_verify = true\nca = 'x'", Verify.NOBODY),
            ("dial_timeout = '1s'", Verify.ALL_BUT_LOOPBACK),
        ]
    ):
        configure(tmp_path, text, f"localhost_{5000 + number}_")
        (found,) = endpoints(tmp_path, f"localhost:{5000 + number}")
        assert (found.verify, found.tries_tls_first) == (verify, True)


def test_http_with_tls_settings_tries_both(tmp_path):
    """As containerd does, unless the port is HTTP's own."""
    configure(
        tmp_path,
        '[host."http://10.0.0.1:5000"]\nskip_verify = true\n[host."http://10.0.0.1:80"]\nskip_verify = true\n'
        '[host."http://10.0.0.2:5000"]\n',
    )
    assert [each.tries_tls_first for each in endpoints(tmp_path)] == [True, False, False, False]


def test_plain_http_is_about_hosts_without_a_url(tmp_path):
    """A URL in the configuration keeps its scheme."""
    configure(tmp_path, '[host."https://mirror.invalid"]\ncapabilities = ["pull"]\n')
    assert [each.scheme for each in endpoints(tmp_path, plain_http=True)] == ["https", "http"]


def test_server_without_a_scheme(tmp_path):
    """Has TLS."""
    configure(tmp_path, 'server = "other.invalid:5000/"')
    (found,) = endpoints(tmp_path)
    assert found.base_url(found.scheme) == "https://other.invalid:5000/v2"


def test_nobody_may_be_pushed_to(tmp_path):
    """The error names the file."""
    directory = configure(tmp_path, "capabilities = ['pull']")
    with pytest.raises(FailedPreconditionError, match=str(directory / "hosts.toml")):
        push_endpoint(NAME, hosts_dirs=[tmp_path], plain_http=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("server", "is not TOML"),
        ("server = 1", "server is '1', not a string"),
        ("server = 'ftp://x'", "not the URL of a host"),
        ("server = 'https://'", "not the URL of a host"),
        ("server = 'https://x:y'", "not the URL of a host"),
        ("server = 'https://user:secret@x'", "not the URL of a host"),
        ("server = 'https://x?y'", "not the URL of a host"),
        ("[host.'https://x:99999']", "not the URL of a host"),
        ("host = 1", "host is '1', not a table of hosts"),
        ("host.x = 1", "not a table of hosts"),
        ("capabilities = ['fly']", "capabilities is 'fly', not one of pull, push, referrers, resolve"),
        ("ca = 1", "ca is '1', not a string"),
        ("ca = 2026-01-01", "ca is '2026-01-01', not a string"),
        ("client = [['a', 'b', 'c']]", "client is .* not a pair"),
        (
            "[host.'https://x']\nskip_verify = 'yes'",
            r"host.\"https://x\".skip_verify is 'yes', not true or false",
        ),
        ("override_path = 1", "override_path is '1', not true or false"),
        ("header = 'x'", "header is 'x', not a table of headers"),
        ('[header]\nx = "a\\nb"', "'x' is no good HTTP header"),
        ("dial_timeout = '1 day'", "dial_timeout is '1 day', not a duration"),
        ("dial_timeout = '0s'", "not a duration"),
    ],
)
def test_mistakes(tmp_path, text, reason):
    """Are errors that name the file and the field."""
    directory = configure(tmp_path, text)
    with pytest.raises(InvalidArgumentError, match=reason) as caught:
        endpoints(tmp_path)
    assert str(directory / "hosts.toml") in str(caught.value)


def test_not_utf8(tmp_path):
    """Neither."""
    (configure(tmp_path, "") / "hosts.toml").write_bytes(b"server = '\xff'")
    with pytest.raises(InvalidArgumentError, match="is not UTF-8"):
        endpoints(tmp_path)


def test_default_directories(monkeypatch):
    """Root has the system's; everyone else has their own before those."""
    system = (Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_hosts_dirs() == system
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/me/conf")
    assert default_hosts_dirs() == (
        Path("/home/me/conf/containerd/certs.d"),
        Path("/home/me/conf/docker/certs.d"),
        *system,
    )
