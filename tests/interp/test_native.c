/* Instructions run by the host's own (interp/native*.c), held against the same bytes run
 * directly: random encodings of every family in ops_native.def, random operands, memory operands
 * that fault, all status flags, x87 and MXCSR; then what a random walk does not meet.
 * NATIVE_STATES= and NATIVE_SEED= make the walk longer and another; NATIVE_SHOW=1 prints which
 * instructions it did not meet. */
#include "test.h"

#include <signal.h>
#include <sys/mman.h>

#include "host_run.h"
#include "interp/interp.h"
#include "interp/native.h"
#include "cpu/engine_api.h"

/* The guest sees two pages here, and then none; so does the host. */
#define WINDOW 0x10000000ull
#define WINDOW_SIZE 0x2000u
enum { PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, PT = 0x4000, DATA = 0x10000 };
#define BLOCK 0x7000ull /* RIP of what runs; nothing is fetched from there */

static struct mem mem;
static struct cpu_model model;
static struct cpu_hooks hooks;
static struct cpu *c;
static bool native_mnemonic[ZYDIS_MNEMONIC_MAX_VALUE + 1];
static int ferr_raised;

static u64 seed = 0x1234567;
static u64 rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * 0x2545f4914f6cdd1dull >> 8 | seed << 56;
}
static unsigned below(unsigned n) { return (unsigned)(rnd() >> 16) % n; }

static void on_ferr(void *arg, bool level) { ferr_raised += level ? 1 : -1; }

/* cmocka puts its own signal handlers in place before each test and fixture. */
static const int signals[] = { SIGSEGV, SIGFPE, SIGILL, SIGBUS };
static struct sigaction ours[ARRAY_LEN(signals)];
static void signals_keep(void)
{
	for (unsigned k = 0; k < ARRAY_LEN(signals); k++)
		sigaction(signals[k], NULL, &ours[k]);
}
static void signals_take(void)
{
	for (unsigned k = 0; k < ARRAY_LEN(signals); k++)
		sigaction(signals[k], &ours[k], NULL);
}

static int up(void **state)
{
	struct error e;
	host_run_init();
	void *p = mmap((void *)WINDOW, WINDOW_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	hooks.ferr = on_ferr;
	if (p != (void *)WINDOW || !mem_init(&mem, 2 << 20, &e) || !cpu_model_parse(&model, "max", NULL, &e))
		return -1;
	c = cpu_new(0, &mem, NULL, &model, &hooks);
	if (!c || !interp_engine.vcpu_init(c, &e))
		return -1;
#define NAT(m, k) native_mnemonic[ZYDIS_MNEMONIC_##m] = true;
#include "isa/ops_native.def"
#undef NAT
	/* Not offered to guests, but then LDMXCSR is as this host has it. */
	u32 a = 0x80000001, b, ecx = 0, d;
	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(ecx), "=d"(d));
	model.has[FEAT_MISALIGNSSE] = ecx >> 7 & 1;
	signals_keep();
	return 0;
}

static int down(void **state)
{
	interp_engine.vcpu_destroy(c);
	cpu_free(c);
	mem_destroy(&mem);
	return 0;
}

static void pte(u64 at, u64 v) { st64(mem.ram + at, v); }

/* 64-bit mode, CPL 3, paging on. */
static void mode64(void)
{
	signals_take();
	cpu_reset(c, false);
	pte(PML4, PDPT | 7);
	pte(PDPT, PD | 7);
	pte(PD + (WINDOW >> 21) * 8, PT | 7);
	pte(PT, DATA | 7);
	pte(PT + 8, (DATA + 0x5000) | 7);
	pte(PT + 16, 0);
	c->cr0 |= CR0_PE | CR0_PG | CR0_NE | CR0_MP;
	c->cr0 &= ~(u64)(CR0_EM | CR0_TS);
	c->cr4 |= CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	c->efer |= EFER_LME | EFER_LMA;
	c->xcr0 = model.xcr0_mask;
	c->cr3 = PML4;
	for (unsigned s = S_ES; s <= S_GS; s++)
		c->seg[s] = (struct segment){ .sel = 0x2b, .attr = 0xf3 | SEG_G | SEG_DB, .limit = 0xffffffff };
	c->seg[S_CS].attr = 0xfb | SEG_G | SEG_L;
	c->cpl = 3;
	cpu_update_mode(c);
	cpu_update_fpu(c);
	mmu_flush_all(c);
}

