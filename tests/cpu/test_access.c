/* Accesses: page crossings, wrap-around, canonical checks, ROM, devices, locked crossings,
 * alignment checks, stores over code. */
#include <pthread.h>

#include "cpu_rig.h"

enum { RAM = 16 << 20, ROOT = 0x200000, PT = 0x203000, DATA = 0x400000 };
enum { ROM_BASE = 0xfffe0000u, DEV_BASE = 0xd0000000u, P = 1, W = 2, U = 4 };

static struct rig r;
static u8 rom[0x2000] __attribute__((aligned(4096)));

/* A device that notes what it is asked. */
static struct { u64 off[8], val[8]; unsigned size[8]; bool write[8]; unsigned n; } dev;
static u64 dev_read(void *d, u64 off, unsigned size)
{
	unsigned k = dev.n++ & 7;
	dev.off[k] = off, dev.size[k] = size, dev.write[k] = false;
	return 0x1122334455667788ull >> (8 * (off & 7));
}
static void dev_write(void *d, u64 off, u64 val, unsigned size)
{
	unsigned k = dev.n++ & 7;
	dev.off[k] = off, dev.val[k] = val, dev.size[k] = size, dev.write[k] = true;
}
static const struct mmio_ops dev_ops = {dev_read, dev_write, 1, 8};

/* 4-level tables: LIN + n * 4096 is the n-th entry of one page table. */
#define LIN 0x7f0000000000ull
static u64 *pte(unsigned n) { return rig_ram(&r, PT) + n; }

static void map_all(struct cpu *c)
{
	u64 *t = rig_ram(&r, ROOT);
	for (unsigned d = 0; d < 3; d++)
		rig_ram(&r, ROOT + 0x1000 * d)[d ? 0 : LIN >> 39 & 511] = (ROOT + 0x1000 * (d + 1)) | P | W | U;
	t[255] = t[LIN >> 39 & 511]; /* up to the end of the canonical half */
	rig_ram(&r, ROOT + 0x1000)[511] = (ROOT + 0x2000) | P | W | U;
	rig_ram(&r, ROOT + 0x2000)[511] = PT | P | W | U;
	for (unsigned n = 0; n < 512; n++)
		*pte(n) = (DATA + 0x1000 * n) | P | W | U;
	c->cr0 = CR0_PE | CR0_PG | CR0_WP;
	c->cr3 = ROOT;
	c->cr4 = CR4_PAE;
	c->efer = EFER_LME | EFER_LMA | EFER_NXE;
	mmu_flush_all(c);
}

static int start(void **state)
{
	struct error e;
	rig_start(&r, RAM, "max");
	memset(&dev, 0, sizeof(dev));
	memset(rom, 0xee, sizeof(rom));
	assert_true(mem_add_rom(&r.mem, "rom", ROM_BASE, sizeof(rom), rom, 1, &e));
	assert_true(mem_add_mmio(&r.mem, "dev", DEV_BASE, 0x1000, &dev_ops, NULL, 1, &e));
	map_all(r.c);
	rig_mode(&r, CODE64, 0);
	return 0;
}
static int stop(void **state)
{
	rig_stop(&r);
	return 0;
}

static u64 ld(u64 lin, unsigned n)
{
	volatile u64 v = 0;
	int vec = RIG_TRY(r.c, v = mem_ld_slow(r.c, lin, n));
	if (vec >= 0)
		fail_msg("load at %llx: vector %d error %x", (unsigned long long)lin, vec, r.c->exc.error);
	return v;
}

static void crossing(void **state)
{
	struct cpu *c = r.c;
	/* Pages far apart in RAM, so that neighbours in linear memory are none in RAM. */
	*pte(1) = (DATA + 0x77000) | P | W | U;
	for (unsigned n = 2; n <= 8; n++) {
		for (unsigned k = 1; k < n; k++) {
			u64 lin = LIN + 0x1000 - k, val = 0xa1b2c3d4e5f60718ull * (n + 1) + k;
			u64 mask = n == 8 ? ~0ull : (1ull << (8 * n)) - 1;
			memset(rig_ram(&r, DATA), 0, 4096);
			memset(rig_ram(&r, DATA + 0x77000), 0, 4096);
			assert_int_equal(RIG_TRY(c, mem_st_slow(c, lin, val, n)), -1);
			u8 want[8], got[8];
			st64(want, val);
			memcpy(got, (u8 *)rig_ram(&r, DATA) + 4096 - k, k);
			memcpy(got + k, rig_ram(&r, DATA + 0x77000), n - k);
			assert_memory_equal(got, want, n);
			assert_int_equal(((u8 *)rig_ram(&r, DATA + 0x77000))[n - k], 0);
			assert_int_equal(((u8 *)rig_ram(&r, DATA))[4095 - k], 0);
			assert_int_equal(ld(lin, n), val & mask);
		}
	}
}

