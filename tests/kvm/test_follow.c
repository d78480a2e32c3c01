/* What of KVM follows the map beside the slots, on a machine's VM of the fake KVM without processors: doorbells, logs of
 * what was written; and the gate, behind which slots change. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "test.h"
#include "fake_kvm.h"
#include "kvm/kvm_impl.h"

#define BAR 0xe0000000ull
#define LFB 0xf0000000ull
#define LFB_BYTES 0x100000ull

struct rig {
	struct fake_kvm *fake;
	struct mem m;
	struct vm *vm;
	u8 *lfb;
	int fd[3];
};

static u64 no_read(void *dev, u64 off, unsigned size) { return 0; }
static void no_write(void *dev, u64 off, u64 val, unsigned size) {}
static int a_bell(void *dev, unsigned n, u64 *off)
{
	struct rig *g = dev;
	*off = 0x3000 + 4 * n;
	return n < ARRAY_LEN(g->fd) ? g->fd[n] : -1;
}
static const struct mmio_ops with_bells = { no_read, no_write, 1, 4, .doorbell = a_bell }, without = { no_read, no_write, 1, 4 };

static int setup(void **state)
{
	static const struct kvm_options defaults;
	struct rig *g = calloc(1, sizeof(*g));
	struct error e;
	assert_non_null(g);
	g->fake = fake_kvm_new();
	kvm_host_replace(fake_kvm_host(g->fake));
	assert_true(mem_init(&g->m, 4 << 20, &e));
	for (unsigned k = 0; k < ARRAY_LEN(g->fd); k++)
		g->fd[k] = eventfd(0, EFD_NONBLOCK);
	g->lfb = mem_device_ram(&g->m, LFB_BYTES);
	g->vm = vm_join(&g->m, &defaults, &e);
	assert_non_null(g->vm);
	*state = g;
	alarm(60);
	return 0;
}

static int teardown(void **state)
{
	struct rig *g = *state;
	vm_leave(g->vm);
	kvm_host_replace(NULL);
	if (fake_kvm_complaint(g->fake)[0])
		print_error("against the rules of KVM: %s\n", fake_kvm_complaint(g->fake));
	int wrong = fake_kvm_complaint(g->fake)[0] != 0;
	fake_kvm_free(g->fake);
	mem_destroy(&g->m);
	for (unsigned k = 0; k < ARRAY_LEN(g->fd); k++)
		close(g->fd[k]);
	free(g);
	alarm(0);
	return wrong;
}

static void follow(struct rig *g)
{
	struct error e;
	if (!slots_follow(g->vm, &e))
		fail_msg("%s", e.msg);
}

/* ---- doorbells ---------------------------------------------------------------------------------- */

/* Whether KVM has a bell there: it refuses a second one. */
static bool has_bell(struct rig *g, u64 gpa)
{
	struct kvm_ioeventfd k = { .addr = gpa, .fd = g->fd[0] };
	if (kvm_call(g->vm, g->vm->fd, KVM_IOEVENTFD, &k) == -EEXIST)
		return true;
	k.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
	assert_int_equal(kvm_call(g->vm, g->vm->fd, KVM_IOEVENTFD, &k), 0);
	return false;
}

