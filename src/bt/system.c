/* System instructions that kernels use so often that leaving translated code for them would cost
 * more than all else: what they do is done here, at CPL 0 (or where CPL does not matter; V86 mode
 * has CPL 3). SDM vol. 2. */
#include "bt/tr.h"

static bool at_home_in_host(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && !is_homeless((unsigned)ZydisRegisterGetId(o->reg.value));
}
static bool names_segment(const ZydisDecodedOperand *o)
{
	return o->type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

/* What a hypervisor may ask to see of what is translated else; with that, gate.c looks itself. */
static const u8 intercepts[] = { ICPT_PUSHF, ICPT_RDTSC, ICPT_RDTSCP, ICPT_RDRAND, ICPT_RDSEED, ICPT_PAUSE, ICPT_CR_READ };

/* The guest's TSC is more than an offset away from the host's. A scale has 32 or 48 bits of fraction: a time far from 0
 * tells every one from 1 whose difference from 1, times that, is neither lost below nor above. */
static bool tsc_scaled(const struct cpu *c)
{
	const u64 far = 1ull << 48;
	return nested_tsc(c, far) - nested_tsc(c, 0) != far;
}

/* What translations depend on beside the code and its page, and what seldom changes. */
u32 system_made_for(const struct cpu *c)
{
	u32 m = (c->cr4 & CR4_TSD ? FOR_TSD : 0) | (c->cr4 & CR4_LA57 ? FOR_LA57 : 0);
	for (unsigned f = FC_SSE; f <= FC_AVX512; f++)
		m |= (u32)(c->nofpu[f] == V_UD) * FOR_NO_UNIT << f;
	if (likely(!c->nested.mode))
		return m;
	for (unsigned k = 0; k < ARRAY_LEN(intercepts); k++)
		m |= (u32)(c->icpt >> intercepts[k] & 1) * FOR_INTERCEPT << k;
	return m | FOR_GUEST | (c->if_events & EV_INTR ? FOR_INTR : 0) | (c->if_events & EV_VINTR ? FOR_VINTR : 0) |
	       (tsc_scaled(c) ? FOR_TSC_SCALED : 0);
}

bool system_intercepted(const struct translation *t, const struct tins *i)
{
	const struct cpu *c = t->b->cpu;
	if (likely(!c->nested.mode))
		return false;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_PUSHF: case ZYDIS_MNEMONIC_PUSHFD: case ZYDIS_MNEMONIC_PUSHFQ: return nested_wants(c, ICPT_PUSHF);
	case ZYDIS_MNEMONIC_RDTSC: return nested_wants(c, ICPT_RDTSC) || tsc_scaled(c);
	case ZYDIS_MNEMONIC_RDTSCP: return nested_wants(c, ICPT_RDTSCP) || nested_wants(c, ICPT_RDTSC) || tsc_scaled(c);
	case ZYDIS_MNEMONIC_RDRAND: return nested_wants(c, ICPT_RDRAND);
	case ZYDIS_MNEMONIC_RDSEED: return nested_wants(c, ICPT_RDSEED);
	case ZYDIS_MNEMONIC_PAUSE: return nested_wants(c, ICPT_PAUSE);
	case ZYDIS_MNEMONIC_MOV:
		return nested_wants(c, ICPT_CR_READ) && i->zo[1].type == ZYDIS_OPERAND_TYPE_REGISTER && i->zo[1].reg.value == ZYDIS_REGISTER_CR2;
	default: return false;
	}
}

bool system_possible(const struct translation *t, const struct tins *i)
{
	bool cpl0 = t->page->cpl == 0;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_SWAPGS:
		return cpl0 && t->page->mode == CODE64;
	case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_STI: case ZYDIS_MNEMONIC_STAC: case ZYDIS_MNEMONIC_CLAC:
		return cpl0;
	case ZYDIS_MNEMONIC_CLD: case ZYDIS_MNEMONIC_STD:
		return true;
	case ZYDIS_MNEMONIC_PUSHF: case ZYDIS_MNEMONIC_PUSHFD:
		return t->page->mode != CODE64 && (cpl0 || t->page->mode == CODE32);
	case ZYDIS_MNEMONIC_PUSHFQ:
		return i->zi.operand_width == 64;
	case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP:
		return !(t->b->cpu->cr4 & CR4_TSD) || cpl0;
	case ZYDIS_MNEMONIC_MOV:
		if (!at_home_in_host(&i->zo[0]))
			return false;
		return names_segment(&i->zo[1]) || (cpl0 && t->page->mode == CODE64 && i->zo[1].type == ZYDIS_OPERAND_TYPE_REGISTER && i->zo[1].reg.value == ZYDIS_REGISTER_CR2);
	default:
		return false;
	}
}

/* Of a flat stack. */
static bool is_popf(const struct translation *t, const struct tins *i)
{
	const struct seg_class *c = &t->page->klass;
	if (t->page->mode == CODE64)
		return i->zi.mnemonic == ZYDIS_MNEMONIC_POPFQ && i->zi.operand_width == 64;
	return i->zi.mnemonic == ZYDIS_MNEMONIC_POPFD && !c->sp16 && (c->flat >> S_SS & 1);
}

