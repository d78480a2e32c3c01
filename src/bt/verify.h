/* What the files of the verifier share: symbolic values, host instructions, a path through the
 * code of one guest instruction. Private to verify*.c. See verify.c for what is verified. */
#ifndef RING3_BT_VERIFY_H
#define RING3_BT_VERIFY_H

#include "bt/bt.h"

/* ---- symbolic values (verify_sym.c) --------------------------------------------------------------
 * A value is a sum of atoms, each times a factor, and a constant, modulo 2^64. Equal values have
 * equal numbers. */
typedef u16 sym;
#define SYM_NONE 0xffffu

enum atom_kind {
	AT_GUEST,    /* n: a guest register at the instruction's start */
	AT_SEGMENT,  /* n: a segment base */
	AT_WORD,     /* at: a 32-bit word of the space (ok slots, units_off), from gs */
	AT_FRESH,    /* not known */
	AT_CPU,      /* the address of struct cpu */
	AT_JUMP,     /* the host's address of the block at guest address `of` */
	AT_SPACE,    /* n: the host's gs base for EFLAGS.AC clear, set; or 0 */
	AT_ENTRY,    /* page-table entry of the page of `of`; n: of the store half; at: which load of it */
	AT_ENTRY_AT, /* the same at table offset `at`; of: which load of it */
	AT_WINDOW,   /* n: window n of the space */
	AT_ROR,      /* of >> n rotated */
	AT_LOW,      /* the low n bits of `of` */
	AT_SHL,      /* of << n */
	AT_SHR,      /* of >> n */
	AT_XOR,      /* of ^ the value `at` */
	AT_SAR,      /* of >> n, signed */
	AT_EXTEND,   /* the low n bits of `of`, signed */
	AT_CODE,     /* n & 15 bytes of the guest's code from the block's byte `at` on, sign-extended; to 64 bits: n & 64 */
};
struct atom { u8 kind, n; sym of; u32 at; };
#define TERMS 5
struct expr { u64 konst; u64 times[TERMS]; u16 atom[TERMS]; u8 n; };
#define SYMS_MAX 2048
struct syms {
	u16 n_atoms, n_exprs, serial;
	bool full;               /* nothing that was made since means anything */
	u16 atom_head[256], expr_head[256]; /* by hash: number + 1 */
	u16 atom_next[SYMS_MAX], expr_next[SYMS_MAX];
	struct atom atoms[SYMS_MAX];
	struct expr exprs[SYMS_MAX];
};
void syms_reset(struct syms *s);
sym sym_atom(struct syms *s, enum atom_kind kind, unsigned n, sym of, u32 at);
sym sym_fresh(struct syms *s);
sym sym_const(struct syms *s, u64 v);
sym sym_add(struct syms *s, sym a, sym b);
sym sym_add_const(struct syms *s, sym a, u64 v);
sym sym_scale(struct syms *s, sym a, u64 times);
sym sym_low(struct syms *s, sym a, unsigned bits);
sym sym_ror(struct syms *s, sym a, unsigned n);
sym sym_shl(struct syms *s, sym a, unsigned n);
sym sym_shr(struct syms *s, sym a, unsigned n);
sym sym_xor(struct syms *s, sym a, sym b);
bool sym_expr_equal(const struct expr *a, const struct expr *b);
sym sym_sar(struct syms *s, sym a, unsigned n);
sym sym_extend(struct syms *s, sym a, unsigned bits);
/* How far the word with bit number `bit`, of 32 or 64 bits, is from a bit string's first. */
sym sym_bit_word(struct syms *s, sym bit, unsigned width);
bool sym_is_const(const struct syms *s, sym a, u64 *v);
/* The value is one atom and nothing else: it, or NULL. */
const struct atom *sym_single(const struct syms *s, sym a);

/* ---- host instructions (verify_form.c) ------------------------------------------------------------- */

