/* KVM cannot go on: a report with what somebody who looks for the cause needs, then the machine's end (status 70). */
#define LOG_TOPIC "kvm"
#include <stdio.h>
#include <string.h>

#include "kvm/kvm_impl.h"

static void put(char *buf, size_t cap, size_t *at, const char *fmt, ...) PRINTF_LIKE(4, 5);
static void put(char *buf, size_t cap, size_t *at, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int n = *at < cap ? vsnprintf(buf + *at, cap - *at, fmt, ap) : 0;
	va_end(ap);
	*at += n > 0 ? (size_t)n : 0;
}

/* The bytes around RIP, as far as the page tables and the map show them. */
static void put_code(struct cpu *c, char *buf, size_t cap, size_t *at)
{
	u64 lin = c->rip + c->seg[S_CS].base;
	put(buf, cap, at, "bytes at %llx:", (unsigned long long)lin);
	for (u64 k = 0; k < 16; k++) {
		u64 gpa;
		if (!mmu_peek(c, cpu_code64(c) ? lin + k : (u32)(lin + k), &gpa) || !mem_page(c->mem, gpa).host)
			put(buf, cap, at, " ??");
		else
			put(buf, cap, at, " %02x", (unsigned)(mem_phys_read(c->mem, gpa, 1) & 0xff));
	}
}

/* Once: what fails while the report is made is not told again. */
static void stop(struct kvm_vcpu *v, const char *why)
{
	struct cpu *c = v->cpu;
	char dump[4096], code[256];
	size_t at = 0;
	if (c->stopped)
		return;
	c->stopped = true;
	bool known = !v->in_kvm || state_fetch(v);
	cpu_dump(c, dump, sizeof(dump));
	put_code(c, code, sizeof(code), &at);
	log_error("processor %u: %s: the machine stops%s\n%s%s", c->index, why,
		  known ? "" : "; KVM does not give the state, this is the last that is known", dump, code);
	c->activity = ACT_SHUTDOWN;
	if (c->hooks && c->hooks->failed)
		c->hooks->failed(c->hooks->arg, why);
}

bool kvm_failed(struct kvm_vcpu *v, const char *fmt, ...)
{
	char why[384];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	stop(v, why);
	return false;
}

static const char *internal_error(u32 sub)
{
	switch (sub) {
	case KVM_INTERNAL_ERROR_EMULATION: return "an instruction that it cannot emulate";
	case KVM_INTERNAL_ERROR_SIMUL_EX: return "exceptions at the same time";
	case KVM_INTERNAL_ERROR_DELIVERY_EV: return "an exit while an event was delivered";
	case KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: return "an exit of the processor that it does not expect";
	default: return "of a kind that ring3 does not know";
	}
}

bool kvm_failed_exit(struct kvm_vcpu *v)
{
	const struct kvm_run *r = v->run;
	char data[256] = "";
	size_t at = 0;
	switch (r->exit_reason) {
	case KVM_EXIT_UNKNOWN:
		return kvm_failed(v, "KVM: the processor left the guest for a reason that KVM does not know: %#llx",
				  (unsigned long long)r->hw.hardware_exit_reason);
	case KVM_EXIT_FAIL_ENTRY:
		return kvm_failed(v, "KVM: the processor did not enter the guest: reason %#llx, host processor %u",
				  (unsigned long long)r->fail_entry.hardware_entry_failure_reason, r->fail_entry.cpu);
	case KVM_EXIT_EXCEPTION:
		return kvm_failed(v, "KVM: exception %u, error %#x", r->ex.exception, r->ex.error_code);
	case KVM_EXIT_INTERNAL_ERROR:
		for (u32 k = 0; k < MIN(r->internal.ndata, 16u); k++)
			put(data, sizeof(data), &at, "%s%llx", k ? " " : ", its data: ", (unsigned long long)r->internal.data[k]);
		return kvm_failed(v, "KVM: internal error %u, %s%s", r->internal.suberror, internal_error(r->internal.suberror), data);
	case KVM_EXIT_SYSTEM_EVENT:
		return kvm_failed(v, "KVM: system event %u", r->system_event.type);
	default:
		return kvm_failed(v, "KVM: exit %u, which ring3 did not ask for", r->exit_reason);
	}
}
