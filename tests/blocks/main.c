/* The block comparer: options, the loop over random programs, the tests that are kept. See blocks.h. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cells.h"
#include "engine/engine.h"
#include "planted.h"
#include "watch.h"
#include "world.h"

struct options {
	const char *engines, *model, *repro, *cases;
	unsigned mode, planted, ignore, stop_after;
	u64 count, seed, only;
	bool exact, verbose, list;
};

struct comparer {
	struct options o;
	struct engine_spec spec[3];
	char name[2][24];
	struct world *world;
	struct rig *rig[3];         /* A, B; a third that undefined.c turns */
	struct pool *pool;
	struct op_index index;
	struct finder find;
	struct cells cells;
	enum rig_end end[2];
	unsigned failed_run;
	u64 runs, endless, undefined, differ, insns;
	u64 at_end, by_vector[256], elsewhere; /* how runs ended */
};

enum verdict_block { EQUAL, ENDLESS, UNDEFINED, DIFFERENT };

/* ---- one program ------------------------------------------------------------------------------------------ */

static bool in_go_ist(const struct program *p) { return p->idt == IDT_GO; }

static struct compare_rules rules(const struct comparer *c, const struct program *p)
{
	bool stopped = c->end[0] == END_STOPPED && c->end[1] == END_STOPPED;
	return (struct compare_rules){
		.ignore = c->o.ignore,
		.dead_flags = stopped && !c->o.exact,
		.frame_flags = c->o.exact || !in_go_ist(p) ? 0 : SYS + SYS_IST * 4096 + STACK_TOP - 24,
	};
}

/* Where A stands. */
static void tally(struct comparer *c)
{
	const struct cpu *cpu = rig_cpu(c->rig[0]);
	u64 stub = cpu->rip - 1 - sys_lin(c->world, SYS_STUBS), go = stub - 4096;
	if (stub < 4096)
		c->by_vector[stub / STUB_STEP]++;
	else if (go < 4096)
		c->by_vector[go / STUB_STEP]++;
	else if (cpu->rip - sys_lin(c->world, 0) < N_SYS * 4096)
		c->elsewhere++;
	else
		c->at_end++;
}

static void show_tally(const struct comparer *c)
{
	printf("%llu instructions; runs ended: %llu at a HLT, %llu without fuel,", (unsigned long long)c->insns,
	       (unsigned long long)c->at_end, (unsigned long long)c->elsewhere);
	for (unsigned k = 0; k < 256; k++)
		if (c->by_vector[k])
			printf(" %llu by %u", (unsigned long long)c->by_vector[k], k);
	putchar('\n');
}

static enum verdict_block run_program(struct comparer *c, const struct program *p, bool explain)
{
	world_program(c->world, p);
	rig_load(c->rig[0], p);
	rig_load(c->rig[1], p);
	for (unsigned k = 0; k < p->n_runs; k++) {
		u64 before = rig_cpu(c->rig[0])->icount;
		c->runs++;
		c->end[0] = rig_run(c->rig[0], p, k, MAX_INSNS);
		c->insns += rig_cpu(c->rig[0])->icount - before;
		tally(c);
		if (c->end[0] == END_ENDLESS)
			return ENDLESS;
		c->end[1] = rig_run(c->rig[1], p, k, UINT64_MAX);
		c->failed_run = k;
		struct compare_rules r = rules(c, p);
		cells_compare(&c->cells, c->world, c->rig[0], c->rig[1], &r);
		if (!c->cells.n && c->end[0] == c->end[1])
			continue;
		if (explain && c->end[1] != END_ENDLESS &&
		    undefined_explains(c->world, p, c->rig[0], c->rig[2], &c->find, k, &c->cells, &r))
			return UNDEFINED;
		return DIFFERENT;
	}
	return EQUAL;
}

/* ---- one that differs ----------------------------------------------------------------------------------------- */

static bool still_fails(void *arg, const struct program *p) { return run_program(arg, p, true) == DIFFERENT; }

static void show(struct comparer *c, const struct program *p, const char *how)
{
	const char *names[2] = { c->name[0], c->name[1] };
	printf("%s", how);
	if (p->n_runs > 1)
		printf(", in run %u of %u", c->failed_run + 1, p->n_runs);
	putchar('\n');
	program_list(p, &c->find, stdout);
	for (unsigned k = 0; k < 2; k++)
		printf("  %s: %s\n", c->name[k], rig_end_name(c->end[k]));
	for (unsigned k = 0; k < c->cells.n && k < 16; k++)
		cell_show(c->cells.cell[k].id, names, c->rig[0], c->rig[1], stdout);
	if (c->cells.n > 16)
		printf("  and %u more\n", c->cells.n - 16);
	printf("  --repro '");
	program_print(p, stdout);
	printf("'\n");
	fflush(stdout);
}

static void report(struct comparer *c, const struct program *p)
{
	static struct program small;
	small = *p;
	watch_patience(500);
	program_shrink(&small, still_fails, c);
	watch_patience(3000);
	run_program(c, &small, false);
	show(c, &small, "DIFFERS");
}