struct hinsn {
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	u32 off;               /* its place: see verify.c */
	u8 len;
	i8 mem;                /* its memory operand (not LEA's), -1: none */
	bool gs;               /* that one is in the space: context, table, ok slots */
	bool constant;         /* compares with a constant of the block's */
	bool branch;
	u8 string;             /* MAP_STOS, MAP_MOVS */
	bool rep;
	bool vector;           /* needs the units */
	bool x87;              /* needs x87 or MMX */
	bool aligned;          /* faults where its memory operand is not aligned by its size */
};
/* What the instruction is, or why no block may hold it (returned; NULL: it may). */
const char *form_check(struct hinsn *h);
/* BT, BTS, BTR, BTC of memory with a register: it reaches beyond the operand. */
bool reaches_bits(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo);
/* A general register as an operand: 0-15, AH as RAX. -1: none. */
int gpr_number(const ZydisDecodedOperand *o);
bool operand_is_high8(const ZydisDecodedOperand *o);
bool reads_operand(const ZydisDecodedOperand *o);
bool writes_operand(const ZydisDecodedOperand *o);
/* Numbers of the general registers that it writes, hidden ones too. */
u32 gprs_written(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *zo);

/* ---- a path ------------------------------------------------------------------------------------------- */

enum slot { SL_HOME11, SL_HOME15, SL_RAX, SL_RCX, SL_V, SL_T, SL_TARGET, SL_GS, SL_KERNEL_GS, SL_GROUP, N_SLOTS = SL_GROUP + ARRAY_LEN(((struct ctx *)0)->group) };
enum fact_kind {
	FACT_PRESENT,  /* of: an entry that is there */
	FACT_FITS,     /* so many bytes at `of` lie in one page */
	FACT_ZERO,
	FACT_NOT_ZERO,
	FACT_EQUAL,    /* n: a value */
	FACT_AT_MOST,  /* unsigned: n */
	FACT_CLEAR,    /* the bits n are */
	FACT_TAG,      /* the jump cache has guest address `of` at index n (a value) */
};
struct fact { u8 kind; sym of; u32 n; };
enum test_kind { TEST_NONE, TEST_AND /* ZF: of & n is 0 */, TEST_CMP /* of (32 bits, zero-extended) was compared with n */,
		 TEST_EQUAL /* 64 bits: with the value n */, TEST_TAG /* with the jump cache's tag at index n */,
		 TEST_CODE /* byte `of` and on of the guest's code, the bits n */ };
#define FACTS 160 /* two for each access of a block, and more */
#define TOUCHES 2
struct touch { sym at, value; u8 size; bool write, read; };

struct path {
	u32 at;                  /* next host instruction */
	sym reg[16], slot[N_SLOTS];
	struct { u8 kind; sym of; u64 n; } test; /* what the host's flags say */
	struct fact facts[FACTS];
	u8 n_facts;
	struct touch touch[TOUCHES]; /* of guest memory */
	u8 n_touch;
	bool exit_set;
	u32 exit;                /* ctx.exit */
	bool foreign_exit;       /* it was set by the block that came here */
	sym out[16];             /* what the guest's own instruction wrote, by guest register */
	u16 outs;
	u32 cpu_done;            /* which of the accesses to struct cpu have been made */
	u8 own;                  /* how often that instruction was executed */
	i8 taken;                /* LOOP, JRCXZ: 1 or 0 */
	u8 link;                 /* on the stub of link[link - 1] */
	bool ac, space_set;      /* what it was changed to, last; the space too */
	bool host_flags, ctx_flags; /* where the guest's status flags are, if they are live */
	bool loads_flags;        /* this step reads ctx.flags */
	bool half_flags;         /* the host's OF is the guest's */
	bool kept;               /* they have been moved, so they must be in their place */
	sym packed;              /* flags as kept in RAX: by LAHF; by SETO too */
	u8 packing;              /* how far: LAHF, SETO; ADD AL */
	sym events, rflags;      /* cpu's, when they were looked at */
	u64 code;                /* bytes of the guest's code that are as when the block was made */
	u8 x87;                  /* what of x87.c's words was stored */
	bool dirty;              /* state of the guest's that is not in registers was changed */
};

