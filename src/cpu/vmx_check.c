/* VM entry: checks on the controls and on the host-state area. Intel SDM vol. 3 26.2, in its order.
 *
 * Nothing here changes state: the caller answers with VMfailValid and the error number. */
#include "cpu/msr.h"
#include "cpu/vmx.h"

/* ---- execution controls, SDM 26.2.1.1 ------------------------------------------------------------- */

static bool tpr_shadow_valid(struct cpu *c, u32 proc, u32 proc2)
{
	if (!(proc & PROC_TPR_SHADOW))
		return !(proc2 & (PROC2_X2APIC | PROC2_APIC_REGS | PROC2_VIRTUAL_INTR));
	if (!vmx_address(c, VF(VIRTUAL_APIC_ADDR), 4096))
		return false;
	if (proc2 & PROC2_VIRTUAL_INTR)
		return true;
	if (VF(TPR_THRESHOLD) >> 4)
		return false;
	u64 vtpr = mem_phys_read(c->mem, VF(VIRTUAL_APIC_ADDR) + 0x80, 1);
	return (proc2 & PROC2_APIC_ACCESS) || VF(TPR_THRESHOLD) <= (vtpr >> 4 & 15);
}

static bool interrupts_valid(struct cpu *c, u32 pin, u32 proc, u32 proc2)
{
	if (!(pin & PIN_NMI) && (pin & PIN_VIRTUAL_NMI))
		return false;
	if (!(pin & PIN_VIRTUAL_NMI) && (proc & PROC_NMI_WINDOW))
		return false;
	if (proc2 & PROC2_APIC_ACCESS) {
		if (!vmx_address(c, VF(APIC_ACCESS_ADDR), 4096) || (proc2 & PROC2_X2APIC))
			return false;
	}
	if ((proc2 & PROC2_VIRTUAL_INTR) && !(pin & PIN_EXTERNAL))
		return false;
	if (!(pin & PIN_POSTED))
		return true;
	return (proc2 & PROC2_VIRTUAL_INTR) && (VF(EXIT_CONTROLS) & EXIT_ACK_INTR) && !(VF(POSTED_VECTOR) >> 8) &&
	       vmx_address(c, VF(POSTED_DESC_ADDR), 64);
}

bool ept_pointer_valid(const struct cpu *c, u64 eptp)
{
	unsigned type = eptp & 7, levels = (eptp >> 3 & 7) + 1;
	return (type == 0 || type == 6) && levels == 4 && !(eptp & 0xf80) && !(eptp & ~c->maxphyaddr_mask);
}

static bool paging_valid(struct cpu *c, u32 proc2)
{
	if ((proc2 & PROC2_VPID) && !VF(VPID))
		return false;
	if (!(proc2 & PROC2_EPT))
		return !(proc2 & (PROC2_UNRESTRICTED | PROC2_PML));
	if (!ept_pointer_valid(c, VF(EPTP)))
		return false;
	return !(proc2 & PROC2_PML) || vmx_address(c, VF(PML_ADDR), 4096);
}

static bool vmfunc_valid(struct cpu *c, u32 proc2)
{
	if (!(proc2 & PROC2_VMFUNC))
		return true;
	if (VF(VMFUNC_CONTROLS) & ~(u64)VMFUNC_EPTP_SWITCHING)
		return false;
	return !(VF(VMFUNC_CONTROLS) & VMFUNC_EPTP_SWITCHING) ||
	       ((proc2 & PROC2_EPT) && vmx_address(c, VF(EPTP_LIST_ADDR), 4096));
}

static bool execution_valid(struct cpu *c)
{
	u32 pin = (u32)VF(PIN_CONTROLS), proc = (u32)VF(PROC_CONTROLS);
	u32 proc2 = proc & PROC_SECONDARY ? (u32)VF(PROC2_CONTROLS) : 0;
	if (!vmx_allows(vmx_allowed_pin(c), pin) || !vmx_allows(vmx_allowed_proc(c), proc) ||
	    !vmx_allows(vmx_allowed_proc2(c), proc2))
		return false;
	if (VF(CR3_TARGET_COUNT) > VMX_CR3_TARGETS)
		return false;
	if ((proc & PROC_IO_BITMAPS) && !(vmx_address(c, VF(IO_BITMAP_A), 4096) && vmx_address(c, VF(IO_BITMAP_B), 4096)))
		return false;
	if ((proc & PROC_MSR_BITMAPS) && !vmx_address(c, VF(MSR_BITMAP), 4096))
		return false;
	if ((proc2 & PROC2_SHADOW) &&
	    !(vmx_address(c, VF(VMREAD_BITMAP), 4096) && vmx_address(c, VF(VMWRITE_BITMAP), 4096)))
		return false;
	return tpr_shadow_valid(c, proc, proc2) && interrupts_valid(c, pin, proc, proc2) && paging_valid(c, proc2) &&
	       vmfunc_valid(c, proc2);
}

/* ---- exit and entry controls, SDM 26.2.1.2, 26.2.1.3 --------------------------------------------------- */

static bool msr_area_valid(const struct cpu *c, u64 addr, u64 count)
{
	return !count || (vmx_address(c, addr, 16) && !((addr + count * 16 - 1) & ~c->maxphyaddr_mask));
}

