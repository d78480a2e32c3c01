/* PCI functions: what a device on the bus is made of (pci.c, msix.c), and what the host bridge
 * (pci_host.c) needs to know of it. PCI Local Bus Specification 3.0, chapter 6.
 *
 * A device embeds a struct pci_function. In its init: pci_init, then pci_add_bar, pci_add_cap,
 * pci_add_msi, pci_add_msix as it likes, then pci_plug. In its reset: pci_reset. In its list of
 * state: PCI_STATE. In its loaded: pci_loaded. In its destroy: pci_unplug. From then on its BARs
 * are where the guest puts them, and it interrupts by pci_irq or pci_msg.
 *
 * Machine lock held everywhere. */
#ifndef RING3_PCI_API_H
#define RING3_PCI_API_H

#include "dev/dev.h"

#define PCI_MSIX_MAX 64u  /* vectors of a function */

enum pci_reg {
	PCI_VENDOR = 0x00, PCI_DEVICE = 0x02, PCI_COMMAND = 0x04, PCI_STATUS = 0x06, PCI_REVISION = 0x08, PCI_CLASS = 0x09,
	PCI_HEADER = 0x0e, PCI_BAR0 = 0x10, PCI_SUB_VENDOR = 0x2c, PCI_SUB_DEVICE = 0x2e, PCI_CAPS = 0x34,
	PCI_INT_LINE = 0x3c, PCI_INT_PIN = 0x3d, PCI_FIRST_CAP = 0x40,
};
enum { PCI_CMD_IO = 1, PCI_CMD_MEM = 2, PCI_CMD_MASTER = 4, PCI_CMD_NO_INTX = 0x400 };
enum { PCI_STS_INTX = 8, PCI_STS_CAPS = 0x10 };
enum { PCI_CAP_MSI = 5, PCI_CAP_VENDOR = 9, PCI_CAP_MSIX = 0x11 };

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };
struct pci_bar {
	enum pci_bar_kind kind;
	u64 size;              /* a power of two: I/O 4 to 256, memory 4 KiB and more */
	const struct mmio_ops *ops;
	void *dev;
	u64 base;              /* where it is on the bus now */
	bool mapped;
	char name[24];
};

/* The struct is zeros before pci_init, its owner's, and outlives the host bridge's use of it. A
 * function that does without pci_init fills config and the masks itself, and uses pci_add. */
struct pci_function {
	u8 bus, dev, fn;
	u8 config[256];
	u8 wmask[256];         /* bits that the guest may write */
	u8 w1c[256];           /* bits cleared by writing ones */
	void (*reading)(struct pci_function *f, unsigned off, unsigned size); /* before; may be NULL */
	void (*written)(struct pci_function *f, unsigned off, unsigned size); /* after; may be NULL */
	void *dev_arg;
	u8 intx;               /* the level of its INTx pin, before command's INTx disable; 0 or 1 */
	bool pin;              /* and after: the host bridge's to look at; set by pci_set_intx */
	/* pci.c's and msix.c's own */
	struct device *host;
	u8 initial[256];       /* config after a reset */
	struct pci_bar bar[6];
	u8 next_cap;           /* where the next capability can go */
	u8 msi_cap, msix_cap;  /* 0: none */
	u16 msix_n;
	u8 msix_table[PCI_MSIX_MAX * 16];
	u64 msix_pending;
	u8 msi_pending;        /* 0 or 1 */
};

/* vendor, device; class code: class << 16 | subclass << 8 | interface; intx: has pin INTA. */
struct pci_ids { u16 vendor, device, sub_vendor, sub_device; u8 revision; u32 class_code; bool intx; };
void pci_init(struct pci_function *f, const struct pci_ids *ids);
/* prefetch: reads have no side effects. MEM64 takes n and n + 1. Offsets given to ops are from the BAR's base. */
void pci_add_bar(struct pci_function *f, unsigned n, enum pci_bar_kind kind, bool prefetch, u64 size,
		 const struct mmio_ops *ops, void *dev);
/* A capability of len bytes, zeros after its header; its offset in config. Read-only but for wmask. */
u8 pci_add_cap(struct pci_function *f, u8 id, unsigned len);
void pci_add_msi(struct pci_function *f);               /* one vector, 64-bit address, with its mask */
void pci_add_msix(struct pci_function *f, unsigned bar, unsigned n); /* n vectors, in a BAR for them alone */
/* Puts it behind d->pci into the first free slot from 2 on, unless f->dev names one. config is
 * what a reset gives back from then on. d->pci NULL: behind none, reachable by nobody. False: no place. */
bool pci_plug(struct pci_function *f, struct device *d, struct error *e);
void pci_unplug(struct pci_function *f);
void pci_reset(struct pci_function *f);
void pci_loaded(struct pci_function *f);

bool pci_is_master(const struct pci_function *f);       /* DMA and messages are allowed */
void pci_irq(struct pci_function *f, bool level);       /* its INTx pin */
bool pci_msix_on(const struct pci_function *f);
/* Message n by MSI-X or (n 0) MSI. False: neither is enabled, it is pci_irq's. */
bool pci_msg(struct pci_function *f, unsigned n);

#define PCI_STATE(type, f) \
	STATE(type, f.config), STATE(type, f.intx), STATE(type, f.msix_table), STATE(type, f.msix_pending), STATE(type, f.msi_pending)

/* What firmware does, for machines that start without: addresses for BARs, an interrupt line, I/O and
 * memory enabled for every function; routes for the PIRQs: irq[0..3], 0 for none. */
void pci_assign(struct device *host, const u8 irq[4]);

/* ---- between the host bridge and functions ------------------------------------------------ */

bool pci_add(struct device *host, struct pci_function *f); /* false: not on bus 0, or the place is taken */
void pci_remove(struct device *host, struct pci_function *f);
struct pci_function *pci_function_at(struct device *host, u8 dev, u8 fn); /* or NULL */
void pci_set_intx(struct device *host, struct pci_function *f, bool level); /* through the PIRQ routes */
/* Bytes off..off+size-1 of config have been written: BARs, INTx and messages follow. */
void pci_config_written(struct pci_function *f, unsigned off, unsigned size);
void pci_msix_written(struct pci_function *f);          /* msix.c's part of that */

#endif