static void crossing_is_whole(void **state)
{
	struct cpu *c = r.c;
	u8 *first = (u8 *)rig_ram(&r, DATA) + 4092;
	u8 big[600];
	struct mem_ref ref;
	memset(big, 0x55, sizeof(big));
	memset(first, 0x11, 4);
	/* The second page absent, or read-only: the first page's bytes stay. */
	for (unsigned ro = 0; ro < 2; ro++) {
		*pte(1) = ro ? (DATA + 0x1000) | P | U : 0;
		mmu_flush_all(c);
		u32 err = PF_W | (ro ? PF_P : 0);
		assert_int_equal(RIG_TRY(c, mem_st64(c, LIN + 0xffc, ~0ull)), V_PF);
		assert_int_equal(c->exc.error, err);
		assert_int_equal(c->exc.cr2, LIN + 0x1000);
		assert_int_equal(RIG_TRY(c, mem_st_bytes(c, LIN + 0xffc, big, 600)), V_PF);
		assert_int_equal(c->exc.cr2, LIN + 0x1000);
		assert_int_equal(RIG_TRY(c, mem_probe(c, LIN + 0xffc, 5, ACC_WRITE)), V_PF);
		assert_int_equal(RIG_TRY(c, mem_begin(c, &ref, LIN + 0xffc, 8, true, true, ro)), V_PF);
		assert_int_equal(c->exc.error, err);
		assert_int_equal(RIG_TRY(c, sys_st(c, LIN + 0xffc, ~0ull, 8)), V_PF);
		assert_int_equal(ld32(first), 0x11111111);
		assert_int_equal(RIG_TRY(c, mem_probe(c, LIN + 0xffc, 4, ACC_WRITE)), -1);
	}
	/* The first page absent: its address is reported, wherever the access begins in it. */
	*pte(0) = 0;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_ld32(c, LIN + 0xffe)), V_PF);
	assert_int_equal(c->exc.cr2, LIN + 0xffe);
	/* Three pages: the last one decides. */
	*pte(0) = DATA | P | W | U;
	*pte(1) = (DATA + 0x1000) | P | W | U;
	*pte(2) = 0;
	mmu_flush_all(c);
	u8 huge[4200];
	memset(huge, 0x22, sizeof(huge));
	assert_int_equal(RIG_TRY(c, mem_st_bytes(c, LIN + 0xffc, huge, 4101)), V_PF);
	assert_int_equal(ld32(first), 0x11111111);
	assert_int_equal(RIG_TRY(c, mem_st_bytes(c, LIN + 0xffc, huge, 4100)), -1);
	assert_int_equal(ld32(first), 0x22222222);
}

static void bytes(void **state)
{
	struct cpu *c = r.c;
	static u8 out[9000], in[9000];
	*pte(1) = (DATA + 0x55000) | P | W | U;
	for (unsigned k = 0; k < sizeof(out); k++)
		out[k] = (u8)(k * 7 + k / 256);
	for (unsigned n = 0; n < 9000; n += 1 + n / 3) {
		assert_int_equal(RIG_TRY(c, mem_st_bytes(c, LIN + 0xff0, out, n)), -1);
		assert_int_equal(RIG_TRY(c, mem_ld_bytes(c, LIN + 0xff0, in, n)), -1);
		assert_memory_equal(in, out, n);
	}
	assert_memory_equal(rig_ram(&r, DATA + 0x55000), out + 16, 4096);
}

