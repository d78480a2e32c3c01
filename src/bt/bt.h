/* bt: the translating engine. Guest code, whatever its privilege, becomes host code that runs in
 * ring 3, one vCPU thread with its own code cache.
 *
 * Where things are while translated code runs
 *   general registers   in the host's of the same number, but: guest RSP is in r15; guest R11 and
 *                       R15 are at home in struct ctx; r11 ("T") is the translator's own
 *   rsp                 the return stack: host return addresses of guest calls
 *   status flags        in the host's, or in ctx.flags: known for every place (insn_map.saved), and
 *                       in ctx.flags wherever a block is entered at `checked`; the rest of RFLAGS in
 *                       cpu->rflags. DF and AC are never set
 *   vectors, opmasks    in the host's while ctx.units_off is 0, else in cpu->zmm, cpu->k until a block
 *                       that has vector instructions begins (units_load)
 *   x87, MXCSR          in the host's, as while the interpreter runs; FOP, FIP, FDP by x87.c
 *   gs                  the current space: struct ctx below it, its page table above
 *
 * Invariants
 *  1. An instruction's translation changes guest state only with its last host instructions
 *     (insn_map.commit), so that before that it can be left and begun again.
 *  2. What is not translated, and every access that the memory path does not settle, is done by
 *     the reference interpreter: state is exact at each such exit, but for status flags that are
 *     dead (written before they are read on every way from there).
 *  3. A block is entered only where the space says that its page is mapped at its address
 *     (ok slots): by the dispatcher, or at `checked`, or from a block of the same page.
 *  4. Guest memory is named only through a page-table entry of the space (mempath.c).
 *  5. Code of a page is translated only while no vCPU has a store entry for it, but for blocks that
 *     check themselves (selfcheck.c). */
#ifndef RING3_BT_BT_H
#define RING3_BT_BT_H

#include <pthread.h>

#include "bt/emit.h"
#include "bt/memo.h"
#include "cpu/cpu.h"
#include "cpu/nested_api.h"
#include "interp/interp.h"
#include "interp/op_api.h"

extern const struct engine_ops bt_engine; /* listed in engine/engines.c */

/* ---- host registers -------------------------------------------------------------------- */
enum { T = R11, HOST_SP = R15, N_HOMELESS = 2 };
static inline bool is_homeless(unsigned guest) { return guest == R_11 || guest == R_15; }

/* ---- the context: what translated code keeps in memory, one page below gs ---------------- */
struct ctx {
	u64 home11, home15;
	u64 save_rax, save_rcx, save_v;  /* spilled by the instruction under way */
	u64 save_t;
	u64 target;                      /* of an indirect branch that is not in the jump cache */
	u64 fs_base, gs_base;            /* cpu->ebase; of GS this one counts while inside */
	u64 kernel_gs_base;              /* cpu->msr's; likewise */
	u64 gs_ac[2];                    /* host gs base of the space for AC clear, set; 0: not known */
	u64 tsc_offset;                  /* guest's TSC - host's */
	u64 tsc_aux;
	u64 group[8];                    /* of groups of accesses under way (group.c): where they are */
	u64 limit[288];                  /* see limit_of; never written by translated code */
	u32 ac;                          /* FL_AC or 0: counts while inside, at CPL 0 with SMAP */
	u64 seg_base[8], seg_end[16];    /* by enum sreg; first offset out of bounds for reads, for writes (legacy.c) */
	u64 host_sp, return_sp;          /* our stack; the return stack while outside */
	u64 enter_at;
	struct cpu *cpu;
	u8 *zmm;
	u64 *k;
	u32 exit;                        /* enum exit_kind | insn << 4 | block << 10 */
	u32 units_off;                   /* 0: vectors are live and their units may be used */
	u32 restore;                     /* enter: load the vectors */
	u32 units_no;                    /* not 0: their units may not be used, whatever units_off says */
	u32 kicked;                      /* a kick came while outside */
	u64 fdp;                         /* FDP, while translated code runs (x87.c) */
	u32 x87_off;                     /* not 0: x87 and MMX may not be used */
	u32 x87_last;                    /* since entering: the block and instruction that FOP and FIP tell of; 0 */
	u32 x87_seg;                     /* likewise: 8 | segment of the last memory operand; 0 */
	u16 flags;                       /* AH and AL as LAHF and SETO left them */
	bool zmm_high;                   /* zmm16-31 and opmasks have been translated */
};
enum {
	CTX_AT = -4096,                  /* from gs */
	N_OK = 32768, OK_AT = CTX_AT - N_OK * 4,
	N_WINDOWS = 16, WINDOW_AT = OK_AT - 4096, /* a page of each space's: u64 window[N_WINDOWS] */
	N_JUMP = 65536, JUMP_HOST_AT = WINDOW_AT - N_JUMP * 8, JUMP_TAG_AT = JUMP_HOST_AT - N_JUMP * 8,
	LOW_BYTES = -JUMP_TAG_AT,
};
_Static_assert(sizeof(struct ctx) <= 4096, "a page, shared by all spaces");
/* An address rotated right by 12 bits is above ctx.limit[limit_of(n)] where n bytes at it may not all lie
 * in its page (n from 1 to 512; beyond 256 rounded up to a multiple of 8). */
