/* AMD-V: its state, and what svm.c (instructions, MSRs, interrupts), svm_entry.c (VMRUN's checks and loads),
 * svm_exit.c (intercepts, #VMEXIT), npt.c (nested paging) share. Private to cpu/. AMD APM vol. 2 chapter 15,
 * appendices B (the VMCB's layout) and C (exit codes).
 *
 *  1. VMRUN reads the VMCB once, into svm_vmcb.image, and judges and loads that copy; #VMEXIT writes what
 *     has changed. So nothing that another processor does to a VMCB in between is seen twice, and clean bits
 *     mean nothing: all of it is read each time.
 *  2. Of the host's state all that VMRUN saves is kept here; the area at VM_HSAVE_PA is not touched.
 *  3. The exit code of what is intercepted is the number of its bit in the intercept vectors (SVM_EXIT_*). */
#ifndef RING3_CPU_SVM_H
#define RING3_CPU_SVM_H

#include "cpu/nested_api.h"

/* Byte offsets in the VMCB. */
enum {
	VMCB_INTERCEPTS = 0x0, VMCB_PAUSE_THRESHOLD = 0x3c, VMCB_PAUSE_COUNT = 0x3e, VMCB_IOPM = 0x40, VMCB_MSRPM = 0x48,
	VMCB_TSC_OFFSET = 0x50, VMCB_ASID = 0x58, VMCB_TLB_CONTROL = 0x5c, VMCB_VINTR = 0x60, VMCB_VECTOR = 0x64,
	VMCB_SHADOW = 0x68, VMCB_EXITCODE = 0x70, VMCB_EXITINFO1 = 0x78, VMCB_EXITINFO2 = 0x80, VMCB_EXITINTINFO = 0x88,
	VMCB_NP_ENABLE = 0x90, VMCB_EVENTINJ = 0xa8, VMCB_NCR3 = 0xb0, VMCB_VIRT_EXT = 0xb8, VMCB_NRIP = 0xc8,
	VMCB_INSN_LEN = 0xd0,

	VMCB_ES = 0x400, VMCB_CS = 0x410, VMCB_SS = 0x420, VMCB_DS = 0x430, VMCB_FS = 0x440, VMCB_GS = 0x450,
	VMCB_GDTR = 0x460, VMCB_LDTR = 0x470, VMCB_IDTR = 0x480, VMCB_TR = 0x490, VMCB_CPL = 0x4cb, VMCB_EFER = 0x4d0,
	VMCB_CR4 = 0x548, VMCB_CR3 = 0x550, VMCB_CR0 = 0x558, VMCB_DR7 = 0x560, VMCB_DR6 = 0x568, VMCB_RFLAGS = 0x570,
	VMCB_RIP = 0x578, VMCB_RSP = 0x5d8, VMCB_RAX = 0x5f8, VMCB_STAR = 0x600, VMCB_LSTAR = 0x608, VMCB_CSTAR = 0x610,
	VMCB_SFMASK = 0x618, VMCB_KERNEL_GS = 0x620, VMCB_SYSENTER_CS = 0x628, VMCB_SYSENTER_ESP = 0x630,
	VMCB_SYSENTER_EIP = 0x638, VMCB_CR2 = 0x640, VMCB_PAT = 0x668, VMCB_DEBUGCTL = 0x670, VMCB_LBR = 0x678,
	VMCB_BYTES = 0x698, /* as far as it means something */
};

/* Exit codes that are named here; the first 192 are numbers of intercept bits. */
enum {
	SVM_EXIT_CR_WRITE = 0x10, SVM_EXIT_DR_READ = 0x20, SVM_EXIT_DR_WRITE = 0x30, SVM_EXIT_EXCEPTION = 0x40,
	SVM_EXIT_INTR = 0x60, SVM_EXIT_NMI, SVM_EXIT_SMI, SVM_EXIT_INIT, SVM_EXIT_VINTR, SVM_EXIT_CR0_SELECTIVE,
	SVM_EXIT_IDTR_READ, SVM_EXIT_GDTR_READ, SVM_EXIT_LDTR_READ, SVM_EXIT_TR_READ, SVM_EXIT_IDTR_WRITE,
	SVM_EXIT_GDTR_WRITE, SVM_EXIT_LDTR_WRITE, SVM_EXIT_TR_WRITE, SVM_EXIT_RDTSC, SVM_EXIT_RDPMC, SVM_EXIT_PUSHF,
	SVM_EXIT_POPF, SVM_EXIT_CPUID, SVM_EXIT_RSM, SVM_EXIT_IRET, SVM_EXIT_INTN, SVM_EXIT_INVD, SVM_EXIT_PAUSE,
	SVM_EXIT_HLT, SVM_EXIT_INVLPG, SVM_EXIT_INVLPGA, SVM_EXIT_IOIO, SVM_EXIT_MSR, SVM_EXIT_TASK_SWITCH,
	SVM_EXIT_FERR_FREEZE, SVM_EXIT_SHUTDOWN, SVM_EXIT_VMRUN, SVM_EXIT_VMMCALL, SVM_EXIT_VMLOAD, SVM_EXIT_VMSAVE,
	SVM_EXIT_STGI, SVM_EXIT_CLGI, SVM_EXIT_SKINIT, SVM_EXIT_RDTSCP, SVM_EXIT_ICEBP, SVM_EXIT_WBINVD, SVM_EXIT_MONITOR,
	SVM_EXIT_MWAIT, SVM_EXIT_MWAIT_ARMED, SVM_EXIT_XSETBV, SVM_EXIT_RDPRU, SVM_EXIT_INVPCID = 0xa2,
	SVM_EXIT_NPF = 0x400,
};
#define SVM_EXIT_INVALID (~0ull)

