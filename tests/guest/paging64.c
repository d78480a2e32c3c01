/* Paging with 64-bit entries in long mode: 4 levels and, where there, 5; 4-KiB, 2-MiB and 1-GiB
 * pages; the product of paging.h; A and D bits; INVLPG, CR3, global pages, PCID; pages crossed;
 * CR2 and error codes. SDM vol. 3 4.5 to 4.10. */
#include "paging.h"

const char guest_name[] = "paging64";

#define NX (1ull << 63)
#define VA 0x7f8040201000ull /* PML4 255, PDPT 1, PD 1, PT 1: nothing of the identity map is near */
extern u64 boot_pml4[512], boot_pdpt[512];
static u64 pml5[512] __attribute__((aligned(4096)));
static u64 pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096))), pt[512] __attribute__((aligned(4096)));
static u8 page[2][4096] __attribute__((aligned(4096)));
static u64 maxphy;

/* Code of the page: returns. */
static void fill(void)
{
	memset(page[0], 0xc3, 4096);
	memset(page[1], 0xc3, 4096);
}

extern const u8 u_read[], u_write[], u_fetch[];
__asm__(".text\nu_read: movb (%rdi),%al\nint $0x80\nu_write: movb %al,(%rdi)\nint $0x80\nu_fetch: call *%rdi\nint $0x80\n");

#define ALIAS 0x8000000000ull
enum { PKRS = 0x6e1 };
static bool smep, smap, pku, pks, pcid, la57, pg1g;
static u64 cr4_base;

static int access_va(u64 va, enum access a, const struct rules *r)
{
	uptr flags = 2 | (r->ac ? FL_AC : 0);
	if (r->cpl3) {
		struct regs g = user_regs(a == READ ? u_read : a == WRITE ? u_write : u_fetch);
		g.ip += ALIAS;
		g.sp += ALIAS;
		g.di = va;
		g.ax = 0xc3;
		g.flags = flags;
		return go(&g);
	}
	struct regs g = user_regs(a == READ ? u_read : a == WRITE ? u_write : u_fetch);
	g.cs = CODE;
	g.ss = DATA;
	static u8 stack[2048] __attribute__((aligned(16)));
	g.sp = (uptr)stack + sizeof(stack);
	g.di = va;
	g.ax = 0xc3;
	g.flags = flags;
	return go(&g);
}

static void set_mode(const struct rules *r)
{
	write_cr0(r->wp ? read_cr0() | 0x10000 : read_cr0() & ~0x10000ul);
	write_cr4(cr4_base | (r->smep ? 1ul << 20 : 0) | (r->smap ? 1ul << 21 : 0) | (r->pke ? 1ul << 22 : 0) | (r->pks ? 1ul << 24 : 0));
	wrmsr(EFER, r->nxe ? rdmsr(EFER) | 0x800 : rdmsr(EFER) & ~0x800ull);
	if (r->pke)
		__asm__ volatile("wrpkru" : : "a"(r->pkru), "c"(0), "d"(0));
	if (r->pks)
		wrmsr(PKRS, r->pkrs);
}

/* The guest's own memory is supervisor (SMEP, SMAP); code at CPL 3 runs in an alias, ALIAS up. */
extern u64 boot_pd[2048];
static void own_pages(void)
{
	static u64 alias_pdpt[512] __attribute__((aligned(4096))), alias_pd[512] __attribute__((aligned(4096)));
	boot_pml4[1] = (uptr)alias_pdpt | P | W | U;
	alias_pdpt[0] = (uptr)alias_pd | P | W | U;
	for (unsigned k = 0; k < 4; k++) {
		boot_pd[k] = (u64)k << 21 | 0xe3;
		alias_pd[k] = (u64)k << 21 | 0xe7;
	}
	write_cr3(read_cr3());
}

static void map(unsigned big)
{
	u64 top = P | W | U;
	boot_pml4[255] = (uptr)pdpt | top;
	pdpt[1] = big == 2 ? 0x40000000 | top | BIG : (uptr)pd | top;
	pd[1] = big == 1 ? 0x200000 | top | BIG : (uptr)pt | top;
	pt[1] = (uptr)page[0] | top;
	pt[2] = (uptr)page[1] | top;
}

