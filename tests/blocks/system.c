/* What a kernel does to the ground that a program stands on: address spaces, page table entries, interrupts,
 * flags; and what a program does to its own: POPF, IRET, far returns, INT n. */
#include "gen.h"
#include "world.h"

#define SELF_LIN 0xffffff0000000000ull

static void push_reg(struct gen *e, unsigned r) { emit(e, (u8[]){ (u8)(0x40 | r >> 3), (u8)(0x50 | (r & 7)) }, 2); }

/* PUSHF, a bit changed, POPF. */
static void popf(struct gen *e)
{
	static const u32 bits[] = { FL_CF, FL_ZF, FL_DF, FL_AC, FL_ID, FL_NT, FL_IF, FL_TF, FL_OF, FL_SF };
	u8 op[9] = { 0x48, 0x81, (u8)(pct(e, 50) ? 0x34 : 0x0c), 0x24 }; /* xor or or qword [rsp], bit */
	st32(op + 4, bits[below(e, ARRAY_LEN(bits))]);
	emit(e, (u8[]){ 0x9c }, 1);
	emit(e, op, 8);
	emit(e, (u8[]){ 0x9d }, 1);
}

static void iret(struct gen *e)
{
	unsigned r = free_reg(e);
	load(e, r, e->p->cpl ? U_DS : K_DS);
	push_reg(e, r);
	emit(e, (u8[]){ (u8)(0x48 | r >> 3 << 2), 0x8d, (u8)(0x44 | (r & 7) << 3), 0x24, 8 }, 5); /* lea r, [rsp + 8] */
	push_reg(e, r);
	emit(e, (u8[]){ 0x9c }, 1);
	load(e, r, e->p->cpl ? U_CS : K_CS);
	push_reg(e, r);
	load_label(e, r, unit_ahead(e, 3), 0);
	push_reg(e, r);
	emit(e, (u8[]){ 0x48, 0xcf }, 2);
}

static void far_return(struct gen *e)
{
	unsigned r = free_reg(e);
	emit(e, (u8[]){ 0x6a, (u8)(e->p->cpl ? U_CS : K_CS) }, 2);
	load_label(e, r, unit_ahead(e, 3), 0);
	push_reg(e, r);
	emit(e, (u8[]){ 0x48, 0xcb }, 2);
}

static void interrupt(struct gen *e)
{
	if (pct(e, 30))
		emit(e, (u8[]){ 0xcc }, 1);
	else
		emit(e, (u8[]){ 0xcd, (u8)(IRET_VECTORS + below(e, N_IRET_VECTORS)) }, 2);
}

static void odd(struct gen *e)
{
	static const u8 bytes[][3] = { { 2, 0x0f, 0x0b }, { 1, 0x06 }, { 2, 0x0f, 0xff }, { 1, 0xf4 }, { 2, 0x0f, 0x06 } };
	unsigned k = below(e, ARRAY_LEN(bytes));
	emit(e, bytes[k] + 1, bytes[k][0]);
}

static void segment(struct gen *e)
{
	static const u16 sels[] = { 0, 3, U_DS, U_DS, K_DS, U_CS, 0x38 };
	unsigned r = below(e, 8);
	if (kept(e, r) || r == R_SP)
		return;
	load(e, r, sels[below(e, ARRAY_LEN(sels))]);
	emit(e, (u8[]){ 0x8e, (u8)(0xc0 | (pct(e, 50) ? S_DS : S_ES) << 3 | r) }, 2);
}

static void syscall(struct gen *e)
{
	if (!kept(e, R_CX) && !kept(e, R_11) && e->p->cpl)
		emit(e, (u8[]){ 0x0f, 0x05 }, 2);
	e->known[R_CX] = e->known[R_11] = false;
}

static void any_level(struct gen *e)
{
	switch (below(e, 10)) {
	case 0: case 1: popf(e); break;
	case 2: case 3: iret(e); break;
	case 4: far_return(e); break;
	case 5: case 6: interrupt(e); break;
	case 7: segment(e); break;
	case 8: syscall(e); break;
	default: odd(e);
	}
}

/* ---- CPL 0 ------------------------------------------------------------------------------------------------ */

static void change_space(struct gen *e)
{
	unsigned r = free_reg(e), to = below(e, N_SPACES);
	u64 v = e->world->cr3[to];
	if (e->p->options & OPT_PCID)
		v |= (to + 1) | (pct(e, 60) ? 1ull << 63 : 0);
	load(e, r, v);
	emit(e, (u8[]){ (u8)(0x40 | r >> 3), 0x0f, 0x22, (u8)(0xd8 | (r & 7)) }, 4);
}

