/* A processor's thread: runs its engine, sleeps while it is halted, stands still while paused.
 *
 * Invariants
 *  1. Between vcpu_start and vcpu_destroy the thread owns struct cpu, save while it is paused:
 *     then who paused it does. Others only post events.
 *  2. `lock` is a leaf: nothing else is locked while it is held, so that vcpu_post may be called
 *     with any lock held. vcpu_pause and vcpu_destroy wait for the thread, which may want the
 *     machine lock: their caller must not hold it.
 *  3. No wake-up is lost: a poster sets the event, then looks at `sleeping`; the thread sets
 *     `sleeping`, then looks at the events, and waits under the lock.
 *  4. EV_EXIT only makes the engine return; the thread clears it before it looks at what is
 *     wanted of it.
 *  5. What the engine keeps of a processor comes and goes on the thread, while it is paused
 *     (vcpu_set_engine); all that lasts is in struct cpu. An engine is kicked under the lock,
 *     and only while `ops` names it, which is not so while it comes or goes.
 *  6. While the engine runs, the host's `alarm` is armed for the first deadline of `timers`, or earlier. Its
 *     signal is the thread's own, and makes the engine return (EV_EXIT) to a loop that runs what is due. So the
 *     tick of a guest, which its processor's LAPIC makes, is no other thread's business, nor does it wait for one.
 *
 * icount mode (deterministic time): the thread itself moves the clock and runs the timers. It
 * runs in slices that end at the next deadline; a halted processor's time goes on to the next
 * deadline at once. An access to a device ends a slice, and what it has begun on other threads (requests to
 * disks, rings of virtio) ends before the next instruction: for the guest they take no time, and always the
 * same. One processor only: several would need their turns fixed, too. */
#define LOG_TOPIC "vcpu"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "base/signals_api.h"
#include "engine/engine.h"

struct vcpu {
	struct cpu *cpu;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;    /* of what follows, and of events while sleeping */
	const struct engine_ops *ops;  /* changed under the lock; NULL: none */
	const struct engine_ops *next; /* wanted in its place, while ... */
	const void *next_options;
	bool want_change;
	bool want_pause, want_end; /* written by others under the lock */
	bool paused;
	enum { STARTING, READY, FAILED } started;
	_Atomic bool sleeping;
	void (*stopped)(void *arg, struct cpu *c);
	void *stopped_arg;
	bool stopped_told;
	u64 stopped_at;            /* c->icount then */
	void (*thread_init)(void *arg);
	void *thread_init_arg;
	u64 (*checkpoint)(void *arg, struct cpu *c);
	void *checkpoint_arg;
	u64 checkpoint_at;
	bool (*under_way)(void *arg); /* icount mode */
	void *under_way_arg;
	u32 looks;                    /* under the lock: calls of vcpu_look_again */
	void (*old_wake)(void *arg); /* icount mode: the clock's, which ours calls */
	void *old_wake_arg;
	u64 mwait_ns;                /* how long to sleep before the next look at the line */
	struct timer_queue *timers;  /* which the thread runs; NULL: none, and always so in icount mode */
	timer_t alarm;               /* the host's, for the first of them while the engine runs: invariant 6 */
	bool alarm_set;              /* it is there */
	_Atomic u64 alarm_at;        /* CLOCK_MONOTONIC; 0: not armed */
	u64 alarm_from;              /* no other before: see ALARM_GAP_NS */
	struct error error;          /* of the last vcpu_init */
};

#define SIG_ALARM SIGVTALRM

/* So long the engine runs between two alarms: they and what they bring about take some microseconds, and a guest whose timer
 * has a shorter period would come to nothing else. */
#define ALARM_GAP_NS 50000u

/* MWAIT looks at its line this often: at first, and at most after a long wait. */
#define MWAIT_FIRST_NS 50000u
#define MWAIT_LAST_NS 4000000u
/* The longest slice of icount mode: what a device's clock can lag behind. */
#define SLICE 16384u

/* ---- sleeping ------------------------------------------------------------------------------- */