static void product(unsigned big, const char *what)
{
	/* Tables: which bits each level lacks. Every subset of {P, W, U} over the levels would be 2^12; all
	 * of W and U over four levels (2^8), and each level alone not present, NX or reserved. */
	u64 *e[4] = { &boot_pml4[255], &pdpt[1], &pd[1], &pt[1] };
	unsigned n = 4 - big;
	u64 va = big == 2 ? VA & ~0x3fffffffull : big == 1 ? VA & ~0x1fffffull : VA;
	u64 keep[4];
	/* A 2-MiB page shows the real memory at 2 MiB, a 1-GiB page that at 1 GiB: perhaps no RAM, reads
	 * and writes only. */
	map(big);
	for (unsigned k = 0; k < n; k++)
		keep[k] = *e[k];
	*(u8 *)0x200000 = 0xc3;
	for (unsigned m = 0; m < 64; m++) {
		struct rules r = { .cpl3 = m & 1, .wp = m >> 1 & 1, .smep = m >> 2 & 1, .smap = m >> 3 & 1, .ac = m >> 4 & 1, .nxe = m >> 5 & 1 };
		if ((r.smep && !smep) || (r.smap && !smap))
			continue;
		unsigned bad = 0, first = 0, bad_ec = 0, bad_cr2 = 0, bad_ad = 0, count = 0;
		int got_vec = 0;
		for (unsigned c = 0; c < (1u << (2 * n)) + 3 * n; c++) {
			struct entry x[4];
			for (unsigned k = 0; k < n; k++) {
				x[k] = (struct entry){ true, c >> (2 * k) & 1, c >> (2 * k + 1) & 1, false, false };
				if (c >= 1u << (2 * n))
					x[k] = (struct entry){ true, true, true, false, false };
			}
			if (c >= 1u << (2 * n)) {
				unsigned s = c - (1u << (2 * n));
				*(s / n == 0 ? &x[s % n].p : s / n == 1 ? &x[s % n].nx : &x[s % n].rsvd) ^= 1;
			}
			for (enum access a = READ; a <= FETCH; a++) {
				if (a == FETCH && big == 2)
					continue;
				for (unsigned k = 0; k < n; k++) {
					*e[k] = (keep[k] & ~(u64)(P | W | U | A | D)) | (x[k].p ? P : 0) | (x[k].w ? W : 0) | (x[k].u ? U : 0) |
						(x[k].nx ? NX : 0) | (x[k].rsvd ? 1ull << 51 : 0);
				}
				set_mode(&r);
				__asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
				int want = expect(x, n, a, &r, 0);
				int got = access_va(va, a, &r);
				u32 err = trap.err;
				uptr cr2 = trap.cr2;
				set_mode(&(struct rules){ .nxe = true });
				count++;
				bool ok = want < 0 ? got == DONE : got == PF;
				if (!ok && !bad++) {
					first = c << 4 | a;
					got_vec = got;
				}
				if (ok && want >= 0) {
					bad_ec += err != (u32)want;
					bad_cr2 += cr2 != va;
				}
				if (ok && want < 0) {
					bool all_a = true;
					for (unsigned k = 0; k < n; k++)
						all_a &= (*e[k] & A) != 0;
					bad_ad += !all_a || ((*e[n - 1] & D) != 0) != (a == WRITE) || (n > 1 && !big && (*e[0] & D));
				}
				if (ok && want >= 0)
					bad_ad += (*e[n - 1] & D) != 0;
			}
		}
		const char *name = fmt("%s: CPL %d WP %d SMEP %d SMAP %d AC %d NXE %d", what, r.cpl3 ? 3 : 0, r.wp, r.smep, r.smap, r.ac, r.nxe);
		if (bad)
			say("first wrong: case %x access %d vector %d, %u of %u\n", first >> 4, first & 15, got_vec, bad, count);
		check_eq(name, bad, 0);
		check_eq(fmt("%s: error codes", name), bad_ec, 0);
		check_eq(fmt("%s: CR2", name), bad_cr2, 0);
		check_eq(fmt("%s: A and D", name), bad_ad, 0);
	}
	for (unsigned k = 0; k < n; k++)
		*e[k] = keep[k];
}

static const struct rules plain = { .nxe = true, .wp = true };

