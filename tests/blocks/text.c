/* A program as one line of text, so that a failing one can be kept and run again whatever becomes of the
 * generator:
 *
 *   64 cpl=3 idt=1 at=ff8 i=90,4801c8,0f84[r4:2],48b8[a8:3+1],8b05[r4=10101ffc] rax=1 @10101000=11 run rax=2
 *
 * The line names only what differs from program_init(). i: instructions; in brackets what is filled in:
 * r relative to the instruction's end or a absolute, how many bytes, of a slot (counted from 0; the end is
 * one more than the last) or of an address. @: memory, bytes or [a8:slot]. edit=RUN:SLOT+OFF:BYTES (alt:
 * in the second address space). "run" begins the next run; what is not named is as in the first. All numbers
 * are hexadecimal but slots, cpl, idt, data and fuel. */
#include <stdlib.h>
#include <string.h>

#include "blocks.h"

static const char *const gpr_names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					   "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };
static const char *const option_names[] = { "smap", "smep", "pcid", "nowp", "umip", "step" };
static const char *const window_names[N_WINDOWS] = { "low", "high", "kern" };

/* Numbers by name; base 10 or 16. */
struct field { const char *name; u16 offset, size, base; };
#define P(name, f, base) { name, offsetof(struct program, f), sizeof(((struct program *)0)->f), base }
static const struct field program_fields[] = {
	P("cpl", cpl, 10), P("idt", idt, 10), P("fuel", fuel, 10), P("at", at, 16), P("entry", entry, 10),
	P("resume", resume, 10), P("data", data, 10), P("vec", vec_seed, 16),
};
#define V(name, f) { name, offsetof(struct program, v.f), sizeof(((struct program *)0)->v.f), 16 }
static const struct field vec_fields[] = {
	V("mxcsr", mxcsr), V("fcw", fcw), V("fsw", fsw), V("ftw", ftw), V("fop", fop), V("fip", fip), V("fdp", fdp),
	V("k0", k[0]), V("k1", k[1]), V("k2", k[2]), V("k3", k[3]), V("k4", k[4]), V("k5", k[5]), V("k6", k[6]), V("k7", k[7]),
};
#define R(name, f) { name, offsetof(struct run, f), sizeof(((struct run *)0)->f), 16 }
static const struct field run_fields[] = {
	R("rflags", rflags), R("fsbase", fs_base), R("gsbase", gs_base), R("space", space), R("keep", keep), R("vector", vector),
};

static u64 get(const void *at, const struct field *f)
{
	u64 v = 0;
	memcpy(&v, (const u8 *)at + f->offset, f->size);
	return v;
}

/* ---- printing --------------------------------------------------------------------------------------------- */

static void hex(FILE *out, const u8 *p, unsigned n)
{
	for (unsigned k = 0; k < n; k++)
		fprintf(out, "%02x", p[k]);
}

static void print_fields(FILE *out, const void *at, const void *def, const struct field *f, unsigned n)
{
	for (unsigned k = 0; k < n; k++)
		if (get(at, &f[k]) != get(def, &f[k]))
			fprintf(out, f[k].base == 10 ? " %s=%llu" : " %s=%llx", f[k].name, (unsigned long long)get(at, &f[k]));
}

static void print_reference(FILE *out, u8 kind, unsigned size, i16 label, i64 to)
{
	fprintf(out, "[%c%u", kind, size);
	if (label < 0)
		fprintf(out, "=%llx]", (unsigned long long)to);
	else if (to)
		fprintf(out, ":%d%c%llx]", label, to < 0 ? '-' : '+', (unsigned long long)(to < 0 ? -to : to));
	else
		fprintf(out, ":%d]", label);
}

static void print_slot(FILE *out, const struct slot *s)
{
	if (!s->fix) {
		hex(out, s->bytes, s->len);
		return;
	}
	hex(out, s->bytes, s->fix_at);
	print_reference(out, s->fix, s->fix_size, s->label, s->to);
	hex(out, s->bytes + s->fix_at + s->fix_size, (unsigned)(s->len - s->fix_at - s->fix_size));
}

static void print_long(FILE *out, const char *name, unsigned n, const u8 *p, unsigned len)
{
	while (len && !p[len - 1])
		len--;
	if (!len)
		return;
	fprintf(out, " %s%u=", name, n);
	hex(out, p, len);
}

static void print_run(FILE *out, const struct run *r, const struct run *def)
{
	for (unsigned k = 0; k < 16; k++)
		if (r->gpr[k] != def->gpr[k])
			fprintf(out, " %s=%llx", gpr_names[k], (unsigned long long)r->gpr[k]);
	print_fields(out, r, def, run_fields, ARRAY_LEN(run_fields));
	if (r->window != def->window)
		fprintf(out, " window=%s", window_names[r->window]);
}

