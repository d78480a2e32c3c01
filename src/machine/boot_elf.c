/* ELF kernels: Xen's PVH entry (a note of type 18 holds the 32-bit entry point; xen/include/public/
 * arch-x86/hvm/start_info.h) and multiboot 1 (ELF or by its own addresses; specification 0.6.96). */
#define LOG_TOPIC "boot"
#include <stdio.h>
#include <string.h>

#include "machine/machine_impl.h"

#include <elf.h> /* last: its PF_W is a macro */

/* ---- ELF, both classes reduced to what a loader needs ---------------------------------------- */

struct segment_part { u64 offset, paddr, filesz, memsz, vaddr; u32 type; };
struct elf {
	const u8 *data;
	u64 size;
	bool is64;
	u64 entry, phoff, shoff;
	unsigned phnum, phentsize, shnum, shentsize, shstrndx;
};

static bool elf_open(struct elf *x, const struct blob *k)
{
	if (k->size < sizeof(Elf32_Ehdr) || memcmp(k->data, ELFMAG, 4))
		return false;
	x->data = k->data;
	x->size = k->size;
	x->is64 = k->data[EI_CLASS] == ELFCLASS64;
	if (x->is64) {
		Elf64_Ehdr h;
		if (k->size < sizeof(h))
			return false;
		memcpy(&h, k->data, sizeof(h));
		*x = (struct elf){ k->data, k->size, true, h.e_entry, h.e_phoff, h.e_shoff, h.e_phnum, h.e_phentsize,
				   h.e_shnum, h.e_shentsize, h.e_shstrndx };
		return h.e_machine == EM_X86_64 && x->phentsize >= sizeof(Elf64_Phdr);
	}
	Elf32_Ehdr h;
	memcpy(&h, k->data, sizeof(h));
	*x = (struct elf){ k->data, k->size, false, h.e_entry, h.e_phoff, h.e_shoff, h.e_phnum, h.e_phentsize,
			   h.e_shnum, h.e_shentsize, h.e_shstrndx };
	return (h.e_machine == EM_386 || h.e_machine == EM_X86_64) && x->phentsize >= sizeof(Elf32_Phdr);
}

static bool elf_segment(const struct elf *x, unsigned n, struct segment_part *p)
{
	u64 at = x->phoff + (u64)n * x->phentsize;
	if (n >= x->phnum || x->phoff > x->size || at > x->size || x->size - at < x->phentsize)
		return false;
	if (x->is64) {
		Elf64_Phdr h;
		memcpy(&h, x->data + at, sizeof(h));
		*p = (struct segment_part){ h.p_offset, h.p_paddr, h.p_filesz, h.p_memsz, h.p_vaddr, h.p_type };
	} else {
		Elf32_Phdr h;
		memcpy(&h, x->data + at, sizeof(h));
		*p = (struct segment_part){ h.p_offset, h.p_paddr, h.p_filesz, h.p_memsz, h.p_vaddr, h.p_type };
	}
	/* A note need not be in memory at all: then its memory size is 0. */
	return p->offset <= x->size && p->filesz <= x->size - p->offset && (p->type != PT_LOAD || p->filesz <= p->memsz);
}

/* *end: above all that was loaded below 4 GiB. */
static bool load_segments(struct machine *m, const struct elf *x, const struct boot_place *places, u64 *end, struct error *e)
{
	static const u8 zeros[65536];
	unsigned loaded = 0;
	u64 total = 0;
	*end = 0x100000;
	for (unsigned n = 0; n < x->phnum; n++) {
		struct segment_part p;
		if (!elf_segment(x, n, &p))
			return error_set(e, "--kernel %s: program header %u is malformed or lies outside the file (cut off?)",
					 m->cfg->kernel.path, n);
		if (p.type != PT_LOAD || !p.memsz)
			continue;
		if (p.memsz > m->mem.ram_size || p.paddr + p.memsz < p.paddr)
			return error_set(e, "--kernel %s: a segment of %llu MiB at 0x%llx does not fit -m", m->cfg->kernel.path,
					 (unsigned long long)(p.memsz >> 20), (unsigned long long)p.paddr);
		total += p.memsz;
		if (total > m->mem.ram_size)
			return error_set(e, "--kernel %s: its segments have more bytes than -m gives (%llu MiB)", m->cfg->kernel.path,
					 (unsigned long long)(m->mem.ram_size >> 20));
		if (!boot_check_place(m, places, p.paddr, p.memsz, e))
			return false;
		if (p.paddr < MEM_4G)
			*end = MAX(*end, p.paddr + p.memsz);
		if (!boot_put(m, "--kernel", p.paddr, x->data + p.offset, p.filesz, e))
			return false;
		for (u64 at = p.filesz; at < p.memsz; at += sizeof(zeros))
			if (!boot_put(m, "--kernel", p.paddr + at, zeros, MIN(sizeof(zeros), p.memsz - at), e))
				return false;
		loaded++;
	}
	if (!loaded)
		return error_set(e, "--kernel %s: an ELF file with nothing to load", m->cfg->kernel.path);
	return true;
}

