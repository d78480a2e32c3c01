/* vCPU threads: pausing, sleeping, waking, deterministic time. The engine is a dummy that counts,
 * so that what is tested is the thread alone. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "test.h"
#include "engine/engine.h"

/* ---- a dummy engine --------------------------------------------------------------------------- */

static struct mem mem;
static struct clock clk;
static struct cpu_model model;
static struct cpu_hooks hooks;
static struct cpu *c;
static struct vcpu *v;
static _Atomic u64 rounds, runs, inits, destroys, stops, thread_inits;
static _Atomic int on_round;  /* what the "guest" does next */
enum { GO_ON, DO_HLT, DO_MWAIT, DO_STOP };
static bool init_fails;
static void (*each_step)(void);

static bool dummy_init(struct cpu *cpu, struct error *e)
{
	inits++;
	return init_fails ? error_set(e, "the dummy was told to fail") : true;
}
static void dummy_destroy(struct cpu *cpu) { destroys++; }

static enum run_exit left(struct cpu *cpu)
{
	if (cpu->stopped)
		return RUN_STOPPED;
	if (atomic_load(&cpu->events) & EV_EXIT)
		return RUN_EVENT;
	return cpu->activity == ACT_RUN ? RUN_LIMIT : RUN_HALT;
}

/* Takes an interrupt as HLT and MWAIT do: it ends them. */
static void dummy_events(struct cpu *cpu)
{
	u32 ev = atomic_load(&cpu->events);
	cpu_clear_event(cpu, EV_TLB | EV_SMI | EV_SIPI);
	if (ev & EV_INIT) {
		cpu_clear_event(cpu, EV_INIT);
		cpu->stopped = false;
		cpu->activity = ACT_RUN;
	}
	if (ev & EV_INTR) {
		cpu_clear_event(cpu, EV_INTR);
		cpu->activity = ACT_RUN;
	}
}

static enum run_exit dummy_run(struct cpu *cpu)
{
	runs++;
	for (;;) {
		dummy_events(cpu);
		if ((atomic_load(&cpu->events) & EV_EXIT) || cpu->stopped || cpu->activity != ACT_RUN ||
		    cpu->icount >= cpu->icount_limit)
			return left(cpu);
		int what = atomic_exchange(&on_round, GO_ON);
		cpu->icount++;
		rounds++;
		if (each_step)
			each_step();
		/* Last: who sees it rest finds the count as it stays. */
		switch (what) {
		case DO_HLT: cpu->activity = ACT_HLT; break;
		case DO_MWAIT: cpu->activity = ACT_MWAIT; break;
		case DO_STOP: cpu->stopped = true; break;
		}
	}
}
static bool dummy_usable(struct error *e) { return true; }

static const struct engine_ops dummy = {
	.name = "dummy", .usable = dummy_usable, .vcpu_init = dummy_init, .vcpu_destroy = dummy_destroy,
	.run = dummy_run, .step = dummy_run,
};

static void on_stopped(void *arg, struct cpu *cpu) { stops++; }
static _Atomic int thread_id;
static void on_thread(void *arg)
{
	thread_inits++;
	thread_id = gettid();
}

/* ---- around a test ---------------------------------------------------------------------------------- */

static int up_clock(bool icount)
{
	struct error e;
	thread_id = 0;
	rounds = runs = inits = destroys = stops = thread_inits = 0;
	on_round = GO_ON;
	init_fails = false;
	each_step = NULL;
	if (!mem_init(&mem, 1 << 20, &e) || !clock_init(&clk, icount, &e) || !cpu_model_parse(&model, "max", &clk, &e))
		return -1;
	c = cpu_new(0, &mem, &clk, &model, &hooks);
	cpu_set_rflags(c, FL_IF, FL_IF);
	v = vcpu_start(c, &dummy, on_stopped, NULL, &e);
	if (!v)
		return -1;
	vcpu_set_thread_init(v, on_thread, NULL);
	return 0;
}
static int up(void **state) { return up_clock(false); }
static int up_icount(void **state) { return up_clock(true); }
static int down(void **state)
{
	vcpu_destroy(v);
	cpu_free(c);
	clock_destroy(&clk);
	mem_destroy(&mem);
	return 0;
}

