/* Linux's bzImage: boot protocol 2.06 and later, by the 64-bit entry where the kernel has one,
 * else (or with format=linux32) the 32-bit one. Documentation/arch/x86/boot.rst.
 *
 * Placement: boot_params at 0x10000, command line at 0x20000, the protected-mode part at the
 * preferred address, the initrd as high as the kernel allows (above 4 GiB if it must and may). */
#define LOG_TOPIC "boot"
#include <string.h>

#include "machine/machine_impl.h"

#define PARAMS 0x10000ull
#define CMDLINE 0x20000ull
#define CMDLINE_MAX 0x10000u

/* Offsets in the setup header, the same in file and boot_params. */
enum {
	H_SETUP_SECTS = 0x1f1, H_SYSSIZE = 0x1f4, H_BOOT_FLAG = 0x1fe, H_JUMP = 0x200, H_MAGIC = 0x202, H_VERSION = 0x206,
	H_TYPE_OF_LOADER = 0x210, H_LOADFLAGS = 0x211, H_CODE32_START = 0x214, H_RAMDISK_IMAGE = 0x218,
	H_RAMDISK_SIZE = 0x21c, H_HEAP_END = 0x224, H_CMD_LINE_PTR = 0x228, H_INITRD_ADDR_MAX = 0x22c,
	H_KERNEL_ALIGNMENT = 0x230, H_RELOCATABLE = 0x234, H_XLOADFLAGS = 0x236, H_CMDLINE_SIZE = 0x238,
	H_SETUP_DATA = 0x250, H_PREF_ADDRESS = 0x258, H_INIT_SIZE = 0x260,
	BP_ACPI_RSDP = 0x070, BP_EXT_RAMDISK_IMAGE = 0x0c0, BP_EXT_RAMDISK_SIZE = 0x0c4,
	BP_E820_ENTRIES = 0x1e8, BP_E820_TABLE = 0x2d0, E820_MAX = 128,
};
enum { XLF_KERNEL_64 = 1, XLF_CAN_BE_LOADED_ABOVE_4G = 2 };

struct image {
	const struct blob *k;
	u16 version, xload;
	u64 setup_bytes, body_bytes;
	u64 load, init_size;
	u64 initrd_max;
	bool use64;
};

static bool parse(const struct machine *m, const struct blob *k, struct image *im, struct error *e)
{
	const char *path = m->cfg->kernel.path;
	if (k->size < 0x268 || ld32(k->data + H_MAGIC) != 0x53726448 || ld16(k->data + H_BOOT_FLAG) != 0xaa55)
		return error_set(e, "--kernel %s: not a Linux bzImage, or cut off in its header", path);
	im->k = k;
	im->version = ld16(k->data + H_VERSION);
	if (im->version < 0x206)
		return error_set(e, "--kernel %s: boot protocol %u.%02u is too old (2.06 and later are loaded)", path,
				 im->version >> 8, im->version & 0xff);
	if (!(k->data[H_LOADFLAGS] & 1))
		return error_set(e, "--kernel %s: a zImage, loaded below 1 MiB, is not supported; a bzImage is", path);
	unsigned sects = k->data[H_SETUP_SECTS] ? k->data[H_SETUP_SECTS] : 4;
	im->setup_bytes = (sects + 1) * 512ull;
	if (im->setup_bytes >= k->size)
		return error_set(e, "--kernel %s: cut off: %llu bytes, its setup part alone has %llu", path,
				 (unsigned long long)k->size, (unsigned long long)im->setup_bytes);
	im->body_bytes = k->size - im->setup_bytes;
	u64 said = (u64)ld32(k->data + H_SYSSIZE) * 16;
	if (said > im->body_bytes + 15)
		return error_set(e, "--kernel %s: cut off: the header promises %llu bytes of kernel, %llu are there", path,
				 (unsigned long long)said, (unsigned long long)im->body_bytes);
	im->xload = im->version >= 0x20c ? ld16(k->data + H_XLOADFLAGS) : 0;
	im->use64 = (im->xload & XLF_KERNEL_64) && m->model.has[FEAT_LM] &&
		    !(m->cfg->kernel.format && !strcmp(m->cfg->kernel.format, "linux32"));
	im->load = im->version >= 0x20a ? ld64(k->data + H_PREF_ADDRESS) : 0x100000;
	im->init_size = im->version >= 0x20a ? ld32(k->data + H_INIT_SIZE) : im->body_bytes * 4;
	im->initrd_max = ld32(k->data + H_INITRD_ADDR_MAX);
	return true;
}

/* The kernel wants init_size bytes at its load address; a small machine may still do when it
 * is relocatable. */
