/* String operations MOVS STOS LODS CMPS SCAS. One iteration at a time in the general case;
 * with REP and both sides in RAM, runs within a page by the host's own string instruction,
 * whose results on overlapping operands are the architecture's. A REP is interruptible
 * after each run: RSI, RDI, RCX then hold what is left and RIP points at it. SDM vol. 2.
 *
 * Source: DS or an override, at SI; destination: ES at DI; counter CX; all of address size. */
#include "interp/flags.h"

struct str {
	u64 mask;   /* of addresses and counter */
	i64 step;
};
static inline struct str str_of(const struct cpu *c, const struct insn *i, unsigned size)
{
	return (struct str){ addr_mask(i->adsz), c->rflags & FL_DF ? -(i64)size : (i64)size };
}
static inline u64 str_src(struct cpu *c, const struct insn *i, u64 mask, unsigned size)
{
	return cpu_linear(c, i->seg, c->regs[R_SI] & mask, size, ACC_READ);
}
static inline u64 str_dst(struct cpu *c, u64 mask, unsigned size, enum access acc)
{
	return cpu_linear(c, S_ES, c->regs[R_DI] & mask, size, acc);
}

#define CMP_AT(bits, m) \
static inline void str_cmp_##bits(struct cpu *c, u##bits a, u##bits b) \
{ \
	unsigned f; \
	asm("cmp %" m "2, %" m "1\n\t" GRAB : "=&a"(f) : "q"(a), "q"(b) : "cc"); \
	flags_put(c, f); \
}
SIZES(CMP_AT)

