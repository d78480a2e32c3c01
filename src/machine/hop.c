/* Engine hops: all processors of a machine leave one engine between two instructions and go on in another. For
 * `ring3 ctl NAME engine`, and for --hop, which does it again and again as a test of engines.
 *
 * Invariants
 *  1. Nothing of the guest is an engine's: struct cpu, memory and devices are the whole machine, which stays
 *     where it is. A hop is no event that a guest can see; time stands still meanwhile.
 *  2. All processors leave before the first enters: engines share things between the processors of a machine.
 *  3. After a hop that has failed the machine is in the engine that it was in, or ends.
 *
 * A contained process maps no memory that can be executed (sandbox/), which engines that make code need: so hops
 * are refused then, before anything is left.
 * Threading: the loop's thread, but for the timer of --hop. */
#define LOG_TOPIC "machine"
#include <time.h>

#include "machine/machine_impl.h"
#include "sandbox/sandbox.h"

static bool enter_all(struct machine *m, const struct engine_choice *to, struct error *e)
{
	for (unsigned k = 0; k < m->n_cpus; k++)
		if (!vcpu_set_engine(m->cpus[k].vcpu, to->ops, to->options, e))
			return false;
	return true;
}

static void leave_all(struct machine *m)
{
	struct error none;
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_set_engine(m->cpus[k].vcpu, NULL, NULL, &none);
}

static bool all_may_move(const struct machine *m, const struct engine_choice *to, struct error *e)
{
	for (unsigned k = 0; k < m->n_cpus; k++)
		if (m->engine.ops->may_move && !m->engine.ops->may_move(m->cpus[k].cpu, to->ops, to->options, e))
			return false;
	return true;
}

/* Processors are paused. On true, what the engine was is the caller's. */
static bool move(struct machine *m, const struct engine_choice *to, struct error *e)
{
	struct error back;
	if (!all_may_move(m, to, e))
		return false;
	leave_all(m);
	if (enter_all(m, to, e)) {
		m->engine = *to;
		m->hops++;
		log_debug("in engine %s", to->ops->name);
		return true;
	}
	leave_all(m);
	if (!enter_all(m, &m->engine, &back)) {
		log_error("back to engine %s: %s", m->engine.ops->name, back.msg);
		machine_want_end(m, END_ERROR, "its processors have no engine: neither another nor the one that they had");
	}
	return false;
}

static bool may_leave(const struct engine_choice *from, struct error *e)
{
	return !from->ops->may_leave || from->ops->may_leave(from->options, e);
}

static bool may_hop(const struct machine *m, struct error *e)
{
	return m->cfg->sandbox == SANDBOX_OFF ? may_leave(&m->engine, e) :
	       error_set(e, "a contained machine cannot make the executable memory of another engine; start it with --sandbox off");
}

bool machine_set_engine(struct machine *m, const char *text, struct error *e)
{
	struct engine_choice from = m->engine, to;
	bool was_paused = m->paused;
	if (!may_hop(m, e))
		return false;
	machine_pause(m); /* auto measures, by the time of the whole process and with a signal that engines use */
	bool chosen = engine_choose(text, m->cfg->icount, &to, e), ok = chosen && move(m, &to, e);
	const struct engine_choice *over = ok ? &from : &to;
	if (chosen)
		engine_options_free(over->ops, over->options);
	if (!was_paused)
		machine_resume(m);
	return ok;
}

const char *machine_engine(const struct machine *m) { return m->engine.ops->name; }
const char *machine_engine_why(const struct machine *m) { return m->engine.why; }

/* ---- --hop --------------------------------------------------------------------------------------- */

/* On a busy host a processor may not have run since the last hop, and with another one it would not come to run at
 * all: it gets time, but no more than this many times as long. */
#define PATIENCE 10u

static u64 process_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

static bool has_run(struct machine *m)
{
	return m->clock.icount_mode || process_ns() - m->hop_cpu_ns >= m->cfg->hop.every * 1000 || ++m->hop_waits == PATIENCE;
}

/* In the machine lock; of deterministic time on the processor's thread: it stands before the next instruction. */
static void hop_is_due(void *arg)
{
	struct machine *m = arg;
	if (has_run(m)) {
		atomic_store(&m->hop_due, true);
		machine_stop_cpus_soon(m);
	}
	timer_arm(&m->hop_timer, clock_ns(&m->clock) + m->cfg->hop.every * 1000);
}

bool hop_choose(struct machine *m, struct error *e)
{
	const char *to = m->cfg->hop.to;
	return !to || (may_hop(m, e) && engine_choose(to, m->cfg->icount, &m->hop_to, e) && may_leave(&m->hop_to, e)) || error_prefix(e, "--hop");
}

void hop_start(struct machine *m)
{
	timer_init(&m->hop_timer, &m->clock, hop_is_due, m);
	mem_lock(&m->mem);
	if (m->hop_to.ops)
		timer_arm(&m->hop_timer, m->cfg->hop.every * 1000);
	mem_unlock(&m->mem);
}

void hop_carry_out(struct machine *m)
{
	struct engine_choice from = m->engine;
	struct error e;
	bool was_paused = m->paused;
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_pause(m->cpus[k].vcpu);
	machine_pause(m);
	if (move(m, &m->hop_to, &e))
		m->hop_to = from;
	else
		machine_want_end(m, END_ERROR, e.msg);
	if (!was_paused)
		machine_resume(m);
	m->hop_cpu_ns = process_ns();
	m->hop_waits = 0;
}

void hop_stop(struct machine *m)
{
	if (m->hop_timer.queue && timer_armed(&m->hop_timer))
		timer_cancel(&m->hop_timer);
	if (m->hop_to.ops)
		engine_options_free(m->hop_to.ops, m->hop_to.options);
}
