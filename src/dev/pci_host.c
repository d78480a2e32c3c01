/* The PCI host bridge: configuration mechanism 1, the functions of the board itself, PIRQ
 * routing and the reset register. 82441FX (PMC) datasheet ch. 3, 82371SB (PIIX3) ch. 2.
 *
 *   0xcf8 CONFIG_ADDRESS (dwords only)   0xcfc..0xcff CONFIG_DATA, any lanes
 *   0xcf9 reset control (bytes)
 *   00:00.0 8086:1237 i440FX   00:01.0 8086:7000 PIIX3   00:01.3 8086:7113 PIIX4 power management
 *
 * Invariants
 *  1. A configuration byte changes only in bits that wmask or w1c of its function name.
 *  2. Functions live on bus 0; what is not there reads as ones and ignores writes.
 *  3. PIRQ x is high while a function on it asserts INTx; its ISA irq gets that level as
 *     source IRQ_SOURCE_PCI + x, and a rerouted PIRQ leaves no level behind.
 *
 * The power management function is there because firmware finds the ACPI block by it; the
 * block itself (acpi_pm.c) does not move. PAM registers are told to a listener: machine/pam.c.
 * Left out: bridges to other buses, mechanism 2. Machine lock held. */
#define LOG_TOPIC "pci"
#include "dev/dev.h"

#include <string.h>

#define CONFIG_ENABLE (1u << 31)
#define RESET_HARD 0x02u   /* SRST: the whole system, not the processor alone */
#define RESET_CPU 0x04u    /* RCPU: 0 to 1 starts it */
#define PIRQS 4u
#define PIRQ_OFF 0x80u
#define FN_PER_BUS 256u
#define PAM_FIRST 0x59u
#define PAM_COUNT 7u
#define PIRQ_ROUTE 0x60u

enum { BOARD_HOST, BOARD_ISA, BOARD_PM, BOARD_FUNCTIONS };

struct pci_host {
	struct device d;
	struct pci_function board[BOARD_FUNCTIONS];
	struct pci_function *fn[FN_PER_BUS];   /* of bus 0, by dev << 3 | fn */
	void (*on_pam)(void *arg, const u8 *pam);
	void *on_pam_arg;
	u8 pirq_irq[PIRQS];                    /* where the level of each PIRQ went; PIRQ_OFF: nowhere */
	/* State; config spaces copied in and out around save and load would be a second truth. */
	u32 address;
	u8 reset_control;
};

/* What a board function has beyond zeros after reset, and what of it can be written. */
struct config_init { u8 fn, off, size; u32 val, wmask; };
static const struct config_init config_table[] = {
	/* i440FX: PAM and SMRAM are what firmware looks at. */
	{ BOARD_HOST, 0x00, 4, 0x12378086, 0 },
	{ BOARD_HOST, 0x04, 4, 0x02800006, 0x00000102 },
	{ BOARD_HOST, 0x08, 4, 0x06000002, 0 },
	{ BOARD_HOST, 0x0c, 4, 0, 0x0000f800 },
	{ BOARD_HOST, 0x2c, 4, 0x11001af4, 0 },
	{ BOARD_HOST, 0x50, 4, 0x00000000, 0xffff40fc },
	{ BOARD_HOST, 0x58, 1, 0x00, 0x0f },
	{ BOARD_HOST, 0x59, 1, 0x00, 0x30 },
	{ BOARD_HOST, 0x5a, 2, 0x0000, 0x3333 },
	{ BOARD_HOST, 0x5c, 4, 0x00000000, 0x33333333 },
	{ BOARD_HOST, 0x60, 4, 0x01010101, 0xffffffff },
	{ BOARD_HOST, 0x64, 4, 0x01010101, 0xffffffff },
	{ BOARD_HOST, 0x72, 1, 0x02, 0x7f },
	/* PIIX3 ISA bridge; header type says that the device has several functions. */
	{ BOARD_ISA, 0x00, 4, 0x70008086, 0 },
	{ BOARD_ISA, 0x04, 4, 0x02800007, 0x00000108 },
	{ BOARD_ISA, 0x08, 4, 0x06010000, 0 },
	{ BOARD_ISA, 0x0c, 4, 0x00800000, 0 },
	{ BOARD_ISA, 0x2c, 4, 0x11001af4, 0 },
	{ BOARD_ISA, 0x4c, 1, 0x4d, 0xff },
	{ BOARD_ISA, 0x4e, 2, 0x0003, 0x01ff },
	{ BOARD_ISA, 0x60, 4, 0x80808080, 0x8f8f8f8f },
	{ BOARD_ISA, 0x69, 1, 0x02, 0xfe },
	{ BOARD_ISA, 0x70, 1, 0x80, 0xef },
	{ BOARD_ISA, 0x76, 2, 0x0c0c, 0x8f8f },
	{ BOARD_ISA, 0x78, 4, 0x00000000, 0xffffffff },
	{ BOARD_ISA, 0x82, 1, 0x00, 0x0f },
	{ BOARD_ISA, 0xa0, 4, 0x00000008, 0x0000001f },
	{ BOARD_ISA, 0xa8, 4, 0x0000000f, 0x000000ff },
	/* PIIX4 power management: interrupt pin A, which the SCI overrides. */
	{ BOARD_PM, 0x00, 4, 0x71138086, 0 },
	{ BOARD_PM, 0x04, 4, 0x02800000, 0x00000001 },
	{ BOARD_PM, 0x08, 4, 0x06800003, 0 },
	{ BOARD_PM, 0x2c, 4, 0x11001af4, 0 },
	{ BOARD_PM, 0x3c, 2, 0x0109, 0x00ff },
	{ BOARD_PM, 0x40, 4, 0x00000001, 0x0000ffc0 },
	/* DEVACTB, APMC_EN: SMM counts as set up, so that firmware does not wait for an SMI. */
	{ BOARD_PM, 0x58, 4, 0x02000000, 0xffffffff },
	{ BOARD_PM, 0x80, 1, 0x01, 0x01 },
	{ BOARD_PM, 0x90, 4, 0x00000001, 0x0000fff0 },
	{ BOARD_PM, 0xd2, 1, 0x00, 0x0f },
};

