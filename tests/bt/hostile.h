/* A hostile program and what stands around it: bytes of the host that a guest must never reach, on
 * every side of its RAM and in the heap, filled with a secret. After each program the secret is
 * where it was, and nowhere in the guest. */
#ifndef RING3_TESTS_BT_HOSTILE_H
#define RING3_TESTS_BT_HOSTILE_H

#include "bt_rig.h"

enum { HANDLER = 0x3000, TSS = 0x4000, KERNEL_STACK = 0x38000, RAM_LAST = RAM_SIZE - 4096 };

/* From the next hostile_up() on each program is the guest of a small hypervisor, by AMD-V or by VT-x, that has all of
 * RAM mapped to itself but what is its own, and looks at exceptions before the program does (hostile_guest.c). */
enum hostile_host { HOST_NONE, HOST_SVM, HOST_VMX };
void hostile_under(enum hostile_host host);
/* Within the test, not as its fixtures: see engine_signals(). */
void hostile_up(void);
void hostile_down(void);
/* Fresh, at CPL 0 or 3, with handlers that halt for every exception, and the host's addresses in
 * registers: RAX canary below RAM, RBX above, RCX in the heap, RDX the context, RSI the code cache
 * (written), RDI (run), R8 the page table, R9 RAM, R10 a libc function, R12 the host's stack,
 * R13 the return stack, R14 exit_common; R11 = R15 = RAM's canary - DATA. */
void hostile_fresh(unsigned cpl);
/* From CODE until it halts, shuts down, or has had its time. */
enum end { END_HALT, END_SHUTDOWN, END_TIME };
enum end hostile_go(void);
/* The canaries, and no secret, host address (registers) in the guest. name: for the message. */
void hostile_check(const char *name);
/* All of these at once. */
void hostile_run(const char *name, unsigned cpl, const void *code, size_t n);
extern unsigned hostile_programs;
/* Programs by the hundred (hostile_programs.c): those with a name, at CPL 0 and 3; accesses at the end of RAM; pages that
 * are chosen so that a host address comes out; so many pages of random bytes. */
void hostile_all(void);
void hostile_end_of_ram(void);
void hostile_chosen_pages(void);
void hostile_random(unsigned pages);
/* For hostile_go(): turns the state into the hypervisor's, about to enter the guest that has the state now; fails where
 * that guest was never entered. */
void hostile_guest_begin(enum hostile_host host);
void hostile_guest_check(enum hostile_host host);
u64 hostile_canary(unsigned n); /* host addresses: 0 below RAM, 1 above, 2 heap */

#endif
