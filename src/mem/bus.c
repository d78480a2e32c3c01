/* The memory bus and the port bus: a vCPU's accesses, brought to RAM, ROM and devices in the
 * sizes that each device declared.
 *
 * Invariants
 *  1. A handler sees only sizes min_size..max_size, powers of two; on the memory bus also
 *     aligned by their size; off + size stays within the region, except where a region is
 *     smaller than its own min_size.
 *  2. An access that crosses from one region into another is split there; each part goes
 *     where it belongs. Parts are done from low to high addresses, under one hold of the lock.
 *  3. Nothing there, or no handler: all ones; writes are ignored.
 * Threading: vCPU threads, machine lock not held; taken here for devices. Port accesses take it
 * always, since the port map changes under it. */
#include "mem/map.h"

#include <stdlib.h>
#include <string.h>

static u64 ones(unsigned size)
{
	return size >= 8 ? ~0ull : (1ull << (8 * size)) - 1;
}

static unsigned ops_min(const struct mmio_ops *ops)
{
	return ops->min_size ? ops->min_size : 1;
}

static unsigned ops_max(const struct mmio_ops *ops)
{
	return MAX(ops->max_size ? ops->max_size : 4, ops_min(ops));
}

/* Read and write a device; size is at most max_size, off + size within the region. Widens what
 * is below min_size, see struct mmio_ops. */
static u64 device_read(const struct mmio_ops *ops, void *dev, u64 off, unsigned size)
{
	unsigned min = ops_min(ops);

	if (!ops->read)
		return ones(size);
	if (size >= min)
		return ops->read(dev, off, size) & ones(size);
	unsigned in = (unsigned)(off & (min - 1));
	return ops->read(dev, off - in, min) >> (8 * in) & ones(size);
}

static void device_write(const struct mmio_ops *ops, void *dev, u64 off, u64 val, unsigned size)
{
	unsigned min = ops_min(ops);

	val &= ones(size);
	if (!ops->write)
		return;
	if (size >= min) {
		ops->write(dev, off, val, size);
		return;
	}
	unsigned in = (unsigned)(off & (min - 1));
	ops->write(dev, off - in, val << (8 * in), min);
}

/* The largest power of two, at most left and max. */
static unsigned chunk_size(u64 left, unsigned max)
{
	unsigned n = 8;

	while (n > left || n > max)
		n >>= 1;
	return n;
}

/* ---- memory -------------------------------------------------------------------------- */

static u64 load(const u8 *p, unsigned size)
{
	u64 v = 0;

	switch (size) {
	case 1: return *p;
	case 2: return ld16(p);
	case 4: return ld32(p);
	case 8: return ld64(p);
	}
	memcpy(&v, p, size);
	return v;
}

static void store(u8 *p, u64 v, unsigned size)
{
	switch (size) {
	case 1: *p = (u8)v; break;
	case 2: st16(p, (u16)v); break;
	case 4: st32(p, (u32)v); break;
	case 8: st64(p, v); break;
	default: memcpy(p, &v, size);
	}
}

/* size bytes at gpa, all within RAM region r. */
static void ram_write(struct mem *m, const struct region *r, u64 gpa, u64 val, unsigned size)
{
	u8 *host = r->host + (gpa - r->base);
	unsigned off = (unsigned)(gpa & PAGE_MASK), first = MIN(size, PAGE_SIZE - off);

	store(host, val, size);
	mem_code_written(code_of(m, host), off, first);
	if (unlikely(first < size))
		mem_code_written(code_of(m, host + first), 0, size - first);
}

/* How many of left bytes at gpa one access to r can take, and to which offset it goes. */
static unsigned mmio_chunk(const struct region *r, u64 gpa, unsigned left, u64 *off)
{
	*off = gpa - r->base + r->offset;
	unsigned n = chunk_size(MIN(left, r->size - (gpa - r->base)), ops_max(r->ops));
	while (*off & (n - 1))
		n >>= 1;
	return n;
}

/* One part of a split read or write: the number of bytes it did. Machine lock held. */
static unsigned read_part(struct mem *m, u64 gpa, unsigned left, u64 *val)
{
	struct region r;

	if (!map_find(m, gpa, &r)) {
		*val = 0xff;
		return 1;
	}
	if (r.kind != REGION_MMIO) {
		*val = r.host[gpa - r.base];
		return 1;
	}
	u64 off;
	unsigned n = mmio_chunk(&r, gpa, left, &off);
	*val = device_read(r.ops, r.dev, off, n);
	return n;
}

