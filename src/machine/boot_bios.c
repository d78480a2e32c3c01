/* What a kernel finds that a BIOS has started, but for services: multiboot 1 (3.2) leaves the
 * machine "in normal working order, i.e. as initialized by the BIOS". Vectors that return at once,
 * two 8259s at 0x08 and 0x70 with only the timer and the cascade unmasked, channel 0 of the 8254
 * at 18.2 Hz. So a program that goes back to real mode may enable interrupts and halt.
 *
 * There are no BIOS services: INT n returns with nothing changed. */
#define LOG_TOPIC "boot"
#include <string.h>

#include "machine/machine_impl.h"

#define STUB_SEG 0xf000u
#define STUB_OFF ((u32)BOOT_BIOS_STUBS - STUB_SEG * 16)

/* Handlers, at STUB_OFF: of nothing; of the timer and other lines of the master; of the slave. */
static const u8 stubs[] = {
	0xcf,                                                       /* IRET */
	0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf,                   /* PUSH AX; EOI; POP AX; IRET */
	0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf,
};
enum { STUB_NONE = 0, STUB_MASTER = 1, STUB_SLAVE = 8 };

static void put_vectors(struct machine *m)
{
	u8 table[256 * 4];
	for (unsigned v = 0; v < 256; v++) {
		unsigned stub = v >= 0x08 && v < 0x10 ? STUB_MASTER : v >= 0x70 && v < 0x78 ? STUB_SLAVE : STUB_NONE;
		st32(table + 4 * v, STUB_SEG << 16 | (STUB_OFF + stub));
	}
	mem_write(&m->mem, 0, table, sizeof(table));
	mem_write(&m->mem, BOOT_BIOS_STUBS, stubs, sizeof(stubs));
}

void boot_bios_state(struct machine *m)
{
	static const struct { u16 port; u8 val; } program[] = {
		{ 0x20, 0x11 }, { 0x21, 0x08 }, { 0x21, 0x04 }, { 0x21, 0x01 }, { 0x21, 0xfa },
		{ 0xa0, 0x11 }, { 0xa1, 0x70 }, { 0xa1, 0x02 }, { 0xa1, 0x01 }, { 0xa1, 0xff },
		{ 0x43, 0x36 }, { 0x40, 0 }, { 0x40, 0 }, /* channel 0, mode 3, 65536 */
	};
	put_vectors(m);
	for (unsigned k = 0; k < ARRAY_LEN(program); k++)
		mem_port_write(&m->mem, program[k].port, program[k].val, 1);
}