static void random_programs(struct comparer *c)
{
	static struct program p;
	for (u64 k = 0; k < c->o.count && c->differ < c->o.stop_after; k++) {
		struct rng g = { mix(mix(c->o.seed, c->o.mode), c->o.only ? c->o.only : k + 1) };
		generate(&p, &g, c->pool, &c->find, c->world);
		if (c->o.list) {
			program_print(&p, stdout);
			putchar('\n');
			program_list(&p, &c->find, stdout);
		}
		switch (run_program(c, &p, true)) {
		case EQUAL: break;
		case ENDLESS:
			c->endless++;
			if (c->o.verbose)
				printf("program %llu has no end\n", (unsigned long long)(k + 1));
			break;
		case UNDEFINED: c->undefined++; break;
		case DIFFERENT:
			c->differ++;
			printf("program %llu of seed %llu ", (unsigned long long)(c->o.only ? c->o.only : k + 1), (unsigned long long)c->o.seed);
			report(c, &p);
		}
		if (c->o.only)
			break;
	}
}

/* ---- kept tests ----------------------------------------------------------------------------------------------- */

static unsigned mode_bits(const struct comparer *c) { return 16u << c->world->mode; }

static bool run_text(struct comparer *c, const char *text, bool loud, struct error *e)
{
	static struct program p;
	if (!program_parse(&p, text, rig_cpu(c->rig[0]), e))
		return false;
	if (p.mode != c->world->mode)
		return error_set(e, "a program of %u bits under --mode %u", 16u << p.mode, mode_bits(c));
	enum verdict_block v = run_program(c, &p, true);
	static const char *const names[] = { "equal", "it does not end", "differs in what is undefined", "DIFFERS" };
	if (v == UNDEFINED && loud)
		run_program(c, &p, false);
	if (loud)
		show(c, &p, names[v]);
	return v != DIFFERENT || error_set(e, "differs");
}

/* A file of programs, one a line, # for comments; those of this mode. Returns how many failed. */
static unsigned run_cases(struct comparer *c, unsigned *passed)
{
	FILE *f = c->o.cases ? fopen(c->o.cases, "r") : NULL;
	char *line = NULL;
	size_t cap = 0;
	unsigned failed = 0;
	if (c->o.cases && !f) {
		printf("%s: cannot be read\n", c->o.cases);
		return 1;
	}
	while (f && getline(&line, &cap, f) > 0) {
		struct error e;
		if (line[0] == '#' || line[0] == '\n' || strtoul(line, NULL, 10) != mode_bits(c))
			continue;
		if (run_text(c, line, false, &e)) {
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
	"blocks: random programs in two engines, compared\n"
	"  -n N             programs (1000)\n"
	"  --seed N\n"
	"  --only K         only program K of the seed\n"
	"  --engines A,B    names of --list-engines; NAME/step: one step() at a time (interp and the first other one)\n"
	"  --mode 64|32|16  (64)\n"
	"  --cpu MODEL      max\n"
	"  --cases FILE     first the programs in it, one a line\n"
	"  --repro TEXT     only this program; shows what differs\n"
	"  --exact-flags    status flags in the frame of a fault count, dead or not\n"
	"  --ignore LIST    of accessed, dirty (bits in page tables), fpu-pointers\n"
	"  --break N        a planted fault in B; --list-breaks names them\n"
	"  --failures N     stop after so many (10)\n"
	"  --list           print every program\n"
	"  --list-engines, --list-breaks\n"
	"  -v               sums by kind\n";

static unsigned parse_ignore(const char *s)
{
	return (strstr(s, "accessed") ? IGNORE_ACCESSED : 0) | (strstr(s, "dirty") ? IGNORE_DIRTY : 0) |
	       (strstr(s, "fpu-pointers") ? IGNORE_FPU_POINTERS : 0);
}

static int list_and_exit(bool all_engines)
{
	if (all_engines) {
		for (unsigned k = 0; engines[k]; k++)
			puts(engines[k]->name);
	} else {
		for (unsigned k = 1; k <= planted_count(); k++)
			printf("%u %s\n", k, planted_name(k));
	}
	return 0;
}

static bool parse_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "engines", 1, NULL, 'e' }, { "seed", 1, NULL, 's' }, { "only", 1, NULL, 'k' }, { "mode", 1, NULL, 'm' },
		{ "cpu", 1, NULL, 'C' }, { "repro", 1, NULL, 'p' }, { "cases", 1, NULL, 'c' }, { "exact-flags", 0, NULL, 'x' },
		{ "ignore", 1, NULL, 'i' }, { "break", 1, NULL, 'b' }, { "list-engines", 0, NULL, 'E' },
		{ "list-breaks", 0, NULL, 'B' }, { "list", 0, NULL, 'l' }, { "failures", 1, NULL, 'f' }, { NULL, 0, NULL, 0 },
	};
	*o = (struct options){ .model = "max", .mode = 64, .count = 1000, .seed = 1, .stop_after = 10 };
	for (int c; (c = getopt_long(argc, argv, "n:v", longs, NULL)) != -1;) {
		switch (c) {
		case 'n': o->count = strtoull(optarg, NULL, 0); break;
		case 'e': o->engines = optarg; break;
		case 's': o->seed = strtoull(optarg, NULL, 0); break;
		case 'k': o->only = strtoull(optarg, NULL, 0); break;
		case 'm': o->mode = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'C': o->model = optarg; break;
		case 'p': o->repro = optarg; break;
		case 'c': o->cases = optarg; break;
		case 'x': o->exact = true; break;
		case 'i': o->ignore = parse_ignore(optarg); break;
		case 'b': o->planted = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'f': o->stop_after = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'l': o->list = true; break;
		case 'v': o->verbose = true; break;
		case 'E': exit(list_and_exit(true));
		case 'B': exit(list_and_exit(false));
		default: return false;
		}
	}
	return optind == argc && (o->mode == 64 || o->mode == 32 || o->mode == 16) && o->planted <= planted_count();
}

