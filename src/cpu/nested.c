/* Guest mode, as far as AMD-V and VT-x have it in common: who is asked, the way out. See nested_api.h. */
#include <string.h>

#include "cpu/nested_api.h"
#include "cpu/svm.h"
#include "cpu/vmx.h"

void nested_intercept(struct cpu *c, enum intercept x, u64 info)
{
	if (c->nested.mode == NEST_SVM)
		svm_intercept(c, x, info);
	else
		vmx_intercept(c, x, info);
}

u64 nested_cr_write_slow(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr)
{
	return c->nested.mode == NEST_SVM ? svm_cr_write(c, cr, v, how, gpr) : vmx_cr_write(c, cr, v, how, gpr);
}

u64 nested_cr_read_slow(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr)
{
	return c->nested.mode == NEST_SVM ? svm_cr_read(c, cr, v, how, gpr) : vmx_cr_read(c, cr, v, how, gpr);
}

bool nested_msr_read(struct cpu *c, u32 msr, u64 *v)
{
	if (!c->nested.mode)
		return false;
	return c->nested.mode == NEST_SVM ? svm_guest_msr_read(c, msr, v) : vmx_guest_msr_read(c, msr, v);
}

bool nested_msr_write(struct cpu *c, u32 msr, u64 v)
{
	if (!c->nested.mode)
		return false;
	return c->nested.mode == NEST_SVM ? svm_guest_msr_write(c, msr, v) : vmx_guest_msr_write(c, msr, v);
}

bool nested_tpr_read(struct cpu *c, u8 *tpr)
{
	if (!c->nested.mode)
		return false;
	return c->nested.mode == NEST_SVM ? svm_tpr_read(c, tpr) : vmx_tpr_read(c, tpr);
}

bool nested_tpr_write(struct cpu *c, u8 tpr)
{
	if (!c->nested.mode)
		return false;
	return c->nested.mode == NEST_SVM ? svm_tpr_write(c, tpr) : vmx_tpr_write(c, tpr);
}

u64 nested_tsc(const struct cpu *c, u64 tsc)
{
	switch (c->nested.mode) {
	case NEST_SVM: return svm_tsc(c, tsc);
	case NEST_VMX: return vmx_tsc(c, tsc);
	default: return tsc;
	}
}

void nested_finish(struct cpu *c)
{
	if (c->nested.mode == NEST_SVM)
		svm_vmexit(c);
	else
		vmx_vmexit(c);
}

void nested_exception(struct cpu *c, const struct exception *x)
{
	if (c->nested.mode == NEST_SVM)
		svm_exception(c, x);
	else
		vmx_exception(c, x);
}

void nested_service(struct cpu *c)
{
	if (c->nested.mode == NEST_SVM)
		svm_service(c);
	else
		vmx_service(c);
}

int nested_vintr(struct cpu *c)
{
	return c->nested.mode == NEST_SVM ? svm_vintr(c) : vmx_vintr(c);
}

bool nested_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p)
{
	return c->nested.mode == NEST_SVM ? npt_translate(c, gpa, acc, what, p) : ept_translate(c, gpa, acc, what, p);
}

_Noreturn void nested_paging_fault(struct cpu *c, u64 lin, u64 gpa, enum access acc, enum nested_what what)
{
	if (c->nested.mode == NEST_SVM)
		npt_fault(c, gpa, acc, what);
	else
		ept_fault(c, lin, gpa, acc, what);
}

unsigned nested_state(const struct cpu *c, u64 to[NESTED_STATE_MAX])
{
	const struct svm *s = c->svm;
	const struct vmx *v = c->vmx;
	const u64 fixed[] = { c->nested.mode, c->nested.intr_gate, c->nested.paging, c->nested.held, c->icpt, s->vm_cr, s->hsave_pa,
			      s->tsc_ratio, s->vmcb, s->vintr, s->vector, s->event, s->event_rip, s->tsc_offset, s->ncr3, s->iopm, s->msrpm,
			      s->host.cr3, s->host.rip, s->host.rsp, v->on, v->feature_control, v->vmxon, v->current,
			      v->virtual_nmi_blocked, v->inject };
	_Static_assert(ARRAY_LEN(fixed) + 1 + N_VMCS_FIELDS <= NESTED_STATE_MAX, "NESTED_STATE_MAX");
	unsigned n = ARRAY_LEN(fixed);
	memcpy(to, fixed, sizeof(fixed));
	if (v->current == VMCS_NONE)
		return n;
	to[n++] = v->vmcs.launched;
	memcpy(to + n, v->vmcs.f, sizeof(v->vmcs.f));
	return n + N_VMCS_FIELDS;
}

void nested_count(const struct cpu *c, struct counters *t)
{
	const struct nested_counts *n = &c->nested_counts;
	counters_group(t, "hypervisors inside", 0);
	counter_add(t, "entries to a guest", counter_read(&n->entries));
	counter_add(t, "  the guest's translations kept", counter_read(&n->entries_kept));
	counter_add(t, "exits to the host", counter_read(&n->exits));
	counter_add(t, "  the host's translations kept", counter_read(&n->exits_kept));
	counter_add(t, "flushes of guests' translations", counter_read(&n->flushes));
	counter_add(t, "fields of shadow VMCSs read or written", counter_read(&n->shadowed));
	counter_add(t, "posted interrupts taken in a guest", counter_read(&n->posted));
}
