/* Intel 82540EM: registers, interrupts, life. What it is made of, and the rules: e1000_impl.h. */
#define LOG_TOPIC "e1000"
#include "dev/e1000_impl.h"

#include <string.h>

#define BAR_REGISTERS 0u
#define BAR_IO 2u
#define BAR_BYTES 0x20000u
#define ITR_NS 256u
#define RAH_MASK 0x8003ffffu     /* of the upper half of an address: valid, which one, two bytes */

/* ---- interrupts ------------------------------------------------------------------------------------ */

/* The pin follows ICR and IMS; rises are ITR's interval apart at least. */
static void update_irq(struct e1000 *e)
{
	bool wanted = *e1000_reg(e, R_ICR) & *e1000_reg(e, R_IMS);
	u64 now = clock_ns(e->d.clock);

	if (wanted && !e->irq && now < e->irq_next) {
		timer_arm(&e->throttle, e->irq_next);
		return;
	}
	if (wanted && !e->irq)
		e->irq_next = now + (u64)(*e1000_reg(e, R_ITR) & 0xffff) * ITR_NS;
	if (!wanted && timer_armed(&e->throttle))
		timer_cancel(&e->throttle);
	e->irq = wanted;
	pci_irq(&e->pci, wanted);
}

static void throttle_over(void *arg) { update_irq(arg); }

void e1000_cause(struct e1000 *e, u32 causes)
{
	*e1000_reg(e, R_ICR) |= causes;
	update_irq(e);
}

void e1000_count(struct e1000 *e, unsigned reg, u64 n, bool wide)
{
	u32 *r = e1000_reg(e, reg);
	u64 val = wide ? (u64)r[1] << 32 | r[0] : r[0];

	val += n;
	if (!wide)
		*r = (u32)MIN(val, UINT32_MAX); /* they stop there */
	else
		st64(r, val);
}

/* ---- registers --------------------------------------------------------------------------------------- */

/* Those that only hold what was written, and how much of it. */
static const struct { u16 first, last; u32 mask; } plain[] = {
	{ R_CTRL_EXT, R_FLA, 0xffffffff }, { R_FCAL, R_FCAL, 0xffffffff }, { R_FCAL + 4, R_VET, 0xffff },
	{ R_ITR, R_ITR, 0xffff }, { R_FCTTV, R_FCTTV, 0xffff }, { R_TXCW, R_TXCW, 0xc000ffff },
	{ R_TIPG, R_TIPG, 0x3fffffff }, { R_AIFS, R_AIFS, 0xffff }, { R_LEDCTL, R_LEDCTL, 0xffffffff }, { R_PBA, R_PBA, 0xffff },
	{ R_FCRTL, R_FCRTL, 0x8000fff8 }, { R_FCRTH, R_FCRTH, 0xfff8 },
	{ R_RDBAL, R_RDBAL, 0xfffffff0 }, { R_RDBAH, R_RDBAH, 0xffffffff }, { R_RDLEN, R_RDLEN, 0xfff80 }, { R_RDH, R_RDT, 0xffff },
	{ R_RDTR, R_RDTR, 0xffff }, { R_RXDCTL, R_RXDCTL, 0xffffffff }, { R_RADV, R_RADV, 0xffff }, { R_RSRPD, R_RSRPD, 0xfff },
	{ R_TXDMAC, R_TXDMAC, 1 },
	{ R_TDBAL, R_TDBAL, 0xfffffff0 }, { R_TDBAH, R_TDBAH, 0xffffffff }, { R_TDLEN, R_TDLEN, 0xfff80 }, { R_TDH, R_TDT, 0xffff },
	{ R_TIDV, R_TIDV, 0xffff }, { R_TXDCTL, R_TXDCTL, 0xffffffff }, { R_TADV, R_TADV, 0xffff }, { R_TSPMT, R_TSPMT, 0xffffffff },
	{ R_RCTL, R_RCTL, 0x06dfb3fe }, { R_TCTL, R_TCTL, 0x07fffffa }, { R_RXCSUM, R_RXCSUM, 0x7ff },
	{ R_MTA, R_MTA + 0x1fc, 0xffffffff }, { R_RA, R_RA + 0x7c, 0xffffffff }, { R_VFTA, R_VFTA + 0x1fc, 0xffffffff },
	{ R_WUC, R_WUC, 0xf }, { R_WUFC, R_WUFC, 0xf00ff }, { R_MANC, R_MANC, 0xffffffff },
};

