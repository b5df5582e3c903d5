/* What the two ways to mount an overlay share. */

#ifndef NSNAP_OVERLAY_H
#define NSNAP_OVERLAY_H

/* For errors that come without a message. */
#define OVERLAY_REASON "overlayfs gives its reason in the kernel log"

#endif
