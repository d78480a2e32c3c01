/* The block comparer: random programs of 2 to 50 instructions, run by two engines from the same
 * state; whatever both leave behind must be equal.
 *
 * The parts, in the order of one test:
 *   pool.c       the forms of isa/ops.def by class, from the tables of tests/diff
 *   generate.c   a program: registers, memory, runs; body.c what it is made of
 *   insn.c       one instruction of a form; aim.c where its memory operands point
 *   flow.c       branches, loops, calls, jump tables; smc.c code that changes itself;
 *                system.c address spaces, interrupts, privileged odds and ends
 *   program.c    slots to bytes, labels resolved
 *   layout.c     the linear address space; world.c and handlers.c the memory around a program
 *   rig.c        an engine with that memory: load, run
 *   compare.c    what must be equal
 *   undefined.c  what need not be, because it follows from flags that the manuals leave undefined
 *   text.c       a program as one line and back; shrink.c makes a failing one smaller
 *   hops.c       changes of engine in the middle of a program
 *   planted.c    faults on purpose, which must be found
 *   main.c       options, the loop
 *
 * How a program ends: by HLT at its end (CPL 0), by INT END_VECTOR there (CPL 3), or in a handler's
 * HLT. Loops are bounded by their construction and handlers by a count (fuel); what runs on all the same
 * (code that wrote itself into something else) is cut after MAX_INSNS on engine A, and then not
 * run on B. */
#ifndef RING3_TESTS_BLOCKS_H
#define RING3_TESTS_BLOCKS_H

#include <stdio.h>

#include "diff.h"

enum { MAX_SLOTS = 112, MAX_POKES = 24, MAX_EDITS = 6, MAX_RUNS = 4, MAX_INSNS = 10000 };
enum { END_VECTOR = 0x21, IRET_VECTORS = 0x22, N_IRET_VECTORS = 6, INTR_VECTORS = 0x30 };

/* ---- the linear address space (layout.c) ------------------------------------------------------
 * Three windows onto the same physical pages, which differ by multiples of 2^41, so that they share
 * whatever is indexed by fewer address bits. Letters, one a page:
 *   '-' nothing   w writable   r read-only   x, X executable, read-only and writable   n no-execute code
 *   a absent, s supervisor (in WIN_KERN: user), b reserved bit set; A, R, S as a, r, s, but handlers that
 *   go on make the page accessible
 * and a page of 2 MiB over all of a program's physical memory. Linear neighbours are not physical ones. */

enum window { WIN_LOW, WIN_HIGH, WIN_KERN, N_WINDOWS };
enum { N_CODE_LETTERS = 6, N_DATA_LETTERS = 16, N_DATA_PHYS = 13, N_SPACES = 2 };
#define CODE_OFF 0x10000000ull
#define DATA_OFF 0x10100000ull
#define BIG_OFF 0x10400000ull
#define DATA_LETTERS "-wwrwAwswRwSwX-b"
extern const char *const code_letters[N_WINDOWS];
u64 window_base(enum code_mode m, enum window w);
static inline u64 code_base(enum code_mode m, enum window w) { return window_base(m, w) + CODE_OFF; }
static inline u64 data_base(enum code_mode m, enum window w) { return window_base(m, w) + DATA_OFF; }
static inline u64 big_base(enum code_mode m, enum window w) { return window_base(m, w) + BIG_OFF; }

/* Guest-physical memory: tables, the system's pages, the region of 2 MiB with code and data. */
enum { RAM_BYTES = 4 << 20, TABLES = 0x100000, SYS = 0x180000, REGION = 0x200000, REGION_BYTES = 0x200000 };
u64 code_phys(unsigned space, unsigned page);
u64 data_phys(unsigned space, enum window w, unsigned page);

/* ---- programs -------------------------------------------------------------------------------------- */

/* One instruction. fix: bytes at fix_at to fill in: 'r' relative to the instruction's end, 'a' absolute;
 * of label's address (a slot; n_slots is the end) plus `to`, or of `to` itself where label is -1. */
struct slot { u8 len, bytes[15], fix, fix_at, fix_size; i16 label; i64 to; };
/* Bytes in memory before the first run; with label >= 0 the address of label + to, of len bytes. */
struct poke { u64 lin; u8 len, bytes[16]; i16 label; i64 to; };
/* Bytes of a slot that are others before run `run`; EDIT_ALT: in the second address space's code. */
enum { EDIT_ALT = 0xff };
struct edit { u8 run, slot, off, len, bytes[15]; };

struct run {
	u64 gpr[16], rflags, fs_base, gs_base;
	u8 window;   /* whose code addresses */
	u8 space;    /* address space */
	bool keep;   /* PCID: its translations stay */
	u8 vector;   /* interrupt pending at the start; 0: none */
};

/* Handlers: what exceptions do (handlers.c). */
enum { IDT_HALT, IDT_GO, IDT_GO_STACK, IDT_HALT_STACK, N_IDTS };
enum { OPT_SMAP = 1, OPT_SMEP = 2, OPT_PCID = 4, OPT_NOWP = 8, OPT_UMIP = 16, OPT_STEP = 32 /* TF */ };

