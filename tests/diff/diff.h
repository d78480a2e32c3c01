/* The differential harness: every instruction form that can run at CPL 3, with random and
 * corner-case state, once on the host's own processor and once in an engine; whatever both
 * leave behind must be equal.
 *
 * The parts, in the order of one test:
 *   forms.c    which encodings there are: the encoding space, decoded, by row of isa/ops.def
 *   encode.c   one instruction of a form: random registers, immediates, address
 *   invalid.c  bytes that are no instruction
 *   values.c   integers, floating-point and packed values that are worth trying
 *   state.c, address.c, special.c
 *              registers, memory and code placed so that the instruction has something to do
 *   native.c   runs it on the host's processor
 *   engine.c   runs it in an engine
 *   compare.c  what must be equal
 *   known.c    what is known not to be, and why (known.def)
 *   repro.c    a test as one line of text and back; making a failing one smaller
 *   main.c     options, the loop; report.c: what came of it
 *
 * Both sides see the same user address space: the windows below. The code window is filled with
 * INT3, so that wherever control goes the run ends in an exception, which is the outcome: its
 * vector, error code, address, and all registers and memory at that point. */
#ifndef RING3_TESTS_DIFF_H
#define RING3_TESTS_DIFF_H

#include <stdio.h>

#include "base/base.h"
#include "cpu/engine_api.h"
#include "interp/op_api.h"

/* ---- random numbers: a stream from a seed, the same on every host (values.c) ---------------- */

struct rng { u64 s; };
u64 rnd(struct rng *g);
static inline u32 rnd_below(struct rng *g, u32 n) { return (u32)(((rnd(g) >> 32) * n) >> 32); }
static inline bool rnd_pct(struct rng *g, unsigned percent) { return rnd_below(g, 100) < percent; }
static inline u64 mix(u64 a, u64 b) { struct rng g = { a ^ b * 0x9e3779b97f4a7c15ull }; rnd(&g); return rnd(&g); }

/* ---- the user address space (layout.c) --------------------------------------------------------
 * Letters, one a page: x code, r read-only, w writable, '-' nothing there; w and r cannot be
 * executed. Nothing else of the address space below 2 GiB is mapped, natively or in the guest. */

#define CODE_BASE 0x10000000u
#define DATA_BASE 0x10100000u
#define DATA_HIGH 0x610000100000ull    /* the same pages again, for 64-bit addresses */
#define CODE_PAGES "xx-xr-"
#define DATA_PAGES "-wwrw-w-"
enum { N_CODE_PAGES = 6, N_DATA_PAGES = 8, CODE_BYTES = N_CODE_PAGES * 4096, DATA_BYTES = N_DATA_PAGES * 4096 };

/* Linux's own selectors, and what the harness puts into the local descriptor table. */
enum { SEL_CODE32 = 0x23, SEL_DATA = 0x2b, SEL_CODE64 = 0x33, SEL_LDT0 = 7, N_LDT = 4 };
struct ldt_entry { u32 base; u32 limit_pages; };
extern const struct ldt_entry ldt_entries[N_LDT]; /* 32-bit writable data, limit in pages - 1 */

/* The byte that memory holds unless a patch says otherwise. off: in the data pages. */
static inline u8 data_pattern(u32 off) { return (u8)((off * 0x9e3779b1u) >> 24); }
/* The data pages' image before a patch, DATA_BYTES. */
const u8 *data_image(void);
/* Offset in the data pages of a linear address, or -1. */
int data_offset(u64 lin);
/* Letter of the page at a linear address; '-' outside of the windows. */
char page_letter(u64 lin);

/* ---- state --------------------------------------------------------------------------------------- */

/* x87, MMX, SSE, AVX, AVX-512. st: 10 bytes each, ST0 first, as FXSAVE has them. */
struct vec_state {
	u8 zmm[32][64];
	u64 k[8];
	u8 st[8][16];
	u64 fip, fdp;
	u32 mxcsr;
	u16 fcw, fsw, fop;
	u8 ftw;  /* abridged: one bit a physical register, 1 is full */
};

struct regs {
	u64 gpr[16];
	u64 rip, rflags;
	u64 fs_base, gs_base;      /* 64-bit mode; in 32-bit mode they follow from fs and gs */
	u16 cs, ss, ds, es, fs, gs;
	struct vec_state v;
};

enum { MAX_PATCHES = 24, PATCH_POOL = 8192 };
struct patch { u16 off, len; u16 at; };  /* in the data pages; where its bytes are in the pool */

/* One test: an instruction and the state before it. */
struct test {
	enum code_mode mode;       /* CODE32 or CODE64 */
	bool by_run;               /* the engine's run() instead of step() */
	u8 len, bytes[15];         /* at regs.rip, in the code window */
	u8 n_patches;
	u16 pool_used;
	struct regs r;
	struct patch patch[MAX_PATCHES];
	u8 pool[PATCH_POOL];
};
void test_init(struct test *t, enum code_mode mode);  /* defaults of every field */
/* Bytes into data memory at a linear address; what lies outside of the data pages is dropped. */
void test_patch(struct test *t, u64 lin, const void *bytes, unsigned n);
/* What is in data memory there before the run; 0 where there is none. */
void test_peek(const struct test *t, u64 lin, void *bytes, unsigned n);

/* How it ended. */
struct outcome {
	bool lost;                 /* no exception came: reason says what did */
	const char *reason;
	u8 vector;
	u32 error;
	u64 cr2;                   /* 0 unless vector is #PF */
	struct regs r;
};

/* ---- forms (forms.c, encode.c) ----------------------------------------------------------------- */

