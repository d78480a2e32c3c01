/* NVMe: what drivers do with the registers and queues, on a disk of 4096 sectors of its own pattern. NVM Express 1.4. */
#include <errno.h>

#include "board.h"
#include "dev/nvme_impl.h"

#define DISK_SECTORS 4096u
#define ENTRIES 8u
/* In guest memory. */
#define SQ(q) (0x100000ull + 0x2000 * (q))
#define CQ(q) (SQ(q) + 0x1000)
#define LIST 0x180000ull
#define DATA 0x200000ull

static struct board *b;
static struct block *disk;
static u64 bar;
static struct driver_queue { u16 tail, head; u8 phase; } queues[4];
static enum file_what fails;
static bool failing;
static int syncs;

static int host_begins(void *arg, enum file_what what, u64 offset, u64 len, const struct iovec *iov, int n_iov, u64 *id)
{
	syncs += what == FILE_SYNC;
	return failing && what == fails ? EIO : 0;
}

static void host_ends(void *arg, enum file_what what, u64 id, int error) { }

static const struct file_hooks hooks = { host_begins, host_ends, NULL };

/* ---- access ------------------------------------------------------------------------------------- */

enum { CAP = 0, VS = 8, INTMS = 0xc, INTMC = 0x10, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30 };
enum { RDY = 1, CFS = 2, SHUT_DOWN = 8 };
#define CC_ON 0x460001u

static u32 reg(u64 off) { return (u32)mem_phys_read(&b->mem, bar + off, 4); }
static void set_reg(u64 off, u32 val) { mem_phys_write(&b->mem, bar + off, val, 4); }

static void wait_done(void)
{
	while (block_poll(disk, true))
		;
}

