/* Paging of 32-bit guests: two levels with and without PSE and PSE-36, and PAE; the product of
 * paging.h for each; PDPTE registers; A and D. SDM vol. 3 4.3, 4.4, 4.6 to 4.8. */
#include "paging.h"

const char guest_name[] = "paging32";

#define VA 0x40001000u
#define ALIAS 0x80000000u   /* the guest's memory once more, for CPL 3 */
static u32 dir[1024] __attribute__((aligned(4096))), ident[1024] __attribute__((aligned(4096))), alias[1024] __attribute__((aligned(4096))),
	table[1024] __attribute__((aligned(4096)));
static u64 pdpt[4] __attribute__((aligned(32))), pds[4][512] __attribute__((aligned(4096))), pae_ident[1024] __attribute__((aligned(4096))),
	pae_alias[1024] __attribute__((aligned(4096))), pae_table[512] __attribute__((aligned(4096)));
static u8 page[2][4096] __attribute__((aligned(4096)));
static bool smep, smap;
enum { PSE = 0x10, PAE = 0x20 };

extern const u8 u_read[], u_write[], u_fetch[];
__asm__(".text\nu_read: movb (%edi),%al\nint $0x80\nu_write: movb %al,(%edi)\nint $0x80\nu_fetch: call *%edi\nint $0x80\n");

static int access_va(u32 va, enum access a, const struct rules *r)
{
	struct regs g = user_regs(a == READ ? u_read : a == WRITE ? u_write : u_fetch);
	if (r->cpl3) {
		g.ip += ALIAS;
		g.sp += ALIAS;
	} else {
		g.cs = CODE;
		g.ds = g.es = g.fs = g.gs = DATA;
	}
	g.di = va;
	g.ax = 0xc3;
	g.flags = 2 | (r->ac ? FL_AC : 0);
	return go(&g);
}

static uptr cr4_base;
static void set_mode(const struct rules *r)
{
	write_cr0(r->wp ? read_cr0() | 0x10000 : read_cr0() & ~0x10000ul);
	write_cr4(cr4_base | (r->smep ? 1ul << 20 : 0) | (r->smap ? 1ul << 21 : 0));
	if (cr4_base & PAE)
		wrmsr(EFER, r->nxe ? 0x800 : 0);
}
static const struct rules plain;
static void flush(void) { write_cr3(read_cr3()); }
static void paging_off(void) { write_cr0(read_cr0() & ~0x80010000ul); write_cr4(0); wrmsr(EFER, 0); }

static void on32(uptr cr4)
{
	for (u32 k = 0; k < 1024; k++) {
		ident[k] = k << 12 | P | W | A | D;
		alias[k] = k << 12 | P | W | U | A | D;
	}
	memset(dir, 0, sizeof(dir));
	dir[0] = (uptr)ident | P | W | A;
	dir[ALIAS >> 22] = (uptr)alias | P | W | U | A;
	cr4_base = cr4;
	write_cr4(cr4);
	write_cr3((uptr)dir);
	write_cr0(read_cr0() | 0x80000000);
}

static void map32(bool big)
{
	dir[VA >> 22] = big ? 0x00400000 | P | W | U | BIG : (uptr)table | P | W | U;
	table[1] = (uptr)page[0] | P | W | U;
	table[2] = (uptr)page[1] | P | W | U;
}

static void onpae(void)
{
	for (u32 k = 0; k < 1024; k++) {
		pae_ident[k] = k << 12 | P | W | A | D;
		pae_alias[k] = k << 12 | P | W | U | A | D;
	}
	for (unsigned k = 0; k < 4; k++)
		pdpt[k] = (uptr)pds[k] | P;
	for (unsigned k = 0; k < 2; k++) {
		pds[0][k] = ((uptr)pae_ident + 4096 * k) | P | W | A;
		pds[2][k] = ((uptr)pae_alias + 4096 * k) | P | W | U | A;
	}
	cr4_base = PAE;
	write_cr4(PAE);
	write_cr3((uptr)pdpt);
	write_cr0(read_cr0() | 0x80000000);
}
static void mappae(bool big)
{
	pds[1][0] = big ? 0x00400000 | P | W | U | BIG : (uptr)pae_table | P | W | U;
	pae_table[1] = (uptr)page[0] | P | W | U;
	pae_table[2] = (uptr)page[1] | P | W | U;
}

