/* What world.c (any mode) shares with handlers.c and the builders of single modes. */
#ifndef RING3_TESTS_BLOCKS_WORLD_H
#define RING3_TESTS_BLOCKS_WORLD_H

#include "blocks.h"

/* The system's pages, from SYS on; mapped for the supervisor at SYS_LIN. */
enum { SYS_IDT = 0 /* N_IDTS of them */, SYS_GDT = 4, SYS_TSS, SYS_STUBS, SYS_GO_STUBS, SYS_HANDLERS, SYS_VARS,
       SYS_IST, SYS_STACK, N_SYS };
enum { STACK_TOP = 0xff0, STUB_STEP = 16, PF_STACK_AT = 0x800, INTR_STACK_AT = 0xa00, SYSCALL_AT = 0xc00 };
/* In SYS_HANDLERS: PF_STACK_AT and INTR_STACK_AT #PF and interrupts of IDT_GO_STACK, SYSCALL_AT what SYSCALL enters: SYSRET, with fuel. */

/* Offsets in SYS_VARS. */
enum { VAR_FUEL = 0, VAR_STEPS = 4, VAR_RESUME = 8, VAR_TRACE = 16, VAR_COUNT = 24, VAR_FIX = 64 };
enum { MAX_FIX = 24 }; /* pages that a handler can make accessible: numbers, then entries | bits */

/* Selectors: kernel code, kernel data, user data, user code. */
enum { K_CS = 0x10, K_DS = 0x18, U_DS = 0x23, U_CS = 0x2b, TSS_SEL = 0x40 };

u8 *sys_page(struct world *w, unsigned k);        /* in base */
u64 sys_lin(const struct world *w, unsigned k);
u64 vars_lin(const struct world *w, unsigned off);

/* A page table entry by the page's letter: everything but the address. *fix: bits that make it accessible. */
u64 letter_bits(char letter, bool kernel, bool nx, unsigned *fix);

void handlers64(struct world *w, bool exact_flags); /* handlers.c */
bool world64_build(struct world *w, bool exact_flags);

#endif
