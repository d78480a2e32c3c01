/* The engine: its run loop, interrupts, the life of a processor. See kvm_impl.h for how the parts lie together. */
#define LOG_TOPIC "kvm"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/vmx_api.h"
#include "kvm/kvm_impl.h"
#include "kvm/probe_api.h"

/* ---- entering, events and interrupts ----------------------------------------------------------------------------- */

/* What only our own emulation does: INIT, SIPI, SMI, a trap that an interpreted instruction has left. */
#define EV_OWN (EV_INIT | EV_SIPI | EV_SMI | EV_TRAP)

static bool refused(struct kvm_vcpu *v, const char *what, int r)
{
	return kvm_failed(v, "%s: %s: %s", v->vm->host->name, what, strerror(-r));
}

static u8 get_tpr(const struct cpu *c) { return c->hooks && c->hooks->get_tpr ? c->hooks->get_tpr(c->hooks->arg) : 0; }

/* KVM_RUN, and what came of CR8 and the interrupt flag meanwhile. */
static int enter(struct kvm_vcpu *v)
{
	struct cpu *c = v->cpu;
	u8 tpr = v->vm->split ? 0 : get_tpr(c);
	v->run->cr8 = tpr >> 4;
	v->stats.enters++;
	int r = gate_kvm_run(v);
	posted_carry_out(v);
	v->completing = v->fresh = false;
	v->ready = v->run->ready_for_interrupt_injection && v->run->if_flag;
	if (!v->vm->split && v->run->cr8 != tpr >> 4 && c->hooks && c->hooks->set_tpr)
		c->hooks->set_tpr(c->hooks->arg, (u8)(v->run->cr8 << 4));
	return r;
}

/* NMIs that are due go to KVM, which knows whether they are blocked, and holds a second one. */
static bool inject_nmi(struct kvm_vcpu *v)
{
	struct cpu *c = v->cpu;
	if (c->activity == ACT_HLT && c->nmi_blocked)
		return true;
	atomic_fetch_and(&c->events, ~(u32)EV_NMI); /* before the count, or one would be lost */
	u32 due = atomic_exchange(&c->nmis, 0);
	for (u32 n = MIN(due, 2u); n; n--) {
		int r = vcpu_call(v, KVM_NMI, NULL);
		if (r < 0)
			return refused(v, "KVM_NMI", r);
		c->activity = ACT_RUN;
	}
	return true;
}

/* INTR is there, and the processor takes it now. */
static bool inject_interrupt(struct kvm_vcpu *v)
{
	struct cpu *c = v->cpu;
	int vector = c->hooks->int_ack(c->hooks->arg);
	if (vector < 0)
		return true;
	struct kvm_interrupt i = { .irq = (u32)vector };
	int r = vcpu_call(v, KVM_INTERRUPT, &i);
	if (r < 0)
		return refused(v, "KVM_INTERRUPT", r);
	v->stats.injected++;
	v->ready = false;
	c->activity = ACT_RUN;
	return true;
}

/* Deliveries by our own means: where their frames go is the guest's choice. */
static bool service(struct cpu *c)
{
	bool runs = cpu_service_events(c);
	mem_device_wrote(c->mem);
	return runs;
}

/* split: the 8259s'. KVM cannot give back a vector that it has not delivered, so that we deliver it. */
static bool take_pic(struct kvm_vcpu *v)
{
	if (v->fresh) /* only KVM_RUN says whether it is ready: it is to come back at once */
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (!v->ready)
		return true;
	if (!state_get(v))
		return false;
	return v->l2 ? state_put(v) && inject_interrupt(v) : service(v->cpu) && state_put(v);
}

static bool own_events(struct kvm_vcpu *v)
{
	if (!state_get(v))
		return false;
	if (v->l2 && !(atomic_load(&v->cpu->events) & EV_INIT))
		return true; /* none that an interpreter could bring to a hypervisor's guest */
	return (service(v->cpu) || (v->vm->split && !v->cpu->stopped));
}

/* It does not rest, or what is there ends its rest. */
static bool wakes(const struct cpu *c)
{
	u32 ev = atomic_load(&((struct cpu *)(uintptr_t)c)->events);
	return c->activity == ACT_RUN || (c->activity == ACT_HLT && (ev & c->event_mask & (EV_INTR | EV_NMI)));
}

