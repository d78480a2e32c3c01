/* What exits from VMX non-root operation: instructions, control registers, MSRs, exceptions. Intel SDM
 * vol. 3 25.1 to 25.3.
 *
 * The callers are nested_check() and its kin, at their place in the order of an instruction's checks.
 * A function that returns has found that there is no exit. */
#include "cpu/vmx.h"
#include "cpu/vmx_api.h"

/* ---- which kinds to ask about --------------------------------------------------------------------- */

#define DESC_TABLES (ICPT_BIT(ICPT_IDTR_READ) | ICPT_BIT(ICPT_GDTR_READ) | ICPT_BIT(ICPT_LDTR_READ) | \
		     ICPT_BIT(ICPT_TR_READ) | ICPT_BIT(ICPT_IDTR_WRITE) | ICPT_BIT(ICPT_GDTR_WRITE) | \
		     ICPT_BIT(ICPT_LDTR_WRITE) | ICPT_BIT(ICPT_TR_WRITE))
#define ALWAYS (ICPT_BIT(ICPT_CR_READ) | ICPT_BIT(ICPT_CR_WRITE) | ICPT_BIT(ICPT_MSR_READ) | ICPT_BIT(ICPT_MSR_WRITE) | \
		ICPT_BIT(ICPT_XSETBV) | ICPT_BIT(ICPT_EXCEPTION) | ICPT_BIT(ICPT_INIT) | ICPT_BIT(ICPT_SIPI) | \
		ICPT_BIT(ICPT_SHUTDOWN) | ICPT_BIT(ICPT_TASK_SWITCH) | ICPT_BIT(ICPT_CPUID) | ICPT_BIT(ICPT_INVD) | \
		ICPT_BIT(ICPT_VM))

void vmx_update_intercepts(struct cpu *c)
{
	static const struct { u32 control; u8 icpt; } proc[] = {
		{ PROC_HLT, ICPT_HLT }, { PROC_INVLPG, ICPT_INVLPG }, { PROC_MWAIT, ICPT_MWAIT }, { PROC_RDPMC, ICPT_RDPMC },
		{ PROC_RDTSC, ICPT_RDTSC }, { PROC_RDTSC, ICPT_RDTSCP }, { PROC_MOV_DR, ICPT_DR_READ },
		{ PROC_MOV_DR, ICPT_DR_WRITE }, { PROC_UNCOND_IO | PROC_IO_BITMAPS, ICPT_IO }, { PROC_MONITOR, ICPT_MONITOR },
		{ PROC_PAUSE, ICPT_PAUSE }, { PROC_INTR_WINDOW, ICPT_VINTR }, { PROC_NMI_WINDOW, ICPT_NMI_WINDOW },
		{ PROC_INVLPG, ICPT_INVPCID },
	}, proc2[] = {
		{ PROC2_WBINVD, ICPT_WBINVD }, { PROC2_PAUSE_LOOP, ICPT_PAUSE }, { PROC2_RDRAND, ICPT_RDRAND },
		{ PROC2_RDSEED, ICPT_RDSEED }, { PROC2_XSAVES, ICPT_XSAVES }, { PROC2_XSAVES, ICPT_XRSTORS },
		{ PROC2_VIRTUAL_INTR, ICPT_VINTR },
	}, disables[] = { /* 0: the instruction is #UD */
		{ PROC2_RDTSCP, ICPT_RDTSCP }, { PROC2_RDTSCP, ICPT_RDPID }, { PROC2_INVPCID, ICPT_INVPCID },
		{ PROC2_XSAVES, ICPT_XSAVES }, { PROC2_XSAVES, ICPT_XRSTORS },
	};
	u64 v = ALWAYS | (vmx_proc2(c, PROC2_DESC_TABLE) ? DESC_TABLES : 0);
	for (unsigned k = 0; k < ARRAY_LEN(proc); k++)
		v |= vmx_proc(c, proc[k].control) ? ICPT_BIT(proc[k].icpt) : 0;
	for (unsigned k = 0; k < ARRAY_LEN(proc2); k++)
		v |= vmx_proc2(c, proc2[k].control) ? ICPT_BIT(proc2[k].icpt) : 0;
	for (unsigned k = 0; k < ARRAY_LEN(disables); k++)
		v |= vmx_proc2(c, disables[k].control) ? 0 : ICPT_BIT(disables[k].icpt);
	v |= vmx_pin(c, PIN_EXTERNAL) ? ICPT_BIT(ICPT_INTR) : 0;
	v |= vmx_pin(c, PIN_PREEMPTION) ? ICPT_BIT(ICPT_RDTSC) | ICPT_BIT(ICPT_RDTSCP) : 0;
	v |= vmx_pin(c, PIN_NMI) ? ICPT_BIT(ICPT_NMI) : 0;
	v |= vmx_pin(c, PIN_VIRTUAL_NMI) ? ICPT_BIT(ICPT_IRET) : 0;
	c->icpt = v;
}

