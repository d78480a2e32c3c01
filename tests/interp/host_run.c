/* The trampoline is made of bytes, beside its data, so that all that it touches is RIP-relative
 * and every general register, rsp too, is the instruction's. */
#include "host_run.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

struct area {
	u8 code[4096];
	struct image m;
	u64 host_rsp, default_mxcsr;
	u64 saved[8];
};
static struct area *a;
static unsigned n_code, at_insn, at_after;
static struct host_fault fault;

static void on_fault(int sig, siginfo_t *si, void *context)
{
	greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
	if ((u64)g[REG_RIP] != (u64)(uintptr_t)&a->code[at_insn]) {
		signal(sig, SIG_DFL);
		return;
	}
	fault = (struct host_fault){ (int)g[REG_TRAPNO], (u32)g[REG_ERR], (u64)g[REG_CR2] };
	g[REG_RIP] = (greg_t)(uintptr_t)&a->code[at_after];
}

static void put(const char *s, unsigned n) { memcpy(a->code + n_code, s, n); n_code += n; }
#define PUT(s) put(s, sizeof(s) - 1)
/* ModRM and displacement of [rip + field]. */
static void field(unsigned reg, const void *p)
{
	a->code[n_code] = (u8)(5 | (reg & 7) << 3);
	u32 rel = (u32)((const u8 *)p - (a->code + n_code + 5));
	memcpy(a->code + n_code + 1, &rel, 4);
	n_code += 5;
}
static void gpr(unsigned r, const void *p, bool store)
{
	char b[] = { (char)(0x48 | (r >= 8 ? 4 : 0)), (char)(store ? 0x89 : 0x8b) };
	put(b, 2);
	field(r, p);
}
static void vectors(bool store)
{
	for (unsigned r = 0; r < 16 && !__builtin_cpu_supports("avx512bw"); r++) { /* vmovdqu ymm */
		char b[] = { (char)0xc5, (char)((~r >> 3 & 1) << 7 | 0x7e), store ? 0x7f : 0x6f };
		put(b, 3);
		field(r, a->m.zmm[r]);
	}
	if (!__builtin_cpu_supports("avx512bw"))
		return;
	for (unsigned r = 0; r < 32; r++) { /* vmovdqu64 zmm */
		char b[] = { 0x62, (char)((~r >> 3 & 1) << 7 | 0x60 | (~r >> 4 & 1) << 4 | 1), (char)0xfe, 0x48, store ? 0x7f : 0x6f };
		put(b, 5);
		field(r, a->m.zmm[r]);
	}
	for (unsigned r = 0; r < 8; r++) { /* kmovq */
		PUT("\xc4\xe1\xf8");
		put(store ? "\x91" : "\x90", 1);
		field(r, &a->m.k[r]);
	}
}

void host_run_init(void)
{
	a = mmap(NULL, sizeof(*a), PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static u8 stack[1 << 16];
	sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof(stack) }, NULL);
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGFPE, &sa, NULL);
	sigaction(SIGILL, &sa, NULL);
	a->default_mxcsr = 0x1f80;
	static const u8 callee_saved[] = { 3, 5, 12, 13, 14, 15 };
	for (unsigned k = 0; k < 6; k++)
		gpr(callee_saved[k], &a->saved[k], true);
	gpr(4, &a->host_rsp, true);
	vectors(false);
	PUT("\x0f\xae"); field(1, a->m.fx); /* fxrstor: after the vectors it would spoil xmm */
	vectors(false);
	PUT("\xff"); field(6, &a->m.flags); /* push; popfq */
	PUT("\x9d");
	for (unsigned r = 0; r < 16; r++)
		gpr(r, &a->m.gpr[r], false);
	at_insn = n_code;
	n_code += 16;
	at_after = n_code;
	for (unsigned r = 0; r < 16; r++)
		gpr(r, &a->m.gpr[r], true);
	gpr(4, &a->host_rsp, false);
	PUT("\x9c\x8f"); field(0, &a->m.flags); /* pushfq; pop */
	vectors(true);
	PUT("\x0f\xae"); field(0, a->m.fx); /* fxsave; fninit; ldmxcsr */
	PUT("\xdb\xe3\x0f\xae"); field(2, &a->default_mxcsr);
	PUT("\xc5\xf8\x77\xfc"); /* vzeroupper; cld */
	for (unsigned k = 0; k < 6; k++)
		gpr(callee_saved[k], &a->saved[k], false);
	PUT("\xc3");
}

struct host_fault host_run(struct image *m, const u8 *bytes, unsigned n)
{
	memset(a->code + at_insn, 0x90, 16);
	memcpy(a->code + at_insn, bytes, n);
	a->m = *m;
	a->m.flags |= 2;
	fault = (struct host_fault){ .trap = -1 };
	((void (*)(void))(uintptr_t)a->code)();
	*m = a->m;
	return fault;
}
