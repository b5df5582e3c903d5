/*
 * Preloaded into a process of its own, lets reallocarray(3) fail for large blocks. The C core allocates what grows
 * with its input by that function, and nobody else in the process does.
 */

#include <errno.h>
#include <stdlib.h>

enum {
	LARGE_BYTES = 64 * 1024,
};

void *reallocarray(void *block, size_t count, size_t size);

void *reallocarray(void *block, size_t count, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(count, size, &bytes) || bytes >= LARGE_BYTES) {
		errno = ENOMEM;
		return NULL;
	}
	return realloc(block, bytes);
}
