/* AHCI: what drivers and firmware do with the registers, on a disk of 64 sectors of its own pattern (port 0) and
 * a CD of 16 sectors (port 1). AHCI 1.3.1; ACS-3. */
#include <errno.h>

#include "board.h"
#include "dev/ahci_impl.h"

#define DISK_SECTORS 64u
#define CD_SECTORS 16u
/* In guest memory: per port a list, receive area and a table for each slot. */
#define LIST(port) (0x100000ull + 0x10000 * (port))
#define FIS(port) (LIST(port) + 0x400)
#define TABLE(port, slot) (LIST(port) + 0x1000 + 0x200ull * (slot))
#define DATA 0x200000ull

static struct board *b;
static struct block *disk, *cd;
static u64 bar;
static enum file_what fails;   /* file operations that fail, where failing is set */
static bool failing;
static u64 failing_at;
static int syncs, punches;

static int host_begins(void *arg, enum file_what what, u64 offset, u64 len, const struct iovec *iov, int n_iov, u64 *id)
{
	syncs += what == FILE_SYNC;
	punches += what == FILE_PUNCH;
	return failing && what == fails && (what == FILE_SYNC || (offset <= failing_at && failing_at < offset + len)) ? EIO : 0;
}

static void host_ends(void *arg, enum file_what what, u64 id, int error) { }

static const struct file_hooks hooks = { host_begins, host_ends, NULL };

/* ---- access ------------------------------------------------------------------------------------- */

enum { CAP = 0, GHC = 4, IS = 8, PI = 12, VS = 16 };
enum { CLB = 0, FB = 8, PIS = 0x10, PIE = 0x14, CMD = 0x18, TFD = 0x20, SIG = 0x24, SSTS = 0x28, SCTL = 0x2c, SERR = 0x30, SACT = 0x34, CI = 0x38 };

static u32 hba(u64 reg) { return (u32)mem_phys_read(&b->mem, bar + reg, 4); }
static void set_hba(u64 reg, u32 val) { mem_phys_write(&b->mem, bar + reg, val, 4); }
static u32 port(unsigned n, u64 reg) { return hba(0x100 + 0x80 * n + reg); }
static void set_port(unsigned n, u64 reg, u32 val) { set_hba(0x100 + 0x80 * n + reg, val); }

static void wait_done(void)
{
	while (block_poll(disk, true) + block_poll(cd, true))
		;
}

static void start_port(unsigned n)
{
	set_port(n, CLB, (u32)LIST(n));
	set_port(n, FB, (u32)FIS(n));
	set_port(n, SERR, ~0u);
	set_port(n, CMD, CMD_FRE);
	set_port(n, PIS, ~0u);
	set_port(n, PIE, ~0u);
	set_port(n, CMD, CMD_FRE | CMD_ST);
}

static int setup(void **state)
{
	struct error e;

	failing = false;
	syncs = punches = 0;
	b = board_new(&ahci_class);
	disk = board_image("disk", DISK_SECTORS * 512, false, &hooks);
	cd = board_image("cd", CD_SECTORS * 2048, true, &hooks);
	mem_lock(&b->mem);
	assert_true(ahci_attach(b->dev, 0, &(struct ata_drive_config){ disk, false, "SERIAL7" }, &e));
	assert_true(ahci_attach(b->dev, 1, &(struct ata_drive_config){ cd, true, NULL }, &e));
	mem_unlock(&b->mem);
	bar = ld32(b->dev->function->config + 0x24) & ~0xfffu;
	mem_port_write(&b->mem, 0xcf8, 0x80000004 | (u32)b->dev->function->dev << 11, 4);
	mem_port_write(&b->mem, 0xcfc, PCI_CMD_MEM | PCI_CMD_MASTER, 2);
	set_hba(GHC, 1u << 31 | 2);
	start_port(0);
	start_port(1);
	return 0;
}

static int teardown(void **state)
{
	struct error e;

	failing = false;
	(void)block_close(disk, &e); /* it may have failed on purpose */
	assert_true(block_close(cd, &e));
	board_free(b);
	return 0;
}

struct piece { u64 addr; u32 bytes; };

