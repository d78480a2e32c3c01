/* IDE: what drivers and firmware do with the registers, on a disk of 64 sectors of its own pattern and
 * a CD of 16 sectors. ATA/ATAPI-6; 82371SB datasheet. */
#include "board.h"
#include "dev/ide_impl.h"

#define DISK_SECTORS 64u
#define CD_SECTORS 16u

static struct board *b;
static struct block *disk, *cd, *big; /* big: NULL but in one test */

static int setup(void **state)
{
	b = board_new(&ide_class);
	disk = board_image("disk", DISK_SECTORS * 512, false, NULL);
	cd = board_image("cd", CD_SECTORS * 2048, true, NULL);
	mem_lock(&b->mem);
	ide_attach(b->dev, 0, &(struct ata_drive_config){ disk, false, "SERIAL7" });
	ide_attach(b->dev, 2, &(struct ata_drive_config){ cd, true, NULL });
	ide_attach(b->dev, 3, &(struct ata_drive_config){ NULL, true, NULL });
	mem_unlock(&b->mem);
	return 0;
}

static int teardown(void **state)
{
	struct error e;

	assert_true(block_close(disk, &e) && block_close(cd, &e));
	board_free(b);
	return 0;
}

/* ---- access ------------------------------------------------------------------------------------- */

enum { FIRST = 0x1f0, SECOND = 0x170 };

static u8 wait_idle(u16 base)
{
	while (in8(b, base + 0x206) & ST_BSY) {
		block_poll(disk, false);
		block_poll(cd, false);
		if (big)
			block_poll(big, false);
	}
	return in8(b, base + 0x206);
}

static void command28(u16 base, u8 device, u32 lba, u8 count, u8 cmd)
{
	out8(b, base + 6, device | (lba >> 24 & 15));
	out8(b, base + 2, count);
	out8(b, base + 3, (u8)lba);
	out8(b, base + 4, (u8)(lba >> 8));
	out8(b, base + 5, (u8)(lba >> 16));
	out8(b, base + 7, cmd);
}

static void read_words(u16 base, u8 *out, size_t bytes)
{
	for (size_t k = 0; k < bytes; k += 2)
		st16(out + k, (u16)mem_port_read(&b->mem, base, 2));
}

static void write_words(u16 base, const u8 *from, size_t bytes)
{
	for (size_t k = 0; k < bytes; k += 2)
		mem_port_write(&b->mem, base, ld16(from + k), 2);
}

static void assert_pattern(const u8 *p, size_t at, size_t n)
{
	for (size_t k = 0; k < n; k++)
		assert_int_equal(p[k], (u8)((at + k) ^ (at + k) >> 9));
}

static bool irq14(void) { return b->irqs.level[14] != 0; }

/* ---- tests ---------------------------------------------------------------------------------------- */

static void signatures(void **state)
{
	static const struct { u16 base; u8 device, count, low, mid, high; } of[] = {
		{ FIRST, 0xa0, 1, 1, 0, 0 }, { SECOND, 0xa0, 1, 1, 0x14, 0xeb }, { SECOND, 0xb0, 1, 1, 0x14, 0xeb },
	};
	out8(b, 0x3f6, 4);
	out8(b, 0x3f6, 0);
	out8(b, 0x376, 4);
	out8(b, 0x376, 0);
	for (size_t k = 0; k < ARRAY_LEN(of); k++) {
		out8(b, of[k].base + 6, of[k].device);
		assert_int_equal(in8(b, of[k].base + 2), of[k].count);
		assert_int_equal(in8(b, of[k].base + 3), of[k].low);
		assert_int_equal(in8(b, of[k].base + 4), of[k].mid);
		assert_int_equal(in8(b, of[k].base + 5), of[k].high);
	}
	out8(b, FIRST + 6, 0xb0); /* nobody there */
	assert_int_equal(in8(b, FIRST + 7), 0);
}