static bool exit_valid(struct cpu *c)
{
	u32 x = (u32)VF(EXIT_CONTROLS);
	if (!vmx_allows(vmx_allowed_exit(c), x))
		return false;
	if (!(VF(PIN_CONTROLS) & PIN_PREEMPTION) && (x & EXIT_SAVE_TIMER))
		return false;
	return msr_area_valid(c, VF(EXIT_MSR_STORE_ADDR), VF(EXIT_MSR_STORE_COUNT)) &&
	       msr_area_valid(c, VF(EXIT_MSR_LOAD_ADDR), VF(EXIT_MSR_LOAD_COUNT));
}

/* Exceptions that push an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC. */
static bool has_error_code(unsigned vector) { return vector < 32 && (1u << V_DF | 0x1fu << V_TS | 1u << V_AC) >> vector & 1; }

static bool injection_valid(struct cpu *c)
{
	u32 info = (u32)VF(ENTRY_INTR_INFO);
	if (!(info & INTR_VALID))
		return true;
	unsigned vector = info & 0xff, type = info >> 8 & 7;
	bool unrestricted = (VF(PROC_CONTROLS) & PROC_SECONDARY) && (VF(PROC2_CONTROLS) & PROC2_UNRESTRICTED);
	bool protected = !unrestricted || (VF(GUEST_CR0) & CR0_PE);
	if (type == 1 || (type == INTR_NMI && vector != V_NMI) || (type == INTR_HARD_EXC && vector > 31) ||
	    (type == INTR_OTHER && vector))
		return false;
	if (!!(info & INTR_HAS_ERROR) != (protected && type == INTR_HARD_EXC && has_error_code(vector)))
		return false;
	if ((info & 0x7ffff000) || ((info & INTR_HAS_ERROR) && (VF(ENTRY_ERROR_CODE) >> 16)))
		return false;
	bool soft = type == INTR_SOFT_INT || type == INTR_PRIV_SOFT || type == INTR_SOFT_EXC;
	return !soft || VF(ENTRY_INSN_LEN) <= 15;
}

static bool entry_valid(struct cpu *c)
{
	u32 x = (u32)VF(ENTRY_CONTROLS);
	return vmx_allows(vmx_allowed_entry(c), x) && injection_valid(c) &&
	       msr_area_valid(c, VF(ENTRY_MSR_LOAD_ADDR), VF(ENTRY_MSR_LOAD_COUNT));
}

bool vmx_controls_valid(struct cpu *c) { return execution_valid(c) && exit_valid(c) && entry_valid(c); }

/* ---- the host's state, SDM 26.2.2 to 26.2.4 ------------------------------------------------------------------ */

static bool host_registers_valid(struct cpu *c, bool host64)
{
	const u64 lm = EFER_LME | EFER_LMA;
	u32 x = (u32)VF(EXIT_CONTROLS);
	if (!vmx_cr0_valid(VF(HOST_CR0), false) || !vmx_cr4_valid(c, VF(HOST_CR4)) || (VF(HOST_CR3) & ~c->maxphyaddr_mask))
		return false;
	if (!cpu_address_valid(c, VF(HOST_SYSENTER_ESP)) || !cpu_address_valid(c, VF(HOST_SYSENTER_EIP)))
		return false;
	if ((x & EXIT_LOAD_PAT) && !pat_valid(VF(HOST_PAT)))
		return false;
	if ((x & EXIT_LOAD_PKRS) && VF(HOST_PKRS) >> 32)
		return false;
	if (!(x & EXIT_LOAD_EFER))
		return true;
	return !(VF(HOST_EFER) & ~cpu_efer_valid(c)) && (VF(HOST_EFER) & lm) == (host64 ? lm : 0);
}

static bool host_segments_valid(struct cpu *c, bool host64)
{
	u64 all = VF(HOST_ES_SEL) | VF(HOST_CS_SEL) | VF(HOST_SS_SEL) | VF(HOST_DS_SEL) | VF(HOST_FS_SEL) |
		  VF(HOST_GS_SEL) | VF(HOST_TR_SEL);
	if ((all & 7) || !VF(HOST_CS_SEL) || !VF(HOST_TR_SEL) || (!host64 && !VF(HOST_SS_SEL)))
		return false;
	return cpu_address_valid(c, VF(HOST_FS_BASE)) && cpu_address_valid(c, VF(HOST_GS_BASE)) &&
	       cpu_address_valid(c, VF(HOST_GDTR_BASE)) && cpu_address_valid(c, VF(HOST_IDTR_BASE)) &&
	       cpu_address_valid(c, VF(HOST_TR_BASE));
}

static bool host_size_valid(struct cpu *c, bool host64)
{
	bool ia32e = VF(ENTRY_CONTROLS) & ENTRY_IA32E;
	if (cpu_long(c) != host64)
		return false;
	if (!host64)
		return !ia32e && !(VF(HOST_CR4) & CR4_PCIDE) && !(VF(HOST_RIP) >> 32);
	return (VF(HOST_CR4) & CR4_PAE) && cpu_address_valid(c, VF(HOST_RIP));
}

bool vmx_host_valid(struct cpu *c)
{
	bool host64 = VF(EXIT_CONTROLS) & EXIT_HOST64;
	return host_registers_valid(c, host64) && host_segments_valid(c, host64) && host_size_valid(c, host64);
}
