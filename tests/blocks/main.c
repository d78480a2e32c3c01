/* The block comparer: options. See blocks.h. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comparer.h"
#include "engine/engine.h"
#include "hops.h"
#include "planted.h"
#include "watch.h"

static const char usage[] =
	"blocks: random programs in two engines, compared\n"
	"  -n N             programs (1000)\n"
	"  --seed N\n"
	"  --from K         from program K of the seed on\n"
	"  --engines A,B    names of --list-engines; NAME/step: one step() at a time; NAME/hop: from interp\n"
	"                   to it and back within programs (interp and bt, if it can run here)\n"
	"  --mode 64|32|16  (64)\n"
	"  --cpu MODEL      max,-rdrand,-rdseed\n"
	"  --cases FILE     first the programs in it, one a line\n"
	"  --repro TEXT     only this program; shows what differs\n"
	"  --exact-flags    status flags in the frame of a fault count, dead or not\n"
	"  --strict         what follows from undefined flags counts\n"
	"  --ignore LIST    of accessed, dirty (bits in page tables), fpu-pointers, changed-flags (that were dead\n"
	"                   until the program changed the instruction that writes them)\n"
	"  --break N        a planted fault in B; --list-breaks names them\n"
	"  --self-test      every planted fault must be found\n"
	"  --failures N     stop after so many (10)\n"
	"  --list           print every program\n"
	"  --list-engines, --list-breaks\n"
	"  -v               sums by kind\n";

static unsigned parse_ignore(const char *s)
{
	return (strstr(s, "accessed") ? IGNORE_ACCESSED : 0) | (strstr(s, "dirty") ? IGNORE_DIRTY : 0) |
	       (strstr(s, "fpu-pointers") ? IGNORE_FPU_POINTERS : 0) | (strstr(s, "changed-flags") ? IGNORE_CHANGED_FLAGS : 0);
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
		{ "engines", 1, NULL, 'e' }, { "seed", 1, NULL, 's' }, { "from", 1, NULL, 'k' }, { "mode", 1, NULL, 'm' },
		{ "cpu", 1, NULL, 'C' }, { "repro", 1, NULL, 'p' }, { "cases", 1, NULL, 'c' }, { "exact-flags", 0, NULL, 'x' },
		{ "ignore", 1, NULL, 'i' }, { "break", 1, NULL, 'b' }, { "list-engines", 0, NULL, 'E' },
		{ "list-breaks", 0, NULL, 'B' }, { "list", 0, NULL, 'l' }, { "failures", 1, NULL, 'f' },
		{ "self-test", 0, NULL, 'S' }, { "strict", 0, NULL, 'u' }, { NULL, 0, NULL, 0 },
	};
	*o = (struct options){ .model = "max,-rdrand,-rdseed", .mode = 64, .count = 1000, .seed = 1, .from = 1, .stop_after = 10 };
	for (int c; (c = getopt_long(argc, argv, "n:v", longs, NULL)) != -1;) {
		switch (c) {
		case 'n': o->count = strtoull(optarg, NULL, 0); break;
		case 'e': o->engines = optarg; break;
		case 's': o->seed = strtoull(optarg, NULL, 0); break;
		case 'k': o->from = strtoull(optarg, NULL, 0); break;
		case 'm': o->mode = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'C': o->model = optarg; break;
		case 'p': o->repro = optarg; break;
		case 'c': o->cases = optarg; break;
		case 'x': o->exact = true; break;
		case 'i': o->ignore = parse_ignore(optarg); break;
		case 'b': o->planted = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'f': o->stop_after = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'u': o->strict = true; break;
		case 'S': o->self_test = true; break;
		case 'l': o->list = true; break;
		case 'v': o->verbose = true; break;
		case 'E': exit(list_and_exit(true));
		case 'B': exit(list_and_exit(false));
		default: return false;
		}
	}
	return optind == argc && (o->mode == 64 || o->mode == 32 || o->mode == 16) && o->planted <= planted_count();
}

/* NAME, NAME/step or NAME/hop. */
static bool parse_engine(struct engine_spec *s, char *name, size_t cap, const char *text, size_t len, struct error *e)
{
	snprintf(name, cap, "%.*s", (int)len, text);
	char plain[24];
	snprintf(plain, sizeof(plain), "%s", name);
	char *way = strchr(plain, '/');
	s->step = way && !strcmp(way, "/step");
	s->hop = way && !strcmp(way, "/hop");
	if (s->step || s->hop)
		*way = 0;
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
			if (strcmp(engines[k]->name, "interp") && strcmp(engines[k]->name, "kvm") && engines[k]->usable(e)) {
				other = engines[k]->name;
				break;
			}
		snprintf(usual, sizeof(usual), "interp,%s", other);
		text = usual;
	}
	comma = strchr(text, ',');
	if (!comma)
		return error_set(e, "--engines wants two, as in interp,interp/step");
	if (!parse_engine(&c->spec[0], c->name[0], sizeof(c->name[0]), text, (size_t)(comma - text), e) ||
	    !parse_engine(&c->spec[1], c->name[1], sizeof(c->name[1]), comma + 1, strlen(comma + 1), e))
		return false;
	c->spec[1].planted = c->o.planted;
	c->spec[2] = c->spec[0];
	return true;
}

/* Random programs, then the sums. Returns how many failed. */
static unsigned compare_random(struct comparer *c, unsigned *passed)
{
	struct timespec a, b;
	clock_gettime(CLOCK_MONOTONIC, &a);
	c->runs = 0;
	comparer_random(c);
	clock_gettime(CLOCK_MONOTONIC, &b);
	double s = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
	printf("%s, %s%s%s: %llu programs, %llu runs in %.1f s; %llu without end, %llu different each time, "
	       "%llu differ in what is undefined, %llu differ\n",
	       c->name[0], c->name[1], c->o.planted ? ", planted " : "", c->o.planted ? planted_name(c->o.planted) : "",
	       (unsigned long long)c->o.count, (unsigned long long)c->runs, s, (unsigned long long)c->endless,
	       (unsigned long long)c->unsteady, (unsigned long long)c->undefined, (unsigned long long)c->differ);
	u64 away, back;
	hops_count(&away, &back);
	if (away)
		printf("%llu runs went on in another engine, %llu of them came back before their end\n", (unsigned long long)away, (unsigned long long)back);
	comparer_findings(c);
	if (c->o.verbose)
		comparer_tally(c);
	*passed += c->differ == 0;
	return c->differ != 0;
}

int main(int argc, char **argv)
{
	static struct comparer c;
	struct error e;
	unsigned passed = 0, failed = 0;
	if (!parse_options(argc, argv, &c.o)) {
		fputs(usage, stderr);
		return 2;
	}
	watch_start();
	if (!parse_engines(&c, &e) || !comparer_open(&c, &e)) {
		printf("blocks cannot run: %s\n", e.msg);
		return 77;
	}
	if (c.o.repro) {
		failed = !comparer_text(&c, c.o.repro, true, &e);
		if (failed)
			printf("%s\n", e.msg);
	} else {
		failed = comparer_cases(&c, &passed);
		failed += c.o.self_test ? comparer_self_test(&c, &passed) : compare_random(&c, &passed);
		printf("%u passed, %u failed\n", passed, failed);
	}
	comparer_close(&c);
	pool_free(c.pool);
	return failed ? 1 : 0;
}
