/* System instructions on flags, control registers, MSRs, time and identity; halting. The rules
 * of what may be written are cpu/'s (control.c, msr.c); here are privilege, operands, and
 * which mode knows the instruction. Intel SDM volume 2; AMD APM volume 3. */
#include "interp/system.h"

/* ---- IF ---------------------------------------------------------------------------------- */

enum if_rule { IF_REAL, IF_VIRTUAL, IF_FAULT };

/* What CLI and STI act on: IF itself, or VIF (V86 with VME; CPL 3 with PVI). */
static enum if_rule if_rule(const struct cpu *c)
{
	if (cpu_real(c))
		return IF_REAL;
	if (cpu_v86(c))
		return cpu_iopl(c) == 3 ? IF_REAL : c->cr4 & CR4_VME ? IF_VIRTUAL : IF_FAULT;
	if (c->cpl <= cpu_iopl(c))
		return IF_REAL;
	return c->cpl == 3 && (c->cr4 & CR4_PVI) ? IF_VIRTUAL : IF_FAULT;
}

OP_END(op_cli)
{
	enum if_rule rule = if_rule(c);
	if (rule == IF_FAULT)
		cpu_gp0(c);
	cpu_set_rflags(c, 0, rule == IF_REAL ? FL_IF : FL_VIF);
}

OP_END(op_sti)
{
	enum if_rule rule = if_rule(c);
	if (rule == IF_FAULT || (rule == IF_VIRTUAL && (c->rflags & FL_VIP)))
		cpu_gp0(c);
	if (rule == IF_VIRTUAL) {
		cpu_set_rflags(c, FL_VIF, FL_VIF);
		return;
	}
	if (!(c->rflags & FL_IF))
		c->shadow |= SHADOW_STI;
	cpu_set_rflags(c, FL_IF, FL_IF);
	cpu_update_events(c);
}

/* V86 mode below IOPL 3 with VME: the 16-bit image has VIF in the place of IF, and IOPL 3. */
static bool vme_image(struct cpu *c, unsigned size)
{
	if (!cpu_v86(c) || cpu_iopl(c) == 3)
		return false;
	if (size != 2 || !(c->cr4 & CR4_VME))
		cpu_gp0(c);
	return true;
}

OP(op_pushf)
{
	nested_check(c, ICPT_PUSHF, 0);
	u64 image = c->rflags & ~(u64)(FL_VM | FL_RF);
	if (vme_image(c, i->opsz)) {
		image = (image & ~(u64)FL_IF) | FL_IOPL;
		if (c->rflags & FL_VIF)
			image |= FL_IF;
	}
	push(c, image, i->opsz);
}

OP_END(op_popf)
{
	nested_check(c, ICPT_POPF, 0);
	bool vme = vme_image(c, i->opsz);
	u64 v = pop_peek(c, 0, i->opsz);
	u64 mask = FL_STATUS | FL_TF | FL_DF | FL_NT | FL_AC | FL_ID | FL_RF;
	if (vme) {
		if ((v & FL_TF) || ((v & FL_IF) && (c->rflags & FL_VIP)))
			cpu_gp0(c);
		mask |= FL_VIF;
	} else {
		if (c->cpl <= cpu_iopl(c))
			mask |= FL_IF;
		if (c->cpl == 0)
			mask |= FL_IOPL;
	}
	if (i->opsz == 2)
		mask &= 0xffff | FL_VIF;
	v &= ~(u64)(FL_RF | FL_VIF);
	if (vme && (v & FL_IF))
		v |= FL_VIF;
	sp_set(c, c->regs[R_SP] + i->opsz);
	cpu_set_rflags(c, v, mask);
}

OP(op_stac)
{
	if (c->cpl)
		cpu_ud(c);
	cpu_set_rflags(c, FL_AC, FL_AC);
}

OP(op_clac)
{
	if (c->cpl)
		cpu_ud(c);
	cpu_set_rflags(c, 0, FL_AC);
}

/* ---- halting --------------------------------------------------------------------------------- */

OP_END(op_hlt)
{
	need_cpl0(c);
	nested_check(c, ICPT_HLT, 0);
	c->activity = ACT_HLT;
}

