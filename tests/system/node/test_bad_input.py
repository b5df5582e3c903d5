"""What bad input gets: one line that names the thing, the right status, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import grpc
import pytest
from handmade_archives import ArchiveBuilder, digest_of, small_image
from kube import KubeNode
from lab import installed_program, nix_closure, run
from lab.nix import nix_store
from registries import HTPASSWD, start_docker_registry

ABSENT = f"/nix/store/{'a' * 32}-absent"
Names = dict[str, str]


@attrs.frozen
class Case:
    """A command line of nix2container; `{names}` in it stand for files and addresses that the test made.

    Attributes:
        words: The arguments.
        status: Its exit status.
        says: What the line must name.
    """

    words: str
    status: int
    says: str


BUILD = "build --ref x:1 --closure {closure}"
CASES = [
    # unknown flags and commands
    Case(f"{BUILD} --nope {{out}}", 2, "--nope"),
    Case("load --nope {good}", 2, "--nope"),
    Case("push --nope --ref x:1 {good}", 2, "--nope"),
    Case("--nope load {good}", 2, "--nope"),
    Case("unpack {good}", 2, "unpack"),
    Case("build --annotations some {out}", 2, "some"),
    Case("build", 2, "OUT"),
    Case("push {good}", 2, "--ref"),
    # missing files
    Case(f"{BUILD} --config {{none}} {{out}}", 3, "{none}"),
    Case("build --ref x:1 --closure {none} {out}", 3, "{none}"),
    Case(f"{BUILD} --copy-to-root {{none}} {{out}}", 3, "{none}"),
    Case(f"{BUILD} --from-image {{none}} {{out}}", 3, "{none}"),
    Case(f"{BUILD} {{none}}/x.tar", 3, "{none}"),
    Case("load {none}", 3, "{none}"),
    Case("push --ref localhost:1/x:1 {none}", 3, "{none}"),
    Case("push --hosts-dir {none} --ref localhost:1/x:1 {good}", 3, "{none}"),
    # configs that are not OCI's
    Case(f"{BUILD} --config {{config_name}} {{out}}", 2, "Entrypoints"),
    Case(f"{BUILD} --config {{config_type}} {{out}}", 2, "Env"),
    Case(f"{BUILD} --config {{config_array}} {{out}}", 2, "{config_array}"),
    Case(f"{BUILD} --config {{text}} {{out}}", 2, "{text}"),
    # closures and roots
    Case("build --ref x:1 --closure {closure_absent} {out}", 3, ABSENT),
    Case("build --ref x:1 --closure {text} {out}", 2, "{text}"),
    Case("build --ref x:1 --closure {closure_list} --annotations closure {out}", 2, "closureInfo"),
    Case(f"{BUILD} --copy-to-root {{roots_absent}} {{out}}", 3, ABSENT),
    Case(f"{BUILD} --copy-to-root {{roots_outside}} {{out}}", 2, "/etc"),
    Case(f"{BUILD} --copy-to-root {{roots_clash}} {{out}}", 2, "{top}' and '{clash}' have different"),
    Case(f"{BUILD} --copy-to-root {{text}} {{out}}", 2, "{text}"),
    # references and platforms that are none
    Case("build --ref UPPER:1 {out}", 2, "UPPER"),
    Case("build --ref x:1@sha256:{hex} {out}", 2, "digest"),
    Case("load --ref a//b {good}", 2, "a//b"),
    Case("push --ref -x {good}", 2, "--ref"),
    Case("push --ref x:ä {good}", 2, "is not a tag"),
    Case(f"{BUILD} --platform linux {{out}}", 2, "linux"),
    Case("load --platform linux/amd64/v1/x {good}", 2, "linux/amd64/v1/x"),
    # archives that are damaged or lie, that are none, or for another machine: wherever one is read
    *(
        Case(words.format(name="{" + name + "}"), status, says)
        for words in (
            "load {name}",
            "push --ref localhost:1/x:1 {name}",
            "build --ref x:1 --from-image {name} {{out}}",
        )
        for name, status, says in (
            ("digest", 2, "{layer}"),
            ("size", 2, "size"),
            ("blob", 2, "{layer}"),
            ("cut", 2, "{cut}"),
            ("text", 2, "{text}"),
            ("climbing", 2, "climbs out"),
        )
    ),
    Case("load {other}", 3, "linux/s390x"),
    Case("build --ref x:1 --from-image {other} {out}", 3, "linux/s390x"),
    Case("load --platform linux/ppc64le {good}", 3, "linux/ppc64le"),
    Case("load {diff_id}", 2, "{wrong}"),
    # those who do not answer, or do not let us
    Case("--address {none} load {good}", 6, "{none}"),
    Case("--namespace no/good load {good}", 2, "no/good"),
    Case("load --snapshotter missing {good}", 2, "missing"),
    Case("push --ref localhost:1/x:1 {good}", 6, "localhost:1"),
    Case("push --plain-http --ref {guarded}/x:1 {good}", 7, "401"),
    Case("push --plain-http --ref {full}/x:1 {big}", 8, "{full}"),
    # outputs
    Case(f"{BUILD} {{directory}}", 2, "{directory}"),
]


def damaged(path: Path, damage: Callable[[ArchiveBuilder], None]) -> str:
    """Write an image archive after something was done to its parts."""
    builder = small_image(path)
    damage(builder)
    return str(builder.write(path))


def break_layer(builder: ArchiveBuilder) -> None:
    digest = next(iter(builder.blobs))
    builder.blobs[digest] = builder.blobs[digest][:-1] + b"!"


def lie_about_size(builder: ArchiveBuilder) -> None:
    builder.entries[0]["size"] += 1


def drop_layer(builder: ArchiveBuilder) -> None:
    del builder.blobs[next(iter(builder.blobs))]


def climb_out(path: Path) -> str:
    small_image(path)
    (path.parent / "evil").touch()
    run("tar", "-C", path.parent, "-rPf", path, "--transform", "s,^evil,../../evil,", "evil")
    return str(path)


def for_another_machine(path: Path) -> str:
    builder = ArchiveBuilder()
    builder.named(builder.manifest([builder.layer({"f": b"x"})], platform="linux/s390x"), "lab.invalid/x:1")
    return str(builder.write(path))


def with_wrong_diff_id(path: Path) -> str:
    """What only unpacking can find out."""
    builder = ArchiveBuilder()
    layer = builder.layer({"f": b"x"})
    builder.named(builder.manifest([layer], diff_ids=[digest_of(b"another")]), "lab.invalid/x:1")
    return str(builder.write(path))


def big(path: Path) -> str:
    builder = ArchiveBuilder()
    layer = builder.layer({"f": os.urandom(4 << 20)})
    builder.named(builder.manifest([layer]), "lab.invalid/big:1")
    return str(builder.write(path))


@pytest.fixture
def names(tmp_path, closure) -> Names:
    """Good files, and bad ones of every kind, by what the cases call them."""
    top = closure.top
    clash = nix_closure(1, salt="clash", script="$out/bin/rm $out/bin/sh; $out/bin/ln -s /absent $out/bin/sh")
    texts = {
        "text": "hello\n",
        "config_name": json.dumps({"Entrypoints": ["x"]}),
        "config_type": json.dumps({"Env": "A=1"}),
        "config_array": "[]",
        "closure_absent": f"{ABSENT}\n",
        "closure_list": f"{top}\n",
        "roots_absent": json.dumps([ABSENT]),
        "roots_outside": json.dumps(["/etc"]),
        "roots_clash": json.dumps([top, clash.top]),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    builder = small_image(tmp_path / "good.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "good.tar").read_bytes()[:1000])
    (tmp_path / "out").mkdir()
    (tmp_path / "directory").mkdir()
    return {
        **{name: str(tmp_path / name) for name in texts},
        "closure": closure.info,
        "top": top,
        "clash": clash.top,
        "none": str(tmp_path / "none"),
        "out": str(tmp_path / "out/image.tar"),
        "directory": str(tmp_path / "directory"),
        "good": str(tmp_path / "good.tar"),
        "cut": str(tmp_path / "cut.tar"),
        "layer": next(iter(builder.blobs)),
        "wrong": digest_of(b"another"),
        "hex": "0" * 64,
        "digest": damaged(tmp_path / "digest.tar", break_layer),
        "size": damaged(tmp_path / "size.tar", lie_about_size),
        "blob": damaged(tmp_path / "blob.tar", drop_layer),
        "climbing": climb_out(tmp_path / "climbing.tar"),
        "other": for_another_machine(tmp_path / "other.tar"),
        "diff_id": with_wrong_diff_id(tmp_path / "diff_id.tar"),
        "big": big(tmp_path / "big.tar"),
    }


@pytest.fixture
def registries(directory, tmp_path) -> Iterator[Names]:
    """A registry that wants a password, and one whose disk is full."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "the registry", "path": str(tmp_path / "htpasswd")}}
    (directory / "small").mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory / "small")
    started = []
    try:
        started.append(start_docker_registry(directory / "guarded", auth=auth))
        started.append(start_docker_registry(directory / "full", storage=directory / "small"))
        yield {"guarded": started[0].host, "full": started[1].host}
    finally:
        for registry in started:
            registry.stop()
        run("umount", directory / "small")


