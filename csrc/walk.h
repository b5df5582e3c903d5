/*
 * Walking a tree of any depth and width with one open directory.
 *
 * Recursion, a descriptor per level, and paths put together all break on a tree that is made deep enough, and
 * containers make the trees that are walked here. So the walk is in one directory at a time: it queues the names of
 * the directories in it, enters the last one queued, and comes back by "..", checking that it arrived where it was
 * before. Memory is what is queued on the way down; there is no other limit.
 */

#ifndef NSNAP_WALK_H
#define NSNAP_WALK_H

#include <stdalign.h>

#include "syscalls.h"

struct walk_level {
	uint64_t device;
	uint64_t inode;
	size_t names_start; /* where the names queued in this directory start */
};

struct walk {
	int dir_fd; /* the directory the walk is in */
	struct walk_level *levels;
	size_t depth;
	size_t levels_size;
	char *names; /* NUL-terminated names, one behind the other */
	size_t names_used;
	size_t names_size;
	alignas(struct syscall_dirent) char entries[32 * 1024];
};

#define cleanup_walk __attribute__((cleanup(walk_end)))

/* Starts in an open directory, which becomes the walk's. Whatever it returns, walk_end() is due. */
errint_t walk_start(struct walk *walk, int dir_fd);
void walk_end(struct walk *walk);

/* Calls visit for each entry of the directory but "." and "..", until it fails. visit may queue and may unlink. */
typedef errint_t walk_visit(struct walk *walk, const char *name, unsigned char type, void *context);
errint_t walk_read(struct walk *walk, walk_visit *visit, void *context);

/* Queues a directory of the one the walk is in. */
errint_t walk_queue(struct walk *walk, const char *name);

/* The name queued last here, or NULL; it stays until dropped, also while the walk is in it. */
const char *walk_queued(const struct walk *walk);
void walk_drop(struct walk *walk);

/* Enters walk_queued(); no symlink is followed. resolve: RESOLVE_ flags of openat2(2). */
errint_t walk_enter(struct walk *walk, uint64_t resolve);

/* Leaves for the parent; ESTALE if somebody moved the directory meanwhile and its parent is another one now. */
errint_t walk_leave(struct walk *walk);

/* Leaves for the top at once, with dir_fd an open descriptor of it that becomes the walk's. */
void walk_return(struct walk *walk, int dir_fd);

#endif
