/*
 * System calls that the oldest C library we build on (glibc 2.28, manylinux_2_28) has no wrapper for, with their
 * constants. <linux/mount.h> is not included, nor <linux/fs.h>, which includes it: beside the <sys/mount.h> of glibc
 * 2.36 it does not compile.
 *
 * Each shim returns what the call does, or -errno; ENOSYS where the running kernel does not have it.
 */

#ifndef NSNAP_SYSCALLS_H
#define NSNAP_SYSCALLS_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "nsnap.h"

/* Since Linux 5.1 a new system call has one number on every architecture (but alpha and mips, which add an offset). */
#if (defined(__alpha__) || defined(__mips__)) && !defined(SYS_mount_setattr)
#error "needs the headers of Linux 5.12 or later"
#endif

#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_fsopen
#define SYS_fsopen 430
#endif
#ifndef SYS_fsconfig
#define SYS_fsconfig 431
#endif
#ifndef SYS_fsmount
#define SYS_fsmount 432
#endif
#ifndef SYS_fspick
#define SYS_fspick 433
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef OPEN_TREE_CLOEXEC
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 0x00000004
#endif
#ifndef MOVE_MOUNT_T_EMPTY_PATH
#define MOVE_MOUNT_T_EMPTY_PATH 0x00000040
#endif
#ifndef FSOPEN_CLOEXEC
#define FSOPEN_CLOEXEC 0x00000001
#endif
#ifndef FSCONFIG_SET_FLAG
#define FSCONFIG_SET_FLAG 0
#endif
#ifndef FSCONFIG_SET_STRING
#define FSCONFIG_SET_STRING 1
#endif
#ifndef FSCONFIG_SET_FD
#define FSCONFIG_SET_FD 5
#endif
#ifndef FSCONFIG_CMD_CREATE
#define FSCONFIG_CMD_CREATE 6
#endif
#ifndef FSCONFIG_CMD_RECONFIGURE
#define FSCONFIG_CMD_RECONFIGURE 7
#endif
#ifndef FSPICK_CLOEXEC
#define FSPICK_CLOEXEC 0x00000001
#endif
#ifndef FSPICK_SYMLINK_NOFOLLOW
#define FSPICK_SYMLINK_NOFOLLOW 0x00000002
#endif
#ifndef FSMOUNT_CLOEXEC
#define FSMOUNT_CLOEXEC 0x00000001
#endif
#ifndef MOUNT_ATTR_RDONLY
#define MOUNT_ATTR_RDONLY 0x00000001
#endif
#ifndef MOUNT_ATTR_NOSUID
#define MOUNT_ATTR_NOSUID 0x00000002
#endif
#ifndef MOUNT_ATTR_NODEV
#define MOUNT_ATTR_NODEV 0x00000004
#endif
#ifndef MOUNT_ATTR_NOEXEC
#define MOUNT_ATTR_NOEXEC 0x00000008
#endif
#ifndef MOUNT_ATTR__ATIME
#define MOUNT_ATTR__ATIME 0x00000070
#endif
#ifndef MOUNT_ATTR_NOATIME
#define MOUNT_ATTR_NOATIME 0x00000010
#endif
#ifndef MOUNT_ATTR_IDMAP
#define MOUNT_ATTR_IDMAP 0x00100000
#endif
#ifndef MOUNT_ATTR_NOSYMFOLLOW
#define MOUNT_ATTR_NOSYMFOLLOW 0x00200000
#endif
#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x00001000U
#endif
#ifndef STATX_ATTR_MOUNT_ROOT
#define STATX_ATTR_MOUNT_ROOT 0x00002000
#endif
#ifndef FICLONE
#define FICLONE _IOW(0x94, 9, int)
#endif
#ifndef RESOLVE_NO_XDEV
#define RESOLVE_NO_XDEV 0x01
#endif
#ifndef RESOLVE_NO_MAGICLINKS
#define RESOLVE_NO_MAGICLINKS 0x02
#endif
#ifndef RESOLVE_NO_SYMLINKS
#define RESOLVE_NO_SYMLINKS 0x04
#endif
#ifndef RESOLVE_BENEATH
#define RESOLVE_BENEATH 0x08
#endif

