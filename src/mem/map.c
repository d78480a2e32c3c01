/* The guest-physical map: regions as declared, and the same flattened, sorted and without
 * overlap, which lookups search.
 *
 * Invariants
 *  1. The flattened map is a function of the declared list alone: at each address the region
 *     of highest priority, of equal ones the last declared.
 *  2. A flattened piece of a RAM or ROM region may begin or end within a page, where an MMIO
 *     region covers part of it; such a page is never given out as a whole (mem_page).
 *  3. The table that m->map points to is never freed before mem_destroy: a lookup may be
 *     reading it. One that became too small is kept in a list; each is twice as large as the
 *     one before, so that the list stays short whatever a guest does.
 * Threading: writers hold the machine lock. Readers take no lock: map_seq is odd while a
 * writer writes, and a reader that saw it change reads again. */
#include "mem/map.h"

#include <stdlib.h>
#include <string.h>

#define MAX_PHYS (1ull << 52)
#define MAX_DECLARED 4096 /* far above what a PC has; below it, O(n^2) does not hurt */

/* Reads and writes race here; the sequence counter settles it, which sanitizers cannot see. */
#define SEQUENCE_COUNTED __attribute__((noinline, no_sanitize("thread")))

struct map_table {
	struct map_table *older;
	int n, cap;
	struct region r[];
};

/* ---- lookup -------------------------------------------------------------------------- */

/* Searches t, which may be changing: n never exceeds what its memory holds. */
SEQUENCE_COUNTED static bool search(const struct map_table *t, u64 gpa, struct region *out)
{
	int n = t ? *(const volatile int *)&t->n : 0, lo = 0, hi = n;

	while (lo < hi) { /* the first region that begins above gpa */
		int mid = (lo + hi) / 2;
		if (t->r[mid].base <= gpa)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo > 0 && gpa - t->r[lo - 1].base < t->r[lo - 1].size) {
		*out = t->r[lo - 1];
		return true;
	}
	u64 start = lo > 0 ? t->r[lo - 1].base + t->r[lo - 1].size : 0;
	*out = (struct region){ .base = start, .size = (lo < n ? t->r[lo].base : UINT64_MAX) - start };
	return false;
}

bool map_find(const struct mem *m, u64 gpa, struct region *out)
{
	for (;;) {
		u32 seq = atomic_load_explicit(&m->map_seq, memory_order_acquire);
		if (likely(!(seq & 1))) {
			bool found = search(atomic_load_explicit(&m->map, memory_order_acquire), gpa, out);
			atomic_thread_fence(memory_order_acquire);
			if (likely(atomic_load_explicit(&m->map_seq, memory_order_relaxed) == seq))
				return found;
		}
		__builtin_ia32_pause();
	}
}

struct mem_page mem_page(struct mem *m, u64 gpa)
{
	struct region r;

	gpa &= ~PAGE_MASK;
	if (!map_find(m, gpa, &r) || r.kind == REGION_MMIO || r.base + r.size - gpa < PAGE_SIZE)
		return (struct mem_page){ 0 };
	u8 *host = r.host + (gpa - r.base);
	if (r.kind == REGION_ROM)
		return (struct mem_page){ .host = host };
	return (struct mem_page){ .host = host, .writable = true, .code = code_of(m, host) };
}

/* ---- flattening ---------------------------------------------------------------------- */

