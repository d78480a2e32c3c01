/* The code cache: where blocks live, how they are found, linked, invalidated and evicted.
 *
 * The memory is mapped once to write and once to run. It is filled segment by segment,
 * round and round: entering a segment again evicts all that is in it, the oldest first.
 *
 * Invariants
 *  1. One vCPU's cache is touched by its thread alone, outside of translated code.
 *  2. A block that is not valid can no longer be found, linked or entered: its entries lead to its
 *     `stale` exit. Its memory stays until its segment is evicted, since the return stack and the
 *     signal handler may still name it.
 *  3. A code_page's blocks were made from what the page held at `gen`; when page_code.gen moves
 *     on, they all go (cache_page_written at once by the writer, cache_find at the latest). Or all
 *     of them check themselves, each what it was made from (selfcheck.c); then several may be of one place. */
#define LOG_TOPIC "bt"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bt/bt.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#define RETURN_STACK (1u << 20)

/* ---- life -------------------------------------------------------------------------------------- */

/* The same memory twice: a second place for a shared mapping. It belongs to no file, not even one
 * in memory, so that perf looks for its names where perf.c leaves them. mremap(2). */
static bool map_cache(struct bt *b, struct error *e)
{
	b->rx = MAP_FAILED;
	b->rw = mmap(NULL, b->cache_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (b->rw != MAP_FAILED)
		b->rx = mremap(b->rw, 0, b->cache_bytes, MREMAP_MAYMOVE);
	if (b->rx == MAP_FAILED || mprotect(b->rx, b->cache_bytes, PROT_READ | PROT_EXEC))
		return error_set(e, "bt: memory for translated code: %m");
	return true;
}

static bool map_return_stack(struct bt *b, struct error *e)
{
	u8 *p = mmap(NULL, RETURN_STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED || mprotect(p + 4096, RETURN_STACK - 4096, PROT_READ | PROT_WRITE))
		return error_set(e, "bt: memory for the return stack: %m");
	b->return_stack = p;
	b->return_top = (u64)(p + RETURN_STACK - 64);
	*(u64 *)(void *)b->return_top = (u64)b->return_miss;
	b->ctx->return_sp = b->return_top;
	return true;
}

/* Of an empty place of the jump cache: no address that is looked for there. */
static u64 no_tag(u32 n) { return n ? 0 : 4; }

bool cache_init(struct bt *b, struct error *e)
{
	b->block_hash = calloc(BLOCK_HASH, sizeof(*b->block_hash));
	b->page_hash = calloc(PAGE_HASH, sizeof(*b->page_hash));
	b->block_list = calloc(BLOCKS_MAX, sizeof(*b->block_list));
	b->free_index = calloc(BLOCKS_MAX, sizeof(*b->free_index));
	if (!b->block_hash || !b->page_hash || !b->block_list || !b->free_index)
		return error_set(e, "bt: out of memory");
	if (!map_cache(b, e) || !glue_init(b, e) || !map_return_stack(b, e))
		return false;
	u32 size = (u32)(b->cache_bytes / SEGMENTS);
	for (u32 k = 0; k < SEGMENTS; k++) {
		if (k)
			b->seg[k].start = k * size;
		b->seg[k].end = (k + 1) * size;
		b->seg[k].cold_start = b->seg[k].end - size / 2;
		b->seg[k].ready = k * size & ~4095u;
		b->seg[k].cold_ready = b->seg[k].cold_start & ~4095u;
	}
	b->cold_used = b->seg[0].cold_start;
	b->jump_tag[0] = no_tag(0);
	return true;
}

static void pages_free(struct bt *b)
{
	for (unsigned k = 0; k < PAGE_HASH; k++) {
		for (struct code_page *p = b->page_hash[k], *next; p; p = next) {
			next = p->hash_next;
			free(p);
		}
		b->page_hash[k] = NULL;
	}
	b->n_pages = 0;
}

static void segment_evict(struct bt *b, u32 k);

void cache_destroy(struct bt *b)
{
	if (b->block_list && b->page_hash && b->rw && b->rw != MAP_FAILED)
		for (u32 k = 0; k < SEGMENTS; k++)
			segment_evict(b, k);
	for (u32 k = 0; k < SEGMENTS; k++)
		free(b->seg[k].blocks);
	if (b->page_hash)
		pages_free(b);
	free(b->block_hash);
	free(b->page_hash);
	free(b->block_list);
	free(b->free_index);
	if (b->rw && b->rw != MAP_FAILED)
		munmap(b->rw, b->cache_bytes);
	if (b->rx && b->rx != MAP_FAILED)
		munmap(b->rx, b->cache_bytes);
	if (b->return_stack)
		munmap(b->return_stack, RETURN_STACK);
}

/* ---- links ---------------------------------------------------------------------------------------- */

static void set_site(struct bt *b, u8 *site, const u8 *to)
{
	st32(site, (u32)(to - (site + 4 + (b->rx - b->rw))));
}

/* Takes it out of its target's list. */
static void link_forget(struct link *l)
{
	if (!l->to)
		return;
	if (l->prev)
		l->prev->next = l->next;
	else
		l->to->incoming = l->next;
	if (l->next)
		l->next->prev = l->prev;
	l->to = NULL;
}

static void link_cut(struct bt *b, struct link *l)
{
	if (!l->to)
		return;
	link_forget(l);
	set_site(b, l->site, l->stub);
}

void cache_link(struct bt *b, struct link *l, struct block *to)
{
	if (!l->from->valid || !to->valid || l->to || (to->made_from && !l->checked))
		return;
	l->to = to;
	l->prev = NULL;
	l->next = to->incoming;
	if (l->next)
		l->next->prev = l;
	to->incoming = l;
	set_site(b, l->site, link_entry(l));
	if (++b->stats.links % 16 == 0)
		verify_again(b, l->from);
}

void cache_jump(struct bt *b, struct block *to)
{
	u32 n = (u32)(to->lin >> 2) & (N_JUMP - 1);
	b->jump_tag[n] = to->lin;
	b->jump_host[n] = to->checked;
}

/* ---- invalidation ------------------------------------------------------------------------------------ */

static void entry_divert(struct bt *b, const u8 *run, const u8 *to)
{
	u8 *p = b->rw + (run - b->rx);
	*p = 0xe9;
	set_site(b, p + 1, to);
}

/* A page's list of blocks, of which it is the first or the second page. */
static struct block **page_next(struct block *k, const struct code_page *p) { return k->page == p ? &k->page_next : &k->page2_next; }
static struct block ***page_at(struct block *k, const struct code_page *p) { return k->page == p ? &k->page_at : &k->page2_at; }

static void page_add(struct code_page *p, struct block *k)
{
	struct block *next = *page_next(k, p) = p->blocks;
	if (next)
		*page_at(next, p) = page_next(k, p);
	p->blocks = k;
	*page_at(k, p) = &p->blocks;
}

static void page_remove(struct code_page *p, struct block *k)
{
	struct block *next = *page_next(k, p), **at = *page_at(k, p);
	*at = next;
	if (next)
		*page_at(next, p) = at;
}

/* No longer to be found. */
static void block_hide(struct bt *b, struct block *k)
{
	k->valid = false;
	struct block **at = block_hash_of(b, k->lin, k->page);
	while (*at && *at != k)
		at = &(*at)->hash_next;
	if (*at)
		*at = k->hash_next;
	page_remove(k->page, k);
	if (k->page2)
		page_remove(k->page2, k);
}

void block_drop(struct bt *b, struct block *k)
{
	if (!k->valid)
		return;
	block_hide(b, k);
	while (k->incoming)
		link_cut(b, k->incoming);
	for (unsigned n = 0; n < k->n_links; n++)
		link_cut(b, &k->link[n]);
	entry_divert(b, k->checked, k->stale_checked);
	entry_divert(b, k->host, k->stale);
}

void cache_page_drop(struct bt *b, struct code_page *p)
{
	while (p->blocks) {
		b->stats.invalidated++;
		block_drop(b, p->blocks);
	}
	p->gen = atomic_load(&p->code->gen);
}

/* Whether the block was made of bytes off..off+len-1 of its page p. */
static bool block_covers(const struct block *k, const struct code_page *p, unsigned off, unsigned len)
{
	unsigned start = (unsigned)(k->lin & PAGE_MASK), end = start + k->guest_bytes;
	if (p == k->page2) {
		start = 0;
		end -= 4096;
	}
	if (off < end && start < off + len)
		return true;
	u64 lines = 0;
	for (unsigned n = off >> 6; n <= (off + len - 1) >> 6; n++)
		lines |= 1ull << n;
	return p == k->page && (k->ahead & lines);
}

/* Of its blocks, which are no longer valid, nothing looks at the page again. */
static void page_free(struct bt *b, struct code_page **at)
{
	struct code_page *p = *at;
	while (p->blocks)
		block_drop(b, p->blocks);
	*at = p->hash_next;
	free(p);
	b->n_pages--;
	b->stats.pages_freed++;
}

static u32 page_hash_of(const void *c) { return (u32)((u64)c >> 4 ^ (u64)c >> 18) & (PAGE_HASH - 1); }

void cache_page_written(struct bt *b, struct page_code *c, unsigned off, unsigned len)
{
	u32 gen = atomic_load(&c->gen); /* what changes after this asks again */
	bool left = false;
	for (struct code_page *p = b->page_hash[page_hash_of(c)]; p; p = p->hash_next) {
		if (p->code != c)
			continue;
		for (struct block *k = p->blocks, *next; k; k = next) {
			next = k->page == p ? k->page_next : k->page2_next;
			if (block_covers(k, p, off, len)) {
				b->stats.invalidated++;
				block_drop(b, k);
			}
		}
		p->gen = gen;
		left |= p->blocks && !p->selfcheck;
	}
	if (!left)
		atomic_fetch_and(&c->translators, ~(1u << (b->cpu->index & 31)));
}

/* ---- eviction ------------------------------------------------------------------------------------------ */

/* What describes the blocks of a segment lies together, and goes with it. */
#define CHUNK_BYTES (256u << 10)
struct chunk { struct chunk *next; u32 used; };

static bool in_segment(const struct bt *b, u32 n, const u8 *pc)
{
	u64 at = (u64)(pc - b->rx);
	return at >= b->seg[n].start && at < b->seg[n].end;
}

/* Of a segment all of whose code goes: that is not written any more. */
static void block_free(struct bt *b, struct block *k, u32 segment)
{
	if (k->valid)
		block_hide(b, k);
	while (k->incoming) {
		if (in_segment(b, segment, k->incoming->from->checked))
			link_forget(k->incoming);
		else
			link_cut(b, k->incoming);
	}
	for (unsigned n = 0; n < k->n_links; n++)
		link_forget(&k->link[n]);
	b->block_list[k->index] = NULL;
	b->free_index[b->n_free++] = k->index;
	free(k->decoded);
}

static void segment_evict(struct bt *b, u32 k)
{
	if (!b->seg[k].n)
		return;
	b->stats.evictions += b->seg[k].n;
	for (u32 n = 0; n < b->seg[k].n; n++)
		block_free(b, b->seg[k].blocks[n], k);
	b->seg[k].n = 0;
	for (struct chunk *c = b->seg[k].chunks, *next; c; c = next) {
		next = c->next;
		munmap(c, CHUNK_BYTES);
	}
	b->seg[k].chunks = NULL;
	/* Nothing may lead there any more. */
	for (u32 n = 0; n < N_JUMP; n++) {
		if (in_segment(b, k, b->jump_host[n])) {
			b->jump_tag[n] = no_tag(n);
			b->jump_host[n] = NULL;
		}
	}
	b->ctx->return_sp = b->return_top;
	b->want = NULL;
}

/* Leaving a group costs a microsecond or less, its check saves nanoseconds: it is worth keeping where it
 * is left seldom. In ticks of the host's TSC. */
#define MISSES 16u
#define MISSES_SPAN (1u << 24)

void cache_ungroup(struct bt *b, struct block *k, unsigned n)
{
	u64 now = __builtin_ia32_rdtsc(), lin = k->lin + k->map[n].guest;
	if (now - k->misses_since > MISSES_SPAN) {
		k->misses_since = now;
		k->misses = 0;
	}
	if (++k->misses < MISSES)
		return;
	b->ungrouped[ungroup_slot(lin)] = lin;
	block_drop(b, k);
}

void cache_flush(struct bt *b)
{
	for (u32 k = 0; k < SEGMENTS; k++)
		segment_evict(b, k);
	b->segment = 0;
	b->used = b->seg[0].start;
	b->cold_used = b->seg[0].cold_start;
}

/* ---- new blocks -------------------------------------------------------------------------------------------- */

static void *block_alloc(struct bt *b, size_t bytes)
{
	struct chunk **head = &b->seg[b->segment].chunks, *c = *head;
	bytes = (bytes + 15) & ~(size_t)15;
	if (!c || c->used + bytes > CHUNK_BYTES) {
		c = mmap(NULL, CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (c == MAP_FAILED)
			return NULL;
		*c = (struct chunk){ .next = *head, .used = 64 };
		*head = c;
	}
	void *p = (u8 *)c + c->used;
	c->used += (u32)bytes;
	return memset(p, 0, bytes);
}

/* Memory of the cache up to `end` is taken in steps, which costs less than a fault for each page of either
 * mapping. Hosts that know no such advice (before Linux 5.14) give it by those. */
#define READY_STEP (64u << 10)
static void ready(struct bt *b, u32 *so_far, u32 end)
{
	for (; *so_far < end; *so_far += READY_STEP) {
		u32 bytes = (u32)MIN((u64)READY_STEP, b->cache_bytes - *so_far);
		madvise(b->rw + *so_far, bytes, MADV_POPULATE_WRITE);
		madvise(b->rx + *so_far, bytes, MADV_POPULATE_READ);
	}
}

struct block *block_new(struct bt *b, unsigned n, unsigned links, unsigned guest_bytes, unsigned bytes, struct emit *hot, struct emit *cold)
{
	b->used = (b->used + 15) & ~15u;
	while (b->used + bytes > b->seg[b->segment].cold_start || b->cold_used + bytes > b->seg[b->segment].end || (b->n_indices == BLOCKS_MAX && !b->n_free)) {
		b->segment = (b->segment + 1) % SEGMENTS;
		segment_evict(b, b->segment);
		b->used = b->seg[b->segment].start;
		b->cold_used = b->seg[b->segment].cold_start;
	}
	ready(b, &b->seg[b->segment].ready, b->used + bytes);
	ready(b, &b->seg[b->segment].cold_ready, b->cold_used + bytes);
	struct block *k = block_alloc(b, sizeof(*k) + links * sizeof(struct link) + (n + 1) * sizeof(struct insn_map) + guest_bytes);
	if (!k)
		return NULL;
	k->n = (u16)n;
	k->link = (struct link *)(void *)(k + 1);
	k->n_links = (u8)links;
	k->map = (struct insn_map *)(void *)(k->link + links);
	k->made_from = guest_bytes ? (u8 *)(k->map + n + 1) : NULL;
	k->index = b->n_free ? b->free_index[--b->n_free] : b->n_indices++;
	*hot = (struct emit){ .p = b->rw + b->used, .end = b->rw + b->used + bytes, .to_run = b->rx - b->rw };
	*cold = (struct emit){ .p = b->rw + b->cold_used, .end = b->rw + b->cold_used + bytes, .to_run = b->rx - b->rw };
	k->cold = emit_here(cold);
	return k;
}

void block_finish(struct bt *b, struct block *k, const struct emit *hot, const struct emit *cold)
{
	u32 s = b->segment;
	if (b->seg[s].n == b->seg[s].cap) {
		u32 cap = b->seg[s].cap ? b->seg[s].cap * 2 : 1024;
		struct block **p = realloc(b->seg[s].blocks, cap * sizeof(*p));
		if (!p)
			bug("no memory for the list of blocks");
		b->seg[s].blocks = p;
		b->seg[s].cap = cap;
	}
	b->seg[s].blocks[b->seg[s].n++] = k;
	b->block_list[k->index] = k;
	b->used = (u32)(hot->p - b->rw);
	b->cold_used = (u32)(cold->p - b->rw);
	k->cold_bytes = (u32)(emit_here(cold) - k->cold);
	k->valid = true;
	struct block **head = block_hash_of(b, k->lin, k->page);
	k->hash_next = *head;
	*head = k;
	page_add(k->page, k);
	if (k->page2)
		page_add(k->page2, k);
	b->stats.translated++;
	b->stats.translated_insns += k->n;
	b->stats.translated_bytes += k->guest_bytes;
	b->stats.host_bytes += k->bytes + k->cold_bytes;
	perf_block(b, k);
}

struct block *cache_block_at(struct bt *b, const u8 *pc)
{
	u64 at = (u64)(pc - b->rx);
	u32 s = 0;
	while (s < SEGMENTS && (at < b->seg[s].start || at >= b->seg[s].end))
		s++;
	if (s == SEGMENTS)
		return NULL;
	u32 lo = 0, hi = b->seg[s].n; /* the last that begins at or before pc */
	while (lo < hi) {
		u32 mid = (lo + hi) / 2;
		if (b->seg[s].blocks[mid]->checked <= pc)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (!lo)
		return NULL;
	struct block *k = b->seg[s].blocks[lo - 1];
	return pc < k->checked + k->bytes ? k : NULL;
}

/* ---- finding -------------------------------------------------------------------------------------------------- */

void cache_watch(struct bt *b, struct code_page *p, unsigned off, unsigned len)
{
	atomic_fetch_or(&p->code->translators, 1u << (b->cpu->index & 31));
	if (atomic_load(&p->code->writers))
		shoot_stores(b, p->code);
	mem_code_mark(p->code, off, len);
	if (atomic_load(&p->code->writers)) /* entered between */
		shoot_stores(b, p->code);
}

struct code_page *cache_page(struct bt *b, u64 lin)
{
	struct cpu *c = b->cpu;
	if (c->code_mode != CODE64)
		lin = (u32)lin;
	struct code_tlb_entry t = *mmu_fetch_page(c, lin);
	lin &= ~PAGE_MASK;
	if (!t.host)
		return NULL;
	struct page_code *code = t.code ? t.code : &b->rom_code;
	struct code_page **head = &b->page_hash[page_hash_of(t.code ? (void *)t.code : t.host)], **at = head, *p;
	unsigned others = 0;
	for (; (p = *at); at = &p->hash_next) {
		if (p->code != code || p->host != t.host)
			continue;
		if (p->lin == lin && p->cpl == c->cpl && class_equal(&p->klass, &b->klass))
			break;
		if (++others == ALIASES_MAX) { /* the one that was not asked for longest */
			page_free(b, at);
			p = NULL;
			break;
		}
	}
	if (p) { /* to the front */
		*at = p->hash_next;
		p->hash_next = *head;
		*head = p;
	} else {
		if (!(p = calloc(1, sizeof(*p))))
			return NULL;
		*p = (struct code_page){ .hash_next = *head, .lin = lin, .host = t.host, .code = code, .mode = c->code_mode, .cpl = c->cpl,
					 .klass = b->klass, .gen = atomic_load(&code->gen), .id = ++b->next_id, .slot = cache_ok_slot(lin) };
		*head = p;
		b->n_pages++;
	}
	if (unlikely(p->selfcheck ? !selfcheck_wanted(b, code) : atomic_load(&code->gen) != p->gen))
		cache_page_drop(b, p);
	if (unlikely(!p->blocks)) {
		p->gen = atomic_load(&code->gen);
		p->selfcheck = selfcheck_wanted(b, code);
	}
	space_ok(b, p->slot, p->id);
	return p;
}

/* All of them, and with them all blocks. Between blocks only. */
static void forget_pages(struct bt *b)
{
	cache_flush(b);
	pages_free(b);
	b->next_id = 0;
	b->stats.page_flushes++;
	space_flush_all(b); /* ok slots hold ids */
	space_select(b);
	space_class(b);
}

bool cache_known(const struct bt *b, const struct code_page *page, u64 lin)
{
	const struct block *k = *block_hash_of(b, lin, page);
	while (k && (k->lin != lin || k->page != page))
		k = k->hash_next;
	return k;
}

struct block *cache_find(struct bt *b)
{
	struct cpu *c = b->cpu;
	u64 lin = c->rip;
	if (unlikely(b->n_pages >= PAGES_MAX || b->next_id == UINT32_MAX - 1))
		forget_pages(b);
	if (c->code_mode != CODE64) {
		lin = (u32)(lin + b->klass.cs_base);
		if ((u32)c->rip > b->klass.cs_limit)
			return NULL;
	}
	c->regs[R_BLOCK] = c->rip;
	c->cur = NULL;
	struct code_page *page = cache_page(b, lin);
	if (!page)
		return NULL;
	struct block *k;
	for (k = *block_hash_of(b, lin, page); k; k = k->hash_next)
		if (k->lin == lin && k->page == page && (!k->made_from || selfcheck_holds(k)) &&
		    (!k->page2 || cache_page(b, (lin | PAGE_MASK) + 1) == k->page2))
			break;
	if (k && !k->valid) /* its second page was written */
		k = NULL;
	if (!k) {
		span_begin(c, &b->stats.translating);
		k = translate(b, page, lin);
		span_end(&b->stats.translating);
	}
	if (k)
		cache_jump(b, k);
	return k;
}