/* Protected mode, no paging: linear addresses are RAM's. */
static void mode_flat(enum code_mode mode)
{
	signals_take();
	cpu_reset(c, false);
	c->cr0 |= CR0_PE | CR0_NE;
	c->cr0 &= ~(u64)(CR0_EM | CR0_TS);
	c->cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	c->xcr0 = model.xcr0_mask;
	for (unsigned s = S_ES; s <= S_GS; s++)
		c->seg[s] = (struct segment){ .sel = 0x10, .attr = 0x93 | SEG_G | SEG_DB, .limit = 0xffffffff };
	c->seg[S_CS].attr = 0x9b | SEG_G | (mode == CODE32 ? SEG_DB : 0);
	cpu_update_mode(c);
	cpu_update_fpu(c);
}

static void stop(struct cpu *cpu, const struct insn *i) { }

#ifndef __clang__
#pragma GCC diagnostic ignored "-Wclobbered"
#endif
/* Decodes and runs one instruction; the vector raised, -1 for none, -2 if there is no such instruction. */
static int run(const u8 *bytes, unsigned n)
{
	static struct insn i[2];
	volatile int vector = -1;
	if (native_full(c))
		native_reset(c);
	c->regs[R_BLOCK] = BLOCK;
	if (interp_decode(c, c->code_mode, bytes, n, i) != ISA_OK)
		return -2;
	i[1] = (struct insn){ .fn = stop };
	c->cur = i;
	fpu_load(c);
	if (!_setjmp(c->jb))
		i->fn(c, i);
	else
		vector = c->exc.vector;
	fpu_save(c);
	return vector;
}
#define RUN(...) run((const u8[]){ __VA_ARGS__ }, sizeof((const u8[]){ __VA_ARGS__ }))

/* ---- random states ------------------------------------------------------------------------ */

static u32 random_float(void)
{
	static const u32 corner[] = { 0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00001,
				      0x7f800001, 1, 0x807fffff, 0x00800000, 0x4f000000, 0xcf000001, 0x7f7fffff };
	return below(3) ? (u32)rnd() : corner[below(ARRAY_LEN(corner))];
}
static u64 random_double(void)
{
	static const u64 corner[] = { 0, 1ull << 63, 0x3ff0000000000000, 0xbff8000000000000, 0x7ff0000000000000,
				      0x7ff8000000000001, 0x7ff0000000000001, 1, 0x000fffffffffffff, 0x41e0000000000000,
				      0x43e0000000000000, 0x7fefffffffffffff };
	return below(3) ? rnd() : corner[below(ARRAY_LEN(corner))];
}
static void random_bytes(u8 *p, unsigned n)
{
	unsigned kind = below(4);
	for (unsigned k = 0; k + 8 <= n; k += 8)
		st64(p + k, kind == 0 ? rnd() : kind == 1 ? random_double() : kind == 2 ? random_float() | (u64)random_float() << 32 :
		     rnd() & 0x00ff00ff00ff00ff);
}
static void random_x87(u8 *fx)
{
	memset(fx, 0, 512);
	st16(fx, (u16)(0x40 | (below(8) ? 0x3f : below(64)) | below(4) << 10 | (below(4) ? 3 : below(4)) << 8));
	st16(fx + 2, (u16)(below(4) ? below(8) << 11 : rnd() & 0x7f3f));
	fx[4] = (u8)(below(3) ? 0xff : rnd());
	st32(fx + 24, (below(8) ? 0x1f80 : below(64) << 7) | below(4) << 13 | (below(8) ? 0 : below(64)) |
	     (below(6) ? 0 : 0x8000) | (below(6) ? 0 : 0x40));
	for (unsigned r = 0; r < 8; r++) {
		st64(fx + 32 + r * 16, below(4) ? rnd() | 1ull << 63 : below(2) ? 1ull << 63 : rnd());
		st16(fx + 40 + r * 16, (u16)(below(2) ? 0x3fff + below(140) - 70 : below(4) ? rnd() : below(2) ? 0x7fff : 0));
	}
}

static struct image before;
static u8 window_before[WINDOW_SIZE];