enum gate system_gate(const struct translation *t, const struct tins *i)
{
	bool cpl0 = t->page->cpl == 0;
	if (string_gated(t, i))
		return GATE_STRING;
	if (is_popf(t, i))
		return GATE_POPF;
	if (t->page->mode != CODE64)
		return GATE_NONE;
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_SYSCALL: return cpl0 ? GATE_NONE : GATE_SYSCALL;
	case ZYDIS_MNEMONIC_SYSRET: return cpl0 && (i->zi.attributes & ZYDIS_ATTRIB_HAS_REX) && i->zi.raw.rex.W ? GATE_SYSRET : GATE_NONE;
	case ZYDIS_MNEMONIC_IRETQ: return cpl0 ? GATE_IRET : GATE_NONE;
	case ZYDIS_MNEMONIC_MOV: return cpl0 && i->zo[0].type == ZYDIS_OPERAND_TYPE_REGISTER && i->zo[0].reg.value == ZYDIS_REGISTER_CR3 ? GATE_CR3 : GATE_NONE;
	case ZYDIS_MNEMONIC_RDFSBASE: return GATE_RDFSBASE;
	case ZYDIS_MNEMONIC_RDGSBASE: return GATE_RDGSBASE;
	case ZYDIS_MNEMONIC_WRFSBASE: return GATE_WRFSBASE;
	case ZYDIS_MNEMONIC_WRGSBASE: return GATE_WRGSBASE;
	case ZYDIS_MNEMONIC_RDPKRU: return GATE_RDPKRU;
	case ZYDIS_MNEMONIC_WRPKRU: return GATE_WRPKRU;
	default: return GATE_NONE;
	}
}

u8 system_gate_arg(const struct tins *i, enum gate g)
{
	return g == GATE_STRING ? string_gate_arg(i) : g == GATE_CR3 ? (u8)ZydisRegisterGetId(i->zo[1].reg.value) :
	       g == GATE_POPF ? (u8)(i->zi.operand_width / 8u) : 0;
}

void gate_emit(struct translation *t, struct emit *e, unsigned k, bool saved)
{
	e_ctx_imm(e, M_CTX(exit), exit_id(t->index, k, X_INSN));
	e_jmp_to(e, saved ? t->b->gate_saved : t->b->gate_common);
}

#define AT_CPU(field) M_BASE(T, offsetof(struct cpu, field))

static void emit_cli(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	e_ctx_load(e, T, M_CTX(cpu));
	mark_commit(t, k);
	e_mem(e, 0x81, 4, AT_CPU(rflags));       /* and dword */
	e32(e, ~(u32)FL_IF);
	e_mem(e, 0x81, 4, AT_CPU(event_mask));
	e32(e, ~class_if_events(&t->page->klass));
}

static void emit_direction(struct emit *e, bool set)
{
	e_ctx_load(e, T, M_CTX(cpu));
	e_mem(e, 0x81, set ? 1 : 4, AT_CPU(rflags)); /* or, and dword */
	e32(e, set ? FL_DF : ~(u32)FL_DF);
}

/* Only where nothing is pending: else the interpreter, which knows the shadow. What comes in the
 * shadow finds the next instruction `held`. */
static void emit_sti(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	e_ctx_load(e, T, M_CTX(cpu));
	e_mem(e, 0x83, 7, AT_CPU(events));       /* cmp dword, 0 */
	e8(e, 0);
	cold_add(t, e_jcc(e, CC_NZ), k);
	mark_commit(t, k);
	e_mem(e, 0x81, 1, AT_CPU(rflags));       /* or dword */
	e32(e, FL_IF);
	e_mem(e, 0x81, 1, AT_CPU(event_mask));
	e32(e, class_if_events(&t->page->klass));
}

/* An exit to the hypervisor tells of the shadow that its instruction stands in, which only the interpreter's STI leaves: in
 * guest mode the next one must be one that does not exit. */
static bool shadow_unseen(const struct translation *t, unsigned next)
{
	return !(t->page->klass.made_for & FOR_GUEST) || t->ins[next].kind == K_NOP || t->ins[next].kind == K_LEA;
}

/* wrgsbase r11 */
static void emit_wrgsbase(struct emit *e)
{
	static const u8 code[] = { 0xf3, 0x49, 0x0f, 0xae, 0xdb };
	ebytes(e, code, sizeof(code));
}

/* AC chooses the space. */
static void emit_ac(struct translation *t, unsigned k, bool set)
{
	struct emit *e = &t->e;
	if (set)
		e_ctx_load(e, T, M_ABS(CTX(gs_ac[1])));
	else
		e_ctx_load(e, T, M_ABS(CTX(gs_ac[0])));
	e_reg(e, E_W | 0x85, T, T);
	cold_add(t, e_jcc(e, CC_Z), k);
	mark_commit(t, k);
	e_ctx_imm(e, M_CTX(ac), set ? FL_AC : 0);
	emit_wrgsbase(e);
}