enum { X87_LAST = 1, X87_SEG = 2, X87_FDP = 4 };
enum root { ROOT_CHECKED, ROOT_HOST, ROOT_STALE_CHECKED, ROOT_STALE, ROOT_INSN, ROOT_RETURN, ROOT_DEAD };

struct verifier {
	struct bt *b;
	const struct block *k;
	const u8 *guest;         /* the block's guest code; NULL: not known */
	struct error *e;
	bool legacy;             /* 16- or 32-bit code: eight registers of 32 bits, r8 to r14 are the translator's */
	ZydisDecoder decoder;
	struct hinsn *insn;
	u32 n, cap;
	u16 *number;             /* by place: number of the instruction that begins there + 1 */
	u8 *owned;               /* by place: it is a byte of an instruction that was decoded */
	u8 *seen;                /* by number */
	u32 places;
	struct syms syms;
	/* The root under way. */
	enum root root;
	unsigned k_insn;         /* guest instruction */
	u32 end;                 /* where its path falls into the next; ~0: nowhere */
	sym start[16], start_gs, start_kernel_gs; /* the guest's registers at its start */
	bool shares;             /* it is one of several that share a page-table entry */
	unsigned budget, forks;
	sym arrived;             /* ROOT_RETURN: the target */
	bool entry_live;         /* the first instruction is reached with status flags from the context: they are live */
	bool entry_lost;         /* an entry leaves without them */
	struct guest_insn {
		bool known;
		bool x87;            /* not known, but decoded: an x87 instruction of 16- or 32-bit code */
		ZydisDecodedInstruction zi;
		ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
		u64 lin, next;
		u8 kind;             /* enum guest_kind */
		i8 mem;
		sym ea;
		u32 writes;
	} g;
};
enum guest_kind { G_PLAIN, G_NOP, G_PUSH, G_POP, G_LEAVE, G_CALL, G_CALL_IND, G_JMP, G_JMP_IND, G_JCC, G_LOOP, G_RET, G_SYSTEM, G_STRING, G_OTHER };

const u8 *verify_pc(const struct verifier *v, u32 place);
u32 verify_place(const struct verifier *v, const u8 *pc); /* ~0: not of the block */
/* The instruction that begins there; NULL: none does. */
const struct hinsn *verify_insn_at(struct verifier *v, u32 place);
/* The other side of a branch; then this one goes on in the instruction that it is in. */
bool verify_fork(struct verifier *v, struct path p);
bool verify_bad(struct verifier *v, u32 off, const char *fmt, ...) PRINTF_LIKE(3, 4);
bool path_fact(const struct verifier *v, const struct path *p, enum fact_kind kind, sym of, u32 n);
void path_add_fact(struct path *p, enum fact_kind kind, sym of, u32 n);
/* Carries out one instruction that is no branch. */
bool path_step(struct verifier *v, struct path *p, const struct hinsn *h);
/* Which of them its instruction must make. */
u32 path_cpu_asked(const struct verifier *v);
/* The value of so many bytes of the guest's code, sign-extended to w bits. */
sym path_code(struct verifier *v, unsigned at, unsigned bytes, unsigned w);
/* Its memory operand is [T + at], T the address of struct cpu. */
bool path_at_cpu(struct verifier *v, const struct path *p, const struct hinsn *h, u64 *at);
/* Its memory operand is a place of the jump cache. */
bool path_jump_load(struct verifier *v, const struct path *p, const struct hinsn *h, sym *value);
/* A register's value, 0 for none; the address of an operand. */
sym path_reg(struct verifier *v, const struct path *p, ZydisRegister r);
sym path_address(struct verifier *v, const struct path *p, const ZydisDecodedOperand *o);
static inline const ZydisDecodedOperand *hinsn_memory(const struct hinsn *h) { return &h->zo[h->mem]; }
static inline bool verify_cpl0(const struct verifier *v) { return v->k->page->cpl == 0; }