/* NAME or NAME/step. */
static bool parse_engine(struct engine_spec *s, char *name, size_t cap, const char *text, size_t len, struct error *e)
{
	char *step;
	snprintf(name, cap, "%.*s", (int)len, text);
	char plain[24];
	snprintf(plain, sizeof(plain), "%s", name);
	step = strstr(plain, "/step");
	if (step)
		*step = 0;
	s->step = step != NULL;
	s->ops = engine_find(plain);
	return s->ops || error_set(e, "no engine is called '%s'; --list-engines names them", plain);
}

static bool parse_engines(struct comparer *c, struct error *e)
{
	const char *text = c->o.engines, *comma;
	static char usual[48];
	if (!text) {
		const char *other = "interp/step";
		for (unsigned k = 0; engines[k]; k++)
			if (strcmp(engines[k]->name, "interp") && engines[k]->usable(e)) {
				other = engines[k]->name;
				break;
			}
		snprintf(usual, sizeof(usual), "interp,%s", other);
		text = usual;
	}
	comma = strchr(text, ',');
	if (!comma)
		return error_set(e, "--engines wants two, as in interp,interp/step");
	c->spec[2].ops = engine_find("interp");
	if (!parse_engine(&c->spec[0], c->name[0], sizeof(c->name[0]), text, (size_t)(comma - text), e) ||
	    !parse_engine(&c->spec[1], c->name[1], sizeof(c->name[1]), comma + 1, strlen(comma + 1), e))
		return false;
	c->spec[1].planted = c->o.planted;
	return true;
}

static bool start(struct comparer *c, struct error *e)
{
	enum code_mode mode = c->o.mode == 64 ? CODE64 : c->o.mode == 32 ? CODE32 : CODE16;
	if (!parse_engines(c, e))
		return false;
	c->world = world_new(mode, c->o.exact, e);
	if (!c->world)
		return false;
	for (unsigned k = 0; k < 3; k++) {
		c->rig[k] = rig_new(c->world, &c->spec[k], c->o.model, e);
		if (!c->rig[k])
			return false;
	}
	op_index_build(&c->index);
	const struct cpu *cpu = rig_cpu(c->rig[0]);
	c->find = (struct finder){ &c->index, cpu, cpu_isa_quirks(cpu) };
	vector_bytes_set(cpu);
	watch_start();
	return true;
}

int main(int argc, char **argv)
{
	static struct comparer c;
	struct error e;
	struct timespec a, b;
	unsigned passed = 0;
	if (!parse_options(argc, argv, &c.o)) {
		fputs(usage, stderr);
		return 2;
	}
	if (!start(&c, &e)) {
		printf("blocks cannot run: %s\n", e.msg);
		return 77;
	}
	if (c.o.repro) {
		bool ok = run_text(&c, c.o.repro, true, &e);
		if (!ok)
			printf("%s\n", e.msg);
		return ok ? 0 : 1;
	}
	unsigned failed = run_cases(&c, &passed);
	c.pool = pool_new(&c.find, c.world->mode);
	clock_gettime(CLOCK_MONOTONIC, &a);
	c.runs = 0;
	random_programs(&c);
	clock_gettime(CLOCK_MONOTONIC, &b);
	double s = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
	printf("%s, %s%s%s: %llu programs, %llu runs in %.1f s; %llu without end, %llu differ in what is undefined, %llu differ\n",
	       c.name[0], c.name[1], c.o.planted ? ", planted " : "", c.o.planted ? planted_name(c.o.planted) : "",
	       (unsigned long long)c.o.count, (unsigned long long)c.runs, s, (unsigned long long)c.endless,
	       (unsigned long long)c.undefined, (unsigned long long)c.differ);
	if (c.o.verbose)
		show_tally(&c);
	failed += c.differ != 0;
	passed += c.differ == 0;
	printf("%u passed, %u failed\n", passed, failed);
	return failed ? 1 : 0;
}