/* Outside 64-bit mode addresses wrap at 4 GiB. */
static void wrap(void **state)
{
	struct cpu *c = r.c;
	c->efer = 0;
	c->cr4 = 0;
	c->cr0 = CR0_PE | CR0_PG;
	c->cr3 = ROOT + 0x5000;
	((u32 *)rig_ram(&r, ROOT + 0x5000))[0] = (ROOT + 0x6000) | P | W;
	((u32 *)rig_ram(&r, ROOT + 0x5000))[1023] = (ROOT + 0x6000) | P | W;
	((u32 *)rig_ram(&r, ROOT + 0x6000))[0] = DATA | P | W;
	((u32 *)rig_ram(&r, ROOT + 0x6000))[1023] = (DATA + 0x1000) | P | W;
	rig_mode(&r, CODE32, 0);
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_st32(c, 0xfffffffe, 0x44332211)), -1);
	assert_int_equal(ld16((u8 *)rig_ram(&r, DATA + 0x1000) + 0xffe), 0x2211);
	assert_int_equal(ld16(rig_ram(&r, DATA)), 0x4433);
	assert_int_equal(ld(0xfffffffe, 4), 0x44332211);
	u8 b[8];
	assert_int_equal(RIG_TRY(c, mem_ld_bytes(c, 0xfffffffe, b, 4)), -1);
	assert_int_equal(ld32(b), 0x44332211);
	assert_int_equal(RIG_TRY(c, sys_st(c, 0x100000001ull, 0x99, 1)), -1); /* a base plus an offset */
	assert_int_equal(ld16(rig_ram(&r, DATA)), 0x9933);
	/* Compatibility mode: the tables could say more, the address has 32 bits all the same. */
	map_all(c);
	rig_ram(&r, ROOT)[0] = (ROOT + 0x1000) | P | W;
	rig_ram(&r, ROOT + 0x1000)[3] = (ROOT + 0x7000) | P | W;
	rig_ram(&r, ROOT + 0x7000)[511] = (ROOT + 0x8000) | P | W;
	rig_ram(&r, ROOT + 0x8000)[511] = (DATA + 0x1000) | P | W;
	rig_ram(&r, ROOT + 0x1000)[4] = 0;
	rig_mode(&r, CODE32, 0);
	assert_int_equal(ld(0xfffffffe, 4), 0x99332211);
	assert_int_equal(ld(0x100000000ull, 2), 0x9933);
	assert_int_equal(RIG_TRY(c, mem_ld_bytes(c, 0xfffffffe, b, 4)), -1);
	assert_int_equal(ld32(b), 0x99332211);
	/* But the processor's own addresses have 64 there. */
	assert_int_equal(RIG_TRY(c, sys_ld(c, 0xfffffffe, 4)), V_PF);
	assert_int_equal(c->exc.cr2, 0x100000000ull);
}

static void canonical(void **state)
{
	struct cpu *c = r.c;
	struct insn i = {.flags = IF_MEM, .seg = S_DS, .base = R_BX, .index = R_ZERO, .adsz = 8, .msz = 8};
	c->cur = &i;
	const u64 bad = 0x800000000000ull;
	c->regs[R_BX] = bad;
	c->regs[R_SP] = LIN;
	c->regs[R_BP] = LIN;
	assert_int_equal(RIG_TRY(c, mem_ld8(c, bad)), V_GP);
	assert_int_equal(c->exc.error, 0);
	assert_int_equal(RIG_TRY(c, mem_st64(c, 0xffff7fffffffffffull, 0)), V_GP);
	assert_int_equal(RIG_TRY(c, mmu_fetch_page(c, bad)), V_GP);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, 0xffff800000000000ull)), V_PF);
	/* Through SS: #SS. */
	i.seg = S_SS;
	assert_int_equal(RIG_TRY(c, mem_ld8(c, bad)), V_SS);
	/* PUSH [rbx]: the operand is through DS, the push through SS. */
	i.seg = S_DS;
	c->regs[R_BX] = LIN;
	c->regs[R_SP] = bad + 8;
	i.flags |= IF_STACK;
	assert_int_equal(RIG_TRY(c, mem_st64(c, bad, 0)), V_SS);
	i.flags = IF_STACK;
	assert_int_equal(RIG_TRY(c, mem_st64(c, bad, 0)), V_SS);
	i.flags = 0;
	assert_int_equal(RIG_TRY(c, mem_st64(c, bad, 0)), V_GP);
	/* An access that runs over the edge; nothing is written. */
	u64 edge = 0x7fffffffe000ull;
	*pte(511) = (DATA + 0x3000) | P | W | U;
	*pte(510) = DATA | P | W | U;
	memset(rig_ram(&r, DATA + 0x3000), 0x33, 4096);
	assert_int_equal(RIG_TRY(c, mem_st64(c, edge + 0xffc, ~0ull)), -1);
	assert_int_equal(RIG_TRY(c, mem_st64(c, edge + 0x1ffc, ~0ull)), V_GP);
	assert_int_equal(ld32((u8 *)rig_ram(&r, DATA + 0x3000) + 4092), 0x33333333);
	/* 57 bits with five levels. */
	assert_false(cpu_canonical(c, bad));
	c->cr4 |= CR4_LA57;
	assert_true(cpu_canonical(c, bad));
	assert_false(cpu_canonical(c, 1ull << 56));
	assert_true(cpu_canonical(c, 0xff00000000000000ull));
	c->cr4 &= ~(u64)CR4_LA57;
	c->cur = NULL;
}

