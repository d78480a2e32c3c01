#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

#include "hostile.h"

#define SECRET 0x5ec2e7c0ffee4badull
#define CANARY_BYTES (256u << 10)
#define HEAP_BYTES 4096u

static u64 *below, *above, *heap;
unsigned hostile_programs;

/* ---- the watch: a program has 300 ms --------------------------------------------------------------- */

static pthread_t watch;
static pthread_mutex_t watch_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool watch_ends, running;
static _Atomic unsigned ticks;

static void *watching(void *arg)
{
	while (!watch_ends) {
		nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
		pthread_mutex_lock(&watch_lock);
		if (running && ++ticks > 15) {
			cpu_post_event(r.c, EV_EXIT);
			bt_engine.kick(r.c);
		}
		pthread_mutex_unlock(&watch_lock);
	}
	return NULL;
}

/* ---- canaries ------------------------------------------------------------------------------------------ */

static void fill(u64 *p, size_t bytes)
{
	for (size_t k = 0; k < bytes / 8; k++)
		p[k] = SECRET;
}

static u64 *canary_at(u8 *where)
{
	void *p = mmap(where, CANARY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (p != where)
		fail_msg("something is beside RAM already");
	fill(p, CANARY_BYTES);
	return p;
}

/* The kernel puts what is mapped into the highest gap that has room: so RAM comes below `rest`, and
 * what belongs to it into the gap above that. */
static u8 *rest;
enum { GAP = 8 << 20, REST = 4 << 20 };
static void before_ram(void)
{
	u8 *p = mmap(NULL, GAP + REST, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	rest = p;
	munmap(p + REST, GAP);
}
static void after_ram(void)
{
	munmap(rest, REST);
	below = canary_at(r.mem.ram - CANARY_BYTES);
	above = (u64 *)(void *)(r.mem.ram + RAM_SIZE); /* the memory of devices, of which there are none */
	fill(above, CANARY_BYTES);
}

u64 hostile_canary(unsigned n) { return (u64)(n == 0 ? below : n == 1 ? above : heap); }

/* cmocka puts handlers of its own in place of the engine's before each test. */
static void engine_signals(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
	static struct sigaction engine[ARRAY_LEN(signals)];
	static bool known;
	for (unsigned k = 0; k < ARRAY_LEN(signals); k++)
		sigaction(signals[k], known ? &engine[k] : NULL, known ? NULL : &engine[k]);
	known = true;
}

static enum hostile_host under;
void hostile_under(enum hostile_host host)
{
	static const char *const models[] = { [HOST_NONE] = "max", [HOST_SVM] = "max,vendor=amd,+svm", [HOST_VMX] = "max,vendor=intel,+vmx" };
	under = host;
	rig_model = models[host];
}

void hostile_up(void)
{
	before_ram();
	rig_after_ram = after_ram;
	assert_int_equal(rig_up(NULL), 0);
	rig_after_ram = NULL;
	engine_signals();
	heap = malloc(HEAP_BYTES);
	fill(heap, HEAP_BYTES);
	watch_ends = running = false;
	assert_int_equal(pthread_create(&watch, NULL, watching, NULL), 0);
}

void hostile_down(void)
{
	watch_ends = true;
	pthread_join(watch, NULL);
	munmap(below, CANARY_BYTES);
	free(heap);
	rig_down(NULL);
}

/* ---- a program -------------------------------------------------------------------------------------------- */

static void gate(unsigned n)
{
	u8 *p = r.mem.ram + IDT + 16 * n;
	st64(p, (u64)(HANDLER & 0xffff) | 8ull << 16 | 0xeeull << 40);
	st64(p + 8, 0);
}

void hostile_fresh(unsigned cpl)
{
	struct cpu *c = r.c;
	static const u8 halt[] = { 0xf4, 0xeb, 0xfd };
	rig_clear(CODE, 0x40000);
	rig_fresh(cpl);
	rig_code(HANDLER, halt, sizeof(halt));
	for (unsigned n = 0; n < 256; n++)
		gate(n);
	c->idtr = (struct dtable){ IDT, 4095 };
	st64(r.mem.ram + TSS + 4, KERNEL_STACK);
	c->seg[S_TR] = (struct segment){ .sel = 0x28, .base = TSS, .limit = 0x67, .attr = 0x8b };
	c->cr4 |= CR4_FSGSBASE | CR4_PGE;
	c->xcr0 = 0xe7;
	cpu_update_mode(c);
	cpu_update_fpu(c);
	const u64 host[16] = {
		(u64)below + CANARY_BYTES - 64, (u64)heap, (u64)r.bt->ctx, (u64)above, STACK, DATA, (u64)r.bt->rw, (u64)r.bt->rx,
		(u64)r.bt->spaces[0].gs, (u64)r.mem.ram, (u64)(uintptr_t)malloc, (u64)above - DATA, (u64)host, (u64)r.bt->return_stack, (u64)r.bt->exit_common, (u64)above - DATA,
	};
	memcpy(c->regs, host, sizeof(host));
}

enum end hostile_go(void)
{
	struct cpu *c = r.c;
	if (under)
		hostile_guest_begin(under);
	ticks = 0;
	running = true;
	enum run_exit e;
	do
		e = bt_engine.run(c);
	while (e == RUN_EVENT && ticks <= 15);
	pthread_mutex_lock(&watch_lock);
	running = false;
	cpu_clear_event(c, EV_EXIT);
	pthread_mutex_unlock(&watch_lock);
	if (under)
		hostile_guest_check(under);
	return e == RUN_STOPPED ? END_SHUTDOWN : e == RUN_HALT ? END_HALT : END_TIME;
}

/* ---- afterwards ---------------------------------------------------------------------------------------------- */

static void intact(const char *name, const char *what, const u64 *p, size_t bytes)
{
	for (size_t k = 0; k < bytes / 8; k++)
		if (p[k] != SECRET)
			fail_msg("%s has written to %s, %zu bytes from its start: %#lx", name, what, 8 * k, (unsigned long)p[k]);
}

static bool is_secret(u64 v)
{
	for (unsigned n = 0; n < 8; n++)
		if (v == (SECRET >> 8 * n | (n ? SECRET << (64 - 8 * n) : 0)))
			return true;
	return false;
}

void hostile_check(const char *name)
{
	intact(name, "below RAM", below, CANARY_BYTES);
	intact(name, "above RAM", above, CANARY_BYTES);
	intact(name, "the heap", heap, HEAP_BYTES);
	const u64 secret = SECRET;
	const u8 *found = memmem(r.mem.ram, RAM_SIZE, &secret, 8);
	if (found)
		fail_msg("%s has read the secret to %#tx", name, found - r.mem.ram);
	for (unsigned n = 0; n < 16; n++)
		if (is_secret(r.c->regs[n]))
			fail_msg("%s has read the secret into register %u", name, n);
	for (unsigned n = 0; n < sizeof(r.c->zmm) - 8; n++)
		if (ld64(&r.c->zmm[0][0] + n) == SECRET)
			fail_msg("%s has read the secret into a vector", name);
	hostile_programs++;
}

void hostile_run(const char *name, unsigned cpl, const void *code, size_t n)
{
	hostile_fresh(cpl);
	rig_code(CODE, code, n);
	hostile_go();
	hostile_check(name);
}