static void enable(void)
{
	for (unsigned k = 0; k < ARRAY_LEN(queues); k++)
		queues[k] = (struct driver_queue){ .phase = 1 };
	u8 none[0x1000] = { 0 };
	for (unsigned k = 0; k < ARRAY_LEN(queues); k++)
		mem_write(&b->mem, CQ(k), none, sizeof(none));
	set_reg(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
	set_reg(ASQ, (u32)SQ(0));
	set_reg(ACQ, (u32)CQ(0));
	set_reg(CC, CC_ON);
	assert_int_equal(reg(CSTS), RDY);
}

static int setup(void **state)
{
	failing = false;
	syncs = 0;
	b = board_new(&nvme_class);
	disk = board_image("disk", DISK_SECTORS * 512, false, &hooks);
	mem_lock(&b->mem);
	nvme_attach(b->dev, disk, "SERIAL7");
	mem_unlock(&b->mem);
	bar = ld32(b->dev->function->config + 0x10) & ~0xfffu;
	mem_port_write(&b->mem, 0xcf8, 0x80000004 | (u32)b->dev->function->dev << 11, 4);
	mem_port_write(&b->mem, 0xcfc, PCI_CMD_MEM | PCI_CMD_MASTER, 2);
	enable();
	return 0;
}

static int teardown(void **state)
{
	struct error e;

	failing = false;
	(void)block_close(disk, &e); /* it may have failed on purpose */
	board_free(b);
	return 0;
}

struct cmd { u8 op; u32 ns; u64 prp1, prp2; u32 dw10, dw11, dw12; };

static void put(unsigned q, struct cmd c, u16 id)
{
	u8 raw[64] = { c.op };

	st16(raw + 2, id);
	st32(raw + 4, c.ns);
	st64(raw + 24, c.prp1);
	st64(raw + 32, c.prp2);
	st32(raw + 40, c.dw10);
	st32(raw + 44, c.dw11);
	st32(raw + 48, c.dw12);
	mem_write(&b->mem, SQ(q) + 64 * queues[q].tail, raw, 64);
	queues[q].tail = (u16)((queues[q].tail + 1) % ENTRIES);
}

static void ring(unsigned q) { set_reg(0x1000 + 8 * q, queues[q].tail); }

/* The next completion, if it is there: its identifier, *status and *result; else -1. */
static int completion(unsigned q, u16 *status, u32 *result)
{
	struct driver_queue *d = &queues[q];
	u8 raw[16];

	mem_read(&b->mem, CQ(q) + 16 * d->head, raw, 16);
	if ((raw[14] & 1) != d->phase)
		return -1;
	if (++d->head == ENTRIES) {
		d->head = 0;
		d->phase ^= 1;
	}
	*status = ld16(raw + 14) >> 1;
	*result = ld32(raw);
	return ld16(raw + 12);
}

static void take(unsigned q) { set_reg(0x1004 + 8 * q, queues[q].head); }

/* One command from begin to end: its status. */
static u16 last_status;
static u32 last_result;
static u16 run(unsigned q, struct cmd c)
{
	static u16 id;

	put(q, c, ++id);
	ring(q);
	wait_done();
	assert_int_equal(completion(q, &last_status, &last_result), id);
	take(q);
	return last_status;
}

static void create_queues(unsigned q, unsigned entries)
{
	assert_int_equal(run(0, (struct cmd){ 5, .prp1 = CQ(q), .dw10 = q | (entries - 1) << 16, .dw11 = 3 }), NVME_OK);
	assert_int_equal(run(0, (struct cmd){ 1, .prp1 = SQ(q), .dw10 = q | (entries - 1) << 16, .dw11 = 1 | q << 16 }), NVME_OK);
}

static u16 move(bool write, u64 lba, unsigned sectors, u64 prp1, u64 prp2)
{
	return run(1, (struct cmd){ write ? 1 : 2, 1, prp1, prp2, (u32)lba, (u32)(lba >> 32), sectors - 1 });
}

static void assert_pattern(u64 gpa, size_t at, size_t n)
{
	for (size_t k = 0; k < n; k++)
		assert_int_equal((u8)mem_phys_read(&b->mem, gpa + k, 1), (u8)((at + k) ^ (at + k) >> 9));
}

static void fill(u64 gpa, u8 with, size_t n)
{
	u8 bytes[4096];

	memset(bytes, with, sizeof(bytes));
	for (size_t k = 0; k < n; k += sizeof(bytes))
		mem_write(&b->mem, gpa + k, bytes, MIN(n - k, sizeof(bytes)));
}

static void assert_disk(u64 sector, u8 with)
{
	u8 data[512];

	assert_int_equal(block_read(disk, sector * 512, data, 512), 0);
	for (unsigned k = 0; k < 512; k++)
		assert_int_equal(data[k], with);
}

/* ---- the controller -------------------------------------------------------------------------------- */

static void registers(void **state)
{
	assert_int_equal(ld32(b->dev->function->config + 8) >> 8, 0x010802);
	assert_int_equal(reg(CAP) & 0xffff, 1023);
	assert_int_equal(reg(CAP + 4), 1 << 5);
	assert_int_equal(reg(VS), 0x10400);
	set_reg(CC, 0);
	assert_int_equal(reg(CSTS), 0);
	static const u32 wrong[] = { CC_ON | 1 << 7, CC_ON | 6 << 4, CC_ON | 1 << 11 };
	for (unsigned k = 0; k < ARRAY_LEN(wrong); k++) {
		set_reg(CC, wrong[k]);
		assert_int_equal(reg(CSTS), CFS);
		set_reg(CC, 0);
		assert_int_equal(reg(CSTS), 0);
	}
	set_reg(AQA, 0);
	set_reg(CC, CC_ON);
	assert_int_equal(reg(CSTS), CFS);
	set_reg(CC, 0);
	enable();
	set_reg(CC, CC_ON | 1 << 14);
	assert_int_equal(reg(CSTS), RDY | SHUT_DOWN);
	set_reg(INTMS, 5);
	set_reg(INTMC, 1);
	assert_int_equal(reg(INTMS), 4);
}

static void identifies(void **state)
{
	u8 page[4096];

	assert_int_equal(run(0, (struct cmd){ 6, .prp1 = DATA, .dw10 = 1 }), NVME_OK);
	mem_read(&b->mem, DATA, page, sizeof(page));
	assert_memory_equal(page + 4, "SERIAL7             ", 20);
	assert_int_equal(page[77], NVME_MDTS);
	assert_int_equal(ld32(page + 80), 0x10400);
	assert_int_equal(ld32(page + 516), 1);
	assert_int_equal(run(0, (struct cmd){ 6, 1, DATA + 0x800, DATA + 0x2000, 0 }), NVME_OK); /* over two pages */
	mem_read(&b->mem, DATA + 0x800, page, 0x800);
	assert_int_equal(ld64(page), DISK_SECTORS);
	assert_int_equal(page[130], 9);
	assert_int_equal(run(0, (struct cmd){ 6, 0, DATA, .dw10 = 2 }), NVME_OK);
	assert_int_equal(mem_phys_read(&b->mem, DATA, 8), 1);
	assert_int_equal(run(0, (struct cmd){ 6, 1, DATA, .dw10 = 3 }), NVME_OK);
	assert_int_equal(mem_phys_read(&b->mem, DATA, 2), 0x1003);
	assert_int_equal(run(0, (struct cmd){ 6, 2, DATA, .dw10 = 0 }), NVME_BAD_NAMESPACE);
	assert_int_equal(run(0, (struct cmd){ 6, 1, DATA, .dw10 = 0x77 }), NVME_BAD_FIELD);
	assert_int_equal(run(0, (struct cmd){ 0x7f }), NVME_BAD_OPCODE);
}

static void makes_and_deletes_queues(void **state)
{
	static const struct { struct cmd c; u16 status; } wrong[] = {
		{ { 5, .prp1 = CQ(1), .dw10 = 0 | 7 << 16, .dw11 = 3 }, NVME_BAD_QUEUE },
		{ { 5, .prp1 = CQ(1), .dw10 = NVME_QUEUES | 7 << 16, .dw11 = 3 }, NVME_BAD_QUEUE },
		{ { 5, .prp1 = CQ(1), .dw10 = 2, .dw11 = 3 }, NVME_BAD_SIZE },
		{ { 5, .prp1 = CQ(1), .dw10 = 2 | 1024u << 16, .dw11 = 3 }, NVME_BAD_SIZE },
		{ { 5, .prp1 = CQ(1) + 8, .dw10 = 2 | 7 << 16, .dw11 = 3 }, NVME_BAD_PRP },
		{ { 5, .prp1 = CQ(1), .dw10 = 2 | 7 << 16, .dw11 = 2 }, NVME_BAD_FIELD },
		{ { 5, .prp1 = CQ(1), .dw10 = 2 | 7 << 16, .dw11 = 3 | 64u << 16 }, NVME_BAD_VECTOR },
		{ { 5, .prp1 = CQ(1), .dw10 = 1 | 7 << 16, .dw11 = 3 }, NVME_BAD_QUEUE }, /* is there */
		{ { 1, .prp1 = SQ(1), .dw10 = 2 | 7 << 16, .dw11 = 1 | 3 << 16 }, NVME_BAD_CQ },
		{ { 1, .prp1 = SQ(1), .dw10 = 2 | 7 << 16, .dw11 = 1 }, NVME_BAD_QUEUE },
		{ { 4, .dw10 = 1 }, NVME_BAD_DELETION },                                   /* has submissions */
		{ { 4, .dw10 = 3 }, NVME_BAD_QUEUE }, { { 0, .dw10 = 3 }, NVME_BAD_QUEUE }, { { 0 }, NVME_BAD_QUEUE }, { { 4 }, NVME_BAD_QUEUE },
	};

	create_queues(1, ENTRIES);
	for (unsigned k = 0; k < ARRAY_LEN(wrong); k++)
		assert_int_equal(run(0, wrong[k].c), wrong[k].status);
	assert_int_equal(move(false, 0, 1, DATA, 0), NVME_OK);
	/* With a command under way: that one first. */
	put(1, (struct cmd){ 2, 1, DATA, .dw10 = 5 }, 77);
	ring(1);
	put(0, (struct cmd){ 0, .dw10 = 1 }, 78);
	ring(0);
	u16 status;
	u32 result;
	assert_int_equal(completion(0, &status, &result), -1);
	wait_done();
	assert_int_equal(completion(1, &status, &result), 77);
	assert_int_equal(completion(0, &status, &result), 78);
	assert_int_equal(status, NVME_OK);
	take(0);
	assert_int_equal(run(0, (struct cmd){ 4, .dw10 = 1 }), NVME_OK);
}

static void features_and_logs(void **state)
{
	assert_int_equal(run(0, (struct cmd){ 9, .dw10 = 7, .dw11 = 3 | 3 << 16 }), NVME_OK);
	assert_int_equal(last_result, (NVME_QUEUES - 2) << 16 | (NVME_QUEUES - 2));
	assert_int_equal(run(0, (struct cmd){ 10, .dw10 = 6 }), NVME_OK);
	assert_int_equal(last_result, 1);
	assert_int_equal(run(0, (struct cmd){ 9, .dw10 = 6, .dw11 = 0 }), NVME_OK);
	run(0, (struct cmd){ 10, .dw10 = 6 });
	assert_int_equal(last_result, 0);
	run(0, (struct cmd){ 10, .dw10 = 6 | 1 << 8 });
	assert_int_equal(last_result, 1);
	assert_int_equal(run(0, (struct cmd){ 9, .dw10 = 6 | 1u << 31 }), NVME_NOT_SAVEABLE);
	assert_int_equal(run(0, (struct cmd){ 9, .dw10 = 0x55 }), NVME_BAD_FIELD);
	create_queues(1, ENTRIES);
	assert_int_equal(move(true, 0, 1, DATA, 0), NVME_OK);
	assert_int_equal(syncs, 1); /* no write cache */
	assert_int_equal(move(false, DISK_SECTORS, 1, DATA, 0), NVME_OUT_OF_RANGE);
	assert_int_equal(run(0, (struct cmd){ 2, .prp1 = DATA, .dw10 = 2 | 127 << 16 }), NVME_OK);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 48, 8), 1);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 80, 8), 1);
	assert_int_equal(run(0, (struct cmd){ 2, .prp1 = DATA, .dw10 = 1 | 15 << 16 }), NVME_OK);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 16, 8), DISK_SECTORS);
	assert_int_equal(run(0, (struct cmd){ 2, .prp1 = DATA, .dw10 = 0x33 | 15 << 16 }), NVME_BAD_LOG);
}

