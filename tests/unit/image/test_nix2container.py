"""Tests of the `nix2container` command line, up to what `build` is asked to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nixsnap.cli import build, nix2container
from nixsnap.errors import InvalidArgumentError, NotFoundError
from nixsnap.image.build import Request
from nixsnap.image.closure import AnnotationForm
from nixsnap.image.platform import Platform


@pytest.fixture
def requested(monkeypatch) -> list[Request]:
    """What `build` was asked to do."""
    requests: list[Request] = []
    monkeypatch.setattr("nixsnap.image.build.build", requests.append)
    return requests


def test_build_passes_every_flag(requested: list[Request]) -> None:
    """The Go original's flags and ours."""
    flags = [
        "--from-image",
        "base.tar",
        "--config",
        "c.json",
        "--closure",
        "list",
        "--copy-to-root",
        "roots.json",
    ]
    more = ["--ref", "ghcr.io/x:1", "--annotations", "both", "--platform", "linux/aarch64"]

    assert nix2container.main(["build", *flags, *more, "out.tar"]) == 0
    (request,) = requested
    assert (request.out, request.from_image, request.config) == ("out.tar", "base.tar", "c.json")
    assert (request.closure, request.copy_to_root) == ("list", "roots.json")
    assert str(request.reference) == "ghcr.io/x:1"
    assert request.annotations is AnnotationForm.BOTH
    assert request.platform == Platform.parse("linux/arm64")


def test_defaults(requested: list[Request], monkeypatch) -> None:
    """The name is the one by which CRI finds an archive in the store; a relative one is made whole."""
    monkeypatch.chdir("/tmp")
    store_path = "/nix/store/b6gvzjyb2pg0kjfwrjmg1vfhh54ad73z-nix-image-redis.tar"
    assert nix2container.main(["build", store_path]) == 0
    assert nix2container.main(["build", "--from-image", "", "out.tar"]) == 0
    first, second = requested

    assert str(first.reference) == f"nix:0{store_path}:latest"
    assert str(second.reference) == "nix:0/tmp/out.tar:latest"
    assert first.platform == Platform.host()
    assert (first.annotations, second.from_image, first.config) == (None, None, None)


@pytest.mark.parametrize(
    "words",
    [
        ["-config", "c.json", "out.tar"],
        ["-config=c.json", "out.tar"],
        ["--config=c.json", "out.tar"],
        ["out.tar", "--config", "c.json"],
    ],
)
def test_gos_spelling_of_flags(requested: list[Request], words: list[str]) -> None:
    """One dash for a long flag, and an equals sign after either kind."""
    assert nix2container.main(["-log-level", "warn", "-n=k8s.io", "build", *words]) == 0
    assert requested[0].config == "c.json"


def test_words_after_two_dashes_are_not_flags(requested: list[Request]) -> None:
    """A file may have any name."""
    assert nix2container.main(["build", "--ref", "x:1", "--", "-config"]) == 0
    assert (requested[0].out, requested[0].config) == ("-config", None)


def test_a_short_flag_takes_an_equals_sign() -> None:
    """Go drops it; argparse would take it for a part of the value."""
    parser = nix2container.make_parser()
    words = nix2container._respelt(parser, ["-a=/a=b.sock", "-n=k8s.io", "build", "out"])

    assert parser.parse_args(words).address == "/a=b.sock"
    assert parser.parse_args(words).namespace == "k8s.io"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build"], "the following arguments are required: OUT"),
        (["build", "a", "b"], "unrecognized arguments: b"),
        (["build", "--conf", "x", "out"], "unrecognized arguments: --conf"),
        (["build", "--annotations", "none", "out"], "argument --annotations: invalid"),
        (["build", "--from-image"], "argument --from-image: expected one argument"),
        (["--log-level", "loud", "build", "out"], "argument -l/--log-level: invalid choice: 'loud'"),
        (["frobnicate"], "argument COMMAND: invalid choice: 'frobnicate'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_usage_errors_are_one_line(words: list[str], message: str, capsys) -> None:
    """They end with 2, and nothing is built."""
    with pytest.raises(SystemExit) as caught:
        nix2container.main(words)
    error = capsys.readouterr().err

    assert caught.value.code == 2
    assert error.startswith(f"nix2container: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--ref", "Not A Name", "out"],
            "nix2container: 'Not A Name' is not an image reference: the repository",
        ),
        (["--ref", "x@sha256:" + "0" * 64, "out"], "nix2container: --ref x@sha256:"),
        (
            ["--platform", "amd64", "out"],
            "nix2container: 'amd64' is not a platform\n  os/arch or os/arch/variant\n",
        ),
        (["Out.tar"], "must be in lower case\n  give the image a name with --ref\n"),
    ],
)
def test_bad_values_end_with_their_own_code(words: list[str], message: str, capsys) -> None:
    """The message names the value, the hint stands below, and there is no traceback."""
    assert nix2container.main(["build", *words]) == InvalidArgumentError.exit_code
    assert message in capsys.readouterr().err


def test_containerd_comes_from_flag_or_environment(monkeypatch) -> None:
    """The flag before the variable before the default."""
    monkeypatch.delenv("CONTAINERD_ADDRESS", raising=False)
    monkeypatch.delenv("CONTAINERD_NAMESPACE", raising=False)
    words = ["build", "out"]
    plain = nix2container.make_parser().parse_args(words)
    assert (plain.address, plain.namespace) == ("/run/containerd/containerd.sock", "default")
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/a.sock")
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "k8s.io")
    set_by_variable = nix2container.make_parser().parse_args(words)
    assert (set_by_variable.address, set_by_variable.namespace) == ("/a.sock", "k8s.io")
    flagged = nix2container.make_parser().parse_args(["-a", "/b.sock", "--namespace", "n", *words])
    assert (flagged.address, flagged.namespace) == ("/b.sock", "n")


def test_each_subcommand_is_a_module_with_two_functions() -> None:
    """What the dispatcher relies upon."""
    parser = nix2container.make_parser()

    assert parser.parse_args(["build", "out"]).run is build.run


def test_as_a_program(tmp_path: Path) -> None:
    """Errors go to standard error, and the exit code is the error's own; on success only the log speaks."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-m", "nixsnap.cli.nix2container", "build", "--ref", "x:1"]
    out = tmp_path / "out.tar"
    failed = subprocess.run(
        [*command, "--closure", "/absent", str(out)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert failed.returncode == NotFoundError.exit_code
    assert (failed.stdout, failed.stderr) == ("", "nix2container: '/absent' does not exist\n")
    assert not out.exists()
    built = subprocess.run([*command, str(out)], capture_output=True, text=True, env=environment, check=True)
    assert built.stdout == ""
    assert f"built {out}: docker.io/library/x:1, 0 store paths, legacy" in built.stderr
    assert out.stat().st_size > 0