/* Command cmd in a slot; lba and count as of 48-bit commands, and features. */
static void put_command(unsigned n, unsigned slot, u8 cmd, u64 lba, u16 count, u16 feature, const struct piece *to, unsigned pieces)
{
	u8 header[32] = { 5 }, fis[64] = { 0x27, 0x80, cmd, (u8)feature }, entry[16];

	fis[7] = DEV_LBA;
	for (unsigned k = 0; k < 3; k++) {
		fis[4 + k] = (u8)(lba >> 8 * k);
		fis[8 + k] = (u8)(lba >> (24 + 8 * k));
	}
	fis[11] = (u8)(feature >> 8);
	st16(fis + 12, count);
	st16(header + 2, (u16)pieces);
	st64(header + 8, TABLE(n, slot));
	mem_write(&b->mem, LIST(n) + 32 * slot, header, sizeof(header));
	mem_write(&b->mem, TABLE(n, slot), fis, sizeof(fis));
	for (unsigned k = 0; k < pieces; k++) {
		st64(entry, to[k].addr);
		st32(entry + 8, 0);
		st32(entry + 12, to[k].bytes - 1);
		mem_write(&b->mem, TABLE(n, slot) + 0x80 + 16 * k, entry, sizeof(entry));
	}
}

static void issue(unsigned n, u32 slots)
{
	set_port(n, CI, slots);
	wait_done();
}

/* One command with one piece of memory. */
static void command(u8 cmd, u64 lba, u16 count, u16 feature, u32 bytes)
{
	put_command(0, 0, cmd, lba, count, feature, &(struct piece){ DATA, bytes }, bytes ? 1 : 0);
	issue(0, 1);
}

static u32 moved(unsigned n, unsigned slot) { return (u32)mem_phys_read(&b->mem, LIST(n) + 32 * slot + 4, 4); }
static u8 fis_byte(unsigned n, unsigned at) { return (u8)mem_phys_read(&b->mem, FIS(n) + at, 1); }

static void assert_ended(unsigned n, u32 is)
{
	assert_int_equal(port(n, CI), 0);
	assert_int_equal(port(n, TFD), ST_DRDY | ST_DSC);
	assert_int_equal(port(n, PIS), is);
	set_port(n, PIS, ~0u);
}

static void assert_failed(unsigned n, u8 error, u32 is)
{
	assert_int_equal(port(n, TFD), error << 8 | ST_DRDY | ST_DSC | ST_ERR);
	assert_int_equal(port(n, PIS), is);
}

/* 6.2.2: as drivers do it after an error. */
static void restart(unsigned n)
{
	set_port(n, CMD, CMD_FRE);
	assert_int_equal(port(n, CMD) & (CMD_ST | CMD_CR), 0);
	assert_int_equal(port(n, CI) | port(n, SACT), 0);
	set_port(n, PIS, ~0u);
	set_port(n, SERR, ~0u);
	set_port(n, CMD, CMD_FRE | CMD_ST);
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
	mem_write(&b->mem, gpa, bytes, n);
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
	assert_int_equal(ld32(b->dev->function->config + 8) >> 8, 0x010601);
	assert_int_equal(hba(VS), 0x10301);
	assert_int_equal(hba(PI), 3);
	assert_int_equal(hba(CAP) & 0x1f, 5);
	assert_int_equal(hba(CAP) >> 8 & 31, 31);
	assert_true(hba(CAP) >> 30 == 3);           /* queues, 64 bits */
	assert_int_equal(hba(GHC), 1u << 31 | 2);
	assert_int_equal(port(0, SSTS), 0x123);
	assert_int_equal(port(0, SIG), 0x101);
	assert_int_equal(port(1, SIG), 0xeb140101);
	assert_int_equal(port(0, TFD), 1 << 8 | ST_DRDY | ST_DSC);
	assert_int_equal(port(2, CMD) | port(2, SSTS), 0); /* no drive, no port */
	assert_int_equal(port(0, CMD) & (CMD_SUD | CMD_POD | CMD_CR | CMD_FR), CMD_SUD | CMD_POD | CMD_CR | CMD_FR);
	set_port(0, CLB, 0x12345678);
	assert_int_equal(port(0, CLB), 0x12345400);
	set_port(0, FB, 0x12345678);
	assert_int_equal(port(0, FB), 0x12345600);
	set_hba(PI, 0);
	set_hba(CAP, 0);
	assert_int_equal(hba(PI), 3);
}

