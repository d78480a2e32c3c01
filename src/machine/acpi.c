/* ACPI tables: RSDP, XSDT, RSDT, FADT, FACS, DSDT (dsdt.asl), MADT, HPET. ACPI 6.4, chapter 5.
 *
 * They are made once for a place not known yet, as bytes and a list of what depends on the place:
 * pointers and checksums. Then either nobody but us boots and they are put at the top of low RAM
 * (RSDP at 0xf0000, where a search finds it), or firmware gets them as files with a script in the
 * language of QEMU's table loader (QEMU, hw/acpi/bios-linker-loader.c describes it; SeaBIOS and
 * OVMF carry it out). */
#define LOG_TOPIC "acpi"
#include <stdlib.h>
#include <string.h>

#include "machine/machine_impl.h"

#define RSDP_SIZE 36u
enum { MAX_POINTERS = 32, MAX_SUMS = 16 };
struct pointer { u32 at; u8 size; bool in_rsdp; };  /* holds an offset into the tables */
struct checksum { u32 at, start, len; bool in_rsdp; };
struct image {
	struct machine *m;
	u8 data[BOOT_ACPI_SIZE], rsdp[RSDP_SIZE];
	u32 len;
	u32 tables[8];               /* what RSDT and XSDT list */
	int n;
	struct pointer pointers[MAX_POINTERS];
	int n_pointers;
	struct checksum sums[MAX_SUMS];
	int n_sums;
};

/* ---- making -------------------------------------------------------------------------------- */

static u32 place(struct image *w, const void *data, size_t len, u32 align)
{
	u32 at = (w->len + align - 1) & ~(align - 1);
	if (len > sizeof(w->data) - at)
		bug("ACPI tables need more than %llu bytes", BOOT_ACPI_SIZE);
	memcpy(w->data + at, data, len);
	w->len = at + (u32)len;
	return at;
}

static void points(struct image *w, bool in_rsdp, u32 at, u8 size)
{
	w->pointers[w->n_pointers++] = (struct pointer){ at, size, in_rsdp };
}

static void summed(struct image *w, bool in_rsdp, u32 at, u32 start, u32 len)
{
	w->sums[w->n_sums++] = (struct checksum){ at, start, len, in_rsdp };
}

/* Places a table whose body stands from byte 36; fills its header. */
static u32 place_table(struct image *w, u8 *t, const char *sig, u32 len, u8 revision)
{
	memcpy(t, sig, 4);
	st32(t + 4, len);
	t[8] = revision;
	memcpy(t + 10, "RING3 ", 6);
	memcpy(t + 16, "RING3PC ", 8);
	st32(t + 24, 1);
	memcpy(t + 28, "RNG3", 4);
	st32(t + 32, 1);
	u32 at = place(w, t, len, 16);
	summed(w, false, at + 9, at, len);
	return at;
}