static void events_wait(void **state)
{
	u16 status;
	u32 result;

	for (u16 k = 0; k <= NVME_AERS; k++)
		put(0, (struct cmd){ 12 }, (u16)(100 + k));
	ring(0);
	assert_int_equal(completion(0, &status, &result), 100 + NVME_AERS); /* one too many */
	assert_int_equal(status, NVME_TOO_MANY_AERS);
	take(0);
	assert_int_equal(run(0, (struct cmd){ 8 }), NVME_OK);
	assert_int_equal(last_result, 1);
}

/* ---- the namespace ----------------------------------------------------------------------------------- */

static void reads_and_writes(void **state)
{
	u8 list[4096];

	create_queues(1, ENTRIES);
	assert_int_equal(move(false, 5, 3, DATA + 0x204, 0), NVME_OK);
	assert_pattern(DATA + 0x204, 5 * 512, 3 * 512);
	assert_int_equal(move(false, 7, 9, DATA + 0xe00, DATA + 0x5000), NVME_OK); /* two pages */
	assert_pattern(DATA + 0xe00, 7 * 512, 512);
	assert_pattern(DATA + 0x5000, 8 * 512, 8 * 512);
	/* The most, from an offset on, by a list whose last entry is another list. */
	for (unsigned k = 0; k < 512; k++)
		st64(list + 8 * k, DATA + 0x1000 * (1 + (k ^ 1)));
	mem_write(&b->mem, LIST + 0x1000, list, 4096);
	u64 more[2] = { DATA + 0x1000 * 300, LIST + 0x1000 };
	mem_write(&b->mem, LIST + 0xff0, more, 16);
	assert_int_equal(move(false, 100, 2048, DATA + 0x200, LIST + 0xff0), NVME_OK);
	assert_pattern(DATA + 0x200, 100 * 512, 4096 - 0x200);
	assert_pattern(DATA + 0x1000 * 300, 100 * 512 + 4096 - 0x200, 4096);
	for (unsigned k = 0; k < 254; k++)
		assert_pattern(DATA + 0x1000 * (1 + (k ^ 1)), 100 * 512 + 2 * 4096 - 0x200 + 4096 * k, 4096);
	assert_pattern(DATA + 0x1000 * (1 + (254 ^ 1)), 100 * 512 + 2 * 4096 - 0x200 + 4096 * 254, 0x200);
	fill(DATA, 0x77, 4096);
	assert_int_equal(move(true, DISK_SECTORS - 8, 8, DATA, 0), NVME_OK);
	assert_disk(DISK_SECTORS - 8, 0x77);
	assert_disk(DISK_SECTORS - 1, 0x77);
	assert_int_equal(syncs, 0);
	assert_int_equal(run(1, (struct cmd){ 0, 1 }), NVME_OK);
	assert_int_equal(syncs, 1);
	assert_int_equal(run(1, (struct cmd){ 0, 0xffffffff }), NVME_OK);
	assert_int_equal(run(1, (struct cmd){ 1, 1, DATA, .dw12 = 1u << 30 }), NVME_OK); /* FUA */
	assert_int_equal(syncs, 3);
}