/* Events that end the present kind of rest. */
static u32 wake_mask(const struct cpu *c)
{
	/* VMX root operation and GIF = 0 hold some of them. */
	const u32 control = EV_EXIT | EV_TLB | ((EV_INIT | EV_SIPI | EV_SMI | EV_NESTED) & c->event_mask);
	if (c->stopped || c->activity == ACT_WAIT_SIPI)
		return control;
	if (c->activity == ACT_SHUTDOWN)
		return control | (c->event_mask & EV_NMI);
	return c->event_mask | control | (c->activity == ACT_MWAIT ? EV_INTR | EV_NMI : 0);
}

static bool resting(const struct cpu *c) { return c->stopped || c->activity != ACT_RUN; }

/* The monitored line is not what MONITOR saw, or is no longer there. */
static bool line_written(const struct cpu *c)
{
	const u8 *line = mem_ram(c->mem, c->monitor_gpa);
	return !c->monitor_armed || !line || memcmp(line, c->monitor_line, sizeof(c->monitor_line));
}

static u64 host_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

/* CLOCK_MONOTONIC; UINT64_MAX: none. */
static u64 first_deadline(const struct vcpu *v)
{
	u64 ns = v->timers ? atomic_load(&v->timers->next_deadline) : UINT64_MAX;
	return ns == UINT64_MAX ? ns : clock_host_ns(v->cpu->clock, ns);
}

/* One wait: until an event, a request, a timer's deadline or, in MWAIT, the time for another look. */
static void sleep_once(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	u64 at = first_deadline(v);
	if (c->activity == ACT_MWAIT && !c->stopped)
		at = MIN(at, host_now() + v->mwait_ns);
	struct timespec until = { (time_t)(at / 1000000000), (long)(at % 1000000000) };
	pthread_mutex_lock(&v->lock);
	atomic_store(&v->sleeping, true);
	int timeout = 0;
	while (!timeout && !v->want_pause && !v->want_end && !(atomic_load(&c->events) & wake_mask(c)))
		timeout = at != UINT64_MAX ? pthread_cond_timedwait(&v->changed, &v->lock, &until)
					   : pthread_cond_wait(&v->changed, &v->lock);
	atomic_store(&v->sleeping, false);
	pthread_mutex_unlock(&v->lock);
}

static void rest(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	if (c->activity != ACT_MWAIT || c->stopped) {
		sleep_once(v);
		return;
	}
	if (line_written(c)) {
		c->monitor_armed = false;
		c->activity = ACT_RUN;
		v->mwait_ns = MWAIT_FIRST_NS;
		return;
	}
	sleep_once(v);
	v->mwait_ns = MIN(v->mwait_ns + v->mwait_ns / 4, MWAIT_LAST_NS);
}

void vcpu_post(struct vcpu *v, u32 events)
{
	cpu_post_event(v->cpu, events);
	pthread_mutex_lock(&v->lock);
	if (atomic_load(&v->sleeping))
		pthread_cond_broadcast(&v->changed);
	else if (v->ops && v->ops->kick)
		v->ops->kick(v->cpu);
	pthread_mutex_unlock(&v->lock);
}

/* ---- timers ----------------------------------------------------------------------------------- */

/* On the thread itself; between any two of its instructions, translated ones among them. */
static void on_alarm(int sig, siginfo_t *si, void *context)
{
	(void)sig, (void)context;
	if (si->si_code != SI_TIMER)
		return; /* somebody sent it */
	struct vcpu *v = si->si_value.sival_ptr;
	atomic_store(&v->alarm_at, 0);
	cpu_post_event(v->cpu, EV_EXIT);
	if (v->ops && v->ops->kick)
		v->ops->kick(v->cpu);
}

static bool alarm_make(struct vcpu *v, struct error *e)
{
	struct sigaction a = { .sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIG_ALARM, .sigev_value.sival_ptr = v };
	sigset_t set;

	sigfillset(&a.sa_mask); /* an engine's kick finds what was interrupted, not on_alarm */
	ev._sigev_un._tid = gettid();
	v->alarm_set = !sigaction(SIG_ALARM, &a, NULL) && !timer_create(CLOCK_MONOTONIC, &ev, &v->alarm);
	if (!v->alarm_set)
		return error_set(e, "no timer for processor %u: %m", v->cpu->index);
	sigemptyset(&set);
	sigaddset(&set, SIG_ALARM);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* sleeping, too, ends when it should */
	return true;
}

