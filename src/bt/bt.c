/* The engine: its run loop and the life of a vCPU. See bt.h for how the parts lie together. */
#define LOG_TOPIC "bt"
#include <stdlib.h>
#include <string.h>

#include "bt/host.h"
#include "bt/tr.h"

/* ---- cpu's hooks -------------------------------------------------------------------------------- */

static void tlb_flushed(struct cpu *c, u64 lin, u64 mask)
{
	space_flush_page(bt_of(c), lin, mask);
	bt_of(c)->interp_tlb_flush(c, lin, mask);
}

static void code_written(struct cpu *c, struct page_code *p, unsigned off, unsigned len)
{
	shoot_code(bt_of(c), p, off, len);
	selfcheck_churn(bt_of(c), p, CHURN_HIT);
	bt_of(c)->interp_code_written(c, p, off, len);
}

/* The interpreter is about to keep blocks of a page. */
static void code_marked(struct cpu *c, struct page_code *p)
{
	if (atomic_load(&p->writers))
		shoot_stores(bt_of(c), p);
}

/* ---- one instruction by the interpreter --------------------------------------------------------------- */

/* The decoded instruction n of a block; NULL: its bytes are no longer what the block was made from. */
static const struct insn *decoded(struct bt *b, struct block *k, unsigned n)
{
	struct cpu *c = b->cpu;
	u64 of_it = ((1ull << (k->map[n + 1].guest - k->map[n].guest)) - 1) << (k->map[n].guest & 63);
	if (!k->valid || (k->made_from ? (k->varies & of_it) != 0 : atomic_load(&k->page->code->gen) != k->page->gen ||
	    (k->page2 && atomic_load(&k->page2->code->gen) != k->page2->gen)))
		return NULL;
	if (native_full(c))
		native_reset(c);
	if (k->decoded && k->decoded_gen != native_resets(c))
		memset(k->decoded, 0, k->n * sizeof(*k->decoded));
	else if (!k->decoded && !(k->decoded = calloc(k->n, sizeof(*k->decoded))))
		return NULL;
	k->decoded_gen = native_resets(c);
	struct insn *i = &k->decoded[n];
	if (i->len)
		return i;
	u8 bytes[15];
	unsigned off = (unsigned)(k->lin & PAGE_MASK) + k->map[n].guest, len = (unsigned)(k->map[n + 1].guest - k->map[n].guest);
	unsigned first = MIN(len, 4096 - off);
	if (k->made_from) {
		memcpy(bytes, k->made_from + k->map[n].guest, len);
	} else {
		memcpy(bytes, k->page->host + off, first);
		if (first < len)
			memcpy(bytes + first, k->page2->host, len - first);
	}
	if (interp_decode(c, k->page->mode, bytes, len, i) != ISA_OK) {
		i->len = 0;
		return NULL;
	}
	return i;
}

/* From its operand's address: of BT and the like, whose register counts bits. */
static u64 bits_away(const struct cpu *c, const struct insn *i)
{
	const struct op *o = &isa_ops[i->op];
	bool bits = o->mnemonic == ZYDIS_MNEMONIC_BT || o->mnemonic == ZYDIS_MNEMONIC_BTS || o->mnemonic == ZYDIS_MNEMONIC_BTR || o->mnemonic == ZYDIS_MNEMONIC_BTC;
	if (!bits || o->form != FORM_MR || i->opsz < 4)
		return 0;
	return (u64)(i->opsz == 8 ? (i64)c->regs[i->r] >> 6 << 3 : (i64)(i32)c->regs[i->r] >> 5 << 2);
}
/* Enters what the instruction's accesses have brought into the interpreter's TLB. */
struct touched { u64 lin[5]; unsigned n; }; /* of a string through SS: all of them */
static void touches(const struct cpu *c, const struct insn *i, struct touched *t)
{
	u64 mask = c->code_mode == CODE64 ? ~0ull : 0xffffffff, ss = c->ebase[S_SS];
	t->n = 0;
	if (isa_ops[i->op].flags & OF_STRING) {
		t->lin[t->n++] = (c->regs[R_SI] + c->ebase[i->seg]) & mask;
		t->lin[t->n++] = (c->regs[R_DI] + c->ebase[S_ES]) & mask;
	}
	if (i->flags & IF_MEM)
		t->lin[t->n++] = (insn_ea(c, i) + c->ebase[i->seg] + bits_away(c, i)) & mask;
	if (i->flags & IF_STACK) {
		t->lin[t->n++] = (((c->regs[R_SP] - (mask == ~0ull ? 8 : 4)) & c->sp_mask) + ss) & mask;
		t->lin[t->n++] = ((c->regs[R_SP] & c->sp_mask) + ss) & mask;
	}
}