static void zeroes_and_discards(void **state)
{
	u8 ranges[48] = { 0 };

	create_queues(1, ENTRIES);
	assert_int_equal(run(1, (struct cmd){ 8, 1, .dw10 = 20, .dw12 = 3 }), NVME_OK);
	assert_disk(20, 0);
	assert_disk(23, 0);
	st32(ranges + 4, 2);
	st64(ranges + 8, 30);
	st32(ranges + 36, 1);
	st64(ranges + 40, 40);
	mem_write(&b->mem, DATA, ranges, sizeof(ranges));
	assert_int_equal(run(1, (struct cmd){ 9, 1, DATA, .dw10 = 2, .dw11 = 4 }), NVME_OK);
	assert_disk(31, 0);
	assert_disk(40, 0);
	assert_int_equal(move(false, 24, 6, DATA, 0), NVME_OK);
	assert_pattern(DATA, 24 * 512, 6 * 512);
	assert_int_equal(move(false, 32, 8, DATA, 0), NVME_OK);
	assert_pattern(DATA, 32 * 512, 8 * 512);
	st64(ranges + 8, 50);
	st64(ranges + 40, DISK_SECTORS); /* one is not there: none is discarded */
	mem_write(&b->mem, DATA, ranges, sizeof(ranges));
	assert_int_equal(run(1, (struct cmd){ 9, 1, DATA, .dw10 = 2, .dw11 = 4 }), NVME_OUT_OF_RANGE);
	assert_int_equal(move(false, 50, 2, DATA, 0), NVME_OK);
	assert_pattern(DATA, 50 * 512, 1024);
}

