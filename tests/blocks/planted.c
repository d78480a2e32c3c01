/* See planted.h. State is one rig's at a time: what the fault remembers since memory was loaded. */
#include <string.h>

#include "planted.h"
#include "world.h"

#define TOP_MASK 0xffffffffff000ull

/* One step under way. */
struct step {
	struct rig *r;
	struct cpu *c;
	bool decoded;
	struct decoded d;
	u64 rip, next, cr3;
	u64 before[16];
	u8 zmm[16][64];
	bool done;            /* the instruction is complete, and went on or branched */
	int vector;           /* an exception was delivered instead: its halting or going stub was entered; -1 */
};

static bool mnemonic_is(const struct step *s, ZydisMnemonic a, ZydisMnemonic b)
{
	return s->decoded && (s->d.zi.mnemonic == a || s->d.zi.mnemonic == b);
}

static u8 *peek(struct cpu *c, u64 lin)
{
	u64 gpa;
	return mmu_peek(c, lin, &gpa) ? mem_ram(c->mem, gpa) : NULL;
}

/* The explicit memory operand, if it is written: linear address and bytes. */
static bool written(const struct step *s, u64 *lin, unsigned *bytes)
{
	if (!s->decoded || s->d.zi.address_width != 64)
		return false;
	for (unsigned k = 0; k < s->d.zi.operand_count_visible; k++) {
		const ZydisDecodedOperand *o = &s->d.zo[k];
		if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type != ZYDIS_MEMOP_TYPE_MEM)
			continue;
		u64 base = o->mem.base == ZYDIS_REGISTER_NONE ? 0 : o->mem.base == ZYDIS_REGISTER_RIP ? s->next :
			   s->before[ZydisRegisterGetId(o->mem.base) & 15];
		u64 index = o->mem.index == ZYDIS_REGISTER_NONE ? 0 : s->before[ZydisRegisterGetId(o->mem.index) & 15];
		*lin = base + index * o->mem.scale + (u64)o->mem.disp.value;
		*bytes = o->size / 8u;
		return o->mem.segment != ZYDIS_REGISTER_FS && o->mem.segment != ZYDIS_REGISTER_GS;
	}
	return false;
}

/* ---- the faults: before a step, after it -------------------------------------------------------------- */

static void after_adc(struct step *s)
{
	if (s->done && mnemonic_is(s, ZYDIS_MNEMONIC_ADC, ZYDIS_MNEMONIC_SBB))
		s->c->rflags ^= FL_CF;
}

static void after_high_byte(struct step *s)
{
	for (unsigned k = 0; s->done && s->decoded && k < s->d.zi.operand_count; k++) {
		const ZydisDecodedOperand *o = &s->d.zo[k];
		if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->reg.value >= ZYDIS_REGISTER_AH && o->reg.value <= ZYDIS_REGISTER_BH &&
		    o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
			s->c->regs[o->reg.value - ZYDIS_REGISTER_AH] ^= 0x100;
	}
}

static void after_upper_half(struct step *s)
{
	for (unsigned k = 0; s->done && s->decoded && k < s->d.zi.operand_count_visible; k++) {
		const ZydisDecodedOperand *o = &s->d.zo[k];
		if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_GPR32 &&
		    o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
			unsigned r = (unsigned)ZydisRegisterGetId(o->reg.value);
			s->c->regs[r] = (u32)s->c->regs[r] | (s->before[r] & ~0xffffffffull);
		}
	}
}

static void after_r11(struct step *s)
{
	if (s->done && s->c->rip < s->rip)
		s->c->regs[R_11] ^= 1;
}

static void after_crossing(struct step *s)
{
	u64 lin;
	unsigned n;
	if (!s->done || !written(s, &lin, &n) || (lin & PAGE_MASK) + n <= 4096)
		return;
	u8 *first = peek(s->c, lin), *second = peek(s->c, (lin | PAGE_MASK) + 1);
	if (first && second && second != (first - (lin & PAGE_MASK)) + 4096)
		second[0] ^= 0x10;
}

