/* VM exits: what is told, the guest's state saved, the host's loaded. Intel SDM vol. 3 chapter 27.
 *
 *  1. vmx_leave_with() only notes and unwinds; vmx_vmexit() moves the state once RIP is that of the
 *     instruction, on the way that exceptions go.
 *  2. The VMCS is written before the host's state is loaded; what no field is told of stays 0. */
#define LOG_TOPIC "vmx"
#include "cpu/seg.h"
#include "cpu/vmx.h"

/* ---- leaving ------------------------------------------------------------------------------------ */

/* Exits that happen after an instruction or between two: they have no instruction length. */
static bool trap_like(u32 reason)
{
	switch (reason) {
	case EXIT_INTERRUPT: case EXIT_TRIPLE_FAULT: case EXIT_INIT: case EXIT_SIPI: case EXIT_INTR_WINDOW:
	case EXIT_NMI_WINDOW: case EXIT_MTF: case EXIT_TPR_THRESHOLD: case EXIT_EOI: case EXIT_TIMER:
	case EXIT_APIC_WRITE: case EXIT_EXCEPTION: return true;
	default: return false;
	}
}

_Noreturn void vmx_leave_with(struct cpu *c, struct vmx_exit x)
{
	x.tsc = c->cur && c->insn_tsc ? c->insn_tsc : cpu_tsc(c);
	const u64 vec = c->nested.vectoring;
	u32 len = c->cur ? c->cur->len : c->vmx->soft_len;
	const bool soft = (vec >> 8 & 7) >= VEC_SOFT_INT;
	if (vec) /* of an event on its way only software's have an instruction */
		x.insn_len = soft ? len : 0;
	else if (!trap_like(x.reason))
		x.insn_len = len;
	x.shadow = c->cur && (!vec || soft) ? c->shadow_before : 0; /* INT n's lasts until its handler is there */
	if ((c->shadow | x.shadow) & SHADOW_SS)
		x.debug |= c->dr6_pending;
	c->vmx->exit = x;
	nested_unwind(c);
}

_Noreturn void vmx_leave(struct cpu *c, enum vmx_reason why, u64 qual)
{
	vmx_leave_with(c, (struct vmx_exit){ .reason = why, .qualification = qual });
}

void vmx_exit_between(struct cpu *c, struct vmx_exit x)
{
	x.tsc = cpu_tsc(c);
	c->vmx->exit = x;
	vmx_vmexit(c);
}

/* ---- saving the guest ----------------------------------------------------------------------------- */

/* SS.DPL is CPL always, also where SS is null and in V86 mode. */
static void save_segments(struct cpu *c)
{
	u64 *f = c->vmx->vmcs.f;
	for (unsigned k = 0; k < 8; k++) {
		const struct segment *s = &c->seg[vmcs_segments[k]];
		f[VMCS_GUEST_ES_SEL + k] = s->sel;
		f[VMCS_GUEST_ES_AR + k] = s->attr & 0x1f0ff;
		f[VMCS_GUEST_ES_LIMIT + k] = s->limit;
		f[VMCS_GUEST_ES_BASE + k] = s->base;
	}
	VF(GUEST_GDTR_BASE) = c->gdtr.base;
	VF(GUEST_GDTR_LIMIT) = c->gdtr.limit;
	VF(GUEST_IDTR_BASE) = c->idtr.base;
	VF(GUEST_IDTR_LIMIT) = c->idtr.limit;
}

static void save_control(struct cpu *c)
{
	u32 x = (u32)VF(EXIT_CONTROLS);
	VF(GUEST_CR0) = c->cr0;
	VF(GUEST_CR3) = c->cr3;
	VF(GUEST_CR4) = c->cr4;
	if (x & EXIT_SAVE_DEBUG) {
		VF(GUEST_DR7) = c->dr[7];
		VF(GUEST_DEBUGCTL) = c->msr.debugctl;
	}
	if (x & EXIT_SAVE_PAT)
		VF(GUEST_PAT) = c->msr.pat;
	VF(GUEST_PKRS) = c->msr.pkrs;
	if (x & EXIT_SAVE_EFER)
		VF(GUEST_EFER) = c->efer;
	if (x & EXIT_SAVE_TIMER)
		VF(PREEMPTION_TIMER) = vmx_timer_left(c);
	VF(GUEST_SYSENTER_CS) = (u32)c->msr.sysenter_cs;
	VF(GUEST_SYSENTER_ESP) = c->msr.sysenter_esp;
	VF(GUEST_SYSENTER_EIP) = c->msr.sysenter_eip;
	u64 entry = VF(ENTRY_CONTROLS);
	VF(ENTRY_CONTROLS) = c->efer & EFER_LMA ? entry | ENTRY_IA32E : entry & ~(u64)ENTRY_IA32E;
	for (unsigned k = 0; k < 4 && vmx_proc2(c, PROC2_EPT); k++)
		c->vmx->vmcs.f[VMCS_GUEST_PDPTE0 + k] = c->pdpte[k];
}