static void the_first_fis_waits_for_its_place(void **state)
{
	set_port(0, CMD, 0);
	set_port(0, CMD, CMD_FRE);                  /* the one of power-on went by */
	mem_phys_write(&b->mem, FIS(0) + 0x40, 0, 4);
	set_hba(GHC, 1);
	assert_int_equal(hba(GHC), 1u << 31);       /* reset at once: nothing is in flight */
	assert_int_equal(port(0, SERR) & (SERR_X | SERR_N), SERR_X | SERR_N);
	assert_int_equal(port(0, PIS) & (IS_PCS | IS_PRCS), IS_PCS | IS_PRCS);
	set_port(0, PIS, ~0u);                      /* is what SERR says */
	assert_int_equal(port(0, PIS) & IS_PCS, IS_PCS);
	set_port(0, SERR, ~0u);
	assert_int_equal(port(0, PIS), 0);
	set_port(0, FB, (u32)FIS(0));
	assert_int_equal(fis_byte(0, 0x40), 0);
	set_port(0, CMD, CMD_FRE);
	assert_int_equal(fis_byte(0, 0x40), 0x34);
	assert_int_equal(fis_byte(0, 0x4c), 1);
}

static void interrupts_by_level(void **state)
{
	assert_int_equal(b->dev->function->intx, 0);
	command(0xec, 0, 0, 0, 512);
	assert_int_equal(hba(IS), 1);
	assert_int_equal(b->dev->function->intx, 1);
	set_hba(IS, 1);                             /* the port asks still */
	assert_int_equal(hba(IS), 1);
	set_port(0, PIS, ~0u);
	assert_int_equal(b->dev->function->intx, 1);
	set_hba(IS, 1);
	assert_int_equal(hba(IS), 0);
	assert_int_equal(b->dev->function->intx, 0);
	set_port(0, PIE, 0);
	command(0xec, 0, 0, 0, 512);
	assert_int_equal(hba(IS), 0);
	set_hba(GHC, 1u << 31);
	set_port(0, PIE, ~0u);
	assert_int_equal(hba(IS), 1);
	assert_int_equal(b->dev->function->intx, 0);
	set_hba(GHC, 1u << 31 | 2);
	assert_int_equal(b->dev->function->intx, 1);
}

/* A message for each port that begins to ask, and again where one is not done with. Looked at in the
 * pending bit of a masked vector. */
static void interrupts_by_message(void **state)
{
	struct pci_function *f = (struct pci_function *)b->dev->function;
	u8 *msi = f->config + f->msi_cap;

	msi[2] |= 1;
	msi[0x10] = 1;
	command(0xec, 0, 0, 0, 512);
	assert_int_equal(f->msi_pending, 1);
	assert_false(f->pin);
	f->msi_pending = 0;
	command(0xec, 0, 0, 0, 512);                /* told already */
	assert_int_equal(f->msi_pending, 0);
	set_hba(IS, 1);                             /* not done with */
	assert_int_equal(f->msi_pending, 1);
	f->msi_pending = 0;
	set_port(0, PIS, ~0u);
	set_hba(IS, 1);
	assert_int_equal(f->msi_pending, 0);
	command(0xec, 0, 0, 0, 512);
	assert_int_equal(f->msi_pending, 1);
}

/* ---- disk ---------------------------------------------------------------------------------------------- */

static void identifies(void **state)
{
	u8 id[512], sum = 0;

	command(0xec, 0, 0, 0, 512);
	assert_int_equal(fis_byte(0, 0x20), 0x5f);  /* PIO Setup, and no registers: it ends so */
	assert_int_equal(fis_byte(0, 0x2f), ST_DRDY | ST_DSC);
	assert_int_equal(fis_byte(0, 0x30) | fis_byte(0, 0x31) << 8, 512);
	assert_int_equal(moved(0, 0), 512);
	assert_ended(0, IS_PSS);
	mem_read(&b->mem, DATA, id, sizeof(id));
	assert_int_equal(ld64(id + 2 * 100), DISK_SECTORS);
	assert_memory_equal(id + 20, "ESIRLA 7", 8);
	assert_int_equal(ld16(id + 2 * 75), 31);
	assert_true(ld16(id + 2 * 76) & 0x100);
	assert_int_equal(ld16(id + 2 * 93), 0);
	assert_int_equal(ld16(id + 2 * 169), 1);
	for (unsigned k = 0; k < 512; k++)
		sum = (u8)(sum + id[k]);
	assert_int_equal(sum, 0);
	command(0xa1, 0, 0, 0, 512);
	assert_failed(0, ERR_ABRT, IS_DHRS | IS_TFES);
}

