"""The store door, with real users, user namespaces and idmapped mounts."""

from __future__ import annotations

from pathlib import Path

import pytest
from doorlab import (
    ALICE,
    ALICE_RANGE,
    BOB,
    BOB_RANGE,
    CAPABILITIES,
    COUNT,
    NIXBLD,
    STRANGER,
    rootless_maps,
    running_door,
)
from dooruser import Namespace

from nixsnap.storedoor import protocol

OVERFLOW = int(Path("/proc/sys/fs/overflowuid").read_text())

# On a file system of the user's own; shell commands know where it is by $T.
ATTACH = """
os.environ["T"] = str(target)
assert sh("mount -t tmpfs tmpfs $T")[0] == 0
for name in ("store", "again", "lower", "upper", "work", "merged"):
    (target / name).mkdir()
seen = target / "store"
with client.ask(door) as tree:
    kernel.attach(tree, seen)
"""


def refused(user: Namespace, door: Path) -> str:
    """Ask, and return the reason of the refusal."""
    return user.run(
        """
        try:
            client.ask(door).close()
            result = "granted"
        except Exception as error:
            result = str(error)
        """,
        door=door,
    )


def test_roots_files_are_shown_as_the_users_root(door, alice):
    """In his namespace 0:0, the store's group by its number, builders as nobody; outside nothing has changed."""
    seen = alice.run(
        ATTACH
        + """
def owner(path):
    status = path.lstat()
    return [status.st_uid, status.st_gid]
hello = seen / "00000000000000000000000000000000-hello"
result = {
    "outside": owner(store),
    "store": owner(seen),
    "path": owner(hello),
    "file": owner(hello / "bin/hello"),
    "build": owner(seen / "11111111111111111111111111111111-half.drv.chroot"),
    "mount": sh('grep " $T/store " /proc/self/mountinfo')[1].split()[5],
}
""",
        door=door.address,
        store=door.store,
    )
    assert seen == {
        "outside": [OVERFLOW, OVERFLOW],
        "store": [0, NIXBLD],
        "path": [0, 0],
        "file": [0, 0],
        "build": [OVERFLOW, NIXBLD],
        "mount": "ro,nosuid,nodev,relatime,idmapped",
    }
    assert (door.store.stat().st_uid, door.store.stat().st_gid) == (0, NIXBLD)
    group = ALICE_RANGE + NIXBLD - 1
    door.wait_for_log(f"granted uid={ALICE} pid=")
    assert f"uids=0:{ALICE}:1 gids=0:{ALICE}:1,{NIXBLD}:{group}:1" in door.log()


def test_it_stays_read_only_and_nosuid(door, alice):
    """Its user has every right over the mount namespace that it is in, and cannot write to the store even so."""
    tried = alice.run(
        ATTACH
        + """
store = "$T/store"
path = store + "/00000000000000000000000000000000-hello"
result = {
    "write": sh(f"echo x > {path}/bin/new"),
    "change": sh(f"chmod 755 {path}/bin/hello"),
    "remove": sh(f"rm -rf {path}"),
    "rw": sh(f"mount -o remount,bind,rw {store}"),
    "suid": sh(f"mount -o remount,bind,ro,suid {store}"),
    "dev": sh(f"mount -o remount,bind,ro,dev {store}"),
    "clone": sh(f"mount --bind {store} $T/again && mount -o remount,bind,rw $T/again"),
    "superblock": sh(f"mount -o remount,rw {store}"),
    "upper": sh(f"mount -t overlay o -o userxattr,lowerdir=$T/lower,upperdir={store},workdir=$T/work $T/merged"),
    "below": sh(f"unshare --mount mount -o remount,bind,rw {store}"),
    "namespace": sh(f"unshare --user --map-root-user --mount mount -o remount,bind,rw {store}"),
}
with client.ask(door) as tree:
    for attribute in ("readonly", "nosuid", "nodev"):
        try:
            kernel.set_attributes(tree, **{attribute: False})
            result["detached " + attribute] = [0, ""]
        except OSError as error:
            result["detached " + attribute] = [error.errno, ""]
""",
        door=door.address,
    )
    assert [what for what, (status, _words) in tried.items() if status == 0] == []
    assert "Read-only file system" in tried["write"][1]
    assert sorted(path.name for path in door.store.glob("0*/bin/*")) == ["hello"]