static void after_dirty(struct step *s)
{
	const u64 lin = data_base(CODE64, WIN_LOW) + 6 * 4096;
	u64 t = s->c->cr3 & TOP_MASK;
	for (unsigned sh = 39; sh > 12; sh -= 9)
		t = ld64(rig_ram(s->r) + t + (lin >> sh & 511) * 8) & TOP_MASK;
	rig_ram(s->r)[t + (lin >> 12 & 511) * 8] &= (u8)~0x40;
}

static void after_error_code(struct step *s)
{
	u8 *frame = s->vector == V_PF ? peek(s->c, s->c->regs[R_SP]) : NULL;
	if (frame)
		frame[0] ^= PF_W;
}

static void after_cr2(struct step *s)
{
	if (s->vector == V_PF)
		s->c->cr2 &= ~7ull;
}

static void after_fault_rsp(struct step *s)
{
	bool stack = s->decoded && (s->d.zi.meta.category == ZYDIS_CATEGORY_PUSH || s->d.zi.meta.category == ZYDIS_CATEGORY_POP ||
				    s->d.zi.meta.category == ZYDIS_CATEGORY_CALL);
	u8 *frame = s->vector == V_PF && stack ? peek(s->c, s->c->regs[R_SP] + 32) : NULL;
	if (frame)
		frame[0] ^= 8;
}

/* The flags of a fault that the halting or skipping handlers throw away: need not be found. */
static void after_frame_flags(struct step *s)
{
	bool fixable = s->vector == V_PF && s->c->idtr.base != rig_world(s->r)->idt[IDT_HALT] &&
		       s->c->idtr.base != rig_world(s->r)->idt[IDT_HALT_STACK];
	bool error = s->vector == V_DF || s->vector == V_TS || s->vector == V_NP || s->vector == V_PF || s->vector == V_GP || s->vector == V_SS || s->vector == V_AC;
	if (s->vector < 0 || s->vector >= 32 || s->vector == V_BP || s->vector == V_OF || s->vector == V_DB || fixable)
		return;
	u8 *frame = peek(s->c, s->c->regs[R_SP] + 16 + 8 * error);
	if (frame)
		frame[0] ^= FL_ZF | FL_PF;
}

static void after_mxcsr(struct step *s)
{
	u8 *x = s->c->fxarea + 24;
	if (s->done)
		st32(x, ld32(x) & ~0x20u);
}

