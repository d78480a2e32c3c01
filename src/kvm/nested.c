/* A hypervisor in the guest, where KVM takes guests that are (KVM_CAP_NESTED_STATE) and the LAPICs are KVM's: an interrupt
 * that ends its guest's turn is then KVM's to bring. VT-x's and AMD-V's MSRs pass, what they do is KVM's.
 *
 * What KVM keeps of it (VMXON, the VMCS or VMCB under way, GIF) is in KVM's own form and is not brought into struct cpu.
 * It goes from one processor of KVM's to the next in that form (c->engine_keeps): the move is from kvm to kvm, with KVM's
 * LAPICs. From VMXON or EFER.SVME on, moves to other engines are refused (nested_may_move).
 * While the hypervisor's guest runs (l2), struct cpu shows that one's registers; nothing is interpreted or delivered here
 * then, since its memory is behind tables of its own: what is half-way (events) goes back to KVM as it came. A reset or
 * INIT, which clears engine_l2, CR4.VMXE and EFER.SVME in struct cpu, ends it in KVM too.
 *
 * Order: KVM_SET_SREGS (EFER.SVME, without which KVM refuses it) and MSRs (IA32_FEATURE_CONTROL) come before
 * KVM_SET_NESTED_STATE, which makes the guest's mode; general registers and events are then those of that mode.
 * KVM judges by CR4.LA57, as it is then, which of the addresses of VT-x's hypervisor are canonical (Linux 6.1): it is set for
 * that while a guest of its runs, whose own CR4 comes with the state.
 * Documentation/virt/kvm/api.rst, 4.114, 4.115 (KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE). */
#define LOG_TOPIC "kvm"
#include <errno.h>
#include <stdlib.h>

#include "kvm/kvm_impl.h"

static bool is_svm(const struct cpu *c) { return !c->model->has[FEAT_VMX]; }

/* Without one there is nothing but what EFER and the MSRs say. */
static bool has_state(const struct kvm_nested_state *s, u64 efer)
{
	return s->format == KVM_STATE_NESTED_FORMAT_SVM ? (efer & EFER_SVME) != 0 : s->hdr.vmx.vmxon_pa != ~0ull;
}

int nested_fetch(struct kvm_vcpu *v, const struct state *s)
{
	v->hypervisor = v->l2 = v->cpu->engine_l2 = false;
	if (!v->vm->nested_bytes || !(v->cpu->model->has[FEAT_VMX] || v->cpu->model->has[FEAT_SVM]))
		return 0;
	if (!v->nested && !(v->nested = calloc(1, sizeof(*v->nested) + v->vm->nested_bytes)))
		return -ENOMEM;
	v->nested->state.size = (u32)v->vm->nested_bytes;
	int r = vcpu_call(v, KVM_GET_NESTED_STATE, &v->nested->state);
	if (r < 0)
		return r;
	v->nested->events = s->events;
	v->hypervisor = has_state(&v->nested->state, s->sregs.efer);
	v->l2 = v->cpu->engine_l2 = v->nested->state.flags & KVM_STATE_NESTED_GUEST_MODE;
	return 0;
}

/* Whether a reset has switched it off since it was fetched. */
static bool ended(const struct kvm_vcpu *v, const struct kvm_sregs2 *next)
{
	return v->l2 ? !v->cpu->engine_l2 : is_svm(v->cpu) ? !(next->efer & EFER_SVME) : !(next->cr4 & CR4_VMXE);
}

int nested_forget(struct kvm_vcpu *v, const struct kvm_sregs2 *next)
{
	if (!v->hypervisor || !ended(v, next))
		return 0;
	bool there = !v->untold;
	struct kvm_nested_state off = { .size = sizeof(off), .format = KVM_STATE_NESTED_FORMAT_VMX };
	off.hdr.vmx.vmxon_pa = off.hdr.vmx.vmcs12_pa = ~0ull;
	if (is_svm(v->cpu))
		off = (struct kvm_nested_state){ .size = sizeof(off), .format = KVM_STATE_NESTED_FORMAT_SVM, .flags = KVM_STATE_NESTED_GIF_SET };
	v->hypervisor = v->l2 = v->known = v->untold = false;
	return there ? vcpu_call(v, KVM_SET_NESTED_STATE, &off) : 0;
}

u64 nested_wider_cr4(const struct kvm_vcpu *v)
{
	return v->untold && v->l2 && !is_svm(v->cpu) && cpu_has(v->cpu, FEAT_LA57) ? CR4_LA57 : 0;
}

int nested_tell(struct kvm_vcpu *v)
{
	if (!v->untold)
		return 0;
	int r = vcpu_call(v, KVM_SET_NESTED_STATE, &v->nested->state);
	free(v->nested); /* its size was another KVM's, perhaps */
	v->nested = NULL;
	v->untold = false;
	return r;
}

/* ---- from processor to processor ------------------------------------------------------------------------- */

void nested_keep(struct kvm_vcpu *v)
{
	if (!v->hypervisor)
		return;
	v->cpu->engine_keeps = v->nested;
	v->nested = NULL;
}

bool nested_take(struct kvm_vcpu *v, struct error *e)
{
	struct hypervisor *n = v->cpu->engine_keeps;
	if (!n)
		return true;
	if (n->state.size > v->vm->nested_bytes)
		return error_set(e, "kvm: processor %u is a hypervisor's, whose state this KVM does not take", v->cpu->index);
	v->cpu->engine_keeps = NULL;
	v->nested = n;
	v->hypervisor = v->untold = true;
	v->l2 = n->state.flags & KVM_STATE_NESTED_GUEST_MODE;
	v->last->events.smi = n->events.smi; /* an INIT that waits */
	if (v->l2)
		v->last->events = n->events;
	return true;
}

bool nested_may_move(const struct cpu *c, const struct engine_ops *to, const void *options, struct error *e)
{
	const struct kvm_options *o = options;
	return !kvm_of(c)->hypervisor || (to == &kvm_engine && o && o->irqchip == IRQCHIP_SPLIT) ||
	       error_set(e, "processor %u is a hypervisor's (%s is on), whose state is KVM's own: no engine but kvm,irqchip=split takes it",
			 c->index, is_svm(c) ? "AMD-V" : "VT-x");
}
