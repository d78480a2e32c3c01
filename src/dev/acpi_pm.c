/* ACPI power management as in the PIIX4: PM1a event and control blocks, PM timer, GPE0 block,
 * the SMI command port. ACPI 6.5, 4.8.3 and 4.8.4.1; PIIX4 datasheet 7.2.
 *
 *   0x600 PM1_STS  0x602 PM1_EN  0x604 PM1_CNT  0x608 PM_TMR (32 bits)  0x620 GPE0 STS, EN
 *   0xb2  SMI command (0xf1: ACPI on, 0xf0: off), 0xb3 its status byte
 *
 * The block answers at 0xb000 too, for firmware (OVMF) that moves it there by PMBASE; other
 * places written to PMBASE are not followed.
 *
 * Invariants
 *  1. SCI (GSI 9) is high exactly while SCI_EN is set and a status bit meets its enable bit.
 *  2. The timer is a function of the clock; TMR_STS is set each time bit 31 changes.
 *  3. Sleep types: 5 and 0 are S5 (0 is what firmware without our DSDT writes), 1 is S3.
 *
 * Left out: SMM (a command is not an SMI), the RTC and sleep-button events. Machine lock held. */
#define LOG_TOPIC "acpi_pm"
#include "dev/dev.h"

#define PM_HZ 3579545u
#define ALT_BASE 0xb000
#define BLOCK_PORTS 64u

#define PM1_TMR 0x0001u
#define PM1_PWRBTN 0x0100u
#define PM1_WAK 0x8000u
#define PM1_EN_BITS 0x4721u
#define CNT_SCI_EN 0x0001u
#define CNT_SLP_EN 0x2000u
#define CNT_BITS 0x1c03u      /* SCI_EN, BM_RLD, SLP_TYP; the other two are write-only */
#define SLP_TYP(v) ((v) >> 10 & 7)

enum { SLEEP_SOFT_OFF = 0, SLEEP_S3 = 1, SLEEP_S5 = 5 };

struct acpi_pm {
	struct device d;
	u16 sts, en, cnt, gpe_sts, gpe_en;
	u8 apm_cmd, apm_sts;
	u64 next_toggle;      /* PM timer count (64 bits) at which bit 31 changes next */
	struct timer toggle;
};

static u64 pm_count(const struct acpi_pm *a)
{
	return (u64)((u128)clock_ns(a->d.clock) * PM_HZ / 1000000000);
}

/* First ns at which the count is there. */
static u64 count_ns(u64 count)
{
	return (u64)(((u128)count * 1000000000 + PM_HZ - 1) / PM_HZ);
}

static void update_sci(struct acpi_pm *a)
{
	bool pending = (a->sts & a->en & PM1_EN_BITS) || (a->gpe_sts & a->gpe_en);

	irq_set(a->d.irqs, ACPI_SCI_GSI, pending && (a->cnt & CNT_SCI_EN));
}

/* Brings TMR_STS up to date with the clock. */
static void update_timer(struct acpi_pm *a)
{
	u64 now = pm_count(a);

	if (now >= a->next_toggle) {
		a->sts |= PM1_TMR;
		a->next_toggle = (now >> 31 << 31) + (1ull << 31);
		update_sci(a);
	}
	timer_arm(&a->toggle, count_ns(a->next_toggle));
}

static void toggle_fire(void *arg)
{
	update_timer(arg);
}

static void sleep_now(struct acpi_pm *a, unsigned typ)
{
	struct machine_hooks *h = a->d.hooks;

	switch (typ) {
	case SLEEP_S5:
	case SLEEP_SOFT_OFF:
		if (h && h->power_off)
			h->power_off(h->arg);
		break;
	case SLEEP_S3:
		if (h && h->acpi_sleep)
			h->acpi_sleep(h->arg, typ);
		break;
	default:
		log_guest("sleep type %u is none of ours", typ);
	}
}

static void cnt_write(struct acpi_pm *a, u32 val, u32 mask)
{
	a->cnt = (u16)((a->cnt & ~mask) | (val & mask & CNT_BITS)) & CNT_BITS;
	update_sci(a);
	if (val & mask & CNT_SLP_EN)
		sleep_now(a, SLP_TYP(a->cnt));
}

/* The block as dwords; writes come with a mask of the bits that the access covers. */
enum { DW_EVT = 0x00, DW_CNT = 0x04, DW_TMR = 0x08, DW_GPE0 = 0x20 };

static u32 dword_read(struct acpi_pm *a, unsigned off)
{
	switch (off) {
	case DW_EVT:
		update_timer(a);
		return a->sts | (u32)a->en << 16;
	case DW_CNT: return a->cnt;
	case DW_TMR: return (u32)pm_count(a);
	case DW_GPE0: return a->gpe_sts | (u32)a->gpe_en << 16;
	default: return 0;
	}
}

