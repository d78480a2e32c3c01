/* A processor with RAM, to be put into any state by hand: what the tests of cpu/ stand on.
 * No engine: faults come back through c->jb, as RIG_TRY shows. */
#ifndef RING3_TESTS_CPU_RIG_H
#define RING3_TESTS_CPU_RIG_H

#include "test.h"
#include "cpu/cpu.h"

struct rig {
	struct mem mem;
	struct clock clock;
	struct cpu_model model;
	struct cpu_hooks hooks;
	struct cpu *c;
};

static inline void rig_start(struct rig *r, u64 ram_size, const char *model)
{
	struct error e;
	memset(r, 0, sizeof(*r));
	if (!mem_init(&r->mem, ram_size, &e) || !clock_init(&r->clock, false, &e) ||
	    !cpu_model_parse(&r->model, model, &r->clock, &e))
		fail_msg("%s", e.msg);
	r->c = cpu_new(0, &r->mem, &r->clock, &r->model, &r->hooks);
	assert_non_null(r->c);
}

static inline void rig_stop(struct rig *r)
{
	cpu_free(r->c);
	clock_destroy(&r->clock);
	mem_destroy(&r->mem);
}

#ifndef __clang__
/* Locals that do not change between setjmp and longjmp keep their values; gcc warns all the same. */
#pragma GCC diagnostic ignored "-Wclobbered"
#endif
/* Runs the statements; the vector of the exception that they raised, or -1. */
#define RIG_TRY(c, ...) __extension__({ \
	volatile int vector_ = -1; \
	if (!setjmp((c)->jb)) { \
		__VA_ARGS__; \
	} else { \
		vector_ = (c)->exc.vector; \
	} \
	vector_; \
})

static inline u64 *rig_ram(struct rig *r, u64 gpa) { return (u64 *)(void *)mem_ram(&r->mem, gpa); }

/* Flat segments of a mode; then cpu_update_mode. code: CODE16, CODE32 or CODE64 (EFER.LMA). */
static inline void rig_mode(struct rig *r, enum code_mode code, unsigned cpl)
{
	struct cpu *c = r->c;
	c->cr0 |= CR0_PE;
	for (unsigned s = S_ES; s <= S_GS; s++)
		c->seg[s] = (struct segment){.sel = (u16)(8 | cpl), .limit = 0xffffffff,
					     .attr = 0x93 | cpl << 5 | SEG_G | (code == CODE16 ? 0 : SEG_DB)};
	c->seg[S_CS].attr = 0x9b | cpl << 5 | SEG_G | (code == CODE64 ? SEG_L : code == CODE32 ? SEG_DB : 0);
	c->cpl = (u8)cpl;
	cpu_update_mode(c);
}

#endif
