/* Child processes that no other part of the process notices. */

#include <signal.h>
#include <sys/wait.h>

#include "child.h"
#include "syscalls.h"
#include "util.h"

/*
 * No libc fork(): its handlers take locks. Every signal is blocked in the child, so that no handler runs. Without an
 * exit signal it is invisible to wait() calls elsewhere in the process and sends no SIGCHLD. Sharing the descriptor
 * table keeps it from holding open what the parent closes meanwhile.
 */
errint_t start_child(uint64_t clone_flags)
{
	struct syscall_clone_args args = {.flags = clone_flags | CLONE_FILES};
	sigset_t all;
	sigset_t before;
	errint_t pid;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = syscall_clone3(&args);
	if (pid == 0)
		return 0;
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	return pid;
}

static void reap(int pid)
{
	while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
		;
}

void stop_child(const int *pid)
{
	if (*pid <= 0)
		return;
	(void)kill(*pid, SIGKILL);
	reap(*pid);
}

void await_child(int *pid)
{
	reap(*pid);
	*pid = -1;
}
