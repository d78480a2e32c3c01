/* A PCI function's configuration space: identity, command register, BARs, capabilities, INTx.
 * PCI Local Bus Specification 3.0, 6.1 to 6.2.5, 6.7.
 *
 * Invariants
 *  1. A BAR is on the bus exactly while the command register enables its kind, its address is
 *     not 0, and all of it lies within the 64 KiB of ports, the 4 GiB of a 32-bit BAR or the
 *     processor's 52 bits. It never hides RAM: its priority is less.
 *  2. A BAR's size shows through wmask: address bits below it are zeros and stay so.
 *  3. The pin is what the device asks for (intx) unless the command register disables it; status
 *     bit 3 is what it asks for. While MSI or MSI-X is enabled the device asks for nothing.
 *  4. Bits that nothing writes are after a load what they were after init.
 * Left out: expansion ROMs, bridges, power management, PCI Express. */
#define LOG_TOPIC "pci"
#include "dev/pci_api.h"

#include <stdio.h>
#include <string.h>

#define BAR_PRIORITY (-1) /* RAM has 0 */
#define BAR_FLAGS_IO 1u
#define BAR_FLAGS_64 4u
#define BAR_FLAGS_PREFETCH 8u
#define SLOTS 32u
#define FIRST_SLOT 2u

/* ---- building --------------------------------------------------------------------------- */

void pci_init(struct pci_function *f, const struct pci_ids *ids)
{
	st16(f->config + PCI_VENDOR, ids->vendor);
	st16(f->config + PCI_DEVICE, ids->device);
	st32(f->config + PCI_REVISION, ids->class_code << 8 | ids->revision);
	st16(f->config + PCI_SUB_VENDOR, ids->sub_vendor);
	st16(f->config + PCI_SUB_DEVICE, ids->sub_device);
	f->config[PCI_INT_PIN] = ids->intx;
	f->wmask[PCI_INT_LINE] = 0xff;
	f->wmask[PCI_HEADER - 2] = 0xff; /* cache line size: a register without effect */
	st16(f->wmask + PCI_COMMAND, PCI_CMD_MASTER | (ids->intx ? PCI_CMD_NO_INTX : 0));
	f->next_cap = PCI_FIRST_CAP;
}

void pci_add_bar(struct pci_function *f, unsigned n, enum pci_bar_kind kind, bool prefetch, u64 size,
		 const struct mmio_ops *ops, void *dev)
{
	u8 *reg = f->config + PCI_BAR0 + 4 * n, *mask = f->wmask + PCI_BAR0 + 4 * n;

	f->bar[n] = (struct pci_bar){ .kind = kind, .size = size, .ops = ops, .dev = dev };
	st32(mask, (u32)~(size - 1));
	if (kind == PCI_BAR_IO) {
		st32(reg, BAR_FLAGS_IO);
	} else {
		st32(reg, (kind == PCI_BAR_MEM64 ? BAR_FLAGS_64 : 0) | (prefetch ? BAR_FLAGS_PREFETCH : 0));
		if (kind == PCI_BAR_MEM64)
			st32(mask + 4, (u32)(~(size - 1) >> 32));
	}
	f->wmask[PCI_COMMAND] |= kind == PCI_BAR_IO ? PCI_CMD_IO : PCI_CMD_MEM;
}

u8 pci_add_cap(struct pci_function *f, u8 id, unsigned len)
{
	u8 at = f->next_cap;

	if (at < PCI_FIRST_CAP || at + len > 256)
		bug("PCI function %04x:%04x: no room for capability %u of %u bytes", ld16(f->config), ld16(f->config + 2), id, len);
	f->config[at] = id;
	f->config[at + 1] = f->config[PCI_CAPS]; /* in front of the others */
	f->config[PCI_CAPS] = at;
	f->config[PCI_STATUS] |= PCI_STS_CAPS;
	f->next_cap = (u8)MIN((at + len + 3u) & ~3u, 255u);
	return at;
}

bool pci_plug(struct pci_function *f, struct device *d, struct error *e)
{
	memcpy(f->initial, f->config, sizeof(f->initial));
	if (!d->pci)
		return true;
	while (!f->dev || pci_function_at(d->pci, f->dev, f->fn)) {
		f->dev = f->dev ? (u8)(f->dev + 1) : FIRST_SLOT;
		if (f->dev >= SLOTS)
			return error_set(e, "all %u slots of the PCI bus are taken", SLOTS - FIRST_SLOT);
	}
	for (unsigned n = 0; n < ARRAY_LEN(f->bar); n++)
		snprintf(f->bar[n].name, sizeof(f->bar[n].name), "pci %02x.%x bar %u", f->dev, f->fn, n);
	return pci_add(d->pci, f);
}

/* ---- BARs ------------------------------------------------------------------------------- */

/* Where the registers want BAR n. False: nowhere. */
static bool bar_wanted(const struct pci_function *f, unsigned n, u64 *base)
{
	const struct pci_bar *b = &f->bar[n];
	u16 command = ld16(f->config + PCI_COMMAND);
	u64 low = ld32(f->config + PCI_BAR0 + 4 * n), limit = b->kind == PCI_BAR_IO ? 0x10000 : MEM_4G;

	if (b->kind == PCI_BAR_NONE || !(command & (b->kind == PCI_BAR_IO ? PCI_CMD_IO : PCI_CMD_MEM)))
		return false;
	*base = low & ~(b->size - 1);
	if (b->kind == PCI_BAR_MEM64) {
		*base |= (u64)ld32(f->config + PCI_BAR0 + 4 * n + 4) << 32;
		limit = 1ull << 52;
	}
	return *base && *base < limit && b->size <= limit - *base;
}

