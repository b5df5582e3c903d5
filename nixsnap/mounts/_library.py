"""The C core's interface as mypy sees it: csrc/core.cdef.h, typed.

`_calls` casts the compiled library to `Library` once. An `Address` is what cffi's `ffi.new` returns, or `ffi.NULL`;
plain `bytes` stand for `const char *`.
"""

from __future__ import annotations

from typing import Any, NewType, Protocol

Address = NewType("Address", object)


class Library(Protocol):
    """The functions and constants of csrc/core.cdef.h. Every function returns -errno on failure."""

    NSNAP_READONLY: int
    NSNAP_NOSUID: int
    NSNAP_NODEV: int
    NSNAP_NOEXEC: int
    NSNAP_NOATIME: int
    NSNAP_NOSYMFOLLOW: int
    NSNAP_PROPAGATION_KEEP: int
    NSNAP_PROPAGATION_PRIVATE: int
    NSNAP_PROPAGATION_SLAVE: int
    NSNAP_PROPAGATION_SHARED: int
    NSNAP_PROPAGATION_UNBINDABLE: int
    NSNAP_OVERLAYFS_MAGIC: int

    def nsnap_overlay_appends(self, failure: Address) -> int: ...
    def nsnap_overlay_create(self, overlay: Address, failure: Address) -> int: ...
    def nsnap_overlay_mount_page(
        self, overlay: Address, target_dir_fd: int, target: bytes, failure: Address
    ) -> int: ...
    def nsnap_clone_tree(self, dir_fd: int, path: bytes, recursive: bool, failure: Address) -> int: ...  # noqa: FBT001
    def nsnap_set_attributes(
        self,
        tree_fd: int,
        attributes: Address,
        recursive: bool,  # noqa: FBT001
        failure: Address,
    ) -> int: ...
    def nsnap_attach(self, tree_fd: int, target_dir_fd: int, target: bytes, failure: Address) -> int: ...
    def nsnap_forget_names(self, path: bytes, failure: Address) -> int: ...
    def nsnap_lock_tree(self, tree_fd: int, failure: Address) -> int: ...
    def nsnap_unmount(self, path: bytes, detach: bool, failure: Address) -> int: ...  # noqa: FBT001
    def nsnap_userns_create(self, uid_map: bytes, gid_map: bytes, failure: Address) -> int: ...
    def nsnap_probe_mount(self, path: bytes, probe: Address, failure: Address) -> int: ...
    def nsnap_directory_has_types(self, dir_fd: int, failure: Address) -> int: ...
    def nsnap_open_beneath(
        self, dir_fd: int, path: bytes, flags: int, mode: int, failure: Address
    ) -> int: ...
    def nsnap_stub_fill(  # noqa: PLR0917
        self,
        dir_fd: int,
        store_fd: int,
        names: bytes,
        names_size: int,
        keep_ids: bool,  # noqa: FBT001
        redirect_xattr: bytes | Address,
        redirect_prefix: bytes,
        counts: Address,
        failure: Address,
    ) -> int: ...
    def nsnap_stub_fill_trees(self, trees: Address, counts: Address, failure: Address) -> int: ...
    def nsnap_shift_owners(  # noqa: PLR0917
        self,
        dir_fd: int,
        shallow_fd: int,
        uids: Address,
        uid_count: int,
        gids: Address,
        gid_count: int,
        failure: Address,
    ) -> int: ...
    def nsnap_remove_tree(self, dir_fd: int, name: bytes, failure: Address) -> int: ...
    def nsnap_disk_usage(self, path: bytes, usage: Address, failure: Address) -> int: ...


class ForeignInterface(Protocol):
    """The part of cffi's `ffi` that is used."""

    NULL: Address

    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def string(self, cdata: Any) -> bytes: ...