static void identifies(void **state)
{
	u8 id[512];

	command28(FIRST, 0xe0, 0, 0, 0xec);
	assert_int_equal(wait_idle(FIRST), ST_DRDY | ST_DSC | ST_DRQ);
	assert_true(irq14());
	in8(b, FIRST + 7);
	assert_false(irq14());
	read_words(FIRST, id, sizeof(id));
	assert_int_equal(in8(b, FIRST + 7), ST_DRDY | ST_DSC);
	assert_int_equal(ld32(id + 2 * 60), DISK_SECTORS);
	assert_int_equal(ld64(id + 2 * 100), DISK_SECTORS);
	assert_memory_equal(id + 20, "ESIRLA 7", 8); /* two characters a word, swapped */
	command28(SECOND, 0xa0, 0, 0, 0xec);         /* not a disk: says what it is */
	assert_int_equal(in8(b, SECOND + 7) & ST_ERR, ST_ERR);
	assert_int_equal(in8(b, SECOND + 1), ERR_ABRT);
	assert_int_equal(in8(b, SECOND + 4), 0x14);
	command28(SECOND, 0xa0, 0, 0, 0xa1);
	read_words(SECOND, id, sizeof(id));
	assert_int_equal(ld16(id), 0x8580);
}

static void reads_and_writes_by_pio(void **state)
{
	u8 data[3 * 512], fresh[2 * 512];

	command28(FIRST, 0xe0, 5, 3, 0x20);
	for (unsigned k = 0; k < 3; k++) {
		assert_true(wait_idle(FIRST) & ST_DRQ);
		assert_true(irq14());
		in8(b, FIRST + 7);
		read_words(FIRST, data + 512 * k, 512);
	}
	assert_int_equal(in8(b, FIRST + 7), ST_DRDY | ST_DSC);
	assert_pattern(data, 5 * 512, sizeof(data));
	memset(fresh, 0x5a, sizeof(fresh));
	command28(FIRST, 0xe0, 62, 2, 0x30);
	assert_false(irq14()); /* the first block is not told */
	write_words(FIRST, fresh, 512);
	assert_true(irq14());
	in8(b, FIRST + 7);
	write_words(FIRST, fresh + 512, 512);
	assert_int_equal(wait_idle(FIRST), ST_DRDY | ST_DSC);
	command28(FIRST, 0xe0, 0, 0, 0xe7);
	assert_int_equal(wait_idle(FIRST), ST_DRDY | ST_DSC);
	assert_int_equal(block_read(disk, 62 * 512, data, sizeof(fresh)), 0);
	assert_memory_equal(data, fresh, sizeof(fresh));
}

static void reads_multiple_by_chs_and_48_bits(void **state)
{
	u8 data[2 * 512];

	command28(FIRST, 0xe0, 0, 2, 0xc6);
	command28(FIRST, 0xe0, 8, 2, 0xc4);
	assert_true(wait_idle(FIRST) & ST_DRQ);
	read_words(FIRST, data, sizeof(data)); /* one block */
	assert_int_equal(in8(b, FIRST + 7), ST_DRDY | ST_DSC);
	assert_pattern(data, 8 * 512, sizeof(data));
	out8(b, FIRST + 6, 0xa3);              /* 4 heads, */
	out8(b, FIRST + 2, 8);                 /* 8 sectors */
	out8(b, FIRST + 7, 0x91);
	command28(FIRST, 0xa2, 3 | 1 << 8, 1, 0x20); /* cylinder 1, head 2, sector 3 */
	wait_idle(FIRST);
	read_words(FIRST, data, 512);
	assert_pattern(data, (1 * 32 + 2 * 8 + 2) * 512, 512);
	out8(b, FIRST + 6, 0xe0);
	static const u8 regs[] = { 0, 1, 0, 40, 0, 0, 0, 0 }; /* high then low: count, LBA */
	for (unsigned k = 0; k < 4; k++) {
		out8(b, (u16)(FIRST + 2 + k), regs[2 * k]);
		out8(b, (u16)(FIRST + 2 + k), regs[2 * k + 1]);
	}
	out8(b, FIRST + 7, 0x24);
	wait_idle(FIRST);
	read_words(FIRST, data, 512);
	assert_pattern(data, 40 * 512, 512);
}

static void refuses_what_is_not_there(void **state)
{
	static const struct { u32 lba; u8 count, cmd, error; } bad[] = {
		{ 64, 1, 0x20, ERR_IDNF }, { 63, 2, 0x20, ERR_IDNF }, { 0x0fffffff, 1, 0x20, ERR_IDNF }, { 0, 0, 0xc8, ERR_IDNF },
		{ 0, 1, 0xfe, ERR_ABRT }, { 0, 3, 0xc6, ERR_ABRT }, { 0, 32, 0xc6, ERR_ABRT }, { 64, 1, 0x30, ERR_IDNF },
	};
	for (size_t k = 0; k < ARRAY_LEN(bad); k++) {
		command28(FIRST, 0xe0, bad[k].lba, bad[k].count, bad[k].cmd);
		assert_int_equal(wait_idle(FIRST), ST_DRDY | ST_DSC | ST_ERR);
		assert_int_equal(in8(b, FIRST + 1), bad[k].error);
	}
}

