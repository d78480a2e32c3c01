/* What control registers may hold: for those who load them otherwise than by MOV (entries into guest mode).
 * Private to cpu/. */
#ifndef RING3_CPU_CONTROL_H
#define RING3_CPU_CONTROL_H

#include "cpu/cpu.h"

#define CR0_DEFINED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define DR6_FIXED 0xffff0ff0ull
#define DR6_WRITABLE 0xe00full
#define DR7_FIXED 0x400ull
#define DR7_WRITABLE 0xffff23ffull

u64 cpu_cr4_valid(const struct cpu *c);
u64 cpu_efer_valid(const struct cpu *c);

#endif
