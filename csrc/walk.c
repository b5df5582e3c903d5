/* See walk.h. */

#include <sys/stat.h>

#include "util.h"
#include "walk.h"

/* Makes room for `wanted` elements, doubling. */
static errint_t grow(void **array, size_t *size, size_t wanted, size_t element)
{
	size_t larger = *size ? *size : 64;
	void *moved;

	if (wanted <= *size)
		return 0;
	while (larger < wanted)
		larger *= 2;
	moved = reallocarray(*array, larger, element);
	if (!moved)
		return -ENOMEM;
	*array = moved;
	*size = larger;
	return 0;
}

static errint_t identify(int dir_fd, struct walk_level *level)
{
	struct stat st;

	if (fstat(dir_fd, &st) < 0)
		return -errno;
	level->device = st.st_dev;
	level->inode = st.st_ino;
	return 0;
}

/* Goes down into an open directory; it is closed again if that fails. */
static errint_t descend(struct walk *walk, int dir_fd)
{
	struct walk_level level = {.names_start = walk->names_used};
	errint_t result = identify(dir_fd, &level);

	if (result == 0)
		result = grow((void **)&walk->levels, &walk->levels_size, walk->depth + 1,
			      sizeof(*walk->levels));
	if (result < 0) {
		(void)close(dir_fd);
		return result;
	}
	walk->levels[walk->depth++] = level;
	nsnap_cleanup_close(&walk->dir_fd);
	walk->dir_fd = dir_fd;
	return 0;
}

errint_t walk_start(struct walk *walk, int dir_fd)
{
	/* Not the buffer: it is large, and needs no initial value. */
	walk->dir_fd = -1;
	walk->levels = NULL;
	walk->depth = walk->levels_size = 0;
	walk->names = NULL;
	walk->names_used = walk->names_size = 0;
	return descend(walk, dir_fd);
}

void walk_end(struct walk *walk)
{
	nsnap_cleanup_close(&walk->dir_fd);
	free(walk->levels);
	free(walk->names);
}

errint_t walk_read(struct walk *walk, walk_visit *visit, void *context)
{
	errint_t size;

	if (lseek(walk->dir_fd, 0, SEEK_SET) < 0) /* a second reading starts anew */
		return -errno;
	while ((size = syscall_getdents(walk->dir_fd, walk->entries, sizeof(walk->entries))) > 0)
		for (errint_t at = 0; at < size;) {
			const struct syscall_dirent *entry = (const void *)(walk->entries + at);
			errint_t result;

			at += entry->d_reclen;
			if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
				continue;
			result = visit(walk, entry->d_name, entry->d_type, context);
			if (result < 0)
				return result;
		}
	return size == -ENOENT ? 0 : size; /* ENOENT: the directory itself has been removed */
}

errint_t walk_queue(struct walk *walk, const char *name)
{
	size_t size = strlen(name) + 1;
	errint_t result = grow((void **)&walk->names, &walk->names_size, walk->names_used + size, 1);

	if (result < 0)
		return result;
	memcpy(walk->names + walk->names_used, name, size);
	walk->names_used += size;
	return 0;
}

const char *walk_queued(const struct walk *walk)
{
	size_t at = walk->names_used;

	if (at == walk->levels[walk->depth - 1].names_start)
		return NULL;
	/* Back over the name's own NUL, then to the one of the name before it, or to the start. */
	for (at--; at > 0 && walk->names[at - 1] != '\0'; at--)
		;
	return walk->names + at;
}

void walk_drop(struct walk *walk)
{
	walk->names_used = (size_t)(walk_queued(walk) - walk->names);
}

errint_t walk_enter(struct walk *walk, uint64_t resolve)
{
	const struct syscall_open_how how = {
		.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_NO_SYMLINKS | resolve,
	};
	errint_t dir_fd = syscall_openat2(walk->dir_fd, walk_queued(walk), &how);

	return dir_fd < 0 ? dir_fd : descend(walk, dir_fd);
}

errint_t walk_leave(struct walk *walk)
{
	const struct walk_level *parent = &walk->levels[walk->depth - 2];
	cleanup_close int parent_fd = openat(walk->dir_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct walk_level found;
	errint_t result;

	if (parent_fd < 0)
		return -errno;
	result = identify(parent_fd, &found);
	if (result < 0)
		return result;
	if (found.device != parent->device || found.inode != parent->inode)
		return -ESTALE;
	walk->names_used = walk->levels[--walk->depth].names_start;
	nsnap_cleanup_close(&walk->dir_fd);
	walk->dir_fd = steal_fd(&parent_fd);
	return 0;
}

void walk_return(struct walk *walk, int dir_fd)
{
	if (walk->depth > 1)
		walk->names_used = walk->levels[1].names_start;
	walk->depth = 1;
	nsnap_cleanup_close(&walk->dir_fd);
	walk->dir_fd = dir_fd;
}