static void write_plain(struct e1000 *e, u32 off, u32 val)
{
	for (size_t k = 0; k < ARRAY_LEN(plain); k++)
		if (off >= plain[k].first && off <= plain[k].last)
			*e1000_reg(e, off) = (*e1000_reg(e, off) & ~plain[k].mask) | (val & plain[k].mask);
	if (off >= R_RA && off < R_RA + 0x80 && (off & 4))
		*e1000_reg(e, off) &= RAH_MASK;
}

/* What a reset, by CTRL or of the board, leaves: 13.4. The PHY keeps its own. */
static void reset_registers(struct e1000 *e)
{
	e->epoch++;
	memset(e->reg, 0, sizeof(e->reg));
	memset(e->context, 0, sizeof(e->context));
	memset(&e->ee, 0, sizeof(e->ee));
	e->ee.level = 1;
	e->tx_sent = 0;
	e->irq_next = 0;
	*e1000_reg(e, R_CTRL) = CTRL_FD | CTRL_SLU | 2 << 8; /* 1000 Mbit/s */
	*e1000_reg(e, R_VET) = 0x8100;
	*e1000_reg(e, R_PBA) = 0x00100030;
	*e1000_reg(e, R_LEDCTL) = 0x07061302;
	*e1000_reg(e, R_RA) = ld32(e->mac);
	*e1000_reg(e, R_RA + 4) = ld16(e->mac + 4) | 1u << 31;
	update_irq(e);
	if (e->net)
		net_ready(e->net); /* what it holds is for nobody */
}

static void ctrl_write(struct e1000 *e, u32 val)
{
	if (val & CTRL_RST) {
		reset_registers(e);
		return;
	}
	*e1000_reg(e, R_CTRL) = val & ~(CTRL_RST | CTRL_PHY_RST);
	if (val & CTRL_PHY_RST) {
		e1000_phy_reset(e);
		e1000_cause(e, INT_LSC);
	}
}

static u32 reg_read(struct e1000 *e, u32 off)
{
	u32 val;

	if (off >= E1000_REGS)
		return 0;
	val = *e1000_reg(e, off);
	switch (off) {
	case R_STATUS:
		return STATUS_FD | STATUS_1000 | STATUS_ASDV_1000 | STATUS_MTXCKOK | (e1000_link(e) ? STATUS_LU : 0);
	case R_EECD:
		return e1000_eecd_read(e);
	case R_ICR:
		*e1000_reg(e, R_ICR) = 0;
		update_irq(e);
		return val;
	case R_ICS:
	case R_IMC:
		return 0;
	default:
		if (off >= R_STATS && off <= R_STATS_END)
			*e1000_reg(e, off) = 0;
		return val;
	}
}

/* Those whose writing has an effect at once. */
static void reg_write(struct e1000 *e, u32 off, u32 val)
{
	if (off >= E1000_REGS)
		return;
	switch (off) {
	case R_CTRL: ctrl_write(e, val); return;
	case R_EECD: e1000_eecd_write(e, val); return;
	case R_EERD: e1000_eerd_write(e, val); return;
	case R_MDIC: e1000_mdic_write(e, val); return;
	case R_ICS: e1000_cause(e, val & INT_ALL); return;
	case R_ICR:
		*e1000_reg(e, R_ICR) &= ~val;
		update_irq(e);
		return;
	case R_IMS:
	case R_IMC: {
		u32 *ims = e1000_reg(e, R_IMS);
		*ims = off == R_IMS ? *ims | (val & INT_ALL) : *ims & ~val;
		update_irq(e);
		return;
	}
	}
	write_plain(e, off, val);
	if (off == R_TDT || off == R_TCTL)
		loop_schedule(e->d.loop, &e->task);
	if (e->net && (off == R_RDT || off == R_RCTL || off == R_RDLEN))
		net_ready(e->net);
}

static u64 mmio_read(void *dev, u64 off, unsigned size) { return reg_read(dev, (u32)off); }
static void mmio_write(void *dev, u64 off, u64 val, unsigned size) { reg_write(dev, (u32)off, (u32)val); }
static const struct mmio_ops mmio_ops = { mmio_read, mmio_write, 4, 4 };

/* The same by ports (13.4.1.1): an address, and what is there. */
static u64 io_read(void *dev, u64 off, unsigned size)
{
	struct e1000 *e = dev;

	return off == 0 ? e->io_addr : off == 4 ? reg_read(e, e->io_addr & ~3u) : 0;
}

static void io_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct e1000 *e = dev;

	if (off == 0)
		e->io_addr = (u32)val & (BAR_BYTES - 1);
	else if (off == 4)
		reg_write(e, e->io_addr & ~3u, (u32)val);
}

