/* Boot loaders, the common part: files, placing bytes in RAM, the memory map, the processor
 * states that loaders promise. Every number that comes from a file is checked before use; a
 * file that does not fit is refused by name. */
#define LOG_TOPIC "boot"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/machine_impl.h"

/* ---- files -------------------------------------------------------------------------------- */

static int open_to_read(const char *option, const char *path, struct error *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a FIFO is refused, not waited for */

	struct stat st;
	if (fd < 0)
		error_set(e, "%s %s: %s", option, path, strerror(errno));
	if (fd < 0 || (!fstat(fd, &st) && S_ISREG(st.st_mode)))
		return fd;
	error_set(e, "%s %s: not a regular file", option, path);
	close(fd);
	return -1;
}

/* All of fd, from its beginning; also by a contained process, which has lseek, but no fstat. */
static bool read_all(int fd, struct blob *b, const char *option, const char *path, u64 max, struct error *e)
{
	off_t size = lseek(fd, 0, SEEK_END);

	*b = (struct blob){ 0 };
	if (size <= 0 || (u64)size > max)
		return error_set(e, "%s %s: %s (%lld bytes; at most %llu)", option, path, size ? "too large" : "the file is empty",
				 (long long)size, (unsigned long long)max);
	b->data = malloc((size_t)size);
	errno = 0;
	while (b->data && b->size < (u64)size) {
		ssize_t n = pread(fd, b->data + b->size, (size_t)((u64)size - b->size), (off_t)b->size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		b->size += (u64)n;
	}
	if (b->size == (u64)size)
		return true;
	int err = b->data ? errno : ENOMEM;
	blob_free(b);
	return error_set(e, "%s %s: cannot be read: %s", option, path, err ? strerror(err) : "it became shorter meanwhile");
}

bool blob_read(struct blob *b, const char *option, const char *path, u64 max, struct error *e)
{
	int fd = open_to_read(option, path, e);
	bool ok = fd >= 0 && read_all(fd, b, option, path, max, e);

	if (fd >= 0)
		close(fd);
	return ok;
}

bool boot_read(struct machine *m, struct blob *b, const char *option, const char *path, u64 max, struct error *e)
{
	int k = 0;

	while (k < m->n_boot_files && m->boot_file[k].path != path)
		k++;
	if (k == m->n_boot_files) {
		if (k == (int)ARRAY_LEN(m->boot_file))
			bug("more boot files than there is room for");
		int fd = open_to_read(option, path, e);
		if (fd < 0)
			return false;
		m->boot_file[m->n_boot_files++] = (struct boot_file){ path, fd };
	}
	return read_all(m->boot_file[k].fd, b, option, path, max, e);
}

void boot_close(struct machine *m)
{
	for (int k = 0; k < m->n_boot_files; k++)
		close(m->boot_file[k].fd);
}

void blob_free(struct blob *b)
{
	free(b->data);
	*b = (struct blob){ 0 };
}

bool boot_put(struct machine *m, const char *what, u64 gpa, const void *data, u64 len, struct error *e)
{
	if (mem_write(&m->mem, gpa, data, len))
		return true;
	return error_set(e, "%s: 0x%llx..0x%llx is not RAM of a machine with %llu MiB; give it more with -m", what,
			 (unsigned long long)gpa, (unsigned long long)(gpa + len), (unsigned long long)(m->mem.ram_size >> 20));
}

static bool overlap(const struct boot_place *p, u64 addr, u64 size)
{
	return addr < p->base + p->size && size > p->base - MIN(addr, p->base);
}

bool boot_check_place(const struct machine *m, const struct boot_place *p, u64 addr, u64 size, struct error *e)
{
	const struct boot_place acpi[] = {
		{ BOOT_RSDP, 36, "the ACPI root pointer" },
		{ boot_acpi_base(m), m->mem.low_size - boot_acpi_base(m), "the ACPI tables" },
		{ 0 },
	};
	while (p->size && !overlap(p, addr, size))
		p++;
	if (!p->size)
		for (p = acpi; p->size && !overlap(p, addr, size);)
			p++;
	return !p->size || error_set(e, "--kernel %s: its %llu bytes at 0x%llx lie over %s at 0x%llx..0x%llx; %s", m->cfg->kernel.path,
				     (unsigned long long)size, (unsigned long long)addr, p->what, (unsigned long long)p->base,
				     (unsigned long long)(p->base + p->size - 1),
				     p->base < 0x100000 ? "addresses from 0x100000 on are free" : "give more with -m");
}

/* ---- the memory map -------------------------------------------------------------------------- */

u64 boot_acpi_base(const struct machine *m) { return (m->mem.low_size - BOOT_ACPI_SIZE) & ~0xffffull; }

int boot_e820(struct machine *m, struct e820 *out, int cap)
{
	u64 acpi = boot_acpi_base(m);
	const struct e820 map[] = {
		{ 0, 0x9fc00, 1 },
		{ 0x9fc00, 0x400, 2 },
		{ 0xf0000, 0x10000, 2 },
		{ 0x100000, acpi - 0x100000, 1 },
		{ acpi, m->mem.low_size - acpi, 3 },
		{ 0xfec00000, 0x1000, 2 },
		{ 0xfee00000, 0x1000, 2 },
		{ MEM_4G, m->mem.ram_size - m->mem.low_size, 1 },
	};
	int n = 0;
	for (unsigned k = 0; k < ARRAY_LEN(map) && n < cap; k++)
		if (map[k].size)
			out[n++] = map[k];
	return n;
}

/* ---- processor states ------------------------------------------------------------------------- */

/* The GDT: 0x08 64-bit code, 0x10 32-bit code, 0x18 data. Linux's protocol names the latter two. */

static void flat_segment(struct cpu *c, unsigned s, u16 sel, u32 attr)
{
	c->seg[s] = (struct segment){ .sel = sel, .attr = attr, .limit = 0xffffffff };
}

static void load_flat_segments(struct machine *m, struct cpu *c, bool long_code)
{
	static const u64 gdt[] = { 0, 0x00af9b000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff };
	mem_write(&m->mem, BOOT_GDT, gdt, sizeof(gdt));
	c->gdtr = (struct dtable){ BOOT_GDT, sizeof(gdt) - 1 };
	c->idtr = (struct dtable){ 0, 0 };
	if (long_code)
		flat_segment(c, S_CS, 0x08, 0xa09b);
	else
		flat_segment(c, S_CS, 0x10, 0xc09b);
	static const u8 data[] = { S_DS, S_ES, S_SS, S_FS, S_GS };
	for (unsigned k = 0; k < ARRAY_LEN(data); k++)
		flat_segment(c, data[k], 0x18, 0xc093);
	c->seg[S_LDTR] = (struct segment){ .attr = 0x82, .limit = 0xffff };
	c->seg[S_TR] = (struct segment){ .attr = 0x8b, .limit = 0x67 };
	fpu_reset(c, true); /* as firmware leaves it: exceptions masked */
}

/* Linux boot protocol 1.12: paging on, RSI = boot_params, interrupts off. */
void enter_long(struct machine *m, struct cpu *c)
{
	u64 page[512] = { 0 };
	page[0] = (BOOT_PAGES + 0x1000) | 3;
	mem_write(&m->mem, BOOT_PAGES, page, sizeof(page));
	for (u64 k = 0; k < 4; k++)
		page[k] = (BOOT_PAGES + 0x2000 + k * 0x1000) | 3;
	mem_write(&m->mem, BOOT_PAGES + 0x1000, page, sizeof(page));
	for (u64 d = 0; d < 4; d++) {
		for (u64 k = 0; k < 512; k++)
			page[k] = (d << 30 | k << 21) | 0x83;
		mem_write(&m->mem, BOOT_PAGES + 0x2000 + d * 0x1000, page, sizeof(page));
	}
	load_flat_segments(m, c, true);
	c->cr4 = CR4_PAE;
	c->efer = EFER_LME | EFER_LMA;
	c->cr3 = BOOT_PAGES;
	c->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
	c->cpl = 0;
	c->rip = m->entry;
	c->regs[R_SI] = m->entry_arg;
	c->regs[R_SP] = m->entry_stack;
	c->rflags = FL_1;
	cpu_update_mode(c);
	mmu_flush_all(c);
}

/* Multiboot 3.2, PVH, Linux's 32-bit entry: flat segments, paging off. */
void enter_protected(struct machine *m, struct cpu *c)
{
	load_flat_segments(m, c, false);
	c->cr0 = CR0_PE | CR0_ET | CR0_NE;
	c->cpl = 0;
	c->rip = m->entry;
	c->regs[R_AX] = m->entry_arg2;
	c->regs[R_BX] = m->entry_arg;
	c->regs[R_SI] = m->entry_arg;
	c->regs[R_SP] = m->entry_stack;
	c->rflags = FL_1;
	cpu_update_mode(c);
	mmu_flush_all(c);
}

void enter_real(struct machine *m, struct cpu *c)
{
	u16 seg = m->entry > 0xffff ? (u16)MIN(m->entry >> 4, 0xffffu) : 0;
	for (unsigned s = S_ES; s <= S_GS; s++)
		seg_load_real(c, s, s == S_CS ? seg : 0);
	c->rip = m->entry - ((u64)seg << 4);
	c->regs[R_SP] = m->entry_stack;
	c->rflags = FL_1;
	cpu_update_mode(c);
}

/* ---- choice ----------------------------------------------------------------------------------- */

static bool by_format(struct machine *m, const struct blob *k, const char *format, struct error *e)
{
	static const char *const names[] = { "linux", "linux32", "pvh", "multiboot", "flat" };
	if (!strcmp(format, "linux") || !strcmp(format, "linux32"))
		return boot_linux(m, k, e);
	if (!strcmp(format, "pvh"))
		return boot_elf(m, k, e);
	if (!strcmp(format, "multiboot"))
		return boot_multiboot(m, k, e);
	if (!strcmp(format, "flat"))
		return boot_flat(m, k, e);
	const char *near = nearest_word(format, names, ARRAY_LEN(names));
	return error_set(e, "--kernel format=%s: no such format; %s%s%s", format, near ? "did you mean " : "one of linux, linux32, pvh, multiboot, flat",
			 near ? near : "", near ? "?" : "");
}

/* The multiboot magic, aligned, in the first 8 KiB. */
static bool has_multiboot(const struct blob *k)
{
	for (u64 at = 0; at + 12 <= k->size && at < 8192; at += 4)
		if (ld32(k->data + at) == 0x1badb002 && ld32(k->data + at) + ld32(k->data + at + 4) + ld32(k->data + at + 8) == 0)
			return true;
	return false;
}

static bool by_content(struct machine *m, const struct blob *k, struct error *e)
{
	if (k->size >= 0x206 && ld32(k->data + 0x202) == 0x53726448)
		return boot_linux(m, k, e);
	if (has_multiboot(k))
		return boot_multiboot(m, k, e);
	if (k->size >= 4 && !memcmp(k->data, "\177ELF", 4))
		return boot_elf(m, k, e);
	return error_set(e, "--kernel %s: neither a Linux bzImage, an ELF with a PVH note, nor multiboot; "
			    "for a raw program say format=flat with addr= and mode=", m->cfg->kernel.path);
}

/* What firmware leaves of the interrupt wiring (MultiProcessor specification 3.6.2.2, "virtual
 * wire"): the boot processor's LAPIC is on and passes the 8259s' interrupts and NMI through. */
static void wire_interrupts(struct machine *m)
{
	enum { SVR = 0xf0, LINT0 = 0x350, LINT1 = 0x360, EXT_INT = 0x700, NMI = 0x400 };
	struct lapic *l = m->cpus[0].lapic;
	mem_lock(&m->mem);
	lapic_mmio_write(l, SVR, 0x1ff, 4);
	lapic_mmio_write(l, LINT0, EXT_INT, 4);
	lapic_mmio_write(l, LINT1, NMI, 4);
	mem_unlock(&m->mem);
}

/* And of PCI: addresses, and the four lines as the DSDT's _PRT has them, level-triggered in the 8259s (ELCR). */
static void wire_pci(struct machine *m)
{
	static const u8 pirq[4] = { 10, 11, 10, 11 };
	mem_lock(&m->mem);
	pci_assign(m->pci, pirq);
	mem_unlock(&m->mem);
	mem_port_write(&m->mem, 0x4d1, 1 << 2 | 1 << 3, 1);
}

bool boot_load(struct machine *m, struct error *e)
{
	const struct vm_config *f = m->cfg;
	if (f->firmware.path)
		return boot_firmware(m, e); /* the processor stays at its reset vector */
	if (!f->kernel.path)
		return error_set(e, "nothing to boot: give --kernel FILE or --firmware FILE");
	if ((!f->kernel.format || strcmp(f->kernel.format, "flat")) && (f->kernel.mode || f->kernel.addr_set || f->kernel.entry_set))
		return error_set(e, "--kernel %s: addr, entry and mode are for format=flat; other formats say it themselves", f->kernel.path);
	if (f->kernel.format && !strcmp(f->kernel.format, "flat") && (f->initrd || f->append))
		return error_set(e, "--%s: not with format=flat, which nothing is handed to", f->initrd ? "initrd" : "append");
	if (m->mem.ram_size < 2 << 20)
		return error_set(e, "-m %lluK: booting a kernel needs at least 2M", (unsigned long long)(m->mem.ram_size >> 10));
	pam_all_ram(m);
	struct blob k;
	if (!boot_read(m, &k, "--kernel", f->kernel.path, 1ull << 30, e))
		return false;
	bool ok = f->kernel.format ? by_format(m, &k, f->kernel.format, e) : by_content(m, &k, e);
	blob_free(&k);
	if (!ok)
		return false;
	wire_interrupts(m);
	wire_pci(m);
	m->enter(m, m->cpus[0].cpu);
	return true;
}
