/* Accesses across a page boundary: each size and kind at each offset, over two pages that are not
 * neighbours in physical memory; the second, the first or both absent, read-only, supervisor's or
 * user's (SMAP). A fault has CR2 at the first byte that cannot be had, and nothing has changed:
 * no register, no byte of either page. Instructions and strings across pages; RAM beside what is
 * no RAM. SDM vol. 3 4.7, 8.1.1. */
#include "map.h"

const char guest_name[] = "cross";

#define VA (MAP_VA + 0x10000)
#define VB (VA + 4096)
static u8 page[4][4096] __attribute__((aligned(4096))); /* mapped: 0 and 2 */
static u8 io[64] __attribute__((aligned(64)));
static bool avx, avx512, smap;

/* ---- the instructions: RBX the address, RSI io, RAX io's first 8 bytes, RSP where it counts ---- */

#define OP(name, before, insn, after) \
	extern const u8 o_##name[], o_##name##_at[]; \
	__asm__(".text\no_" #name ": " before "\no_" #name "_at: " insn "\n" after "\nint $0x80\n")
OP(ld2, "", "movw (%rbx),%ax", "movw %ax,(%rsi)");
OP(ld4, "", "movl (%rbx),%eax", "movl %eax,(%rsi)");
OP(ld8, "", "movq (%rbx),%rax", "movq %rax,(%rsi)");
OP(ldmm, "movq (%rsi),%mm0", "movq (%rbx),%mm0", "movq %mm0,(%rsi); emms");
OP(ld16, "movups (%rsi),%xmm0", "movups (%rbx),%xmm0", "movups %xmm0,(%rsi)");
OP(ld32, "movups (%rsi),%xmm0", "vmovups (%rbx),%ymm0", "vmovups %ymm0,(%rsi)");
OP(ld64, "movups (%rsi),%xmm0", "vmovups (%rbx),%zmm0", "vmovups %zmm0,(%rsi)");
OP(fld, "", "fldt (%rbx)", "fstpt (%rsi)");
OP(fild, "", "fildll (%rbx)", "fistpll (%rsi)");
OP(pop, "", "pop %rax", "mov %rax,(%rsi)");
OP(popw, "", "popw %ax", "movw %ax,(%rsi)");
OP(leave, "", "leave", "mov %rbp,(%rsi)");
OP(lods, "", "lodsq", "mov %rax,(%rdi)");
OP(movs_ld, "", "movsq", "");
OP(st2, "", "movw %ax,(%rbx)", "");
OP(st4, "", "movl %eax,(%rbx)", "");
OP(st8, "", "movq %rax,(%rbx)", "");
OP(movnti, "", "movnti %rax,(%rbx)", "");
OP(stmm, "movq (%rsi),%mm0", "movq %mm0,(%rbx)", "emms");
OP(st16, "movups (%rsi),%xmm0", "movups %xmm0,(%rbx)", "");
OP(st32, "vmovups (%rsi),%ymm0", "vmovups %ymm0,(%rbx)", "");
OP(st64, "vmovups (%rsi),%zmm0", "vmovups %zmm0,(%rbx)", "");
OP(fstp, "fldt (%rsi)", "fstpt (%rbx)", "");
OP(fistp, "fildll (%rsi)", "fistpll (%rbx)", "");
OP(push, "", "push %rax", "");
OP(pushw, "", "pushw %ax", "");
OP(pushm, "", "pushq (%rsi)", "");
OP(enter, "", "enter $0,$0", "");
OP(stos, "", "stosq", "");
OP(movs_st, "", "movsq", "");
OP(add2, "", "addw %ax,(%rbx)", "");
OP(add4, "", "lock addl %eax,(%rbx)", "");
OP(add8, "", "lock addq %rax,(%rbx)", "");
OP(xchg, "", "xchgq %rax,(%rbx)", "");
OP(xadd, "", "lock xaddq %rax,(%rbx)", "");
OP(cmpxchg, "", "lock cmpxchgl %ecx,(%rbx)", "");
OP(cmpxchg8b, "", "lock cmpxchg8b (%rbx)", "");
OP(notm, "", "notq (%rbx)", "");
OP(shl, "", "shlq $1,(%rbx)", "");
OP(bts, "", "lock btsl $31,(%rbx)", "");
OP(ret, "", "ret", "");
OP(jmpm, "", "jmp *(%rbx)", "");
OP(callm, "", "call *(%rbx)", "");
OP(call, "", "call o_to", "o_call_back:");
extern const u8 o_to[], o_call_back[];
__asm__(".text\no_to: mov $0x1234,%eax\nint $0x80\n");

enum kind { LD, ST, RMW, TO }; /* TO: an address of code is loaded */
enum { RBX, SP, SP_ABOVE, RBP, RSI, RDI };
static const struct op { const char *name; const u8 *code, *at; u8 kind, size, where; } ops[] = {
#define LINE(text, name, kind, size, where) { text, o_##name, o_##name##_at, kind, size, where }
	LINE("load", ld2, LD, 2, RBX), LINE("load", ld4, LD, 4, RBX), LINE("load", ld8, LD, 8, RBX), LINE("MMX load", ldmm, LD, 8, RBX),
	LINE("SSE load", ld16, LD, 16, RBX), LINE("AVX load", ld32, LD, 32, RBX), LINE("AVX-512 load", ld64, LD, 64, RBX), LINE("fld", fld, LD, 10, RBX),
	LINE("fild", fild, LD, 8, RBX), LINE("pop", pop, LD, 8, SP), LINE("popw", popw, LD, 2, SP), LINE("leave", leave, LD, 8, RBP),
	LINE("lodsq", lods, LD, 8, RSI), LINE("movsq from", movs_ld, LD, 8, RSI),
	LINE("store", st2, ST, 2, RBX), LINE("store", st4, ST, 4, RBX), LINE("store", st8, ST, 8, RBX), LINE("movnti", movnti, ST, 8, RBX),
	LINE("MMX store", stmm, ST, 8, RBX), LINE("SSE store", st16, ST, 16, RBX), LINE("AVX store", st32, ST, 32, RBX), LINE("AVX-512 store", st64, ST, 64, RBX),
	LINE("fstp", fstp, ST, 10, RBX), LINE("fistp", fistp, ST, 8, RBX), LINE("push", push, ST, 8, SP_ABOVE), LINE("pushw", pushw, ST, 2, SP_ABOVE),
	LINE("push m64", pushm, ST, 8, SP_ABOVE), LINE("enter", enter, ST, 8, SP_ABOVE), LINE("stosq", stos, ST, 8, RDI), LINE("movsq to", movs_st, ST, 8, RDI),
	LINE("call", call, ST, 8, SP_ABOVE),
	LINE("add", add2, RMW, 2, RBX), LINE("lock add", add4, RMW, 4, RBX), LINE("lock add", add8, RMW, 8, RBX), LINE("xchg", xchg, RMW, 8, RBX),
	LINE("lock xadd", xadd, RMW, 8, RBX), LINE("lock cmpxchg, unequal", cmpxchg, RMW, 4, RBX), LINE("lock cmpxchg8b", cmpxchg8b, RMW, 8, RBX),
	LINE("not", notm, RMW, 8, RBX), LINE("shl", shl, RMW, 8, RBX), LINE("lock bts", bts, RMW, 4, RBX),
	LINE("ret", ret, TO, 8, SP), LINE("jmp m64", jmpm, TO, 8, RBX), LINE("call m64", callm, TO, 8, RBX),
};

/* What RMW makes of the old value, from RAX. */
static u64 changed(const struct op *o, u64 old, u64 ax)
{
	if (o->code == o_xchg)
		return ax;
	if (o->code == o_cmpxchg)
		return old;
	if (o->code == o_cmpxchg8b)
		return 0x5566778811223344; /* ECX:EBX is set so */
	if (o->code == o_notm)
		return ~old;
	if (o->code == o_shl)
		return old << 1;
	if (o->code == o_bts)
		return old | 1u << 31;
	return old + ax;
}

/* ---- one run ---------------------------------------------------------------------------------- */

enum { EDGE = 128 };
static u8 model[2 * EDGE]; /* around the boundary */
static u64 seed;
static u8 next_byte(void) { return (u8)((seed = seed * 6364136223846793005ull + 1442695040888963407ull) >> 56); }
static void fill(void)
{
	for (unsigned k = 0; k < EDGE; k++) {
		page[0][4096 - EDGE + k] = model[k] = next_byte();
		page[2][k] = model[EDGE + k] = next_byte();
		page[1][k] = page[1][4096 - EDGE + k] = page[3][k] = 0xa5;
	}
	for (unsigned k = 0; k < 64; k++)
		io[k] = next_byte();
}
/* Both pages as the model has them, their physical neighbours untouched. */
static bool memory_ok(void)
{
	bool ok = !memcmp(page[0] + 4096 - EDGE, model, EDGE) && !memcmp(page[2], model + EDGE, EDGE);
	for (unsigned k = 0; k < EDGE; k++)
		ok &= page[1][k] == 0xa5 && page[1][4096 - EDGE + k] == 0xa5 && page[3][k] == 0xa5;
	return ok;
}

struct how { const char *name; u64 first, second; bool cpl3, smap, ac; };
static const struct how hows[] = {
	{ "both there", P | W | U, P | W | U, false, false, false },
	{ "second absent", P | W | U, 0, false, false, false },
	{ "second absent, CPL 3", P | W | U, 0, true, false, false },
	{ "second read-only", P | W | U, P | U, false, false, false },
	{ "second read-only, CPL 3", P | W | U, P | U, true, false, false },
	{ "second supervisor's, CPL 3", P | W | U, P | W, true, false, false },
	{ "second user's, SMAP", P | W, P | W | U, false, true, false },
	{ "second user's, SMAP, AC", P | W, P | W | U, false, true, true },
	{ "first absent", 0, P | W | U, false, false, false },
	{ "first read-only", P | U, P | W | U, false, false, false },
	{ "both absent", 0, 0, false, false, false },
};

/* Error code, or -1. */
static int fault_of(u64 bits, const struct how *h, bool write)
{
	int ec = (write ? EC_W : 0) | (h->cpl3 ? EC_U : 0);
	if (!(bits & P))
		return ec;
	if ((h->cpl3 && !(bits & U)) || (write && !(bits & W)) || (h->smap && !h->ac && (bits & U)))
		return ec | EC_P;
	return -1;
}

static struct regs regs_for(const struct op *o, u64 va, const struct how *h)
{
	u64 up = h->cpl3 ? USER_VA : 0;
	struct regs r = user_regs(o->code);
	r.ip += up;
	r.sp += up;
	if (!h->cpl3) {
		r.cs = CODE;
		r.ss = r.ds = r.es = DATA;
	}
	r.flags = 2 | (h->ac ? FL_AC : 0);
	r.cx = 0x1122334455667788;
	r.dx = 0x99aabbccddeeff00;
	r.r8 = 0x8888;
	r.si = r.di = (uptr)io + up;
	memcpy(&r.ax, io, 8);
	r.bp = r.ax;
	*(o->where == RBX ? &r.bx : o->where == RBP ? &r.bp : o->where == RSI ? &r.si : o->where == RDI ? &r.di : &r.sp) = va + (o->where == SP_ABOVE ? o->size : 0);
	return r;
}

static bool same_regs(const struct frame *f, const struct regs *r)
{
	return f->ax == r->ax && f->bx == r->bx && f->cx == r->cx && f->dx == r->dx && f->si == r->si && f->di == r->di && f->bp == r->bp && f->sp == r->sp &&
	       f->r8 == r->r8 && (f->flags & 0xfff) == (r->flags & 0xfff);
}
static unsigned x87_top(void) { u16 sw; __asm__ volatile("fnstsw %0" : "=m"(sw)); return sw >> 11 & 7; }

/* 0, or what was wrong: 1 the vector or the place, 2 error code or CR2, 3 registers, 4 memory, 5 result. */
static unsigned run(const struct op *o, unsigned off, const struct how *h)
{
	u64 va = VA + off, to = (uptr)o_to + (h->cpl3 ? USER_VA : 0), old = 0;
	u8 *m = model + off + EDGE - 4096, xmm[16];
	static u8 in[64], stored[64];
	fill();
	if (o->kind == TO)
		memcpy(m, &to, 8);
	memcpy(&old, m, o->size < 8 ? o->size : 8);
	memcpy(page[0] + 4096 - EDGE, model, EDGE);
	memcpy(page[2], model + EDGE, EDGE);
	memcpy(in, io, 64);
	struct regs r = regs_for(o, va, h);
	if (o->code == o_cmpxchg)
		r.ax = (u32)~old;
	if (o->code == o_cmpxchg8b) { /* RBX is the address: a low half of its own choice */
		r.ax = (u32)old;
		r.dx = old >> 32;
		r.cx = 0x55667788;
	}
	bool write = o->kind == ST || o->kind == RMW, one = off + o->size <= 4096;
	int f1 = fault_of(h->first, h, write), f2 = one ? -1 : fault_of(h->second, h, write);
	if (off >= 4096) {
		f1 = fault_of(h->second, h, write);
		f2 = -1;
	}
	map_page(VA, page[0], h->first);
	map_page(VB, page[2], h->second);
	if (!(h->first & P))
		*pte(VA) = 0;
	if (!(h->second & P))
		*pte(VB) = 0;
	memcpy(stored, in, 64);
	if (o->code == o_call) {
		u64 back = (uptr)o_call_back + (h->cpl3 ? USER_VA : 0);
		memcpy(stored, &back, 8);
	}
	__asm__ volatile("fninit");
	if (h->smap)
		write_cr4(read_cr4() | CR4_SMAP);
	go(&r);
	__asm__ volatile("movups %%xmm0,%0" : "=m"(xmm));
	if (h->smap)
		write_cr4(read_cr4() & ~(u64)CR4_SMAP);
	if (f1 >= 0 || f2 >= 0) {
		if (trap.vec != PF || trap.f.ip != (uptr)o->at + (h->cpl3 ? USER_VA : 0))
			return 1;
		if (trap.err != (u32)(f1 >= 0 ? f1 : f2) || trap.cr2 != (f1 >= 0 ? va : VB))
			return 2;
		if (!same_regs(&trap.f, &r) || (o->size >= 16 && memcmp(xmm, in, 16)) || x87_top() != (o->code == o_fstp || o->code == o_fistp ? 7 : 0))
			return 3;
		return memory_ok() && !memcmp(io, in, 64) ? 0 : 4;
	}
	if (trap.vec != DONE)
		return 1;
	if (o->kind == LD && memcmp(io, m, o->size))
		return 5;
	if (o->kind == TO && trap.f.ax != 0x1234)
		return 5;
	if (o->kind == ST)
		memcpy(m, stored, o->size);
	if (o->kind == RMW) {
		u64 v = changed(o, old, r.ax);
		if (o->code == o_cmpxchg8b)
			v = 0x5566778800000000 | (u32)r.bx;
		memcpy(m, &v, o->size);
		if ((o->code == o_xchg || o->code == o_xadd) && trap.f.ax != old)
			return 5;
	}
	if (x87_top())
		return 3;
	return memory_ok() ? 0 : 4;
}

static void accesses(void)
{
	for (unsigned k = 0; k < ARRAY_LEN(ops); k++) {
		const struct op *o = &ops[k];
		if ((o->size == 32 && !avx) || (o->size == 64 && !avx512)) {
			skip(o->name, "not there");
			continue;
		}
		for (unsigned n = 0; n < ARRAY_LEN(hows); n++) {
			unsigned wrong = 0;
			if (hows[n].smap && !smap)
				continue;
			for (unsigned off = 4096 - o->size; off <= 4096 && !wrong; off++) {
				unsigned what = run(o, off, &hows[n]);
				if (what)
					wrong = off << 4 | what;
			}
			check_eq(fmt("%s of %u bytes, each offset: %s", o->name, o->size, hows[n].name), wrong, 0);
		}
	}
	map_page(VA, page[0], P | W | U);
	map_page(VB, page[2], P | W | U);
}

/* ---- instructions ------------------------------------------------------------------------------- */

/* mov rax, imm64; ret, at each split. */
static void fetches(void)
{
	static const struct { u64 bits; bool cpl3, smep; int ec; const char *name; } hows[] = {
		{ P | W, false, false, -1, "both there" }, { 0, false, false, EC_I, "second absent" }, { P | W | NX, false, false, EC_I | EC_P, "second NX" },
		{ P | W, true, false, EC_I | EC_P | EC_U, "second supervisor's, CPL 3" }, { P | U, true, false, -1, "both there, CPL 3" },
		{ P | U, false, true, EC_I | EC_P, "second user's, SMEP" } };
	static const u8 insn[] = { 0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xcd, 0x80 };
	bool smep = has(7, 1, 7);
	for (unsigned k = 0; k < ARRAY_LEN(hows); k++) {
		unsigned bad = 0, bad_retry = 0;
		if (hows[k].smep && !smep)
			continue;
		for (unsigned in_first = 1; in_first < 10; in_first++) {
			memset(page, 0xcc, sizeof(page));
			memcpy(page[0] + 4096 - in_first, insn, in_first);
			memcpy(page[2], insn + in_first, sizeof(insn) - in_first);
			map_page(VA, page[0], P | W | (hows[k].cpl3 ? U : 0));
			map_page(VB, page[2], hows[k].bits);
			struct regs r = user_regs((u8 *)VB - in_first);
			r.sp += USER_VA;
			if (!hows[k].cpl3) {
				r.cs = CODE;
				r.ss = DATA;
				r.sp -= USER_VA;
			}
			r.ax = 0x77;
			if (hows[k].smep)
				write_cr4(read_cr4() | CR4_SMEP);
			go(&r);
			if (hows[k].smep)
				write_cr4(read_cr4() & ~(u64)CR4_SMEP);
			if (hows[k].ec < 0) {
				bad += trap.vec != DONE || trap.f.ax != 0x1122334455667788;
				continue;
			}
			bad += trap.vec != PF || trap.err != (u32)hows[k].ec || trap.cr2 != VB || trap.f.ip != r.ip || trap.f.ax != 0x77;
			map_page(VB, page[2], P | (hows[k].cpl3 ? U : 0));
			go(&r);
			bad_retry += trap.vec != DONE || trap.f.ax != 0x1122334455667788;
		}
		check_eq(fmt("an instruction over two pages, each split: %s", hows[k].name), bad, 0);
		if (hows[k].ec >= 0)
			check_eq(fmt("and once that is mended: %s", hows[k].name), bad_retry, 0);
	}
	map_page(VA, page[0], P | W | U);
	map_page(VB, page[2], P | W | U);
}

/* ---- strings -------------------------------------------------------------------------------------- */

#define SA (VA + 0x10000)
static u8 source[4][4096] __attribute__((aligned(4096)));
static u8 string_code[16];

/* The bytes of REP MOVS or STOS of 1 << size bytes, then INT DONE. */
static const u8 *string_op(bool movs, unsigned size)
{
	u8 *p = string_code;
	*p++ = 0xf3;
	if (size == 1)
		*p++ = 0x66;
	if (size == 3)
		*p++ = 0x48;
	*p++ = (u8)((movs ? 0xa4 : 0xaa) + (size != 0));
	*p++ = 0xcd;
	*p = 0x80;
	return string_code;
}

static void strings(void)
{
	map_page(SA, source[0], P | W | U);
	map_page(SA + 4096, source[2], P | W | U);
	for (unsigned size = 0; size < 4; size++)
		for (unsigned kind = 0; kind < 4; kind++) { /* bit 0: MOVS, bit 1: backwards */
			unsigned bad = 0, bad_hole = 0, n = 1u << size, count = 7;
			int step = kind & 2 ? -(int)n : (int)n;
			for (int d = -20; d <= 20; d++)
				for (int s = kind & 1 ? -20 : 20; s <= 20; s += 5)
					for (unsigned hole = 0; hole < 2; hole++) {
						fill();
						for (unsigned k = 0; k < EDGE; k++) {
							source[0][4096 - EDGE + k] = next_byte();
							source[2][k] = next_byte();
						}
						struct regs r = user_regs(string_op(kind & 1, size));
						r.cs = CODE;
						r.ss = r.ds = r.es = DATA;
						r.di = VB + (u64)(i64)d;
						r.si = SA + 4096 + (u64)(i64)s;
						r.cx = count;
						r.ax = 0x8877665544332211;
						r.flags = 2 | (kind & 2 ? FL_DF : 0);
						map_page(VA, page[0], hole && step < 0 ? 0 : P | W);
						map_page(VB, page[2], hole && step > 0 ? 0 : P | W);
						unsigned done = 0;
						for (; done < count; done++) {
							int at = d + step * (int)done, from = s + step * (int)done;
							if (hole && (step > 0 ? at + (int)n > 0 : at < 0))
								break;
							for (unsigned k = 0; k < n; k++) {
								int f = from + (int)k;
								model[EDGE + at + (int)k] = !(kind & 1) ? (u8)(r.ax >> 8 * k) : f < 0 ? source[0][4096 + f] : source[2][f];
							}
						}
						go(&r);
						bool ok = memory_ok() && trap.f.cx == count - done && trap.f.di == r.di + (u64)(i64)(step * (int)done) &&
							  trap.f.si == r.si + (kind & 1 ? (u64)(i64)(step * (int)done) : 0);
						if (done == count)
							bad += !ok || trap.vec != DONE;
						else
							bad_hole += !ok || trap.vec != PF || trap.f.ip != r.ip || trap.err != EC_W ||
								    trap.cr2 != (step > 0 && trap.f.di < VB ? VB : trap.f.di);
					}
			check_eq(fmt("rep %s of %u bytes, %s, over pages", kind & 1 ? "movs" : "stos", n, kind & 2 ? "down" : "up"), bad, 0);
			check_eq(fmt("rep %s of %u bytes, %s, into a hole", kind & 1 ? "movs" : "stos", n, kind & 2 ? "down" : "up"), bad_hole, 0);
		}
	map_page(VA, page[0], P | W | U);
	map_page(VB, page[2], P | W | U);
}

/* ---- what is no RAM --------------------------------------------------------------------------------- */

static void beside_ram(void)
{
	/* f0000000: nothing there, all ones; the HPET's first register. */
	volatile u32 *hpet = (u32 *)0xfed00000;
	u32 low = hpet[0], high = hpet[1];
	u64 reg = (u64)high << 32 | low;
	unsigned bad = 0, bad_st = 0, bad_hpet = 0, bad_order = 0;
	for (unsigned off = 4089; off < 4096; off++) {
		u64 v = 0, want = ~0ull;
		fill();
		map_page(VB, (void *)0xf0000000, P | W | U);
		memcpy(&want, page[0] + off, 4096 - off);
		TRY(v = *(volatile u64 *)(VA + off));
		bad += trap.vec != NONE || v != want;
		TRY(*(volatile u64 *)(VA + off) = 0x0102030405060708);
		for (unsigned k = off; k < 4096; k++)
			bad_st += page[0][k] != 8 - (k - off);
		fill();
		map_page(VB, (void *)0xfed00000, P | W | U);
		want = reg << 8 * (4096 - off);
		memcpy(&want, page[0] + off, 4096 - off);
		TRY(v = *(volatile u64 *)(VA + off));
		bad_hpet += trap.vec != NONE || v != want;
		/* And from what is no RAM into RAM. */
		map_page(VA, (void *)0xf0000000, P | W | U);
		map_page(VB, page[2], P | W | U);
		want = ~0ull;
		memcpy((u8 *)&want + (4096 - off), page[2], 8 - (4096 - off));
		TRY(v = *(volatile u64 *)(VA + off));
		bad_order += trap.vec != NONE || v != want;
		map_page(VA, page[0], P | W | U);
	}
	check_eq("a load from RAM into nothing", bad, 0);
	check_eq("a store from RAM into nothing", bad_st, 0);
	check_eq("a load from RAM into a device", bad_hpet, 0);
	check_eq("a load from nothing into RAM", bad_order, 0);
	/* A device's page absent behind RAM: nothing is written. */
	fill();
	map_page(VB, (void *)0xfed00000, P | U);
	TRY(*(volatile u64 *)(VA + 4092) = 0);
	check("a store into a read-only device page", trap.vec == PF && trap.err == (EC_P | EC_W) && trap.cr2 == VB && memory_ok());
	map_page(VB, page[2], P | W | U);
}

/* REP MOVS between pages a power of two apart, which caches of translations put into one place. */
static void far_copies(void)
{
	u8 *from = (u8 *)0x2000000;
	unsigned bad = 0;
	for (uptr apart = 0x100000; apart <= 0x4000000; apart *= 2) {
		u8 *to = from + apart;
		for (unsigned size = 1; size <= 8; size *= 2) {
			for (unsigned k = 0; k < 9000; k++) {
				from[k] = (u8)(k * 7 + size);
				to[k] = 0;
			}
			uptr n = 8192 / size, left;
			u8 *s = from + 5, *d = to + 100;
			if (size == 1)
				__asm__ volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(n) : : "memory");
			else if (size == 2)
				__asm__ volatile("rep movsw" : "+S"(s), "+D"(d), "+c"(n) : : "memory");
			else if (size == 4)
				__asm__ volatile("rep movsl" : "+S"(s), "+D"(d), "+c"(n) : : "memory");
			else
				__asm__ volatile("rep movsq" : "+S"(s), "+D"(d), "+c"(n) : : "memory");
			bad += n != 0 || s != from + 5 + 8192 || d != to + 100 + 8192;
			bad += memcmp(from + 5, to + 100, 8192) != 0 || to[99] || to[100 + 8192];
			/* And backwards. */
			for (unsigned k = 0; k < 9000; k++)
				to[k] = 0;
			left = 8192 / size;
			s = from + 8192 + 5 - size;
			d = to + 8192 + 9 - size;
			if (size == 8)
				__asm__ volatile("std; rep movsq; cld" : "+S"(s), "+D"(d), "+c"(left) : : "memory");
			else if (size == 4)
				__asm__ volatile("std; rep movsl; cld" : "+S"(s), "+D"(d), "+c"(left) : : "memory");
			else if (size == 2)
				__asm__ volatile("std; rep movsw; cld" : "+S"(s), "+D"(d), "+c"(left) : : "memory");
			else
				__asm__ volatile("std; rep movsb; cld" : "+S"(s), "+D"(d), "+c"(left) : : "memory");
			bad += left != 0 || memcmp(from + 5, to + 9, 8192) != 0 || to[8] || to[9 + 8192];
		}
	}
	check_eq("REP MOVS between pages far apart", bad, 0);
}

int main(void)
{
	map_init();
	map_supervisor();
	map_own_stacks();
	write_cr0(read_cr0() | 0x10000);
	smap = has(7, 1, 20);
	if (has(1, 2, 28)) {
		avx = true;
		avx512 = has(7, 1, 16);
		write_cr4(read_cr4() | CR4_OSXSAVE);
		__asm__ volatile("xsetbv" : : "a"(avx512 ? 0xe7 : 7), "c"(0), "d"(0));
	}
	accesses();
	fetches();
	strings();
	beside_ram();
	far_copies();
	return 0;
}
