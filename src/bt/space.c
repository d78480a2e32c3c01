/* Spaces: the page tables that translated code reads. One for each address space and privilege
 * of late, so that a change of CR3 under PCIDs, of CPL or of EFLAGS.AC is a change of the gs base.
 *
 *   gs - 4 KiB           struct ctx             | the same memory in every space
 *   below                ok slots               | each its own
 *   below                windows (window.c)     | each its own
 *   below                jump cache             | the same memory in every space
 *   gs .. gs + 4 GiB     the table: sparse, an entry of 8 bytes a guest page (bt.h)
 *
 * Invariants
 *  1. An entry is what the interpreter's TLB held for the space's epoch and index when it was
 *     made, or could have held (mmu_neighbours): so it ends when that does (flushes, INVLPG), and
 *     accessed and dirty bits are set.
 *  2. An entry leads to RAM only. What an address that shares it reaches lies at a multiple of
 *     MEM_ALIAS_STEP from RAM, where mem/ keeps everything out, or is not canonical: it faults.
 *  3. Every entry and ok slot that is not 0 is in a log, so that a flush costs what was filled;
 *     a log has LOG_MAX places, then the space is flushed.
 *  4. The tables' memory is bounded: TABLE_PAGES_MAX pages of a vCPU's, then the largest is given
 *     back. (The host's own page tables for one are 8 MiB at most.)
 *  5. A store entry is entered only after the page's `writers` names this vCPU and its lines
 *     have then been seen clear (space_protect and mem_code_mark are the other side). */
#define LOG_TOPIC "bt"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bt/bt.h"

#define SHARED_BYTES (4096u + 2u * N_JUMP * 8u)

/* ---- life ------------------------------------------------------------------------------------ */

static bool map_space(struct bt *b, struct space *s, struct error *e)
{
	size_t low = LOW_BYTES, all = low + TABLE_BYTES + 4096;
	u8 *p = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return error_set(e, "bt: no %zu bytes of address space for a page table: %m", all);
	s->gs = p + low;
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
	bool ok = mmap(s->gs + CTX_AT, 4096, rw, MAP_SHARED | MAP_FIXED, b->ctx_fd, 0) != MAP_FAILED &&
		  mmap(s->gs + JUMP_TAG_AT, SHARED_BYTES - 4096, rw, MAP_SHARED | MAP_FIXED, b->ctx_fd, 4096) != MAP_FAILED &&
		  mmap(s->gs + WINDOW_AT, OK_AT - WINDOW_AT + N_OK * 4, rw, anon, -1, 0) != MAP_FAILED &&
		  mmap(s->gs, TABLE_BYTES, rw, anon, -1, 0) != MAP_FAILED;
	s->touched = mmap(NULL, TABLE_BYTES / 4096 / 8, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!ok || s->touched == MAP_FAILED)
		return error_set(e, "bt: a page table: %m");
	for (unsigned n = 0; n < N_WINDOWS; n++)
		st64(s->gs + WINDOW_AT + 8 * (i32)n, WINDOW_NONE);
	madvise(s->gs, TABLE_BYTES, MADV_NOHUGEPAGE); /* for an entry here and there, 2 MiB would be much */
	return true;
}

bool space_init(struct bt *b, struct error *e)
{
	if (!b->cpu->mem->apart)
		return error_set(e, "bt: the host's address space has no place for the guest's memory that stands apart (a limit on address space, or a sanitizer?)");
	b->ctx_fd = memfd_create("ring3-bt", MFD_CLOEXEC);
	if (b->ctx_fd < 0 || ftruncate(b->ctx_fd, SHARED_BYTES))
		return error_set(e, "bt: memory for the context: %m");
	for (unsigned k = 0; k < N_SPACES; k++)
		if (!map_space(b, &b->spaces[k], e))
			return false;
	u8 *gs = b->spaces[0].gs;
	b->ctx = (struct ctx *)(void *)(gs + CTX_AT);
	for (unsigned k = 0; k < ARRAY_LEN(b->ctx->limit); k++)
		b->ctx->limit[k] = limit_value(k);
	b->jump_tag = (u64 *)(void *)(gs + JUMP_TAG_AT);
	b->jump_host = (u8 **)(void *)(gs + JUMP_HOST_AT);
	return true;
}

