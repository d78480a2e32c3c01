/* A set of cluster numbers. Linear probing; at most two thirds full; removal moves back what probing
 * would no longer find, so that there are no tombstones. */
#include "block/cluster_set.h"

#include <stdlib.h>

static u64 home(const struct cluster_set *s, u64 key)
{
	return (key * 0x9e3779b97f4a7c15ull >> 20) & (s->cap - 1);
}

static u64 find(const struct cluster_set *s, u64 key)
{
	u64 k = home(s, key);

	while (s->slots[k] && s->slots[k] != key)
		k = (k + 1) & (s->cap - 1);
	return k;
}

bool cluster_set_reserve(struct cluster_set *s, u64 n)
{
	struct cluster_set bigger = { .cap = s->cap ? s->cap : 64, .n = s->n };

	while (bigger.cap * 2 / 3 <= n)
		bigger.cap *= 2;
	if (bigger.cap == s->cap)
		return true;

	bigger.slots = calloc(bigger.cap, sizeof(u64));
	if (!bigger.slots)
		return false;
	for (u64 k = 0; k < s->cap; k++)
		if (s->slots[k])
			bigger.slots[find(&bigger, s->slots[k])] = s->slots[k];
	free(s->slots);
	*s = bigger;
	return true;
}

bool cluster_set_add(struct cluster_set *s, u64 cluster, bool *was_there)
{
	if (s->n >= s->cap * 2 / 3 && !cluster_set_reserve(s, s->n + 1))
		return false;
	u64 k = find(s, cluster + 1);
	*was_there = s->slots[k];
	s->n += !*was_there;
	s->slots[k] = cluster + 1;
	return true;
}

bool cluster_set_has(const struct cluster_set *s, u64 cluster)
{
	return s->cap && s->slots[find(s, cluster + 1)];
}

void cluster_set_remove(struct cluster_set *s, u64 cluster)
{
	u64 hole = s->cap ? find(s, cluster + 1) : 0;

	if (!s->cap || !s->slots[hole])
		return;
	s->n--;
	for (u64 k = hole;;) {
		s->slots[hole] = 0;
		do {
			k = (k + 1) & (s->cap - 1);
			if (!s->slots[k])
				return;
			/* May it move to the hole: does its home lie at or before it? */
		} while (((k - home(s, s->slots[k])) & (s->cap - 1)) < ((k - hole) & (s->cap - 1)));
		s->slots[hole] = s->slots[k];
		hole = k;
	}
}

void cluster_set_destroy(struct cluster_set *s)
{
	free(s->slots);
	*s = (struct cluster_set){ 0 };
}