enum { LIMIT_MAX = 512, LIMIT_EXACT = 256 };
static inline unsigned limit_of(unsigned bytes) { return bytes <= LIMIT_EXACT ? bytes - 1 : LIMIT_EXACT + (bytes - LIMIT_EXACT - 1) / 8; }
static inline unsigned limit_bytes(unsigned limit) { return limit < LIMIT_EXACT ? limit + 1 : LIMIT_EXACT + (limit - LIMIT_EXACT + 1) * 8; }
static inline u64 limit_value(unsigned limit) { return (u64)(4096 - limit_bytes(limit)) << 52 | ((1ull << 52) - 1); }
#define CTX(field) (CTX_AT + (int)offsetof(struct ctx, field))
#define M_CTX(field) M_ABS(CTX(field))
/* The table: an entry for loads at page * 8 mod 4 GiB, for stores the same plus STORE_HALF.
 * 0: none; else host address - guest address + 1 (odd). */
#define TABLE_BYTES (1ull << 32)
#define STORE_HALF (1ull << 31)
static inline u32 table_at(u64 lin, bool store) { return (u32)((lin >> 12) * 8 + (store ? STORE_HALF : 0)); }
/* Guest addresses that share an entry (a load's and a store's too) differ in multiples of 2^40,
 * MEM_ALIAS_STEP. */

/* ---- classes (legacy.c): what code is specialized on ------------------------------------------ */
struct seg_class {
	u32 made_for;         /* what seldom changes: FOR_* */
	u32 cs_base, cs_limit; /* outside 64-bit mode, as is what follows */
	u8 mode;              /* enum code_mode; this one always */
	u8 flat;              /* bits by enum sreg: readable, writable, base 0, limit 4 GiB */
	bool sp16;
	bool windowed;        /* user code of a space with windows (window.c) */
};
static inline bool class_equal(const struct seg_class *a, const struct seg_class *b) { return !__builtin_memcmp(a, b, sizeof(*a)); }
/* seg_class.made_for. In guest mode also what the hypervisor asks to see of instructions that are translated else, and
 * what IF lets in. */
enum {
	FOR_TSD = 1, FOR_LA57 = 2, FOR_NO_UNIT = 1 << 4, /* << FC_SSE to FC_AVX512: not there, #UD */
	FOR_GUEST = 1 << 10, FOR_TSC_SCALED = 1 << 11, FOR_INTR = 1 << 12, FOR_VINTR = 1 << 13, FOR_INTERCEPT = 1 << 16, /* << which (system.c) */
};
/* Events that IF lets in: CLI and STI have them as constants. */
static inline u32 class_if_events(const struct seg_class *k)
{
	return k->made_for & FOR_GUEST ? (k->made_for & FOR_INTR ? EV_INTR : 0u) | (k->made_for & FOR_VINTR ? EV_VINTR : 0u) : EV_INTR;
}
struct bt;
void code_class(struct bt *b); /* the present one, to b->klass; segments to the context */

/* ---- windows (window.c): user memory mapped for the host's own MMU ------------------------------ */
enum { WINDOW_BITS = 39 };       /* a window is 512 GiB of guest addresses */
#define WINDOW_NONE (1ull << 62) /* instead of one: with any address of the window not canonical */
#define WINDOW_REACH (1ll << 30) /* so far around an address in a window, an access is in it too or faults */
#define M_WINDOW(n) M_ABS(WINDOW_AT + 8 * (i32)(n))
struct window_page {
	u32 page;             /* window << 27 | its page there, + 1; 0: none */
	u32 ram;              /* page of RAM << 1 | mapped for stores */
};
struct window_pages { struct window_page *at; u32 n, cap, maps; };
struct window_site { u64 key; u8 window, second, changes, misses; }; /* window N_WINDOWS: by the table; second N_WINDOWS: none */
#define WINDOW_SITES 16384u
#define WINDOW_REGIONS 12u
struct space;
struct window_region { u8 *base; struct space *of; u8 window; };

