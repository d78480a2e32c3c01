/* What an engine is: the one interface of interp/, bt/ and kvm/, which engine/ drives. */
#ifndef RING3_ENGINE_API_H
#define RING3_ENGINE_API_H

#include "cpu/cpu.h"

enum run_exit {
	RUN_EVENT,    /* EV_EXIT was posted */
	RUN_HALT,     /* HLT, MWAIT, wait-for-SIPI: nothing to do until an event */
	RUN_LIMIT,    /* icount_limit reached */
	RUN_STOPPED,  /* triple fault or shutdown: c->stopped */
};

#define ENGINE_NAME { "name", KV_STR, 0, "the engine" }

struct engine_ops {
	const char *name;       /* "interp", "bt", "kvm" */
	const char *help;
	bool (*usable)(struct error *why_not);
	/* Whether --engine auto takes it where it is usable: what measuring it has shown, in words, either way. It may
	 * take some ms. NULL: it does, where nothing better is. */
	bool (*worth)(struct error *found);
	bool uncounted;         /* it cannot count instructions, which --icount needs */
	/* Takes from a model what the engine cannot do on this host with these options (cpu->engine_options); false: one
	 * that was asked for by name. NULL: it can do all that a model may have. Before there are processors. */
	bool (*fit_model)(struct cpu_model *m, const void *options, struct error *e);
	/* On the vCPU's thread, before the first run() or between two: a machine may move from engine to engine as it
	 * runs. What a processor is at such a boundary is in struct cpu, whole, where vcpu_destroy leaves it and
	 * vcpu_init finds it: its TLB too, which an engine flushes whose guest may have changed tables unseen. */
	bool (*vcpu_init)(struct cpu *c, struct error *e);
	/* Whether a machine with these options may go on in another engine; NULL: always. */
	bool (*may_leave)(const void *options, struct error *e);
	/* Whether this processor, which is paused, may go on in engine `to` with these options; NULL: always. */
	bool (*may_move)(const struct cpu *c, const struct engine_ops *to, const void *options, struct error *e);
	void (*vcpu_destroy)(struct cpu *c);
	/* Runs until an exit; on the vCPU's thread; returns with fpu state saved and c->rip exact. */
	enum run_exit (*run)(struct cpu *c);
	/* Delivers the events that are due, then runs one instruction, or delivers what it raises,
	 * whatever c->icount_limit; no instruction where an event stops the processor or it rests. */
	enum run_exit (*step)(struct cpu *c);
	/* --engine NAME,KEY=VALUE,...: fields of a structure of so many bytes, which cpu->engine_options points
	 * to. All zero is the default, as is NULL. The first key is ENGINE_NAME. No keys: it has no options. */
	const struct kv_key *keys;
	size_t n_keys, options_bytes;
	/* Adds this processor's counters, always the same ones. Any thread, while the processor runs. NULL: none. */
	void (*count)(const struct cpu *c, struct counters *t);
	/* Makes run() return soon; any thread; called after an event was posted. */
	void (*kick)(struct cpu *c);
};

#endif
