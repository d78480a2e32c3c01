/* VT-x. Intel SDM vol. 3 chapters 24 to 30. */
#include "cpu/vmx.h"

void vmx_reset(struct cpu *c, bool init) { (void)c; (void)init; }
void vmx_intercept(struct cpu *c, enum intercept x, u64 info) { (void)c; (void)x; (void)info; }
u64 vmx_cr_write(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr) { (void)c; (void)cr; (void)how; (void)gpr; return v; }
u64 vmx_cr_read(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr) { (void)c; (void)cr; (void)how; (void)gpr; return v; }
bool vmx_guest_msr_read(struct cpu *c, u32 msr, u64 *v) { (void)c; (void)msr; (void)v; return false; }
bool vmx_guest_msr_write(struct cpu *c, u32 msr, u64 v) { (void)c; (void)msr; (void)v; return false; }
bool vmx_tpr_read(struct cpu *c, u8 *tpr) { (void)c; (void)tpr; return false; }
bool vmx_tpr_write(struct cpu *c, u8 tpr) { (void)c; (void)tpr; return false; }
u64 vmx_tsc(const struct cpu *c, u64 tsc) { (void)c; return tsc; }
void vmx_vmexit(struct cpu *c) { (void)c; bug("no VT-x"); }
void vmx_exception(struct cpu *c, const struct exception *x) { (void)c; (void)x; }
void vmx_service(struct cpu *c) { (void)c; }
int vmx_vintr(struct cpu *c) { (void)c; return -1; }

bool ept_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p)
{
	(void)c; (void)gpa; (void)acc; (void)what; (void)p;
	return false;
}

_Noreturn void ept_fault(struct cpu *c, u64 lin, u64 gpa, enum access acc, enum nested_what what)
{
	(void)c; (void)lin; (void)gpa; (void)acc; (void)what;
	bug("no VT-x");
}
