/* What translate.c, mempath.c and branch.c share: a block in the making. Private to them. */
#ifndef RING3_BT_TR_H
#define RING3_BT_TR_H

#include "bt/bt.h"

enum kind {
	K_COPY,     /* registers only: the instruction itself */
	K_MEM,      /* the same, its memory operand replaced */
	K_BITS,     /* the same: BT and the like, a register says in which word of it */
	K_LEA, K_NOP,
	K_PUSH, K_POP, K_LEAVE,
	K_SYSTEM,   /* system.c has a translation */
	K_STRING,   /* strings.c has one */
	K_GATE,     /* gate.c does it, or the interpreter */
	K_JMP, K_JCC, K_LOOP /* and JRCXZ */, K_JMP_IND, K_CALL, K_CALL_IND, K_RET,
	K_INTERP,   /* by the interpreter */
	K_INTERP_LAST, /* which ends the block */
	K_GATE_LAST,   /* likewise */
};
enum group_role { GROUP_NONE, GROUP_FIRST, GROUP_MEMBER };
struct tins {
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	const u8 *bytes;
	const struct op *op;
	u16 off, fop;        /* fop: x87.c */
	u8 kind, live;       /* live: status flags that are, before it (as bits of LIVE_*) */
	u8 group;            /* enum group_role */
	bool group_store;    /* its entry is the store's */
	bool group_slotted;  /* of the first: T goes to the slot; of others: comes from there */
	bool no_resume;      /* insn_map's */
	bool t_held;         /* T is of a group before it, and is to stay */
	u8 group_slot;       /* in ctx.group */
	u16 group_span;      /* of the first: bytes from group_lo on that it has */
	i32 group_lo;        /* relative to its own address */
	i32 group_disp;      /* of others: from T */
	u8 window, window_stack; /* its operand's, the one by RSP (window.c); N_WINDOWS: by the table */
	u8 window_second;    /* where its operand is as well; N_WINDOWS: nowhere */
	bool writes, wants;  /* status flags: may write some; needs them in the host's */
	bool varies;         /* its immediate is read from the guest's code (selfcheck.c) */
};
/* A jump out of line, to leave. */
struct cold { u8 *site; u8 insn; bool saved; u8 addr; bool rcx; /* spilled */ u8 kind; u8 second; /* window */ u8 *back; };

#define SIDES_MAX 4u
struct translation {
	struct bt *b;
	struct emit e, out;  /* the block's code; what lies out of line */
	u64 lin;             /* of the block */
	struct code_page *page, *page2;
	u8 *start;           /* of the block's code, writable */
	struct block *block;
	u32 index;
	unsigned n;
	u16 guest_bytes;
	struct tins ins[BLOCK_INSNS];
	struct insn_map map[BLOCK_INSNS + 1];
	struct cold cold[BLOCK_INSNS * 4];
	unsigned n_cold;
	unsigned n_sides, sides; /* conditional branches within the block: of it, emitted so far */
	bool units;
	u8 n_seconds;
	bool saved;          /* here, flags are in ctx.flags */
	u64 ahead;
	u8 classes;
	u64 varies;          /* bytes of the block that it reads whenever it runs */
	u8 bytes[4096 + 16]; /* of the guest's code, as translated */
};

/* A guest register as an operand of host code: a host register, or a home in memory. */
enum { HOME11 = 32, HOME15 = 33 };
static inline unsigned host_of(unsigned guest)
{
	return guest == R_SP ? HOST_SP : guest == R_11 ? HOME11 : guest == R_15 ? HOME15 : guest;
}
static inline bool at_home(unsigned r) { return r == HOME11 || r == HOME15; }
static inline struct marg home_of(unsigned r) { return r == HOME11 ? M_CTX(home11) : M_CTX(home15); }
#define M_GROUP(slot) M_ABS(CTX(group) + 8 * (i32)(slot))
static inline void e_ctx_load(struct emit *e, unsigned r, struct marg m) { e_mem(e, E_W | E_GS | 0x8b, r, m); }
static inline void e_ctx_store(struct emit *e, unsigned r, struct marg m) { e_mem(e, E_W | E_GS | 0x89, r, m); }
static inline void e_ctx_imm(struct emit *e, struct marg m, u32 v) { e_mem(e, E_GS | 0xc7, 0, m); e32(e, v); }