static const struct mmio_ops io_ops = { io_read, io_write, 4, 4 };

/* ---- the cable ------------------------------------------------------------------------------------------ */

/* From the back end. Machine lock not held. */
static bool receive(void *arg, const struct net_offload *o, const u8 *frame, size_t len)
{
	struct e1000 *e = arg;

	mem_lock(e->d.mem);
	bool taken = !e1000_link(e) || e1000_loops_back(e) || e1000_receive(e, frame, len, net_is_valid(e->net));
	mem_unlock(e->d.mem);
	return taken;
}

static void writable(void *arg)
{
	struct e1000 *e = arg;

	loop_schedule(e->d.loop, &e->task);
}

void e1000_attach(struct device *d, struct net *net, const u8 mac[NET_MAC_BYTES])
{
	struct e1000 *e = container_of(d, struct e1000, d);

	memcpy(e->mac, mac, NET_MAC_BYTES);
	e1000_eeprom_fill(e);
	e->net = net;
	reset_registers(e);
	net_set_offloads(net, 0);
	net_attach(net, &(struct net_card){ e, receive, writable });
}

/* ---- life -------------------------------------------------------------------------------------------------- */

/* The task is taken up again when it may do DMA. */
static void config_written(struct pci_function *f, unsigned off, unsigned size)
{
	struct e1000 *e = f->dev_arg;

	if (off > PCI_COMMAND || off + size <= PCI_COMMAND || !pci_is_master(f))
		return;
	loop_schedule(e->d.loop, &e->task);
	if (e->net)
		net_ready(e->net);
}

static bool e1000_init(struct device *d, struct error *err)
{
	struct e1000 *e = container_of(d, struct e1000, d);

	if (!d->loop)
		return error_set(err, "it needs an event loop");
	if (!e1000_send_buffers(e))
		return error_set(err, "out of memory");
	e->task = (struct loop_task){ .fn = e1000_send_all, .arg = e };
	timer_init(&e->throttle, d->clock, throttle_over, e);
	e1000_eeprom_fill(e);
	pci_init(&e->pci, &(struct pci_ids){ .vendor = 0x8086, .device = 0x100e, .revision = 2, .sub_vendor = 0x8086, .sub_device = 0x001e,
					      .class_code = 0x020000, .intx = true });
	pci_add_bar(&e->pci, BAR_REGISTERS, PCI_BAR_MEM32, false, BAR_BYTES, &mmio_ops, e);
	pci_add_bar(&e->pci, BAR_IO, PCI_BAR_IO, false, 64, &io_ops, e);
	e->pci.dev_arg = e;
	e->pci.written = config_written;
	if (pci_plug(&e->pci, d, err))
		return true;
	e1000_free_buffers(e);
	return false;
}

static void e1000_reset(struct device *d)
{
	struct e1000 *e = container_of(d, struct e1000, d);

	e->io_addr = 0;
	e1000_phy_reset(e);
	reset_registers(e);
	pci_reset(&e->pci);
}

static void e1000_loaded(struct device *d)
{
	struct e1000 *e = container_of(d, struct e1000, d);

	e->epoch++;
	e->io_addr &= BAR_BYTES - 1;
	e->irq = e->irq != 0;
	pci_loaded(&e->pci);
	pci_irq(&e->pci, e->irq);
	if (!timer_armed(&e->throttle))
		update_irq(e);
	loop_schedule(d->loop, &e->task);
	if (e->net)
		net_ready(e->net);
}

static void e1000_destroy(struct device *d)
{
	struct e1000 *e = container_of(d, struct e1000, d);

	loop_cancel(d->loop, &e->task);
	pci_unplug(&e->pci);
	e1000_free_buffers(e);
}

static const struct state_field e1000_state[] = {
	PCI_STATE(struct e1000, pci), STATE(struct e1000, reg), STATE(struct e1000, phy), STATE(struct e1000, io_addr),
	STATE(struct e1000, context), STATE(struct e1000, tx_sent), STATE(struct e1000, ee), STATE(struct e1000, irq),
	STATE(struct e1000, irq_next), STATE_TIMER(struct e1000, throttle), STATE_END
};

const struct device_class e1000_class = {
	.name = "e1000",
	.help = "Intel 82540EM network card",
	.size = sizeof(struct e1000),
	.init = e1000_init,
	.reset = e1000_reset,
	.destroy = e1000_destroy,
	.loaded = e1000_loaded,
	.state = e1000_state,
};