static void sleep_ms(unsigned ms) { usleep(ms * 1000); }

static u64 now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000 + (u64)t.tv_nsec / 1000000;
}

/* Waits for a condition; a minute is against hangs. */
#define SOON(cond) do { \
	for (unsigned n_ = 0; !(cond) && n_ < 60000; n_++) \
		sleep_ms(1); \
	assert_true(cond); \
} while (0)

/* Whether the processor's thread is asleep, and how often it went to sleep so far. */
struct thread_look { bool asleep; u64 sleeps; };
static struct thread_look look(void)
{
	char name[64], line[128], state = 0;
	unsigned long long n = 0;
	SOON(thread_id);
	snprintf(name, sizeof(name), "/proc/self/task/%d/status", thread_id);
	FILE *f = fopen(name, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		sscanf(line, "State: %c", &state);
		sscanf(line, "voluntary_ctxt_switches: %llu", &n);
	}
	fclose(f);
	return (struct thread_look){ state == 'S', n };
}

/* It comes to rest, and then nothing wakes it for 300 ms: neither the host's pace nor its other
 * load can make that of a thread that runs or wakes by itself. */
static void assert_sleeps(void)
{
	for (unsigned n = 0; n < 200; n++) {
		struct thread_look before = look();
		sleep_ms(300);
		struct thread_look after = look();
		if (before.asleep && after.asleep && before.sleeps == after.sleeps)
			return;
	}
	fail_msg("it never sleeps for long");
}

/* ---- starting, pausing, ending ------------------------------------------------------------------------ */

static void starts_paused(void **state)
{
	sleep_ms(30);
	assert_int_equal(runs, 0);
	assert_int_equal(inits, 1);
	assert_int_equal(thread_inits, 0);
	vcpu_resume(v);
	SOON(rounds > 0);
	assert_int_equal(thread_inits, 1);
}

static void pause_stands_still(void **state)
{
	for (unsigned n = 0; n < 50; n++) {
		vcpu_resume(v);
		u64 before = rounds;
		SOON(rounds > before);
		vcpu_pause(v);
		u64 at = rounds;
		usleep(200);
		assert_int_equal(rounds, at);
		vcpu_pause(v); /* once more changes nothing */
	}
	assert_int_equal(thread_inits, 1);
}

static void pause_of_a_sleeper(void **state)
{
	on_round = DO_HLT;
	vcpu_resume(v);
	SOON(c->activity == ACT_HLT);
	vcpu_pause(v);
	assert_int_equal(c->activity, ACT_HLT); /* still halted, not woken by it */
	u64 at = rounds;
	vcpu_resume(v);
	sleep_ms(20);
	assert_int_equal(rounds, at);
}

static void init_failure(void **state)
{
	struct error e;
	init_fails = true;
	assert_null(vcpu_start(c, &dummy, on_stopped, NULL, &e));
	assert_string_equal(e.msg, "the dummy was told to fail");
	assert_int_equal(destroys, 0);
}

static void ends_from_any_state(void **state)
{
	struct error e;
	for (unsigned n = 0; n < 30; n++) {
		struct vcpu *other = vcpu_start(c, &dummy, on_stopped, NULL, &e);
		assert_non_null(other);
		if (n % 3)
			vcpu_resume(other);
		if (n % 3 == 2) {
			on_round = DO_HLT;
			SOON(c->activity == ACT_HLT);
		}
		vcpu_destroy(other);
		assert_int_equal(destroys, n + 1);
		c->activity = ACT_RUN;
		cpu_clear_event(c, ~0u);
	}
}

/* ---- sleeping, waking ------------------------------------------------------------------------------------ */

