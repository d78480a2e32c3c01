/* The AHCI controller of the ICH9: six ports of one SATA drive each, on PCI. Serial ATA Advanced Host
 * Controller Interface 1.3.1; numbers are its sections. Intel 316972 (ICH9 datasheet), 15.1, for the PCI function.
 *
 *   8086:2922, BAR 5: 000 controller   100 + 80 * n: port n, for each with a drive
 *
 * Invariants
 *  1. IS has a port's bit from when PxIS & PxIE is not 0 until the guest clears it, and again at once if that
 *     is so still. INTx is high while GHC.IE and any bit of IS are; a message goes out for each bit that rises.
 *  2. GHC.HR stays set until nothing of any port is in flight: memory that the guest takes back is not written to.
 *
 * Left out: command completion coalescing, enclosure management, port multipliers, power management of the
 * link, hot plug, asynchronous notification, DMA Setup FISes in the receive area (a queued command moves data without).
 * Threading: machine lock held, but for what ahci_command.c says. */
#include "dev/ahci_impl.h"

#include <stdlib.h>

enum { REG_CAP = 0x00, REG_GHC = 0x04, REG_IS = 0x08, REG_PI = 0x0c, REG_VS = 0x10, REG_PORTS = 0x100, PORT_BYTES = 0x80 };
/* 3.1.1: 64-bit addresses, queues, CLO, an activity LED, 3 Gbit/s, AHCI only, several DRQ blocks a PIO command */
#define CAP_BASE (1u << 31 | 1u << 30 | 1u << 24 | 1u << 25 | 2u << 20 | 1u << 18 | 1u << 15)
enum { GHC_HR = 1 << 0, GHC_IE = 1 << 1 };
#define GHC_AE (1u << 31)
#define VERSION 0x00010301u
#define PCS 0x92                /* ICH9 15.1.34: ports enabled, which drivers write */

/* ---- interrupts ----------------------------------------------------------------------------------- */

void ahci_update_irq(struct ahci *a)
{
	for (unsigned k = 0; k < AHCI_PORTS; k++)
		if (ahci_port_is(&a->port[k]) & a->port[k].ie)
			a->is |= 1u << k;
	u32 wants = a->ghc & GHC_IE ? a->is : 0;
	bool rises = wants & ~a->told;
	a->told = wants;
	pci_irq(&a->pci, wants);
	if (rises)
		pci_msg(&a->pci, 0);
}

/* ---- resets ----------------------------------------------------------------------------------------- */

static void reset_registers(struct ahci *a)
{
	a->ghc = a->is = a->told = 0;
	for (unsigned k = 0; k < AHCI_PORTS; k++)
		ahci_port_clear(&a->port[k]);
	ahci_update_irq(a);
}

/* 10.4.3. */
static void reset_when_idle(struct ahci *a)
{
	for (unsigned k = 0; k < AHCI_PORTS; k++)
		if (a->port[k].in_flight)
			return;
	reset_registers(a);
}

void ahci_port_idle(struct ahci_port *p)
{
	if (p->ahci->ghc & GHC_HR) {
		reset_when_idle(p->ahci);
	} else {
		ahci_port_reset_now(p);
		ahci_run(p);
	}
}

/* ---- registers ---------------------------------------------------------------------------------------- */

static u32 implemented(const struct ahci *a)
{
	u32 ports = 0;

	for (unsigned k = 0; k < AHCI_PORTS; k++)
		ports |= ahci_present(&a->port[k]) ? 1u << k : 0;
	return ports;
}

static void ghc_write(struct ahci *a, u32 val)
{
	if (a->ghc & GHC_HR)
		return;
	if (val & GHC_HR) {
		a->ghc = GHC_HR;
		for (unsigned k = 0; k < AHCI_PORTS; k++)
			ahci_port_abort(&a->port[k]);
		reset_when_idle(a);
	} else {
		a->ghc = val & GHC_IE;
		ahci_update_irq(a);
	}
}

static struct ahci_port *port_of(struct ahci *a, u64 off)
{
	u64 n = (off - REG_PORTS) / PORT_BYTES;

	return off >= REG_PORTS && n < AHCI_PORTS && ahci_present(&a->port[n]) ? &a->port[n] : NULL;
}

static u64 hba_read(void *dev, u64 off, unsigned size)
{
	struct ahci *a = dev;
	struct ahci_port *p = port_of(a, off);

	if (p)
		return ahci_port_read(p, off % PORT_BYTES);
	switch (off) {
	case REG_CAP: return CAP_BASE | (AHCI_SLOTS - 1) << 8 | (AHCI_PORTS - 1);
	case REG_GHC: return GHC_AE | a->ghc;
	case REG_IS: return a->is;
	case REG_PI: return implemented(a);
	case REG_VS: return VERSION;
	default: return 0;
	}
}

static void hba_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct ahci *a = dev;
	struct ahci_port *p = port_of(a, off);

	if (off == REG_GHC) {
		ghc_write(a, (u32)val);
	} else if (a->ghc & GHC_HR) {
		return;
	} else if (off == REG_IS) {
		a->is &= (u32)~val;
		a->told &= (u32)~val; /* what stays is told again */
		ahci_update_irq(a);
	} else if (p) {
		ahci_port_write(p, off % PORT_BYTES, (u32)val);
	}
}