/* The module or initrd, page-aligned: as high as it goes below 4 GiB, and above the kernel's end. */
static bool place_module(struct machine *m, const struct blob *rd, u64 end, u64 *at, struct error *e)
{
	u64 top = boot_acpi_base(m);
	*at = 0;
	if (rd->size >= top || ((top - rd->size) & ~PAGE_MASK) < end)
		return error_set(e, "--initrd %s: %llu MiB do not fit; give more with -m", m->cfg->initrd, (unsigned long long)(rd->size >> 20));
	*at = (top - rd->size) & ~PAGE_MASK;
	return boot_put(m, "--initrd", *at, rd->data, rd->size, e);
}

#define E820_MAX 16 /* entries of boot_e820 that fit the tables below */

/* ---- PVH -------------------------------------------------------------------------------------- */

#define PVH_INFO 0x6000ull
#define PVH_MODULES 0x6100ull
#define PVH_MAP 0x6200ull
#define PVH_CMDLINE 0x20000ull
#define PVH_CMDLINE_MAX 0x10000u
static const struct boot_place pvh_places[] = {
	BOOT_PLACE_GDT,
	{ PVH_INFO, PVH_MAP + E820_MAX * 24 - PVH_INFO, "the start info" },
	{ PVH_CMDLINE, PVH_CMDLINE_MAX, "the command line" },
	{ 0 },
};
#define XEN_ELFNOTE_PHYS32_ENTRY 18

static bool find_note(const struct elf *x, u64 *entry)
{
	for (unsigned n = 0; n < x->phnum; n++) {
		struct segment_part p;
		if (!elf_segment(x, n, &p) || p.type != PT_NOTE)
			continue;
		for (u64 at = 0; at + 12 <= p.filesz;) {
			const u8 *note = x->data + p.offset + at;
			u64 name = ld32(note), desc = ld32(note + 4);
			u64 body = 12 + ((name + 3) & ~3ull), next = body + ((desc + 3) & ~3ull);
			if (next > p.filesz - at)
				break;
			if (ld32(note + 8) == XEN_ELFNOTE_PHYS32_ENTRY && name == 4 && !memcmp(note + 12, "Xen", 4) && desc >= 4) {
				*entry = desc >= 8 ? ld64(note + body) : ld32(note + body);
				return true;
			}
			at += next;
		}
	}
	return false;
}

