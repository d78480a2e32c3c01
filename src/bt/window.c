/* Windows: the user half of an address space as the host's own MMU has it, so that an access needs no look
 * into a table: each page of the guest's is mapped, from the RAM's memfd, where
 *
 *     host address = window (ctx side: gs:[WINDOW_AT + 8 n]) - 1 + guest address
 *
 * leads, for the 512 GiB of guest addresses that window n is for. Translated code of a space with windows
 * (seg_class.windowed) looks whether an address is in the window that the instruction is expected to go to, and
 * then just goes there (mempath.c): a page that is not mapped, or not for stores, faults, the interpreter does
 * the instruction, and what it found is mapped. That costs thousands of cycles a page, where an entry of the table
 * costs hundreds, so that windows are for address spaces that have computed for a while (window_tick), as long as
 * they do not cost them more than they give.
 *
 * Invariants
 *  1. A page is mapped only where the table (space.c) could have an entry: user access is allowed, accessed and
 *     (for stores) dirty bits are set, it is RAM, and for stores: page_code.writers names this vCPU and no line of
 *     it is code. It ends when the entry would, at the latest before the space is entered again (window_check).
 *  2. A region of the host's addresses holds nothing but such pages, and nothing for GUARD before and after, which
 *     is more than WINDOW_REACH and the longest access.
 *  3. Translated code has what window n stands for as a constant (bt.window_of): when that changes (windows_renew), all
 *     blocks go. A space without
 *     region n has WINDOW_NONE there.
 *  4. window_pages.at has each page that is mapped: open addressing, by page number.
 * Threading: a vCPU's own; `maps` counts for the process, as the host's limit does. Which instruction goes to which
 * window: window_site.c. */
#define LOG_TOPIC "bt"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bt/bt.h"

#define WINDOW_BYTES (1ull << WINDOW_BITS)
#define GUARD (1ull << 31)
#define REGION_BYTES (WINDOW_BYTES + 2 * GUARD)
_Static_assert(GUARD > WINDOW_REACH + 4096 && REGION_BYTES < MEM_ALIAS_STEP, "a region lies between two aliases of RAM");
#define PAGE_BITS 27 /* of a window */
#define PAGES_MAX_WINDOW (1u << 18)
#define RUN_MAX 256 /* pages: what is mapped at once is also looked at, and may not be used */
#define MAPS_MAX 24000 /* of all vCPUs; each may split one mapping in three, and the host allows a process 65530 */
static _Atomic u32 maps;

/* What windows may cost, in calls to the host's kernel, of 3 to 7 us: a twentieth of the space's time, which is counted
 * in ticks of its guest, 1 to 10 ms; a loan at the start. Where that is too little they are taken back for a while,
 * a longer one each time: a program may go on to something else. */
#define RENEW_MIN (1ull << 34)
#define NEW_CODE 40u /* blocks a tick: it is still on its way to ever new code, of which each block would be made twice */
#define TICK_MIN (1u << 21) /* of the host's TSC: other interrupts than those of a timer are no more than that */
enum { TICKS_BEFORE = 10, TICKS_STEADY = 6, WAIT_MIN = 50, WAIT_MAX = 125, CREDIT_FIRST = 1000, CREDIT_TICK = 30, CREDIT_MAX = 20000 };

/* ---- what is mapped -------------------------------------------------------------------------------------- */

/* Where it would best be. 64 pages side by side are so here as well (mark_changed goes through them), but no more: long
 * runs, of several places and windows, would lie over each other, and a look would go through all of both. */
static u32 home_of(const struct window_pages *w, u32 page)
{
	u32 run = (page - 1) >> 6;
	return ((run * 0x9e3779b1u >> (32 + 6 - (unsigned)__builtin_ctz(w->cap))) << 6 | ((page - 1) & 63)) & (w->cap - 1);
}
static u32 slot_of(const struct window_pages *w, u32 page)
{
	u32 n = home_of(w, page);
	while (w->at[n].page && w->at[n].page != page)
		n = (n + 1) & (w->cap - 1);
	return n;
}
static struct window_page *page_find(const struct window_pages *w, u32 page)
{
	if (!w->n)
		return NULL;
	struct window_page *p = &w->at[slot_of(w, page)];
	return p->page ? p : NULL;
}