/* ---- spaces (space.c): page tables by address space and privilege --------------------------- */
struct log { u32 *at; u32 n, cap; };
struct space {
	u64 epoch;            /* cpu->epoch; 0: not in use */
	u8 mmu;               /* enum mmu_index */
	bool user;            /* CPL 3 */
	u32 pcid;             /* and, above it, whose: cpu->space */
	u64 root;             /* CR3 without its low bits */
	u64 used;             /* when last chosen */
	struct seg_class klass; /* of the blocks that ok slots are for */
	u8 *gs;               /* value of the host's gs base */
	u64 *touched;         /* a bit for each page of the table that takes memory */
	u32 n_touched;
	struct log loads, stores, oks; /* what was filled: table offsets; ok slots */
	bool windowed;        /* has windows */
	u32 ticks, wait;      /* of its own time since it got windows or lost them; so long until it gets some again */
	u64 tick_at;          /* the host's TSC at the last */
	u32 steady;           /* the last so many went by without much new code */
	i32 credit;           /* what they may cost yet, in calls to the host's kernel */
	struct window_pages window;
};
#define N_SPACES 16
#define LOG_MAX (1u << 16)
#define TABLE_PAGES_MAX 16384u /* 64 MiB of one vCPU's tables, 32 GiB of guest addresses without gaps */

struct bt;
bool space_init(struct bt *b, struct error *e);
void space_destroy(struct bt *b);
void space_select(struct bt *b);                /* by cpu->epoch, mmu, cpl; sets the gs base */
void space_class(struct bt *b);                 /* then: by b->klass */
void space_ac_changed(struct bt *b);
void space_flush_page(struct bt *b, u64 lin, u64 mask); /* INVLPG, in every space */
void space_flush_all(struct bt *b);
/* After the interpreter accessed lin: enters what its TLB has. */
void space_fill(struct bt *b, u64 lin, bool store);
bool space_stores(const struct bt *b, u64 lin); /* it has an entry for stores */
/* Takes back every store entry of a page that comes to hold code. */
void space_protect(struct bt *b, struct page_code *p);

bool windows_renew(struct bt *b);
void window_sites_forget(struct bt *b);
bool window_sites_init(struct bt *b, struct error *e);
void window_destroy(struct bt *b);
/* How an access of the instruction at lin goes, which may lead to `guess` (0: who knows): by which window; N_WINDOWS: by the
 * table. *second: by which other as well, or N_WINDOWS. stack: the one by RSP. */
unsigned window_site(struct bt *b, u64 lin, bool stack, u64 guess, u8 *second);
/* The access led to ea, which is in another window; again and again, and it goes by the table. */
void window_site_learn(struct bt *b, u64 lin, bool stack, u64 ea);
void window_site_table(struct bt *b, u64 lin, bool stack);
/* It goes to these two. */
void window_site_two(struct bt *b, u64 lin, unsigned one, unsigned other);
/* The window of a linear address; N_WINDOWS: it has none. */
unsigned window_of(struct bt *b, u64 lin);
/* It faults, and there is nothing to be mapped. True: so often that it goes by the table from now on. */
bool window_site_missed(struct bt *b, u64 lin);
/* A kick in user code: some of the present space's time has gone by. */
void window_tick(struct bt *b, struct space *s);
/* An access has faulted at b->window_fault, which is then done with, and the interpreter has made it, and touched
 * lin[0..n-1]: maps what its TLB has. False: nothing new. */
bool window_fill(struct bt *b, const u64 *lin, unsigned n);
/* The host's address is in a window of the present space. Async-signal-safe. */
bool window_has(const struct bt *b, const u8 *addr);
void window_unmap(struct bt *b, struct space *s, u64 lin, u64 pages);
/* The address space was flushed, and is the present one: what is mapped stays where that still holds. */
void window_check(struct bt *b, struct space *s);
/* What is mapped goes, and the windows. */
void window_take(struct bt *b, struct space *s);
/* No more stores to this page of RAM. */
void window_protect(struct bt *b, struct space *s, u32 ram);
void space_ok(struct bt *b, u32 slot, u32 id);
static inline u32 *space_ok_slot(const struct space *s, u32 slot) { return (u32 *)(void *)(s->gs + OK_AT + slot * 4); }

