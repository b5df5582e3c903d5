/* Giving the files of a tree to the ids that a user namespace has outside: what idmapped mounts spare. */

#include <sys/stat.h>

#include "util.h"
#include "walk.h"

struct shift {
	const struct nsnap_id_range *uids;
	size_t uid_count;
	const struct nsnap_id_range *gids;
	size_t gid_count;
	struct stat shallow; /* the directory whose subdirectories are not entered */
	bool has_shallow;
	struct nsnap_failure *failure;
};

/* The id outside; an id that is not in the map stays, as it would be nobody's either way. */
static uint32_t outside(const struct nsnap_id_range *ranges, size_t count, uint32_t id)
{
	for (size_t i = 0; i < count; i++)
		if (id >= ranges[i].inside && id - ranges[i].inside < ranges[i].length)
			return ranges[i].outside + (id - ranges[i].inside);
	return id;
}

/* No symlink is followed, whatever the name stands for by now. */
static errint_t set_mode(const struct shift *shift, int dir_fd, const char *name, mode_t mode)
{
	cleanup_close int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return fail_subject(shift->failure, -errno, "openat", name);
	/* fchmod(2) takes no such descriptor, and fchmodat(2) no flag, but the name of the descriptor. */
	if (fchmodat(AT_FDCWD, fd_path(fd).text, mode, 0) < 0)
		return fail_subject(shift->failure, -errno, "fchmodat", name);
	return 0;
}

/*
 * Gives one file away. chown(2) takes set-user-id and set-group-id bits off regular files. They are put back: the same
 * files idmapped would have them, and the kernel heeds none of an id that the user namespace does not have.
 */
static errint_t shift_file(const struct shift *shift, int dir_fd, const char *name, const struct stat *st)
{
	uid_t uid = outside(shift->uids, shift->uid_count, st->st_uid);
	gid_t gid = outside(shift->gids, shift->gid_count, st->st_gid);

	if (uid == st->st_uid && gid == st->st_gid)
		return 0;
	if (fchownat(dir_fd, name, uid, gid, AT_SYMLINK_NOFOLLOW) < 0)
		return fail_subject(shift->failure, -errno, "fchownat", name);
	if (S_ISREG(st->st_mode) && (st->st_mode & (S_ISUID | S_ISGID)))
		return set_mode(shift, dir_fd, name, st->st_mode & 07777);
	return 0;
}

static bool is_shallow(const struct walk *walk, const struct shift *shift)
{
	const struct walk_level *here = &walk->levels[walk->depth - 1];

	return shift->has_shallow && here->device == shift->shallow.st_dev &&
	       here->inode == shift->shallow.st_ino;
}

static errint_t shift_entry(struct walk *walk, const char *name, unsigned char type, void *context)
{
	const struct shift *shift = context;
	struct stat st;
	errint_t result;

	(void)type; /* the owner is wanted in any case, and the type comes with it */
	if (fstatat(walk->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) < 0)
		return fail_subject(shift->failure, -errno, "fstatat", name);
	/* Before it is entered: an overlay copies it now, and may show it as another inode from then on. */
	result = shift_file(shift, walk->dir_fd, name, &st);
	if (result < 0 || !S_ISDIR(st.st_mode) || is_shallow(walk, shift))
		return result;
	result = walk_queue(walk, name);
	return result < 0 ? fail(shift->failure, result, "malloc") : 0;
}

static errint_t read_here(struct walk *walk, struct shift *shift)
{
	errint_t result;

	shift->failure->step = NULL;
	result = walk_read(walk, shift_entry, shift);
	return result < 0 && !shift->failure->step ? fail(shift->failure, result, "getdents64") : result;
}

static errint_t shift_below(struct walk *walk, struct shift *shift)
{
	errint_t result = read_here(walk, shift);

	while (result == 0) {
		if (walk_queued(walk)) {
			result = walk_enter(walk, RESOLVE_NO_XDEV);
			if (result < 0)
				return fail_subject(shift->failure, result, "openat2", walk_queued(walk));
			result = read_here(walk, shift);
		} else if (walk->depth > 1) {
			result = walk_leave(walk);
			if (result < 0)
				return fail(shift->failure, result, "openat parent");
			walk_drop(walk);
		} else {
			return 0;
		}
	}
	return result;
}

errint_t nsnap_shift_owners(int dir_fd, int shallow_fd, const struct nsnap_id_range *uids, size_t uid_count,
			    const struct nsnap_id_range *gids, size_t gid_count,
			    struct nsnap_failure *failure)
{
	cleanup_walk struct walk walk = {.dir_fd = -1};
	struct shift shift = {
		.uids = uids,
		.uid_count = uid_count,
		.gids = gids,
		.gid_count = gid_count,
		.has_shallow = shallow_fd >= 0,
		.failure = failure,
	};
	errint_t result;

	if (shift.has_shallow && fstat(shallow_fd, &shift.shallow) < 0)
		return fail(failure, -errno, "fstat");
	result = errint(openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	if (result < 0)
		return fail(failure, result, "open");
	result = walk_start(&walk, result);
	return result < 0 ? fail(failure, result, "walk") : shift_below(&walk, &shift);
}
