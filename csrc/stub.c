/* Stub layers: for each of many store entries something small that stands for it. */

#include <limits.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "syscalls.h"
#include "util.h"

/* One entry on its way: what to make where, and how to say what went wrong with it. */
struct stub {
	int dir_fd;
	int store_fd;
	const char *name;
	struct stat st;           /* of the store's entry */
	struct timespec times[2]; /* for utimensat(2): access time as it comes, modification time as in st */
	struct nsnap_failure *failure;
};

static errint_t fail_stub(const struct stub *stub, const char *step)
{
	return fail(stub->failure, -errno, step);
}

/* Owner, then mode (a change of owner may clear bits of it), then time (both before may touch it). */
static errint_t copy_metadata(const struct stub *stub, int fd)
{
	if (fchown(fd, stub->st.st_uid, stub->st.st_gid) < 0)
		return fail_stub(stub, "fchown");
	if (fchmod(fd, stub->st.st_mode & 07777) < 0)
		return fail_stub(stub, "fchmod");
	if (futimens(fd, stub->times) < 0)
		return fail_stub(stub, "futimens");
	return 0;
}

static errint_t make_directory(const struct stub *stub, const char *redirect_xattr,
			       const char *redirect_prefix)
{
	cleanup_close int fd = -1;

	if (mkdirat(stub->dir_fd, stub->name, 0700) < 0)
		return fail_stub(stub, "mkdirat");
	fd = openat(stub->dir_fd, stub->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return fail_stub(stub, "openat");
	if (redirect_xattr) {
		char redirect[PATH_MAX];
		int length = snprintf(redirect, sizeof(redirect), "%s%s", redirect_prefix, stub->name);

		if (length < 0 || (size_t)length >= sizeof(redirect))
			return fail(stub->failure, -ENAMETOOLONG, "fsetxattr redirect");
		/* Before the mode: a user's own xattrs want a writable directory. */
		if (fsetxattr(fd, redirect_xattr, redirect, (size_t)length, XATTR_CREATE) < 0)
			return fail_stub(stub, "fsetxattr redirect");
	}
	return copy_metadata(stub, fd);
}

static errint_t make_symlink(const struct stub *stub)
{
	char text[PATH_MAX + 1];
	ssize_t length = readlinkat(stub->store_fd, stub->name, text, sizeof(text));

	if (length < 0)
		return fail_stub(stub, "readlinkat");
	if ((size_t)length >= sizeof(text))
		return fail(stub->failure, -ENAMETOOLONG, "readlinkat");
	text[length] = '\0';
	if (symlinkat(text, stub->dir_fd, stub->name) < 0)
		return fail_stub(stub, "symlinkat");
	if (fchownat(stub->dir_fd, stub->name, stub->st.st_uid, stub->st.st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		return fail_stub(stub, "fchownat");
	if (utimensat(stub->dir_fd, stub->name, stub->times, AT_SYMLINK_NOFOLLOW) < 0)
		return fail_stub(stub, "utimensat");
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
			return fail_stub(stub, "sendfile");
		if (moved == 0)
			return fail(stub->failure, -EIO, "sendfile"); /* shorter than it said */
		left -= moved;
	}
	return 0;
}

static errint_t clone_or_copy(const struct stub *stub, struct nsnap_stub_counts *counts)
{
	cleanup_close int from_fd = openat(stub->store_fd, stub->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	cleanup_close int to_fd = -1;

	if (from_fd < 0)
		return fail_stub(stub, "openat store entry");
	to_fd = openat(stub->dir_fd, stub->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (to_fd < 0)
		return fail_stub(stub, "openat");
	if (ioctl(to_fd, FICLONE, from_fd) == 0) {
		counts->cloned++;
	} else if (cannot_clone(errno)) {
		errint_t result = copy_bytes(stub, to_fd, from_fd);

		if (result < 0)
			return result;
		counts->copied++;
	} else {
		return fail_stub(stub, "ioctl FICLONE");
	}
	return copy_metadata(stub, to_fd);
}

static errint_t make_file(const struct stub *stub, struct nsnap_stub_counts *counts)
{
	/* The inode is shared, so its owner, mode and time are the store's already. */
	if (linkat(stub->store_fd, stub->name, stub->dir_fd, stub->name, 0) == 0) {
		counts->linked++;
		return 0;
	}
	return cannot_link(errno) ? clone_or_copy(stub, counts) : fail_stub(stub, "linkat");
}

static errint_t make_stub(struct stub *stub, const char *redirect_xattr, const char *redirect_prefix,
			  struct nsnap_stub_counts *counts)
{
	errint_t result;

	if (fstatat(stub->store_fd, stub->name, &stub->st, AT_SYMLINK_NOFOLLOW) < 0)
		return fail_stub(stub, "fstatat store entry");
	stub->times[0].tv_nsec = UTIME_OMIT;
	stub->times[1] = stub->st.st_mtim;
	switch (stub->st.st_mode & S_IFMT) {
	case S_IFDIR:
		result = make_directory(stub, redirect_xattr, redirect_prefix);
		counts->directories += result == 0;
		return result;
	case S_IFLNK:
		result = make_symlink(stub);
		counts->symlinks += result == 0;
		return result;
	case S_IFREG:
		return make_file(stub, counts);
	default: /* devices, pipes and sockets: the store has none, whatever this is */
		return fail(stub->failure, -EINVAL, "stub of a special file");
	}
}

/* One component, no more: nothing may be made, or looked at, outside the two directories. */
static bool is_entry_name(const char *name)
{
	size_t length = strlen(name);

	return length > 0 && length <= NAME_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 &&
	       strcmp(name, "..") != 0;
}

errint_t nsnap_stub_fill(int dir_fd, int store_fd, const char *names, size_t names_size,
			 const char *redirect_xattr, const char *redirect_prefix,
			 struct nsnap_stub_counts *counts, struct nsnap_failure *failure)
{
	struct stub stub = {.dir_fd = dir_fd, .store_fd = store_fd, .failure = failure};
	size_t index = 0;

	*counts = (struct nsnap_stub_counts){0};
	if (names_size > 0 && names[names_size - 1] != '\0')
		return fail(failure, -EINVAL, "stub names");
	for (const char *name = names; name < names + names_size; name += strlen(name) + 1, index++) {
		errint_t result;

		stub.name = name;
		result = is_entry_name(name) ? make_stub(&stub, redirect_xattr, redirect_prefix, counts)
					     : fail(failure, -EINVAL, "stub name");
		if (result < 0) {
			failure->index = (int64_t)index;
			nsnap_copy_text(failure->subject, sizeof(failure->subject), name);
			return result;
		}
	}
	return 0;
}
