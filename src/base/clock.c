/* The machine's clock: guest nanoseconds, the guest's TSC, and the timers that devices arm, in queues.
 *
 * real mode: ns is CLOCK_MONOTONIC from an origin, the TSC is the host's plus an offset. Both
 * start at 0 together. ns is not derived from the TSC: CLOCK_MONOTONIC follows the wall
 * clock's rate for days, and what the two differ by is what they differ by on the host, a
 * few parts in a million, which guests correct as they do on real machines.
 * icount mode: ns and TSC both are a function of instructions run, so two runs are alike.
 *
 * Invariants, of each queue
 *  1. The heap is ordered by (deadline, seq); seq counts armings, so that timers of the same
 *     deadline fire in the order in which they were armed.
 *  2. heap[t->heap_pos] == t for every armed timer; heap_pos is -1 for the others.
 *  3. next_deadline is heap[0]->deadline, UINT64_MAX when the heap is empty.
 * Threading: clock_ns, clock_tsc and next_deadline from any thread. Timers, timer_queue_run,
 * pause, resume and set with the machine lock held; the last three also with all vCPUs
 * stopped, whose queues' wake they do not call: a vCPU looks anew when it goes on.
 * clock_advance only from the boot vCPU's thread. */
#define LOG_TOPIC "clock"
#include "base/base.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#define CALIBRATE_NS 20000000ull /* when nothing else knows the TSC's rate */
#define CHECK_NS 2000000ull      /* to check what claims to know it */
#define CHECK_PPM 2000           /* it may be off by that much before it is not believed */
#define MAX_CALLS_A_RUN 4096     /* the machine lock is not held without end */

static u64 host_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (u64)ts.tv_sec * 1000000000ull + (u64)ts.tv_nsec;
}

/* ---- the TSC's rate ------------------------------------------------------------------ */

struct sample {
	u64 ns, tsc;
};

/* Clock and TSC at the same moment: the pair with the least time around it, out of some. */
static struct sample sample_pair(clockid_t id)
{
	struct sample best = { 0, 0 };
	u64 best_gap = UINT64_MAX;

	for (int i = 0; i < 16; i++) {
		u64 a = __rdtsc(), ns = host_ns(id), b = __rdtsc();
		if (b - a < best_gap) {
			best_gap = b - a;
			best = (struct sample){ ns, a + (b - a) / 2 };
		}
	}
	return best;
}

static u64 measure_tsc_hz(u64 for_ns)
{
	struct sample a = sample_pair(CLOCK_MONOTONIC_RAW), b;
	struct timespec ts = { 0, (long)for_ns };

	nanosleep(&ts, NULL);
	do
		b = sample_pair(CLOCK_MONOTONIC_RAW);
	while (b.ns - a.ns < for_ns);
	return (u64)((u128)(b.tsc - a.tsc) * 1000000000u / (b.ns - a.ns));
}

/* What the processor or a hypervisor below says, 0 if neither does. Leaf 15h: the TSC's rate
 * as a fraction of the crystal's. Leaf 4000_0010h: kHz, a convention of hypervisors. Leaf 16h
 * is a rounded figure for people and is not used. */
static u64 stated_tsc_hz(void)
{
	u32 a, b, c, d;

	if (__get_cpuid(0x15, &a, &b, &c, &d) && a && b && c)
		return (u64)c * b / a;
	if (__get_cpuid(1, &a, &b, &c, &d) && (c >> 31)) {
		__cpuid(0x40000000, a, b, c, d);
		if (a >= 0x40000010 && a < 0x40010000) {
			__cpuid(0x40000010, a, b, c, d);
			return (u64)a * 1000;
		}
	}
	return 0;
}

static u64 sysfs_tsc_hz(void)
{
	unsigned long long khz = 0;
	FILE *f = fopen("/sys/devices/system/cpu/cpu0/tsc_freq_khz", "re");

	if (!f)
		return 0;
	if (fscanf(f, "%llu", &khz) != 1)
		khz = 0;
	fclose(f);
	return khz * 1000;
}

static bool close_to(u64 a, u64 b)
{
	u64 diff = a > b ? a - b : b - a;

	return (u128)diff * 1000000 <= (u128)b * CHECK_PPM;
}

