/* The differential harness: options, the loop over forms, the tests that are kept. See diff.h. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"
#include "engine/engine.h"

/* Forms that are not run, with the reason; mode 64, 32 or 0 for both. */
struct unlisted { const char *name; unsigned mode; const char *reason; };
static const struct unlisted unlisted[] = {
#define UNLISTED(name, mode, reason) { name, mode, reason },
#include "unlisted.def"
#undef UNLISTED
};

static unsigned mode_bits(enum code_mode m) { return m == CODE64 ? 64 : 32; }
static struct tally *tally_of(struct harness *h, enum code_mode m, unsigned row) { return &h->tally[m == CODE64][row]; }

static const char *reason_unlisted(unsigned row, enum code_mode m)
{
	for (unsigned k = 0; k < ARRAY_LEN(unlisted); k++)
		if (!strcmp(unlisted[k].name, isa_ops[row].name) && (!unlisted[k].mode || unlisted[k].mode == mode_bits(m)))
			return unlisted[k].reason;
	return NULL;
}

/* ---- one test ------------------------------------------------------------------------------------------- */

static u64 hash(u64 h, const void *p, size_t n)
{
	for (size_t k = 0; k + 8 <= n; k += 8)
		h = (h ^ ld64((const u8 *)p + k)) * 0x9e3779b97f4a7c15ull + (h >> 47);
	return h;
}

static void run_both(struct harness *h, const struct test *t, const struct decoded *d, struct comparison *c)
{
	native_run(t, &h->native);
	side_run(h->side, t, &h->engine);
	compare(t, d, &h->native, native_data(), &h->engine, side_data(h->side), c);
	if (c->verdict == DIFFERS || h->unsure)
		h->native_hash = hash(hash(0, &h->native, sizeof(h->native)), native_data(), DATA_BYTES);
	native_restore();
	side_restore(h->side);
}

/* Bytes that are no instruction are a test, too. */
static void decode(struct harness *h, const struct test *t, struct decoded *d)
{
	if (!finder_decode(&h->find, t->mode, t->bytes, t->len, d, NULL))
		decoded_none(d);
}

struct still_fails { struct harness *h; const char *first; };

static bool still_fails(void *arg, const struct test *t)
{
	struct still_fails *s = arg;
	struct decoded d;
	struct comparison c = { .log = NULL };
	decode(s->h, t, &d);
	run_both(s->h, t, &d, &c);
	return c.verdict == DIFFERS && !strcmp(c.first, s->first);
}

static void show_insn(const struct test *t, const struct decoded *d)
{
	ZydisFormatter f;
	char text[128];
	if (d->row < 0) {
		printf("%s\n", INVALID_NAME);
		return;
	}
	ZydisFormatterInit(&f, ZYDIS_FORMATTER_STYLE_INTEL);
	ZydisFormatterFormatInstruction(&f, &d->zi, d->zo, d->zi.operand_count_visible, text, sizeof(text), t->r.rip, NULL);
	printf("%s: %s\n", isa_ops[d->row].name, text);
}

static void show_end(const char *who, const struct outcome *o)
{
	printf("  %s: vector %u error %x cr2 %llx at rip %llx rflags %llx%s%s\n", who, o->vector, o->error,
	       (unsigned long long)o->cr2, (unsigned long long)o->r.rip, (unsigned long long)o->r.rflags, o->lost ? ", lost: " : "", o->lost ? o->reason : "");
}

static void report_failure(struct harness *h, const struct test *t, const char *first)
{
	static struct test small;
	struct decoded d;
	struct still_fails s = { h, first };
	struct comparison c = { .log = stdout };
	small = *t;
	test_shrink(&small, still_fails, &s);
	decode(h, &small, &d);
	printf("DIFFERS ");
	show_insn(&small, &d);
	run_both(h, &small, &d, &c);
	show_end("native", &h->native);
	show_end("engine", &h->engine);
	printf("  --repro '");
	test_print(&small, stdout);
	printf("'\n");
	fflush(stdout);
}

/* The host's kernel may switch away in the middle of a test, and some processors then lose x87
 * pointers. So a difference is tried again; if it is gone, the host must have done something else
 * than before, or it is the engine that is unsteady, and that counts. */
static void run_surely(struct harness *h, const struct test *t, const struct decoded *d, struct comparison *c)
{
	run_both(h, t, d, c);
	if (c->verdict != DIFFERS)
		return;
	u64 before = h->native_hash;
	const char *first = c->first;
	h->unsure = true;
	run_both(h, t, d, c);
	h->unsure = false;
	if (c->verdict == DIFFERS)
		return;
	if (h->native_hash == before) {
		c->verdict = DIFFERS;
		c->first = first;
	} else {
		h->unsteady++;
	}
}

