/* A processor with memory and tables around it, for the tests of segments, transfers, events.
 *
 * One GDT serves all; a test overwrites entries from SCRATCH up. Memory is identity-mapped;
 * long mode has 2-MiB user pages over all of it. FAULTS(call, vector, error) checks that the
 * call raises just that, and that no register changed. */
#ifndef RING3_TEST_WORLD_H
#define RING3_TEST_WORLD_H

#include "test.h"
#include "cpu/seg.h"

enum { GDT = 0x1000, IDT = 0x2000, LDT = 0x3000, TSS = 0x4000, TSS_B = 0x5000, TSS_16 = 0x6000, PML4 = 0x8000,
       PDPT = 0x9000, PD = 0xa000, PT = 0xb000, CODE = 0x10000, STACK0 = 0x20000, STACK1 = 0x24000,
       STACK3 = 0x28000, IST1 = 0x2c000 };

/* Selectors of the GDT. */
enum { C0 = 0x08, D0 = 0x10, C3 = 0x1b, D3 = 0x23, SEL_TSS = 0x28, L0 = 0x38, L3 = 0x43, CONF = 0x48,
       SEL_LDT = 0x50, RO3 = 0x63, XO3 = 0x6b, DOWN3 = 0x73, NP3 = 0x7b, NPC0 = 0x80, C16 = 0x88, D16 = 0x90,
       C1 = 0x99, D1 = 0xa1, NPS0 = 0xa8, CONF3 = 0xb3, SEL_B = 0xb8, SEL_16 = 0xc0, SCRATCH = 0xe0,
       GDT_LIMIT = 0x1ff };

struct world { struct cpu *c; struct mem m; struct clock clock; struct cpu_model model; struct cpu_hooks hooks;
	       int triple; int vector; };
extern struct world w;

/* attr as struct segment has it; limit in units of its G bit. */
u64 desc(u32 base, u32 limit, u32 attr);
u64 gate(u32 attr, u16 sel, u32 off, unsigned params);
void gdt_set(u16 sel, u64 d);
void idt_set(unsigned vector, u64 g);
/* A 16-byte gate. */
void idt_set64(unsigned vector, u32 attr, u16 sel, u64 off, unsigned ist);

/* Fresh processors, RIP = CODE, RSP on the level's stack. */
void world_real(void);
void world_protected(unsigned cpl);
void world_v86(unsigned iopl);
void world_long(unsigned cpl, bool compat);
int world_up(void **state);
int world_down(void **state);
/* Turns 4-KiB paging on below 4 MiB in protected mode, all pages user and writable; then unmap. */
void world_paging(void);
void world_unmap(u32 page);

static inline u32 ram32(u64 at) { return ld32(w.m.ram + at); }
static inline u16 ram16(u64 at) { return ld16(w.m.ram + at); }
static inline u64 ram64(u64 at) { return ld64(w.m.ram + at); }
static inline void put32(u64 at, u32 v) { st32(w.m.ram + at, v); }
static inline void put16(u64 at, u16 v) { st16(w.m.ram + at, v); }
static inline void put64(u64 at, u64 v) { st64(w.m.ram + at, v); }

/* Nothing is assigned between setjmp and longjmp in the macros below. */
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wclobbered"
#endif

/* What a fault must not touch. */
struct snapshot { u64 regs[16], rflags, rip, cr0, cr3; struct segment seg[N_SREGS]; u8 cpl, code_mode, mmu; bool nmi; };
struct snapshot snapshot(void);
void unchanged(const struct snapshot *before, const char *file, int line);
void check_fault(unsigned vector, u32 error, const char *file, int line);

#define FAULTS(call, vec, err) do { \
	struct snapshot before_ = snapshot(); \
	w.c->exc.vector = 0xff; \
	if (!setjmp(w.c->jb)) { \
		call; \
		fail_msg("%s:%d: no fault", __FILE__, __LINE__); \
	} \
	check_fault(vec, err, __FILE__, __LINE__); \
	unchanged(&before_, __FILE__, __LINE__); \
	w.c->delivering = -1; w.c->delivering_ext = false; \
} while (0)

/* Runs what must not fault. */
#define WORKS(call) do { \
	if (setjmp(w.c->jb)) \
		fail_msg("%s:%d: vector %u error %x", __FILE__, __LINE__, w.c->exc.vector, w.c->exc.error); \
	call; \
} while (0)

#endif