def what_is_there(kube: KubeNode) -> dict[str, list[str]]:
    """All that a failure must not add to."""
    found: dict[str, list[str]] = {}
    for namespace in ("default", "k8s.io"):
        for what in ("image", "content", "leases"):
            words = kube.containerd.ctr(what, "ls", "--quiet", namespace=namespace).stdout.split()
            found[f"{namespace} {what}"] = sorted(words)
        listed = kube.containerd.ctr("snapshot", "--snapshotter", "nix", "ls", namespace=namespace).stdout
        found[f"{namespace} snapshots"] = sorted(listed.splitlines()[1:])
    for place in ("gcroots", "gcroots/images", "snapshots", "views"):
        directory = kube.nixsnap.root / place
        names = (path.name for path in directory.iterdir()) if directory.exists() else ()
        found[place] = sorted(name for name in names if name != "images")
    return found


def complaint(case: Case, names: Names, kube: KubeNode) -> str:
    """Run a case's command; tell what it did and should not have done, if anything."""
    words = case.words.format(**names).split()
    address = () if "--address" in words else ("--address", str(kube.containerd.address))
    ran = run(installed_program("nix2container"), *address, "--log-level", "error", *words, check=False)
    _, mark, words_said = ran.stderr.partition(
        "nix2container: "
    )  # a push that has begun has said how it goes on
    said, *hint = words_said.splitlines() or [""]
    is_right = (
        (ran.returncode, ran.stdout) == (case.status, "")
        and bool(mark)
        and (words[0] == "push" or ran.stderr.startswith(mark))
        and case.says.format(**names) in said
        and mark not in words_said
        and len(hint) <= 1
        and all(line.startswith("  ") for line in hint)
        and list(Path(names["out"]).parent.iterdir()) == []
    )
    return "" if is_right else f"{case}: status {ran.returncode}\n{ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("installation", ["2"], indirect=True)
