/* What local APICs share: the page at which they are seen, and the list of those on the bus.
 *
 * The window is one page of the memory map for all processors; whose LAPIC is meant follows
 * from the calling thread. A relocated LAPIC has a window of its own; other processors see
 * there what is below it: RAM, or nothing.
 *
 * Threading: machine lock; `current` belongs to its thread. A thread that has named a LAPIC
 * by lapic_set_current ends, or names another, before the bus is freed. */
#define LOG_TOPIC "lapic"
#include "dev/lapic_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct lapic *current;

/* ---- windows ------------------------------------------------------------------------ */

/* RAM that the window hides from this processor's point of view, or NULL. */
static u8 *below_window(const struct lapic_window *w, u64 off, unsigned size)
{
	struct mem *m = w->bus->d.mem;
	u64 gpa = w->base + off;

	if (gpa + size <= m->low_size)
		return m->ram + gpa;
	if (gpa >= MEM_4G && gpa - MEM_4G + size <= m->ram_size - m->low_size)
		return m->ram + m->low_size + (gpa - MEM_4G);
	return NULL;
}

static struct lapic *lapic_in(const struct lapic_window *w)
{
	struct lapic *l = lapic_current(w->bus);

	return l && (l->base & ~PAGE_MASK) == w->base && lapic_enabled(l) ? l : NULL;
}

static u64 window_read(void *dev, u64 off, unsigned size)
{
	struct lapic_window *w = dev;
	struct lapic *l = lapic_in(w);
	u64 val = UINT64_MAX;
	u8 *ram;

	if (l)
		return lapic_mmio_read(l, (u32)off, size);
	if ((ram = below_window(w, off, size)))
		memcpy(&val, ram, MIN(size, 8u));
	return val;
}

static void window_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct lapic_window *w = dev;
	struct lapic *l = lapic_in(w);
	u8 *ram;

	if (l)
		lapic_mmio_write(l, (u32)off, (u32)val, size);
	else if ((ram = below_window(w, off, size))) {
		struct mem *m = w->bus->d.mem;

		memcpy(ram, &val, MIN(size, 8u));
		mem_code_written(&m->code[(size_t)(ram - m->ram) >> 12], (unsigned)off, size);
	}
}

static const struct mmio_ops window_ops = { window_read, window_write, 1, 8 };

void lapic_place_window(struct lapic *l)
{
	u64 base = l->base & ~PAGE_MASK;
	bool wanted = l->bus && lapic_enabled(l) && base != APIC_BASE_DEFAULT;
	struct error e;

	if (l->window.mapped && (!wanted || l->window.base != base)) {
		mem_remove(l->d.mem, l->window.name, l->window.base);
		l->window.mapped = false;
	}
	if (!wanted || l->window.mapped)
		return;
	l->window.bus = l->bus;
	l->window.base = base;
	snprintf(l->window.name, sizeof(l->window.name), "lapic-%u", l->x2id);
	l->window.mapped = mem_add_mmio(l->d.mem, l->window.name, base, PAGE_SIZE, &window_ops, &l->window, 9, &e);
	if (!l->window.mapped)
		log_guest("the LAPIC cannot be moved to %#llx: %s", (unsigned long long)base, e.msg);
}

void lapic_unplug(struct lapic *l)
{
	if (l->window.mapped)
		mem_remove(l->d.mem, l->window.name, l->window.base);
	l->window.mapped = false;
	if (current == l)
		current = NULL;
}

/* ---- the bus ------------------------------------------------------------------------ */

void lapic_set_current(struct lapic *l)
{
	current = l;
}

struct lapic *lapic_current(struct lapic_bus *b)
{
	if (current && current->bus == b)
		return current;
	return b->n ? b->cpus[0] : NULL;
}

unsigned lapic_count(const struct lapic_bus *b)
{
	return b->n;
}

struct lapic *lapic_at(struct lapic_bus *b, unsigned i)
{
	return i < b->n ? b->cpus[i] : NULL;
}

struct lapic *lapic_add(struct lapic_bus *b, u32 apic_id, bool bsp, const struct irq_sink *sink)
{
	struct error e;

	if (b->n == b->cap) {
		unsigned cap = b->cap ? b->cap * 2 : 8;
		struct lapic **cpus = realloc(b->cpus, cap * sizeof(*cpus));

		if (!cpus)
			return NULL;
		b->cpus = cpus;
		b->cap = cap;
	}
	struct lapic *l = (struct lapic *)device_new(&lapic_class, &b->d, &e);
	if (!l)
		return NULL;
	l->bus = b;
	l->x2id = apic_id;
	l->bsp = bsp;
	l->sink = *sink;
	lapic_reset(l);
	b->cpus[b->n++] = l;
	return l;
}

void lapic_set_features(struct lapic *l, const struct lapic_features *f)
{
	l->features = *f;
	l->features.maxphyaddr = (u8)MIN(MAX(f->maxphyaddr, 32), 52);
}

static bool bus_init(struct device *d, struct error *e)
{
	struct lapic_bus *b = container_of(d, struct lapic_bus, d);

	b->window = (struct lapic_window){ .bus = b, .base = APIC_BASE_DEFAULT, .mapped = true };
	return mem_add_mmio(d->mem, "lapic", APIC_BASE_DEFAULT, PAGE_SIZE, &window_ops, &b->window, 8, e);
}

static void bus_reset(struct device *d)
{
	struct lapic_bus *b = container_of(d, struct lapic_bus, d);

	for (unsigned i = 0; i < b->n; i++)
		lapic_reset(b->cpus[i]);
}

static void bus_destroy(struct device *d)
{
	struct lapic_bus *b = container_of(d, struct lapic_bus, d);

	for (unsigned i = 0; i < b->n; i++)
		device_free(&b->cpus[i]->d);
	free(b->cpus);
}

static const struct state_field bus_state[] = { STATE_END };

const struct device_class lapic_bus_class = {
	.name = "lapic_bus",
	.help = "what local APICs share: their page at 0xfee00000, IPIs, MSIs",
	.size = sizeof(struct lapic_bus),
	.init = bus_init,
	.reset = bus_reset,
	.destroy = bus_destroy,
	.state = bus_state,
};
