/* One instruction at a time through the interpreter's decoder and handlers, with no engine loop
 * around it: a fault comes back as its vector. */
#ifndef RING3_TESTS_SYS_RIG_H
#define RING3_TESTS_SYS_RIG_H

#include "test.h"
#include "cpu/engine_api.h"
#include "interp/block.h"

enum { CODE = 0x10000, DATA = 0x20000, STACK = 0x30000, TSS = 0x4000, GDT = 0x1000 };

struct sys_rig {
	struct mem mem;
	struct clock clock;
	struct cpu_model model;
	struct cpu_hooks hooks;
	struct cpu *c;
	struct insn insn[2];
};
extern struct sys_rig s;

int sys_up(void **state);
int sys_down(void **state);
void sys_model(const char *spec);

/* Fresh processors; data and stack at DATA and STACK, flat but in real and V86 mode. */
void sys_real(void);
void sys_protected(unsigned cpl);
void sys_v86(unsigned iopl);
void sys_long(unsigned cpl);

/* The instruction at CODE: the vector that it raises, or -1. UNKNOWN: the decoder refuses it. */
enum { UNKNOWN = -2 };
int sys_bytes(const u8 *bytes, unsigned n);
#define RUN(...) sys_bytes((const u8[]){ __VA_ARGS__ }, sizeof((const u8[]){ __VA_ARGS__ }))

static inline u64 *data64(u64 off) { return (u64 *)(void *)(s.mem.ram + DATA + off); }

#endif
