/* Caches and translations, fences, and the instructions that move the whole floating-point and
 * vector state (cpu/fpu.c and xsave.c do the work). All memory is coherent, so that writing
 * caches back is nothing; what is left of CLFLUSH is the check of its address. SDM volume 2. */
#include <sched.h>

#include "interp/system.h"

static inline void cache_flush(struct cpu *c, enum intercept x)
{
	need_cpl0(c);
	nested_check(c, x, 0);
}

OP_END(op_invd) { cache_flush(c, ICPT_INVD); }
OP_END(op_wbinvd) { cache_flush(c, ICPT_WBINVD); }

OP_END(op_invlpg)
{
	need_cpl0(c);
	u64 lin = insn_ea(c, i) + c->ebase[i->seg]; /* no limit, no canonical check */
	if (!cpu_code64(c))
		lin = (u32)lin;
	nested_check(c, ICPT_INVLPG, lin);
	mmu_invlpg(c, lin);
}

OP_END(op_invpcid)
{
	need_cpl0(c);
	u64 type = reg_ld(c, i->r, cpu_code64(c) ? 8 : 4);
	nested_check(c, ICPT_INVPCID, (insn_ea(c, i) + c->ebase[i->seg]) & (cpu_code64(c) ? ~0ull : 0xffffffff));
	u64 lin = insn_lin(c, i, 16, ACC_READ);
	u64 pcid = mem_ld64(c, lin), address = mem_ld64(c, lin_add(c, lin, 8));
	mmu_invpcid(c, type, pcid, address);
}

OP(op_clflush) { mem_probe(c, insn_lin(c, i, 1, ACC_READ), 1, ACC_READ); }

OP(op_clzero)
{
	static const u8 zeros[64];
	u64 off = c->regs[R_AX] & addr_mask(i->adsz) & ~63ull;
	mem_st_bytes(c, cpu_linear(c, i->seg, off, 64, ACC_WRITE), zeros, 64);
}

/* Who spins waits for another processor: the host's CPU may be what that one lacks. */
OP(op_pause)
{
	nested_check(c, ICPT_PAUSE, 0);
	if (c->n_cpus > 1)
		sched_yield();
}

OP_END(op_serialize) { }
OP(op_lfence) { __asm__ volatile("lfence" ::: "memory"); }
OP(op_mfence) { __asm__ volatile("mfence" ::: "memory"); }
OP(op_sfence) { __asm__ volatile("sfence" ::: "memory"); }

/* ---- whole state ------------------------------------------------------------------------------- */

/* FXSAVE and FXRSTOR: #UD by EM, #NM by TS, as MMX; OSFXSR is not asked. */
static inline void need_fpu(struct cpu *c, enum fpu_class k)
{
	if (unlikely(c->nofpu[k]))
		cpu_raise(c, c->nofpu[k]);
}

OP(op_fxsave)
{
	need_fpu(c, FC_MMX);
	u64 lin = insn_lin(c, i, 512, ACC_WRITE);
	mem_check_aligned(c, lin, 4); /* before #GP */
	fpu_fxsave(c, lin, i->opsz);
}

OP(op_fxrstor)
{
	need_fpu(c, FC_MMX);
	u64 lin = insn_lin(c, i, 512, ACC_READ);
	mem_check_aligned(c, lin, 4);
	fpu_fxrstor(c, lin, i->opsz);
}

/* XSAVE's own checks (CR4.OSXSAVE, TS, alignment) are xsave.c's and come before the segment's. */
static inline void xsave_may(struct cpu *c)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		cpu_ud(c);
	if (c->cr0 & CR0_TS)
		cpu_raise(c, V_NM);
}

static inline void xsave(struct cpu *c, const struct insn *i, enum xsave_kind k)
{
	xsave_may(c);
	fpu_xsave(c, insn_lin(c, i, fpu_xsave_size(c, k), ACC_WRITE), i->opsz, k);
}

static inline void xrstor(struct cpu *c, const struct insn *i, bool supervisor)
{
	xsave_may(c);
	u64 lin = insn_lin(c, i, 576, ACC_READ);
	if (unlikely(c->seg_check) && !(lin & 63)) { /* all of it must be within the segment */
		u64 bv = mem_ld64(c, lin_add(c, lin, 512)), xcomp = mem_ld64(c, lin_add(c, lin, 520));
		insn_lin(c, i, fpu_xrstor_size(c, bv, xcomp, supervisor), ACC_READ);
	}
	fpu_xrstor(c, lin, i->opsz, supervisor);
}

OP(op_xsave) { xsave(c, i, XS_SAVE); }
OP(op_xsaveopt) { xsave(c, i, XS_OPT); }
OP(op_xsavec) { xsave(c, i, XS_C); }
OP_END(op_xrstor) { xrstor(c, i, false); }

static inline void need_supervisor(struct cpu *c)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		cpu_ud(c);
	need_cpl0(c);
}

OP(op_xsaves)
{
	need_supervisor(c);
	nested_check(c, ICPT_XSAVES, 0);
	xsave(c, i, XS_S);
}

OP_END(op_xrstors)
{
	need_supervisor(c);
	nested_check(c, ICPT_XRSTORS, 0);
	xrstor(c, i, true);
}

/* Environment formats are of 2 or 4 bytes a word. */
static inline unsigned env_size(const struct insn *i) { return i->opsz == 2 ? 2 : 4; }

/* The first word comes first: its segment, its alignment, its page. */
static u64 env_lin(struct cpu *c, const struct insn *i, unsigned n, enum access acc)
{
	u64 lin = insn_lin(c, i, env_size(i), acc);
	mem_check_aligned(c, lin, env_size(i));
	mem_probe(c, lin, env_size(i), acc);
	return insn_lin(c, i, n, acc);
}

OP(op_fnstenv)
{
	need_fpu(c, FC_X87);
	unsigned n = env_size(i) == 2 ? 14 : 28;
	fpu_fnstenv(c, env_lin(c, i, n, ACC_WRITE), env_size(i), false);
}

OP(op_fnsave)
{
	need_fpu(c, FC_X87);
	unsigned n = env_size(i) == 2 ? 94 : 108;
	fpu_fnstenv(c, env_lin(c, i, n, ACC_WRITE), env_size(i), true);
	x87_nothing_pending(c);
}

OP(op_fldenv)
{
	need_fpu(c, FC_X87);
	x87_wait(c);
	unsigned n = env_size(i) == 2 ? 14 : 28;
	fpu_fldenv(c, env_lin(c, i, n, ACC_READ), env_size(i), false);
}

OP(op_frstor)
{
	need_fpu(c, FC_X87);
	x87_wait(c);
	unsigned n = env_size(i) == 2 ? 94 : 108;
	fpu_fldenv(c, env_lin(c, i, n, ACC_READ), env_size(i), true);
}