/* ---- instructions ------------------------------------------------------------------------------------ */

static bool bitmap_bit(struct cpu *c, u64 addr, u32 bit)
{
	return mem_phys_read(c->mem, addr + bit / 8, 1) >> (bit & 7) & 1;
}

/* An access of several ports exits if any of them does; one that wraps around 64 KiB always does. */
static bool io_exits(struct cpu *c, u32 port, unsigned size)
{
	if (!vmx_proc(c, PROC_IO_BITMAPS))
		return vmx_proc(c, PROC_UNCOND_IO);
	for (unsigned k = 0; k < size; k++) {
		u32 p = port + k;
		if (p > 0xffff || bitmap_bit(c, p & 0x8000 ? VF(IO_BITMAP_B) : VF(IO_BITMAP_A), p & 0x7fff))
			return true;
	}
	return false;
}

static void io(struct cpu *c, u64 info)
{
	const struct insn *i = c->cur;
	u32 port = info & 0xffff, size = info >> 16 & 0xff;
	bool in = info & IO_IN, string = info & IO_STRING;
	if (!io_exits(c, port, size))
		return;
	struct vmx_exit x = { .reason = EXIT_IO };
	x.qualification = (size - 1) | (in ? 8u : 0) | (u64)port << 16;
	if (string) {
		u64 mask = i->adsz == 8 ? ~0ull : i->adsz == 4 ? 0xffffffffull : 0xffffull;
		unsigned seg = in ? S_ES : i->seg <= S_GS ? i->seg : S_DS;
		u64 lin = (c->regs[in ? R_DI : R_SI] & mask) + c->ebase[seg];
		x.qualification |= 16 | (i->flags & (IF_REP | IF_REPNE) ? 32 : 0);
		x.linear = cpu_code64(c) ? lin : (u32)lin;
		x.insn_info = (i->adsz == 8 ? 2u : i->adsz == 4 ? 1u : 0u) << 7 | (in ? 0 : seg << 15);
	} else if (i->len - (i->opsz == 2) > 1) { /* the port is a byte of the instruction */
		x.qualification |= 64;
	}
	vmx_leave_with(c, x);
}

/* PAUSE exits, or where the guest's kernel has spun for long without a pause in between. SDM 25.1.3. */
static void pause_loop(struct cpu *c)
{
	struct vmx *v = c->vmx;
	if (vmx_proc(c, PROC_PAUSE))
		vmx_leave(c, EXIT_PAUSE, 0);
	if (c->cpl || !vmx_proc2(c, PROC2_PAUSE_LOOP))
		return;
	u64 now = cpu_tsc(c), last = v->ple_last;
	v->ple_last = now;
	if (!v->ple_first || now - last > VF(PLE_GAP))
		v->ple_first = now;
	else if (now - v->ple_first > VF(PLE_WINDOW))
		vmx_leave(c, EXIT_PAUSE, 0);
}

static void xsave_exits(struct cpu *c, unsigned reason)
{
	if (!vmx_proc2(c, PROC2_XSAVES))
		cpu_ud(c);
	u64 asked = (u64)(u32)c->regs[R_DX] << 32 | (u32)c->regs[R_AX];
	if (asked & c->xss & VF(XSS_EXIT_BITMAP))
		vmx_leave_insn(c, c->cur, reason, -1, -1);
}

/* No guest may see a time after its preemption timer's, whenever the machine's timer comes. */
static void time_stamp(struct cpu *c, enum vmx_reason why)
{
	if (vmx_proc(c, PROC_RDTSC))
		vmx_leave(c, why, 0);
	if (vmx_pin(c, PIN_PREEMPTION) && !vmx_timer_left(c)) {
		c->insn_tsc = 0; /* that may have been before */
		vmx_leave(c, EXIT_TIMER, 0);
	}
}

static _Noreturn void task(struct cpu *c, u64 info)
{
	static const u8 source[] = { [TASK_JMP] = 2, [TASK_CALL] = 0, [TASK_IRET] = 1, [TASK_GATE] = 3 };
	vmx_leave_with(c, (struct vmx_exit){ .reason = EXIT_TASK_SWITCH, .set_rf = info & ICPT_TASK_RF,
					     .qualification = (info & 0xffff) | (u64)source[info >> 16 & 3] << 30 });
}

