/* Whatever comes in the middle of straight code finds the state exact: timer interrupts in loops
 * that never leave their block, single steps, faults with every register looked at, faults
 * that are mended and tried again, flags that live across accesses which miss the TLB. SDM vol. 3
 * 6.5 to 6.7, 17.3.1. */
#include "map.h"

const char guest_name[] = "precise";

#define VA (MAP_VA + 0x100000)
static u8 page[4][4096] __attribute__((aligned(4096)));
static u8 data[256] __attribute__((aligned(64)));
static u64 seed = 1;
static u32 rnd(u32 n) { seed = seed * 6364136223846793005ull + 1442695040888963407ull; return (u32)(seed >> 33) % n; }

/* ---- the timer ------------------------------------------------------------------------------ */

static volatile u32 irqs, wrong, enough;
static volatile u64 last;
static void (*look)(struct frame *f);
static u32 timer_max;
static void arm(u32 ticks) { apic_write(0x380, ticks); }

static bool on_timer(struct frame *f)
{
	if (f->vec != 0x60)
		return false;
	irqs++;
	look(f);
	apic_write(0xb0, 0);
	if (timer_max) /* until look() has ended it */
		arm(1 + rnd(timer_max));
	return true;
}

static void timer_start(void (*fn)(struct frame *), u32 max, u32 n)
{
	trap_hook = on_timer;
	look = fn;
	irqs = wrong = 0;
	enough = n;
	timer_max = max;
	apic_write(0xf0, 0x1ff);
	apic_write(0x3e0, 0xb);
	apic_write(0x320, 0x60);
	arm(1000);
}
static void timer_stop(void)
{
	timer_max = 0;
	apic_write(0x320, 0x10060);
	arm(0);
	__asm__ volatile("sti; nop; nop; cli" : : : "memory");
	trap_hook = NULL;
}

/* Deterministic time: an interrupt may then come at any boundary, and is repeatable. Else an engine may
 * have its own favourite boundaries. */
static bool exact_time(void)
{
	for (unsigned k = 0; k < 5000; k++) {
		u64 a = rdtsc(), b = rdtsc(), c = rdtsc();
		if (b - a != c - b || b - a > 20)
			return false;
	}
	return true;
}

/* ---- loops that never end by themselves ---------------------------------------------------- */

extern const u8 l_self[], l_self_end[], l_load[], l_count[], l_loop[], l_call[], l_call_in[], l_call_end[], inv[], inv_end[];
extern const u8 inv_at[7][8];
__asm__(".text\n.globl l_self,l_self_end,l_load,l_count,l_loop,l_call,l_call_in,l_call_end,inv,inv_end\n"
	"l_self: jmp l_self\nl_self_end: ret\n"
	"l_load: cmpl $0,(%rsi); je l_load; ret\n"
	"l_count: dec %rcx; jnz l_count; ret\n"
	"l_loop: loop l_loop; ret\n"
	"l_call: call l_call_in; jmp l_call\nl_call_in: inc %rax; ret\nl_call_end: ret\n"
	"inv: add $1,%rax\n1: add $1,%rbx\n2: incq (%rsi)\n3: lea 1(%rcx),%rcx\n4: push %rcx\n5: pop %rdx\n6: jmp inv\ninv_end: ret\n"
	".section .rodata\n.align 8\ninv_at: .quad inv,1b,2b,3b,4b,5b,6b\n.text\n");

static void run_loop(const u8 *code, u64 rax, u64 rcx, const void *rsi)
{
	u64 b = rax, d = rax;
	__asm__ volatile("sti; call *%5; cli" : "+a"(rax), "+b"(b), "+c"(rcx), "+d"(d), "+S"(rsi) : "r"(code) : "memory", "cc", "rdi");
}

static volatile u32 word;
static bool last_one(void)
{
	if (irqs >= enough)
		timer_max = 0;
	return irqs >= enough;
}
static void look_self(struct frame *f)
{
	wrong += f->ip != (uptr)l_self;
	if (last_one())
		f->ip = (uptr)l_self_end;
}
static void look_load(struct frame *f)
{
	wrong += f->ip < (uptr)l_load || f->ip > (uptr)l_load + 3;
	word = last_one();
}
static void look_count(struct frame *f)
{
	wrong += f->cx > last;
	last = f->cx;
	if (last_one())
		f->cx = 1;
}
static u64 call_sp;
static void look_call(struct frame *f)
{
	bool in = f->ip >= (uptr)l_call_in && f->ip < (uptr)l_call_end;
	if (!call_sp)
		call_sp = f->sp + (in ? 8 : 0);
	wrong += f->sp != call_sp - (in ? 8 : 0) || f->ax < last;
	last = f->ax;
	if (last_one()) {
		f->sp += in ? 8 : 0;
		f->ip = (uptr)l_call_end;
	}
}