static void random_state(void)
{
	bool wide = __builtin_cpu_supports("avx512bw");
	memset(&before, 0, sizeof(before));
	for (unsigned r = 0; r < (wide ? 32 : 16); r++)
		random_bytes(before.zmm[r], wide ? 64 : 32);
	for (unsigned r = 0; r < 8 && wide; r++)
		before.k[r] = below(4) ? rnd() : below(2) ? ~0ull : 0;
	for (unsigned r = 0; r < 16; r++)
		before.gpr[r] = below(3) ? rnd() : below(256);
	before.flags = rnd() & FL_STATUS;
	random_x87(before.fx);
	for (unsigned k = 0; k < WINDOW_SIZE; k += 64)
		random_bytes(window_before + k, 64);
}

/* ---- random instructions --------------------------------------------------------------------- */

static unsigned random_modrm(u8 *b)
{
	unsigned n = 0;
	u8 m = (u8)rnd();
	if (below(3) == 0)
		m |= 0xc0;
	b[n++] = m;
	if ((m & 0xc7) == 5)
		b[n - 1] = m = (u8)(m | 0x40); /* not RIP-relative */
	if ((m & 0xc0) != 0xc0 && (m & 7) == 4)
		b[n++] = (u8)rnd();
	for (unsigned k = 0; k < 5; k++)
		b[n++] = (u8)rnd();
	return n;
}
static unsigned random_legacy(u8 *b)
{
	static const u8 prefix[] = { 0x66, 0xf2, 0xf3 };
	unsigned n = 0;
	if (below(2))
		b[n++] = prefix[below(3)];
	if (below(12) == 0)
		b[n++] = prefix[below(3)];
	if (below(2))
		b[n++] = (u8)(0x40 | below(16));
	switch (below(6)) {
	case 0: b[n++] = (u8)(0xd8 + below(8)); break;
	case 1: b[n++] = 0x0f; b[n++] = 0x38; b[n++] = (u8)rnd(); break;
	case 2: b[n++] = 0x0f; b[n++] = 0x3a; b[n++] = (u8)rnd(); break;
	default: b[n++] = 0x0f; b[n++] = (u8)rnd();
	}
	return n + random_modrm(b + n);
}
static unsigned random_vex(u8 *b)
{
	b[0] = 0xc4;
	b[1] = (u8)((rnd() & 0xe0) | (1 + below(3)));
	b[2] = (u8)(below(3) ? rnd() : rnd() | 0x78);
	b[3] = (u8)rnd();
	return 4 + random_modrm(b + 4);
}
static unsigned random_evex(u8 *b)
{
	b[0] = 0x62;
	b[1] = (u8)((rnd() & 0xf0) | (1 + below(3)));
	b[2] = (u8)((below(3) ? rnd() : rnd() | 0x78) | 4);
	b[3] = (u8)(below(2) ? rnd() & 0x6f : rnd());
	if (below(3) == 0)
		b[3] |= 8;
	b[4] = (u8)rnd();
	return 5 + random_modrm(b + 5);
}
/* Gathers and scatters: rare among the others, and what they leave when they fault is intricate. */
static unsigned random_vsib(u8 *b)
{
	bool evex = below(2);
	unsigned n = evex ? random_evex(b) : random_vex(b), op = evex ? 4 : 3;
	b[1] = (u8)((b[1] & (evex ? 0xf0 : 0xe0)) | 2);
	b[2] = (u8)((b[2] & 0xfc) | (evex ? 0x7d : 1));
	if (evex)
		b[3] = (u8)((b[3] & 0x60) | 8 | (1 + below(7)));
	b[op] = (u8)((evex && below(2) ? 0xa0 : 0x90) + below(4));
	b[op + 1] = (u8)((b[op + 1] & 0x38) | 4 | (below(2) ? 0x40 : 0));
	return n;
}
static unsigned (*const families[])(u8 *) = { random_legacy, random_vex, random_evex, random_vsib };

static void set_reg(ZydisRegister r, u64 v) { before.gpr[ZydisRegisterGetId(r)] = v; }

/* Small indices, so that the elements of a gather lie around the base. */
static void set_indices(const ZydisDecodedOperand *m, bool quad)
{
	u8 *z = before.zmm[ZydisRegisterGetId(m->mem.index)];
	for (unsigned k = 0; k < 64; k += quad ? 8 : 4) {
		i64 v = (i64)below(64) - 32;
		memcpy(z + k, &v, quad ? 8 : 4);
	}
}

