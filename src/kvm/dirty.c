/* Which pages of a device's memory the guest has written, for who looks at it again and again (mem_written: the
 * display's viewers). KVM keeps a log of a slot from the first question on; a slot without one, or that went
 * meanwhile with its log, makes the answer "all, perhaps". What writes without KVM (DMA, the interpreter, a
 * device) says so itself: mem_device_wrote.
 * Documentation/virt/kvm/api.rst, 4.8 (KVM_GET_DIRTY_LOG). Machine lock held. */
#define LOG_TOPIC "kvm"
#include <stdlib.h>

#include "kvm/kvm_impl.h"

static u64 pages_of(u64 bytes) { return (bytes + PAGE_MASK) / PAGE_SIZE; }

/* From the slot's log to that of the piece asked for. */
static bool read_log(struct vm *vm, unsigned k, const u8 *host, u64 bytes, u64 *pages)
{
	const struct slot *s = &vm->slots[k];
	u64 words = (pages_of(s->size) + 63) / 64, *log = calloc(words, sizeof(*log));
	struct kvm_dirty_log ask = { .slot = k, .dirty_bitmap = log };
	bool ok = log && kvm_call(vm, vm->fd, KVM_GET_DIRTY_LOG, &ask) >= 0;
	for (u64 w = 0; ok && w < words; w++)
		for (u64 left = log[w]; left; left &= left - 1) {
			const u8 *at = s->host + (64 * w + (unsigned)__builtin_ctzll(left)) * PAGE_SIZE;
			u64 page = (u64)(at - host) / PAGE_SIZE;
			if (at >= host && page < pages_of(bytes))
				pages[page / 64] |= 1ull << (page & 63);
		}
	free(log);
	return ok;
}

static bool on_written(struct mem *m, const u8 *host, u64 bytes, u64 *pages)
{
	struct vm *vm = m->engine;
	bool known = vm->slots_valid;
	for (unsigned k = 0; k < vm->n_slots; k++) {
		struct slot *s = &vm->slots[k];
		if (!s->used || s->flags & KVM_MEM_READONLY || s->host + s->size <= host || s->host >= host + bytes)
			continue;
		if (s->flags & KVM_MEM_LOG_DIRTY_PAGES)
			known &= read_log(vm, k, host, bytes, pages);
		else
			known = slots_log(vm, k) && false; /* from now on */
	}
	return known;
}

void dirty_begin(struct vm *vm) { vm->mem->written = on_written; }
void dirty_end(struct vm *vm) { vm->mem->written = NULL; }