static u32 add_table(struct image *w, u8 *t, const char *sig, u32 len, u8 revision)
{
	return w->tables[w->n++] = place_table(w, t, sig, len, revision);
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

static void add_fadt(struct image *w)
{
	u8 facs[64] = { 0 };
	memcpy(facs, "FACS", 4);
	st32(facs + 4, 64);
	facs[32] = 2;
	u32 facs_at = place(w, facs, 64, 64);
	u32 dsdt_at = place(w, dsdt_aml, dsdt_aml_size, 16);

	u8 t[276] = { 0 };
	st32(t + 36, facs_at);
	st32(t + 40, dsdt_at);
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
	st64(t + 132, facs_at);                   /* both pointers, as real boards have it: Xen warns where they differ */
	st64(t + 140, dsdt_at);
	gas(t + 148, 1, 32, 2, ACPI_PM1_EVT);
	gas(t + 172, 1, 16, 2, ACPI_PM1_CNT);
	gas(t + 208, 1, 32, 3, ACPI_PM_TMR);
	gas(t + 220, 1, 32, 1, ACPI_GPE0);
	u32 at = add_table(w, t, "FACP", sizeof(t), 6);
	points(w, false, at + 36, 4);
	points(w, false, at + 40, 4);
	points(w, false, at + 132, 8);
	points(w, false, at + 140, 8);
}

static void add_madt(struct image *w)
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

static void add_hpet(struct image *w)
{
	u8 t[56] = { 0 };
	st32(t + 36, (u32)mem_phys_read(&w->m->mem, 0xfed00000, 4));
	gas(t + 40, 0, 64, 0, 0xfed00000);
	add_table(w, t, "HPET", sizeof(t), 1);
}

static void add_roots(struct image *w)
{
	u8 xsdt[36 + 8 * 8] = { 0 }, rsdt[36 + 8 * 4] = { 0 };
	for (int k = 0; k < w->n; k++) {
		st64(xsdt + 36 + k * 8, w->tables[k]);
		st32(rsdt + 36 + k * 4, w->tables[k]);
	}
	u32 xsdt_at = place_table(w, xsdt, "XSDT", 36 + (u32)w->n * 8, 1);
	u32 rsdt_at = place_table(w, rsdt, "RSDT", 36 + (u32)w->n * 4, 1);
	for (u32 k = 0; k < (u32)w->n; k++) {
		points(w, false, xsdt_at + 36 + k * 8, 8);
		points(w, false, rsdt_at + 36 + k * 4, 4);
	}

	memcpy(w->rsdp, "RSD PTR ", 8);
	memcpy(w->rsdp + 9, "RING3 ", 6);
	w->rsdp[15] = 2;
	st32(w->rsdp + 16, rsdt_at);
	st32(w->rsdp + 20, RSDP_SIZE);
	st64(w->rsdp + 24, xsdt_at);
	points(w, true, 16, 4);
	points(w, true, 24, 8);
	summed(w, true, 8, 0, 20);
	summed(w, true, 32, 0, RSDP_SIZE);
}

static struct image *image_new(struct machine *m)
{
	struct image *w = calloc(1, sizeof(*w));
	if (!w)
		bug("out of memory for the ACPI tables");
	w->m = m;
	add_fadt(w);
	add_madt(w);
	add_hpet(w);
	add_roots(w);
	return w;
}

/* ---- for a kernel that no firmware starts ----------------------------------------------------- */

static u8 sum(const u8 *p, size_t n)
{
	u8 s = 0;
	while (n--)
		s = (u8)(s + *p++);
	return s;
}

static void link_at(struct image *w, u64 base)
{
	for (int k = 0; k < w->n_pointers; k++) {
		u8 *p = (w->pointers[k].in_rsdp ? w->rsdp : w->data) + w->pointers[k].at;
		if (w->pointers[k].size == 8)
			st64(p, ld64(p) + base);
		else
			st32(p, ld32(p) + (u32)base);
	}
	for (int k = 0; k < w->n_sums; k++) {
		u8 *p = w->sums[k].in_rsdp ? w->rsdp : w->data;
		p[w->sums[k].at] = (u8)-sum(p + w->sums[k].start, w->sums[k].len);
	}
}

u64 acpi_build(struct machine *m)
{
	struct image *w = image_new(m);
	link_at(w, boot_acpi_base(m));
	mem_write(&m->mem, boot_acpi_base(m), w->data, w->len);
	mem_write(&m->mem, BOOT_RSDP, w->rsdp, RSDP_SIZE);
	free(w);
	return BOOT_RSDP;
}

/* ---- for firmware ----------------------------------------------------------------------------- */

#define TABLES "etc/acpi/tables"
#define ROOT "etc/acpi/rsdp"
enum { LOADER_ALLOCATE = 1, LOADER_ADD_POINTER = 2, LOADER_ADD_CHECKSUM = 3 };
enum { ZONE_HIGH = 1, ZONE_FSEG = 2 };
enum { LOADER_ENTRY = 128, LOADER_NAME = 56 };  /* bytes: of a command, of a file's name in it */

/* A command with its first argument, a file's name; the next argument stands at byte 60. */
static u8 *command(u8 **at, u32 what, const char *file)
{
	u8 *p = *at;
	*at += LOADER_ENTRY;
	st32(p, what);
	strcpy((char *)p + 4, file);
	return p + 4 + LOADER_NAME;
}

static void allocate(u8 **at, const char *file, u32 align, u8 zone)
{
	u8 *p = command(at, LOADER_ALLOCATE, file);
	st32(p, align);
	p[4] = zone;
}

bool acpi_give(struct machine *m)
{
	u8 script[(2 + MAX_POINTERS + MAX_SUMS) * LOADER_ENTRY] = { 0 };
	u8 *at = script;
	struct image *w = image_new(m);
	allocate(&at, ROOT, 16, ZONE_FSEG);
	allocate(&at, TABLES, 64, ZONE_HIGH);
	for (int k = 0; k < w->n_pointers; k++) {
		u8 *p = command(&at, LOADER_ADD_POINTER, w->pointers[k].in_rsdp ? ROOT : TABLES);
		strcpy((char *)p, TABLES);
		st32(p + LOADER_NAME, w->pointers[k].at);
		p[LOADER_NAME + 4] = w->pointers[k].size;
	}
	for (int k = 0; k < w->n_sums; k++) {
		u8 *p = command(&at, LOADER_ADD_CHECKSUM, w->sums[k].in_rsdp ? ROOT : TABLES);
		st32(p, w->sums[k].at);
		st32(p + 4, w->sums[k].start);
		st32(p + 8, w->sums[k].len);
	}
	bool ok = fw_cfg_add_file(m->fw_cfg, TABLES, w->data, w->len) && fw_cfg_add_file(m->fw_cfg, ROOT, w->rsdp, RSDP_SIZE) &&
		  fw_cfg_add_file(m->fw_cfg, "etc/table-loader", script, (size_t)(at - script));
	free(w);
	return ok;
}
