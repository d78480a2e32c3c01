/* The code that all blocks share, at the start of the cache: entering, leaving, the way to gate.c and back,
 * finding the target of an indirect branch. See bt.h for where things are. */
#include "bt/bt.h"

static void ctx_load(struct emit *e, unsigned r, struct marg m) { e_mem(e, E_W | E_GS | 0x8b, r, m); }
static void ctx_store(struct emit *e, unsigned r, struct marg m) { e_mem(e, E_W | E_GS | 0x89, r, m); }
static void cmp_zero(struct emit *e, struct marg m) { e_mem(e, E_GS | 0x83, 7, m); e8(e, 0); }
static void set32(struct emit *e, struct marg m, u32 v) { e_mem(e, E_GS | 0xc7, 0, m); e32(e, v); }

/* The guest's registers that have a host's of their own, with their places in cpu->regs. */
static const struct { u8 host, guest; } pairs[] = {
	{ RCX, R_CX }, { RDX, R_DX }, { RBX, R_BX }, { HOST_SP, R_SP }, { RBP, R_BP }, { RSI, R_SI }, { RDI, R_DI },
	{ R8, R_8 }, { R9, R_9 }, { R10, R_10 }, { R12, R_12 }, { R13, R_13 }, { R14, R_14 },
};
static const u8 callee_saved[] = { RBX, RBP, R12, R13, R14, R15 };

static void e_push(struct emit *e, unsigned r) { if (r >= 8) e8(e, 0x41); e8(e, 0x50 | (r & 7)); }
static void e_pop(struct emit *e, unsigned r) { if (r >= 8) e8(e, 0x41); e8(e, 0x58 | (r & 7)); }

/* MOVUPS, VMOVUPS or VMOVUPS with EVEX between vector register v and [r11 + 64 * v]. */
static void vector_move(struct emit *e, unsigned v, unsigned width, bool store)
{
	u32 op = store ? 0x11 : 0x10;
	if (width == 64) {
		e8(e, 0x62);
		e8(e, (~v >> 3 & 1) << 7 | 0x40 | (~v >> 4 & 1) << 4 | 1); /* X = 1; B = 0: r11 */
		e8(e, 0x7c);
		e8(e, 0x48);
	} else if (width == 32) {
		e8(e, 0xc4);
		e8(e, (~v >> 3 & 1) << 7 | 0x40 | 1);
		e8(e, 0x7c);
	} else {
		e8(e, 0x41 | (v >> 3 & 1) << 2);
		e8(e, 0x0f);
	}
	e8(e, op);
	e8(e, 0x80 | (v & 7) << 3 | (R11 & 7));
	e32(e, v * 64);
}
static void opmask_move(struct emit *e, unsigned k, bool wide, bool store)
{
	e8(e, 0xc4);
	e8(e, 0xc1); /* B = 0: r11 */
	e8(e, wide ? 0xf8 : 0x78);
	e8(e, store ? 0x91 : 0x90);
	e8(e, 0x80 | k << 3 | (R11 & 7));
	e32(e, k * 8);
}
/* [r11 + 64 * v + at] to ymm0 (at 32) or xmm1 (at 16), or ORed to it. */
static void upper_look(struct emit *e, unsigned v, unsigned at, bool or)
{
	e8(e, 0xc4);
	e8(e, 0xc1);
	e8(e, at == 32 ? 0x7c : or ? 0x70 : 0x78);
	e8(e, or ? 0x56 : 0x10);                         /* VORPS, VMOVUPS */
	e8(e, at == 32 ? 0x83 : 0x8b);
	e32(e, v * 64 + at);
}

/* Loads vectors whose bits from 128 on are all 0, as programs without AVX have them, so that the processor knows
 * that: else each instruction of SSE's depends on the upper half of the register that it writes. Returns where it
 * is done; where they are not, goes on behind it. */
static u8 *vectors_load_lower(struct emit *e)
{
	for (unsigned v = 0; v < 16; v++) {
		upper_look(e, v, 32, v != 0);
		upper_look(e, v, 16, v != 0);
	}
	ebytes(e, (const u8[]){ 0xc4, 0xe2, 0x7d, 0x17, 0xc0 }, 5); /* vptest ymm0, ymm0 */
	u8 *some = e_jcc(e, CC_NZ);
	ebytes(e, (const u8[]){ 0xc4, 0xe2, 0x79, 0x17, 0xc9 }, 5); /* vptest xmm1, xmm1 */
	u8 *more = e_jcc(e, CC_NZ);
	e8(e, 0xc5); e8(e, 0xf8); e8(e, 0x77);           /* vzeroupper */
	for (unsigned v = 0; v < 16; v++)
		vector_move(e, v, 16, false);
	u8 *done = e_jmp(e);
	e_here32(e, some);
	e_here32(e, more);
	return done;
}

