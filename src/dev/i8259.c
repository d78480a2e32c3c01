/* i8259: the two 8259A interrupt controllers of a PC as the PIIX3 integrates them, with the
 * ELCR. Intel 8259A datasheet (231468); 82371SB (PIIX3) datasheet, 4.2 and 2.5 for the ELCR.
 *
 *   0x20, 0x21    master: IR0..IR7, IR2 is fed by the slave
 *   0xa0, 0xa1    slave: IR8..IR15
 *   0x4d0, 0x4d1  ELCR: a set bit makes that line level-triggered
 *
 * Even ports take ICW1 (bit 4 set), OCW2 (bits 4:3 = 00) and OCW3 (01) and read IRR or ISR;
 * odd ports take ICW2..ICW4 while a chip is being initialized, else OCW1, and read the mask.
 *
 * Invariants
 *  1. An edge request is latched at a rising edge and lasts until it is acknowledged or its
 *     line falls; a level request is its line. irr() derives both.
 *  2. A chip is acknowledged only through chip_ack(), so a spurious IR7 never sets ISR.
 *  3. The slave's INT drops at each acknowledge, as the chip's does, so that a further request
 *     reaches the edge-triggered IR2 of the master as a new edge; the master's INT likewise.
 *
 * Left out: LTIM of ICW1 (the PIIX3 ignores it for the ELCR), the 8080 call sequence (ICW4.uPM
 * clear is taken as set), buffered mode (no pin of ours depends on it).
 * Threading: machine lock held. */
#include "dev/dev.h"

#define CASCADE_IR 2u
#define SPURIOUS_IR 7u

enum { ICW1_IC4 = 0x01, ICW1_SNGL = 0x02, ICW1_INIT = 0x10 };
enum { ICW4_AEOI = 0x02, ICW4_SFNM = 0x10 };
enum { OCW3_RIS = 0x01, OCW3_RR = 0x02, OCW3_POLL = 0x04, OCW3_SELECT = 0x08, OCW3_SMM = 0x20, OCW3_ESMM = 0x40 };

/* Where the initialization sequence of a chip stands: the word that the odd port takes next. */
enum { EXPECT_OCW1, EXPECT_ICW2, EXPECT_ICW3, EXPECT_ICW4 };

struct chip { /* bytes only: saved as they are */
	u8 lines;      /* levels of IR0..IR7 */
	u8 latch;      /* edge requests */
	u8 isr, imr;
	u8 elcr;
	u8 vector;     /* ICW2 bits 7:3 */
	u8 icw1, icw3;
	u8 expect;
	u8 lowest;     /* IR with the lowest priority; 7 in fully nested mode */
	u8 aeoi, rotate_aeoi, sfnm, smm, poll, read_isr;
};

enum { MASTER, SLAVE };
static const u8 elcr_mask[2] = { 0xf8, 0xde }; /* timer, keyboard, cascade, RTC and FPU are edges */

struct i8259 {
	struct device d;
	struct chip chip[2];
	u8 out;
	void (*out_fn)(void *arg, bool level);
	void *out_arg;
};

static u8 irr(const struct chip *c)
{
	return (u8)((c->latch & ~c->elcr) | (c->lines & c->elcr));
}

/* The set bit of highest priority as a distance from the highest IR, 8 for none. */
static unsigned highest(const struct chip *c, u8 bits)
{
	unsigned n = 0;

	while (n < 8 && !(bits >> ((c->lowest + 1 + n) & 7) & 1))
		n++;
	return n;
}

/* The IR that the chip asks its master or the processor to take, or -1. */
static int chip_pending(const struct chip *c, bool master)
{
	u8 in_service = c->isr;
	unsigned want = highest(c, (u8)(irr(c) & ~c->imr));
	unsigned have;

	if (want == 8 || c->expect != EXPECT_OCW1)
		return -1;
	if (c->smm)
		in_service &= (u8)~c->imr;
	have = highest(c, in_service);
	unsigned ir = (c->lowest + 1 + want) & 7;

	/* Special fully nested: a slave in service may interrupt itself with a higher IR of its own. */
	if (want < have || (want == have && c->sfnm && master && ir == CASCADE_IR))
		return (int)ir;
	return -1;
}

static void chip_line(struct chip *c, unsigned ir, bool level)
{
	u8 bit = (u8)(1u << ir);

	if (!level) {
		c->lines &= (u8)~bit;
		c->latch &= (u8)~bit;
	} else if (!(c->lines & bit)) {
		c->lines |= bit;
		c->latch |= bit;
	}
}