static u64 find_tsc_hz(void)
{
	u64 stated = stated_tsc_hz();

	if (!stated)
		stated = sysfs_tsc_hz();
	if (stated && close_to(stated, measure_tsc_hz(CHECK_NS)))
		return stated;
	u64 hz = measure_tsc_hz(CALIBRATE_NS);
	/* The short check may have been disturbed; the long one decides. */
	return stated && close_to(stated, hz) ? stated : hz;
}

static bool tsc_invariant(void)
{
	u32 a, b, c, d;

	return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & 0x100);
}

/* ---- the clock ----------------------------------------------------------------------- */

bool clock_init(struct clock *c, bool icount_mode, struct error *e)
{
	memset(c, 0, sizeof(*c));
	c->icount_mode = icount_mode;
	timer_queue_init(&c->timers, c);
	if (icount_mode) {
		c->icount_ns_mul = 1 << 16;
		c->tsc_hz = 1000000000;
		return true;
	}
	c->tsc_hz = find_tsc_hz();
	if (c->tsc_hz < 1000000)
		return error_set(e, "the host's TSC does not count (%llu Hz measured)",
				 (unsigned long long)c->tsc_hz);
	if (!tsc_invariant())
		log_info("the host's TSC is not invariant: guests may see it change its rate");
	struct sample now = sample_pair(CLOCK_MONOTONIC);
	c->ns_base = now.ns;
	c->tsc_offset = -now.tsc;
	return true;
}

void clock_destroy(struct clock *c)
{
	timer_queue_destroy(&c->timers);
	memset(c, 0, sizeof(*c));
}

static u64 icount_ns(const struct clock *c)
{
	u64 n = atomic_load_explicit(&c->icount, memory_order_relaxed);

	return (u64)((u128)n * c->icount_ns_mul >> 16);
}

u64 clock_ns(const struct clock *c)
{
	if (c->icount_mode)
		return icount_ns(c);
	return (c->paused_at ? c->paused_at : host_ns(CLOCK_MONOTONIC)) - c->ns_base;
}

u64 clock_tsc(const struct clock *c)
{
	if (c->icount_mode)
		return icount_ns(c) + c->tsc_offset; /* tsc_hz is 1 GHz */
	return (c->paused_at ? c->paused_tsc : __rdtsc()) + c->tsc_offset;
}

/* All deadlines have come to be at other times of the host's. */
static void wake_anew(struct timer_queue *q)
{
	if (q->wake && q->len)
		q->wake(q->wake_arg);
}

u64 clock_host_ns(const struct clock *c, u64 ns)
{
	return ns > UINT64_MAX - c->ns_base ? UINT64_MAX : c->ns_base + ns;
}

void clock_pause(struct clock *c)
{
	if (c->icount_mode || c->paused_at)
		return;
	struct sample now = sample_pair(CLOCK_MONOTONIC);
	c->paused_tsc = now.tsc;
	c->paused_at = now.ns;
}

void clock_resume(struct clock *c)
{
	if (!c->paused_at)
		return;
	struct sample now = sample_pair(CLOCK_MONOTONIC);
	c->ns_base += now.ns - c->paused_at;
	c->tsc_offset -= now.tsc - c->paused_tsc;
	c->paused_at = 0;
	wake_anew(&c->timers);
}

/* The least count of instructions at which icount mode's ns is not below the given one. */
u64 clock_icount_at(const struct clock *c, u64 ns)
{
	u128 n = (((u128)ns << 16) + c->icount_ns_mul - 1) / c->icount_ns_mul;
	return n >> 64 ? UINT64_MAX : (u64)n;
}

void clock_set(struct clock *c, u64 ns, u64 tsc)
{
	if (c->icount_mode) {
		atomic_store(&c->icount, clock_icount_at(c, ns));
		c->tsc_offset = tsc - icount_ns(c);
		return;
	}
	struct sample now = { c->paused_at, c->paused_tsc };
	if (!c->paused_at)
		now = sample_pair(CLOCK_MONOTONIC);
	c->ns_base = now.ns - ns;
	c->tsc_offset = tsc - now.tsc;
	wake_anew(&c->timers);
}

void clock_advance_to(struct clock *c, u64 ns)
{
	u64 n = clock_icount_at(c, ns);

	if (n > atomic_load_explicit(&c->icount, memory_order_relaxed))
		atomic_store_explicit(&c->icount, n, memory_order_relaxed);
}

