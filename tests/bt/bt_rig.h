/* A processor under the translating engine, in the test's own process: 64-bit mode, RAM mapped as
 * the test asks, programs written in assembly beside their tests. */
#ifndef RING3_TESTS_BT_RIG_H
#define RING3_TESTS_BT_RIG_H

#include "test.h"
#include "bt/bt.h"
#include "cpu/engine_api.h"

enum { RAM_SIZE = 16 << 20, GDT = 0x1000, IDT = 0x2000, TABLES = 0x100000, CODE = 0x10000, DATA = 0x20000, STACK = 0x30000 };
enum { PG_P = 1, PG_W = 2, PG_U = 4, PG_NX = 8 /* bit 63 */ };

struct bt_rig {
	struct mem mem;
	struct clock clock;
	struct cpu_model model;
	struct cpu_hooks hooks;
	struct cpu *c;
	struct bt *bt;
	u64 next_table;
};
extern struct bt_rig r;
extern void (*rig_after_ram)(void); /* called when there is RAM and nothing else yet; NULL: none */
extern const char *rig_model;        /* as --cpu has it */

int rig_up(void **state);
int rig_down(void **state);
/* A processor anew at CPL 0, or 3: the first 4 MiB mapped to themselves for all, nothing else. */
void rig_fresh(unsigned cpl);
/* From now on it is in compatibility mode, with 32-bit code. */
void rig_code32(void);
/* A page of 4 KiB. */
void rig_map(u64 lin, u64 phys, unsigned pg);
/* Code, as a device would write it. */
void rig_code(u64 at, const void *bytes, size_t n);
void rig_clear(u64 at, size_t n);
/* The block at lin, translated if need be; NULL: it cannot be. */
struct block *rig_block(u64 lin);

/* A piece of assembly (Intel's syntax), by name: bytes from asm_NAME to asm_NAME_end. */
#define ASM(name, text) \
	__asm__(".pushsection .rodata\nasm_" #name ": .intel_syntax noprefix\n" text "\n.att_syntax prefix\nasm_" #name "_end: .popsection"); \
	extern const u8 asm_##name[] __asm__("asm_" #name), asm_##name##_end[] __asm__("asm_" #name "_end")
#define ASM32(name, text) ASM(name, ".code32\n" text "\n.code64")
#define ASM_SIZE(name) ((size_t)(asm_##name##_end - asm_##name))

#endif
