/* VT-x as the guest sees it: the current VMCS, controls by name, what the vmx_*.c files and ept.c
 * share. Intel SDM vol. 3 chapters 23 to 29, appendices A to C. Private to cpu/.
 *
 * Invariants
 *  1. The current VMCS is vmx->vmcs, not its region: VMPTRLD copies the region in, what makes it no
 *     longer current (VMCLEAR, VMPTRLD, VMXOFF) writes it back. So nothing that is checked at VM entry
 *     can be changed by other processors before it is used.
 *  2. In VMX non-root operation vmx->pin, proc, proc2 are the controls of the entry, proc2 0 where they are not
 *     activated; outside of it all are 0.
 *  3. A VM exit is asked for by vmx_leave(), which fills vmx->exit and leaves the instruction; the state
 *     moves in vmx_vmexit(), on an instruction boundary. */
#ifndef RING3_CPU_VMX_H
#define RING3_CPU_VMX_H

#include "cpu/control.h"
#include "cpu/nested_api.h"

enum vmcs_slot {
#define VMCS(name, encoding) VMCS_##name,
#include "cpu/vmcs.def"
#undef VMCS
	N_VMCS_FIELDS
};
struct vmcs {
	u32 revision;  /* bit 31: a shadow VMCS */
	u32 abort;
	u32 launched;
	u64 f[N_VMCS_FIELDS];
};
/* What a VM exit tells, SDM vol. 3 27.2. */
struct vmx_exit {
	u32 reason;
	u64 qualification, linear, physical;
	u32 intr_info, intr_error;
	u32 insn_len, insn_info;
	u8 shadow;       /* SHADOW_* that the instruction stood in, which has not been carried out */
	u64 debug;       /* debug conditions that MOV SS has put off from before it */
	bool set_rf;     /* the exception's RF belongs into the image that is saved */
	u64 tsc;         /* the host's, as the exit began: what an MSR list stores */
};
struct vmx {
	bool on;             /* VMX operation: between VMXON and VMXOFF */
	u64 feature_control; /* IA32_FEATURE_CONTROL */
	u64 vmxon;           /* of the VMXON region */
	u64 current;         /* of the current VMCS; all ones: none */
	struct vmcs vmcs;
	u32 pin, proc, proc2;
	struct vmx_exit exit;
	bool virtual_nmi_blocked; /* with the control "virtual NMIs" */
	u64 inject;          /* yet to be delivered: VEC_*; 0: nothing */
	u8 inject_len;       /* of the software event's instruction */
	u8 soft_len;         /* while a software event is injected: as inject_len */
	bool step_armed;     /* monitor trap flag: an exit is due at the next boundary */
	bool trapped;        /* `trap` is due after this instruction */
	struct vmx_exit trap;
	u64 iret_unblocked;  /* the IRET that has ended blocking by NMI, virtual or not: instructions complete before it, and 1 */
	struct vmx_exit second; /* why the last translation by EPT failed */
	u64 timer_end;       /* preemption timer: the TSC at which it is 0 */
	u64 ple_first, ple_last;
};

