/* The host's processor as one side. A test's registers are loaded by XRSTOR and IRETQ, so that
 * all of them, flags, stack pointer and code segment (0x33, or 0x23 for compatibility mode)
 * take effect at once; every run ends in an exception, whose signal frame holds them all again.
 *
 *  1. While `running` is set, nothing of the C library's may be used: FS base and flags are the
 *     test's. The signal handler puts them back before it calls C.
 *  2. Handlers never return to the test; they go back to native_enter's caller. Signals that
 *     come while not running belong to whoever handled them before.
 *  3. A thread of its own ends a test that loops, by a signal. It stops only what it has seen
 *     running for two seconds.
 * Needs Linux with FSGSBASE for user mode, modify_ldt, and a processor with XSAVE. */
#include "diff.h" /* first: <elf.h> defines PF_W */

#include <asm/ldt.h>
#include <cpuid.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { XSAVE_MAX = 8192, ALT_STACK = 1 << 18 };

/* Read and written by the assembly below, at these offsets. */
struct native_ctl {
	u64 gpr[16];
	u64 rip, cs, rflags, rsp, ss;   /* 128: an IRETQ frame */
	u64 fs_base, gs_base;           /* 168, 176 */
	u16 ds, es, fs, gs;             /* 184 */
	u64 host_rsp, host_fs_base;     /* 192, 200 */
	u32 running, load_selectors;    /* 208, 212 */
	void *xsave;                    /* 216 */
	u64 xcr0;                       /* 224 */
	u16 out_ds, out_es, out_fs, out_gs; /* 232 */
	u64 out_fs_base, out_gs_base;   /* 240, 248 */
};
#define AT(field, n) _Static_assert(offsetof(struct native_ctl, field) == n, "the assembly below")
AT(rip, 128); AT(fs_base, 168); AT(ds, 184); AT(host_rsp, 192); AT(running, 208); AT(load_selectors, 212);
AT(xsave, 216); AT(xcr0, 224); AT(out_ds, 232); AT(out_fs_base, 240);

extern struct native_ctl native_ctl;
struct native_ctl native_ctl __attribute__((aligned(64)));
void native_enter(void);
void native_signal(int sig, siginfo_t *si, void *context);
void native_collect(int sig, const siginfo_t *si, const ucontext_t *uc);
void native_chain(int sig, siginfo_t *si, void *context);

__asm__(
".text\n"
".globl native_enter\n"
"native_enter:\n"
"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
"	lea native_ctl(%rip), %rbx\n"
"	rdfsbase %rax; mov %rax, 200(%rbx)\n"
"	mov %rsp, 192(%rbx)\n"
"	mov 216(%rbx), %rdi; mov 224(%rbx), %eax; mov 228(%rbx), %edx\n"
"	xrstor64 (%rdi)\n"
"	mov 184(%rbx), %ds; mov 186(%rbx), %es\n"
"	cmpl $0, 212(%rbx); je 1f\n"
"	mov 188(%rbx), %fs; mov 190(%rbx), %gs; jmp 2f\n"
"1:	mov 168(%rbx), %rax; wrfsbase %rax; mov 176(%rbx), %rax; wrgsbase %rax\n"
"2:	movl $1, 208(%rbx)\n"
"	mov %rbx, %rsp\n"
"	mov (%rsp), %rax; mov 8(%rsp), %rcx; mov 16(%rsp), %rdx; mov 24(%rsp), %rbx\n"
"	mov 40(%rsp), %rbp; mov 48(%rsp), %rsi; mov 56(%rsp), %rdi\n"
"	mov 64(%rsp), %r8; mov 72(%rsp), %r9; mov 80(%rsp), %r10; mov 88(%rsp), %r11\n"
"	mov 96(%rsp), %r12; mov 104(%rsp), %r13; mov 112(%rsp), %r14; mov 120(%rsp), %r15\n"
"	lea 128(%rsp), %rsp\n"
"	iretq\n"
".globl native_signal\n"
"native_signal:\n"
"	cmpl $0, native_ctl+208(%rip); je native_chain\n"
"	lea native_ctl(%rip), %rbx\n"
"	movl $0, 208(%rbx)\n"
"	push $0x202; popf\n" /* AC, NT and DF off */
"	mov %ds, 232(%rbx); mov %es, 234(%rbx); mov %fs, 236(%rbx); mov %gs, 238(%rbx)\n"
"	rdfsbase %rax; mov %rax, 240(%rbx); rdgsbase %rax; mov %rax, 248(%rbx)\n"
"	xor %eax, %eax\n"
"	mov %eax, %ds; mov %eax, %es; mov %eax, %fs; mov %eax, %gs\n"
"	wrgsbase %rax; mov 200(%rbx), %rax; wrfsbase %rax\n"
"	sub $8, %rsp; call native_collect\n"
"	mov 192(%rbx), %rsp\n"
"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
"	ret\n");