/* What is due before the guest goes on. False: run() is to return. */
static bool boundary(struct kvm_vcpu *v)
{
	struct cpu *c = v->cpu;
	struct error e;
	u32 ev = atomic_load(&c->events);
	if (ev & EV_TLB)
		cpu_clear_event(c, EV_TLB); /* the slots are looked at below */
	if ((ev & EV_EXIT) || c->stopped)
		return false;
	if (((ev & EV_OWN) || c->activity == ACT_MWAIT) && !own_events(v))
		return false;
	if (c->activity == ACT_SHUTDOWN || (!v->vm->split && !wakes(c)))
		return false;
	if (unlikely(!slots_follow(v->vm, &e)))
		return kvm_failed(v, "%s", e.msg);
	if (!state_put(v))
		return false;
	ev = atomic_load(&c->events);
	if ((ev & EV_NMI) && !inject_nmi(v))
		return false;
	if ((ev & EV_INTR) && !(v->vm->split ? take_pic(v) : !v->ready || inject_interrupt(v)))
		return false;
	v->run->request_interrupt_window = (atomic_load(&c->events) & EV_INTR) != 0;
	return v->vm->split || c->activity == ACT_RUN;
}

/* ---- the run loop ---------------------------------------------------------------------------------------- */

static enum run_exit why_left(const struct cpu *c)
{
	if (c->stopped)
		return RUN_STOPPED;
	if (atomic_load(&((struct cpu *)(uintptr_t)c)->events) & EV_EXIT)
		return RUN_EVENT;
	return c->activity == ACT_RUN ? RUN_EVENT : RUN_HALT;
}

static enum run_exit run(struct cpu *c)
{
	struct kvm_vcpu *v = kvm_of(c);
	atomic_store(&v->inside, true);
	for (;;) {
		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST); /* before events are looked at */
		if (!boundary(v))
			break;
		int r = enter(v);
		if (r == -EINTR || r == -EAGAIN)
			continue;
		if (r < 0 ? !refused(v, "KVM_RUN", r) : !exit_handle(v))
			break;
	}
	atomic_store(&v->inside, false);
	state_get(v);
	return why_left(c);
}

/* By the interpreter: KVM's own single-stepping runs into handlers. */
static enum run_exit step(struct cpu *c)
{
	enum run_exit why = interp_step(c);
	mem_device_wrote(c->mem); /* perhaps */
	return why;
}

static void kick(struct cpu *c)
{
	struct kvm_vcpu *v = kvm_of(c);
	if (!v || !atomic_load(&v->inside))
		return;
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&v->stats.kicks, 1, __ATOMIC_RELAXED);
	pthread_kill(v->self, KVM_SIG_KICK);
}

/* ---- life ---------------------------------------------------------------------------------------------------- */

static void on_kick(int sig) { (void)sig; }

static bool catch_kicks(struct error *e)
{
	struct sigaction a = { .sa_handler = on_kick };
	sigset_t set;
	if (sigaction(KVM_SIG_KICK, &a, NULL))
		return error_set(e, "kvm: cannot handle signal %d: %s", KVM_SIG_KICK, strerror(errno));
	sigemptyset(&set);
	sigaddset(&set, KVM_SIG_KICK);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return true;
}

static void vcpu_destroy(struct cpu *c)
{
	struct kvm_vcpu *v = kvm_of(c);
	const struct kvm_host *h = v->vm->host;
	irqchip_leaves(v);
	posted_leaves(v);
	gate_leaves(v);
	nested_keep(v);
	c->engine_rests = false;
	if (v->run)
		h->unmap(h->arg, v->run, v->vm->run_bytes);
	if (v->fd >= 0)
		h->close(h->arg, v->fd);
	vm_leave(v->vm);
	interp_destroy(c);
	free(v->last);
	free(v->nested);
	free(v);
}