static void count_one(struct harness *h, const struct test *t, const struct decoded *d, struct tally *y)
{
	struct comparison c = { .log = NULL };
	run_surely(h, t, d, &c);
	h->total++;
	y->states++;
	y->faults += h->native.vector != V_BP;
	switch (c.verdict) {
	case SAME: break;
	case UNDEFINED_DIFFERS:
		if (!y->undefined++ && h->o.show_undefined) {
			printf("UNDEFINED flags %llx native %llx engine: ", (unsigned long long)h->native.r.rflags,
			       (unsigned long long)h->engine.r.rflags);
			show_insn(t, d);
		}
		break;
	case KNOWN_DIFFERS:
		y->known++;
		for (unsigned k = 0; k < known_count(); k++)
			h->known[k] += !strcmp(known_name(k), c.first);
		break;
	case DIFFERS:
		h->total_differs++;
		if (y->differs++ < 2 && h->shown++ < 400)
			report_failure(h, t, c.first);
	}
}

/* ---- all forms --------------------------------------------------------------------------------------------- */

/* states of one sub-form: its encodings in turn. */
static void run_group(struct harness *h, const struct forms *f, unsigned from, unsigned to, unsigned states, struct tally *y)
{
	static struct test t;
	const struct enc *first = &f->enc[from];
	for (unsigned k = 0; k < states; k++) {
		struct rng g = { mix(mix(h->o.seed, f->mode), mix(first->row, mix(first->group, k))) };
		for (unsigned tries = 0; tries < 20; tries++) {
			struct decoded d;
			test_init(&t, f->mode);
			if (enc_random(&f->enc[from + rnd_below(&g, to - from)], &h->find, &g, &t, &d) &&
			    state_make(&t, &d, &g, &h->find)) {
				count_one(h, &t, &d, y);
				break;
			}
		}
	}
}

/* As many as for twenty forms. */
static void run_invalid(struct harness *h, enum code_mode mode)
{
	static struct test t;
	struct tally *y = tally_of(h, mode, isa_n_ops);
	for (unsigned k = 0; k < 20 * h->o.states; k++) {
		struct rng g = { mix(mix(h->o.seed, mode), mix(0x10001, k)) };
		struct decoded d;
		test_init(&t, mode);
		if (invalid_make(&t, &d, &g, &h->find))
			count_one(h, &t, &d, y);
	}
	y->encodings = 1;
}

static void run_row(struct harness *h, const struct forms *f, unsigned row)
{
	struct tally *y = tally_of(h, f->mode, row);
	unsigned from = f->first[row], end = f->first[row + 1], groups = 0;
	y->encodings = end - from;
	y->absent = f->absent[row];
	y->why_none = reason_unlisted(row, f->mode);
	if (y->why_none)
		return;
	for (unsigned k = from; k < end; k++)
		groups += k == from || f->enc[k].group != f->enc[k - 1].group;
	for (unsigned k = from, next; k < end; k = next) {
		for (next = k; next < end && f->enc[next].group == f->enc[k].group;)
			next++;
		/* Each sub-form its share, and never less than a tenth. */
		run_group(h, f, k, next, MAX((h->o.states + groups - 1) / groups, (h->o.states + 9) / 10), y);
	}
}

static void run_mode(struct harness *h, enum code_mode mode)
{
	struct forms f;
	forms_build(&f, &h->find, mode);
	for (unsigned row = 0; row < isa_n_ops; row++)
		if (wanted(h, row)) {
			if (h->progress)
				fprintf(stderr, "\r%u-bit: %-28s", mode_bits(mode), isa_ops[row].name);
			run_row(h, &f, row);
		}
	if (h->progress)
		fputc('\n', stderr);
	if (wanted(h, isa_n_ops))
		run_invalid(h, mode);
	forms_free(&f);
}

/* ---- kept tests ----------------------------------------------------------------------------------------------- */

static bool run_text(struct harness *h, const char *text, bool show, struct error *e)
{
	static struct test t;
	struct decoded d;
	struct comparison c = { .log = show ? stdout : NULL };
	if (!test_parse(&t, text, e))
		return false;
	host_fit(&t.r.v);
	decode(h, &t, &d);
	if (show)
		show_insn(&t, &d);
	run_both(h, &t, &d, &c);
	if (show) {
		show_end("native", &h->native);
		show_end("engine", &h->engine);
		static const char *const verdicts[] = { "equal", "equal but for undefined flags", "a known difference: ", "DIFFERENT: " };
		printf("%s%s\n", verdicts[c.verdict], c.verdict >= KNOWN_DIFFERS ? c.first : "");
	}
	return c.verdict != DIFFERS || error_set(e, "%s differs", c.first);
}