static void reserved(void)
{
	/* Each bit from MAXPHYADDR to 51, in each level; PS in PML4; low address bits of large pages. */
	u64 *e[4] = { &boot_pml4[255], &pdpt[1], &pd[1], &pt[1] };
	for (unsigned k = 0; k < 4; k++) {
		unsigned bad = 0;
		for (unsigned b = (unsigned)maxphy; b < 52; b++) {
			map(0);
			*e[k] |= 1ull << b;
			write_cr3(read_cr3());
			bad += access_va(VA, READ, &plain) != PF || trap.err != (EC_P | EC_RSVD);
		}
		check_eq(fmt("reserved physical bits at level %d", 4 - k), bad, 0);
	}
	map(0);
	*e[0] |= BIG;
	write_cr3(read_cr3());
	access_va(VA, READ, &plain);
	check_trap("PS in a PML4 entry is reserved", PF, EC_P | EC_RSVD);
	for (unsigned b = 13; b < 21; b += 7) {
		map(1);
		pd[1] |= 1ull << b;
		write_cr3(read_cr3());
		access_va(VA & ~0x1fffffull, READ, &plain);
		check_trap(fmt("2-MiB page with bit %u", b), PF, EC_P | EC_RSVD);
	}
	map(1);
	pd[1] |= 1ull << 12; /* PAT */
	write_cr3(read_cr3());
	access_va(VA & ~0x1fffffull, READ, &plain);
	check_trap("2-MiB page with its PAT bit", DONE, 0);
	map(2);
	if (!pg1g) {
		write_cr3(read_cr3());
		access_va(VA & ~0x3fffffffull, READ, &plain);
		check_trap("PS in a PDPT entry without 1-GiB pages", PF, EC_P | EC_RSVD);
	} else {
		pdpt[1] |= 1ull << 20;
		write_cr3(read_cr3());
		access_va(VA & ~0x3fffffffull, READ, &plain);
		check_trap("1-GiB page with bit 20", PF, EC_P | EC_RSVD);
	}
	map(0);
	pt[1] |= 0x7ff0000000000e00ull & ~(15ull << 59);
	write_cr3(read_cr3());
	access_va(VA, READ, &plain);
	check_trap("ignored bits 9-11, 52-58 are ignored", DONE, 0);
}

/* What becomes known of a page by an access to the one beside it may not be seen. */
static void beside(void)
{
	u64 end = VA + 0x1000;
	for (unsigned k = 0; k < 4; k++) { /* accessed and dirty bits of the second page before */
		map(0);
		pt[1] |= A | D;
		pt[2] = (pt[2] & ~(u64)(A | D)) | (k & 1 ? A : 0) | (k & 2 ? D : 0);
		u64 was = pt[2];
		write_cr3(read_cr3());
		for (unsigned n = 0; n < 3; n++)
			*(volatile u64 *)(VA + 8 * n) = n;
		check_eq("a store beside it leaves a page's entry alone", pt[2], was);
		(void)*(volatile u64 *)end;
		check_eq("a load sets accessed, not dirty", pt[2], was | A);
		*(volatile u64 *)end = 0x77;
		check_eq("a store sets dirty", pt[2], was | A | D);
	}
	for (unsigned n = 0; n < 3; n++) {
		*(volatile u64 *)VA = n;
		pt[2] = 0;
		__asm__ volatile("invlpg (%0)" : : "r"(end) : "memory");
		TRY(*(volatile u64 *)end = 1);
		check_trap("known by the page beside it, then taken away: #PF", PF, EC_W);
		pt[2] = pt[1];
		__asm__ volatile("invlpg (%0)" : : "r"(end) : "memory");
		*(volatile u64 *)VA = 0x1234 + n;
		check_eq("... then another one", *(volatile u64 *)end, 0x1234 + n);
	}
	map(0);
	write_cr3(read_cr3());
}

