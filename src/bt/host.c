/* What the host's kernel lets a program do. Apart from the rest: the system's headers for it use
 * names of ours. */
#include <stdbool.h>
#include <sys/auxv.h>

#include "bt/host.h"

bool host_has_fsgsbase(void) { return getauxval(AT_HWCAP2) & 2; /* Linux: asm/hwcap2.h */ }