static void invlpg(struct gen *e, u64 lin)
{
	unsigned r = free_reg(e);
	load(e, r, lin);
	emit(e, (u8[]){ (u8)(0x40 | r >> 3), 0x0f, 0x01, (u8)(0x78 | (r & 7)), (r & 7) == 4 ? 0x24 : 0, 0 }, (r & 7) == 4 ? 6 : 5);
}

/* A page, of data or of the code that runs, leads elsewhere from here on. */
static void remap(struct gen *e)
{
	unsigned r = R_AX, s = R_DX, fix;
	bool code = pct(e, 35);
	enum window w = code ? e->p->run[0].window : pct(e, 60) ? WIN_KERN : (enum window)below(e, 2);
	unsigned page = code ? e->p->at >> 12 : 1 + below(e, N_DATA_PHYS);
	u64 lin = (code ? code_base(CODE64, w) : data_base(CODE64, w)) + page * 4096ull;
	char letter = code ? code_letters[w][page] : pct(e, 60) ? DATA_LETTERS[page] : "wrA"[below(e, 3)];
	if (kept(e, r) || kept(e, s))
		return;
	u64 to = code ? code_phys(below(e, N_SPACES), page) : data_phys(0, WIN_LOW, below(e, N_DATA_PHYS));
	load(e, r, SELF_LIN + (lin >> 9 & 0x7ffffffff8));
	load(e, s, to | letter_bits(letter, w == WIN_KERN, true, &fix) | (pct(e, 50) ? 0x60 : 0));
	emit(e, (u8[]){ 0x48, 0x89, 0x10 }, 3); /* mov [rax], rdx */
	invlpg(e, lin + below(e, 4096));
}

/* MOV r, CRn; a bit changed; MOV CRn, r. */
static void control(struct gen *e)
{
	unsigned r = free_reg(e), cr = pct(e, 50) ? 4 : 0;
	static const u8 cr4_bits[] = { 21, 20, 7, 2, 11, 16 };
	u8 bit = cr == 0 ? 16 : cr4_bits[below(e, ARRAY_LEN(cr4_bits))];
	emit(e, (u8[]){ (u8)(0x40 | r >> 3), 0x0f, 0x20, (u8)(0xc0 | cr << 3 | (r & 7)) }, 4);
	emit(e, (u8[]){ (u8)(0x48 | r >> 3), 0x0f, 0xba, (u8)(0xf8 | (r & 7)), bit }, 5); /* btc r, bit */
	emit(e, (u8[]){ (u8)(0x40 | r >> 3), 0x0f, 0x22, (u8)(0xc0 | cr << 3 | (r & 7)) }, 4);
	e->known[r] = false;
}

static void msr(struct gen *e)
{
	static const u32 which[] = { 0xc0000100, 0xc0000101, 0xc0000102 };
	if (kept(e, R_CX) || kept(e, R_AX) || kept(e, R_DX))
		return;
	load(e, R_CX, which[below(e, 3)]);
	load(e, R_AX, value_int(e->g, 32));
	load(e, R_DX, pct(e, 80) ? below(e, 0x8000) : ~0u);
	emit(e, (u8[]){ 0x0f, 0x30 }, 2);
}

static void simple(struct gen *e)
{
	static const u8 bytes[][4] = { { 1, 0xfa }, { 1, 0xfb }, { 1, 0xfb }, { 3, 0x0f, 0x01, 0xcb }, { 3, 0x0f, 0x01, 0xca },
				       { 3, 0x0f, 0x01, 0xf8 }, { 2, 0x0f, 0x09 }, { 2, 0x0f, 0x06 } };
	unsigned k = below(e, ARRAY_LEN(bytes));
	emit(e, bytes[k] + 1, bytes[k][0]);
}

void system_unit(struct gen *e)
{
	unit_begin(e);
	if (e->p->cpl || pct(e, 35)) {
		any_level(e);
		return;
	}
	switch (below(e, 8)) {
	case 0: case 1: change_space(e); break;
	case 2: case 3: remap(e); break;
	case 4: invlpg(e, pick_target(e, 8)); break;
	case 5: control(e); break;
	case 6: msr(e); break;
	default: simple(e);
	}
}