/* ---- bus master -------------------------------------------------------------------------------------- */

static u16 bus_master(void)
{
	const struct pci_function *f = b->dev->function;

	return (u16)(ld32(f->config + 0x20) & ~3u);
}

static void enable_master(void)
{
	mem_port_write(&b->mem, 0xcf8, 0x80000000 | 1 << 11 | 1 << 8 | 4, 4);
	mem_port_write(&b->mem, 0xcfc, 5, 2);
}

static void put_table(u64 at, const u32 (*entries)[2], size_t n)
{
	for (size_t k = 0; k < n; k++) {
		u8 e[8];
		st32(e, entries[k][0]);
		st32(e + 4, entries[k][1] | (k + 1 == n ? 1u << 31 : 0));
		mem_write(&b->mem, at + 8 * k, e, 8);
	}
}

static void reads_and_writes_by_dma(void **state)
{
	static const u32 to[][2] = { { 0x10000, 100 }, { 0x20000, 412 }, { 0x30002, 512 } };
	static const u32 from[][2] = { { 0x20000, 412 }, { 0x10000, 100 } };
	u8 data[1024];
	u16 bm = bus_master();

	enable_master();
	put_table(0x1000, to, ARRAY_LEN(to));
	mem_port_write(&b->mem, bm + 4, 0x1000, 4);
	out8(b, bm + 2, 6);
	command28(FIRST, 0xe0, 10, 2, 0xc8);
	assert_true(in8(b, 0x3f6) & ST_DRQ); /* waits for the bus master */
	out8(b, bm, 9);
	assert_int_equal(wait_idle(FIRST), ST_DRDY | ST_DSC);
	assert_true(irq14());
	assert_int_equal(in8(b, bm + 2) & 7, BM_INT);
	mem_read(&b->mem, 0x10000, data, 100);
	mem_read(&b->mem, 0x20000, data + 100, 412);
	mem_read(&b->mem, 0x30002, data + 512, 512);
	assert_pattern(data, 10 * 512, sizeof(data));
	out8(b, bm, 0);
	out8(b, bm + 2, 6);
	assert_int_equal(in8(b, bm + 2) & 7, 0);
	put_table(0x1000, from, ARRAY_LEN(from));
	out8(b, bm, 1);
	command28(FIRST, 0xe0, 20, 1, 0xca);
	wait_idle(FIRST);
	u8 back[512];
	assert_int_equal(block_read(disk, 20 * 512, back, 512), 0);
	assert_memory_equal(back, data + 100, 412);
	assert_memory_equal(back + 412, data, 100);
}

static void a_table_too_short_fails(void **state)
{
	static const u32 to[][2] = { { 0x10000, 256 } };
	u16 bm = bus_master();

	enable_master();
	put_table(0x1000, to, 1);
	mem_port_write(&b->mem, bm + 4, 0x1000, 4);
	command28(FIRST, 0xe0, 0, 1, 0xc8);
	out8(b, bm, 9);
	assert_true(wait_idle(FIRST) & ST_ERR);
	assert_int_equal(in8(b, bm + 2) & 3, BM_ERROR);
	out8(b, bm, 0);
	command28(FIRST, 0xe0, 0, 1, 0x20); /* and the drive goes on */
	assert_true(wait_idle(FIRST) & ST_DRQ);
}

static void trims(void **state)
{
	static const u32 from[][2] = { { 0x10000, 512 } };
	u8 ranges[512] = { 0 }, data[512];
	u16 bm = bus_master();

	enable_master();
	put_table(0x1000, from, 1);
	mem_port_write(&b->mem, bm + 4, 0x1000, 4);
	st64(ranges + 8, 10 | 2ull << 48);
	st64(ranges + 504, 30 | 1ull << 48);
	mem_write(&b->mem, 0x10000, ranges, sizeof(ranges));
	for (unsigned bad = 0; bad < 2; bad++) {
		st64(ranges + 16, bad ? 64 | 1ull << 48 : 0);
		mem_write(&b->mem, 0x10000, ranges, sizeof(ranges));
		out8(b, bm, 0);
		out8(b, bm, 1);
		out8(b, FIRST + 1, 0);
		out8(b, FIRST + 1, 1);
		out8(b, FIRST + 2, 0);
		command28(FIRST, 0xe0, 0, 1, 0x06);
		assert_int_equal(wait_idle(FIRST), ST_DRDY | ST_DSC | (bad ? ST_ERR : 0));
		assert_true(irq14());
		assert_int_equal(in8(b, bm + 2) & 3, 0);
	}
	static const unsigned zero[] = { 10, 11, 30 };
	for (unsigned k = 0; k < ARRAY_LEN(zero); k++) {
		assert_int_equal(block_read(disk, zero[k] * 512, data, 512), 0);
		for (unsigned j = 0; j < 512; j++)
			assert_int_equal(data[j], 0);
	}
	assert_int_equal(block_read(disk, 12 * 512, data, 512), 0);
	assert_pattern(data, 12 * 512, 512);
}

