/* The firmware configuration device as QEMU's firmware interface has it: items by key, files
 * by name, read through a data port or by DMA. QEMU documentation, "QEMU Firmware
 * Configuration (fw_cfg) Device".
 *
 *   0x510 selector (16 bits, write)   0x511 data (bytes)
 *   0x514 DMA address (64 bits, big-endian; writing the low half starts it)
 *
 * Invariants
 *  1. Files are sorted by name and their keys follow from that order, so that what a guest
 *     sees does not depend on the order in which they were added.
 *  2. Items do not change while a guest runs; a guest cannot write them.
 *  3. A read past an item's end gives zeros and does not move beyond the end. A DMA read of more
 *     than ZEROS_MAX of them is an error: they are written with the machine lock held.
 *
 * Left out: items that a guest can write. Machine lock held. */
#define LOG_TOPIC "fw_cfg"
#include "dev/dev.h"

#include <stdlib.h>
#include <string.h>

#define KEY_SIGNATURE 0x00u
#define KEY_ID 0x01u
#define KEY_RAM_SIZE 0x03u
#define KEY_FILE_DIR 0x19u
#define KEY_FILE_FIRST 0x20u
#define KEY_MASK 0x3fffu   /* bit 15: items of the architecture; bit 14: the write channel */
#define ID_TRADITIONAL 1u
#define ID_DMA 2u
#define NAME_MAX_LEN 55u   /* 56 bytes with the 0 at its end */
#define DIR_ENTRY 64u
#define MAX_FILES 0x1000u
#define ZEROS_MAX 0x10000u

#define DMA_SIGNATURE 0x51454d5520434647ull /* "QEMU CFG" */
#define DMA_DESCRIPTOR 16u
enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };

struct item {
	u16 key;
	u8 *data;
	u32 len;
	char name[NAME_MAX_LEN + 1]; /* empty: by key only */
};

struct fw_cfg {
	struct device d;
	struct item *items;    /* of the keys below 0x20, in any order */
	unsigned n_items;
	struct item *files;    /* sorted by name; files[i] has key 0x20 + i */
	unsigned n_files;
	u8 *dir;               /* content of KEY_FILE_DIR */
	u32 dir_len;
	/* State. */
	u32 key, offset;
	u64 dma_addr;
};

static void put_be16(u8 *p, u16 v) { st16(p, __builtin_bswap16(v)); }
static void put_be32(u8 *p, u32 v) { st32(p, __builtin_bswap32(v)); }

/* ---- contents ----------------------------------------------------------------------- */

static const u8 *item_data(const struct fw_cfg *f, u32 key, u32 *len)
{
	*len = 0;
	if (key == KEY_FILE_DIR) {
		*len = f->dir_len;
		return f->dir;
	}
	if (key >= KEY_FILE_FIRST) {
		if (key - KEY_FILE_FIRST >= f->n_files)
			return NULL;
		*len = f->files[key - KEY_FILE_FIRST].len;
		return f->files[key - KEY_FILE_FIRST].data;
	}
	for (unsigned i = 0; i < f->n_items; i++)
		if (f->items[i].key == key) {
			*len = f->items[i].len;
			return f->items[i].data;
		}
	return NULL;
}

static bool item_fill(struct item *it, const void *data, size_t len)
{
	u8 *copy = malloc(len ? len : 1);

	if (!copy || len > UINT32_MAX) {
		free(copy);
		return false;
	}
	if (len)
		memcpy(copy, data, len);
	free(it->data);
	it->data = copy;
	it->len = (u32)len;
	return true;
}

/* Makes room for one more at index at. */
static struct item *item_insert(struct item **list, unsigned *n, unsigned at)
{
	struct item *l = realloc(*list, (*n + 1) * sizeof(*l));

	if (!l)
		return NULL;
	memmove(l + at + 1, l + at, (*n - at) * sizeof(*l));
	memset(l + at, 0, sizeof(*l));
	*list = l;
	++*n;
	return l + at;
}