/* ---- the cache (cache.c): blocks, pages of code, links ---------------------------------------- */

#define BLOCK_INSNS 48u
enum { MAP_STOS = 1, MAP_MOVS };
/* insn_map.fop: of an x87 instruction that FOP and FIP follow, FOP | FOP_X87 and, where it has a memory
 * operand, FOP_MEM | segment << FOP_SEG; FOP_INTERP of what is left to the interpreter; else 0. */
enum { FOP_X87 = 0x8000, FOP_MEM = 0x4000, FOP_SEG = 11, FOP_OPCODE = 0x7ff, FOP_INTERP = 1 };
#define X87_CLASSES (1u << FC_X87 | 1u << FC_MMX)
/* Where each guest instruction is. Offsets in bytes: host from the block's start, guest likewise. */
struct insn_map {
	u16 host, guest;
	u16 commit;      /* up to this many bytes from its start it may be begun again */
	bool held;       /* in the shadow of the one before: no stop at its start */
	bool saved;      /* status flags are in ctx.flags when it begins ... */
	bool saved_then; /* ... and after its prelude, of so many bytes, which moves them */
	bool saved_fault; /* and where its own host instruction may fault */
	u8 prelude;
	u16 victim_from; /* from there on ... */
	bool no_resume;  /* only after the one before it, without an exit between */
	bool by_store;   /* begins a group that goes by the store entry */
	u16 fop;         /* FOP_* */
	u8 victim;       /* ... this register is in ctx.save_v (RCX: save_rcx); ENC_NONE */
	u8 string;       /* MAP_*: a string instruction of the host's, at string_from */
	u8 gate;         /* enum gate: what leaves for the interpreter may go there first ... */
	u8 gate_arg;     /* ... GATE_STRING: log2 of the size, GATE_REP, GATE_REPNE, enum gate_string_op << GATE_OP; GATE_CR3: the register; GATE_POPF: 4 or 8 bytes */
	u16 string_from;
	u8 window_changes; /* how often that has been mended */
	bool window_two; /* it has a second one */
	u16 window_at;   /* from the block's start: the code that says which window its operand is in; 0: none */
};
/* At window_at: imm32 of the CMP with what is above WINDOW_BITS; a JNZ of 6 bytes; MOV r11, gs:[disp32], of 5 and 4. */
enum { WINDOW_SITE_DISP = 4 + 6 + 5 };

/* What gate.c does without leaving; up to GATE_IRET it goes elsewhere. */
enum gate { GATE_NONE, GATE_SYSCALL, GATE_SYSRET, GATE_CR3, GATE_IRET, GATE_STRING, GATE_RDFSBASE, GATE_RDGSBASE, GATE_WRFSBASE, GATE_WRGSBASE,
	    GATE_RDPKRU, GATE_WRPKRU, GATE_POPF, N_GATES };
enum { GATE_REP = 4, GATE_REPNE = 8, GATE_OP = 4 };
enum gate_string_op { STRING_STOS, STRING_MOVS, STRING_LODS, STRING_SCAS, STRING_CMPS };