/* Gives the registers values with which the operand lies in the window, at times over its end. */
static bool place_operand(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *m)
{
	bool vsib = m->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
	bool index = m->mem.index != ZYDIS_REGISTER_NONE;
	if (m->mem.base == ZYDIS_REGISTER_NONE || m->mem.base == ZYDIS_REGISTER_RIP || zi->address_width != 64 ||
	    (!vsib && m->mem.base == m->mem.index) || (m->mem.segment != ZYDIS_REGISTER_DS && m->mem.segment != ZYDIS_REGISTER_SS))
		return false;
	unsigned size = MAX(m->size / 8u, 1u), align = below(4) ? 64 : 1;
	u64 at = below(8) == 0 ? WINDOW_SIZE - below(size + 64) : below(3) == 0 ? 4096 - below(size) : below(WINDOW_SIZE - 600) + 300;
	at = WINDOW + (at & ~(u64)(align - 1));
	u64 scaled = 0;
	if (vsib) {
		bool quad = zi->opcode & 1;
		set_indices(m, quad);
	} else if (index) {
		u64 v = below(1000);
		set_reg(m->mem.index, v);
		scaled = v * m->mem.scale;
	}
	set_reg(m->mem.base, at - scaled - (u64)m->mem.disp.value);
	return true;
}

static bool wanted(const ZydisDecodedInstruction *zi)
{
	return native_mnemonic[zi->mnemonic] && cpu_offers_isa(c, zi->meta.isa_set) &&
	       zi->meta.category != ZYDIS_CATEGORY_STRINGOP && zi->mnemonic != ZYDIS_MNEMONIC_RDRAND &&
	       zi->mnemonic != ZYDIS_MNEMONIC_RDSEED;
}

static void give_state(void)
{
	memcpy(c->zmm, before.zmm, sizeof(c->zmm));
	memcpy(c->k, before.k, sizeof(c->k));
	memcpy(c->regs, before.gpr, sizeof(before.gpr));
	memcpy(c->fxarea, before.fx, 512);
	c->rflags = before.flags | 2;
	for (unsigned p = 0; p < 2; p++)
		memcpy(mem.ram + (p ? DATA + 0x5000 : DATA), window_before + p * 4096, 4096);
	if (below(4) == 0)
		mmu_flush_all(c);
	memcpy((void *)WINDOW, window_before, WINDOW_SIZE);
}

static void show(const char *what, const ZydisDecodedInstruction *zi, const u8 *bytes)
{
	print_error("%s: %s", what, ZydisMnemonicGetString(zi->mnemonic));
	for (unsigned k = 0; k < zi->length; k++)
		print_error(" %02x", bytes[k]);
	print_error("\n");
}

static const char *difference(const struct image *host, const struct host_fault *f, int vector)
{
	static const struct { int trap, vector; } same[] = { { -1, -1 }, { 6, V_UD }, { 13, V_GP }, { 14, V_PF }, { 16, V_MF }, { 19, V_XM } };
	int expected = -3;
	for (unsigned k = 0; k < ARRAY_LEN(same); k++)
		if (same[k].trap == f->trap)
			expected = same[k].vector;
	if (vector != expected) {
		print_error("host: trap %d, here: %d\n", f->trap, vector);
		return "exception";
	}
	if (vector == V_PF && (c->exc.error != (f->error & 7) || c->exc.cr2 != f->addr)) {
		print_error("host: error %x at %llx, here %x at %llx\n", f->error, (unsigned long long)f->addr, c->exc.error,
			    (unsigned long long)c->exc.cr2);
		return "page fault";
	}
	if (memcmp(c->regs, host->gpr, sizeof(host->gpr)))
		return "general registers";
	if ((c->rflags ^ host->flags) & FL_STATUS)
		return "flags";
	if (memcmp(c->k, host->k, sizeof(host->k)))
		return "opmasks";
	for (unsigned r = 0; r < 32; r++) {
		for (unsigned k = 0; k < 8; k++) {
			if (ld64(c->zmm[r] + k * 8) != ld64(host->zmm[r] + k * 8)) {
				print_error("zmm%u quadword %u: host %016llx, here %016llx, before %016llx\n", r, k,
					    (unsigned long long)ld64(host->zmm[r] + k * 8), (unsigned long long)ld64(c->zmm[r] + k * 8),
					    (unsigned long long)ld64(before.zmm[r] + k * 8));
				return "vectors";
			}
		}
	}
	if (memcmp(c->fxarea, host->fx, 6) || ld32(c->fxarea + 24) != ld32(host->fx + 24))
		return "x87 or MXCSR control";
	for (unsigned r = 0; r < 8; r++)
		if (memcmp(c->fxarea + 32 + r * 16, host->fx + 32 + r * 16, 10))
			return "x87 registers";
	if (memcmp(mem.ram + DATA, (void *)WINDOW, 4096) || memcmp(mem.ram + DATA + 0x5000, (void *)(WINDOW + 4096), 4096))
		return "memory";
	return NULL;
}

