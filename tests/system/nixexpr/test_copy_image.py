"""The scripts that put an image where containers are started from; what they load runs."""

from __future__ import annotations

import re

import pytest
from lab import run

APP = """buildImage {
  name = "lab.invalid/app";
  copyToRoot = [ pkgs.coreutils pkgs.redis ];
  config.entrypoint = [ "${pkgs.redis}/bin/redis-server" "--port" "1" ];
}"""


def copy_to_containerd(nix, node, image: str, *arguments: str) -> list[str]:
    """Build and run an image's copy-to-containerd script; return the names that were loaded."""
    target = f'address = "{node.containerd.address}"; namespace = "{node.containerd.namespace}";'
    script = nix.build(f"({image}).copyToContainerd {{ {target} }}")
    return run(script / "bin/copy-to-containerd", *arguments).stdout.split()


def test_copied_image_runs(nix, node):
    """The script loads the image under its name, and a container of it finds its program in the store."""
    assert copy_to_containerd(nix, node, APP) == ["lab.invalid/app:latest"]
    assert node.containerd.run("lab.invalid/app:latest").stdout == "redis-server --port 1\n"
    inside = node.containerd.run("lab.invalid/app:latest", "/bin/ls", "/bin", "/nix/store").stdout.split()
    closure = nix.build(f"({APP}).closure") / "store-paths"
    assert inside == [
        "/bin:", "cat", "id", "ls", "redis-server",
        "/nix/store:", *sorted(path.removeprefix("/nix/store/") for path in closure.read_text().split()),
    ]  # fmt: skip


def test_image_resolved_by_nix_runs(nix, node):
    """An image that goes by its own store path can be loaded and run by that name too."""
    image = (
        'buildImage { name = "App"; resolvedByNix = true; config.entrypoint = [ "${pkgs.etcd}/bin/etcd" ]; }'
    )
    name = nix.evaluate(f"({image}).image") + ":latest"
    assert copy_to_containerd(nix, node, image) == [name]
    assert node.containerd.run(name).stdout == "etcd\n"


def test_image_upon_another_runs(nix, node):
    """A container of an image upon another sees both closures and both roots."""
    upon = f"""buildImage {{
      name = "lab.invalid/upon";
      fromImage = {APP};
      copyToRoot = [ pkgs.etcd (pkgs.writeTextDir "etc/passwd" "app:x:1000:1000::/:/noshell\\n") ];
      config.user = "app";
    }}"""
    copy_to_containerd(nix, node, upon)
    name = "lab.invalid/upon:latest"
    assert node.containerd.run(name, "/bin/etcd", "--x").stdout == "etcd --x\n"
    assert node.containerd.run(name, "/bin/redis-server").stdout == "redis-server\n"
    assert node.containerd.run(name, "/bin/id", "-u").stdout == "1000\n"


def test_image_without_a_closure_runs(nix, node):
    """An image that adds nothing but a config to its base loads and runs as the base does."""
    name = "lab.invalid/reconfigured:latest"
    assert copy_to_containerd(
        nix,
        node,
        f'buildImage {{ name = "lab.invalid/reconfigured"; fromImage = {APP}; config.cmd = [ "x" ]; }}',
    ) == [name]
    assert node.containerd.run(name).stdout == "redis-server --port 1 x\n"


def test_address_may_be_a_shell_variable(nix):
    """What is given stands in double quotes, so variables are expanded and spaces kept; more flags may follow."""
    arguments = '{ address = "$RUNTIME/containerd.sock"; namespace = "$NAME"; }'
    script = nix.build(f"({APP}).copyToContainerd {arguments}") / "bin/copy-to-containerd"
    result = run(script, "--bad-flag", environment={"RUNTIME": "/run/a b", "NAME": "n"}, check=False)
    assert result.returncode == 2
    assert "--bad-flag" in result.stderr
    result = run(script, environment={"RUNTIME": "/run/a b", "NAME": "n"}, check=False)
    assert "/run/a b/containerd.sock" in result.stderr


def test_address_left_out(nix):
    """Without address and namespace it is containerd's defaults, or what the environment says."""
    script = nix.build(f"({APP}).copyToContainerd {{ }}") / "bin/copy-to-containerd"
    result = run(script, environment={"CONTAINERD_ADDRESS": "/nonexistent/c.sock"}, check=False)
    assert "/nonexistent/c.sock" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ("", ["--ref", "lab.invalid/app:latest"]),
        (
            'imageName = "other.invalid:5000/$TEAM/app"; imageTag = "2";',
            ["--ref", "other.invalid:5000/a b/app:2"],
        ),
        ("plainHTTP = true;", ["--ref", "lab.invalid/app:latest", "--plain-http"]),
    ],
)
def test_copy_to_registry(nix, arguments, flags):
    """The script pushes the archive, under the image's own name unless given another, with what flags it is given."""
    script = nix.build(f"({APP}).copyToRegistry {{ {arguments} }}") / "bin/copy-to-registry"
    program = re.search(r"/nix/store/\S*/bin/nix2container", script.read_text())[0]
    assert run(program, "--version").stdout.startswith("nix2container")
    # The words that the shell makes of it.
    traced = script.read_text().replace(f"exec {program}", "printf '%s\\n'")
    words = run("sh", "-c", traced, "sh", "--more", environment={"TEAM": "a b"}).stdout.splitlines()
    assert words == ["push", *flags, "--more", str(nix.build(APP))]