static void crossing(void)
{
	map(0);
	u64 end = VA + 0x1000;
	write_cr3(read_cr3());
	*(u64 *)(page[0] + 0xff8) = 0x1122334455667788ull;
	*(u64 *)page[1] = 0x99aabbccddeeff00ull;
	u64 v = 0;
	TRY(v = *(volatile u64 *)(end - 3));
	check_eq("read across two pages", v, 0xccddeeff00112233ull);
	TRY(*(volatile u64 *)(end - 3) = 0x0102030405060708ull);
	check("write across two pages", page[0][0xffd] == 8 && page[0][0xfff] == 6 && page[1][0] == 5 && page[1][4] == 1);
	check("both dirty", (pt[1] & D) && (pt[2] & D));
	/* Second page absent: CR2 is its start, nothing is written. */
	pt[2] = 0;
	__asm__ volatile("invlpg (%0)" : : "r"(end) : "memory");
	page[0][0xffd] = 0x5a;
	TRY(*(volatile u64 *)(end - 3) = 0);
	check_trap("write into an absent second page", PF, EC_W);
	check_eq("CR2 is where the second page starts", trap.cr2, end);
	check_eq("nothing of the first page written", page[0][0xffd], 0x5a);
	pt[2] = (uptr)page[1] | P | U;
	write_cr3(read_cr3());
	write_cr0(read_cr0() | 0x10000);
	TRY(*(volatile u64 *)(end - 3) = 0);
	check_trap("write into a read-only second page", PF, EC_W | EC_P);
	check_eq("CR2", trap.cr2, end);
	TRY(__asm__ volatile("lock addl $1,(%0)" : : "r"(end - 2) : "memory"));
	check_trap("lock add over it", PF, EC_W | EC_P);
	TRY(__asm__ volatile("cmpxchg %%ecx,(%0)" : : "r"(end - 2), "a"(0x12345678) : "memory"));
	check_trap("cmpxchg that fails still writes", PF, EC_W | EC_P);
	pt[1] = 0;
	write_cr3(read_cr3());
	TRY(v = *(volatile u64 *)(end - 3));
	check("first page absent: CR2 is the operand's address", trap.vec == PF && trap.cr2 == end - 3);
	map(0);
	pt[2] = 0;
	write_cr3(read_cr3());
	/* REP MOVS into the hole: registers say how far it came. */
	TRY(__asm__ volatile("rep movsb" : : "D"(end - 5), "S"(page[0]), "c"(16) : "memory"));
	check("rep movsb stops at the hole", trap.vec == PF && trap.f.cx == 11 && trap.f.di == end && trap.cr2 == end);
	/* An instruction across the pages. */
	map(0);
	write_cr3(read_cr3());
	page[0][0xffe] = 0xb8;
	page[0][0xfff] = 0x11;
	memcpy(page[1], "\x22\x33\x44\xc3", 4);
	u32 ax = 0;
	TRY(__asm__ volatile("call *%1" : "=a"(ax) : "r"(end - 2)));
	check_eq("an instruction across two pages", ax, 0x44332211);
	pt[2] |= NX;
	write_cr3(read_cr3());
	TRY(__asm__ volatile("call *%1" : "=a"(ax) : "r"(end - 2)));
	check("its second half is NX: #PF(I), CR2 there, RIP at the start", trap.vec == PF && trap.err == (EC_I | EC_P) && trap.cr2 == end && trap.f.ip == end - 2);
	fill();
}