/* True: the block may go on after it. *t: what it has touched. */
static bool insn_by_interp(struct bt *b, struct block *k, unsigned n, struct touched *t)
{
	struct cpu *c = b->cpu;
	if (unlikely(c->nested.mode == NEST_VMX)) /* an exit tells it: without what it costs to take the instruction in hand */
		c->insn_tsc = cpu_tsc(c);
	c->rip = rip_of(b, k->lin + k->map[n].guest);
	const struct insn *i = decoded(b, k, n);
	t->n = 0;
	if (!i) { /* changed since, or one that this processor model does not have */
		interp_single(c);
		c->insn_tsc = 0;
		return false;
	}
	bool last = n + 1 == k->n;
	b->stats.interp_by_op[i->op]++;
	c->regs[R_BLOCK] = c->rip;
	touches(c, i, t);
	bool ends = i->flags & IF_LAST;
	if (unlikely(c->nested.mode) && k->map[n].held) /* of STI: an exit tells it */
		c->shadow_before = SHADOW_STI;
	interp_exec(c, i);
	c->shadow_before = 0;
	c->insn_tsc = 0;
	for (unsigned m = 0; m < t->n; m++)
		space_fill(b, t->lin[m], true);
	if (unlikely(b->window_fault) && !window_fill(b, t->lin, t->n) && window_site_missed(b, k->lin + k->map[n].guest))
		block_drop(b, k);
	/* A segment may have been loaded. */
	if (ends && !last && k->page->mode != CODE64 && c->rip == rip_of(b, k->lin + k->map[n + 1].guest)) {
		code_class(b);
		ends = !class_equal(&b->klass, &k->page->klass);
	}
	return !ends && !last && k->valid && (!k->made_from || selfcheck_holds(k));
}

/* ---- the run loop ------------------------------------------------------------------------------------------ */

static bool events_due(const struct cpu *c)
{
	return atomic_load(&((struct cpu *)(uintptr_t)c)->events) & c->event_mask;
}

static bool interrupted(const struct bt *b)
{
	const struct cpu *c = b->cpu;
	return c->slow || events_due(c) || shoot_pending(b) || c->activity != ACT_RUN;
}

/* Instruction n, at which the block was left, and the rest of the groups that it is in: there nothing resumes.
 * Returns the instruction at which the block goes on, 0: it does not. */
static unsigned group_by_interp(struct bt *b, struct block *k, unsigned n, bool crossed)
{
	struct touched t;
	unsigned first = n;
	bool on = insn_by_interp(b, k, n, &t);
	bool missed = crossed || (k->map[n].by_store && t.n && b->space && !space_stores(b, t.lin[0]));
	while (on && k->map[++n].no_resume)
		on = !interrupted(b) && insn_by_interp(b, k, n, &t);
	if (missed && k->valid)
		cache_ungroup(b, k, first);
	return on && k->valid ? n : 0;
}

#define WINDOW_CHANGES_MAX 3u /* then its addresses are here and there */
/* The block has taken instruction n's access for one to another window than it goes to. True: it is mended; else it
 * is to be made anew. */
static bool window_learn(struct bt *b, struct block *k, unsigned n)
{
	const struct insn *i = decoded(b, k, n);
	u64 lin = k->lin + k->map[n].guest;
	struct touched t;
	if (!i)
		return false;
	touches(b->cpu, i, &t);
	struct insn_map *m = &k->map[n];
	unsigned to = i->flags & IF_MEM ? window_of(b, t.lin[0]) : N_WINDOWS;
	u8 *site = b->rw + (k->checked - b->rx) + m->window_at;
	if (!m->window_at || (to < N_WINDOWS && ld32(site) == b->window_of[to])) {
		u64 sp = b->cpu->regs[isa_ops[i->op].mnemonic == ZYDIS_MNEMONIC_LEAVE ? R_BP : R_SP];
		window_site_learn(b, lin, true, !m->window_at && i->flags & IF_MEM ? t.lin[0] : sp);
		return false;
	}
	unsigned from = 0;
	while (from < b->n_windows && b->window_of[from] != ld32(site))
		from++;
	if (to < N_WINDOWS && m->window_changes == WINDOW_CHANGES_MAX && !m->window_two) {
		window_site_two(b, lin, from, to);
		return false;
	}
	if (to == N_WINDOWS || m->window_two) {
		window_site_table(b, lin, false);
		return false;
	}
	m->window_changes++;
	b->window_last = (u8)to;
	b->stats.window_sites++;
	st32(site, b->window_of[to]);
	st32(site + WINDOW_SITE_DISP, (u32)(WINDOW_AT + 8 * (i32)to));
	verify_again(b, k);
	return true;
}

