/*
 * Mounts whose attributes cannot be taken back.
 *
 * Read-only and nosuid are attributes of a mount, and whoever has CAP_SYS_ADMIN over the mount namespace that it is
 * attached in may clear them: for a mount that is handed into a user namespace, its user. What the kernel does against
 * this when a mount namespace is copied for another user namespace (lock_mnt_tree() in fs/namespace.c: each attribute
 * that is set is locked, and stays so in every clone, see mount_namespaces(7)) it does not do when a detached mount is
 * moved into one. So such a copy is made here, and the clone is taken out of it.
 */

#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>

#include "child.h"
#include "syscalls.h"
#include "util.h"

/* What the child has to say; it lies in memory that both share, since an exit status holds no more than a byte. */
struct report {
	errint_t result; /* the clone's descriptor */
	const char *step;
};

static errint_t step(struct report *report, const char *name, errint_t result)
{
	report->step = name;
	return result;
}

/*
 * In a mount namespace of our own. The tree is attached over /proc, which is there wherever we run; over the root it
 * would make us look chrooted, and then there is no new user namespace (EPERM). It is found again without a path, which
 * would ask for rights that are gone after the unshare: the working directory moves along into the copy of a namespace.
 */
static errint_t clone_locked(int tree_fd, struct report *report)
{
	/* Else the tree would turn up in the namespaces that this one is a copy of. */
	errint_t result =
		step(report, "mount private", errint(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)));

	if (result == 0)
		result = step(report, "move_mount",
			      syscall_move_mount(tree_fd, "", AT_FDCWD, "/proc", MOVE_MOUNT_F_EMPTY_PATH));
	if (result == 0)
		result = step(report, "fchdir", errint(fchdir(tree_fd)));
	if (result == 0)
		result = step(report, "unshare user and mount namespace",
			      errint(unshare(CLONE_NEWUSER | CLONE_NEWNS)));
	if (result == 0)
		result = step(
			report, "open_tree locked",
			syscall_open_tree(AT_FDCWD, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH));
	return result;
}

errint_t nsnap_lock_tree(int tree_fd, struct nsnap_failure *failure)
{
	struct report *report =
		mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	cleanup_child int pid = -1;
	errint_t result;

	if (report == MAP_FAILED)
		return fail(failure, -errno, "mmap");
	/* What is to be read if somebody kills the child before it has said anything. */
	*report = (struct report){.result = -ECHILD, .step = "wait for the child"};
	pid = start_child(CLONE_NEWNS);
	if (pid == 0) {
		/* Shared, the descriptor is in our table as soon as it is in the child's. */
		report->result = clone_locked(tree_fd, report);
		_exit(0);
	}
	if (pid < 0) {
		result = fail(failure, pid, "clone3 mount namespace");
	} else {
		await_child(&pid);
		result = report->result < 0 ? fail(failure, report->result, report->step) : report->result;
	}
	(void)munmap(report, sizeof(*report));
	return result;
}