static struct {
	u8 *code, *data;             /* the same pages, always writable */
	u32 at[16];                  /* offsets of XSAVE components */
	u64 xcr0;
	bool keeps_pointers;
	struct outcome *out;
	struct sigaction before[64];
	_Atomic u64 runs;
	u8 xsave[XSAVE_MAX] __attribute__((aligned(64)));
} host;

unsigned host_vector_bytes(void) { return host.xcr0 & 0x40 ? 64 : host.xcr0 & 4 ? 32 : 16; }
unsigned host_vector_regs(void) { return host.xcr0 & 0x80 ? 32 : 16; }
bool host_keeps_fpu_pointers(void) { return host.keeps_pointers; }
u32 host_cpu_node(void)
{
	cpu_set_t one;
	u32 limit = 0;
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one);
	__asm__ volatile("lsl %1, %0" : "=r"(limit) : "r"(0x7bu), "0"(limit));
	return limit;
}
u8 host_linear_bits(void)
{
	u32 a, b, c, d;
	__cpuid(0x80000008, a, b, c, d);
	return (u8)(a >> 8);
}
u32 host_xsave_offset(unsigned component)
{
	u32 a, b, c, d;
	__cpuid_count(0xd, component, a, b, c, d);
	return b;
}
void host_fit(struct vec_state *v)
{
	for (unsigned r = 0; r < 32; r++)
		for (unsigned b = r < host_vector_regs() ? host_vector_bytes() : 0; b < 64; b++)
			v->zmm[r][b] = 0;
	if (host_vector_bytes() < 64)
		memset(v->k, 0, sizeof(v->k));
	if (!host.keeps_pointers && !(v->fsw & 0x80))
		v->fop = 0, v->fip = v->fdp = 0;
}
const u8 *native_data(void) { return host.data; }
void native_restore(void) { memcpy(host.data, data_image(), DATA_BYTES); }

/* ---- XSAVE images, standard format (SDM vol. 1 13.4) ------------------------------------------- */

enum { X_AVX = 2, X_OPMASK = 5, X_ZMM_HI = 6, X_HI16_ZMM = 7, FX_ST = 32, FX_XMM = 160, XSTATE_BV = 512 };

static void image_put(const struct vec_state *v, u8 *x)
{
	memset(x, 0, 32);
	memset(x + XSTATE_BV, 0, 64);
	st16(x, v->fcw);
	st16(x + 2, v->fsw);
	x[4] = v->ftw;
	st16(x + 6, v->fop);
	st64(x + 8, v->fip);
	st64(x + 16, v->fdp);
	st32(x + 24, v->mxcsr);
	memcpy(x + FX_ST, v->st, sizeof(v->st));
	st64(x + XSTATE_BV, host.xcr0);
	for (unsigned k = 0; k < 16; k++) {
		memcpy(x + FX_XMM + 16 * k, v->zmm[k], 16);
		if (host.xcr0 & 4)
			memcpy(x + host.at[X_AVX] + 16 * k, v->zmm[k] + 16, 16);
		if (host.xcr0 & 0x40)
			memcpy(x + host.at[X_ZMM_HI] + 32 * k, v->zmm[k] + 32, 32);
		if (host.xcr0 & 0x80)
			memcpy(x + host.at[X_HI16_ZMM] + 64 * k, v->zmm[16 + k], 64);
	}
	if (host.xcr0 & 0x20)
		memcpy(x + host.at[X_OPMASK], v->k, 64);
}

