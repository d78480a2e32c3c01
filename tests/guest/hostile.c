/* A guest that behaves as badly as it can: random values to all ports, MSRs and device memory, jumps
 * to where there is no code, random bytes executed in three modes. Nothing here has one right
 * result: the machine must stay alive and the guest's handlers keep control. Seeds are fixed, so a
 * failure comes again. */
#include "guest.h"

const char guest_name[] = "hostile";

static u64 seed = 0x123456789abcdef;
static u64 rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}
/* A random number of random width, or a corner. */
static u64 value(void)
{
	static const u64 corners[] = { 0, 1, ~0ull, 0x80, 0x8000, 0x80000000, 1ull << 63, 0x7fffffff, 0x800000000000, 0xffff800000000000 };
	u64 r = rnd();
	return r & 7 ? rnd() >> (r >> 8 & 63) : corners[(r >> 8) % ARRAY_LEN(corners)];
}
static u32 seen[32], others;
static void note(void)
{
	if (trap.vec >= 0 && trap.vec < 32)
		seen[trap.vec]++;
	else
		others++;
}

/* ---- ports ------------------------------------------------------------------------------------ */

/* These do what they are asked: the exit device, resets, A20, power, the console. */
static bool port_ends(u32 p)
{
	return (p >= 0xf1 && p < 0xf8) || (p >= 0x5d && p <= 0x64) || (p >= 0x8f && p <= 0x92) || (p >= 0xcf6 && p <= 0xcf9) || (p >= 0x600 && p < 0x640) ||
	       (p >= 0xb000 && p < 0xb040) || (p >= 0xe6 && p <= 0xe9) || (p >= 0x3ff && p <= 0x402) || (p >= 0xb0 && p <= 0xb3);
}

static void ports(void)
{
	u32 n = 0;
	for (u32 round = 0; round < 3; round++)
		for (u32 p = 0; p < 0x10000; p++) {
			if (port_ends(p) || (p >= 0x1000 && round))
				continue;
			u32 v = (u32)value();
			switch (rnd() % 6) {
			case 0: outb((u16)p, (u8)v); break;
			case 1: outw((u16)p, (u16)v); break;
			case 2: outl((u16)p, v); break;
			case 3: inb((u16)p); break;
			case 4: __asm__ volatile("inw %w1,%w0" : "=a"(v) : "d"(p)); break;
			default: inl((u16)p);
			}
			n++;
		}
	check(fmt("%u random port accesses", n), n > 60000);
	static u8 buf[4096];
	for (u32 k = 0; k < 2000; k++) {
		u32 p = (u32)rnd() & 0xfff;
		if (port_ends(p))
			continue;
		u64 count = rnd() & 31;
		if (rnd() & 1)
			TRY(__asm__ volatile("rep insb" : : "d"(p), "D"(buf), "c"(count) : "memory"));
		else
			TRY(__asm__ volatile("rep outsl" : : "d"(p), "S"(buf), "c"(count) : "memory"));
	}
	check("REP INS and OUTS", true);
	/* The chips answer as before. */
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	outb(0x70, 0x0f);
	check("the machine is alive", true);
}

/* ---- MSRs ----------------------------------------------------------------------------------------- */

static void msrs(void)
{
	static const struct { u32 first, n; } ranges[] = { { 0, 0x800 }, { 0x830, 0x800 }, { 0xc0000000, 0x200 }, { 0xc0010000, 0x200 }, { 0xc0011000, 0x100 }, { 0x40000000, 0x200 },
		{ 0x4b564d00, 0x10 }, { 0xfffffff0, 0x10 } };
	u32 n = 0, faults = 0;
	for (unsigned k = 0; k < ARRAY_LEN(ranges); k++)
		for (u32 m = ranges[k].first, end = m + ranges[k].n; m != end; m++) {
			u64 old = 0;
			TRY(old = rdmsr(m));
			bool readable = trap.vec == NONE;
			if (trap.vec != NONE && trap.vec != GP)
				check(fmt("rdmsr %x raises #GP or nothing", m), false);
			if (m == 0x1b || m == EFER) /* moves the LAPIC; ends long mode: tested elsewhere */
				continue;
			for (unsigned round = 0; round < 3; round++) {
				u64 v = value();
				TRY(wrmsr(m, v));
				n++;
				faults += trap.vec == GP;
				if (trap.vec != NONE && trap.vec != GP)
					check(fmt("wrmsr %x raises #GP or nothing", m), false);
				if (readable)
					TRY(wrmsr(m, old));
			}
		}
	check(fmt("%u random MSR writes, some refused", n), faults > 100 && faults < n);
}