static void bar_unmap(struct pci_function *f, struct pci_bar *b)
{
	if (!b->mapped)
		return;
	b->mapped = false;
	if (b->kind == PCI_BAR_IO)
		mem_remove_ports(f->host->mem, b->name, (u16)b->base);
	else
		mem_remove(f->host->mem, b->name, b->base);
}

static void bar_update(struct pci_function *f, unsigned n)
{
	struct pci_bar *b = &f->bar[n];
	struct error e;
	u64 base;
	bool wanted = bar_wanted(f, n, &base);

	if (b->mapped && (!wanted || base != b->base))
		bar_unmap(f, b);
	if (!wanted || b->mapped)
		return;
	b->base = base;
	b->mapped = b->kind == PCI_BAR_IO ?
		mem_add_ports(f->host->mem, b->name, (u16)base, (unsigned)b->size, b->ops, b->dev, &e) :
		mem_add_mmio(f->host->mem, b->name, base, b->size, b->ops, b->dev, BAR_PRIORITY, &e);
	if (!b->mapped)
		log_guest("%s", e.msg);
}

/* ---- INTx ------------------------------------------------------------------------------- */

static void pin_update(struct pci_function *f)
{
	bool on = f->intx && !pci_msix_on(f) && !(f->msi_cap && (f->config[f->msi_cap + 2] & 1));

	f->config[PCI_STATUS] = (u8)((f->config[PCI_STATUS] & ~PCI_STS_INTX) | (on ? PCI_STS_INTX : 0));
	if (f->host)
		pci_set_intx(f->host, f, on && !(ld16(f->config + PCI_COMMAND) & PCI_CMD_NO_INTX));
}

void pci_irq(struct pci_function *f, bool level)
{
	f->intx = level;
	pin_update(f);
}

bool pci_is_master(const struct pci_function *f)
{
	return f->config[PCI_COMMAND] & PCI_CMD_MASTER;
}

/* ---- changes ---------------------------------------------------------------------------- */

static void follow_config(struct pci_function *f)
{
	for (unsigned n = 0; f->host && n < ARRAY_LEN(f->bar); n++)
		bar_update(f, n);
	pci_msix_written(f);
	pin_update(f);
}

void pci_config_written(struct pci_function *f, unsigned off, unsigned size)
{
	if (f->next_cap) /* made by pci_init */
		follow_config(f);
	if (f->written)
		f->written(f, off, size);
}

void pci_reset(struct pci_function *f)
{
	memcpy(f->config, f->initial, sizeof(f->config));
	f->intx = f->msi_pending = 0;
	f->msix_pending = 0;
	memset(f->msix_table, 0, sizeof(f->msix_table));
	for (unsigned k = 0; k < f->msix_n; k++)
		f->msix_table[16 * k + 12] = 1; /* masked */
	follow_config(f);
}

void pci_loaded(struct pci_function *f)
{
	for (unsigned k = 0; k < sizeof(f->config); k++) {
		u8 may = f->wmask[k] | f->w1c[k];

		f->config[k] = (u8)((f->config[k] & may) | (f->initial[k] & ~may));
	}
	f->intx = f->intx != 0;
	f->msi_pending = f->msi_pending != 0;
	f->msix_pending &= f->msix_n < 64 ? (1ull << f->msix_n) - 1 : ~0ull;
	follow_config(f);
}

void pci_unplug(struct pci_function *f)
{
	if (!f->host)
		return;
	for (unsigned n = 0; n < ARRAY_LEN(f->bar); n++)
		bar_unmap(f, &f->bar[n]);
	pci_set_intx(f->host, f, false);
	pci_remove(f->host, f);
}

/* ---- firmware's part ---------------------------------------------------------------------- */

/* The windows of the DSDT's host bridge, but for the ports below 0xc000, where the board's chips are. */
#define ASSIGN_IO 0xc000u
#define ASSIGN_MEM 0xe0000000u

static void assign_bars(struct pci_function *f, u64 *io, u64 *mem)
{
	for (unsigned n = 0; n < ARRAY_LEN(f->bar); n++) {
		const struct pci_bar *b = &f->bar[n];
		u64 *at = b->kind == PCI_BAR_IO ? io : mem;
		u8 *reg = f->config + PCI_BAR0 + 4 * n;

		if (b->kind == PCI_BAR_NONE)
			continue;
		*at = (*at + b->size - 1) & ~(b->size - 1);
		st32(reg, (u32)*at | (ld32(reg) & ~ld32(f->wmask + PCI_BAR0 + 4 * n)));
		*at += b->size;
	}
	f->config[PCI_COMMAND] |= f->wmask[PCI_COMMAND] & (PCI_CMD_IO | PCI_CMD_MEM);
}

void pci_assign(struct device *host, const u8 irq[4])
{
	u64 io = ASSIGN_IO, mem = ASSIGN_MEM;
	struct pci_function *isa = pci_function_at(host, 1, 0);

	for (unsigned k = 0; k < 4; k++)
		isa->config[0x60 + k] = irq[k] ? irq[k] : 0x80;
	pci_config_written(isa, 0x60, 4);
	for (unsigned k = FIRST_SLOT * 8; k < SLOTS * 8; k++) {
		struct pci_function *f = pci_function_at(host, (u8)(k >> 3), k & 7);

		if (!f)
			continue;
		assign_bars(f, &io, &mem);
		if (f->config[PCI_INT_PIN]) /* slot 1's INTA is PIRQA, as in pci_host.c */
			f->config[PCI_INT_LINE] = irq[(f->dev + f->config[PCI_INT_PIN] - 2) & 3];
		pci_config_written(f, 0, 64);
	}
}