struct block;
struct link {
	struct block *from, *to;  /* to NULL: it goes to its stub */
	struct link *next, *prev; /* of those that go to `to` */
	u8 *site;                 /* its rel32, in the writable mapping; NULL: no such exit */
	u8 *stub;                 /* its exit stub, a running address */
	bool checked;             /* must go to `checked` */
	u8 insn;                  /* whose exit it is */
	u64 target;               /* RIP */
};
/* Of a block's last instruction: where it branches to; where it, or a call from it, goes on. */
enum { LINK_TAKEN, LINK_ON, LINKS_LAST };
/* A page of code at one linear address in one mode. */
struct code_page {
	struct code_page *hash_next;
	u64 lin;                  /* of its first byte */
	const u8 *host;
	struct page_code *code;
	u32 gen;                  /* of code, when its blocks were made */
	u32 id, slot;             /* in ok slots */
	u8 mode, cpl;
	bool selfcheck;           /* its blocks are (selfcheck.c): gen says nothing of them */
	struct seg_class klass;
	struct block *blocks;     /* by page_next, or page2_next where this is their second page */
};
struct block {
	struct block *hash_next;
	u64 lin;
	struct block *page_next, *page2_next;
	struct block **page_at, **page2_at; /* what points to it in either list */
	struct code_page *page, *page2; /* page2: of the rest of a last instruction that crosses */
	u64 ahead;                /* lines of the page that were looked at beyond the block */
	u8 *host;                 /* running address: entry */
	u8 *host_units;           /* the same from a block that has vector instructions, too: they are usable then */
	u8 *checked;              /* entry that looks at the ok slots; first of its code */
	u8 *stale, *stale_checked; /* leave for the dispatcher, which begins the block anew */
	u32 bytes;                /* of host code */
	u8 *cold;                 /* running address: exits and stubs, apart from the rest */
	u32 cold_bytes;
	u16 guest_bytes;
	u16 n;                    /* instructions */
	u32 index;                /* in bt->block_list */
	bool valid;
	bool units;               /* has vector instructions */
	u8 misses;                /* of groups, since ... */
	u64 misses_since;         /* ... the host's TSC was this */
	u8 classes;               /* bits by enum fpu_class that must be usable */
	i32 sp_back;              /* what undoes a RET's change of RSP */
	struct link *link;        /* LINK_TAKEN, LINK_ON, then those of conditional branches within the block */
	u8 n_links;
	struct link *incoming;
	struct insn_map *map;     /* n + 1 */
	u8 *made_from;            /* bytes of the guest, where the block checks itself; else NULL */
	u64 varies;               /* those of them that it reads whenever it runs: a bit each */
	struct insn *decoded;     /* by the interpreter, when first needed; len 0: not yet */
	u64 decoded_gen;
};

/* Where a link that is made leads. */
static inline u8 *link_entry(const struct link *l)
{
	return l->checked ? l->to->checked : l->from->units ? l->to->host_units : l->to->host;
}

enum exit_kind {
	X_GOTO,      /* go on at an instruction of the block, by the dispatcher */
	X_LINK0, X_LINK1,
	X_INSN,      /* this instruction by the interpreter, then the next */
	X_INDIRECT,  /* to ctx.target */
	X_KICK,
	X_GROUP,     /* as X_INSN: a group crosses a page */
	X_FAULT,     /* the host's instruction faulted: as X_INSN */
	X_WINDOW,    /* as X_INSN: the address is in another window than was thought */
	X_NOTHING,   /* not entered at all */
	X_KINDS
};
static inline u32 exit_id(u32 block, unsigned insn, enum exit_kind k) { return block << 10 | insn << 4 | k; }

#define SEGMENTS 8u
#define BLOCKS_MAX (1u << 20)
#define BLOCK_HASH (1u << 18)
#define PAGE_HASH (1u << 14)
#define PAGES_MAX (1u << 16)  /* code_pages, and */
#define ALIASES_MAX 1024u     /* those of one physical page */

enum { N_FAULT_SIGNALS = 5 }; /* in the order of fault.c's list */
/* Host TSC ticks; only with cpu->measure. */
struct span { u64 total, since; };
struct stats {
	u64 translated, translated_insns, translated_bytes, host_bytes, evictions, invalidated, page_flushes, pages_freed,
	    check_terms, checks_made, checks_failed;
	u64 exits[X_KINDS], gates[N_GATES], interp_by_op[MAX_OPS], single, spaces_recycled, enters, links;
	u64 load_fills, store_fills, table_releases;
	u64 windows_given, windows_taken, window_faults, window_pages, window_unmaps, window_checks, window_sites, window_sites_two, window_sites_table;
	u64 kicks, steps, faults[N_FAULT_SIGNALS], return_overflows;
	struct span running, inside, translating;
	u64 verified, refused;
};
static inline void span_begin(const struct cpu *c, struct span *s)
{
	if (unlikely(c->measure))
		s->since = __builtin_ia32_rdtsc();
}
static inline void span_end(struct span *s)
{
	if (unlikely(s->since)) {
		s->total += __builtin_ia32_rdtsc() - s->since;
		s->since = 0;
	}
}

