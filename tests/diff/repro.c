/* A test as one line of text, so that a failing one can be kept and run again whatever becomes of
 * the generator; and making a failing test smaller. The line names only what differs from the
 * defaults of test_init():
 *
 *   64 i=4801c8 rax=1 rflags=203 zmm3=ff00 @10101ffc=11223344
 *
 * 64 or 32; "run" for the engine's run() instead of step(); then name=value. Numbers are
 * hexadecimal; zmm, st and memory (@ linear address) are bytes, lowest first, zeros after. */
#include <stdlib.h>
#include <string.h>

#include "diff.h"

/* ---- fields that are numbers ------------------------------------------------------------------------ */

struct field { const char *name; u16 offset, size; };
#define R(name, f) { name, offsetof(struct regs, f), sizeof(((struct regs *)0)->f) }
#define G(name, n) { name, offsetof(struct regs, gpr) + 8 * (n), 8 }
#define K(name, n) { name, offsetof(struct regs, v.k) + 8 * (n), 8 }
static const struct field fields[] = {
	R("rip", rip), R("rflags", rflags), G("rax", 0), G("rcx", 1), G("rdx", 2), G("rbx", 3), G("rsp", 4), G("rbp", 5),
	G("rsi", 6), G("rdi", 7), G("r8", 8), G("r9", 9), G("r10", 10), G("r11", 11), G("r12", 12), G("r13", 13),
	G("r14", 14), G("r15", 15), R("fsbase", fs_base), R("gsbase", gs_base), R("cs", cs), R("ss", ss), R("ds", ds),
	R("es", es), R("fs", fs), R("gs", gs), K("k0", 0), K("k1", 1), K("k2", 2), K("k3", 3), K("k4", 4), K("k5", 5),
	K("k6", 6), K("k7", 7), R("mxcsr", v.mxcsr), R("fcw", v.fcw), R("fsw", v.fsw), R("ftw", v.ftw), R("fop", v.fop),
	R("fip", v.fip), R("fdp", v.fdp),
};

static u64 field_get(const struct regs *r, const struct field *f)
{
	u64 v = 0;
	memcpy(&v, (const u8 *)r + f->offset, f->size);
	return v;
}
static void field_set(struct regs *r, const struct field *f, u64 v) { memcpy((u8 *)r + f->offset, &v, f->size); }

/* ---- printing ------------------------------------------------------------------------------------------- */

static void print_bytes(FILE *out, const char *name, unsigned n, const u8 *p, unsigned len)
{
	while (len && !p[len - 1])
		len--;
	if (!len)
		return;
	fprintf(out, " %s%u=", name, n);
	for (unsigned k = 0; k < len; k++)
		fprintf(out, "%02x", p[k]);
}

void test_print(const struct test *t, FILE *out)
{
	static struct test def;
	test_init(&def, t->mode);
	fprintf(out, "%s%s i=", t->mode == CODE64 ? "64" : "32", t->by_run ? " run" : "");
	for (unsigned k = 0; k < t->len; k++)
		fprintf(out, "%02x", t->bytes[k]);
	for (unsigned k = 0; k < ARRAY_LEN(fields); k++) {
		u64 v = field_get(&t->r, &fields[k]);
		if (v != field_get(&def.r, &fields[k]))
			fprintf(out, " %s=%llx", fields[k].name, (unsigned long long)v);
	}
	for (unsigned k = 0; k < 32; k++)
		print_bytes(out, "zmm", k, t->r.v.zmm[k], 64);
	for (unsigned k = 0; k < 8; k++)
		print_bytes(out, "st", k, t->r.v.st[k], 10);
	for (unsigned k = 0; k < t->n_patches; k++) {
		const struct patch *p = &t->patch[k];
		fprintf(out, " @%x=", DATA_BASE + p->off);
		for (unsigned n = 0; n < p->len; n++)
			fprintf(out, "%02x", t->pool[p->at + n]);
	}
}

/* ---- parsing ---------------------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The number of bytes, or -1. */
static int parse_bytes(const char *s, u8 *out, unsigned cap)
{
	unsigned n = 0;
	for (; s[0]; s += 2, n++) {
		if (n == cap || hex_digit(s[0]) < 0 || hex_digit(s[1]) < 0)
			return -1;
		out[n] = (u8)(hex_digit(s[0]) << 4 | hex_digit(s[1]));
	}
	return (int)n;
}

