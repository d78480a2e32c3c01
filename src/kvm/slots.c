/* Guest memory as KVM's memory slots: each piece of RAM and of ROM that the map shows.
 *
 *   RAM    a slot; devices and our own accesses go to the same bytes of this process
 *   ROM    a read-only slot: a write comes out to us (flash has something to do with it)
 *   rest   no slot: each access comes out, a device's or nobody's
 *
 * Pieces that go on into each other, here and in the guest, are one slot. What of a piece is no whole page
 * (a device lies over part of it) stays outside: it comes out to us, which the bus answers.
 * KVM takes no change of a slot but of its flags, so one that is not as it was goes before the new one comes,
 * while no processor is in the guest (gate.c). */
#define LOG_TOPIC "kvm"
#include <stdlib.h>
#include <string.h>

#include "kvm/kvm_impl.h"

/* The next slot from the map at *k on; false: there is none. */
static bool next_piece(const struct mem *m, int *k, struct slot *s)
{
	*s = (struct slot){ 0 };
	for (; *k < m->n_regions; (*k)++) {
		const struct region *r = &m->regions[*k];
		if (r->kind == REGION_MMIO)
			continue;
		u64 start = (r->base + PAGE_MASK) & ~PAGE_MASK, end = (r->base + r->size) & ~PAGE_MASK;
		if (start >= end)
			continue;
		u8 *host = r->host + (start - r->base);
		u32 flags = r->kind == REGION_ROM ? KVM_MEM_READONLY : 0;
		if (!s->size)
			*s = (struct slot){ start, end - start, host, flags, true };
		else if (s->gpa + s->size == start && s->host + s->size == host && s->flags == flags)
			s->size += end - start;
		else
			return true;
	}
	return s->size;
}

static bool same(const struct slot *a, const struct slot *b)
{
	return a->used && b->used && a->gpa == b->gpa && a->size == b->size && a->host == b->host &&
	       !((a->flags ^ b->flags) & KVM_MEM_READONLY);
}

static int set(struct vm *vm, unsigned n, const struct slot *s, u64 size)
{
	struct kvm_userspace_memory_region r = { .slot = n, .flags = size ? s->flags : 0, .guest_phys_addr = s->gpa,
						 .memory_size = size, .userspace_addr = (u64)(uintptr_t)s->host };
	return kvm_call(vm, vm->fd, KVM_SET_USER_MEMORY_REGION, &r);
}

bool slots_log(struct vm *vm, unsigned k)
{
	struct slot with = vm->slots[k];
	with.flags |= KVM_MEM_LOG_DIRTY_PAGES;
	if (set(vm, k, &with, with.size) < 0)
		return false;
	vm->slots[k].flags = with.flags;
	return true;
}

static void drop(struct vm *vm, unsigned k)
{
	struct slot *s = &vm->slots[k];
	if (s->flags & KVM_MEM_LOG_DIRTY_PAGES)
		mem_device_wrote(vm->mem); /* what its log had to say is lost */
	set(vm, k, s, 0);
	s->used = false;
}

/* Those that the map no longer has as they are. wanted: n of them; those that are there already lose `used`. True:
 * some were, and the gate is closed since. */
static bool drop_stale(struct vm *vm, struct slot *wanted, unsigned n)
{
	bool closed = false;
	for (unsigned k = 0; k < vm->n_slots; k++) {
		bool keep = false;
		for (unsigned w = 0; w < n && !keep; w++)
			if ((keep = same(&vm->slots[k], &wanted[w])))
				wanted[w].used = false;
		if (keep || !vm->slots[k].used)
			continue;
		if (!closed)
			gate_close(vm);
		closed = true;
		drop(vm, k);
	}
	return closed;
}

static bool add(struct vm *vm, const struct slot *s, struct error *e)
{
	unsigned k = 0;
	while (k < vm->n_slots && vm->slots[k].used)
		k++;
	if (k == vm->max_slots)
		return error_set(e, "%s has %u memory slots, and the guest's memory map has more pieces", vm->host->name, k);
	if (k == vm->n_slots) {
		struct slot *more = realloc(vm->slots, (k + 16) * sizeof(*more));
		if (!more)
			return error_set(e, "kvm: out of memory for memory slots");
		memset(more + k, 0, 16 * sizeof(*more));
		vm->slots = more;
		vm->n_slots = MIN(k + 16, vm->max_slots);
	}
	int r = set(vm, k, s, s->size);
	if (r < 0)
		return error_set(e, "%s refuses %llu KiB of memory at %#llx: %s", vm->host->name, (unsigned long long)s->size >> 10,
				 (unsigned long long)s->gpa, strerror(-r));
	vm->slots[k] = *s;
	return true;
}

static bool follow(struct vm *vm, struct error *e)
{
	const struct mem *m = vm->mem;
	struct slot *wanted = calloc((size_t)m->n_regions + 1, sizeof(*wanted));
	unsigned n = 0;
	bool ok = true;
	if (!wanted)
		return error_set(e, "kvm: out of memory for memory slots");
	for (int k = 0; next_piece(m, &k, &wanted[n]);)
		n++;
	bool closed = drop_stale(vm, wanted, n);
	for (unsigned k = 0; ok && k < n; k++)
		ok = !wanted[k].used || add(vm, &wanted[k], e);
	if (closed)
		gate_open(vm);
	free(wanted);
	posted_follow(vm);
	doorbells_follow(vm);
	return ok;
}

bool slots_follow(struct vm *vm, struct error *e)
{
	struct mem *m = vm->mem;
	bool ok = true;
	if (likely(vm->slots_valid && atomic_load(&m->map_seq) == __atomic_load_n(&vm->slots_seq, __ATOMIC_ACQUIRE)))
		return true;
	mem_lock(m);
	u32 seq = atomic_load(&m->map_seq); /* another processor may have done it meanwhile */
	if (!vm->slots_valid || vm->slots_seq != seq) {
		ok = follow(vm, e);
		__atomic_store_n(&vm->slots_seq, seq, __ATOMIC_RELEASE);
		vm->slots_valid = ok;
	}
	mem_unlock(m);
	return ok;
}
