/* Stub layers: for each of many store entries something small that stands for it. */

#include <limits.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/xattr.h>

#include "stub.h"
#include "syscalls.h"

/* Owner, then mode (a change of owner may clear bits of it), then time (both before may touch it). */
errint_t stub_copy_metadata(const struct stub *stub, int fd)
{
	if (stub->keep_ids && fchown(fd, stub->st.st_uid, stub->st.st_gid) < 0)
		return stub_fail(stub, "fchown");
	if (fchmod(fd, stub->st.st_mode & (stub->keep_ids ? 07777 : 0777)) < 0)
		return stub_fail(stub, "fchmod");
	if (futimens(fd, stub->times) < 0)
		return stub_fail(stub, "futimens");
	return 0;
}

errint_t stub_open_directory(const struct stub *stub)
{
	int fd;

	if (mkdirat(stub->dir_fd, stub->name, 0700) < 0)
		return stub_fail(stub, "mkdirat");
	fd = openat(stub->dir_fd, stub->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? stub_fail(stub, "openat") : fd;
}

/* Where the directories of a stub layer lead. */
struct redirect {
	const char *xattr; /* NULL: nowhere */
	const char *prefix;
};

static errint_t make_directory(const struct stub *stub, const struct redirect *to)
{
	cleanup_close int fd = stub_open_directory(stub);

	if (fd < 0)
		return fd;
	if (to->xattr) {
		char redirect[PATH_MAX];
		int length = snprintf(redirect, sizeof(redirect), "%s%s", to->prefix, stub->name);

		if (length < 0 || (size_t)length >= sizeof(redirect))
			return fail(stub->failure, -ENAMETOOLONG, "fsetxattr redirect");
		/* Before the mode: a user's own xattrs want a writable directory. */
		if (fsetxattr(fd, to->xattr, redirect, (size_t)length, XATTR_CREATE) < 0)
			return stub_fail(stub, "fsetxattr redirect");
	}
	return stub_copy_metadata(stub, fd);
}

errint_t stub_make_symlink(const struct stub *stub)
{
	char text[PATH_MAX + 1];
	ssize_t length = readlinkat(stub->store_fd, stub->name, text, sizeof(text));

	if (length < 0)
		return stub_fail(stub, "readlinkat");
	if ((size_t)length >= sizeof(text))
		return fail(stub->failure, -ENAMETOOLONG, "readlinkat");
	text[length] = '\0';
	if (symlinkat(text, stub->dir_fd, stub->name) < 0)
		return stub_fail(stub, "symlinkat");
	if (stub->keep_ids &&
	    fchownat(stub->dir_fd, stub->name, stub->st.st_uid, stub->st.st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		return stub_fail(stub, "fchownat");
	if (utimensat(stub->dir_fd, stub->name, stub->times, AT_SYMLINK_NOFOLLOW) < 0)
		return stub_fail(stub, "utimensat");
	return 0;
}

/* No hard link is to be had, but a copy does as well: another mount or file system; a file system without links, or
 * the owner check of fs.protected_hardlinks; no more links to that inode (ext4: 65,000). */
static bool cannot_link(int error)
{
	return error == EXDEV || error == EPERM || error == EMLINK;
}

/* No reflink is to be had: the file system has none; not one file system; not between these two files. */
static bool cannot_clone(int error)
{
	return error == EOPNOTSUPP || error == ENOTTY || error == EXDEV || error == EINVAL;
}

static errint_t copy_bytes(const struct stub *stub, int to_fd, int from_fd)
{
	off_t left = stub->st.st_size;

	while (left > 0) {
		/* 2 GiB less a page is the most that one call moves. */
		ssize_t moved = sendfile(to_fd, from_fd, NULL, left < INT_MAX ? (size_t)left : INT_MAX);

		if (moved < 0)
			return stub_fail(stub, "sendfile");
		if (moved == 0)
			return fail(stub->failure, -EIO, "sendfile"); /* shorter than it said */
		left -= moved;
	}
	return 0;
}

errint_t stub_make_copy(const struct stub *stub)
{
	cleanup_close int from_fd = openat(stub->store_fd, stub->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	cleanup_close int to_fd = -1;

	if (from_fd < 0)
		return stub_fail(stub, "openat store entry");
	to_fd = openat(stub->dir_fd, stub->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (to_fd < 0)
		return stub_fail(stub, "openat");
	if (ioctl(to_fd, FICLONE, from_fd) == 0) {
		stub->counts->cloned++;
	} else if (cannot_clone(errno)) {
		errint_t result = copy_bytes(stub, to_fd, from_fd);

		if (result < 0)
			return result;
		stub->counts->copied++;
	} else {
		return stub_fail(stub, "ioctl FICLONE");
	}
	return stub_copy_metadata(stub, to_fd);
}

static errint_t make_file(const struct stub *stub)
{
	/* The inode is shared, so its owner, mode and time are the store's already. */
	if (linkat(stub->store_fd, stub->name, stub->dir_fd, stub->name, 0) == 0) {
		stub->counts->linked++;
		return 0;
	}
	return cannot_link(errno) ? stub_make_copy(stub) : stub_fail(stub, "linkat");
}

void stub_take(struct stub *stub, const struct stat *st)
{
	stub->st = *st;
	stub->times[0].tv_nsec = UTIME_OMIT;
	stub->times[1] = st->st_mtim;
}

errint_t stub_look(struct stub *stub)
{
	struct stat st;

	if (fstatat(stub->store_fd, stub->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return stub_fail(stub, "fstatat store entry");
	stub_take(stub, &st);
	return 0;
}

static errint_t make_stub(struct stub *stub, void *context)
{
	errint_t result = stub_look(stub);

	if (result < 0)
		return result;
	switch (stub->st.st_mode & S_IFMT) {
	case S_IFDIR:
		result = make_directory(stub, context);
		stub->counts->directories += result == 0;
		return result;
	case S_IFLNK:
		result = stub_make_symlink(stub);
		stub->counts->symlinks += result == 0;
		return result;
	case S_IFREG:
		return make_file(stub);
	default: /* devices, pipes and sockets: the store has none, whatever this is */
		return fail(stub->failure, -EINVAL, "stub of a special file");
	}
}

bool stub_is_entry_name(const char *name)
{
	size_t length = strlen(name);

	return length > 0 && length <= NAME_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 &&
	       strcmp(name, "..") != 0;
}

errint_t stub_for_each(struct stub *stub, const char *names, size_t names_size, stub_make *make,
		       void *context)
{
	struct nsnap_failure *failure = stub->failure;
	size_t index = 0;

	*stub->counts = (struct nsnap_stub_counts){0};
	if (names_size > 0 && names[names_size - 1] != '\0')
		return fail(failure, -EINVAL, "stub names");
	for (const char *name = names; name < names + names_size; name += strlen(name) + 1, index++) {
		struct stub one = *stub;
		errint_t result;

		one.name = name;
		result = stub_is_entry_name(name) ? make(&one, context) : fail(failure, -EINVAL, "stub name");
		if (result < 0) {
			failure->index = (int64_t)index;
			nsnap_copy_text(failure->subject, sizeof(failure->subject), name);
			return result;
		}
	}
	return 0;
}

errint_t nsnap_stub_fill(int dir_fd, int store_fd, const char *names, size_t names_size, bool keep_ids,
			 const char *redirect_xattr, const char *redirect_prefix,
			 struct nsnap_stub_counts *counts, struct nsnap_failure *failure)
{
	struct stub stub = {
		.dir_fd = dir_fd,
		.store_fd = store_fd,
		.keep_ids = keep_ids,
		.counts = counts,
		.failure = failure,
	};
	struct redirect redirect = {.xattr = redirect_xattr, .prefix = redirect_prefix};

	return stub_for_each(&stub, names, names_size, make_stub, &redirect);
}
