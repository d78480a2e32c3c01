/* SMBIOS tables: what dmidecode and installers read of a machine. System Management BIOS
 * Reference Specification 2.8; sections are given at each structure. Firmware finds them as the
 * files etc/smbios/smbios-anchor (the entry point, 5.2.1, whose address and checksums firmware
 * fills) and etc/smbios/smbios-tables.
 *
 * The BIOS's own structure, type 0, is the firmware's to add. */
#define LOG_TOPIC "machine"
#include <stdlib.h>
#include <string.h>

#include "machine/machine_impl.h"

#define TABLES_MAX 0x8000u
struct writer {
	u8 data[TABLES_MAX];
	u32 len, longest;
	u16 count;
	u32 start;          /* of the structure being written */
	u8 strings;         /* it has so many */
};

/* A structure's formatted part; its strings follow, then finish(). */
static u8 *begin(struct writer *w, u8 type, u16 handle, u8 size)
{
	if (w->len + 512 > TABLES_MAX)
		bug("SMBIOS tables need more than %u bytes", TABLES_MAX);
	u8 *p = w->data + w->len;
	w->start = w->len;
	w->strings = 0;
	p[0] = type;
	p[1] = size;
	st16(p + 2, handle);
	w->len += size;
	return p;
}

/* The number by which a field names this text. */
static u8 text(struct writer *w, const char *s)
{
	strcpy((char *)w->data + w->len, s);
	w->len += (u32)strlen(s) + 1;
	return ++w->strings;
}

static void finish(struct writer *w)
{
	w->len += w->strings ? 1 : 2;
	w->longest = MAX(w->longest, w->len - w->start);
	w->count++;
}

enum { H_SYSTEM = 0x100, H_CHASSIS = 0x300, H_CPU = 0x400, H_ARRAY = 0x1000, H_DIMM = 0x1100, H_MAPPED = 0x1300, H_BOOT = 0x2000 };

static void add_system(struct writer *w)
{
	u8 *p = begin(w, 1, H_SYSTEM, 0x1b);            /* 7.2 */
	p[4] = text(w, "ring3");
	p[5] = text(w, "ring3 PC (i440FX, PIIX3)");
	p[6] = text(w, RING3_VERSION);
	p[0x18] = 6;                                    /* woken by the power switch */
	finish(w);
	p = begin(w, 3, H_CHASSIS, 0x16);               /* 7.4 */
	p[4] = text(w, "ring3");
	p[5] = 1;                                       /* other */
	p[9] = p[10] = p[11] = 3;                       /* states: safe */
	p[12] = 2;                                      /* security: unknown */
	finish(w);
}

static void add_cpu(struct writer *w, const struct machine *m, unsigned k)
{
	char socket[16];
	snprintf(socket, sizeof(socket), "CPU %u", k);
	u8 *p = begin(w, 4, (u16)(H_CPU + k), 0x2a);    /* 7.5 */
	p[4] = text(w, socket);
	p[5] = 3;                                       /* a central processor */
	p[6] = 1;                                       /* family: other */
	p[7] = text(w, m->model.vendor);
	p[0x18] = 0x41;                                 /* populated, enabled */
	p[0x19] = 1;                                    /* upgrade: other */
	st16(p + 0x1a, 0xffff);                         /* no information on caches */
	st16(p + 0x1c, 0xffff);
	st16(p + 0x1e, 0xffff);
	p[0x23] = p[0x24] = p[0x25] = 1;                /* cores, enabled cores, threads */
	finish(w);
}

#define DIMM_MAX (16ull << 30)  /* bytes; below 32 GiB the size's 15 bits of MiB suffice */

static void add_memory(struct writer *w, const struct machine *m)
{
	u64 bytes = m->mem.ram_size;
	u16 n = (u16)((bytes + DIMM_MAX - 1) / DIMM_MAX);
	u8 *p = begin(w, 16, H_ARRAY, 0x17);            /* 7.17 */
	p[4] = 1;
	p[5] = 3;                                       /* system memory, */
	p[6] = 6;                                       /* that corrects errors of several bits */
	st32(p + 7, 0x80000000);                        /* the size stands at 0xf */
	st16(p + 0xb, 0xfffe);                          /* no error information */
	st16(p + 0xd, n);
	st64(p + 0xf, bytes);
	finish(w);
	for (u16 k = 0; k < n; k++) {
		char name[16];
		u64 size = MIN(bytes - k * DIMM_MAX, DIMM_MAX);
		snprintf(name, sizeof(name), "DIMM %u", k);
		p = begin(w, 17, (u16)(H_DIMM + k), 0x28);      /* 7.18 */
		st16(p + 4, H_ARRAY);
		st16(p + 6, 0xfffe);
		st16(p + 8, 64);
		st16(p + 0xa, 64);
		st16(p + 0xc, (u16)(size >> 20));
		p[0xe] = 9;                                     /* a DIMM */
		p[0x10] = text(w, name);
		p[0x12] = 7;                                    /* RAM */
		st16(p + 0x13, 2);                              /* detail: other */
		finish(w);
	}
	const u64 pieces[][2] = { { 0, m->mem.low_size }, { MEM_4G, bytes - m->mem.low_size } };
	for (u16 k = 0; k < 2 && pieces[k][1]; k++) {
		p = begin(w, 19, (u16)(H_MAPPED + k), 0x1f);    /* 7.20 */
		st32(p + 4, 0xffffffff);                        /* 64-bit addresses at 0xf */
		st32(p + 8, 0xffffffff);
		st16(p + 0xc, H_ARRAY);
		p[0xe] = 1;
		st64(p + 0xf, pieces[k][0]);
		st64(p + 0x17, pieces[k][0] + pieces[k][1] - 1);
		finish(w);
	}
}

static void fill_entry_point(const struct writer *w, u8 *p)
{
	memcpy(p, "_SM_", 4);
	p[5] = SMBIOS_ENTRY;
	p[6] = 2;
	p[7] = 8;
	st16(p + 8, (u16)w->longest);
	memcpy(p + 0x10, "_DMI_", 5);
	st16(p + 0x16, (u16)w->len);
	st16(p + 0x1c, w->count);
	p[0x1e] = 0x28;
	for (unsigned k = 0x10; k < SMBIOS_ENTRY; k++)
		p[0x15] -= p[k];
	for (unsigned k = 0; k < SMBIOS_ENTRY; k++)
		p[4] -= k == 4 ? 0 : p[k];
}

bool smbios_give(struct machine *m)
{
	u8 entry[SMBIOS_ENTRY] = { 0 };
	struct writer *w = calloc(1, sizeof(*w));
	if (!w)
		return false;
	add_system(w);
	for (unsigned k = 0; k < m->n_cpus; k++)
		add_cpu(w, m, k);
	add_memory(w, m);
	u8 *boot = begin(w, 32, H_BOOT, 0x0b);          /* 7.33: no errors */
	boot[10] = 0;
	finish(w);
	begin(w, 127, H_BOOT + 1, 4);                   /* 7.46: the end */
	finish(w);
	fill_entry_point(w, entry);
	bool ok = fw_cfg_add_file(m->fw_cfg, "etc/smbios/smbios-anchor", entry, sizeof(entry)) &&
		  fw_cfg_add_file(m->fw_cfg, "etc/smbios/smbios-tables", w->data, w->len);
	free(w);
	return ok;
}