/* Before the engine runs, and while it does. An alarm too early is harmless, one for nothing is not called back. */
static void alarm_arm(struct vcpu *v)
{
	u64 at = first_deadline(v), armed = atomic_load(&v->alarm_at);
	if (at == UINT64_MAX)
		return;
	if (!armed)
		v->alarm_from = host_now() + ALARM_GAP_NS;
	at = MAX(at, v->alarm_from);
	if (at == armed)
		return;
	struct itimerspec t = { .it_value = { (time_t)(at / 1000000000), (long)(at % 1000000000) } };
	atomic_store(&v->alarm_at, at); /* not after: it may be due at once */
	timer_settime(v->alarm, TIMER_ABSTIME, &t, NULL);
}

/* A timer came to be the earliest: its own thread, in the engine, or another's, who reset a LAPIC. Machine lock held. */
static void timers_moved(void *arg)
{
	struct vcpu *v = arg;
	if (pthread_equal(pthread_self(), v->thread))
		alarm_arm(v);
	else
		vcpu_post(v, EV_EXIT);
}

static void run_timers(struct cpu *c, struct timer_queue *q)
{
	u64 next = atomic_load(&q->next_deadline);
	if (next == UINT64_MAX || next > clock_ns(c->clock))
		return;
	mem_lock(c->mem);
	timer_queue_run(q);
	mem_unlock(c->mem);
}

/* ---- running ---------------------------------------------------------------------------------- */

/* Runs the engine once; a stop is told once, but each one: INIT may have started the processor
 * and it may have stopped again, all within this run. */
static void run_engine(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	if (!v->ops)
		bug("processor %u was resumed without an engine", c->index);
	if (!c->stopped)
		v->stopped_told = false;
	v->ops->run(c);
	if (!c->stopped || (v->stopped_told && v->stopped_at == c->icount))
		return;
	v->stopped_told = true;
	v->stopped_at = c->icount;
	if (v->stopped)
		v->stopped(v->stopped_arg, c);
}

static bool has_event(const struct cpu *c)
{
	return atomic_load(&((struct cpu *)(uintptr_t)c)->events) & wake_mask(c);
}

static void turn(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	if (v->timers)
		run_timers(c, v->timers);
	if (resting(c) && !has_event(c) && (c->stopped || !c->engine_rests)) {
		rest(v);
		return;
	}
	v->mwait_ns = MWAIT_FIRST_NS;
	alarm_arm(v);
	run_engine(v);
}

/* ---- icount mode --------------------------------------------------------------------------------- */

/* A timer came to be the earliest: the slice may end too late for it. */
static void icount_wake(void *arg)
{
	struct vcpu *v = arg;
	vcpu_post(v, EV_EXIT);
	if (v->old_wake)
		v->old_wake(v->old_wake_arg);
}

static void icount_take_clock(struct vcpu *v)
{
	struct timer_queue *q = &v->cpu->clock->timers;
	if (q->wake == icount_wake)
		return;
	v->old_wake = q->wake;
	v->old_wake_arg = q->wake_arg;
	q->wake_arg = v;
	q->wake = icount_wake;
}

static void icount_slice(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	struct clock *k = c->clock;
	u64 limit = c->icount + SLICE, deadline = clock_icount_at(k, atomic_load(&k->timers.next_deadline));
	if (deadline > c->icount_skipped)
		limit = MIN(limit, MAX(deadline - c->icount_skipped, c->icount + 1));
	c->icount_limit = MIN(limit, MAX(v->checkpoint_at, c->icount + 1));
	run_engine(v);
	u64 now = c->icount + c->icount_skipped;
	if (now > atomic_load(&k->icount))
		atomic_store(&k->icount, now);
}

/* Waits until nothing is under way. False: something else is wanted of the thread. */
static bool icount_settle(struct vcpu *v)
{
	bool go = true;

	while (go && v->under_way) {
		pthread_mutex_lock(&v->lock);
		u32 looks = v->looks;
		pthread_mutex_unlock(&v->lock);
		if (!v->under_way(v->under_way_arg))
			return true;
		pthread_mutex_lock(&v->lock);
		while (looks == v->looks && !v->want_pause && !v->want_end)
			pthread_cond_wait(&v->changed, &v->lock);
		go = !v->want_pause && !v->want_end;
		pthread_mutex_unlock(&v->lock);
	}
	return go;
}