/* ---- where it leaves (verify_branch.c) ----
 * Carries out a branch. *go_on: the path continues at p->at. */
bool path_branch(struct verifier *v, struct path *p, const struct hinsn *h, bool *go_on);
bool branch_loads_units(const struct verifier *v, const struct hinsn *h); /* a call of units_load */

/* ---- what it may reach (verify_mem.c) ----
 * Its operand is some of the block's own guest code, by the host's address: from which byte of the block on. */
bool path_code_at(struct verifier *v, const struct path *p, const struct hinsn *h, unsigned *n);
/* Its operand is of the guest's memory, and in order. */
bool path_guest_memory(struct verifier *v, const struct path *p, const struct hinsn *h, struct touch *t);
/* STOS, MOVS: RCX times the operand, or once. */
bool path_string(struct verifier *v, struct path *p, const struct hinsn *h);
/* ---- (verify_space.c) ----
 * The value of the operand gs:[...] that is read; one that is written. */
bool path_space_load(struct verifier *v, struct path *p, const struct hinsn *h, sym *value);
bool path_space_store(struct verifier *v, struct path *p, const struct hinsn *h);
/* WRGSBASE. */
bool path_space_change(struct verifier *v, struct path *p, const struct hinsn *h);
bool path_cpu_access(struct verifier *v, struct path *p, const struct hinsn *h, u64 at);
/* The constant of 8 bytes that it names lies out of line and is no code. */
bool path_constant(struct verifier *v, const struct hinsn *h, sym *value);
/* What a conditional branch on the host's flags says where it is taken or not. */
void path_condition(struct verifier *v, struct path *p, ZydisMnemonic m, bool taken);

/* ---- what the guest's instruction asks for (verify_guest.c) ----------------------------------------------- */
sym guest_start(struct verifier *v, unsigned guest);             /* a register's value at its start */
sym guest_value(const struct path *p, unsigned guest);           /* and now */
void guest_set(struct path *p, unsigned guest, sym value);
bool guest_equal(struct verifier *v, sym a, sym b);
bool guest_prepare(struct verifier *v, unsigned insn);
/* All registers are as at its start, but for `except` (as a guest's number; -1: none). */
bool guest_untouched(struct verifier *v, const struct path *p, u32 off, int except, const char *where);
/* Status flags are where they are said to be: in ctx.flags (saved) or in the host's. */
bool guest_flags(struct verifier *v, const struct path *p, u32 off, bool saved, const char *where);
bool guest_done(struct verifier *v, const struct path *p, u32 off);
/* Its immediate as it is read from the code, of w bits; SYM_NONE: it is what it was. */
sym guest_immediate(struct verifier *v, unsigned w);
sym guest_offset(struct verifier *v);                            /* of its memory operand, without the segment */
/* The host instruction is the guest's own: checked against it, its results noted (after the step). */
bool guest_is_own(const struct verifier *v, const struct hinsn *h);
/* Of 16- and 32-bit code: the guest's x87 instruction, but for where its memory is. */
bool guest_same_x87(const struct verifier *v, const struct hinsn *h);
bool guest_own_before(struct verifier *v, const struct path *p, const struct hinsn *h);
void guest_own_after(struct verifier *v, struct path *p, const struct hinsn *h);
bool guest_access(struct verifier *v, const struct path *p, const struct hinsn *h, const struct touch *a);
bool guest_link(struct verifier *v, const struct path *p, const struct hinsn *h, unsigned n);
/* What the map says of a gate is the instruction's. */
bool guest_gate(const struct verifier *v);
bool guest_target(struct verifier *v, const struct path *p, const struct hinsn *h, sym target);

#endif
