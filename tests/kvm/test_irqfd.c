/* Messages to KVM's LAPICs: which go by an irqfd, and that the table of routes has what it must. KVM is a table here. */
#include <errno.h>
#include <unistd.h>

#include "test.h"
#include "kvm/kvm_impl.h"

enum { OFTEN = 64, MAX_GSI = IOAPIC_PINS + MSI_ROUTES };

struct rig {
	struct vm vm;
	struct kvm_host host;
	unsigned signalled, tables;
	struct kvm_irq_routing_msi route[MAX_GSI];
	bool routed[MAX_GSI];
	int fd[MAX_GSI];           /* of irqfds; 0: none */
	int fail_table, fail_irqfd;
};

static int set_table(struct rig *g, const struct kvm_irq_routing *r)
{
	if (g->fail_table)
		return g->fail_table;
	g->tables++;
	memset(g->routed, 0, sizeof(g->routed));
	for (u32 k = 0; k < r->nr; k++) {
		const struct kvm_irq_routing_entry *e = &r->entries[k];
		assert_true(e->gsi < MAX_GSI && e->type == KVM_IRQ_ROUTING_MSI && !g->routed[e->gsi]);
		g->routed[e->gsi] = true;
		g->route[e->gsi] = e->u.msi;
	}
	return 0;
}

static int set_irqfd(struct rig *g, const struct kvm_irqfd *i)
{
	assert_true(i->gsi >= IOAPIC_PINS && i->gsi < MAX_GSI);
	if (g->fail_irqfd)
		return g->fail_irqfd;
	if (i->flags & KVM_IRQFD_FLAG_DEASSIGN) {
		assert_int_equal(g->fd[i->gsi], i->fd);
		g->fd[i->gsi] = 0;
		return 0;
	}
	assert_true(g->routed[i->gsi]); /* before, or an interrupt would go nowhere */
	assert_int_equal(g->fd[i->gsi], 0);
	g->fd[i->gsi] = (int)i->fd;
	return 0;
}

static int on_ioctl(void *arg, int fd, unsigned long request, void *p)
{
	struct rig *g = arg;
	switch (request) {
	case KVM_SIGNAL_MSI: g->signalled++; return 1;
	case KVM_SET_GSI_ROUTING: return set_table(g, p);
	case KVM_IRQFD: return set_irqfd(g, p);
	default: return -ENOTTY;
	}
}

static int setup(void **state)
{
	struct rig *g = calloc(1, sizeof(*g));
	assert_non_null(g);
	g->host = (struct kvm_host){ .arg = g, .name = "a table", .ioctl = on_ioctl };
	g->vm = (struct vm){ .host = &g->host, .irqfd = true };
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct rig *g = *state;
	irqfd_end(&g->vm);
	for (unsigned k = 0; k < MAX_GSI; k++)
		assert_int_equal(g->fd[k], 0);
	free(g);
	return 0;
}

static struct msi message(u8 vector) { return (struct msi){ 0x100fee01000, 0x4000u | vector }; }

static void send(struct rig *g, struct msi m, unsigned times)
{
	for (unsigned k = 0; k < times; k++)
		assert_true(irqfd_send(&g->vm, m));
}

/* How often its irqfd was rung since the last time; -1: it has none. */
static int rung(const struct rig *g, struct msi m)
{
	for (unsigned k = IOAPIC_PINS; k < MAX_GSI; k++) {
		u64 n = 0;
		if (!g->fd[k] || g->route[k].data != m.data)
			continue;
		assert_int_equal(g->route[k].address_lo, (u32)m.addr);
		assert_int_equal(g->route[k].address_hi, m.addr >> 32);
		return read(g->fd[k], &n, sizeof(n)) < 0 ? 0 : (int)n;
	}
	return -1;
}

static void what_comes_often(void **state)
{
	struct rig *g = *state;
	struct msi pins[IOAPIC_PINS] = { [4] = { 0xfee00000, 0xc044 } };
	irqfd_pins(&g->vm, pins, IOAPIC_PINS);
	send(g, message(0x50), OFTEN - 1);
	assert_int_equal(g->signalled, OFTEN - 1);
	assert_int_equal(rung(g, message(0x50)), -1);
	send(g, message(0x50), 3);
	assert_int_equal(g->signalled, OFTEN - 1);
	assert_int_equal(rung(g, message(0x50)), 3);
	assert_true(g->routed[4]); /* the pins stay */
	assert_int_equal(g->route[4].data, 0xc044);
	pins[4].data = 0xc045;
	irqfd_pins(&g->vm, pins, IOAPIC_PINS);
	assert_int_equal(g->route[4].data, 0xc045);
	send(g, message(0x50), 1); /* and so does the route */
	assert_int_equal(rung(g, message(0x50)), 1);
	send(g, message(0x51), 1);
	assert_int_equal(g->signalled, OFTEN);
}

/* Level-triggered ones, NMIs and the like, and all where KVM has no irqfd. */
static void what_does_not(void **state)
{
	struct rig *g = *state;
	const u32 others[] = { 0xc050, 0x4400, 0x4200, 0x4750 };
	for (unsigned k = 0; k < ARRAY_LEN(others); k++)
		send(g, (struct msi){ 0xfee00000, others[k] }, 2 * OFTEN);
	g->vm.irqfd = false;
	send(g, message(0x50), 2 * OFTEN);
	assert_int_equal(g->signalled, 2 * OFTEN * (ARRAY_LEN(others) + 1));
	assert_int_equal(g->tables, 0);
}

/* The one that has not come for longest goes. */
static void more_than_there_is_room_for(void **state)
{
	struct rig *g = *state;
	for (u8 v = 0; v < MSI_ROUTES; v++)
		send(g, message((u8)(0x40 + v)), OFTEN);
	send(g, message(0x40), 1);
	send(g, message(0xf0), OFTEN);
	assert_int_equal(rung(g, message(0xf0)), 1);
	assert_int_equal(rung(g, message(0x40)), 2);
	assert_int_equal(rung(g, message(0x41)), -1);
	assert_int_equal(rung(g, message(0x42)), 1);
}

static void refusals(void **state)
{
	struct rig *g = *state;
	g->fail_table = -ENOMEM;
	send(g, message(0x50), 2 * OFTEN);
	g->fail_table = 0;
	g->fail_irqfd = -ENOSPC;
	send(g, message(0x51), 2 * OFTEN);
	g->fail_irqfd = 0;
	send(g, message(0x52), 2 * OFTEN);
	assert_int_equal(g->signalled, 5 * OFTEN - 1); /* the other way serves */
	assert_int_equal(rung(g, message(0x52)), OFTEN + 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_comes_often, setup, teardown),
		cmocka_unit_test_setup_teardown(what_does_not, setup, teardown),
		cmocka_unit_test_setup_teardown(more_than_there_is_room_for, setup, teardown),
		cmocka_unit_test_setup_teardown(refusals, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