static void icount_turn(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	struct clock *k = c->clock;
	if (!icount_settle(v))
		return;
	/* Time never goes back, also where a reset has set the count to 0. */
	c->icount_skipped = atomic_load(&k->icount) - c->icount;
	if (v->checkpoint && c->icount >= v->checkpoint_at) {
		v->checkpoint_at = v->checkpoint(v->checkpoint_arg, c);
		return; /* it may have asked for a stop */
	}
	run_timers(c, &k->timers);
	if (!icount_settle(v))
		return;
	if (!resting(c) || has_event(c)) {
		icount_slice(v);
		return;
	}
	if (c->activity == ACT_MWAIT && line_written(c)) {
		c->monitor_armed = false;
		c->activity = ACT_RUN;
		return;
	}
	u64 next = atomic_load(&k->timers.next_deadline);
	if (next == UINT64_MAX || c->stopped) {
		v->mwait_ns = MWAIT_LAST_NS;
		sleep_once(v);
	} else {
		clock_advance_to(k, next);
	}
}

/* ---- the thread ------------------------------------------------------------------------------------- */

/* Another engine, or none. The lock is held, but not meanwhile. */
static void change_engine(struct vcpu *v)
{
	struct cpu *c = v->cpu;
	const struct engine_ops *old = v->ops, *next = v->next;
	v->ops = NULL;
	pthread_mutex_unlock(&v->lock);
	if (old)
		old->vcpu_destroy(c);
	c->engine_options = v->next_options;
	bool ok = next && next->vcpu_init(c, &v->error);
	pthread_mutex_lock(&v->lock);
	v->ops = ok ? next : NULL;
	v->want_change = false;
}

/* Stands still while that is wanted. False: the end. */
static bool may_go_on(struct vcpu *v)
{
	cpu_clear_event(v->cpu, EV_EXIT);
	pthread_mutex_lock(&v->lock);
	while (v->want_pause && !v->want_end) {
		if (v->want_change)
			change_engine(v);
		v->paused = true;
		pthread_cond_broadcast(&v->changed);
		pthread_cond_wait(&v->changed, &v->lock);
	}
	v->paused = false;
	bool go = !v->want_end;
	pthread_mutex_unlock(&v->lock);
	return go;
}

static void announce(struct vcpu *v, bool ok)
{
	pthread_mutex_lock(&v->lock);
	v->started = ok ? READY : FAILED;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
}

static void *thread_main(void *arg)
{
	struct vcpu *v = arg;
	struct cpu *c = v->cpu;
	char name[16];
	snprintf(name, sizeof(name), "vcpu%u", c->index);
	pthread_setname_np(pthread_self(), name);
	signals_for_others(NULL);
	bool ok = (c->clock->icount_mode || alarm_make(v, &v->error)) && v->ops->vcpu_init(c, &v->error);
	announce(v, ok);
	if (!ok)
		return NULL;
	bool first = true;
	while (may_go_on(v)) {
		if (first && v->thread_init)
			v->thread_init(v->thread_init_arg);
		if (first && c->clock->icount_mode)
			icount_take_clock(v);
		first = false;
		if (c->clock->icount_mode)
			icount_turn(v);
		else
			turn(v);
	}
	if (v->ops)
		v->ops->vcpu_destroy(c);
	return NULL;
}

/* ---- for others ------------------------------------------------------------------------------------------ */

static bool init_sync(struct vcpu *v)
{
	pthread_condattr_t a;
	if (pthread_condattr_init(&a))
		return false;
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	bool ok = !pthread_mutex_init(&v->lock, NULL) && !pthread_cond_init(&v->changed, &a);
	pthread_condattr_destroy(&a);
	return ok;
}

static void vcpu_free(struct vcpu *v)
{
	pthread_cond_destroy(&v->changed);
	pthread_mutex_destroy(&v->lock);
	free(v);
}

