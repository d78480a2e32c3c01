/* VM entry: VMLAUNCH and VMRESUME. Intel SDM vol. 3 chapter 26.
 *
 *  1. Checks come first and change nothing; loading the guest's state cannot fail then, but for its MSR list,
 *     after which the host's state is loaded from the VMCS as for an exit.
 *  2. What the entry injects is delivered by vmx_service(), before anything else happens in the guest.
 * Left out: SMM. */
#define LOG_TOPIC "vmx"
#include "cpu/msr.h"
#include "cpu/seg.h"
#include "cpu/vmx.h"

#define KEPT_CR0 (CR0_CD | CR0_NW)

/* ---- MSR lists --------------------------------------------------------------------------------- */

/* MSRs that no list may have: FS and GS bases, the microcode's, x2APIC's, SMM's. SDM 26.4, 27.6. */
static bool listable(u32 msr, bool load)
{
	if (msr >> 8 == 8)
		return false; /* x2APIC's */
	if (load)
		return msr != 0xc0000100 && msr != 0xc0000101 && msr != 0x79 && msr != 0x8b && msr != 0x9b;
	return msr != 0x9e;
}

bool vmx_load_msrs(struct cpu *c, u64 addr, u32 count, u32 *bad)
{
	for (u32 k = 0; k < count; k++, addr += 16) {
		u64 index = mem_phys_read(c->mem, addr, 8), v = mem_phys_read(c->mem, addr + 8, 8);
		u32 msr = (u32)index;
		*bad = k + 1;
		if (k >= VMX_MSR_LIST_MAX || index >> 32 || !listable(msr, true) || !msr_write(c, msr, v))
			return false;
	}
	return true;
}

bool vmx_store_msrs(struct cpu *c, u64 addr, u32 count)
{
	for (u32 k = 0; k < count; k++, addr += 16) {
		u64 index = mem_phys_read(c->mem, addr, 8), v;
		if (k >= VMX_MSR_LIST_MAX || index >> 32 || !listable((u32)index, false) || !msr_read(c, (u32)index, &v))
			return false;
		if (index == 0x10) /* IA32_TIME_STAMP_COUNTER */
			v = c->vmx->exit.tsc;
		vmx_phys_store(c, addr + 8, v, 8);
	}
	return true;
}

/* ---- the guest's state --------------------------------------------------------------------------- */

static void load_segments(struct cpu *c)
{
	const u64 *f = c->vmx->vmcs.f;
	for (unsigned k = 0; k < 8; k++) {
		struct segment *s = &c->seg[vmcs_segments[k]];
		s->sel = (u16)f[VMCS_GUEST_ES_SEL + k];
		s->attr = (u32)f[VMCS_GUEST_ES_AR + k] & 0x1f0ff;
		s->limit = (u32)f[VMCS_GUEST_ES_LIMIT + k];
		s->base = f[VMCS_GUEST_ES_BASE + k];
	}
	c->gdtr = (struct dtable){ VF(GUEST_GDTR_BASE), (u16)VF(GUEST_GDTR_LIMIT) };
	c->idtr = (struct dtable){ VF(GUEST_IDTR_BASE), (u16)VF(GUEST_IDTR_LIMIT) };
	c->cpl = (u8)(c->seg[S_SS].attr >> 5 & 3);
}

static void load_efer(struct cpu *c, u32 entry)
{
	if (entry & ENTRY_LOAD_EFER) {
		c->efer = VF(GUEST_EFER);
		return;
	}
	bool ia32e = entry & ENTRY_IA32E;
	u64 bits = EFER_LMA | (VF(GUEST_CR0) & CR0_PG ? EFER_LME : 0);
	c->efer = (c->efer & ~bits) | (ia32e ? EFER_LMA | EFER_LME : 0);
}

static void load_control(struct cpu *c)
{
	u32 entry = (u32)VF(ENTRY_CONTROLS);
	load_efer(c, entry);
	c->cr0 = (VF(GUEST_CR0) & CR0_DEFINED & ~(u64)KEPT_CR0) | (c->cr0 & KEPT_CR0) | CR0_ET;
	c->cr4 = VF(GUEST_CR4);
	if (entry & ENTRY_LOAD_DEBUG) {
		c->dr[7] = (VF(GUEST_DR7) & DR7_WRITABLE) | DR7_FIXED;
		c->msr.debugctl = VF(GUEST_DEBUGCTL);
	}
	if (entry & ENTRY_LOAD_PAT)
		c->msr.pat = VF(GUEST_PAT);
	if (entry & ENTRY_LOAD_PKRS)
		c->msr.pkrs = VF(GUEST_PKRS);
	c->msr.sysenter_cs = VF(GUEST_SYSENTER_CS);
	c->msr.sysenter_esp = VF(GUEST_SYSENTER_ESP);
	c->msr.sysenter_eip = VF(GUEST_SYSENTER_EIP);
	c->cr3 = VF(GUEST_CR3);
	if ((c->cr0 & CR0_PG) && (c->cr4 & CR4_PAE) && !(c->efer & EFER_LMA)) {
		for (unsigned k = 0; k < 4; k++)
			c->pdpte[k] = vmx_proc2(c, PROC2_EPT) ? c->vmx->vmcs.f[VMCS_GUEST_PDPTE0 + k]
				: mem_phys_read(c->mem, (c->cr3 & 0xffffffe0) + 8 * k, 8);
	}
}

/* The entry delivers an event; an injected monitor trap flag is none. SDM 26.6. */
static bool vectoring(const struct cpu *c)
{
	return (VF(ENTRY_INTR_INFO) & INTR_VALID) && (VF(ENTRY_INTR_INFO) >> 8 & 7) != INTR_OTHER;
}

