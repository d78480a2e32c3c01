/* The 82540EM's PHY and EEPROM. Manual 8.3 to 8.5 (PHY, the one of the M88E1011), 13.4.6 (MDIC), 5.3 to 5.6
 * (EEPROM), 13.4.3 and 13.4.4 (EECD, EERD); 93C46's data sheet for its serial protocol.
 *
 * The PHY has agreed on 1000 Mbit/s, full duplex, as soon as it is asked to. */
#include "dev/e1000_impl.h"

#include <string.h>

#define PHY_ADDRESS 1u
enum { PHY_CTRL = 0, PHY_STATUS = 1, PHY_ID1 = 2, PHY_ID2 = 3, PHY_ADVERTISE = 4, PHY_PARTNER = 5, PHY_EXPANSION = 6, PHY_1000_CTRL = 9,
       PHY_1000_STATUS = 10, PHY_EXT_STATUS = 15, PHY_SPECIFIC_CTRL = 16, PHY_SPECIFIC_STATUS = 17, PHY_INT_ENABLE = 18,
       PHY_EXT_CTRL = 20, PHY_PAGE = 29, PHY_GENERAL = 30 };
enum { CTRL_RESET = 1 << 15, CTRL_LOOPBACK = 1 << 14, CTRL_POWER_DOWN = 1 << 11, CTRL_RESTART = 1 << 9 };
enum { STATUS_LINK = 1 << 2, STATUS_AGREED = 1 << 5, SPECIFIC_LINK = 0xac00 }; /* 1000, full duplex, resolved, link */
#define MDIC_WRITE (1u << 26)
#define MDIC_READ (2u << 26)
#define MDIC_READY (1u << 28)
#define MDIC_INT (1u << 29)
#define MDIC_ERROR (1u << 30)

/* ---- the PHY ------------------------------------------------------------------------------------ */

void e1000_phy_reset(struct e1000 *e)
{
	memset(e->phy, 0, sizeof(e->phy));
	e->phy[PHY_CTRL] = 0x1140;
	e->phy[PHY_STATUS] = 0x7949;
	e->phy[PHY_ID1] = 0x0141;
	e->phy[PHY_ID2] = 0x0c20;
	e->phy[PHY_ADVERTISE] = 0x0de1;
	e->phy[PHY_PARTNER] = 0xcde1;
	e->phy[PHY_EXPANSION] = 1;
	e->phy[PHY_1000_CTRL] = 0x0e00;
	e->phy[PHY_1000_STATUS] = 0x3c00;
	e->phy[PHY_EXT_STATUS] = 0x3000;
	e->phy[PHY_SPECIFIC_CTRL] = 0x0360;
	e->phy[PHY_EXT_CTRL] = 0x0d60;
}

bool e1000_link(const struct e1000 *e) { return e->net && !(e->phy[PHY_CTRL] & CTRL_POWER_DOWN); }

bool e1000_loops_back(const struct e1000 *e) { return e->phy[PHY_CTRL] & CTRL_LOOPBACK; }

static u16 phy_read(const struct e1000 *e, unsigned n)
{
	if (n == PHY_STATUS)
		return e->phy[n] | (e1000_link(e) ? STATUS_LINK | STATUS_AGREED : 0);
	if (n == PHY_SPECIFIC_STATUS)
		return e1000_link(e) ? SPECIFIC_LINK : 0;
	return e->phy[n];
}

static void phy_write(struct e1000 *e, unsigned n, u16 val)
{
	static const u32 writable = 1u << PHY_CTRL | 1u << PHY_ADVERTISE | 1u << PHY_1000_CTRL | 1u << PHY_SPECIFIC_CTRL | 1u << PHY_INT_ENABLE |
				    1u << PHY_EXT_CTRL | 1u << PHY_PAGE | 1u << PHY_GENERAL;

	if (n == PHY_CTRL && (val & CTRL_RESET)) {
		e1000_phy_reset(e);
		e1000_cause(e, INT_LSC);
	} else if (n == PHY_CTRL) {
		e->phy[n] = val & (u16)~CTRL_RESTART;
		if (val & CTRL_RESTART)
			e1000_cause(e, INT_LSC);
	} else if (writable >> n & 1) {
		e->phy[n] = val;
	}
}