static void caching(void)
{
	u8 v;
	map(0);
	page[0][0] = 1;
	page[1][0] = 2;
	write_cr3(read_cr3());
	TRY(v = *(volatile u8 *)VA);
	pt[1] = (uptr)page[1] | P | W | U;
	__asm__ volatile("invlpg (%0)" : : "r"(VA) : "memory");
	TRY(v = *(volatile u8 *)VA);
	check_eq("invlpg: the new translation", v, 2);
	pt[1] = (uptr)page[0] | P | W | U;
	write_cr3(read_cr3());
	TRY(v = *(volatile u8 *)VA);
	check_eq("mov cr3: the new translation", v, 1);
	/* Present bit taken away, invlpg. */
	pt[1] = 0;
	__asm__ volatile("invlpg (%0)" : : "r"(VA + 123) : "memory");
	TRY(v = *(volatile u8 *)VA);
	check_trap("invlpg of any address in the page", PF, 0);
	/* Not-present is never cached. */
	pt[1] = (uptr)page[0] | P | W | U;
	TRY(v = *(volatile u8 *)VA);
	check_trap("from absent to present needs no invlpg", NONE, 0);
	/* A read caches no right to write without setting D. */
	pt[1] = (uptr)page[0] | P | W | U;
	write_cr3(read_cr3());
	TRY(v = *(volatile u8 *)VA);
	check_eq("read: A without D", pt[1] & (A | D), A);
	TRY(*(volatile u8 *)VA = v);
	check_eq("a later write sets D", pt[1] & (A | D), A | D);
	pt[1] &= ~(u64)D;
	write_cr3(read_cr3());
	TRY(*(volatile u8 *)VA = v);
	check_eq("after a flush a write sets D again", pt[1] & D, D);
	/* More rights need no invlpg to be found after the fault. */
	pt[1] = (uptr)page[0] | P | U;
	write_cr3(read_cr3());
	write_cr0(read_cr0() | 0x10000);
	TRY(v = *(volatile u8 *)VA);
	TRY(*(volatile u8 *)VA = v);
	check_trap("read-only", PF, EC_P | EC_W);
	pt[1] |= W;
	TRY(*(volatile u8 *)VA = v);
	check_trap("made writable: the fault made it look again", NONE, 0);
	/* WP by MOV CR0 acts at once. */
	pt[1] = (uptr)page[0] | P | U;
	write_cr3(read_cr3());
	write_cr0(read_cr0() & ~0x10000ul);
	TRY(*(volatile u8 *)VA = v);
	check_trap("WP 0: supervisor writes read-only pages", NONE, 0);
	write_cr0(read_cr0() | 0x10000);
	TRY(*(volatile u8 *)VA = v);
	check_trap("WP 1 again", PF, EC_P | EC_W);
	/* Global pages survive MOV CR3, not CR4.PGE nor INVLPG. */
	write_cr4(read_cr4() | 0x80);
	pt[1] = (uptr)page[0] | P | W | U | GLOBAL;
	TRY(v = *(volatile u8 *)VA);
	pt[1] = (uptr)page[1] | P | W | U | GLOBAL;
	write_cr4(read_cr4() & ~0x80ul);
	write_cr4(read_cr4() | 0x80);
	TRY(v = *(volatile u8 *)VA);
	check_eq("CR4.PGE change drops global pages", v, 2);
	pt[1] = (uptr)page[0] | P | W | U | GLOBAL;
	__asm__ volatile("invlpg (%0)" : : "r"(VA) : "memory");
	TRY(v = *(volatile u8 *)VA);
	check_eq("invlpg drops a global page", v, 1);
	write_cr4(read_cr4() & ~0x80ul);
	pt[1] = 0;
	write_cr3(read_cr3());
	if (pcid) {
		static u64 other[512] __attribute__((aligned(4096)));
		static u64 pdpt2[512] __attribute__((aligned(4096))), pd2[512] __attribute__((aligned(4096))), pt2[512] __attribute__((aligned(4096)));
		map(0);
		memcpy(other, boot_pml4, 4096);
		other[255] = (uptr)pdpt2 | P | W | U;
		pdpt2[1] = (uptr)pd2 | P | W | U;
		pd2[1] = (uptr)pt2 | P | W | U;
		pt2[1] = (uptr)page[1] | P | W | U;
		write_cr4(read_cr4() | 0x20000);
		write_cr3((uptr)boot_pml4 | 1);
		TRY(v = *(volatile u8 *)VA);
		u8 w = 0;
		write_cr3((uptr)other | 2);
		TRY(w = *(volatile u8 *)VA);
		check("PCID: two address spaces", v == 1 && w == 2);
		write_cr3((uptr)boot_pml4 | 1 | 1ull << 63);
		TRY(v = *(volatile u8 *)VA);
		check_eq("PCID: back without a flush", v, 1);
		TRY(__asm__ volatile("mov %0,%%cr4" : : "r"(read_cr4() & ~0x20000ul)));
		check_eq("PCIDE off clears nothing else", trap.vec, NONE);
		write_cr3((uptr)boot_pml4 | 1);
		TRY(__asm__ volatile("mov %0,%%cr4" : : "r"(read_cr4() | 0x20000ul)));
		check_trap("PCIDE on with CR3 11:0 not 0: #GP(0)", GP, 0);
		write_cr3((uptr)boot_pml4);
	}
	if (has(7, 1, 10)) {
		struct { u64 pcid, lin; } d = { 0, VA };
		map(0);
		write_cr3(read_cr3());
		TRY(v = *(volatile u8 *)VA);
		pt[1] = (uptr)page[1] | P | W | U;
		TRY(__asm__ volatile("invpcid %0,%1" : : "m"(d), "r"(0ul) : "memory"));
		TRY(v = *(volatile u8 *)VA);
		check_eq("invpcid 0: one address", v, 2);
		pt[1] = (uptr)page[0] | P | W | U;
		TRY(__asm__ volatile("invpcid %0,%1" : : "m"(d), "r"(2ul) : "memory"));
		TRY(v = *(volatile u8 *)VA);
		check_eq("invpcid 2: all", v, 1);
		TRY(__asm__ volatile("invpcid %0,%1" : : "m"(d), "r"(4ul) : "memory"));
		check_trap("invpcid 4: #GP(0)", GP, 0);
		d.pcid = 0x1000;
		TRY(__asm__ volatile("invpcid %0,%1" : : "m"(d), "r"(1ul) : "memory"));
		check_trap("invpcid with reserved bits: #GP(0)", GP, 0);
		d.pcid = 0;
		d.lin = 1ull << 56; /* not canonical with 57 bits either, which is what counts */
		TRY(__asm__ volatile("invpcid %0,%1" : : "m"(d), "r"(0ul) : "memory"));
		check_trap("invpcid 0 of a non-canonical address: #GP(0)", GP, 0);
	}
}