static bool place_kernel(struct machine *m, struct image *im, struct error *e)
{
	u64 limit = boot_acpi_base(m), need = MAX(im->init_size, im->body_bytes);
	bool relocatable = im->version >= 0x205 && im->k->data[H_RELOCATABLE];
	if (im->load + need > limit && relocatable)
		im->load = 0x100000;
	if (im->load < 0x100000 || im->load > limit || need > limit - im->load)
		return error_set(e, "--kernel %s: needs %llu MiB at %llu MiB, but -m gives %llu MiB; try -m %lluM", m->cfg->kernel.path,
				 (unsigned long long)((need >> 20) + 1), (unsigned long long)(im->load >> 20),
				 (unsigned long long)(m->mem.ram_size >> 20), (unsigned long long)(((im->load + need) >> 20) + 64));
	return boot_put(m, "--kernel", im->load, im->k->data + im->setup_bytes, im->body_bytes, e);
}

static bool place_initrd(struct machine *m, const struct image *im, u8 *params, struct error *e)
{
	if (!m->cfg->initrd)
		return true;
	struct blob rd;
	if (!boot_read(m, &rd, "--initrd", m->cfg->initrd, 64ull << 30, e))
		return false;
	u64 floor = (im->load + MAX(im->init_size, im->body_bytes) + PAGE_MASK) & ~PAGE_MASK;
	u64 top = MIN(boot_acpi_base(m), im->initrd_max + 1), at = 0;
	u64 high = m->mem.ram_size - m->mem.low_size;
	if (top > floor && rd.size <= top - floor)
		at = (top - rd.size) & ~PAGE_MASK;
	if ((!at || at < floor) && (im->xload & XLF_CAN_BE_LOADED_ABOVE_4G) && im->use64 && rd.size <= high)
		at = (MEM_4G + high - rd.size) & ~PAGE_MASK;
	bool fits = at >= floor;
	if (fits)
		fits = boot_put(m, "--initrd", at, rd.data, rd.size, e);
	else
		error_set(e, "--initrd %s: %llu MiB do not fit beside the kernel; try -m %lluM", m->cfg->initrd,
			  (unsigned long long)(rd.size >> 20), (unsigned long long)((floor + rd.size) >> 20) + 64);
	st32(params + H_RAMDISK_IMAGE, (u32)at);
	st32(params + H_RAMDISK_SIZE, (u32)rd.size);
	st32(params + BP_EXT_RAMDISK_IMAGE, (u32)(at >> 32));
	st32(params + BP_EXT_RAMDISK_SIZE, (u32)(rd.size >> 32));
	blob_free(&rd);
	return fits;
}

static bool place_cmdline(struct machine *m, const struct image *im, u8 *params, struct error *e)
{
	const char *text = m->cfg->append ? m->cfg->append : "";
	size_t len = strlen(text), max = ld32(im->k->data + H_CMDLINE_SIZE);
	if (max > CMDLINE_MAX - 1)
		max = CMDLINE_MAX - 1;
	if (len > max)
		return error_set(e, "--append: %zu characters; this kernel takes at most %zu", len, max);
	st32(params + H_CMD_LINE_PTR, (u32)CMDLINE);
	return boot_put(m, "--append", CMDLINE, text, len + 1, e);
}

bool boot_linux(struct machine *m, const struct blob *k, struct error *e)
{
	struct image im = { 0 };
	u8 params[4096] = { 0 };
	if (!parse(m, k, &im, e) || !place_kernel(m, &im, e))
		return false;
	/* The header up to where its own jump says that it ends. */
	u64 end = MIN(0x202u + k->data[H_JUMP + 1], 0x290u);
	memcpy(params + 0x1f1, k->data + 0x1f1, MIN(end, k->size) - 0x1f1);
	params[H_TYPE_OF_LOADER] = 0xff;
	params[H_LOADFLAGS] &= 0x7f; /* no heap: its real-mode part does not run */
	st32(params + H_CODE32_START, (u32)im.load);
	st64(params + H_SETUP_DATA, 0);
	struct e820 map[16];
	int n = boot_e820(m, map, 16);
	params[BP_E820_ENTRIES] = (u8)n;
	memcpy(params + BP_E820_TABLE, map, (size_t)n * sizeof(map[0]));
	st64(params + BP_ACPI_RSDP, acpi_build(m));
	if (!place_cmdline(m, &im, params, e) || !place_initrd(m, &im, params, e) ||
	    !boot_put(m, "boot_params", PARAMS, params, sizeof(params), e))
		return false;
	m->entry = im.load + (im.use64 ? 0x200 : 0);
	m->entry_arg = PARAMS;
	m->entry_arg2 = 0;
	m->entry_stack = 0x8ff0;
	m->enter = im.use64 ? enter_long : enter_protected;
	m->boot_kind = im.use64 ? "Linux bzImage, 64-bit entry" : "Linux bzImage, 32-bit entry";
	return true;
}