/* The kernel's structures in their first published size, under our names: headers may or may not have them. */
struct syscall_mount_attr {
	uint64_t attr_set;
	uint64_t attr_clr;
	uint64_t propagation;
	uint64_t userns_fd;
};

struct syscall_open_how {
	uint64_t flags;
	uint64_t mode;
	uint64_t resolve;
};

struct syscall_clone_args {
	uint64_t flags;
	uint64_t pidfd;
	uint64_t child_tid;
	uint64_t parent_tid;
	uint64_t exit_signal;
	uint64_t stack;
	uint64_t stack_size;
	uint64_t tls;
};

struct syscall_statx {
	uint32_t stx_mask;
	uint32_t stx_blksize;
	uint64_t stx_attributes;
	uint32_t stx_nlink;
	uint32_t stx_uid;
	uint32_t stx_gid;
	uint16_t stx_mode;
	uint16_t stx_padding;
	uint64_t stx_ino;
	uint64_t stx_size;
	uint64_t stx_blocks;
	uint64_t stx_attributes_mask;
	uint64_t stx_times_and_devices[10];
	uint64_t stx_mnt_id;
	uint64_t stx_spare[13];
};

_Static_assert(offsetof(struct syscall_statx, stx_mnt_id) == 0x90, "as in the kernel's linux/stat.h");
_Static_assert(sizeof(struct syscall_statx) == 0x100, "as in the kernel's linux/stat.h");

struct syscall_dirent {
	uint64_t d_ino;
	int64_t d_off;
	uint16_t d_reclen;
	uint8_t d_type;
	char d_name[];
};

static inline errint_t errint(long result)
{
	return result < 0 ? -errno : (errint_t)result;
}

static inline errint_t syscall_open_tree(int dir_fd, const char *path, unsigned int flags)
{
	return errint(syscall(SYS_open_tree, dir_fd, path, flags));
}

static inline errint_t syscall_move_mount(int from_fd, const char *from, int to_fd, const char *to,
					  unsigned int flags)
{
	return errint(syscall(SYS_move_mount, from_fd, from, to_fd, to, flags));
}

static inline errint_t syscall_fsopen(const char *type, unsigned int flags)
{
	return errint(syscall(SYS_fsopen, type, flags));
}

static inline errint_t syscall_fsconfig(int fs_fd, unsigned int command, const char *key, const void *value,
					int aux)
{
	return errint(syscall(SYS_fsconfig, fs_fd, command, key, value, aux));
}

static inline errint_t syscall_fsmount(int fs_fd, unsigned int flags, unsigned int attributes)
{
	return errint(syscall(SYS_fsmount, fs_fd, flags, attributes));
}

static inline errint_t syscall_fspick(int dir_fd, const char *path, unsigned int flags)
{
	return errint(syscall(SYS_fspick, dir_fd, path, flags));
}

static inline errint_t syscall_mount_setattr(int dir_fd, const char *path, unsigned int flags,
					     const struct syscall_mount_attr *attr)
{
	return errint(syscall(SYS_mount_setattr, dir_fd, path, flags, attr, sizeof(*attr)));
}

static inline errint_t syscall_openat2(int dir_fd, const char *path, const struct syscall_open_how *how)
{
	return errint(syscall(SYS_openat2, dir_fd, path, how, sizeof(*how)));
}

static inline errint_t syscall_clone3(const struct syscall_clone_args *args)
{
	return errint(syscall(SYS_clone3, args, sizeof(*args)));
}

static inline errint_t syscall_statx(int dir_fd, const char *path, int flags, unsigned int mask,
				     struct syscall_statx *stx)
{
	return errint(syscall(SYS_statx, dir_fd, path, flags, mask, stx));
}

/* Bytes filled, 0 at the end. */
static inline errint_t syscall_getdents(int dir_fd, void *buffer, size_t size)
{
	return errint(syscall(SYS_getdents64, dir_fd, buffer, size));
}

#endif
