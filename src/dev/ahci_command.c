/* Commands of the AHCI controller: fetched from the guest's list, carried out, told. AHCI 1.3.1, 4.2, 5.5,
 * 6.1, 6.2; Serial ATA 3.0, 10.5 and 13.6 (queues).
 *
 *   header  0 length of the FIS, flags, entries   4 bytes moved   8 address of the table
 *   table   00 the FIS   40 a packet   80 entries of 16 bytes: u64 address, u32, u32 bytes - 1; bit 31: interrupt
 *
 * Data of sectors goes straight from and to the guest's memory, in steps of at most AHCI_PIECES pieces and
 * AHCI_STEP bytes, each of whole sectors of 512 bytes. What is no RAM stops the port, as a bus error does.
 *
 * Errors: of a command, TFES; of a queued one by a Set Device Bits FIS, and log 10h says which. The port is halted
 * then until the driver stops it. Where the entries hold less than the command moves: OFS as well.
 *
 * Threading: machine lock held, but for disk_done, which takes it: the loop's thread. */
#define LOG_TOPIC "ahci"
#include "dev/ahci_impl.h"

#include <string.h>

enum { TABLE_PACKET = 0x40, TABLE_ENTRIES = 0x80, ENTRY = 16 };
enum { FIS_H2D = 0x27, FIS_BITS = 0xa1, FIS_PIO = 0x5f };
enum { FIS_IS_COMMAND = 0x80, FIS_INTERRUPT = 0x40, FIS_TO_HOST = 0x20 };
enum { RECEIVE_PIO = 0x20, RECEIVE_BITS = 0x58 };
enum { CONTROL_SRST = 0x04 };

static struct mem *memory(const struct ahci_port *p) { return p->ahci->d.mem; }

/* ---- ends ------------------------------------------------------------------------------------------- */

/* 6.2.1: the port stays where it is until the driver stops it. */
static void halt(struct ahci_port *p, u32 why)
{
	p->is |= why;
	p->halted = 1;
}

static void put_moved(const struct ahci_command *c)
{
	u8 bytes[4];

	st32(bytes, c->moved);
	mem_write(memory(c->p), c->header + 4, bytes, 4);
}

static void post_pio_setup(const struct ahci_command *c)
{
	struct ahci_port *p = c->p;
	const struct ata_drive *d = &p->drive;
	u8 fis[20] = { FIS_PIO, FIS_INTERRUPT | (c->write ? 0 : FIS_TO_HOST), ST_DRDY | ST_DSC | ST_DRQ, 0, d->lba[0][0], d->lba[1][0],
		       d->lba[2][0], d->device, d->lba[0][1], d->lba[1][1], d->lba[2][1], 0, d->count[0], d->count[1], 0, d->status };

	st16(fis + 16, (u16)MIN(c->moved, BLOCK_SECTOR));
	ahci_post(p, RECEIVE_PIO, fis, sizeof(fis));
	p->is |= IS_PSS;
}

/* Of a command that is not queued. error: the error register. The last data of a PIO read is its end; all others
 * end with the drive's registers. */
static void end(struct ahci_command *c, u8 error)
{
	struct ahci_port *p = c->p;
	bool told = c->pio && c->moved && !error;

	ata_end(&p->drive, c->packet, error);
	put_moved(c);
	c->active = false;
	if (told)
		post_pio_setup(c);
	if (!told || c->write || c->packet)
		ahci_post_registers(p, true);
	p->ci &= ~(1u << c->slot);
	if (error)
		halt(p, 0);
}

static void post_bits(struct ahci_port *p, u32 done)
{
	u8 fis[8] = { FIS_BITS, FIS_INTERRUPT, p->drive.status & (u8)~(ST_BSY | ST_DRQ), p->drive.error };

	st32(fis + 4, done);
	ahci_post(p, RECEIVE_BITS, fis, sizeof(fis));
	p->is |= IS_SDBS;
}

static void end_queued(struct ahci_command *c, u8 error)
{
	struct ahci_port *p = c->p;
	u32 bit = 1u << c->slot;

	c->active = false;
	p->queued &= ~bit;
	ata_end(&p->drive, false, error);
	if (error) {
		ata_queued_failed(&p->drive, c->slot, error, c->lba);
		post_bits(p, 0);
		halt(p, IS_TFES);
	} else {
		p->sact &= ~bit;
		post_bits(p, bit);
	}
}