/* Primary and secondary processor-based, pin-based, exit, entry controls. SDM 24.6 to 24.8. */
enum {
	PIN_EXTERNAL = 1, PIN_NMI = 8, PIN_VIRTUAL_NMI = 0x20, PIN_PREEMPTION = 0x40, PIN_POSTED = 0x80,
};
enum {
	PROC_INTR_WINDOW = 1 << 2, PROC_TSC_OFFSET = 1 << 3, PROC_HLT = 1 << 7, PROC_INVLPG = 1 << 9,
	PROC_MWAIT = 1 << 10, PROC_RDPMC = 1 << 11, PROC_RDTSC = 1 << 12, PROC_CR3_LOAD = 1 << 15,
	PROC_CR3_STORE = 1 << 16, PROC_CR8_LOAD = 1 << 19, PROC_CR8_STORE = 1 << 20, PROC_TPR_SHADOW = 1 << 21,
	PROC_NMI_WINDOW = 1 << 22, PROC_MOV_DR = 1 << 23, PROC_UNCOND_IO = 1 << 24, PROC_IO_BITMAPS = 1 << 25,
	PROC_MTF = 1 << 27, PROC_MSR_BITMAPS = 1 << 28, PROC_MONITOR = 1 << 29, PROC_PAUSE = 1 << 30,
};
#define PROC_SECONDARY 0x80000000u
enum {
	PROC2_APIC_ACCESS = 1, PROC2_EPT = 2, PROC2_DESC_TABLE = 4, PROC2_RDTSCP = 8, PROC2_X2APIC = 0x10,
	PROC2_VPID = 0x20, PROC2_WBINVD = 0x40, PROC2_UNRESTRICTED = 0x80, PROC2_APIC_REGS = 0x100,
	PROC2_VIRTUAL_INTR = 0x200, PROC2_PAUSE_LOOP = 0x400, PROC2_RDRAND = 0x800, PROC2_INVPCID = 0x1000,
	PROC2_VMFUNC = 0x2000, PROC2_SHADOW = 0x4000, PROC2_RDSEED = 0x10000, PROC2_PML = 0x20000,
	PROC2_XSAVES = 0x100000, PROC2_TSC_SCALING = 0x2000000,
};
enum {
	EXIT_SAVE_DEBUG = 1 << 2, EXIT_HOST64 = 1 << 9, EXIT_ACK_INTR = 1 << 15, EXIT_SAVE_PAT = 1 << 18,
	EXIT_LOAD_PAT = 1 << 19, EXIT_SAVE_EFER = 1 << 20, EXIT_LOAD_EFER = 1 << 21, EXIT_SAVE_TIMER = 1 << 22,
	EXIT_LOAD_PKRS = 1 << 29,
};
enum {
	ENTRY_LOAD_DEBUG = 1 << 2, ENTRY_IA32E = 1 << 9, ENTRY_SMM = 1 << 10, ENTRY_DEACTIVATE = 1 << 11,
	ENTRY_LOAD_PAT = 1 << 14, ENTRY_LOAD_EFER = 1 << 15, ENTRY_LOAD_PKRS = 1 << 22,
};
/* Basic exit reasons, SDM appendix C. */
enum vmx_reason {
	EXIT_EXCEPTION, EXIT_INTERRUPT, EXIT_TRIPLE_FAULT, EXIT_INIT, EXIT_SIPI, EXIT_INTR_WINDOW = 7, EXIT_NMI_WINDOW,
	EXIT_TASK_SWITCH, EXIT_CPUID, EXIT_GETSEC, EXIT_HLT, EXIT_INVD, EXIT_INVLPG, EXIT_RDPMC, EXIT_RDTSC, EXIT_RSM,
	EXIT_VMCALL, EXIT_VMCLEAR, EXIT_VMLAUNCH, EXIT_VMPTRLD, EXIT_VMPTRST, EXIT_VMREAD, EXIT_VMRESUME, EXIT_VMWRITE,
	EXIT_VMXOFF, EXIT_VMXON, EXIT_CR, EXIT_DR, EXIT_IO, EXIT_RDMSR, EXIT_WRMSR, EXIT_BAD_GUEST, EXIT_BAD_MSR_LIST,
	EXIT_MWAIT = 36, EXIT_MTF, EXIT_MONITOR = 39, EXIT_PAUSE, EXIT_TPR_THRESHOLD = 43, EXIT_APIC_ACCESS, EXIT_EOI,
	EXIT_GDTR_IDTR, EXIT_LDTR_TR, EXIT_EPT_VIOLATION, EXIT_EPT_MISCONFIG, EXIT_INVEPT, EXIT_RDTSCP, EXIT_TIMER,
	EXIT_INVVPID, EXIT_WBINVD, EXIT_XSETBV, EXIT_APIC_WRITE, EXIT_RDRAND, EXIT_INVPCID, EXIT_VMFUNC,
	EXIT_RDSEED = 61, EXIT_PML_FULL, EXIT_XSAVES, EXIT_XRSTORS,
};
#define EXIT_ENTRY_FAILED 0x80000000u
/* VM-instruction error numbers, SDM 30.4. */
enum vmx_error {
	VME_VMCALL_IN_ROOT = 1, VME_VMCLEAR_ADDRESS, VME_VMCLEAR_VMXON, VME_LAUNCH_NOT_CLEAR, VME_RESUME_NOT_LAUNCHED,
	VME_ENTRY_CONTROLS = 7, VME_ENTRY_HOST, VME_VMPTRLD_ADDRESS, VME_VMPTRLD_VMXON, VME_VMPTRLD_REVISION, VME_FIELD,
	VME_READ_ONLY, VME_VMXON_IN_ROOT = 15, VME_MOV_SS = 26, VME_INVALIDATE_OPERAND = 28,
};
/* Interruption information: vector 7:0, type 10:8, error code 11, NMI unblocking 12, valid 31. */
enum { INTR_EXTERNAL, INTR_NMI = 2, INTR_HARD_EXC, INTR_SOFT_INT, INTR_PRIV_SOFT, INTR_SOFT_EXC, INTR_OTHER };
enum { INTR_HAS_ERROR = 0x800, INTR_NMI_UNBLOCK = 0x1000 };
#define INTR_VALID 0x80000000u
/* Interruptibility state and pending debug exceptions, SDM tables 24-3 and 24-4. */
enum { BLOCK_STI = 1, BLOCK_MOV_SS = 2, BLOCK_SMI = 4, BLOCK_NMI = 8 };
enum { PENDING_ENABLED = 1 << 12, PENDING_BS = 1 << 14 };

