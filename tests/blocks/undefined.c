/* Flags that the manuals leave undefined: both engines may be right. What follows from them is found
 * by trying: the program runs once more, one instruction at a time, and after each instruction that
 * leaves flags undefined these are turned over, or drawn. Whatever is then other than before depends
 * on them, and may differ between engines, too. And what is different each time (RDTSC, that a program
 * wrote itself) explains all.
 *
 * On request the same with flags that were dead until a program changed the instruction that would have
 * written them: a translator may have let them die. */
#include <string.h>

#include "cells.h"

struct turner {
	const struct finder *f;
	const struct world *w;
	bool changed;    /* draw all status flags before each instruction whose bytes are not the program's own any more */
	struct rng g;
	bool all, none;  /* turn over every one; leave them */
	u64 undefined;   /* after the instruction about to run */
	u64 next;        /* where it ends */
};

static bool fetch(struct cpu *c, u64 lin, u8 *out, unsigned n)
{
	for (unsigned k = 0; k < n; k++) {
		u64 gpa;
		if (!mmu_peek(c, lin + k, &gpa))
			return k > 0;
		out[k] = *mem_ram(c->mem, gpa);
	}
	return true;
}

static bool is_changed(const struct turner *t, struct cpu *c, unsigned len)
{
	for (unsigned k = 0; k < len; k++) {
		u64 gpa;
		if (mmu_peek(c, c->rip + k, &gpa) && gpa >= REGION && *mem_ram(c->mem, gpa) != t->w->image[gpa])
			return true;
	}
	return false;
}

static bool is_shift(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_ROL: case ZYDIS_MNEMONIC_ROR:
	case ZYDIS_MNEMONIC_RCL: case ZYDIS_MNEMONIC_RCR: case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD:
		return true;
	default:
		return false;
	}
}

static void before(void *arg, struct cpu *c)
{
	struct turner *t = arg;
	struct decoded d;
	u8 bytes[15] = { 0 };
	t->undefined = 0;
	if (!fetch(c, c->rip + c->ebase[S_CS], bytes, 15) ||
	    isa_decode(c->code_mode, t->f->quirks, bytes, 15, &d.zi, d.zo) != ISA_OK || !d.zi.cpu_flags)
		return;
	if (t->changed && is_changed(t, c, d.zi.length))
		c->rflags = (c->rflags & ~(u64)FL_STATUS) | (rnd(&t->g) & FL_STATUS);
	t->undefined = d.zi.cpu_flags->undefined & FL_STATUS;
	t->next = c->rip + d.zi.length;
	if (is_shift(d.zi.mnemonic)) {
		const ZydisDecodedOperand *o = &d.zo[d.zi.operand_count_visible - 1];
		u64 n = (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? o->imm.value.u : c->regs[R_CX]) &
			(d.zi.operand_width == 64 ? 63 : 31);
		if (n == 0) /* nothing changes */
			t->undefined = 0;
		else if (n == 1)
			t->undefined &= ~(u64)FL_OF;
		else
			t->undefined |= FL_OF | (n >= d.zi.operand_width ? FL_CF : 0);
	}
}

static void after(void *arg, struct cpu *c)
{
	struct turner *t = arg;
	if (t->undefined && c->rip == t->next && !t->none)
		c->rflags ^= t->undefined & (t->all ? ~0ull : rnd(&t->g));
}

static bool contained(const struct cells *in, const struct cells *of)
{
	for (unsigned k = 0; k < in->n; k++) {
		u64 bits = 0;
		for (unsigned n = 0; n < of->n; n++)
			if (of->cell[n].id == in->cell[k].id)
				bits |= of->cell[n].bits;
		/* What depends on them, depends in any bit; but each flag is by itself. */
		if (!bits || (cell_is_flags(in->cell[k].id) && in->cell[k].bits & ~bits))
			return false;
	}
	return !in->overflow || of->overflow;
}

enum explanation undefined_explains(struct world *w, const struct program *p, struct rig *a, struct rig *third,
				    const struct finder *f, unsigned run, const struct cells *found, const struct compare_rules *r)
{
	static struct cells all, one;
	rig_load(third, p);
	for (unsigned k = 0; k <= run; k++)
		rig_run(third, p, k, MAX_INSNS);
	cells_compare(&one, w, a, third, r);
	if (one.n)
		return UNSTEADY;
	all.n = 0;
	all.overflow = false;
	unsigned tries = r->ignore & IGNORE_CHANGED_FLAGS ? 11 : 5;
	for (unsigned try = 0; try < tries; try++) {
		struct turner t = { .f = f, .w = w, .changed = try >= 5, .g = { mix(try, 77) }, .all = try == 1, .none = try == 0 };
		rig_load(third, p);
		for (unsigned k = 0; k <= run; k++)
			rig_walk(third, p, k, MAX_INSNS, before, after, &t);
		cells_compare(&one, w, a, third, r);
		if (try == 0 && one.n) /* steps alone are different */
			return UNEXPLAINED;
		for (unsigned k = 0; k < one.n; k++) {
			if (one.cell[k].id == CELL_RIP) /* it went elsewhere, and all may follow */
				return BY_UNDEFINED;
			cells_add(&all, one.cell[k].id, one.cell[k].bits);
		}
		all.overflow |= one.overflow;
		if (found->n && contained(found, &all))
			return BY_UNDEFINED;
	}
	return UNEXPLAINED;
}