static void halt_costs_nothing(void **state)
{
	on_round = DO_HLT;
	vcpu_resume(v);
	SOON(c->activity == ACT_HLT);
	assert_sleeps();
	u64 at = rounds;
	vcpu_post(v, EV_INTR);
	SOON(rounds > at);
}

static void masked_interrupt_does_not_wake(void **state)
{
	cpu_set_rflags(c, 0, FL_IF);
	on_round = DO_HLT;
	vcpu_resume(v);
	SOON(c->activity == ACT_HLT);
	u64 at = rounds, entered = runs;
	vcpu_post(v, EV_INTR);
	sleep_ms(20);
	assert_int_equal(rounds, at);
	assert_true(runs < entered + 5); /* and it does not spin */
	vcpu_post(v, EV_INIT);
	SOON(rounds > at);
}

static void waiting_for_sipi_sleeps(void **state)
{
	c->activity = ACT_WAIT_SIPI;
	cpu_post_event(c, EV_NMI | EV_INTR);
	vcpu_resume(v);
	assert_sleeps();
	assert_int_equal(rounds, 0);
	vcpu_post(v, EV_INIT);
	SOON(rounds > 0);
}

static void arm_line(u64 gpa)
{
	c->monitor_gpa = gpa;
	c->monitor_armed = true;
	memcpy(c->monitor_line, mem_ram(&mem, gpa), 64);
}

static void mwait_wakes_by_a_store(void **state)
{
	for (unsigned n = 0; n < 3; n++) {
		arm_line(0x1000 + 64 * n);
		on_round = DO_MWAIT;
		vcpu_resume(v);
		SOON(c->activity == ACT_MWAIT);
		u64 at = rounds;
		mem.ram[0x1000 + 64 * n - 1] = 1; /* beside the line */
		sleep_ms(10);
		assert_int_equal(rounds, at);
		mem.ram[0x1000 + 64 * n + 63] = 1;
		SOON(rounds > at);
		vcpu_pause(v);
	}
}

static void mwait_costs_little(void **state)
{
	arm_line(0x1000);
	on_round = DO_MWAIT;
	cpu_set_rflags(c, 0, FL_IF);
	vcpu_resume(v);
	SOON(c->activity == ACT_MWAIT);
	bool asleep = false;
	SOON(asleep || (asleep = look().asleep));
	u64 looks = look().sleeps, start = now_ms();
	sleep_ms(300);
	looks = look().sleeps - looks; /* the first ones follow each other quickly */
	assert_true(looks < 50 + (now_ms() - start) / 2);
	u64 at = rounds;
	vcpu_post(v, EV_INTR); /* masked, but it may end the wait */
	SOON(rounds > at);
}

static void stop_is_told_once(void **state)
{
	on_round = DO_STOP;
	vcpu_resume(v);
	SOON(stops == 1);
	vcpu_post(v, EV_TLB);
	vcpu_pause(v);
	vcpu_resume(v);
	assert_sleeps();
	assert_int_equal(stops, 1);
	u64 at = rounds;
	vcpu_post(v, EV_INIT);
	SOON(rounds > at);
	on_round = DO_STOP;
	SOON(stops == 2);
}

/* ---- no wake-up is lost ------------------------------------------------------------------------------------ */

/* The "guest" halts at once after each interrupt; each post must make a round. */
static void every_post_wakes(void **state)
{
	on_round = DO_HLT;
	vcpu_resume(v);
	SOON(c->activity == ACT_HLT);
	for (unsigned n = 0; n < 20000; n++) {
		u64 at = rounds;
		on_round = DO_HLT;
		vcpu_post(v, EV_INTR);
		for (u64 spin = 0; rounds == at; spin++)
			if (spin > 2000000000)
				fail_msg("post %u woke nobody", n);
	}
}

static _Atomic bool hammer_on;
static void *hammer(void *arg)
{
	while (hammer_on) {
		vcpu_post(v, EV_INTR);
		on_round = DO_HLT;
	}
	return NULL;
}

