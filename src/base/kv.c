/* Options written key=value,key=value: one parser for every option of the command line and
 * of the monitor, so that they all read alike and err alike.
 *
 * Invariants
 *  1. A string field is NULL or malloced before and after kv_parse; the caller frees it, also
 *     when kv_parse failed midway.
 *  2. An error names the option, the key, the value, the reason, and what would work.
 * Threading: none of it keeps state. */
#include "base/base.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- words --------------------------------------------------------------------------- */

#define WORD_MAX 48

/* Edits from a to b: insertions, deletions, replacements and swaps of neighbours, one each,
 * regardless of case. Both shorter than WORD_MAX. */
static int edit_distance(const char *a, const char *b)
{
	int rows[3][WORD_MAX + 1];
	int *before = rows[0], *last = rows[1], *cur = rows[2];
	int n = (int)strlen(b);

	for (int j = 0; j <= n; j++)
		last[j] = j;
	for (int i = 1; a[i - 1]; i++) {
		int ca = tolower((u8)a[i - 1]);
		cur[0] = i;
		for (int j = 1; j <= n; j++) {
			int cb = tolower((u8)b[j - 1]);
			int best = last[j - 1] + (ca != cb);
			best = MIN(best, last[j] + 1);
			best = MIN(best, cur[j - 1] + 1);
			if (i > 1 && j > 1 && ca == tolower((u8)b[j - 2]) && tolower((u8)a[i - 2]) == cb)
				best = MIN(best, before[j - 2] + 1);
			cur[j] = best;
		}
		int *t = before;
		before = last;
		last = cur;
		cur = t;
	}
	return last[n];
}

const char *nearest_word(const char *word, const char *const *names, size_t n)
{
	size_t len = strlen(word);
	const char *best = NULL;
	int best_d = 0;

	if (len == 0 || len >= WORD_MAX)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		size_t name_len = strlen(names[i]);
		if (name_len == 0 || name_len >= WORD_MAX)
			continue;
		int d = edit_distance(word, names[i]);
		/* A third of the letters may be wrong; a word cut short is near as well. */
		bool near = d <= (int)MAX(MAX(len, name_len) / 3, 1) && d < (int)MIN(len, name_len);
		if (!near && len >= 2 && !strncasecmp(word, names[i], len))
			near = true;
		if (near && (!best || d < best_d)) {
			best = names[i];
			best_d = d;
		}
	}
	return best;
}

/* ---- values -------------------------------------------------------------------------- */

bool parse_number(const char *text, u64 *out)
{
	char *end;

	if (!isdigit((u8)text[0])) /* strtoull takes signs and spaces */
		return false;
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	errno = 0;
	*out = strtoull(text, &end, hex ? 16 : 10);
	return !*end && !errno;
}

bool parse_size(const char *text, u64 *out)
{
	static const char units[] = "KMGT";
	char number[32];
	size_t len = strlen(text);
	unsigned shift = 0;

	if (len == 0 || len >= sizeof(number))
		return false;
	memcpy(number, text, len + 1);
	/* A hexadecimal number has no unit letter among its digits, so none is misread. */
	const char *unit = strchr(units, toupper((u8)number[len - 1]));
	if (unit) {
		shift = 10 * (unsigned)(unit - units + 1);
		number[len - 1] = 0;
	}
	u64 v;
	if (!parse_number(number, &v) || v > UINT64_MAX >> shift)
		return false;
	*out = v << shift;
	return true;
}

static bool parse_bool(const char *text, bool *out)
{
	static const char *const yes[] = { "on", "true", "yes", "1" };
	static const char *const no[] = { "off", "false", "no", "0" };

	for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
		if (!strcmp(text, yes[i]) || !strcmp(text, no[i])) {
			*out = !strcmp(text, yes[i]);
			return true;
		}
	}
	return false;
}

