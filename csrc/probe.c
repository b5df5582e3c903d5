/* What a path lies on. */

#include <linux/magic.h>
#include <stdalign.h>
#include <sys/vfs.h>

#include "syscalls.h"
#include "util.h"

_Static_assert(NSNAP_OVERLAYFS_MAGIC == OVERLAYFS_SUPER_MAGIC, "the kernel's number for overlayfs");

errint_t nsnap_probe_mount(const char *path, struct nsnap_mount_probe *probe, struct nsnap_failure *failure)
{
	cleanup_close int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct syscall_statx stx = {0};
	struct statfs fs;
	errint_t result;

	if (fd < 0)
		return fail(failure, -errno, "open");
	result = syscall_statx(fd, "", AT_EMPTY_PATH | AT_NO_AUTOMOUNT, STATX_MNT_ID, &stx);
	if (result < 0)
		return fail(failure, result, "statx");
	/* Both came with Linux 5.8. */
	if (!(stx.stx_mask & STATX_MNT_ID) || !(stx.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT))
		return fail(failure, -EOPNOTSUPP, "statx mount id");
	if (fstatfs(fd, &fs) < 0)
		return fail(failure, -errno, "fstatfs");
	probe->mount_id = stx.stx_mnt_id;
	probe->is_root = (stx.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
	probe->filesystem_magic = (uint64_t)fs.f_type;
	return 0;
}

errint_t nsnap_directory_has_types(int dir_fd, struct nsnap_failure *failure)
{
	alignas(struct syscall_dirent) char buffer[4096];
	errint_t size;

	while ((size = syscall_getdents(dir_fd, buffer, sizeof(buffer))) > 0)
		for (errint_t at = 0; at < size;) {
			const struct syscall_dirent *entry = (const void *)(buffer + at);

			at += entry->d_reclen;
			/* XFS without ftype knows the type of "." and ".." all the same. */
			if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
				return entry->d_type != 0; /* DT_UNKNOWN */
		}
	return fail(failure, size < 0 ? size : -ENOENT, "getdents64");
}
