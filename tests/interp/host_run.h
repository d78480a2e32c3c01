/* Runs one instruction on this machine's own processor: all registers from a struct image, and
 * back into it. Shares nothing with src/, so that it can be held against it. */
#ifndef RING3_TESTS_HOST_RUN_H
#define RING3_TESTS_HOST_RUN_H

#include "base/base.h"

struct image {
	_Alignas(64) u8 zmm[32][64];
	u8 fx[512];       /* x87 and MXCSR; the XMM part is not used */
	u64 k[8];
	u64 gpr[16];
	u64 flags;        /* status flags as RFLAGS has them */
};
struct host_fault { int trap; u32 error; u64 addr; }; /* trap -1: none */

/* Before any other handler of SIGSEGV, SIGFPE, SIGILL is installed. */
void host_run_init(void);
/* bytes: at most 15. The instruction must not branch nor touch memory that matters here. */
struct host_fault host_run(struct image *m, const u8 *bytes, unsigned n);

#endif
