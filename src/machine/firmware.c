/* Firmware: which image, where it is seen, and what it is told about the machine through fw_cfg.
 *
 * "bios" is SeaBIOS, "uefi" is OVMF (flash.c), of the host's packages; anything else is a file,
 * mapped as a ROM that ends at 4 GiB and, its last 128 KiB, at 1 MiB (pam.c). The processor
 * starts at the reset vector in it.
 *
 * Files and keys: QEMU documentation, "QEMU Firmware Configuration (fw_cfg) Device"; SeaBIOS
 * documentation, "Runtime configuration". All are fixed before the machine starts. */
#define LOG_TOPIC "boot"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "machine/machine_impl.h"

static const char *const seabios_files[] = {
	"/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin", "/usr/share/seabios/bios.bin", NULL
};
static const char *const vgabios_files[] = {
	"/usr/share/seabios/vgabios-stdvga.bin", "/usr/share/qemu/vgabios-stdvga.bin", NULL
};

static const char *first_there(const char *const *files)
{
	while (*files && access(*files, R_OK))
		files++;
	return *files;
}

/* ---- what it is told ------------------------------------------------------------------------ */

static bool give_u32(struct machine *m, const char *name, u32 val)
{
	u8 bytes[4];
	st32(bytes, val);
	return fw_cfg_add_file(m->fw_cfg, name, bytes, sizeof(bytes));
}

/* RAM only; what lies over it the firmware knows itself. */
static bool give_e820(struct machine *m)
{
	const struct e820 map[] = { { 0, m->mem.low_size, 1 }, { MEM_4G, m->mem.ram_size - m->mem.low_size, 1 } };
	return fw_cfg_add_file(m->fw_cfg, "etc/e820", map, map[1].size ? sizeof(map) : sizeof(map[0]));
}

/* CMOS 3d (first, second device) and 38 (third, in its high half): 2 disk, 3 CD, 4 network. SeaBIOS
 * goes by it where bootorder names no device. */
static void give_boot_sequence(struct machine *m, const char *order)
{
	u8 digits[3] = { 0 };
	unsigned n = 0;
	for (const char *p = order; *p && n < 3; p++)
		digits[n++] = *p == 'c' ? 2 : *p == 'd' ? 3 : 4;
	mc146818_set_byte(m->rtc, 0x3d, (u8)(digits[0] | digits[1] << 4));
	mc146818_set_byte(m->rtc, 0x38, (u8)(digits[2] << 4 | 1)); /* bit 0: no signature check of floppies */
}

/* One device a line, as Open Firmware names it, the first to be tried first; each once, so that text holds all. */
static bool give_boot_devices(struct machine *m, const char *order)
{
	char text[sizeof(m->boot_devices)] = "";
	size_t at = 0;
	for (const char *p = order; *p; p++)
		for (int k = 0; k < m->n_boot_devices && !memchr(order, *p, (size_t)(p - order)); k++)
			if (m->boot_devices[k].kind == *p)
				at += (size_t)snprintf(text + at, sizeof(text) - at, "%s\n", m->boot_devices[k].path);
	if (!at)
		return true;
	text[at - 1] = 0; /* OVMF wants an end */
	return fw_cfg_add_file(m->fw_cfg, "bootorder", text, at);
}

/* Where there is a disk or a CD the network is for who asks for it: OVMF tries a card for minutes, by PXE and HTTP,
 * each with IPv4 and IPv6, before it says that a disk does not boot. */
static const char *boot_order(const struct machine *m)
{
	if (m->cfg->boot.order)
		return m->cfg->boot.order;
	for (int k = 0; k < m->n_boot_devices; k++)
		if (m->boot_devices[k].kind != 'n')
			return "cd";
	return "n";
}

static bool give_boot_options(struct machine *m)
{
	const struct boot_config *b = &m->cfg->boot;
	const char *order = boot_order(m);
	u16 menu = b->menu;
	give_boot_sequence(m, order);
	return fw_cfg_add_key(m->fw_cfg, 0x0e, &menu, 2) && give_u32(m, "etc/show-boot-menu", menu) &&
	       (!b->menu || give_u32(m, "etc/boot-menu-wait", (u32)b->wait_ms)) &&
	       give_u32(m, "etc/boot-fail-wait", 0xffffffff) && /* says that there is nothing to boot, and stays */
	       give_boot_devices(m, order);
}

/* The card's option ROM, which SeaBIOS takes from a file of this name before it looks for one on
 * the card. */
static bool give_vgabios(struct machine *m, struct error *e)
{
	const char *path = m->vga ? first_there(vgabios_files) : NULL;
	struct blob rom;
	if (!path)
		return true;
	if (!blob_read(&rom, "--firmware bios", path, 256 << 10, e))
		return false;
	bool ok = fw_cfg_add_file(m->fw_cfg, "pci1234,1111.rom", rom.data, rom.size);
	blob_free(&rom);
	return ok || error_set(e, "--firmware: out of memory");
}

static bool give_all(struct machine *m, struct error *e)
{
	if (!give_e820(m) || !give_boot_options(m) || !acpi_give(m) || !smbios_give(m))
		return error_set(e, "--firmware: out of memory for what it is told");
	/* OVMF: all BARs below 4 GiB, where the DSDT's window is. */
	if (!fw_cfg_add_file(m->fw_cfg, "opt/ovmf/X-PciMmio64Mb", "0", 2))
		return error_set(e, "--firmware: out of memory for what it is told");
	return give_vgabios(m, e);
}

/* ---- the image --------------------------------------------------------------------------------- */

#define ROM_MAX (16ull << 20)

static bool map_rom(struct machine *m, const char *path, struct error *e)
{
	struct blob b;
	if (!blob_read(&b, "--firmware", path, ROM_MAX, e))
		return false;
	u8 *aligned = b.size & PAGE_MASK ? NULL : aligned_alloc(PAGE_SIZE, b.size);
	if (aligned)
		memcpy(aligned, b.data, b.size);
	u64 size = b.size;
	blob_free(&b);
	if (size & PAGE_MASK)
		return error_set(e, "--firmware %s: %llu bytes; a ROM's size is a multiple of 4 KiB", path, (unsigned long long)size);
	if (!aligned)
		return error_set(e, "--firmware: out of memory");
	m->firmware = (struct blob){ aligned, size };
	pam_firmware_loaded(m);
	return mem_add_rom(&m->mem, "firmware", MEM_4G - size, size, aligned, 10, e);
}

bool boot_firmware(struct machine *m, struct error *e)
{
	const char *path = m->cfg->firmware.path;
	m->boot_kind = "firmware at the reset vector";
	m->entry = 0xfffffff0;
	if (m->firmware.data)
		return true; /* after a reset: still mapped */
	if (!strcmp(path, "bios") && !(path = first_there(seabios_files)))
		return error_set(e, "--firmware bios: SeaBIOS is not there (%s); Debian's package is seabios", seabios_files[0]);
	if (strcmp(path, "uefi"))
		return map_rom(m, path, e) && give_all(m, e);
	if (!(path = flash_code_path()))
		return error_set(e, "--firmware uefi: OVMF is not there (/usr/share/OVMF/OVMF_CODE_4M.fd); Debian's package is ovmf");
	return map_rom(m, path, e) && flash_open(m, path, e) && give_all(m, e);
}