#define X(bits, m) \
static inline void one_movs_##bits(struct cpu *c, const struct insn *i, struct str s) \
{ \
	u##bits v = mem_ld##bits(c, str_src(c, i, s.mask, bits / 8)); \
	mem_st##bits(c, str_dst(c, s.mask, bits / 8, ACC_WRITE), v); \
	str_add(c, R_SI, s.step, s.mask); \
	str_add(c, R_DI, s.step, s.mask); \
} \
static inline void one_stos_##bits(struct cpu *c, const struct insn *i, struct str s) \
{ \
	(void)i; \
	mem_st##bits(c, str_dst(c, s.mask, bits / 8, ACC_WRITE), (u##bits)c->regs[R_AX]); \
	str_add(c, R_DI, s.step, s.mask); \
} \
static inline void one_lods_##bits(struct cpu *c, const struct insn *i, struct str s) \
{ \
	u##bits v = mem_ld##bits(c, str_src(c, i, s.mask, bits / 8)); \
	str_add(c, R_SI, s.step, s.mask); \
	reg_st##bits(c, R_AX, v); \
} \
static inline void one_cmps_##bits(struct cpu *c, const struct insn *i, struct str s) \
{ \
	u##bits b = mem_ld##bits(c, str_dst(c, s.mask, bits / 8, ACC_READ)); /* first, as AMD's do */ \
	u##bits a = mem_ld##bits(c, str_src(c, i, s.mask, bits / 8)); \
	str_add(c, R_SI, s.step, s.mask); \
	str_add(c, R_DI, s.step, s.mask); \
	str_cmp_##bits(c, a, b); \
} \
static inline void one_scas_##bits(struct cpu *c, const struct insn *i, struct str s) \
{ \
	(void)i; \
	u##bits b = mem_ld##bits(c, str_dst(c, s.mask, bits / 8, ACC_READ)); \
	str_add(c, R_DI, s.step, s.mask); \
	str_cmp_##bits(c, (u##bits)c->regs[R_AX], b); \
} \
OP(op_movs_##bits) { one_movs_##bits(c, i, str_of(c, i, bits / 8)); } \
OP(op_stos_##bits) { one_stos_##bits(c, i, str_of(c, i, bits / 8)); } \
OP(op_lods_##bits) { one_lods_##bits(c, i, str_of(c, i, bits / 8)); } \
OP(op_cmps_##bits) { one_cmps_##bits(c, i, str_of(c, i, bits / 8)); } \
OP(op_scas_##bits) { one_scas_##bits(c, i, str_of(c, i, bits / 8)); }
SIZES(X)
#undef X

/* ---- REP */

/* How many elements, at most n, a run from lin can take in the direction of step without
 * leaving its page, if that page is RAM in the TLB (for writing if acc says so); else 0. */
static inline u64 run_length(struct cpu *c, u64 lin, i64 step, u64 n, enum access acc)
{
	struct tlb_entry *e = tlb_slot(c, lin);
	u64 tag = (lin & ~PAGE_MASK) | c->epoch;
	unsigned size = (unsigned)(step < 0 ? -step : step);
	if ((acc == ACC_WRITE ? e->wtag : e->rtag) != tag)
		return 0;
	u64 off = lin & PAGE_MASK;
	u64 fit = step > 0 ? (4096 - off) / size : off + size <= 4096 ? off / size + 1 : 0;
	return MIN(n, fit);
}
/* The offsets of a run must not wrap at the address size. */
static inline bool run_plain(u64 off, i64 step, u64 n, u64 mask)
{
	u64 span = (n - 1) * (u64)(step < 0 ? -step : step);
	return step > 0 ? off <= mask - span : off >= span;
}
static inline bool seg_plain(const struct cpu *c, unsigned s, enum access acc)
{
	return !c->seg_check || (c->seg_fast >> (2 * s + (acc == ACC_WRITE)) & 1);
}

#define HOST_REP(bits, insn, a, b, n, down, ax) \
	do { \
		u64 n_ = (n); \
		void *d_ = (a); \
		const void *s_ = (b); \
		if (down) \
			asm volatile("std\n\trep " insn "\n\tcld" : "+D"(d_), "+S"(s_), "+c"(n_) : "a"(ax) : "memory", "cc"); \
		else \
			asm volatile("rep " insn : "+D"(d_), "+S"(s_), "+c"(n_) : "a"(ax) : "memory", "cc"); \
	} while (0)

static inline void run_written(struct cpu *c, u64 lin, i64 step, u64 n)
{
	struct tlb_entry *e = tlb_slot(c, lin);
	u64 bytes = n * (u64)(step < 0 ? -step : step);
	u64 first = step > 0 ? lin : lin - (bytes + (u64)step);
	if (unlikely(atomic_load_explicit(&e->code->lines, memory_order_relaxed)))
		mem_code_hit(c, e->code, first & PAGE_MASK, (unsigned)bytes);
}

/* Source and destination whose pages share a TLB slot, so that each access would throw out the other's
 * entry: places for up to CLASH_BYTES, looked up together. Returns how many elements; 0: not RAM,
 * or not so. The source is looked up first, as one element would be; a device is not touched. */
#define CLASH_BYTES 128u
static u64 clash_places(struct cpu *c, u64 src, u64 dst, i64 step, u64 n, u8 **from, u8 **to, struct mem_ref *w)
{
	unsigned size = (unsigned)(step < 0 ? -step : step);
	u64 so = src & PAGE_MASK, d_o = dst & PAGE_MASK;
	struct mem_ref r;
	if (c->cpl == 3 && (c->rflags & FL_AC)) /* alignment is that of an element */
		return 0;
	n = MIN(n, CLASH_BYTES / size);
	n = MIN(n, step > 0 ? (4096 - MAX(so, d_o)) / size : MIN(so, d_o) / size + 1);
	if (n < 2 || (step < 0 && MAX(so, d_o) + size > 4096))
		return 0;
	u64 back = step < 0 ? (n - 1) * size : 0;
	*from = mem_begin(c, &r, src - back, (unsigned)(n * size), false, false, false);
	*to = mem_begin(c, w, dst - back, (unsigned)(n * size), false, true, false);
	if (r.copied || w->copied)
		return 0;
	*from += back;
	*to += back;
	return n;
}

#define X(bits, m, sfx) \
static u64 run_clash_##bits(struct cpu *c, struct str s, u64 src, u64 dst, u64 n) \
{ \
	struct mem_ref w; \
	u8 *from, *to; \
	if (!run_plain(c->regs[R_SI] & s.mask, s.step, MIN(n, CLASH_BYTES), s.mask) || \
	    !run_plain(c->regs[R_DI] & s.mask, s.step, MIN(n, CLASH_BYTES), s.mask) || \
	    !(n = clash_places(c, src, dst, s.step, n, &from, &to, &w))) \
		return 0; \
	HOST_REP(bits, "movs" sfx, to, from, n, s.step < 0, 0); \
	mem_end(c, &w); \
	str_add(c, R_SI, s.step * (i64)n, s.mask); \
	str_add(c, R_DI, s.step * (i64)n, s.mask); \
	return n; \
} \
static u64 run_movs_##bits(struct cpu *c, const struct insn *i, struct str s, u64 n) \
{ \
	if (!seg_plain(c, i->seg, ACC_READ) || !seg_plain(c, S_ES, ACC_WRITE)) \
		return 0; \
	u64 src = str_src(c, i, s.mask, bits / 8), dst = str_dst(c, s.mask, bits / 8, ACC_WRITE); \
	if (unlikely(tlb_slot(c, src) == tlb_slot(c, dst) && ((src ^ dst) & ~PAGE_MASK))) \
		return run_clash_##bits(c, s, src, dst, n); \
	n = run_length(c, src, s.step, n, ACC_READ); \
	n = n ? run_length(c, dst, s.step, n, ACC_WRITE) : 0; \
	if (n < 2 || !run_plain(c->regs[R_SI] & s.mask, s.step, n, s.mask) || \
	    !run_plain(c->regs[R_DI] & s.mask, s.step, n, s.mask)) \
		return 0; \
	HOST_REP(bits, "movs" sfx, (void *)(dst + tlb_slot(c, dst)->addend), \
		 (void *)(src + tlb_slot(c, src)->addend), n, s.step < 0, 0); \
	run_written(c, dst, s.step, n); \
	str_add(c, R_SI, s.step * (i64)n, s.mask); \
	str_add(c, R_DI, s.step * (i64)n, s.mask); \
	return n; \
} \
static u64 run_stos_##bits(struct cpu *c, const struct insn *i, struct str s, u64 n) \
{ \
	(void)i; \
	if (!seg_plain(c, S_ES, ACC_WRITE)) \
		return 0; \
	u64 dst = str_dst(c, s.mask, bits / 8, ACC_WRITE); \
	n = run_length(c, dst, s.step, n, ACC_WRITE); \
	if (n < 2 || !run_plain(c->regs[R_DI] & s.mask, s.step, n, s.mask)) \
		return 0; \
	HOST_REP(bits, "stos" sfx, (void *)(dst + tlb_slot(c, dst)->addend), NULL, n, s.step < 0, c->regs[R_AX]); \
	run_written(c, dst, s.step, n); \
	str_add(c, R_DI, s.step * (i64)n, s.mask); \
	return n; \
} \
OP_END(op_rep_movs_##bits) \
{ \
	struct str s = str_of(c, i, bits / 8); \
	for (u64 n; (n = c->regs[R_CX] & s.mask) != 0;) { \
		u64 done = c->slow ? 0 : run_movs_##bits(c, i, s, n); \
		if (!done) { \
			one_movs_##bits(c, i, s); \
			done = 1; \
		} \
		str_add(c, R_CX, -(i64)done, s.mask); \
		if (rep_leave(c, i, s.mask)) \
			return; \
	} \
} \
OP_END(op_rep_stos_##bits) \
{ \
	struct str s = str_of(c, i, bits / 8); \
	for (u64 n; (n = c->regs[R_CX] & s.mask) != 0;) { \
		u64 done = c->slow ? 0 : run_stos_##bits(c, i, s, n); \
		if (!done) { \
			one_stos_##bits(c, i, s); \
			done = 1; \
		} \
		str_add(c, R_CX, -(i64)done, s.mask); \
		if (rep_leave(c, i, s.mask)) \
			return; \
	} \
} \
OP_END(op_rep_lods_##bits) \
{ \
	struct str s = str_of(c, i, bits / 8); \
	while (c->regs[R_CX] & s.mask) { \
		one_lods_##bits(c, i, s); \
		str_add(c, R_CX, -1, s.mask); \
		if (rep_leave(c, i, s.mask)) \
			return; \
	} \
} \
/* REPE goes on while ZF is set, REPNE while it is clear. */ \
static inline bool rep_goes_on_##bits(const struct cpu *c, const struct insn *i) \
{ \
	return !(c->rflags & FL_ZF) == !!(i->flags & IF_REPNE); \
} \
OP_END(op_rep_cmps_##bits) \
{ \
	struct str s = str_of(c, i, bits / 8); \
	while (c->regs[R_CX] & s.mask) { \
		one_cmps_##bits(c, i, s); \
		str_add(c, R_CX, -1, s.mask); \
		if (!rep_goes_on_##bits(c, i) || rep_leave(c, i, s.mask)) \
			return; \
	} \
} \
OP_END(op_rep_scas_##bits) \
{ \
	struct str s = str_of(c, i, bits / 8); \
	while (c->regs[R_CX] & s.mask) { \
		one_scas_##bits(c, i, s); \
		str_add(c, R_CX, -1, s.mask); \
		if (!rep_goes_on_##bits(c, i) || rep_leave(c, i, s.mask)) \
			return; \
	} \
}
X(8, "b", "b") X(16, "w", "w") X(32, "k", "l") X(64, "q", "q")
#undef X
