/* seg: descriptors and stacks, for the files of this folder that move between segments:
 * segment.c, seg_query.c, stack.c, far.c, iret.c, task.c, exception.c, syscall.c.
 * Private to cpu/.
 *
 * Conventions
 *  - A descriptor is read once into u64 d[2]; d[1] is only there when 16 bytes were asked for.
 *  - SS.DPL equals CPL, in a null SS too: every path that changes CPL writes both.
 *  - cpu_raise_err() adds EXT by itself while an event is delivered, so error codes here are bare. */
#ifndef RING3_CPU_SEG_H
#define RING3_CPU_SEG_H

#include "cpu/cpu.h"

/* attr of what has no descriptor of its own */
enum {
	ATTR_CODE64 = 0xa09b, ATTR_CODE32 = 0xc09b, ATTR_DATA32 = 0xc093, /* flat, accessed, DPL 0 */
	ATTR_V86 = 0xf3, ATTR_REAL = 0x93,
};
/* System descriptor types. */
enum {
	SYS_TSS16 = 1, SYS_LDT = 2, SYS_TSS16_BUSY = 3, SYS_CALL16 = 4, SYS_TASK = 5, SYS_INT16 = 6,
	SYS_TRAP16 = 7, SYS_TSS32 = 9, SYS_TSS32_BUSY = 11, SYS_CALL32 = 12, SYS_INT32 = 14, SYS_TRAP32 = 15,
	SYS_BUSY = 2,
};

static inline unsigned attr_dpl(u32 a) { return (a >> 5) & 3; }
static inline bool attr_code(u32 a) { return (a & 0x18) == 0x18; }
static inline bool attr_conforming(u32 a) { return (a & 0x1c) == 0x1c; }
static inline bool attr_writable(u32 a) { return (a & 0x1a) == 0x12; }
static inline bool attr_readable(u32 a) { return (a & 0x10) && (a & 0xa) != 8; }
static inline unsigned sel_rpl(u16 sel) { return sel & 3; }
static inline bool sel_null(u16 sel) { return !(sel & 0xfffc); }
static inline u32 sel_err(u16 sel) { return sel & 0xfffc; }

static inline u32 desc_attr(u64 d) { return (d >> 40) & 0xf0ff; }
/* Selector and offset fields of a gate (offset: 32 bits, or 16 of a 286 gate). */
static inline u16 gate_sel(u64 d) { return (u16)(d >> 16); }
static inline u64 gate_off(u64 d)
{
	return (d & 0xffff) | (desc_attr(d) & 8 ? (d >> 32) & 0xffff0000 : 0);
}

/* The hidden part as a load of the 8-byte descriptor d leaves it. */
struct segment desc_segment(u16 sel, u64 d);
/* The same for LDT and TSS descriptors, which have 64-bit bases in long mode. */
struct segment desc_segment_sys(struct cpu *c, u16 sel, const u64 d[2]);
/* bytes: 8 or 16. False: outside its table. May raise #PF. */
bool desc_read(struct cpu *c, u16 sel, unsigned bytes, u64 d[2]);
/* Raises vector(sel) when outside. */
void desc_need(struct cpu *c, u16 sel, unsigned bytes, u64 d[2], unsigned vector);
/* Sets the accessed bit, in memory if it is clear there, and in *s. */
void desc_accessed(struct cpu *c, struct segment *s);
/* Sets or clears the busy bit of the TSS descriptor of sel in the GDT. */
void desc_busy(struct cpu *c, u16 sel, bool busy);

static inline struct segment seg_null(u16 sel, unsigned dpl)
{
	return (struct segment){ .sel = sel, .attr = SEG_UNUSABLE | dpl << 5 };
}
static inline struct segment seg_flat(u16 sel, u32 attr)
{
	return (struct segment){ .sel = sel, .attr = attr, .limit = 0xffffffff };
}
static inline struct segment seg_v86(u16 sel)
{
	return (struct segment){ .sel = sel, .attr = ATTR_V86, .limit = 0xffff, .base = (u64)sel << 4 };
}

