#include <stdio.h>

#include "bt_rig.h"
#include "cpu/cpu.h"

struct bt_rig r;
void (*rig_after_ram)(void);
const char *rig_model = "max";

int rig_up(void **state)
{
	struct error e;
	memset(&r, 0, sizeof(r));
	if (!mem_init(&r.mem, RAM_SIZE, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		return -1;
	}
	if (rig_after_ram)
		rig_after_ram();
	if (!clock_init(&r.clock, false, &e) || !cpu_model_parse(&r.model, rig_model, &r.clock, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		return -1;
	}
	r.c = cpu_new(0, &r.mem, &r.clock, &r.model, &r.hooks);
	if (!r.c || !bt_engine.usable(&e) || !bt_engine.vcpu_init(r.c, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		return -1;
	}
	r.bt = bt_of(r.c);
	r.bt->verify_every = 1;
	rig_fresh(0);
	return 0;
}

int rig_down(void **state)
{
	bt_engine.vcpu_destroy(r.c);
	cpu_free(r.c);
	clock_destroy(&r.clock);
	mem_destroy(&r.mem);
	return 0;
}

/* ---- paging --------------------------------------------------------------------------------------- */

static u64 *table(u64 phys) { return (u64 *)(void *)(r.mem.ram + phys); }
static u64 new_table(void)
{
	u64 at = r.next_table;
	r.next_table += 4096;
	assert_true(at < TABLES + (1 << 20));
	memset(r.mem.ram + at, 0, 4096);
	return at;
}

void rig_map(u64 lin, u64 phys, unsigned pg)
{
	u64 *t = table(r.c->cr3);
	for (unsigned level = 3; level > 0; level--) {
		u64 *e = &t[lin >> (12 + 9 * level) & 511];
		if (!*e || *e & 0x80) {
			u64 old = *e, at = new_table();
			for (unsigned k = 0; old && k < 512; k++) /* a large page comes apart */
				table(at)[k] = ((old & ~0x80ull) + ((u64)k << 12));
			*e = at | 7;
		}
		t = table(*e & ~PAGE_MASK);
	}
	t[lin >> 12 & 511] = pg ? phys | (pg & 7) | 0x20 | (pg & PG_W ? 0x40 : 0) | (pg & PG_NX ? 1ull << 63 : 0) : 0;
	mmu_flush_all(r.c);
}

static struct segment flat(unsigned sel, u32 attr)
{
	return (struct segment){ .sel = (u16)sel, .limit = 0xffffffff, .attr = attr };
}

void rig_fresh(unsigned cpl)
{
	struct cpu *c = r.c;
	cpu_reset(c, false);
	c->activity = ACT_RUN;
	c->stopped = false;
	r.next_table = TABLES;
	rig_clear(0, 0x10000);
	c->gdtr = (struct dtable){ GDT, 0xff };
	for (unsigned k = S_ES; k <= S_GS; k++)
		c->seg[k] = flat(0x10 | cpl, 0xc093 | cpl << 5);
	c->seg[S_CS] = flat(8 | cpl, 0xa09b | cpl << 5);
	c->cpl = (u8)cpl;
	st64(r.mem.ram + GDT + 8, 0x00af9b000000ffff);
	st64(r.mem.ram + GDT + 16, 0x00cf93000000ffff);
	c->cr3 = new_table();
	u64 pdpt = new_table(), pd = new_table();
	table(c->cr3)[0] = pdpt | 7;
	table(pdpt)[0] = pd | 7;
	for (unsigned k = 0; k < 2; k++)
		table(pd)[k] = (u64)k << 21 | 0xe7;
	c->cr0 |= CR0_PE | CR0_PG | CR0_WP;
	c->cr0 &= ~(u64)(CR0_EM | CR0_TS | CR0_CD | CR0_NW);
	c->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	c->xcr0 = 0xe7;
	c->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
	c->regs[R_SP] = STACK;
	c->rip = CODE;
	mmu_flush_all(c);
	cpu_update_mode(c);
	cpu_update_fpu(c);
}

void rig_code32(void)
{
	r.c->seg[S_CS] = flat(8, 0xc09b);
	cpu_update_mode(r.c);
}

/* ---- code -------------------------------------------------------------------------------------------- */

void rig_code(u64 at, const void *bytes, size_t n) { mem_write(&r.mem, at, bytes, n); }
void rig_clear(u64 at, size_t n)
{
	memset(r.mem.ram + at, 0, n);
	mem_dma_written(&r.mem, r.mem.ram + at, n); /* what was code there is none now */
}

struct block *rig_block(u64 lin)
{
	struct cpu *c = r.c;
	struct block *volatile k = NULL;
	fault_enter(r.bt);
	r.bt->space = NULL;
	c->rip = lin;
	fpu_load(c);
	if (!_setjmp(c->jb)) {
		if (shoot_pending(r.bt))
			shoot_serve(r.bt);
		code_class(r.bt);
		space_select(r.bt);
		space_class(r.bt);
		k = cache_find(r.bt);
	}
	fpu_save(c);
	return k;
}