void space_destroy(struct bt *b)
{
	for (unsigned k = 0; k < N_SPACES; k++) {
		struct space *s = &b->spaces[k];
		if (s->gs)
			munmap(s->gs - LOW_BYTES, (size_t)LOW_BYTES + TABLE_BYTES + 4096);
		if (s->touched && s->touched != MAP_FAILED)
			munmap(s->touched, TABLE_BYTES / 4096 / 8);
		free(s->loads.at);
		free(s->stores.at);
		free(s->oks.at);
	}
	if (b->ctx_fd >= 0)
		close(b->ctx_fd);
}

/* ---- flushing ----------------------------------------------------------------------------------- */

/* No address space's: what windows have is looked at again before it is used (window_check). */
#define EPOCH_OVER (~0ull)

static u64 *entry(const struct space *s, u32 at) { return (u64 *)(void *)(s->gs + at); }

static void drop(struct space *s, struct log *l)
{
	for (u32 k = 0; k < l->n; k++)
		*entry(s, l->at[k]) = 0;
	l->n = 0;
}

static void flush_space(struct space *s)
{
	drop(s, &s->loads);
	drop(s, &s->stores);
	for (u32 k = 0; k < s->oks.n; k++)
		*space_ok_slot(s, s->oks.at[k]) = 0;
	s->oks.n = 0;
}

void space_flush_all(struct bt *b)
{
	for (unsigned k = 0; k < N_SPACES; k++) {
		flush_space(&b->spaces[k]);
		b->spaces[k].epoch = b->spaces[k].windowed ? EPOCH_OVER : 0;
	}
	b->space = NULL;
}

static bool log_add(struct space *s, struct log *l, u32 at)
{
	if (l->n == l->cap) {
		if (l->cap >= LOG_MAX) {
			flush_space(s);
		} else {
			u32 cap = l->cap ? l->cap * 2 : 512;
			u32 *p = realloc(l->at, cap * sizeof(*p));
			if (!p)
				return false;
			l->at = p;
			l->cap = cap;
		}
	}
	l->at[l->n++] = at;
	return true;
}

static bool was_touched(const struct space *s, u32 at) { return s->touched[at >> 18] >> (at >> 12 & 63) & 1; }

static void drop_pages(struct space *s, u64 lin, u64 pages, bool store)
{
	for (u64 k = 0; k < pages; k++) {
		u32 at = table_at(lin + k * 4096, store);
		if (!was_touched(s, at)) { /* on to the next page of the table */
			k += 511 - (at >> 3 & 511);
			continue;
		}
		*entry(s, at) = 0;
	}
}

void space_flush_page(struct bt *b, u64 lin, u64 mask)
{
	if (mask >= 1ull << 40) {
		space_flush_all(b);
		return;
	}
	u64 first = lin & ~mask, pages = (mask >> 12) + 1;
	for (unsigned k = 0; k < N_SPACES; k++) {
		struct space *s = &b->spaces[k];
		if (!s->epoch)
			continue;
		drop_pages(s, first, pages, false);
		drop_pages(s, first, pages, true);
		if (s->windowed)
			window_unmap(b, s, first, pages);
		if (pages == 1) {
			u32 *ok = space_ok_slot(s, cache_ok_slot(lin));
			if (*ok)
				*ok = 0;
		} else {
			for (u32 n = 0; n < s->oks.n; n++)
				*space_ok_slot(s, s->oks.at[n]) = 0;
			s->oks.n = 0;
		}
	}
}

/* ---- choosing -------------------------------------------------------------------------------------- */