/* Status flags are lost. */
static void vectors_move(struct emit *e, bool store)
{
	bool avx512 = __builtin_cpu_supports("avx512f"), avx = __builtin_cpu_supports("avx");
	unsigned width = avx512 ? 64 : avx ? 32 : 16;
	ctx_load(e, R11, M_CTX(zmm));
	u8 *lower = !store && avx ? vectors_load_lower(e) : NULL;
	for (unsigned v = 0; v < 16; v++)
		vector_move(e, v, width, store);
	if (lower)
		e_here32(e, lower);
	if (avx512) {
		e_mem(e, E_GS | 0x80, 7, M_CTX(zmm_high)); /* cmp byte */
		e8(e, 0);
		u8 *none = e_jcc(e, CC_Z);
		for (unsigned v = 16; v < 32; v++)
			vector_move(e, v, 64, store);
		ctx_load(e, R11, M_CTX(k));
		for (unsigned k = 0; k < 8; k++)
			opmask_move(e, k, __builtin_cpu_supports("avx512bw"), store);
		e_here32(e, none);
	}
	if (store && avx) {
		e8(e, 0xc5); e8(e, 0xf8); e8(e, 0x77); /* vzeroupper */
	}
}

static void registers_store(struct emit *e)
{
	ctx_load(e, R11, M_CTX(cpu));
	e_store(e, RAX, M_BASE(R11, 0));
	for (unsigned k = 0; k < ARRAY_LEN(pairs); k++)
		e_store(e, pairs[k].host, M_BASE(R11, pairs[k].guest * 8));
}

/* All of the guest's but vectors to struct cpu and the context. Entered at the place returned with status
 * flags in the host's, at *saved with them in ctx.flags. */
static u8 *emit_store(struct emit *e, u8 **saved)
{
	u8 *common = emit_here(e);
	registers_store(e);
	e8(e, 0x9f);                                     /* lahf */
	e8(e, 0x0f); e8(e, 0x90); e8(e, 0xc0);           /* seto al */
	e8(e, 0x66);
	e_mem(e, E_GS | 0x89, RAX, M_CTX(flags));
	u8 *over = e_jmp(e);

	*saved = emit_here(e);
	registers_store(e);
	e_here32(e, over);
	ctx_store(e, RSP, M_CTX(return_sp));
	ctx_load(e, RAX, M_CTX(home11));
	e_store(e, RAX, M_BASE(R11, R_11 * 8));
	ctx_load(e, RAX, M_CTX(home15));
	e_store(e, RAX, M_BASE(R11, R_15 * 8));
	return common;
}

/* ... and back; goes to ctx.enter_at with status flags in both places. */
static void emit_load(struct emit *e)
{
	ctx_load(e, R11, M_CTX(cpu));
	e_load(e, RAX, M_BASE(R11, R_11 * 8));
	ctx_store(e, RAX, M_CTX(home11));
	e_load(e, RAX, M_BASE(R11, R_15 * 8));
	ctx_store(e, RAX, M_CTX(home15));
	e_mem(e, E_GS | 0x0fb7, RAX, M_CTX(flags));      /* movzx eax, word */
	e8(e, 0x04); e8(e, 0x7f);                        /* add al, 7fh */
	e8(e, 0x9e);                                     /* sahf */
	for (unsigned k = 0; k < ARRAY_LEN(pairs); k++)
		e_load(e, pairs[k].host, M_BASE(R11, pairs[k].guest * 8));
	e_load(e, RAX, M_BASE(R11, 0));
	ctx_load(e, RSP, M_CTX(return_sp));
	e_mem(e, E_GS | 0xff, 4, M_CTX(enter_at));       /* jmp */
}

/* gate_run() decides where to go on: *done. */
static void emit_gate(struct bt *b, struct emit *e, u8 **done)
{
	b->gate_common = emit_store(e, &b->gate_saved);
	ctx_load(e, RSP, M_CTX(host_sp));
	e_lea(e, RSP, M_BASE(RSP, -8));                  /* aligned, as calls expect */
	e_const(e, RDI, (u64)b);
	e_const(e, RAX, (u64)gate_run);
	e_reg(e, 0xff, 2, RAX);                          /* call */
	*done = e_jmp(e);
}

/* A kick from here on finds a place where it can leave; the ones before are seen here. */
static void emit_gate_tail(struct emit *e, const u8 *leave)
{
	ctx_store(e, RAX, M_CTX(enter_at));
	e_reg(e, E_W | 0x85, RAX, RAX);                  /* test */
	e_jcc_to(e, CC_Z, leave);
	cmp_zero(e, M_CTX(kicked));
	e_jcc_to(e, CC_NZ, leave);
	emit_load(e);
}

/* The place to leave from, where all but vectors is stored. */
static u8 *emit_leave(struct bt *b, struct emit *e)
{
	b->exit_common = emit_store(e, &b->exit_saved);
	u8 *over = e_jmp(e);

	b->abort = emit_here(e);
	set32(e, M_CTX(exit), X_NOTHING);
	e_here32(e, over);
	u8 *leave = emit_here(e);
	ctx_load(e, RSP, M_CTX(host_sp));
	cmp_zero(e, M_CTX(units_off));
	u8 *dead = e_jcc(e, CC_NZ);
	set32(e, M_CTX(units_off), 1);
	vectors_move(e, true);
	e_here32(e, dead);
	e_mem(e, E_GS | 0x8b, RAX, M_CTX(exit));
	for (unsigned k = ARRAY_LEN(callee_saved); k-- > 0;)
		e_pop(e, callee_saved[k]);
	e8(e, 0xc3);
	return leave;
}

