/* --stats: what the machine and its processors have counted, while it runs or at its end.
 *
 * The processors are not stopped: each counter is read whole, but not all at the same instant. */
#include <stdio.h>
#include <sys/resource.h>

#include "machine/machine_impl.h"

static double seconds(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec / 1e6; }

void machine_print_stats(const struct machine *m)
{
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	fprintf(stderr, "engine %s\nguest time %.3f s\nhost processor time %.3f s user, %.3f s system\nhost memory at most %ld MiB\n",
		m->engine.ops->name, (double)clock_ns(&m->clock) / 1e9, seconds(r.ru_utime), seconds(r.ru_stime), r.ru_maxrss >> 10);
	if (m->hops)
		fprintf(stderr, "engine hops %llu; what an engine counts is since the last\n", (unsigned long long)m->hops);
	bool inside = m->engine.ops->count; /* not after a hop that has failed both ways */
	for (unsigned k = 0; k < m->n_cpus; k++)
		inside &= m->cpus[k].cpu->engine != NULL;
	struct counters *t = inside ? counters_new("cpu") : NULL;
	if (!t)
		return;
	for (unsigned k = 0; k < m->n_cpus; k++) {
		counters_column(t);
		m->engine.ops->count(m->cpus[k].cpu, t);
	}
	counters_print(t, stderr);
	counters_free(t);
}
