/* The interpreter's run loop: events between blocks, blocks, single steps where something
 * wants to look at every instruction, exceptions. SDM vol. 3 chapter 6 for the order. */
#define LOG_TOPIC "interp"
#include <stdlib.h>

#include "cpu/engine_api.h"
#include "cpu/nested_api.h"
#include "interp/block.h"

/* The exception that brought us here by longjmp: state is that of the faulting instruction's
 * start, unless the raiser placed RIP itself. */
void interp_caught(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	if (!c->keep_rip)
		c->rip = c->cur ? insn_rip(c, c->cur) : c->regs[R_BLOCK];
	c->keep_rip = false;
	c->icount = cpu_icount(c);
	c->first = NULL;
	bc->current = &bc->none;
	cpu_exception(c);
	c->shadow_before = 0;
	c->insn_tsc = 0;
}

/* Between two instructions: a fault from here on belongs to what stands at RIP. */
void interp_boundary(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	bc->current = &bc->none;
	c->cur = NULL;
	c->first = NULL;
	c->regs[R_BLOCK] = c->rip;
}

void interp_single(struct cpu *c)
{
	bool tf = c->rflags & FL_TF;
	interp_boundary(c);
	if (c->slow & SLOW_DR7)
		cpu_code_breakpoint(c);
	const struct insn *i = block_single(c);
	/* Both last for one instruction; the instruction may set them again. Slow is then what else
	 * asks for it: a REP that only resumes (RF) runs through. */
	c->shadow_before = c->shadow;
	c->shadow = 0;
	c->rflags &= ~(u64)FL_RF;
	cpu_update_events(c);
	c->cur = i;
	c->first = i;
	const bool lbr = c->slow & SLOW_LBR;
	const u8 world = c->nested.mode;
	const u64 from = c->rip, next = insn_next_rip(c, i);
	i->fn(c, i);
	c->shadow_before = 0;
	c->icount++;
	interp_boundary(c);
	if (unlikely(lbr) && c->rip != next && c->rip != from && c->nested.mode == world)
		cpu_record_branch(c, from, c->rip, false);
	cpu_update_events(c);
	cpu_after_insn(c, tf);
}

void interp_exec(struct cpu *c, const struct insn *i)
{
	struct block_cache *bc = interp_of(c)->blocks;
	bc->one[0] = *i;
	bc->one[1] = (struct insn){ .fn = op_end, .off = i->len };
	interp_boundary(c);
	c->cur = c->first = bc->one;
	i->fn(c, bc->one);
	c->icount++;
	c->first = NULL;
	c->cur = NULL;
}

static inline bool events_due(const struct cpu *c)
{
	return atomic_load_explicit(&c->events, memory_order_relaxed) & c->event_mask;
}

void interp_some(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	unsigned mode = c->code_mode;
	interp_boundary(c);
	do {
		struct block *b = block_find(c, bc, jump_tag(c, bc));
		block_enter(c, bc, b ? b : block_get(c));
		c->icount += block_done(c);
		c->first = NULL;
	} while (c->code_mode == mode && !c->slow && !events_due(c) && c->activity == ACT_RUN);
	interp_boundary(c);
}

static enum run_exit why_left(const struct cpu *c)
{
	if (c->stopped)
		return RUN_STOPPED;
	if (atomic_load(&c->events) & EV_EXIT)
		return RUN_EVENT;
	return c->activity == ACT_RUN ? RUN_EVENT : RUN_HALT;
}

/* The frame that exceptions come back to. */
enum run_exit interp_run(struct cpu *c)
{
	struct block_cache *bc = interp_of(c)->blocks;
	fpu_load(c);
	if (_setjmp(c->jb))
		interp_caught(c);
	for (;;) {
		if (unlikely(events_due(c) || c->activity != ACT_RUN)) {
			interp_boundary(c);
			if (!cpu_service_events(c))
				break;
		}
		if (unlikely(c->slow || c->icount + BLOCK_MAX > c->icount_limit)) {
			if (c->icount >= c->icount_limit) {
				fpu_save(c);
				return RUN_LIMIT;
			}
			interp_single(c);
			continue;
		}
		struct block *b = block_find(c, bc, jump_tag(c, bc));
		block_enter(c, bc, b ? b : block_get(c));
		c->icount += block_done(c); /* the last one's of the chain */
		c->first = NULL;
	}
	fpu_save(c);
	return why_left(c);
}

enum run_exit interp_step(struct cpu *c)
{
	fpu_load(c);
	volatile bool done = false;
	if (_setjmp(c->jb)) {
		interp_caught(c);
		done = true;
	}
	interp_boundary(c);
	if (!done && (!(events_due(c) || c->activity != ACT_RUN) || cpu_service_events(c)))
		interp_single(c);
	fpu_save(c);
	return c->stopped || c->activity != ACT_RUN ? why_left(c) : RUN_LIMIT;
}

bool interp_init(struct cpu *c, struct interp *in, struct error *e)
{
	c->engine = in;
	op_index_build(&in->ops);
	in->quirks = cpu_isa_quirks(c);
	if (native_init(c, e)) {
		if (block_cache_init(c, e))
			return true;
		native_destroy(c);
	}
	c->engine = NULL;
	return false;
}

void interp_destroy(struct cpu *c)
{
	block_cache_destroy(c);
	native_destroy(c);
	c->engine = NULL;
	c->cur = c->first = NULL; /* were in the cache */
}

static bool vcpu_init(struct cpu *c, struct error *e)
{
	struct interp *in = calloc(1, sizeof(*in));
	if (!in)
		return error_set(e, "interp: out of memory");
	if (interp_init(c, in, e))
		return true;
	free(in);
	return false;
}

void interp_count(const struct cpu *c, struct counters *t)
{
	const struct block_cache *bc = interp_of(c)->blocks;
	u64 built = counter_read(&bc->built), decoded = counter_read(&bc->decoded);
	counters_group(t, "interpreter", 0);
	counter_add(t, "instructions", counter_read(&c->icount));
	counter_add(t, "blocks decoded", built);
	counter_ratio(t, "  instructions a block", decoded, built);
	counter_add(t, "blocks forgotten: no more room", counter_read(&bc->flushes));
	nested_count(c, t);
}

static void vcpu_destroy(struct cpu *c)
{
	struct interp *in = c->engine;
	interp_destroy(c);
	free(in);
}

/* Events are looked at after every block: nothing to do. */
static void kick(struct cpu *c) { (void)c; }

static bool usable(struct error *why_not) { (void)why_not; return true; }

const struct engine_ops interp_engine = {
	.name = "interp",
	.help = "one instruction at a time; the reference, runs anywhere",
	.usable = usable,
	.vcpu_init = vcpu_init,
	.vcpu_destroy = vcpu_destroy,
	.run = interp_run,
	.step = interp_step,
	.kick = kick,
	.count = interp_count,
};
