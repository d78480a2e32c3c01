/* The forms that a program is made of: those of tests/diff, by class. Branches are flow.c's, what would
 * take the world down (MOV to control registers, LIDT) or is different each time (RDTSC) is nobody's. */
#include <stdlib.h>

#include "gen.h"

struct pool {
	struct forms forms;
	struct rows { unsigned n, cap; u16 *row; } rows[N_CLASSES];
};

static bool banned(const struct op *o)
{
	switch (o->mnemonic) {
	case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_RDPMC: case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED: case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_HLT: case ZYDIS_MNEMONIC_MWAIT:
	case ZYDIS_MNEMONIC_MWAITX: case ZYDIS_MNEMONIC_MONITOR: case ZYDIS_MNEMONIC_MONITORX: case ZYDIS_MNEMONIC_LGDT:
	case ZYDIS_MNEMONIC_LIDT: case ZYDIS_MNEMONIC_LLDT: case ZYDIS_MNEMONIC_LTR: case ZYDIS_MNEMONIC_LMSW:
	case ZYDIS_MNEMONIC_CLTS: case ZYDIS_MNEMONIC_XSETBV: case ZYDIS_MNEMONIC_WRMSR: case ZYDIS_MNEMONIC_RDMSR:
	case ZYDIS_MNEMONIC_WRPKRU: case ZYDIS_MNEMONIC_INVPCID: case ZYDIS_MNEMONIC_SYSCALL: case ZYDIS_MNEMONIC_SYSRET:
	case ZYDIS_MNEMONIC_SYSENTER: case ZYDIS_MNEMONIC_SYSEXIT: case ZYDIS_MNEMONIC_INT: case ZYDIS_MNEMONIC_INT1:
	case ZYDIS_MNEMONIC_INT3: case ZYDIS_MNEMONIC_INTO: case ZYDIS_MNEMONIC_IRET: case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ: case ZYDIS_MNEMONIC_XRSTORS: case ZYDIS_MNEMONIC_XSAVES: case ZYDIS_MNEMONIC_XSAVES64:
	case ZYDIS_MNEMONIC_XRSTORS64:
		return true;
	default:
		return o->form == FORM_CR || o->form == FORM_DR;
	}
}

static int class_of(const struct op *o, const ZydisDecodedInstruction *zi)
{
	if (banned(o) || zi->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
		return -1;
	switch (zi->meta.category) {
	case ZYDIS_CATEGORY_UNCOND_BR: case ZYDIS_CATEGORY_COND_BR: case ZYDIS_CATEGORY_CALL: case ZYDIS_CATEGORY_RET:
		return -1;
	case ZYDIS_CATEGORY_PUSH: case ZYDIS_CATEGORY_POP: return CL_STACK;
	case ZYDIS_CATEGORY_STRINGOP: return CL_STRING;
	case ZYDIS_CATEGORY_X87_ALU: return CL_X87;
	case ZYDIS_CATEGORY_MMX: return CL_MMX;
	default: break;
	}
	if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX)
		return CL_EVEX;
	bool general = zi->meta.category == ZYDIS_CATEGORY_BMI1 || zi->meta.category == ZYDIS_CATEGORY_BMI2;
	if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX && !general)
		return CL_AVX;
	switch (zi->meta.isa_ext) {
	case ZYDIS_ISA_EXT_X87: return CL_X87;
	case ZYDIS_ISA_EXT_MMX: return CL_MMX;
	case ZYDIS_ISA_EXT_SSE: case ZYDIS_ISA_EXT_SSE2: case ZYDIS_ISA_EXT_SSE3: case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_SSE4: case ZYDIS_ISA_EXT_SSE4A: case ZYDIS_ISA_EXT_AES: case ZYDIS_ISA_EXT_PCLMULQDQ:
	case ZYDIS_ISA_EXT_SHA: case ZYDIS_ISA_EXT_GFNI:
		return CL_SSE;
	default: break;
	}
	if (o->op_class == OC_CALL && o->mnemonic != ZYDIS_MNEMONIC_XCHG)
		return CL_SYSTEM;
	switch (o->mnemonic) {
	case ZYDIS_MNEMONIC_MUL: case ZYDIS_MNEMONIC_IMUL: case ZYDIS_MNEMONIC_DIV: case ZYDIS_MNEMONIC_IDIV: return CL_MULDIV;
	case ZYDIS_MNEMONIC_ENTER: case ZYDIS_MNEMONIC_LEAVE: return CL_STACK;
	default: break;
	}
	switch (zi->meta.category) {
	case ZYDIS_CATEGORY_DATAXFER: case ZYDIS_CATEGORY_CMOV: case ZYDIS_CATEGORY_CONVERT: case ZYDIS_CATEGORY_SETCC:
	case ZYDIS_CATEGORY_MISC: case ZYDIS_CATEGORY_SEMAPHORE:
		return CL_MOVE;
	case ZYDIS_CATEGORY_SHIFT: case ZYDIS_CATEGORY_ROTATE: case ZYDIS_CATEGORY_BITBYTE: case ZYDIS_CATEGORY_BMI1:
	case ZYDIS_CATEGORY_BMI2: case ZYDIS_CATEGORY_LZCNT: case ZYDIS_CATEGORY_ADOX_ADCX:
		return CL_BIT;
	default: return CL_ALU;
	}
}

