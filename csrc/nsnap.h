/* The interface of the C core, for the compiler. */

#ifndef NSNAP_H
#define NSNAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core.cdef.h"

#endif