static u32 flags_of_inc(u64 v, bool cf)
{
	u32 ones = 0;
	for (unsigned k = 0; k < 8; k++)
		ones += v >> k & 1;
	return (cf ? FL_CF : 0) | (ones & 1 ? 0 : FL_PF) | (v & 15 ? 0 : FL_AF) | (v ? 0 : FL_ZF) | (v >> 63 ? FL_SF : 0) | (v == 1ull << 63 ? FL_OF : 0);
}
static volatile u64 inv_count;
static u32 inv_seen;
static void look_inv(struct frame *f)
{
	const u64 *at = (const u64 *)inv_at;
	unsigned n = 0;
	while (n < 7 && at[n] != f->ip)
		n++;
	u64 a = f->ax - 1 + (n == 0); /* what the last full turn left */
	bool ok = n < 7 && f->bx == a + (n > 1) && inv_count == a + (n > 2) && f->cx == a + (n > 3) && f->dx == a + (n > 5);
	u32 fl = n == 1 ? flags_of_inc(f->ax, !f->ax) : n == 2 ? flags_of_inc(f->bx, !f->bx) : flags_of_inc(inv_count, !f->bx);
	if (n == 5)
		ok &= *(u64 *)f->sp == f->cx;
	ok &= (f->flags & 0x8d5) == fl || inv_count < 2;
	wrong += !ok;
	inv_seen |= 1u << n;
	if (last_one()) {
		f->sp += n == 5 ? 8 : 0; /* what was pushed */
		f->ip = (uptr)inv_end;
	}
}

static u8 big[65536];
extern const u8 rep_insn[];
__asm__(".text\n.globl rep_insn\nrep_insn: rep movsb; ret\n");
static void look_rep(struct frame *f)
{
	if (f->ip != (uptr)rep_insn)
		return;
	wrong += f->si - (uptr)big != 32768 - f->cx || f->di - (uptr)big != 65536 - f->cx;
}

static void look_hop(struct frame *f)
{
	u64 in = f->ip & 0xfff;
	/* even in the first page, odd in the second; one more behind INC */
	wrong += (in != 0 && in != 3) || ((f->ax ^ (f->ip >> 12) ^ (VA >> 12) ^ (in == 3)) & 1) || f->ax < last;
	last = f->ax;
	if (last_one())
		f->ip = VA + 64;
}

static void loops(void)
{
	timer_start(look_self, 5000, 50);
	run_loop(l_self, 0, 0, NULL);
	timer_stop();
	check("interrupts into jmp to itself", !wrong && irqs >= 50);
	word = 0;
	timer_start(look_load, 5000, 50);
	run_loop(l_load, 0, 0, (const void *)&word);
	timer_stop();
	check("into a loop that waits for memory", !wrong && irqs >= 50);
	last = ~0ull;
	timer_start(look_count, 5000, 50);
	run_loop(l_count, 0, 1ull << 62, NULL);
	timer_stop();
	check("into a counted loop: the counter only falls", !wrong && irqs >= 50);
	last = ~0ull;
	timer_start(look_count, 5000, 50);
	run_loop(l_loop, 0, 1ull << 62, NULL);
	timer_stop();
	check("into LOOP to itself", !wrong && irqs >= 50);
	last = 0;
	timer_start(look_call, 5000, 200);
	run_loop(l_call, 0, 0, NULL);
	timer_stop();
	check("into calls and returns: RSP right at each", !wrong && irqs >= 200);
	inv_count = 0;
	timer_start(look_inv, 3000, 1000);
	run_loop(inv, 0, 0, (const void *)&inv_count);
	timer_stop();
	check_eq("into a loop with an invariant at each instruction, flags too", wrong, 0);
	check("all of its boundaries were met, where time is exact", irqs >= 1000 && (!exact_time() || inv_seen == 0x7f));
	/* REP: registers agree whenever it is interrupted, and all is moved once. */
	u32 bad = 0;
	timer_start(look_rep, 2000, 0);
	for (unsigned turn = 0; turn < 20; turn++) {
		for (unsigned k = 0; k < 32768; k++) {
			big[k] = (u8)(k * 7 + turn);
			big[32768 + k] = 0;
		}
		const u8 *s = big;
		u8 *d = big + 32768;
		u64 n = 32768;
		__asm__ volatile("sti; call rep_insn; cli" : "+S"(s), "+D"(d), "+c"(n) : : "memory");
		bad += n || memcmp(big, big + 32768, 32768);
	}
	timer_stop();
	check("into REP MOVSB: counts and addresses agree", !wrong && !bad);
	/* Two blocks on two pages. */
	static const u8 hop[] = { 0x48, 0xff, 0xc0, 0xe9 };
	for (unsigned k = 0; k < 2; k++) {
		i32 rel = (k ? -4096 : 4096) - 8;
		memcpy(page[k], hop, 4);
		memcpy(page[k] + 4, &rel, 4);
		map_page(VA + 4096 * k, page[k], P | W);
	}
	page[0][64] = 0xc3;
	last = 0;
	timer_start(look_hop, 5000, 100);
	run_loop((const u8 *)VA, 0, 0, NULL);
	timer_stop();
	check("into two blocks that jump to one another", !wrong && irqs >= 100);
}
/* ---- a program of many kinds, interrupted and stepped through -------------------------------- */