static bool units_usable(const struct cpu *c, const struct block *k)
{
	for (unsigned f = 0; f <= FC_AVX512; f++)
		if (k->classes >> f & 1 && c->nofpu[f])
			return false;
	return true;
}

/* Runs translated code from `at` until it exits. */
static u32 enter(struct bt *b, const struct block *k, const u8 *at)
{
	struct cpu *c = b->cpu;
	struct ctx *x = b->ctx;
	x->enter_at = (u64)at;
	x->fdp = c->fdp;
	x->x87_off = c->nofpu[FC_X87]; /* MMX too: both by EM and TS */
	x->restore = k->units && x->units_off;
	x->units_no = 0;
	for (unsigned f = FC_SSE; f <= FC_AVX512; f++)
		x->units_no |= c->nofpu[f] && c->nofpu[f] != V_UD; /* for #UD, blocks do not have the class (FOR_NO_UNIT) */
	x->flags = flags_pack(c->rflags);
	x->fs_base = c->ebase[S_FS];
	x->gs_base = c->ebase[S_GS];
	x->kernel_gs_base = c->msr.kernel_gs_base;
	x->ac = (u32)c->rflags & FL_AC;
	x->tsc_offset = c->clock->tsc_offset + c->msr.tsc_adjust + nested_tsc(c, 0);
	x->tsc_aux = (u32)c->msr.tsc_aux;
	atomic_store(&b->inside, true);
	if (events_due(c) || shoot_pending(b)) { /* whoever posted it may not have seen us inside */
		atomic_store(&b->inside, false);
		return X_NOTHING;
	}
	b->stats.enters++;
	u64 wide[R_15 - R_8 + 1]; /* of 64-bit mode, which legacy code uses as it likes */
	bool legacy = b->klass.mode != CODE64;
	if (legacy)
		memcpy(wide, &c->regs[R_8], sizeof(wide));
	span_begin(c, &b->stats.inside);
	u32 id = b->enter(b);
	span_end(&b->stats.inside);
	if (legacy)
		memcpy(&c->regs[R_8], wide, sizeof(wide));
	if (id != X_NOTHING && (x->x87_last || (b->block_list[id >> 10]->classes & X87_CLASSES)))
		x87_resolve(b, id);
	atomic_store_explicit(&b->inside, false, memory_order_relaxed);
	if (id == X_NOTHING)
		return id;
	c->rflags = flags_unpack(c->rflags, x->flags);
	c->ebase[S_GS] = c->seg[S_GS].base = x->gs_base;
	c->msr.kernel_gs_base = x->kernel_gs_base;
	if (unlikely(((u32)c->rflags & FL_AC) != x->ac)) {
		cpu_set_rflags(c, x->ac, FL_AC);
		space_ac_changed(b);
	}
	return id;
}

/* Of an indirect branch. */
static bool target_valid(const struct bt *b)
{
	u64 to = b->ctx->target;
	return b->klass.mode == CODE64 ? cpu_canonical(b->cpu, to) : rip_of(b, to) <= b->klass.cs_limit;
}

/* Of instruction n. */
static struct link *block_link(struct block *k, unsigned n, enum exit_kind kind)
{
	unsigned l = kind - X_LINK0;
	if (n != k->n - 1u)
		for (l = LINKS_LAST; k->link[l].insn != n;)
			l++;
	return &k->link[l];
}

/* What an exit asks for. Returns where to go on in the same block, or NULL: by RIP. */
static const u8 *handle(struct bt *b, u32 id, struct block **in)
{
	struct cpu *c = b->cpu;
	enum exit_kind kind = id & 15;
	unsigned n = id >> 4 & 63;
	struct block *k = b->block_list[id >> 10];
	b->stats.exits[kind]++;
	switch (kind) {
	case X_KICK:
		window_tick(b, b->space);
		/* fall through */
	case X_GOTO:
		c->rip = rip_of(b, k->lin + k->map[n].guest);
		return NULL;
	case X_LINK0: case X_LINK1:
		b->want = block_link(k, n, kind);
		c->rip = rip_of(b, b->want->target);
		return NULL;
	case X_INDIRECT:
		if (likely(target_valid(b))) {
			c->rip = rip_of(b, b->ctx->target);
			return NULL;
		}
		/* As if it had not begun: it raises #GP. */
		c->regs[R_SP] = (c->regs[R_SP] & ~c->sp_mask) | ((c->regs[R_SP] + (u64)(i64)k->sp_back) & c->sp_mask);
		insn_by_interp(b, k, n, &(struct touched){ 0 });
		return NULL;
	case X_INSN: case X_FAULT: case X_GROUP: case X_WINDOW:
		if (kind == X_WINDOW && !window_learn(b, k, n))
			block_drop(b, k);
		n = group_by_interp(b, k, n, kind == X_GROUP);
		if (!n || !k->valid)
			return NULL;
		*in = k;
		return k->checked + k->map[n].host;
	default:
		return NULL;
	}
}