/* ---- device memory and holes ---------------------------------------------------------------------------- */

static const u64 places[] = { 0xa0000, 0xb8000, 0xc0000, 0xe0000, 0xf0000, 0xff000, 0xfec00000, 0xfed00000, 0xfee00000, 0xf0000000, 0xff000000, 0xfffffff0, 0xc0000000, 0xe0000000 };

static void memory(void)
{
	static u8 buf[256] __attribute__((aligned(64)));
	u32 n = 0;
	for (u32 k = 0; k < 20000; k++) {
		u64 p = places[rnd() % ARRAY_LEN(places)] + (rnd() & 0xfff);
		if ((p & ~0xfffull) == 0xfee00000 && (p & 0xff8) >= 0x2f8 && (p & 0xff8) <= 0x318) /* INIT to oneself */
			continue;
		if (p > 0xffffffc0 || (p & ~0x3full) == 0xfffc0)
			p -= 0x40;
		u64 v = value();
		switch (rnd() % 14) {
		case 0: TRY(*(volatile u8 *)p = (u8)v); break;
		case 1: TRY(*(volatile u16 *)p = (u16)v); break;
		case 2: TRY(*(volatile u32 *)p = (u32)v); break;
		case 3: TRY(*(volatile u64 *)p = v); break;
		case 4: TRY((void)*(volatile u8 *)p); break;
		case 5: TRY((void)*(volatile u16 *)p); break;
		case 6: TRY((void)*(volatile u32 *)p); break;
		case 7: TRY((void)*(volatile u64 *)p); break;
		case 8: TRY(__asm__ volatile("lock addl $1,(%0)" : : "r"(p) : "memory")); break;
		case 9: TRY(__asm__ volatile("movdqu (%0),%%xmm0" : : "r"(p))); break;
		case 10: TRY(__asm__ volatile("movdqu %%xmm0,(%0)" : : "r"(p & ~0x300ull) : "memory")); break;
		case 11: TRY(__asm__ volatile("fldl (%0); fstp %%st(0)" : : "r"(p))); break;
		case 12: TRY(__asm__ volatile("rep movsb" : : "S"(p), "D"(buf), "c"(rnd() & 63) : "memory")); break;
		default: TRY(__asm__ volatile("xchgq %0,(%1)" : "+r"(v) : "r"(p) : "memory"));
		}
		note();
		n++;
	}
	__asm__ volatile("fninit");
	check(fmt("%u random accesses to devices, ROM and nothing", n), n > 15000);
	/* fxsave, descriptor tables and pages there. */
	for (unsigned k = 0; k < ARRAY_LEN(places); k++) {
		u64 p = places[k] & ~0xfffull;
		if (p == 0xfee00000)
			continue;
		TRY(__asm__ volatile("fxsave (%0)" : : "r"(p) : "memory"));
		TRY(__asm__ volatile("sgdt (%0)" : : "r"(p) : "memory"));
		TRY(__asm__ volatile("cmpxchg16b (%0)" : : "r"(p) : "memory", "rax", "rdx", "cc"));
		TRY(__asm__ volatile("push (%0); pop (%0)" : : "r"(p) : "memory"));
		TRY(__asm__ volatile("mov %%rsp,%%rbx; lea 64(%0),%%rsp; push %%rax; mov %%rbx,%%rsp" : : "r"(p) : "rbx", "memory"));
		/* A stack there: the handler's words go nowhere. */
	}
	check("wide accesses and system instructions there", true);
	/* Page tables in a hole or in a device: the walk reads what is there. */
	extern u64 boot_pml4[512];
	for (unsigned k = 0; k < ARRAY_LEN(places); k++) {
		boot_pml4[8] = (places[k] & ~0xfffull) | 7;
		write_cr3(read_cr3());
		TRY((void)*(volatile u8 *)(8ull << 39));
		note();
	}
	boot_pml4[8] = 0x3fffffff000 | 7; /* beyond all memory */
	write_cr3(read_cr3());
	TRY((void)*(volatile u8 *)(8ull << 39));
	check("page tables in devices and beyond memory", true);
	boot_pml4[8] = 0;
	write_cr3(read_cr3());
}