/* IRET ends the blocking of virtual NMIs, also one that faults then. */
static void iret(struct cpu *c)
{
	struct vmx *v = c->vmx;
	v->iret_unblocked = v->virtual_nmi_blocked ? cpu_icount(c) + 1 : 0;
	v->virtual_nmi_blocked = false;
	if (vmx_proc(c, PROC_NMI_WINDOW))
		cpu_post_event(c, EV_NESTED);
}

bool vmx_keeps_nmi_blocked(struct cpu *c)
{
	if (c->nested.mode != NEST_VMX)
		return false;
	if (vmx_pin(c, PIN_NMI))
		return true;
	c->vmx->iret_unblocked = cpu_icount(c) + 1;
	return false;
}

bool vmx_iret_unblocked(const struct cpu *c)
{
	return c->cur && c->vmx->iret_unblocked == cpu_icount(c) + 1 && !c->nested.vectoring;
}

void vmx_intercept(struct cpu *c, enum intercept x, u64 info)
{
	const struct insn *i = c->cur;
	switch (x) {
	case ICPT_DR_READ: vmx_leave(c, EXIT_DR, (info & 7) | 16 | (u64)i->r << 8);
	case ICPT_DR_WRITE: vmx_leave(c, EXIT_DR, (info & 7) | (u64)i->rm << 8);
	case ICPT_GDTR_READ: vmx_leave_descriptor(c, false, 0);
	case ICPT_IDTR_READ: vmx_leave_descriptor(c, false, 1);
	case ICPT_GDTR_WRITE: vmx_leave_descriptor(c, false, 2);
	case ICPT_IDTR_WRITE: vmx_leave_descriptor(c, false, 3);
	case ICPT_LDTR_READ: vmx_leave_descriptor(c, true, 0);
	case ICPT_TR_READ: vmx_leave_descriptor(c, true, 1);
	case ICPT_LDTR_WRITE: vmx_leave_descriptor(c, true, 2);
	case ICPT_TR_WRITE: vmx_leave_descriptor(c, true, 3);
	case ICPT_XSETBV: vmx_leave(c, EXIT_XSETBV, 0);
	case ICPT_SHUTDOWN: vmx_leave(c, EXIT_TRIPLE_FAULT, 0);
	case ICPT_NMI: vmx_nmi(c); return;
	case ICPT_INTR: vmx_intr(c); return;
	case ICPT_INIT:
		cpu_clear_event(c, EV_INIT);
		vmx_leave(c, EXIT_INIT, 0);
	case ICPT_SIPI:
		if (c->activity == ACT_WAIT_SIPI)
			vmx_leave(c, EXIT_SIPI, info);
		return;
	case ICPT_TASK_SWITCH: task(c, info);
	case ICPT_IRET: iret(c); return;
	case ICPT_HLT: vmx_leave(c, EXIT_HLT, 0);
	case ICPT_PAUSE: pause_loop(c); return;
	case ICPT_MONITOR: vmx_leave(c, EXIT_MONITOR, 0);
	case ICPT_MWAIT: vmx_leave(c, EXIT_MWAIT, c->monitor_armed);
	case ICPT_CPUID: vmx_leave(c, EXIT_CPUID, 0);
	case ICPT_RDTSC: time_stamp(c, EXIT_RDTSC); return;
	case ICPT_RDTSCP:
		if (!vmx_proc2(c, PROC2_RDTSCP))
			cpu_ud(c);
		time_stamp(c, EXIT_RDTSCP);
		return;
	case ICPT_RDPID: cpu_ud(c);
	case ICPT_RDPMC: vmx_leave(c, EXIT_RDPMC, 0);
	case ICPT_RDRAND: case ICPT_RDSEED:
		vmx_leave_with(c, (struct vmx_exit){ .reason = x == ICPT_RDRAND ? EXIT_RDRAND : EXIT_RDSEED,
			.insn_info = (i->imm2 & 15) << 3 | (i->opsz == 8 ? 2u : i->opsz == 4 ? 1u : 0u) << 11 });
	case ICPT_INVD: vmx_leave(c, EXIT_INVD, 0);
	case ICPT_WBINVD: vmx_leave(c, EXIT_WBINVD, 0);
	case ICPT_INVLPG: vmx_leave(c, EXIT_INVLPG, info);
	case ICPT_INVPCID:
		if (!vmx_proc2(c, PROC2_INVPCID))
			cpu_ud(c);
		vmx_leave_insn(c, i, EXIT_INVPCID, -1, i->r);
	case ICPT_IO: io(c, info); return;
	case ICPT_XSAVES: xsave_exits(c, EXIT_XSAVES); return;
	case ICPT_XRSTORS: xsave_exits(c, EXIT_XRSTORS); return;
	default: return;
	}
}