static unsigned write_part(struct mem *m, u64 gpa, unsigned left, u64 val)
{
	struct region r;

	if (!map_find(m, gpa, &r) || (r.kind == REGION_ROM && !r.ops))
		return 1;
	if (r.kind == REGION_RAM) {
		ram_write(m, &r, gpa, val & 0xff, 1);
		return 1;
	}
	u64 off;
	unsigned n = mmio_chunk(&r, gpa, left, &off);
	device_write(r.ops, r.dev, off, val, n);
	return n;
}

u64 mem_phys_read(struct mem *m, u64 gpa, unsigned size)
{
	struct region r;

	if (map_find(m, gpa, &r) && r.kind != REGION_MMIO && gpa - r.base + size <= r.size)
		return load(r.host + (gpa - r.base), size);

	u64 val = 0;
	mem_lock(m);
	for (unsigned done = 0; done < size;) {
		u64 part;
		unsigned n = read_part(m, gpa + done, size - done, &part);
		val |= part << (8 * done);
		done += n;
	}
	mem_unlock(m);
	return val;
}

void mem_phys_write(struct mem *m, u64 gpa, u64 val, unsigned size)
{
	struct region r;

	if (map_find(m, gpa, &r) && r.kind == REGION_RAM && gpa - r.base + size <= r.size) {
		ram_write(m, &r, gpa, val, size);
		return;
	}
	mem_lock(m);
	mem_posted_write(m, gpa, val, size);
	mem_unlock(m);
}

void mem_posted_write(struct mem *m, u64 gpa, u64 val, unsigned size)
{
	for (unsigned done = 0; done < size;)
		done += write_part(m, gpa + done, size - done, val >> (8 * done));
}

/* ---- ports --------------------------------------------------------------------------- */

static void rebuild_port_map(struct mem *m)
{
	memset(m->port_map, 0, 65536 * sizeof(*m->port_map));
	for (int i = 0; i < m->n_ports; i++) {
		for (unsigned p = 0; p < m->ports[i].count; p++)
			m->port_map[m->ports[i].base + p] = &m->ports[i];
	}
}

bool mem_add_ports(struct mem *m, const char *name, u16 base, unsigned count, const struct mmio_ops *ops,
		   void *dev, struct error *e)
{
	if (!count || base + count > 0x10000)
		return error_set(e, "ports %s: %u from %#x: not within 0..0xffff", name, count, base);
	if (count > 0xffff)
		return error_set(e, "ports %s: %u from %#x: at most 65535 at once", name, count, base);
	if (m->n_ports == m->cap_ports) {
		int cap = MAX(32, 2 * m->cap_ports);
		struct port_range *p = realloc(m->ports, (size_t)cap * sizeof(*p));
		if (!p)
			return error_set(e, "ports %s: out of memory", name);
		m->ports = p;
		m->cap_ports = cap;
	}
	m->ports[m->n_ports++] = (struct port_range){ .base = base, .count = (u16)count, .ops = ops,
						      .dev = dev, .name = name };
	rebuild_port_map(m); /* realloc may have moved all of them */
	return true;
}

void mem_remove_ports(struct mem *m, const char *name, u16 base)
{
	for (int i = m->n_ports - 1; i >= 0; i--) {
		struct port_range *p = &m->ports[i];
		if (p->base != base || strcmp(p->name, name))
			continue;
		memmove(p, p + 1, (size_t)(m->n_ports - i - 1) * sizeof(*p));
		m->n_ports--;
		rebuild_port_map(m);
		return;
	}
}

/* How many of left bytes at port one access can take: those that belong to range p. */
static unsigned port_chunk(const struct mem *m, const struct port_range *p, u16 port, unsigned left)
{
	unsigned same = 1;

	while (same < left && port + same < 0x10000u && m->port_map[port + same] == p)
		same++;
	return chunk_size(same, ops_max(p->ops));
}

/* Ports wrap at 64 K: the bus has 16 address lines. */
u32 mem_port_read(struct mem *m, u16 port, unsigned size)
{
	u32 val = 0;

	mem_lock(m);
	for (unsigned done = 0, n; done < size; done += n) {
		u16 at = (u16)(port + done);
		const struct port_range *p = m->port_map[at];
		u64 part = 0xff;
		n = 1;
		if (p) {
			n = port_chunk(m, p, at, size - done);
			part = device_read(p->ops, p->dev, at - p->base, n);
		}
		val |= (u32)(part << (8 * done));
	}
	mem_unlock(m);
	return val;
}

void mem_port_write(struct mem *m, u16 port, u32 val, unsigned size)
{
	mem_lock(m);
	for (unsigned done = 0, n; done < size; done += n) {
		u16 at = (u16)(port + done);
		const struct port_range *p = m->port_map[at];
		n = 1;
		if (p) {
			n = port_chunk(m, p, at, size - done);
			device_write(p->ops, p->dev, at - p->base, val >> (8 * done), n);
		}
	}
	mem_unlock(m);
}