static unsigned counted[ZYDIS_MNEMONIC_MAX_VALUE + 1];

/* One random instruction on both; false if it was none of ours. */
static bool compare_one(unsigned (*family)(u8 *), unsigned *failures)
{
	u8 bytes[32] = { 0 };
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	family(bytes);
	if (isa_decode(CODE64, 0, bytes, 15, &zi, zo) != ISA_OK || !wanted(&zi))
		return false;
	random_state();
	for (unsigned k = 0; k < zi.operand_count; k++)
		if (zo[k].type == ZYDIS_OPERAND_TYPE_MEMORY && !place_operand(&zi, &zo[k]))
			return false;
	give_state();
	struct image host = before;
	struct host_fault f = host_run(&host, bytes, zi.length);
	int vector = run(bytes, zi.length);
	counted[zi.mnemonic]++;
	const char *what = difference(&host, &f, vector);
	if (what && (*failures)++ < 20)
		show(what, &zi, bytes);
	return true;
}

static void against_host(void **state)
{
	unsigned failures = 0, n = 0, mnemonics = 0;
	unsigned states = getenv("NATIVE_STATES") ? (unsigned)atoi(getenv("NATIVE_STATES")) : 60000;
	if (getenv("NATIVE_SEED"))
		seed = strtoull(getenv("NATIVE_SEED"), NULL, 0) | 1;
	mode64();
	for (unsigned tries = 0; n < states && tries < states * 50; tries++)
		n += compare_one(families[tries % ARRAY_LEN(families)], &failures);
	for (unsigned k = 0; k < ARRAY_LEN(counted); k++) {
		mnemonics += counted[k] != 0;
		if (getenv("NATIVE_SHOW") && native_mnemonic[k] && !counted[k])
			print_message("%s ", ZydisMnemonicGetString((ZydisMnemonic)k));
	}
	print_message("%u states of %u instructions, %u differ\n", n, mnemonics, failures);
	assert_int_equal(failures, 0);
	assert_true(mnemonics > 300);
}

/* ---- the encoder, in all modes ----------------------------------------------------------------- */

static bool same_operand(const ZydisDecodedOperand *x, const ZydisDecodedOperand *y)
{
	if (x->type != y->type || x->size != y->size || x->element_count != y->element_count || x->actions != y->actions)
		return false;
	if (x->type == ZYDIS_OPERAND_TYPE_MEMORY)
		return x->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN ||
		       (y->mem.base == ZYDIS_REGISTER_RSI && !y->mem.index && !y->mem.disp.value);
	if (x->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
		return x->imm.value.u == y->imm.value.u;
	ZydisRegisterClass k = ZydisRegisterGetClass(x->reg.value);
	bool gpr = k >= ZYDIS_REGCLASS_GPR8 && k <= ZYDIS_REGCLASS_GPR64;
	return k == ZydisRegisterGetClass(y->reg.value) && (gpr || x->reg.value == y->reg.value);
}

/* What the encoder makes of an instruction of any mode means the same in 64-bit mode. */
static void encoder(void **state)
{
	unsigned n = 0;
	for (unsigned tries = 0; tries < 600000; tries++) {
		u8 b[32] = { 0 }, code[64] = { 0 };
		ZydisDecodedInstruction zi, z2;
		ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT], o2[ZYDIS_MAX_OPERAND_COUNT];
		families[tries % ARRAY_LEN(families)](b);
		if (isa_decode((enum code_mode)below(3), 0, b, 15, &zi, zo) != ISA_OK || !native_mnemonic[zi.mnemonic] ||
		    zi.meta.category == ZYDIS_CATEGORY_STRINGOP || native_in_c(&zi) || zi.encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX)
			continue;
		unsigned len = native_reencode(&zi, zo, b, code);
		bool ok = len && isa_decode(CODE64, 0, code, len, &z2, o2) == ISA_OK && z2.length == len &&
			  z2.mnemonic == zi.mnemonic && z2.meta.isa_set == zi.meta.isa_set && z2.operand_count == zi.operand_count &&
			  !memcmp(&z2.avx, &zi.avx, sizeof(zi.avx));
		for (unsigned k = 0; ok && k < zi.operand_count_visible; k++)
			ok = same_operand(&zo[k], &o2[k]);
		if (!ok) {
			show("encoded otherwise", &zi, b);
			fail();
		}
		n++;
	}
	assert_true(n > 20000);
}

