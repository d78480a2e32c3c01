/* Encodings that are no instruction: both sides must raise #UD (or what comes before it). Opcode,
 * map, prefixes and fields are drawn freely; kept is what the decoder refuses. What it knows but
 * no row of ops.def has (VMCALL, UD2) is not run. After the drawn bytes come INT3s, so that a
 * processor that does take them for an instruction stops behind it. */
#include <string.h>

#include "encode.h"

static void draw_encoding(struct enc *e, struct fields *f, struct rng *g, enum code_mode mode)
{
	static const u8 kinds[] = { ENC_LEGACY, ENC_LEGACY, ENC_VEX, ENC_EVEX, ENC_EVEX };
	static const u8 prefixes[] = { 0, PFX_66, PFX_F3, PFX_F2, PFX_LOCK, PFX_LOCK | PFX_66 };
	unsigned regs = mode == CODE64 ? 32 : 8;
	memset(e, 0, sizeof(*e));
	memset(f, 0, sizeof(*f));
	memset(f->tail, 0xcc, sizeof(f->tail));
	e->kind = kinds[rnd_below(g, ARRAY_LEN(kinds))];
	e->map = (u8)(e->kind == ENC_LEGACY ? rnd_below(g, 4) : 1 + rnd_below(g, e->kind == ENC_VEX ? 3 : 6));
	e->opcode = (u8)rnd(g);
	e->pfx = e->kind == ENC_LEGACY ? prefixes[rnd_below(g, ARRAY_LEN(prefixes))] : rnd(g) & 3;
	e->modrm = true;
	e->mem = rnd(g) & 1;
	e->b = rnd_pct(g, 25);
	f->w = rnd(g) & 1;
	f->l = (u8)rnd_below(g, e->kind == ENC_EVEX ? 4 : 2);
	f->z = rnd_pct(g, 20);
	f->aaa = (u8)(rnd(g) & 1 ? rnd_below(g, 8) : 0);
	f->reg = (u8)rnd_below(g, e->kind == ENC_EVEX ? regs : MIN(regs, 16u));
	f->rm = (u8)rnd_below(g, MIN(regs, 16u));
	f->vvvv = (u8)(rnd(g) & 1 ? 0 : rnd_below(g, MIN(regs, 16u)));
	f->mod = e->mem ? 0 : 3;
	f->rm = e->mem && (f->rm & 6) == 4 ? 3 : f->rm; /* neither SIB nor displacement alone */
}

bool invalid_make(struct test *t, struct decoded *d, struct rng *g, const struct finder *find)
{
	for (unsigned tries = 0; tries < 100; tries++) {
		struct enc e;
		struct fields f;
		draw_encoding(&e, &f, g, t->mode);
		unsigned n = enc_bytes(&e, &f, t->mode, t->bytes);
		if (e.kind == ENC_LEGACY && e.map == 1 && e.opcode == 1 && !e.mem)
			continue; /* VMCALL and its neighbours: a hypervisor under the host may step in */
		if (isa_decode(t->mode, find->quirks, t->bytes, 15, &d->zi, d->zo) != ISA_INVALID)
			continue;
		t->len = (u8)(n + 4);
		if (t->len > 15)
			continue;
		decoded_none(d);
		bool ok = state_make(t, d, g, find);
		/* Within a page: how many bytes a processor fetches before #UD is its own affair. */
		t->r.rip = CODE_BASE + 0x100 + rnd_below(g, 0xd00);
		return ok;
	}
	return false;
}

void decoded_none(struct decoded *d)
{
	memset(d, 0, sizeof(*d));
	d->row = -1;
}
