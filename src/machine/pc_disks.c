/* Disks and CDs: images opened, drives put where the configuration wants them, and their names for
 * firmware's boot order. */
#define LOG_TOPIC "machine"
#include <string.h>

#include "machine/machine_impl.h"

/* The image's name, without its folders: what a guest reads as serial number unless told otherwise. */
static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static const char *option(const struct disk_config *c) { return c->cd ? "--cdrom" : "--disk"; }

void pc_boot_device(struct machine *m, char kind, const char *fmt, ...)
{
	va_list ap;

	if (m->n_boot_devices == ARRAY_LEN(m->boot_devices))
		return; /* firmware tries the others last */
	struct boot_device *b = &m->boot_devices[m->n_boot_devices++];
	b->kind = kind;
	va_start(ap, fmt);
	vsnprintf(b->path, sizeof(b->path), fmt, ap);
	va_end(ap);
}

/* ---- drives --------------------------------------------------------------------------------- */

static bool add_virtio(struct machine *m, const struct disk_config *c, struct block *b, struct error *e)
{
	struct device *d;

	if (!pc_add_device(m, &virtio_blk_class, &d, e))
		return false;
	if (b)
		virtio_blk_attach(d, b, (unsigned)(c->queues ? c->queues : m->cfg->cpus), c->serial ? c->serial : base_name(c->image.file));
	pc_boot_device(m, 'c', "/pci@i0cf8/scsi@%x/disk@0,0", d->function->dev);
	return true;
}

/* Disks from the first channel on, CDs from the second. */
static bool add_ide(struct machine *m, const struct disk_config *c, struct block *b, struct error *e)
{
	static const u8 order[2][4] = { { 0, 1, 2, 3 }, { 2, 3, 1, 0 } };
	unsigned k = 0, unit;

	if (!m->ide && !pc_add_device(m, &ide_class, &m->ide, e))
		return false;
	while (k < 4 && (m->ide_units >> order[c->cd][k] & 1))
		k++;
	if (k == 4)
		return error_set(e, "%s %s: the four places of the IDE controller are taken; bus=ahci has more", option(c),
				 c->image.file ? c->image.file : "none");
	unit = order[c->cd][k];
	m->ide_units |= (u8)(1u << unit);
	if (b || c->cd)
		ide_attach(m->ide, unit, &(struct ata_drive_config){ b, c->cd, c->serial });
	m->cd[c - m->cfg->disk] = ide_drive_at(m->ide, unit);
	pc_boot_device(m, c->cd ? 'd' : 'c', "/pci@i0cf8/ide@1,1/drive@%x/disk@%x", unit >> 1, unit & 1);
	return true;
}

/* The next port; behind the last one, of another controller. */
static bool add_ahci(struct machine *m, const struct disk_config *c, struct block *b, struct error *e)
{
	if (!m->ahci || m->ahci_ports == AHCI_PORTS) {
		if (!pc_add_device(m, &ahci_class, &m->ahci, e))
			return false;
		m->ahci_ports = 0;
	}
	unsigned port = m->ahci_ports++;
	if ((b || c->cd) && !ahci_attach(m->ahci, port, &(struct ata_drive_config){ b, c->cd, c->serial }, e))
		return false;
	m->cd[c - m->cfg->disk] = ahci_drive_at(m->ahci, port);
	pc_boot_device(m, c->cd ? 'd' : 'c', "/pci@i0cf8/pci8086,2922@%x/drive@%x/disk@0", m->ahci->function->dev, port);
	return true;
}

static bool add_nvme(struct machine *m, const struct disk_config *c, struct block *b, struct error *e)
{
	struct device *d;

	if (!pc_add_device(m, &nvme_class, &d, e))
		return false;
	if (b)
		nvme_attach(d, b, c->serial ? c->serial : base_name(c->image.file));
	/* OVMF knows the node by this name, whatever the function's identity. */
	pc_boot_device(m, 'c', "/pci@i0cf8/pci8086,5845@%x/namespace@1,0", d->function->dev);
	return true;
}

static enum disk_bus bus_of(const struct disk_config *c)
{
	return c->bus != BUS_DEFAULT ? (enum disk_bus)c->bus : c->cd ? BUS_IDE : BUS_VIRTIO;
}

const char *pc_disk_bus(const struct disk_config *c)
{
	static const char *const names[] = { [BUS_VIRTIO] = "virtio", [BUS_IDE] = "ide", [BUS_AHCI] = "ahci", [BUS_NVME] = "nvme" };

	return names[bus_of(c)];
}

static bool add_disk(struct machine *m, int k, struct error *e)
{
	const struct disk_config *c = &m->cfg->disk[k];
	bool empty = c->cd && c->image.file && !strcmp(c->image.file, "none");
	struct block_options o = c->image;

	o.in_order = m->cfg->icount;

	if (!c->image.file)
		return error_set(e, "%s: needs a file", option(c));
	if (c->cd && bus_of(c) != BUS_IDE && bus_of(c) != BUS_AHCI)
		return error_set(e, "--cdrom %s: a CD drive is not %s; use bus=ide or ahci", c->image.file, pc_disk_bus(c));
	if (!m->cfg->dry_run && !empty && !(m->disk[k] = block_open(&o, m->loop, e)))
		return error_prefix(e, "%s", option(c));
	switch (bus_of(c)) {
	case BUS_IDE: return add_ide(m, c, m->disk[k], e);
	case BUS_AHCI: return add_ahci(m, c, m->disk[k], e);
	case BUS_NVME: return add_nvme(m, c, m->disk[k], e);
	default: return add_virtio(m, c, m->disk[k], e);
	}
}

bool pc_add_disks(struct machine *m, struct error *e)
{
	for (int k = 0; k < m->cfg->n_disks; k++)
		if (!add_disk(m, k, e))
			return false;
	return true;
}

void pc_close_disks(struct machine *m)
{
	struct error e;

	for (int k = 0; k < MAX_DISKS; k++)
		if (m->disk[k] && !block_close(m->disk[k], &e))
			log_error("%s: %s", option(&m->cfg->disk[k]), e.msg);
}