/* --engine bt,KEY=VALUE (engine_ops.keys). */
struct bt_options {
	char *name;
	u64 cache;                /* 0: CACHE_BYTES */
	enum { FLAGS_FAST, FLAGS_EXACT } flags;
	enum bt_verify { VERIFY_SAMPLE, VERIFY_ALL, VERIFY_OFF } verify;
	enum bt_code { CODE_AUTO, CODE_WATCHED, CODE_CHECKED } code;
	enum bt_windows { WINDOWS_AUTO, WINDOWS_ON, WINDOWS_OFF } windows;
	bool perf;
};
#define CACHE_BYTES (256ull << 20)
#define CACHE_MIN (1ull << 20)
#define CACHE_MAX (1ull << 30)

struct request { struct page_code *page; u16 off, len; /* len 0: give back store entries */ };
struct requests {
	pthread_mutex_t lock;
	struct request *at;
	u32 n, cap;
	_Atomic u32 pending;      /* n, to look at without the lock */
	_Atomic u64 served;       /* rounds */
};

struct bt {
	struct interp in;         /* first: handlers find it by cpu->engine */
	struct cpu *cpu;
	struct ctx *ctx;
	u64 *jump_tag;            /* N_JUMP: the linear address; in the pages below every space's gs */
	u8 **jump_host;
	int ctx_fd;
	struct space spaces[N_SPACES], *space;
	struct space *near[N_MMU]; /* the last one chosen of each index; may be out of date */
	struct seg_class klass;   /* of the code at RIP */
	u64 space_clock;
	u32 table_pages;          /* of all spaces' tables, that take memory */

	u8 *rw, *rx;              /* the cache: where it is written, where it runs */
	u64 cache_bytes;
	u32 used, segment;        /* next free byte; segment being filled */
	/* A segment's first part has the blocks, in order; from cold_start on is what they seldom run. Of either, memory
	 * was taken up to ready, cold_ready. */
	struct { u32 start, cold_start, end; struct block **blocks; u32 n, cap; struct chunk *chunks; u32 ready, cold_ready; } seg[SEGMENTS];
	u32 cold_used;
	struct block **block_hash, **block_list;
	u32 n_indices;            /* of block_list ever given out */
	u32 *free_index, n_free;
	struct code_page **page_hash;
	u32 n_pages, next_id;
	u64 ungrouped[4096];      /* instructions that begin no group, by hash of their address */
	struct page_code rom_code; /* stands for pages that have none: never written */
	u8 *glue_end;
	u32 (*enter)(struct bt *b);
	u8 *exit_common, *exit_saved; /* running addresses: flags in the host's, in ctx.flags */
	u8 *lookup, *lookup_miss, *return_miss, *abort, *enter_start, *enter_end;
	u8 *units_load;           /* called by a block that needs the vectors, which are not there; ctx.exit says how it leaves if they may not be used */
	u8 *gate_common, *gate_saved; /* likewise: for gate.c */
	u8 *return_stack;         /* its mapping, with a guard page below */
	u64 return_top;           /* rsp when it is empty: points to the address of return_miss */

	struct link *want;        /* by which it exited last: to be linked */
	/* The interpreter's own, behind ours: its blocks run where there is no translation. */
	void (*interp_tlb_flush)(struct cpu *c, u64 lin, u64 mask);
	void (*interp_code_written)(struct cpu *c, struct page_code *p, unsigned off, unsigned len);
	void *altstack;
	_Atomic bool inside;      /* may be in translated code */
	pthread_t self;
	struct requests requests; /* of other threads (shoot.c) */
	struct bt *next_peer;
	bool listed;
	bool exact_flags;
	bool amd;                 /* the model's vendor */
	enum bt_verify verify;
	enum bt_code code;
	enum bt_windows windows;
	u16 window_of[N_WINDOWS]; /* which 512 GiB each of the first n_windows is */
	u32 n_windows, n_regions;
	u8 window_last;           /* that a site was found to go to */
	bool windows_full;        /* more are wanted */
	u64 windows_renewed;      /* when: the host's TSC */
	u64 windows_translated;   /* blocks made until the last tick */
	struct window_region region[WINDOW_REGIONS];
	struct window_site *sites; /* by hash */
	u64 site_known[1024];     /* a bit by hash: perhaps it is one of them */
	u64 window_fault;         /* the host's address in a window where an access has faulted; 1: elsewhere; 0: none has */
	int perf_fd;              /* -1: none */
	u32 perf_lines;
	u32 verify_every, verify_count; /* one new block in so many is verified; 0: none */
	struct verifier *verifier;
	struct memo *memo;
	struct translation *scratch;
	struct stats stats;
};
static inline struct bt *bt_of(struct cpu *c) { return c->engine; }

