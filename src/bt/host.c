/* What the host's kernel lets a program do. Apart from the rest: the system's headers for it use
 * names of ours. */
#include <cpuid.h>
#include <stdbool.h>
#include <sys/auxv.h>

#include "bt/host.h"

bool host_has_misalignsse(void)
{
	unsigned a, b, c = 0, d;
	return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & 0x80);
}

bool host_has_fsgsbase(void) { return getauxval(AT_HWCAP2) & 2; /* Linux: asm/hwcap2.h */ }
