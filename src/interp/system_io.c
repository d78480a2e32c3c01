/* IN OUT INS OUTS. A permission check, the debug registers' look, then the bus. With REP one
 * element at a time: each can raise an interrupt, and each is a point at which one is taken,
 * with RCX, RSI, RDI telling what is left and RIP back at the instruction. SDM volume 2;
 * volume 1 chapter 19.
 *
 * INS checks that it can store before it reads the port, since a port's value is gone once read. */
#include "interp/system.h"

static void io_check(struct cpu *c, u16 port, unsigned size, bool write, bool string)
{
	if (!cpu_io_allowed(c, port, size))
		cpu_gp0(c);
	nested_check(c, ICPT_IO, port | size << 16 | (write ? 0 : IO_IN) | (string ? IO_STRING : 0));
	if (unlikely(c->slow & SLOW_DR7))
		cpu_data_breakpoint(c, port, size, write, true);
	cpu_clock_sync(c);
}

/* Operands are 1, 2 or 4 bytes; REX.W changes nothing. */
static inline unsigned io_size(const struct insn *i) { return i->opsz > 4 ? 4 : i->opsz; }

static void port_in(struct cpu *c, const struct insn *i, u16 port)
{
	unsigned size = io_size(i);
	io_check(c, port, size, false, false);
	reg_st(c, R_AX, mem_port_read(c->mem, port, size), size);
}

static void port_out(struct cpu *c, const struct insn *i, u16 port)
{
	unsigned size = io_size(i);
	io_check(c, port, size, true, false);
	mem_port_write(c->mem, port, (u32)reg_ld(c, R_AX, size), size);
}

OP_END(op_in_i) { port_in(c, i, (u8)i->imm); }
OP_END(op_in_dx) { port_in(c, i, reg_ld16(c, R_DX)); }
OP_END(op_out_i) { port_out(c, i, (u8)i->imm); }
OP_END(op_out_dx) { port_out(c, i, reg_ld16(c, R_DX)); }

/* ---- strings --------------------------------------------------------------------------------- */

static inline i64 step_of(const struct cpu *c, unsigned size) { return c->rflags & FL_DF ? -(i64)size : (i64)size; }

static void ins_one(struct cpu *c, const struct insn *i, unsigned size)
{
	u64 mask = addr_mask(i->adsz);
	u16 port = reg_ld16(c, R_DX);
	io_check(c, port, size, false, true);
	u64 lin = cpu_linear(c, S_ES, c->regs[R_DI] & mask, size, ACC_WRITE);
	mem_check_aligned(c, lin, size);
	mem_probe(c, lin, size, ACC_WRITE);
	mem_st(c, lin, mem_port_read(c->mem, port, size), size);
	str_add(c, R_DI, step_of(c, size), mask);
}

static void outs_one(struct cpu *c, const struct insn *i, unsigned size)
{
	u64 mask = addr_mask(i->adsz);
	u16 port = reg_ld16(c, R_DX);
	io_check(c, port, size, true, true);
	u64 v = mem_ld(c, cpu_linear(c, i->seg, c->regs[R_SI] & mask, size, ACC_READ), size);
	mem_port_write(c->mem, port, (u32)v, size);
	str_add(c, R_SI, step_of(c, size), mask);
}

static void repeat(struct cpu *c, const struct insn *i, unsigned size,
		   void (*one)(struct cpu *, const struct insn *, unsigned))
{
	u64 mask = addr_mask(i->adsz);
	if (!(c->regs[R_CX] & mask) && !cpu_io_allowed(c, reg_ld16(c, R_DX), size))
		cpu_gp0(c); /* also where nothing is moved */
	while (c->regs[R_CX] & mask) {
		one(c, i, size);
		str_add(c, R_CX, -1, mask);
		if (rep_leave(c, i, mask))
			return;
	}
}

/* All but these two end their block, so that what a port brings about is seen right after them. */
#define X(bits) \
OP(op_ins_##bits) { cpu_device_sync(c); ins_one(c, i, bits / 8); } \
OP(op_outs_##bits) { cpu_device_sync(c); outs_one(c, i, bits / 8); } \
OP_END(op_rep_ins_##bits) { repeat(c, i, bits / 8, ins_one); } \
OP_END(op_rep_outs_##bits) { repeat(c, i, bits / 8, outs_one); }
X(8) X(16) X(32)
#undef X