/* ---- one by one ----------------------------------------------------------------------------------- */

static float *lane(unsigned r) { return (float *)(void *)c->zmm[r]; }

/* Without paging, RAM at 8000h. */
static void modes32_16(void **state)
{
	mode_flat(CODE32);
	c->regs[R_BX] = 0xffffffff00008000; /* the upper half is not there in this mode */
	st32(mem.ram + 0x8010, 0xf0f0f0f0);
	assert_int_equal(RUN(0xf3, 0x0f, 0xb8, 0x43, 0x10), -1);       /* popcnt eax, [ebx+16] */
	assert_int_equal(c->regs[R_AX], 16);
	c->regs[R_CX] = 0xdeadbeef12345678;
	assert_int_equal(RUN(0xc4, 0xe1, 0xf9, 0x6e, 0xc1), -1);       /* vmovd xmm0, ecx with W1: 32 bits */
	assert_int_equal(ld64(c->zmm[0]), 0x12345678);
	assert_int_equal(RUN(0xc4, 0xe2, 0x70, 0xf2, 0xd1), -1);       /* andn edx, ecx, ecx */
	assert_int_equal(c->regs[R_DX], 0);
	assert_int_equal(c->rflags & (FL_ZF | FL_CF), FL_ZF);

	mode_flat(CODE16);
	c->regs[R_BX] = 0x7ff0;
	c->regs[R_SI] = 0x10;
	st64(mem.ram + 0x8000, 0x4009000000000000);                    /* 3.125 */
	assert_int_equal(RUN(0xdb, 0xe3), -1);                         /* fninit */
	assert_int_equal(RUN(0xdd, 0x00), -1);                         /* fld qword [bx+si] */
	assert_int_equal(RUN(0xdb, 0x58, 0x10), -1);                   /* fistp dword [bx+si+16] */
	assert_int_equal(ld32(mem.ram + 0x8010), 3);
	c->regs[R_AX] = 0xffffffffffff0000;
	c->regs[R_CX] = 0xf00f1;
	assert_int_equal(RUN(0xf3, 0x0f, 0xb8, 0xc1), -1);             /* popcnt ax, cx */
	assert_int_equal(c->regs[R_AX], 0xffffffffffff0005);
	assert_int_equal(RUN(0x66, 0xf3, 0x0f, 0xb8, 0xc1), -1);       /* popcnt eax, ecx */
	assert_int_equal(c->regs[R_AX], 9);

	assert_int_equal(RUN(0xc4, 0xe2, 0x70, 0xf2, 0xd1), -1);
	cpu_reset(c, false);                                           /* real mode: no VEX */
	assert_int_equal(RUN(0xc4, 0xe2, 0x70, 0xf2, 0xd1), V_UD);
	assert_int_equal(RUN(0xc5, 0xf8, 0x58, 0xc0), V_UD);
}