static void reads_and_writes(void **state)
{
	static const struct { u8 read, write; u32 is; } kinds[] = {
		{ 0x25, 0x35, IS_DHRS }, { 0xc8, 0xca, IS_DHRS }, { 0x24, 0x34, IS_PSS }, { 0x20, 0x30, IS_PSS }, { 0x25, 0x3d, IS_DHRS },
	};
	static const struct piece odd[] = { { DATA + 2, 100 }, { DATA + 0x10000, 924 }, { DATA + 0x20ff0, 512 } };

	for (unsigned k = 0; k < ARRAY_LEN(kinds); k++) {
		put_command(0, 3, kinds[k].read, 5, 3, 0, odd, 3);
		issue(0, 8);
		assert_int_equal(moved(0, 3), 3 * 512);
		assert_ended(0, kinds[k].is);
		assert_pattern(DATA + 2, 5 * 512, 100);
		assert_pattern(DATA + 0x10000, 5 * 512 + 100, 924);
		assert_pattern(DATA + 0x20ff0, 5 * 512 + 1024, 512);
		fill(DATA, (u8)(0x10 + k), 1024);
		command(kinds[k].write, 62, 2, 0, 1024);
		assert_ended(0, kinds[k].is == IS_PSS ? IS_PSS | IS_DHRS : IS_DHRS);
		assert_disk(62, (u8)(0x10 + k));
		assert_disk(63, (u8)(0x10 + k));
	}
	assert_int_equal(syncs, 1);                 /* WRITE DMA FUA EXT */
	command(0xea, 0, 0, 0, 0);
	assert_ended(0, IS_DHRS);
	assert_int_equal(syncs, 2);
	command(0xef, 0, 0, 0x82, 0);               /* no write cache */
	assert_ended(0, IS_DHRS);
	command(0x35, 0, 1, 0, 512);
	assert_int_equal(syncs, 3);
}

/* Memory in pieces of two bytes: more of them than a request takes, and none of a sector's length. */
static void memory_in_tiny_pieces(void **state)
{
	static struct piece tiny[600];

	for (unsigned k = 0; k < ARRAY_LEN(tiny); k++)
		tiny[k] = (struct piece){ DATA + 4 * k, k == 255 ? 4 : 2 };
	u8 header[32] = { 5 };
	put_command(0, 0, 0x25, 7, 2, 0, NULL, 0);
	mem_read(&b->mem, LIST(0), header, sizeof(header));
	st16(header + 2, ARRAY_LEN(tiny));
	st64(header + 8, 0x300000);                 /* a larger table */
	mem_write(&b->mem, LIST(0), header, sizeof(header));
	u8 fis[64], entry[16];
	mem_read(&b->mem, TABLE(0, 0), fis, sizeof(fis));
	mem_write(&b->mem, 0x300000, fis, sizeof(fis));
	for (unsigned k = 0; k < ARRAY_LEN(tiny); k++) {
		st64(entry, tiny[k].addr);
		st64(entry + 8, (u64)(tiny[k].bytes - 1) << 32);
		mem_write(&b->mem, 0x300080 + 16 * k, entry, sizeof(entry));
	}
	issue(0, 1);
	assert_int_equal(moved(0, 0), 1024);
	assert_ended(0, IS_DHRS);
	size_t at = 7 * 512;
	for (unsigned k = 0; at < 9 * 512; at += tiny[k].bytes, k++)
		assert_pattern(tiny[k].addr, at, MIN(tiny[k].bytes, 9 * 512 - at));
}

static void refuses_what_is_not_there(void **state)
{
	static const struct { u64 lba; u16 count; u8 cmd, error; } bad[] = {
		{ 64, 1, 0x25, ERR_IDNF }, { 63, 2, 0x25, ERR_IDNF }, { 0xffffffffffff, 1, 0x35, ERR_IDNF }, { 0, 0, 0x25, ERR_IDNF },
		{ 0, 1, 0xfe, ERR_ABRT }, { 0, 1, 0xa0, ERR_ABRT }, { 0, 1, 0x29, ERR_ABRT },
	};
	for (size_t k = 0; k < ARRAY_LEN(bad); k++) {
		command(bad[k].cmd, bad[k].lba, bad[k].count, 0, 512);
		assert_failed(0, bad[k].error, IS_DHRS | IS_TFES);
		command(0x25, 0, 1, 0, 512);        /* not before the driver has seen to it */
		assert_int_equal(port(0, CI), 1);
		restart(0);
		command(0x25, 0, 1, 0, 512);
		assert_ended(0, IS_DHRS);
	}
}