/* A size as people write it. */
static void size_text(u64 v, char *buf, size_t cap)
{
	static const char *const units[] = { "", "K", "M", "G", "T" };
	unsigned k = 0;

	while (k < 4 && v && !(v & 1023)) {
		v >>= 10;
		k++;
	}
	snprintf(buf, cap, "%llu%s", (unsigned long long)v, units[k]);
}

static bool in_limits(const char *what, const struct kv_key *k, const char *value, u64 v,
		      struct error *e)
{
	char limit[32];

	if (!k->max || (v >= k->min && v <= k->max))
		return true;
	u64 near = v < k->min ? k->min : k->max;
	if (k->type == KV_SIZE)
		size_text(near, limit, sizeof(limit));
	else
		snprintf(limit, sizeof(limit), "%llu", (unsigned long long)near);
	return error_set(e, "%s: %s=%s: too %s; the %s is %s", what, k->name, value,
			 v < k->min ? "small" : "large", v < k->min ? "least" : "most", limit);
}

/* The words with a separator between. */
static void list_words(const char *const *words, const char *sep, char *buf, size_t cap)
{
	size_t len = 0;

	buf[0] = 0;
	for (size_t i = 0; words[i] && len < cap; i++)
		len += (size_t)snprintf(buf + len, cap - len, "%s%s", i ? sep : "", words[i]);
}

static bool set_word(const char *what, const struct kv_key *k, const char *value, u32 *field,
		     struct error *e)
{
	size_t n = 0;

	for (; k->words[n]; n++) {
		if (!strcmp(value, k->words[n])) {
			*field = (u32)n;
			return true;
		}
	}
	const char *near = nearest_word(value, k->words, n);
	if (near)
		return error_set(e, "%s: %s=%s: no such value; did you mean %s?", what, k->name, value, near);
	char all[256];
	list_words(k->words, ", ", all, sizeof(all));
	return error_set(e, "%s: %s=%s: no such value; there are: %s", what, k->name, value, all);
}

static bool add_line(const char *what, const char *value, char **field, struct error *e)
{
	char *all;

	if (asprintf(&all, "%s%s%s", *field ? *field : "", *field ? "\n" : "", value) < 0)
		return error_set(e, "%s: out of memory", what);
	free(*field);
	*field = all;
	return true;
}

static bool set_value(const char *what, const struct kv_key *k, const char *value, void *out,
		      struct error *e)
{
	void *field = (char *)out + k->offset;

	switch (k->type) {
	case KV_STR: {
		char *copy = strdup(value);
		if (!copy)
			return error_set(e, "%s: out of memory", what);
		free(*(char **)field);
		*(char **)field = copy;
		return true;
	}
	case KV_BOOL:
		if (parse_bool(value, field))
			return true;
		return error_set(e, "%s: %s=%s: not a yes or no; use on or off", what, k->name, value);
	case KV_UINT:
		if (parse_number(value, field))
			return in_limits(what, k, value, *(u64 *)field, e);
		return error_set(e, "%s: %s=%s: not a number; use digits, as in 42 or 0x2a", what,
				 k->name, value);
	case KV_SIZE:
		if (parse_size(value, field))
			return in_limits(what, k, value, *(u64 *)field, e);
		return error_set(e, "%s: %s=%s: not a size; use digits and K, M, G or T, as in 512M",
				 what, k->name, value);
	case KV_WORD:
		return set_word(what, k, value, field, e);
	case KV_LIST:
		return add_line(what, value, field, e);
	}
	bug("%s: key %s has type %d", what, k->name, k->type);
}

/* ---- the list ------------------------------------------------------------------------ */

static const struct kv_key *find_key(const char *name, const struct kv_key *keys, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (!strcmp(name, keys[i].name))
			return &keys[i];
	}
	return NULL;
}

static bool no_such_key(const char *what, const char *name, const struct kv_key *keys, size_t n,
			struct error *e)
{
	const char **names = calloc(n + 1, sizeof(*names));
	const char *near = NULL;