def test_overlays_and_clones_of_it(door, alice):
    """What rootfs views are made of: a lower layer, a data-only one where the kernel takes it, a clone of one path."""
    seen = alice.run(
        ATTACH
        + """
name = "00000000000000000000000000000000-hello"
lines = [
    "mount -t overlay o -o userxattr,lowerdir=$T/lower:$T/store,upperdir=$T/upper,workdir=$T/work $T/merged",
    f"stat -c %u:%g $T/merged/{name}/bin/hello",
    f"echo mine > $T/merged/{name}/bin/new && cat $T/merged/{name}/bin/new",
    "umount $T/merged",
]
result = [sh(line) for line in lines]
with kernel.clone_tree(seen / name, recursive=False) as tree:
    kernel.attach(tree, target / "again")
result.append(sh("stat -c %u:%g $T/again/bin/hello; echo x > $T/again/bin/new"))
""",
        door=door.address,
    )
    *overlay, clone = seen
    assert overlay == [[0, ""], [0, "0:0"], [0, "mine"], [0, ""]]
    assert clone[1].startswith("0:0\n")
    assert "Read-only file system" in clone[1]


def test_two_users_at_once(door, alice, bob):
    """Each sees the store as his own; Bob's range is given by number."""
    for user in (alice, bob):
        assert user.run(ATTACH + "result = seen.stat().st_uid", door=door.address) == 0
    door.wait_for_log(f"granted uid={BOB} pid=")


def test_a_namespace_of_one_id(door, directory):
    """As unshare --map-root-user makes it: no range is needed; the store's group stays nobody's."""
    one = f"0 {ALICE} 1\n"
    user = Namespace(ALICE, directory=directory, uid_map=one, gid_map=one)
    seen = user.run(ATTACH + "result = [seen.stat().st_uid, seen.stat().st_gid]", door=door.address)
    assert seen == [0, OVERFLOW]


@pytest.mark.parametrize(
    ("uid", "maps", "words"),
    [
        pytest.param(
            ALICE,
            rootless_maps(BOB, BOB_RANGE),
            f"user 0 of its user namespace is user {BOB}, which is not user {ALICE}'s",
            id="another-user",
        ),
        pytest.param(
            ALICE,
            {"uid_map": f"0 {BOB_RANGE} {COUNT}\n", "gid_map": f"0 {BOB_RANGE} {COUNT}\n"},
            f"is user {BOB_RANGE}, which is not user {ALICE}'s",
            id="anothers-range",
        ),
        pytest.param(
            ALICE,
            {"uid_map": f"0 {ALICE} 1\n", "gid_map": f"0 {BOB} 1\n"},
            f"is group {BOB}, which is not user {ALICE}'s",
            id="anothers-group",
        ),
        pytest.param(
            ALICE, {"uid_map": "0 0 1\n", "gid_map": "0 0 1\n"}, "which is never mapped to", id="roots"
        ),
        pytest.param(ALICE, {}, "which is never mapped to", id="no-namespace"),
        pytest.param(
            STRANGER,
            rootless_maps(STRANGER, ALICE_RANGE),
            f"user id {STRANGER} has no account on this machine",
            id="no-account",
        ),
        pytest.param(
            ALICE_RANGE + 999,
            {"uid_map": f"0 {ALICE_RANGE + 999} 1\n", "gid_map": f"0 {ALICE_RANGE + 999} 1\n"},
            "has no account",
            id="a-user-of-a-container",
        ),
    ],
)
def test_refused(door, directory, uid, maps, words):
    """What is not the user's own; the reason is told to him and logged."""
    assert words in refused(Namespace(uid, directory=directory, stays=True, **maps), door.address)
    door.wait_for_log(f"refused uid={uid} pid=")
    assert words in door.log()


def test_root_is_refused(door):
    """It needs no door."""
    with door.connect() as connection:
        assert b"never mapped to" in connection.recv(1000)


@pytest.mark.parametrize(
    "record",
    [
        protocol.REQUEST[:10],
        protocol.REQUEST + b" /etc",
        b"/etc/shadow",
        b"\0" * 100_000,
        b"nixsnap-store-door 2",
    ],
    ids=["half", "with-a-path", "a-path", "long", "later"],
)
def test_no_request(door, alice, record):
    """Half of one, or one that names a path, gets nothing; a path cannot be named at all."""
    answer = alice.run(
        f"""
        import socket
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(str(door))
        connection.send({record!r})
        answer, descriptors, _flags, _address = socket.recv_fds(connection, 1000, 4)
        result = [answer.decode(), len(descriptors)]
        """,
        door=door.address,
    )
    assert answer[0].startswith("refused no request of this protocol: ")
    assert answer[1] == 0


def test_descriptors_that_a_client_sends_are_not_kept(door, alice):
    """With a good request or a bad one, many times over."""
    before = door.descriptors()
    alice.run(
        """
        import socket
        for record in (protocol.REQUEST, b"x") * 5:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.connect(str(door))
                socket.send_fds(connection, [record], [os.open("/dev/null", os.O_RDONLY)] * 50)
                connection.recv(1000)
        """,
        door=door.address,
    )
    door.process.wait_until(lambda: door.descriptors() == before, what="close what it was sent")


