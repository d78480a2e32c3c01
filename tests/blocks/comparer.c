/* The loop over random programs, and what becomes of one that differs; programs that are kept. */
#include <stdlib.h>
#include <string.h>

#include "comparer.h"
#include "watch.h"
#include "world.h"

enum verdict_block { EQUAL, ENDLESS, UNSTABLE, UNDEFINED, DIFFERENT };

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

void comparer_findings(const struct comparer *c)
{
	for (unsigned k = 0; k < c->n_findings; k++)
		printf("%6u  %s\n", c->finding[k].times, c->finding[k].text);
}

void comparer_tally(const struct comparer *c)
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
		enum explanation x = !explain || c->end[1] == END_ENDLESS ? UNEXPLAINED :
			undefined_explains(c->world, p, c->rig[0], c->rig[2], &c->find, k, &c->cells, &r);
		return x == UNSTEADY ? UNSTABLE : x == BY_UNDEFINED && !c->o.strict ? UNDEFINED : DIFFERENT;
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

/* Programs that have become the same instructions, other operands aside, and differ in the same field
 * are one finding: the first is shown, the others are counted. */
static bool seen_before(struct comparer *c, const struct program *p)
{
	char text[160] = "";
	program_mnemonics(p, &c->find, text, sizeof(text) - 32);
	if (c->cells.n) {
		char name[24];
		cell_name(c->cells.cell[0].id, name, sizeof(name));
		name[strcspn(name, " ")] = 0;
		snprintf(text + strlen(text), 32, "(%s)", name);
	}
	unsigned k = 0;
	while (k < c->n_findings && strcmp(c->finding[k].text, text))
		k++;
	if (k == ARRAY_LEN(c->finding))
		return false;
	if (k == c->n_findings) {
		snprintf(c->finding[k].text, sizeof(c->finding[k].text), "%s", text);
		c->n_findings++;
	}
	return c->finding[k].times++ > 0;
}

static void report(struct comparer *c, const struct program *p, u64 k)
{
	static struct program small;
	small = *p;
	watch_patience(500);
	program_shrink(&small, still_fails, c);
	watch_patience(3000);
	run_program(c, &small, false);
	if (seen_before(c, &small) && !c->o.verbose)
		return;
	printf("program %llu of seed %llu ", (unsigned long long)k, (unsigned long long)c->o.seed);
	show(c, &small, "DIFFERS");
}

void comparer_random(struct comparer *c)
{
	static struct program p;
	for (u64 k = c->o.from; k < c->o.from + c->o.count && c->differ < c->o.stop_after; k++) {
		struct rng g = { mix(mix(c->o.seed, c->o.mode), k) };
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
				printf("program %llu has no end\n", (unsigned long long)k);
			break;
		case UNSTABLE: c->unsteady++; break;
		case UNDEFINED:
			c->undefined++;
			if (c->o.verbose)
				printf("program %llu differs in what is undefined\n", (unsigned long long)k);
			break;
		case DIFFERENT:
			c->differ++;
			if (c->o.quiet)
				break;
			report(c, &p, k);
		}
	}
}

/* ---- kept tests ----------------------------------------------------------------------------------------------- */

static unsigned mode_bits(const struct comparer *c) { return 16u << c->world->mode; }

bool comparer_text(struct comparer *c, const char *text, bool loud, struct error *e)
{
	static struct program p;
	if (!program_parse(&p, text, rig_cpu(c->rig[0]), e))
		return false;
	if (p.mode != c->world->mode)
		return error_set(e, "a program of %u bits under --mode %u", 16u << p.mode, mode_bits(c));
	enum verdict_block v = run_program(c, &p, true);
	static const char *const names[] = { "equal", "it does not end", "different each time", "differs in what is undefined", "DIFFERS" };
	if (v == UNDEFINED && loud)
		run_program(c, &p, false);
	if (loud)
		show(c, &p, names[v]);
	return v != DIFFERENT || error_set(e, "differs");
}

unsigned comparer_cases(struct comparer *c, unsigned *passed)
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
		if (comparer_text(c, line, false, &e)) {
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

/* ---- life ---------------------------------------------------------------------------------------------------- */

bool comparer_open(struct comparer *c, struct error *e)
{
	enum code_mode mode = c->o.mode == 64 ? CODE64 : c->o.mode == 32 ? CODE32 : CODE16;
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
	if (!c->pool && !c->o.repro)
		c->pool = pool_new(&c->find, mode);
	return true;
}

/* The pool stays: it is the processor model's. */
void comparer_close(struct comparer *c)
{
	for (unsigned k = 0; k < 3; k++)
		rig_free(c->rig[k]);
	world_free(c->world);
}