enum enc_kind { ENC_LEGACY, ENC_VEX, ENC_EVEX, ENC_XOP, ENC_3DNOW };
enum { PFX_66 = 1, PFX_F3 = 2, PFX_F2 = 4, PFX_LOCK = 8, PFX_67 = 16 };

/* One encoding with what may vary left open. */
struct enc {
	u16 row;         /* of isa_ops */
	u32 group;       /* sub-form: the same operand sizes and kinds */
	u32 seq;         /* in the order of finding them */
	u8 kind, map, opcode;
	u8 pfx;          /* legacy: PFX_*; VEX, EVEX: pp in bits 1:0 */
	u8 w, l;
	bool b, z, mask; /* EVEX */
	bool modrm, mem;
	bool vsib;
	i8 reg, rm;      /* fixed fields of ModRM, -1: free */
	i8 vvvv;         /* -1: free; else the register that it names when unused: 0 */
};

struct forms {
	enum code_mode mode;
	struct enc *enc;        /* sorted by row, group */
	unsigned n, cap;
	unsigned *first;        /* by row; first[row + 1] is its end */
	unsigned *absent;       /* by row: encodings that the processor model lacks */
};
struct decoded {
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	int row;                /* of isa_ops; -1: none */
	u32 group;
};
struct finder { struct op_index *index; const struct cpu *cpu; unsigned quirks; };
/* True if bytes are an instruction of a row that the model offers. offered: set when not NULL. */
bool finder_decode(const struct finder *f, enum code_mode mode, const u8 *bytes, unsigned len, struct decoded *d,
		   bool *offered);
void forms_build(struct forms *f, const struct finder *find, enum code_mode mode);
void forms_free(struct forms *f);
/* An instruction of that encoding into t->bytes, decoded; false if none came out. */
bool enc_random(const struct enc *e, const struct finder *find, struct rng *g, struct test *t, struct decoded *d);

/* An encoding that is no instruction, and a state for it (invalid.c). */
bool invalid_make(struct test *t, struct decoded *d, struct rng *g, const struct finder *find);
void decoded_none(struct decoded *d);  /* of such bytes: no operands, no row */

/* ---- values (values.c) ---------------------------------------------------------------------------- */

enum value_kind { VAL_I8, VAL_I16, VAL_I32, VAL_I64, VAL_F16, VAL_F32, VAL_F64, VAL_F80, VAL_BCD, VAL_ANY, N_VALS };
u64 value_int(struct rng *g, unsigned bits);
/* n bytes of packed elements. */
void value_fill(struct rng *g, enum value_kind kind, u8 *p, unsigned n);
enum value_kind value_kind_of(const ZydisDecodedOperand *o);

/* ---- making a state (state.c) ----------------------------------------------------------------------- */
/* Fills t around t->bytes. False: this draw has no sensible state (draw again). */
bool state_make(struct test *t, struct decoded *d, struct rng *g, const struct finder *find);
/* Offset and linear address of memory operand k of t's instruction before it runs; a vector index
 * counts as 0. */
u64 operand_effective(const struct test *t, const struct decoded *d, unsigned k);
u64 operand_linear(const struct test *t, const struct decoded *d, unsigned k);

/* ---- running -------------------------------------------------------------------------------------------- */

/* The host's processor (native.c). One per process: it owns signal handlers and fixed addresses. */
bool native_init_host(struct error *e);
void native_run(const struct test *t, struct outcome *o);
const u8 *native_data(void);     /* the data pages after a run */
void native_restore(void);       /* the data pages as data_image() */
/* What exists of vec_state here: AVX, AVX-512. State that the host has not stays 0. */
unsigned host_vector_bytes(void);
unsigned host_vector_regs(void);
u32 host_cpu_node(void);  /* limit of Linux's descriptor 15; the process stays on its processor from then on */
u8 host_linear_bits(void);
u32 host_xsave_offset(unsigned component); /* standard format; before native_init_host, too */
void host_fit(struct vec_state *v);  /* drops what the host has not */
bool host_keeps_fpu_pointers(void); /* FOP, FIP, FDP are saved whether or not an exception is pending */

/* An engine (engine.c). */
void bt_exact(struct cpu *c); /* bt.c: flags are right at every exit, dead ones too */
struct side;
struct side *side_new(const struct engine_ops *ops, const char *model, struct error *e);
void side_free(struct side *s);
const struct cpu *side_cpu(const struct side *s);
void side_run(struct side *s, const struct test *t, struct outcome *o);
const u8 *side_data(const struct side *s);
void side_restore(struct side *s);

/* ---- comparing (compare.c) ---------------------------------------------------------------------------------- */

enum verdict { SAME, UNDEFINED_DIFFERS /* only in what the manuals leave open */, KNOWN_DIFFERS, DIFFERS };
struct comparison {
	enum verdict verdict;
	const char *first;       /* name of the first field that differs, or of the known difference */
	FILE *log;               /* NULL: only the verdict */
};
/* native and engine ran t; d is its decoding. */
void compare(const struct test *t, const struct decoded *d, const struct outcome *native, const u8 *native_mem,
	     const struct outcome *engine, const u8 *engine_mem, struct comparison *c);
unsigned known_count(void);
const char *known_name(unsigned k);
const char *known_reason(unsigned k);

/* ---- text (repro.c) -------------------------------------------------------------------------------------------- */
void test_print(const struct test *t, FILE *out);            /* one line, no newline */
bool test_parse(struct test *t, const char *text, struct error *e);
/* Makes t smaller as long as fails(arg, t) says so. */
void test_shrink(struct test *t, bool (*fails)(void *arg, const struct test *t), void *arg);

#endif
