/* Local APICs that somebody else runs, a kernel: what passes between whoever does (cpu/, engines) and the board that
 * lends them (dev/). Machine lock held in all of it. */
#ifndef RING3_MEM_APIC_API_H
#define RING3_MEM_APIC_API_H

#include "base/base.h"

/* One, whole. page: registers of the xAPIC page, 4 bytes at each multiple of 16. SDM vol. 3, table 11-1. */
struct apic_state { u64 base, tsc_deadline; u8 page[1024]; };

/* A message-signalled interrupt, as it is written on the bus. SDM vol. 3, 11.11. */
struct msi { u64 addr; u32 data; };

struct apic_runner {
	void *arg;
	bool (*send)(void *arg, struct msi m); /* false: nobody took it */
	/* The IOAPIC's table has changed: a message for each pin, addr 0 where it is masked. The runner tells of the
	 * EOI of those that are level-triggered. */
	void (*pins)(void *arg, const struct msi *m, unsigned n);
};

#endif