extern u64 program(void *data);
extern const u8 program_end[];
__asm__(".text\n.globl program,program_end\nprogram: push %rbx; push %rbp; push %r12; push %r13\n"
	"mov %rdi,%rbx; mov $0x0123456789abcdef,%rax; mov $0xfedcba9876543210,%rcx; mov $3,%ebp\n"
	"1: add %rcx,%rax; adc %rbp,%rcx; mov %rax,(%rbx); rol $7,%rax; xor (%rbx),%rcx; pushfq; pop %rdx; and $0x8c5,%edx; add %rdx,%rax\n"
	"xchg %rax,8(%rbx); add %rcx,%rax; lock xadd %rax,16(%rbx); push %rax; push %rcx; pop %r12; pop %r13; sub %r12,%r13; sbb %rax,%r13\n"
	"call 2f; mov %rbx,%rsi; lea 64(%rbx),%rdi; mov $9,%ecx; rep movsb; mov %rsi,%rcx; sub %rbx,%rcx; lea 33(%rbx),%rdi; mov $6,%ecx; rep stosb\n"
	"mov %r13,%rax; xor %edx,%edx; mov %r12,%rcx; or $1,%rcx; div %rcx; add %rdx,%rax; mul %r13; shld $5,%rax,%rdx; cmp %rdx,%rax; setl %cl; cmovb %rdx,%rax\n"
	"movups (%rbx),%xmm0; paddq 16(%rbx),%xmm0; movups %xmm0,40(%rbx); add 40(%rbx),%rax; fildll (%rbx); fistpll 56(%rbx); enter $32,$1; mov %rax,-8(%rbp); add -8(%rbp),%rcx; leave\n"
	"mov %rax,%rdx; mov 8(%rbx),%rax; lock cmpxchg %rdx,8(%rbx); mov %rdx,%rsi; or $0x4000,%rsi; bsf %rsi,%rsi; add %rsi,%rax; bswap %rax; rcr $3,%rax; dec %ebp; jnz 1b\n"
	"add 8(%rbx),%rax; add 16(%rbx),%rax; add 64(%rbx),%rax; add 33(%rbx),%rax; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
	"2: push %rax; imul $1000003,%r13,%rax; add %rax,%r13; pop %rax; jc 3f; inc %r13; 3: ret\nprogram_end:\n");

static u64 run_program(void)
{
	for (unsigned k = 0; k < sizeof(data); k++)
		data[k] = (u8)(k * 11 + 5);
	return program(data);
}
static u64 ips_seen[16], n_ips;
static void look_program(struct frame *f)
{
	u64 off = f->ip - (uptr)program;
	if (off < (uptr)program_end - (uptr)program && off / 64 < ARRAY_LEN(ips_seen)) {
		n_ips += !(ips_seen[off / 64] >> (off & 63) & 1);
		ips_seen[off / 64] |= 1ull << (off & 63);
	}
	/* What a kernel may do meanwhile: flush all, and write where the code lies. */
	if (irqs & 1)
		flush();
	*(volatile u8 *)f->ip = *(volatile u8 *)f->ip;
}

static volatile u32 steps;
static bool on_step(struct frame *f)
{
	if (f->vec != DB)
		return false;
	steps++;
	return true;
}
static u64 stepped(void)
{
	steps = 0;
	trap_hook = on_step;
	write_dr6(0xffff0ff0);
	__asm__ volatile("pushfq; orl $0x100,(%%rsp); popfq" : : : "memory", "cc");
	u64 v = run_program();
	__asm__ volatile("pushfq; andl $~0x100,(%%rsp); popfq" : : : "memory", "cc");
	trap_hook = NULL;
	return v;
}

static void anywhere(void)
{
	u64 want = run_program(), image[32];
	memcpy(image, data, sizeof(image));
	unsigned bad = 0;
	timer_start(look_program, 0, 0);
	arm(~0u);
	run_program();
	u32 time = ~0u - apic_read(0x390);
	for (u32 k = 0; k < 3000; k++) {
		arm(1 + rnd(time));
		__asm__ volatile("sti" : : : "memory");
		u64 v = run_program();
		__asm__ volatile("cli" : : : "memory");
		bad += v != want || memcmp(image, data, sizeof(image));
	}
	timer_stop();
	check_eq("a program with an interrupt anywhere: 3000 results", bad, 0);
	check("they came at most of its instructions, where time is exact", !exact_time() || n_ips > 60);
	say("%u of its instructions were interrupted\n", (u32)n_ips);
	u64 v = stepped();
	u32 first = steps;
	check("the same in single steps", v == want && !memcmp(image, data, sizeof(image)));
	stepped();
	check("as many steps each time", steps == first && first > 200);
}

