"""The snapshotter: containerd's contract (`core/snapshots/snapshotter.go`) over metadata, Nix and mounts.

What orders files against rows: a directory is made under a temporary name, renamed just before the transaction that
writes its row commits, and deleted only after the one that deletes its row has. So a directory without a row is
garbage, which the sweep takes, and a row without a directory never is.

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

import attrs

from nixsnap.config import StoreView
from nixsnap.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from nixsnap.metadata.reader import Reader
from nixsnap.metadata.records import Closure, Info, Kind, Snapshot, Usage
from nixsnap.metadata.store import Store
from nixsnap.metadata.writer import Writer
from nixsnap.mounts import filetrees
from nixsnap.nix import roots
from nixsnap.nix.caller import Caller
from nixsnap.nix.realise import ClosureRequest, Realiser
from nixsnap.nix.storepath import StorePath
from nixsnap.snapshots import directories
from nixsnap.snapshots.fetches import Fetches
from nixsnap.snapshots.idmapping import GID_MAPPING, UID_MAPPING, parse_mapping, same_mapping
from nixsnap.snapshots.inference import infer_closure
from nixsnap.snapshots.labels import parse_closure_request
from nixsnap.snapshots.layout import Layout
from nixsnap.snapshots.locks import NamedLocks
from nixsnap.snapshots.mounter import ViewMounter
from nixsnap.snapshots.reserve import Reserve
from nixsnap.snapshots.sweep import Sweeper
from nixsnap.snapshots.upkeep import Upkeep
from nixsnap.snapshots.views import Mounts, ViewPlan, plan_plain, plan_view

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Settings:
    """What the snapshotter was told, or found out about this machine.

    Attributes:
        kind: The kind of rootfs view: `OVERLAY` or `BIND`.
        overlay_options: What every overlay is mounted with.
        plain_options: What those of chains without a nix layer are mounted with beside that.
        infer_nix_layers: Recognise nix layers by their content at Commit.
        map_plain: Map the ids of chains without a nix layer ourselves too, and do not leave it to containerd.
    """

    kind: StoreView
    overlay_options: tuple[str, ...]
    plain_options: tuple[str, ...] = ()
    infer_nix_layers: bool = True
    map_plain: bool = False


class Snapshotter:
    """containerd's snapshotter contract.

    Args:
        layout: Where files lie; its directories exist.
        store: The metadata.
        realiser: Makes closures present.
        mounter: Mounts rootfs views.
        sweeper: Removes what no snapshot owns.
        upkeep: Fetches again what somebody took out of the store.
        settings: See there.

    Attributes:
        fetches: What is being fetched now, by key.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        store: Store,
        realiser: Realiser,
        mounter: ViewMounter,
        sweeper: Sweeper,
        upkeep: Upkeep,
        settings: Settings,
    ) -> None:
        self._layout = layout
        self._store = store
        self._realiser = realiser
        self._mounter = mounter
        self._sweeper = sweeper
        self._upkeep = upkeep
        self._settings = settings
        self._locks = NamedLocks()
        self.fetches = Fetches()
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
            chain = _Chain.read(tx, tx.get_snapshot(key))
        if not self._has_view(chain):
            return self._plan_plain(chain.snapshot)
        with self._locks.hold(key):
            with self._store.read() as tx:  # it may have gone while we waited
                chain = _Chain.read(tx, tx.get_snapshot(key))
            return self._mount_view(chain)

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

        def create(tx: Writer) -> _Chain:
            snapshot = tx.create(
                kind, key, parent, labels, id=None if closure is None else closure.snapshot_id
            )
            if closure is not None:
                tx.put_closure(closure)
            # A nix layer is about to be unpacked, which concerns its own files only.
            nothing = _Chain(snapshot=snapshot, nix_layers=frozenset())
            chain = _Chain.read(tx, snapshot) if closure is None else nothing
            # Only an overlay has a work directory, and that of a rootfs view lies elsewhere.
            work = kind is Kind.ACTIVE and bool(snapshot.parent_ids) and not chain.nix_layers
            mapping = parse_mapping(labels)
            owner = None if mapping is None else mapping.root
            directories.make(self._layout, snapshot, work=work, owner=owner)
            tx.on_rollback(lambda: filetrees.remove_tree(self._layout.snapshot(snapshot.id)))
            tx.sync_directory(self._layout.snapshots)
            return chain

        chain = self._store.write(create)
        log.info("created %s key=%r id=%d parent=%r", kind.name.lower(), key, chain.snapshot.id, parent)
        if not self._has_view(chain):
            return self._plan_plain(chain.snapshot)
        return self._mount_new_view(key, chain)

    def _mount_new_view(self, key: str, chain: _Chain) -> Mounts:
        try:
            return self._mount_view(chain)
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
                closure = self._realise(request, snapshot_id, key=key, caller=caller)
                mount = self._create(Kind.ACTIVE, key, parent, labels, closure=closure)
            except BaseException:
                filetrees.remove_tree(self._layout.gcroot(snapshot_id))
                raise
        self._mounter.stubs.begin(snapshot_id, names=closure.names)
        return mount

    def _realise(
        self,
        request: ClosureRequest,
        snapshot_id: int,
        *,
        key: str,
        caller: Caller | None,
        inferred: bool = False,
    ) -> Closure:
        log.info("realising %s key=%r id=%d", request, key, snapshot_id)
        gcroots = self._layout.gcroot(snapshot_id)
        with self.fetches.under_way(key) as progress:
            store_paths = self._realiser.realise(request, gcroots=gcroots, progress=progress, caller=caller)
        roots.seal(gcroots)
        log.info("realised %d store paths key=%r id=%d", len(store_paths), key, snapshot_id)
        return Closure(
            snapshot_id=snapshot_id,
            closure_info=None if request.closure_info is None else str(request.closure_info),
            store_paths=map(str, store_paths),
            inferred=inferred,
        )

    def _mount_view(self, chain: _Chain) -> Mounts:
        snapshot = chain.snapshot
        plan = self._plan_view(chain)
        self._upkeep.ensure(chain.nix_layers)
        if self._mounter.up(plan, chain=snapshot.parent_ids, names_of=self._store_names):
            log.info("mounted rootfs view id=%d nix_layers=%d", snapshot.id, len(chain.nix_layers))
        readonly = snapshot.kind is Kind.VIEW
        return self._mounter.handed_out(plan, readonly=readonly, names_of=self._store_names)

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
        usage, inferred_names = self._examine(snapshot_id, closures)
        inferred = None
        if inferred_names is not None:
            inferred = self._realise_inferred(snapshot_id, key, inferred_names, caller)
        try:
            closure = inferred or closures.get(snapshot_id)
            if closure is not None:
                names = closure.names
                self._mounter.stubs.ensure(snapshot_id, names=names, chain=chain)

            def commit(tx: Writer) -> None:
                if inferred is not None:
                    tx.put_closure(inferred)
                tx.commit_active(key, name, usage, labels, parent)

            self._store.write(commit)
        except BaseException:
            if inferred is not None:
                self._discard_closure(snapshot_id)
            raise
        log.info("committed name=%r key=%r id=%d", name, key, snapshot_id)

    def _examine(
        self, snapshot_id: int, closures: Mapping[int, Closure]
    ) -> tuple[Usage, tuple[str, ...] | None]:
        """Measure a layer; if nothing says that it is a nix layer, see whether its content does."""
        names = None
        if self._settings.infer_nix_layers and snapshot_id not in closures:
            names = infer_closure(
                self._layout.upper(snapshot_id),
                store_dir=self._mounter.store_dir,
                shown={name for closure in closures.values() for name in closure.names},
            )
        return self._measure(snapshot_id), names

    def _realise_inferred(
        self, snapshot_id: int, key: str, names: Sequence[str], caller: Caller | None
    ) -> Closure:
        log.info(
            "inferred a nix layer from its content store_paths=%d key=%r id=%d", len(names), key, snapshot_id
        )
        store_dir = str(self._mounter.store_dir)
        store_paths = tuple(StorePath(store_dir=store_dir, name=name) for name in names)
        try:
            request = ClosureRequest(store_paths=store_paths)
            return self._realise(request, snapshot_id, key=key, caller=caller, inferred=True)
        except BaseException:
            self._discard_closure(snapshot_id)
            raise

    def _discard_closure(self, snapshot_id: int) -> None:
        """Take back what making a snapshot a nix layer left on disk."""
        self._mounter.stubs.remove(snapshot_id)
        filetrees.remove_tree(self._layout.gcroot(snapshot_id))

    def _remove(self, key: str) -> None:
        with self._store.read() as tx:
            snapshot_id, info, _ = tx.get(key)
            nix_layers = tx.nix_layers(tx.chain(key) if info.parent else (snapshot_id,))
        self._reserve.spend(lambda: self._store.write(lambda tx: tx.remove(key)))
        log.info("removed key=%r id=%d", key, snapshot_id)
        viewed = bool(nix_layers) or UID_MAPPING in info.labels
        self._remove_files(snapshot_id, viewed=viewed, nix_layer=snapshot_id in nix_layers)
        self._reserve.refill()

    def _remove_files(self, snapshot_id: int, *, viewed: bool, nix_layer: bool) -> None:
        """Remove the files of a snapshot: those of a view where it may have one, those of a nix layer if it is one."""
        try:
            if viewed:
                self._mounter.down(snapshot_id)
            filetrees.remove_tree(self._layout.snapshot(snapshot_id))
            if viewed:
                filetrees.remove_tree(self._layout.work(snapshot_id))
            if nix_layer:
                self._discard_closure(snapshot_id)
        except OSError:
            # The row is gone, so the call has succeeded; what is left is garbage, which the next sweep takes.
            log.warning("cannot remove all files of a removed snapshot id=%d", snapshot_id, exc_info=True)

    def _check_mapping(self, labels: Mapping[str, str]) -> None:
        """Refuse labels that ask for ids to be mapped in a wrong way, or where that cannot be done."""
        if parse_mapping(labels) is not None:
            self._mounter.mapped.check()

    def _has_view(self, chain: _Chain) -> bool:
        """Whether the mount of a snapshot is a view of ours."""
        if chain.nix_layers:
            return True
        snapshot = chain.snapshot
        return self._settings.map_plain and bool(snapshot.parent_ids) and UID_MAPPING in snapshot.labels

    def _plan_plain(self, snapshot: Snapshot) -> Mounts:
        options = (*self._settings.overlay_options, *self._settings.plain_options)
        idmap = not self._settings.map_plain
        return (plan_plain(self._layout, snapshot, options=options, kind=self._settings.kind, idmap=idmap),)

    def _plan_view(self, chain: _Chain) -> ViewPlan:
        return plan_view(
            self._layout,
            chain.snapshot,
            nix_layers=chain.nix_layers,
            kind=self._settings.kind,
            store=self._mounter.store,
            options=self._settings.overlay_options,
        )

    def _store_names(self, snapshot_id: int) -> tuple[str, ...]:
        with self._store.read() as tx:
            return tx.closures_of([snapshot_id])[snapshot_id].names

    def _measure(self, snapshot_id: int) -> Usage:
        measured = filetrees.disk_usage(self._layout.upper(snapshot_id))
        return Usage(inodes=measured.inodes, size_bytes=measured.size_bytes)


@attrs.frozen(kw_only=True)
class _Chain:
    """An active snapshot or a view, and the ids of the nix layers that it lies upon.

    A snapshot that is a nix layer itself shows nothing of the store: it exists to be unpacked into.
    """

    snapshot: Snapshot
    nix_layers: frozenset[int]

    @classmethod
    def read(cls, tx: Reader, snapshot: Snapshot) -> _Chain:
        found = tx.nix_layers((snapshot.id, *snapshot.parent_ids)) if snapshot.parent_ids else ()
        return cls(snapshot=snapshot, nix_layers=frozenset(() if snapshot.id in found else found))


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
