/* engine: what runs a processor. An engine is one struct engine_ops and one line in
 * engines[]; vCPU threads, pausing, kicking and single-stepping are the same for all. */
#ifndef RING3_ENGINE_H
#define RING3_ENGINE_H

#include "cpu/cpu.h"
#include "cpu/engine_api.h"

extern const struct engine_ops *const engines[]; /* NULL at the end; best first */
const struct engine_ops *engine_find(const char *name);
/* What --engine says, "NAME[,KEY=VALUE...]" ("auto": the first that this host can run, and that is worth it where that
 * can be measured): the engine and its options, for vcpu_set_engine and cpu->engine_options, to be freed by
 * engine_options_free. icount: auto takes one that counts instructions. False: error is set, nothing to free. */
struct engine_choice {
	const struct engine_ops *ops;
	void *options;
	char why[200]; /* of auto: what it went by; else "" */
};
bool engine_choose(const char *text, bool icount, struct engine_choice *choice, struct error *e);
/* What auto has taken (choice) will not do, for this reason: the next best one in its place. False: as above, choice is empty. */
bool engine_choose_next(const char *text, bool icount, const char *why_not, struct engine_choice *choice, struct error *e);
/* The engine that auto takes here. why: what it went by. */
const struct engine_ops *engine_auto(bool icount, char *why, size_t cap);
void engine_options_free(const struct engine_ops *ops, void *options);
void engine_help(void);

/* A processor and its thread (vcpu.c). */
struct vcpu;
struct vcpu *vcpu_start(struct cpu *c, const struct engine_ops *ops, void (*stopped)(void *arg, struct cpu *c),
			void *arg, struct error *e); /* starts paused */
void vcpu_resume(struct vcpu *v);
void vcpu_pause(struct vcpu *v);   /* returns when it stands between two instructions */
void vcpu_hold(struct vcpu *v);    /* the same without waiting; any thread, its own too, any lock */
/* A paused processor goes on with this engine, by these options (engine_options), which stay the caller's.
 * NULL: it has none, and must not be resumed. All processors of a machine leave one engine before the first
 * enters the next. False: e says why it cannot be entered; the processor then has none. */
bool vcpu_set_engine(struct vcpu *v, const struct engine_ops *ops, const void *options, struct error *e);
void vcpu_destroy(struct vcpu *v);
/* Posts events and wakes or kicks the thread; any thread, any lock. */
void vcpu_post(struct vcpu *v, u32 events);
void vcpu_set_thread_init(struct vcpu *v, void (*fn)(void *arg), void *arg); /* runs once on the thread */
/* Timers that the thread runs, sleeping or not, as it goes on between two instructions; with the machine lock, which their
 * arming takes, too. Before the first resume. In icount mode they are the clock's (timer_move). */
void vcpu_set_timers(struct vcpu *v, struct timer_queue *q);

/* icount mode: fn is called on the vCPU's thread, with its state saved, when the instruction count
 * reaches `first`; it returns the next count (UINT64_MAX: no more). Before the first resume. */
void vcpu_set_checkpoint(struct vcpu *v, u64 first, u64 (*fn)(void *arg, struct cpu *c), void *arg);
/* icount mode: as long as fn, called on the vCPU's thread, says that what devices have begun on other threads is under way,
 * no instruction is run; it is asked again at each vcpu_look_again. Before the first resume. */
void vcpu_set_under_way(struct vcpu *v, bool (*fn)(void *arg), void *arg);
void vcpu_look_again(struct vcpu *v);  /* any thread */

#endif