static void out_set(struct i8259 *p, bool level)
{
	if (p->out == level)
		return;
	p->out = level;
	if (p->out_fn)
		p->out_fn(p->out_arg, level);
}

static void pair_update(struct i8259 *p)
{
	chip_line(&p->chip[MASTER], CASCADE_IR, chip_pending(&p->chip[SLAVE], false) >= 0);
	out_set(p, chip_pending(&p->chip[MASTER], true) >= 0);
}

/* One chip's half of an acknowledge: the IR taken, 7 and no ISR bit when nothing asks any more. */
static unsigned chip_ack(struct chip *c, bool master)
{
	int ir = chip_pending(c, master);

	if (ir < 0)
		return SPURIOUS_IR;
	c->latch &= (u8)~(1u << ir);
	if (!c->aeoi)
		c->isr |= (u8)(1u << ir);
	else if (c->rotate_aeoi)
		c->lowest = (u8)ir;
	return (unsigned)ir;
}

void i8259_set_irq(struct i8259 *p, unsigned irq, bool level)
{
	if (irq > 15 || irq == CASCADE_IR)
		return;
	chip_line(&p->chip[irq >> 3], irq & 7, level);
	pair_update(p);
}

int i8259_ack(struct i8259 *p)
{
	struct chip *m = &p->chip[MASTER], *s = &p->chip[SLAVE];
	bool cascade = chip_pending(m, true) == (int)CASCADE_IR && !(m->icw1 & ICW1_SNGL);
	unsigned ir = chip_ack(m, true);
	int vector = m->vector | (int)ir;

	out_set(p, false);
	if (cascade) {
		vector = s->vector | (int)chip_ack(s, false);
		chip_line(m, CASCADE_IR, false);
	}
	pair_update(p);
	return vector;
}

bool i8259_output(const struct i8259 *p)
{
	return p->out;
}

void i8259_set_output(struct i8259 *p, void (*fn)(void *arg, bool level), void *arg)
{
	p->out_fn = fn;
	p->out_arg = arg;
}

/* ---- registers ------------------------------------------------------------------------ */

static void icw1_write(struct chip *c, u8 val)
{
	c->icw1 = val;
	c->expect = EXPECT_ICW2;
	c->latch = 0; /* the edge sense circuit is reset: only a new edge counts */
	c->imr = 0;
	c->isr = 0;
	c->lowest = 7;
	c->smm = c->poll = c->read_isr = 0;
	c->rotate_aeoi = 0;
	c->aeoi = c->sfnm = 0; /* what ICW4 does not set is off */
}

static void eoi(struct chip *c, unsigned ir, bool rotate)
{
	c->isr &= (u8)~(1u << ir);
	if (rotate)
		c->lowest = (u8)ir;
}

static void ocw2_write(struct chip *c, u8 val)
{
	unsigned ir = val & 7, n;
	bool rotate = val & 0x80;

	switch (val >> 5) { /* R, SL, EOI */
	case 0: case 4: /* rotate in automatic EOI: clear, set */
		c->rotate_aeoi = rotate;
		break;
	case 1: case 5: /* non-specific EOI, and rotate */
		/* In special mask mode a level that is masked keeps its ISR bit. */
		n = highest(c, c->smm ? (u8)(c->isr & ~c->imr) : c->isr);
		if (n < 8)
			eoi(c, (c->lowest + 1 + n) & 7, rotate);
		break;
	case 3: case 7: /* specific EOI, and rotate */
		eoi(c, ir, rotate);
		break;
	case 6: /* set priority */
		c->lowest = (u8)ir;
		break;
	default: /* 2: no operation */
		break;
	}
}

static void ocw3_write(struct chip *c, u8 val)
{
	if (val & OCW3_ESMM)
		c->smm = !!(val & OCW3_SMM);
	if (val & OCW3_RR)
		c->read_isr = val & OCW3_RIS;
	c->poll = !!(val & OCW3_POLL); /* wins over RR, see chip_read */
}

static void chip_write(struct i8259 *p, unsigned n, u64 off, u8 val)
{
	struct chip *c = &p->chip[n];

	if (off == 0) {
		if (val & ICW1_INIT)
			icw1_write(c, val);
		else if (val & OCW3_SELECT)
			ocw3_write(c, val);
		else
			ocw2_write(c, val);
	} else if (c->expect == EXPECT_ICW2) {
		c->vector = val & 0xf8;
		c->expect = !(c->icw1 & ICW1_SNGL) ? EXPECT_ICW3 : c->icw1 & ICW1_IC4 ? EXPECT_ICW4 : EXPECT_OCW1;
	} else if (c->expect == EXPECT_ICW3) {
		c->icw3 = val; /* the wiring is fixed: IR2 and identity 2 whatever it says */
		c->expect = c->icw1 & ICW1_IC4 ? EXPECT_ICW4 : EXPECT_OCW1;
	} else if (c->expect == EXPECT_ICW4) {
		c->aeoi = !!(val & ICW4_AEOI);
		c->sfnm = !!(val & ICW4_SFNM);
		c->expect = EXPECT_OCW1;
	} else {
		c->imr = val;
	}
	pair_update(p);
}