/* Whether pending debug exceptions outlive the entry. An injected INT n, INT3 or INTO is as one that stood behind a
 * MOV SS that met a breakpoint; INT1 is not. SDM 26.7.3. */
static bool keeps_debug(const struct cpu *c)
{
	unsigned type = VF(ENTRY_INTR_INFO) >> 8 & 7;
	if (vectoring(c))
		return (VF(GUEST_INTERRUPTIBILITY) & BLOCK_MOV_SS) && (type == INTR_SOFT_INT || type == INTR_SOFT_EXC);
	return VF(GUEST_ACTIVITY) < 2; /* active, HLT */
}

/* Interruptibility, pending debug exceptions, activity. */
static void load_rest(struct cpu *c)
{
	static const u8 activity[] = { ACT_RUN, ACT_HLT, ACT_SHUTDOWN, ACT_WAIT_SIPI };
	u64 block = VF(GUEST_INTERRUPTIBILITY), debug = VF(GUEST_PENDING_DEBUG);
	bool active = vectoring(c) || VF(GUEST_ACTIVITY) == 0;
	c->shadow = (u8)((block & BLOCK_STI ? SHADOW_STI : 0) | (block & BLOCK_MOV_SS ? SHADOW_SS : 0));
	bool nmi = block & BLOCK_NMI, virtual = vmx_pin(c, PIN_VIRTUAL_NMI);
	if (nmi && !virtual)
		c->nmi_blocked = true;
	else if (c->nmi_blocked)
		cpu_unblock_nmi(c);
	c->vmx->virtual_nmi_blocked = nmi && virtual;
	c->activity = active ? ACT_RUN : activity[VF(GUEST_ACTIVITY) & 3];
	c->dr6_pending = 0;
	if (keeps_debug(c) && (debug & (PENDING_ENABLED | PENDING_BS))) {
		c->dr6_pending = debug & (0xf | PENDING_BS);
		cpu_post_event(c, EV_TRAP);
	}
	c->monitor_armed = false;
}

/* Without VPIDs a guest has those of VPID 0, new for each entry. */
static void enter_space(struct cpu *c)
{
	bool vpid = vmx_proc2(c, PROC2_VPID);
	u64 root = vmx_proc2(c, PROC2_EPT) ? VF(EPTP) : 0;
	mmu_space_enter(c, VMX_TAG(vpid ? VF(VPID) : 0), root, !vpid);
}

/* ---- entry ---------------------------------------------------------------------------------------------- */

/* Too late for VMfail: the host's state comes from the VMCS, as for an exit; the guest's area stays. */
static void entry_failed(struct cpu *c, u32 reason, u64 qual)
{
	vmx_count_exit(c, reason);
	VF(EXIT_REASON) = reason | EXIT_ENTRY_FAILED;
	VF(EXIT_QUALIFICATION) = qual;
	log_debug("cpu %u: VM entry failed: reason %u, qualification %llu", c->index, reason, (unsigned long long)qual);
	vmx_load_host(c);
}

static void take_controls(struct cpu *c)
{
	struct vmx *v = c->vmx;
	v->pin = (u32)VF(PIN_CONTROLS);
	v->proc = (u32)VF(PROC_CONTROLS);
	v->proc2 = v->proc & PROC_SECONDARY ? (u32)VF(PROC2_CONTROLS) : 0;
	c->nested.mode = NEST_VMX;
	c->nested.intr_gate = vmx_pin(c, PIN_EXTERNAL) ? INTR_OPEN : INTR_BY_IF;
	c->nested.paging = vmx_proc2(c, PROC2_EPT);
	c->nested.vectoring = 0;
	c->nested.apic_page = vmx_proc2(c, PROC2_APIC_ACCESS) ? VF(APIC_ACCESS_ADDR) : ~0ull;
	c->nested.step = vmx_proc(c, PROC_MTF);
	v->step_armed = v->trapped = false;
	v->ple_first = v->ple_last = 0;
	v->inject = VF(ENTRY_INTR_INFO) & INTR_VALID ? VF(ENTRY_INTR_INFO) | VF(ENTRY_ERROR_CODE) << 32 : 0;
	v->inject_len = (u8)VF(ENTRY_INSN_LEN);
}

unsigned vmx_enter(struct cpu *c, bool launch)
{
	u64 qual;
	u32 bad;
	if (!vmx_controls_valid(c))
		return VME_ENTRY_CONTROLS;
	if (!vmx_host_valid(c))
		return VME_ENTRY_HOST;
	c->step_skip = c->rflags & FL_TF; /* the host's: neither side of an entry sees its trap */
	if (!vmx_guest_valid(c, &qual)) {
		entry_failed(c, EXIT_BAD_GUEST, qual);
		return 0;
	}
	mmu_space_leave(c);
	const bool nmi_blocked = c->nmi_blocked;
	take_controls(c);
	load_control(c);
	load_segments(c);
	c->regs[R_SP] = VF(GUEST_RSP);
	c->rip = VF(GUEST_RIP);
	c->rflags = VF(GUEST_RFLAGS);
	load_rest(c);
	enter_space(c);
	if (!vmx_load_msrs(c, VF(ENTRY_MSR_LOAD_ADDR), (u32)VF(ENTRY_MSR_LOAD_COUNT), &bad)) {
		c->nmi_blocked = nmi_blocked;
		entry_failed(c, EXIT_BAD_MSR_LIST, bad);
		return 0;
	}
	if (launch)
		c->vmx->vmcs.launched = 1;
	vmx_timer_start(c);
	vmx_update_intercepts(c);
	cpu_post_event(c, EV_NESTED);
	vmx_apic_enter(c);
	cpu_update_mode(c);
	return 0;
}