static void units(void **state)
{
	static const u8 addps[] = { 0x0f, 0x58, 0xc1 }, paddb[] = { 0x0f, 0xfc, 0xc1 }, fadd[] = { 0xd8, 0xc1 },
			vaddps[] = { 0xc5, 0xf0, 0x58, 0xc1 }, popcnt[] = { 0xf3, 0x0f, 0xb8, 0xc1 };
	mode64();
	c->cr0 |= CR0_TS;
	cpu_update_fpu(c);
	assert_int_equal(run(addps, 3), V_NM);
	assert_int_equal(run(paddb, 3), V_NM);
	assert_int_equal(run(fadd, 2), V_NM);
	assert_int_equal(run(vaddps, 4), V_NM);
	assert_int_equal(RUN(0x9b), V_NM);
	assert_int_equal(run(popcnt, 4), -1);
	mode64();
	c->cr0 |= CR0_EM;
	cpu_update_fpu(c);
	assert_int_equal(run(addps, 3), V_UD);
	assert_int_equal(run(paddb, 3), V_UD);
	assert_int_equal(run(fadd, 2), V_NM);
	mode64();
	c->cr4 &= ~(u64)(CR4_OSFXSR | CR4_OSXSAVE);
	cpu_update_fpu(c);
	assert_int_equal(run(addps, 3), V_UD);
	assert_int_equal(run(paddb, 3), -1);
	assert_int_equal(run(vaddps, 4), V_UD);
	model.has[FEAT_POPCNT] = false;
	assert_int_equal(run(popcnt, 4), -2);
	model.has[FEAT_POPCNT] = true;
}

static void simd_exception(void **state)
{
	mode64();
	memset(c->zmm[0], 0, 64);
	lane(1)[0] = 1;
	st32(c->fxarea + 24, 0x1f80 & ~(1u << 9)); /* division by zero unmasked */
	assert_int_equal(RUN(0xf3, 0x0f, 0x5e, 0xc8), V_XM); /* divss xmm1, xmm0 */
	assert_true(lane(1)[0] == 1);
	assert_int_equal(ld32(c->fxarea + 24) & 0x3f, 4);
	c->cr4 &= ~(u64)CR4_OSXMMEXCPT;
	assert_int_equal(RUN(0xf3, 0x0f, 0x5e, 0xc8), V_UD);
	st32(c->fxarea + 24, 0x1f80);
	assert_int_equal(RUN(0xf3, 0x0f, 0x5e, 0xc8), -1);
	c->regs[R_BX] = WINDOW;
	st32(mem.ram + DATA, 0x10000);
	assert_int_equal(RUN(0x0f, 0xae, 0x13), V_GP); /* ldmxcsr: reserved bit */
}

static void x87_error(void **state)
{
	mode64();
	fpu_reset(c, true);
	assert_int_equal(RUN(0xd9, 0xe8), -1);       /* fld1 */
	st16(c->fxarea, 0x37b);                      /* division by zero unmasked */
	c->regs[R_BX] = WINDOW + 8;
	st32(mem.ram + DATA + 24, 0);
	assert_int_equal(RUN(0xd8, 0x73, 0x10), -1); /* fdiv dword [rbx+16]: pending */
	assert_int_equal(c->fop, 0x073);
	assert_int_equal(c->fip, BLOCK);
	assert_int_equal(c->fdp, WINDOW + 24);
	assert_int_equal(RUN(0xdf, 0xe0), -1);       /* fnstsw ax */
	assert_int_equal(c->regs[R_AX] & 0x84, 0x84);
	assert_int_equal(RUN(0x9b), V_MF);
	assert_int_equal(RUN(0xd9, 0xe8), V_MF);
	assert_int_equal(c->fop, 0x073);
	c->cr0 &= ~(u64)CR0_NE;
	assert_int_equal(RUN(0x9b), 0xff);           /* started again until the interrupt comes */
	assert_int_equal(ferr_raised, 1);
	assert_int_equal(RUN(0xdb, 0xe2), -1);       /* fnclex */
	assert_int_equal(ferr_raised, 0);
	assert_int_equal(RUN(0x9b), -1);
	assert_int_equal(RUN(0xdb, 0xe3), -1);       /* fninit */
	assert_int_equal(c->fip | c->fop | c->fdp, 0);
}

