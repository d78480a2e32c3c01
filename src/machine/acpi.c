/* ACPI tables as firmware would leave them at the top of low RAM: RSDP (also at 0xf0000, where
 * a search finds it), XSDT, RSDT, FADT, FACS, DSDT (dsdt.asl), MADT, HPET. ACPI 6.4, chapter 5. */
#define LOG_TOPIC "acpi"
#include <string.h>

#include "machine/machine_impl.h"

struct writer {
	struct machine *m;
	u64 at, end;
	u64 tables[8];
	int n;
};

static u8 sum(const u8 *p, size_t n)
{
	u8 s = 0;
	while (n--)
		s = (u8)(s + *p++);
	return s;
}

static u64 place(struct writer *w, const void *data, size_t len, unsigned align)
{
	u64 at = (w->at + align - 1) & ~(u64)(align - 1);
	if (len > w->end - at)
		bug("ACPI tables need more than %llu bytes", BOOT_ACPI_SIZE);
	mem_write(&w->m->mem, at, data, len);
	w->at = at + len;
	return at;
}

/* Fills header and checksum of a table whose body stands from byte 36. */
static void header(u8 *t, const char *sig, u32 len, u8 revision)
{
	memcpy(t, sig, 4);
	st32(t + 4, len);
	t[8] = revision;
	t[9] = 0;
	memcpy(t + 10, "RING3 ", 6);
	memcpy(t + 16, "RING3PC ", 8);
	st32(t + 24, 1);
	memcpy(t + 28, "RNG3", 4);
	st32(t + 32, 1);
	t[9] = (u8)-sum(t, len);
}

static u64 add_table(struct writer *w, u8 *t, const char *sig, u32 len, u8 revision)
{
	header(t, sig, len, revision);
	return w->tables[w->n++] = place(w, t, len, 16);
}

/* Generic address structure. */
static void gas(u8 *p, u8 space, u8 width, u8 access, u64 addr)
{
	p[0] = space;
	p[1] = width;
	p[2] = 0;
	p[3] = access;
	st64(p + 4, addr);
}

static void add_fadt(struct writer *w)
{
	u8 facs[64] = { 0 };
	memcpy(facs, "FACS", 4);
	st32(facs + 4, 64);
	facs[32] = 2;
	u64 facs_at = place(w, facs, 64, 64);
	u64 dsdt_at = place(w, dsdt_aml, dsdt_aml_size, 16);

	u8 t[276] = { 0 };
	st32(t + 36, (u32)facs_at);
	st32(t + 40, (u32)dsdt_at);
	t[45] = 0;                                /* preferred profile: unspecified */
	st16(t + 46, ACPI_SCI_GSI);
	st32(t + 48, ACPI_SMI_CMD);
	t[52] = ACPI_ENABLE_CMD;
	t[53] = ACPI_DISABLE_CMD;
	st32(t + 56, ACPI_PM1_EVT);
	st32(t + 64, ACPI_PM1_CNT);
	st32(t + 76, ACPI_PM_TMR);
	st32(t + 80, ACPI_GPE0);
	t[88] = 4;                                /* PM1 event, control, timer, GPE0 lengths */
	t[89] = 2;
	t[91] = 4;
	t[92] = 4;
	st16(t + 96, 0xfff);                      /* C2, C3: not there */
	st16(t + 98, 0xfff);
	t[108] = 0x32;                            /* century in CMOS */
	st16(t + 109, 0x1 | 0x2);                 /* legacy devices, 8042 */
	/* WBINVD, C1 works, sleep button is no fixed device, RTC wake not fixed, 32-bit timer, reset register */
	st32(t + 112, 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10);
	gas(t + 116, 1, 8, 1, ACPI_RESET_PORT);
	t[128] = 6;
	t[131] = 3;                               /* minor revision */
	st64(t + 132, facs_at);
	st64(t + 140, dsdt_at);
	gas(t + 148, 1, 32, 2, ACPI_PM1_EVT);
	gas(t + 172, 1, 16, 2, ACPI_PM1_CNT);
	gas(t + 208, 1, 32, 3, ACPI_PM_TMR);
	gas(t + 220, 1, 32, 1, ACPI_GPE0);
	/* With both a 32- and a 64-bit FACS pointer, firmware must use one: the 32-bit one. */
	st64(t + 132, 0);
	add_table(w, t, "FACP", sizeof(t), 6);
}

static void add_madt(struct writer *w)
{
	u8 t[44 + MAX_CPUS * 16 + 64] = { 0 };
	u8 *p = t + 44;
	st32(t + 36, 0xfee00000);
	st32(t + 40, 1);                          /* the two i8259 are there */
	for (unsigned k = 0; k < w->m->n_cpus; k++, p += 8) {
		p[0] = 0;
		p[1] = 8;
		p[2] = (u8)k;
		p[3] = (u8)k;
		st32(p + 4, 1);
	}
	p[0] = 1;
	p[1] = 12;
	st32(p + 4, 0xfec00000);
	p += 12;
	/* ISA irq 0 is pin 2; the SCI and PCI lines are level-triggered, active high. */
	static const struct { u8 irq, gsi; u16 flags; } over[] = {
		{ 0, 2, 0 }, { 9, 9, 0xd }, { 10, 10, 0xd }, { 11, 11, 0xd },
	};
	for (unsigned k = 0; k < ARRAY_LEN(over); k++, p += 10) {
		p[0] = 2;
		p[1] = 10;
		p[3] = over[k].irq;
		st32(p + 4, over[k].gsi);
		st16(p + 8, over[k].flags);
	}
	p[0] = 4;                                 /* NMI at LINT1 of every processor */
	p[1] = 6;
	p[2] = 0xff;
	p[5] = 1;
	p += 6;
	add_table(w, t, "APIC", (u32)(p - t), 5);
}

static void add_hpet(struct writer *w)
{
	u8 t[56] = { 0 };
	st32(t + 36, (u32)mem_phys_read(&w->m->mem, 0xfed00000, 4));
	gas(t + 40, 0, 64, 0, 0xfed00000);
	add_table(w, t, "HPET", sizeof(t), 1);
}

u64 acpi_build(struct machine *m)
{
	struct writer w = { .m = m, .at = boot_acpi_base(m), .end = m->mem.low_size };
	add_fadt(&w);
	add_madt(&w);
	add_hpet(&w);
	u8 xsdt[36 + 8 * 8] = { 0 }, rsdt[36 + 8 * 4] = { 0 };
	for (int k = 0; k < w.n; k++) {
		st64(xsdt + 36 + k * 8, w.tables[k]);
		st32(rsdt + 36 + k * 4, (u32)w.tables[k]);
	}
	header(xsdt, "XSDT", 36 + (u32)w.n * 8, 1);
	header(rsdt, "RSDT", 36 + (u32)w.n * 4, 1);
	u64 xsdt_at = place(&w, xsdt, 36 + (size_t)w.n * 8, 16);
	u64 rsdt_at = place(&w, rsdt, 36 + (size_t)w.n * 4, 16);

	u8 rsdp[36] = "RSD PTR ";
	memcpy(rsdp + 9, "RING3 ", 6);
	rsdp[15] = 2;
	st32(rsdp + 16, (u32)rsdt_at);
	st32(rsdp + 20, 36);
	st64(rsdp + 24, xsdt_at);
	rsdp[8] = (u8)-sum(rsdp, 20);
	rsdp[32] = (u8)-sum(rsdp, 36);
	mem_write(&m->mem, BOOT_RSDP, rsdp, sizeof(rsdp));
	return BOOT_RSDP;
}