static enum run_exit why_left(const struct cpu *c)
{
	if (c->stopped)
		return RUN_STOPPED;
	if (atomic_load(&((struct cpu *)(uintptr_t)c)->events) & EV_EXIT)
		return RUN_EVENT;
	return c->activity == ACT_RUN ? RUN_EVENT : RUN_HALT;
}

static bool lmsle(const struct cpu *c) { return c->code_mode == CODE64 && c->seg_check; }

/* The block at RIP, as cache_find(), in its space. */
static struct block *find(struct bt *b)
{
	if (unlikely(b->windows_full) && windows_renew(b))
		cache_flush(b);
	code_class(b);
	space_select(b);
	space_class(b);
	return cache_find(b);
}

/* RF alone, as after each page fault: one instruction clears it, and nothing else looks at it. */
static void resumed(struct bt *b)
{
	struct cpu *c = b->cpu;
	b->want = NULL;
	struct block *k = lmsle(c) ? NULL : find(b);
	if (!k) {
		interp_single(c);
		return;
	}
	c->rflags &= ~(u64)FL_RF;
	cpu_update_events(c);
	group_by_interp(b, k, 0, false);
}

/* Goes on from RIP once. */
static void turn(struct bt *b)
{
	struct cpu *c = b->cpu;
	if (lmsle(c)) {
		b->want = NULL;
		interp_some(c);
		return;
	}
	struct block *k = find(b);
	struct link *want = b->want; /* not before: eviction takes it back */
	b->want = NULL;
	if (!k) {
		b->stats.single++;
		interp_single(c);
		return;
	}
	if (want && k->lin == want->target && want->from->valid && (want->checked || want->from->page == k->page))
		cache_link(b, want, k);
	if (k->classes && !units_usable(c, k)) {
		for (unsigned n = 0; n < k->n && !c->slow && !events_due(c); n++)
			interp_single(c);
		return;
	}
	const u8 *at = k->made_from ? k->checked : k->host;
	while (at) {
		u32 id = enter(b, k, at);
		if (id == X_NOTHING) {
			b->stats.exits[X_NOTHING]++;
			return;
		}
		at = handle(b, id, &k);
		if (!at)
			return;
		space_select(b);
		space_class(b);
		if (interrupted(b) || b->klass.windowed != k->page->klass.windowed)
			return;
	}
}

static enum run_exit run(struct cpu *c)
{
	struct bt *b = bt_of(c);
	if (c->clock->icount_mode || c->icount_limit != UINT64_MAX)
		return interp_run(c);
	fault_enter(b);
	b->space = NULL; /* the thread's gs may be another's */
	fpu_load(c);
	span_begin(c, &b->stats.running);
	if (_setjmp(c->jb)) {
		span_end(&b->stats.translating);
		b->want = NULL;
		b->window_fault = 0;
		interp_caught(c);
	}
	for (;;) {
		b->ctx->kicked = 0;
		if (events_due(c) || c->activity != ACT_RUN) {
			b->want = NULL;
			interp_boundary(c);
			if (!cpu_service_events(c))
				break;
		}
		if (shoot_pending(b))
			shoot_serve(b);
		if (c->slow == SLOW_RF) {
			resumed(b);
			continue;
		}
		if (c->slow) {
			b->want = NULL;
			interp_single(c);
			continue;
		}
		turn(b);
	}
	fpu_save(c);
	span_end(&b->stats.running);
	return why_left(c);
}

static void kick(struct cpu *c)
{
	if (c->engine)
		fault_kick(bt_of(c));
}

/* ---- life --------------------------------------------------------------------------------------------------- */

static bool usable(struct error *why_not)
{
	if (!__builtin_cpu_supports("bmi2"))
		return error_set(why_not, "the host's processor has no BMI2");
	if (!host_has_fsgsbase())
		return error_set(why_not, "the host's kernel does not let programs write the gs base (FSGSBASE)");
	return true;
}