static void pause_under_fire(void **state)
{
	pthread_t t[2];
	hammer_on = true;
	for (unsigned k = 0; k < 2; k++)
		pthread_create(&t[k], NULL, hammer, NULL);
	for (unsigned n = 0; n < 2000; n++) {
		vcpu_resume(v);
		vcpu_pause(v);
		u64 at = rounds;
		assert_int_equal(rounds, at);
	}
	hammer_on = false;
	for (unsigned k = 0; k < 2; k++)
		pthread_join(t[k], NULL);
}

/* ---- timers of its own ----------------------------------------------------------------------------------- */

static struct timer_queue own;
static struct timer ticking;
static _Atomic int ticks, tick_thread;
static _Atomic u64 tick_early_ns; /* how much too early, in sum */
static _Atomic u64 again_ns;     /* it arms itself anew */

static void arm_tick(u64 in_ns)
{
	mem_lock(&mem);
	timer_arm(&ticking, clock_ns(&clk) + in_ns);
	mem_unlock(&mem);
}
static void on_tick(void *arg)
{
	if (clock_ns(&clk) < ticking.deadline)
		tick_early_ns += ticking.deadline - clock_ns(&clk);
	ticks++;
	tick_thread = gettid();
	if (again_ns)
		timer_arm(&ticking, clock_ns(&clk) + again_ns);
	vcpu_post(v, EV_INTR);
}
static int up_timers(void **state)
{
	int r = up_clock(false);
	ticks = tick_thread = 0;
	tick_early_ns = again_ns = 0;
	timer_queue_init(&own, &clk);
	timer_init(&ticking, &clk, on_tick, NULL);
	timer_move(&ticking, &own);
	if (!r)
		vcpu_set_timers(v, &own);
	return r;
}
static int down_timers(void **state)
{
	vcpu_destroy(v);
	v = NULL;
	timer_queue_destroy(&own);
	cpu_free(c);
	clock_destroy(&clk);
	mem_destroy(&mem);
	return 0;
}

/* In the engine, armed before, from outside, and by the processor itself; never on another thread, never too early. */
static void timers_on_its_thread(void **state)
{
	arm_tick(1000);
	vcpu_resume(v);
	SOON(ticks == 1);
	assert_int_equal(tick_thread, thread_id);
	for (int n = 2; n < 20; n++) {
		arm_tick((u64)n * 100000);
		SOON(ticks == n);
	}
	again_ns = 200000;
	arm_tick(0);
	SOON(ticks > 500);
	assert_int_equal(tick_thread, thread_id);
	assert_int_equal(tick_early_ns, 0);
}

/* An engine that is kicked by a signal looks at what it interrupted: not the handler of the timer's. */
static _Atomic int kicks, kicks_within;
static void on_kick_signal(int sig, siginfo_t *si, void *context)
{
	kicks++;
	kicks_within += sigismember(&((ucontext_t *)context)->uc_sigmask, SIGVTALRM);
}
static void signal_kick(struct cpu *cpu)
{
	if (gettid() == thread_id)
		pthread_kill(pthread_self(), SIGURG);
}
static bool signal_init(struct cpu *cpu, struct error *e)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGURG);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return true;
}
static const struct engine_ops kicked_by_signal = {
	.name = "kicked", .usable = dummy_usable, .vcpu_init = signal_init, .vcpu_destroy = dummy_destroy,
	.run = dummy_run, .step = dummy_run, .kick = signal_kick,
};
static void a_timer_kicks_the_engine(void **state)
{
	struct error e;
	struct sigaction a = { .sa_sigaction = on_kick_signal, .sa_flags = SA_SIGINFO | SA_RESTART }, old;
	sigaction(SIGURG, &a, &old);
	vcpu_pause(v); /* it begins so, but perhaps has not come to it */
	assert_true(vcpu_set_engine(v, &kicked_by_signal, NULL, &e));
	kicks = kicks_within = 0;
	again_ns = 100000;
	vcpu_resume(v);
	arm_tick(1000);
	SOON(ticks > 100);
	vcpu_pause(v);
	assert_true(kicks > 0);
	assert_int_equal(kicks_within, 0);
	sigaction(SIGURG, &old, NULL);
}