static void smart_and_logs(void **state)
{
	u8 page[512];

	out8(b, FIRST + 1, 0xd0);
	command28(FIRST, 0xe0, 0xc24f00, 1, 0xb0);
	assert_true(wait_idle(FIRST) & ST_DRQ);
	read_words(FIRST, page, sizeof(page));
	assert_int_equal(page[2], 187);
	command28(FIRST, 0xe0, 0, 0, 0x00);          /* both bytes of each register */
	command28(FIRST, 0xe0, 0, 1, 0x2f);          /* the directory: nothing of queues here */
	assert_true(wait_idle(FIRST) & ST_DRQ);
	read_words(FIRST, page, sizeof(page));
	assert_int_equal(ld16(page), 1);
	assert_int_equal(ld16(page + 0x20), 0);
	command28(FIRST, 0xe0, 0, 0, 0x00);
	command28(FIRST, 0xe0, 0x10, 1, 0x2f);
	assert_true(wait_idle(FIRST) & ST_ERR);
	command28(FIRST, 0xe0, 0, 1, 0x60);          /* nor queued commands */
	assert_true(wait_idle(FIRST) & ST_ERR);
}

/* ---- CD ---------------------------------------------------------------------------------------------- */

static void packet(u8 device, u16 limit, const u8 *cmd)
{
	out8(b, SECOND + 6, device);
	out8(b, SECOND + 1, 0);
	out8(b, SECOND + 4, (u8)limit);
	out8(b, SECOND + 5, (u8)(limit >> 8));
	out8(b, SECOND + 7, 0xa0);
	assert_int_equal(in8(b, SECOND + 2), REASON_CD);
	write_words(SECOND, cmd, 12);
}

static void cd_reads(void **state)
{
	static const u8 capacity[12] = { 0x25 }, read[12] = { 0x28, 0, 0, 0, 0, 3, 0, 0, 2 };
	u8 data[4096];

	packet(0xa0, 0xfffe, capacity);
	read_words(SECOND, data, 8);
	assert_memory_equal(data, "\0\0\0\17\0\0\10\0", 8);
	assert_int_equal(in8(b, SECOND + 2), REASON_IO | REASON_CD);
	packet(0xa0, 3000, read); /* in pieces of 3000 and 1096 bytes */
	assert_true(wait_idle(SECOND) & ST_DRQ);
	assert_int_equal(in8(b, SECOND + 4) | in8(b, SECOND + 5) << 8, 3000);
	read_words(SECOND, data, 3000);
	assert_int_equal(in8(b, SECOND + 4) | in8(b, SECOND + 5) << 8, 1096);
	read_words(SECOND, data + 3000, 1096);
	assert_int_equal(in8(b, SECOND + 7), ST_DRDY | ST_DSC);
	assert_pattern(data, 3 * 2048, sizeof(data));
}

static void cd_says_why_not(void **state)
{
	static const u8 read[12] = { 0x28, 0, 0, 0, 0, 15, 0, 0, 2 }, sense[12] = { 0x03, 0, 0, 0, 18 }, ready[12] = { 0 }, odd[12] = { 0xff };
	static const struct { u8 device; const u8 *cmd; u8 key, asc; } cases[] = {
		{ 0xa0, read, 5, 0x21 }, { 0xb0, ready, 2, 0x3a }, { 0xb0, read, 2, 0x3a }, { 0xa0, odd, 5, 0x20 },
	};
	u8 data[18];

	for (size_t k = 0; k < ARRAY_LEN(cases); k++) {
		packet(cases[k].device, 0xfffe, cases[k].cmd);
		assert_true(wait_idle(SECOND) & ST_ERR);
		assert_int_equal(in8(b, SECOND + 1) >> 4, cases[k].key);
		packet(cases[k].device, 0xfffe, sense);
		read_words(SECOND, data, 18);
		assert_int_equal(data[2], cases[k].key);
		assert_int_equal(data[12], cases[k].asc);
	}
}