static void finish(struct ahci_command *c, u8 error) { (c->queued ? end_queued : end)(c, error); }

/* ---- the guest's memory -------------------------------------------------------------------------------- */

struct entry { u64 addr; u32 bytes; bool interrupt; };

static bool read_entry(const struct ahci_command *c, struct entry *e)
{
	u8 raw[ENTRY];

	if (c->entry >= c->entries || !mem_read(memory(c->p), c->table + TABLE_ENTRIES + (u64)ENTRY * c->entry, raw, ENTRY))
		return false;
	e->addr = ld64(raw) & ~1ull;
	e->bytes = (ld32(raw + 12) & 0x3fffff) | 1;
	e->bytes++;
	e->interrupt = raw[15] >> 7;
	return true;
}

/* Pieces of memory for at most `want` bytes from the command's place in its table on, a whole number of units:
 * how many bytes. 0: there is not even one. *fault: what is there is no RAM. */
static u32 gather(struct ahci_command *c, u32 want, u32 unit, int *pieces, bool *fault)
{
	struct ahci_port *p = c->p;
	u32 total = 0, whole = 0, entry = c->entry, entry_at = c->entry_at;
	size_t last = 0;
	struct entry e;
	int n = 0;

	*pieces = 0;
	*fault = false;
	while (total < want && n < AHCI_PIECES && read_entry(c, &e)) {
		if (c->entry_at >= e.bytes) {
			c->entry++;
			c->entry_at = 0;
			continue;
		}
		u64 len = MIN(e.bytes - c->entry_at, want - total);
		u8 *host = mem_dma(memory(p), e.addr + c->entry_at, &len);
		if (!host) {
			*fault = true;
			break;
		}
		c->iov[n++] = (struct iovec){ host, len };
		total += (u32)len;
		c->entry_at += (u32)len;
		if (e.interrupt && c->entry_at == e.bytes)
			p->is |= IS_DPS;
		u32 over = total % unit;
		if (over < len) {
			whole = total - over;
			*pieces = n;
			last = len - over;
			entry = c->entry;
			entry_at = c->entry_at - over;
		}
	}
	c->entry = entry;
	c->entry_at = entry_at;
	if (whole)
		c->iov[*pieces - 1].iov_len = last;
	return whole;
}

/* The table has no memory for what the command moves. */
static void no_memory(struct ahci_command *c, bool fault)
{
	if (fault) {
		log_guest("port %u: a command's data is outside RAM", c->p->index);
		c->active = false;
		halt(c->p, IS_HBFS);
	} else {
		c->p->is |= IS_OFS;
		finish(c, c->packet ? atapi_sense(&c->p->drive, 4, 0x08, 0) : ERR_ABRT);
	}
}

/* `bytes` between buf and the guest; false: the command is at its end. */
static bool move(struct ahci_command *c, u8 *buf, u32 bytes, bool to_guest)
{
	struct mem *m = memory(c->p);
	int pieces;
	bool fault;

	while (bytes) {
		u32 n = gather(c, bytes, 1, &pieces, &fault);
		if (!n) {
			no_memory(c, fault);
			return false;
		}
		for (int k = 0; k < pieces; k++) {
			struct iovec *v = &c->iov[k];
			memcpy(to_guest ? v->iov_base : buf, to_guest ? buf : v->iov_base, v->iov_len);
			if (to_guest)
				mem_dma_written(m, v->iov_base, v->iov_len);
			buf += v->iov_len;
		}
		bytes -= n;
		c->moved += n;
	}
	return true;
}

/* ---- the host's disk ------------------------------------------------------------------------------------ */

static void step(struct ahci_command *c);
static void trim_on(struct ahci_command *c);

static void stepped(struct ahci_command *c)
{
	u32 sectors = (u32)(c->req.len / BLOCK_SECTOR);

	ata_moved(&c->p->drive, c->write, sectors);
	c->lba += sectors;
	c->left -= sectors;
	c->moved += (u32)c->req.len;
	if (c->left)
		step(c);
	else
		finish(c, 0);
}