/* One access to a page with key 5 under these rules. wrong[0]: whether it is let through, [1]: the error code. Where both the key
 * and the page forbid, PK may or may not be set along with P: it is, if the key forbids. */
static void keyed_access(const struct rules *r, unsigned u, unsigned w, enum access a, unsigned wrong[2])
{
	pt[1] = (uptr)page[0] | P | (w ? W : 0) | (u ? U : 0) | 5ull << 59;
	set_mode(r);
	__asm__ volatile("invlpg (%0)" : : "r"(VA) : "memory");
	struct entry x[1] = { { true, w, u, false, false } };
	int want = expect(x, 1, a, r, 5), got = access_va(VA, a, r);
	u32 err = trap.err;
	set_mode(&plain);
	wrong[0] += got != (want < 0 ? DONE : PF);
	wrong[1] += got == PF && want >= 0 && err != (u32)want;
}

static void keys(void)
{
	if (!pku) {
		skip("protection keys", "not there");
		return;
	}
	map(0);
	unsigned wrong[2] = { 0 };
	for (unsigned m = 0; m < 64; m++) {
		struct rules r = { .nxe = true, .pke = true, .cpl3 = m & 1, .wp = m >> 1 & 1 };
		unsigned u = m >> 2 & 1, w = m >> 3 & 1;
		r.pkru = (m >> 4 & 3) << 10 | 0; /* key 5 */
		for (enum access a = READ; a <= FETCH; a++)
			keyed_access(&r, u, w, a, wrong);
	}
	check_eq("protection keys: AD, WD, W, U, CPL, WP, all accesses", wrong[0], 0);
	check_eq("protection keys: error codes", wrong[1], 0);
	set_mode(&(struct rules){ .nxe = true, .pke = true });
	u32 v;
	TRY(__asm__ volatile("mov $1,%%ecx; rdpkru" : "=a"(v) : : "ecx", "edx"));
	check_trap("rdpkru with ECX 1: #GP(0)", GP, 0);
	TRY(__asm__ volatile("xor %%ecx,%%ecx; mov $1,%%edx; wrpkru" : "=a"(v) : : "ecx", "edx"));
	check_trap("wrpkru with EDX 1: #GP(0)", GP, 0);
	set_mode(&plain);
	TRY(__asm__ volatile("xor %%ecx,%%ecx; rdpkru" : "=a"(v) : : "ecx", "edx"));
	check_trap("rdpkru without CR4.PKE: #UD", UD, 0);
}

/* Keys of supervisor pages. PKRU says the opposite of IA32_PKRS: it must not count, nor the other way round. */
static void supervisor_keys(void)
{
	if (!pks) {
		skip("protection keys of supervisor pages", "not there");
		return;
	}
	map(0);
	unsigned wrong[2] = { 0 };
	for (unsigned m = 0; m < 256; m++) {
		struct rules r = { .nxe = true, .pke = m >> 6 & 1, .pks = m >> 7, .cpl3 = m & 1, .wp = m >> 1 & 1, .ac = true };
		unsigned u = m >> 2 & 1, w = m >> 3 & 1;
		r.pkrs = (m >> 4 & 3) << 10; /* key 5 */
		r.pkru = (~m >> 4 & 3) << 10;
		for (enum access a = READ; a <= FETCH; a++)
			keyed_access(&r, u, w, a, wrong);
	}
	check_eq("IA32_PKRS: AD, WD, W, U, CPL, WP, PKE, PKS, all accesses", wrong[0], 0);
	check_eq("IA32_PKRS: error codes", wrong[1], 0);
	/* A write of the register, and of CR4.PKS, counts at once. */
	pt[1] = (uptr)page[0] | P | W | 5ull << 59;
	set_mode(&(struct rules){ .nxe = true, .pks = true });
	__asm__ volatile("invlpg (%0)" : : "r"(VA) : "memory");
	u8 v;
	check_eq("IA32_PKRS 0: a load", TRY(v = *(volatile u8 *)VA), NONE);
	wrmsr(PKRS, 1 << 10);
	check_eq("... AD: the same load", TRY(v = *(volatile u8 *)VA), PF);
	check_trap("... its error code", PF, EC_P | EC_PK);
	wrmsr(PKRS, 1 << 11);
	check_eq("... WD: a load", TRY(v = *(volatile u8 *)VA), NONE);
	check_eq("... WD without CR0.WP: a store", TRY(*(volatile u8 *)VA = 1), NONE);
	write_cr0(read_cr0() | 0x10000);
	check_eq("... WD under CR0.WP: a store", TRY(*(volatile u8 *)VA = 1), PF);
	write_cr4(read_cr4() & ~(1ul << 24));
	check_eq("... without CR4.PKS", TRY(*(volatile u8 *)VA = 1), NONE);
	check_eq("IA32_PKRS keeps its value", rdmsr(PKRS), 1 << 11);
	TRY(wrmsr(PKRS, 1ull << 32));
	check_trap("IA32_PKRS: bit 32", GP, 0);
	wrmsr(PKRS, 0);
	set_mode(&plain);
	fill();
	(void)v;
}

