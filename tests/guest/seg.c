/* Protected-mode segments: loads by type, DPL, RPL, CPL; limits; LAR, LSL, VERR, VERW, ARPL;
 * hidden state; LDT. SDM vol. 3 3.4, 5.2 to 5.10, vol. 2 MOV, LAR, LSL, VERR, ARPL, LLDT. Each
 * table below is worked out again from those rules in C and held against the processor. */
#include "guest.h"

const char guest_name[] = "seg";

enum { T = FREE }; /* the descriptor under test */

/* ---- loads ------------------------------------------------------------------------------------ */

static volatile u32 load_sel;
#define LOADER(name, reg) \
	extern const u8 name[]; \
	__asm__(".text\n" #name ": mov %eax,%" #reg "\nmov %" #reg ",%ebx\nint $0x80")
LOADER(load_ds, ds); LOADER(load_es, es); LOADER(load_fs, fs); LOADER(load_gs, gs); LOADER(load_ss, ss);

static const u32 codes[4] = { CODE, CODE1, CODE2, UCODE }, datas[4] = { DATA, DATA1, DATA2, UDATA };

static int run_at(unsigned cpl, const u8 *code, u32 ax)
{
	struct regs r = user_regs(code);
	r.cs = codes[cpl];
	r.ss = datas[cpl];
	r.ax = ax;
	if (!cpl) {
		r.ds = r.es = r.fs = r.gs = DATA;
		r.ss = DATA;
	}
	return go(&r);
}

/* What a load of DS, ES, FS, GS or SS of a descriptor with this access byte must raise. */
static int expect(unsigned cpl, unsigned rpl, u8 a, bool ss)
{
	unsigned dpl = a >> 5 & 3;
	bool code = (a & 0x18) == 0x18, system = !(a & 0x10);
	if (ss) {
		if (rpl != cpl || system || code || !(a & 2) || dpl != cpl)
			return GP;
		return a & 0x80 ? DONE : SS;
	}
	if (system || (code && !(a & 2)))
		return GP;
	if (!(code && (a & 4)) && (rpl > dpl || cpl > dpl))
		return GP;
	return a & 0x80 ? DONE : NP;
}

static void loads(void)
{
	static const struct { const u8 *code; const char *name; } regs[] = {
		{ load_ds, "ds" }, { load_es, "es" }, { load_fs, "fs" }, { load_gs, "gs" }, { load_ss, "ss" },
	};
	tss.t.esp1 = tss.t.esp2 = (uptr)trap_stack_end;
	/* Every access byte by CPL and RPL, for each register: one check a type, register and CPL. */
	for (unsigned k = 0; k < ARRAY_LEN(regs); k++) {
		bool ss = regs[k].code == load_ss;
		for (unsigned cpl = 0; cpl < 4; cpl++) {
			unsigned bad = 0, first = 0, n = 0, bad_ec = 0, bad_a = 0;
			for (unsigned a = 0; a < 256; a++) {
				for (unsigned rpl = 0; rpl < 4; rpl++) {
					/* expand-down: all but the lowest page, so that the stack is usable */
					gdt[T] = desc(0, (a & 0x1c) == 0x14 ? 0 : 0xfffff, a, F_G | F_B);
					int want = expect(cpl, rpl, (u8)a, ss), got = run_at(cpl, regs[k].code, sel(T, rpl));
					u8 now = (u8)(gdt[T] >> 40);
					n++;
					if (got != want && !bad++)
						first = a << 4 | rpl;
					if (want != DONE && trap.err != sel(T, 0))
						bad_ec++;
					if (now != (want == DONE ? a | 1 : a))
						bad_a++;
				}
			}
			check_eq(fmt("mov %s at CPL %d: every access byte and RPL (first wrong: access<<4|rpl in got's place)", regs[k].name, cpl),
				 bad ? first : 0x10000, 0x10000);
			check_eq(fmt("mov %s at CPL %d: error code is the selector", regs[k].name, cpl), bad_ec, 0);
			check_eq(fmt("mov %s at CPL %d: accessed bit set by a load that succeeds only", regs[k].name, cpl), bad_a, 0);
		}
	}
	for (unsigned k = 0; k < 5; k++)
		for (unsigned cpl = 0; cpl < 4; cpl += 3)
			for (unsigned rpl = 0; rpl < 4; rpl += 3) {
				run_at(cpl, regs[k].code, rpl);
				check_trap(fmt("mov %s at CPL %d: null selector %d", regs[k].name, cpl, rpl), k == 4 ? GP : DONE, 0);
			}
	run_at(0, load_ds, sel(GDT_N, 0));
	check_trap("selector beyond the GDT: #GP(selector)", GP, sel(GDT_N, 0));
	run_at(0, load_ds, sel(3, 4 | 2));
	check_trap("LDT selector without an LDT: #GP(selector with TI)", GP, sel(3, 4));
	run_at(3, load_ss, sel(T, 7) | 0xfff0);
	check_trap("SS selector beyond the GDT", GP, 0xfffc);
}

/* ---- use of what was loaded ---------------------------------------------------------------------- */

extern const u8 xo_read[], nops[];
__asm__(".text\nxo_read: movl %cs:xo_read,%eax\nint $0x80\nnops: nop; nop; nop; nop; nop; nop\nint $0x80");
static u8 area[0x30000] __attribute__((aligned(4096)));

#define ACCESSES(X) X(1, movb, al) X(2, movw, ax) X(4, movl, eax)
#define MAKE(n, op, r) \
	static int ld##n(u32 s, u32 off) { return TRY(__asm__ volatile("mov %0,%%es; " #op " %%es:(%1),%%" #r "; mov %2,%%es" : : "r"(s), "r"(off), "r"(DATA) : "eax", "memory")); } \
	static int st##n(u32 s, u32 off) { return TRY(__asm__ volatile("mov %0,%%es; " #op " %%" #r ",%%es:(%1); mov %2,%%es" : : "r"(s), "r"(off), "r"(DATA) : "eax", "memory")); }
ACCESSES(MAKE)
static int ld(unsigned n, u32 off) { return n == 1 ? ld1(sel(T, 0), off) : n == 2 ? ld2(sel(T, 0), off) : ld4(sel(T, 0), off); }
static int st(unsigned n, u32 off) { return n == 1 ? st1(sel(T, 0), off) : n == 2 ? st2(sel(T, 0), off) : st4(sel(T, 0), off); }

static void limit_case(const char *name, u32 access, u32 flags, u32 limit, u32 lo, u32 hi)
{
	/* valid offsets: lo..hi */
	gdt[T] = desc((uptr)area, limit, access, flags);
	for (unsigned n = 1; n <= 4; n *= 2) {
		int at_lo = ld(n, lo), at_hi = st(n, hi - n + 1);
		check(fmt("%s: %d bytes at both ends", name, n), at_lo == NONE && at_hi == NONE);
		if (hi != 0xffffffff) {
			int over = ld(n, hi - n + 2);
			check_trap(fmt("%s: %d bytes over the end", name, n), GP, 0);
			check(fmt("%s: %d-byte store over the end", name, n), over == GP && st(n, hi + 1) == GP);
		}
		if (lo) {
			check(fmt("%s: %d bytes below the start", name, n), ld(n, lo - 1) == GP && st(n, 0) == GP);
		}
	}
}

static void limits(void)
{
	limit_case("byte limit 1234", A_RW, F_B, 0x1234, 0, 0x1234);
	limit_case("page limit 2", A_RW, F_B | F_G, 2, 0, 0x2fff);
	limit_case("expand-down 32-bit", A_DOWN, F_B, 0xff, 0x100, 0xffffffff);
	limit_case("expand-down 32-bit, pages", A_DOWN, F_B | F_G, 3, 0x4000, 0xffffffff);
	limit_case("expand-down 16-bit", A_DOWN, 0, 0xff, 0x100, 0xffff);
	limit_case("byte limit 0 .. fffff", A_RW, 0, 0x1ffff, 0, 0x1ffff);
	gdt[T] = desc((uptr)area, 0xffff, A_DOWN, 0);
	check("expand-down 16-bit with limit ffff: nothing is valid", ld(1, 0xffff) == GP && ld(1, 0) == GP);
	gdt[T] = desc((uptr)area, 0, A_RW, F_B);
	check("limit 0: one byte", ld(1, 0) == NONE && ld(2, 0) == GP && ld(1, 1) == GP);
	gdt[T] = desc((uptr)area, 0xffff, A_DATA, F_B);
	check("read-only data", ld(4, 0) == NONE && st(4, 0) == GP && trap.err == 0);
	gdt[T] = desc((uptr)area, 0xffff, A_XR, F_B);
	check("readable code", ld(4, 0) == NONE && st(4, 0) == GP);
	check_eq("null ES: #GP on use", ld4(0, 0x1000), GP);
	check("CS is not written through", TRY(__asm__ volatile("movl $0,%%cs:%0" : "=m"(area[0]))) == GP);
	/* Execute-only code, by a far call into a copy of code. */
	gdt[T] = desc(0, 0xfffff, A_CODE, F_B | F_G);
	struct { u32 off; u16 s; } __attribute__((packed)) far = { 0, sel(T, 0) };
	far.off = (uptr)xo_read;
	TRY(__asm__ volatile("lcall *%0" : : "m"(far)));
	check_trap("execute-only code is not read", GP, 0);
	check_eq("in that code segment", trap.f.cs, sel(T, 0));
	/* SS: limits give #SS(0). */
	gdt[T] = desc(0, 0xff, A_RW, F_B);
	TRY(__asm__ volatile("mov %%esp,%%ebx; mov %0,%%ss; movl %%ss:0x100,%%eax" : : "r"(sel(T, 0)) : "eax", "ebx"));
	check_eq("SS limit: a fault whose frame does not fit either ends elsewhere", trap.vec, DF);
}

/* At CPL 3 the handler's stack is another one, so #SS shows. */
extern const u8 ss_use[], ss_push[], ss_enter[], cs_over[];
__asm__(".text\nss_use: movl 0x100(%ebp),%eax\nint $0x80\n"
	"ss_push: pushl %eax\nint $0x80\nss_enter: enter $0x200,$0\nint $0x80\n");

static void stacks(void)
{
	gdt[T] = desc((uptr)area, 0xff, A_RW | A_DPL3, F_B);
	struct regs r = user_regs(ss_use);
	r.ss = sel(T, 3);
	r.bp = 0;
	r.sp = 0x80;
	go(&r);
	check_trap("read beyond SS's limit: #SS(0)", SS, 0);
	r.bp = (uptr)-4;
	go(&r);
	check_trap("within SS's limit", DONE, 0);
	r.ip = (uptr)ss_push;
	r.sp = 2;
	go(&r);
	check_trap("push below 0: #SS(0)", SS, 0);
	check_eq("SP unchanged by a push that faults", trap.f.sp, 2);
	r.sp = 0x104;
	go(&r);
	check_trap("push beyond the limit: #SS(0)", SS, 0);
	r.sp = 0x100;
	go(&r);
	check_trap("push just within", DONE, 0);
	gdt[T] = desc((uptr)area, 0xfffff, A_RW | A_DPL3, F_B | F_G);
	r.sp = 4;
	go(&r);
	check("32-bit stack: push at 4", trap.vec == DONE && trap.f.sp == 0);
	gdt[T] = desc((uptr)area, 0xffff, A_RW | A_DPL3, 0);
	r.sp = 0x55550000;
	r.ax = 0xfeedf00d;
	go(&r);
	check("16-bit stack: push wraps SP", trap.vec == DONE && (u16)trap.f.sp == 0xfffc && *(u32 *)(area + 0xfffc) == 0xfeedf00d);
	check_eq("iret to a 16-bit stack pops SP only: the upper half is the old stack's", trap.f.sp >> 16, (uptr)user_stack >> 16);
	gdt[T] = desc((uptr)area, 0x1fff, A_DOWN | A_DPL3, F_B);
	r.sp = 0x2004;
	go(&r);
	check_trap("expand-down stack: push at its lower end", DONE, 0);
	r.sp = 0x2000;
	go(&r);
	check_trap("expand-down stack: push below it: #SS(0)", SS, 0);
	r.ip = (uptr)ss_enter;
	r.sp = 0x2100;
	go(&r);
	check_trap("enter whose frame leaves the stack: #SS or fault-free by its rule", SS, 0);
	/* Code limit: the fetch after the last byte. */
	gdt[T] = desc((uptr)nops, 3, A_XR | A_DPL3, F_B);
	r = user_regs(NULL);
	r.cs = sel(T, 3);
	go(&r);
	check_trap("fetch beyond CS's limit: #GP(0)", GP, 0);
	check_eq("its EIP", trap.f.ip, 4);
	gdt[T] = desc((uptr)nops, 6, A_XR | A_DPL3, F_B);
	go(&r);
	check("an instruction that straddles the limit: #GP at its start", trap.vec == GP && trap.f.ip == 6);
}

/* ---- hidden state ---------------------------------------------------------------------------------- */

static void hidden(void)
{
	volatile u32 v;
	area[0] = 0x11;
	area[0x100] = 0x22;
	gdt[T] = desc((uptr)area, 0xffff, A_RW, F_B);
	TRY(__asm__ volatile("mov %0,%%fs" : : "r"(sel(T, 0))));
	gdt[T] = desc((uptr)area + 0x100, 0, A_RW, F_B);
	TRY(__asm__ volatile("movzbl %%fs:0,%0" : "=r"(v)));
	check_eq("base changed in the table: old base in use", v, 0x11);
	TRY(__asm__ volatile("movl %%fs:0x200,%0" : "=r"(v)));
	check_trap("limit changed in the table: old limit in use", NONE, 0);
	gdt[T] = 0;
	TRY(__asm__ volatile("movzbl %%fs:0,%0" : "=r"(v)));
	check_trap("descriptor gone: register works on", NONE, 0);
	TRY(__asm__ volatile("mov %%fs,%0; mov %0,%%fs" : "=r"(v)));
	check_trap("but loads no more", GP, sel(T, 0));
	gdt[T] = desc((uptr)area, 0xffff, A_RW, F_B);
	TRY(__asm__ volatile("mov %1,%%fs; movzbl %%fs:0,%0" : "=r"(v) : "r"(sel(T, 0))));
	gdt[T] = desc((uptr)area + 0x100, 0xffff, A_RW, F_B);
	TRY(__asm__ volatile("mov %1,%%fs; movzbl %%fs:0,%0" : "=r"(v) : "r"(sel(T, 0))));
	check_eq("reload: new base", v, 0x22);
	/* LDS, LFS, LGS, LSS load both or nothing. */
	struct { u32 off; u16 s; } __attribute__((packed)) far = { 0x1234, sel(T, 0) };
	volatile u32 g;
	TRY(__asm__ volatile("lgs %2,%0; mov %%gs,%1" : "=&r"(v), "=&r"(g) : "m"(far)));
	check("lgs", v == 0x1234 && (u16)g == sel(T, 0));
	far.s = sel(GDT_N + 1, 0);
	TRY(__asm__ volatile("mov $7,%%edx; mov %0,%%gs; lgs %1,%%edx" : : "r"(DATA), "m"(far) : "edx"));
	check("lgs that faults changes neither", trap.vec == GP && trap.f.dx == 7 && (u16)trap.f.gs == DATA && trap.err == sel(GDT_N + 1, 0));
	/* pop of a segment that faults leaves ESP. */
	u32 sp0 = 0;
	TRY(__asm__ volatile("push %1; mov %%esp,%%edx; pop %%fs" : "=m"(sp0) : "r"((u32)sel(GDT_N + 1, 0)) : "edx"));
	check("pop fs that faults leaves ESP", trap.vec == GP && trap.f.sp == trap.f.dx);
	TRY(__asm__ volatile("xor %%eax,%%eax; mov %%ax,%%es; push %%eax; mov %%esp,%%edx; popl %%es:(%%esp)" : : : "eax", "edx"));
	check("pop to memory that faults leaves ESP", trap.vec == GP && trap.f.sp == trap.f.dx);
	TRY(__asm__ volatile("mov %0,%%eax; .byte 0x8e,0xc8" : : "r"(CODE) : "eax"));
	check_trap("mov cs: #UD", UD, 0);
	TRY(__asm__ volatile(".byte 0x8e,0xf0"));
	check_trap("mov to segment register 6: #UD", UD, 0);
	TRY(__asm__ volatile("mov $0xffffffff,%%eax; mov %%ds,%%eax; mov %%eax,%0" : "=m"(v) : : "eax"));
	check_eq("mov eax,ds clears the upper half", v, DATA);
	TRY(__asm__ volatile("mov %%esp,%%ebx; pushl $-1; popl %%eax; push %%ds; movl (%%esp),%%eax; mov %%ebx,%%esp; mov %%eax,%0" : "=m"(v) : : "eax", "ebx"));
	check_eq("push ds: selector in the lower half", (u16)v, DATA);
}

/* ---- LAR, LSL, VERR, VERW, ARPL ---------------------------------------------------------------------- */

extern const u8 q_lar[], q_lsl[], q_verr[], q_verw[];
__asm__(".text\nq_lar: lar %eax,%ebx\nint $0x80\nq_lsl: lsl %eax,%ebx\nint $0x80\nq_verr: verr %ax\nint $0x80\nq_verw: verw %ax\nint $0x80\n");

static bool query(unsigned kind, unsigned cpl, unsigned rpl, u8 a)
{
	unsigned dpl = a >> 5 & 3, type = a & 15;
	bool user = a & 0x10, code = (a & 0x18) == 0x18;
	if (kind >= 2) {
		if (!user || (kind == 2 && code && !(a & 2)) || (kind == 3 && (code || !(a & 2))))
			return false;
		return (code && (a & 4)) || (cpl <= dpl && rpl <= dpl);
	}
	if (!user) {
		u32 ok = kind == 0 ? 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 12 : 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 11;
		if (!(ok >> type & 1))
			return false;
	}
	return (code && (a & 4)) || (cpl <= dpl && rpl <= dpl);
}

/* Memory is written only when the RPL is raised: otherwise the segment may be read-only. */
static void arpl_read_only(void)
{
	u16 s = sel(7, 1);
	gdt[T] = desc((uptr)&s, 1, A_DATA, F_B);
	for (unsigned rpl = 0; rpl < 4; rpl++) {
		u8 z = 9;
		TRY(__asm__ volatile("mov %1,%%es; cmp %%eax,%%eax; arpl %w2,%%es:0; setz %0" : "+m"(z) : "r"(sel(T, 0)), "r"(rpl) : "cc", "memory"));
		__asm__ volatile("mov %0,%%es" : : "r"(DATA));
		if (rpl > 1)
			check_trap(fmt("arpl in a read-only segment, RPL %u over 1: #GP(0)", rpl), GP, 0);
		else
			check(fmt("arpl in a read-only segment, RPL %u over 1: only read", rpl), trap.vec == NONE && z == 0);
		check(fmt("arpl in a read-only segment, RPL %u over 1: unchanged", rpl), s == sel(7, 1));
	}
}

static void queries(void)
{
	static const struct { const u8 *code; const char *name; } q[] = { { q_lar, "lar" }, { q_lsl, "lsl" }, { q_verr, "verr" }, { q_verw, "verw" } };
	for (unsigned k = 0; k < 4; k++)
		for (unsigned cpl = 0; cpl < 4; cpl++) {
			unsigned bad = 0, first = 0, bad_value = 0, changed = 0;
			for (unsigned a = 0; a < 256; a++)
				for (unsigned rpl = 0; rpl < 4; rpl++) {
					u64 d = gdt[T] = desc(0x12345678, 0x4321, a, a & 4 ? F_G | 1 : F_B);
					struct regs r = user_regs(q[k].code);
					r.cs = codes[cpl];
					r.ss = datas[cpl];
					if (!cpl)
						r.ds = r.es = DATA;
					r.ax = sel(T, rpl);
					r.bx = 0xabcd1234;
					r.flags = a & 1 ? 2 : 2 | FL_ZF;
					int v = go(&r);
					bool zf = trap.f.flags & FL_ZF, want = query(k, cpl, rpl, (u8)a);
					if ((v != DONE || zf != want) && !bad++)
						first = a << 4 | rpl;
					if (k == 0 && trap.f.bx != (want ? (u32)(d >> 32) & 0xf0ff00u : 0xabcd1234) && trap.f.bx != ((u32)(d >> 32) & 0xffff00u))
						bad_value++;
					if (k == 1 && trap.f.bx != (!want ? 0xabcd1234u : a & 4 ? 0x4321fffu : 0x4321u))
						bad_value++;
					changed += gdt[T] != d;
				}
			check_eq(fmt("%s at CPL %d: every access byte and RPL (got: first wrong)", q[k].name, cpl), bad ? first : 0x10000, 0x10000);
			if (k < 2)
				check_eq(fmt("%s at CPL %d: values; register kept when ZF = 0", q[k].name, cpl), bad_value, 0);
			check_eq(fmt("%s at CPL %d: descriptor untouched", q[k].name, cpl), changed, 0);
		}
	static const struct { u16 s; const char *name; } none[] = { { 0, "null" }, { 3, "null RPL 3" }, { GDT_N * 8, "beyond the GDT" }, { 4, "no LDT" } };
	for (unsigned k = 0; k < ARRAY_LEN(none); k++)
		for (unsigned n = 0; n < 4; n++) {
			struct regs r = user_regs(q[n].code);
			r.ax = none[k].s;
			r.flags = 2 | FL_ZF;
			int v = go(&r);
			check(fmt("%s of a selector that is %s: ZF clear", q[n].name, none[k].name), v == DONE && !(trap.f.flags & FL_ZF));
		}
	unsigned bad = 0;
	for (unsigned a = 0; a < 4; a++)
		for (unsigned b = 0; b < 4; b++) {
			u32 d = 0x11110000 | b;
			u8 z;
			__asm__ volatile("arpl %w2,%w0; setz %1" : "+r"(d), "=q"(z) : "r"(0x7770 | a) : "cc");
			bad += d != (0x11110000 | (a > b ? a : b)) || z != (b < a);
		}
	check_eq("arpl: all pairs of RPL", bad, 0);
	arpl_read_only();
}

/* ---- LDT, LTR, LGDT privileges -------------------------------------------------------------------------- */

static u64 ldt[8];
extern const u8 p_lldt[], p_ltr[], p_lgdt[], p_lidt[], p_lmsw[], p_clts[], p_cr0[], p_dr0[], p_hlt[], p_invd[], p_wrmsr[], p_invlpg[],
	p_sgdt[], p_str[], p_smsw[];
__asm__(".text\np_lldt: lldt %ax\nint $0x80\np_ltr: ltr %ax\nint $0x80\np_lgdt: lgdt (%esp)\nint $0x80\np_lidt: lidt (%esp)\nint $0x80\n"
	"p_lmsw: lmsw %ax\nint $0x80\np_clts: clts\nint $0x80\np_cr0: mov %cr0,%eax\nint $0x80\np_dr0: mov %dr0,%eax\nint $0x80\n"
	"p_hlt: hlt\nint $0x80\np_invd: wbinvd\nint $0x80\np_wrmsr: wrmsr\nint $0x80\np_invlpg: invlpg (%eax)\nint $0x80\n"
	"p_sgdt: sgdt -16(%esp)\nint $0x80\np_str: str %eax\nint $0x80\np_smsw: smsw %eax\nint $0x80\n");

static void system(void)
{
	static const struct { const u8 *code; const char *name; } priv[] = {
		{ p_lldt, "lldt" }, { p_ltr, "ltr" }, { p_lgdt, "lgdt" }, { p_lidt, "lidt" }, { p_lmsw, "lmsw" }, { p_clts, "clts" }, { p_cr0, "mov cr0" },
		{ p_dr0, "mov dr0" }, { p_hlt, "hlt" }, { p_invd, "wbinvd" }, { p_wrmsr, "wrmsr" }, { p_invlpg, "invlpg" } };
	for (unsigned k = 0; k < ARRAY_LEN(priv); k++)
		for (unsigned cpl = 1; cpl < 4; cpl++) {
			run_at(cpl, priv[k].code, 0);
			check_trap(fmt("%s at CPL %d: #GP(0)", priv[k].name, cpl), GP, 0);
		}
	run_at(3, p_sgdt, 0);
	check_trap("sgdt at CPL 3 without UMIP", DONE, 0);
	run_at(3, p_str, 0);
	check("str at CPL 3", trap.vec == DONE && trap.f.ax == TSS_SEL);
	run_at(3, p_smsw, 0);
	check_eq("smsw at CPL 3", (u16)trap.f.ax, (u16)read_cr0());
	if (has(7, 2, 2)) {
		write_cr4(read_cr4() | 0x800);
		run_at(3, p_sgdt, 0);
		check_trap("UMIP: sgdt at CPL 3", GP, 0);
		run_at(3, p_str, 0);
		check_trap("UMIP: str at CPL 3", GP, 0);
		run_at(3, p_smsw, 0);
		check_trap("UMIP: smsw at CPL 3", GP, 0);
		TRY(__asm__ volatile("smsw %%eax" : : : "eax"));
		check_trap("UMIP: smsw at CPL 0", NONE, 0);
		write_cr4(read_cr4() & ~0x800u);
	}
	/* LLDT */
	volatile u32 v;
	gdt[T] = desc((uptr)ldt, sizeof(ldt) - 1, A_LDT, 0);
	ldt[1] = desc((uptr)area, 0xffff, A_RW, F_B);
	TRY(__asm__ volatile("lldt %w0" : : "r"(sel(T, 0))));
	check_trap("lldt", NONE, 0);
	area[0] = 0x33;
	TRY(__asm__ volatile("mov %1,%%fs; movzbl %%fs:0,%0; sldt %%eax" : "=r"(v) : "r"(sel(1, 4)) : "eax"));
	check("a segment of the LDT", trap.vec == NONE && v == 0x33 && ((u8 *)&ldt[1])[5] == (A_RW | 1));
	TRY(__asm__ volatile("mov %0,%%fs" : : "r"(sel(8, 4))));
	check_trap("beyond the LDT: #GP(selector)", GP, sel(8, 4));
	TRY(__asm__ volatile("mov %0,%%fs" : : "r"(sel(0, 4))));
	check_trap("entry 0 of the LDT is no null selector", GP, sel(0, 4));
	TRY(__asm__ volatile("lldt %w0" : : "r"(sel(1, 4))));
	check_trap("lldt of an LDT selector: #GP", GP, sel(1, 4));
	TRY(__asm__ volatile("lldt %w0" : : "r"(DATA)));
	check_trap("lldt of a data segment: #GP", GP, DATA);
	gdt[T + 1] = desc((uptr)ldt, 63, A_LDT & 0x7f, 0);
	TRY(__asm__ volatile("lldt %w0" : : "r"(sel(T + 1, 0))));
	check_trap("lldt not present: #NP", NP, sel(T + 1, 0));
	TRY(__asm__ volatile("sldt %0" : "=r"(v)));
	check_eq("a failed lldt leaves LDTR", (u16)v, sel(T, 0));
	TRY(__asm__ volatile("lldt %w0; mov %1,%%fs" : : "r"(0), "r"(sel(1, 4))));
	check_trap("lldt 0: the LDT is gone", GP, sel(1, 4));
	/* LTR */
	TRY(__asm__ volatile("ltr %w0" : : "r"(TSS_SEL)));
	check_trap("ltr of a busy TSS: #GP", GP, TSS_SEL);
	TRY(__asm__ volatile("ltr %w0" : : "r"(0)));
	check_trap("ltr 0: #GP(0)", GP, 0);
	TRY(__asm__ volatile("ltr %w0" : : "r"(DATA)));
	check_trap("ltr of a data segment: #GP", GP, DATA);
	gdt[T + 1] = desc((uptr)&tss, 103, A_TSS32 & 0x7f, 0);
	TRY(__asm__ volatile("ltr %w0" : : "r"(sel(T + 1, 0))));
	check_trap("ltr not present: #NP", NP, sel(T + 1, 0));
	gdt[5] &= ~(2ull << 40);
	TRY(__asm__ volatile("ltr %w0" : : "r"(TSS_SEL)));
	check("ltr sets the busy bit", trap.vec == NONE && (u8)(gdt[5] >> 40) == 0x8b);
	/* LGDT, LIDT in 16-bit operand size take 24 bits of base. */
	struct { u16 limit; u32 base; u32 pad; } __attribute__((packed)) g = { 0x77, 0xff123456, 0 }, back = { 0, 0, 0 };
	__asm__ volatile("data16 lidt %1; sidt %0" : "=m"(back) : "m"(g));
	load_tables();
	check("16-bit lidt loads 24 bits of base", back.limit == 0x77 && back.base == 0x123456);
	__asm__ volatile("lidt %1; sidt %0" : "=m"(back) : "m"(g));
	load_tables();
	check("32-bit lidt loads 32", back.base == 0xff123456);
}

/* ---- direct far transfers ---------------------------------------------------------------------------------- */

static struct { u32 off; u16 s; } __attribute__((packed)) target;
extern const u8 far_jump[], far_call[], far_there[];
__asm__(".text\nfar_jump: ljmp *(%ebx)\nfar_call: lcall *(%ebx)\nfar_there: mov %cs,%eax\nint $0x80\n");

static void transfers(void)
{
	for (unsigned call = 0; call < 2; call++)
		for (unsigned cpl = 0; cpl < 4; cpl++) {
			unsigned bad = 0, first = 0, bad_cpl = 0, bad_ec = 0;
			for (unsigned a = 0x10; a < 256; a += (a & 15) == 15 ? 17 : 1)
				for (unsigned rpl = 0; rpl < 4; rpl++) {
					gdt[T] = desc(0, 0xfffff, a, F_G | F_B);
					unsigned dpl = a >> 5 & 3;
					bool code = (a & 0x18) == 0x18, conforming = a & 4;
					int want = !code ? GP : conforming ? (dpl > cpl ? GP : DONE) : (rpl > cpl || dpl != cpl ? GP : DONE);
					if (want == DONE && !(a & 0x80))
						want = NP;
					target.off = (uptr)far_there;
					target.s = sel(T, rpl);
					struct regs r = user_regs(call ? far_call : far_jump);
					r.cs = codes[cpl];
					r.ss = datas[cpl];
					if (!cpl)
						r.ds = r.es = DATA;
					r.bx = (uptr)&target;
					int got = go(&r);
					if (got != want && !bad++)
						first = a << 4 | rpl;
					if (got == DONE && (u16)trap.f.ax != sel(T, cpl))
						bad_cpl++;
					if (got != DONE && trap.err != sel(T, 0))
						bad_ec++;
				}
			check_eq(fmt("far %s at CPL %d: every code access byte and RPL", call ? "call" : "jmp", cpl), bad ? first : 0x10000, 0x10000);
			check_eq(fmt("far %s at CPL %d: RPL of CS becomes CPL, conforming code too", call ? "call" : "jmp", cpl), bad_cpl, 0);
			check_eq(fmt("far %s at CPL %d: error codes", call ? "call" : "jmp", cpl), bad_ec, 0);
		}
	gdt[T] = desc(0, 0xfff, A_XR, F_B);
	target.off = 0x1000;
	target.s = sel(T, 0);
	TRY(__asm__ volatile("ljmp *%0" : : "m"(target)));
	check_trap("far jmp beyond the limit: #GP(0), in the old segment", GP, 0);
	check_eq("CS is the old one", trap.f.cs, CODE);
	target.s = 3;
	TRY(__asm__ volatile("ljmp *%0" : : "m"(target)));
	check_trap("far jmp to a null selector: #GP(0)", GP, 0);
	TRY(__asm__ volatile(".byte 0xff,0xe8")); /* ljmp eax */
	check_trap("far jmp with a register operand: #UD", UD, 0);
	TRY(__asm__ volatile(".byte 0xff,0xd8"));
	check_trap("far call with a register operand: #UD", UD, 0);
}

/* The double fault of limits() needs a stack of its own: a task gate. */
static struct tss32 df_task;
static u8 df_stack[2048];
extern void df_entry(void);
__asm__(".text\ndf_entry: clts\n" /* a task switch set TS */
	"movb $0x89,gdt+5*8+5\nmovb $0x89,gdt+6*8+5\nmov $0x28,%eax\nltr %ax\nmovl $8,trap\njmp catch_return\n");

static void set_df_task(void)
{
	df_task = (struct tss32){ .esp = (uptr)df_stack + sizeof(df_stack), .ss = DATA, .ds = DATA, .es = DATA, .fs = DATA, .gs = DATA, .cs = CODE,
				  .eip = (uptr)df_entry, .eflags = 2, .iomap = 104 };
	gdt[6] = desc((uptr)&df_task, 103, A_TSS32, 0);
	idt[8] = gate(DF_SEL, 0, A_TASK, 0);
}

int main(void)
{
	set_df_task();
	loads();
	limits();
	stacks();
	hidden();
	queries();
	system();
	transfers();
	return 0;
}
