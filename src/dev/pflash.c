/* NOR flash with Intel's command set, where UEFI keeps its variables: bytes wide, sectors of 4 KiB.
 * Intel StrataFlash Memory (28FxxxJ3) datasheet, "Command Definitions"; JEDEC JEP137 and JESD68 (CFI).
 *
 *   ff read array   70 read status   50 clear status   90 read identifier   98 CFI query
 *   10, 40 program a byte (the next write)   e8 program a buffer: count - 1, bytes, d0
 *   20 erase a sector, d0   60 lock bits: accepted, nothing is ever locked
 *
 * Programming clears bits, erasing sets them. Both are done at once; status says ready (80).
 * OVMF takes flash for what answers 00 to "read status" after "clear status", so clearing clears
 * the ready bit as well, as on QEMU's device.
 *
 * Invariants
 *  1. In read-array mode the bytes are mapped as ROM; a write comes here all the same. In other
 *     modes reads come here, too.
 *  2. The bytes are whoever attached them's (a file of the host's, mapped), and change only by
 *     commands.
 * Machine lock held. */
#define LOG_TOPIC "pflash"
#include "dev/dev.h"

#include <string.h>

#define SECTOR 4096u
#define BUFFER 64u
enum { SR_READY = 0x80, SR_ERASE_ERROR = 0x20, SR_PROGRAM_ERROR = 0x10 };
enum mode { READ_ARRAY, READ_STATUS, READ_ID, READ_QUERY };
enum { CMD_PROGRAM = 0x10, CMD_PROGRAM_2 = 0x40, CMD_BUFFER = 0xe8, CMD_ERASE = 0x20, CMD_LOCK = 0x60, CMD_CONFIRM = 0xd0 };

struct pflash {
	struct device d;
	u64 base, size;
	u8 *bytes;
	bool mapped;          /* something is, as mode says */
	u8 mapped_array;
	/* state */
	u8 mode, status;
	u8 command;           /* that waits for its next write; 0: none */
	u8 in_buffer, expected;/* e8: bytes that came, of how many; expected 0: the count has not come */
	u32 at[BUFFER];       /* e8: where */
	u8 buffer[BUFFER];
};

static const char name[] = "flash";
static const struct mmio_ops flash_ops;

/* ---- the map ---------------------------------------------------------------------------------- */

static void map(struct pflash *f)
{
	struct error e;
	bool array = f->mode == READ_ARRAY;

	if (!f->bytes || (f->mapped && f->mapped_array == array))
		return;
	if (f->mapped)
		mem_remove(f->d.mem, name, f->base);
	f->mapped_array = array;
	f->mapped = array ? mem_add_flash(f->d.mem, name, f->base, f->size, f->bytes, &flash_ops, f, 10, &e) :
			    mem_add_mmio(f->d.mem, name, f->base, f->size, &flash_ops, f, 10, &e);
	if (!f->mapped)
		log_error("%s", e.msg);
}

/* ---- reading ------------------------------------------------------------------------------------ */

/* JESD68, 4.2: the query structure, from 10 on. */
static u8 query(const struct pflash *f, u32 off)
{
	static const u8 table[] = {
		'Q', 'R', 'Y', 1, 0, 0x31, 0, 0, 0, 0, 0,           /* Intel's command set; its table at 31 */
		0x45, 0x55, 0, 0, 7, 7, 10, 0, 4, 4, 4, 0,          /* 1b: volts; times */
		0, 0, 0, 6, 0, 1, 0, 0, 0x10, 0,                    /* 27: size; 8 bits; buffer; one region of sectors */
	};
	u32 sectors = (u32)(f->size / SECTOR) - 1;

	if (off == 0x27)
		return (u8)(63 - __builtin_clzll(f->size));
	if (off == 0x2d || off == 0x2e)
		return (u8)(sectors >> 8 * (off - 0x2d));
	return off >= 0x10 && off - 0x10 < sizeof(table) ? table[off - 0x10] : 0;
}

static u64 flash_read(void *dev, u64 off, unsigned size)
{
	const struct pflash *f = dev;

	switch (f->mode) {
	case READ_STATUS: return f->status;
	case READ_ID: return (off & 0xff) == 0 ? 0x89 : (off & 0xff) == 1 ? 0x18 : 0;
	case READ_QUERY: return query(f, (u32)off & 0xff);
	default: return f->bytes[off];
	}
}