/* wide: 64-bit entries. */
static void product(const char *what, bool wide, bool big)
{
	u32 *e32[2] = { &dir[VA >> 22], &table[1] };
	u64 *e64[2] = { &pds[1][0], &pae_table[1] };
	unsigned n = big ? 1 : 2;
	u32 va = big ? VA & ~0xfffu : VA;
	wide ? mappae(big) : map32(big);
	for (unsigned m = 0; m < (wide ? 64 : 32); m++) {
		struct rules r = { .cpl3 = m & 1, .wp = m >> 1 & 1, .smep = m >> 2 & 1, .smap = m >> 3 & 1, .ac = m >> 4 & 1, .nxe = m >> 5 & 1 };
		if ((r.smep && !smep) || (r.smap && !smap))
			continue;
		unsigned bad = 0, bad_ec = 0, bad_cr2 = 0, bad_ad = 0, first = 0;
		unsigned product = 1u << (2 * n), singles = n * (wide ? 3 : 1);
		for (unsigned c = 0; c < product + singles; c++) {
			struct entry x[2];
			for (unsigned k = 0; k < n; k++)
				x[k] = c < product ? (struct entry){ true, c >> (2 * k) & 1, c >> (2 * k + 1) & 1, false, false } : (struct entry){ true, true, true, false, false };
			if (c >= product) {
				unsigned s = c - product;
				*(s / n == 0 ? &x[s % n].p : s / n == 1 ? &x[s % n].nx : &x[s % n].rsvd) ^= 1;
			}
			for (enum access a = READ; a <= FETCH; a++) {
				for (unsigned k = 0; k < n; k++) {
					u32 bits = (x[k].p ? P : 0) | (x[k].w ? W : 0) | (x[k].u ? U : 0);
					if (wide)
						*e64[k] = (*e64[k] & 0xfffff000 & ~0ull) | (big ? BIG : 0) | bits | (x[k].nx ? 1ull << 63 : 0) | (x[k].rsvd ? 1ull << 60 : 0);
					else
						*e32[k] = (*e32[k] & 0xfffff000) | (big ? BIG : 0) | bits;
				}
				set_mode(&r);
				__asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
				int want = expect(x, n, a, &r, 0), got = access_va(va, a, &r);
				u32 err = trap.err;
				uptr cr2 = trap.cr2;
				set_mode(&plain);
				bool ok = want < 0 ? got == DONE : got == PF;
				if (!ok && !bad++)
					first = c << 4 | a;
				if (ok && want >= 0) {
					bad_ec += err != (u32)want;
					bad_cr2 += cr2 != va;
				}
				u32 leaf = wide ? (u32)*e64[n - 1] : *e32[n - 1], top = wide ? (u32)*e64[0] : *e32[0];
				if (ok && want < 0)
					bad_ad += !(leaf & A) || !(top & A) || ((leaf & D) != 0) != (a == WRITE) || (!big && (top & D));
				else if (ok)
					bad_ad += (leaf & D) != 0;
			}
		}
		const char *name = fmt("%s: CPL %d WP %d SMEP %d SMAP %d AC %d NXE %d", what, r.cpl3 ? 3 : 0, r.wp, r.smep, r.smap, r.ac, r.nxe);
		if (bad)
			say("first wrong: case %x access %x\n", first >> 4, first & 15);
		check_eq(name, bad, 0);
		check_eq(fmt("%s: error codes, CR2", name), bad_ec << 16 | bad_cr2, 0);
		check_eq(fmt("%s: A and D", name), bad_ad, 0);
	}
}