/* name is "zmm12" or "st3": the register's bytes, or NULL. */
static u8 *byte_field(struct test *t, const char *name, unsigned *cap)
{
	static const struct { const char *prefix; unsigned n, cap; } kinds[] = { { "zmm", 32, 64 }, { "st", 8, 10 } };
	for (unsigned k = 0; k < ARRAY_LEN(kinds); k++) {
		size_t len = strlen(kinds[k].prefix);
		char *end;
		if (strncmp(name, kinds[k].prefix, len) || !name[len])
			continue;
		unsigned long n = strtoul(name + len, &end, 10);
		if (*end || n >= kinds[k].n)
			return NULL;
		*cap = kinds[k].cap;
		return k ? t->r.v.st[n] : t->r.v.zmm[n];
	}
	return NULL;
}

static bool parse_item(struct test *t, char *item, struct error *e)
{
	u8 buf[PATCH_POOL];
	unsigned cap;
	char *value = strchr(item, '='), *end;
	if (!strcmp(item, "run")) {
		t->by_run = true;
		return true;
	}
	if (!value)
		return error_set(e, "'%s' is not name=value", item);
	*value++ = 0;
	if (item[0] == '@') {
		u64 at = strtoull(item + 1, &end, 16);
		int n = parse_bytes(value, buf, sizeof(buf));
		if (*end || n < 0)
			return error_set(e, "'%s': bad address or bytes", item);
		test_patch(t, at, buf, (unsigned)n);
		return true;
	}
	u8 *p = !strcmp(item, "i") ? (cap = 15, t->bytes) : byte_field(t, item, &cap);
	if (p) {
		int n = parse_bytes(value, p, cap);
		if (p == t->bytes)
			t->len = (u8)n;
		return n >= 0 || error_set(e, "'%s': bad bytes", item);
	}
	for (unsigned k = 0; k < ARRAY_LEN(fields); k++) {
		if (strcmp(fields[k].name, item))
			continue;
		u64 v = strtoull(value, &end, 16);
		field_set(&t->r, &fields[k], v);
		return !*end || error_set(e, "'%s' is not a hexadecimal number", value);
	}
	return error_set(e, "no field is called '%s'", item);
}

bool test_parse(struct test *t, const char *text, struct error *e)
{
	char *copy = strdup(text), *save, *item;
	item = copy ? strtok_r(copy, " \t\n", &save) : NULL;
	bool ok = item && (!strcmp(item, "64") || !strcmp(item, "32"));
	if (!ok)
		error_set(e, "a test begins with 64 or 32");
	else
		test_init(t, item[0] == '6' ? CODE64 : CODE32);
	while (ok && (item = strtok_r(NULL, " \t\n", &save)))
		ok = parse_item(t, item, e);
	free(copy);
	if (ok && (!t->len || t->r.rip < CODE_BASE || t->r.rip - CODE_BASE > CODE_BYTES - 15))
		return error_set(e, "no instruction (i=), or not in the code window (rip=)");
	return ok;
}

/* ---- shrinking ---------------------------------------------------------------------------------------------- */

/* The k-th way to make t smaller; false: there is no such way. *changed: it did something. */
static bool shrink_step(struct test *t, unsigned k, bool *changed)
{
	static struct test def;
	test_init(&def, t->mode);
	*changed = false;
	if (k < t->n_patches) {
		memmove(&t->patch[k], &t->patch[k + 1], (t->n_patches - k - 1u) * sizeof(t->patch[0]));
		t->n_patches--;
		*changed = true;
		return true;
	}
	k -= t->n_patches;
	if (k < ARRAY_LEN(fields)) {
		u64 d = field_get(&def.r, &fields[k]);
		*changed = field_get(&t->r, &fields[k]) != d;
		field_set(&t->r, &fields[k], d);
		return true;
	}
	k -= ARRAY_LEN(fields);
	if (k < 32 + 8) {
		u8 *p = k < 32 ? t->r.v.zmm[k] : t->r.v.st[k - 32];
		unsigned n = k < 32 ? 64 : 16;
		for (unsigned b = 0; b < n; b++)
			*changed |= p[b] != 0;
		memset(p, 0, n);
		return true;
	}
	k -= 40;
	if (k == 0) {
		*changed = t->by_run;
		t->by_run = false;
	}
	return k == 0;
}

void test_shrink(struct test *t, bool (*fails)(void *arg, const struct test *t), void *arg)
{
	static struct test smaller;
	bool again = true;
	for (unsigned round = 0; again && round < 4; round++) {
		again = false;
		for (unsigned k = 0;;) {
			bool changed;
			smaller = *t;
			if (!shrink_step(&smaller, k, &changed))
				break;
			if (changed && fails(arg, &smaller)) {
				*t = smaller;
				again = true;
				continue; /* a patch less: the same k is the next one */
			}
			k++;
		}
	}
}
