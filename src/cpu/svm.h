/* AMD-V: its state, and what svm.c (instructions, entry), svm_vmcb.c (the VMCB), svm_exit.c (exits), svm_icpt.c
 * (intercepts), npt.c (nested paging) share. Private to cpu/. AMD APM vol. 2 chapter 15. */
#ifndef RING3_CPU_SVM_H
#define RING3_CPU_SVM_H

#include "cpu/nested_api.h"

/* What VMRUN saves of the host and #VMEXIT brings back. The manual leaves it open how much of it is in the
 * area at VM_HSAVE_PA: here nothing. */
struct svm_host {
	struct segment es, cs, ss, ds;
	struct dtable gdtr, idtr;
	u64 efer, cr0, cr3, cr4, rflags, rip, rsp, rax, pat;
	u64 pdpte[4];
};

struct svm {
	bool gif;          /* the global interrupt flag */
	u64 vm_cr, hsave_pa, tsc_ratio, key;
	u64 lbr[4];        /* BR_FROM, BR_TO, LASTEXCPFROM, LASTEXCPTO */

	/* in guest mode: where the VMCB is, and what VMRUN has read of it */
	u64 vmcb;
	u32 intercept[6];
	u64 iopm, msrpm;
	u64 tsc_offset;
	u64 ncr3;
	u32 asid;
	u32 vintr;         /* V_TPR 7:0, V_IRQ 8, V_GIF 9 and so on, as at VMCB 60h */
	u8 vector;         /* V_INTR_VECTOR */
	u32 nested_ctl;
	u32 virt_ext;
	u64 event;         /* yet to be injected: VEC_*; 0: none */
	u16 pause_count, pause_left, pause_threshold;
	u64 pause_last;    /* TSC at the last PAUSE */
	u64 host_lbr[5];   /* LBR virtualization: DEBUGCTL, then as lbr */
	struct svm_host host;

	/* of the exit on its way */
	u64 exit_code, exit_info1, exit_info2, next_rip;
	u8 insn_len, insn_bytes[15];
};

void svm_reset(struct cpu *c, bool init);
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
/* INIT becomes #SX (VM_CR.R_INIT). */
static inline bool svm_redirects_init(const struct cpu *c) { return c->svm->vm_cr & 2; }
bool npt_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p);
_Noreturn void npt_fault(struct cpu *c, u64 gpa, enum access acc, enum nested_what what);

#endif