/* The line at rAX is remembered with its contents; who waits compares (engine/vcpu.c). */
static void monitor(struct cpu *c, const struct insn *i)
{
	if ((u32)c->regs[R_CX])
		cpu_gp0(c);
	u64 lin = cpu_linear(c, i->seg, c->regs[R_AX] & addr_mask(i->adsz), 1, ACC_READ), gpa;
	mem_probe(c, lin, 1, ACC_READ);
	nested_check(c, ICPT_MONITOR, lin);
	if (!mmu_peek(c, lin, &gpa))
		return;
	c->monitor_gpa = gpa & ~63ull;
	const u8 *line = mem_ram(c->mem, c->monitor_gpa);
	c->monitor_armed = line != NULL;
	if (line)
		__builtin_memcpy(c->monitor_line, line, sizeof(c->monitor_line));
}

/* A wait may end early for any reason, so an armed timer (MWAITX) just does not sleep. */
static void mwait(struct cpu *c, bool timer)
{
	nested_check(c, ICPT_MWAIT, c->monitor_armed);
	if (c->monitor_armed && !timer)
		c->activity = ACT_MWAIT;
}

OP(op_monitor)
{
	if (c->cpl)
		cpu_ud(c);
	monitor(c, i);
}

OP(op_monitorx) { monitor(c, i); }

OP_END(op_mwait)
{
	if (c->cpl)
		cpu_ud(c);
	if ((u32)c->regs[R_CX] & ~1u)
		cpu_gp0(c);
	mwait(c, false);
}

OP_END(op_mwaitx)
{
	if (reg_ld(c, R_CX, cpu_code64(c) ? 8 : 4) & ~3ull)
		cpu_gp0(c);
	mwait(c, c->regs[R_CX] & 2);
}

/* ---- control and debug registers ------------------------------------------------------------------ */

static inline unsigned cr_size(const struct cpu *c) { return cpu_code64(c) ? 8 : 4; }

OP(op_mov_rc)
{
	need_cpl0(c);
	u64 v = cpu_read_cr(c, i->rm);
	reg_st(c, i->r, nested_cr_read(c, i->rm, v, CR_MOV, i->r), cr_size(c));
}

OP_END(op_mov_cr)
{
	need_cpl0(c);
	if (i->r > 8 || !(0x11d >> i->r & 1))
		cpu_ud(c);
	u64 v = nested_cr_write(c, i->r, reg_ld(c, i->rm, cr_size(c)), CR_MOV, i->rm);
	switch (i->r) {
	case 0: cpu_write_cr0(c, v); break;
	case 2: c->cr2 = v; break;
	case 3: cpu_write_cr3(c, v); break;
	case 4: cpu_write_cr4(c, v); break;
	case 8: cpu_write_cr8(c, v); break;
	}
}

OP(op_mov_rd)
{
	reg_st(c, i->r, cpu_read_dr(c, i->rm), cr_size(c));
}

OP_END(op_mov_dr)
{
	cpu_write_dr(c, i->r, reg_ld(c, i->rm, cr_size(c)));
}

OP_END(op_clts)
{
	need_cpl0(c);
	c->cr0 = nested_cr_write(c, 0, c->cr0 & ~(u64)CR0_TS, CR_CLTS, R_ZERO);
	cpu_update_fpu(c);
}

OP(op_smsw_r)
{
	need_no_umip(c);
	reg_st(c, i->r, nested_cr_read(c, 0, c->cr0, CR_SMSW, i->r), i->opsz);
}

OP(op_smsw_m)
{
	need_no_umip(c);
	u64 v = nested_cr_read(c, 0, c->cr0, CR_SMSW, R_ZERO);
	mem_st16(c, insn_lin(c, i, 2, ACC_WRITE), (u16)v);
}

/* PE can be set, not cleared; the other three bits follow. */
static void lmsw(struct cpu *c, u16 v, unsigned gpr)
{
	cpu_write_cr0(c, nested_cr_write(c, 0, (c->cr0 & ~14ull) | (v & 15), CR_LMSW, gpr));
}

OP_END(op_lmsw_r)
{
	need_cpl0(c);
	lmsw(c, reg_ld16(c, i->r), i->r);
}

OP_END(op_lmsw_m)
{
	need_cpl0(c);
	lmsw(c, mem_ld16(c, insn_lin(c, i, 2, ACC_READ)), R_ZERO);
}

static inline void need_osxsave(struct cpu *c)
{
	if (!(c->cr4 & CR4_OSXSAVE))
		cpu_ud(c);
}

OP(op_xgetbv)
{
	need_osxsave(c);
	u32 n = (u32)c->regs[R_CX];
	if (n > 1 || (n == 1 && !cpu_has(c, FEAT_XGETBV1)))
		cpu_gp0(c);
	edx_eax_set(c, n ? c->xcr0 & fpu_xinuse(c) : c->xcr0);
}

