/* Signals in translated code: faults of the guest's own instructions and of addresses that share a
 * page-table entry, which become exits at their guest instruction; and kicks, which become exits
 * at an instruction's boundary.
 *
 * The handlers run on a stack of their own, since RSP is the return stack. They change where the
 * thread goes on, and nothing else: the exit then runs as if the code had jumped there.
 * A signal elsewhere goes to whoever handled it before (interp's native_trap.c). signal(7). */
#define LOG_TOPIC "bt"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "bt/bt.h"

#define ALTSTACK (64u << 10)
#define SIG_KICK SIGURG

/* The one thing here that is not a vCPU's own: which vCPU this thread runs. */
static _Thread_local struct bt *mine;

static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static bool installed;
static const int signals[N_FAULT_SIGNALS] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
static struct sigaction before[ARRAY_LEN(signals)];

static const u8 greg_of[] = {
	[RAX] = REG_RAX, [RCX] = REG_RCX, [RDX] = REG_RDX, [RBX] = REG_RBX, [RSP] = REG_RSP, [RBP] = REG_RBP,
	[RSI] = REG_RSI, [RDI] = REG_RDI, [R8] = REG_R8, [R9] = REG_R9, [R10] = REG_R10, [R11] = REG_R11,
	[R12] = REG_R12, [R13] = REG_R13, [R14] = REG_R14, [R15] = REG_R15,
};
enum { EFL_TF = 0x100 };

/* The instruction of the block at byte `off` of its code. */
static unsigned insn_at(const struct block *k, u32 off)
{
	unsigned n = 0;
	while (n + 1 < k->n && k->map[n + 1].host <= off)
		n++;
	return n;
}

static void victim_back(struct bt *b, greg_t *g, const struct insn_map *m, u32 at)
{
	if (m->victim != ENC_NONE && at >= m->victim_from)
		g[greg_of[m->victim]] = (greg_t)(m->victim == RCX ? b->ctx->save_rcx : b->ctx->save_v);
}

/* RDI and RSI of a string instruction are host addresses at this place. */
static void string_back(struct bt *b, greg_t *g, const struct insn_map *m)
{
	g[REG_RDI] -= (greg_t)(b->ctx->save_t - 1);
	if (m->string == MAP_MOVS)
		g[REG_RSI] -= (greg_t)(b->ctx->target - 1);
}

static void leave(struct bt *b, greg_t *g, const struct block *k, unsigned n, enum exit_kind kind, bool saved)
{
	b->ctx->exit = exit_id(k->index, n, kind);
	g[REG_RIP] = (greg_t)(uintptr_t)(saved ? b->exit_saved : b->exit_common);
}

/* ---- kicks ----------------------------------------------------------------------------------------- */

/* Leaves translated code if this is a place to, else goes on by one host instruction. */
static void stop_soon(struct bt *b, greg_t *g)
{
	const u8 *pc = (const u8 *)(uintptr_t)g[REG_RIP];
	g[REG_EFL] &= ~(greg_t)EFL_TF;
	if (pc >= b->enter_start && pc < b->enter_end) {
		g[REG_RSP] = (greg_t)b->ctx->host_sp;
		g[REG_RIP] = (greg_t)(uintptr_t)b->abort;
		return;
	}
	if (pc < b->rx || pc >= b->rx + b->cache_bytes || (pc >= b->exit_common && pc < b->lookup_miss)) {
		b->ctx->kicked = 1; /* outside: the run loop looks */
		return;
	}
	struct block *k = cache_block_at(b, pc);
	if (k) {
		u32 off = (u32)(pc - k->checked);
		unsigned n = insn_at(k, off);
		const struct insn_map *m = &k->map[n];
		if (m->held) {
			g[REG_EFL] |= EFL_TF;
			return;
		}
		u32 in = off - m->host, end = k->map[k->n].host;
		if (off == 0 || pc == k->host) {
			leave(b, g, k, 0, X_KICK, off == 0);
			return;
		}
		if (m->string && in == m->string_from) { /* perhaps after some repetitions */
			string_back(b, g, m);
			leave(b, g, k, n, X_KICK, m->saved_then);
			return;
		}
		if (off == end && off > m->host) { /* falls through to the next block */
			leave(b, g, k, k->n, X_KICK, k->map[k->n].saved);
			return;
		}
		if (off >= m->host && off < end && in <= m->commit && (in == 0 || in >= m->prelude)) {
			leave(b, g, k, n, X_KICK, in ? m->saved_then : m->saved);
			return;
		}
	}
	g[REG_EFL] |= EFL_TF;
	b->stats.steps++;
}

