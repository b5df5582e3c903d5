"""Programs that look at owners, in containers with user namespaces: set-user-id ones, and ids that are not mapped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Closure, LayerFile, add_plain_layer, build_image, load_image, nix_closure, run
from lab.containerd import lingering
from lab.nix import nix_store
from lab.processes import CommandError

SOURCE = Path(__file__).with_name("careful.c")
REFERENCE = "lab.invalid/userns-setuid:1"
MAPPED = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels"]
# What `ctr run` forbids unless told otherwise, as docker does not.
SETUID = [*MAPPED, "--allow-new-privs"]
UNMAPPED = 70_000

pytestmark = [
    pytest.mark.parametrize(
        "installation", ["1.7", "2"], indirect=True
    ),  # `ctr` of 1.6 knows no --remap-labels
    pytest.mark.parametrize("store_view", ["overlay", "data-only", "bind"]),
]


@pytest.fixture(scope="session")
def careful(tmp_path_factory) -> Path:
    """The program, linked statically: containers have no C library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("this machine lacks a C compiler")
    program = tmp_path_factory.mktemp("careful") / "careful"
    run(compiler, "-static", "-O1", "-Wall", "-Werror", "-o", program, SOURCE)
    return program


@pytest.fixture(scope="session")
def app(careful) -> Closure:
    """An application that has the program, without set-user-id bit: Nix strips these."""
    (added,) = nix_store("--add", str(careful))
    return nix_closure(3, name="careful", salt="careful", script=f"$out/bin/cp {added} $out/bin/careful")


@pytest.fixture
def container(node, app, careful) -> Iterator[str]:
    """A running container, whose image has the program in an ordinary layer, too, and files of an unmapped user."""
    for directory in (node.directory, node.directory.parent):
        directory.chmod(0o711)  # runc looks root directories up with the mapped ids
    program = careful.read_bytes()
    files = {
        "usr/bin/careful": LayerFile(content=program, mode=0o4755),
        "foreign/careful": LayerFile(content=program, mode=0o4755, owner=UNMAPPED),
        "foreign/secret": LayerFile(content=b"secret", mode=0o600, owner=UNMAPPED),
        "foreign/anyones": LayerFile(content=b"before", mode=0o666, owner=UNMAPPED),
    }
    base = build_image(app, node.directory / "base.tar", reference="lab.invalid/base:1")
    archive = add_plain_layer(base, node.directory / "app.tar", reference=REFERENCE, files=files)
    load_image(node.containerd, archive)
    container = node.containerd.start_container(REFERENCE, f"{app.top}/bin/sleep", "1000", options=SETUID)
    yield container
    node.containerd.remove_container(container)


def upper(node) -> Path:
    """The files of the newest snapshot, which is the container's."""
    return max(node.nixsnap.root.glob("snapshots/*"), key=lambda path: int(path.name)) / "fs"


def as_user(node, app: Closure, container: str, user: str, *command: str, check: bool = True):
    words = lingering(*command, shell=f"{app.top}/bin/sh")
    return node.containerd.ctr(
        "task", "exec", "--user", user, "--exec-id", f"{container}-{user.replace(':', '-')}", container, *words,
        check=check,
    )  # fmt: skip


def test_a_set_user_id_program_is_the_containers_root(node, app, container):
    """Run by a user it trusts the store and itself, and what it makes belongs to the mapped root outside."""
    trusted = ["/", "/nix/store", app.top, f"{app.top}/bin/careful", *app.paths]
    said = as_user(node, app, container, "1000:1000", "/usr/bin/careful", *trusted).stdout.splitlines()
    assert said[:2] == ["1000 runs this as 0", "/proc/self/exe 0:0 4755"]
    assert [line.split()[:2] for line in said[2:]] == [[path, "0:0"] for path in trusted]
    status = (upper(node) / "made-by-root").lstat()
    assert (status.st_uid, status.st_gid) == (100_000, 101_000)


def test_a_careful_program_of_the_store_is_content(node, app, container):
    """Root's, and nobody else may write to it: its own file, and every store path."""
    program = f"{app.top}/bin/careful"
    said = node.containerd.exec(container, program, *app.paths).stdout.splitlines()
    assert said[:2] == ["0 runs this as 0", "/proc/self/exe 0:0 555"]
    assert [line.split()[1] for line in said[2:]] == ["0:0"] * len(app.paths)
    assert (
        as_user(node, app, container, "1000:1000", program, check=False).stdout == "1000 runs this as 1000\n"
    )


def test_ids_that_are_not_mapped(node, app, container):
    """They show as the overflow id, and nobody can become them: not by a set-user-id bit, by chown, nor as a user."""
    busybox = f"{app.top}/bin"

    def sh(script: str) -> str:
        return node.containerd.exec(container, f"{busybox}/sh", "-c", f"PATH={busybox}; {script}").stdout

    assert sh("cd /foreign; stat -c %u:%g careful secret anyones").split() == ["65534:65534"] * 3
    for user in ("1000:1000", "0:0"):
        said = as_user(node, app, container, user, "/foreign/careful", check=False).stdout
        assert said.splitlines()[0] == f"{user.partition(':')[0]} runs this as {user.partition(':')[0]}"
    for command, words in (
        ("cat secret", "Permission denied"),
        ("echo after > anyones", "Permission denied"),
        ("chown 0 secret", "Operation not permitted"),
        (f"touch mine; chown {UNMAPPED} mine", "Invalid argument"),
    ):
        assert words in sh(f"cd /foreign; {{ {command}; }} 2>&1 || true")
    assert sh("cat /foreign/anyones") == "before"


@pytest.mark.usefixtures("container")
def test_a_user_that_is_not_mapped(node, app):
    """Runs nothing, is told so, and leaves nothing."""
    before = sorted(node.nixsnap.root.glob("snapshots/*"))
    with pytest.raises(CommandError, match=r"(?i)unmapped|invalid argument"):
        node.containerd.run(
            REFERENCE, f"{app.top}/bin/true", options=[*MAPPED, "--user", f"{UNMAPPED}:{UNMAPPED}"]
        )
    node.containerd.collect_garbage()
    assert sorted(node.nixsnap.root.glob("snapshots/*")) == before
