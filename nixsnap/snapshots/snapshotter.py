"""The snapshotter: containerd's contract (`core/snapshots/snapshotter.go`) over metadata, Nix and mounts.

What orders files against rows: a directory is made under a temporary name, renamed just before the transaction that
writes its row commits, and deleted only after the one that deletes its row has. So a directory without a row is
garbage, which the sweep takes, and a row without a directory is what a power cut left, which `lost` deals with.

What runs where: each call has a thread of its own, on which it reads the database and does its disk, mount and Nix
work; what it writes to the database waits its turn with all other writes, together with the few file operations that
belong into the transaction. Calls on one key take turns; calls on different keys meet at that queue only. A caller
that goes away (a deadline, a killed client) ends nothing but its waiting for Nix; from there on its call fails as any
that Nix fails, and every other call runs to its end, so that nothing is left half made.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence

from nixsnap.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from nixsnap.metadata.reader import Reader
from nixsnap.metadata.records import Closure, Info, Kind, Usage
from nixsnap.metadata.store import Store
from nixsnap.metadata.writer import Writer
from nixsnap.mounts import filetrees
from nixsnap.nix.caller import Caller
from nixsnap.nix.realise import ClosureRequest
from nixsnap.snapshots import directories
from nixsnap.snapshots.chain import Chain
from nixsnap.snapshots.closures import Closures
from nixsnap.snapshots.idmapping import GID_MAPPING, UID_MAPPING, parse_mapping, same_mapping
from nixsnap.snapshots.labels import parse_closure_request
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.locks import NamedLocks
from nixsnap.snapshots.mounter import ViewMounter
from nixsnap.snapshots.presenter import Presenter
from nixsnap.snapshots.reserve import Reserve
from nixsnap.snapshots.sweep import Sweeper
from nixsnap.snapshots.views import Mounts

log = logging.getLogger(__name__)


class Snapshotter:
    """containerd's snapshotter contract.

    Args:
        layout: Where files lie; its directories exist.
        store: The metadata.
        closures: Has the closures of nix layers made.
        presenter: Says what shows a snapshot.
        mounter: Mounts rootfs views.
        sweeper: Removes what no snapshot owns.

    Attributes:
        fetches: What is being fetched now, by key.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        store: Store,
        closures: Closures,
        presenter: Presenter,
        mounter: ViewMounter,
        sweeper: Sweeper,
    ) -> None:
        self._layout = layout
        self._store = store
        self._closures = closures
        self.fetches = closures.fetches
        self._presenter = presenter
        self._mounter = mounter
        self._sweeper = sweeper
        self._locks = NamedLocks()
        self._reserve = Reserve(layout.reserve)
        self._reserve.refill()

    def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], *, caller: Caller | None = None
    ) -> Mounts:
        """Make an active snapshot `key` upon the committed snapshot `parent`, which may be empty.

        Where the labels make it a nix layer, its closure is realised and rooted first, which ends when `caller` goes
        away; the mount is then for unpacking the layer's own files.

        Returns:
            What shows it, to be mounted in this order; one mount, but for some kinds of view.

        Raises:
            AlreadyExistsError: The key is taken.
            NotFoundError: There is no such parent, or a store path cannot be had.
            InvalidArgumentError: The parent is not committed, or key or labels are malformed.
            FailedPreconditionError: The labels ask for ids to be mapped, and a file system, or the kernel, cannot.
            CancelledError: The caller went away before the closure was there.
            NixsnapError, OSError: Nix, the disk or the kernel failed. The key does not exist then.
        """
        request = parse_closure_request(labels, store_dir=str(self._mounter.store_dir))
        self._check_mapping(labels)
        with self._locks.hold(key):
            if request is None:
                return self._create(Kind.ACTIVE, key, parent, labels)
            return self._prepare_nix_layer(key, parent, labels, request, caller)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Mounts:
        """Make a read-only snapshot `key` of the committed snapshot `parent`; otherwise as `prepare`."""
        self._check_mapping(labels)
        with self._locks.hold(key):
            return self._create(Kind.VIEW, key, parent, labels)

    def mounts(self, key: str) -> Mounts:
        """What shows the active snapshot or view `key`, as from `prepare`; its rootfs view is mounted if it is not.

        Raises:
            NotFoundError: There is no such snapshot.
            FailedPreconditionError: It is committed.
        """
        with self._store.read() as tx:
            chain = Chain.read(tx, tx.get_snapshot(key))
        if not self._presenter.has_view(chain):
            return self._presenter.describe_plain(chain.snapshot)
        with self._locks.hold(key):
            with self._store.read() as tx:  # it may have gone while we waited
                chain = Chain.read(tx, tx.get_snapshot(key))
            return self._presenter.mount_view(chain)

    def commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str, *, caller: Caller | None = None
    ) -> None:
        """Turn the active snapshot `key` into the committed snapshot `name`.

        Args:
            name: The name.
            key: The key, which is free afterwards.
            labels: The committed snapshot's labels; those of the active one go.
            parent: A parent for a snapshot that was prepared without one, or empty (containerd 2.2, "rebase").
            caller: Who waits, while the closure of a nix layer that its content shows is realised.

        Raises:
            NotFoundError: There is no such key or parent.
            AlreadyExistsError: The name is taken.
            FailedPreconditionError: The snapshot is not active, or the parent not committed.
            InvalidArgumentError: Another parent is given than the one it has.
        """
        with self._locks.hold(key):
            self._commit(name, key, labels, parent, caller)

    def remove(self, key: str) -> None:
        """Remove a snapshot of any kind, with its files, its rootfs view and its roots.

        Raises:
            NotFoundError: There is no such snapshot.
            FailedPreconditionError: Others lie upon it.
        """
        with self._locks.hold(key):
            self._remove(key)

    def stat(self, key: str) -> Info:
        """Describe a snapshot.

        Raises:
            NotFoundError: There is no such snapshot.
        """
        with self._store.read() as tx:
            return tx.get(key)[1]

    def update(self, info: Info, fieldpaths: Sequence[str]) -> Info:
        """Replace the labels of a snapshot, or those that `fieldpaths` (`labels`, `labels.NAME`) name.

        Returns:
            The snapshot as it is now.

        Raises:
            NotFoundError: There is no such snapshot.
            InvalidArgumentError: A field path names something that cannot be changed, or the ids that an active
                snapshot or a view is mapped to would change: its files belong to them.
        """

        def update(tx: Writer) -> Info:
            before = tx.get(info.name)[1]
            after = tx.update(info, fieldpaths)
            if before.kind is not Kind.COMMITTED and not same_mapping(before.labels, after.labels):
                raise InvalidArgumentError(
                    f"labels {UID_MAPPING} and {GID_MAPPING} of snapshot {info.name!r} stay as they are "
                    "until it is committed or removed: its files belong to the mapped ids"
                )
            return after

        return self._store.write(update)

    def walk(self, filters: Sequence[str]) -> Iterator[list[Info]]:
        """The snapshots that any of `filters` matches, in the order of their keys, in blocks.

        Raises:
            InvalidArgumentError: A filter is malformed.
        """
        return self._store.walk_blocks(filters)

    def usage(self, key: str) -> Usage:
        """The disk space of the snapshot's own layer: measured for an active one, as committed otherwise.

        Raises:
            NotFoundError: There is no such snapshot.
        """
        with self._store.read() as tx:
            snapshot_id, info, usage = tx.get(key)
        if info.kind is not Kind.ACTIVE:
            return usage
        return self._measure(snapshot_id)

    def cleanup(self) -> None:
        """Remove the files that no snapshot owns."""
        self._sweeper.sweep()

    def _create(
        self,
        kind: Kind,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        *,
        closure: Closure | None = None,
    ) -> Mounts:
        """Make the directories and the row, and mount the rootfs view; `closure` is that of the snapshot itself."""

        def create(tx: Writer) -> Chain:
            snapshot = tx.create(
                kind, key, parent, labels, id=None if closure is None else closure.snapshot_id
            )
            if closure is not None:
                tx.put_closure(closure)
            # A nix layer is about to be unpacked, which concerns its own files only.
            nothing = Chain(snapshot=snapshot, nix_layers=frozenset())
            chain = Chain.read(tx, snapshot) if closure is None else nothing
            directories.make(self._layout, chain)
            tx.on_rollback(lambda: filetrees.remove_tree(self._layout.snapshot(snapshot.id)))
            return chain

        chain = self._store.write(create)
        log.info("created %s key=%r id=%d parent=%r", kind.name.lower(), key, chain.snapshot.id, parent)
        if not self._presenter.has_view(chain):
            return self._presenter.describe_plain(chain.snapshot)
        return self._mount_new_view(key, chain)

    def _mount_new_view(self, key: str, chain: Chain) -> Mounts:
        try:
            return self._presenter.mount_view(chain)
        except BaseException:
            self._remove(key)
            raise

    def _prepare_nix_layer(
        self,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        request: ClosureRequest,
        caller: Caller | None,
    ) -> Mounts:
        with self._store.read() as tx:
            _check_creatable(tx, key, parent)  # before Nix spends minutes on it
        snapshot_id = self._store.write(Writer.allocate_id)
        with self._sweeper.keep(snapshot_id):
            try:
                closure = self._closures.realise(request, snapshot_id, key=key, caller=caller)
                mount = self._create(Kind.ACTIVE, key, parent, labels, closure=closure)
            except BaseException:
                self._closures.discard_roots(snapshot_id)
                raise
        self._mounter.stubs.begin(snapshot_id, names=closure.names)
        return mount

    def _commit(
        self, name: str, key: str, labels: Mapping[str, str], parent: str, caller: Caller | None
    ) -> None:
        with self._store.read() as tx:
            snapshot_id, info, _ = tx.get(key)
            _check_committable(tx, info, name)  # before anything of a snapshot that stays is taken down
            below = info.parent or parent
            chain = (snapshot_id, *(tx.chain(below) if below else ()))
            closures = tx.closures_of(chain)
        if UID_MAPPING in info.labels or any(parent_id in closures for parent_id in chain[1:]):
            self._mounter.down(snapshot_id)
        names = None
        if snapshot_id not in closures:
            names = self._closures.infer(snapshot_id, below=closures.values())
        usage = self._measure(snapshot_id)
        inferred = None
        if names is not None:
            inferred = self._closures.realise_inferred(snapshot_id, names, key=key, caller=caller)
        try:
            closure = inferred or closures.get(snapshot_id)
            if closure is not None:
                self._mounter.stubs.ensure(snapshot_id, names=closure.names, chain=chain)

            def commit(tx: Writer) -> None:
                if inferred is not None:
                    tx.put_closure(inferred)
                tx.commit_active(key, name, usage, labels, parent)

            self._store.write(commit)
        except BaseException:
            if inferred is not None:
                self._closures.discard(snapshot_id)
            raise
        log.info("committed name=%r key=%r id=%d", name, key, snapshot_id)

    def _remove(self, key: str) -> None:
        with self._store.read() as tx:
            snapshot_id, info, _ = tx.get(key)
            nix_layers = tx.nix_layers(tx.chain(key) if info.parent else (snapshot_id,))
        # Not durable: should a power cut bring the row back, containerd, which has written down that the snapshot is
        # gone, finds one that it does not know and removes it again.
        self._reserve.spend(lambda: self._store.write(lambda tx: tx.remove(key), durable=False))
        log.info("removed key=%r id=%d", key, snapshot_id)
        viewed = bool(nix_layers) or UID_MAPPING in info.labels
        self._remove_files(snapshot_id, viewed=viewed, nix_layer=snapshot_id in nix_layers)
        self._reserve.refill()

    def _remove_files(self, snapshot_id: int, *, viewed: bool, nix_layer: bool) -> None:
        """Remove the files of a snapshot: those of a view where it may have one, those of a nix layer if it is one."""
        try:
            if viewed:
                self._mounter.down(snapshot_id)
            directories.remove(self._layout, snapshot_id)
            if viewed:
                filetrees.remove_tree(self._layout.work(snapshot_id))
            if nix_layer:
                self._closures.discard(snapshot_id)
        except OSError:
            # The row is gone, so the call has succeeded; what is left is garbage, which the next sweep takes.
            log.warning("cannot remove all files of a removed snapshot id=%d", snapshot_id, exc_info=True)

    def _check_mapping(self, labels: Mapping[str, str]) -> None:
        """Refuse labels that ask for ids to be mapped in a wrong way, or where that cannot be done."""
        if parse_mapping(labels) is not None:
            self._mounter.mapped.check()

    def _measure(self, snapshot_id: int) -> Usage:
        measured = filetrees.disk_usage(self._layout.upper(snapshot_id))
        return Usage(inodes=measured.inodes, size_bytes=measured.size_bytes)


def _check_committable(tx: Reader, info: Info, name: str) -> None:
    if info.kind is not Kind.ACTIVE:
        raise FailedPreconditionError(f"snapshot {info.name!r} is not active")
    with contextlib.suppress(NotFoundError):
        tx.get(name)
        raise AlreadyExistsError(f"snapshot {name!r} already exists")


def _check_creatable(tx: Reader, key: str, parent: str) -> None:
    with contextlib.suppress(NotFoundError):
        tx.get(key)
        raise AlreadyExistsError(f"snapshot {key!r} already exists")
    if parent and tx.get(parent)[1].kind is not Kind.COMMITTED:
        raise InvalidArgumentError(f"parent {parent!r} is not committed")