/* An operand's address: parts are host_of() numbers or ENC_NONE. */
struct ea {
	bool konst;          /* lin is all (RIP-relative, absolute); with seg: an offset */
	u64 lin;
	unsigned base, index, scale;
	i32 disp;
	unsigned seg;        /* S_FS, S_GS or 0 */
	unsigned bits;       /* width of `bit`, 32 or 64: the operand is in the word that this signed bit number says */
	unsigned bit;        /* (a host_of() number); 0: none */
};
enum crossing { NO_CROSSING /* byte, or faults by itself if not aligned */, MAY_CROSS };
/* Host code that makes the operand reachable: x->mem and the rest of it, to be encoded; T is then in
 * use. Status flags that are live before the instruction are kept. spare: a register that the
 * instruction does not name. */
void mem_operand(struct translation *t, unsigned k, const struct ea *a, unsigned size, bool store, enum crossing how,
		 unsigned spare, struct enc *x);
bool mem_possible(const struct ea *a);
/* Status flags from the host's to ctx.flags, and back; T is used where it is free. */
enum t_use { T_FREE, T_HELD };
void flags_save(struct emit *e, enum t_use t);
void flags_restore(struct emit *e, enum t_use t);
/* Whether T holds a group's entry before instruction k. */
static inline enum t_use t_before(const struct translation *t, unsigned k)
{
	return t->ins[k].t_held ? T_HELD : T_FREE;
}
/* Stores the operand's offset; T is used, flags are not. False: not with these registers. */
bool mem_offset(struct translation *t, const struct ea *a, struct marg to);
/* Jumps out of line to leave for the interpreter. */
void cold_add(struct translation *t, u8 *site, unsigned k);
static inline struct cold *cold_last(struct translation *t) { return &t->cold[t->n_cold ? t->n_cold - 1 : 0]; }
/* to = addr rotated to its page number; leaves where `size` bytes there may not all be in that page. */
void page_of(struct translation *t, unsigned k, unsigned to, unsigned addr, unsigned size, enum crossing how, enum exit_kind kind);
void cold_emit(struct translation *t);
/* Jumps by the bits of r under mask; clobbers the flags. */
u8 *test_jump(struct emit *e, unsigned r, unsigned mask, enum cc cc);
void emit_exit(struct translation *t, struct emit *e, unsigned k, enum exit_kind kind, bool saved);

/* The access is where RSP is. */
static inline bool by_sp(const struct tins *i, const struct ea *a) { return i->kind == K_LEAVE || (!a->konst && a->base == HOST_SP); }

/* group.c */
void groups_plan(struct translation *t);

/* system.c */
u32 system_made_for(const struct cpu *c); /* seg_class.made_for */
/* The hypervisor may ask to see it: it is left to the interpreter. */
bool system_intercepted(const struct translation *t, const struct tins *i);
bool system_possible(const struct translation *t, const struct tins *i);
bool system_emit(struct translation *t, unsigned k);
enum gate system_gate(const struct translation *t, const struct tins *i);
u8 system_gate_arg(const struct tins *i, enum gate g); /* insn_map.gate_arg */
/* To gate.c, and from there perhaps to the interpreter. saved: as for emit_exit. */
void gate_emit(struct translation *t, struct emit *e, unsigned k, bool saved);

/* strings.c */
bool string_possible(const struct translation *t, const struct tins *i);
void string_emit(struct translation *t, unsigned k);
bool string_gated(const struct translation *t, const struct tins *i); /* gate_string.c has it all */
u8 string_gate_arg(const struct tins *i);

/* legacy.c: the same for 16- and 32-bit code */
enum kind legacy_kind(struct translation *t, struct tins *i);
bool legacy_emit(struct translation *t, unsigned k);
u64 legacy_target(const struct translation *t, unsigned k);
void legacy_push_target(struct translation *t, unsigned k); /* PUSH of ctx.target */
/* Stores the offset of its memory operand; T is used, flags are not. False: not with this address. */
bool legacy_offset(struct translation *t, const struct tins *i, struct marg to);
/* Whether the operand's segment is one that needs neither base nor limit. */
bool legacy_flat(const struct translation *t, const ZydisDecodedOperand *o);