/* ---- commands ------------------------------------------------------------------------------------- */

static void finish(struct pflash *f, u8 error)
{
	f->status |= SR_READY | error;
	f->command = f->in_buffer = f->expected = 0;
	f->mode = READ_STATUS;
}

static void begin(struct pflash *f, u8 val)
{
	switch (val) {
	case 0x70: f->mode = READ_STATUS; break;
	case 0x90: f->mode = READ_ID; break;
	case 0x98: f->mode = READ_QUERY; break;
	case 0x50: f->status = 0; f->mode = READ_ARRAY; break;
	case CMD_PROGRAM: case CMD_PROGRAM_2: case CMD_ERASE: case CMD_LOCK: case CMD_BUFFER:
		f->command = val;
		f->status |= SR_READY; /* e8: the buffer is free */
		f->mode = READ_STATUS;
		break;
	default: f->mode = READ_ARRAY; break;
	}
}

static void buffer_write(struct pflash *f, u32 off, u8 val)
{
	if (!f->expected) {
		if (val >= BUFFER)
			finish(f, SR_PROGRAM_ERROR | SR_ERASE_ERROR);
		else
			f->expected = (u8)(val + 1);
	} else if (f->in_buffer < f->expected) {
		f->at[f->in_buffer] = off;
		f->buffer[f->in_buffer++] = val;
	} else {
		for (unsigned k = 0; k < f->in_buffer && val == CMD_CONFIRM; k++)
			f->bytes[f->at[k]] &= f->buffer[k];
		finish(f, val == CMD_CONFIRM ? 0 : SR_PROGRAM_ERROR | SR_ERASE_ERROR);
	}
}

static void flash_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct pflash *f = dev;

	switch (f->command) {
	case 0: begin(f, (u8)val); break;
	case CMD_PROGRAM: case CMD_PROGRAM_2:
		f->bytes[off] &= (u8)val;
		finish(f, 0);
		break;
	case CMD_ERASE:
		if (val == CMD_CONFIRM)
			memset(f->bytes + (off & ~(u64)(SECTOR - 1)), 0xff, SECTOR);
		finish(f, val == CMD_CONFIRM ? 0 : SR_PROGRAM_ERROR | SR_ERASE_ERROR);
		break;
	case CMD_BUFFER: buffer_write(f, (u32)off, (u8)val); break;
	default: finish(f, 0); break;
	}
	map(f);
}

static const struct mmio_ops flash_ops = { flash_read, flash_write, 1, 1 };

void pflash_attach(struct device *d, u64 base, u8 *bytes, u64 size)
{
	struct pflash *f = container_of(d, struct pflash, d);

	f->base = base;
	f->bytes = bytes;
	f->size = size;
	map(f);
}

/* ---- life --------------------------------------------------------------------------------------------- */

static void pflash_reset(struct device *d)
{
	struct pflash *f = container_of(d, struct pflash, d);

	f->mode = READ_ARRAY;
	f->status = f->command = f->in_buffer = f->expected = 0;
	map(f);
}

static void pflash_destroy(struct device *d)
{
	struct pflash *f = container_of(d, struct pflash, d);

	if (f->mapped)
		mem_remove(d->mem, name, f->base);
}

static void pflash_loaded(struct device *d)
{
	struct pflash *f = container_of(d, struct pflash, d);

	f->mode &= 3;
	f->expected = (u8)MIN(f->expected, BUFFER);
	f->in_buffer = MIN(f->in_buffer, f->expected);
	for (unsigned k = 0; k < BUFFER; k++)
		f->at[k] = f->size ? (u32)(f->at[k] % f->size) : 0;
	map(f);
}

static const struct state_field pflash_state[] = {
	STATE(struct pflash, mode), STATE(struct pflash, status), STATE(struct pflash, command),
	STATE(struct pflash, in_buffer), STATE(struct pflash, expected), STATE(struct pflash, at), STATE(struct pflash, buffer),
	STATE_END
};

const struct device_class pflash_class = {
	.name = "pflash",
	.help = "NOR flash with Intel's commands, for UEFI's variables",
	.size = sizeof(struct pflash),
	.reset = pflash_reset,
	.destroy = pflash_destroy,
	.loaded = pflash_loaded,
	.state = pflash_state,
};
