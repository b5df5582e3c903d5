/* Ownership by scope, failures, and the few small things that more than one file needs. */

#ifndef NSNAP_UTIL_H
#define NSNAP_UTIL_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nsnap.h"

/* Closes, or frees, when the variable leaves its scope; errno is left alone. Start at -1, or NULL. */
#define cleanup_close __attribute__((cleanup(nsnap_cleanup_close)))
#define cleanup_free __attribute__((cleanup(nsnap_cleanup_free)))

static inline void nsnap_cleanup_close(const int *fd)
{
	int saved_errno = errno;

	if (*fd >= 0)
		(void)close(*fd); /* Linux releases the descriptor whatever close() says */
	errno = saved_errno;
}

static inline void nsnap_cleanup_free(void *pointer)
{
	free(*(void **)pointer);
}

/* Hands a descriptor over: the scope no longer owns it. */
static inline int steal_fd(int *fd)
{
	int stolen = *fd;

	*fd = -1;
	return stolen;
}

static inline void nsnap_copy_text(char *to, size_t size, const char *from)
{
	size_t length = strnlen(from, size - 1);

	memcpy(to, from, length);
	to[length] = '\0';
}

/* These record the step that failed and return the error, for "return fail(...)". */
static inline errint_t fail(struct nsnap_failure *failure, errint_t error, const char *step)
{
	failure->step = step;
	failure->index = -1;
	failure->subject[0] = '\0';
	failure->message[0] = '\0';
	return error;
}

static inline errint_t fail_index(struct nsnap_failure *failure, errint_t error, const char *step,
				  size_t index)
{
	fail(failure, error, step);
	failure->index = (int64_t)index;
	return error;
}

static inline errint_t fail_subject(struct nsnap_failure *failure, errint_t error, const char *step,
				    const char *subject)
{
	fail(failure, error, step);
	nsnap_copy_text(failure->subject, sizeof(failure->subject), subject);
	return error;
}

static inline errint_t with_message(struct nsnap_failure *failure, errint_t error, const char *message)
{
	nsnap_copy_text(failure->message, sizeof(failure->message), message);
	return error;
}

/* A name for an open descriptor that any path-taking call follows. It is good in this process only. */
struct fd_path {
	char text[sizeof("/proc/self/fd/") + 3 * sizeof(int)];
};

static inline struct fd_path fd_path(int fd)
{
	struct fd_path path;

	/* Three characters a byte are enough for any int, so this cannot be cut short. */
	(void)snprintf(path.text, sizeof(path.text), "/proc/self/fd/%d", fd);
	return path;
}

#endif
