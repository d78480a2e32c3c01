#include "sys_rig.h"
#include "interp/interp.h"

struct sys_rig s;
extern const struct engine_ops interp_engine;

static void make(const char *spec)
{
	struct error e;
	if (!mem_init(&s.mem, 4 << 20, &e) || !clock_init(&s.clock, true, &e) ||
	    !cpu_model_parse(&s.model, spec, &s.clock, &e))
		fail_msg("%s", e.msg);
	s.c = cpu_new(0, &s.mem, &s.clock, &s.model, &s.hooks);
	assert_non_null(s.c);
	if (!interp_engine.vcpu_init(s.c, &e))
		fail_msg("%s", e.msg);
}

int sys_up(void **state)
{
	memset(&s, 0, sizeof(s));
	make("max");
	return 0;
}

int sys_down(void **state)
{
	interp_engine.vcpu_destroy(s.c);
	cpu_free(s.c);
	clock_destroy(&s.clock);
	mem_destroy(&s.mem);
	return 0;
}

void sys_model(const char *spec)
{
	sys_down(NULL);
	make(spec);
}

static struct segment flat(unsigned sel, u32 attr)
{
	return (struct segment){ .sel = (u16)sel, .limit = 0xffffffff, .attr = attr };
}

static void fresh(void)
{
	struct cpu *c = s.c;
	cpu_reset(c, false);
	memset(s.mem.ram, 0, 0x40000);
	c->rip = CODE;
	c->regs[R_SP] = STACK;
	c->gdtr = (struct dtable){ GDT, 0xff };
}

void sys_real(void)
{
	struct cpu *c = s.c;
	fresh();
	for (unsigned k = S_ES; k <= S_GS; k++)
		c->seg[k] = (struct segment){ .sel = DATA >> 4, .base = DATA, .limit = 0xffff, .attr = 0x93 };
	c->seg[S_CS].sel = CODE >> 4;
	c->seg[S_CS].base = CODE;
	c->seg[S_SS].sel = (STACK - 0x1000) >> 4;
	c->seg[S_SS].base = STACK - 0x1000;
	c->regs[R_SP] = 0x1000;
	c->rip = 0;
	cpu_update_mode(c);
}

void sys_protected(unsigned cpl)
{
	struct cpu *c = s.c;
	fresh();
	c->cr0 |= CR0_PE;
	for (unsigned k = S_ES; k <= S_GS; k++)
		c->seg[k] = flat(0x10 | cpl, 0xc093 | cpl << 5);
	c->seg[S_CS] = flat(8 | cpl, 0xc09b | cpl << 5);
	c->seg[S_TR] = (struct segment){ .sel = 0x28, .base = TSS, .limit = 0x1fff, .attr = 0x8b };
	c->cpl = (u8)cpl;
	/* Present: 8 flat code, 10 flat data of CPL 0; 18 and 20 of CPL 3. */
	st64(s.mem.ram + GDT + 8, 0x00cf9b000000ffff);
	st64(s.mem.ram + GDT + 16, 0x00cf93000000ffff);
	st64(s.mem.ram + GDT + 24, 0x00cffb000000ffff);
	st64(s.mem.ram + GDT + 32, 0x00cff3000000ffff);
	cpu_update_mode(c);
}

void sys_v86(unsigned iopl)
{
	struct cpu *c = s.c;
	sys_protected(0);
	for (unsigned k = S_ES; k <= S_GS; k++)
		c->seg[k] = (struct segment){ .sel = DATA >> 4, .base = DATA, .limit = 0xffff, .attr = 0xf3 };
	c->seg[S_CS].sel = CODE >> 4;
	c->seg[S_CS].base = CODE;
	c->rflags |= FL_VM | iopl << 12;
	c->regs[R_SP] = 0x8000;
	c->rip = 0;
	cpu_update_mode(c);
}

void sys_long(unsigned cpl)
{
	struct cpu *c = s.c;
	sys_protected(cpl);
	st64(s.mem.ram + 0x8000, 0x9007);
	st64(s.mem.ram + 0x9000, 0xa007);
	for (unsigned k = 0; k < 2; k++)
		st64(s.mem.ram + 0xa000 + 8 * k, (u64)k << 21 | 0xe7);
	c->cr3 = 0x8000;
	c->cr4 = CR4_PAE;
	c->cr0 |= CR0_PG;
	c->efer = EFER_LME | EFER_LMA;
	c->seg[S_CS].attr = 0xa09b | cpl << 5;
	mmu_flush_all(c);
	cpu_update_mode(c);
}

int sys_bytes(const u8 *bytes, unsigned n)
{
	struct cpu *c = s.c;
	volatile int vector = -1;
	memset(s.insn, 0, sizeof(s.insn));
	if (interp_decode(c, c->code_mode, bytes, n, &s.insn[0]) != ISA_OK)
		return UNKNOWN;
	assert_int_equal(s.insn[0].len, n);
	s.insn[1].fn = op_end;
	s.insn[1].off = (u16)n;
	interp_of(c)->blocks->current = &interp_of(c)->blocks->none;
	c->regs[R_BLOCK] = c->rip;
	c->cur = s.insn;
	c->shadow = 0;
	cpu_set_rflags(c, 0, FL_RF); /* both last for one instruction, as run_single has it */
	cpu_update_events(c);
	fpu_load(c);
	if (!_setjmp(c->jb))
		s.insn[0].fn(c, s.insn);
	else
		vector = c->exc.vector;
	fpu_save(c);
	return vector;
}