/* off..off+size-1 lies within the segment. A 4-GiB segment wraps around. */
static inline bool seg_within(const struct segment *s, u32 off, unsigned size)
{
	u64 last = (u64)off + size - 1;
	if ((s->attr & 0x1c) == 0x14) /* expand-down */
		return off > s->limit && last <= (s->attr & SEG_DB ? 0xffffffffu : 0xffffu);
	return last <= s->limit || s->limit == 0xffffffff;
}
/* Code that a selector in *cs names runs in 64-bit mode. */
static inline bool seg_code64(const struct cpu *c, const struct segment *cs)
{
	return cpu_long(c) && (cs->attr & SEG_L);
}
/* #GP(0) unless ip is canonical or within cs. */
static inline void seg_check_ip(struct cpu *c, const struct segment *cs, u64 ip)
{
	if (seg_code64(c, cs) ? !cpu_canonical(c, ip) : ip > cs->limit)
		cpu_gp0(c);
}
/* The stack selector that a return to the outer level of cs brings: all its checks. */
struct segment seg_outer_ss(struct cpu *c, u16 sel, const struct segment *cs);
/* The code selector of RET and IRET: all checks but the offset's. */
struct segment seg_return_cs(struct cpu *c, u16 sel);
/* DS, ES, FS, GS that privilege level cpl may not hold become null. */
void seg_leave_inner(struct cpu *c, unsigned cpl);
/* CS:rip, with RPL = cpl, then the derived state. */
void seg_commit_cs(struct cpu *c, struct segment cs, unsigned cpl, u64 rip);

/* ---- a stack that is not, or not yet, the current one (stack.c) */
struct stack {
	u64 sp, mask;
	struct segment ss;
	u32 err;        /* of #SS when it is too small */
	u8 cpl;
	bool flat;      /* 64-bit: no limit, canonical addresses */
	bool limited;   /* flat, but LMSLE: seg_linear has a say */
};
struct stack stack_current(struct cpu *c);
/* Level dpl's stack of a 16- or 32-bit TSS, with the checks of its selector (#TS, #SS). */
struct stack stack_tss(struct cpu *c, unsigned dpl);
/* 64-bit: the RSP at offset off of the TSS; level cpl; SS null. */
struct stack stack_tss64(struct cpu *c, unsigned off, unsigned cpl);
/* #SS(err) unless n pushes of size bytes fit. */
void stack_room(struct cpu *c, const struct stack *st, unsigned n, unsigned size);
/* Pushes v[0] first; moves st->sp only. */
void stack_push(struct cpu *c, struct stack *st, const u64 *v, unsigned n, unsigned size);
/* RSP := st->sp in the width of st, keeping what that width leaves alone. */
void stack_commit(struct cpu *c, const struct stack *st);
/* size bytes at skip above the current stack's top. */
u64 stack_at(struct cpu *c, unsigned skip, unsigned size);
static inline u64 stack_mask(const struct segment *ss) { return ss->attr & SEG_DB ? 0xffffffff : 0xffff; }

/* ---- between exception.c, event.c, debug.c, task.c */
/* Delivers an external interrupt or NMI; has its own frame. */
void exception_external(struct cpu *c, unsigned vector, bool nmi);
/* Delivers what a hypervisor injects (VEC_*), with ip as where its handler is to return to; has its own frame. */
void exception_inject(struct cpu *c, u64 vec, u64 ip);
/* The debug conditions pending after an instruction, as one trap; has its own frame. */
void debug_trap(struct cpu *c, u64 hits);
/* task_switch with the EFLAGS image to save (a fault's has RF set). */
void task_switch_flags(struct cpu *c, u16 sel, enum task_why why, bool push_error, u32 error, u32 flags);

#endif
