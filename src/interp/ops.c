/* The instruction table: isa/ops.def with the interpreter's handlers, and the way into it. */
#include "interp/op_api.h"

#define OPS(M, f, k, fl, h) op_fn h##_8, h##_16, h##_32, h##_64;
#define OPW(M, f, k, fl, h) op_fn h##_16, h##_32, h##_64;
#define OP1(M, f, k, fl, h) op_fn h;
#define STR(M, k, h, size) op_fn op_##h##_##size, op_rep_##h##_##size;
#define NAT(M, k)
#include "isa/ops.def"
#undef OPS
#undef OPW
#undef OP1
#undef STR
#undef NAT

#define ROW(M, f, k, fl, ...) { ZYDIS_MNEMONIC_##M, FORM_##f, OC_##k, fl, #M " " #f, __VA_ARGS__ },
#define OPS(M, f, k, fl, h) ROW(M, f, k, fl, { h##_8, h##_16, h##_32, h##_64 }, { NULL })
#define OPW(M, f, k, fl, h) ROW(M, f, k, fl, { NULL, h##_16, h##_32, h##_64 }, { NULL })
#define OP1(M, f, k, fl, h) ROW(M, f, k, fl, { h, h, h, h }, { NULL })
#define STR(M, k, h, size) ROW(M, A, k, OF_STRING, { op_##h##_##size, op_##h##_##size, op_##h##_##size, op_##h##_##size }, \
	{ op_rep_##h##_##size, op_rep_##h##_##size, op_rep_##h##_##size, op_rep_##h##_##size })
#define NAT(M, k) ROW(M, A, k, OF_NATIVE, { NULL }, { NULL })
const struct op isa_ops[] = {
#include "isa/ops.def"
};
const unsigned isa_n_ops = ARRAY_LEN(isa_ops);

/* Rows of one mnemonic, chained: first[] and next[] hold index + 1. */
void op_index_build(struct op_index *x)
{
	__builtin_memset(x, 0, sizeof(*x));
	for (unsigned n = isa_n_ops; n-- > 0;) {
		unsigned m = isa_ops[n].mnemonic;
		x->next[n] = x->first[m];
		x->first[m] = (u16)(n + 1);
	}
}

const struct op *op_find(const struct op_index *x, unsigned mnemonic, enum op_form form, bool string)
{
	for (unsigned n = x->first[mnemonic]; n; n = x->next[n - 1]) {
		const struct op *o = &isa_ops[n - 1];
		if ((o->form == FORM_A || o->form == form) && string == !!(o->flags & OF_STRING))
			return o;
	}
	return NULL;
}
