/* What the system handlers share. Private to interp/system*.c. */
#ifndef RING3_INTERP_SYSTEM_H
#define RING3_INTERP_SYSTEM_H

#include "cpu/nested_api.h"
#include "interp/op_api.h"

static inline void need_cpl0(struct cpu *c)
{
	if (unlikely(c->cpl))
		cpu_gp0(c);
}
/* Of instructions that exist in protected mode only. */
static inline void need_protected(struct cpu *c)
{
	if (unlikely(!cpu_protected(c)))
		cpu_ud(c);
}
/* UMIP: what tells of system tables is for CPL 0. */
static inline void need_no_umip(struct cpu *c)
{
	if (unlikely(c->cpl && (c->cr4 & CR4_UMIP)))
		cpu_gp0(c);
}
/* A linear address n bytes on: outside 64-bit mode they wrap at 4 GiB. */
static inline u64 lin_add(const struct cpu *c, u64 lin, unsigned n)
{
	return cpu_code64(c) ? lin + n : (u32)(lin + n);
}
/* EDX:EAX. */
static inline u64 edx_eax(const struct cpu *c) { return (u64)(u32)c->regs[R_DX] << 32 | (u32)c->regs[R_AX]; }
static inline void edx_eax_set(struct cpu *c, u64 v)
{
	c->regs[R_AX] = (u32)v;
	c->regs[R_DX] = v >> 32;
}
#endif
