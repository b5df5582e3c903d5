"""Certificates for a test, made by openssl(1)."""

from __future__ import annotations

from pathlib import Path

import attrs
from lab import run

DAYS = "2"


@attrs.frozen(kw_only=True)
class Certificate:
    """A certificate and its key, each in a PEM file."""

    certificate: Path
    key: Path


@attrs.frozen(kw_only=True)
class Authority:
    """A certificate authority of the test's own."""

    directory: Path
    own: Certificate

    @classmethod
    def create(cls, directory: Path, name: str = "ca") -> Authority:
        """Make one that nobody knows."""
        directory.mkdir(exist_ok=True)
        own = Certificate(certificate=directory / f"{name}.crt", key=directory / f"{name}.key")
        _request(own, f"nixsnap test {name}", "basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign")
        return cls(directory=directory, own=own)

    def issue(self, name: str, *extensions: str) -> Certificate:
        """Issue a certificate with such extensions as `subjectAltName=DNS:localhost`."""
        issued = Certificate(certificate=self.directory / f"{name}.crt", key=self.directory / f"{name}.key")
        issuer = ("-CA", self.own.certificate, "-CAkey", self.own.key)
        _request(issued, name, "basicConstraints=critical,CA:FALSE", *extensions, issuer=issuer)
        return issued

    def issue_for_loopback(self) -> Certificate:
        """Issue a server's certificate for this machine's own names."""
        return self.issue("server", "subjectAltName=DNS:localhost,IP:127.0.0.1")


def _request(made: Certificate, name: str, *extensions: str, issuer: tuple[str | Path, ...] = ()) -> None:
    run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", DAYS, "-subj", f"/CN={name}",
        *(word for extension in extensions for word in ("-addext", extension)), *issuer,
        "-keyout", made.key, "-out", made.certificate,
    )  # fmt: skip
