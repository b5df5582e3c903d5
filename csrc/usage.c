/* Disk usage as containerd counts it (continuity, fs/du_unix.go). */

#include <sys/stat.h>

#include "util.h"
#include "walk.h"

enum {
	BLOCK_BYTES = 512, /* what st_blocks counts in, whatever the file system's own block */
};

struct inode {
	uint64_t device;
	uint64_t number;
};

/* Open addressing; a free slot is all ones, which no inode is (device numbers are smaller). */
struct inode_set {
	struct inode *slots;
	size_t size; /* a power of two, or 0 */
	size_t used;
};

struct count {
	struct inode_set seen;
	struct nsnap_usage *usage;
	struct nsnap_failure *failure;
};

static void free_count(struct count *count)
{
	free(count->seen.slots);
}

static bool is_free(const struct inode *slot)
{
	return slot->device == UINT64_MAX;
}

/* The slot that holds this inode, or the free one where it belongs. */
static struct inode *find_slot(const struct inode_set *set, const struct inode *inode)
{
	/* Multiplicative hashing: the high bits of the product are the mixed ones. */
	uint64_t hash = (inode->number ^ (inode->device << 32)) * UINT64_C(0x9e3779b97f4a7c15);
	size_t at = (size_t)(hash >> 32) & (set->size - 1);

	while (!is_free(&set->slots[at]) &&
	       (set->slots[at].number != inode->number || set->slots[at].device != inode->device))
		at = (at + 1) & (set->size - 1);
	return &set->slots[at];
}

static errint_t enlarge(struct inode_set *set)
{
	struct inode_set larger = {.size = set->size ? 2 * set->size : 256, .used = set->used};

	larger.slots = reallocarray(NULL, larger.size, sizeof(*larger.slots));
	if (!larger.slots)
		return -ENOMEM;
	memset(larger.slots, 0xff, larger.size * sizeof(*larger.slots));
	for (size_t i = 0; i < set->size; i++)
		if (!is_free(&set->slots[i]))
			*find_slot(&larger, &set->slots[i]) = set->slots[i];
	free(set->slots);
	*set = larger;
	return 0;
}

/* Counts an inode, unless it has been. */
static errint_t count_inode(struct count *count, const struct stat *st)
{
	struct inode inode = {.device = st->st_dev, .number = st->st_ino};
	struct inode *slot;

	if (4 * count->seen.used >= 3 * count->seen.size) {
		errint_t result = enlarge(&count->seen);

		if (result < 0)
			return fail(count->failure, result, "malloc");
	}
	slot = find_slot(&count->seen, &inode);
	if (!is_free(slot))
		return 0;
	*slot = inode;
	count->seen.used++;
	count->usage->inodes++;
	count->usage->size_bytes += (uint64_t)st->st_blocks * BLOCK_BYTES;
	return 0;
}

static errint_t count_entry(struct walk *walk, const char *name, unsigned char type, void *context)
{
	struct count *count = context;
	struct stat st;
	errint_t result;

	(void)type; /* the size is wanted in any case, and the type comes with it */
	if (fstatat(walk->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0) {
		/* A container may be at work in the tree: what goes meanwhile does not count. */
		return errno == ENOENT ? 0 : fail_subject(count->failure, -errno, "fstatat", name);
	}
	result = count_inode(count, &st);
	if (result == 0 && S_ISDIR(st.st_mode)) {
		result = walk_queue(walk, name);
		if (result < 0)
			fail(count->failure, result, "malloc");
	}
	return result;
}

static errint_t read_here(struct walk *walk, struct count *count)
{
	errint_t result;

	count->failure->step = NULL;
	result = walk_read(walk, count_entry, count);
	return result < 0 && !count->failure->step ? fail(count->failure, result, "getdents64") : result;
}

/* Goes down into the directory queued last, unless it has been replaced, or has gone, since its name was read. */
static errint_t enter(struct walk *walk, struct count *count)
{
	errint_t result = walk_enter(walk, 0);

	if (result == -ENOENT || result == -ENOTDIR || result == -ELOOP) {
		walk_drop(walk);
		return 0;
	}
	return result < 0 ? fail_subject(count->failure, result, "openat2", walk_queued(walk))
			  : read_here(walk, count);
}

/* Goes up again; to the very top if the directory has been moved meanwhile, and what was queued on the way is lost. */
static errint_t leave(struct walk *walk, int root_fd, struct count *count)
{
	errint_t result = walk_leave(walk);

	if (result == -ESTALE) {
		result = errint(openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
		if (result >= 0)
			walk_return(walk, result);
	}
	if (result < 0)
		return fail(count->failure, result, "openat parent");
	walk_drop(walk);
	return 0;
}

static errint_t count_below(struct walk *walk, int root_fd, struct count *count)
{
	errint_t result = read_here(walk, count);

	while (result == 0) {
		if (walk_queued(walk))
			result = enter(walk, count);
		else if (walk->depth > 1)
			result = leave(walk, root_fd, count);
		else
			return 0;
	}
	return result;
}

errint_t nsnap_disk_usage(const char *path, struct nsnap_usage *usage, struct nsnap_failure *failure)
{
	cleanup_walk struct walk walk = {.dir_fd = -1};
	__attribute__((cleanup(free_count))) struct count count = {.usage = usage, .failure = failure};
	cleanup_close int root_fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	errint_t result;

	*usage = (struct nsnap_usage){0};
	if (root_fd < 0)
		return fail(failure, -errno, "open");
	if (fstat(root_fd, &st) < 0)
		return fail(failure, -errno, "fstat");
	result = count_inode(&count, &st);
	if (result < 0 || !S_ISDIR(st.st_mode))
		return result;
	result = errint(openat(root_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	if (result < 0)
		return fail(failure, result, "open");
	result = walk_start(&walk, result);
	if (result < 0)
		return fail(failure, result, "walk");
	return count_below(&walk, root_fd, &count);
}