static void host_errors(void **state)
{
	failing = true;
	fails = FILE_READ;
	failing_at = 9 * 512;
	command(0x25, 8, 4, 0, 2048);
	assert_failed(0, ERR_UNC, IS_DHRS | IS_TFES);
	assert_int_equal(fis_byte(0, 0x44), 8);     /* where */
	restart(0);
	fails = FILE_WRITE;
	command(0x35, 8, 4, 0, 2048);
	assert_failed(0, ERR_ABRT, IS_DHRS | IS_TFES);
	restart(0);
	fails = FILE_SYNC;
	command(0xe7, 0, 0, 0, 0);
	assert_failed(0, ERR_ABRT, IS_DHRS | IS_TFES);
	restart(0);
	failing = false;
	command(0xb0, 0xc24f00, 1, 0xd0, 512);      /* SMART counts them */
	assert_ended(0, IS_PSS);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 2, 1), 187);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 2 + 5, 4), 2);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 2 + 3, 1), 98);
}

static void trims(void **state)
{
	u8 ranges[1024] = { 0 };

	st64(ranges, 8 | 8ull << 48);
	st64(ranges + 16, 20 | 1ull << 48);
	st64(ranges + 1016, 40 | 2ull << 48);
	mem_write(&b->mem, DATA, ranges, sizeof(ranges));
	command(0x06, 0, 2, 1, 1024);
	assert_ended(0, IS_DHRS);
	assert_int_equal(punches, 3);
	assert_disk(8, 0);
	assert_disk(15, 0);
	assert_disk(20, 0);
	assert_disk(41, 0);
	command(0x25, 16, 4, 0, 2048);
	assert_pattern(DATA, 16 * 512, 2048);
	st64(ranges + 1016, 63 | 2ull << 48);       /* one is not there: none is trimmed */
	mem_write(&b->mem, DATA, ranges, sizeof(ranges));
	punches = 0;
	command(0x06, 0, 2, 1, 1024);
	assert_true(port(0, PIS) & IS_TFES);
	assert_int_equal(punches, 0);
	restart(0);
	command(0x06, 0, 9, 1, 4608);               /* more than it said */
	assert_true(port(0, PIS) & IS_TFES);
}

static void smart(void **state)
{
	command(0xb0, 0xc24f00, 1, 0xd1, 512);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 2, 2), 10 << 8 | 187);
	set_port(0, PIS, ~0u);
	command(0xb0, 0xc24f00, 0, 0xda, 0);
	assert_int_equal(fis_byte(0, 0x45) | fis_byte(0, 0x46) << 8, 0xc24f);
	command(0xb0, 0xc24f00, 0, 0xd9, 0);        /* off */
	command(0xb0, 0xc24f00, 1, 0xd0, 512);
	assert_true(port(0, PIS) & IS_TFES);
	restart(0);
	command(0xb0, 0xc24f00, 0, 0xd8, 0);
	failing = true;
	fails = FILE_READ;
	failing_at = 0;
	for (unsigned k = 0; k < 90; k++) {
		command(0x25, 0, 1, 0, 512);
		restart(0);
	}
	command(0xb0, 0xc24f00, 0, 0xda, 0);        /* it will not last */
	assert_int_equal(fis_byte(0, 0x45) | fis_byte(0, 0x46) << 8, 0x2cf4);
}

/* A kernel that is loaded where another one's code was. */
static void code_that_is_read_over(void **state)
{
	struct page_code *p = mem_page(&b->mem, DATA).code;
	u32 gen;

	mem_code_mark(p, 0x100, 4);
	gen = p->gen;
	command(0x25, 0, 1, 0, 512);
	assert_int_not_equal(p->gen, gen);
}

/* ---- queues ------------------------------------------------------------------------------------------ */

static void queue(unsigned slot, bool write, u64 lba, u16 sectors, bool fua)
{
	put_command(0, slot, write ? 0x61 : 0x60, lba, (u16)(slot << 3), sectors, &(struct piece){ DATA + 0x8000ull * slot, sectors * 512u }, 1);
	if (fua)
		mem_phys_write(&b->mem, TABLE(0, slot) + 7, DEV_LBA | DEV_FUA, 1);
}

static void go(u32 slots)
{
	set_port(0, SACT, slots);
	set_port(0, CI, slots);
}

