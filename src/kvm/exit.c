/* What KVM leaves to us: ports, device memory, MSRs that are ours, HLT, what it cannot do itself.
 * Documentation/virt/kvm/api.rst, 5 (the kvm_run structure).
 *
 * An answer that KVM is to take (port input, device memory, MSRs) lies in kvm_run until the next KVM_RUN:
 * `completing`. All of these go through the same bus and tables as with any engine. */
#define LOG_TOPIC "kvm"
#include <string.h>

#include "kvm/kvm_impl.h"

static void port_io(struct kvm_vcpu *v)
{
	struct kvm_run *r = v->run;
	u8 *at = (u8 *)r + r->io.data_offset;
	v->stats.io++;
	for (u32 k = 0; k < r->io.count; k++, at += r->io.size) { /* more than one: INS, OUTS */
		u32 val = 0;
		if (r->io.direction == KVM_EXIT_IO_IN) {
			val = mem_port_read(v->cpu->mem, r->io.port, r->io.size);
			memcpy(at, &val, r->io.size);
		} else {
			memcpy(&val, at, r->io.size);
			mem_port_write(v->cpu->mem, r->io.port, val, r->io.size);
		}
	}
}

static void mmio(struct kvm_vcpu *v)
{
	struct kvm_run *r = v->run;
	u64 val = 0;
	u32 len = MIN(r->mmio.len, 8u);
	v->stats.mmio++;
	if (r->mmio.is_write) {
		memcpy(&val, r->mmio.data, len);
		mem_phys_write(v->cpu->mem, r->mmio.phys_addr, val, len);
		if (mem_ram(v->cpu->mem, r->mmio.phys_addr))
			mem_device_wrote(v->cpu->mem); /* part of a page, which is no slot */
	} else {
		val = mem_phys_read(v->cpu->mem, r->mmio.phys_addr, len);
		memcpy(r->mmio.data, &val, len);
	}
}

static void rdmsr(struct kvm_vcpu *v)
{
	u64 val = 0;
	v->stats.rdmsr++;
	v->run->msr.error = !msr_read(v->cpu, v->run->msr.index, &val);
	v->run->msr.data = val;
}

/* TSC and TSC_ADJUST move the TSC, which is KVM's: as struct cpu says, once the instruction is done. */
static bool wrmsr(struct kvm_vcpu *v)
{
	struct cpu *c = v->cpu;
	u64 adjust = c->msr.tsc_adjust;
	v->stats.wrmsr++;
	if (v->run->msr.reason == KVM_MSR_EXIT_REASON_INVAL && model_msr_is_kvms(v->run->msr.index)) {
		v->run->msr.error = 1;
		return true;
	}
	v->run->msr.error = !msr_write(c, v->run->msr.index, v->run->msr.data);
	if (c->msr.tsc_adjust == adjust)
		return true;
	return state_get(v);
}

/* The processor stands behind HLT. */
static bool halted(struct kvm_vcpu *v)
{
	v->stats.hlt++;
	v->cpu->activity = ACT_HLT;
	return state_get(v);
}

static bool triple_fault(struct kvm_vcpu *v)
{
	struct cpu *c = v->cpu;
	if (!state_fetch(v))
		return false;
	c->activity = ACT_SHUTDOWN;
	c->stopped = true;
	if (c->hooks && c->hooks->triple_fault)
		c->hooks->triple_fault(c->hooks->arg);
	return true;
}

/* One instruction by the interpreter, where KVM has none to offer. */
static bool interpret(struct kvm_vcpu *v)
{
	if (!state_get(v))
		return false;
	if (v->l2)
		return kvm_failed_exit(v); /* its memory is not the interpreter's */
	v->stats.interpreted++;
	interp_step(v->cpu);
	mem_device_wrote(v->cpu->mem); /* perhaps */
	return true;
}

bool exit_handle(struct kvm_vcpu *v)
{
	struct kvm_run *r = v->run;
	switch (r->exit_reason) {
	case KVM_EXIT_IO:
		port_io(v);
		v->completing = true;
		return true;
	case KVM_EXIT_MMIO:
		mmio(v);
		v->completing = true;
		return true;
	case KVM_EXIT_X86_RDMSR:
		rdmsr(v);
		v->completing = true;
		return true;
	case KVM_EXIT_X86_WRMSR:
		v->completing = true;
		return wrmsr(v);
	case KVM_EXIT_HLT:
		return halted(v);
	case KVM_EXIT_SHUTDOWN:
		return triple_fault(v);
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		v->stats.window++;
		return true;
	case KVM_EXIT_SET_TPR:
		v->stats.tpr++;
		return true;
	case KVM_EXIT_INTR:
		return true;
	case KVM_EXIT_IOAPIC_EOI:
		v->cpu->hooks->apic_eoi(v->cpu->hooks->arg, r->eoi.vector);
		return true;
	case KVM_EXIT_INTERNAL_ERROR:
		if (r->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
			return interpret(v);
		return kvm_failed_exit(v);
	default:
		return kvm_failed_exit(v);
	}
}