/* ---- media ------------------------------------------------------------------------------------------- */

/* A packet that fails with that sense; or 0: that does not. */
static void sense_is(u8 device, const u8 *cmd, u8 key, u8 asc, u8 ascq)
{
	static const u8 sense[12] = { 0x03, 0, 0, 0, 18 };
	u8 data[18];

	packet(device, 0xfffe, cmd);
	assert_int_equal(!!(wait_idle(SECOND) & ST_ERR), key != 0);
	assert_int_equal(in8(b, SECOND + 1) >> 4, key);
	packet(device, 0xfffe, sense);
	read_words(SECOND, data, 18);
	assert_int_equal(data[2], key);
	assert_int_equal(data[12], asc);
	assert_int_equal(data[13], ascq);
}

/* GET EVENT STATUS: the event, and whether the tray is open (1) and a medium there (2). */
static void event_is(u8 device, u8 event, u8 state)
{
	static const u8 get[12] = { 0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8 };
	u8 data[8];

	packet(device, 0xfffe, get);
	read_words(SECOND, data, 8);
	assert_int_equal(data[4], event);
	assert_int_equal(data[5], state);
}

static const u8 ready[12] = { 0 }, eject[12] = { 0x1b, 0, 0, 0, 2 }, load[12] = { 0x1b, 0, 0, 0, 3 }, start[12] = { 0x1b, 0, 0, 0, 1 };
static const u8 lock[12] = { 0x1e, 0, 0, 0, 1 }, unlock[12] = { 0x1e };

static struct block *change(unsigned unit, struct block *blk) { return atapi_change_medium(&b->mem, ide_drive_at(b->dev, unit), blk); }

static void the_guest_opens_the_tray(void **state)
{
	event_is(0xa0, 0, 2);
	sense_is(0xa0, start, 0, 0, 0);
	sense_is(0xa0, lock, 0, 0, 0);
	sense_is(0xa0, eject, 5, 0x53, 2);
	sense_is(0xa0, ready, 0, 0, 0);
	sense_is(0xa0, unlock, 0, 0, 0);
	sense_is(0xa0, eject, 0, 0, 0);
	event_is(0xa0, 3, 1);
	event_is(0xa0, 0, 1);
	sense_is(0xa0, ready, 2, 0x3a, 2);
	round_trip(b->dev);
	sense_is(0xa0, ready, 2, 0x3a, 2);
	sense_is(0xa0, load, 0, 0, 0);
	event_is(0xa0, 2, 2);
	sense_is(0xa0, ready, 6, 0x28, 0); /* once */
	sense_is(0xa0, ready, 0, 0, 0);
	sense_is(0xb0, ready, 2, 0x3a, 0); /* the other drive was empty, and shut */
	sense_is(0xb0, eject, 0, 0, 0);
	event_is(0xb0, 0, 1);
	sense_is(0xb0, load, 0, 0, 0);
	event_is(0xb0, 0, 0);
}

static void the_host_changes_media(void **state)
{
	static const u8 capacity[12] = { 0x25 };
	struct block *other = board_image("other", 5 * 2048, true, NULL);
	struct ata_drive *d = ide_drive_at(b->dev, 2);
	struct error e;
	u8 data[8];

	sense_is(0xa0, lock, 0, 0, 0);
	assert_false(atapi_push_button(&b->mem, d));
	event_is(0xa0, 1, 2);                      /* asked to let go */
	sense_is(0xa0, unlock, 0, 0, 0);
	assert_true(atapi_push_button(&b->mem, d));
	event_is(0xa0, 0, 2);
	assert_ptr_equal(change(2, other), cd);
	event_is(0xa0, 2, 2);
	sense_is(0xa0, capacity, 6, 0x28, 0);
	packet(0xa0, 0xfffe, capacity);
	read_words(SECOND, data, 8);
	assert_memory_equal(data, "\0\0\0\4\0\0\10\0", 8);
	assert_ptr_equal(change(2, NULL), other);
	event_is(0xa0, 3, 1);
	sense_is(0xa0, capacity, 2, 0x3a, 2);
	assert_true(atapi_push_button(&b->mem, d)); /* nothing to let go of */
	assert_null(change(2, cd));
	sense_is(0xa0, capacity, 6, 0x28, 0);
	assert_null(change(3, other));
	sense_is(0xb0, ready, 6, 0x28, 0);
	sense_is(0xb0, ready, 0, 0, 0);
	assert_ptr_equal(change(3, NULL), other);
	assert_true(block_close(other, &e));
}