static void image_get(const u8 *x, struct vec_state *v)
{
	u64 bv = ld64(x + XSTATE_BV);
	memset(v, 0, sizeof(*v));
	v->fcw = 0x37f;
	if (bv & 1) {
		v->fcw = ld16(x);
		v->fsw = ld16(x + 2);
		v->ftw = x[4];
		v->fop = ld16(x + 6);
		v->fip = ld64(x + 8);
		v->fdp = ld64(x + 16);
		for (unsigned k = 0; k < 8; k++)
			memcpy(v->st[k], x + FX_ST + 16 * k, 10);
	}
	v->mxcsr = ld32(x + 24);
	for (unsigned k = 0; k < 16; k++) {
		if (bv & 2)
			memcpy(v->zmm[k], x + FX_XMM + 16 * k, 16);
		if (bv & 4)
			memcpy(v->zmm[k] + 16, x + host.at[X_AVX] + 16 * k, 16);
		if (bv & 0x40)
			memcpy(v->zmm[k] + 32, x + host.at[X_ZMM_HI] + 32 * k, 32);
		if (bv & 0x80)
			memcpy(v->zmm[16 + k], x + host.at[X_HI16_ZMM] + 64 * k, 64);
	}
	if (bv & 0x20)
		memcpy(v->k, x + host.at[X_OPMASK], 64);
}

/* ---- the end of a run -------------------------------------------------------------------------- */

void native_chain(int sig, siginfo_t *si, void *context)
{
	const struct sigaction *b = &host.before[sig];
	if (sig == SIGUSR1)
		return; /* the watchdog was late */
	if (b->sa_flags & SA_SIGINFO)
		b->sa_sigaction(sig, si, context);
	else
		signal(sig, SIG_DFL); /* it comes again, and ends the process */
}

void native_collect(int sig, const siginfo_t *si, const ucontext_t *uc)
{
	static const u8 order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
				      REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
	const greg_t *g = uc->uc_mcontext.gregs;
	struct outcome *o = host.out;
	struct regs *r = &o->r;
	for (unsigned k = 0; k < 16; k++)
		r->gpr[k] = (u64)g[order[k]];
	r->rip = (u64)g[REG_RIP];
	r->rflags = (u64)g[REG_EFL];
	r->cs = (u16)g[REG_CSGSFS];
	r->ss = (u16)((u64)g[REG_CSGSFS] >> 48);
	r->ds = native_ctl.out_ds;
	r->es = native_ctl.out_es;
	r->fs = native_ctl.out_fs;
	r->gs = native_ctl.out_gs;
	r->fs_base = native_ctl.out_fs_base;
	r->gs_base = native_ctl.out_gs_base;
	image_get((const u8 *)uc->uc_mcontext.fpregs, &r->v);
	o->lost = sig == SIGUSR1;
	o->reason = o->lost ? "it does not end" : NULL;
	o->vector = (u8)g[REG_TRAPNO];
	o->error = (u32)g[REG_ERR];
	o->cr2 = o->vector == V_PF ? (u64)g[REG_CR2] : 0;
}

static void *watch(void *thread)
{
	for (u64 last = 0;;) {
		struct timespec two = { .tv_sec = 2 };
		nanosleep(&two, NULL);
		u64 now = atomic_load(&host.runs);
		if (now == last && __atomic_load_n(&native_ctl.running, __ATOMIC_RELAXED))
			pthread_kill(*(pthread_t *)thread, SIGUSR1);
		last = now;
	}
	return NULL;
}

void native_run(const struct test *t, struct outcome *o)
{
	struct native_ctl *n = &native_ctl;
	const struct regs *r = &t->r;
	u8 *code = host.code + (r->rip - CODE_BASE);
	for (unsigned k = 0; k < t->n_patches; k++)
		memcpy(host.data + t->patch[k].off, t->pool + t->patch[k].at, t->patch[k].len);
	memcpy(code, t->bytes, t->len);
	memcpy(n->gpr, r->gpr, sizeof(n->gpr));
	n->rip = r->rip;
	n->cs = r->cs;
	n->rflags = r->rflags;
	n->rsp = r->gpr[R_SP];
	n->ss = r->ss;
	n->fs_base = r->fs_base;
	n->gs_base = r->gs_base;
	n->ds = r->ds;
	n->es = r->es;
	n->fs = r->fs;
	n->gs = r->gs;
	n->load_selectors = t->mode != CODE64;
	image_put(&r->v, host.xsave);
	host.out = o;
	atomic_fetch_add_explicit(&host.runs, 1, memory_order_relaxed);
	native_enter();
	memset(code, 0xcc, t->len);
}

/* ---- making it ready --------------------------------------------------------------------------- */

