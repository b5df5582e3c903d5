/* Child processes for what a namespace has to be entered, or held, for. */

#ifndef NSNAP_CHILD_H
#define NSNAP_CHILD_H

#include "nsnap.h"

/* Ends and reaps a child when the variable that holds its pid leaves its scope. */
#define cleanup_child __attribute__((cleanup(stop_child)))

/*
 * Starts a child in new namespaces (clone_flags: CLONE_NEW…). Returns its pid, zero in the child, or -errno.
 *
 * The child is a copy of one thread of a process with many, whose locks may be held by threads that are not there; so
 * it makes async-signal-safe calls only, never returns, and leaves by _exit(). Its table of descriptors is the parent's.
 */
errint_t start_child(uint64_t clone_flags);

/* Kills the child, if there is one, and waits for its end. */
void stop_child(const int *pid);

/* Waits until the child has ended by itself; it is then no child any more. */
void await_child(int *pid);

#endif