/* ---- PIRQ --------------------------------------------------------------------------- */

/* INTA..INTD of a slot go to PIRQA..PIRQD one further with each slot, slot 1 starting at A. */
static unsigned pirq_of(const struct pci_function *f)
{
	return (f->dev + f->config[PCI_INT_PIN] - 2u) % PIRQS;
}

static void pirq_update(struct pci_host *h, unsigned pirq)
{
	u8 route = h->board[BOARD_ISA].config[PIRQ_ROUTE + pirq], irq = route & 15;
	u8 to = route & PIRQ_OFF || irq < 3 || irq == 8 || irq == 13 ? PIRQ_OFF : irq;
	bool level = false;

	for (unsigned i = 0; i < FN_PER_BUS && !level; i++)
		level = h->fn[i] && h->fn[i]->pin && pirq_of(h->fn[i]) == pirq;
	if (h->pirq_irq[pirq] != to && h->pirq_irq[pirq] != PIRQ_OFF)
		irq_set_source(h->d.irqs, h->pirq_irq[pirq], IRQ_SOURCE_PCI + pirq, false);
	h->pirq_irq[pirq] = to;
	if (to != PIRQ_OFF)
		irq_set_source(h->d.irqs, to, IRQ_SOURCE_PCI + pirq, level);
}

void pci_set_intx(struct device *host, struct pci_function *f, bool level)
{
	struct pci_host *h = container_of(host, struct pci_host, d);

	if (f->pin == level || !f->config[PCI_INT_PIN])
		return;
	f->pin = level;
	pirq_update(h, pirq_of(f));
}

static void isa_written(struct pci_function *f, unsigned off, unsigned size)
{
	for (unsigned i = 0; i < PIRQS; i++)
		if (off < PIRQ_ROUTE + i + 1 && off + size > PIRQ_ROUTE + i)
			pirq_update(f->dev_arg, i);
}

static void host_written(struct pci_function *f, unsigned off, unsigned size)
{
	struct pci_host *h = f->dev_arg;

	if (off < PAM_FIRST + PAM_COUNT && off + size > PAM_FIRST && h->on_pam)
		h->on_pam(h->on_pam_arg, f->config + PAM_FIRST);
}

void pci_host_on_pam(struct device *host, void (*fn)(void *arg, const u8 *pam), void *arg)
{
	struct pci_host *h = container_of(host, struct pci_host, d);

	h->on_pam = fn;
	h->on_pam_arg = arg;
}

/* ---- configuration space ------------------------------------------------------------ */

bool pci_add(struct device *host, struct pci_function *f)
{
	struct pci_host *h = container_of(host, struct pci_host, d);

	if (f->bus || f->dev > 31 || f->fn > 7 || h->fn[f->dev << 3 | f->fn])
		return false;
	h->fn[f->dev << 3 | f->fn] = f;
	f->host = host;
	return true;
}

void pci_remove(struct device *host, struct pci_function *f)
{
	struct pci_host *h = container_of(host, struct pci_host, d);

	h->fn[f->dev << 3 | f->fn] = NULL;
	f->host = NULL;
}

struct pci_function *pci_function_at(struct device *host, u8 dev, u8 fn)
{
	struct pci_host *h = container_of(host, struct pci_host, d);

	return dev > 31 || fn > 7 ? NULL : h->fn[dev << 3 | fn];
}

/* The function that CONFIG_ADDRESS names, or NULL. */
static struct pci_function *addressed(const struct pci_host *h)
{
	if (!(h->address & CONFIG_ENABLE) || (h->address >> 16 & 0xff))
		return NULL;
	return h->fn[h->address >> 8 & 0xff];
}