static void emit_swapgs(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	mark_commit(t, k);
	e_ctx_store(e, RBX, M_CTX(save_v));
	e_ctx_load(e, T, M_CTX(gs_base));
	e_ctx_load(e, RBX, M_CTX(kernel_gs_base));
	e_ctx_store(e, T, M_CTX(kernel_gs_base));
	e_ctx_store(e, RBX, M_CTX(gs_base));
	e_ctx_load(e, RBX, M_CTX(save_v));
}

static void emit_rdtsc(struct emit *e, bool aux)
{
	e8(e, 0x0f);
	if (aux) { /* rdtscp: in order with what came before */
		e8(e, 0x01); e8(e, 0xf9);
		e_ctx_load(e, RCX, M_CTX(tsc_aux));
	} else {
		e8(e, 0x31);
	}
	e_reg(e, E_W | 0xc1, 4, RDX); e8(e, 32);        /* shl rdx, 32 */
	e_reg(e, E_W | 0x09, RDX, RAX);                 /* or rax, rdx */
	e_mem(e, E_W | E_GS | 0x03, RAX, M_CTX(tsc_offset));
	e_mov(e, RDX, RAX);
	e_reg(e, E_W | 0xc1, 5, RDX); e8(e, 32);        /* shr rdx, 32 */
	e_reg(e, 0x89, RAX, RAX);                       /* mov eax, eax */
}

/* Status flags are in ctx.flags. */
static void emit_pushf(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	e_mem(e, E_GS | 0x0fb6, T, M_CTX(flags));       /* movzx r11d, byte: OF */
	e_reg(e, 0xc1, 4, T); e8(e, 11);                /* shl r11d, 11 */
	e_ctx_store(e, T, M_CTX(target));
	e_mem(e, E_GS | 0x0fb6, T, M_ABS(CTX(flags) + 1));
	e_reg(e, 0x81, 4, T); e32(e, FL_STATUS & 0xff); /* and: the others */
	e_mem(e, E_W | E_GS | 0x09, T, M_CTX(target));  /* or */
	e_ctx_load(e, T, M_CTX(cpu));
	e_load(e, T, AT_CPU(rflags));
	e_reg(e, E_W | 0x81, 4, T);
	e32(e, ~(u32)(FL_STATUS | FL_VM | FL_RF | FL_AC));
	e_mem(e, E_W | E_GS | 0x09, T, M_CTX(target));
	e_mem(e, E_GS | 0x8b, T, M_CTX(ac));
	e_mem(e, E_W | E_GS | 0x09, T, M_CTX(target));
	if (t->page->mode == CODE64)
		push_target(t, k);
	else
		legacy_push_target(t, k);
}

/* From a segment register, or CR2. */
static void emit_mov(struct emit *e, const struct tins *i)
{
	unsigned to = host_of((unsigned)ZydisRegisterGetId(i->zo[0].reg.value));
	e_ctx_load(e, T, M_CTX(cpu));
	if (!names_segment(&i->zo[1])) {
		e_load(e, to, AT_CPU(cr2));
		return;
	}
	bool narrow = i->zi.operand_width == 16;
	if (narrow)
		e8(e, 0x66);
	e_mem(e, narrow ? 0x8b : 0x0fb7, to,
	      M_BASE(T, offsetof(struct cpu, seg) + (unsigned)ZydisRegisterGetId(i->zo[1].reg.value) * sizeof(struct segment) + offsetof(struct segment, sel)));
}

bool system_emit(struct translation *t, unsigned k)
{
	struct emit *e = &t->e;
	const struct tins *i = &t->ins[k];
	switch (i->zi.mnemonic) {
	case ZYDIS_MNEMONIC_PUSHFQ: case ZYDIS_MNEMONIC_PUSHFD: case ZYDIS_MNEMONIC_PUSHF:
		emit_pushf(t, k);
		return true;
	case ZYDIS_MNEMONIC_CLD: case ZYDIS_MNEMONIC_STD:
		emit_direction(e, i->zi.mnemonic == ZYDIS_MNEMONIC_STD);
		return true;
	case ZYDIS_MNEMONIC_SWAPGS:
		emit_swapgs(t, k);
		return true;
	case ZYDIS_MNEMONIC_MOV:
		emit_mov(e, i);
		return true;
	case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP:
		t->map[k].commit = 0;
		emit_rdtsc(e, i->zi.mnemonic == ZYDIS_MNEMONIC_RDTSCP);
		return true;
	case ZYDIS_MNEMONIC_STI:
		if (k + 1 == t->n || !shadow_unseen(t, k + 1))
			return false;
		break;
	default:
		break;
	}
	if (i->zi.mnemonic == ZYDIS_MNEMONIC_CLI)
		emit_cli(t, k);
	else if (i->zi.mnemonic == ZYDIS_MNEMONIC_STI)
		emit_sti(t, k);
	else
		emit_ac(t, k, i->zi.mnemonic == ZYDIS_MNEMONIC_STAC);
	return true;
}
