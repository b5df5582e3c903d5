"""Registries of the tests' own: Debian's docker-registry, and one that can resume uploads."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from lab import Process, installed_program, run

GO = os.environ.get("NIXSNAP_GO", "go")
"""packaging/test names one that is new enough; without it, PATH decides."""
USER, PASSWORD = "pusher", "p:äss wörd"
# `htpasswd -Bbn pusher 'p:äss wörd'`
HTPASSWD = "pusher:$2y$05$oyy1tp4ew1Jty6A0cxJEDOM7yQwfmbwZMIOzth8VeQYfQtugXBmBO\n"
_CHUNKS = Path(__file__).parent / "chunks"


def need_programs(*names: str) -> None:
    """Skip with the names of those that are missing."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        pytest.skip(f"this machine lacks {', '.join(missing)}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port: int) -> bool:
    """Whether somebody listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@attrs.define(kw_only=True)
class Registry:
    """A registry that runs on the loopback interface."""

    process: Process
    port: int
    directory: Path

    @property
    def host(self) -> str:
        """Its name in references."""
        return f"localhost:{self.port}"

    def requests(self, method: str = "") -> list[str]:
        """The request lines that it has logged, `METHOD path`."""
        lines = re.findall(r'"([A-Z]+ \S+) HTTP', self.process.log_text(last_bytes=10_000_000))
        return [line for line in lines if line.startswith(method)]

    def stop(self) -> None:
        """End it."""
        self.process.stop()


def start_docker_registry(
    directory: Path,
    *,
    port: int | None = None,
    storage: Path | None = None,
    http: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Registry:
    """Start Debian's docker-registry; `http` and further sections are added to its configuration."""
    need_programs("docker-registry")
    directory.mkdir(exist_ok=True)
    port = port or free_port()
    storage_section = {
        "filesystem": {"rootdirectory": str(storage or directory / "data")},
        "delete": {"enabled": True},
        **sections.pop("storage_options", {}),
    }
    config = {
        "version": "0.1",
        "log": {"level": "error"},  # and a line for each request
        "storage": storage_section,
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of the test", **(http or {})},
        **sections,
    }
    file = directory / "config.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    process = Process.start("docker-registry", "docker-registry", "serve", file, log=directory / "log")
    process.wait_until(lambda: answers(port), what="docker-registry listens")
    return Registry(process=process, port=port, directory=directory)


def start_resuming_registry(directory: Path, program: Path) -> Registry:
    """Start the registry in `chunks`, built as `program`."""
    directory.mkdir(exist_ok=True)
    port = free_port()
    process = Process.start(
        "resuming registry", program, "-address", f"127.0.0.1:{port}", log=directory / "log"
    )
    process.wait_until(lambda: answers(port), what="the resuming registry listens")
    return Registry(process=process, port=port, directory=directory)


def build_resuming_registry(directory: Path) -> Path:
    """Build the registry in `chunks`, and return the program."""
    need_programs(GO)
    program = directory / "resuming-registry"
    environment = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    run(GO, "-C", _CHUNKS, "build", "-o", program, ".", environment=environment, timeout_seconds=600)
    return program


@attrs.define(kw_only=True)
class Client:
    """`nix2container push` with a configuration of the test's own, and skopeo to see what has come of it."""

    directory: Path
    hosts_dir: Path
    environment: dict[str, str] = attrs.field(factory=dict)

    @classmethod
    def create(cls, directory: Path) -> Client:
        """Make one that knows no registry and no password."""
        (directory / "hosts").mkdir()
        (directory / "docker").mkdir()
        environment = {"DOCKER_CONFIG": str(directory / "docker")}
        return cls(directory=directory, hosts_dir=directory / "hosts", environment=environment)

    def configure(self, host: str, text: str) -> Path:
        """Write a registry's hosts.toml."""
        name, _, port = host.rpartition(":")
        directory = self.hosts_dir / (f"{name}_{port}_" if name else host)
        directory.mkdir()
        (directory / "hosts.toml").write_text(text)
        return directory / "hosts.toml"

    def docker_config(self, **fields: Any) -> None:
        """Write Docker's config.json."""
        (self.directory / "docker/config.json").write_text(json.dumps(fields))

    def argv(self, *arguments: str | Path) -> list[str]:
        """The command line of a push."""
        program = installed_program("nix2container")
        return [str(word) for word in (program, "push", "--hosts-dir", self.hosts_dir, *arguments)]

    def popen(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Begin a push."""
        return subprocess.Popen(
            self.argv(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )

    def push(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Push to the end, whatever that is."""
        return run(*self.argv(*arguments), check=False, environment=self.environment)

    def pushed(self, *arguments: str | Path) -> str:
        """Push successfully, and return what was printed."""
        result = self.push(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


def skopeo(*arguments: str | Path, check: bool = True) -> str:
    """Run skopeo, which is not ours and has another way to speak with registries."""
    need_programs("skopeo")
    return run("skopeo", "--insecure-policy", *arguments, check=check).stdout


def manifest(reference: str, *flags: str) -> dict[str, Any]:
    """What a registry has under a name, as it stands."""
    return json.loads(
        skopeo("inspect", "--raw", *(flags or ("--tls-verify=false",)), f"docker://{reference}")
    )


def has_tag(reference: str, *flags: str) -> bool:
    """Whether a registry knows a name."""
    result = run(
        "skopeo", "--insecure-policy", "inspect", "--raw", *(flags or ("--tls-verify=false",)),
        f"docker://{reference}", check=False,
    )  # fmt: skip
    assert result.returncode == 0 or "manifest unknown" in result.stderr or "404" in result.stderr, (
        result.stderr
    )
    return result.returncode == 0


def pull(reference: str, directory: Path, *flags: str) -> dict[str, bytes]:
    """Everything a registry has of an image, by digest; skopeo verifies it."""
    skopeo("copy", "--all", "--src-tls-verify=false", *flags, f"docker://{reference}", f"dir:{directory}")
    raw = [path.read_bytes() for path in directory.iterdir() if path.name != "version"]
    return {f"sha256:{hashlib.sha256(each).hexdigest()}": each for each in raw}