void program_print(const struct program *p, FILE *out)
{
	static struct program def;
	program_init(&def, p->mode);
	fprintf(out, "%u", 16u << p->mode);
	print_fields(out, p, &def, program_fields, ARRAY_LEN(program_fields));
	for (unsigned k = 0; k < ARRAY_LEN(option_names); k++)
		if (p->options >> k & 1)
			fprintf(out, " %s", option_names[k]);
	fputs(" i=", out);
	for (unsigned k = 0; k < p->n_slots; k++) {
		if (k)
			fputc(',', out);
		print_slot(out, &p->slot[k]);
	}
	for (unsigned k = 0; k < p->n_pokes; k++) {
		const struct poke *q = &p->poke[k];
		fprintf(out, " @%llx=", (unsigned long long)q->lin);
		if (q->label >= 0)
			print_reference(out, 'a', q->len, q->label, q->to);
		else
			hex(out, q->bytes, q->len);
	}
	for (unsigned k = 0; k < p->n_edits; k++) {
		const struct edit *e = &p->edit[k];
		if (e->run == EDIT_ALT)
			fprintf(out, " edit=alt:%u+%u:", e->slot, e->off);
		else
			fprintf(out, " edit=%u:%u+%u:", e->run, e->slot, e->off);
		hex(out, e->bytes, e->len);
	}
	if (!p->vec_seed) {
		print_fields(out, p, &def, vec_fields, ARRAY_LEN(vec_fields));
		for (unsigned k = 0; k < 32; k++)
			print_long(out, "zmm", k, p->v.zmm[k], 64);
		for (unsigned k = 0; k < 8; k++)
			print_long(out, "st", k, p->v.st[k], 10);
	}
	print_run(out, &p->run[0], &def.run[0]);
	for (unsigned k = 1; k < p->n_runs; k++) {
		fputs(" run", out);
		print_run(out, &p->run[k], &p->run[0]);
	}
}

/* ---- parsing --------------------------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Pairs of digits as long as there are any; the number of bytes, or -1. */
static int parse_hex(const char **s, u8 *out, unsigned cap)
{
	unsigned n = 0;
	for (; hex_digit(**s) >= 0; *s += 2, n++) {
		if (n == cap || hex_digit((*s)[1]) < 0)
			return -1;
		out[n] = (u8)(hex_digit(**s) << 4 | hex_digit((*s)[1]));
	}
	return (int)n;
}

/* [r4:5+1] or [a8=1000]; *s is behind the bracket that opens. */
static bool parse_reference(const char **s, u8 *kind, u8 *size, i16 *label, i64 *to)
{
	char *end;
	*kind = (u8)(*s)[0];
	*size = (u8)((*s)[1] - '0');
	if ((*kind != 'r' && *kind != 'a') || !*size || *size > 8)
		return false;
	char how = (*s)[2];
	*s += 3;
	if (how == '=') {
		*label = -1;
		*to = (i64)strtoull(*s, &end, 16);
	} else if (how == ':') {
		*label = (i16)strtol(*s, &end, 10);
		*to = 0;
		if (*end == '+' || *end == '-') {
			bool minus = *end == '-';
			*to = (i64)strtoull(end + 1, &end, 16);
			*to = minus ? -*to : *to;
		}
	} else {
		return false;
	}
	*s = end + 1;
	return *end == ']' && *label <= MAX_SLOTS;
}

static bool parse_slots(struct program *p, const char *s)
{
	for (;; s++) {
		struct slot *o = &p->slot[p->n_slots];
		if (p->n_slots == MAX_SLOTS)
			return false;
		memset(o, 0, sizeof(*o));
		int n = parse_hex(&s, o->bytes, 15);
		if (n < 0)
			return false;
		if (*s == '[') {
			s++;
			o->fix_at = (u8)n;
			if (!parse_reference(&s, &o->fix, &o->fix_size, &o->label, &o->to) || n + o->fix_size > 15)
				return false;
			n += o->fix_size;
			int more = parse_hex(&s, o->bytes + n, 15u - (unsigned)n);
			if (more < 0)
				return false;
			n += more;
		}
		o->len = (u8)n;
		if (!n)
			return false;
		p->n_slots++;
		if (*s != ',')
			return !*s;
	}
}

static bool parse_poke(struct program *p, const char *name, const char *value)
{
	struct poke *q = &p->poke[p->n_pokes];
	char *end;
	u8 kind;
	if (p->n_pokes == MAX_POKES)
		return false;
	memset(q, 0, sizeof(*q));
	q->lin = strtoull(name, &end, 16);
	q->label = -1;
	p->n_pokes++;
	if (*end)
		return false;
	if (*value == '[') {
		value++;
		return parse_reference(&value, &kind, &q->len, &q->label, &q->to) && !*value;
	}
	int n = parse_hex(&value, q->bytes, sizeof(q->bytes));
	q->len = (u8)n;
	return n > 0 && !*value;
}