static void item_remove(struct item *list, unsigned *n, unsigned at)
{
	--*n;
	memmove(list + at, list + at + 1, (*n - at) * sizeof(*list));
}

static bool dir_build(struct fw_cfg *f)
{
	u32 len = 4 + f->n_files * DIR_ENTRY;
	u8 *dir = calloc(1, len);

	if (!dir)
		return false;
	put_be32(dir, f->n_files);
	for (unsigned i = 0; i < f->n_files; i++) {
		u8 *p = dir + 4 + i * DIR_ENTRY;

		put_be32(p, f->files[i].len);
		put_be16(p + 4, (u16)(KEY_FILE_FIRST + i));
		strcpy((char *)p + 8, f->files[i].name);
	}
	free(f->dir);
	f->dir = dir;
	f->dir_len = len;
	return true;
}

bool fw_cfg_add_key(struct device *d, u16 key, const void *data, size_t len)
{
	struct fw_cfg *f = container_of(d, struct fw_cfg, d);
	struct item *it = NULL;

	if (key >= KEY_FILE_FIRST || key == KEY_FILE_DIR)
		return false;
	for (unsigned i = 0; i < f->n_items; i++)
		if (f->items[i].key == key)
			return item_fill(&f->items[i], data, len);
	if (!(it = item_insert(&f->items, &f->n_items, f->n_items)))
		return false;
	it->key = key;
	if (item_fill(it, data, len))
		return true;
	item_remove(f->items, &f->n_items, f->n_items - 1);
	return false;
}

bool fw_cfg_add_file(struct device *d, const char *name, const void *data, size_t len)
{
	struct fw_cfg *f = container_of(d, struct fw_cfg, d);
	unsigned at = 0;

	if (!*name || strlen(name) > NAME_MAX_LEN || f->n_files >= MAX_FILES)
		return false;
	while (at < f->n_files && strcmp(f->files[at].name, name) < 0)
		at++;
	bool is_new = at == f->n_files || strcmp(f->files[at].name, name);

	if (is_new) {
		struct item *it = item_insert(&f->files, &f->n_files, at);

		if (!it)
			return false;
		strcpy(it->name, name);
	}
	if (item_fill(&f->files[at], data, len) && dir_build(f))
		return true;
	if (is_new) {
		free(f->files[at].data);
		item_remove(f->files, &f->n_files, at);
	}
	return false;
}

/* ---- ports -------------------------------------------------------------------------- */

static void select_key(struct fw_cfg *f, u16 key)
{
	f->key = key & ~0x4000u;
	f->offset = 0;
}

static u8 next_byte(struct fw_cfg *f)
{
	u32 len;
	const u8 *data = item_data(f, f->key, &len);

	return f->offset < len ? data[f->offset++] : 0;
}

static u64 fw_cfg_read(void *dev, u64 off, unsigned size)
{
	struct fw_cfg *f = dev;

	return off == 1 && size == 1 ? next_byte(f) : 0;
}

static void fw_cfg_write(void *dev, u64 off, u64 val, unsigned size)
{
	if (off == 0 && size == 2)
		select_key(dev, (u16)val);
}

/* ---- DMA ---------------------------------------------------------------------------- */

/* length bytes of the selected item to guest memory. */
static bool dma_read_item(struct fw_cfg *f, u64 addr, u32 length)
{
	static const u8 zeros[PAGE_SIZE];
	u32 len;
	const u8 *data = item_data(f, f->key, &len);
	u32 have = f->offset < len ? MIN(len - f->offset, length) : 0;

	if (length - have > ZEROS_MAX)
		return false;
	if (have && !mem_write(f->d.mem, addr, data + f->offset, have))
		return false;
	f->offset += have;
	for (u64 at = have; at < length; at += PAGE_SIZE)
		if (!mem_write(f->d.mem, addr + at, zeros, MIN(length - at, (u64)PAGE_SIZE)))
			return false;
	return true;
}

