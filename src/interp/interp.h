/* interp: the reference engine. It runs blocks of decoded instructions, handler after
 * handler; the decoded-block cache is keyed by physical address and notices every write to
 * code. What it does is the definition that the other engines are held against. */
#ifndef RING3_INTERP_H
#define RING3_INTERP_H

#include "cpu/engine_api.h"

/* Decodes one instruction for the interpreter; fills everything but off (and, for operands and
 * branches relative to RIP, leaves disp and imm relative to the instruction's own start). */
enum isa_status interp_decode(struct cpu *c, enum code_mode mode, const u8 *bytes, unsigned avail, struct insn *out);

/* ---- for an engine that leaves to this one what it does not do itself: its per-vCPU state begins
 * with a struct interp. All but the first two between fpu_load and fpu_save, in the frame of c->jb. */
struct interp;
bool interp_init(struct cpu *c, struct interp *in, struct error *e); /* sets c->engine and cpu's hooks */
void interp_destroy(struct cpu *c);
/* The instruction at RIP, with all that comes before and after one: breakpoints, traps, shadows. */
void interp_single(struct cpu *c);
/* Whole blocks, until an event is due, single steps are asked for or code_mode is another. c->slow is 0. */
void interp_some(struct cpu *c);
/* A decoded instruction that stands at RIP (its off is 0); c->slow is 0. RIP is then the next. */
void interp_exec(struct cpu *c, const struct insn *i);
/* Between two instructions: a fault from here on belongs to what stands at RIP. */
void interp_boundary(struct cpu *c);
/* After a longjmp to c->jb: delivers the exception. */
void interp_caught(struct cpu *c);
enum run_exit interp_run(struct cpu *c);   /* what engine_ops.run and step are */
enum run_exit interp_step(struct cpu *c);
void interp_count(const struct cpu *c, struct counters *t); /* engine_ops.count */

struct engine_ops;
extern const struct engine_ops interp_engine; /* listed in engine/engines.c */

#endif