struct program {
	u8 mode, cpl, idt, options;
	u8 fuel;               /* exceptions that handlers take before they halt */
	u16 at;                /* of the first slot in the code window */
	u8 n_slots, entry, resume; /* slots: where runs start, where handlers that go on continue */
	u8 n_pokes, n_edits, n_runs;
	u32 data;              /* variant of the data pages; 0: zeros */
	u64 vec_seed;          /* what v was made from; 0: v as it is */
	struct slot slot[MAX_SLOTS];
	struct poke poke[MAX_POKES];
	struct edit edit[MAX_EDITS];
	struct run run[MAX_RUNS];
	struct vec_state v;
};
void program_init(struct program *p, enum code_mode mode);
/* Offset of each slot in the code window, and the end's. */
void program_offsets(const struct program *p, u32 off[MAX_SLOTS + 1]);
/* A slot's bytes as placed at off. */
void slot_resolve(const struct program *p, unsigned k, const u32 *off, u8 out[15]);
u64 label_address(const struct program *p, const u32 *off, i16 label, i64 to);
/* The instruction that ends a program. */
unsigned program_end(const struct program *p, u8 out[4]);
void vec_fill(struct vec_state *v, u64 seed, const struct cpu *c);
unsigned vector_bytes(const struct cpu *c); /* 16, 32, 64 */
void vector_bytes_set(const struct cpu *c); /* what encodings are drawn for */

void program_print(const struct program *p, FILE *out);     /* one line, no newline */
bool program_parse(struct program *p, const char *text, const struct cpu *c, struct error *e);
void program_list(const struct program *p, const struct finder *f, FILE *out); /* disassembled */
void program_mnemonics(const struct program *p, const struct finder *f, char *out, size_t cap);
void program_shrink(struct program *p, bool (*fails)(void *arg, const struct program *p), void *arg);
void program_remove_slot(struct program *p, unsigned k);

/* ---- making one (generate.c and what it names above) ------------------------------------------------ */

struct pool;
struct pool *pool_new(const struct finder *f, enum code_mode mode);
void pool_free(struct pool *p);
struct world;
void generate(struct program *p, struct rng *g, const struct pool *pool, const struct finder *f, const struct world *w);

/* ---- memory and engines ------------------------------------------------------------------------------ */

/* What memory must be when a program starts; both rigs are loaded from it. */
struct world {
	enum code_mode mode;
	u8 *base, *image;      /* RAM_BYTES each: without a program, and with the present one */
	u16 page[160];         /* physical page numbers that are looked at */
	unsigned n_pages;
	u64 cr3[N_SPACES];
	struct segment cs[4], ds[4], tr; /* by CPL */
	u64 idt[N_IDTS], gdt;
	u16 idt_limit, gdt_limit;
	u64 big_pde[N_SPACES][N_WINDOWS]; /* physical: where the entries of the large pages are */
	u64 next_table;        /* physical: the tables end here */
};
struct world *world_new(enum code_mode mode, bool exact_flags, struct error *e);
void world_free(struct world *w);
void world_program(struct world *w, const struct program *p);
/* Physical address of a linear one in a space by the tables of base, or -1. */
i64 world_phys(const struct world *w, u64 lin, unsigned space);

/* hop: programs begin in the interpreter, and come back to it (hops.h). */
struct engine_spec { const struct engine_ops *ops; bool step, hop; unsigned planted; };
struct rig;
const struct world *rig_world(const struct rig *r);
struct rig *rig_new(struct world *w, const struct engine_spec *s, const char *model, struct error *e);
void rig_free(struct rig *r);
struct cpu *rig_cpu(struct rig *r);
u8 *rig_ram(struct rig *r);
enum rig_end { END_HALT, END_STOPPED, END_ENDLESS, END_LOST };
/* Memory and everything else as the program wants it; then its runs, in order. Calls world_program
 * before: the world's image is what is loaded. */
void rig_load(struct rig *r, const struct program *p);
enum rig_end rig_run(struct rig *r, const struct program *p, unsigned run, u64 max_insns);
/* One step() at a time, with after() between. */
enum rig_end rig_walk(struct rig *r, const struct program *p, unsigned run, u64 max_insns,
		      void (*before)(void *arg, struct cpu *c), void (*after)(void *arg, struct cpu *c), void *arg);
const char *rig_end_name(enum rig_end e);

/* ---- comparing ------------------------------------------------------------------------------------------ */

enum { IGNORE_ACCESSED = 1, IGNORE_DIRTY = 2, IGNORE_FPU_POINTERS = 4, IGNORE_CHANGED_FLAGS = 8 };
/* cells.h has the rest. Whether what was found may come from flags that are undefined: A's own
 * outcome changes in all of it when they do. Runs third, which is the engine of A. */
struct cells;
struct compare_rules;
enum explanation { UNEXPLAINED, BY_UNDEFINED, UNSTEADY /* A itself is different each time */ };
enum explanation undefined_explains(struct world *w, const struct program *p, struct rig *a, struct rig *third,
				    const struct finder *f, unsigned run, const struct cells *found, const struct compare_rules *r);

#endif
