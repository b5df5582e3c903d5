/* User namespaces that exist for their id maps alone, to idmap a mount with. */

#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>

#include "child.h"
#include "syscalls.h"
#include "util.h"

/* All that the child ever does. */
static _Noreturn void hold_namespace(pid_t parent)
{
	/* Should the parent die before it kills us: first the signal, then the look whether it is too late for it. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && getppid() == parent)
		for (;;)
			(void)pause();
	_exit(0);
}

/* Opens /proc/PID/NAME. */
static errint_t open_proc(pid_t pid, const char *name, int flags)
{
	char path[sizeof("/proc//setgroups") + 3 * sizeof(pid)];
	int length = snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);

	if (length < 0 || (size_t)length >= sizeof(path))
		return -ENAMETOOLONG;
	return errint(open(path, flags | O_CLOEXEC));
}

/* The kernel takes a map in one write or not at all. */
static errint_t write_map(pid_t pid, const char *name, const char *map)
{
	cleanup_close int map_fd = open_proc(pid, name, O_WRONLY);
	ssize_t size;

	if (map_fd < 0)
		return map_fd;
	size = write(map_fd, map, strlen(map));
	if (size < 0)
		return -errno;
	return (size_t)size == strlen(map) ? 0 : -EIO;
}

errint_t nsnap_userns_create(const char *uid_map, const char *gid_map, struct nsnap_failure *failure)
{
	pid_t parent = getpid();
	cleanup_child int pid = start_child(CLONE_NEWUSER);
	errint_t result;

	if (pid == 0)
		hold_namespace(parent);
	if (pid < 0)
		return fail(failure, pid, "clone3 user namespace");
	result = write_map(pid, "uid_map", uid_map);
	if (result < 0)
		return fail(failure, result, "write uid_map");
	result = write_map(pid, "gid_map", gid_map);
	if (result < 0)
		return fail(failure, result, "write gid_map");
	result = open_proc(pid, "ns/user", O_RDONLY);
	return result < 0 ? fail(failure, result, "open user namespace") : result;
}