/* A read after the poll command is an acknowledge: 0x80 | IR, or 0 when nothing asks. */
static u8 poll_read(struct i8259 *p, unsigned n)
{
	struct chip *c = &p->chip[n];
	u8 val = 0;

	c->poll = 0;
	if (chip_pending(c, n == MASTER) >= 0) {
		val = (u8)(0x80 | chip_ack(c, n == MASTER));
		if (n == SLAVE)
			chip_line(&p->chip[MASTER], CASCADE_IR, false);
		else
			out_set(p, false);
		pair_update(p);
	}
	return val;
}

static u8 chip_read(struct i8259 *p, unsigned n, u64 off)
{
	const struct chip *c = &p->chip[n];

	if (c->poll)
		return poll_read(p, n);
	if (off)
		return c->imr;
	return c->read_isr ? c->isr : irr(c);
}

static u64 master_read(void *dev, u64 off, unsigned size)
{
	return chip_read(dev, MASTER, off);
}

static void master_write(void *dev, u64 off, u64 val, unsigned size)
{
	chip_write(dev, MASTER, off, (u8)val);
}

static u64 slave_read(void *dev, u64 off, unsigned size)
{
	return chip_read(dev, SLAVE, off);
}

static void slave_write(void *dev, u64 off, u64 val, unsigned size)
{
	chip_write(dev, SLAVE, off, (u8)val);
}

static u64 elcr_read(void *dev, u64 off, unsigned size)
{
	return ((struct i8259 *)dev)->chip[off & 1].elcr;
}

static void elcr_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct i8259 *p = dev;

	p->chip[off & 1].elcr = (u8)val & elcr_mask[off & 1];
	pair_update(p);
}

static const struct mmio_ops master_ops = { master_read, master_write, 1, 1 };
static const struct mmio_ops slave_ops = { slave_read, slave_write, 1, 1 };
static const struct mmio_ops elcr_ops = { elcr_read, elcr_write, 1, 1 };

/* ---- class ------------------------------------------------------------------------------ */

static bool i8259_init(struct device *d, struct error *e)
{
	return mem_add_ports(d->mem, "i8259 master", 0x20, 2, &master_ops, d, e) &&
	       mem_add_ports(d->mem, "i8259 slave", 0xa0, 2, &slave_ops, d, e) &&
	       mem_add_ports(d->mem, "i8259 elcr", 0x4d0, 2, &elcr_ops, d, e);
}

/* The 8259A has no reset pin and wakes up in any state. Ours wakes up masked, with the vectors
 * that a BIOS programs, so that a system booted without one hears nothing it did not ask for. */
static void i8259_reset(struct device *d)
{
	struct i8259 *p = (struct i8259 *)d;

	for (unsigned n = 0; n < 2; n++) {
		u8 lines = p->chip[n].lines; /* belong to the devices */

		p->chip[n] = (struct chip){ .lines = lines, .imr = 0xff, .lowest = 7,
					    .vector = n == MASTER ? 0x08 : 0x70 };
	}
	pair_update(p);
}

/* Values that only a damaged file can hold become ones that the code above can meet. */
static void i8259_loaded(struct device *d)
{
	struct i8259 *p = (struct i8259 *)d;

	for (unsigned n = 0; n < 2; n++) {
		p->chip[n].lowest &= 7;
		p->chip[n].vector &= 0xf8;
		p->chip[n].elcr &= elcr_mask[n];
		p->chip[n].expect &= 3;
	}
	p->out = p->out != 0;
	if (p->out_fn)
		p->out_fn(p->out_arg, p->out);
}

static const struct state_field i8259_state[] = {
	STATE(struct i8259, chip),
	STATE(struct i8259, out),
	STATE_END
};

const struct device_class i8259_class = {
	.name = "i8259",
	.help = "pair of 8259A interrupt controllers with ELCR",
	.size = sizeof(struct i8259),
	.init = i8259_init,
	.reset = i8259_reset,
	.loaded = i8259_loaded,
	.state = i8259_state,
};