static void dword_write(struct acpi_pm *a, unsigned off, u32 val, u32 mask)
{
	u16 en_mask = (u16)(mask >> 16), en = (u16)(val >> 16);

	switch (off) {
	case DW_EVT:
		update_timer(a);
		a->sts &= (u16)~(val & mask);
		a->en = ((a->en & ~en_mask) | (en & en_mask)) & PM1_EN_BITS;
		update_sci(a);
		break;
	case DW_CNT:
		cnt_write(a, val, mask);
		break;
	case DW_GPE0:
		a->gpe_sts &= (u16)~(val & mask);
		a->gpe_en = (a->gpe_en & ~en_mask) | (en & en_mask);
		update_sci(a);
		break;
	default: /* the timer cannot be written */
		break;
	}
}

static u64 pm_read(void *dev, u64 off, unsigned size)
{
	unsigned shift = (off & 3) * 8;
	u64 val = dword_read(dev, off & ~3u);

	if (shift + size * 8 > 32) /* an unaligned access that goes on in the next dword */
		val |= (u64)dword_read(dev, (off & ~3u) + 4) << 32;
	return val >> shift;
}

static void pm_write(void *dev, u64 off, u64 val, unsigned size)
{
	unsigned shift = (off & 3) * 8;
	u64 mask = ((1ull << size * 8) - 1) << shift;

	dword_write(dev, off & ~3u, (u32)(val << shift), (u32)mask);
	if (mask >> 32)
		dword_write(dev, (off & ~3u) + 4, (u32)(val << shift >> 32), (u32)(mask >> 32));
}

static u64 apm_read(void *dev, u64 off, unsigned size)
{
	struct acpi_pm *a = dev;

	return off ? a->apm_sts : a->apm_cmd;
}

static void apm_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct acpi_pm *a = dev;

	if (off) {
		a->apm_sts = (u8)val;
		return;
	}
	a->apm_cmd = (u8)val;
	if (val == ACPI_ENABLE_CMD)
		a->cnt |= CNT_SCI_EN;
	else if (val == ACPI_DISABLE_CMD)
		a->cnt &= (u16)~CNT_SCI_EN;
	update_sci(a);
}

static void set_status(struct device *d, u16 bits)
{
	struct acpi_pm *a = container_of(d, struct acpi_pm, d);

	a->sts |= bits;
	update_sci(a);
}

void acpi_pm_power_button(struct device *d)
{
	set_status(d, PM1_PWRBTN);
}

void acpi_pm_wake(struct device *d)
{
	set_status(d, PM1_WAK);
}

void acpi_pm_gpe(struct device *d, unsigned n)
{
	struct acpi_pm *a = container_of(d, struct acpi_pm, d);

	if (n < 16)
		a->gpe_sts |= (u16)(1u << n);
	update_sci(a);
}

static const struct mmio_ops pm_ops = { pm_read, pm_write, 1, 4 };
static const struct mmio_ops apm_ops = { apm_read, apm_write, 1, 1 };

static bool acpi_pm_init(struct device *d, struct error *e)
{
	struct acpi_pm *a = container_of(d, struct acpi_pm, d);

	timer_init(&a->toggle, d->clock, toggle_fire, a);
	return mem_add_ports(d->mem, "acpi_pm", ACPI_PM1_EVT, BLOCK_PORTS, &pm_ops, a, e) &&
	       mem_add_ports(d->mem, "acpi_pm", ALT_BASE, BLOCK_PORTS, &pm_ops, a, e) &&
	       mem_add_ports(d->mem, "acpi_apm", ACPI_SMI_CMD, 2, &apm_ops, a, e);
}

static void acpi_pm_reset(struct device *d)
{
	struct acpi_pm *a = container_of(d, struct acpi_pm, d);

	a->sts = a->en = a->cnt = a->gpe_sts = a->gpe_en = 0;
	a->apm_cmd = a->apm_sts = 0;
	a->next_toggle = (pm_count(a) >> 31 << 31) + (1ull << 31);
	timer_arm(&a->toggle, count_ns(a->next_toggle));
	update_sci(a);
}

static void acpi_pm_loaded(struct device *d)
{
	struct acpi_pm *a = container_of(d, struct acpi_pm, d);

	a->en &= PM1_EN_BITS;
	a->cnt &= CNT_BITS;
	update_sci(a);
}

static const struct state_field acpi_pm_state[] = {
	STATE(struct acpi_pm, sts), STATE(struct acpi_pm, en), STATE(struct acpi_pm, cnt),
	STATE(struct acpi_pm, gpe_sts), STATE(struct acpi_pm, gpe_en),
	STATE(struct acpi_pm, apm_cmd), STATE(struct acpi_pm, apm_sts),
	STATE(struct acpi_pm, next_toggle), STATE_TIMER(struct acpi_pm, toggle),
	STATE_END
};

const struct device_class acpi_pm_class = {
	.name = "acpi_pm",
	.help = "ACPI power management: PM1a, PM timer, GPE0, SMI command port",
	.size = sizeof(struct acpi_pm),
	.init = acpi_pm_init,
	.reset = acpi_pm_reset,
	.loaded = acpi_pm_loaded,
	.state = acpi_pm_state,
};