static void step_arms(void)
{
	if (rounds == 10)
		arm_tick(300000);
}
static void timers_armed_by_the_guest(void **state)
{
	each_step = step_arms;
	vcpu_resume(v);
	SOON(ticks == 1);
	assert_int_equal(tick_thread, thread_id);
	u64 at = runs;
	sleep_ms(20);
	assert_true(runs <= at + 1); /* nothing is left that calls it out */
}

static void timers_end_a_halt(void **state)
{
	vcpu_resume(v);
	for (int n = 1; n < 10; n++) {
		on_round = DO_HLT;
		SOON(c->activity == ACT_HLT);
		u64 at = rounds;
		arm_tick(2000000);
		SOON(rounds > at);
		assert_int_equal(ticks, n);
	}
	/* With a long wait ahead, one that was armed to be earlier. */
	on_round = DO_HLT;
	SOON(c->activity == ACT_HLT);
	arm_tick(3600000000000);
	assert_sleeps();
	arm_tick(1000000);
	SOON(ticks == 10);
	assert_int_equal(tick_thread, thread_id);
}

static void timers_wait_for_a_pause(void **state)
{
	vcpu_resume(v);
	arm_tick(20000000);
	vcpu_pause(v);
	mem_lock(&mem);
	clock_pause(&clk);
	mem_unlock(&mem);
	int before = ticks;
	sleep_ms(40);
	assert_int_equal(ticks, before);
	mem_lock(&mem);
	clock_resume(&clk);
	mem_unlock(&mem);
	vcpu_resume(v);
	SOON(ticks == 1);
	assert_int_equal(tick_early_ns, 0);
}

/* ---- deterministic time ------------------------------------------------------------------------------------- */

static struct timer timer;
static u64 fired_at[64], fired_rounds[64];
static _Atomic unsigned fired;
static u64 period;

static void on_timer(void *arg)
{
	if (fired < ARRAY_LEN(fired_at)) {
		fired_at[fired] = clock_ns(&clk);
		fired_rounds[fired] = c->icount;
		fired++;
	}
	if (period)
		timer_arm(&timer, timer.deadline + period);
	cpu_post_event(c, EV_INTR);
}

static void arm(u64 at)
{
	timer_init(&timer, &clk, on_timer, NULL);
	mem_lock(&mem);
	timer_arm(&timer, at);
	mem_unlock(&mem);
}

static void timers_fire_at_their_count(void **state)
{
	fired = 0;
	period = 100003;
	arm(54321);
	vcpu_resume(v);
	SOON(fired >= 20);
	vcpu_pause(v);
	for (unsigned k = 0; k < 20; k++) {
		assert_int_equal(fired_at[k], 54321 + k * 100003ull); /* 1 ns an instruction */
		assert_int_equal(fired_rounds[k], fired_at[k]);
	}
	assert_int_equal(clock_ns(&clk), c->icount);
}

/* Halted, the clock goes on to the next deadline at once, and no instruction is counted. */
static void halted_time_jumps(void **state)
{
	fired = 0;
	period = 0;
	arm(3600ull * 1000000000);
	on_round = DO_HLT;
	vcpu_resume(v);
	SOON(fired == 1);
	vcpu_pause(v);
	assert_int_equal(fired_at[0], 3600ull * 1000000000);
	assert_int_equal(fired_rounds[0], 1);
	assert_true(rounds > 1); /* woken by it */
	assert_int_equal(clock_ns(&clk) - fired_at[0], c->icount - 1);
}