static u64 data_read(void *dev, u64 lane, unsigned size)
{
	struct pci_host *h = dev;
	struct pci_function *f = addressed(h);
	unsigned off = (h->address & 0xfc) + (unsigned)lane;
	u64 val = 0;

	if (!f)
		return UINT64_MAX;
	if (f->reading)
		f->reading(f, off, size);
	for (unsigned i = 0; i < size && off + i < 256; i++)
		val |= (u64)f->config[off + i] << i * 8;
	return val;
}

static void data_write(void *dev, u64 lane, u64 val, unsigned size)
{
	struct pci_host *h = dev;
	struct pci_function *f = addressed(h);
	unsigned off = (h->address & 0xfc) + (unsigned)lane;

	if (!f)
		return;
	for (unsigned i = 0; i < size && off + i < 256; i++) {
		u8 v = (u8)(val >> i * 8), w = f->wmask[off + i];

		f->config[off + i] = ((f->config[off + i] & ~w) | (v & w)) & (u8)~(v & f->w1c[off + i]);
	}
	pci_config_written(f, off, size);
}

static void reset_write(struct pci_host *h, u8 val)
{
	struct machine_hooks *k = h->d.hooks;

	/* RCPU reads back as 0, so that a second write of the same value works as well. */
	h->reset_control = val & RESET_HARD;
	if (!(val & RESET_CPU) || !k)
		return;
	if ((val & RESET_HARD) && k->reset)
		k->reset(k->arg);
	else if (!(val & RESET_HARD) && k->cpu_init_signal)
		k->cpu_init_signal(k->arg);
}

static u64 address_read(void *dev, u64 off, unsigned size)
{
	struct pci_host *h = dev;

	if (off == 0 && size == 4)
		return h->address;
	return off == 1 && size == 1 ? h->reset_control : UINT64_MAX;
}

static void address_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct pci_host *h = dev;

	if (off == 0 && size == 4)
		h->address = (u32)val & (CONFIG_ENABLE | 0x00fffffc);
	else if (off == 1 && size == 1)
		reset_write(h, (u8)val);
}

/* ---- life --------------------------------------------------------------------------- */

static const struct mmio_ops address_ops = { address_read, address_write, 1, 4 };
static const struct mmio_ops data_ops = { data_read, data_write, 1, 4 };

static bool pci_host_init(struct device *d, struct error *e)
{
	struct pci_host *h = container_of(d, struct pci_host, d);
	static const struct { u8 dev, fn; } place[BOARD_FUNCTIONS] = { { 0, 0 }, { 1, 0 }, { 1, 3 } };

	for (unsigned i = 0; i < BOARD_FUNCTIONS; i++) {
		h->board[i].dev = place[i].dev;
		h->board[i].fn = place[i].fn;
		h->board[i].dev_arg = h;
		pci_add(d, &h->board[i]);
	}
	h->board[BOARD_HOST].written = host_written;
	h->board[BOARD_ISA].written = isa_written;
	memset(h->pirq_irq, PIRQ_OFF, sizeof(h->pirq_irq));
	return mem_add_ports(d->mem, "pci_address", 0xcf8, 4, &address_ops, h, e) &&
	       mem_add_ports(d->mem, "pci_data", 0xcfc, 4, &data_ops, h, e);
}

static void pci_host_reset(struct device *d)
{
	struct pci_host *h = container_of(d, struct pci_host, d);

	h->address = 0;
	h->reset_control = 0;
	for (unsigned i = 0; i < ARRAY_LEN(config_table); i++) {
		const struct config_init *c = &config_table[i];

		memcpy(h->board[c->fn].config + c->off, &c->val, c->size);
		memcpy(h->board[c->fn].wmask + c->off, &c->wmask, c->size);
	}
	for (unsigned i = 0; i < PIRQS; i++)
		pirq_update(h, i);
	host_written(&h->board[BOARD_HOST], PAM_FIRST, PAM_COUNT);
}

static void pci_host_loaded(struct device *d)
{
	struct pci_host *h = container_of(d, struct pci_host, d);

	h->address &= CONFIG_ENABLE | 0x00fffffc;
	for (unsigned i = 0; i < PIRQS; i++)
		pirq_update(h, i);
	host_written(&h->board[BOARD_HOST], PAM_FIRST, PAM_COUNT);
}

static const struct state_field pci_host_state[] = {
	STATE(struct pci_host, address), STATE(struct pci_host, reset_control),
	STATE(struct pci_host, board[BOARD_HOST].config), STATE(struct pci_host, board[BOARD_ISA].config),
	STATE(struct pci_host, board[BOARD_PM].config),
	STATE_END
};

const struct device_class pci_host_class = {
	.name = "pci_host",
	.help = "82441FX host bridge, PIIX3 ISA bridge, PCI configuration, reset register",
	.size = sizeof(struct pci_host),
	.init = pci_host_init,
	.reset = pci_host_reset,
	.loaded = pci_host_loaded,
	.state = pci_host_state,
};
