/* Removing whole trees. */

#include <dirent.h>
#include <sys/stat.h>

#include "util.h"
#include "walk.h"

enum {
	/* How often a directory may turn out to hold something after all when everything in it had been removed. */
	REFILLS_MAX = 100,
};

static bool is_not_empty(errint_t error)
{
	return error == -ENOTEMPTY || error == -EEXIST; /* POSIX lets a file system choose */
}

/* unlinkat(2) in the directory the walk is in, which an owner that is not root may first have to make writable. */
static errint_t unlink_here(const struct walk *walk, const char *name, int flags)
{
	errint_t result = errint(unlinkat(walk->dir_fd, name, flags));

	if (result == -EACCES && fchmod(walk->dir_fd, S_IRWXU) == 0)
		result = errint(unlinkat(walk->dir_fd, name, flags));
	return result == -ENOENT ? 0 : result;
}

/* Removes what is not a directory, and a directory that is empty; queues any other. A mount point is EBUSY in both
 * ways, before the kernel looks whether it is empty. */
static errint_t remove_entry(struct walk *walk, const char *name, unsigned char type, void *context)
{
	struct nsnap_failure *failure = context;
	errint_t result = -EISDIR;

	if (type != DT_DIR) /* which may be DT_UNKNOWN: the call then tells */
		result = unlink_here(walk, name, 0);
	if (result == -EISDIR)
		result = unlink_here(walk, name, AT_REMOVEDIR);
	if (is_not_empty(result)) {
		result = walk_queue(walk, name);
		return result < 0 ? fail(failure, result, "malloc") : 0;
	}
	return result < 0 ? fail_subject(failure, result, "unlinkat", name) : 0;
}

static errint_t read_here(struct walk *walk, struct nsnap_failure *failure)
{
	errint_t result;

	failure->step = NULL;
	result = walk_read(walk, remove_entry, failure);
	return result < 0 && !failure->step ? fail(failure, result, "getdents64") : result;
}

/* Goes down into the directory queued last. */
static errint_t enter(struct walk *walk, struct nsnap_failure *failure)
{
	errint_t result = walk_enter(walk, RESOLVE_BENEATH | RESOLVE_NO_XDEV);

	if (result == -ENOENT) { /* somebody else removed it */
		walk_drop(walk);
		return 0;
	}
	return result < 0 ? fail_subject(failure, result, "openat2", walk_queued(walk))
			  : read_here(walk, failure);
}

/* Goes up, and removes the directory it was in, which is empty now; if not, it stays queued to be entered again. */
static errint_t leave(struct walk *walk, unsigned int *refills, struct nsnap_failure *failure)
{
	errint_t result = walk_leave(walk);

	if (result < 0)
		return fail(failure, result, "openat parent");
	result = unlink_here(walk, walk_queued(walk), AT_REMOVEDIR);
	if (is_not_empty(result) && (*refills)++ < REFILLS_MAX)
		return 0;
	if (result < 0)
		return fail_subject(failure, result, "unlinkat", walk_queued(walk));
	walk_drop(walk);
	return 0;
}

/* Removes everything below the directory the walk starts in. */
static errint_t remove_below(struct walk *walk, unsigned int *refills, struct nsnap_failure *failure)
{
	errint_t result = read_here(walk, failure);

	while (result == 0) {
		if (walk_queued(walk))
			result = enter(walk, failure);
		else if (walk->depth > 1)
			result = leave(walk, refills, failure);
		else
			return 0;
	}
	return result;
}

/* Removes a directory that is not empty. */
static errint_t remove_directory(int dir_fd, const char *name, struct nsnap_failure *failure)
{
	const struct syscall_open_how how = {
		.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS,
	};
	cleanup_walk struct walk walk = {.dir_fd = -1};
	unsigned int refills = 0;
	errint_t result = syscall_openat2(dir_fd, name, &how);

	if (result < 0)
		return fail(failure, result, "openat2");
	result = walk_start(&walk, result);
	if (result < 0)
		return fail(failure, result, "walk");
	do {
		result = remove_below(&walk, &refills, failure);
		if (result < 0)
			return result;
		result = errint(unlinkat(dir_fd, name, AT_REMOVEDIR));
	} while (is_not_empty(result) && refills++ < REFILLS_MAX);
	return result < 0 && result != -ENOENT ? fail(failure, result, "unlinkat") : 0;
}

errint_t nsnap_remove_tree(int dir_fd, const char *name, struct nsnap_failure *failure)
{
	errint_t result = errint(unlinkat(dir_fd, name, 0));

	if (result == -EISDIR)
		result = errint(unlinkat(dir_fd, name, AT_REMOVEDIR));
	if (is_not_empty(result))
		return remove_directory(dir_fd, name, failure);
	return result < 0 && result != -ENOENT ? fail(failure, result, "unlinkat") : 0;
}