/* Its blocks are of the present class; windows come with the space. */
static inline bool space_fits(const struct bt *b, const struct space *s)
{
	struct seg_class k = b->klass;
	k.windowed = s->windowed && k.mode == CODE64;
	return class_equal(&s->klass, &k);
}
/* The space of this index for the present address space and class, if it was chosen lately; NULL. */
static inline struct space *space_near(const struct bt *b, enum mmu_index mmu)
{
	struct space *s = b->near[mmu];
	return s && s->epoch == b->cpu->epoch && s->mmu == mmu && space_fits(b, s) ? s : NULL;
}
/* Where STAC and CLAC lead to from here: to ok slots of the same class, or nowhere. */
static inline void space_ac_pair(struct bt *b)
{
	bool pair = (b->space->mmu == MMU_KERNEL || b->space->mmu == MMU_SMAP) && (b->cpu->cr4 & CR4_SMAP);
	for (unsigned ac = 0; ac < 2; ac++) {
		const struct space *s = pair ? space_near(b, ac ? MMU_KERNEL : MMU_SMAP) : NULL;
		b->ctx->gs_ac[ac] = s ? (u64)s->gs : 0;
	}
}
static inline void space_enter(struct bt *b, struct space *s)
{
	s->used = ++b->space_clock;
	b->space = b->near[s->mmu] = s;
	b->klass.windowed = s->windowed && b->klass.mode == CODE64;
	space_ac_pair(b);
	__asm__ volatile("wrgsbase %0" :: "r"(s->gs) : "memory");
}
static inline u64 rip_of(const struct bt *b, u64 lin) { return b->klass.mode == CODE64 ? lin : (u32)(lin - b->klass.cs_base); }

static inline u32 ungroup_slot(u64 lin) { return (u32)(lin ^ lin >> 12) & 4095; }
static inline u32 cache_ok_slot(u64 lin) { return (u32)(lin >> 12 ^ lin >> 24) & (N_OK - 1); }
bool cache_init(struct bt *b, struct error *e);
void cache_destroy(struct bt *b);
/* The block at cpu->rip, translated if need be, its page(s) entered as ok. Raises what the fetch
 * raises. NULL: this instruction cannot be in a block (a device's, not decodable): step over it. */
struct block *cache_find(struct bt *b);
/* Whether a block begins at lin of that page. */
bool cache_known(const struct bt *b, const struct code_page *page, u64 lin);
void cache_link(struct bt *b, struct link *l, struct block *to);
void cache_jump(struct bt *b, struct block *to);      /* enters it into the jump cache */
/* Bytes of a page have changed: what was made of them goes. */
void cache_page_written(struct bt *b, struct page_code *p, unsigned off, unsigned len);
struct block *cache_block_at(struct bt *b, const u8 *pc);
void cache_flush(struct bt *b);
/* The group that begins with instruction n has crossed a page, or may not store to it: too often, and the block
 * is made anew without it. */
void cache_ungroup(struct bt *b, struct block *k, unsigned n);
/* For translate.c: a block of n instructions, so many links, with a place for so many of its guest bytes (0:
 * none), room for so many bytes of code in either part (may evict); its entering. */
struct block *block_new(struct bt *b, unsigned n, unsigned links, unsigned guest_bytes, unsigned bytes, struct emit *hot, struct emit *cold);
void block_finish(struct bt *b, struct block *k, const struct emit *hot, const struct emit *cold);
void block_drop(struct bt *b, struct block *k); /* no longer to be found, linked or entered */
/* From here on a write to these bytes of the page changes its gen. */
void cache_watch(struct bt *b, struct code_page *p, unsigned off, unsigned len);

/* All blocks of a page, of which it is not known what has changed. */
void cache_page_drop(struct bt *b, struct code_page *p);
/* Programs have the same addresses: by the page too. */
static inline struct block **block_hash_of(const struct bt *b, u64 lin, const struct code_page *p)
{
	return &b->block_hash[((u32)(lin ^ lin >> 18) ^ (p->id * 0x9e3779b1u) >> 14) & (BLOCK_HASH - 1)];
}

