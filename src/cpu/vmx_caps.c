/* What VT-x offers here: the capability MSRs. Intel SDM vol. 3 appendix A.
 *
 * A control is offered (its bit may be 1) if and only if the other vmx_*.c files do what it says, and
 * one that concerns an instruction only where the model has the instruction. */
#include "cpu/vmx.h"

#define DEFAULT1_PIN 0x16u
#define DEFAULT1_PROC 0x0401e172u
#define DEFAULT1_EXIT 0x00036dffu
#define DEFAULT1_ENTRY 0x000011ffu
/* Of the default-1 controls those that the TRUE MSRs allow to be 0: CR3 exiting, debug controls. */
#define OPTIONAL_PROC (PROC_CR3_LOAD | PROC_CR3_STORE)
#define OPTIONAL_DEBUG 4u

struct vmx_allowed vmx_allowed_pin(const struct cpu *c)
{
	return (struct vmx_allowed){ DEFAULT1_PIN, DEFAULT1_PIN | PIN_EXTERNAL | PIN_NMI | PIN_VIRTUAL_NMI |
				     PIN_PREEMPTION | PIN_POSTED };
}

struct vmx_allowed vmx_allowed_proc(const struct cpu *c)
{
	return (struct vmx_allowed){ DEFAULT1_PROC & ~(u32)OPTIONAL_PROC,
		DEFAULT1_PROC | PROC_INTR_WINDOW | PROC_TSC_OFFSET | PROC_HLT | PROC_INVLPG | PROC_MWAIT | PROC_RDPMC |
		PROC_RDTSC | PROC_CR8_LOAD | PROC_CR8_STORE | PROC_TPR_SHADOW | PROC_NMI_WINDOW | PROC_MOV_DR |
		PROC_UNCOND_IO | PROC_IO_BITMAPS | PROC_MTF | PROC_MSR_BITMAPS | PROC_MONITOR | PROC_PAUSE | PROC_SECONDARY };
}

struct vmx_allowed vmx_allowed_proc2(const struct cpu *c)
{
	static const struct { u32 bit; u16 feature; } by_feature[] = {
		{ PROC2_RDTSCP, FEAT_RDTSCP }, { PROC2_RDRAND, FEAT_RDRAND }, { PROC2_INVPCID, FEAT_INVPCID },
		{ PROC2_RDSEED, FEAT_RDSEED }, { PROC2_XSAVES, FEAT_XSAVES },
	};
	u32 one = PROC2_APIC_ACCESS | PROC2_EPT | PROC2_DESC_TABLE | PROC2_X2APIC | PROC2_VPID | PROC2_WBINVD |
		PROC2_UNRESTRICTED | PROC2_APIC_REGS | PROC2_VIRTUAL_INTR | PROC2_PAUSE_LOOP | PROC2_VMFUNC |
		PROC2_SHADOW | PROC2_PML | PROC2_TSC_SCALING;
	for (unsigned k = 0; k < ARRAY_LEN(by_feature); k++)
		if (cpu_has(c, by_feature[k].feature))
			one |= by_feature[k].bit;
	return (struct vmx_allowed){ 0, one };
}

struct vmx_allowed vmx_allowed_exit(const struct cpu *c)
{
	return (struct vmx_allowed){ DEFAULT1_EXIT & ~OPTIONAL_DEBUG, DEFAULT1_EXIT | EXIT_HOST64 | EXIT_ACK_INTR |
				     EXIT_SAVE_PAT | EXIT_LOAD_PAT | EXIT_SAVE_EFER | EXIT_LOAD_EFER | EXIT_SAVE_TIMER |
				     (cpu_has(c, FEAT_PKS) ? EXIT_LOAD_PKRS : 0) };
}

struct vmx_allowed vmx_allowed_entry(const struct cpu *c)
{
	return (struct vmx_allowed){ DEFAULT1_ENTRY & ~OPTIONAL_DEBUG,
				     DEFAULT1_ENTRY | ENTRY_IA32E | ENTRY_LOAD_PAT | ENTRY_LOAD_EFER |
				     (cpu_has(c, FEAT_PKS) ? ENTRY_LOAD_PKRS : 0) };
}

static u64 word(struct vmx_allowed a, u32 more_zero) { return (a.zero | more_zero) | (u64)a.one << 32; }

/* IA32_VMX_BASIC: a page for each region, write-back, INS and OUTS tell in the instruction information,
 * TRUE MSRs exist. */
#define BASIC (VMCS_REVISION | 4096ull << 32 | 6ull << 50 | 1ull << 54 | 1ull << 55)
/* IA32_VMX_MISC: LMA is stored on exits; HLT, shutdown, wait-for-SIPI as activity states; CR3 targets;
 * VMWRITE to read-only fields; software events of length 0. */
#define MISC (VMX_TIMER_SHIFT | 1ull << 5 | 7ull << 6 | (u64)VMX_CR3_TARGETS << 16 | 1ull << 29 | 1ull << 30)
/* IA32_VMX_EPT_VPID_CAP: execute-only, 4 levels, UC and WB, 2 MiB and 1 GiB pages, INVEPT of both types,
 * accessed and dirty flags; INVVPID of all four types. */
#define EPT_VPID (1ull | 1ull << 6 | 1ull << 8 | 1ull << 14 | 1ull << 16 | 1ull << 17 | 1ull << 20 | 1ull << 21 | \
		  3ull << 25 | 1ull << 32 | 15ull << 40)
#define HIGHEST_FIELD_INDEX 0x19u

bool vmx_msr_read(const struct cpu *c, u32 msr, u64 *v)
{
	switch (msr) {
	case 0x480: *v = BASIC; return true;
	case 0x481: case 0x48d: *v = word(vmx_allowed_pin(c), 0); return true;
	case 0x482: *v = word(vmx_allowed_proc(c), OPTIONAL_PROC); return true;
	case 0x483: *v = word(vmx_allowed_exit(c), OPTIONAL_DEBUG); return true;
	case 0x484: *v = word(vmx_allowed_entry(c), OPTIONAL_DEBUG); return true;
	case 0x485: *v = MISC; return true;
	case 0x486: *v = VMX_CR0_FIXED; return true;
	case 0x487: *v = 0xffffffff; return true;
	case 0x488: *v = CR4_VMXE; return true;
	case 0x489: *v = cpu_cr4_valid(c); return true;
	case 0x48a: *v = HIGHEST_FIELD_INDEX << 1; return true;
	case 0x48b: *v = word(vmx_allowed_proc2(c), 0); return true;
	case 0x48c: *v = EPT_VPID; return true;
	case 0x48e: *v = word(vmx_allowed_proc(c), 0); return true;
	case 0x48f: *v = word(vmx_allowed_exit(c), 0); return true;
	case 0x490: *v = word(vmx_allowed_entry(c), 0); return true;
	case 0x491: *v = VMFUNC_EPTP_SWITCHING; return true;
	default: return false;
	}
}