/* ---- jumps to nowhere ---------------------------------------------------------------------------------------- */

/* What is there may be a loop; single steps end it. */
static volatile u32 steps, limit;
static bool on_step(struct frame *f)
{
	if (f->vec != DB)
		return false;
	write_dr6(0xffff0ff0);
	return ++steps < limit;
}

static void jumps(void)
{
	trap_hook = on_step;
	limit = 2000;
	u32 ended = 0, total = 0;
	static u64 scratch[512];
	static const u64 more[] = { 0x7fffff0, 0x8000000, 0x10000000, 0x3fffffff, 0x800000000000, 0xffffffffffffffff, 0x0, 0x7ffffffff000 };
	for (unsigned k = 0; k < ARRAY_LEN(places) + ARRAY_LEN(more); k++) {
		u64 p = k < ARRAY_LEN(places) ? places[k] : more[k - ARRAY_LEN(places)];
		struct regs r = user_regs((void *)p);
		r.flags = 2 | FL_TF;
		r.ax = r.bx = r.cx = r.dx = r.si = r.di = r.bp = (uptr)(scratch + 256);
		steps = 0;
		go(&r);
		note();
		total++;
		ended += trap.vec != NONE;
	}
	check_eq("jumps to devices, ROM, nothing, the last byte: the handlers get each", ended, total);
	trap_hook = NULL;
}

/* ---- random code ----------------------------------------------------------------------------------------------- */

/* CPL 3 sees a window of one large page, all else is supervisor; CPL 0 code is asked before each
 * step, and what would take the processor away from us is stepped over. */
extern u64 boot_pd[2048];
#define WINDOW 0x4000000ul
static u8 *const code = (u8 *)WINDOW + 0x100000;
static u8 ist_stack[8192] __attribute__((aligned(16))), df_stack[8192] __attribute__((aligned(16)));

static bool forbidden(const u8 *p)
{
	for (unsigned k = 0; k < 14; k++) {
		u8 b = p[k];
		if (b == 0x66 || b == 0x67 || b == 0xf2 || b == 0xf3 || b == 0xf0 || b == 0x2e || b == 0x36 || b == 0x3e || b == 0x26 || b == 0x64 || b == 0x65 ||
		    (b & 0xf0) == 0x40)
			continue;
		if (b == 0xf4 || (b & 0xfe) == 0xe6 || (b & 0xfe) == 0xee || (b & 0xfe) == 0x6e || b == 0x9d || b == 0xcf || b == 0xca || b == 0xcb || b == 0x8e || b == 0xcd ||
		    b == 0xfb || b == 0xff)
			return true;
		if (b == 0x0f) {
			u8 o = p[k + 1];
			return o == 0x00 || o == 0x01 || o == 0x22 || o == 0x23 || o == 0x30 || o == 0x07 || o == 0x05 || o == 0x34 || o == 0x35 || o == 0xaa || o == 0xb2 || o == 0xb4 || o == 0xb5 || o == 0xa1 || o == 0xa9;
		}
		return false;
	}
	return true;
}
static bool inside(u64 p) { return p >= WINDOW && p < WINDOW + 0x1fff00; }
static bool on_fuzz(struct frame *f)
{
	if (f->vec != DB)
		return false;
	write_dr6(0xffff0ff0);
	f->flags |= FL_TF;
	if (++steps >= limit || !inside(f->ip))
		return false;
	return (f->cs & 3) == 3 || !forbidden((u8 *)f->ip);
}