/* IA32_FEATURE_CONTROL */
enum { FEATURE_LOCK = 1, FEATURE_VMX_OUTSIDE_SMX = 4 };

#define VMCS_REVISION 0x00723301u
#define VMCS_SHADOW 0x80000000u
#define VMCS_NONE (~0ull)

/* The values of capability MSRs: what a control word may be. */
struct vmx_allowed { u32 zero, one; }; /* bits that must be 1, bits that may be 1 */
struct vmx_allowed vmx_allowed_pin(const struct cpu *c), vmx_allowed_proc(const struct cpu *c),
	vmx_allowed_proc2(const struct cpu *c), vmx_allowed_exit(const struct cpu *c),
	vmx_allowed_entry(const struct cpu *c);
static inline bool vmx_allows(struct vmx_allowed a, u64 v) { return !(a.zero & ~v) && !(v & ~(u64)a.one); }
bool vmx_msr_read(const struct cpu *c, u32 msr, u64 *v); /* 0x480 to 0x491; false: #GP(0) */
#define VMX_CR0_FIXED (CR0_PE | CR0_NE | CR0_PG)
/* Bits 4:0 of IA32_VMX_MISC: the preemption timer counts when bit 5 of the TSC changes. */
#define VMX_TIMER_SHIFT 5u
#define VMX_CR3_TARGETS 4u
#define VMX_MSR_LIST_MAX 512u
enum { VMFUNC_EPTP_SWITCHING = 1 };

/* By slot: a field's number in the region and in struct vmcs. */
#define VMX_TAG(vpid) (0x10000ull | (vpid)) /* of struct tlb_space; the host has 0 */
#define VF(name) (c->vmx->vmcs.f[VMCS_##name])

extern const u8 vmcs_segments[8]; /* enum sreg by the order of the guest's segments in the VMCS */

/* True where addr is a physical address aligned to align (a power of 2). */
static inline bool vmx_address(const struct cpu *c, u64 addr, u64 align)
{
	return !(addr & (align - 1)) && !(addr & ~c->maxphyaddr_mask);
}

static inline bool vmx_pin(const struct cpu *c, u32 bit) { return c->vmx->pin & bit; }
static inline bool vmx_proc(const struct cpu *c, u32 bit) { return c->vmx->proc & bit; }
static inline bool vmx_proc2(const struct cpu *c, u32 bit) { return c->vmx->proc2 & bit; }