static void dma_run(struct fw_cfg *f, u64 at)
{
	u8 desc[DMA_DESCRIPTOR], status[4];
	bool ok = true;

	if (!mem_read(f->d.mem, at, desc, sizeof(desc))) {
		log_guest("DMA descriptor at %#llx is not in RAM", (unsigned long long)at);
		return;
	}
	u32 control = __builtin_bswap32(ld32(desc));
	u32 length = __builtin_bswap32(ld32(desc + 4)), len;
	u64 addr = __builtin_bswap64(ld64(desc + 8));

	if (control & DMA_SELECT)
		select_key(f, (u16)(control >> 16));
	if (control & DMA_READ) {
		ok = dma_read_item(f, addr, length);
	} else if (control & DMA_WRITE) {
		ok = false; /* nothing here can be written */
	} else if (control & DMA_SKIP) {
		item_data(f, f->key, &len);
		f->offset = (u32)MIN((u64)f->offset + length, (u64)len);
	}
	put_be32(status, ok ? 0 : DMA_ERROR);
	mem_write(f->d.mem, at, status, sizeof(status));
}

static u64 dma_port_read(void *dev, u64 off, unsigned size)
{
	return __builtin_bswap64(DMA_SIGNATURE) >> off * 8;
}

static void dma_port_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct fw_cfg *f = dev;
	u32 be = __builtin_bswap32((u32)val);

	if (size != 4)
		return;
	if (off == 0) {
		f->dma_addr = (u64)be << 32;
	} else if (off == 4) {
		u64 at = f->dma_addr | be;

		f->dma_addr = 0;
		dma_run(f, at);
	}
}

/* ---- life --------------------------------------------------------------------------- */

static const struct mmio_ops fw_cfg_ops = { fw_cfg_read, fw_cfg_write, 1, 2 };
static const struct mmio_ops dma_ops = { dma_port_read, dma_port_write, 1, 4 };

static void fw_cfg_destroy(struct device *d)
{
	struct fw_cfg *f = container_of(d, struct fw_cfg, d);

	for (unsigned i = 0; i < f->n_items; i++)
		free(f->items[i].data);
	for (unsigned i = 0; i < f->n_files; i++)
		free(f->files[i].data);
	free(f->items);
	free(f->files);
	free(f->dir);
}

static bool fw_cfg_init(struct device *d, struct error *e)
{
	struct fw_cfg *f = container_of(d, struct fw_cfg, d);
	u8 id[4], ram[8];

	st32(id, ID_TRADITIONAL | ID_DMA);
	st64(ram, d->mem->ram_size);
	if (!fw_cfg_add_key(d, KEY_SIGNATURE, "QEMU", 4) || !fw_cfg_add_key(d, KEY_ID, id, sizeof(id)) ||
	    !fw_cfg_add_key(d, KEY_RAM_SIZE, ram, sizeof(ram)) || !dir_build(f)) {
		fw_cfg_destroy(d);
		return error_set(e, "no memory for its items");
	}
	return mem_add_ports(d->mem, "fw_cfg", 0x510, 2, &fw_cfg_ops, f, e) &&
	       mem_add_ports(d->mem, "fw_cfg_dma", 0x514, 8, &dma_ops, f, e);
}

static void fw_cfg_reset(struct device *d)
{
	struct fw_cfg *f = container_of(d, struct fw_cfg, d);

	f->key = f->offset = 0;
	f->dma_addr = 0;
}

/* What was added belongs to the machine's configuration, not to its state. */
static const struct state_field fw_cfg_state[] = {
	STATE(struct fw_cfg, key), STATE(struct fw_cfg, offset), STATE(struct fw_cfg, dma_addr),
	STATE_END
};

const struct device_class fw_cfg_class = {
	.name = "fw_cfg",
	.help = "firmware configuration: tables and settings for SeaBIOS and OVMF",
	.size = sizeof(struct fw_cfg),
	.init = fw_cfg_init,
	.reset = fw_cfg_reset,
	.destroy = fw_cfg_destroy,
	.state = fw_cfg_state,
};
