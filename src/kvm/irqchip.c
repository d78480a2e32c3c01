/* irqchip=split: the LAPICs are KVM's, the IOAPIC, the 8259s and the 8254 stay ours.
 *
 * What comes for a LAPIC, from the IOAPIC or as a device's MSI, goes to KVM as an MSI (irqfd.c); the EOI of a level-triggered
 * interrupt of the IOAPIC comes back as an exit, for which KVM knows the IOAPIC's table by its routes. HLT, IPIs,
 * timers, EOI and TPR stay within KVM. The 8259s' interrupt is taken here, when KVM says that it would be.
 *
 * The LAPICs are lent to KVM when the last processor has joined, and come back when the first one leaves: between the
 * two the board's are copies. The machine lock is held over both, so that no message is lost. Other processors send, too,
 * to one that has not run in KVM yet (irqchip_prime), or that has come out while they still run (take_back).
 * Documentation/virt/kvm/api.rst, 7.5 (KVM_CAP_SPLIT_IRQCHIP), 4.57, 4.58 (KVM_GET_LAPIC, KVM_SET_LAPIC). */
#define LOG_TOPIC "kvm"
#include <errno.h>
#include <string.h>

#include "kvm/kvm_impl.h"

enum { R_ISR = 0x10, R_TMR = 0x18, R_IRR = 0x20, R_LVT_TIMER = 0x32, R_TIMER_INITIAL = 0x38, R_TIMER_CURRENT };
enum { LVT_MASKED = 1 << 16, LVT_TIMER_MODES = 3 << 17 };
enum { MSR_APIC_BASE = 0x1b, MSR_TSC_DEADLINE = 0x6e0 };

static void pins(void *arg, const struct msi *m, unsigned n) { irqfd_pins(arg, m, n); }

/* ---- state ---------------------------------------------------------------------------------------------- */

static int msr_move(const struct kvm_vcpu *v, unsigned long request, u32 msr, u64 *value)
{
	struct { struct kvm_msrs head; struct kvm_msr_entry e; } l = { .head.nmsrs = 1, .e = { .index = msr, .data = *value } };
	int r = vcpu_call(v, request, &l);
	*value = l.e.data;
	return r < 0 ? r : r == 1 ? 0 : -EINVAL;
}

int apic_fetch(struct kvm_vcpu *v, struct apic_state *s)
{
	struct kvm_lapic_state k;
	int r = vcpu_call(v, KVM_GET_LAPIC, &k);
	if (r < 0)
		return r;
	memcpy(s->page, k.regs, sizeof(s->page));
	return msr_move(v, KVM_GET_MSRS, MSR_TSC_DEADLINE, &s->tsc_deadline);
}

bool apic_same(const struct apic_state *a, const struct apic_state *b)
{
	struct apic_state x = *a;
	memcpy(x.page + 16 * R_TIMER_CURRENT, b->page + 16 * R_TIMER_CURRENT, 4); /* moves by itself */
	return !memcmp(&x, b, sizeof(x));
}

/* The interrupts that have come to KVM's LAPIC since it was what `last` says. */
static void add_come(u8 *page, const u8 *now, const u8 *last)
{
	for (unsigned n = 0; n < 8; n++) {
		u32 irr = 16 * (R_IRR + n), tmr = 16 * (R_TMR + n), come = ld32(now + irr) & ~ld32(last + irr);
		st32(page + irr, ld32(page + irr) | come);
		st32(page + tmr, (ld32(page + tmr) & ~come) | (ld32(now + tmr) & come));
	}
}

int apic_give(struct kvm_vcpu *v, const struct apic_state *s, const struct apic_state *last)
{
	struct kvm_lapic_state now;
	struct apic_state k = *s;
	int r = vcpu_call(v, KVM_GET_LAPIC, &now);
	if (r < 0)
		return r;
	add_come(k.page, (const u8 *)now.regs, last->page);
	if ((r = vcpu_call(v, KVM_SET_LAPIC, k.page)) < 0)
		return r;
	u64 deadline = s->tsc_deadline;
	return deadline ? msr_move(v, KVM_SET_MSRS, MSR_TSC_DEADLINE, &deadline) : 0;
}

int apic_rearm(struct kvm_vcpu *v, u64 deadline) { return deadline ? msr_move(v, KVM_SET_MSRS, MSR_TSC_DEADLINE, &deadline) : 0; }

/* ---- lending ------------------------------------------------------------------------------------------------ */

static void lend(struct vm *vm, const struct apic_runner *r)
{
	const struct cpu_hooks *h = vm->vcpu[0]->cpu->hooks;
	h->apic_lend(h->arg, r);
	vm->lent = r;
}

/* For a SIPI that comes before the INIT that is already an event of ours is taken. */
static u32 primed_mp_state(const struct kvm_vcpu *v)
{
	u32 ev = atomic_load(&v->cpu->events);
	return (ev & EV_INIT) && !(ev & EV_SIPI) && !v->cpu->bsp ? KVM_MP_STATE_INIT_RECEIVED : mp_state(v->cpu);
}

/* The timer waits for the state: the guest's time stands still. *last: the LAPIC and the activity as KVM has them then. */
static int prime(struct kvm_vcpu *v)
{
	struct apic_state *a = &v->last->apic;
	mem_lock(v->vm->mem);
	v->cpu->hooks->apic_get(v->cpu->hooks->arg, a);
	mem_unlock(v->vm->mem);
	st32(a->page + 16 * R_TIMER_INITIAL, 0);
	st32(a->page + 16 * R_TIMER_CURRENT, 0);
	a->tsc_deadline = 0;
	v->last->mp.mp_state = primed_mp_state(v);
	u64 base = a->base; /* first: the page's layout is its mode's */
	int r = msr_move(v, KVM_SET_MSRS, MSR_APIC_BASE, &base);
	return r < 0 || (r = apic_give(v, a, a)) < 0 ? r : vcpu_call(v, KVM_SET_MP_STATE, &v->last->mp);
}