static bool parse_edit(struct program *p, const char *s)
{
	struct edit *e = &p->edit[p->n_edits];
	char *end;
	if (p->n_edits == MAX_EDITS)
		return false;
	memset(e, 0, sizeof(*e));
	e->run = !strncmp(s, "alt", 3) ? EDIT_ALT : (u8)strtoul(s, NULL, 10);
	s = strchr(s, ':');
	if (!s)
		return false;
	e->slot = (u8)strtoul(s + 1, &end, 10);
	if (*end != '+')
		return false;
	e->off = (u8)strtoul(end + 1, &end, 10);
	if (*end != ':')
		return false;
	s = end + 1;
	int n = parse_hex(&s, e->bytes, 15);
	e->len = (u8)n;
	p->n_edits++;
	return n > 0 && !*s;
}

static bool set(void *at, const struct field *f, unsigned n, const char *name, const char *value, bool *bad)
{
	for (unsigned k = 0; k < n; k++) {
		char *end;
		if (strcmp(f[k].name, name))
			continue;
		u64 v = strtoull(value, &end, f[k].base);
		*bad = *end || !*value;
		memcpy((u8 *)at + f[k].offset, &v, f[k].size);
		return true;
	}
	return false;
}

static bool parse_long(struct program *p, const char *name, const char *value, bool *bad)
{
	bool zmm = !strncmp(name, "zmm", 3), st = !strncmp(name, "st", 2);
	char *end;
	if (!zmm && !st)
		return false;
	unsigned long n = strtoul(name + (zmm ? 3 : 2), &end, 10);
	*bad = *end || n >= (zmm ? 32 : 8) || parse_hex(&value, zmm ? p->v.zmm[n] : p->v.st[n], zmm ? 64 : 10) < 0 || *value;
	return true;
}

static bool parse_run_item(struct run *r, const char *name, const char *value, bool *bad)
{
	char *end;
	for (unsigned k = 0; k < 16; k++) {
		if (strcmp(name, gpr_names[k]))
			continue;
		r->gpr[k] = strtoull(value, &end, 16);
		*bad = *end != 0;
		return true;
	}
	if (!strcmp(name, "window")) {
		unsigned k = 0;
		while (k < N_WINDOWS && strcmp(window_names[k], value))
			k++;
		r->window = (u8)k;
		*bad = k == N_WINDOWS;
		return true;
	}
	return set(r, run_fields, ARRAY_LEN(run_fields), name, value, bad);
}

static bool parse_item(struct program *p, char *item, struct error *e)
{
	struct run *r = &p->run[p->n_runs - 1];
	char *value = strchr(item, '=');
	bool bad = false;
	if (!strcmp(item, "run")) {
		if (p->n_runs == MAX_RUNS)
			return error_set(e, "more than %u runs", MAX_RUNS);
		p->run[p->n_runs++] = p->run[0];
		return true;
	}
	for (unsigned k = 0; !value && k < ARRAY_LEN(option_names); k++) {
		if (!strcmp(item, option_names[k])) {
			p->options |= (u8)(1u << k);
			return true;
		}
	}
	if (!value)
		return error_set(e, "'%s' is not name=value", item);
	*value++ = 0;
	if (item[0] == '@')
		bad = !parse_poke(p, item + 1, value);
	else if (!strcmp(item, "i"))
		bad = !parse_slots(p, value);
	else if (!strcmp(item, "edit"))
		bad = !parse_edit(p, value);
	else if (!parse_run_item(r, item, value, &bad) && !parse_long(p, item, value, &bad) &&
		 !set(p, program_fields, ARRAY_LEN(program_fields), item, value, &bad) &&
		 !set(p, vec_fields, ARRAY_LEN(vec_fields), item, value, &bad))
		return error_set(e, "nothing is called '%s'", item);
	return !bad || error_set(e, "'%s=%s' makes no sense", item, value);
}

static bool sensible(const struct program *p, struct error *e)
{
	for (unsigned k = 0; k < p->n_edits; k++)
		if (p->edit[k].slot >= p->n_slots)
			return error_set(e, "an edit of slot %u of %u", p->edit[k].slot, p->n_slots);
	if (p->entry > p->n_slots || p->resume > p->n_slots || p->idt >= N_IDTS || (p->cpl && p->cpl != 3))
		return error_set(e, "entry, resume, idt or cpl is out of range");
	return true;
}

bool program_parse(struct program *p, const char *text, const struct cpu *c, struct error *e)
{
	char *copy = strdup(text), *save, *item;
	item = copy ? strtok_r(copy, " \t\n", &save) : NULL;
	unsigned bits = item ? (unsigned)strtoul(item, NULL, 10) : 0;
	bool ok = bits == 64 || bits == 32 || bits == 16;
	if (!ok)
		error_set(e, "a program begins with 64, 32 or 16");
	else
		program_init(p, bits == 64 ? CODE64 : bits == 32 ? CODE32 : CODE16);
	while (ok && (item = strtok_r(NULL, " \t\n", &save)))
		ok = parse_item(p, item, e);
	free(copy);
	if (ok && p->vec_seed)
		vec_fill(&p->v, p->vec_seed, c);
	return ok && sensible(p, e);
}