static void pse(void)
{
	volatile u32 v = 0;
	/* Without CR4.PSE bit 7 of a directory entry is ignored. */
	on32(0);
	map32(false);
	dir[VA >> 22] |= BIG;
	*(u32 *)page[0] = 0x1234;
	TRY(v = *(volatile u32 *)VA);
	check("without CR4.PSE the PS bit is ignored", trap.vec == NONE && v == 0x1234);
	*(u32 *)page[0] = 0xc3c3c3c3;
	paging_off();
	on32(PSE);
	map32(true);
	TRY(v = *(volatile u32 *)(VA + 0x1000));
	check("4-MiB page: 22 bits of offset", trap.vec == NONE && v == 0x5678);
	if (has(1, 3, 17)) {
		dir[VA >> 22] |= 1 << 21;
		flush();
		TRY(v = *(volatile u32 *)VA);
		check_trap("PSE-36: bit 21 is reserved", PF, EC_P | EC_RSVD);
		dir[VA >> 22] = 0x00400000 | P | W | U | BIG | 1 << 13; /* 4 GiB + 4 MiB: nothing there */
		flush();
		TRY(v = *(volatile u32 *)(VA + 0x1000));
		check("PSE-36: bit 13 is physical bit 32", trap.vec == NONE && v != 0x5678);
	}
	dir[VA >> 22] = 0x00400000 | P | W | U | BIG | 1 << 12;
	flush();
	TRY(v = *(volatile u32 *)(VA + 0x1000));
	check("PAT bit of a 4-MiB page", trap.vec == NONE && v == 0x5678);
	paging_off();
}

static void crossing(void)
{
	volatile u32 v = 0;
	on32(0);
	map32(false);
	*(u32 *)(page[0] + 0xffc) = 0x11223344;
	*(u32 *)page[1] = 0x55667788;
	TRY(v = *(volatile u32 *)(VA + 0xffe));
	check_eq("read across pages", v, 0x77881122);
	table[2] = 0;
	flush();
	TRY(*(volatile u32 *)(VA + 0xffe) = 0);
	check("write into an absent second page: CR2, nothing written", trap.vec == PF && trap.err == 2 && trap.cr2 == VA + 0x1000 && page[0][0xffe] == 0x22);
	/* The last page and the first: addresses wrap at 4 GiB. */
	dir[1023] = (uptr)table | P | W;
	table[1023] = (uptr)page[0] | P | W;
	flush();
	TRY(v = *(volatile u32 *)0xfffffffe);
	check("an access across 4 GiB wraps to 0 or faults by the limit", trap.vec == NONE || trap.vec == GP);
	/* Descriptor tables by supervisor accesses whatever CPL: covered by CPL 3 interrupts on a supervisor GDT. */
	struct regs r = user_regs(u_read);
	r.ip += ALIAS;
	r.sp += ALIAS;
	r.di = VA;
	go(&r);
	check_trap("GDT, IDT and TSS on supervisor pages serve CPL 3", DONE, 0);
	/* A TSS stack on an absent page. */
	tss.t.esp0 = VA + 0x1f00;
	table[2] = (uptr)page[1] | P | W;
	flush();
	go(&r);
	check("ring-0 stack on a supervisor page of its own", trap.vec == DONE && trap.at == VA + 0x1f00 - 20);
	tss.t.esp0 = (uptr)trap_stack_end;
	/* The busy bit, accessed bits of descriptors go through pages: a read-only GDT faults with WP. */
	u32 at = (uptr)gdt >> 12;
	gdt[FREE] = desc(0, 0xfffff, A_RW, F_G | F_B);
	ident[at] &= ~(u32)W;
	write_cr0(read_cr0() | 0x10000);
	flush();
	TRY(__asm__ volatile("mov %0,%%es" : : "r"(FREE * 8)));
	int vec = trap.vec;
	u32 err = trap.err;
	uptr cr2 = trap.cr2;
	ident[at] |= W;
	write_cr0(read_cr0() & ~0x10000ul);
	flush();
	check("accessed bit into a read-only GDT: #PF, a supervisor write", vec == PF && err == (EC_P | EC_W) && (cr2 & ~7ul) == (uptr)&gdt[FREE]);
	/* ARPL writes only when it raises the RPL. At CPL 0 with WP and at CPL 3. */
	extern const u8 u_arpl[];
	map32(false);
	for (unsigned cpl3 = 0; cpl3 < 2; cpl3++)
		for (unsigned rpl = 0; rpl < 4; rpl++) {
			table[1] = (uptr)page[0] | P | U;
			*(u16 *)(page[0] + 0x20) = 0x79;
			write_cr0(read_cr0() | 0x10000);
			flush();
			r = user_regs(u_arpl);
			r.ip += ALIAS;
			r.sp += ALIAS;
			if (!cpl3) {
				r.cs = CODE;
				r.ds = r.es = r.fs = r.gs = DATA;
			}
			r.di = VA + 0x20;
			r.ax = rpl;
			r.flags = 2 | FL_ZF;
			go(&r);
			write_cr0(read_cr0() & ~0x10000ul);
			const char *name = fmt("arpl in a read-only page at CPL %u, RPL %u over 1", 3 * cpl3, rpl);
			if (rpl > 1)
				check(fmt("%s: #PF, a write", name), trap.vec == PF && trap.err == (EC_P | EC_W | (cpl3 ? EC_U : 0)) && trap.cr2 == VA + 0x20 && (trap.f.flags & FL_ZF));
			else
				check(fmt("%s: only read", name), trap.vec == DONE && !(trap.f.flags & FL_ZF));
			check(fmt("%s: unchanged, not dirty", name), *(u16 *)(page[0] + 0x20) == 0x79 && !(table[1] & D));
		}
	paging_off();
}
__asm__(".text\nu_arpl: arpl %ax,(%edi)\nint $0x80\n");