static void go_on(struct ahci_command *c, int error)
{
	switch (c->req.op) {
	case BLOCK_FLUSH:
		finish(c, error ? ERR_ABRT : 0);
		break;
	case BLOCK_DISCARD:
		if (error)
			finish(c, ERR_ABRT);
		else
			trim_on(c);
		break;
	default:
		if (error)
			finish(c, ata_medium_error(&c->p->drive, c->packet, c->write, c->lba));
		else
			stepped(c);
	}
}

static void disk_done(struct block_request *r)
{
	struct ahci_command *c = r->arg;
	struct ahci_port *p = c->p;
	struct mem *m = memory(p);

	mem_lock(m);
	for (int k = 0; r->op == BLOCK_READ && k < r->n_iov; k++)
		mem_dma_written(m, r->iov[k].iov_base, r->iov[k].iov_len);
	p->in_flight--;
	if (c->active && !p->halted) {
		go_on(c, r->error);
		ahci_run(p);
	} else if (p->ending && !p->in_flight) {
		p->ending = false;
		ahci_port_idle(p);
	}
	ahci_update_irq(p->ahci);
	mem_unlock(m);
}

static void ask_disk(struct ahci_command *c, enum block_op op, u64 lba, u64 bytes, int pieces)
{
	c->req = (struct block_request){ .op = op, .fua = c->fua, .offset = lba * BLOCK_SECTOR, .len = bytes, .iov = c->iov,
					 .n_iov = pieces, .done = disk_done, .arg = c };
	c->p->in_flight++;
	block_submit(c->p->drive.blk, &c->req);
}

static void step(struct ahci_command *c)
{
	int pieces;
	bool fault;

	if (!c->p->drive.blk) { /* a CD that was taken out in the middle of a command */
		finish(c, ata_medium_error(&c->p->drive, c->packet, c->write, c->lba));
		return;
	}
	u32 n = gather(c, (u32)MIN((u64)c->left * BLOCK_SECTOR, AHCI_STEP), BLOCK_SECTOR, &pieces, &fault);

	if (n)
		ask_disk(c, c->write ? BLOCK_WRITE : BLOCK_READ, c->lba, n, pieces);
	else
		no_memory(c, fault);
}

static void trim_on(struct ahci_command *c)
{
	u64 lba;
	u32 sectors;

	if (ata_trim_next(c->p->buffer, c->range_bytes, &c->range, &lba, &sectors))
		ask_disk(c, BLOCK_DISCARD, lba, (u64)sectors * BLOCK_SECTOR, 0);
	else
		finish(c, 0);
}

/* ---- tasks ------------------------------------------------------------------------------------------------ */

static void carry_out(struct ahci_command *c, struct ata_task t);

static void move_sectors(struct ahci_command *c, const struct ata_task *t)
{
	u32 per = t->sector / BLOCK_SECTOR;

	c->write = t->what == ATA_WRITE;
	c->fua = t->fua;
	c->lba = t->lba * per;
	c->left = t->sectors * per;
	step(c);
}

static void trim(struct ahci_command *c, u32 bytes)
{
	struct ahci_port *p = c->p;

	c->write = true;
	if (!move(c, p->buffer, bytes, false))
		return;
	c->range = 0;
	c->range_bytes = bytes;
	if (ata_trim_check(&p->drive, p->buffer, bytes))
		trim_on(c);
	else
		finish(c, ERR_IDNF);
}

static void take_packet(struct ahci_command *c, bool dma)
{
	struct ahci_port *p = c->p;
	u8 packet[PACKET_BYTES];

	c->packet = true;
	mem_read(memory(p), c->table + TABLE_PACKET, packet, sizeof(packet));
	carry_out(c, atapi_packet(&p->drive, packet, dma, p->buffer));
}

/* The signature, as after a reset: neither an error nor a status of its own. */
static void end_with_signature(struct ahci_command *c)
{
	c->active = false;
	put_moved(c);
	ahci_post_registers(c->p, true);
	c->p->ci &= ~(1u << c->slot);
}