static void refuses_what_is_not_there(void **state)
{
	u64 holes[3] = { DATA, DATA + 8, 0xf0000000 };

	create_queues(1, ENTRIES);
	mem_write(&b->mem, LIST, holes, sizeof(holes));
	const struct { struct cmd c; u16 status; } wrong[] = {
		{ { 2, 1, DATA, .dw10 = DISK_SECTORS - 1, .dw12 = 1 }, NVME_OUT_OF_RANGE },
		{ { 1, 1, DATA, .dw10 = ~0u, .dw11 = ~0u }, NVME_OUT_OF_RANGE },
		{ { 2, 2, DATA }, NVME_BAD_NAMESPACE }, { { 2, 0, DATA }, NVME_BAD_NAMESPACE }, { { 2, ~0u, DATA }, NVME_BAD_NAMESPACE },
		{ { 0x55, 1 }, NVME_BAD_OPCODE },
		{ { 2, 1, DATA, .dw12 = 2048 }, NVME_BAD_FIELD },
		{ { 2, 1, DATA + 2 }, NVME_BAD_PRP },
		{ { 2, 1, DATA + 0x1000, DATA + 8, .dw12 = 15 }, NVME_BAD_PRP },
		{ { 2, 1, DATA + 0x1000, LIST + 4, .dw12 = 31 }, NVME_BAD_PRP },
		{ { 2, 1, DATA + 0x1000, LIST, .dw12 = 31 }, NVME_BAD_PRP },
		{ { 2, 1, DATA + 0x1000, LIST + 16, .dw12 = 17 }, NVME_TRANSFER_ERROR },
		{ { 2, 1, 0xf0000000 }, NVME_TRANSFER_ERROR },
		{ { 2, 1, DATA, 0xf0000000, .dw12 = 31 }, NVME_TRANSFER_ERROR },
	};
	for (unsigned k = 0; k < ARRAY_LEN(wrong); k++)
		assert_int_equal(run(1, wrong[k].c), wrong[k].status);
	set_reg(0x1008, ENTRIES); /* doorbells behind the end, and of no queue */
	set_reg(0x100c, ENTRIES);
	set_reg(0x1018, 1);
	assert_int_equal(move(false, 0, 1, DATA, 0), NVME_OK);
}