/* What is put off: by MOV SS, or for an exit after the instruction. TF in a shadow means a step that is yet to be
 * reported, and an entry wants it so; but a #DB that exits is the host's now. SDM 27.3.4, 26.3.1.5. */
static u64 pending_debug(const struct cpu *c, const struct vmx_exit *x, u8 shadow)
{
	u64 debug = c->dr6_pending | x->debug, hits = debug & 0xf;
	bool is_db = x->reason == EXIT_EXCEPTION && (x->intr_info & 0xff) == V_DB;
	if (shadow && (c->rflags & FL_TF) && !(c->msr.debugctl & 2) && !is_db)
		debug |= PENDING_BS;
	return (hits ? hits | PENDING_ENABLED : 0) | (debug & PENDING_BS);
}

static void save_rest(struct cpu *c, const struct vmx_exit *x)
{
	/* MWAIT's is none of the manual's: the guest goes on behind it. */
	static const u8 activity[] = { [ACT_RUN] = 0, [ACT_HLT] = 1, [ACT_SHUTDOWN] = 2, [ACT_WAIT_SIPI] = 3, [ACT_MWAIT] = 0 };
	bool nmi = vmx_pin(c, PIN_VIRTUAL_NMI) ? c->vmx->virtual_nmi_blocked : c->nmi_blocked;
	u8 shadow = c->shadow | x->shadow;
	VF(GUEST_INTERRUPTIBILITY) = (shadow & SHADOW_STI ? BLOCK_STI : 0) | (shadow & SHADOW_SS ? BLOCK_MOV_SS : 0) |
				     (nmi ? BLOCK_NMI : 0);
	VF(GUEST_ACTIVITY) = activity[c->activity];
	VF(GUEST_PENDING_DEBUG) = pending_debug(c, x, shadow);
	VF(GUEST_RSP) = c->regs[R_SP];
	VF(GUEST_RIP) = c->rip;
	VF(GUEST_RFLAGS) = c->rflags | (x->set_rf ? FL_RF : 0);
}

/* ---- what is told ------------------------------------------------------------------------------------ */

/* Exits by a double or triple fault are not of the delivery that led to them. SDM 27.2.4. */
static bool tells_vectoring(const struct vmx_exit *x)
{
	if (x->reason == EXIT_TRIPLE_FAULT)
		return false;
	return !(x->reason == EXIT_EXCEPTION && (x->intr_info & 0x7ff) == (INTR_HARD_EXC << 8 | V_DF));
}

static void tell(struct cpu *c, const struct vmx_exit *x)
{
	u64 vec = tells_vectoring(x) ? c->nested.vectoring : 0;
	VF(EXIT_REASON) = x->reason;
	VF(EXIT_QUALIFICATION) = x->qualification;
	VF(GUEST_LINEAR) = x->linear;
	VF(GUEST_PHYSICAL) = x->physical;
	VF(EXIT_INTR_INFO) = x->intr_info;
	VF(EXIT_INTR_ERROR) = x->intr_error;
	VF(IDT_VECTORING_INFO) = (u32)vec;
	VF(IDT_VECTORING_ERROR) = vec & VEC_HAS_ERROR ? vec >> 32 : 0;
	VF(EXIT_INSN_LEN) = x->insn_len;
	VF(EXIT_INSN_INFO) = x->insn_info;
	VF(ENTRY_INTR_INFO) &= ~(u64)INTR_VALID;
}

/* ---- the host --------------------------------------------------------------------------------------------- */

static struct segment host_data(u64 sel, u64 base)
{
	struct segment s = { .sel = (u16)sel, .attr = 0xc093, .limit = 0xffffffff, .base = base };
	if (!sel)
		s.attr |= SEG_UNUSABLE;
	return s;
}

static void host_segments(struct cpu *c, bool host64)
{
	c->seg[S_CS] = (struct segment){ (u16)VF(HOST_CS_SEL), host64 ? 0xa09b : 0xc09b, 0xffffffff, 0 };
	c->seg[S_SS] = host_data(VF(HOST_SS_SEL), 0);
	c->seg[S_DS] = host_data(VF(HOST_DS_SEL), 0);
	c->seg[S_ES] = host_data(VF(HOST_ES_SEL), 0);
	c->seg[S_FS] = host_data(VF(HOST_FS_SEL), VF(HOST_FS_BASE));
	c->seg[S_GS] = host_data(VF(HOST_GS_SEL), VF(HOST_GS_BASE));
	c->seg[S_LDTR] = seg_null(0, 0);
	c->seg[S_TR] = (struct segment){ (u16)VF(HOST_TR_SEL), 0x8b, 0x67, VF(HOST_TR_BASE) };
	c->gdtr = (struct dtable){ VF(HOST_GDTR_BASE), 0xffff };
	c->idtr = (struct dtable){ VF(HOST_IDTR_BASE), 0xffff };
	c->cpl = 0;
}