/* With whose it is: the host's, a guest's. */
static u32 pcid_of(const struct cpu *c) { return (u32)(c->cr4 & CR4_PCIDE ? c->cr3 & 0xfff : 0) | (u32)c->space << 12; }

/* The kernel's spaces of this address space and class, for space_ac_pair(). */
static void kernel_pair(struct bt *b)
{
	for (unsigned k = 0; k < N_SPACES; k++) {
		struct space *x = &b->spaces[k];
		if (x->epoch == b->cpu->epoch && !x->user && class_equal(&x->klass, &b->klass) && (x->mmu == MMU_KERNEL || x->mmu == MMU_SMAP))
			b->near[x->mmu] = x;
	}
}

void space_select(struct bt *b)
{
	struct cpu *c = b->cpu;
	bool user = c->cpl == 3;
	struct space *s = b->space;
	if (likely(s && s->epoch == c->epoch && s->mmu == c->mmu && s->user == user))
		return;
	struct space *oldest = &b->spaces[0], *same = NULL;
	u32 pcid = pcid_of(c);
	s = NULL;
	for (unsigned k = 0; k < N_SPACES && !s; k++) {
		struct space *x = &b->spaces[k];
		if (x->mmu == c->mmu && x->user == user && x->epoch) {
			if (x->epoch == c->epoch)
				s = x;
			else if (x->pcid == pcid)
				same = x; /* flushed since: of no more use */
		}
		if (x->used < oldest->used)
			oldest = x;
	}
	if (!s) {
		s = same ? same : oldest;
		b->stats.spaces_recycled++;
		flush_space(s);
		if (s != same || s->root != (c->cr3 & ~PAGE_MASK)) {
			window_take(b, s);
			s->ticks = s->wait = s->steady = 0; /* another's */
		}
		s->root = c->cr3 & ~PAGE_MASK;
		s->epoch = c->epoch;
		s->mmu = c->mmu;
		s->user = user;
		s->pcid = pcid;
		if (s->windowed)
			window_check(b, s);
		else if (b->windows == WINDOWS_ON)
			window_tick(b, s);
	}
	kernel_pair(b);
	space_enter(b, s);
}

/* The ok slots of another class's pages would let its blocks be entered. */
void space_class(struct bt *b)
{
	struct space *s = b->space;
	b->klass.windowed = s->windowed && b->klass.mode == CODE64;
	if (likely(class_equal(&s->klass, &b->klass)))
		return;
	for (u32 k = 0; k < s->oks.n; k++)
		*space_ok_slot(s, s->oks.at[k]) = 0;
	s->oks.n = 0;
	s->klass = b->klass;
	kernel_pair(b);
	space_ac_pair(b);
}

/* Translated STAC and CLAC have changed the gs base. */
void space_ac_changed(struct bt *b)
{
	for (unsigned k = 0; k < N_SPACES; k++)
		if ((u64)b->spaces[k].gs == b->ctx->gs_ac[b->ctx->ac != 0])
			b->space = &b->spaces[k];
}

/* ---- filling ----------------------------------------------------------------------------------------- */

/* The largest table's memory goes back to the host, with all that is in it. */
static void release_largest(struct bt *b)
{
	struct space *s = &b->spaces[0];
	for (unsigned k = 1; k < N_SPACES; k++)
		if (b->spaces[k].n_touched > s->n_touched)
			s = &b->spaces[k];
	if (madvise(s->gs, TABLE_BYTES, MADV_DONTNEED) || madvise(s->touched, TABLE_BYTES / 4096 / 8, MADV_DONTNEED))
		bug("the host does not take back a page table: %m");
	s->loads.n = s->stores.n = 0;
	b->table_pages -= s->n_touched;
	s->n_touched = 0;
	b->stats.table_releases++;
}

static bool enter(struct bt *b, struct space *s, struct log *l, u32 at, u64 value)
{
	u64 *p = entry(s, at);
	if (*p == value)
		return false;
	if (!was_touched(s, at) && b->table_pages >= TABLE_PAGES_MAX)
		release_largest(b);
	if (!log_add(s, l, at))
		return false;
	if (!was_touched(s, at)) {
		s->touched[at >> 18] |= 1ull << (at >> 12 & 63);
		s->n_touched++;
		b->table_pages++;
	}
	*p = value;
	return true;
}