static void host_errors(void **state)
{
	create_queues(1, ENTRIES);
	failing = true;
	fails = FILE_READ;
	assert_int_equal(move(false, 0, 1, DATA, 0), NVME_READ_ERROR);
	fails = FILE_WRITE;
	assert_int_equal(move(true, 0, 1, DATA, 0), NVME_WRITE_FAULT);
	assert_int_equal(run(1, (struct cmd){ 0, 1 }), NVME_OK);
	fails = FILE_SYNC;
	assert_int_equal(run(1, (struct cmd){ 0, 1 }), NVME_INTERNAL);
	failing = false;
	run(0, (struct cmd){ 2, .prp1 = DATA, .dw10 = 2 | 127 << 16 });
	assert_int_equal(mem_phys_read(&b->mem, DATA + 160, 8), 3);
}

/* A kernel that is loaded where another one's code was. */
static void code_that_is_read_over(void **state)
{
	struct page_code *p = mem_page(&b->mem, DATA).code;
	u32 gen;

	mem_code_mark(p, 0x100, 4);
	gen = p->gen;
	create_queues(1, ENTRIES);
	assert_int_equal(move(false, 0, 1, DATA, 0), NVME_OK);
	assert_int_not_equal(p->gen, gen);
}

/* ---- queues --------------------------------------------------------------------------------------------- */

/* The submissions' queue is longer than the completions': what has no room for its completion is not fetched. */
static void completions_that_are_not_taken(void **state)
{
	assert_int_equal(run(0, (struct cmd){ 5, .prp1 = CQ(1), .dw10 = 1 | 2 << 16, .dw11 = 3 }), NVME_OK);
	assert_int_equal(run(0, (struct cmd){ 1, .prp1 = SQ(1), .dw10 = 1 | (ENTRIES - 1) << 16, .dw11 = 1 | 1 << 16 }), NVME_OK);
	for (u16 k = 0; k < 7; k++)
		put(1, (struct cmd){ 2, 1, DATA + 0x1000 * k, .dw10 = k }, k);
	ring(1);
	wait_done();
	u8 phase = 1, head = 0, seen = 0;
	for (unsigned round = 0; seen != 0x7f && round < 8; round++) {
		unsigned n = 0;
		for (;; n++) {
			u8 raw[16];
			mem_read(&b->mem, CQ(1) + 16 * head, raw, 16);
			if ((raw[14] & 1) != phase)
				break;
			assert_int_equal(ld16(raw + 14) >> 1, NVME_OK);
			seen |= (u8)(1 << ld16(raw + 12));
			head = (u8)((head + 1) % 3);
			phase ^= !head;
		}
		assert_in_range(n, 1, 2);
		set_reg(0x100c, head);
		wait_done();
	}
	assert_int_equal(seen, 0x7f);
	for (u16 k = 0; k < 7; k++)
		assert_pattern(DATA + 0x1000 * k, k * 512, 512);
}