static void host_control(struct cpu *c, bool host64)
{
	const u64 kept = CR0_CD | CR0_NW, lm = EFER_LME | EFER_LMA;
	u32 x = (u32)VF(EXIT_CONTROLS);
	c->cr0 = (VF(HOST_CR0) & CR0_DEFINED & ~kept) | (c->cr0 & kept) | CR0_ET;
	c->cr4 = VF(HOST_CR4) | (host64 ? CR4_PAE : 0);
	if (!host64)
		c->cr4 &= ~(u64)CR4_PCIDE;
	c->efer = x & EXIT_LOAD_EFER ? VF(HOST_EFER) : (c->efer & ~lm) | (host64 ? lm : 0);
	if (x & EXIT_LOAD_PAT)
		c->msr.pat = VF(HOST_PAT);
	if (x & EXIT_LOAD_PKRS)
		c->msr.pkrs = VF(HOST_PKRS);
	c->dr[7] = 0x400;
	c->msr.debugctl = 0;
	c->msr.sysenter_cs = VF(HOST_SYSENTER_CS);
	c->msr.sysenter_esp = VF(HOST_SYSENTER_ESP);
	c->msr.sysenter_eip = VF(HOST_SYSENTER_EIP);
	c->cr3 = VF(HOST_CR3);
}

/* The processor stops: the exit cannot be completed. SDM 27.7. */
void vmx_abort(struct cpu *c, u32 why)
{
	c->vmx->vmcs.abort = why;
	vmcs_store(c);
	log_guest("cpu %u: VMX abort %u", c->index, why);
	cpu_shut_down(c);
}

void vmx_load_host(struct cpu *c)
{
	bool host64 = VF(EXIT_CONTROLS) & EXIT_HOST64, vpid = vmx_proc2(c, PROC2_VPID);
	u32 bad;
	mmu_space_leave(c);
	c->nested.mode = NEST_NONE;
	c->nested.step = false;
	c->nested.apic_page = ~0ull;
	c->nested.paging = false;
	c->nested.intr_gate = INTR_BY_IF;
	c->nested.vectoring = 0;
	c->vmx->pin = c->vmx->proc = c->vmx->proc2 = 0;
	c->vmx->inject = 0;
	c->icpt = 0;
	cpu_clear_event(c, EV_TRAP | EV_VINTR | EV_NESTED);
	host_control(c, host64);
	host_segments(c, host64);
	c->regs[R_SP] = VF(HOST_RSP);
	c->rip = VF(HOST_RIP);
	c->rflags = FL_1;
	c->dr6_pending = 0;
	c->shadow = 0;
	c->activity = ACT_RUN;
	c->delivering = -1;
	c->delivering_ext = false;
	c->monitor_armed = false;
	mmu_space_enter(c, 0, 0, false);
	if (!vpid)
		mmu_flush_all(c); /* host and guest share VPID 0; of all PCIDs, SDM 28.3.3.1 */
	cpu_update_mode(c);
	bool pae = (c->cr0 & CR0_PG) && (c->cr4 & CR4_PAE) && !cpu_long(c);
	if (pae && !mmu_load_pdptes(c, c->cr3)) {
		vmx_abort(c, 2);
		return;
	}
	if (!vmx_load_msrs(c, VF(EXIT_MSR_LOAD_ADDR), (u32)VF(EXIT_MSR_LOAD_COUNT), &bad))
		vmx_abort(c, 4);
}

void vmx_vmexit(struct cpu *c)
{
	struct vmx_exit x = c->vmx->exit;
	bool was_nmi = x.reason == EXIT_EXCEPTION && (x.intr_info & 0x7ff) == (INTR_NMI << 8 | V_NMI);
	vmx_count_exit(c, x.reason);
	tell(c, &x);
	save_segments(c);
	save_control(c);
	save_rest(c, &x);
	if (!vmx_store_msrs(c, VF(EXIT_MSR_STORE_ADDR), (u32)VF(EXIT_MSR_STORE_COUNT))) {
		vmx_abort(c, 1);
		return;
	}
	/* Blocking by NMI goes on as it is in the guest; with virtual NMIs that is not at all. */
	bool blocked = c->nmi_blocked;
	vmx_load_host(c);
	c->nmi_blocked = was_nmi || blocked;
	cpu_update_events(c);
}