/* ---- blocks that check themselves (selfcheck.c) -------------------------------------------------- */
#define SELFCHECK_BYTES 64u /* of guest code: block.varies has a bit for each */
/* Code of this page is to be checked rather than watched, now. */
bool selfcheck_wanted(const struct bt *b, const struct page_code *c);
/* A write to a page that holds code: `cost`, in stores that only had to take the slow way. Outside of
 * translated code; may drop blocks. */
enum { CHURN_STORE = 1, CHURN_HIT = 16 };
void selfcheck_churn(struct bt *b, struct page_code *c, unsigned cost);
/* Of a block with made_from: the guest's code is still that. */
bool selfcheck_holds(const struct block *k);
/* Two pages that a block is made of: whether they are of one kind, if need be from now on. */
bool selfcheck_agree(struct bt *b, struct code_page *p, struct code_page *q);

/* ---- translation (translate.c, mempath.c, branch.c) ------------------------------------------- */
/* The block at lin, in `page`, of which `host` is the start; not yet entered anywhere. NULL: the first
 * instruction cannot be decoded. May raise, where it crosses into another page. */
struct block *translate(struct bt *b, struct code_page *page, u64 lin);
/* For translate.c, of the second page. */
struct code_page *cache_page(struct bt *b, u64 lin);

/* Brings cpu->fop, fip, fcs, fdp, fds up to date after leaving translated code by exit id (x87.c). */
void x87_resolve(struct bt *b, u32 id);

/* ---- the verifier (verify*.c) ------------------------------------------------------------------- */
/* Whether a block's code keeps to what verify.c says. guest: the bytes that it was made from, or NULL. */
bool verify_block(struct bt *b, const struct block *k, const u8 *guest, struct error *e);
/* For translate.c: a new block, verified if it is its turn; false: it must not be run (bug() where all are verified). */
bool verify_new(struct bt *b, const struct block *k, const u8 *guest);
/* The same of a block that was changed since, where all are verified: it must still be in order. */
void verify_again(struct bt *b, const struct block *k);
void verify_init(struct bt *b); /* how many: by RING3_BT_VERIFY=all|off|N */
void verify_destroy(struct bt *b);

/* RFLAGS's status bits as ctx.flags has them, and back. */
static inline u16 flags_pack(u64 rflags)
{
	return (u16)(((rflags & 0xd5) | 2) << 8 | (rflags & FL_OF ? 1 : 0));
}
static inline u64 flags_unpack(u64 rflags, u16 f)
{
	return (rflags & ~(u64)FL_STATUS) | (f >> 8 & 0xd5) | (f & 1 ? FL_OF : 0);
}

/* The instruction that ctx.exit names, of a block whose map has a gate for it (gate.c). Where to go on in
 * translated code; NULL: ctx.exit says why it is left, which it also does for the case that a kick has come. */
const u8 *gate_run(struct bt *b);

bool glue_init(struct bt *b, struct error *e);
/* T = the host's address of the guest code that `target` (a register) names; status flags are in ctx.flags.
 * Returns the jump that is taken where the jump cache does not have it; where target is T itself, T is
 * then as it was and RCX is in ctx.save_rcx, else T is anything. */
u8 *glue_find(struct emit *e, unsigned target);
u8 *glue_jump(struct emit *e, unsigned target); /* the same, and goes there */
bool fault_init(struct bt *b, struct error *e);
void fault_enter(struct bt *b); /* this thread runs b now */
void fault_destroy(struct bt *b);
/* ---- what vCPUs ask of each other (shoot.c) ---------------------------------------------------- */
bool shoot_init(struct bt *b, struct error *e);
void shoot_destroy(struct bt *b);
/* Takes every vCPU's store entries of a page back. */
void shoot_stores(struct bt *b, struct page_code *p);
/* Own store of code: all vCPUs' translations of it go. */
void shoot_code(struct bt *b, struct page_code *p, unsigned off, unsigned len);
void shoot_serve(struct bt *b); /* what others have asked of this one */
static inline bool shoot_pending(const struct bt *b) { return atomic_load(&((struct bt *)(uintptr_t)b)->requests.pending); }

void fault_kick(struct bt *b); /* any thread */

/* ---- to be seen (stats.c, perf.c) -------------------------------------------------------------- */
void bt_count(const struct cpu *c, struct counters *t); /* engine_ops.count */
bool perf_open(struct bt *b, struct error *e);
void perf_close(struct bt *b);
void perf_block(struct bt *b, const struct block *k);

#endif