/* ---- single steps: where each trap is --------------------------------------------------------- */

extern const u8 ss_start[], ss_sys[];
extern const u64 ss_want[], ss_want_end[];
__asm__(".text\n.globl ss_start,ss_sys\nss_start: nop\n1: jmp 2f\nud2\n2: mov $3,%ecx\n3: rep lodsb\n4: cmp %eax,%eax\n5: jne 6f\n6: je 7f\nud2\n7: call 20f\n8: pushfq\n9: popfq\n"
	"10: mov $2,%ecx\n11: dec %ecx\n12: jnz 11b\n13: syscall\n14: nop\n15: push %rax\n16: pop %rax\n17: pushfq\n18: andl $~0x100,(%rsp)\n19: popfq\n30: nop\nint $0x80\n"
	"20: ret\nss_sys: nop; sysretq\n"
	".section .rodata\n.align 8\n.globl ss_want,ss_want_end\n"
	"ss_want: .quad 1b,2b,3b,3b,3b,4b,5b,6b,7b,20b,8b,9b,10b,11b,12b,11b,12b,13b,14b,15b,16b,17b,18b,19b,30b\nss_want_end:\n.text\n");
static u64 step_ip[64];
static bool on_trace(struct frame *f)
{
	if (f->vec != DB)
		return false;
	if (steps < 64)
		step_ip[steps] = f->ip;
	steps++;
	return true;
}

static void stepping(void)
{
	wrmsr(STAR, (u64)(UCODE32 & ~3u) << 48 | (u64)CODE << 32);
	wrmsr(LSTAR, (uptr)ss_sys);
	wrmsr(FMASK, FL_TF | FL_IF);
	for (unsigned turn = 0; turn < 2; turn++) { /* cold, then as often run code */
		struct regs r = user_regs(ss_start);
		for (unsigned k = 0; k < 200 && turn; k++) {
			r.si = (uptr)data;
			go(&r);
		}
		r.flags = 2 | FL_TF;
		r.si = (uptr)data;
		steps = 0;
		trap_hook = on_trace;
		go(&r);
		trap_hook = NULL;
		u32 n = (u32)(ss_want_end - ss_want), k = 0;
		while (k < n && k < steps && step_ip[k] == ss_want[k])
			k++;
		check_eq(fmt("single steps over branches, REP, POPF, SYSCALL, SYSRET, %s: the first %u traps", turn ? "hot" : "cold", n), k, n);
		check_eq("and no more", steps, n);
	}
}

/* ---- faults in the middle, every register --------------------------------------------------------- */

