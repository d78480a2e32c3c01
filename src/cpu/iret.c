/* IRET in every mode. SDM vol. 2 IRET; vol. 3 6.12, 6.14.3, 7.4 (nested tasks), 20.2.
 *
 *  1. What is popped is read first, checked next, committed last.
 *  2. NMIs are unblocked before all else, also by an IRET that faults (SDM vol. 3 6.7.1).
 *  3. Flags that a level may not change are kept: IOPL below CPL 0, IF above IOPL. */
#include "cpu/seg.h"
#include "cpu/vmx_api.h"

enum {
	/* what an IRET of each size may change at any level */
	FLAGS16 = FL_STATUS | FL_TF | FL_DF | FL_NT,
	FLAGS32 = FLAGS16 | FL_RF | FL_AC | FL_ID,
};

static void end_nmi(struct cpu *c)
{
	if (c->nmi_blocked && !vmx_keeps_nmi_blocked(c))
		cpu_unblock_nmi(c);
}

static void set_flags(struct cpu *c, u64 val, u64 mask)
{
	c->rflags = (c->rflags & ~mask) | (val & mask) | FL_1;
}

/* Real mode, and V86 with IOPL 3 (IOPL itself then stays). */
static void iret_real(struct cpu *c, unsigned opsz)
{
	u64 ip = stack_at(c, 0, opsz);
	u16 sel = (u16)stack_at(c, opsz, opsz);
	u64 flags = stack_at(c, 2 * opsz, opsz);
	if (ip > (cpu_v86(c) ? 0xffff : c->seg[S_CS].limit))
		cpu_gp0(c);
	struct stack st = stack_current(c);
	st.sp += 3 * opsz;
	stack_commit(c, &st);
	set_flags(c, flags, (opsz == 2 ? FLAGS16 : FLAGS32) | FL_IF | (cpu_v86(c) ? 0 : FL_IOPL));
	c->rip = ip;
	seg_load_real(c, S_CS, sel);
}

/* V86 with VME and IOPL < 3, 16 bits: IF of the image becomes VIF. */
static void iret_vme(struct cpu *c)
{
	u64 ip = stack_at(c, 0, 2);
	u16 sel = (u16)stack_at(c, 2, 2);
	u64 flags = stack_at(c, 4, 2);
	if ((flags & FL_TF) || ((flags & FL_IF) && (c->rflags & FL_VIP)))
		cpu_gp0(c);
	struct stack st = stack_current(c);
	st.sp += 6;
	stack_commit(c, &st);
	set_flags(c, flags | (flags & FL_IF ? FL_VIF : 0), FLAGS16 | FL_VIF);
	c->rip = ip;
	seg_load_real(c, S_CS, sel);
}

/* NT: back to the task whose TSS the current one links to. */
static void iret_task(struct cpu *c)
{
	u16 link = (u16)sys_ld(c, c->seg[S_TR].base, 2);
	task_switch(c, link, TASK_IRET, false, 0);
}

/* From CPL 0 to V86 mode: nine doublewords, all flags. */
static void iret_to_v86(struct cpu *c, u64 ip, u16 cs, u64 flags)
{
	static const u8 order[] = { S_ES, S_DS, S_FS, S_GS };
	u64 sp = stack_at(c, 12, 4);
	u16 ss = (u16)stack_at(c, 16, 4), sel[4];
	for (unsigned i = 0; i < 4; i++)
		sel[i] = (u16)stack_at(c, 20 + 4 * i, 4);
	if (ip > 0xffff)
		cpu_gp0(c);
	set_flags(c, flags, FLAGS32 | FL_IF | FL_IOPL | FL_VM | FL_VIF | FL_VIP);
	for (unsigned i = 0; i < 4; i++)
		c->seg[order[i]] = seg_v86(sel[i]);
	c->seg[S_SS] = seg_v86(ss);
	c->regs[R_SP] = (u32)sp;
	c->seg[S_CS] = seg_v86(cs);
	c->cpl = 3;
	c->rip = ip;
	cpu_update_mode(c);
}

/* The flags that an IRET at the current level may change. */
static u64 flags_mask(const struct cpu *c, unsigned opsz)
{
	u64 m = opsz == 2 ? FLAGS16 : FLAGS32;
	if (c->cpl <= cpu_iopl(c))
		m |= FL_IF;
	if (!c->cpl)
		m |= FL_IOPL | (opsz == 2 ? 0 : FL_VIF | FL_VIP);
	return m;
}

/* Protected and long mode, after the three lowest words have been read. 64-bit code always has
 * all five there, and reads them before it checks any. */
static void iret_protected(struct cpu *c, unsigned opsz, u64 ip, u16 sel, u64 flags)
{
	bool wide = cpu_code64(c);
	u64 sp = wide ? stack_at(c, 3 * opsz, opsz) : 0;
	u16 ss_sel = wide ? (u16)stack_at(c, 4 * opsz, opsz) : 0;
	struct segment cs = seg_return_cs(c, sel), ss = c->seg[S_SS];
	unsigned cpl = sel_rpl(sel);
	bool outer = cpl > c->cpl;
	struct stack st = stack_current(c);
	st.sp += 3 * opsz;
	if (outer && !wide) {
		sp = stack_at(c, 3 * opsz, opsz);
		ss_sel = (u16)stack_at(c, 4 * opsz, opsz);
	}
	if (wide)
		seg_check_ip(c, &cs, ip); /* before SS */
	if (outer || wide) {
		st.sp = sp;
		ss = seg_outer_ss(c, ss_sel, &cs);
		st.mask = seg_code64(c, &cs) ? ~0ull : stack_mask(&ss);
	}
	seg_check_ip(c, &cs, ip);
	desc_accessed(c, &cs);
	desc_accessed(c, &ss);
	c->seg[S_SS] = ss;
	stack_commit(c, &st);
	set_flags(c, flags, flags_mask(c, opsz));
	if (outer)
		seg_leave_inner(c, cpl);
	seg_commit_cs(c, cs, cpl, ip);
}

void cpu_iret(struct cpu *c, unsigned opsz)
{
	end_nmi(c);
	if (cpu_v86(c) && cpu_iopl(c) < 3) {
		if (!(c->cr4 & CR4_VME) || opsz != 2)
			cpu_gp0(c);
		iret_vme(c);
		return;
	}
	if (!cpu_protected(c)) {
		iret_real(c, opsz);
		return;
	}
	if (c->rflags & FL_NT) {
		if (cpu_long(c))
			cpu_gp0(c);
		iret_task(c);
		return;
	}
	u64 ip = stack_at(c, 0, opsz);
	u16 sel = (u16)stack_at(c, opsz, opsz);
	u64 flags = stack_at(c, 2 * opsz, opsz);
	if ((flags & FL_VM) && !c->cpl && !cpu_long(c)) /* 16-bit images have no VM */
		iret_to_v86(c, ip, sel, flags);
	else
		iret_protected(c, opsz, ip, sel, flags);
}