static void bells_follow_the_map(void **state)
{
	struct rig *g = *state;
	struct error e;
	assert_true(mem_add_mmio(&g->m, "bar", BAR, 0x4000, &with_bells, g, -1, &e));
	follow(g);
	for (unsigned k = 0; k < 3; k++)
		assert_true(has_bell(g, BAR + 0x3000 + 4 * k));
	assert_false(has_bell(g, BAR + 0x300c));
	unsigned calls = fake_kvm_count(g->fake, KVM_IOEVENTFD);
	assert_true(mem_add_mmio(&g->m, "other", BAR + 0x100000, 0x1000, &without, NULL, -1, &e));
	follow(g);
	assert_int_equal(fake_kvm_count(g->fake, KVM_IOEVENTFD), calls); /* those that stay are left alone */
	/* The BAR moves. */
	mem_remove(&g->m, "bar", BAR);
	assert_true(mem_add_mmio(&g->m, "bar", BAR + 0x10000, 0x4000, &with_bells, g, -1, &e));
	follow(g);
	assert_false(has_bell(g, BAR + 0x3000));
	assert_true(has_bell(g, BAR + 0x13000));
	/* Something lies over two of them. */
	assert_true(mem_add_mmio(&g->m, "over", BAR + 0x13004, 0xffc, &without, NULL, 1, &e));
	follow(g);
	assert_true(has_bell(g, BAR + 0x13000));
	assert_false(has_bell(g, BAR + 0x13004));
	assert_false(has_bell(g, BAR + 0x13008));
	mem_remove(&g->m, "bar", BAR + 0x10000);
	follow(g);
	assert_false(has_bell(g, BAR + 0x13000));
}

/* A write that comes out instead is as good. */
static void a_bell_is_refused(void **state)
{
	struct rig *g = *state;
	struct error e;
	assert_true(mem_add_mmio(&g->m, "bar", BAR, 0x4000, &with_bells, g, -1, &e));
	fake_kvm_fail(g->fake, KVM_IOEVENTFD, 1, ENOSPC);
	follow(g);
	assert_true(has_bell(g, BAR + 0x3000));
	assert_false(has_bell(g, BAR + 0x3004));
	assert_true(has_bell(g, BAR + 0x3008));
}

/* ---- what was written ------------------------------------------------------------------------------ */

static bool ask(struct rig *g, u64 *pages)
{
	memset(pages, 0, LFB_BYTES / PAGE_SIZE / 8);
	mem_lock(&g->m);
	bool known = mem_written(&g->m, g->lfb, LFB_BYTES, pages);
	mem_unlock(&g->m);
	return known;
}

static void pages_that_were_written(void **state)
{
	struct rig *g = *state;
	struct error e;
	u64 p[LFB_BYTES / PAGE_SIZE / 64];
	assert_true(mem_add_ram(&g->m, "lfb", LFB, LFB_BYTES, g->lfb, -1, &e));
	assert_true(mem_add_ram(&g->m, "window", 0xa0000, 0x10000, g->lfb + 0x40000, 1, &e)); /* the same memory once more */
	follow(g);
	assert_false(ask(g, p)); /* the log begins here */
	assert_true(ask(g, p));
	for (unsigned k = 0; k < ARRAY_LEN(p); k++)
		assert_int_equal(p[k], 0);
	g->lfb[5] = 1;
	g->lfb[0x41fff] = 1; /* seen by both */
	g->lfb[LFB_BYTES - 1] = 1;
	assert_true(ask(g, p));
	assert_int_equal(p[0], 1);
	assert_int_equal(p[1], 2);
	assert_int_equal(p[ARRAY_LEN(p) - 1], 1ull << 63);
	assert_true(ask(g, p));
	assert_int_equal(p[0] | p[1] | p[ARRAY_LEN(p) - 1], 0);
}

/* Whatever KVM cannot know, or what it knew and has forgotten, may be everything. */
static void writes_that_kvm_does_not_see(void **state)
{
	struct rig *g = *state;
	struct error e;
	u64 p[LFB_BYTES / PAGE_SIZE / 64];
	const u8 byte = 1;
	assert_true(mem_add_ram(&g->m, "lfb", LFB, LFB_BYTES, g->lfb, -1, &e));
	follow(g);
	ask(g, p);
	assert_true(ask(g, p));
	assert_true(mem_write(&g->m, 0x1000, &byte, 1)); /* DMA elsewhere */
	assert_true(ask(g, p));
	assert_true(mem_write(&g->m, LFB + 0x1000, &byte, 1));
	assert_false(ask(g, p));
	assert_true(ask(g, p));
	mem_remove(&g->m, "lfb", LFB); /* and the slot's log with it */
	follow(g);
	assert_false(ask(g, p));
	assert_true(ask(g, p)); /* nobody can write it */
	assert_true(mem_add_ram(&g->m, "lfb", LFB, LFB_BYTES, g->lfb, -1, &e));
	follow(g);
	assert_false(ask(g, p));
	assert_true(ask(g, p));
	fake_kvm_fail(g->fake, KVM_GET_DIRTY_LOG, 0, ENOMEM);
	assert_false(ask(g, p));
	/* A ROM over it for a moment: a slot of another kind. */
	assert_true(ask(g, p));
	assert_true(mem_add_rom(&g->m, "rom", LFB, LFB_BYTES, g->lfb, 1, &e));
	follow(g);
	assert_false(ask(g, p));
}

