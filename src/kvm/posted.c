/* Posted writes: those to device memory that only store (mmio_ops.posted, the VGA's window). KVM keeps them in a ring
 * and goes on with the guest; they are carried out at the next exit of any processor, before what that asks for, or
 * when somebody looks at what they change (mem_posted). So a guest that draws does not exit for each store.
 *
 * One ring for the machine, behind each processor's kvm_run: KVM moves last, we move first.
 * Documentation/virt/kvm/api.rst, 4.116 (KVM_REGISTER_COALESCED_MMIO). */
#define LOG_TOPIC "kvm"
#include <string.h>

#include "kvm/kvm_impl.h"

/* How many. No more than the ring holds: what other processors write meanwhile is the next one's, or they could keep us here
 * for ever. Machine lock held. */
static u64 carry_out(struct vm *vm)
{
	struct kvm_coalesced_mmio_ring *g = vm->ring;
	u64 n = 0;
	u32 at;
	while (g && n < KVM_COALESCED_MMIO_MAX && (at = g->first) != __atomic_load_n(&g->last, __ATOMIC_ACQUIRE) && at < KVM_COALESCED_MMIO_MAX) {
		const struct kvm_coalesced_mmio *w = &g->coalesced_mmio[at];
		u64 val = 0;
		u32 len = MIN(w->len, 8u);
		memcpy(&val, w->data, len);
		mem_posted_write(vm->mem, w->phys_addr, val, len);
		n++;
		__atomic_store_n(&g->first, (at + 1) % KVM_COALESCED_MMIO_MAX, __ATOMIC_RELEASE);
	}
	return n;
}

static void on_look(struct mem *m) { carry_out(m->engine); }

void posted_carry_out(struct kvm_vcpu *v)
{
	struct vm *vm = v->vm;
	const struct kvm_coalesced_mmio_ring *g = vm->ring;
	if (likely(!g || g->first == __atomic_load_n(&g->last, __ATOMIC_ACQUIRE)))
		return;
	mem_lock(vm->mem);
	v->stats.posted += carry_out(vm);
	mem_unlock(vm->mem);
}

/* The first processor's mapping of the ring is the machine's. */
void posted_joined(struct kvm_vcpu *v)
{
	struct vm *vm = v->vm;
	if (!vm->ring_page || vm->ring || (vm->ring_page + 1) * PAGE_SIZE > vm->run_bytes)
		return;
	mem_lock(vm->mem);
	vm->ring = (void *)((u8 *)v->run + vm->ring_page * PAGE_SIZE);
	vm->mem->posted = on_look;
	mem_unlock(vm->mem);
}

void posted_leaves(struct kvm_vcpu *v)
{
	struct vm *vm = v->vm;
	if (!vm->ring || (u8 *)vm->ring != (u8 *)v->run + vm->ring_page * PAGE_SIZE)
		return;
	mem_lock(vm->mem);
	carry_out(vm);
	vm->ring = NULL;
	vm->mem->posted = NULL;
	mem_unlock(vm->mem);
}

/* ---- zones ------------------------------------------------------------------------------------------- */

static void set_zone(struct vm *vm, struct zone *z, bool on)
{
	struct kvm_coalesced_mmio_zone k = { .addr = z->gpa, .size = z->size };
	int r = kvm_call(vm, vm->fd, on ? KVM_REGISTER_COALESCED_MMIO : KVM_UNREGISTER_COALESCED_MMIO, &k);
	z->used = on && r >= 0; /* without it each write comes out: slower, no less right */
}

static bool wanted(const struct region *r, const struct zone *z)
{
	return r->kind == REGION_MMIO && r->ops->posted && r->base == z->gpa && r->size == z->size;
}

/* Machine lock held; the map has changed, or a ring has come. */
void posted_follow(struct vm *vm)
{
	const struct mem *m = vm->mem;
	for (unsigned k = 0; k < POSTED_ZONES; k++) {
		bool stays = false;
		for (int n = 0; n < m->n_regions && vm->zone[k].used; n++)
			stays |= wanted(&m->regions[n], &vm->zone[k]);
		if (vm->zone[k].used && !stays)
			set_zone(vm, &vm->zone[k], false);
	}
	for (int n = 0; n < m->n_regions && vm->ring; n++) {
		const struct region *r = &m->regions[n];
		unsigned k = 0, there = 0;
		if (r->kind != REGION_MMIO || !r->ops->posted || r->size > UINT32_MAX)
			continue;
		for (unsigned z = 0; z < POSTED_ZONES; z++)
			there |= vm->zone[z].used && wanted(r, &vm->zone[z]);
		while (k < POSTED_ZONES && vm->zone[k].used)
			k++;
		if (there || k == POSTED_ZONES)
			continue;
		vm->zone[k] = (struct zone){ r->base, (u32)r->size, false };
		set_zone(vm, &vm->zone[k], true);
	}
}
