/* irqchip=split: messages for KVM's LAPICs. Each goes by KVM_SIGNAL_MSI, until it has come often; then it has a route, and
 * an eventfd that raises it: KVM injects where the eventfd is written, without looking at the message again.
 *
 * A route is of a message, not of a device's vector: what a device sends when the guest has given its vector another
 * message is simply another one, so that nobody has to follow MSI-X tables. Only edge-triggered, fixed ones: of a
 * level KVM would tell no EOI but for the pins, and of the IOAPIC's pins there are few. INTx is therefore not here.
 * GSIs 0 to 23 are the IOAPIC's pins, by which KVM knows whose EOI we want to hear; routes come behind.
 * Documentation/virt/kvm/api.rst, 4.75 (KVM_IRQFD), 4.52 (KVM_SET_GSI_ROUTING), 4.70 (KVM_SIGNAL_MSI). Machine lock held. */
#define LOG_TOPIC "kvm"
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "kvm/kvm_impl.h"

#define OFTEN 64u /* a new route costs a new table: as much as hundreds of messages */
#define MSI_LEVEL 0x8000u
#define MSI_MODE(data) ((data) >> 8 & 7)

static void add(struct kvm_irq_routing *r, u32 gsi, const struct msi *m)
{
	r->entries[r->nr++] = (struct kvm_irq_routing_entry){ .gsi = gsi, .type = KVM_IRQ_ROUTING_MSI,
		.u.msi = { .address_lo = (u32)m->addr, .address_hi = (u32)(m->addr >> 32), .data = m->data } };
}

static int set_table(const struct vm *vm)
{
	struct { struct kvm_irq_routing head; struct kvm_irq_routing_entry e[IOAPIC_PINS + MSI_ROUTES]; } r = { 0 };
	for (u32 k = 0; k < IOAPIC_PINS; k++)
		if (vm->pin[k].addr)
			add(&r.head, k, &vm->pin[k]);
	for (u32 k = 0; k < MSI_ROUTES; k++)
		if (vm->route[k].on)
			add(&r.head, IOAPIC_PINS + k, &vm->route[k].m);
	return kvm_call(vm, vm->fd, KVM_SET_GSI_ROUTING, &r);
}

void irqfd_pins(struct vm *vm, const struct msi *m, unsigned n)
{
	for (u32 k = 0; k < MIN(n, IOAPIC_PINS); k++)
		vm->pin[k] = m[k];
	int err = set_table(vm);
	if (err < 0)
		log_warn("KVM_SET_GSI_ROUTING: %s: level-triggered interrupts may stop", strerror(-err));
}

static int connect_fd(struct vm *vm, unsigned k, u32 flags)
{
	struct kvm_irqfd i = { .fd = (u32)vm->route[k].fd, .gsi = IOAPIC_PINS + k, .flags = flags };
	return kvm_call(vm, vm->fd, KVM_IRQFD, &i);
}

/* KVM delivers first what is under way. */
static void disconnect(struct vm *vm, unsigned k)
{
	struct msi_route *r = &vm->route[k];
	if (r->on)
		connect_fd(vm, k, KVM_IRQFD_FLAG_DEASSIGN);
	if (r->on)
		close(r->fd);
	*r = (struct msi_route){ .fd = -1 };
}

/* False: it goes on by KVM_SIGNAL_MSI, and is not tried again. */
static void connect_route(struct vm *vm, unsigned k)
{
	struct msi_route *r = &vm->route[k];
	if ((r->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
		return;
	r->on = true;
	if (set_table(vm) >= 0 && connect_fd(vm, k, 0) >= 0)
		return;
	r->on = false;
	close(r->fd);
}

/* The message's entry; in place of the one that has not come for longest if it is new. */
static unsigned entry_of(struct vm *vm, const struct msi *m)
{
	unsigned oldest = 0;
	for (unsigned k = 0; k < MSI_ROUTES; k++) {
		if (vm->route[k].m.addr == m->addr && vm->route[k].m.data == m->data)
			return k;
		if (vm->route[k].used < vm->route[oldest].used)
			oldest = k;
	}
	disconnect(vm, oldest);
	vm->route[oldest].m = *m;
	return oldest;
}

static bool by_irqfd(struct vm *vm, const struct msi *m)
{
	const u64 once = 1;
	if (!vm->irqfd || (m->data & MSI_LEVEL) || MSI_MODE(m->data) > 1)
		return false;
	unsigned k = entry_of(vm, m);
	struct msi_route *r = &vm->route[k];
	r->used = ++vm->messages;
	if (++r->hits == OFTEN)
		connect_route(vm, k);
	return r->on && write(r->fd, &once, sizeof(once)) == sizeof(once);
}

bool irqfd_send(void *arg, struct msi m)
{
	struct vm *vm = arg;
	if (by_irqfd(vm, &m))
		return true;
	struct kvm_msi k = { .address_lo = (u32)m.addr, .address_hi = (u32)(m.addr >> 32), .data = m.data };
	return kvm_call(vm, vm->fd, KVM_SIGNAL_MSI, &k) > 0;
}

void irqfd_end(struct vm *vm)
{
	for (unsigned k = 0; k < MSI_ROUTES; k++)
		disconnect(vm, k);
}
