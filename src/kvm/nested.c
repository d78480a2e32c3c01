/* A hypervisor in the guest, where KVM takes guests that are (KVM_CAP_NESTED_STATE) and the LAPICs are KVM's: an interrupt
 * that ends its guest's turn is then KVM's to bring. VMX's MSRs pass, what they do is KVM's.
 *
 * What KVM keeps of it (VMXON, the VMCS under way) is not brought into struct cpu: it is in KVM's own form.
 * So a processor stays in KVM from VMXON on; moves to other engines are refused (nested_may_move).
 * While the hypervisor's guest runs (l2), struct cpu shows that one's registers; nothing is interpreted or delivered here
 * then, since its memory is behind tables of its own. A reset or INIT, which clears engine_l2 and CR4.VMXE in struct
 * cpu, ends it in KVM too.
 * Documentation/virt/kvm/api.rst, 4.114, 4.115 (KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE). */
#define LOG_TOPIC "kvm"
#include <errno.h>
#include <stdlib.h>

#include "kvm/kvm_impl.h"

int nested_fetch(struct kvm_vcpu *v)
{
	v->hypervisor = v->l2 = v->cpu->engine_l2 = false;
	if (!v->vm->nested_bytes || !v->cpu->model->has[FEAT_VMX])
		return 0;
	if (!v->nested && !(v->nested = calloc(1, v->vm->nested_bytes)))
		return -ENOMEM;
	v->nested->size = (u32)v->vm->nested_bytes;
	int r = vcpu_call(v, KVM_GET_NESTED_STATE, v->nested);
	if (r < 0)
		return r;
	v->hypervisor = v->nested->hdr.vmx.vmxon_pa != ~0ull;
	v->l2 = v->cpu->engine_l2 = v->nested->flags & KVM_STATE_NESTED_GUEST_MODE;
	return 0;
}

int nested_forget(struct kvm_vcpu *v, const struct kvm_sregs2 *next)
{
	if (!v->hypervisor || (v->l2 ? v->cpu->engine_l2 : (next->cr4 & CR4_VMXE) != 0))
		return 0;
	struct kvm_nested_state off = { .size = sizeof(off), .format = KVM_STATE_NESTED_FORMAT_VMX };
	off.hdr.vmx.vmxon_pa = off.hdr.vmx.vmcs12_pa = ~0ull;
	v->hypervisor = v->l2 = v->known = false;
	return vcpu_call(v, KVM_SET_NESTED_STATE, &off);
}

bool nested_may_move(const struct cpu *c, struct error *e)
{
	return !kvm_of(c)->hypervisor || error_set(e, "processor %u is a hypervisor's (VT-x is on), whose state is KVM's own", c->index);
}
