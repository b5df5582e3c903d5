/* Detached clones of mounts, and the attributes of mounts. */

#include <sys/mount.h>
#include <sys/stat.h>

#include "syscalls.h"
#include "util.h"

errint_t nsnap_clone_tree(int dir_fd, const char *path, bool recursive, struct nsnap_failure *failure)
{
	unsigned int flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT |
			     (*path ? 0 : AT_EMPTY_PATH) | (recursive ? AT_RECURSIVE : 0);
	cleanup_close int tree_fd = syscall_open_tree(dir_fd, path, flags);
	struct stat st;

	if (tree_fd < 0)
		return fail(failure, tree_fd, "open_tree");
	if (fstat(tree_fd, &st) < 0)
		return fail(failure, -errno, "fstat tree");
	/* Unfollowed, a symlink is cloned as itself; mounted, it would lead wherever its text says over there. */
	if (S_ISLNK(st.st_mode))
		return fail(failure, -ELOOP, "open_tree");
	return steal_fd(&tree_fd);
}

/* Our flags and the kernel's are different families, and so are its MS_ and MOUNT_ATTR_ ones: only MS_RDONLY and
 * MS_NOSUID, MS_NODEV, MS_NOEXEC happen to agree with theirs. They meet here and nowhere else. */
static uint64_t kernel_attributes(uint32_t attributes)
{
	static const struct {
		uint32_t ours;
		uint64_t kernels;
	} table[] = {
		{NSNAP_READONLY, MOUNT_ATTR_RDONLY}, {NSNAP_NOSUID, MOUNT_ATTR_NOSUID},
		{NSNAP_NODEV, MOUNT_ATTR_NODEV},     {NSNAP_NOEXEC, MOUNT_ATTR_NOEXEC},
		{NSNAP_NOATIME, MOUNT_ATTR_NOATIME}, {NSNAP_NOSYMFOLLOW, MOUNT_ATTR_NOSYMFOLLOW},
	};
	uint64_t result = 0;

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (attributes & table[i].ours)
			result |= table[i].kernels;
	return result;
}

static errint_t kernel_propagation(int propagation, uint64_t *result)
{
	switch (propagation) {
	case NSNAP_PROPAGATION_KEEP:
		*result = 0;
		return 0;
	case NSNAP_PROPAGATION_PRIVATE:
		*result = MS_PRIVATE;
		return 0;
	case NSNAP_PROPAGATION_SLAVE:
		*result = MS_SLAVE;
		return 0;
	case NSNAP_PROPAGATION_SHARED:
		*result = MS_SHARED;
		return 0;
	case NSNAP_PROPAGATION_UNBINDABLE:
		*result = MS_UNBINDABLE;
		return 0;
	default:
		return -EINVAL;
	}
}

errint_t nsnap_set_attributes(int tree_fd, const struct nsnap_attributes *attributes, bool recursive,
			      struct nsnap_failure *failure)
{
	struct syscall_mount_attr attr = {
		.attr_set = kernel_attributes(attributes->set),
		.attr_clr = kernel_attributes(attributes->clear),
	};
	errint_t result = kernel_propagation(attributes->propagation, &attr.propagation);

	if (result < 0)
		return fail(failure, result, "mount_setattr");
	/* The access time setting is one field of several bits: it is cleared as a whole before a value goes in. */
	if ((attributes->set | attributes->clear) & NSNAP_NOATIME)
		attr.attr_clr |= MOUNT_ATTR__ATIME;
	if (attributes->userns_fd >= 0) {
		attr.attr_set |= MOUNT_ATTR_IDMAP;
		attr.userns_fd = (uint64_t)attributes->userns_fd;
	}
	result = syscall_mount_setattr(tree_fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr);
	return result < 0 ? fail(failure, result, "mount_setattr") : 0;
}