/* A command that is half done finds no more, and fails; the drive goes on. */
static void a_medium_that_goes_in_the_middle(void **state)
{
	enum { SECTORS = 40 }; /* more than go through the buffer at once */
	static const u8 read[12] = { 0xa8, 0, 0, 0, 0, 0, 0, 0, 0, SECTORS };
	static const u32 to[][2] = { { 0x10000, 0 }, { 0x20000, 0 } };
	static u8 data[2048];
	struct error e;
	unsigned k = 1;
	u16 bm = bus_master();

	big = board_image("big", SECTORS * 2048, true, NULL);
	change(2, big);
	sense_is(0xa0, ready, 6, 0x28, 0);
	packet(0xa0, 2048, read); /* through the port, sector by sector */
	assert_true(wait_idle(SECOND) & ST_DRQ);
	read_words(SECOND, data, 2048);
	change(2, NULL);
	for (; wait_idle(SECOND) & ST_DRQ; k++)
		read_words(SECOND, data, 2048); /* what was read before it went */
	assert_int_equal(k, IDE_BUFFER / 2048);
	assert_true(wait_idle(SECOND) & ST_ERR);
	sense_is(0xa0, ready, 2, 0x3a, 2);
	change(2, big);
	sense_is(0xa0, ready, 6, 0x28, 0);
	/* By DMA: the medium goes before the bus master starts. */
	enable_master();
	put_table(0x1000, to, 2);
	mem_port_write(&b->mem, bm + 12, 0x1000, 4);
	out8(b, SECOND + 6, 0xa0);
	out8(b, SECOND + 1, 1);
	out8(b, SECOND + 7, 0xa0);
	write_words(SECOND, read, 12);
	change(2, NULL);
	out8(b, bm + 8, 9);
	assert_true(wait_idle(SECOND) & ST_ERR);
	out8(b, bm + 8, 0);
	change(2, cd);
	sense_is(0xa0, ready, 6, 0x28, 0);
	sense_is(0xa0, ready, 0, 0, 0);
	assert_true(block_close(big, &e));
	big = NULL;
}

/* ---- reset, state ------------------------------------------------------------------------------------ */

static void a_reset_in_the_middle(void **state)
{
	u8 data[512];

	command28(FIRST, 0xe0, 0, 200, 0xc4);       /* refused: multiple is not set */
	command28(FIRST, 0xe0, 5, 3, 0x20);         /* the disk is asked */
	out8(b, 0x3f6, 4);
	out8(b, 0x3f6, 0);
	assert_int_equal(wait_idle(FIRST), ST_DRDY | ST_DSC);
	assert_int_equal(in8(b, FIRST + 2), 1);     /* the signature */
	assert_false(irq14());
	command28(FIRST, 0xe0, 7, 1, 0x20);
	wait_idle(FIRST);
	read_words(FIRST, data, 512);
	assert_pattern(data, 7 * 512, 512);
}

static void state_in_the_middle_of_a_read(void **state)
{
	static u8 saved[1 << 20];
	struct error e;
	u8 data[1024];

	command28(FIRST, 0xe0, 5, 2, 0x20);
	wait_idle(FIRST);
	read_words(FIRST, data, 512);
	size_t n = device_save(b->dev, saved, sizeof(saved));
	assert_true(n > 0);
	read_words(FIRST, data + 512, 512);
	out8(b, 0x3f6, 4);
	out8(b, 0x3f6, 0);
	mem_lock(&b->mem);
	assert_true(device_load(b->dev, saved, n, &e));
	mem_unlock(&b->mem);
	memset(data + 512, 0, 512);
	read_words(FIRST, data + 512, 512);
	assert_pattern(data, 5 * 512, sizeof(data));
	round_trip(b->dev);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(signatures), T(identifies), T(reads_and_writes_by_pio), T(reads_multiple_by_chs_and_48_bits), T(refuses_what_is_not_there),
		T(reads_and_writes_by_dma), T(a_table_too_short_fails), T(trims), T(smart_and_logs), T(cd_reads), T(cd_says_why_not), T(the_guest_opens_the_tray),
		T(the_host_changes_media), T(a_medium_that_goes_in_the_middle), T(a_reset_in_the_middle),
		T(state_in_the_middle_of_a_read),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
