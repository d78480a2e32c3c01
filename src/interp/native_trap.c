/* Faults of the guest's instruction in a stub become the guest's exceptions. The kernel sends a
 * signal; the handler notes which trap it was and goes on at native_fault(), as if the stub had
 * jumped there: on the vCPU's own stack, with its FPU state as the fault left it.
 * SDM vol. 3 6.15; signal(7).
 *
 *  1. The handler is the process's, so the list of arenas is, too: the one thing here that is
 *     global. It only grows; a slot is free when its base is 0.
 *  2. A fault outside of all arenas goes to whoever handled the signal before.
 *  3. The handler touches nothing but its own vCPU's struct native. Any thread.
 * No alternate stack is needed: stubs leave rsp alone. SA_ONSTACK is for threads that have one. */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

#include "cpu/nested_api.h"
#include "interp/native.h"

enum { MAX_ARENAS = 1024 };
static struct { _Atomic uintptr_t base; struct native *native; } arenas[MAX_ARENAS];
static _Atomic int n_arenas;
static pthread_mutex_t arenas_lock = PTHREAD_MUTEX_INITIALIZER;
static bool installed;

static const int signals[] = { SIGFPE, SIGSEGV, SIGILL, SIGBUS };
static struct sigaction before[ARRAY_LEN(signals)];

enum { TRAP_UD = 6, TRAP_GP = 13, TRAP_MF = 16, TRAP_XM = 19 };

_Noreturn void native_mf(struct cpu *c)
{
	if (c->cr0 & CR0_NE)
		cpu_raise(c, V_MF);
	nested_check(c, ICPT_FERR_FREEZE, 0);
	/* FERR#: the processor waits before the instruction for the interrupt. */
	native_ferr(c, true);
	cpu_restart(c);
}

/* In place of the stub, on its stack. */
static _Noreturn void native_fault(struct cpu *c)
{
	struct native *n = interp_of(c)->native;
	switch (n->fault_trap) {
	case TRAP_UD:
		cpu_ud(c);
	case TRAP_GP:
		cpu_gp0(c);
	case TRAP_XM:
		cpu_raise(c, c->cr4 & CR4_OSXMMEXCPT ? V_XM : V_UD);
	case TRAP_MF:
		native_mf(c);
	default:
		bug("trap %u (signal %d, address %#llx) in the stub of the instruction at %#llx", n->fault_trap,
		    n->fault_sig, (unsigned long long)n->fault_addr, (unsigned long long)insn_rip(c, c->cur));
	}
}

static struct native *arena_at(uintptr_t rip)
{
	int k = atomic_load_explicit(&n_arenas, memory_order_acquire);
	while (k-- > 0) {
		uintptr_t base = atomic_load_explicit(&arenas[k].base, memory_order_acquire);
		if (base && rip - base < ARENA_SIZE)
			return arenas[k].native;
	}
	return NULL;
}

static void chain(int sig, siginfo_t *si, void *context)
{
	unsigned k = 0;
	while (signals[k] != sig)
		k++;
	const struct sigaction *b = &before[k];
	if (b->sa_flags & SA_SIGINFO) {
		b->sa_sigaction(sig, si, context);
	} else if (b->sa_handler == SIG_DFL || (b->sa_handler == SIG_IGN && si->si_code > 0)) {
		/* The instruction faults again, and ends the process. */
		sigaction(sig, &(struct sigaction){ .sa_handler = SIG_DFL }, NULL);
		if (si->si_code <= 0)
			raise(sig);
	} else if (b->sa_handler != SIG_IGN) {
		b->sa_handler(sig);
	}
}

static void on_signal(int sig, siginfo_t *si, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	struct native *n = si->si_code > 0 ? arena_at((uintptr_t)g[REG_RIP]) : NULL;
	if (!n) {
		chain(sig, si, context);
		return;
	}
	n->fault_sig = sig;
	n->fault_trap = (unsigned)g[REG_TRAPNO];
	n->fault_addr = (u64)g[REG_CR2];
	g[REG_RIP] = (greg_t)(uintptr_t)native_fault;
	g[REG_RDI] = (greg_t)(uintptr_t)n->cpu;
}

static bool install(struct error *e)
{
	struct sigaction a = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	sigemptyset(&a.sa_mask);
	for (unsigned k = 0; k < ARRAY_LEN(signals); k++)
		if (sigaction(signals[k], &a, &before[k]))
			return error_set(e, "cannot handle signal %d: %m", signals[k]);
	return true;
}

bool trap_init(struct native *n, struct error *e)
{
	pthread_mutex_lock(&arenas_lock);
	bool ok = installed || (installed = install(e));
	int k = 0, count = atomic_load(&n_arenas);
	while (ok && k < count && atomic_load(&arenas[k].base))
		k++;
	if (ok && k == MAX_ARENAS)
		ok = error_set(e, "more than %d virtual processors in one process", MAX_ARENAS);
	if (ok) {
		n->slot = k;
		arenas[k].native = n;
		atomic_store_explicit(&arenas[k].base, (uintptr_t)n->rx, memory_order_release);
		if (k == count)
			atomic_store_explicit(&n_arenas, count + 1, memory_order_release);
	}
	pthread_mutex_unlock(&arenas_lock);
	return ok;
}

void trap_destroy(struct native *n)
{
	pthread_mutex_lock(&arenas_lock);
	atomic_store(&arenas[n->slot].base, 0);
	pthread_mutex_unlock(&arenas_lock);
}