static void emit_enter(struct bt *b, struct emit *e)
{
	b->enter = (u32 (*)(struct bt *))(uintptr_t)emit_here(e);
	for (unsigned k = 0; k < ARRAY_LEN(callee_saved); k++)
		e_push(e, callee_saved[k]);
	ctx_store(e, RSP, M_CTX(host_sp));
	/* From here on a kick leads to `abort`. */
	b->enter_start = emit_here(e);
	cmp_zero(e, M_CTX(kicked));
	e_jcc_to(e, CC_NZ, b->abort);
	cmp_zero(e, M_CTX(restore));
	u8 *without = e_jcc(e, CC_Z);
	vectors_move(e, false);
	set32(e, M_CTX(units_off), 0);
	e_here32(e, without);
	emit_load(e);
	b->enter_end = emit_here(e);
}

/* index = the place of `target` in the jump cache: its bits 2..17. Returns the jump that is taken where
 * it is not there. */
static u8 *find(struct emit *e, unsigned target, unsigned index)
{
	e_rorx(e, index, target, 2);
	e_reg(e, 0x0fb7, index, index);                  /* movzx r32, r16 */
	e_mem(e, E_W | E_GS | 0x3b, target, M_SIB(ENC_NONE, index, 3, JUMP_TAG_AT));
	return e_jcc(e, CC_NZ);
}

u8 *glue_find(struct emit *e, unsigned target)
{
	unsigned index = target == T ? RCX : T;
	if (target == T)
		ctx_store(e, RCX, M_CTX(save_rcx));
	u8 *none = find(e, target, index);
	e_mem(e, E_W | E_GS | 0x8b, T, M_SIB(ENC_NONE, index, 3, JUMP_HOST_AT));
	if (target == T)
		ctx_load(e, RCX, M_CTX(save_rcx));
	return none;
}

u8 *glue_jump(struct emit *e, unsigned target)
{
	u8 *none = target == T ? glue_find(e, T) : find(e, target, T);
	if (target == T)
		e_reg(e, 0xff, 4, T);                    /* jmp r11 */
	else
		e_mem(e, E_GS | 0xff, 4, M_SIB(ENC_NONE, T, 3, JUMP_HOST_AT));
	return none;
}

static void emit_lookup(struct bt *b, struct emit *e)
{
	b->lookup_miss = emit_here(e);
	ctx_store(e, T, M_CTX(target));
	e_jmp_to(e, b->exit_saved);

	b->lookup = emit_here(e);
	u8 *none = glue_jump(e, T);
	e_here32(e, none);
	ctx_load(e, RCX, M_CTX(save_rcx));
	e_jmp_to(e, b->lookup_miss);

	/* What a RET finds on an empty return stack; it has popped this very address. */
	b->return_miss = emit_here(e);
	e_lea(e, RSP, M_BASE(RSP, -8));
	e_jmp_to(e, b->lookup);
}

/* Returns with the vectors in the host's registers; T is used, status flags are kept. */
static void emit_units_load(struct bt *b, struct emit *e)
{
	b->units_load = emit_here(e);
	ctx_store(e, RAX, M_CTX(save_rax));
	e8(e, 0x9f);                                     /* lahf */
	e8(e, 0x0f); e8(e, 0x90); e8(e, 0xc0);           /* seto al */
	e8(e, 0x66);
	e_mem(e, E_GS | 0x89, RAX, M_CTX(flags));
	cmp_zero(e, M_CTX(units_no));
	u8 *no = e_jcc(e, CC_NZ);
	vectors_move(e, false);
	set32(e, M_CTX(units_off), 0);
	e_mem(e, E_GS | 0x0fb7, RAX, M_CTX(flags));      /* movzx eax, word */
	e8(e, 0x04); e8(e, 0x7f);                        /* add al, 7fh */
	e8(e, 0x9e);                                     /* sahf */
	ctx_load(e, RAX, M_CTX(save_rax));
	e8(e, 0xc3);
	e_here32(e, no);
	ctx_load(e, RAX, M_CTX(save_rax));
	e_lea(e, RSP, M_BASE(RSP, 8));
	e_jmp_to(e, b->exit_saved);
}

bool glue_init(struct bt *b, struct error *e)
{
	struct emit m = { .p = b->rw, .end = b->rw + 16384, .to_run = b->rx - b->rw };
	u8 *leave = emit_leave(b, &m), *gate_done;
	emit_gate(b, &m, &gate_done);
	emit_enter(b, &m);
	emit_lookup(b, &m);
	emit_units_load(b, &m);
	e_here32(&m, gate_done);
	emit_gate_tail(&m, leave);
	b->glue_end = emit_here(&m);
	if (m.full)
		return error_set(e, "bt: the shared code does not fit");
	b->seg[0].start = (u32)((m.p - b->rw + 63) & ~63);
	b->used = b->seg[0].start;
	return true;
}