/* A timer that the guest arms in the middle of a slice is not late. */
static void arm_at_500(void)
{
	if (c->icount != 500)
		return;
	atomic_store(&clk.icount, c->icount);
	arm(777);
}
static void timer_armed_within_a_slice(void **state)
{
	fired = 0;
	period = 0;
	each_step = arm_at_500;
	vcpu_resume(v);
	SOON(fired == 1);
	assert_int_equal(fired_at[0], 777);
	assert_int_equal(fired_rounds[0], 777);
}

static void icount_halt_without_timers_sleeps(void **state)
{
	on_round = DO_HLT;
	vcpu_resume(v);
	SOON(c->activity == ACT_HLT);
	assert_sleeps();
	u64 at = rounds;
	vcpu_post(v, EV_INTR);
	SOON(rounds > at);
}

static u64 seen[8];
static _Atomic unsigned n_seen;
static u64 on_checkpoint(void *arg, struct cpu *cpu)
{
	seen[n_seen++] = cpu->icount;
	return n_seen < ARRAY_LEN(seen) ? cpu->icount + 1000 * n_seen : UINT64_MAX;
}

static void checkpoints(void **state)
{
	n_seen = 0;
	vcpu_set_checkpoint(v, 7, on_checkpoint, NULL);
	vcpu_resume(v);
	SOON(n_seen == ARRAY_LEN(seen));
	u64 want = 7;
	for (unsigned k = 0; k < ARRAY_LEN(seen); k++) {
		assert_int_equal(seen[k], want);
		want += 1000 * (k + 1);
	}
}

static _Atomic bool busy;
static bool is_busy(void *arg) { return busy; }
static void device_at_500(void)
{
	if (c->icount == 500) {
		busy = true;
		c->icount_limit = 0; /* as cpu_port_sync does it */
	}
}

/* No instruction is run while something is under way; a pause does not wait for it. */
static void waits_for_what_is_under_way(void **state)
{
	each_step = device_at_500;
	vcpu_set_under_way(v, is_busy, NULL);
	vcpu_resume(v);
	SOON(busy);
	assert_sleeps();
	vcpu_look_again(v);
	assert_sleeps();
	vcpu_pause(v);
	assert_int_equal(c->icount, 500);
	vcpu_resume(v);
	assert_sleeps();
	assert_int_equal(rounds, 500);
	busy = false;
	vcpu_look_again(v);
	SOON(rounds > 1000);
}

/* A reset sets the count to 0; time goes on. */
static void reset_keeps_time(void **state)
{
	vcpu_resume(v);
	SOON(rounds > 50000);
	vcpu_pause(v);
	u64 before = clock_ns(&clk);
	c->icount = 0;
	vcpu_resume(v);
	u64 at = rounds;
	SOON(rounds > at + 50000);
	vcpu_pause(v);
	assert_int_equal(clock_ns(&clk), before + c->icount);
}

/* ---- hops ------------------------------------------------------------------------------------------- */

/* Another dummy. It may be kicked only while it is there. */
static _Atomic bool other_there;
static _Atomic u64 other_runs, other_kicks, wrong_kicks;
static bool other_fails;
static const void *other_options;

static bool other_init(struct cpu *cpu, struct error *e)
{
	other_options = cpu->engine_options;
	other_there = !other_fails;
	return other_fails ? error_set(e, "the other one was told to fail") : true;
}
static void other_destroy(struct cpu *cpu) { other_there = false; }
static enum run_exit other_run(struct cpu *cpu)
{
	other_runs++;
	return dummy_run(cpu);
}
static void other_kick(struct cpu *cpu)
{
	other_kicks++;
	if (!other_there)
		wrong_kicks++;
}
static const struct engine_ops other_engine = {
	.name = "other", .usable = dummy_usable, .vcpu_init = other_init, .vcpu_destroy = other_destroy,
	.run = other_run, .step = other_run, .kick = other_kick,
};