	if (names) {
		for (size_t i = 0; i < n; i++)
			names[i] = keys[i].name;
		near = nearest_word(name, names, n);
		free(names);
	}
	if (near)
		return error_set(e, "%s: no key \"%s\"; did you mean \"%s\"?", what, name, near);

	char all[256] = "";
	size_t len = 0;
	for (size_t i = 0; i < n; i++) {
		int k = snprintf(all + len, sizeof(all) - len, "%s%s", i ? ", " : "", keys[i].name);
		if (k < 0 || (size_t)k >= sizeof(all) - len) {
			all[len] = 0;
			break;
		}
		len += (size_t)k;
	}
	return error_set(e, "%s: no key \"%s\"; there are: %s", what, name, all);
}

/* One item, commas already undoubled. */
static bool parse_item(const char *what, char *item, bool first, const struct kv_key *keys,
		       size_t n, void *out, struct error *e)
{
	char *eq = strchr(item, '=');

	if (eq) {
		*eq = 0;
		const struct kv_key *k = find_key(item, keys, n);
		return k ? set_value(what, k, eq + 1, out, e) : no_such_key(what, item, keys, n, e);
	}
	if (first)
		return set_value(what, &keys[0], item, out, e);
	const struct kv_key *k = find_key(item, keys, n);
	if (!k)
		return no_such_key(what, item, keys, n, e);
	if (k->type != KV_BOOL)
		return error_set(e, "%s: key \"%s\" needs a value: %s=%s", what, item, item,
				 k->type == KV_SIZE ? "SIZE" : k->type == KV_UINT ? "NUMBER" : "TEXT");
	*(bool *)((char *)out + k->offset) = true;
	return true;
}

/* Takes the next item of text into item (as long as text at most): up to a single comma,
 * ",," meaning ",". Returns what follows that comma, NULL when text ended without one. */
static const char *next_item(const char *text, char *item)
{
	for (;; text++) {
		bool comma = *text == ',';
		if (comma && text[1] == ',')
			text++;
		else if (comma || !*text) {
			*item = 0;
			return comma ? text + 1 : NULL;
		}
		*item++ = *text;
	}
}

bool kv_parse(const char *what, const char *text, const struct kv_key *keys, size_t n_keys,
	      void *out, struct error *e)
{
	if (!*text)
		return true;
	char *item = malloc(strlen(text) + 1);
	if (!item)
		return error_set(e, "%s: out of memory", what);

	bool ok = true;
	for (bool first = true; ok && text; first = false) {
		text = next_item(text, item);
		if (!*item)
			ok = error_set(e, "%s: an empty item between commas (write \",,\" for a comma)", what);
		else
			ok = parse_item(what, item, first, keys, n_keys, out, e);
	}
	free(item);
	return ok;
}

static void help_key(const struct kv_key *k, const char *more)
{
	static const char *const shape[] = { [KV_STR] = "TEXT", [KV_BOOL] = "on|off", [KV_UINT] = "NUMBER", [KV_SIZE] = "SIZE", [KV_LIST] = "TEXT" };
	char left[128], words[64];

	if (k->type == KV_WORD)
		list_words(k->words, "|", words, sizeof(words));
	snprintf(left, sizeof(left), "%s=%s", k->name, k->type == KV_WORD ? words : shape[k->type]);
	printf("  %-24s %s%s\n", left, k->help ? k->help : "", more);
}

void kv_help_keys(const struct kv_key *keys, size_t n_keys)
{
	for (size_t i = 0; i < n_keys; i++)
		help_key(&keys[i], "");
}

void kv_help(const char *what, const struct kv_key *keys, size_t n_keys)
{
	printf("%s KEY=VALUE,...\n", what);
	for (size_t i = 0; i < n_keys; i++)
		help_key(&keys[i], i == 0 ? " (the first item may leave out the key)" : "");
}