/* ---- the VMCS (vmcs.c) */
/* To memory of the host's by its physical address, as any store of a processor. */
void vmx_phys_store(struct cpu *c, u64 addr, u64 v, unsigned size);
int vmcs_slot(u64 encoding);   /* -1: no such field; a high half has its field's */
u64 vmcs_field_read(const struct vmcs *m, u64 encoding, unsigned slot);
void vmcs_field_write(struct vmcs *m, u64 encoding, unsigned slot, u64 v);
void vmcs_store(struct cpu *c);              /* the current one, to its region */
void vmcs_load(struct cpu *c, u64 addr);     /* makes it current */
void vmcs_region_clear(struct cpu *c, u64 addr); /* launch state of one that is not current */
/* A field of a VMCS that is not current, in its region (VMCS shadowing). */
u64 vmcs_region_read(struct cpu *c, u64 addr, u64 encoding, unsigned slot);
void vmcs_region_write(struct cpu *c, u64 addr, u64 encoding, unsigned slot, u64 v);

/* ---- checks at VM entry (vmx_check.c, vmx_check_guest.c); they change nothing */
bool vmx_controls_valid(struct cpu *c);
bool vmx_host_valid(struct cpu *c);
bool vmx_guest_valid(struct cpu *c, u64 *qual); /* false: *qual is the exit qualification */
bool vmx_cr0_valid(u64 cr0, bool unrestricted); /* bits that VMX operation fixes */
bool vmx_cr4_valid(const struct cpu *c, u64 cr4);
bool ept_pointer_valid(const struct cpu *c, u64 eptp);

/* ---- entries and exits (vmx_entry.c, vmx_exit.c) */
unsigned vmx_enter(struct cpu *c, bool launch); /* enum vmx_error; 0: entered, or a failed entry has exited */
bool vmx_load_msrs(struct cpu *c, u64 addr, u32 count, u32 *bad); /* *bad: number of the entry that failed, from 1 */
bool vmx_store_msrs(struct cpu *c, u64 addr, u32 count);
/* Leaves the instruction or delivery under way for a VM exit; the length of the instruction is filled in where
 * the reason has one. */
_Noreturn void vmx_leave(struct cpu *c, enum vmx_reason why, u64 qual);
_Noreturn void vmx_leave_with(struct cpu *c, struct vmx_exit x);
void vmx_exit_between(struct cpu *c, struct vmx_exit x); /* on an instruction boundary: no unwinding */
void vmx_vmexit(struct cpu *c);
void vmx_load_host(struct cpu *c);
void vmx_abort(struct cpu *c, u32 why);
void vmx_count_exit(struct cpu *c, u32 reason);

/* ---- non-root operation (vmx_intercept.c, vmx_info.c, vmx_event.c, vmx_apic.c, ept.c) */
void vmx_reset(struct cpu *c, bool init);
void vmx_update_intercepts(struct cpu *c);
void vmx_intercept(struct cpu *c, enum intercept x, u64 info);
_Noreturn void vmx_leave_descriptor(struct cpu *c, bool system, unsigned which);
u64 vmx_cr_write(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr);
u64 vmx_cr_read(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr);
bool vmx_guest_msr_read(struct cpu *c, u32 msr, u64 *v);
bool vmx_guest_msr_write(struct cpu *c, u32 msr, u64 v);
u64 vmx_tsc(const struct cpu *c, u64 tsc);
void vmx_exception(struct cpu *c, const struct exception *x);
void vmx_service(struct cpu *c);
int vmx_vintr(struct cpu *c);
bool vmx_iret_unblocked(const struct cpu *c); /* the instruction under way is such an IRET */
void vmx_nmi(struct cpu *c);                 /* one is pending: exits */
void vmx_intr(struct cpu *c);
void vmx_timer_start(struct cpu *c);
u32 vmx_timer_left(struct cpu *c);
void vmx_apic_enter(struct cpu *c);
int vmx_virtual_interrupt(struct cpu *c);    /* its vector, or -1 */
void vmx_posted(struct cpu *c);
bool vmx_tpr_read(struct cpu *c, u8 *tpr);
bool vmx_tpr_write(struct cpu *c, u8 tpr);
bool vmx_apic_msr_read(struct cpu *c, u32 msr, u64 *v);
bool vmx_apic_msr_write(struct cpu *c, u32 msr, u64 v);
bool ept_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p);
_Noreturn void ept_fault(struct cpu *c, u64 lin, u64 gpa, enum access acc, enum nested_what what);

#endif
