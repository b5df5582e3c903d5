/* What both kinds of stub layer (stub.c, stub_tree.c) make of a store's entry. */

#ifndef NSNAP_STUB_H
#define NSNAP_STUB_H

#include <stdbool.h>
#include <sys/stat.h>

#include "util.h"

/* One entry on its way: what to make where, and how to say what went wrong with it. */
struct stub {
	int dir_fd;
	int store_fd;
	const char *name;
	bool keep_ids;  /* give it the entry's owner and set-id bits; else it is its maker's and has none */
	struct stat st; /* of the store's entry */
	struct timespec times[2]; /* for utimensat(2): access time as it comes, modification time as in st */
	struct nsnap_stub_counts *counts;
	struct nsnap_failure *failure;
};

static inline errint_t stub_fail(const struct stub *stub, const char *step)
{
	return fail(stub->failure, -errno, step);
}

/* Whether this is one component: nothing may be made, or looked at, outside the two directories. */
bool stub_is_entry_name(const char *name);

/* Calls make for each of the names, and says in the failure which one it was. names: see core.cdef.h. */
typedef errint_t stub_make(struct stub *stub, void *context);
errint_t stub_for_each(struct stub *stub, const char *names, size_t names_size, stub_make *make,
		       void *context);

/* Remembers what the entry is. */
void stub_take(struct stub *stub, const struct stat *st);
errint_t stub_look(struct stub *stub);

/* A new directory, open, to be given the entry's metadata when all is in it. */
errint_t stub_open_directory(const struct stub *stub);
errint_t stub_copy_metadata(const struct stub *stub, int fd);

errint_t stub_make_symlink(const struct stub *stub);

/* A file with the entry's contents: a reflink, else a copy. */
errint_t stub_make_copy(const struct stub *stub);

#endif