def test_nothing_leaks(door, alice, directory):
    """Grants, refusals, clients that go at every moment: afterwards what was open is open, and no child is left."""
    alice.run("client.ask(door).close()", door=door.address)
    before = door.descriptors()
    alice.run(
        """
        import socket
        def connect():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.connect(str(door))
            return connection
        for _ in range(5):
            client.ask(door).close()
            connect().close()
            with connect() as connection:
                connection.send(protocol.REQUEST)
            with connect() as connection:
                connection.send(b"x")
            connect().shutdown(socket.SHUT_RDWR)
        """,
        door=door.address,
    )
    refused(Namespace(STRANGER, directory=directory), door.address)
    door.process.wait_until(lambda: door.descriptors() == before, what="close everything")
    assert Path(f"/proc/{door.process.pid}/task/{door.process.pid}/children").read_text() == ""
    assert "Traceback" not in door.log()


HANG = """
import socket
connections = []
for _ in range(count):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(door))
    connections.append(connection)
"""


def test_a_client_that_hangs_is_sent_away(door, alice):
    """It never asks; its time runs out."""
    answer = alice.run(
        "count = 1" + HANG + "result = connection.recv(1000).decode()",
        door=door.address,
    )
    assert answer == "refused no request came in 5 seconds"


def test_thousands_of_connections(door, alice, bob):
    """One user opens as many as he can and says nothing: he gets his share, and others are served meanwhile."""
    before = door.descriptors()
    hog = alice.start(
        """
import sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
count = 3000
"""
        + HANG
        + """
answers = [connection.recv(1000) for connection in connections]
for words in (b"no request", b"is all he may", b""):
    print(sum(words in answer for answer in answers), flush=True)
""",
        door=door.address,
    )
    try:
        door.wait_for_log(f"turned away uid={ALICE}")
        assert bob.run(ATTACH + "result = seen.stat().st_uid", door=door.address) == 0
        assert door.descriptors() < 100
        assert hog.stdout is not None
        waited, turned_away, answered = (int(hog.stdout.readline()) for _ in range(3))
    finally:
        hog.kill()
        hog.wait()
        for stream in (hog.stdout, hog.stderr):
            stream.close()
    assert (waited + turned_away, answered) == (3000, 3000)
    assert 8 <= waited < 1000
    assert door.log().count(f"turned away uid={ALICE}") < 10
    door.process.wait_until(lambda: door.descriptors() == before, what="close everything")


def test_a_user_cannot_ask_without_end(door, alice, bob):
    """Each grant that he keeps costs the kernel a mount; another user is not concerned."""
    granted, reason = alice.run(
        """
        kept, reason = [], ""
        while not reason and len(kept) < 200:
            try:
                kept.append(client.ask(door))
            except Exception as error:
                reason = str(error)
        result = [len(kept), reason]
        for tree in kept:
            tree.close()
        """,
        door=door.address,
    )
    assert 30 <= granted < 200
    assert reason == f"the store door refused: user {ALICE} asks more often than every 2 seconds"
    assert bob.run("client.ask(door).close()\nresult = 1", door=door.address) == 1


def test_the_mount_is_nobodys_until_it_is_attached(door, alice):
    """No mount table has it, ours least of all; what is handed over is gone when it is closed."""
    there = alice.run(
        """
        with client.ask(door):
            result = sh(f"grep -c {store} /proc/self/mountinfo")[1]
        """,
        door=door.address,
        store=door.store,
    )
    tables = [Path(f"/proc/{process}/mountinfo").read_text() for process in ("self", door.process.pid)]
    assert [str(door.store) in table for table in tables] == [False, False]
    assert there == "0"


def test_it_ends_on_sigterm_and_takes_its_socket_along(directory, store):
    """A second one takes its place."""
    with running_door(directory, store) as door:
        assert door.process.stop() == 0
        assert not door.address.exists()
        assert "stopped" in door.log()


def test_a_group_of_its_own(directory, store):
    """Only its members may connect."""
    # The unit has systemd make the socket; one that makes its own has to give it away.
    with running_door(directory, store, "--group", "daemon", capabilities=(*CAPABILITIES, "chown")) as door:
        user = Namespace(ALICE, directory=directory, **rootless_maps(ALICE, ALICE_RANGE))
        assert "Permission denied" in refused(user, door.address)
        assert door.address.stat().st_mode & 0o777 == 0o660


def test_it_ends_when_nobody_comes(directory, store):
    """With socket activation the next client starts it anew."""
    with running_door(directory, store, "--idle-seconds", "0.2") as door:
        door.process.popen.wait(20)
        assert door.process.popen.returncode == 0
        assert "nobody came for 0.2 seconds" in door.log()