def test_commands(kube, names, registries, tmp_path, monkeypatch):
    """Every case, by nix2container."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    before = what_is_there(kube)
    complaints = [complaint(case, names | registries, kube) for case in CASES]
    assert "\n".join(filter(None, complaints)) == ""
    assert what_is_there(kube) == before


@pytest.mark.parametrize("installation", ["1.7", "2"], indirect=True)
def test_pulls(kube, names, tmp_path, closure):
    """References of ours, by PullImage: the code is gRPC's, the message names reference or archive."""
    invalid, not_found = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    nothing = ArchiveBuilder()
    layer = nothing.layer({}, **{"containerd.io/snapshot/nix-closure": ABSENT})
    nothing.named(nothing.manifest([layer]), "lab.invalid/nothing:1")
    files = {
        name: nix_store("--add", names[name])[0]
        for name in ("text", "digest", "size", "blob", "cut", "climbing", "other", "diff_id")
    }
    files["absent"] = nix_store("--add", str(nothing.write(tmp_path / "absent.tar")))[0]
    link = tmp_path / "link.tar"
    link.symlink_to("/etc/passwd")
    files["link"] = nix_store("--add", str(link))[0]
    hash_ = "a" * 32
    cases = {
        "nix:0/etc/passwd": (invalid, "/etc/passwd"),
        "nix:0/nix/store/../../x": (invalid, "../../x"),
        "nix:0/nix/store": (invalid, "nix:0/nix/store"),
        f"nix:0/nix/store/{hash_}-x.tar": (not_found, hash_),
        f"nix:0/nix/store/{hash_}-x.tar/y": (invalid, f"{hash_}-x.tar/y"),
        f"nix:0/nix/store/{hash_}-x.drv": (invalid, f"{hash_}-x.drv"),
        f"nix:0/nix/store/{hash_}-x.tar:no tag": (invalid, "no tag"),
        f"nix:0/nix/store/{hash_}-x.tar@sha256:{'0' * 64}": (invalid, "nix:0"),
        f"nix:0{closure.top}": (invalid, closure.top),
        **{
            f"nix:0{files[name]}": (invalid, files[name])
            for name in ("text", "digest", "size", "blob", "cut", "climbing", "link")
        },
        f"nix:0{files['other']}": (not_found, "linux/s390x"),
        f"nix:0{files['diff_id']}": (invalid, names["wrong"]),
        f"nix:0{files['absent']}": (not_found, ABSENT),
    }
    before = what_is_there(kube)
    for reference, (code, says) in cases.items():
        with pytest.raises(grpc.RpcError) as raised:
            kube.cri.pull(reference)
        assert (raised.value.code(), reference) == (code, reference), raised.value.details()
        assert says in raised.value.details(), reference
        assert "\n" not in raised.value.details() or "nix-store" in raised.value.details()  # Nix's own words
        assert kube.cri.image_id(reference) == ""
        assert what_is_there(kube) == before, reference
