/* Stub layers for data-only overlays: whole trees of files without data, each of which says where its data is. */

#include <limits.h>
#include <sys/xattr.h>

#include "stub.h"
#include "syscalls.h"
#include "walk.h"

/* The path of a directory from the store's root, "/name/bin". It is counted to its end, and kept as far as it fits. */
struct place {
	char text[PATH_MAX];
	size_t length;
};

/* A tree that is being made. */
struct tree {
	const struct nsnap_stub_trees *trees;
	struct stub *top; /* of the entry of the store that it stands for */
	struct place place;
	struct walk *walk; /* in the store */
	int dir_fd;        /* the stand-in of the directory that the walk is in */
	int donor_top_fd;  /* a layer made before that has this entry, a borrowed descriptor; -1: none has */
	int donor_fd;      /* its directory of the same place; -1 */
};

static void append(struct place *place, const char *text, size_t size)
{
	if (place->length < sizeof(place->text))
		nsnap_copy_text(place->text + place->length, sizeof(place->text) - place->length, text);
	place->length += size;
}

static void go_down(struct place *place, const char *name)
{
	append(place, "/", 1);
	append(place, name, strlen(name));
}

static void go_up(struct place *place, const char *name)
{
	place->length -= strlen(name) + 1;
	if (place->length < sizeof(place->text))
		place->text[place->length] = '\0';
}

static bool fits(const struct place *place)
{
	return place->length < sizeof(place->text);
}