static bool map_pages(int fd, u64 base, const char *letters, struct error *e)
{
	/* Populated, so that a fault says whether the page may be written, not that it was never touched. */
	for (unsigned k = 0; letters[k]; k++) {
		int prot = letters[k] == 'x' ? PROT_READ | PROT_EXEC : letters[k] == 'w' ? PROT_READ | PROT_WRITE :
			   PROT_READ;
		void *at = (void *)(uintptr_t)(base + k * 4096ull);
		if (letters[k] != '-' &&
		    mmap(at, 4096, prot, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, k * 4096) != at)
			return error_set(e, "page %p cannot be mapped: %m", at);
	}
	return true;
}

/* An alias that can always be written; the pages are mapped at their fixed addresses from it. */
static u8 *window(const char *name, u64 base, u64 second, const char *letters, struct error *e)
{
	size_t size = strlen(letters) * 4096;
	int fd = memfd_create(name, MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)size)) {
		error_set(e, "%s: %m", name);
		return NULL;
	}
	u8 *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	bool ok = p != MAP_FAILED && map_pages(fd, base, letters, e) && (!second || map_pages(fd, second, letters, e));
	close(fd);
	return ok ? p : NULL;
}

/* Tests reach any address below 4 GiB: nothing but the windows may be there. */
static bool low_is_free(struct error *e)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char line[512];
	bool ok = f != NULL;
	while (ok && fgets(line, sizeof(line), f)) {
		unsigned long from = strtoul(line, NULL, 16);
		if (from < 1ull << 32)
			ok = error_set(e, "something is mapped below 4 GiB (a sanitizer?): %.80s", line);
	}
	if (f)
		fclose(f);
	return ok;
}

static bool set_ldt(struct error *e)
{
	for (unsigned k = 0; k < N_LDT; k++) {
		struct user_desc d = { .entry_number = k, .base_addr = ldt_entries[k].base,
				       .limit = ldt_entries[k].limit_pages, .seg_32bit = 1, .limit_in_pages = 1,
				       .useable = 1 };
		if (syscall(SYS_modify_ldt, 0x11, &d, sizeof(d)))
			return error_set(e, "modify_ldt: %m");
	}
	return true;
}

static bool read_host(struct error *e)
{
	u32 a, b, c, d;
	__cpuid(1, a, b, c, d);
	if (!(c & 1u << 27))
		return error_set(e, "the host's kernel has no XSAVE");
	if (!(getauxval(AT_HWCAP2) & 2))
		return error_set(e, "the host's kernel does not let programs use WRFSBASE");
	u32 lo, hi;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	host.xcr0 = lo & 0xe7;
	for (u32 k = 2; k < 16; k++) {
		host.at[k] = host_xsave_offset(k);
		if ((host.xcr0 >> k & 1) && host.at[k] + 1024 > XSAVE_MAX)
			return error_set(e, "XSAVE component %u is at %u", k, host.at[k]);
	}
	u8 x[512] __attribute__((aligned(16)));
	__asm__ volatile("fld1; fstp %%st(0); fxsave64 %0" : "=m"(x) :: "st");
	host.keeps_pointers = ld64(x + 8) != 0;
	return true;
}

static bool take_signals(struct error *e)
{
	static u8 alt[ALT_STACK];
	static pthread_t self, watcher;
	stack_t ss = { .ss_sp = alt, .ss_size = sizeof(alt) };
	struct sigaction a = { .sa_sigaction = native_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
	if (sigaltstack(&ss, NULL))
		return error_set(e, "sigaltstack: %m");
	static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGUSR1 };
	for (unsigned k = 0; k < ARRAY_LEN(signals); k++)
		if (sigaction(signals[k], &a, &host.before[signals[k]]))
			return error_set(e, "signal %d cannot be handled: %m", signals[k]);
	self = pthread_self();
	return !pthread_create(&watcher, NULL, watch, &self) || error_set(e, "no thread for the watchdog");
}

bool native_init_host(struct error *e)
{
	if (!low_is_free(e) || !read_host(e) || !set_ldt(e))
		return false;
	host.code = window("diff-code", CODE_BASE, 0, CODE_PAGES, e);
	host.data = host.code ? window("diff-data", DATA_BASE, DATA_HIGH, DATA_PAGES, e) : NULL;
	if (!host.data)
		return false;
	memset(host.code, 0xcc, CODE_BYTES);
	native_restore();
	native_ctl.xsave = host.xsave;
	native_ctl.xcr0 = host.xcr0;
	return take_signals(e);
}
