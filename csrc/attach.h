/* Mount points, for those that put something onto one. */

#ifndef NSNAP_ATTACH_H
#define NSNAP_ATTACH_H

#include "nsnap.h"

/* An O_PATH descriptor of a place to mount on; a symlink there is refused with ELOOP. */
errint_t open_mount_point(int dir_fd, const char *path, struct nsnap_failure *failure);

#endif
