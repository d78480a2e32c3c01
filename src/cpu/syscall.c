/* SYSCALL SYSRET SYSENTER SYSEXIT: fixed flat segments, no descriptor is read. SDM vol. 2 and
 * APM vol. 3, which differ: Intel has SYSCALL and SYSRET in 64-bit mode only and SYSENTER in
 * all, AMD SYSCALL and SYSRET everywhere and SYSENTER not in long mode. c->model->vendor says
 * which is meant.
 *
 * Single step: TF after SYSCALL and SYSRET decides whether a trap follows them. */
#include <string.h>

#include "cpu/seg.h"

static bool is_amd(const struct cpu *c)
{
	return !strcmp(c->model->vendor, "AuthenticAMD") || !strcmp(c->model->vendor, "HygonGenuine");
}

static struct segment flat(u16 sel, u32 attr, unsigned cpl)
{
	return seg_flat((u16)(sel_err(sel) | cpl), attr | cpl << 5);
}

static void step_after(struct cpu *c, u64 old_flags)
{
	if (c->rflags & FL_TF) {
		c->dr6_pending |= DR6_BS;
		cpu_post_event(c, EV_TRAP);
	} else if (old_flags & FL_TF) {
		c->step_skip = true;
	}
}

void cpu_syscall(struct cpu *c)
{
	u64 flags = c->rflags;
	u16 sel = (u16)(c->msr.star >> 32);
	if (!(c->efer & EFER_SCE) || (!is_amd(c) && !cpu_code64(c)))
		cpu_ud(c);
	if (cpu_long(c)) {
		c->regs[R_CX] = c->rip;
		c->regs[R_11] = flags & ~(u64)FL_RF;
		c->rflags = (flags & ~c->msr.fmask & ~(u64)FL_RF) | FL_1;
	} else {
		c->regs[R_CX] = (u32)c->rip;
		c->rflags &= ~(u64)(FL_IF | FL_VM | FL_RF);
	}
	c->seg[S_SS] = seg_flat((u16)(sel + 8), ATTR_DATA32);
	u64 rip = !cpu_long(c) ? (u32)c->msr.star : cpu_code64(c) ? c->msr.lstar : c->msr.cstar;
	seg_commit_cs(c, flat(sel, cpu_long(c) ? ATTR_CODE64 : ATTR_CODE32, 0), 0, rip);
	step_after(c, flags);
}

void cpu_sysret(struct cpu *c, unsigned opsz)
{
	u64 flags = c->rflags;
	bool amd = is_amd(c);
	u16 sel = (u16)(c->msr.star >> 48);
	if (!(c->efer & EFER_SCE) || (!amd && !cpu_code64(c)))
		cpu_ud(c);
	if (cpu_real(c) || c->cpl)
		cpu_gp0(c);
	/* AMD finds out at the first fetch, in ring 3. */
	if (!amd && opsz == 8 && !cpu_canonical(c, c->regs[R_CX]))
		cpu_gp0(c);
	if (cpu_long(c))
		c->rflags = (c->regs[R_11] & 0x3c7fd7) | FL_1;
	else
		c->rflags |= FL_IF;
	if (amd) { /* base, limit and the rest of SS stay */
		c->seg[S_SS].sel = (u16)((sel + 8) | 3);
		c->seg[S_SS].attr |= SEG_DPL;
	} else {
		c->seg[S_SS] = flat((u16)(sel + 8), ATTR_DATA32, 3);
	}
	if (opsz == 8)
		seg_commit_cs(c, flat((u16)(sel + 16), ATTR_CODE64, 3), 3, c->regs[R_CX]);
	else
		seg_commit_cs(c, flat(sel, ATTR_CODE32, 3), 3, (u32)c->regs[R_CX]);
	step_after(c, flags);
}

void cpu_sysenter(struct cpu *c)
{
	bool lng = cpu_long(c);
	u16 sel = (u16)c->msr.sysenter_cs;
	if (lng && is_amd(c))
		cpu_ud(c);
	if (cpu_real(c) || sel_null(sel))
		cpu_gp0(c);
	c->rflags &= ~(u64)(FL_VM | FL_IF | FL_RF);
	c->regs[R_SP] = lng ? c->msr.sysenter_esp : (u32)c->msr.sysenter_esp;
	c->seg[S_SS] = flat((u16)(sel + 8), ATTR_DATA32, 0);
	seg_commit_cs(c, flat(sel, lng ? ATTR_CODE64 : ATTR_CODE32, 0), 0, c->msr.sysenter_eip);
}

void cpu_sysexit(struct cpu *c, unsigned opsz)
{
	u16 sel = (u16)c->msr.sysenter_cs;
	u64 rip = c->regs[R_DX], rsp = c->regs[R_CX];
	if (cpu_real(c) || c->cpl)
		cpu_gp0(c);
	if (cpu_long(c) && is_amd(c))
		cpu_ud(c);
	if (sel_null(sel))
		cpu_gp0(c);
	if (opsz == 8) {
		if (!cpu_canonical(c, rip) || !cpu_canonical(c, rsp))
			cpu_gp0(c);
		c->regs[R_SP] = rsp;
		c->seg[S_SS] = flat((u16)(sel + 40), ATTR_DATA32, 3);
		seg_commit_cs(c, flat((u16)(sel + 32), ATTR_CODE64, 3), 3, rip);
	} else {
		c->regs[R_SP] = (u32)rsp;
		c->seg[S_SS] = flat((u16)(sel + 24), ATTR_DATA32, 3);
		seg_commit_cs(c, flat((u16)(sel + 16), ATTR_CODE32, 3), 3, (u32)rip);
	}
}