static void vcpu_destroy(struct cpu *c)
{
	struct bt *b = bt_of(c);
	perf_close(b);
	shoot_destroy(b);
	verify_destroy(b);
	fault_destroy(b);
	cache_destroy(b);
	window_destroy(b);
	space_destroy(b);
	interp_destroy(c);
	free(b->scratch);
	free(b->sites);
	free(b->memo);
	free(b);
}

static bool vcpu_init(struct cpu *c, struct error *e)
{
	static const struct bt_options defaults;
	const struct bt_options *o = c->engine_options ? c->engine_options : &defaults;
	struct bt *b = calloc(1, sizeof(*b));
	if (!b)
		return error_set(e, "bt: out of memory");
	b->ctx_fd = b->perf_fd = -1;
	b->cpu = c;
	b->cache_bytes = o->cache ? (o->cache + 0xffff) & ~0xffffull : CACHE_BYTES;
	const char *flags = getenv("RING3_BT_FLAGS"); /* for programs that take no --engine */
	b->exact_flags = o->flags == FLAGS_EXACT || (flags && !strcmp(flags, "exact"));
	b->verify = o->verify;
	verify_init(b);
	const char *windows = getenv("RING3_BT_WINDOWS");
	b->windows = windows && !strcmp(windows, "on") ? WINDOWS_ON : windows && !strcmp(windows, "off") ? WINDOWS_OFF : o->windows;
	const char *code = getenv("RING3_BT_CODE");
	b->code = code && !strcmp(code, "checked") ? CODE_CHECKED : code && !strcmp(code, "watched") ? CODE_WATCHED : o->code;
	if (!interp_init(c, &b->in, e)) {
		free(b);
		return false;
	}
	b->scratch = calloc(1, sizeof(*b->scratch));
	b->memo = memo_new();
	if (!b->scratch || !b->memo || !window_sites_init(b, e) || !space_init(b, e) || !cache_init(b, e) || !fault_init(b, e) || !shoot_init(b, e) ||
	    (o->perf && !perf_open(b, e))) {
		vcpu_destroy(c);
		return false;
	}
	b->ctx->cpu = c;
	b->ctx->zmm = &c->zmm[0][0];
	b->ctx->k = c->k;
	b->ctx->units_off = 1;
	b->amd = !strcmp(c->model->vendor, "AuthenticAMD") || !strcmp(c->model->vendor, "HygonGenuine");
	b->interp_tlb_flush = c->on_tlb_flush;
	b->interp_code_written = c->on_code_written;
	c->on_tlb_flush = tlb_flushed;
	c->on_code_written = code_written;
	c->on_code_marked = code_marked;
	return true;
}

static const char *const flags_words[] = { "fast", "exact", NULL };
static const char *const verify_words[] = { "sample", "all", "off", NULL };
static const char *const code_words[] = { "auto", "watched", "checked", NULL };
static const char *const windows_words[] = { "auto", "on", "off", NULL };
static const struct kv_key keys[] = {
	ENGINE_NAME,
	{ "cache", KV_SIZE, offsetof(struct bt_options, cache), "a processor's host memory for translated code; 256M", CACHE_MIN, CACHE_MAX },
	{ "flags", KV_WORD, offsetof(struct bt_options, flags), "exact: also status flags that nothing reads", .words = flags_words },
	{ "verify", KV_WORD, offsetof(struct bt_options, verify), "which blocks are checked before they run", .words = verify_words },
	{ "windows", KV_WORD, offsetof(struct bt_options, windows), "user memory mapped for the host's own MMU: where a program computes for long, always, never", .words = windows_words },
	{ "code", KV_WORD, offsetof(struct bt_options, code), "how a change of code is noticed: by the write, by the code itself; auto: by the code where writes are many", .words = code_words },
	{ "perf", KV_BOOL, offsetof(struct bt_options, perf), "names of translated code for perf, in /tmp/perf-PID.map" },
};

const struct engine_ops bt_engine = {
	.name = "bt",
	.help = "binary translation: runs anywhere, at near the processor's own speed",
	.usable = usable,
	.vcpu_init = vcpu_init,
	.vcpu_destroy = vcpu_destroy,
	.run = run,
	.step = interp_step,
	.kick = kick,
	.keys = keys,
	.n_keys = ARRAY_LEN(keys),
	.options_bytes = sizeof(struct bt_options),
	.count = bt_count,
};
