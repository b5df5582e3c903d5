/* Overlay mounts through fsopen(2) and its kin: a detached mount, and no limit on the sum of the paths. */

#include "overlay.h"
#include "syscalls.h"
#include "util.h"

enum {
	/* fsconfig(2) copies keys and string values into 256 bytes, the final NUL included (fs/fsopen.c). */
	FSCONFIG_STRING_SIZE = 256,
};

/* Adds the kernel's own words, which wait on the descriptor as "e text\n", one a read, as many as fit. Most of what
 * overlayfs has to say it still says in the kernel log alone, which is worth knowing. */
static errint_t with_messages(struct nsnap_failure *failure, int fs_fd, errint_t error)
{
	char line[sizeof(failure->message)];
	size_t used = 0;

	for (;;) {
		ssize_t size = read(fs_fd, line, sizeof(line) - 1);
		int length;

		if (size <= 2) /* ENODATA: no more of them */
			break;
		if (line[size - 1] == '\n')
			size--;
		line[size] = '\0';
		length = snprintf(failure->message + used, sizeof(failure->message) - used, "%s%s",
				  used ? "; " : "", line + 2);
		if (length < 0 || used + (size_t)length >= sizeof(failure->message))
			break;
		used += (size_t)length;
	}
	/* A layer that is not there needs no reason. */
	return used > 0 || error == -ENOENT || error == -ENOTDIR
		       ? error
		       : with_message(failure, error, OVERLAY_REASON);
}

/*
 * Gives one layer to the file system. A path that does not fit, or that has a backslash (which upperdir and workdir
 * take for an escape and lowerdir+ does not, as of Linux 6.18), goes in by a descriptor's name, which the kernel
 * resolves here and now.
 */
static errint_t set_layer(int fs_fd, const char *key, const char *path)
{
	cleanup_close int layer_fd = -1;

	if (strlen(path) < FSCONFIG_STRING_SIZE && !strchr(path, '\\'))
		return syscall_fsconfig(fs_fd, FSCONFIG_SET_STRING, key, path, 0);
	layer_fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (layer_fd < 0)
		return -errno;
	return syscall_fsconfig(fs_fd, FSCONFIG_SET_STRING, key, fd_path(layer_fd).text, 0);
}

/* Gives a layer in a detached tree to the file system. No path leads there, so it goes in as a descriptor. */
static errint_t set_layer_in_tree(int fs_fd, const char *key, int tree_fd, const char *path)
{
	cleanup_close int layer_fd = openat(tree_fd, path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (layer_fd < 0)
		return -errno;
	return syscall_fsconfig(fs_fd, FSCONFIG_SET_FD, key, NULL, layer_fd);
}

/* Gives lower layer number `index` to the file system, data-only layers being counted on. */
static errint_t set_lower(int fs_fd, const struct nsnap_overlay *overlay, size_t index)
{
	bool data_only = index >= overlay->lowerdir_count;
	const char *key = data_only ? "datadir+" : "lowerdir+";
	const char *path =
		data_only ? overlay->datadirs[index - overlay->lowerdir_count] : overlay->lowerdirs[index];

	if (overlay->tree_fds && overlay->tree_fds[index] >= 0)
		return set_layer_in_tree(fs_fd, key, overlay->tree_fds[index], path);
	return set_layer(fs_fd, key, path);
}

static errint_t set_option(int fs_fd, const char *option)
{
	const char *equals = strchr(option, '=');
	char key[FSCONFIG_STRING_SIZE];

	if (!equals)
		return syscall_fsconfig(fs_fd, FSCONFIG_SET_FLAG, option, NULL, 0);
	if ((size_t)(equals - option) >= sizeof(key))
		return -EINVAL;
	memcpy(key, option, (size_t)(equals - option));
	key[equals - option] = '\0';
	return syscall_fsconfig(fs_fd, FSCONFIG_SET_STRING, key, equals + 1, 0);
}

static errint_t configure(int fs_fd, const struct nsnap_overlay *overlay, struct nsnap_failure *failure)
{
	size_t lowers = overlay->lowerdir_count + overlay->datadir_count;
	errint_t result;

	/* The source column of /proc/mounts, as mount(2) callers fill it. */
	result = syscall_fsconfig(fs_fd, FSCONFIG_SET_STRING, "source", "overlay", 0);
	if (result < 0)
		return fail(failure, result, "fsconfig source");
	for (size_t i = 0; i < lowers; i++) {
		result = set_lower(fs_fd, overlay, i);
		if (result < 0)
			return fail_index(
				failure, result,
				i < overlay->lowerdir_count ? "fsconfig lowerdir+" : "fsconfig datadir+", i);
	}
	if (overlay->upperdir) {
		result = set_layer(fs_fd, "upperdir", overlay->upperdir);
		if (result < 0)
			return fail_index(failure, result, "fsconfig upperdir", lowers);
	}
	if (overlay->workdir) {
		result = set_layer(fs_fd, "workdir", overlay->workdir);
		if (result < 0)
			return fail_index(failure, result, "fsconfig workdir", lowers + 1);
	}
	for (size_t i = 0; i < overlay->option_count; i++) {
		result = set_option(fs_fd, overlay->options[i]);
		if (result < 0)
			return fail_subject(failure, result, "fsconfig option", overlay->options[i]);
	}
	if (overlay->readonly) {
		result = syscall_fsconfig(fs_fd, FSCONFIG_SET_FLAG, "ro", NULL, 0);
		if (result < 0)
			return fail(failure, result, "fsconfig ro");
	}
	result = syscall_fsconfig(fs_fd, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
	return result < 0 ? fail(failure, result, "fsconfig create") : 0;
}

errint_t nsnap_overlay_create(const struct nsnap_overlay *overlay, struct nsnap_failure *failure)
{
	cleanup_close int fs_fd = syscall_fsopen("overlay", FSOPEN_CLOEXEC);
	cleanup_close int mount_fd = -1;
	errint_t result;

	if (fs_fd < 0)
		return fail(failure, fs_fd, "fsopen overlay");
	result = configure(fs_fd, overlay, failure);
	if (result < 0)
		return with_messages(failure, fs_fd, result);
	mount_fd = syscall_fsmount(fs_fd, FSMOUNT_CLOEXEC, overlay->readonly ? MOUNT_ATTR_RDONLY : 0);
	if (mount_fd < 0)
		return with_messages(failure, fs_fd, fail(failure, mount_fd, "fsmount"));
	return steal_fd(&mount_fd);
}

/*
 * Three kernels have to be told apart, and the errors of a real mount do not: overlayfs took any parameter up to Linux
 * 6.4 and complained at the end, refused the unknown "lowerdir+" at once in 6.5, and learnt it in 6.7 (commit
 * 24e16e385f22). So a known one has to be taken and an unknown one refused; neither leaves a line in the kernel log.
 */
errint_t nsnap_overlay_appends(struct nsnap_failure *failure)
{
	cleanup_close int fs_fd = syscall_fsopen("overlay", FSOPEN_CLOEXEC);
	errint_t result;

	if (fs_fd == -ENOSYS) /* before Linux 5.2 */
		return 0;
	if (fs_fd < 0)
		return fail(failure, fs_fd, "fsopen overlay");
	result = syscall_fsconfig(fs_fd, FSCONFIG_SET_STRING, "lowerdir+", "/", 0);
	if (result == -EINVAL)
		return 0;
	if (result < 0)
		return with_messages(failure, fs_fd, fail(failure, result, "fsconfig lowerdir+"));
	return syscall_fsconfig(fs_fd, FSCONFIG_SET_FLAG, "nixsnap-unknown", NULL, 0) == -EINVAL;
}
