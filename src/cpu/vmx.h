/* VT-x, as the rest of cpu/ sees it: what nested.c hands on. Private to cpu/. */
#ifndef RING3_CPU_VMX_H
#define RING3_CPU_VMX_H

#include "cpu/nested_api.h"

struct vmx {
	u64 vmxon_ptr;
};

void vmx_reset(struct cpu *c, bool init);
void vmx_intercept(struct cpu *c, enum intercept x, u64 info);
u64 vmx_cr_write(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr);
u64 vmx_cr_read(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr);
bool vmx_guest_msr_read(struct cpu *c, u32 msr, u64 *v);
bool vmx_guest_msr_write(struct cpu *c, u32 msr, u64 v);
bool vmx_tpr_read(struct cpu *c, u8 *tpr);
bool vmx_tpr_write(struct cpu *c, u8 tpr);
u64 vmx_tsc(const struct cpu *c, u64 tsc);
void vmx_vmexit(struct cpu *c);
void vmx_exception(struct cpu *c, const struct exception *x);
void vmx_service(struct cpu *c);
int vmx_vintr(struct cpu *c);
bool ept_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p);
_Noreturn void ept_fault(struct cpu *c, u64 lin, u64 gpa, enum access acc, enum nested_what what);

#endif