static bool pages_grow(struct window_pages *w)
{
	struct window_pages was = *w;
	u32 cap = w->cap ? w->cap * 2 : 1024;
	if (cap > PAGES_MAX_WINDOW * 2)
		return false;
	struct window_page *at = calloc(cap, sizeof(*at));
	if (!at)
		return false;
	w->at = at;
	w->cap = cap;
	for (u32 n = 0; n < was.cap; n++)
		if (was.at[n].page)
			w->at[slot_of(w, was.at[n].page)] = was.at[n];
	free(was.at);
	return true;
}

static bool page_set(struct window_pages *w, u32 page, u32 ram)
{
	if (2 * w->n >= w->cap && !pages_grow(w))
		return false;
	struct window_page *p = &w->at[slot_of(w, page)];
	w->n += !p->page;
	*p = (struct window_page){ page, ram };
	return true;
}

/* What comes behind it moves up, so that it is still found. */
static void page_remove(struct window_pages *w, struct window_page *p)
{
	u32 hole = (u32)(p - w->at), mask = w->cap - 1;
	for (u32 n = (hole + 1) & mask; w->at[n].page; n = (n + 1) & mask) {
		u32 home = home_of(w, w->at[n].page);
		if (((n - home) & mask) < ((n - hole) & mask))
			continue;
		w->at[hole] = w->at[n];
		hole = n;
	}
	w->at[hole].page = 0;
	w->n--;
}

static u32 page_number(unsigned n, u64 lin) { return (n << PAGE_BITS | ((u32)(lin >> 12) & ((1u << PAGE_BITS) - 1))) + 1; }
static u64 page_lin(const struct bt *b, u32 page)
{
	return (u64)b->window_of[(page - 1) >> PAGE_BITS] << WINDOW_BITS | (u64)((page - 1) & ((1u << PAGE_BITS) - 1)) << 12;
}

static void window_set(struct space *s, unsigned n, u64 value) { st64(s->gs + WINDOW_AT + 8 * (i32)n, value); }
/* Where window n of the space begins; NULL: it has none. */
static u8 *window_base(const struct bt *b, const struct space *s, unsigned n)
{
	u64 v = ld64(s->gs + WINDOW_AT + 8 * (i32)n);
	return v == WINDOW_NONE ? NULL : (u8 *)(v - 1 + ((u64)b->window_of[n] << WINDOW_BITS));
}
static u8 *page_host(const struct bt *b, const struct space *s, u32 page)
{
	u8 *base = window_base(b, s, (page - 1) >> PAGE_BITS);
	return base + ((u64)((page - 1) & ((1u << PAGE_BITS) - 1)) << 12);
}

