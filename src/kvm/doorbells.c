/* Doorbells: registers of devices of which a write only says that there is something to do (mmio_ops.doorbell:
 * virtio's notifications). KVM rings an eventfd for the write, and the guest goes on without an exit.
 *
 * They follow the map as slots do: a BAR that moves, or goes with a reset, takes its bells along. With the machine's
 * VM they go all at once, so that no other engine sees any.
 * Documentation/virt/kvm/api.rst, 4.59 (KVM_IOEVENTFD). Machine lock held. */
#define LOG_TOPIC "kvm"
#include <stdlib.h>
#include <string.h>

#include "kvm/kvm_impl.h"

/* Older KVMs want the size of the write to be told; drivers write queue numbers, of 16 bits (VIRTIO 1.2, 4.1.5.2). */
#define NOTIFY_BYTES 2u

static int set(struct vm *vm, const struct bell *b, bool on)
{
	struct kvm_ioeventfd k = { .addr = b->gpa, .len = vm->any_length ? 0 : NOTIFY_BYTES, .fd = b->fd,
				   .flags = on ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN };
	return kvm_call(vm, vm->fd, KVM_IOEVENTFD, &k);
}

/* The next one from *region, *n on; false: there is none. One that something lies over is left out. */
static bool next_bell(const struct mem *m, int *region, unsigned *n, struct bell *b)
{
	for (; *region < m->n_regions; ++*region, *n = 0) {
		const struct region *r = &m->regions[*region];
		u64 off;
		if (r->kind != REGION_MMIO || !r->ops->doorbell)
			continue;
		for (int fd; (fd = r->ops->doorbell(r->dev, (*n)++, &off)) >= 0;)
			if (off - r->offset < r->size) {
				*b = (struct bell){ r->base - r->offset + off, fd, true };
				return true;
			}
	}
	return false;
}

static bool keep(struct vm *vm, const struct bell *b)
{
	for (unsigned k = 0; k < vm->n_bells; k++)
		if (vm->bells[k].gpa == b->gpa && vm->bells[k].fd == b->fd)
			return vm->bells[k].used = true;
	return false;
}

static void add(struct vm *vm, const struct bell *b)
{
	struct bell *more = realloc(vm->bells, (vm->n_bells + 1) * sizeof(*more));
	if (!more)
		return; /* the write comes out to us: slower, no less right. So where KVM refuses it */
	vm->bells = more;
	if (set(vm, b, true) >= 0)
		more[vm->n_bells++] = *b;
}

void doorbells_follow(struct vm *vm)
{
	struct bell b;
	unsigned n = 0, left = 0;
	if (!vm->ioeventfd)
		return;
	for (unsigned k = 0; k < vm->n_bells; k++)
		vm->bells[k].used = false;
	for (int region = 0; next_bell(vm->mem, &region, &n, &b);)
		keep(vm, &b);
	for (unsigned k = 0; k < vm->n_bells; k++) {
		if (vm->bells[k].used)
			vm->bells[left++] = vm->bells[k];
		else
			set(vm, &vm->bells[k], false);
	}
	vm->n_bells = left;
	n = 0;
	for (int region = 0; next_bell(vm->mem, &region, &n, &b);)
		if (!keep(vm, &b))
			add(vm, &b);
}