static void queued_commands(void **state)
{
	for (unsigned k = 0; k < 32; k++)
		queue(k, k & 1, 2 * k, 2, k == 31);
	for (unsigned k = 1; k < 32; k += 2)
		fill(DATA + 0x8000ull * k, (u8)(0x80 + k), 1024);
	go(~0u);
	assert_int_equal(port(0, CI), 0);           /* all are taken */
	assert_int_equal(port(0, TFD) & ST_BSY, 0);
	assert_int_equal(port(0, SACT), ~0u);
	wait_done();
	assert_int_equal(port(0, SACT), 0);
	assert_int_equal(fis_byte(0, 0x58), 0xa1);
	assert_ended(0, IS_SDBS);
	assert_int_equal(syncs, 1);
	for (unsigned k = 0; k < 32; k += 2)
		assert_pattern(DATA + 0x8000ull * k, 2 * k * 512, 1024);
	for (unsigned k = 1; k < 32; k += 2)
		assert_disk(2 * k + 1, (u8)(0x80 + k));
}

static void read_error_log(u8 *page)
{
	command(0x2f, 0x10, 1, 0, 512);
	assert_int_equal(port(0, PIS) & IS_TFES, 0);
	mem_read(&b->mem, DATA, page, 512);
}

static void a_queued_command_fails(void **state)
{
	u8 log[512];

	failing = true;
	fails = FILE_READ;
	failing_at = 33 * 512;
	queue(4, false, 0, 2, false);
	queue(9, false, 32, 2, false);
	go(1u << 4 | 1u << 9);
	wait_done();
	assert_failed(0, ERR_UNC, (port(0, SACT) & 1u << 4 ? 0 : IS_SDBS) | IS_SDBS | IS_TFES);
	assert_true(port(0, SACT) & 1u << 9);
	restart(0);
	read_error_log(log);
	assert_int_equal(log[0], 9);
	assert_int_equal(log[2] & ST_ERR, ST_ERR);
	assert_int_equal(log[3], ERR_UNC);
	assert_int_equal(log[4], 32);
	read_error_log(log);
	assert_int_equal(log[0], 0x80);             /* read, and forgotten */
	failing = false;
	queue(2, false, 64, 1, false);              /* outside */
	go(1u << 2);
	assert_failed(0, ERR_IDNF, IS_SDBS | IS_TFES | IS_PSS);
	restart(0);
	queue(3, false, 0, 1, false);
	mem_phys_write(&b->mem, TABLE(0, 3) + 12, 5 << 3, 1); /* a tag that is not its slot's */
	go(1u << 3);
	assert_failed(0, ERR_ABRT, IS_SDBS | IS_TFES);
	restart(0);
	queue(3, false, 0, 1, false);
	go(1u << 3);
	wait_done();
	assert_ended(0, IS_SDBS);
}

static void both_kinds_at_once_end_all(void **state)
{
	queue(0, false, 0, 1, false);
	put_command(0, 1, 0x25, 0, 1, 0, &(struct piece){ DATA + 0x8000, 512 }, 1);
	set_port(0, SACT, 1);
	set_port(0, CI, 1);
	set_port(0, CI, 2);
	assert_true(port(0, PIS) & IS_TFES);
	wait_done();
	assert_int_equal(port(0, SACT), 1);         /* aborted: it is not told as done */
	restart(0);
	command(0x25, 0, 1, 0, 512);
	assert_ended(0, IS_DHRS);
}

/* A slot whose command is with the host's disk: what is put there meanwhile is not taken, then or later. */
static void a_slot_is_taken_once(void **state)
{
	queue(3, true, 8, 1, false);
	fill(DATA + 0x18000, 0x77, 512);
	go(1u << 3);
	queue(3, true, 9, 1, false);
	go(1u << 3);
	wait_done();
	assert_int_equal(port(0, CI) | port(0, SACT), 0);
	assert_ended(0, IS_SDBS);
	assert_disk(8, 0x77);
	command(0x25, 9, 1, 0, 512);
	assert_ended(0, IS_DHRS);
	assert_pattern(DATA, 9 * 512, 512);
}

/* ---- CD ------------------------------------------------------------------------------------------------ */

static void packet(const u8 *cmd, bool dma, u32 bytes)
{
	put_command(1, 0, 0xa0, 0, 0, dma, &(struct piece){ DATA, bytes }, bytes ? 1 : 0);
	mem_write(&b->mem, TABLE(1, 0) + 0x40, cmd, 12);
	issue(1, 1);
}