/* branch.c */
bool branch_far(const struct translation *t, u64 target); /* goes to `checked` of another block */
u64 branch_target(const struct translation *t, unsigned k); /* linear, of a direct one */
/* Exit n of the block: site goes to target. checked: by its ok slot also within the page. */
void branch_link(struct translation *t, unsigned n, u8 *site, u64 target, bool checked);
/* The same from here on; flags are in the host's and may be live there. */
void branch_jump(struct translation *t, struct emit *e, unsigned n, u64 target);
void branch_jcc(struct translation *t, unsigned k);
void branch_loop(struct translation *t, unsigned k);
/* An indirect branch whose target is in the register `target`, T or a guest's: ctx.target = the host's
 * address for the CALL; the JMP. */
void branch_call_found(struct translation *t, unsigned k, unsigned target);
void branch_jump_found(struct translation *t, unsigned k, unsigned target);
void branch_return_site(struct translation *t, unsigned k);
void branch_emit(struct translation *t, unsigned k);
void branch_fall(struct translation *t);   /* after a last instruction that is no branch */
void branch_stubs(struct translation *t);

/* selfcheck.c */
/* An instruction after which the rest may be other code: it ends a block that checks itself. */
bool selfcheck_ends(const struct tins *i);
/* Chooses the immediates that vary, before anything is emitted; afterwards drops what the block replaces. */
void selfcheck_plan(struct translation *t);
void selfcheck_made(struct translation *t);
/* Goes to the block's stale_checked unless the guest's code is what the block is made from. */
void selfcheck_entry(struct translation *t);
/* An instruction whose immediate varies. */
void selfcheck_operand(struct translation *t, unsigned k);

/* x87.c */
bool is_x87(const struct tins *i);
u16 x87_fop(const struct tins *i);    /* of insn_map */
bool x87_after(struct translation *t, unsigned k);

/* flags.c: which status flags are live before each instruction, and what it does with them */
void liveness(struct translation *t);
bool is_pushf(const ZydisDecodedInstruction *zi);

/* copy.c */
/* Moves status flags to where instruction k wants them; then the instruction itself. False: it has no translation
 * after all, and is left to the interpreter. */
void prelude(struct translation *t, unsigned k);
bool emit_insn(struct translation *t, unsigned k);
void push_target(struct translation *t, unsigned k); /* PUSH of ctx.target */
/* Before the instruction's own host instruction, where the way to it has overwritten the flags. */
void flags_for_insn(struct translation *t, unsigned k);
bool has_high8(const struct tins *i);
/* AH..BH beside the memory of x. */
bool with_high8(struct translation *t, unsigned k, struct enc *x);

/* classify.c */
enum kind classify(struct translation *t, struct tins *i);
/* General registers as operands, by the guest's numbers; those that the instruction names, addresses included. */
bool gpr_operand(const ZydisDecodedOperand *o);
unsigned gpr_of(ZydisRegister r);
bool is_high8(ZydisRegister r);
bool is_explicit(const ZydisDecodedOperand *o);
u32 registers_used(const struct tins *i);
const ZydisDecodedOperand *memory_of(const struct tins *i);
bool operand_ea(const struct translation *t, const struct tins *i, const ZydisDecodedOperand *o, struct ea *a);
unsigned unused_register(const struct tins *i);
bool one_operand_of_memory(const struct tins *i);
bool checks_alignment(const ZydisDecodedInstruction *zi, unsigned size);
bool is_hint(const ZydisDecodedInstruction *zi);
bool is_left(const struct cpu *c, const ZydisDecodedInstruction *zi);
int unit_of(const struct tins *i);
void use_unit(struct translation *t, int unit);
enum kind interp_kind(const struct tins *i);
static inline u64 insn_lin_of(const struct translation *t, unsigned k) { return t->lin + t->ins[k].off; }
static inline u64 next_lin_of(const struct translation *t, unsigned k)
{
	u64 lin = t->lin + t->ins[k].off + t->ins[k].zi.length;
	return t->page->mode == CODE64 ? lin : (u32)lin;
}
/* From here on the instruction may not be begun again: it has changed something, or borrowed a register. */
static inline void mark_commit(struct translation *t, unsigned k)
{
	u16 at = (u16)(t->e.p - (t->start + t->map[k].host));
	if (at < t->map[k].commit) /* the first place counts */
		t->map[k].commit = at;
}
/* From here to the end of the instruction, register r is in the context. */
static inline void mark_victim(struct translation *t, unsigned k, unsigned r)
{
	t->map[k].victim = (u8)r;
	t->map[k].victim_from = (u16)(t->e.p - (t->start + t->map[k].host));
}
/* May be begun again wherever it is left. */
#define COMMIT_NEVER 0xffff

#endif
