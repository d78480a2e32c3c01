/* What vCPUs ask of each other: to give back store entries of a page that comes to hold code, to
 * drop translations of bytes that were written. A vCPU's tables and cache are its thread's alone,
 * so a request is left with it, a kick makes it leave translated code, and it serves the request
 * before it enters any again.
 *
 * Invariants
 *  1. A requester waits until the other has served or is outside of translated code: from then on
 *     no translated instruction of the other's acts on what was asked away.
 *  2. Nobody waits while itself inside, or for one that waits: whoever waits is outside.
 *  3. After a write has hit code and all vCPUs were told, a page without translations is plain data
 *     again (mem_code_clear), so that what was code once can be written at full speed. */
#define LOG_TOPIC "bt"
#include <sched.h>
#include <stdlib.h>

#include "bt/bt.h"

/* The vCPUs of one machine; mem->engine points to the first. */
static pthread_mutex_t peers_lock = PTHREAD_MUTEX_INITIALIZER;

static u32 own_bit(const struct bt *b) { return 1u << (b->cpu->index & 31); }

static void add_request(struct bt *t, const struct request *r)
{
	struct requests *q = &t->requests;
	pthread_mutex_lock(&q->lock);
	if (q->n == q->cap) {
		u32 cap = q->cap ? q->cap * 2 : 16;
		struct request *p = realloc(q->at, cap * sizeof(*p));
		if (!p)
			bug("no memory for a request between processors");
		q->at = p;
		q->cap = cap;
	}
	q->at[q->n++] = *r;
	atomic_store(&q->pending, q->n);
	pthread_mutex_unlock(&q->lock);
}

/* Asks t, and comes back when it is done or certain to be done in time. */
static void ask(struct bt *t, const struct request *r)
{
	u64 served = atomic_load(&t->requests.served);
	add_request(t, r);
	if (!atomic_load(&t->inside))
		return;
	fault_kick(t);
	for (unsigned n = 0; atomic_load(&t->inside) && atomic_load(&t->requests.served) == served; n++) {
		if (n < 200)
			__builtin_ia32_pause();
		else
			sched_yield();
	}
}

static void ask_others(struct mem *m, const struct bt *self, u32 mask, const struct request *r)
{
	pthread_mutex_lock(&peers_lock);
	for (struct bt *t = m->engine; t; t = t->next_peer)
		if (t != self && (mask & own_bit(t)))
			ask(t, r);
	pthread_mutex_unlock(&peers_lock);
}

void shoot_stores(struct bt *b, struct page_code *p)
{
	if (atomic_load(&p->writers) & own_bit(b))
		space_protect(b, p);
	u32 others = atomic_load(&p->writers) & ~own_bit(b);
	if (others)
		ask_others(b->cpu->mem, b, others, &(struct request){ .page = p });
}

void shoot_code(struct bt *b, struct page_code *p, unsigned off, unsigned len)
{
	cache_page_written(b, p, off, len);
	const struct request r = { .page = p, .off = (u16)off, .len = (u16)len };
	u32 others = atomic_load(&p->translators) & ~own_bit(b);
	if (others)
		ask_others(b->cpu->mem, b, others, &r);
	if (!atomic_load(&p->translators)) {
		mem_code_clear(p);
		others = atomic_load(&p->translators) & ~own_bit(b);
		if (others) /* began to translate it meanwhile */
			ask_others(b->cpu->mem, b, others, &(struct request){ .page = p, .len = 4096 });
	}
}

static void dma_hit(struct mem *m, struct page_code *p, unsigned off, unsigned len)
{
	ask_others(m, NULL, atomic_load(&p->translators), &(struct request){ .page = p, .off = (u16)off, .len = (u16)len });
}

void shoot_serve(struct bt *b)
{
	struct requests *q = &b->requests;
	struct request r;
	do {
		pthread_mutex_lock(&q->lock);
		bool some = q->n > 0;
		if (some)
			r = q->at[--q->n];
		pthread_mutex_unlock(&q->lock);
		if (!some)
			break;
		if (r.len)
			cache_page_written(b, r.page, r.off, r.len);
		else
			space_protect(b, r.page);
	} while (true);
	atomic_fetch_add(&q->served, 1);
	pthread_mutex_lock(&q->lock);
	atomic_store(&q->pending, q->n);
	pthread_mutex_unlock(&q->lock);
}

bool shoot_init(struct bt *b, struct error *e)
{
	if (pthread_mutex_init(&b->requests.lock, NULL))
		return error_set(e, "bt: no mutex");
	struct mem *m = b->cpu->mem;
	pthread_mutex_lock(&peers_lock);
	b->next_peer = m->engine;
	m->engine = b;
	m->code_hit = dma_hit;
	pthread_mutex_unlock(&peers_lock);
	b->listed = true;
	return true;
}

void shoot_destroy(struct bt *b)
{
	if (!b->listed)
		return;
	struct mem *m = b->cpu->mem;
	pthread_mutex_lock(&peers_lock);
	struct bt *first = m->engine;
	struct bt **at = &first;
	while (*at && *at != b)
		at = &(*at)->next_peer;
	if (*at)
		*at = b->next_peer;
	m->engine = first;
	pthread_mutex_unlock(&peers_lock);
	pthread_mutex_destroy(&b->requests.lock);
	free(b->requests.at);
}