static bool create(struct kvm_vcpu *v, struct error *e)
{
	const struct kvm_host *h = v->vm->host;
	int err = 0;
	v->fd = kvm_call(v->vm, v->vm->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)v->cpu->index);
	if (v->fd < 0)
		return error_set(e, "%s: KVM_CREATE_VCPU of processor %u: %s", h->name, v->cpu->index, strerror(-v->fd));
	v->run = h->map(h->arg, v->fd, v->vm->run_bytes, &err);
	if (!v->run)
		return error_set(e, "%s: mapping processor %u: %s", h->name, v->cpu->index, strerror(err));
	if (!model_put_cpuid(v, e) || !state_init(v, e) || !catch_kicks(e) || !nested_take(v, e) || !irqchip_prime(v, e))
		return false;
	v->cpu->engine_rests = v->vm->split;
	gate_joined(v);
	posted_joined(v);
	irqchip_joined(v);
	return true;
}

static bool vcpu_init(struct cpu *c, struct error *e)
{
	static const struct kvm_options defaults;
	const struct kvm_options *o = c->engine_options ? c->engine_options : &defaults;
	if (c->clock->icount_mode)
		return error_set(e, "--icount: not with --engine kvm, which cannot count instructions; with bt or interp");
	if (!c->engine_keeps && (vmx_in_operation(c) || (c->efer & EFER_SVME))) /* a hop: KVM has its own state of that */
		return error_set(e, "kvm: processor %u is a hypervisor's (VT-x or AMD-V is on), which cannot move to another engine", c->index);
	struct kvm_vcpu *v = calloc(1, sizeof(*v));
	if (!v)
		return error_set(e, "kvm: out of memory");
	v->cpu = c;
	v->fd = -1;
	v->self = pthread_self();
	if (!interp_init(c, &v->in, e)) {
		free(v);
		return false;
	}
	if (!(v->vm = vm_join(c->mem, o, e))) {
		interp_destroy(c);
		free(v);
		return false;
	}
	if (create(v, e))
		return true;
	vcpu_destroy(c);
	return false;
}

/* ---- statistics -------------------------------------------------------------------------------------------------- */

static void count(const struct cpu *c, struct counters *t)
{
	const struct kvm_stats *s = &kvm_of(c)->stats;
	const struct { const char *name; const u64 *n; } rows[] = {
		{ "entries", &s->enters }, { "  exits: ports", &s->io }, { "  device memory", &s->mmio },
		{ "  (and writes to it without one)", &s->posted }, { "  RDMSR", &s->rdmsr },
		{ "  WRMSR", &s->wrmsr }, { "  HLT", &s->hlt }, { "  interrupts possible", &s->window }, { "  CR8", &s->tpr },
		{ "  by the interpreter", &s->interpreted }, { "kicks", &s->kicks }, { "interrupts given", &s->injected },
		{ "state fetched", &s->gets }, { "state given", &s->puts },
	};
	counters_group(t, "KVM", 0);
	for (size_t k = 0; k < ARRAY_LEN(rows); k++)
		counter_add(t, rows[k].name, counter_read(rows[k].n));
}

static bool may_leave(const void *options, struct error *e)
{
	const struct kvm_options *o = options;
	return !o || !o->pvclock || error_set(e, "the guest may use KVM's clock (--engine kvm,pvclock), which no other engine has");
}

static const char *const irqchip_words[] = { "own", "split", NULL };
static const struct kv_key keys[] = {
	ENGINE_NAME,
	{ "irqchip", KV_WORD, offsetof(struct kvm_options, irqchip), "whose LAPICs: own: ring3's; split: KVM's", .words = irqchip_words },
	{ "pvclock", KV_BOOL, offsetof(struct kvm_options, pvclock), "offer the guest KVM's clock; such a machine cannot go on in another engine" },
};

const struct engine_ops kvm_engine = {
	.name = "kvm",
	.help = "the processor's own virtualization, by /dev/kvm",
	.usable = kvm_usable,
	.worth = kvm_worth,
	.uncounted = true,
	.fit_model = model_fit,
	.vcpu_init = vcpu_init,
	.vcpu_destroy = vcpu_destroy,
	.may_leave = may_leave,
	.may_move = nested_may_move,
	.run = run,
	.step = step,
	.kick = kick,
	.count = count,
	.keys = keys,
	.n_keys = ARRAY_LEN(keys),
	.options_bytes = sizeof(struct kvm_options),
};