OP_END(op_xsetbv)
{
	need_osxsave(c);
	need_cpl0(c);
	nested_check(c, ICPT_XSETBV, 0);
	cpu_write_xcr(c, (u32)c->regs[R_CX], edx_eax(c));
}

static inline void need_pke(struct cpu *c)
{
	if (!(c->cr4 & CR4_PKE))
		cpu_ud(c);
	if ((u32)c->regs[R_CX])
		cpu_gp0(c);
}

OP(op_rdpkru)
{
	need_pke(c);
	edx_eax_set(c, c->pkru);
}

OP_END(op_wrpkru)
{
	need_pke(c);
	if ((u32)c->regs[R_DX])
		cpu_gp0(c);
	mmu_set_pkru(c, (u32)c->regs[R_AX]);
}

/* ---- MSRs, time, identity ------------------------------------------------------------------------ */

OP(op_rdmsr)
{
	u64 v;
	need_cpl0(c);
	if (!(unlikely(c->nested.mode) && nested_msr_read(c, (u32)c->regs[R_CX], &v)) && !msr_read(c, (u32)c->regs[R_CX], &v))
		cpu_gp0(c);
	edx_eax_set(c, v);
}

OP_END(op_wrmsr)
{
	need_cpl0(c);
	if (!(unlikely(c->nested.mode) && nested_msr_write(c, (u32)c->regs[R_CX], edx_eax(c))) &&
	    !msr_write(c, (u32)c->regs[R_CX], edx_eax(c)))
		cpu_gp0(c);
}

static inline void need_tsc(struct cpu *c)
{
	if (unlikely(c->cpl && (c->cr4 & CR4_TSD)))
		cpu_gp0(c);
}

OP(op_rdtsc)
{
	need_tsc(c);
	nested_check(c, ICPT_RDTSC, 0);
	edx_eax_set(c, nested_tsc(c, cpu_tsc(c)));
}

OP(op_rdtscp)
{
	need_tsc(c);
	nested_check(c, ICPT_RDTSCP, 0);
	edx_eax_set(c, nested_tsc(c, cpu_tsc(c)));
	c->regs[R_CX] = (u32)c->msr.tsc_aux;
}

/* No counter exists. */
OP(op_rdpmc)
{
	if (!c->cpl || (c->cr4 & CR4_PCE))
		nested_check(c, ICPT_RDPMC, 0);
	cpu_gp0(c);
}

OP(op_rdpid)
{
	nested_check(c, ICPT_RDPID, 0);
	c->regs[i->r] = (u32)c->msr.tsc_aux;
}


OP_END(op_cpuid)
{
	u32 r[4];
	nested_check(c, ICPT_CPUID, 0);
	cpu_cpuid(c, (u32)c->regs[R_AX], (u32)c->regs[R_CX], r);
	c->regs[R_AX] = r[0];
	c->regs[R_BX] = r[1];
	c->regs[R_CX] = r[2];
	c->regs[R_DX] = r[3];
}

static inline void need_fsgsbase(struct cpu *c)
{
	if (!(c->cr4 & CR4_FSGSBASE))
		cpu_ud(c);
}

static void base_set(struct cpu *c, unsigned s, const struct insn *i)
{
	need_fsgsbase(c);
	u64 v = reg_ld(c, i->r, i->opsz == 8 ? 8 : 4); /* 66h means nothing */
	if (!cpu_address_valid(c, v))
		cpu_gp0(c);
	c->seg[s].base = v;
	cpu_update_segs(c);
}

static void base_get(struct cpu *c, unsigned s, const struct insn *i)
{
	need_fsgsbase(c);
	reg_st(c, i->r, c->seg[s].base, i->opsz == 8 ? 8 : 4);
}

OP(op_rdfsbase) { base_get(c, S_FS, i); }
OP(op_rdgsbase) { base_get(c, S_GS, i); }
OP(op_wrfsbase) { base_set(c, S_FS, i); }
OP(op_wrgsbase) { base_set(c, S_GS, i); }

OP(op_swapgs)
{
	if (!cpu_code64(c))
		cpu_ud(c);
	need_cpl0(c);
	u64 old = c->seg[S_GS].base;
	c->seg[S_GS].base = c->msr.kernel_gs_base;
	c->msr.kernel_gs_base = old;
	cpu_update_segs(c);
}