static void rom_page(void **state)
{
	struct cpu *c = r.c;
	struct mem_ref ref;
	*pte(0) = ROM_BASE | P | W | U | 0x40;
	mmu_flush_all(c);
	assert_int_equal(ld(LIN, 4), 0xeeeeeeee);
	assert_int_equal(tlb_slot(c, LIN)->rtag & PAGE_MASK, c->epoch);
	assert_int_equal(tlb_slot(c, LIN)->wtag, 0);
	assert_int_equal(RIG_TRY(c, mem_st32(c, LIN, 0)), -1);
	assert_int_equal(RIG_TRY(c, mem_st_bytes(c, LIN, &ref, 64)), -1);
	assert_int_equal(tlb_slot(c, LIN)->wtag, 0);
	u8 *p = NULL;
	assert_int_equal(RIG_TRY(c, p = mem_begin(c, &ref, LIN + 4, 4, true, true, true)), -1);
	assert_int_equal(ld32(p), 0xeeeeeeee);
	st32(p, 0);
	mem_end(c, &ref);
	for (unsigned k = 0; k < 4096; k++)
		assert_int_equal(rom[k], 0xee);
	assert_ptr_equal(mmu_fetch_page(c, LIN)->host, rom);
	assert_null(mmu_fetch_page(c, LIN)->code);
}

/* RAM that is read-only for a while, as the chipset's registers have it: what is decoded there is that RAM's code, which
 * ends when it is written after. */
static void shadow_ram(void **state)
{
	struct cpu *c = r.c;
	struct error e;
	enum { AT = 0x3c0000 };
	u8 *host = c->mem->ram + AT;
	assert_true(mem_add_rom(c->mem, "shadow", AT, 4096, host, 1, &e));
	*pte(0) = AT | P | W | U | 0x40;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_st32(c, LIN, 0x12345678)), -1);
	assert_int_equal(ld32(host), 0);
	assert_int_equal(tlb_slot(c, LIN)->wtag, 0);
	assert_ptr_equal(mmu_fetch_page(c, LIN)->host, host);
	assert_ptr_equal(mmu_fetch_page(c, LIN)->code, &c->mem->code[AT >> 12]);
	mem_remove(c->mem, "shadow", AT);
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_st32(c, LIN, 0x12345678)), -1);
	assert_int_equal(ld32(host), 0x12345678);
}

