/* Opening what lies below a directory, and nothing else. */

#include "syscalls.h"
#include "util.h"

errint_t nsnap_open_beneath(int dir_fd, const char *path, uint64_t flags, uint64_t mode,
			    struct nsnap_failure *failure)
{
	const struct syscall_open_how how = {
		.flags = flags | O_CLOEXEC,
		.mode = mode,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	errint_t fd = syscall_openat2(dir_fd, path, &how);

	return fd < 0 ? fail(failure, fd, "openat2") : fd;
}