static void memory(void **state)
{
	mode64();
	/* RIP-relative: from the end of the instruction. */
	i32 d = (i32)(WINDOW + 64 - (BLOCK + 7));
	st32(mem.ram + DATA + 64, 0x3f800000);
	assert_int_equal(RUN(0x0f, 0x10, 0x05, (u8)d, (u8)(d >> 8), (u8)(d >> 16), (u8)(d >> 24)), -1); /* movups */
	assert_true(lane(0)[0] == 1);
	/* A store over decoded code. */
	struct page_code *code = &mem.code[DATA >> 12];
	u32 gen = mem_code_mark(code, 64, 4);
	c->regs[R_BX] = WINDOW + 56;
	assert_int_equal(RUN(0x0f, 0x11, 0x03), -1); /* movups [rbx], xmm0 */
	assert_true(atomic_load(&code->gen) != gen);
	/* Misaligned and not present: alignment first. */
	c->regs[R_BX] = WINDOW + WINDOW_SIZE + 1;
	assert_int_equal(RUN(0x0f, 0x28, 0x03), V_GP); /* movaps */
	assert_int_equal(RUN(0x0f, 0x10, 0x03), V_PF); /* movups */
	/* Through a segment. */
	c->seg[S_FS].base = WINDOW;
	cpu_update_segs(c);
	assert_int_equal(RUN(0x64, 0xf3, 0x0f, 0x10, 0x14, 0x25, 64, 0, 0, 0), -1); /* movss xmm2, fs:[64] */
	assert_memory_equal(c->zmm[2], mem.ram + DATA + 64, 4);
	assert_int_equal(RUN(0x48, 0x0f, 0xc7, 0xf0), -1); /* rdrand rax */
}

/* A gather that faults has done what lies below, and goes on where it stopped. */
static void gather_resumes(void **state)
{
	if (!model.has[FEAT_AVX2])
		skip();
	mode64();
	c->regs[R_BX] = WINDOW;
	for (unsigned k = 0; k < 4; k++) {
		st32(c->zmm[1] + k * 4, k == 2 ? WINDOW_SIZE : k * 4);
		st32(c->zmm[2] + k * 4, k == 0 ? 0 : ~0u);
		st32(mem.ram + DATA + k * 4, 100 + k);
	}
	memset(c->zmm[3], 0xee, 64);
	static const u8 gather[] = { 0xc4, 0xe2, 0x69, 0x90, 0x1c, 0x0b }; /* vpgatherdd xmm3, [rbx+xmm1], xmm2 */
	assert_int_equal(run(gather, sizeof(gather)), V_PF);
	assert_int_equal(c->exc.cr2, WINDOW + WINDOW_SIZE);
	assert_int_equal(ld32(c->zmm[3] + 4), 101);
	assert_int_equal(ld32(c->zmm[2] + 4), 0);
	assert_int_equal(ld32(c->zmm[2] + 8), ~0u);
	pte(PT + 16, (DATA + 0x1000) | 7);
	st32(mem.ram + DATA + 0x1000, 102);
	assert_int_equal(run(gather, sizeof(gather)), -1);
	static const u32 want[] = { 0xeeeeeeee, 101, 102, 103, 0, 0, 0, 0 };
	assert_memory_equal(c->zmm[3], want, sizeof(want));
	assert_int_equal(ld64(c->zmm[2] + 8), 0);
}

static void arena(void **state)
{
	mode64();
	struct insn i, j;
	static const u8 one[] = { 0x0f, 0x58, 0x03 }, same[] = { 0x64, 0x41, 0x0f, 0x58, 0x47, 0x20 }, other[] = { 0x0f, 0x58, 0x0b };
	assert_int_equal(interp_decode(c, CODE64, one, 3, &i), ISA_OK);
	assert_int_equal(interp_decode(c, CODE64, same, 6, &j), ISA_OK); /* the same but for its memory operand */
	assert_ptr_equal(i.aux, j.aux);
	assert_int_equal(interp_decode(c, CODE64, other, 3, &j), ISA_OK);
	assert_ptr_not_equal(i.aux, j.aux);
	u8 code[64] = { 0xc3 };
	for (u32 k = 0; !native_full(c); k++) {
		st32(code + 1, k);
		assert_non_null(arena_add(interp_of(c)->native, code, sizeof(code)));
	}
	native_reset(c);
	assert_false(native_full(c));
	assert_int_equal(RUN(0x0f, 0x58, 0xc1), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(against_host), cmocka_unit_test(encoder), cmocka_unit_test(modes32_16),
		cmocka_unit_test(units), cmocka_unit_test(simd_exception), cmocka_unit_test(x87_error),
		cmocka_unit_test(memory), cmocka_unit_test(gather_resumes), cmocka_unit_test(arena),
	};
	return cmocka_run_group_tests(tests, up, down);
}