/* A file of tests, one a line, # for comments. Returns how many failed. */
static unsigned run_cases(struct harness *h, unsigned *passed)
{
	FILE *f = h->o.cases ? fopen(h->o.cases, "r") : NULL;
	char *line = NULL;
	size_t cap = 0;
	unsigned failed = 0;
	if (h->o.cases && !f) {
		printf("%s: cannot be read\n", h->o.cases);
		return 1;
	}
	while (f && getline(&line, &cap, f) > 0) {
		struct error e;
		if (line[0] == '#' || line[0] == '\n')
			continue;
		if (run_text(h, line, false, &e)) {
			++*passed;
		} else {
			failed++;
			printf("CASE %s\n  %s", e.msg, line);
		}
	}
	free(line);
	if (f)
		fclose(f);
	return failed;
}

/* ---- options ------------------------------------------------------------------------------------------------------------ */

static const char usage[] =
	"diff: instructions on the host's processor and in an engine, compared\n"
	"  -n N             states a form (100)\n"
	"  --forms TEXT     only forms whose name contains it\n"
	"  --mode 64|32     only in that mode\n"
	"  --engine NAME    interp; or bt, as translated\n"
	"  --cpu MODEL      max\n"
	"  --seed N\n"
	"  --report FILE    a line for each form\n"
	"  --cases FILE     first the tests in it, one a line\n"
	"  --repro TEST     only this test; shows what differs\n"
	"  -v               progress, also where it is no terminal\n"
	"  --undefined      show where flags differ that the manuals leave undefined\n";

static bool parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "forms", 1, NULL, 'f' }, { "mode", 1, NULL, 'm' }, { "engine", 1, NULL, 'e' }, { "seed", 1, NULL, 's' },
		{ "report", 1, NULL, 'r' }, { "repro", 1, NULL, 'p' }, { "cases", 1, NULL, 'c' }, { "undefined", 0, NULL, 'u' },
		{ "cpu", 1, NULL, 'C' }, { "help", 0, NULL, 'h' }, { NULL, 0, NULL, 0 },
	};
	*o = (struct options){ .engine = "interp", .model = "max", .states = 100, .seed = 1 };
	for (int c; (c = getopt_long(argc, argv, "n:vh", longs, NULL)) != -1;) {
		switch (c) {
		case 'n': o->states = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'f': o->pattern = optarg; break;
		case 'm': o->mode = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'e': o->engine = optarg; break;
		case 'C': o->model = optarg; break;
		case 's': o->seed = strtoull(optarg, NULL, 0); break;
		case 'r': o->report = optarg; break;
		case 'p': o->repro = optarg; break;
		case 'c': o->cases = optarg; break;
		case 'v': o->verbose = true; break;
		case 'u': o->show_undefined = true; break;
		default: return false;
		}
	}
	return optind == argc && (!o->mode || o->mode == 64 || o->mode == 32) && o->states;
}

static bool unlisted_names_exist(struct error *e)
{
	for (unsigned k = 0; k < ARRAY_LEN(unlisted); k++) {
		unsigned row = 0;
		while (row < isa_n_ops && strcmp(unlisted[k].name, isa_ops[row].name))
			row++;
		if (row == isa_n_ops)
			return error_set(e, "unlisted.def: no form is called '%s'", unlisted[k].name);
	}
	return true;
}

static bool start(struct harness *h, struct error *e)
{
	const struct engine_ops *ops = engine_find(h->o.engine);
	if (!ops)
		return error_set(e, "no engine is called '%s'", h->o.engine);
	h->side = side_new(ops, h->o.model, e);
	if (!h->side || !native_init_host(e)) /* in this order: the engine's signal handlers come second */
		return false;
	op_index_build(&h->index);
	h->find = (struct finder){ &h->index, side_cpu(h->side), cpu_isa_quirks(side_cpu(h->side)) };
	for (unsigned m = 0; m < 2; m++)
		h->tally[m] = calloc(isa_n_ops + 1, sizeof(struct tally));
	return (h->tally[0] && h->tally[1]) || error_set(e, "out of memory");
}

int main(int argc, char **argv)
{
	static struct harness h;
	struct error e;
	struct timespec a, b;
	unsigned passed = 0, failed = 0;
	if (!parse_options(argc, argv, &h.o)) {
		fputs(usage, stderr);
		return 2;
	}
	if (!unlisted_names_exist(&e)) {
		printf("%s\n", e.msg);
		return 1;
	}
	if (!start(&h, &e)) {
		printf("diff cannot run here: %s\n", e.msg);
		return 77;
	}
	if (h.o.repro) {
		bool ok = run_text(&h, h.o.repro, true, &e);
		if (!ok)
			printf("%s\n", e.msg);
		return ok ? 0 : 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &a);
	h.progress = isatty(2) || h.o.verbose;
	failed = run_cases(&h, &passed);
	if (h.o.mode != 32)
		run_mode(&h, CODE64);
	if (h.o.mode != 64)
		run_mode(&h, CODE32);
	clock_gettime(CLOCK_MONOTONIC, &b);
	int status = report_finish(&h, passed, failed, (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9);
	side_free(h.side);
	return status;
}