static const struct mmio_ops hba_ops = { hba_read, hba_write, 4, 4 };

/* A driver may make the function bus master after it has issued commands. */
static void config_written(struct pci_function *f, unsigned off, unsigned size)
{
	struct ahci *a = f->dev_arg;

	if (off >= PCI_BAR0 || a->ghc & GHC_HR)
		return;
	for (unsigned k = 0; k < AHCI_PORTS; k++)
		ahci_run(&a->port[k]);
	ahci_update_irq(a);
}

/* ---- life ------------------------------------------------------------------------------------------------ */

bool ahci_attach(struct device *dev, unsigned port, const struct ata_drive_config *cfg, struct error *e)
{
	struct ahci *a = container_of(dev, struct ahci, d);
	struct ahci_port *p = &a->port[port];

	p->command = calloc(AHCI_SLOTS, sizeof(*p->command));
	if (!p->command)
		return error_set(e, "out of memory");
	for (unsigned k = 0; k < AHCI_SLOTS; k++) {
		p->command[k].p = p;
		p->command[k].slot = (u8)k;
	}
	ata_attach(&p->drive, cfg, port);
	p->drive.queues = true;
	ahci_port_clear(p);
	return true;
}

struct ata_drive *ahci_drive_at(struct device *dev, unsigned port) { return &container_of(dev, struct ahci, d)->port[port].drive; }

static bool ahci_init(struct device *dev, struct error *e)
{
	struct ahci *a = container_of(dev, struct ahci, d);

	for (unsigned k = 0; k < AHCI_PORTS; k++) {
		a->port[k].ahci = a;
		a->port[k].index = (u8)k;
	}
	pci_init(&a->pci, &(struct pci_ids){ .vendor = 0x8086, .device = 0x2922, .sub_vendor = 0x1af4, .sub_device = 0x1100,
					      .revision = 2, .class_code = 0x010601, .intx = true });
	a->pci.config[PCS] = a->pci.wmask[PCS] = (1u << AHCI_PORTS) - 1;
	a->pci.written = config_written;
	a->pci.dev_arg = a;
	pci_add_msi(&a->pci);
	pci_add_bar(&a->pci, 5, PCI_BAR_MEM32, false, 0x1000, &hba_ops, a);
	return pci_plug(&a->pci, dev, e);
}

static void ahci_reset(struct device *dev)
{
	struct ahci *a = container_of(dev, struct ahci, d);

	pci_reset(&a->pci);
	for (unsigned k = 0; k < AHCI_PORTS; k++)
		ata_power_on(&a->port[k].drive);
	reset_registers(a);
}

/* done may ask the disk again, until the command is through. */
static void ahci_drain(struct device *dev)
{
	struct ahci *a = container_of(dev, struct ahci, d);

	for (unsigned k = 0; k < AHCI_PORTS; k++)
		while (a->port[k].in_flight)
			block_drain(a->port[k].drive.blk);
}

static void ahci_destroy(struct device *dev)
{
	struct ahci *a = container_of(dev, struct ahci, d);

	pci_unplug(&a->pci);
	for (unsigned k = 0; k < AHCI_PORTS; k++)
		free(a->port[k].command);
}

static void ahci_loaded(struct device *dev)
{
	struct ahci *a = container_of(dev, struct ahci, d);

	a->ghc &= GHC_IE;
	a->is &= (1u << AHCI_PORTS) - 1;
	a->told = a->ghc & GHC_IE ? a->is : 0;
	for (unsigned k = 0; k < AHCI_PORTS; k++)
		ahci_port_loaded(&a->port[k]);
	pci_loaded(&a->pci);
	ahci_update_irq(a);
}

#define PORT_STATE(n) \
	ATA_DRIVE_STATE(struct ahci, port[n].drive), STATE(struct ahci, port[n].clb), STATE(struct ahci, port[n].fb), \
	STATE(struct ahci, port[n].is), STATE(struct ahci, port[n].ie), STATE(struct ahci, port[n].cmd), \
	STATE(struct ahci, port[n].sctl), STATE(struct ahci, port[n].serr), STATE(struct ahci, port[n].sact), \
	STATE(struct ahci, port[n].ci), STATE(struct ahci, port[n].sig), STATE(struct ahci, port[n].ccs), \
	STATE(struct ahci, port[n].halted), STATE(struct ahci, port[n].fis_waits), STATE(struct ahci, port[n].srst)

static const struct state_field ahci_state[] = {
	STATE(struct ahci, ghc), STATE(struct ahci, is), PORT_STATE(0), PORT_STATE(1), PORT_STATE(2), PORT_STATE(3), PORT_STATE(4),
	PORT_STATE(5), PCI_STATE(struct ahci, pci), STATE_END
};

const struct device_class ahci_class = {
	.name = "ahci",
	.help = "AHCI controller of the ICH9: SATA disks and CD drives",
	.size = sizeof(struct ahci),
	.init = ahci_init,
	.reset = ahci_reset,
	.destroy = ahci_destroy,
	.loaded = ahci_loaded,
	.drain = ahci_drain,
	.state = ahci_state,
};
