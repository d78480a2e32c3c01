/* One thread looks every few milliseconds at which run is under way. State is the process's: it has
 * one loop of runs. What counts is the processor time that the run has had: on a busy host a short one may take long. */
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "watch.h"

enum { TICK_MS = 20 };
static struct {
	pthread_mutex_t lock;
	const struct engine_ops *ops;
	struct cpu *c;
	clockid_t clock;      /* of the thread that runs */
	_Atomic u64 run;      /* odd: under way */
	_Atomic unsigned patience_ms;
} watch = { .lock = PTHREAD_MUTEX_INITIALIZER, .patience_ms = 3000 };

void watch_patience(unsigned ms) { watch.patience_ms = ms; }

void watch_begin(const struct engine_ops *ops, struct cpu *c)
{
	watch.ops = ops;
	watch.c = c;
	pthread_getcpuclockid(pthread_self(), &watch.clock);
	atomic_fetch_add_explicit(&watch.run, 1, memory_order_release);
}

void watch_end(void)
{
	atomic_fetch_add_explicit(&watch.run, 1, memory_order_release);
	/* Not before the watchdog is done with it. */
	pthread_mutex_lock(&watch.lock);
	pthread_mutex_unlock(&watch.lock);
}

static u64 ms_had(void)
{
	struct timespec t;
	clock_gettime(watch.clock, &t);
	return (u64)t.tv_sec * 1000 + (u64)t.tv_nsec / 1000000;
}

static void *look(void *arg)
{
	u64 seen = 0, from = 0;
	(void)arg;
	for (;;) {
		nanosleep(&(struct timespec){ .tv_nsec = TICK_MS * 1000000 }, NULL);
		u64 now = atomic_load_explicit(&watch.run, memory_order_acquire);
		if (!(now & 1))
			continue;
		if (now != seen) {
			from = ms_had();
			seen = now;
		}
		if (ms_had() - from < watch.patience_ms)
			continue;
		pthread_mutex_lock(&watch.lock);
		if (atomic_load(&watch.run) == seen) {
			cpu_post_event(watch.c, EV_EXIT);
			if (watch.ops->kick)
				watch.ops->kick(watch.c);
		}
		pthread_mutex_unlock(&watch.lock);
	}
	return NULL;
}

void watch_start(void)
{
	pthread_t t;
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	if (pthread_create(&t, NULL, look, NULL))
		bug("no thread for the watchdog");
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_detach(t);
}
