/* What both kinds of host have in common; see inside.h. */
#include "inside.h"

#define MiB (1ul << 20)
#define PAGE __attribute__((aligned(4096)))
enum { POOL = 48, DROP_EVERY = 200 };
enum { RIGHTS_SHIFT = 52 }; /* a leaf's INSIDE_*, in bits that both kinds of entry leave to software */

struct inside_regs inside_regs;
u64 second_root[512] PAGE;
static u64 pool[POOL][512] PAGE;
static u32 used, faults, exits, drops;
static u64 image_sum;
static bool inside; /* the copy's is true */
extern u8 guest_end[], image_end[];

/* ---- second-level tables --------------------------------------------------------------------------- */

/* Where a guest-physical address is: RAM lies away from ours; devices are the machine's. What would be RAM of the
 * machine's that the guest does not have is nothing, as it is without us. */
static u64 place(u64 gpa)
{
	bool low = gpa < 0xa0000, high = gpa >= MiB && gpa < 2 * AWAY;
	return low || high ? gpa + AWAY : gpa;
}

static void drop_all(void)
{
	memset(second_root, 0, sizeof(second_root));
	used = 0;
	drops++;
	host_flush();
}

/* The entry's table, a new one if there is none. NULL: no pages left. */
static u64 *table_at(u64 *entry)
{
	if (!*entry) {
		if (used == POOL)
			return NULL;
		memset(pool[used], 0, 4096);
		*entry = host_entry((uptr)pool[used++], 0, false);
	}
	return (u64 *)(*entry & 0xffffffffff000);
}

void second_map(u64 gpa, unsigned rights)
{
	if (++faults % DROP_EVERY == 0)
		drop_all();
	for (;;) {
		u64 *t = second_root;
		for (unsigned shift = 39; t && shift > 12; shift -= 9)
			t = table_at(&t[gpa >> shift & 511]);
		if (t) {
			u64 *e = &t[gpa >> 12 & 511];
			rights |= *e >> RIGHTS_SHIFT & 7;
			*e = host_entry(place(gpa) & ~0xfffull, rights, true) | (u64)rights << RIGHTS_SHIFT;
			return;
		}
		drop_all();
	}
}

/* ---- instructions done for the guest ------------------------------------------------------------------- */

bool inside_rdmsr(void)
{
	struct inside_regs *r = &inside_regs;
	u64 v = 0;
	TRY(v = rdmsr((u32)r->cx));
	if (trap.vec != NONE)
		return false;
	r->ax = (u32)v;
	r->dx = v >> 32;
	return true;
}

bool inside_wrmsr(void)
{
	const struct inside_regs *r = &inside_regs;
	return TRY(wrmsr((u32)r->cx, (u32)r->ax | r->dx << 32)) == NONE;
}

bool inside_xsetbv(void)
{
	const struct inside_regs *r = &inside_regs;
	return TRY(__asm__ volatile("xsetbv" : : "c"((u32)r->cx), "a"((u32)r->ax), "d"((u32)r->dx))) == NONE;
}

void inside_cpuid(void)
{
	struct inside_regs *r = &inside_regs;
	u32 to[4];
	cpuid((u32)r->ax, (u32)r->cx, to);
	r->ax = to[0], r->bx = to[1], r->cx = to[2], r->dx = to[3];
}

static bool contributory(int vec) { return vec == DE || (vec >= TS && vec <= GP); }

/* SDM vol. 3 6.15, table 6-5; APM vol. 2 8.2.9. */
int inside_combine(int first, int vec)
{
	if (first == DF && (contributory(vec) || vec == PF))
		return -1;
	bool twice = (contributory(first) && contributory(vec)) || (first == PF && (contributory(vec) || vec == PF));
	return twice ? DF : vec;
}

/* ---- the end ------------------------------------------------------------------------------------------------ */

void inside_count_exit(void) { exits++; }

void inside_lost(const char *what, u64 a, u64 b)
{
	say("FAIL the host: %s, %X, %X\n", what, a, b);
	guest_exit(2);
}

/* Our code and constants; then memory that only the guest uses, its own. */
static u64 sum(const u8 *from, const u8 *to)
{
	u64 s = 0;
	for (const u64 *p = (const u64 *)from; p < (const u64 *)to; p++)
		s = s * 31 + *p;
	return s;
}
static bool untouched(void)
{
	const u8 *end = (const u8 *)(((uptr)guest_end + 4095) & ~4095ul);
	return sum((const u8 *)MiB, image_end) == image_sum && !sum(end, end + MiB) && !sum((u8 *)(64 * MiB), (u8 *)(66 * MiB));
}

void inside_answer(struct inside_regs *r)
{
	r->ax = untouched();
	r->bx = exits;
	r->cx = faults;
	r->dx = drops;
}

/* ---- called by guest_start() ----------------------------------------------------------------------------------- */

void level_enter(void)
{
	if (inside)
		return;
	image_sum = sum((const u8 *)MiB, image_end);
	memcpy((void *)(MiB + AWAY), (const void *)MiB, (uptr)guest_end - MiB);
	*(bool *)((uptr)&inside + AWAY) = true;
	host_run();
}

void level_leave(void)
{
	struct inside_regs r = { .ax = INSIDE_CALL };
	host_call(&r);
	check("level 2: the host's memory is as it was", r.ax == 1);
	check(fmt("level 2: %u exits, %u of them for a page", (u32)r.bx, (u32)r.cx), r.bx > r.cx && r.cx > 20);
	check(fmt("level 2: all pages were taken away %u times", (u32)r.dx), true);
}