/* The first layer made before that has an entry of that name; its descriptor stays the caller's. -1: none has. */
static int find_donor(const struct nsnap_stub_trees *trees, const char *name)
{
	struct stat st;

	for (size_t i = 0; i < trees->donor_count; i++)
		if (fstatat(trees->donor_fds[i], name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			return trees->donor_fds[i];
	return -1;
}

/* Opens a directory of a donor. If it is not there, or has become something else, files are simply made anew. */
static int open_donor(int top_fd, const struct place *place)
{
	const struct syscall_open_how how = {
		.flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS,
	};

	return top_fd >= 0 && fits(place) ? syscall_openat2(top_fd, place->text + 1, &how) : -1;
}

/*
 * Links the stub that a donor has for a file, if it is what would be made now. It is not if the store path was built
 * anew between, or if the donor is being removed. That a file has no more links to give (ext4: 65,000) is the other
 * reason to make another.
 */
static bool link_stub(const struct stub *stub, int donor_fd)
{
	struct stat st;

	if (donor_fd < 0 || fstatat(donor_fd, stub->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return false;
	return S_ISREG(st.st_mode) && st.st_size == stub->st.st_size &&
	       ((st.st_mode ^ stub->st.st_mode) & (stub->keep_ids ? 07777 : 0777)) == 0 &&
	       (!stub->keep_ids || (st.st_uid == stub->st.st_uid && st.st_gid == stub->st.st_gid)) &&
	       st.st_mtim.tv_sec == stub->st.st_mtim.tv_sec &&
	       st.st_mtim.tv_nsec == stub->st.st_mtim.tv_nsec &&
	       linkat(donor_fd, stub->name, stub->dir_fd, stub->name, 0) == 0;
}

/* The file system keeps no attribute of that size. (A full disk says ENOSPC too, and will not take a copy either.) */
static bool is_too_large(int error)
{
	return error == E2BIG || error == ENOSPC || error == ERANGE;
}

/* 1: it is done; 0: it cannot be done, the redirect does not fit. */
static errint_t redirect_data(const struct stub *stub, int fd, const struct nsnap_stub_trees *trees,
			      const struct place *place)
{
	if (!fits(place))
		return 0;
	if (fsetxattr(fd, trees->metacopy_xattr, "", 0, XATTR_CREATE) < 0)
		return stub_fail(stub, "fsetxattr metacopy");
	if (fsetxattr(fd, trees->redirect_xattr, place->text, place->length, XATTR_CREATE) < 0)
		return is_too_large(errno) ? 0 : stub_fail(stub, "fsetxattr redirect");
	/* The length that is shown is this file's own. */
	return ftruncate(fd, stub->st.st_size) < 0 ? stub_fail(stub, "ftruncate") : 1;
}

/* Makes the stub of a file; place is that of the file itself. */
static errint_t make_stub(const struct stub *stub, const struct nsnap_stub_trees *trees,
			  const struct place *place)
{
	cleanup_close int fd =
		openat(stub->dir_fd, stub->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	errint_t result = 1;

	if (fd < 0)
		return stub_fail(stub, "openat");
	if (stub->st.st_size > 0)
		result = redirect_data(stub, fd, trees, place);
	if (result < 0)
		return result;
	if (result == 0) {
		if (unlinkat(stub->dir_fd, stub->name, 0) < 0)
			return stub_fail(stub, "unlinkat");
		return stub_make_copy(stub);
	}
	stub->counts->data_only++;
	return stub_copy_metadata(stub, fd);
}

static errint_t make_file(const struct stub *stub, const struct nsnap_stub_trees *trees, int donor_fd,
			  struct place *place)
{
	errint_t result;

	if (link_stub(stub, donor_fd)) {
		stub->counts->shared++;
		return 0;
	}
	go_down(place, stub->name);
	result = make_stub(stub, trees, place);
	go_up(place, stub->name);
	return result;
}

static errint_t make_entry(struct walk *walk, const char *name, unsigned char type, void *context)
{
	struct tree *tree = context;
	struct stub stub = *tree->top;
	errint_t result;

	(void)type; /* it may be unknown, and the rest is wanted as well */
	stub.dir_fd = tree->dir_fd;
	stub.store_fd = walk->dir_fd;
	stub.name = name;
	result = stub_look(&stub);
	if (result < 0)
		return result;
	switch (stub.st.st_mode & S_IFMT) {
	case S_IFDIR:
		result = walk_queue(walk, name);
		return result < 0 ? fail(stub.failure, result, "malloc") : 0;
	case S_IFLNK:
		result = stub_make_symlink(&stub);
		stub.counts->symlinks += result == 0;
		return result;
	case S_IFREG:
		return make_file(&stub, tree->trees, tree->donor_fd, &tree->place);
	default:
		stub.counts->left_out++;
		return 0;
	}
}

/* Makes what is in the directory that the walk is in, but for the directories, which are queued. */
static errint_t read_here(struct tree *tree)
{
	struct nsnap_failure *failure = tree->top->failure;
	cleanup_close int donor_fd = open_donor(tree->donor_top_fd, &tree->place);
	errint_t result;

	tree->donor_fd = donor_fd;
	failure->step = NULL;
	result = walk_read(tree->walk, make_entry, tree);
	return result < 0 && !failure->step ? fail(failure, result, "getdents64") : result;
}

/* Goes down into the directory queued last, and makes its stand-in. */
static errint_t enter(struct tree *tree)
{
	struct stub stub = *tree->top;
	errint_t result;

	stub.dir_fd = tree->dir_fd;
	stub.name = walk_queued(tree->walk);
	result = walk_enter(tree->walk, RESOLVE_BENEATH | RESOLVE_NO_XDEV);
	if (result < 0)
		return fail(stub.failure, result, "openat2");
	result = stub_open_directory(&stub);
	if (result < 0)
		return result;
	nsnap_cleanup_close(&tree->dir_fd);
	tree->dir_fd = result;
	stub.counts->directories++;
	go_down(&tree->place, stub.name);
	return read_here(tree);
}

/* Gives a directory the metadata of the one it stands for, when nothing will be made in it any more. */
static errint_t finish(const struct tree *tree)
{
	struct stub stub = *tree->top;
	struct stat st;

	if (fstat(tree->walk->dir_fd, &st) < 0)
		return stub_fail(&stub, "fstat");
	stub_take(&stub, &st);
	return stub_copy_metadata(&stub, tree->dir_fd);
}

static errint_t leave(struct tree *tree)
{
	/* Opened first: the directory is about to get a mode that may forbid it. Nobody else moves things in there. */
	cleanup_close int parent_fd = openat(tree->dir_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	errint_t result;

	if (parent_fd < 0)
		return stub_fail(tree->top, "openat parent");
	result = finish(tree);
	if (result < 0)
		return result;
	nsnap_cleanup_close(&tree->dir_fd);
	tree->dir_fd = steal_fd(&parent_fd);
	result = walk_leave(tree->walk);
	if (result < 0)
		return fail(tree->top->failure, result, "openat parent");
	go_up(&tree->place, walk_queued(tree->walk));
	walk_drop(tree->walk);
	return 0;
}

static errint_t make_below(struct tree *tree)
{
	errint_t result = read_here(tree);

	while (result == 0) {
		if (walk_queued(tree->walk))
			result = enter(tree);
		else if (tree->walk->depth > 1)
			result = leave(tree);
		else
			return finish(tree);
	}
	/* Where it was; the name that is asked for is at the beginning of it, and is in the failure anyway. */
	return with_message(tree->top->failure, result, tree->place.text);
}

static errint_t make_directory(struct tree *tree)
{
	const struct syscall_open_how how = {
		.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS,
	};
	cleanup_walk struct walk walk = {.dir_fd = -1};
	errint_t result = syscall_openat2(tree->top->store_fd, tree->top->name, &how);

	if (result < 0)
		return fail(tree->top->failure, result, "openat2");
	result = walk_start(&walk, result);
	if (result < 0)
		return fail(tree->top->failure, result, "walk");
	tree->walk = &walk;
	result = stub_open_directory(tree->top);
	if (result < 0)
		return result;
	tree->dir_fd = result;
	tree->top->counts->directories++;
	go_down(&tree->place, tree->top->name);
	result = make_below(tree);
	nsnap_cleanup_close(&tree->dir_fd);
	return result;
}

static errint_t make_top(struct stub *stub, void *context)
{
	struct tree tree = {.trees = context, .top = stub, .dir_fd = -1, .donor_fd = -1};
	errint_t result = stub_look(stub);

	tree.donor_top_fd = find_donor(tree.trees, stub->name);
	if (result < 0)
		return result;
	switch (stub->st.st_mode & S_IFMT) {
	case S_IFDIR:
		return make_directory(&tree);
	case S_IFLNK:
		result = stub_make_symlink(stub);
		stub->counts->symlinks += result == 0;
		return result;
	case S_IFREG:
		return make_file(stub, tree.trees, tree.donor_top_fd, &tree.place);
	default:
		return fail(stub->failure, -EINVAL, "stub of a special file");
	}
}

errint_t nsnap_stub_fill_trees(const struct nsnap_stub_trees *trees, struct nsnap_stub_counts *counts,
			       struct nsnap_failure *failure)
{
	struct nsnap_stub_trees copy = *trees;
	struct stub stub = {
		.dir_fd = trees->dir_fd,
		.store_fd = trees->store_fd,
		.keep_ids = trees->keep_ids,
		.counts = counts,
		.failure = failure,
	};

	return stub_for_each(&stub, trees->names, trees->names_size, make_top, &copy);
}
