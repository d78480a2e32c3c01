/* What must be equal, and what is known not to be. Everything that a register or a byte of
 * memory shows is compared; flags that the manuals leave undefined are looked at apart, and
 * differences that belong to a processor are named in known.def with their reason. */
#include <string.h>

#include "compare.h"

#define TASK_TOP 0x7ffffffff000ull

static void note(struct check *k, const char *name, const char *what, u64 native, u64 engine)
{
	if (!k->differs)
		k->c->first = name;
	k->differs = true;
	k->count++;
	if (k->c->log)
		fprintf(k->c->log, "  %-8s native %016llx  engine %016llx%s%s\n", name, (unsigned long long)native,
			(unsigned long long)engine, *what ? "  " : "", what);
}

static void number(struct check *k, const char *name, u64 native, u64 engine)
{
	if (native != engine)
		note(k, name, "", native, engine);
}

static void hex(FILE *f, const u8 *p, unsigned n)
{
	while (n-- > 0)
		fprintf(f, "%02x%s", p[n], n && n % 8 == 0 ? "_" : "");
}

static void bytes(struct check *k, const char *name, const u8 *native, const u8 *engine, unsigned n)
{
	if (!memcmp(native, engine, n))
		return;
	if (!k->differs)
		k->c->first = name;
	k->differs = true;
	k->count++;
	if (!k->c->log)
		return;
	fprintf(k->c->log, "  %-8s native ", name);
	hex(k->c->log, native, n);
	fprintf(k->c->log, "\n           engine ");
	hex(k->c->log, engine, n);
	fputc('\n', k->c->log);
}

/* ---- flags ------------------------------------------------------------------------------------------- */

/* Status flags that the manuals leave undefined after this instruction, in this state. */
static u64 undefined_flags(const struct check *k)
{
	const ZydisAccessedFlags *f = k->d->zi.cpu_flags;
	bool done = k->n->vector == V_BP || k->n->r.rip != k->t->r.rip; /* a fault changes no flag */
	return done && f ? f->undefined & FL_STATUS : 0;
}

static void flags(struct check *k)
{
	u64 diff = k->n->r.rflags ^ k->e->r.rflags, undefined = undefined_flags(k);
	if (diff & ~undefined)
		note(k, "rflags", "", k->n->r.rflags, k->e->r.rflags);
	else if (diff)
		k->undefined = true;
}

/* ---- all of it ------------------------------------------------------------------------------------------ */

static const char *const gpr_names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					   "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };

/* The host's kernel returns to its handler by IRET, which makes null selectors 0. */
static u16 selector(u16 s) { return s < 4 ? 0 : s; }

static void general(struct check *k)
{
	const struct regs *n = &k->n->r, *e = &k->e->r;
	/* Outside of 64-bit mode nothing shows the upper halves. */
	u64 mask = k->t->mode == CODE64 ? ~0ull : 0xffffffff;
	for (unsigned r = 0; r < 16; r++)
		number(k, gpr_names[r], n->gpr[r] & mask, e->gpr[r] & mask);
	number(k, "rip", n->rip, e->rip);
	flags(k);
	number(k, "cs", n->cs, e->cs);
	number(k, "ss", n->ss, e->ss);
	number(k, "ds", selector(n->ds), selector(e->ds));
	number(k, "es", selector(n->es), selector(e->es));
	number(k, "fs", selector(n->fs), selector(e->fs));
	number(k, "gs", selector(n->gs), selector(e->gs));
	if (k->t->mode == CODE64) {
		number(k, "fs_base", n->fs_base, e->fs_base);
		number(k, "gs_base", n->gs_base, e->gs_base);
	}
}

static void floating(struct check *k)
{
	const struct vec_state *n = &k->n->r.v, *e = &k->e->r.v;
	if (!memcmp(n, e, sizeof(*n)))
		return;
#define Z(a) "zmm" #a
	static const char *const zn[32] = { Z(0), Z(1), Z(2), Z(3), Z(4), Z(5), Z(6), Z(7), Z(8), Z(9), Z(10), Z(11),
		Z(12), Z(13), Z(14), Z(15), Z(16), Z(17), Z(18), Z(19), Z(20), Z(21), Z(22), Z(23), Z(24), Z(25), Z(26),
		Z(27), Z(28), Z(29), Z(30), Z(31) };
#undef Z
	for (unsigned r = 0; r < 32; r++)
		bytes(k, zn[r], n->zmm[r], e->zmm[r], 64);
	static const char *const kn[8] = { "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7" };
	static const char *const sn[8] = { "st0", "st1", "st2", "st3", "st4", "st5", "st6", "st7" };
	for (unsigned r = 0; r < 8; r++) {
		number(k, kn[r], n->k[r], e->k[r]);
		bytes(k, sn[r], n->st[r], e->st[r], 10);
	}
	number(k, "mxcsr", n->mxcsr, e->mxcsr);
	number(k, "fcw", n->fcw, e->fcw);
	number(k, "fsw", n->fsw, e->fsw);
	number(k, "ftw", n->ftw, e->ftw);
	/* A processor that saves the pointers only with a pending exception shows nothing else. */
	if (host_keeps_fpu_pointers() || (n->fsw & 0x80)) {
		u64 mask = k->t->mode == CODE64 ? ~0ull : 0xffffffff;
		number(k, "fop", n->fop, e->fop);
		number(k, "fip", n->fip & mask, e->fip & mask);
		number(k, "fdp", n->fdp & mask, e->fdp & mask);
	}
}

static void exception(struct check *k)
{
	const struct outcome *n = k->n, *e = k->e;
	number(k, "vector", n->vector, e->vector);
	if (n->vector != e->vector)
		return;
	u32 sanitized = 0;
	/* Linux reports every fault above the user's half as one of protection. */
	if (n->vector == V_PF && n->cr2 >= TASK_TOP)
		sanitized = PF_P;
	number(k, "error", n->error & ~sanitized, e->error & ~sanitized);
	number(k, "cr2", n->cr2, e->cr2);
}

static void memory(struct check *k, const u8 *n, const u8 *e)
{
	if (!memcmp(n, e, DATA_BYTES))
		return;
	for (unsigned at = 0, shown = 0; at < DATA_BYTES && shown < 8; at += 16) {
		if (!memcmp(n + at, e + at, 16))
			continue;
		if (k->c->log)
			fprintf(k->c->log, "  at %llx:\n", (unsigned long long)DATA_BASE + at);
		bytes(k, "memory", n + at, e + at, 16);
		shown++;
	}
}

void compare(const struct test *t, const struct decoded *d, const struct outcome *native, const u8 *native_mem,
	     const struct outcome *engine, const u8 *engine_mem, struct comparison *c)
{
	struct check k = { t, d, native, engine, c, false, false, 0 };
	c->first = NULL;
	if (native->lost || engine->lost) {
		if (native->lost != engine->lost || !native->lost)
			note(&k, "lost", engine->lost ? engine->reason : native->reason, native->lost, engine->lost);
		general(&k);
	} else {
		exception(&k);
		general(&k);
		floating(&k);
		memory(&k, native_mem, engine_mem);
	}
	c->verdict = k.differs ? DIFFERS : k.undefined ? UNDEFINED_DIFFERS : SAME;
	for (unsigned n = 0; k.differs && n < known_count(); n++) {
		if (known_is(n, &k, c->first)) {
			c->verdict = KNOWN_DIFFERS;
			c->first = known_name(n);
			return;
		}
	}
}
