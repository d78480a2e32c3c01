/* See hops.h. Called back by a signal of a timer, so that it comes at any host instruction of the engine away. The
 * state is the process's: it has one loop of runs. */
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "hops.h"
#include "watch.h"

enum { HOME_MOST = 24 /* instructions */, AWAY_LEAST_NS = 4000, AWAY_DOUBLINGS = 10 };

static struct {
	struct cpu *c;
	const struct engine_ops *ops;
	timer_t timer;
	bool made;
	_Atomic bool called;
	u64 away, back;
} h;

static void call_back(int sig)
{
	(void)sig;
	h.called = true;
	cpu_post_event(h.c, EV_EXIT);
	if (h.ops->kick)
		h.ops->kick(h.c);
}

/* The kick's own signal waits for this one's end: it must interrupt what this one did. */
static void make_timer(void)
{
	struct sigaction a = { .sa_handler = call_back, .sa_flags = SA_ONSTACK | SA_RESTART };
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM };
	ev._sigev_un._tid = gettid();
	sigfillset(&a.sa_mask);
	if (sigaction(SIGALRM, &a, NULL) || timer_create(CLOCK_MONOTONIC, &ev, &h.timer))
		bug("no timer for hops");
	h.made = true;
}

static void call_back_in(u64 ns)
{
	const struct itimerspec t = { .it_value = { .tv_nsec = (long)ns } };
	timer_settime(h.timer, 0, &t, NULL);
}

static u64 draw(u64 *seed, u64 below)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return (*seed >> 33) % below;
}

static void change(struct cpu *c, const struct engine_ops *from, const struct engine_ops *to)
{
	struct error e;
	from->vcpu_destroy(c);
	if (!to->vcpu_init(c, &e))
		bug("no hop to %s: %s", to->name, e.msg);
}

static enum run_exit watched_run(struct cpu *c, const struct engine_ops *ops)
{
	watch_begin(ops, c);
	enum run_exit why = ops->run(c);
	watch_end();
	return why;
}

enum run_exit hops_run(struct cpu *c, const struct engine_ops *home, const struct engine_ops *away, u64 *seed)
{
	if (!h.made)
		make_timer();
	c->icount_limit = c->icount + draw(seed, HOME_MOST);
	enum run_exit why = watched_run(c, home);
	c->icount_limit = UINT64_MAX;
	if (why != RUN_LIMIT)
		return why;
	h.away++;
	change(c, home, away);
	h.c = c;
	h.ops = away;
	h.called = false;
	u64 least = (u64)AWAY_LEAST_NS << draw(seed, AWAY_DOUBLINGS); /* of all lengths: it translates first, which takes long */
	call_back_in(least + draw(seed, least));
	why = watched_run(c, away);
	call_back_in(0);
	bool cut = h.called && why == RUN_EVENT;
	if (h.called)
		cpu_clear_event(c, EV_EXIT);
	change(c, away, home);
	if (!cut)
		return why;
	h.back++;
	return watched_run(c, home);
}

void hops_count(u64 *away, u64 *back)
{
	*away = h.away;
	*back = h.back;
}