static bool pvh_info(struct machine *m, u64 end, struct error *e)
{
	const char *text = m->cfg->append ? m->cfg->append : "";
	u8 info[56] = { 0 };
	struct e820 map[E820_MAX];
	int n = boot_e820(m, map, E820_MAX);
	u8 table[E820_MAX * 24] = { 0 };
	for (int k = 0; k < n; k++) {
		st64(table + k * 24, map[k].base);
		st64(table + k * 24 + 8, map[k].size);
		st32(table + k * 24 + 16, map[k].type);
	}
	st32(info, 0x336ec578);
	st32(info + 4, 1);
	if (m->cfg->initrd) {
		struct blob rd;
		u64 at;
		if (!boot_read(m, &rd, "--initrd", m->cfg->initrd, 3ull << 30, e))
			return false;
		u8 mod[32] = { 0 };
		bool ok = place_module(m, &rd, end, &at, e);
		st64(mod, at);
		st64(mod + 8, rd.size);
		blob_free(&rd);
		if (!ok || !boot_put(m, "--initrd", PVH_MODULES, mod, sizeof(mod), e))
			return false;
		st32(info + 12, 1);
		st64(info + 16, PVH_MODULES);
	}
	st64(info + 24, PVH_CMDLINE);
	st64(info + 32, acpi_build(m));
	st64(info + 40, PVH_MAP);
	st32(info + 48, (u32)n);
	if (strlen(text) >= PVH_CMDLINE_MAX)
		return error_set(e, "--append: longer than %u characters", PVH_CMDLINE_MAX - 1);
	return boot_put(m, "--append", PVH_CMDLINE, text, strlen(text) + 1, e) &&
	       boot_put(m, "memory map", PVH_MAP, table, sizeof(table), e) &&
	       boot_put(m, "start info", PVH_INFO, info, sizeof(info), e);
}

bool boot_elf(struct machine *m, const struct blob *k, struct error *e)
{
	struct elf x;
	if (!elf_open(&x, k))
		return error_set(e, "--kernel %s: not an x86 ELF file, or cut off in its header", m->cfg->kernel.path);
	u64 entry, end;
	if (!find_note(&x, &entry))
		return error_set(e, "--kernel %s: an ELF file without a PVH entry note (Linux: CONFIG_PVH) and without a multiboot header",
				 m->cfg->kernel.path);
	if (!load_segments(m, &x, pvh_places, &end, e) || !pvh_info(m, end, e))
		return false;
	m->entry = (u32)entry;
	m->entry_arg = PVH_INFO;
	m->entry_arg2 = 0;
	m->entry_stack = 0;
	m->enter = enter_protected;
	m->boot_kind = "ELF, PVH entry";
	return true;
}

/* ---- multiboot 1 --------------------------------------------------------------------------------- */

#define MB_INFO 0x6000ull
#define MB_MODULE 0x6100ull
#define MB_MAP 0x6200ull
#define MB_STRINGS 0x20000ull /* the command line, at most a page, and our name */
#define MB_NAME (MB_STRINGS + 0x1000)
static const struct boot_place multiboot_places[] = {
	{ 0, 0x400, "the interrupt vectors" },
	BOOT_PLACE_GDT,
	{ MB_INFO, MB_MAP + E820_MAX * 24 - MB_INFO, "the multiboot information" },
	{ MB_STRINGS, 0x1008, "the command line" },
	{ BOOT_BIOS_STUBS, 0x20, "the interrupt handlers" },
	{ 0 },
};

static bool multiboot_body(struct machine *m, const struct blob *k, const u8 *h, u64 at, u64 *end, struct error *e)
{
	struct elf x;
	if (!(ld32(h + 4) & 0x10000)) {
		if (!elf_open(&x, k))
			return error_set(e, "--kernel %s: multiboot without load addresses must be a whole ELF file", m->cfg->kernel.path);
		m->entry = (u32)x.entry;
		return load_segments(m, &x, multiboot_places, end, e);
	}
	u64 header = ld32(h + 12), load = ld32(h + 16), load_end = ld32(h + 20), bss_end = ld32(h + 24);
	u64 skip = header - load;
	if (load > header || skip > at)
		return error_set(e, "--kernel %s: its multiboot header's addresses contradict each other", m->cfg->kernel.path);
	u64 from = at - skip, bytes = load_end ? load_end - load : k->size - from;
	if ((load_end && load_end < load) || bytes > k->size - from)
		return error_set(e, "--kernel %s: cut off: its multiboot header promises %llu bytes", m->cfg->kernel.path, (unsigned long long)bytes);
	if (bss_end > m->mem.low_size)
		return error_set(e, "--kernel %s: its bss does not fit -m", m->cfg->kernel.path);
	*end = MAX(load + bytes, bss_end);
	if (!boot_check_place(m, multiboot_places, load, *end - load, e) || !boot_put(m, "--kernel", load, k->data + from, bytes, e))
		return false;
	u8 zeros[4096] = { 0 };
	for (u64 z = load + bytes; z < bss_end; z += sizeof(zeros))
		if (!boot_put(m, "--kernel", z, zeros, MIN(sizeof(zeros), bss_end - z), e))
			return false;
	m->entry = ld32(h + 28);
	return true;
}