/* VMCB 60h. */
enum { V_TPR = 15, V_IRQ = 1 << 8, V_GIF = 1 << 9, V_PRIO_SHIFT = 16, V_IGN_TPR = 1 << 20, V_INTR_MASKING = 1 << 24,
       V_GIF_ENABLE = 1 << 25 };
enum { VIRT_LBR = 1, VIRT_VMLOAD = 2 }; /* VMCB b8h */
enum { VM_CR_R_INIT = 2, VM_CR_LOCK = 8, VM_CR_SVMDIS = 16, VM_CR_VALID = 31 };
#define SVM_ASIDS 0x8000u
#define TSC_RATIO_ONE (1ull << 32)

struct svm_host {
	struct segment es, cs, ss, ds;
	struct dtable gdtr, idtr;
	u64 efer, cr0, cr3, cr4, rflags, rip, rsp, rax, pat;
	u64 pdpte[4];
	u64 debugctl, lbr[4]; /* with LBR virtualization */
};

struct svm {
	bool gif;          /* the global interrupt flag */
	u64 vm_cr, hsave_pa, tsc_ratio, key;

	/* in guest mode: where the VMCB is, and what VMRUN has read of it */
	u64 vmcb;
	u32 intercept[6];
	u64 iopm, msrpm;
	u64 tsc_offset;
	u64 ncr3;
	u32 vintr;         /* as at VMCB 60h: V_TPR, V_IRQ and V_GIF change */
	u8 vector;
	u32 virt_ext;
	u64 event;         /* yet to be injected: VEC_*; 0: none */
	u64 event_rip;     /* where its handler returns to */
	u16 pause_count, pause_left, pause_threshold;
	u64 pause_last;    /* TSC at the last PAUSE */
	u32 np_error;      /* of the walk that was refused last: a page fault's error code */
	struct svm_host host;

	/* of the exit on its way */
	u64 exit_code, exit_info1, exit_info2, next_rip;
	u8 insn_len, insn_bytes[15];
	u8 shadow;         /* SHADOW_* that the instruction stood in, which has not been carried out */

	u8 image[VMCB_BYTES]; /* the VMCB as VMRUN found it */
};

void svm_count_exit(struct cpu *c, u64 code);

/* ---- nested.c's: what nested_api.h says */
void svm_intercept(struct cpu *c, enum intercept x, u64 info);
u64 svm_cr_write(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr);
u64 svm_cr_read(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr);
bool svm_guest_msr_read(struct cpu *c, u32 msr, u64 *v);
bool svm_guest_msr_write(struct cpu *c, u32 msr, u64 v);
bool svm_tpr_read(struct cpu *c, u8 *tpr);
bool svm_tpr_write(struct cpu *c, u8 tpr);
u64 svm_tsc(const struct cpu *c, u64 tsc);
void svm_vmexit(struct cpu *c);
void svm_exception(struct cpu *c, const struct exception *x);
void svm_service(struct cpu *c);
int svm_vintr(struct cpu *c);
bool npt_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p);
_Noreturn void npt_fault(struct cpu *c, u64 gpa, enum access acc, enum nested_what what);

/* ---- life, events */
void svm_reset(struct cpu *c, bool init);
/* INIT becomes #SX. */
static inline bool svm_redirects_init(const struct cpu *c) { return c->svm->vm_cr & VM_CR_R_INIT; }
/* EFER.SVME may be set. */
static inline bool svm_allowed(const struct cpu *c) { return !(c->svm->vm_cr & VM_CR_SVMDIS); }

/* ---- between svm*.c and npt.c */
static inline bool svm_wants(const struct cpu *c, unsigned code) { return c->svm->intercept[code / 32] >> (code % 32) & 1; }
/* The page at pa, where VMRUN, VMLOAD and VMSAVE may go; NULL: #GP(0). */
u8 *svm_page(struct cpu *c, u64 pa);
/* n bytes at p have been written. */
void svm_written(struct cpu *c, const u8 *p, unsigned n);
/* Loads guest mode from image, for the VMCB at pa. False: VMEXIT_INVALID; nothing has changed. */
bool svm_enter(struct cpu *c, u64 pa);
/* The registers of the image that VMLOAD and VMSAVE are for. */
void svm_vmload(struct cpu *c, const u8 *vmcb);
void svm_vmsave(const struct cpu *c, u8 *vmcb);
struct segment svm_segment_get(const struct cpu *c, const u8 *p, bool wide_base);
void svm_segment_put(u8 *p, const struct segment *s);
/* Notes the exit and leaves. */
_Noreturn void svm_exit(struct cpu *c, u64 code, u64 info1, u64 info2);
/* ... with the bytes of the instruction under way, for faults of its data. */
_Noreturn void svm_exit_bytes(struct cpu *c, u64 code, u64 info1, u64 info2);
/* Whether a virtual interrupt is due but for IF: EV_VINTR. */
void svm_update_vintr(struct cpu *c);
void svm_set_gif(struct cpu *c, bool on);

#endif