/* ---- timers -------------------------------------------------------------------------- */

static bool earlier(const struct timer *a, const struct timer *b)
{
	return a->deadline != b->deadline ? a->deadline < b->deadline : a->seq < b->seq;
}

static void heap_put(struct timer_queue *q, int pos, struct timer *t)
{
	q->heap[pos] = t;
	t->heap_pos = pos;
}

static void heap_up(struct timer_queue *q, int pos, struct timer *t)
{
	while (pos > 0 && earlier(t, q->heap[(pos - 1) / 2])) {
		heap_put(q, pos, q->heap[(pos - 1) / 2]);
		pos = (pos - 1) / 2;
	}
	heap_put(q, pos, t);
}

static void heap_down(struct timer_queue *q, int pos, struct timer *t)
{
	for (;;) {
		int child = 2 * pos + 1;
		if (child >= q->len)
			break;
		if (child + 1 < q->len && earlier(q->heap[child + 1], q->heap[child]))
			child++;
		if (!earlier(q->heap[child], t))
			break;
		heap_put(q, pos, q->heap[child]);
		pos = child;
	}
	heap_put(q, pos, t);
}

static void heap_remove(struct timer_queue *q, struct timer *t)
{
	int pos = t->heap_pos;
	struct timer *last = q->heap[--q->len];

	t->heap_pos = -1;
	if (last == t)
		return;
	if (pos > 0 && earlier(last, q->heap[(pos - 1) / 2]))
		heap_up(q, pos, last);
	else
		heap_down(q, pos, last);
}

static void publish(struct timer_queue *q)
{
	atomic_store(&q->next_deadline, q->len ? q->heap[0]->deadline : UINT64_MAX);
}

void timer_init(struct timer *t, struct clock *c, void (*fn)(void *), void *arg)
{
	*t = (struct timer){ .fn = fn, .arg = arg, .heap_pos = -1, .queue = &c->timers };
}

void timer_queue_init(struct timer_queue *q, struct clock *c)
{
	*q = (struct timer_queue){ .clock = c };
	atomic_init(&q->next_deadline, UINT64_MAX);
}

void timer_queue_destroy(struct timer_queue *q)
{
	for (int i = 0; i < q->len; i++)
		q->heap[i]->heap_pos = -1;
	free(q->heap);
	timer_queue_init(q, q->clock);
}

void timer_arm(struct timer *t, u64 deadline_ns)
{
	struct timer_queue *q = t->queue;
	u64 before = q->len ? q->heap[0]->deadline : UINT64_MAX;

	if (timer_armed(t))
		heap_remove(q, t);
	if (q->len == q->cap) {
		int cap = q->cap ? q->cap * 2 : 32;
		struct timer **heap = realloc(q->heap, (size_t)cap * sizeof(struct timer *));
		if (!heap)
			bug("out of memory for %d timers", cap);
		q->heap = heap;
		q->cap = cap;
	}
	t->deadline = deadline_ns;
	t->seq = q->next_seq++;
	heap_up(q, q->len++, t);
	publish(q);
	/* timer_queue_run tells its caller the next deadline itself. */
	if (q->wake && !q->running && q->heap[0]->deadline < before)
		q->wake(q->wake_arg);
}

void timer_cancel(struct timer *t)
{
	if (!timer_armed(t))
		return;
	heap_remove(t->queue, t);
	publish(t->queue);
}

void timer_move(struct timer *t, struct timer_queue *q)
{
	bool armed = timer_armed(t);

	if (q->clock->icount_mode)
		return;
	timer_cancel(t);
	t->queue = q;
	if (armed)
		timer_arm(t, t->deadline);
}

u64 timer_queue_run(struct timer_queue *q)
{
	const struct clock *c = q->clock;

	if (c->paused_at)
		return UINT64_MAX;

	u64 now = clock_ns(c);
	q->running = true;
	for (int calls = 0; calls < MAX_CALLS_A_RUN; calls++) {
		if (!q->len || q->heap[0]->deadline > now)
			break;
		struct timer *t = q->heap[0];
		heap_remove(q, t);
		publish(q);
		t->fn(t->arg);
	}
	q->running = false;
	if (!q->len)
		return UINT64_MAX;
	now = clock_ns(c);
	return q->heap[0]->deadline > now ? q->heap[0]->deadline - now : 0;
}