static void carry_out(struct ahci_command *c, struct ata_task t)
{
	c->pio = !t.dma;
	switch (t.what) {
	case ATA_FAIL: finish(c, t.error); break;
	case ATA_DONE: finish(c, 0); break;
	case ATA_SIGNATURE: end_with_signature(c); break;
	case ATA_SEND:
		if (move(c, c->p->buffer, t.bytes, true))
			finish(c, 0);
		break;
	case ATA_READ: case ATA_WRITE: move_sectors(c, &t); break;
	case ATA_FLUSH: ask_disk(c, BLOCK_FLUSH, 0, 0, 0); break;
	case ATA_TRIM: trim(c, t.bytes); break;
	case ATA_PACKET: take_packet(c, t.dma); break;
	}
}

/* ---- fetching ----------------------------------------------------------------------------------------------- */

static void take_registers(struct ata_drive *d, const u8 *fis)
{
	d->feature[0] = fis[3];
	d->feature[1] = fis[11];
	d->count[0] = fis[12];
	d->count[1] = fis[13];
	for (unsigned k = 0; k < 3; k++) {
		d->lba[k][0] = fis[4 + k];
		d->lba[k][1] = fis[8 + k];
	}
	d->device = fis[7];
}

/* A FIS that only changes the control register: SRST, on and off again, resets the drive (10.4.1). */
static void take_control(struct ahci_port *p, unsigned slot, u8 control)
{
	bool was = p->srst;

	p->srst = (control & CONTROL_SRST) != 0;
	p->ci &= ~(1u << slot);
	if (was && !p->srst)
		ahci_port_reset(p, RESET_SOFT);
}

static void take_queued(struct ahci_command *c, u8 command)
{
	struct ahci_port *p = c->p;
	struct ata_drive *d = &p->drive;
	struct ata_task t = ata_queued(d, command);

	if (d->count[0] >> 3 != c->slot) /* its tag is to be its slot */
		t = ata_failed(ERR_ABRT);
	c->queued = true;
	c->lba = t.lba;
	p->queued |= 1u << c->slot;
	p->ci &= ~(1u << c->slot);
	carry_out(c, t);
}

static void take_command(struct ahci_command *c, u8 command)
{
	struct ahci_port *p = c->p;

	if (ata_is_queued(command) && p->drive.queues && !p->drive.cd) {
		take_queued(c, command);
	} else if (p->queued) { /* 13.6.4.1: both kinds at once end all */
		finish(c, ERR_ABRT);
	} else {
		p->drive.status = ST_BSY;
		carry_out(c, ata_command(&p->drive, command, p->buffer));
	}
}

static void fetch(struct ahci_port *p, unsigned slot)
{
	struct ahci_command *c = &p->command[slot];
	u64 header = p->clb + 32 * slot;
	u8 raw[16], fis[20];

	p->ccs = (u8)slot;
	if (!mem_read(memory(p), header, raw, sizeof(raw)) || !mem_read(memory(p), ld64(raw + 8) & ~0x7full, fis, sizeof(fis))) {
		log_guest("port %u: command list or table outside RAM", p->index);
		halt(p, IS_HBFS);
	} else if (fis[0] != FIS_H2D) {
		log_guest("port %u: a command FIS of type %02x", p->index, fis[0]);
		halt(p, IS_IFS);
	} else if (!(fis[1] & FIS_IS_COMMAND)) {
		take_control(p, slot, fis[15]);
	} else {
		c->active = true;
		c->queued = c->packet = c->write = c->fua = c->pio = false;
		c->header = header;
		c->table = ld64(raw + 8) & ~0x7full;
		c->entries = ld16(raw + 2);
		c->entry = c->entry_at = c->moved = 0;
		take_registers(&p->drive, fis);
		take_command(c, fis[2]);
	}
}

static bool can_fetch(const struct ahci_port *p)
{
	return p->command && (p->cmd & CMD_ST) && p->ci && !p->halted && !p->ending && !(p->sctl & 15) &&
	       !(p->drive.status & (ST_BSY | ST_DRQ)) && pci_is_master(&p->ahci->pci);
}

/* From the slot behind the last one on, around. */
static unsigned next_slot(const struct ahci_port *p)
{
	u32 behind = p->ci & ~((2u << p->ccs) - 1);

	return (unsigned)__builtin_ctz(behind ? behind : p->ci);
}

void ahci_run(struct ahci_port *p)
{
	while (can_fetch(p))
		fetch(p, next_slot(p));
}
