/* interp: the reference engine. It runs blocks of decoded instructions, handler after
 * handler; the decoded-block cache is keyed by physical address and notices every write to
 * code. What it does is the definition that the other engines are held against. */
#ifndef RING3_INTERP_H
#define RING3_INTERP_H

#include "cpu/cpu.h"

/* Decodes one instruction for the interpreter; fills everything but off (and, for operands and
 * branches relative to RIP, leaves disp and imm relative to the instruction's own start). */
enum isa_status interp_decode(struct cpu *c, enum code_mode mode, const u8 *bytes, unsigned avail, struct insn *out);

struct engine_ops;
extern const struct engine_ops interp_engine; /* listed in engine/engines.c */

#endif
