/* DMA: how devices read and write guest memory, and nothing else of it.
 *
 * Invariants
 *  1. A range that a guest made up (wrapping, over holes, over devices) is walked piece by
 *     piece; only RAM is written, only RAM and ROM are read.
 *  2. A transfer of 1, 2, 4 or 8 bytes that lies in one page is one access, so that
 *     a ring's index is never seen half written.
 *  3. Each page written is told to mem_code_written after the store.
 * Threading: any thread, no lock. What the guest writes meanwhile is the guest's race. */
#include "mem/map.h"

#include <string.h>

static void copy(void *to, const void *from, u64 len)
{
	switch (len) {
	case 1: *(u8 *)to = *(const u8 *)from; break;
	case 2: st16(to, ld16(from)); break;
	case 4: st32(to, ld32(from)); break;
	case 8: st64(to, ld64(from)); break;
	default: memcpy(to, from, len);
	}
}

/* How much of len bytes at gpa lies in r, a region or a gap that holds gpa. */
static u64 piece_len(const struct region *r, u64 gpa, u64 len)
{
	return MIN(len, r->size - (gpa - r->base));
}

bool mem_read(struct mem *m, u64 gpa, void *buf, u64 len)
{
	u8 *to = buf;
	bool all = true;

	while (len) {
		struct region r;
		bool found = map_find(m, gpa, &r);
		u64 n = piece_len(&r, gpa, len);
		if (!n) { /* the last address of all: nothing is there, and none comes after */
			memset(to, 0, len);
			return false;
		}
		if (found && r.kind != REGION_MMIO) {
			copy(to, r.host + (gpa - r.base), n);
		} else {
			memset(to, 0, n);
			all = false;
		}
		to += n;
		gpa += n;
		len -= n;
	}
	return all;
}

u8 *mem_dma(struct mem *m, u64 gpa, u64 *len)
{
	struct region r;

	if (!map_find(m, gpa, &r) || r.kind != REGION_RAM)
		return NULL;
	*len = piece_len(&r, gpa, *len);
	return r.host + (gpa - r.base);
}

void mem_dma_written(struct mem *m, u8 *host, u64 len)
{
	if (unlikely((u64)(host - m->ram) >= m->ram_size))
		mem_device_wrote(m);
	while (len) {
		unsigned off = (unsigned)((size_t)(host - m->ram) & PAGE_MASK);
		unsigned n = (unsigned)MIN(len, PAGE_SIZE - off);

		if (mem_code_written(code_of(m, host), off, n) && m->code_hit)
			m->code_hit(m, code_of(m, host), off, n);
		host += n;
		len -= n;
	}
}

static void write_ram(struct mem *m, u8 *host, const u8 *from, u64 len)
{
	while (len) {
		unsigned off = (unsigned)((size_t)(host - m->ram) & PAGE_MASK);
		unsigned n = (unsigned)MIN(len, PAGE_SIZE - off);
		copy(host, from, n);
		mem_dma_written(m, host, n);
		host += n;
		from += n;
		len -= n;
	}
}

bool mem_write(struct mem *m, u64 gpa, const void *buf, u64 len)
{
	const u8 *from = buf;
	bool all = true;

	while (len) {
		struct region r;
		bool found = map_find(m, gpa, &r);
		u64 n = piece_len(&r, gpa, len);
		if (!n)
			return false;
		if (found && r.kind == REGION_RAM)
			write_ram(m, r.host + (gpa - r.base), from, n);
		else
			all = false;
		from += n;
		gpa += n;
		len -= n;
	}
	return all;
}

bool mem_written(struct mem *m, const u8 *host, u64 bytes, u64 *pages)
{
	bool all = atomic_exchange(&m->device_wrote, false);

	return m->written && m->written(m, host, bytes, pages) && !all;
}