/* ---- the gate --------------------------------------------------------------------------------------- */

struct guest { struct kvm_host host; struct kvm_vcpu v; struct vm vm; struct kvm_run run; _Atomic bool in_guest, end; _Atomic unsigned entered, wrong; };

static void on_kick(int sig) { (void)sig; }

/* KVM_RUN comes back for immediate_exit alone; a slot that goes meanwhile is wrong. */
static int gate_ioctl(void *arg, int fd, unsigned long request, void *p)
{
	struct guest *g = arg;
	if (request == KVM_SET_USER_MEMORY_REGION) {
		g->wrong += !((struct kvm_userspace_memory_region *)p)->memory_size && g->in_guest;
		return 0;
	}
	assert_int_equal(request, KVM_RUN);
	g->in_guest = true;
	g->entered++;
	while (!__atomic_load_n(&g->run.immediate_exit, __ATOMIC_SEQ_CST) && !g->end)
		sched_yield();
	g->in_guest = false;
	return -EINTR;
}

static void *processor(void *arg)
{
	struct guest *g = arg;
	while (!g->end) {
		__atomic_store_n(&g->run.immediate_exit, 0, __ATOMIC_SEQ_CST);
		gate_kvm_run(&g->v);
	}
	return NULL;
}

static void slots_change_behind_the_gate(void **state)
{
	struct rig *rig = *state;
	struct mem *m = &rig->m;
	struct guest *g = calloc(1, sizeof(*g));
	struct error e;
	pthread_t t;
	assert_non_null(g);
	signal(KVM_SIG_KICK, on_kick);
	g->host = (struct kvm_host){ .arg = g, .name = "a guest", .ioctl = gate_ioctl };
	g->vm = (struct vm){ .host = &g->host, .mem = m, .max_slots = 16 };
	pthread_mutex_init(&g->vm.gate_lock, NULL);
	pthread_cond_init(&g->vm.gate_moved, NULL);
	g->v.vm = &g->vm;
	g->v.run = &g->run;
	g->vm.vcpu[3] = &g->v;
	assert_true(slots_follow(&g->vm, &e));
	assert_int_equal(pthread_create(&g->v.self, NULL, processor, g), 0);
	t = g->v.self;
	for (unsigned k = 0; k < 200; k++) {
		unsigned before = g->entered;
		while (!g->in_guest)
			sched_yield();
		assert_true(mem_add_rom(m, "rom", 0xf0000, 0x10000, m->ram + 0xf0000, 1, &e)); /* as PAM does it */
		assert_true(slots_follow(&g->vm, &e));
		assert_int_equal(g->wrong, 0);
		mem_remove(m, "rom", 0xf0000);
		assert_true(slots_follow(&g->vm, &e));
		assert_int_equal(g->wrong, 0);
		while (g->entered == before) /* it is let in again */
			sched_yield();
	}
	g->end = true;
	pthread_join(t, NULL);
	free(g->vm.slots);
	free(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(bells_follow_the_map, setup, teardown),
		cmocka_unit_test_setup_teardown(a_bell_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(pages_that_were_written, setup, teardown),
		cmocka_unit_test_setup_teardown(writes_that_kvm_does_not_see, setup, teardown),
		cmocka_unit_test_setup_teardown(slots_change_behind_the_gate, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