/* An entry for this page of RAM; true: a new one. */
static bool fill(struct bt *b, struct space *s, u64 lin, u64 addend, struct page_code *code, bool store)
{
	struct cpu *c = b->cpu;
	bool made = enter(b, s, &s->loads, table_at(lin, false), addend + 1);
	b->stats.load_fills += made;
	if (!store)
		return made;
	atomic_fetch_or(&code->writers, 1u << (c->index & 31));
	if (atomic_load(&code->lines))
		return made;
	bool made_store = enter(b, s, &s->stores, table_at(lin, true), addend + 1);
	b->stats.store_fills += made_store;
	return made || made_store;
}

/* The pages beside it, as far as nothing is to be seen of that. */
static void fill_neighbours(struct bt *b, struct space *s, u64 lin, u64 addend, bool store)
{
	struct cpu *c = b->cpu;
	u64 gpa[MMU_GROUP];
	u32 found = mmu_neighbours(c, lin, store, gpa);
	u64 first = lin & ~(u64)(MMU_GROUP * 4096 - 1);
	/* The TLB may still go by what the tables said before. */
	if (!found || mem_ram(c->mem, gpa[(lin - first) >> 12]) != (u8 *)(lin + addend))
		return;
	for (; found; found &= found - 1) {
		unsigned k = (unsigned)__builtin_ctz(found);
		u8 *host = mem_ram(c->mem, gpa[k]);
		if (host)
			fill(b, s, first + k * 4096, (u64)host - (first + k * 4096), &c->mem->code[(u64)(host - c->mem->ram) >> 12], store);
	}
}

void space_fill(struct bt *b, u64 lin, bool store)
{
	struct cpu *c = b->cpu;
	struct space *s = b->space;
	if (!s || s->epoch != c->epoch || s->mmu != c->mmu)
		return;
	struct tlb_entry *t = tlb_slot(c, lin);
	u64 tag = (lin & ~PAGE_MASK) | c->epoch;
	if (t->rtag != tag || !t->code)
		return;
	store = store && t->wtag == tag;
	if (store && atomic_load(&t->code->lines))
		selfcheck_churn(b, t->code, CHURN_STORE);
	if (fill(b, s, lin, t->addend, t->code, store))
		fill_neighbours(b, s, lin & ~PAGE_MASK, t->addend, store);
}

bool space_stores(const struct bt *b, u64 lin) { return *entry(b->space, table_at(lin, true)); }

void space_ok(struct bt *b, u32 slot, u32 id)
{
	u32 *p = space_ok_slot(b->space, slot);
	if (*p == id || (!*p && !log_add(b->space, &b->space->oks, slot)))
		return;
	*p = id;
}

/* ---- taking back stores ---------------------------------------------------------------------------------- */

void space_protect(struct bt *b, struct page_code *p)
{
	struct mem *m = b->cpu->mem;
	const u64 bits = (1ull << 41) - 1;
	u64 host = (u64)m->ram + ((u64)(p - m->code) << 12);
	for (unsigned k = 0; k < N_SPACES; k++) {
		struct space *s = &b->spaces[k];
		struct log *l = &s->stores;
		for (u32 n = 0; n < l->n;) {
			u64 *e = entry(s, l->at[n]);
			u64 lin = ((u64)(u32)(l->at[n] - STORE_HALF) >> 3) << 12; /* modulo 2^41 */
			if (*e && ((*e - 1 + lin - host) & bits)) {
				n++;
				continue;
			}
			*e = 0;
			l->at[n] = l->at[--l->n];
		}
		if (s->windowed)
			window_protect(b, s, (u32)(p - m->code));
	}
	atomic_fetch_and(&p->writers, ~(1u << (b->cpu->index & 31)));
}
