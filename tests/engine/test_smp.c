/* Two processors on two threads over one memory: what must hold between them. LOCK, XCHG and the
 * wide compare-and-exchanges, also across pages; code that one patches and the other runs after
 * serialization; translations that are taken back. SDM vol. 3 8.1 and 8.2.
 *
 * Each case runs both processors from a common start until both halt, and then looks at memory.
 * With one CPU in the host the races hardly happen: the tests pass but prove less. */
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "test.h"
#include "engine/engine.h"

/* ---- guest code -------------------------------------------------------------------------------
 * 64-bit, CPL 0, position-independent. rdi: processor; rbx: the shared datum; rcx: rounds;
 * rdx, r8: per processor; r15: errors counted; rbp: the shared page of struct shared. */
#define GUEST(name, body) \
	asm(".pushsection .rodata\n" #name ":\n" body "\n" #name "_end:\n.popsection\n"); \
	extern const u8 name[], name##_end[]

GUEST(start, "lock incl 0(%rbp)\n 1: pause\n cmpl $2,0(%rbp)\n jb 1b");
GUEST(again, "dec %rcx");
GUEST(halt, "1: hlt\n jmp 1b");

/* Adds delta to the datum in each round. */
#define SIZED(X) X(b, 1) X(w, 2) X(l, 4) X(q, 8)
#define X(s, n) \
	GUEST(add_i_##s, "lock add" #s " $1,(%rbx)"); \
	GUEST(add_r_##s, "mov $1,%eax\n lock add" #s " %" A_##s ",(%rbx)"); \
	GUEST(sub_i_##s, "lock sub" #s " $1,(%rbx)"); \
	GUEST(sub_r_##s, "mov $1,%eax\n lock sub" #s " %" A_##s ",(%rbx)"); \
	GUEST(inc_##s, "lock inc" #s " (%rbx)"); \
	GUEST(dec_##s, "lock dec" #s " (%rbx)"); \
	GUEST(adc_##s, "stc\n lock adc" #s " $0,(%rbx)"); \
	GUEST(sbb_##s, "stc\n lock sbb" #s " $0,(%rbx)"); \
	GUEST(xadd_##s, "mov $1,%eax\n lock xadd" #s " %" A_##s ",(%rbx)"); \
	GUEST(cmpxchg_##s, "1: mov" #s " (%rbx)," "%" A_##s "\n lea 1(%rax),%rdx\n lock cmpxchg" #s " %" D_##s ",(%rbx)\n jnz 1b"); \
	GUEST(or_and_##s, "lock or" #s " %" D_##s ",(%rbx)\n mov" #s " (%rbx),%" A_##s "\n and" #s " %" D_##s ",%" A_##s "\n" \
		"cmp" #s " %" D_##s ",%" A_##s "\n setne %r9b\n movzbl %r9b,%r9d\n add %r9,%r15\n" \
		"not %rdx\n lock and" #s " %" D_##s ",(%rbx)\n not %rdx\n test" #s " %" D_##s ",(%rbx)\n setnz %r9b\n add %r9,%r15"); \
	GUEST(xor_##s, "lock xor" #s " %" D_##s ",(%rbx)\n mov" #s " (%rbx),%" A_##s "\n and" #s " %" D_##s ",%" A_##s "\n" \
		"cmp" #s " %" D_##s ",%" A_##s "\n setne %r9b\n movzbl %r9b,%r9d\n add %r9,%r15\n" \
		"lock xor" #s " %" D_##s ",(%rbx)\n test" #s " %" D_##s ",(%rbx)\n setnz %r9b\n add %r9,%r15"); \
	GUEST(not_##s, "lock not" #s " (%rbx)"); \
	GUEST(neg_##s, "lock neg" #s " (%rbx)");
#define A_b "al"
#define A_w "ax"
#define A_l "eax"
#define A_q "rax"
#define D_b "dl"
#define D_w "dx"
#define D_l "edx"
#define D_q "rdx"
SIZED(X)
#undef X

/* r8: the processor's own bit. */
#define X(s, n) \
	GUEST(bts_btr_##s, "lock bts" #s " %" B_##s ",(%rbx)\n setc %r9b\n movzbl %r9b,%r9d\n add %r9,%r15\n" \
		"lock btr" #s " %" B_##s ",(%rbx)\n setnc %r9b\n add %r9,%r15"); \
	GUEST(btc_##s, "lock btc" #s " %" B_##s ",(%rbx)\n setc %r9b\n movzbl %r9b,%r9d\n add %r9,%r15\n" \
		"lock btc" #s " %" B_##s ",(%rbx)\n setnc %r9b\n add %r9,%r15");
#define B_w "r8w"
#define B_l "r8d"
#define B_q "r8"
X(w, 2) X(l, 4) X(q, 8)
#undef X

/* XCHG without a prefix is a lock: the counter at 64(%rbp) is then safe with plain moves. */
#define X(s, n) \
	GUEST(xchg_##s, "1: mov $1,%eax\n xchg" #s " %" A_##s ",(%rbx)\n test" #s " %" A_##s ",%" A_##s "\n jnz 1b\n" \
		"mov 64(%rbp),%rax\n inc %rax\n mov %rax,64(%rbp)\n mov" #s " $0,(%rbx)");
SIZED(X)
#undef X

/* A pair (n, ~n): each round makes it (n + 1, ~(n + 1)). What is compared may be torn, then it fails. */
GUEST(cmpxchg8b, "mov %rcx,%r10\n 1: mov (%rbx),%eax\n mov %eax,%edx\n not %edx\n mov %eax,%r11d\n inc %r11d\n"
	"mov %r11d,%ecx\n not %ecx\n push %rbx\n mov %rbx,%r12\n mov %r11d,%ebx\n lock cmpxchg8b (%r12)\n pop %rbx\n jnz 1b\n"
	"mov %r10,%rcx");
GUEST(cmpxchg16b, "mov %rcx,%r10\n 1: mov (%rbx),%rax\n mov %rax,%rdx\n not %rdx\n lea 1(%rax),%r11\n"
	"mov %r11,%rcx\n not %rcx\n push %rbx\n mov %rbx,%r12\n mov %r11,%rbx\n lock cmpxchg16b (%r12)\n pop %rbx\n jnz 1b\n"
	"mov %r10,%rcx");

/* Cross-modifying code. The writer puts the round's number into the immediate at 8(%rbp), says so at
 * 16(%rbp), waits for the answer at 20(%rbp). rcx counts down: so do the numbers. */
GUEST(patcher, "mov 8(%rbp),%rsi\n 2: mov %ecx,(%rsi)\n mov %ecx,16(%rbp)\n"
	"3: pause\n cmp %ecx,20(%rbp)\n jne 3b\n loop 2b");
/* The other looks, serializes, runs the patched instruction, all without a branch: where it saw that
 * the code is new, new code it must be. */
#define PATCHED ".balign 8,0x90\n nop\n nop\n nop\n mov $0,%esi\n"
#define CHECK "cmp %r14d,%esi\n setne %r9b\n movzbl %r9b,%r9d\n add %r9,%r15\n mov %r14d,20(%rbp)\n mov %r14d,%ecx"
#define SERIALIZED(name, insn) \
	GUEST(name, "mov %ecx,%r14d\n 1: mov 16(%rbp),%r13d\n" insn "\n" PATCHED "cmp %r14d,%r13d\n jne 1b\n" CHECK)
SERIALIZED(after_cpuid, "push %rbx\n xor %eax,%eax\n cpuid\n pop %rbx");
SERIALIZED(after_cr3, "mov %cr3,%rax\n mov %rax,%cr3");
SERIALIZED(after_dr6, "mov %dr6,%rax\n mov %rax,%dr6");
SERIALIZED(after_invlpg, "invlpg 4096(%rbp)");
SERIALIZED(after_iret, "mov %rsp,%rax\n push $0x10\n push %rax\n push $2\n push $8\n lea 2f(%rip),%rax\n push %rax\n iretq\n 2:");
SERIALIZED(after_lgdt, "sub $16,%rsp\n sgdt (%rsp)\n lgdt (%rsp)\n add $16,%rsp");
SERIALIZED(after_lidt, "sub $16,%rsp\n sidt (%rsp)\n lidt (%rsp)\n add $16,%rsp");
SERIALIZED(after_lldt, "xor %eax,%eax\n lldt %ax");
SERIALIZED(after_serialize, ".byte 0x0f,0x01,0xe8");
SERIALIZED(after_wbinvd, "wbinvd");
SERIALIZED(after_wrmsr, "mov $0xc0000102,%ecx\n rdmsr\n wrmsr");
/* The same with a wait and a call. */
#define WAIT "mov %ecx,%r14d\n 1: pause\n cmp %r14d,16(%rbp)\n jne 1b\n"
GUEST(after_call, WAIT "push %rbx\n xor %eax,%eax\n cpuid\n pop %rbx\n call *24(%rbp)\n" CHECK);
GUEST(callee, "mov $0,%esi\n ret");

/* Reads and runs what is mapped at 32(%rbp) each time that the host asks with a new number. */
GUEST(reader, "xor %ecx,%ecx\n mov 32(%rbp),%rsi\n 1: pause\n mov 40(%rbp),%eax\n cmp %eax,%ecx\n je 1b\n mov %eax,%ecx\n"
	"mov (%rsi),%eax\n mov %eax,44(%rbp)\n lea 64(%rsi),%rax\n call *%rax\n mov %eax,48(%rbp)\n mov %ecx,52(%rbp)\n jmp 1b");

struct shared {
	u32 ready, unused;
	u64 patch;               /* 8: address of the immediate */
	u32 said, answered;      /* 16 */
	u64 callee;              /* 24 */
	u64 remapped;            /* 32 */
	u32 asked, read, ran, replied; /* 40 */
	u64 pad;
	u64 counter;             /* 64 */
};

/* ---- two processors ------------------------------------------------------------------------------ */

enum { GDT = 0x1000, PML4 = 0x2000, PDPT = 0x3000, PD = 0x4000, PT = 0x5000, SHARED = 0x10000, DATA = 0x20000,
       CODE = 0x30000, STACK = 0x50000, CALLEE = 0x60000, PAGE_A = 0x70000, PAGE_B = 0x71000, REMAPPED = 0x72000 };

static struct {
	struct mem mem;
	struct clock clock;
	struct cpu_model model;
	struct cpu_hooks hooks;
	struct cpu *c[2];
	struct vcpu *v[2];
} s;

static struct shared *shared(void) { return (struct shared *)(void *)(s.mem.ram + SHARED); }
static u8 *ram(u64 at) { return s.mem.ram + at; }

/* Pages of 4 KiB, each at its own address. */
static void make_tables(void)
{
	st64(ram(PML4), PDPT | 7);
	st64(ram(PDPT), PD | 7);
	st64(ram(PD), PT | 7);
	for (u64 k = 0; k < 512; k++)
		st64(ram(PT + 8 * k), k << 12 | 7);
	st64(ram(GDT + 8), 0x00af9b000000ffff);
	st64(ram(GDT + 16), 0x00cf93000000ffff);
}

static int up(void **state)
{
	struct error e;
	memset(&s, 0, sizeof(s));
	if (!mem_init(&s.mem, 2 << 20, &e) || !clock_init(&s.clock, false, &e) ||
	    !cpu_model_parse(&s.model, "max,+serialize", &s.clock, &e))
		fail_msg("%s", e.msg);
	for (unsigned k = 0; k < 2; k++) {
		s.c[k] = cpu_new(k, &s.mem, &s.clock, &s.model, &s.hooks);
		assert_non_null(s.c[k]);
		s.v[k] = vcpu_start(s.c[k], engine_find("interp"), NULL, NULL, &e);
		if (!s.v[k])
			fail_msg("%s", e.msg);
	}
	make_tables();
	return 0;
}

static int down(void **state)
{
	for (unsigned k = 0; k < 2; k++) {
		vcpu_destroy(s.v[k]);
		cpu_free(s.c[k]);
	}
	clock_destroy(&s.clock);
	mem_destroy(&s.mem);
	return 0;
}

static void make_ready(unsigned k, u64 datum, u64 rounds)
{
	struct cpu *c = s.c[k];
	cpu_reset(c, false);
	c->activity = ACT_RUN;
	c->cr0 |= CR0_PE | CR0_PG;
	c->cr3 = PML4;
	c->cr4 = CR4_PAE;
	c->efer = EFER_LME | EFER_LMA;
	c->gdtr = (struct dtable){ GDT, 0xff };
	for (unsigned r = S_ES; r <= S_GS; r++)
		c->seg[r] = (struct segment){ .sel = 0x10, .limit = 0xffffffff, .attr = 0xc093 };
	c->seg[S_CS] = (struct segment){ .sel = 8, .limit = 0xffffffff, .attr = 0xa09b };
	c->rip = CODE + k * 0x2000;
	c->regs[R_SP] = STACK + k * 0x2000;
	c->regs[R_BP] = SHARED;
	c->regs[R_BX] = datum;
	c->regs[R_CX] = rounds;
	c->regs[R_DI] = k;
	c->regs[R_DX] = k ? 0xf0f0f0f0f0f0f0f0 : 0x0f0f0f0f0f0f0f0f;
	c->regs[R_8] = k;
	mmu_flush_all(c);
	cpu_update_mode(c);
}

/* The program of processor k at CODE + k * 2000h: start, then body until rcx is 0, then halt. */
static u64 put_code(unsigned k, const u8 *body, const u8 *end, bool repeat)
{
	_Alignas(16) u8 code[512] = { 0 };
	u8 *at = code;
#define PUT(from, to) (memcpy(at, from, (size_t)((to) - (from))), at += (to) - (from))
	PUT(start, start_end);
	while ((u64)at & 7)
		*at++ = 0x90;
	u8 *loop = at;
	PUT(body, end);
	if (repeat) {
		PUT(again, again_end);
		*at++ = 0x0f; /* JNZ */
		*at++ = 0x85;
		st32(at, (u32)(loop - (at + 4)));
		at += 4;
	}
	PUT(halt, halt_end);
#undef PUT
	mem_write(&s.mem, CODE + k * 0x2000, code, sizeof(code)); /* tells the engines, which remember the last program */
	return CODE + k * 0x2000 + (u64)(loop - code);
}

static void begin(void)
{
	for (unsigned k = 0; k < 2; k++)
		vcpu_resume(s.v[k]);
}

static void end(void)
{
	for (unsigned k = 0; k < 2; k++)
		vcpu_pause(s.v[k]);
}

static bool halted(unsigned k) { return *(volatile u8 *)&s.c[k]->activity == ACT_HLT; }

static void sleep_us(unsigned us) { usleep(us); }

#define SOON(cond, what) do { \
	for (unsigned n_ = 0; !(cond) && n_ < 200000; n_++) \
		sleep_us(100); \
	if (!(cond)) \
		fail_msg("%s: not after 20 s; rip %llx, %llx", what, (unsigned long long)s.c[0]->rip, \
			 (unsigned long long)s.c[1]->rip); \
} while (0)

static void run_both(const char *name)
{
	begin();
	SOON(halted(0) && halted(1), name);
	end();
}

struct code { const char *name; const u8 *body, *end; unsigned size; int delta; };

static void both_run(const struct code *t, u64 datum, u64 rounds)
{
	memset(ram(SHARED), 0, sizeof(struct shared));
	for (unsigned k = 0; k < 2; k++) {
		put_code(k, t->body, t->end, true);
		make_ready(k, datum, rounds);
	}
	run_both(t->name);
	for (unsigned k = 0; k < 2; k++)
		if (s.c[k]->regs[R_15])
			fail_msg("%s at %llx: %llu errors seen by processor %u", t->name, (unsigned long long)datum,
				 (unsigned long long)s.c[k]->regs[R_15], k);
}

static u64 datum_at(u64 at, unsigned size)
{
	u64 v = 0;
	memcpy(&v, ram(at), size);
	return v;
}

/* ---- LOCK ------------------------------------------------------------------------------------------ */

#define C(n, size, delta) { #n, n, n##_end, size, delta }
static const struct code locked[] = {
#define X(s, n) C(add_i_##s, n, 1), C(add_r_##s, n, 1), C(sub_i_##s, n, -1), C(sub_r_##s, n, -1), C(inc_##s, n, 1), \
	C(dec_##s, n, -1), C(adc_##s, n, 1), C(sbb_##s, n, -1), C(xadd_##s, n, 1), C(cmpxchg_##s, n, 1), \
	C(or_and_##s, n, 0), C(xor_##s, n, 0), C(not_##s, n, 0), C(neg_##s, n, 0),
	SIZED(X)
#undef X
#define X(s, n) C(bts_btr_##s, n, 0), C(btc_##s, n, 0),
	X(w, 2) X(l, 4) X(q, 8)
#undef X
};

/* The datum: aligned; not aligned but within a line of the cache; across two pages. Those last are
 * slow in hardware, too. */
static void locked_at(u64 datum, u64 rounds)
{
	for (unsigned n = 0; n < ARRAY_LEN(locked); n++) {
		const struct code *t = &locked[n];
		u64 mask = t->size == 8 ? ~0ull : (1ull << 8 * t->size) - 1, at = datum;
		if ((datum & 15) == 15 && t->size == 1)
			continue;
		/* A lost NOT or NEG shows half of the time only: an odd number of them. */
		bool parity = !strncmp(t->name, "not", 3) || !strncmp(t->name, "neg", 3);
		for (unsigned turn = 0; turn < (parity ? 8 : 1); turn++) {
			memset(ram(DATA), 0, 0x2000);
			ram(at)[0] = parity ? 1 : 0;
			both_run(t, at, parity ? rounds / 4 & ~1ull : rounds);
			u64 want = parity ? 1 : (u64)((i64)(2 * rounds) * t->delta) & mask;
			if (datum_at(at, t->size) != want)
				fail_msg("%s at %llx: %llx, not %llx", t->name, (unsigned long long)at,
					 (unsigned long long)datum_at(at, t->size), (unsigned long long)want);
		}
	}
}
static void lock_aligned(void **state) { locked_at(DATA + 64, 50000); }
static void lock_unaligned(void **state) { locked_at(DATA + 64 + 19, 25000); }
static void lock_across_pages(void **state) { locked_at(DATA + 4096 - 1, 400); }

static void xchg_locks_by_itself(void **state)
{
	static const struct code t[] = {
#define X(s, n) C(xchg_##s, n, 0),
		SIZED(X)
#undef X
	};
	static const struct { u64 at; u64 rounds; } where[] = { { DATA + 64, 5000 }, { DATA + 83, 5000 }, { DATA + 4095, 300 } };
	for (unsigned n = 0; n < ARRAY_LEN(t) * ARRAY_LEN(where); n++) {
		const struct code *x = &t[n / ARRAY_LEN(where)];
		u64 at = where[n % ARRAY_LEN(where)].at, rounds = where[n % ARRAY_LEN(where)].rounds;
		memset(ram(DATA), 0, 0x2000);
		both_run(x, at, rounds);
		if (shared()->counter != 2 * rounds)
			fail_msg("%s at %llx: %llu, not %llu", x->name, (unsigned long long)at,
				 (unsigned long long)shared()->counter, (unsigned long long)(2 * rounds));
	}
}

static void compare_and_exchange_pairs(void **state)
{
	static const struct code t8 = C(cmpxchg8b, 8, 0), t16 = C(cmpxchg16b, 16, 0);
	static const struct { const struct code *t; u64 at, rounds; } runs[] = {
		{ &t8, DATA + 64, 200000 }, { &t8, DATA + 83, 200000 }, { &t8, DATA + 4096 - 3, 1000 }, { &t16, DATA + 64, 200000 },
	};
	for (unsigned n = 0; n < ARRAY_LEN(runs); n++) {
		const struct code *t = runs[n].t;
		u64 at = runs[n].at, half = t->size / 2;
		memset(ram(DATA), 0, 0x2000);
		memset(ram(at + half), 0xff, half);
		both_run(t, at, runs[n].rounds);
		u64 low = datum_at(at, (unsigned)half), high = datum_at(at + half, (unsigned)half);
		u64 mask = half == 8 ? ~0ull : 0xffffffff;
		if (low != 2 * runs[n].rounds || high != (~low & mask))
			fail_msg("%s at %llx: %llx %llx", t->name, (unsigned long long)at, (unsigned long long)low, (unsigned long long)high);
	}
}

/* ---- cross-modifying code --------------------------------------------------------------------------- */

static void cross_modify(const struct code *t, u64 callee_at, u64 rounds)
{
	memset(ram(SHARED), 0, sizeof(struct shared));
	put_code(0, patcher, patcher_end, false);
	u64 body = put_code(1, t->body, t->end, true);
	u64 patch = callee_at + 1;
	mem_write(&s.mem, callee_at, callee, (u64)(callee_end - callee));
	if (t->body != after_call) {
		/* The three NOPs before the patched MOV are found nowhere else. */
		static const u8 mark[] = { 0x90, 0x90, 0x90, 0xbe, 0, 0, 0, 0 };
		u8 *p = memmem(ram(body), (size_t)(t->end - t->body), mark, sizeof(mark));
		assert_non_null(p);
		patch = (u64)(p - s.mem.ram) + 4;
	}
	shared()->patch = patch;
	shared()->callee = callee_at;
	for (unsigned k = 0; k < 2; k++)
		make_ready(k, DATA, rounds);
	run_both(t->name);
	if (s.c[1]->regs[R_15])
		fail_msg("%s, patched at %llx: stale code ran %llu times", t->name, (unsigned long long)patch,
			 (unsigned long long)s.c[1]->regs[R_15]);
	assert_int_equal(shared()->answered, 1);
}

static void cross_modifying_code(void **state)
{
	static const struct code ways[] = {
		C(after_cpuid, 0, 0), C(after_cr3, 0, 0), C(after_dr6, 0, 0), C(after_invlpg, 0, 0), C(after_iret, 0, 0),
		C(after_lgdt, 0, 0), C(after_lidt, 0, 0), C(after_lldt, 0, 0), C(after_serialize, 0, 0),
		C(after_wbinvd, 0, 0), C(after_wrmsr, 0, 0), C(after_call, 0, 0),
	};
	for (unsigned n = 0; n < ARRAY_LEN(ways); n++)
		cross_modify(&ways[n], CALLEE, 2000);
}

/* The patched instruction itself lies in two pages: in turn its bytes in one, in the other, in both. */
static void cross_modifying_across_pages(void **state)
{
	static const struct code t = C(after_call, 0, 0);
	for (u64 before = 1; before < 5; before++)
		cross_modify(&t, CALLEE + 4096 - before, 1000);
}

/* ---- translations that are taken back ------------------------------------------------------------------ */

/* As a kernel does it: the entry is changed, the other processor is told, and once it has heard of it
 * nothing may come by the old translation: neither data nor code that it knows as a block. */
static void shootdown(void **state)
{
	static const u64 page[2] = { PAGE_A, PAGE_B };
	memset(ram(SHARED), 0, sizeof(struct shared));
	for (u32 k = 0; k < 2; k++) {
		put_code(k, k ? reader : halt, k ? reader_end : halt_end, false);
		make_ready(k, DATA, 1);
		st32(ram(page[k]), 100 + k);
		ram(page[k])[64] = 0xb8; /* MOV EAX, 200 + k; RET */
		st32(ram(page[k]) + 65, 200 + k);
		ram(page[k])[69] = 0xc3;
	}
	shared()->remapped = REMAPPED;
	begin();
	volatile struct shared *sh = shared();
	for (u32 n = 1; n <= 1500; n++) {
		u32 k = n & 1;
		__atomic_store_n((u64 *)(void *)ram(PT + REMAPPED / 4096 * 8), page[k] | 7, __ATOMIC_SEQ_CST);
		vcpu_post(s.v[1], EV_TLB);
		SOON(!(atomic_load(&s.c[1]->events) & EV_TLB), "flush");
		sh->asked = n;
		for (unsigned spin = 0; sh->replied != n && spin < 2000; spin++)
			__builtin_ia32_pause();
		SOON(sh->replied == n, "answer");
		assert_int_equal(sh->read, 100 + k);
		assert_int_equal(sh->ran, 200 + k);
	}
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(lock_aligned, up, down),
		cmocka_unit_test_setup_teardown(lock_unaligned, up, down),
		cmocka_unit_test_setup_teardown(lock_across_pages, up, down),
		cmocka_unit_test_setup_teardown(xchg_locks_by_itself, up, down),
		cmocka_unit_test_setup_teardown(compare_and_exchange_pairs, up, down),
		cmocka_unit_test_setup_teardown(cross_modifying_code, up, down),
		cmocka_unit_test_setup_teardown(cross_modifying_across_pages, up, down),
		cmocka_unit_test_setup_teardown(shootdown, up, down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