static void fuzz_one(const char *name, u16 cs, u32 rounds, u64 s)
{
	seed = s;
	u32 ended = 0, ran = 0;
	limit = 64;
	memset(seen, 0, sizeof(seen));
	others = 0;
	trap_hook = on_fuzz;
	for (u32 n = 0; n < rounds; n++) {
		for (unsigned k = 0; k < 64; k += 8) {
			u64 v = rnd();
			memcpy(code + k, &v, 8);
		}
		/* Bias: every other snippet starts with a two-byte opcode or a prefix. */
		if (n & 1)
			code[0] = "\x0f\x66\xf2\xf3\x48\x0f\xc5\xc4"[rnd() & 7];
		if (n & 2)
			code[1] = 0x0f;
		struct regs r;
		uptr *w = (uptr *)&r;
		for (unsigned k = 0; k < 18; k++)
			w[k] = rnd() & 1 ? WINDOW + (rnd() & 0x1ffff8) : value();
		r.ip = (uptr)code;
		r.sp = WINDOW + 0x180000;
		r.flags = 2 | FL_TF | (rnd() & 0xcd5);
		r.cs = cs;
		r.ss = cs & 3 ? UDATA : DATA;
		r.ds = r.es = r.ss;
		if (!(cs & 3) && forbidden(code))
			continue;
		steps = 0;
		go(&r);
		note();
		ran++;
		ended += trap.vec != NONE;
		write_dr7(0x400);
		__asm__ volatile("fninit");
		u32 mx = 0x1f80;
		__asm__ volatile("ldmxcsr %0" : : "m"(mx));
	}
	trap_hook = NULL;
	check_eq(fmt("%s: %u random snippets come back", name, ran), ended, ran);
	check(fmt("%s: #UD %u, #GP %u, #PF %u, steps over %u", name, seen[UD], seen[GP], seen[PF], seen[DB]), seen[UD] && seen[GP] && (seen[PF] || seen[SS]) && seen[DB]);
}

static void fuzz(void)
{
	for (unsigned k = 0; k < 2048; k++)
		boot_pd[k] = k < 8 ? (u64)k << 21 | 0xe3 : (u64)k << 21 == WINDOW ? WINDOW | 0xe7 : k == 0xfee00000u >> 21 ? 0xfee00000 | 0xf3 : 0;
	write_cr3(read_cr3());
	write_cr0(read_cr0() | 0x10000);
	tss.ist[0] = (uptr)ist_stack + sizeof(ist_stack);
	tss.ist[1] = (uptr)df_stack + sizeof(df_stack);
	for (unsigned v = 0; v < 256; v++)
		idt[2 * v] = (idt[2 * v] & ~(7ull << 32)) | (v == DF ? 2ull : 1ull) << 32;
	if (has(1, 2, 26)) {
		write_cr4(read_cr4() | 0x40000);
		u32 r[4];
		cpuid(13, 0, r);
		__asm__ volatile("xsetbv" : : "c"(0), "a"(r[0] & 0xe7), "d"(0));
	}
	fuzz_one("64-bit code, CPL 3", UCODE, 6000, 0x1111111111111111);
	fuzz_one("32-bit code, CPL 3", UCODE32, 6000, 0x2222222222222222);
	fuzz_one("64-bit code, CPL 0", CODE, 4000, 0x3333333333333333);
}

int main(void)
{
	ports();
	msrs();
	memory();
	jumps();
	fuzz();
	return 0;
}