struct vcpu *vcpu_start(struct cpu *c, const struct engine_ops *ops, void (*stopped)(void *arg, struct cpu *c),
			void *arg, struct error *e)
{
	struct vcpu *v = calloc(1, sizeof(*v));
	if (!v || !init_sync(v)) {
		free(v);
		error_set(e, "no memory for the thread of processor %u", c->index);
		return NULL;
	}
	v->cpu = c;
	v->ops = ops;
	v->stopped = stopped;
	v->stopped_arg = arg;
	v->want_pause = true;
	v->mwait_ns = MWAIT_FIRST_NS;
	v->checkpoint_at = UINT64_MAX;
	int err = pthread_create(&v->thread, NULL, thread_main, v);
	if (err) {
		vcpu_free(v);
		error_set(e, "no thread for processor %u: %s", c->index, strerror(err));
		return NULL;
	}
	pthread_mutex_lock(&v->lock);
	while (v->started == STARTING)
		pthread_cond_wait(&v->changed, &v->lock);
	pthread_mutex_unlock(&v->lock);
	if (v->started == READY)
		return v;
	pthread_join(v->thread, NULL);
	*e = v->error;
	if (v->alarm_set)
		timer_delete(v->alarm);
	vcpu_free(v);
	return NULL;
}

void vcpu_set_thread_init(struct vcpu *v, void (*fn)(void *arg), void *arg)
{
	v->thread_init = fn;
	v->thread_init_arg = arg;
}

void vcpu_set_timers(struct vcpu *v, struct timer_queue *q)
{
	if (v->cpu->clock->icount_mode)
		return;
	v->timers = q;
	q->wake_arg = v;
	q->wake = timers_moved;
}

void vcpu_set_checkpoint(struct vcpu *v, u64 first, u64 (*fn)(void *arg, struct cpu *c), void *arg)
{
	v->checkpoint = fn;
	v->checkpoint_arg = arg;
	v->checkpoint_at = first;
}

void vcpu_set_under_way(struct vcpu *v, bool (*fn)(void *arg), void *arg)
{
	v->under_way = fn;
	v->under_way_arg = arg;
}

void vcpu_look_again(struct vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	v->looks++;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
}

void vcpu_resume(struct vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	v->want_pause = false;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
}

/* Tells the thread to look at what is wanted, wherever it is. */
static void want(struct vcpu *v, bool *what)
{
	pthread_mutex_lock(&v->lock);
	*what = true;
	pthread_cond_broadcast(&v->changed);
	pthread_mutex_unlock(&v->lock);
	vcpu_post(v, EV_EXIT);
}

void vcpu_hold(struct vcpu *v) { want(v, &v->want_pause); }

void vcpu_pause(struct vcpu *v)
{
	if (pthread_equal(pthread_self(), v->thread))
		bug("vcpu_pause on the processor's own thread");
	want(v, &v->want_pause);
	pthread_mutex_lock(&v->lock);
	while (!v->paused)
		pthread_cond_wait(&v->changed, &v->lock);
	pthread_mutex_unlock(&v->lock);
}

bool vcpu_set_engine(struct vcpu *v, const struct engine_ops *ops, const void *options, struct error *e)
{
	pthread_mutex_lock(&v->lock);
	if (!v->paused)
		bug("vcpu_set_engine while processor %u runs", v->cpu->index);
	v->next = ops;
	v->next_options = options;
	v->want_change = true;
	pthread_cond_broadcast(&v->changed);
	while (v->want_change)
		pthread_cond_wait(&v->changed, &v->lock);
	bool ok = v->ops == ops;
	pthread_mutex_unlock(&v->lock);
	if (!ok)
		*e = v->error;
	return ok;
}

void vcpu_destroy(struct vcpu *v)
{
	if (!v)
		return;
	want(v, &v->want_end);
	pthread_join(v->thread, NULL);
	struct timer_queue *q = &v->cpu->clock->timers;
	if (q->wake == icount_wake && q->wake_arg == v) {
		q->wake = v->old_wake;
		q->wake_arg = v->old_wake_arg;
	}
	if (v->timers)
		v->timers->wake = NULL;
	if (v->alarm_set)
		timer_delete(v->alarm);
	vcpu_free(v);
}
