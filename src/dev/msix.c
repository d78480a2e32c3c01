/* Message-signalled interrupts of a PCI function: one MSI vector, or a table of MSI-X vectors in
 * a BAR of its own. PCI Local Bus Specification 3.0, 6.8.
 *
 *   MSI    +0 id, next  +2 control  +4 address, low  +8 high  +c data  +10 mask  +14 pending
 *   MSI-X  +0 id, next  +2 control  +4 table offset | BAR     +8 pending bits' offset | BAR
 *   BAR    +000 table: address low, address high, data, control (bit 0: masked) for each vector
 *          +800 pending bits
 *
 * Invariants
 *  1. A message goes out only while its kind is enabled, its vector and the function are not
 *     masked, and the function is bus master; asked for while masked it is pending, once, and
 *     goes out when the last mask falls.
 *  2. Entries of the table change by aligned accesses of 4 bytes; 8 are two of them. */
#define LOG_TOPIC "pci"
#include "dev/pci_api.h"

enum { MSI_CONTROL = 2, MSI_ADDR = 4, MSI_DATA = 0x0c, MSI_MASK = 0x10, MSI_PENDING = 0x14, MSI_BYTES = 0x18 };
enum { MSI_ENABLE = 0x0001, MSI_64 = 0x0080, MSI_MASKABLE = 0x0100 };
enum { MSIX_CONTROL = 2, MSIX_TABLE = 4, MSIX_PBA = 8, MSIX_BYTES = 12 };
enum { MSIX_ENABLE = 0x8000, MSIX_MASK_ALL = 0x4000 };
#define PBA_OFFSET 0x800u
#define BAR_SIZE 0x1000u
#define ENTRY 16u

static void send(struct pci_function *f, u64 addr, u32 data)
{
	if (f->host)
		irq_msi(f->host->irqs, addr, data);
}

/* ---- MSI -------------------------------------------------------------------------------- */

void pci_add_msi(struct pci_function *f)
{
	u8 c = pci_add_cap(f, PCI_CAP_MSI, MSI_BYTES);

	f->msi_cap = c;
	st16(f->config + c + MSI_CONTROL, MSI_64 | MSI_MASKABLE);
	f->wmask[c + MSI_CONTROL] = MSI_ENABLE;
	st32(f->wmask + c + MSI_ADDR, ~3u);
	st32(f->wmask + c + MSI_ADDR + 4, ~0u);
	st16(f->wmask + c + MSI_DATA, 0xffff);
	f->wmask[c + MSI_MASK] = 1;
}

static bool msi_on(const struct pci_function *f)
{
	return f->msi_cap && (f->config[f->msi_cap + MSI_CONTROL] & MSI_ENABLE);
}

static void msi_send(struct pci_function *f)
{
	u8 *c = f->config + f->msi_cap;

	f->msi_pending = (c[MSI_MASK] & 1) || !pci_is_master(f);
	c[MSI_PENDING] = f->msi_pending;
	if (!f->msi_pending)
		send(f, ld64(c + MSI_ADDR), ld16(c + MSI_DATA));
}

/* ---- MSI-X ------------------------------------------------------------------------------ */

static u16 msix_control(const struct pci_function *f)
{
	return f->msix_cap ? ld16(f->config + f->msix_cap + MSIX_CONTROL) : 0;
}

bool pci_msix_on(const struct pci_function *f)
{
	return msix_control(f) & MSIX_ENABLE;
}

static void msix_send(struct pci_function *f, unsigned n)
{
	const u8 *entry = f->msix_table + ENTRY * n;
	u64 bit = 1ull << n;

	if ((msix_control(f) & MSIX_MASK_ALL) || (entry[12] & 1) || !pci_is_master(f)) {
		f->msix_pending |= bit;
		return;
	}
	f->msix_pending &= ~bit;
	send(f, ld64(entry), ld32(entry + 8));
}

static void msix_send_pending(struct pci_function *f)
{
	for (u64 left = f->msix_pending; left; left &= left - 1)
		msix_send(f, (unsigned)__builtin_ctzll(left));
}

static u64 table_read(void *dev, u64 off, unsigned size)
{
	const struct pci_function *f = dev;

	if (off < ENTRY * f->msix_n)
		return ld32(f->msix_table + off);
	if (off == PBA_OFFSET || off == PBA_OFFSET + 4)
		return f->msix_pending >> (off & 4) * 8;
	return 0;
}

static void table_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct pci_function *f = dev;

	if (off >= ENTRY * f->msix_n)
		return;
	if ((off & 15) == 12)
		val &= 1;
	else if ((off & 15) == 0)
		val &= ~3ull;
	st32(f->msix_table + off, (u32)val);
	if (pci_msix_on(f))
		msix_send_pending(f);
}

static const struct mmio_ops table_ops = { table_read, table_write, 4, 4 };

void pci_add_msix(struct pci_function *f, unsigned bar, unsigned n)
{
	u8 c = pci_add_cap(f, PCI_CAP_MSIX, MSIX_BYTES);

	if (!n || n > PCI_MSIX_MAX)
		bug("MSI-X with %u vectors", n);
	f->msix_cap = c;
	f->msix_n = (u16)n;
	st16(f->config + c + MSIX_CONTROL, (u16)(n - 1));
	st16(f->wmask + c + MSIX_CONTROL, MSIX_ENABLE | MSIX_MASK_ALL);
	st32(f->config + c + MSIX_TABLE, bar);
	st32(f->config + c + MSIX_PBA, PBA_OFFSET | bar);
	pci_add_bar(f, bar, PCI_BAR_MEM32, false, BAR_SIZE, &table_ops, f);
}

/* ---- both ------------------------------------------------------------------------------- */

bool pci_msg(struct pci_function *f, unsigned n)
{
	if (pci_msix_on(f)) {
		if (n < f->msix_n)
			msix_send(f, n);
		return true;
	}
	if (!msi_on(f))
		return false;
	if (n == 0)
		msi_send(f);
	return true;
}

void pci_msix_written(struct pci_function *f)
{
	if (pci_msix_on(f))
		msix_send_pending(f);
	if (msi_on(f) && f->msi_pending)
		msi_send(f);
}