static void device(void **state)
{
	struct cpu *c = r.c;
	struct mem_ref ref;
	*pte(0) = DEV_BASE | P | W | U | 0x40;
	mmu_flush_all(c);
	/* One access, of its full size; never cached. */
	for (unsigned n = 1; n <= 8; n *= 2) {
		dev.n = 0;
		ld(LIN + 8, n);
		assert_int_equal(RIG_TRY(c, mem_st_slow(c, LIN + 16, 0x8877665544332211ull, n)), -1);
		assert_int_equal(dev.n, 2);
		assert_int_equal(dev.size[0], n);
		assert_int_equal(dev.off[0], 8);
		assert_int_equal(dev.size[1], n);
		assert_int_equal(dev.off[1], 16);
		assert_true(dev.write[1]);
		assert_int_equal(tlb_slot(c, LIN)->rtag, 0);
	}
	assert_int_equal(ld(LIN, 8), 0x1122334455667788ull);
	/* RAM, then device: both halves. */
	*pte(1) = DEV_BASE | P | W | U;
	*pte(0) = DATA | P | W | U;
	mmu_flush_all(c);
	dev.n = 0;
	memset(rig_ram(&r, DATA), 0, 4096);
	assert_int_equal(RIG_TRY(c, mem_st32(c, LIN + 0xffe, 0x44332211)), -1);
	assert_int_equal(ld16((u8 *)rig_ram(&r, DATA) + 0xffe), 0x2211);
	assert_int_equal(dev.n, 1);
	assert_int_equal(dev.size[0], 2);
	assert_int_equal(dev.val[0] & 0xffff, 0x4433);
	assert_int_equal(ld(LIN + 0xffe, 4), 0x77882211);
	/* A locked operation on it: read, then written back; a copy aligned like the address. */
	u8 *p = NULL;
	dev.n = 0;
	assert_int_equal(RIG_TRY(c, p = mem_begin(c, &ref, LIN + 0x1008, 4, true, true, true)), -1);
	assert_int_equal((u64)p & 63, 8);
	st32(p, ld32(p) + 1);
	mem_end(c, &ref);
	assert_int_equal(dev.n, 2);
	assert_int_equal(dev.val[1] & 0xffffffff, 0x55667789);
	/* Written without being read. */
	dev.n = 0;
	assert_int_equal(RIG_TRY(c, p = mem_begin(c, &ref, LIN + 0x1010, 64, false, true, false)), -1);
	memset(p, 1, 64);
	mem_end(c, &ref);
	assert_int_equal(dev.n, 8);
	for (unsigned k = 0; k < 8; k++)
		assert_true(dev.write[k] && dev.size[k] == 8 && dev.off[k] == 0x10 + 8 * k);
	/* Code in a device: no host page, the address is there. */
	assert_null(mmu_fetch_page(c, LIN + 0x1000)->host);
	assert_int_equal(mmu_fetch_page(c, LIN + 0x1000)->gpa_page, DEV_BASE);
}

static void tables_elsewhere(void **state)
{
	struct cpu *c = r.c;
	/* Nowhere: all ones, so reserved bits. */
	c->cr3 = 0x80000000;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_ld8(c, LIN)), V_PF);
	assert_int_equal(c->exc.error, PF_P | PF_RSVD);
	assert_int_equal(RIG_TRY(c, mmu_fetch_page(c, LIN)), V_PF);
	/* In a device: whatever it says, no crash, and the machine lock is free again. */
	c->cr3 = DEV_BASE;
	mmu_flush_all(c);
	RIG_TRY(c, mem_st8(c, LIN, 1));
	assert_int_equal(pthread_mutex_trylock(&r.mem.lock), 0);
	pthread_mutex_unlock(&r.mem.lock);
	/* In ROM: works, and the accessed bits stay. */
	memset(rom, 0, sizeof(rom));
	st64(rom + 8 * (LIN >> 39 & 511), (ROOT + 0x1000) | P | W | U);
	c->cr3 = ROM_BASE;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_st8(c, LIN, 1)), -1);
	assert_int_equal(ld64(rom + 8 * (LIN >> 39 & 511)), (ROOT + 0x1000) | P | W | U);
}

/* ---- locked crossings ---------------------------------------------------------------------------- */

static void *hammer(void *arg)
{
	struct cpu *c = arg;
	struct mem_ref ref;
	for (unsigned k = 0; k < 20000; k++) {
		u8 *p = NULL;
		if (RIG_TRY(c, p = mem_begin(c, &ref, LIN + 0xffd, 8, true, true, true)) >= 0)
			return (void *)1;
		__asm__ volatile("lock addq $1, (%0)" :: "r"(p) : "memory", "cc");
		mem_end(c, &ref);
	}
	return NULL;
}

