/* inside: a 64-bit guest once more at level 2, the same program under a small hypervisor of its own. NAME-svm.elf and
 * NAME-vmx.elf are NAME's object with inside.c and one of inside_svm.c, inside_vmx.c.
 *
 *  1. The host is the image as it was loaded; its guest is a copy of the image, AWAY from it, that sees itself where the
 *     host lies. An address that is taken for one of the other level hits the other's memory, and shows.
 *  2. Second-level entries come by faults: a page at a time, with the rights that the access needs. Now and then all are
 *     dropped. So anything the guest does is interrupted half-way, deliveries of events included, and done again.
 *  3. The guest has the machine's ports, MSRs and devices, but for what the host lives on. Some of its exceptions go
 *     through the host, and CPUID.
 *  4. At the end the guest asks whether the host's memory is as it was (level_leave). */
#ifndef INSIDE_H
#define INSIDE_H
#include "guest.h"

/* RAM of the machine that the guest has: so much, and as far up. */
#define AWAY 0x8000000ul

enum { INSIDE_READ = 1, INSIDE_WRITE = 2, INSIDE_FETCH = 4 };

/* In the order of the registers' numbers; RSP is not here, but in the VMCB or VMCS. */
struct inside_regs { u64 ax, cx, dx, bx, sp_, bp, si, di, r8, r9, r10, r11, r12, r13, r14, r15; };
extern struct inside_regs inside_regs;

/* ---- what a kind of host brings ---------------------------------------------------------------- */

/* Enters the guest at guest_start() and stays; the guest's end is the machine's. */
_Noreturn void host_run(void);
/* A second-level entry: of the next table, or of a page that `rights` (INSIDE_*) are needed of. */
u64 host_entry(u64 hpa, unsigned rights, bool page);
void host_flush(void);                  /* second-level translations are gone */
void host_call(struct inside_regs *r);  /* the guest's hypercall instruction */

/* ---- what they share ------------------------------------------------------------------------------ */

extern u64 second_root[512];
void second_map(u64 gpa, unsigned rights); /* more rights than it has */
/* A hypercall of level_leave(): answers in *r. */
#define INSIDE_CALL 0x5250494e47334c32ull
void inside_answer(struct inside_regs *r);
/* RDMSR, WRMSR, XSETBV as the guest asks; false: #GP. */
bool inside_rdmsr(void);
bool inside_wrmsr(void);
bool inside_xsetbv(void);
void inside_cpuid(void);
/* An exception `vec` on top of an event that was on its way, `first` (-1: none) : which it is now, or -1, a triple fault. */
int inside_combine(int first, int vec);
_Noreturn void inside_lost(const char *what, u64 a, u64 b);
void inside_count_exit(void);

#endif