/* The command line starts with the file's name, as boot loaders do. */
static bool multiboot_info(struct machine *m, u64 end, struct error *e)
{
	u8 info[120] = { 0 }, table[E820_MAX * 24] = { 0 };
	char line[4096];
	const char *name = strrchr(m->cfg->kernel.path, '/');
	name = name ? name + 1 : m->cfg->kernel.path;
	int len = snprintf(line, sizeof(line), "%s%s%s", name, m->cfg->append && *m->cfg->append ? " " : "", m->cfg->append ? m->cfg->append : "");
	if (len < 0 || len >= (int)sizeof(line))
		return error_set(e, "--append: longer than multiboot's 4095 characters");
	struct e820 map[E820_MAX];
	int n = boot_e820(m, map, E820_MAX);
	for (int k = 0; k < n; k++) {
		st32(table + k * 24, 20);
		st64(table + k * 24 + 4, map[k].base);
		st64(table + k * 24 + 12, map[k].size);
		st32(table + k * 24 + 20, map[k].type);
	}
	st32(info, 0x1 | 0x4 | 0x40 | 0x200);
	st32(info + 4, 639);
	st32(info + 8, (u32)((boot_acpi_base(m) - 0x100000) >> 10));
	st32(info + 16, (u32)MB_STRINGS);
	st32(info + 44, (u32)n * 24);
	st32(info + 48, (u32)MB_MAP);
	st32(info + 64, (u32)MB_NAME);
	if (m->cfg->initrd) {
		struct blob rd;
		u64 at;
		if (!boot_read(m, &rd, "--initrd", m->cfg->initrd, 3ull << 30, e))
			return false;
		u8 mod[16] = { 0 };
		bool ok = place_module(m, &rd, end, &at, e);
		st32(mod, (u32)at);
		st32(mod + 4, (u32)(at + rd.size));
		st32(mod + 8, (u32)MB_STRINGS);
		blob_free(&rd);
		if (!ok || !boot_put(m, "--initrd", MB_MODULE, mod, sizeof(mod), e))
			return false;
		st32(info, ld32(info) | 0x8);
		st32(info + 20, 1);
		st32(info + 24, (u32)MB_MODULE);
	}
	acpi_build(m);
	return boot_put(m, "--append", MB_STRINGS, line, (u64)len + 1, e) &&
	       boot_put(m, "loader name", MB_NAME, "ring3", 6, e) &&
	       boot_put(m, "memory map", MB_MAP, table, sizeof(table), e) &&
	       boot_put(m, "multiboot information", MB_INFO, info, sizeof(info), e);
}

bool boot_multiboot(struct machine *m, const struct blob *k, struct error *e)
{
	for (u64 at = 0; at + 12 <= k->size && at < 8192; at += 4) {
		const u8 *h = k->data + at;
		if (ld32(h) != 0x1badb002 || ld32(h) + ld32(h + 4) + ld32(h + 8) != 0)
			continue;
		if ((ld32(h + 4) & 0x10000) && k->size - at < 32)
			return error_set(e, "--kernel %s: cut off in its multiboot header", m->cfg->kernel.path);
		if (ld32(h + 4) & 0xfffc & ~7u)
			return error_set(e, "--kernel %s: its multiboot header requires features that are not there (flags 0x%x)",
					 m->cfg->kernel.path, ld32(h + 4));
		u64 end;
		if (!multiboot_body(m, k, h, at, &end, e) || !multiboot_info(m, end, e))
			return false;
		m->entry_arg = MB_INFO;
		m->entry_arg2 = 0x2badb002;
		m->entry_stack = 0;
		m->enter = enter_protected;
		boot_bios_state(m);
		m->boot_kind = "multiboot 1";
		return true;
	}
	return error_set(e, "--kernel %s: no multiboot header in its first 8 KiB", m->cfg->kernel.path);
}