static void locked_crossing(void **state)
{
	struct cpu *c = r.c;
	struct mem_ref ref;
	u8 *p = NULL, *lo = (u8 *)rig_ram(&r, DATA) + 0xffd, *hi = (u8 *)rig_ram(&r, DATA + 0x33000);
	*pte(1) = (DATA + 0x33000) | P | W | U;
	memset(lo, 0, 3);
	memset(hi, 0, 8);
	/* The pointer is the memory itself. */
	assert_int_equal(RIG_TRY(c, p = mem_begin(c, &ref, LIN + 0xffd, 8, true, true, true)), -1);
	st64(p, 0x0807060504030201ull);
	assert_int_equal(ld16(lo), 0x0201);
	assert_int_equal(ld32(hi), 0x07060504);
	mem_end(c, &ref);
	/* Other pages next time. */
	*pte(1) = (DATA + 0x44000) | P | W | U;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, p = mem_begin(c, &ref, LIN + 0xffd, 8, true, true, true)), -1);
	st64(p, 0);
	mem_end(c, &ref);
	assert_int_equal(ld32(hi), 0x07060504);
	assert_int_equal(ld16(lo), 0);
	/* Two processors, low bits in one page and carries into the other. */
	*pte(1) = (DATA + 0x33000) | P | W | U;
	memset(hi, 0, 8);
	struct cpu *c2 = cpu_new(1, &r.mem, &r.clock, &r.model, &r.hooks);
	map_all(c2);
	struct cpu *mine = r.c;
	r.c = c2;
	rig_mode(&r, CODE64, 0);
	r.c = mine;
	mmu_flush_all(c);
	st16(lo, 0xff00);
	lo[2] = 0xff;
	*pte(1) = (DATA + 0x33000) | P | W | U;
	pthread_t t;
	void *failed;
	assert_int_equal(pthread_create(&t, NULL, hammer, c2), 0);
	assert_null(hammer(c));
	pthread_join(t, &failed);
	assert_null(failed);
	cpu_free(c2);
	assert_int_equal(lo[0] | lo[1] << 8 | lo[2] << 16 | ld32(hi) << 24, 0xffff00 + 40000);
}

/* ---- checks ------------------------------------------------------------------------------------------ */

static void alignment(void **state)
{
	struct cpu *c = r.c;
	struct mem_ref ref;
	c->cr0 |= CR0_AM;
	c->rflags |= FL_AC;
	rig_mode(&r, CODE64, 3);
	assert_int_equal(c->mmu, MMU_CHECK);
	for (unsigned n = 1; n <= 8; n *= 2) {
		for (unsigned off = 0; off < 16; off++) {
			int want = off & (n - 1) ? V_AC : -1;
			assert_int_equal(RIG_TRY(c, mem_ld_slow(c, LIN + off, n)), want);
			assert_int_equal(RIG_TRY(c, mem_st_slow(c, LIN + off, 0, n)), want);
			assert_int_equal(RIG_TRY(c, mem_begin(c, &ref, LIN + off, n, true, true, false)), want);
		}
	}
	assert_int_equal(c->exc.error, 0);
	assert_true(c->exc.has_error);
	assert_int_equal(tlb_slot(c, LIN)->rtag | tlb_slot(c, LIN)->wtag, 0); /* never filled */
	u64 two;
	assert_int_equal(RIG_TRY(c, mem_ld_bytes(c, LIN + 1, &two, 8)), -1); /* bytes have no alignment */
	/* It comes before a page fault. */
	*pte(5) = 0;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_ld32(c, LIN + 0x5001)), V_AC);
	assert_int_equal(RIG_TRY(c, mem_ld32(c, LIN + 0x5000)), V_PF);
	/* Implicit accesses, other privilege, AM or AC off: no check. */
	assert_int_equal(RIG_TRY(c, sys_ld(c, LIN + 1, 4)), -1);
	cpu_set_rflags(c, 0, FL_AC);
	assert_int_equal(c->mmu, MMU_USER);
	assert_int_equal(RIG_TRY(c, mem_ld32(c, LIN + 1)), -1);
	cpu_set_rflags(c, FL_AC, FL_AC);
	assert_int_equal(RIG_TRY(c, mem_ld32(c, LIN + 1)), V_AC);
	rig_mode(&r, CODE64, 2);
	assert_int_equal(RIG_TRY(c, mem_ld32(c, LIN + 1)), -1);
}