#define INCS "inc %rax; inc %rbx; inc %rcx; inc %rdx; inc %rsi; inc %rdi; inc %rbp; inc %r8; inc %r9; inc %r10; inc %r11; inc %r12; inc %r13; inc %r14; inc %r15\n"
#define MID(name, insn) \
	extern const u8 m_##name[], m_##name##_at[], m_##name##_end[]; \
	__asm__(".text\nm_" #name ": " INCS "m_" #name "_at: " insn "\nm_" #name "_end: " INCS "int $0x80\n")
MID(load, "mov (%rbx),%rax"); MID(load_add, "add (%rbx),%rax"); MID(store, "mov %rax,(%rbx)"); MID(storeb, "movb $1,(%rbx)"); MID(addm, "add %rax,(%rbx)");
MID(xchg, "xchg %rax,(%rbx)"); MID(xadd, "lock xadd %rax,(%rbx)"); MID(cmpxchg, "lock cmpxchg %rdx,(%rbx)"); MID(adcm, "adc %rax,(%rbx)");
MID(pushm, "pushq (%rbx)"); MID(popm, "popq (%rbx)"); MID(sse, "movups (%rbx),%xmm1"); MID(fld, "fldl (%rbx)"); MID(cmov, "cmovz (%rbx),%rax"); MID(setm, "setz (%rbx)");
MID(stos, "stosq"); MID(lods, "lodsq"); MID(callm, "call *(%rbx)"); MID(divz, "div %rcx"); MID(idiv, "idiv %rcx"); MID(ud, "ud2"); MID(noncanon, "mov (%rdi),%eax"); MID(wrmsr, "wrmsr");
MID(movaps, "movaps 1+page(%rip),%xmm0"); MID(jmp, "jmp *%rdi"); MID(hlt, "hlt"); MID(cr, "mov %rax,%cr0"); MID(lidt, "lidt (%rbx)"); MID(lldt, "lldt %ax");

static void in_the_middle(void)
{
	enum { A_HOLE = 1, A_DI_HOLE = 2, A_SI_HOLE = 4, A_NONCANON = 8 };
	static const struct { const u8 *code, *at; const char *name; u8 vec, err, how; } mids[] = {
#define M(name, vec, err, how) { m_##name, m_##name##_at, #name, vec, err, how }
		M(load, PF, EC_U, A_HOLE), M(load_add, PF, EC_U, A_HOLE), M(store, PF, EC_W | EC_U, A_HOLE), M(storeb, PF, EC_W | EC_U, A_HOLE), M(addm, PF, EC_W | EC_U, A_HOLE),
		M(xchg, PF, EC_W | EC_U, A_HOLE), M(xadd, PF, EC_W | EC_U, A_HOLE), M(cmpxchg, PF, EC_W | EC_U, A_HOLE), M(adcm, PF, EC_W | EC_U, A_HOLE),
		M(pushm, PF, EC_U, A_HOLE), M(popm, PF, EC_W | EC_U, A_HOLE), M(sse, PF, EC_U, A_HOLE), M(fld, PF, EC_U, A_HOLE), M(cmov, PF, EC_U, A_HOLE), M(setm, PF, EC_W | EC_U, A_HOLE),
		M(stos, PF, EC_W | EC_U, A_DI_HOLE), M(lods, PF, EC_U, A_SI_HOLE), M(callm, PF, EC_U, A_HOLE), M(divz, DE, 0, 0), M(idiv, DE, 0, 0), M(ud, UD, 0, 0),
		M(noncanon, GP, 0, A_NONCANON), M(wrmsr, GP, 0, 0), M(movaps, GP, 0, 0), M(jmp, GP, 0, A_NONCANON), M(hlt, GP, 0, 0), M(cr, GP, 0, 0), M(lidt, GP, 0, 0), M(lldt, GP, 0, 0),
	};
	map_page(VA, page[0], 0);
	for (unsigned k = 0; k < ARRAY_LEN(mids); k++)
		for (unsigned hot = 0; hot < 2; hot++) { /* hot: it ran to its end 200 times before, where it can */
			struct regs r = user_regs(mids[k].code);
			r.ax = 0x1000;
			r.bx = VA + 0x87;
			r.cx = ~0ull;
			r.dx = 0x2000;
			r.si = (mids[k].how & A_SI_HOLE ? VA : (uptr)data) - 1;
			r.di = mids[k].how & A_NONCANON ? 0x900000000000 : mids[k].how & A_DI_HOLE ? VA - 1 : (uptr)data - 1;
			r.bp = 0x3000; r.r8 = 0x8000; r.r9 = 0x9000; r.r10 = 0xa000; r.r11 = 0xb000; r.r12 = 0xc000; r.r13 = 0xd000; r.r14 = 0xe000;
			r.r15 = 0x7fffffffffffffff;
			r.flags = 2 | FL_CF;
			if (hot && mids[k].vec == PF) {
				map_page(VA, page[0], P | W | U);
				for (unsigned n = 0; n < 200; n++) {
					*(u64 *)(page[0] + 0x88) = (uptr)l_self_end; /* a RET, where one is called */
					go(&r);
				}
				map_page(VA, page[0], 0);
			}
			__asm__ volatile("fninit");
			go(&r);
			const struct frame *f = &trap.f;
			bool regs = f->ax == r.ax + 1 && f->bx == r.bx + 1 && f->cx == 0 && f->dx == r.dx + 1 && f->si == r.si + 1 && f->di == r.di + 1 && f->bp == r.bp + 1 &&
				    f->r8 == r.r8 + 1 && f->r9 == r.r9 + 1 && f->r10 == r.r10 + 1 && f->r11 == r.r11 + 1 && f->r12 == r.r12 + 1 && f->r13 == r.r13 + 1 &&
				    f->r14 == r.r14 + 1 && f->r15 == r.r15 + 1 && f->sp == r.sp;
			check(fmt("fault in a block, %s, %s: its place", mids[k].name, hot ? "hot" : "cold"), trap.vec == mids[k].vec && trap.err == mids[k].err && f->ip == (uptr)mids[k].at);
			check(fmt("fault in a block, %s, %s: registers", mids[k].name, hot ? "hot" : "cold"), regs);
			check_eq(fmt("fault in a block, %s, %s: flags", mids[k].name, hot ? "hot" : "cold"), f->flags, 2 | FL_CF | FL_OF | FL_SF | FL_PF | FL_AF | FL_RF);
		}
}

/* ---- mended and tried again ------------------------------------------------------------------------ */

static volatile u32 mends;
static bool on_mend(struct frame *f)
{
	if (f->vec != PF)
		return false;
	u64 va = read_cr2() & ~0xfffull;
	if (va < VA || va >= VA + 3 * 4096)
		return false;
	mends++;
	*pte(va) = (uptr)page[(va - VA) >> 12] | P | W | U;
	return true;
}
#define AGAIN(name, insn) extern const u8 a_##name[]; __asm__(".text\na_" #name ": " insn "\nint $0x80\n")
AGAIN(load, "mov (%rbx),%rax"); AGAIN(store, "mov %rax,(%rbx)"); AGAIN(add, "stc; adc %rax,(%rbx)"); AGAIN(xchg, "xchg %rax,(%rbx)"); AGAIN(xadd, "lock xadd %rax,(%rbx)");
AGAIN(cmpxchg, "mov $5,%eax; lock cmpxchg %rdx,(%rbx)"); AGAIN(inc, "incq (%rbx)"); AGAIN(push, "mov %rsp,%r8; lea 8(%rbx),%rsp; push %rax; sub %rbx,%rsp; mov %rsp,%rcx; mov %r8,%rsp");
AGAIN(pop, "mov %rsp,%r8; mov %rbx,%rsp; pop %rax; sub %rbx,%rsp; mov %rsp,%rcx; mov %r8,%rsp");
AGAIN(call, "mov %rsp,%r8; lea 8(%rbx),%rsp; call 1f; 1: sub %rbx,%rsp; mov %rsp,%rcx; mov %r8,%rsp; xor %eax,%eax; movq $5,(%rbx)");
AGAIN(popm, "mov %rsp,%r8; pushq $6; popq (%rbx); sub %r8,%rsp; mov %rsp,%rcx; add %r8,%rsp");
AGAIN(movs, "mov $data,%esi; mov %rbx,%rdi; movq $5,(%rsi); movsq; sub %rbx,%rdi; mov %rdi,%rcx");
AGAIN(sse, "movq %rax,%xmm0; movups %xmm0,(%rbx)"); AGAIN(fist, "fildll data; fistpll (%rbx)");
AGAIN(rep, "lea -0x800(%rbx),%rdi; mov $0x2000,%ecx; mov $7,%eax; rep stosb");

static void again(void)
{
	static const struct { const u8 *code; const char *name; u64 mem, ax, cx; } runs[] = {
		{ a_load, "load", 5, 5, 77 }, { a_store, "store", 100, 100, 77 }, { a_add, "adc", 106, 100, 77 }, { a_xchg, "xchg", 100, 5, 77 }, { a_xadd, "xadd", 105, 5, 77 },
		{ a_cmpxchg, "cmpxchg", 200, 5, 77 }, { a_inc, "inc", 6, 100, 77 }, { a_push, "push", 100, 100, 0 }, { a_pop, "pop", 5, 5, 8 }, { a_call, "call", 5, 0, 0 },
		{ a_popm, "pop m64", 6, 100, 0 }, { a_movs, "movsq", 5, 100, 8 }, { a_sse, "SSE store", 100, 100, 77 }, { a_fist, "fistp", 5, 100, 77 } };
	trap_hook = on_mend;
	for (unsigned k = 0; k < ARRAY_LEN(runs); k++) {
		unsigned bad = 0, bad_count = 0;
		for (unsigned off = 4080; off <= 4096; off += off >= 4088 ? 1 : 8) { /* within the first, across, within the second */
			if (off > 4080 && runs[k].code == a_sse)
				break;
			u64 *m = (u64 *)(VA + off);
			for (unsigned n = 0; n < 2; n++)
				map_page(VA + 4096 * n, page[n], P | W | U);
			*m = 5;
			*(u64 *)data = 5;
			for (unsigned n = 0; n < 2; n++) {
				*pte(VA + 4096 * n) = 0;
				invlpg(VA + 4096 * n);
			}
			struct regs r = user_regs(runs[k].code);
			r.ax = 100;
			r.bx = (uptr)m;
			r.cx = 77;
			r.dx = 200;
			mends = 0;
			go(&r);
			bad_count += mends != (off > 4088 && off < 4096 ? 2 : 1);
			bad += trap.vec != DONE || trap.f.ax != runs[k].ax || trap.f.cx != runs[k].cx || trap.f.sp != r.sp;
			bad += *(u64 *)(VA + off) != runs[k].mem;
		}
		check_eq(fmt("%s, its pages mapped by the fault handler: once and no more", runs[k].name), bad, 0);
		check_eq(fmt("%s: a fault for each page", runs[k].name), bad_count, 0);
	}
	for (unsigned n = 0; n < 3; n++) {
		memset(page[n], 0, 4096);
		map_page(VA + 4096 * n, page[n], 0);
		*pte(VA + 4096 * n) = 0;
	}
	struct regs r = user_regs(a_rep);
	r.bx = VA + 0x1000;
	mends = 0;
	go(&r);
	u32 sum = 0;
	for (unsigned k = 0; k < 3 * 4096; k++)
		sum += ((u8 *)page)[k] == (k >= 0x800 && k < 0x2800 ? 7 : 0);
	check("rep stosb over three pages mapped by the handler", trap.vec == DONE && mends == 3 && sum == 3 * 4096 && trap.f.cx == 0 && trap.f.di == VA + 0x2800);
	trap_hook = NULL;
}

/* ---- flags across accesses ------------------------------------------------------------------------------ */

#define FLAG_OP(name, insn) extern const u8 f_##name[]; __asm__(".text\nf_" #name ": push %rdx; popfq; " insn "; pushfq; pop %rax; ret\n")
FLAG_OP(ld1, "movb (%rbx),%cl"); FLAG_OP(ld2, "movw (%rbx),%cx"); FLAG_OP(ld4, "movl (%rbx),%ecx"); FLAG_OP(ld8, "movq (%rbx),%rcx"); FLAG_OP(ld16, "movups (%rbx),%xmm0");
FLAG_OP(st1, "movb %cl,(%rbx)"); FLAG_OP(st2, "movw %cx,(%rbx)"); FLAG_OP(st4, "movl %ecx,(%rbx)"); FLAG_OP(st8, "movq %rcx,(%rbx)"); FLAG_OP(st16, "movups %xmm0,(%rbx)");
FLAG_OP(xchg, "xchg %rcx,(%rbx)"); FLAG_OP(push, "pushq (%rbx); pop %rcx"); FLAG_OP(pop, "push %rcx; popq (%rbx)"); FLAG_OP(stos, "mov %rbx,%rdi; stosq"); FLAG_OP(lods, "mov %rbx,%rsi; lodsq");
FLAG_OP(movs, "mov %rbx,%rsi; lea 8(%rbx),%rdi; movsq"); FLAG_OP(fld, "fildll (%rbx); fistpll (%rbx)"); FLAG_OP(movzx, "movzbl (%rbx),%ecx"); FLAG_OP(two, "mov (%rbx),%cl; mov %cl,16(%rbx)");
FLAG_OP(cmov, "cmovo (%rbx),%rcx"); FLAG_OP(rep, "mov %rbx,%rdi; mov $5,%ecx; rep stosb"); FLAG_OP(not, "notq (%rbx)"); FLAG_OP(bswap, "mov (%rbx),%rcx; bswap %rcx; mov %rcx,(%rbx)");

/* The conditions themselves: a bit for each of the 16. */
extern u32 conditions(u64 flags, void *p);
__asm__(".text\n.globl conditions\nconditions: push %rbx; mov %rsi,%rbx; mov %rdi,%rdx; xor %eax,%eax; xor %ecx,%ecx\n"
	".irp cc,o,no,c,nc,z,nz,be,a,s,ns,p,np,l,ge,le,g\npush %rdx; popfq; movb (%rbx),%r8b; movb %r8b,1(%rbx); j\\cc 1f; jmp 2f\n1: bts %ecx,%eax\n2: inc %ecx\n.endr\npop %rbx; ret\n");
static u32 conditions_of(u32 f)
{
	bool o = f & FL_OF, c = f & FL_CF, z = f & FL_ZF, s = f & FL_SF, p = f & FL_PF;
	return (u32)(o | !o << 1 | c << 2 | !c << 3 | z << 4 | !z << 5 | (c | z) << 6 | !(c | z) << 7 | s << 8 | !s << 9 | p << 10 | !p << 11 | (s ^ o) << 12 | !(s ^ o) << 13 |
		     ((s ^ o) | z) << 14 | !((s ^ o) | z) << 15);
}

static void flags_live(void)
{
	static const struct { const u8 *code; const char *name; } ops[] = {
#define F(name, text) { f_##name, text }
		F(ld1, "load 1"), F(ld2, "load 2"), F(ld4, "load 4"), F(ld8, "load 8"), F(ld16, "load 16"), F(st1, "store 1"), F(st2, "store 2"), F(st4, "store 4"), F(st8, "store 8"),
		F(st16, "store 16"), F(xchg, "xchg"), F(push, "push m"), F(pop, "pop m"), F(stos, "stosq"), F(lods, "lodsq"), F(movs, "movsq"), F(fld, "fild, fistp"), F(movzx, "movzx"),
		F(two, "load and store"), F(cmov, "cmov"), F(rep, "rep stosb"), F(not, "not"), F(bswap, "load, bswap, store") };
	static const char *states[] = { "warm", "after INVLPG", "after MOV CR3", "mapped by the fault handler", "beside code", "across pages, INVLPG", "across pages, by the fault handler" };
	trap_hook = on_mend;
	for (unsigned k = 0; k < ARRAY_LEN(ops); k++)
		for (unsigned s = 0; s < ARRAY_LEN(states); s++) {
			unsigned wrong = 0;
			u64 at = VA + (s >= 5 ? 0xfff : 0x80);
			for (unsigned n = 0; n < 2; n++)
				map_page(VA + 4096 * n, page[n], P | W | U);
			for (unsigned f = 0; f < 64 && !wrong; f++) {
				u64 want = (f & 1 ? FL_CF : 0) | (f & 2 ? FL_PF : 0) | (f & 4 ? FL_AF : 0) | (f & 8 ? FL_ZF : 0) | (f & 16 ? FL_SF : 0) | (f & 32 ? FL_OF : 0), got;
				u64 cx = f;
				if (s == 1 || s == 5)
					invlpg(VA), invlpg(VA + 4096);
				if (s == 2)
					flush();
				if (s == 4) {
					page[0][0xc0] = 0xc3;
					__asm__ volatile("call *%0" : : "r"(VA + 0xc0) : "memory");
				}
				if (s == 3 || s == 6)
					map_page(VA, page[0], 0), map_page(VA + 4096, page[1], 0);
				__asm__ volatile("call *%3" : "=a"(got), "+c"(cx) : "b"(at), "r"(ops[k].code), "d"(want | 2) : "rsi", "rdi", "memory", "cc");
				if ((got & 0x8d5) != want)
					wrong = 0x10000 | f;
			}
			check_eq(fmt("flags across %s, %s", ops[k].name, states[s]), wrong, 0);
		}
	for (unsigned s = 0; s < 5; s++) {
		unsigned wrong = 0;
		map_page(VA, page[0], P | W | U);
		for (unsigned f = 0; f < 64; f++) {
			u32 fl = (f & 1 ? FL_CF : 0) | (f & 2 ? FL_PF : 0) | (f & 4 ? FL_AF : 0) | (f & 8 ? FL_ZF : 0) | (f & 16 ? FL_SF : 0) | (f & 32 ? FL_OF : 0);
			if (s == 1)
				invlpg(VA);
			if (s == 2)
				flush();
			if (s == 3)
				map_page(VA, page[0], 0);
			if (s == 4) {
				page[0][0xc0] = 0xc3;
				__asm__ volatile("call *%0" : : "r"(VA + 0xc0) : "memory");
			}
			wrong += conditions(fl | 2, (void *)(VA + 0xbf - 1)) != conditions_of(fl);
		}
		check_eq(fmt("all conditions behind a load and a store, %s", states[s]), wrong, 0);
	}
	trap_hook = NULL;
}

/* Sums of 64 limbs, each on a page of its own that is not in the TLB or not there. */
static u8 limbs[3][64][64] __attribute__((aligned(4096)));
static bool on_limb(struct frame *f)
{
	u64 va = read_cr2();
	if (f->vec != PF || va < VA || va >= VA + 192 * 4096)
		return false;
	mends++;
	*pte(va) |= P;
	return true;
}
static void adc_chain(void)
{
	static const char *how[] = { "warm", "after MOV CR3", "pages mapped by the fault handler" };
	for (unsigned s = 0; s < 3; s++) {
		unsigned bad = 0;
		for (unsigned turn = 0; turn < 20; turn++) {
			u64 want[64];
			u8 carry = 0;
			for (unsigned k = 0; k < 64; k++) {
				u64 a = (u64)rnd(1u << 30) << 34 ^ rnd(1u << 30), b = rnd(3) ? ~a : (u64)rnd(1u << 30) << 35;
				*(u64 *)limbs[0][k] = a;
				*(u64 *)limbs[1][k] = b;
				unsigned __int128 t = (unsigned __int128)a + b + carry;
				want[k] = (u64)t;
				carry = (u8)(t >> 64);
				for (unsigned n = 0; n < 3; n++) /* the page that holds the limb */
					*pte(VA + 4096 * (n * 64 + k)) = ((uptr)limbs[n][k] & ~0xfffull) | W | U | (s == 2 ? 0 : P);
			}
			flush();
			for (unsigned k = 0; k < 192 && !s; k++)
				(void)*(volatile u8 *)(VA + 4096 * k);
			u64 a = VA, b = VA + 64 * 4096, d = VA + 128 * 4096;
			u32 n = 64;
			u8 out;
			mends = 0;
			trap_hook = on_limb;
			/* LEA and DEC leave CF alone */
			__asm__ volatile("clc; 1: mov (%0),%%rax; adc (%1),%%rax; mov %%rax,(%2); lea 4160(%0),%0; lea 4160(%1),%1; lea 4160(%2),%2; dec %3; jnz 1b; setc %4"
				: "+r"(a), "+r"(b), "+r"(d), "+r"(n), "=q"(out) : : "rax", "memory", "cc");
			trap_hook = NULL;
			for (unsigned k = 0; k < 64; k++)
				bad += *(u64 *)limbs[2][k] != want[k];
			bad += out != carry || mends != (s == 2 ? 192 : 0);
		}
		check_eq(fmt("adc over 64 pages, %s", how[s]), bad, 0);
	}
}

int main(void)
{
	map_init();
	map_own_stacks();
	loops();
	anywhere();
	stepping();
	in_the_middle();
	again();
	flags_live();
	adc_chain();
	return 0;
}