static void empty(u8 *at, u64 bytes)
{
	if (mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		bug("the host does not take back %#lx bytes of a window: %m", (unsigned long)bytes);
}

static void clear(struct bt *b, struct space *s);

/* One more call that may split one of the host's mappings in three. False: there are enough. */
static bool maps_more(struct space *s)
{
	if (atomic_fetch_add(&maps, 1) >= MAPS_MAX) {
		atomic_fetch_sub(&maps, 1);
		return false;
	}
	s->window.maps++;
	return true;
}

/* Or all of them. */
static void page_unmap(struct bt *b, struct space *s, struct window_page *p)
{
	if (!maps_more(s)) {
		clear(b, s);
		return;
	}
	empty(page_host(b, s, p->page), 4096);
	page_remove(&s->window, p);
	s->credit--;
	b->stats.window_unmaps++;
}

/* All that is mapped; the windows stay. */
static void clear(struct bt *b, struct space *s)
{
	struct window_pages *w = &s->window;
	for (unsigned n = 0; n < b->n_windows && w->n; n++) {
		u8 *base = window_base(b, s, n);
		if (base)
			empty(base, WINDOW_BYTES);
	}
	free(w->at);
	w->at = NULL;
	w->cap = 0;
	atomic_fetch_sub(&maps, w->maps);
	w->n = w->maps = 0;
}

/* ---- regions ----------------------------------------------------------------------------------------------- */

void window_take(struct bt *b, struct space *s)
{
	if (!s->windowed)
		return;
	clear(b, s);
	for (unsigned k = 0; k < b->n_regions; k++)
		if (b->region[k].of == s)
			b->region[k].of = NULL;
	for (unsigned n = 0; n < N_WINDOWS; n++)
		window_set(s, n, WINDOW_NONE);
	free(s->window.at);
	s->window = (struct window_pages){ 0 };
	s->windowed = false;
	s->ticks = 0;
	b->stats.windows_taken++;
}

/* The space goes without windows: they cost too much. */
static void give_up(struct bt *b, struct space *s)
{
	window_take(b, s);
	s->wait = MIN(MAX(2 * s->wait, WAIT_MIN), WAIT_MAX);
}

/* A region of its own for window n of the space: a new one, or one of the space that was not used for longest. */
static struct window_region *region_for(struct bt *b, struct space *s)
{
	struct space *oldest = NULL;
	for (unsigned k = 0; k < b->n_regions; k++) {
		struct window_region *r = &b->region[k];
		if (!r->of)
			return r;
		if (r->of != s && (!oldest || r->of->used < oldest->used))
			oldest = r->of;
	}
	if (b->n_regions < WINDOW_REGIONS) {
		u8 *p = mmap(NULL, REGION_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p != MAP_FAILED) {
			b->region[b->n_regions].base = p + GUARD;
			return &b->region[b->n_regions++];
		}
	}
	if (!oldest)
		return NULL;
	give_up(b, oldest);
	return region_for(b, s);
}

static u8 *window_make(struct bt *b, struct space *s, unsigned n)
{
	struct window_region *r = region_for(b, s);
	if (!r)
		return NULL;
	r->of = s;
	r->window = (u8)n;
	window_set(s, n, (u64)r->base - ((u64)b->window_of[n] << WINDOW_BITS) + 1);
	return r->base;
}

bool window_has(const struct bt *b, const u8 *addr)
{
	for (unsigned k = 0; k < b->n_regions; k++)
		if (b->region[k].of == b->space && (u64)(addr - b->region[k].base) < WINDOW_BYTES)
			return true;
	return false;
}

/* ---- filling --------------------------------------------------------------------------------------------------- */

/* Whether stores to the pages may go past the interpreter; from then on they may. */
static bool may_store(struct bt *b, u32 ram, u32 pages)
{
	for (u32 k = 0; k < pages; k++) {
		struct page_code *p = &b->cpu->mem->code[ram + k];
		atomic_fetch_or(&p->writers, 1u << (b->cpu->index & 31));
		if (atomic_load(&p->lines))
			return false;
	}
	return true;
}

/* Pages side by side, of the guest's addresses and of RAM. False: they stay as they are. */
static bool map_run(struct bt *b, struct space *s, unsigned n, u64 lin, u32 ram, u32 pages, bool store)
{
	u8 *at = page_host(b, s, page_number(n, lin));
	if (store && !may_store(b, ram, pages))
		return false;
	if (!maps_more(s)) {
		if (s->window.n < s->window.maps / 2) /* most is of what is no longer there: once more from the start */
			clear(b, s);
		if (!maps_more(s)) {
			s->credit = -1;
			return false;
		}
	}
	s->credit--;
	for (u32 k = 0; k < pages; k++)
		if (!page_set(&s->window, page_number(n, lin) + k, (ram + k) << 1 | store)) {
			s->credit = -1;
			return false; /* those that were set are not there: unmapping them does no harm */
		}
	int prot = PROT_READ | (store ? PROT_WRITE : 0), flags = MAP_SHARED | MAP_FIXED | (pages <= 64 ? MAP_POPULATE : 0);
	if (mmap(at, (u64)pages << 12, prot, flags, b->cpu->mem->fd, (off_t)((u64)ram << 12)) == MAP_FAILED)
		bug("the host does not map %u pages of RAM in a window: %m", pages);
	b->stats.window_pages += pages;
	return true;
}

/* The page of RAM at gpa; ~0: it is none. */
static u32 ram_page(const struct bt *b, u64 gpa)
{
	const struct mem *m = b->cpu->mem;
	const u8 *host = mem_ram(b->cpu->mem, gpa & ~PAGE_MASK);
	return host && (u64)(host - m->ram) < m->ram_size ? (u32)((u64)(host - m->ram) >> 12) : ~0u;
}

/* A page of 2 MiB as a whole. */
static bool fill_large(struct bt *b, struct space *s, unsigned n, u64 lin, bool store)
{
	struct walk w;
	const u64 large = 2u << 20;
	if (!mmu_used(b->cpu, lin, store, &w) || w.page_size < large)
		return false;
	u64 gpa = w.gpa & ~(large - 1);
	u32 first = ram_page(b, gpa);
	for (u32 k = 1; k < 512; k++) /* the first 2 MiB have holes */
		if (first == ~0u || ram_page(b, gpa + k * 4096) != first + k)
			return false;
	return map_run(b, s, n, lin & ~(large - 1), first, 512, store);
}

/* As good as `ram`, of which it is known whether it is mapped for stores: nothing is to be done. */
static bool mapped_so(const struct space *s, u32 page, u32 ram, bool store)
{
	const struct window_page *p = page_find(&s->window, page);
	return p && p->ram >> 1 == ram && (p->ram & 1 || !store);
}

/* Which pages beside lin's could be in a TLB as well, and follow it in RAM as they do in the address space: from the
 * first to behind the last, relative to it. */
static void neighbours(struct bt *b, const struct space *s, unsigned n, u64 lin, u32 ram, bool store, int *first, int *end)
{
	u64 gpa[MMU_GROUP], group = ~0ull;
	u32 found = 0;
	bool up = true;
	*first = 0;
	*end = 1;
	for (int k = 1;; k += up ? 1 : -1) {
		u64 at = lin + (u64)(i64)k * 4096;
		unsigned in = (unsigned)(at >> 12) & (MMU_GROUP - 1);
		bool there = k < RUN_MAX && k > -RUN_MAX && !((at ^ lin) >> 21); /* one table of the lowest level */
		if (there && at / (MMU_GROUP * 4096) != group) {
			struct walk w;
			group = at / (MMU_GROUP * 4096);
			found = mmu_neighbours(b->cpu, at, store, gpa);
			if (mmu_used(b->cpu, at, store, &w)) {
				found |= 1u << in;
				gpa[in] = w.gpa;
			}
		}
		u32 next = ram + (u32)k;
		if (there && found >> in & 1 && ram_page(b, gpa[in]) == next && !mapped_so(s, page_number(n, at), next, store) &&
		    (!store || !atomic_load(&b->cpu->mem->code[next].lines))) {
			if (up)
				*end = k + 1;
			else
				*first = k;
			continue;
		}
		if (!up)
			return;
		up = false;
		group = ~0ull;
		k = 0;
	}
}

/* The page and those that follow it, and that it follows. */
static void fill_run(struct bt *b, struct space *s, unsigned n, u64 lin, u32 ram, bool store)
{
	struct walk w;
	int first = 0, end = 1;
	/* The TLB may still go by what the tables said before. */
	if (mmu_used(b->cpu, lin, store, &w) && ram_page(b, w.gpa) == ram)
		neighbours(b, s, n, lin, ram, store, &first, &end);
	map_run(b, s, n, lin + (u64)(i64)first * 4096, ram + (u32)first, (u32)(end - first), store);
}

/* The page at lin, of window n. */
static bool fill(struct bt *b, struct space *s, unsigned n, u64 lin)
{
	struct cpu *c = b->cpu;
	struct tlb_entry *t = tlb_slot(c, lin);
	u64 tag = (lin & ~PAGE_MASK) | c->epoch, at = lin + t->addend - (u64)c->mem->ram;
	if (t->rtag != tag || !t->code || at >= c->mem->ram_size)
		return false;
	u32 ram = (u32)(at >> 12), page = page_number(n, lin);
	bool store = t->wtag == tag && !atomic_load(&t->code->lines);
	if (mapped_so(s, page, ram, store))
		return false;
	if (!fill_large(b, s, n, lin, store))
		fill_run(b, s, n, lin & ~PAGE_MASK, ram, store);
	return mapped_so(s, page, ram, store);
}

/* The guest's address that the host's is in one of the space's windows. */
static bool guest_address(const struct bt *b, const struct space *s, u64 host, unsigned *n, u64 *lin)
{
	for (unsigned k = 0; k < b->n_regions; k++) {
		const struct window_region *r = &b->region[k];
		*n = r->window;
		*lin = ((u64)b->window_of[*n] << WINDOW_BITS) + (host - (u64)r->base);
		if (r->of == s && host - (u64)r->base < WINDOW_BYTES)
			return true;
	}
	return false;
}

bool window_fill(struct bt *b, const u64 *lin, unsigned count)
{
	struct space *s = b->space;
	u64 fault = b->window_fault, at;
	unsigned n;
	bool done = false;
	b->window_fault = 0;
	if (!s || !s->windowed || s->epoch != b->cpu->epoch || s->mmu != b->cpu->mmu)
		return true;
	b->stats.window_faults++;
	if (guest_address(b, s, fault, &n, &at)) {
		done = fill(b, s, n, at);
	} else {
		for (unsigned k = 0; k < count; k++) {
			n = window_of(b, lin[k]);
			if (n == N_WINDOWS || window_base(b, s, n) || !window_make(b, s, n))
				continue;
			fill(b, s, n, lin[k]);
			done = true;
		}
	}
	if (s->credit < 0)
		give_up(b, s);
	return done;
}

/* ---- taking back -------------------------------------------------------------------------------------------------- */

void window_unmap(struct bt *b, struct space *s, u64 lin, u64 pages)
{
	unsigned n = 0;
	while (n < b->n_windows && b->window_of[n] != lin >> WINDOW_BITS)
		n++;
	if (n == b->n_windows || !window_base(b, s, n))
		return;
	struct window_pages *w = &s->window;
	u32 first = page_number(n, lin);
	if (pages == 1) {
		struct window_page *p = page_find(w, first);
		if (p)
			page_unmap(b, s, p);
		return;
	}
	u32 was = w->n;
	for (u64 k = 0; k < pages && pages < w->cap; k++) {
		struct window_page *p = page_find(w, first + (u32)k);
		if (p)
			page_remove(w, p);
	}
	for (u32 k = 0; k < w->cap && pages >= w->cap;) {
		if (w->at[k].page && w->at[k].page - first < pages)
			page_remove(w, &w->at[k]);
		else
			k++;
	}
	if (w->n == was)
		return;
	if (!maps_more(s)) {
		clear(b, s);
		return;
	}
	empty(page_host(b, s, first), pages << 12); /* all of one window: a range is aligned to its size */
	s->credit--;
	b->stats.window_unmaps += was - w->n;
}

/* Marks those that are no longer as the tables have it: ram ~0. Returns how many. */
static u32 mark_changed(struct bt *b, struct space *s)
{
	u64 gpa[MMU_GROUP], of = ~0ull;
	u32 found = 0, changed = 0;
	bool stores = false;
	for (u32 n = 0; n < s->window.cap; n++) {
		struct window_page *p = &s->window.at[n];
		if (!p->page)
			continue;
		u64 lin = page_lin(b, p->page);
		unsigned self = (unsigned)(lin >> 12) & (MMU_GROUP - 1);
		bool store = p->ram & 1;
		if (lin >> 15 != of || !(found >> self & 1) || (store && !stores)) {
			struct walk x;
			bool used = mmu_used(b->cpu, lin, store, &x);
			found = used ? mmu_neighbours(b->cpu, lin, store, gpa) : 0;
			gpa[self] = used ? x.gpa : 0;
			found |= (u32)used << self;
			of = lin >> 15;
			stores = store;
		}
		if (found >> self & 1 && ram_page(b, gpa[self]) == p->ram >> 1)
			continue;
		p->ram = ~0u;
		changed++;
	}
	return changed;
}

void window_check(struct bt *b, struct space *s)
{
	struct window_pages *w = &s->window;
	u32 changed = mark_changed(b, s);
	b->stats.window_checks++;
	s->credit -= (i32)(w->n / 128);
	if (changed > w->n / 4) /* all at once costs less a page */
		clear(b, s);
	for (u32 n = 0; n < w->cap && w->n;) {
		if (w->at[n].page && w->at[n].ram == ~0u)
			page_unmap(b, s, &w->at[n]); /* another may take its place */
		else
			n++;
	}
	if (s->credit < 0)
		give_up(b, s);
}

void window_protect(struct bt *b, struct space *s, u32 ram)
{
	struct window_pages *w = &s->window;
	for (u32 n = 0; n < w->cap && w->n;) {
		if (w->at[n].page && w->at[n].ram == (ram << 1 | 1))
			page_unmap(b, s, &w->at[n]);
		else
			n++;
	}
}

/* ---- which spaces ---------------------------------------------------------------------------------------------------- */

void window_tick(struct bt *b, struct space *s)
{
	if (!s || !s->user || b->klass.mode != CODE64 || b->windows == WINDOWS_OFF)
		return;
	u64 now = __builtin_ia32_rdtsc();
	if (b->windows != WINDOWS_ON && now - s->tick_at < TICK_MIN)
		return;
	s->tick_at = now;
	s->ticks++;
	if (s->windowed) {
		s->credit = MAX(s->credit, MIN(s->credit + CREDIT_TICK, CREDIT_MAX));
		if (s->ticks > 4 * s->wait)
			s->wait = 0;
		return;
	}
	u64 translated = b->stats.translated - b->windows_translated;
	b->windows_translated = b->stats.translated;
	s->steady = translated > NEW_CODE ? 0 : s->steady + 1;
	if (b->windows != WINDOWS_ON && (s->ticks < (s->wait ? s->wait : TICKS_BEFORE) || s->steady < TICKS_STEADY))
		return;
	s->windowed = true;
	s->credit = b->windows == WINDOWS_ON ? INT32_MAX / 2 : CREDIT_FIRST + (i32)MIN(s->ticks, CREDIT_MAX / CREDIT_TICK) * CREDIT_TICK;
	s->ticks = 0;
	b->stats.windows_given++;
}

/* All windows are taken, and others are asked for: programs that have ended had them. They begin anew; the caller drops
 * all blocks, which have them as constants. False: not yet again. */
bool windows_renew(struct bt *b)
{
	u64 now = __builtin_ia32_rdtsc();
	b->windows_full = false;
	if (now - b->windows_renewed < RENEW_MIN)
		return false;
	b->windows_renewed = now;
	for (unsigned k = 0; k < N_SPACES; k++)
		if (b->spaces[k].windowed)
			give_up(b, &b->spaces[k]);
	b->n_windows = b->window_last = 0;
	window_sites_forget(b);
	return true;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

void window_destroy(struct bt *b)
{
	for (unsigned k = 0; k < N_SPACES && b->ctx; k++)
		window_take(b, &b->spaces[k]);
	for (unsigned k = 0; k < b->n_regions; k++)
		munmap(b->region[k].base - GUARD, REGION_BYTES);
}