/* A data breakpoint is noted for an access that takes place, and only then. */
static void breakpoint(void **state)
{
	struct cpu *c = r.c;
	c->dr[1] = LIN + 0x5000;
	c->dr[7] = 0x400 | 1u << 2 | 3u << 20 | 3u << 22; /* DR1: reads and writes of 4 bytes */
	cpu_update_mode(c);
	assert_int_equal(c->mmu, MMU_CHECK);
	*pte(5) = 0;
	mmu_flush_all(c);
	assert_int_equal(RIG_TRY(c, mem_st32(c, LIN + 0x5000, 1)), V_PF);
	assert_int_equal(RIG_TRY(c, mem_ld64(c, LIN + 0x4ffc)), V_PF);
	assert_int_equal(c->dr6_pending & 15, 0);
	*pte(5) = (DATA + 0x5000) | P | W | U;
	static const u64 hits[] = {LIN + 0x4ffc, LIN + 0x4fff, LIN + 0x5003};
	struct mem_ref ref;
	u64 v;
	for (unsigned k = 0; k < 3; k++) {
		for (unsigned how = 0; how < 5; how++) {
			c->dr6_pending = 0;
			assert_int_equal(RIG_TRY(c,
				switch (how) {
				case 0: mem_ld64(c, hits[k]); break;
				case 1: mem_st64(c, hits[k], 1); break;
				case 2: mem_st_bytes(c, hits[k], &v, 8); break;
				case 3: mem_begin(c, &ref, hits[k], 8, true, true, true); mem_end(c, &ref); break;
				default: mem_ld_bytes(c, hits[k], &v, 8); break;
				}), -1);
			assert_int_equal(c->dr6_pending & 15, 2);
		}
	}
	c->dr6_pending = 0;
	assert_int_equal(RIG_TRY(c, mem_st32(c, LIN + 0x4ffc, 1)), -1);
	assert_int_equal(RIG_TRY(c, mem_st32(c, LIN + 0x5004, 1)), -1);
	assert_int_equal(c->dr6_pending & 15, 0);
}

static unsigned code_hits;
static void on_hit(struct cpu *c, struct page_code *p, unsigned off, unsigned len) { code_hits++; }

static void code_written(void **state)
{
	struct cpu *c = r.c;
	struct mem_ref ref;
	struct page_code *pc = &r.mem.code[DATA >> 12], *pc1 = &r.mem.code[(DATA + 0x1000) >> 12];
	mem_code_mark(pc, 64, 64);
	mem_code_mark(pc1, 0, 1);
	c->on_code_written = on_hit;
	u32 gen = atomic_load(&pc->gen), gen1 = atomic_load(&pc1->gen);
	code_hits = 0;
#define HITS(n, ...) assert_int_equal(RIG_TRY(c, __VA_ARGS__), -1); assert_int_equal(code_hits, n); \
	assert_int_equal(atomic_load(&pc->gen) - gen + atomic_load(&pc1->gen) - gen1, n)
	for (unsigned turn = 0; turn < 2; turn++) { /* by the slow path, then by the fast one */
		unsigned b = 8 * turn;
		HITS(b, mem_st8(c, LIN + 63, 1));
		HITS(b + 1, mem_st8(c, LIN + 64, 1));
		HITS(b + 2, mem_st64(c, LIN + 60, 1));
		HITS(b + 3, mem_st64(c, LIN + 127, 1));
		HITS(b + 3, mem_st64(c, LIN + 128, 1));
		HITS(b + 4, mem_st32(c, LIN + 0xffe, 1)); /* the second page's part */
		HITS(b + 5, sys_st(c, LIN + 64, 1, 2));
		u8 zeros[80] = {0};
		HITS(b + 6, mem_st_bytes(c, LIN, zeros, 80));
		HITS(b + 7, { mem_begin(c, &ref, LIN + 96, 8, true, true, true); mem_end(c, &ref); });
		HITS(b + 8, { mem_begin(c, &ref, LIN + 0xffe, 8, true, true, true); mem_end(c, &ref); });
		HITS(b + 8, { mem_begin(c, &ref, LIN + 96, 8, true, false, false); mem_end(c, &ref); });
	}
}

#define T(name) cmocka_unit_test_setup_teardown(name, start, stop)
int main(void)
{
	const struct CMUnitTest tests[] = {
		T(crossing), T(crossing_is_whole), T(bytes), T(wrap), T(canonical), T(rom_page), T(shadow_ram), T(device),
		T(tables_elsewhere), T(locked_crossing), T(alignment), T(breakpoint), T(code_written),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