static void five(void)
{
	if (!la57) {
		skip("5-level paging", "not there");
		return;
	}
	u64 old = read_cr3();
	TRY(__asm__ volatile("mov %0,%%cr4" : : "r"(read_cr4() | 0x1000)));
	check_trap("CR4.LA57 in long mode: #GP(0)", GP, 0);
	/* Out to compatibility mode, paging off, LA57 on, paging on, back. */
	pml5[0] = (uptr)boot_pml4 | P | W | U;
	extern void switch57(u64 cr3, u64 cr4);
	map(0);
	switch57((uptr)pml5, read_cr4() | 0x1000);
	check("CR4.LA57 set with paging off", read_cr4() & 0x1000);
	u8 v = 0;
	page[0][0] = 0x57;
	TRY(v = *(volatile u8 *)VA);
	check_eq("5 levels: through PML5 entry 0", v, 0x57);
	u64 high = 0x00fe000000000000ull | VA; /* PML5 entry 254 */
	pml5[254] = (uptr)boot_pml4 | P | W | U;
	TRY(v = *(volatile u8 *)high);
	check("5 levels: a 57-bit address", trap.vec == NONE && v == 0x57 && (pml5[254] & A));
	pml5[253] = 0;
	TRY(v = *(volatile u8 *)(0x00fd000000000000ull | VA));
	check_trap("5 levels: an absent PML5 entry", PF, 0);
	TRY(v = *(volatile u8 *)0x0100000000000000ull);
	check_trap("57-bit canonical: bit 56 alone: #GP(0)", GP, 0);
	pml5[254] |= BIG;
	write_cr3(read_cr3());
	TRY(v = *(volatile u8 *)high);
	check_trap("PS in a PML5 entry is reserved", PF, EC_P | EC_RSVD);
	pml5[254] = (uptr)boot_pml4 | P | U | NX;
	write_cr3(read_cr3());
	TRY(*(volatile u8 *)high = 1);
	check_trap("5 levels: W counts in PML5", PF, EC_P | EC_W);
	TRY(((void (*)(void))high)());
	check_trap("5 levels: NX counts in PML5", PF, EC_P | EC_I);
	TRY(__asm__ volatile("mov %0,%%cr4" : : "r"(read_cr4() & ~0x1000ul)));
	check_trap("clearing LA57 in long mode: #GP(0)", GP, 0);
	switch57(old, read_cr4() & ~0x1000ul);
	TRY(v = *(volatile u8 *)high);
	check_trap("4 levels again: that address is not canonical", GP, 0);
}
__asm__(".text\n.globl switch57\nswitch57: push %rbx; sub $16,%rsp; movl $1f,(%rsp); movl $0x40,4(%rsp); ljmp *(%rsp)\n"
	".code32\n1: mov %cr0,%eax; and $0x7fffffff,%eax; mov %eax,%cr0; mov %esi,%eax; mov %eax,%cr4; mov %edi,%eax; mov %eax,%cr3\n"
	"mov %cr0,%eax; or $0x80000000,%eax; mov %eax,%cr0; ljmp $8,$1f\n.code64\n1: add $16,%rsp; pop %rbx; ret\n");

/* ---- what is kept from one instruction to the next --------------------------------------------------- */

#define FIRST (VA - 4096) /* of page table pt */