bool irqchip_prime(struct kvm_vcpu *v, struct error *e)
{
	int r = v->vm->split ? prime(v) : 0;
	return r >= 0 || error_set(e, "%s: the LAPIC of processor %u: %s", v->vm->host->name, v->cpu->index, strerror(-r));
}

void irqchip_joined(struct kvm_vcpu *v)
{
	struct vm *vm = v->vm;
	if (!vm->split)
		return;
	mem_lock(vm->mem);
	if (++vm->n_vcpus == v->cpu->n_cpus) {
		vm->runner = (struct apic_runner){ vm, irqfd_send, pins };
		lend(vm, &vm->runner);
	}
	mem_unlock(vm->mem);
}

/* Asked for the activity KVM carries out an INIT that waits, and a SIPI behind it, whose vector the state then shows. */
static void take_late_init(struct kvm_vcpu *v, bool init)
{
	bool waited = v->last->mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
	struct kvm_mp_state now;
	struct kvm_sregs2 s;
	if (vcpu_call(v, KVM_GET_MP_STATE, &now) < 0 || sregs_call(v, false, &s) < 0)
		return;
	if (init) {
		cpu_clear_event(v->cpu, EV_SIPI); /* of an earlier one */
		cpu_post_event(v->cpu, EV_INIT);
	}
	if ((init || waited) && now.mp_state == KVM_MP_STATE_RUNNABLE && !v->cpu->bsp) {
		v->cpu->sipi_vector = (u8)(s.cs.selector >> 8);
		cpu_post_event(v->cpu, EV_SIPI);
	}
}

/* INIT, SIPI and NMI of another processor's that have come since this one came out of the guest. A hypervisor's goes on in
 * KVM, which knows whether INIT is blocked. */
static void take_late_events(struct kvm_vcpu *v)
{
	struct kvm_vcpu_events e;
	if (vcpu_call(v, KVM_GET_VCPU_EVENTS, &e) < 0)
		return;
	if (!v->hypervisor)
		take_late_init(v, e.smi.latched_init);
	else if (v->nested && e.smi.latched_init)
		v->nested->events.smi.latched_init = 1;
	if (!e.nmi.pending)
		return;
	if (v->l2 && v->nested)
		v->nested->events.nmi.pending = e.nmi.pending;
	else if (!v->l2 && !v->last->events.nmi.pending) /* that one is known */
		cpu_post_event(v->cpu, EV_NMI);
}

static bool has_vector(const u8 *page, unsigned first, u32 vector) { return ld32(page + 16 * (first + vector / 32)) >> vector % 32 & 1; }

/* KVM's timer has gone on while the guest's time stood still, and what it then held back is in none of its registers: the
 * count is the board's, unless the interrupt has come. A one-shot timer that KVM shows as over may be due; then rather once
 * too often, as KVM has it where it is given such a one. */
static void take_back_timer(u8 *now, const u8 *board, const u8 *last)
{
	u32 lvt = ld32(now + 16 * R_LVT_TIMER), vector = lvt & 0xff, left = ld32(board + 16 * R_TIMER_CURRENT);
	bool come = has_vector(now, R_IRR, vector), one_shot = !(lvt & LVT_TIMER_MODES);
	if (come && !has_vector(last, R_IRR, vector))
		return;
	if (one_shot && !(lvt & LVT_MASKED) && !left && !come && !has_vector(now, R_ISR, vector) && ld32(now + 16 * R_TIMER_INITIAL))
		left = 1;
	st32(now + 16 * R_TIMER_CURRENT, left);
}

/* The board's LAPIC goes on where KVM's has come to. Where the board's is not what KVM was given, or what was fetched from it
 * (a reset; a processor that has not run yet), what has come meanwhile is added to it. */
static void take_back(struct kvm_vcpu *v)
{
	const struct cpu_hooks *h = v->cpu->hooks;
	struct apic_state board, now = { 0 };
	take_late_events(v); /* first: INIT resets the LAPIC */
	h->apic_get(h->arg, &board);
	if (apic_fetch(v, &now) < 0)
		return;
	if (apic_same(&board, &v->last->apic)) {
		take_back_timer(now.page, board.page, v->last->apic.page);
		now.base = board.base;
		board = now;
	} else {
		add_come(board.page, now.page, v->last->apic.page);
	}
	h->apic_set(h->arg, &board);
}

void irqchip_leaves(struct kvm_vcpu *v)
{
	struct vm *vm = v->vm;
	if (!vm->split)
		return;
	mem_lock(vm->mem);
	if (vm->lent)
		irqfd_end(vm); /* what is under way is in the LAPICs then */
	for (unsigned k = 0; vm->lent && k < vm->n_vcpus; k++)
		if (!vm->vcpu[k]->in_kvm)
			take_back(vm->vcpu[k]);
	if (vm->lent)
		lend(vm, NULL);
	if (vm->vcpu[v->cpu->index] == v)
		vm->n_vcpus--;
	mem_unlock(vm->mem);
}

bool irqchip_set_up(struct vm *vm, struct error *e)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { IOAPIC_PINS } };
	int r = kvm_call(vm, vm->fd, KVM_ENABLE_CAP, &split);
	return r >= 0 || error_set(e, "--engine kvm: irqchip=split: %s: KVM_CAP_SPLIT_IRQCHIP: %s; irqchip=own does without",
				   vm->host->name, strerror(-r));
}