void e1000_mdic_write(struct e1000 *e, u32 val)
{
	unsigned n = val >> 16 & 31, address = val >> 21 & 31;
	u32 result = (val & ~(MDIC_ERROR | MDIC_READY)) | MDIC_READY;

	if (address != PHY_ADDRESS)
		result |= MDIC_ERROR;
	else if (val & MDIC_READ)
		result = (result & 0xffff0000) | phy_read(e, n);
	else if (val & MDIC_WRITE)
		phy_write(e, n, (u16)val);
	*e1000_reg(e, R_MDIC) = result;
	if (val & MDIC_INT)
		e1000_cause(e, INT_MDAC);
}

/* ---- the EEPROM ------------------------------------------------------------------------------------ */

enum { EECD_SK = 1 << 0, EECD_CS = 1 << 1, EECD_DI = 1 << 2, EECD_DO = 1 << 3, EECD_NO_WRITES = 1 << 4, EECD_REQ = 1 << 6, EECD_GNT = 1 << 7,
       EECD_PRESENT = 1 << 8 };
enum { EERD_START = 1 << 0, EERD_DONE = 1 << 4 };
enum { COMMAND_BITS = 9, COMMAND_READ = 6 }; /* a one, two bits of operation, six of address */
#define SUM 0xbaba

void e1000_eeprom_fill(struct e1000 *e)
{
	/* Words that drivers look at: compatibility, PBA number, init control, ids. 5.6. */
	static const struct { u8 at; u16 val; } words[] = {
		{ 0x08, 0x3000 }, { 0x09, 0x0001 }, { 0x0a, 0x6408 }, { 0x0b, 0x001e }, { 0x0c, 0x8086 }, { 0x0d, 0x100e }, { 0x0e, 0x8086 },
		{ 0x0f, 0x3040 },
	};
	u16 sum = 0;

	memset(e->eeprom, 0, sizeof(e->eeprom));
	for (size_t k = 0; k < ARRAY_LEN(words); k++)
		e->eeprom[words[k].at] = words[k].val;
	for (unsigned k = 0; k < 3; k++)
		e->eeprom[k] = ld16(e->mac + 2 * k);
	for (unsigned k = 0; k < E1000_EEPROM - 1; k++)
		sum = (u16)(sum + e->eeprom[k]);
	e->eeprom[E1000_EEPROM - 1] = (u16)(SUM - sum);
}

/* A rising edge of the clock: a bit of the command comes in, or one of a word goes out. Words follow each other. */
static void clock_bit(struct e1000 *e, bool in)
{
	if (e->ee.bits < COMMAND_BITS) {
		if (!e->ee.bits && !in)
			return; /* not begun */
		e->ee.shift = (u16)(e->ee.shift << 1 | in);
		if (++e->ee.bits < COMMAND_BITS)
			return;
		e->ee.command = (u8)(e->ee.shift >> 6 & 7);
		e->ee.out = (u16)((e->ee.shift & 63) * 16);
		e->ee.level = e->ee.command != COMMAND_READ; /* a zero before the word; of writes: done */
	} else if (e->ee.command == COMMAND_READ) {
		u16 word = e->eeprom[e->ee.out / 16 % E1000_EEPROM];

		e->ee.level = word >> (15 - e->ee.out % 16) & 1;
		e->ee.out = (e->ee.out + 1) % (16 * E1000_EEPROM);
	}
}

void e1000_eecd_write(struct e1000 *e, u32 val)
{
	u32 *reg = e1000_reg(e, R_EECD), was = *reg;

	*reg = val & (EECD_SK | EECD_CS | EECD_DI | EECD_REQ);
	if (!(val & EECD_CS)) {
		e->ee.bits = e->ee.command = 0;
		e->ee.shift = e->ee.out = 0;
		e->ee.level = 1;
	} else if (val & ~was & EECD_SK) {
		clock_bit(e, val & EECD_DI);
	}
}

u32 e1000_eecd_read(struct e1000 *e)
{
	u32 val = *e1000_reg(e, R_EECD);

	return val | EECD_PRESENT | EECD_NO_WRITES | (val & EECD_REQ ? EECD_GNT : 0) | (e->ee.level ? EECD_DO : 0);
}

void e1000_eerd_write(struct e1000 *e, u32 val)
{
	u32 word = e->eeprom[(val >> 8 & 0xff) % E1000_EEPROM];

	if (val & EERD_START)
		*e1000_reg(e, R_EERD) = word << 16 | (val & 0xff00) | EERD_DONE;
}