static void cd_reads(void **state)
{
	static const u8 capacity[12] = { 0x25 }, read[12] = { 0x28, 0, 0, 0, 0, 3, 0, 0, 2 };

	for (unsigned dma = 0; dma < 2; dma++) {
		packet(capacity, dma, 8);
		assert_int_equal(__builtin_bswap32((u32)mem_phys_read(&b->mem, DATA, 4)), CD_SECTORS - 1);
		assert_int_equal(moved(1, 0), 8);
		assert_ended(1, dma ? IS_DHRS : IS_DHRS | IS_PSS);
		packet(read, dma, 4096);
		assert_int_equal(moved(1, 0), 4096);
		assert_ended(1, dma ? IS_DHRS : IS_DHRS | IS_PSS);
		assert_int_equal(fis_byte(1, 0x4c), REASON_IO | REASON_CD);
		assert_pattern(DATA, 3 * 2048, 4096);
	}
}

static void cd_says_why_not(void **state)
{
	static const u8 read[12] = { 0x28, 0, 0, 0, 0, 15, 0, 0, 2 }, sense[12] = { 0x03, 0, 0, 0, 18 };

	packet(read, true, 4096);
	assert_failed(1, 5 << 4 | ERR_ABRT, IS_DHRS | IS_TFES);
	restart(1);
	packet(sense, false, 18);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 2, 1), 5);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 12, 1), 0x21);
	set_port(1, PIS, ~0u);
	put_command(1, 0, 0x60, 0, 0, 1, &(struct piece){ DATA, 512 }, 1); /* no queues */
	issue(1, 1);
	assert_failed(1, ERR_ABRT, IS_DHRS | IS_TFES);
}

/* ---- memory that is not there ------------------------------------------------------------------------------ */

static void memory_that_is_not_there(void **state)
{
	static const struct piece none = { 0xf0000000, 512 }, shorter[] = { { DATA, 512 }, { DATA + 0x1000, 256 } };

	put_command(0, 0, 0x25, 0, 1, 0, &none, 1);
	issue(0, 1);
	assert_int_equal(port(0, PIS), IS_HBFS);
	assert_int_equal(port(0, CI), 1);
	restart(0);
	put_command(0, 0, 0x25, 0, 2, 0, shorter, 2);
	issue(0, 1);
	assert_failed(0, ERR_ABRT, IS_OFS | IS_DHRS | IS_TFES);
	restart(0);
	set_port(0, CMD, CMD_FRE);
	set_port(0, CLB, 0xf0000000);
	set_port(0, CMD, CMD_FRE | CMD_ST);
	issue(0, 1);
	assert_int_equal(port(0, PIS), IS_HBFS);
	set_port(0, CLB, (u32)LIST(0));
	restart(0);
	put_command(0, 0, 0x25, 0, 1, 0, shorter, 1);
	mem_phys_write(&b->mem, TABLE(0, 0), 0x11, 1); /* no command FIS */
	issue(0, 1);
	assert_int_equal(port(0, PIS), IS_IFS);
}

static void waits_for_bus_master(void **state)
{
	mem_port_write(&b->mem, 0xcfc, PCI_CMD_MEM, 2);
	command(0x25, 5, 1, 0, 512);
	assert_int_equal(port(0, CI), 1);
	mem_port_write(&b->mem, 0xcfc, PCI_CMD_MEM | PCI_CMD_MASTER, 2);
	wait_done();
	assert_ended(0, IS_DHRS);
	assert_pattern(DATA, 5 * 512, 512);
}

/* ---- stop, reset, state -------------------------------------------------------------------------------------- */

static void a_stop_in_the_middle(void **state)
{
	put_command(0, 0, 0x25, 5, 1, 0, &(struct piece){ DATA, 512 }, 1);
	set_port(0, CI, 1);
	assert_int_equal(port(0, TFD) & ST_BSY, ST_BSY);
	set_port(0, CMD, CMD_FRE);
	assert_int_equal(port(0, CI), 0);
	assert_int_equal(port(0, CMD) & (CMD_ST | CMD_CR), CMD_CR); /* the host's disk writes to memory still */
	set_port(0, CMD, CMD_FRE | CMD_ST);
	put_command(0, 0, 0x25, 6, 1, 0, &(struct piece){ DATA, 512 }, 1);
	set_port(0, CI, 1);                         /* too early, but not lost */
	wait_done();
	assert_ended(0, IS_DHRS);
	assert_pattern(DATA, 6 * 512, 512);
}