/* ---- control registers ---------------------------------------------------------------------------------- */

enum { CR_TO = 0, CR_FROM = 1 << 4, CR_QUAL_CLTS = 2 << 4, CR_QUAL_LMSW = 3 << 4, CR_LMSW_MEMORY = 1 << 6 };

static _Noreturn void cr_leave(struct cpu *c, unsigned cr, unsigned type, unsigned gpr)
{
	vmx_leave(c, EXIT_CR, cr | type | (gpr & 15) << 8);
}

/* All 16 bits of the source are told, not only those that CR0 takes. */
static _Noreturn void lmsw_leave(struct cpu *c, unsigned gpr)
{
	struct vmx_exit x = { .reason = EXIT_CR, .qualification = CR_QUAL_LMSW };
	u64 source = c->regs[gpr];
	if (gpr >= R_ZERO) {
		const struct insn *i = c->cur;
		u64 ea = c->regs[i->base] + (c->regs[i->index] << i->scale) + (u64)i->disp;
		x.linear = cpu_code64(c) ? ea + c->ebase[i->seg] : (u32)(ea + c->ebase[i->seg]);
		x.qualification |= CR_LMSW_MEMORY;
		source = mem_ld16(c, x.linear);
	}
	x.qualification |= (source & 0xffff) << 16;
	vmx_leave_with(c, x);
}

static u64 cr0_write(struct cpu *c, u64 v, enum cr_how how, unsigned gpr)
{
	u64 mask = VF(CR0_MASK), differs = (v ^ VF(CR0_SHADOW)) & mask;
	switch (how) {
	case CR_CLTS:
		if (mask & VF(CR0_SHADOW) & CR0_TS)
			vmx_leave(c, EXIT_CR, CR_QUAL_CLTS);
		break;
	case CR_LMSW: /* PE can only be set */
		if ((differs & 0xe) || (differs & v & CR0_PE))
			lmsw_leave(c, gpr);
		break;
	default:
		if (differs)
			cr_leave(c, 0, CR_TO, gpr);
	}
	return (v & ~mask) | (c->cr0 & mask);
}

static bool cr3_target(struct cpu *c, u64 v)
{
	for (unsigned k = 0; k < VF(CR3_TARGET_COUNT); k++)
		if (c->vmx->vmcs.f[VMCS_CR3_TARGET0 + k] == v)
			return true;
	return false;
}

u64 vmx_cr_write(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr)
{
	switch (cr) {
	case 0: return cr0_write(c, v, how, gpr);
	case 3:
		if (vmx_proc(c, PROC_CR3_LOAD) && !cr3_target(c, v))
			cr_leave(c, 3, CR_TO, gpr);
		return v;
	case 4:
		if ((v ^ VF(CR4_SHADOW)) & VF(CR4_MASK))
			cr_leave(c, 4, CR_TO, gpr);
		return (v & ~VF(CR4_MASK)) | (c->cr4 & VF(CR4_MASK));
	case 8:
		if (vmx_proc(c, PROC_CR8_LOAD))
			cr_leave(c, 8, CR_TO, gpr);
		return v;
	default: return v;
	}
}

u64 vmx_cr_read(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr)
{
	switch (cr) {
	case 0: return (v & ~VF(CR0_MASK)) | (VF(CR0_SHADOW) & VF(CR0_MASK));
	case 3:
		if (vmx_proc(c, PROC_CR3_STORE))
			cr_leave(c, 3, CR_FROM, gpr);
		return v;
	case 4: return (v & ~VF(CR4_MASK)) | (VF(CR4_SHADOW) & VF(CR4_MASK));
	case 8:
		if (vmx_proc(c, PROC_CR8_STORE))
			cr_leave(c, 8, CR_FROM, gpr);
		return v;
	default: return v;
	}
}

/* ---- MSRs, time --------------------------------------------------------------------------------------------- */

static bool msr_exits(struct cpu *c, u32 msr, bool write)
{
	if (!vmx_proc(c, PROC_MSR_BITMAPS))
		return true;
	u64 at = VF(MSR_BITMAP) + (write ? 2048 : 0);
	if (msr <= 0x1fff)
		return bitmap_bit(c, at, msr);
	if (msr >= 0xc0000000 && msr <= 0xc0001fff)
		return bitmap_bit(c, at + 1024, msr & 0x1fff);
	return true;
}