static void hops_to_another_engine(void **state)
{
	struct error e;
	int options;
	other_fails = false;
	other_runs = 0;
	vcpu_resume(v);
	SOON(rounds > 1000);
	vcpu_pause(v);
	u64 count = c->icount;
	assert_true(vcpu_set_engine(v, &other_engine, &options, &e));
	assert_int_equal(destroys, 1);
	assert_ptr_equal(other_options, &options);
	assert_int_equal(c->icount, count); /* stands still */
	assert_int_equal(other_runs, 0);
	vcpu_resume(v);
	SOON(other_runs && c->icount > count);
	vcpu_pause(v);
	assert_true(vcpu_set_engine(v, &dummy, NULL, &e));
	assert_false(other_there);
	assert_int_equal(inits, 2);
	count = other_runs;
	u64 at = rounds;
	vcpu_resume(v);
	SOON(rounds > at);
	assert_int_equal(other_runs, count);
}

static void stays_without_an_engine(void **state)
{
	struct error e;
	other_fails = true;
	vcpu_pause(v);
	assert_true(vcpu_set_engine(v, NULL, NULL, &e));
	assert_int_equal(destroys, 1);
	vcpu_post(v, EV_INTR); /* to nobody */
	assert_false(vcpu_set_engine(v, &other_engine, NULL, &e));
	assert_string_equal(e.msg, "the other one was told to fail");
	vcpu_destroy(v); /* leaves nothing twice */
	assert_int_equal(destroys, 1);
	v = vcpu_start(c, &dummy, on_stopped, NULL, &e);
	assert_non_null(v);
}

static _Atomic bool posting;
static void *post_on(void *arg)
{
	while (posting)
		vcpu_post(v, EV_TLB);
	return NULL;
}

static void hops_under_fire(void **state)
{
	struct error e;
	pthread_t posters[2];
	other_fails = false;
	other_runs = other_kicks = wrong_kicks = 0;
	posting = true;
	for (unsigned k = 0; k < 2; k++)
		pthread_create(&posters[k], NULL, post_on, NULL);
	for (unsigned n = 0; n < 300; n++) {
		vcpu_pause(v);
		assert_true(vcpu_set_engine(v, n % 2 ? &dummy : &other_engine, NULL, &e));
		u64 at = rounds;
		vcpu_resume(v);
		if (n % 8 == 0)
			SOON(rounds > at);
	}
	posting = false;
	for (unsigned k = 0; k < 2; k++)
		pthread_join(posters[k], NULL);
	assert_true(other_kicks > 0);
	assert_int_equal(wrong_kicks, 0);
}

static void engines_by_name(void **state)
{
	assert_ptr_equal(engine_find("kvm"), engines[0]); /* best first */
	assert_ptr_equal(engine_find("bt"), engines[1]);
	assert_non_null(engine_find("interp"));
	assert_null(engine_find("inter"));
	for (unsigned k = 0; engines[k]; k++)
		assert_ptr_equal(engine_find(engines[k]->name), engines[k]);
}

#define T(f) cmocka_unit_test_setup_teardown(f, up, down)
#define TT(f) cmocka_unit_test_setup_teardown(f, up_timers, down_timers)
#define TI(f) cmocka_unit_test_setup_teardown(f, up_icount, down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TT(timers_on_its_thread), TT(a_timer_kicks_the_engine), TT(timers_armed_by_the_guest), TT(timers_end_a_halt), TT(timers_wait_for_a_pause),
		T(starts_paused), T(pause_stands_still), T(pause_of_a_sleeper), T(init_failure), T(ends_from_any_state),
		T(halt_costs_nothing), T(masked_interrupt_does_not_wake), T(waiting_for_sipi_sleeps),
		T(mwait_wakes_by_a_store), T(mwait_costs_little), T(stop_is_told_once), T(every_post_wakes),
		T(pause_under_fire), TI(timers_fire_at_their_count), TI(halted_time_jumps),
		TI(timer_armed_within_a_slice), TI(icount_halt_without_timers_sleeps), TI(checkpoints), TI(waits_for_what_is_under_way),
		TI(reset_keeps_time), T(hops_to_another_engine), T(stays_without_an_engine), T(hops_under_fire), cmocka_unit_test(engines_by_name),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