static void after_vex_upper(struct step *s)
{
	const ZydisDecodedOperand *o = &s->d.zo[0];
	if (!s->done || !s->decoded || s->d.zi.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX || o->type != ZYDIS_OPERAND_TYPE_REGISTER ||
	    ZydisRegisterGetClass(o->reg.value) != ZYDIS_REGCLASS_XMM || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
		return;
	unsigned r = (unsigned)ZydisRegisterGetId(o->reg.value) & 15;
	memcpy(s->c->zmm[r] + 16, s->zmm[r] + 16, 16);
}

/* Code that was run once runs as it was then. */
static struct { u64 gpa; u8 bytes[15], len; } seen[256];
static struct { u8 *at[15]; u8 now[15]; unsigned n; } swapped;

static void before_stale(struct step *s)
{
	u64 gpa;
	swapped.n = 0;
	if (!s->decoded || !mmu_peek(s->c, s->rip, &gpa))
		return;
	unsigned k = gpa & 255;
	if (seen[k].gpa != gpa || !seen[k].len) {
		seen[k].gpa = gpa;
		seen[k].len = s->d.zi.length;
		for (unsigned n = 0; n < seen[k].len; n++)
			seen[k].bytes[n] = *peek(s->c, s->rip + n);
		return;
	}
	for (unsigned n = 0; n < seen[k].len; n++) {
		u8 *p = peek(s->c, s->rip + n);
		if (!p)
			break;
		swapped.at[swapped.n] = p;
		swapped.now[swapped.n++] = *p;
		*p = seen[k].bytes[n];
	}
	/* The interpreter must decode anew. */
	mem_code_written(&s->c->mem->code[gpa >> 12], 0, 4096);
}

static void after_stale(struct step *s)
{
	(void)s;
	for (unsigned n = 0; n < swapped.n; n++)
		*swapped.at[n] = swapped.now[n];
}

/* Addresses 2^41 apart are one. */
static void aliases(struct step *s, bool on)
{
	u8 *top = rig_ram(s->r) + (s->cr3 & TOP_MASK);
	for (unsigned k = 4; k < 256; k += 4)
		if (k != window_base(CODE64, WIN_HIGH) >> 39)
			st64(top + 8 * k, on ? ld64(top) : 0);
	mmu_flush_all(s->c);
}
static void before_alias(struct step *s) { aliases(s, true); }
static void after_alias(struct step *s) { aliases(s, false); }

static const struct { const char *name; void (*before)(struct step *s), (*after)(struct step *s); } faults[] = {
	{ "adc: carry of ADC and SBB is wrong", NULL, after_adc },
	{ "high-byte: AH to BH come out wrong", NULL, after_high_byte },
	{ "upper-half: 32-bit results keep bits 63:32", NULL, after_upper_half },
	{ "r11: a branch backwards spoils R11", NULL, after_r11 },
	{ "stale: code that was changed runs as it was", before_stale, after_stale },
	{ "crossing: a store over a page's end goes wrong in the second page", NULL, after_crossing },
	{ "alias: addresses 2^41 apart are one", before_alias, after_alias },
	{ "dirty: a page's dirty bit is lost", NULL, after_dirty },
	{ "error-code: #PF says write for read", NULL, after_error_code },
	{ "cr2: #PF's address is rounded", NULL, after_cr2 },
	{ "fault-rsp: a push or pop that faults has moved RSP", NULL, after_fault_rsp },
	{ "mxcsr: the precision flag is lost", NULL, after_mxcsr },
	{ "vex-upper: VEX.128 leaves bits 255:128", NULL, after_vex_upper },
	{ "frame-flags: a fault pushes other status flags (only with --exact-flags)", NULL, after_frame_flags },
};

unsigned planted_count(void) { return ARRAY_LEN(faults); }
const char *planted_name(unsigned n) { return faults[n - 1].name; }

void planted_loaded(struct rig *r, const struct engine_spec *s)
{
	(void)r;
	if (s->planted)
		memset(seen, 0, sizeof(seen));
}

/* ---- a step --------------------------------------------------------------------------------------------- */

static void look(struct step *s)
{
	u8 bytes[15] = { 0 };
	unsigned n = 0;
	for (const u8 *p; n < 15 && (p = peek(s->c, s->rip + n)); n++)
		bytes[n] = *p;
	s->decoded = n && isa_decode(s->c->code_mode, cpu_isa_quirks(s->c), bytes, n, &s->d.zi, s->d.zo) == ISA_OK;
	s->next = s->rip + (s->decoded ? s->d.zi.length : 0);
	memcpy(s->before, s->c->regs, sizeof(s->before));
	memcpy(s->zmm, s->c->zmm, sizeof(s->zmm));
}

/* Which stub it is at the start of, or -1. */
static int at_stub(const struct step *s)
{
	const struct world *w = rig_world(s->r);
	u64 halt = s->c->rip - sys_lin(w, SYS_STUBS), go = s->c->rip - sys_lin(w, SYS_GO_STUBS);
	u64 off = halt < 4096 ? halt : go;
	if (s->c->rip == sys_lin(w, SYS_HANDLERS) + PF_STACK_AT)
		return V_PF;
	return off < 4096 && off % STUB_STEP == 0 ? (int)(off / STUB_STEP) : -1;
}

enum run_exit planted_step(struct rig *r, const struct engine_spec *spec)
{
	struct cpu *c = rig_cpu(r);
	if (!spec->planted)
		return spec->ops->step(c);
	struct step s = { .r = r, .c = c, .rip = c->rip, .cr3 = c->cr3 };
	bool mine = c->rip - sys_lin(rig_world(r), 0) >= N_SYS * 4096; /* not a handler's */
	if (!mine)
		return spec->ops->step(c);
	look(&s);
	if (faults[spec->planted - 1].before)
		faults[spec->planted - 1].before(&s);
	enum run_exit why = spec->ops->step(c);
	s.vector = at_stub(&s);
	s.done = s.decoded && s.vector < 0;
	faults[spec->planted - 1].after(&s);
	return why;
}