/* A translation that outlives its entry says nothing of the pages beside it. */
static void stale_entry(void)
{
	map(0);
	pt[15] = pt[16] = (uptr)page[0] | P | W | U | A | D;
	pt[17] = (uptr)page[1] | P | U | A | D;
	write_cr0(read_cr0() | 0x10000);
	write_cr3(read_cr3());
	void *d = (void *)(FIRST + 16 * 4096 - 8);
	uptr n = 16;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(1) : "memory");
	pt[16] &= ~(u64)W; /* and no INVLPG */
	TRY(*(volatile u8 *)(FIRST + 16 * 4096) = 2);
	page[1][0] = 0x55;
	TRY(*(volatile u8 *)(FIRST + 17 * 4096) = 1);
	check_trap("beside a page whose entry has changed, read-only: #PF", PF, EC_P | EC_W);
	check_eq("... not written", page[1][0], 0x55);
	fill();
	map(0);
	write_cr3(read_cr3());
}

u8 with_ac(u64 va);
u8 by_iret(u64 va);
__asm__(".text\nwith_ac: stac; movb (%rdi),%al; clac; ret\n"
	"by_iret: mov %rsp,%r9; pushq $0x10; pushq %r9; pushq $0x10002; pushq $8; pushq $1f; stac; iretq\n"
	"1: nop; nop; jmp 2f\n2: movb (%rdi),%al; ret\n");

static void iret_out_of_ac(void)
{
	static u8 mine[64];
	if (!smap) {
		skip("IRETQ with RF out of EFLAGS.AC", "no SMAP");
		return;
	}
	own_pages();
	map(0);
	write_cr4(cr4_base | 1ul << 21);
	for (unsigned k = 0; k < 40; k++) {
		with_ac(VA);
		by_iret((uptr)mine);
	}
	TRY(by_iret(VA));
	check_trap("IRETQ with RF out of EFLAGS.AC: SMAP", PF, EC_P);
	__asm__ volatile("clac");
	write_cr4(cr4_base);
}

u64 bases(void);
__asm__(".text\nbases: push %rbx; mov %fs:0x10,%rax; rdfsbase %rcx; mov %fs:0x18,%rbx; add %rbx,%rax; pop %rbx; ret\n");

static void segment_base_between(void)
{
	static u64 words[16] = { 0, 0, 5, 7 };
	u64 sum = 0;
	if (!has(7, 1, 0)) {
		skip("accesses around RDFSBASE", "no FSGSBASE");
		return;
	}
	write_cr4(read_cr4() | 1ul << 16);
	wrmsr(FS_BASE, (uptr)words);
	for (unsigned k = 0; k < 40; k++)
		sum += bases();
	check_eq("accesses around RDFSBASE", sum, 480);
	write_cr4(cr4_base);
}

void x87_then_two(u64 va);
__asm__(".text\nx87_then_two: fld1; mov (%rdi),%rax; mov 8(%rdi),%rcx; fstp %st(0); ret\n");

/* The second of two accesses faults; FIP is that of the x87 instruction before them. */
static void x87_pointer(void)
{
	u32 env[7];
	own_pages();
	map(0);
	pt[16] = (uptr)page[0] | P | W | U | A | D;
	pt[17] = 0;
	write_cr3(read_cr3());
	uptr cr0 = read_cr0();
	write_cr0(cr0 & ~0xcul);
	__asm__ volatile("fninit; fldz; fstp %st(0)");
	TRY(x87_then_two(FIRST + 17 * 4096 - 8));
	check_trap("x87 and two accesses, the second not present: #PF", PF, 0);
	__asm__ volatile("fnstenv %0; fninit" : "=m"(env));
	check_eq("... FIP", env[3], (uptr)x87_then_two);
	write_cr0(cr0);
}

int main(void)
{
	u32 r[4];
	cpuid(0x80000008, 0, r);
	maxphy = r[0] & 0xff;
	smep = has(7, 1, 7);
	smap = has(7, 1, 20);
	pku = has(7, 2, 3);
	pks = has(7, 2, 31);
	la57 = has(7, 2, 16);
	pcid = has(1, 2, 17);
	pg1g = has(0x80000001, 3, 26);
	cr4_base = read_cr4();
	fill();
	own_pages();
	product(0, "4 KiB");
	product(1, "2 MiB");
	if (pg1g)
		product(2, "1 GiB");
	reserved();
	crossing();
	beside();
	caching();
	keys();
	supervisor_keys();
	stale_entry();
	iret_out_of_ac();
	segment_base_between();
	x87_pointer();
	five();
	return 0;
}
