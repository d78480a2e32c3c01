/* Sites: which window (window.c) an instruction's accesses go to. Translated code expects one window for each, or two,
 * and is mended where an access goes to another: in place the first few times, then by making the block anew
 * for two windows in turn, then for the table. Only what is no longer a guess is remembered here, by the
 * instruction's address.
 *
 * A guess is right or costs an exit; nothing else depends on it. Threading: a vCPU's own. */
#define LOG_TOPIC "bt"
#include <stdlib.h>
#include <string.h>

#include "bt/bt.h"

#define WAYS 4u
enum { UNKNOWN = N_WINDOWS + 1 };

static u64 site_key(u64 lin, bool stack) { return (lin << 1 | stack) + 2; } /* 0: none */
static u64 site_hash(u64 key) { return key * 0x9e3779b97f4a7c15ull; }
static bool site_perhaps(const struct bt *b, u64 key) { return b->site_known[site_hash(key) >> 54] >> (site_hash(key) >> 48 & 63) & 1; }
static struct window_site *site_find(const struct bt *b, u64 key)
{
	struct window_site *s = &b->sites[site_hash(key) >> 50 & ~(u64)(WAYS - 1)];
	for (unsigned n = 0; n < WAYS; n++)
		if (s[n].key == key)
			return &s[n];
	return NULL;
}
_Static_assert(WINDOW_SITES == 1u << (64 - 50), "the hash of site_find");

/* In place of another, if need be; rather not of one that has taken long to be known. */
static struct window_site *site_make(struct bt *b, u64 key)
{
	struct window_site *s = site_find(b, key);
	if (s)
		return s;
	s = &b->sites[site_hash(key) >> 50 & ~(u64)(WAYS - 1)];
	for (unsigned n = 1; n < WAYS; n++)
		if (!s[n].key || (s->key && s[n].window != N_WINDOWS && s->window == N_WINDOWS))
			s = &s[n];
	*s = (struct window_site){ .key = key, .window = UNKNOWN, .second = N_WINDOWS };
	b->site_known[site_hash(key) >> 54] |= 1ull << (site_hash(key) >> 48 & 63);
	return s;
}

unsigned window_of(struct bt *b, u64 lin)
{
	u64 which = lin >> WINDOW_BITS;
	unsigned n = 0;
	while (n < b->n_windows && b->window_of[n] != which)
		n++;
	if (n < b->n_windows)
		return n;
	if (which >= 1u << (47 - WINDOW_BITS))
		return N_WINDOWS;
	if (n == N_WINDOWS) {
		b->windows_full = true;
		return N_WINDOWS;
	}
	b->window_of[n] = (u16)which;
	return b->n_windows++;
}

unsigned window_site(struct bt *b, u64 lin, bool stack, u64 guess, u8 *second)
{
	u64 key = site_key(lin, stack);
	const struct window_site *s = site_perhaps(b, key) ? site_find(b, key) : NULL;
	*second = N_WINDOWS;
	if (s && s->window != UNKNOWN) {
		*second = s->second;
		return s->window;
	}
	unsigned n = 0;
	if (stack)
		n = window_of(b, guess);
	else /* what may be no address at all gets no window */
		while (n < b->n_windows && b->window_of[n] != guess >> WINDOW_BITS)
			n++;
	return guess && n < b->n_windows ? n : b->window_last < b->n_windows ? b->window_last : window_of(b, lin);
}

void window_site_two(struct bt *b, u64 lin, unsigned one, unsigned other)
{
	struct window_site *s = site_make(b, site_key(lin, false));
	if (s->second < N_WINDOWS) { /* known, but the block had no room for it */
		window_site_table(b, lin, false);
		return;
	}
	s->window = (u8)one;
	s->second = (u8)other;
	b->stats.window_sites_two++;
}

void window_site_table(struct bt *b, u64 lin, bool stack)
{
	struct window_site *s = site_make(b, site_key(lin, stack));
	s->window = s->second = N_WINDOWS;
	b->stats.window_sites_table++;
}

void window_site_learn(struct bt *b, u64 lin, bool stack, u64 ea)
{
	struct window_site *s = site_make(b, site_key(lin, stack));
	unsigned n = window_of(b, ea);
	if (s->window == N_WINDOWS)
		return;
	if (++s->changes > 2)
		window_site_table(b, lin, stack);
	else
		s->window = (u8)n;
}

bool window_site_missed(struct bt *b, u64 lin)
{
	struct window_site *s = site_make(b, site_key(lin, false));
	if (++s->misses < 16)
		return false;
	s->misses = 0;
	window_site_table(b, lin, false);
	window_site_table(b, lin, true);
	return true;
}

void window_sites_forget(struct bt *b)
{
	memset(b->sites, 0, WINDOW_SITES * sizeof(*b->sites));
	memset(b->site_known, 0, sizeof(b->site_known));
}

bool window_sites_init(struct bt *b, struct error *e)
{
	b->sites = calloc(WINDOW_SITES, sizeof(*b->sites));
	return b->sites || error_set(e, "bt: out of memory");
}