static int compare_u64(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* The declared region that is seen at gpa, or NULL. */
static const struct region *seen_at(const struct mem *m, u64 gpa)
{
	const struct region *best = NULL;

	for (int i = 0; i < m->n_declared; i++) {
		const struct region *r = &m->declared[i];
		if (gpa - r->base < r->size && (!best || r->priority >= best->priority))
			best = r;
	}
	return best;
}

/* Fills t from the declared regions; points: room for all their ends. */
SEQUENCE_COUNTED static void flatten_into(const struct mem *m, struct map_table *t, u64 *points)
{
	size_t n_points = 0;
	const struct region *last = NULL;

	for (int i = 0; i < m->n_declared; i++) {
		points[n_points++] = m->declared[i].base;
		points[n_points++] = m->declared[i].base + m->declared[i].size;
	}
	qsort(points, n_points, sizeof(*points), compare_u64);
	t->n = 0;
	for (size_t i = 0; i + 1 < n_points; i++) {
		u64 start = points[i], size = points[i + 1] - start;
		if (!size)
			continue;
		const struct region *r = seen_at(m, start);
		if (r && r == last) {
			t->r[t->n - 1].size += size;
		} else if (r) {
			struct region piece = *r;
			piece.base = start;
			piece.size = size;
			piece.offset = start - r->base;
			if (piece.host)
				piece.host += piece.offset;
			t->r[t->n++] = piece;
		}
		last = r;
	}
}

/* Room for what n declared regions flatten to: one piece between any two of their ends. */
static bool reserve(struct mem *m, int n)
{
	struct map_table *old = atomic_load(&m->map);
	int need = 2 * n;

	if (n > m->cap_declared) {
		int cap = MAX(n, 2 * m->cap_declared);
		struct region *d = realloc(m->declared, (size_t)cap * sizeof(*d));
		if (!d)
			return false;
		m->declared = d;
		m->cap_declared = cap;
	}
	if (old && old->cap >= need)
		return true;
	int cap = MAX(64, old ? MAX(need, 2 * old->cap) : need);
	struct map_table *t = malloc(sizeof(*t) + (size_t)cap * sizeof(t->r[0]));
	if (!t)
		return false;
	t->cap = cap;
	t->n = old ? old->n : 0;
	if (old)
		memcpy(t->r, old->r, (size_t)old->n * sizeof(t->r[0]));
	t->older = old;
	atomic_store_explicit(&m->map, t, memory_order_release);
	m->regions = t->r;
	return true;
}

/* size if the bytes from base on are RAM with nothing over it, else 0. */
static u64 plain_ram(const struct mem *m, u64 base, u64 size)
{
	struct region r;

	return map_find(m, base, &r) && r.kind == REGION_RAM && r.base + r.size >= base + size ? size : 0;
}

static void reflatten(struct mem *m, u64 *points)
{
	struct map_table *t = atomic_load(&m->map);
	u32 seq = atomic_load_explicit(&m->map_seq, memory_order_relaxed);

	atomic_store_explicit(&m->map_seq, seq + 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	flatten_into(m, t, points);
	atomic_store_explicit(&m->map_seq, seq + 2, memory_order_release);
	m->n_regions = t->n;
	atomic_store(&m->plain_low, plain_ram(m, MEM_1M, m->low_size - MEM_1M));
	atomic_store(&m->plain_high, plain_ram(m, MEM_4G, m->ram_size - m->low_size));
	if (m->map_changed)
		m->map_changed(m->map_changed_arg);
}

/* ---- declaring ----------------------------------------------------------------------- */

static bool check_region(const struct mem *m, const struct region *r, struct error *e)
{
	unsigned long long base = r->base, size = r->size;

	if (!r->size)
		return error_set(e, "region %s at %#llx: its size is 0", r->name, base);
	if (r->base >= MAX_PHYS || r->size > MAX_PHYS - r->base)
		return error_set(e, "region %s at %#llx, size %#llx: ends above the 52 bits of physical addresses",
				 r->name, base, size);
	if (r->kind != REGION_MMIO && ((r->base | r->size) & PAGE_MASK))
		return error_set(e, "region %s at %#llx, size %#llx: base and size must be multiples of 4 KiB",
				 r->name, base, size);
	if (r->kind != REGION_MMIO && (!r->host || ((uintptr_t)r->host & PAGE_MASK)))
		return error_set(e, "region %s at %#llx: its bytes must begin at a multiple of 4 KiB on the host",
				 r->name, base);
	if (m->n_declared == MAX_DECLARED)
		return error_set(e, "region %s: there are %d regions already", r->name, MAX_DECLARED);
	return true;
}

bool map_add(struct mem *m, const struct region *r, struct error *e)
{
	if (!check_region(m, r, e))
		return false;
	u64 *points = malloc(2 * (size_t)(m->n_declared + 1) * sizeof(*points));
	if (!points || !reserve(m, m->n_declared + 1)) {
		free(points);
		return error_set(e, "region %s: out of memory", r->name);
	}
	m->declared[m->n_declared++] = *r;
	reflatten(m, points);
	free(points);
	return true;
}

bool mem_add_rom(struct mem *m, const char *name, u64 base, u64 size, u8 *host, int priority,
		 struct error *e)
{
	struct region r = { .base = base, .size = size, .kind = REGION_ROM, .host = host,
			    .name = name, .priority = priority };

	return map_add(m, &r, e);
}

bool mem_add_ram(struct mem *m, const char *name, u64 base, u64 size, u8 *host, int priority,
		 struct error *e)
{
	struct region r = { .base = base, .size = size, .kind = REGION_RAM, .host = host,
			    .name = name, .priority = priority };

	return map_add(m, &r, e);
}

bool mem_add_flash(struct mem *m, const char *name, u64 base, u64 size, u8 *host, const struct mmio_ops *ops,
		   void *dev, int priority, struct error *e)
{
	struct region r = { .base = base, .size = size, .kind = REGION_ROM, .host = host, .ops = ops, .dev = dev,
			    .name = name, .priority = priority };

	return map_add(m, &r, e);
}

bool mem_add_mmio(struct mem *m, const char *name, u64 base, u64 size, const struct mmio_ops *ops,
		  void *dev, int priority, struct error *e)
{
	struct region r = { .base = base, .size = size, .kind = REGION_MMIO, .ops = ops, .dev = dev,
			    .name = name, .priority = priority };

	return map_add(m, &r, e);
}

void mem_remove(struct mem *m, const char *name, u64 base)
{
	for (int i = m->n_declared - 1; i >= 0; i--) {
		struct region *r = &m->declared[i];
		bool machines = r->kind == REGION_RAM && r->host < m->ram + m->ram_size;
		if (machines || r->base != base || strcmp(r->name, name))
			continue;
		u64 *points = malloc(2 * (size_t)m->n_declared * sizeof(*points));
		if (!points)
			bug("out of memory for %d regions", m->n_declared);
		memmove(r, r + 1, (size_t)(m->n_declared - i - 1) * sizeof(*r));
		m->n_declared--;
		reflatten(m, points);
		free(points);
		return;
	}
}

void map_free(struct mem *m)
{
	for (struct map_table *t = atomic_load(&m->map), *older; t; t = older) {
		older = t->older;
		free(t);
	}
	free(m->declared);
}