static void a_reset_in_the_middle(void **state)
{
	command(0xef, 0, 0, 0x82, 0);               /* no write cache, and it stays so */
	queue(0, false, 0, 1, false);
	go(1);
	set_port(0, CMD, CMD_FRE);
	set_port(0, SCTL, 1);
	assert_int_equal(port(0, SSTS), 1);
	set_port(0, SCTL, 0);
	assert_int_equal(port(0, SSTS), 1);         /* until the host's disk is done */
	assert_int_equal(port(0, TFD) & ST_BSY, ST_BSY);
	wait_done();
	assert_int_equal(port(0, SSTS), 0x123);
	assert_int_equal(port(0, TFD), 1 << 8 | ST_DRDY | ST_DSC);
	assert_int_equal(port(0, SERR), SERR_X | SERR_N);
	restart(0);
	put_command(0, 0, 0x25, 5, 1, 0, &(struct piece){ DATA, 512 }, 1);
	set_port(0, CI, 1);
	set_hba(GHC, 1);                            /* all of it */
	assert_int_equal(hba(GHC) & 1, 1);
	wait_done();
	assert_int_equal(hba(GHC), 1u << 31);
	assert_int_equal(port(0, CI) | port(0, CLB) | port(0, PIE), 0);
	start_port(0);
	command(0x35, 5, 1, 0, 512);
	assert_ended(0, IS_DHRS);
	assert_int_equal(syncs, 1);
	mem_lock(&b->mem);
	b->dev->cls->reset(b->dev);                 /* the machine's: as when it was switched on */
	mem_unlock(&b->mem);
	mem_port_write(&b->mem, 0xcf8, 0x80000024 | (u32)b->dev->function->dev << 11, 4);
	mem_port_write(&b->mem, 0xcfc, (u32)bar, 4);
	mem_port_write(&b->mem, 0xcf8, 0x80000004 | (u32)b->dev->function->dev << 11, 4);
	mem_port_write(&b->mem, 0xcfc, PCI_CMD_MEM | PCI_CMD_MASTER, 2);
	start_port(0);
	command(0x35, 5, 1, 0, 512);
	assert_ended(0, IS_DHRS);
	assert_int_equal(syncs, 1);
}

static void a_software_reset(void **state)
{
	u8 header[32];

	command(0xef, 0, 0, 0x82, 0);
	for (unsigned on = 2; on--; ) { /* 10.4.1: SRST on, then off */
		put_command(0, 0, 0, 0, 0, 0, NULL, 0);
		mem_phys_write(&b->mem, TABLE(0, 0) + 1, 0, 1);
		mem_phys_write(&b->mem, TABLE(0, 0) + 15, on ? 4 : 0, 1);
		mem_read(&b->mem, LIST(0), header, 32);
		header[1] = on ? 5 : 0;
		mem_write(&b->mem, LIST(0), header, 32);
		mem_phys_write(&b->mem, FIS(0) + 0x40, 0, 1);
		issue(0, 1);
		assert_int_equal(port(0, CI), 0);
		assert_int_equal(fis_byte(0, 0x40), on ? 0 : 0x34);
	}
	assert_int_equal(port(0, TFD), 1 << 8 | ST_DRDY | ST_DSC);
	assert_int_equal(port(0, SIG), 0x101);
}

static void state_goes_round(void **state)
{
	static u8 saved[1 << 20];
	struct error e;

	command(0xef, 0, 0, 0x82, 0);
	command(0xfe, 0, 0, 0, 0);                  /* halted by an error */
	size_t n = device_save(b->dev, saved, sizeof(saved));
	assert_true(n > 0);
	mem_lock(&b->mem);
	b->dev->cls->reset(b->dev);
	assert_true(device_load(b->dev, saved, n, &e));
	mem_unlock(&b->mem);
	assert_int_equal(hba(IS), 1);
	assert_failed(0, ERR_ABRT, IS_DHRS | IS_TFES);
	restart(0);
	command(0xec, 0, 0, 0, 512);
	assert_int_equal(mem_phys_read(&b->mem, DATA + 2 * 85, 2) & 0x20, 0); /* the write cache is off */
	round_trip(b->dev);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(registers), T(the_first_fis_waits_for_its_place), T(interrupts_by_level), T(interrupts_by_message), T(identifies),
		T(reads_and_writes), T(memory_in_tiny_pieces), T(refuses_what_is_not_there), T(host_errors), T(trims), T(smart), T(code_that_is_read_over),
		T(queued_commands), T(a_queued_command_fails), T(both_kinds_at_once_end_all), T(a_slot_is_taken_once), T(cd_reads), T(cd_says_why_not),
		T(memory_that_is_not_there), T(waits_for_bus_master), T(a_stop_in_the_middle), T(a_reset_in_the_middle), T(a_software_reset),
		T(state_goes_round),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
