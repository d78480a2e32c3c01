/* AMD-V. AMD APM vol. 2 chapter 15. */
#include "cpu/svm.h"

void svm_reset(struct cpu *c, bool init) { (void)init; c->svm->gif = true; }
void svm_intercept(struct cpu *c, enum intercept x, u64 info) { (void)c; (void)x; (void)info; }
u64 svm_cr_write(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr) { (void)c; (void)cr; (void)how; (void)gpr; return v; }
u64 svm_cr_read(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr) { (void)c; (void)cr; (void)how; (void)gpr; return v; }
bool svm_guest_msr_read(struct cpu *c, u32 msr, u64 *v) { (void)c; (void)msr; (void)v; return false; }
bool svm_guest_msr_write(struct cpu *c, u32 msr, u64 v) { (void)c; (void)msr; (void)v; return false; }
bool svm_tpr_read(struct cpu *c, u8 *tpr) { (void)c; (void)tpr; return false; }
bool svm_tpr_write(struct cpu *c, u8 tpr) { (void)c; (void)tpr; return false; }
u64 svm_tsc(const struct cpu *c, u64 tsc) { (void)c; return tsc; }
void svm_vmexit(struct cpu *c) { (void)c; bug("no AMD-V"); }
void svm_exception(struct cpu *c, const struct exception *x) { (void)c; (void)x; }
void svm_service(struct cpu *c) { (void)c; }
int svm_vintr(struct cpu *c) { (void)c; return -1; }

bool npt_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p)
{
	(void)c; (void)gpa; (void)acc; (void)what; (void)p;
	return false;
}

_Noreturn void npt_fault(struct cpu *c, u64 gpa, enum access acc, enum nested_what what)
{
	(void)c; (void)gpa; (void)acc; (void)what;
	bug("no AMD-V");
}