static void pae(void)
{
	volatile u32 v = 0;
	onpae();
	mappae(false);
	TRY(v = *(volatile u32 *)VA);
	check_trap("PAE", NONE, 0);
	/* PDPTEs are registers. */
	pdpt[1] = 0;
	TRY(v = *(volatile u32 *)VA);
	__asm__ volatile("invlpg (%0)" : : "r"(VA));
	TRY(v = *(volatile u32 *)VA);
	check_trap("a PDPTE changed in memory has no effect before CR3 is written", NONE, 0);
	flush();
	TRY(v = *(volatile u32 *)VA);
	check_trap("then it has", PF, 0);
	static const u64 bad[] = { P | 2, P | 4, P | 0x20, P | 0x100, P | 1ull << 63, P | 1ull << 52 };
	for (unsigned k = 0; k < ARRAY_LEN(bad); k++) {
		pdpt[1] = (uptr)pds[1] | bad[k];
		TRY(flush());
		check_trap(fmt("PDPTE with reserved bits %X: #GP(0) by mov cr3", bad[k]), GP, 0);
	}
	pdpt[1] = 0xfff0000000000ffeull; /* not present: the rest is ignored */
	TRY(flush());
	check_trap("a PDPTE that is not present may hold anything", NONE, 0);
	pdpt[1] = (uptr)pds[1] | P;
	flush();
	/* 2-MiB pages. */
	mappae(true);
	flush();
	TRY(v = *(volatile u32 *)(0x40001234));
	check_eq("2-MiB page", v, 0x4321);
	pds[1][0] |= 1 << 13;
	flush();
	TRY(v = *(volatile u32 *)(0x40001234));
	check_trap("2-MiB page with bit 13", PF, EC_P | EC_RSVD);
	/* Turning PAE off and on with paging on reloads. */
	pds[1][0] = 1ull << 40 | 0x00400000 | P | W | BIG;
	flush();
	TRY(v = *(volatile u32 *)(0x40001234));
	check("a page above 4 GiB: nothing there", trap.vec == NONE && v != 0x4321);
	paging_off();
	TRY(wrmsr(EFER, 0x100); write_cr4(0); write_cr3((uptr)dir); write_cr0(read_cr0() | 0x80000000));
	check_trap("PG with LME and without PAE: #GP(0)", GP, 0);
	paging_off();
}

int main(void)
{
	memset(page, 0xc3, sizeof(page));
	*(volatile u8 *)0x00400000 = 0xc3; /* what large pages show */
	*(volatile u8 *)0x00401000 = 0xc3;
	*(volatile u32 *)0x00402000 = 0x5678;
	*(volatile u32 *)0x00401234 = 0x4321;
	smep = has(7, 1, 7);
	smap = has(7, 1, 20);
	on32(0);
	product("32-bit, 4 KiB", false, false);
	paging_off();
	on32(PSE);
	product("32-bit, 4 MiB", false, true);
	paging_off();
	onpae();
	product("PAE, 4 KiB", true, false);
	product("PAE, 2 MiB", true, true);
	paging_off();
	pse();
	crossing();
	pae();
	return 0;
}
