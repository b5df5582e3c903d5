/* Attaching detached mounts to mount points, having their names looked up anew, and taking mounts off again. */

#include <sys/mount.h>
#include <sys/stat.h>

#include "attach.h"
#include "syscalls.h"
#include "util.h"

errint_t open_mount_point(int dir_fd, const char *path, struct nsnap_failure *failure)
{
	cleanup_close int target_fd = -1;
	struct stat st;

	/* An empty path names dir_fd, and openat() has no AT_EMPTY_PATH. */
	target_fd = *path ? openat(dir_fd, path, O_PATH | O_NOFOLLOW | O_CLOEXEC)
			  : fcntl(dir_fd, F_DUPFD_CLOEXEC, 0);
	if (target_fd < 0)
		return fail(failure, -errno, "open mount point");
	if (fstat(target_fd, &st) < 0)
		return fail(failure, -errno, "fstat mount point");
	if (S_ISLNK(st.st_mode))
		return fail(failure, -ELOOP, "open mount point"); /* O_PATH opened the symlink itself */
	return steal_fd(&target_fd);
}

errint_t nsnap_attach(int tree_fd, int target_dir_fd, const char *target, struct nsnap_failure *failure)
{
	cleanup_close int target_fd = open_mount_point(target_dir_fd, target, failure);
	errint_t result;

	if (target_fd < 0)
		return target_fd;
	result = syscall_move_mount(tree_fd, "", target_fd, "",
				    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	return result < 0 ? fail(failure, result, "move_mount") : 0;
}

errint_t nsnap_forget_names(const char *path, struct nsnap_failure *failure)
{
	/* fs/super.c, reconfigure_super(): whatever is to be changed, unused dentries go first. */
	cleanup_close int fs_fd = syscall_fspick(AT_FDCWD, path, FSPICK_CLOEXEC | FSPICK_SYMLINK_NOFOLLOW);
	errint_t result;

	if (fs_fd < 0)
		return fail(failure, fs_fd, "fspick");
	result = syscall_fsconfig(fs_fd, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0);
	return result < 0 ? fail(failure, result, "fsconfig reconfigure") : 0;
}

errint_t nsnap_unmount(const char *path, bool detach, struct nsnap_failure *failure)
{
	if (umount2(path, UMOUNT_NOFOLLOW | (detach ? MNT_DETACH : 0)) < 0)
		return fail(failure, -errno, "umount2");
	return 0;
}