bool vmx_guest_msr_read(struct cpu *c, u32 msr, u64 *v)
{
	if (msr_exits(c, msr, false))
		vmx_leave(c, EXIT_RDMSR, 0);
	if (msr == 0x10) {
		*v = vmx_tsc(c, cpu_tsc(c));
		return true;
	}
	return vmx_apic_msr_read(c, msr, v);
}

bool vmx_guest_msr_write(struct cpu *c, u32 msr, u64 v)
{
	if (msr_exits(c, msr, true))
		vmx_leave(c, EXIT_WRMSR, 0);
	return vmx_apic_msr_write(c, msr, v);
}

u64 vmx_tsc(const struct cpu *c, u64 tsc)
{
	if (!vmx_proc(c, PROC_TSC_OFFSET))
		return tsc;
	if (vmx_proc2(c, PROC2_TSC_SCALING))
		tsc = (u64)((unsigned __int128)tsc * VF(TSC_MULTIPLIER) >> 48);
	return tsc + VF(TSC_OFFSET);
}

/* ---- exceptions ---------------------------------------------------------------------------------------------- */

static bool exception_exits(struct cpu *c, const struct exception *x)
{
	bool bit = VF(EXCEPTION_BITMAP) >> (x->vector & 31) & 1;
	if (x->vector != V_PF)
		return bit;
	bool match = (x->error & VF(PF_ERROR_MASK)) == VF(PF_ERROR_MATCH);
	return bit == match;
}

static unsigned exception_type(const struct exception *x)
{
	if (!x->soft)
		return INTR_HARD_EXC;
	return x->vector == V_DB ? INTR_PRIV_SOFT : INTR_SOFT_EXC;
}

void vmx_exception(struct cpu *c, const struct exception *x)
{
	if (x->vector > 31 || !exception_exits(c, x))
		return;
	struct vmx_exit e = { .reason = EXIT_EXCEPTION, .intr_error = x->has_error ? x->error : 0, .debug = x->held_debug };
	e.intr_info = INTR_VALID | x->vector | exception_type(x) << 8 | (x->has_error ? INTR_HAS_ERROR : 0);
	if (vmx_iret_unblocked(c) && x->vector != V_DF)
		e.intr_info |= INTR_NMI_UNBLOCK;
	if (x->vector == V_PF)
		e.qualification = x->cr2;
	else if (x->vector == V_DB)
		e.qualification = x->dr6 & (0xf | DR6_BD | DR6_BS);
	if (x->soft && c->cur)
		e.insn_len = c->cur->len;
	e.set_rf = !x->soft && x->vector != V_DF && (x->vector != V_DB || (x->dr6 & DR6_BD));
	vmx_leave_with(c, e);
}

/* ---- VMCS shadowing, VMFUNC ----------------------------------------------------------------------------------- */

/* The bitmaps are by bits 14:0 of the encoding; others always exit. SDM 24.6.15, 25.1.3. */
bool vmx_shadowed(struct cpu *c, u64 encoding, bool write)
{
	if (!vmx_proc2(c, PROC2_SHADOW) || encoding >> 15)
		return false;
	return !bitmap_bit(c, write ? VF(VMWRITE_BITMAP) : VF(VMREAD_BITMAP), (u32)encoding);
}

/* Function 0, EPTP switching: entry ECX of the list, SDM 25.5.5.3. */
void vmx_vmfunc(struct cpu *c)
{
	u32 n = (u32)c->regs[R_AX], k = (u32)c->regs[R_CX];
	if (c->nested.mode != NEST_VMX || !vmx_proc2(c, PROC2_VMFUNC) || n > 63)
		cpu_ud(c);
	if (!(VF(VMFUNC_CONTROLS) >> n & 1) || k > 511)
		vmx_leave(c, EXIT_VMFUNC, 0);
	u64 eptp = mem_phys_read(c->mem, VF(EPTP_LIST_ADDR) + 8 * k, 8);
	if (!ept_pointer_valid(c, eptp))
		vmx_leave(c, EXIT_VMFUNC, 0);
	if (eptp == VF(EPTP))
		return;
	mmu_space_leave(c);
	VF(EPTP) = eptp;
	mmu_space_enter(c, VMX_TAG(vmx_proc2(c, PROC2_VPID) ? VF(VPID) : 0), eptp, false);
}
