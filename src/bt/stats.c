/* What the engine has counted, for people (--stats). Most counters cost an increment where the work
 * is much more; times are taken only where the machine wants statistics (cpu->measure).
 *
 * Threading: counters are written by the vCPU's thread alone and read by any: each is read whole,
 * but they are not all of the same instant. */
#include "bt/bt.h"

static const char *exit_name(enum exit_kind k)
{
	switch (k) { /* no default: the compiler misses a new one */
	case X_GOTO: return "entered at another place";
	case X_LINK0: return "branch taken, not yet linked";
	case X_LINK1: return "fell through, not yet linked";
	case X_INSN: return "instruction for the interpreter";
	case X_INDIRECT: return "target not in the jump cache";
	case X_KICK: return "kicked";
	case X_GROUP: return "a group of accesses crosses a page";
	case X_FAULT: return "host's instruction faulted";
	case X_WINDOW: return "another window than was thought";
	case X_NOTHING: return "not entered: an event first";
	case X_KINDS: break;
	}
	return "?";
}
static const char *gate_name(enum gate g)
{
	switch (g) {
	case GATE_SYSCALL: return "SYSCALL";
	case GATE_SYSRET: return "SYSRET";
	case GATE_CR3: return "MOV CR3, no flush";
	case GATE_IRET: return "IRETQ";
	case GATE_STRING: return "string instructions";
	case GATE_RDFSBASE: return "RDFSBASE";
	case GATE_RDGSBASE: return "RDGSBASE";
	case GATE_WRFSBASE: return "WRFSBASE";
	case GATE_WRGSBASE: return "WRGSBASE";
	case GATE_RDPKRU: return "RDPKRU";
	case GATE_WRPKRU: return "WRPKRU, the same value";
	case GATE_POPF: return "POPF";
	case GATE_NONE: case N_GATES: break;
	}
	return "?";
}
static const char *const fault_names[] = { "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP" };
_Static_assert(ARRAY_LEN(fault_names) == N_FAULT_SIGNALS, "a name for each signal");

static u64 span_now(const struct span *s, u64 now)
{
	u64 since = counter_read(&s->since);
	return counter_read(&s->total) + (since && now > since ? now - since : 0);
}

static void count_times(const struct stats *s, struct counters *t)
{
	u64 now = __builtin_ia32_rdtsc();
	u64 run = span_now(&s->running, now), in = span_now(&s->inside, now), tr = span_now(&s->translating, now);
	counters_group(t, "share of the time that it ran", 0);
	counter_share(t, "in translated code", in, run);
	counter_share(t, "translating", tr, run);
	counter_share(t, "interpreter and run loop", run > in + tr ? run - in - tr : 0, run);
}

static void count_blocks(const struct bt *b, struct counters *t)
{
	const struct stats *s = &b->stats;
	u64 made = counter_read(&s->translated), insns = counter_read(&s->translated_insns);
	u64 guest = counter_read(&s->translated_bytes), host = counter_read(&s->host_bytes);
	counters_group(t, "blocks", 0);
	counter_add(t, "made", made);
	counter_add(t, "  instructions", insns);
	counter_add(t, "  guest bytes", guest);
	counter_add(t, "  host bytes", host);
	counter_ratio(t, "  instructions a block", insns, made);
	counter_ratio(t, "  host bytes a guest byte", host, guest);
	counter_add(t, "dropped: their code was written", counter_read(&s->invalidated));
	counter_add(t, "that check their code", counter_read(&s->checks_made));
	counter_add(t, "found that it had changed", counter_read(&s->checks_failed));
	counter_add(t, "pages that began to be checked", counter_read(&s->check_terms));
	counter_add(t, "evicted", counter_read(&s->evictions));
	counter_add(t, "all forgotten: too many pages", counter_read(&s->page_flushes));
	counter_add(t, "pages forgotten: too many aliases", counter_read(&s->pages_freed));
	counter_add(t, "links made", counter_read(&s->links));
	counter_add(t, "in the cache now, stale ones too", __atomic_load_n(&b->n_indices, __ATOMIC_RELAXED) - __atomic_load_n(&b->n_free, __ATOMIC_RELAXED));
	counter_add(t, "pages of code known now", __atomic_load_n(&b->n_pages, __ATOMIC_RELAXED));
}

static void count_exits(const struct stats *s, struct counters *t)
{
	counters_group(t, "translated code", 0);
	counter_add(t, "entered", counter_read(&s->enters));
	counters_group(t, "instructions done without leaving", 0);
	for (unsigned k = 1; k < N_GATES; k++)
		counter_add(t, gate_name(k), counter_read(&s->gates[k]));
	counters_group(t, "left, by reason", 0);
	for (unsigned k = 0; k < X_KINDS; k++)
		counter_add(t, exit_name(k), counter_read(&s->exits[k]));
	counters_group(t, "signals", 0);
	counter_add(t, "kicks", counter_read(&s->kicks));
	counter_add(t, "host instructions stepped over", counter_read(&s->steps));
	for (unsigned k = 0; k < N_FAULT_SIGNALS; k++)
		counter_add(t, fault_names[k], counter_read(&s->faults[k]));
	counter_add(t, "return stack begun anew", counter_read(&s->return_overflows));
}

static void count_tables(const struct bt *b, struct counters *t)
{
	const struct stats *s = &b->stats;
	counters_group(t, "page tables", 0);
	counter_add(t, "entries made for loads", counter_read(&s->load_fills));
	counter_add(t, "entries made for stores", counter_read(&s->store_fills));
	counter_add(t, "spaces begun", counter_read(&s->spaces_recycled));
	counter_add(t, "given back to the host", counter_read(&s->table_releases));
	counters_group(t, "windows", 0);
	counter_add(t, "address spaces that got some", counter_read(&s->windows_given));
	counter_add(t, "  and lost them", counter_read(&s->windows_taken));
	counter_add(t, "faults", counter_read(&s->window_faults));
	counter_add(t, "pages mapped", counter_read(&s->window_pages));
	counter_add(t, "  unmapped", counter_read(&s->window_unmaps));
	counter_add(t, "looked at again after a flush", counter_read(&s->window_checks));
	counter_add(t, "instructions found to go elsewhere", counter_read(&s->window_sites));
	counter_add(t, "  and to two windows in turn", counter_read(&s->window_sites_two));
	counter_add(t, "  and left to the table", counter_read(&s->window_sites_table));
	counter_add(t, "KiB now", __atomic_load_n(&b->table_pages, __ATOMIC_RELAXED) * 4ull);
}

void bt_count(const struct cpu *c, struct counters *t)
{
	const struct bt *b = c->engine;
	const struct stats *s = &b->stats;
	count_times(s, t);
	count_blocks(b, t);
	count_exits(s, t);
	count_tables(b, t);
	interp_count(c, t);
	counters_group(t, "instructions by the interpreter", 0);
	counter_add(t, "alone, not in a block", counter_read(&s->single));
	counters_group(t, "instructions by the interpreter, of blocks", 20);
	for (unsigned k = 0; k < isa_n_ops; k++)
		counter_add(t, isa_ops[k].name, counter_read(&s->interp_by_op[k]));
}
