/* The comparer held against itself: engine B is the interpreter with a fault on purpose (planted.c), and must
 * be found out. The last one changes only what may differ, and must not be, but with exact flags. */
#include "comparer.h"
#include "engine/engine.h"
#include "planted.h"

enum { ENOUGH = 30000, QUIET = 3000 };

/* Whether fault n is found within count programs. */
static bool found(struct comparer *c, unsigned n, bool exact, unsigned count)
{
	struct error e;
	comparer_close(c);
	c->spec[1] = (struct engine_spec){ .ops = engine_find("interp"), .planted = n };
	c->o.exact = exact;
	c->o.count = count;
	c->o.stop_after = 1;
	c->o.quiet = true;
	c->differ = 0;
	if (!comparer_open(c, &e))
		bug("%s", e.msg);
	comparer_random(c);
	return c->differ > 0;
}

unsigned comparer_self_test(struct comparer *c, unsigned *passed)
{
	unsigned failed = 0, last = planted_count();
	for (unsigned n = 1; n <= last + 1; n++) {
		bool exact = n > last, must = n != last;
		if (n == PLANTED_VEX && vector_bytes(rig_cpu(c->rig[0])) < 32)
			continue;
		unsigned fault = MIN(n, last);
		bool ok = found(c, fault, exact, must ? ENOUGH : QUIET) == must;
		printf("%s %s%s: %s\n", ok ? "ok  " : "FAIL", planted_name(fault), exact ? ", exact" : "", must ? "found" : "not held against it");
		*passed += ok;
		failed += !ok;
	}
	return failed;
}