static void interrupts(void **state)
{
	struct pci_function *f = (struct pci_function *)b->dev->function;
	u16 status;
	u32 result;

	put(0, (struct cmd){ 8 }, 1);
	assert_int_equal(f->intx, 0);
	ring(0);
	assert_int_equal(f->intx, 1);
	set_reg(INTMS, 1);
	assert_int_equal(f->intx, 0);
	set_reg(INTMC, 1);
	assert_int_equal(f->intx, 1);
	assert_int_equal(completion(0, &status, &result), 1);
	take(0);
	assert_int_equal(f->intx, 0);
	/* By MSI-X, seen in the pending bits of a masked function. */
	mem_port_write(&b->mem, 0xcf8, 0x80000000 | (u32)f->dev << 11 | f->msix_cap, 4);
	mem_port_write(&b->mem, 0xcfe, 0xc000, 2);
	assert_int_equal(run(0, (struct cmd){ 5, .prp1 = CQ(2), .dw10 = 2 | (ENTRIES - 1) << 16, .dw11 = 3 | 5 << 16 }), NVME_OK);
	assert_int_equal(run(0, (struct cmd){ 1, .prp1 = SQ(2), .dw10 = 2 | (ENTRIES - 1) << 16, .dw11 = 1 | 2 << 16 }), NVME_OK);
	assert_int_equal(f->msix_pending, 1);
	put(2, (struct cmd){ 2, 1, DATA }, 9);
	ring(2);
	wait_done();
	assert_int_equal(f->msix_pending, 1 | 1 << 5);
	assert_int_equal(f->intx, 0);
}

static void waits_for_bus_master(void **state)
{
	u16 status;
	u32 result;

	mem_port_write(&b->mem, 0xcfc, PCI_CMD_MEM, 2);
	put(0, (struct cmd){ 8 }, 3);
	ring(0);
	assert_int_equal(completion(0, &status, &result), -1);
	mem_port_write(&b->mem, 0xcfc, PCI_CMD_MEM | PCI_CMD_MASTER, 2);
	assert_int_equal(completion(0, &status, &result), 3);
}

static void a_reset_in_the_middle(void **state)
{
	u16 status;
	u32 result;

	create_queues(1, ENTRIES);
	put(1, (struct cmd){ 2, 1, DATA }, 5);
	ring(1);
	put(0, (struct cmd){ 0, .dw10 = 1 }, 6); /* a deletion that waits */
	ring(0);
	set_reg(CC, CC_ON & ~1u);
	assert_int_equal(reg(CSTS), RDY); /* the host's disk writes to memory still */
	wait_done();
	assert_int_equal(reg(CSTS), 0);
	assert_int_equal(completion(1, &status, &result), -1);
	enable();
	create_queues(1, ENTRIES);
	assert_int_equal(move(false, 3, 1, DATA, 0), NVME_OK);
	assert_pattern(DATA, 3 * 512, 512);
}

static void state_goes_round(void **state)
{
	static u8 saved[1 << 20];
	struct error e;

	create_queues(1, ENTRIES);
	run(0, (struct cmd){ 9, .dw10 = 6, .dw11 = 0 });
	move(false, 0, 1, DATA, 0);
	size_t n = device_save(b->dev, saved, sizeof(saved));
	assert_true(n > 0);
	mem_lock(&b->mem);
	b->dev->cls->reset(b->dev);
	assert_true(device_load(b->dev, saved, n, &e));
	mem_unlock(&b->mem);
	assert_int_equal(reg(CSTS), RDY);
	assert_int_equal(move(false, 9, 1, DATA, 0), NVME_OK);
	assert_pattern(DATA, 9 * 512, 512);
	run(0, (struct cmd){ 10, .dw10 = 6 });
	assert_int_equal(last_result, 0);
	round_trip(b->dev);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(registers), T(identifies), T(makes_and_deletes_queues), T(features_and_logs), T(events_wait), T(reads_and_writes),
		T(zeroes_and_discards), T(refuses_what_is_not_there), T(host_errors), T(code_that_is_read_over), T(completions_that_are_not_taken), T(interrupts),
		T(waits_for_bus_master), T(a_reset_in_the_middle), T(state_goes_round),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