static void rows_add(struct rows *r, unsigned row, unsigned times)
{
	while (times--) {
		if (r->n == r->cap) {
			r->cap = r->cap ? 2 * r->cap : 64;
			r->row = realloc(r->row, r->cap * sizeof(*r->row));
			if (!r->row)
				bug("out of memory");
		}
		r->row[r->n++] = (u16)row;
	}
}

/* What compilers write most. */
static unsigned times(const struct op *o)
{
	switch (o->mnemonic) {
	case ZYDIS_MNEMONIC_MOV: return 16;
	case ZYDIS_MNEMONIC_ADD: case ZYDIS_MNEMONIC_SUB: case ZYDIS_MNEMONIC_CMP: case ZYDIS_MNEMONIC_TEST:
	case ZYDIS_MNEMONIC_AND: case ZYDIS_MNEMONIC_OR: case ZYDIS_MNEMONIC_XOR: case ZYDIS_MNEMONIC_LEA:
	case ZYDIS_MNEMONIC_MOVZX: case ZYDIS_MNEMONIC_PUSH: case ZYDIS_MNEMONIC_POP:
		return 5;
	case ZYDIS_MNEMONIC_ADC: case ZYDIS_MNEMONIC_SBB: case ZYDIS_MNEMONIC_SHL: case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_MOVSXD: case ZYDIS_MNEMONIC_MOVSX: case ZYDIS_MNEMONIC_INC: case ZYDIS_MNEMONIC_DEC:
		return 2;
	default: return 1;
	}
}

struct pool *pool_new(const struct finder *f, enum code_mode mode)
{
	struct pool *p = calloc(1, sizeof(*p));
	struct rng g = { 1 };
	static struct test t;
	if (!p)
		bug("out of memory");
	forms_build(&p->forms, f, mode);
	for (unsigned row = 0; row < isa_n_ops; row++) {
		struct decoded d;
		test_init(&t, mode);
		if (p->forms.first[row] == p->forms.first[row + 1] || !enc_random(&p->forms.enc[p->forms.first[row]], f, &g, &t, &d))
			continue;
		int c = class_of(&isa_ops[row], &d.zi);
		if (c >= 0)
			rows_add(&p->rows[c], row, times(&isa_ops[row]));
	}
	return p;
}

void pool_free(struct pool *p)
{
	if (!p)
		return;
	for (unsigned k = 0; k < N_CLASSES; k++)
		free(p->rows[k].row);
	forms_free(&p->forms);
	free(p);
}

bool pool_has(const struct pool *p, enum class c) { return p->rows[c].n > 0; }

const struct enc *pool_draw(const struct pool *p, enum class c, struct rng *g)
{
	unsigned row = p->rows[c].row[rnd_below(g, p->rows[c].n)], from = p->forms.first[row], to = p->forms.first[row + 1];
	return &p->forms.enc[from + rnd_below(g, to - from)];
}
