/* Status flags by the host's own instruction: LAHF and SETO right after it. Private to interp/. */
#ifndef RING3_INTERP_FLAGS_H
#define RING3_INTERP_FLAGS_H

#include "interp/op_api.h"

/* After an instruction in inline assembly: rax = flags as flags_put wants them. */
#define GRAB "lahf\n\tseto %%al"
/* Before one that leaves some flags undefined, so that those which the host does not touch stay the
 * guest's: eax = flags_for_load(c). */
#define LOAD_STATUS "addb $0x7f, %%al\n\tsahf\n\t"
static inline unsigned flags_for_load(const struct cpu *c)
{
	return (unsigned)(c->rflags & 0xff) << 8 | (unsigned)(c->rflags >> 11 & 1);
}
/* Before one that reads CF: from bit 0 of RFLAGS. */
#define LOAD_CF(fl) "btl $0, " fl "\n\t"

static inline u64 flags_grabbed(unsigned ax) { return ((ax >> 8) & 0xd5) | (u64)(ax & 1) << 11; }
static inline void flags_put(struct cpu *c, unsigned ax)
{
	c->rflags = (c->rflags & ~(u64)FL_STATUS) | flags_grabbed(ax);
}
static inline void flags_put_mask(struct cpu *c, unsigned ax, u64 mask)
{
	c->rflags = (c->rflags & ~mask) | (flags_grabbed(ax) & mask);
}

/* Sizes: bits, assembler modifier. */
#define SIZES(X) X(8, "b") X(16, "w") X(32, "k") X(64, "q")
#define WSIZES(X) X(16, "w") X(32, "k") X(64, "q")

#endif