static void on_kick(int sig, siginfo_t *si, void *context)
{
	(void)sig, (void)si;
	if (!mine)
		return;
	mine->stats.kicks++;
	stop_soon(mine, ((ucontext_t *)context)->uc_mcontext.gregs);
}

void fault_kick(struct bt *b)
{
	if (atomic_load(&b->inside))
		pthread_kill(b->self, SIG_KICK);
}

/* ---- faults ------------------------------------------------------------------------------------------ */

static unsigned signal_index(int sig)
{
	unsigned n = 0;
	while (signals[n] != sig)
		n++;
	return n;
}

static void chain(int sig, siginfo_t *si, void *context)
{
	const struct sigaction *a = &before[signal_index(sig)];
	if (a->sa_flags & SA_SIGINFO)
		a->sa_sigaction(sig, si, context);
	else if (a->sa_handler != SIG_DFL && a->sa_handler != SIG_IGN)
		a->sa_handler(sig);
	else if (a->sa_handler == SIG_DFL) {
		sigaction(sig, a, NULL); /* it faults again, and ends the process */
		if (si->si_code <= 0)
			raise(sig);
	}
}

static bool fault_of_guest(struct bt *b, greg_t *g, siginfo_t *si)
{
	const u8 *pc = (const u8 *)(uintptr_t)g[REG_RIP];
	if (pc < b->rx || pc >= b->rx + b->cache_bytes)
		return false;
	const u8 *addr = si->si_addr;
	if (si->si_signo == SIGSEGV && addr >= b->return_stack && addr < b->return_stack + 4096 + 64) {
		g[REG_RSP] = (greg_t)b->return_top; /* calls deeper than the return stack: begin anew */
		b->stats.return_overflows++;
		return true;
	}
	struct block *k = cache_block_at(b, pc);
	if (!k || (u32)(pc - k->checked) < k->map[0].host)
		return false;
	u32 off = (u32)(pc - k->checked);
	unsigned n = insn_at(k, off);
	victim_back(b, g, &k->map[n], off - k->map[n].host);
	if ((si->si_signo == SIGSEGV || si->si_signo == SIGBUS) && k->page->klass.windowed) /* SIGBUS: not canonical, by RBP */
		b->window_fault = si->si_signo == SIGSEGV && window_has(b, addr) ? (u64)addr : 1;
	if (k->map[n].string && off - k->map[n].host == k->map[n].string_from)
		string_back(b, g, &k->map[n]);
	leave(b, g, k, n, X_FAULT, k->map[n].saved_fault);
	b->stats.faults[signal_index(si->si_signo)]++;
	return true;
}

static void on_fault(int sig, siginfo_t *si, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	struct bt *b = mine;
	if (b && sig == SIGTRAP && si->si_code == TRAP_TRACE)
		stop_soon(b, g);
	else if (!b || si->si_code <= 0 /* somebody sent it */ || !fault_of_guest(b, g, si))
		chain(sig, si, context);
}

/* ---- life ----------------------------------------------------------------------------------------------- */

static bool install(struct error *e)
{
	struct sigaction a = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	sigemptyset(&a.sa_mask);
	for (unsigned k = 0; k < ARRAY_LEN(signals); k++)
		if (sigaction(signals[k], &a, &before[k]))
			return error_set(e, "bt: cannot handle signal %d: %m", signals[k]);
	a.sa_sigaction = on_kick;
	a.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
	if (sigaction(SIG_KICK, &a, NULL))
		return error_set(e, "bt: cannot handle signal %d: %m", SIG_KICK);
	return true;
}

bool fault_init(struct bt *b, struct error *e)
{
	pthread_mutex_lock(&install_lock);
	bool ok = installed || (installed = install(e));
	pthread_mutex_unlock(&install_lock);
	if (!ok)
		return false;
	b->altstack = mmap(NULL, ALTSTACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t s = { .ss_sp = b->altstack, .ss_size = ALTSTACK };
	if (b->altstack == MAP_FAILED || sigaltstack(&s, NULL))
		return error_set(e, "bt: a stack for signals: %m");
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIG_KICK);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	b->self = pthread_self();
	mine = b;
	return true;
}

void fault_enter(struct bt *b) { mine = b; }

void fault_destroy(struct bt *b)
{
	if (mine == b)
		mine = NULL;
	sigaltstack(&(stack_t){ .ss_flags = SS_DISABLE }, NULL);
	if (b->altstack && b->altstack != MAP_FAILED)
		munmap(b->altstack, ALTSTACK);
}
