/* System instructions: privilege, modes and operands, by products where there are rules. The
 * expected outcomes are written from the manual (SDM volume 2), not from the handlers. */
#include "sys_rig.h"

#define FLAGS(v, m) cpu_set_rflags(s.c, v, m)

/* ---- IF: CLI, STI, PUSHF, POPF ------------------------------------------------------------------ */

enum where { REAL, P0, P3, V86, N_WHERE };

static void enter(enum where at, unsigned iopl)
{
	if (at == REAL)
		sys_real();
	else if (at == V86)
		sys_v86(iopl);
	else
		sys_protected(at == P0 ? 0 : 3);
	FLAGS((u64)iopl << 12, FL_IOPL);
}

static void cli_sti(void **state)
{
	for (unsigned n = 0; n < N_WHERE * 4 * 8; n++) {
		enum where at = n % N_WHERE;
		unsigned iopl = n / N_WHERE % 4, rest = n / N_WHERE / 4;
		bool on = rest & 1, vip = rest & 2, sti = rest & 4;
		enter(at, iopl);
		s.c->cr4 = on ? CR4_VME | CR4_PVI : 0;
		FLAGS(vip ? FL_VIP : 0, FL_VIP);
		bool if_itself = at == REAL || at == P0 || iopl == 3;
		bool gp = !if_itself && (!on || (sti && vip));
		u64 flag = if_itself ? FL_IF : FL_VIF;
		FLAGS(sti ? 0 : flag, flag);
		int got = RUN(sti ? 0xfb : 0xfa);
		if (got != (gp ? V_GP : -1))
			fail_msg("where %u IOPL %u VME %d VIP %d STI %d: %d", at, iopl, on, vip, sti, got);
		assert_int_equal(!!(s.c->rflags & flag), gp ? !sti : sti);
		assert_int_equal(s.c->shadow, !gp && sti && if_itself ? SHADOW_STI : 0);
	}
}

static void sti_twice_has_one_shadow(void **state)
{
	sys_protected(0);
	assert_int_equal(RUN(0xfb), -1);
	assert_true(s.c->slow & SLOW_SHADOW);
	assert_false(s.c->event_mask & EV_INTR);
	assert_int_equal(RUN(0xfb), -1);
	assert_int_equal(s.c->shadow, 0);
	assert_true(s.c->event_mask & EV_INTR);
}

static u64 stack_top(void) { return ld64(s.mem.ram + s.c->ebase[S_SS] + (s.c->regs[R_SP] & s.c->sp_mask)); }

static void pushf(void **state)
{
	for (unsigned n = 0; n < N_WHERE * 16; n++) {
		enum where at = n % N_WHERE;
		unsigned iopl = n / N_WHERE % 4;
		bool wide = n / N_WHERE & 4, vme = n / N_WHERE & 8;
		enter(at, iopl);
		s.c->cr4 = vme ? CR4_VME : 0;
		FLAGS(FL_VIF | FL_RF | FL_AC | FL_CF, FL_VIF | FL_RF | FL_AC | FL_CF);
		u64 flags = s.c->rflags;
		bool native16 = s.c->code_mode == CODE16;
		int got = wide == native16 ? RUN(0x66, 0x9c) : RUN(0x9c);
		bool gp = at == V86 && iopl < 3 && (wide || !vme);
		assert_int_equal(got, gp ? V_GP : -1);
		if (gp)
			continue;
		u64 want = flags & ~(u64)(FL_VM | FL_RF);
		if (at == V86 && iopl < 3)
			want |= FL_IOPL | FL_IF; /* VIF was set */
		assert_int_equal(stack_top() & (wide ? 0xffffffff : 0xffff), want & (wide ? 0xffffffff : 0xffff));
	}
}

/* Which bits POPF may change, from the operation section of the manual. */
static u64 popf_mask(enum where at, unsigned iopl, bool wide)
{
	u64 m = FL_STATUS | FL_TF | FL_DF | FL_NT;
	if (wide)
		m |= FL_AC | FL_ID;
	if (at == REAL || at == P0)
		m |= FL_IF | FL_IOPL;
	else if (iopl == 3)
		m |= FL_IF;
	return m;
}

static void popf(void **state)
{
	for (unsigned n = 0; n < N_WHERE * 16; n++) {
		enum where at = n % N_WHERE;
		unsigned iopl = n / N_WHERE % 4;
		bool wide = n / N_WHERE & 4, ones = n / N_WHERE & 8;
		enter(at, iopl);
		if (at == V86 && iopl < 3)
			continue;
		u64 before = s.c->rflags, v = ones ? ~0ull : 0;
		st64(s.mem.ram + s.c->ebase[S_SS] + (s.c->regs[R_SP] & s.c->sp_mask), v);
		u64 sp = s.c->regs[R_SP];
		bool native16 = s.c->code_mode == CODE16;
		assert_int_equal(wide == native16 ? RUN(0x66, 0x9d) : RUN(0x9d), -1);
		u64 m = popf_mask(at, iopl, wide);
		assert_int_equal(s.c->rflags, (before & ~m & ~(u64)FL_RF) | (v & m) | 2);
		assert_int_equal(s.c->regs[R_SP], sp + (wide ? 4 : 2));
	}
}

static void popf_vme(void **state)
{
	for (unsigned n = 0; n < 16; n++) {
		bool vme = n & 1, vip = n & 2, tf = n & 4, pop_if = n & 8;
		enter(V86, 0);
		s.c->cr4 = vme ? CR4_VME : 0;
		FLAGS(vip ? FL_VIP : 0, FL_VIP);
		st64(s.mem.ram + s.c->ebase[S_SS] + s.c->regs[R_SP], (tf ? FL_TF : 0) | (pop_if ? FL_IF : 0) | FL_CF | FL_IOPL);
		bool gp = !vme || tf || (vip && pop_if);
		assert_int_equal(RUN(0x9d), gp ? V_GP : -1);
		if (gp) {
			assert_int_equal(s.c->regs[R_SP], 0x8000);
			continue;
		}
		assert_int_equal(!!(s.c->rflags & FL_VIF), pop_if);
		assert_int_equal(s.c->rflags & (FL_IF | FL_IOPL | FL_CF), FL_CF);
		enter(V86, 0);
		s.c->cr4 = CR4_VME;
		assert_int_equal(RUN(0x66, 0x9d), V_GP);
	}
}

/* ---- what needs CPL 0 --------------------------------------------------------------------------------- */

static void privileged(void **state)
{
	static const struct { u8 b[4]; unsigned n; int at_cpl3; } t[] = {
		{ { 0xf4 }, 1, V_GP },                   /* HLT */
		{ { 0x0f, 0x06 }, 2, V_GP },             /* CLTS */
		{ { 0x0f, 0x08 }, 2, V_GP },             /* INVD */
		{ { 0x0f, 0x09 }, 2, V_GP },             /* WBINVD */
		{ { 0x0f, 0x01, 0x13 }, 3, V_GP },       /* LGDT [ebx] */
		{ { 0x0f, 0x01, 0x1b }, 3, V_GP },       /* LIDT [ebx] */
		{ { 0x0f, 0x01, 0xf0 }, 3, V_GP },       /* LMSW ax */
		{ { 0x0f, 0x01, 0x3b }, 3, V_GP },       /* INVLPG [ebx] */
		{ { 0x0f, 0x00, 0xd0 }, 3, V_GP },       /* LLDT ax */
		{ { 0x0f, 0x20, 0xc0 }, 3, V_GP },       /* MOV eax, cr0 */
		{ { 0x0f, 0x22, 0xd0 }, 3, V_GP },       /* MOV cr2, eax */
		{ { 0x0f, 0x21, 0xc0 }, 3, V_GP },       /* MOV eax, dr0 */
		{ { 0x0f, 0x23, 0xc0 }, 3, V_GP },       /* MOV dr0, eax */
		{ { 0x0f, 0x32 }, 2, V_GP },             /* RDMSR */
		{ { 0x0f, 0x30 }, 2, V_GP },             /* WRMSR */
		{ { 0x0f, 0x01, 0xc8 }, 3, V_UD },       /* MONITOR */
		{ { 0x0f, 0x01, 0xc9 }, 3, V_UD },       /* MWAIT */
		{ { 0x0f, 0x01, 0xcb }, 3, V_UD },       /* STAC */
		{ { 0x0f, 0x01, 0xca }, 3, V_UD },       /* CLAC */
		{ { 0x0f, 0x35 }, 2, V_GP },             /* SYSEXIT */
	};
	for (unsigned k = 0; k < ARRAY_LEN(t); k++) {
		sys_protected(3);
		s.c->regs[R_BX] = DATA;
		s.c->regs[R_CX] = 0x10;
		int got = sys_bytes(t[k].b, t[k].n);
		if (got != t[k].at_cpl3)
			fail_msg("%02x %02x %02x at CPL 3: %d", t[k].b[0], t[k].b[1], t[k].b[2], got);
		if (t[k].b[1] == 0x35)
			continue;
		sys_protected(0);
		s.c->regs[R_BX] = DATA;
		s.c->regs[R_CX] = t[k].b[1] == 0x30 || t[k].b[1] == 0x32 ? 0x10 : 0;
		got = sys_bytes(t[k].b, t[k].n);
		if (got != -1)
			fail_msg("%02x %02x %02x at CPL 0: %d", t[k].b[0], t[k].b[1], t[k].b[2], got);
	}
}

static void protected_mode_only(void **state)
{
	static const u8 modrm[] = { 0xc0, 0xc8, 0xd0, 0xd8, 0xe0, 0xe8 }; /* SLDT STR LLDT LTR VERR VERW */
	for (unsigned v = 0; v < 2; v++)
		for (unsigned k = 0; k < ARRAY_LEN(modrm); k++) {
			if (v)
				sys_v86(3);
			else
				sys_real();
			assert_int_equal(RUN(0x0f, 0x00, modrm[k]), V_UD);
			assert_int_equal(RUN(0x0f, 0x02, 0xc3), V_UD); /* LAR */
			assert_int_equal(RUN(0x0f, 0x03, 0xc3), V_UD); /* LSL */
			assert_int_equal(RUN(0x63, 0xc3), V_UD);       /* ARPL */
		}
}

static void umip(void **state)
{
	static const u8 t[][3] = { { 0x0f, 0x00, 0xc0 }, { 0x0f, 0x00, 0xc8 }, { 0x0f, 0x01, 0x03 }, { 0x0f, 0x01, 0x0b },
				   { 0x0f, 0x01, 0xe0 }, { 0x0f, 0x00, 0x03 }, { 0x0f, 0x00, 0x0b }, { 0x0f, 0x01, 0x23 } };
	for (unsigned k = 0; k < ARRAY_LEN(t); k++)
		for (unsigned n = 0; n < 4; n++) {
			sys_protected(n & 1 ? 3 : 0);
			s.c->regs[R_BX] = DATA;
			s.c->cr4 = n & 2 ? CR4_UMIP : 0;
			assert_int_equal(sys_bytes(t[k], 3), n == 3 ? V_GP : -1);
		}
}

static void not_here(void **state)
{
	sys_protected(0);
	assert_int_equal(RUN(0x0f, 0xaa), V_UD);          /* RSM */
	assert_int_equal(RUN(0x0f, 0x37), UNKNOWN);       /* GETSEC */
	assert_int_equal(RUN(0x0f, 0x0b), UNKNOWN);       /* UD2 */
	assert_int_equal(RUN(0x0f, 0x01, 0xc1), UNKNOWN); /* VMCALL */
	assert_int_equal(RUN(0x0f, 0x01, 0xd9), cpu_has(s.c, FEAT_SVM) ? V_UD : UNKNOWN); /* VMMCALL */
	assert_int_equal(RUN(0xf3, 0x0f, 0xae, 0xc0), UNKNOWN); /* RDFSBASE outside 64-bit mode */
}

/* ---- control and debug registers ------------------------------------------------------------------------- */

static void control_registers(void **state)
{
	sys_protected(0);
	s.c->regs[R_AX] = 0xffffffffffffffff;
	assert_int_equal(RUN(0x0f, 0x20, 0xc0), -1);
	assert_int_equal(s.c->regs[R_AX], s.c->cr0);
	s.c->regs[R_DX] = 0x1234567812345678;
	assert_int_equal(RUN(0x0f, 0x22, 0xd2), -1); /* MOV cr2, edx */
	assert_int_equal(s.c->cr2, 0x12345678);
	s.c->regs[R_DX] = s.c->cr0 | CR0_TS | CR0_MP;
	assert_int_equal(RUN(0x0f, 0x22, 0xc2), -1); /* MOV cr0, edx */
	assert_int_equal(s.c->nofpu[FC_WAIT], V_NM);
	assert_int_equal(RUN(0x0f, 0x06), -1); /* CLTS */
	assert_int_equal(s.c->nofpu[FC_WAIT], 0);
	s.c->regs[R_SI] = 0x55;
	assert_int_equal(RUN(0x0f, 0x23, 0xde), -1); /* MOV dr3, esi */
	assert_int_equal(RUN(0x0f, 0x21, 0xdf), -1); /* MOV edi, dr3 */
	assert_int_equal(s.c->regs[R_DI], 0x55);
	s.c->cr4 |= CR4_DE;
	assert_int_equal(RUN(0x0f, 0x21, 0xe0), V_UD); /* DR4 */
	sys_long(0);
	s.c->regs[R_8] = 0x123456789a;
	assert_int_equal(RUN(0x41, 0x0f, 0x22, 0xd0), -1); /* MOV cr2, r8 */
	assert_int_equal(s.c->cr2, 0x123456789a);
}

static void machine_status_word(void **state)
{
	sys_real();
	s.c->regs[R_AX] = 0xfffffff6;
	assert_int_equal(RUN(0x0f, 0x01, 0xf0), -1); /* LMSW: MP and EM, PE stays clear, bits above 3 do not count */
	assert_int_equal(s.c->cr0, (CR0_CD | CR0_NW | CR0_ET | CR0_MP | CR0_EM));
	s.c->regs[R_AX] = 1;
	assert_int_equal(RUN(0x0f, 0x01, 0xf0), -1);
	assert_int_equal(s.c->cr0 & 15, CR0_PE);
	s.c->regs[R_AX] = 0;
	assert_int_equal(RUN(0x0f, 0x01, 0xf0), -1);
	assert_int_equal(s.c->cr0 & 15, CR0_PE); /* LMSW cannot leave protected mode */
	sys_protected(0);
	s.c->regs[R_AX] = ~0ull;
	assert_int_equal(RUN(0x66, 0x0f, 0x01, 0xe0), -1); /* SMSW ax */
	assert_int_equal(s.c->regs[R_AX], 0xffffffffffff0000 | (u16)s.c->cr0);
	assert_int_equal(RUN(0x0f, 0x01, 0xe0), -1); /* SMSW eax */
	assert_int_equal(s.c->regs[R_AX], s.c->cr0);
	s.c->regs[R_BX] = DATA;
	*data64(0) = ~0ull;
	assert_int_equal(RUN(0x0f, 0x01, 0x23), -1); /* SMSW [ebx]: 16 bits */
	assert_int_equal(*data64(0), 0xffffffffffff0000 | (u16)s.c->cr0);
}

static void extended_control(void **state)
{
	sys_long(0);
	assert_int_equal(RUN(0x0f, 0x01, 0xd0), V_UD); /* XGETBV without OSXSAVE */
	s.c->cr4 |= CR4_OSXSAVE;
	s.c->regs[R_CX] = 0;
	assert_int_equal(RUN(0x0f, 0x01, 0xd0), -1);
	assert_int_equal(s.c->regs[R_AX], 1);
	s.c->regs[R_AX] = 3;
	s.c->regs[R_DX] = 0;
	assert_int_equal(RUN(0x0f, 0x01, 0xd1), -1); /* XSETBV */
	assert_int_equal(s.c->xcr0, 3);
	s.c->regs[R_CX] = 2;
	assert_int_equal(RUN(0x0f, 0x01, 0xd0), V_GP);
	sys_long(3);
	s.c->cr4 |= CR4_OSXSAVE | CR4_PKE;
	assert_int_equal(RUN(0x0f, 0x01, 0xd1), V_GP);
	s.c->regs[R_AX] = 0x5555;
	s.c->regs[R_CX] = s.c->regs[R_DX] = 0;
	assert_int_equal(RUN(0x0f, 0x01, 0xef), -1); /* WRPKRU at CPL 3 */
	assert_int_equal(s.c->pkru, 0x5555);
	s.c->regs[R_AX] = s.c->regs[R_DX] = ~0ull;
	assert_int_equal(RUN(0x0f, 0x01, 0xee), -1);
	assert_int_equal(s.c->regs[R_AX], 0x5555);
	assert_int_equal(s.c->regs[R_DX], 0);
	s.c->regs[R_DX] = 1;
	assert_int_equal(RUN(0x0f, 0x01, 0xef), V_GP);
	s.c->cr4 &= ~(u64)CR4_PKE;
	assert_int_equal(RUN(0x0f, 0x01, 0xee), V_UD);
}

/* ---- time, identity ---------------------------------------------------------------------------------------- */

static void time_stamp(void **state)
{
	sys_long(3);
	atomic_store(&s.clock.icount, 0x123456789);
	s.c->msr.tsc_aux = 77;
	assert_int_equal(RUN(0x0f, 0x01, 0xf9), -1); /* RDTSCP */
	assert_int_equal(s.c->regs[R_DX] << 32 | s.c->regs[R_AX], 0x123456789);
	assert_int_equal(s.c->regs[R_CX], 77);
	assert_int_equal(RUN(0xf3, 0x0f, 0xc7, 0xf8), -1); /* RDPID rax */
	assert_int_equal(s.c->regs[R_AX], 77);
	s.c->cr4 |= CR4_TSD;
	assert_int_equal(RUN(0x0f, 0x31), V_GP);
	assert_int_equal(RUN(0x0f, 0x33), V_GP); /* RDPMC */
	sys_long(0);
	s.c->cr4 |= CR4_TSD;
	assert_int_equal(RUN(0x0f, 0x31), -1);
}

static void msr_instructions(void **state)
{
	sys_long(0);
	s.c->regs[R_CX] = 0xffffffffc0000102;
	s.c->regs[R_AX] = 0xffffffff89abcdef;
	s.c->regs[R_DX] = 0xffffffff00001234;
	assert_int_equal(RUN(0x0f, 0x30), -1);
	assert_int_equal(s.c->msr.kernel_gs_base, 0x123489abcdef);
	s.c->regs[R_AX] = s.c->regs[R_DX] = 0;
	assert_int_equal(RUN(0x0f, 0x32), -1);
	assert_int_equal(s.c->regs[R_AX], 0x89abcdef);
	assert_int_equal(s.c->regs[R_DX], 0x1234);
	assert_int_equal(RUN(0x0f, 0x01, 0xf8), -1); /* SWAPGS */
	assert_int_equal(s.c->ebase[S_GS], 0x123489abcdef);
	assert_int_equal(s.c->msr.kernel_gs_base, 0);
	s.c->regs[R_CX] = 0x12345;
	assert_int_equal(RUN(0x0f, 0x32), V_GP);
	s.c->regs[R_AX] = 0x80000000;
	assert_int_equal(RUN(0x0f, 0xa2), -1); /* CPUID: zero-extends */
	assert_true(s.c->regs[R_AX] >= 0x80000008);
	assert_int_equal(s.c->regs[R_CX] >> 32, 0);
}

static void segment_bases(void **state)
{
	sys_long(3);
	assert_int_equal(RUN(0xf3, 0x0f, 0xae, 0xc0), V_UD);
	s.c->cr4 |= CR4_FSGSBASE;
	s.c->regs[R_AX] = 0xfedcba9876543210;
	assert_int_equal(RUN(0xf3, 0x48, 0x0f, 0xae, 0xd0), V_GP); /* WRFSBASE rax, not canonical */
	assert_int_equal(RUN(0xf3, 0x0f, 0xae, 0xd0), -1);         /* eax */
	assert_int_equal(s.c->ebase[S_FS], 0x76543210);
	s.c->regs[R_AX] = 0xffff800000000000;
	assert_int_equal(RUN(0xf3, 0x48, 0x0f, 0xae, 0xd8), -1);   /* WRGSBASE rax */
	assert_int_equal(RUN(0xf3, 0x48, 0x0f, 0xae, 0xcb), -1);   /* RDGSBASE rbx */
	assert_int_equal(s.c->regs[R_BX], 0xffff800000000000);
	assert_int_equal(RUN(0xf3, 0x0f, 0xae, 0xcb), -1);
	assert_int_equal(s.c->regs[R_BX], 0);
	assert_int_equal(RUN(0x0f, 0x01, 0xf8), V_GP); /* SWAPGS at CPL 3 */
}

/* ---- tables and segments --------------------------------------------------------------------------------------- */

static void descriptor_tables(void **state)
{
	sys_protected(0);
	s.c->regs[R_BX] = DATA;
	*data64(0) = 0xabcd123456781fff;
	assert_int_equal(RUN(0x0f, 0x01, 0x1b), -1); /* LIDT [ebx] */
	assert_int_equal(s.c->idtr.limit, 0x1fff);
	assert_int_equal(s.c->idtr.base, 0x12345678);
	assert_int_equal(RUN(0x66, 0x0f, 0x01, 0x1b), -1); /* 24 bits of base */
	assert_int_equal(s.c->idtr.base, 0x345678);
	s.c->gdtr = (struct dtable){ 0x87654321, 0x7f };
	*data64(0) = ~0ull;
	assert_int_equal(RUN(0x66, 0x0f, 0x01, 0x03), -1); /* SGDT stores all 32 */
	assert_int_equal(*data64(0), 0xffff87654321007f);
	sys_long(0);
	s.c->regs[R_BX] = DATA;
	st16(data64(0), 0x77);
	st64((u8 *)data64(0) + 2, 0xffffffff80000000);
	assert_int_equal(RUN(0x0f, 0x01, 0x13), -1);
	assert_int_equal(s.c->gdtr.base, 0xffffffff80000000);
	st64((u8 *)data64(0) + 2, 0x8000000000000000);
	assert_int_equal(RUN(0x0f, 0x01, 0x13), V_GP);
	assert_int_equal(s.c->gdtr.base, 0xffffffff80000000);
}

static void moves_to_segments(void **state)
{
	sys_protected(0);
	s.c->regs[R_AX] = 0x10;
	assert_int_equal(RUN(0x8e, 0xd0), -1); /* MOV ss, ax */
	assert_int_equal(s.c->shadow, SHADOW_SS);
	assert_int_equal(RUN(0x8e, 0xd8), -1); /* MOV ds, ax */
	assert_int_equal(s.c->shadow, 0);
	s.c->regs[R_BX] = DATA;
	*data64(0) = 0x20;
	assert_int_equal(RUN(0x8e, 0x03), -1); /* MOV es, [ebx] */
	assert_int_equal(s.c->seg[S_ES].sel, 0x20);
	s.c->regs[R_CX] = ~0ull;
	assert_int_equal(RUN(0x8c, 0xc1), -1); /* MOV ecx, es */
	assert_int_equal(s.c->regs[R_CX], 0x20);
	*data64(8) = ~0ull;
	assert_int_equal(RUN(0x8c, 0x43, 0x08), -1); /* MOV [ebx+8], es: 16 bits */
	assert_int_equal(*data64(8), 0xffffffffffff0020);
	s.c->regs[R_AX] = 0x100; /* beyond the table */
	assert_int_equal(RUN(0x8e, 0xd8), V_GP);
	assert_int_equal(RUN(0x8e, 0xc8), UNKNOWN); /* MOV cs */
	*data64(0) = 0x10000abcdull << 16 | 0x1234;
	*data64(0) = 0x0020abcd1234;
	assert_int_equal(RUN(0xc4, 0x03), -1); /* LES eax, [ebx] */
	assert_int_equal(s.c->regs[R_AX], 0xabcd1234);
	assert_int_equal(s.c->seg[S_ES].sel, 0x20);
	*data64(0) = 0x0010abcd1234;
	assert_int_equal(RUN(0x0f, 0xb2, 0x13), -1); /* LSS edx, [ebx] */
	assert_int_equal(s.c->shadow, 0);
	*data64(0) = 0x0100abcd1234;
	s.c->regs[R_DX] = 5;
	assert_int_equal(RUN(0x0f, 0xb2, 0x13), V_GP);
	assert_int_equal(s.c->regs[R_DX], 5);
}

static void push_pop_segments(void **state)
{
	for (unsigned amd = 0; amd < 2; amd++) {
		sys_model(amd ? "max,vendor=amd" : "max,vendor=intel");
		sys_protected(0);
		st64(s.mem.ram + STACK - 4, ~0ull);
		assert_int_equal(RUN(0x1e), -1); /* PUSH ds */
		assert_int_equal(s.c->regs[R_SP], STACK - 4);
		assert_int_equal(ld32(s.mem.ram + STACK - 4), amd ? 0x10 : 0xffff0010);
		assert_int_equal(RUN(0x0f, 0xa1), -1); /* POP fs */
		assert_int_equal(s.c->regs[R_SP], STACK);
		assert_int_equal(s.c->seg[S_FS].sel, 0x10);
	}
	sys_protected(0);
	st32(s.mem.ram + STACK, 0x10);
	assert_int_equal(RUN(0x17), -1); /* POP ss */
	assert_int_equal(s.c->shadow, SHADOW_SS);
	st32(s.mem.ram + STACK + 4, 0x123);
	assert_int_equal(RUN(0x1f), V_GP); /* POP ds, bad */
	assert_int_equal(s.c->regs[R_SP], STACK + 4);
}

static void descriptor_queries(void **state)
{
	sys_protected(0);
	s.c->regs[R_BX] = 0x10;
	s.c->regs[R_AX] = 0;
	assert_int_equal(RUN(0x0f, 0x02, 0xc3), -1); /* LAR eax, ebx */
	assert_true(s.c->rflags & FL_ZF);
	assert_int_equal(s.c->regs[R_AX], 0x00cf9300);
	assert_int_equal(RUN(0x0f, 0x03, 0xc3), -1); /* LSL */
	assert_int_equal(s.c->regs[R_AX], 0xffffffff);
	assert_int_equal(RUN(0x66, 0x0f, 0x03, 0xc3), -1);
	assert_int_equal(s.c->regs[R_AX], 0xffffffff);
	s.c->regs[R_BX] = 0x100;
	s.c->regs[R_AX] = 9;
	assert_int_equal(RUN(0x0f, 0x02, 0xc3), -1);
	assert_false(s.c->rflags & FL_ZF);
	assert_int_equal(s.c->regs[R_AX], 9);
	s.c->regs[R_BX] = 8;
	assert_int_equal(RUN(0x0f, 0x00, 0xe3), -1); /* VERR: readable code */
	assert_true(s.c->rflags & FL_ZF);
	assert_int_equal(RUN(0x0f, 0x00, 0xeb), -1); /* VERW */
	assert_false(s.c->rflags & FL_ZF);
	for (unsigned n = 0; n < 16; n++) {
		s.c->regs[R_AX] = 0xfff0 | (n & 3);
		s.c->regs[R_BX] = n >> 2;
		assert_int_equal(RUN(0x63, 0xd8), -1); /* ARPL ax, bx */
		assert_int_equal(!!(s.c->rflags & FL_ZF), (n & 3) < n >> 2);
		assert_int_equal(s.c->regs[R_AX], 0xfff0 | MAX(n & 3, n >> 2));
	}
	/* In memory that cannot be written: a fault only where there is something to write. */
	s.c->seg[S_DS].attr &= ~2u;
	cpu_update_segs(s.c);
	*data64(0) = 2;
	for (unsigned rpl = 2; rpl <= 3; rpl++) {
		s.c->regs[R_BX] = rpl;
		assert_int_equal(RUN(0x63, 0x1d, 0, DATA >> 8 & 0xff, DATA >> 16, 0), rpl == 2 ? -1 : V_GP); /* ARPL [DATA], bx */
		assert_int_equal(*data64(0), 2);
	}
}

/* ---- far transfers -------------------------------------------------------------------------------------------------- */

static void far_transfers(void **state)
{
	sys_protected(0);
	assert_int_equal(RUN(0xea, 0x78, 0x56, 0x34, 0x12, 0x08, 0x00), -1); /* JMP 8:12345678 */
	assert_int_equal(s.c->rip, 0x12345678);
	s.c->rip = CODE;
	s.c->regs[R_BX] = DATA;
	*data64(0) = 0x000800045678;
	assert_int_equal(RUN(0xff, 0x1b), -1); /* CALL far [ebx] */
	assert_int_equal(s.c->rip, 0x45678);
	assert_int_equal(ld32(s.mem.ram + STACK - 8), CODE + 2);
	assert_int_equal(ld32(s.mem.ram + STACK - 4), 8);
	assert_int_equal(RUN(0xca, 0x10, 0x00), -1); /* RETF 10h */
	assert_int_equal(s.c->rip, CODE + 2);
	assert_int_equal(s.c->regs[R_SP], STACK + 0x10);
	sys_real();
	assert_int_equal(RUN(0xea, 0x78, 0x56, 0x00, 0x20), -1); /* JMP 2000:5678 */
	assert_int_equal(s.c->seg[S_CS].base, 0x20000);
	assert_int_equal(s.c->rip, 0x5678);
	sys_long(0);
	assert_int_equal(RUN(0xea, 1, 2, 3, 4, 5, 6), UNKNOWN);
	FLAGS(0, FL_OF);
	sys_protected(0);
	assert_int_equal(RUN(0xce), -1); /* INTO with OF clear */
	assert_int_equal(s.c->rip, CODE + 1);
}

/* ---- ports ------------------------------------------------------------------------------------------------------------ */

static u64 port_log[64];
static unsigned n_log, next_in;
static u64 dev_read(void *dev, u64 off, unsigned size)
{
	port_log[n_log++ % 64] = 1ull << 63 | size << 8 | off;
	return 0x11223344 + next_in++;
}
static void dev_write(void *dev, u64 off, u64 v, unsigned size) { port_log[n_log++ % 64] = v << 16 | size << 8 | off; }
static const struct mmio_ops dev = { dev_read, dev_write, 1, 4 };

static void ports_start(void)
{
	struct error e;
	n_log = next_in = 0;
	assert_true(mem_add_ports(&s.mem, "dummy", 0x70, 16, &dev, NULL, &e));
}

static void in_out(void **state)
{
	sys_protected(0);
	ports_start();
	s.c->regs[R_AX] = ~0ull;
	s.c->regs[R_DX] = 0xffff0074;
	assert_int_equal(RUN(0xed), -1); /* IN eax, dx */
	assert_int_equal(s.c->regs[R_AX], 0x11223344);
	assert_int_equal(RUN(0xe4, 0x71), -1); /* IN al, 71h */
	assert_int_equal(s.c->regs[R_AX], 0x11223345);
	assert_int_equal(RUN(0x66, 0xe5, 0x72), -1); /* IN ax, 72h */
	assert_int_equal(s.c->regs[R_AX], 0x11223346);
	assert_int_equal(RUN(0xe7, 0x78), -1); /* OUT 78h, eax */
	assert_int_equal(RUN(0xee), -1);       /* OUT dx, al */
	static const u64 want[] = { 1ull << 63 | 0x404, 1ull << 63 | 0x101, 1ull << 63 | 0x202, 0x112233460408, 0x460104 };
	assert_int_equal(n_log, ARRAY_LEN(want));
	assert_memory_equal(port_log, want, sizeof(want));
	assert_int_equal(s.c->rip, CODE + 1 + 2 + 3 + 2 + 1); /* every one of them ends its block */
	s.c->regs[R_DX] = 0x9999;
	assert_int_equal(RUN(0xec), -1); /* nothing there */
	assert_int_equal(s.c->regs[R_AX] & 0xff, 0xff);
}

/* IOPL, then each byte's bit in the TSS. */
static void port_permission(void **state)
{
	ports_start();
	for (unsigned n = 0; n < 64; n++) {
		unsigned iopl = n & 3, size = 1 << (n >> 2) % 3, blocked = 0x70 + (n >> 4);
		sys_protected(3);
		FLAGS((u64)iopl << 12, FL_IOPL);
		st16(s.mem.ram + TSS + 0x66, 0x100);
		s.mem.ram[TSS + 0x100 + blocked / 8] = (u8)(1u << blocked % 8);
		s.c->regs[R_DX] = 0x70;
		int got = size == 1 ? RUN(0xec) : size == 2 ? RUN(0x66, 0xed) : RUN(0xed);
		assert_int_equal(got, iopl < 3 && blocked < 0x70 + size ? V_GP : -1);
	}
	sys_v86(3);
	st16(s.mem.ram + TSS + 0x66, 0x100);
	s.mem.ram[TSS + 0x100 + 0x70 / 8] = 1;
	s.c->regs[R_DX] = 0x70;
	assert_int_equal(RUN(0xec), V_GP); /* V86: the bitmap counts whatever IOPL */
	s.c->regs[R_DX] = 0x71;
	assert_int_equal(RUN(0xec), -1);
}

static void string_io(void **state)
{
	sys_protected(0);
	ports_start();
	s.c->regs[R_DX] = 0x70;
	s.c->regs[R_DI] = DATA;
	s.c->regs[R_CX] = 3;
	assert_int_equal(RUN(0xf3, 0x6c), -1); /* REP INSB */
	assert_int_equal(*data64(0), 0x464544);
	assert_int_equal(s.c->regs[R_CX], 0);
	assert_int_equal(s.c->regs[R_DI], DATA + 3);
	assert_int_equal(s.c->rip, CODE + 2);
	s.c->rip = CODE;
	FLAGS(FL_DF, FL_DF);
	s.c->regs[R_SI] = DATA + 2;
	s.c->regs[R_CX] = 2;
	assert_int_equal(RUN(0xf3, 0x66, 0x6f), -1); /* REP OUTSW, downwards */
	assert_int_equal(port_log[3], 0x0046ull << 16 | 0x200);
	assert_int_equal(port_log[4], 0x4544ull << 16 | 0x200);
	assert_int_equal(s.c->regs[R_SI], DATA - 2);
	s.c->rip = CODE;
	s.c->regs[R_CX] = 0;
	assert_int_equal(RUN(0xf3, 0x6e), -1); /* nothing to do */
	assert_int_equal(n_log, 5);
}

/* An event between two elements: the instruction is left, to be gone on with. */
static void string_io_is_interruptible(void **state)
{
	sys_protected(0);
	ports_start();
	FLAGS(FL_IF, FL_IF);
	cpu_post_event(s.c, EV_INTR);
	s.c->regs[R_DX] = 0x70;
	s.c->regs[R_DI] = DATA;
	s.c->regs[R_CX] = 3;
	assert_int_equal(RUN(0xf3, 0x6c), -1);
	assert_int_equal(s.c->regs[R_CX], 2);
	assert_int_equal(s.c->rip, CODE);
	cpu_clear_event(s.c, EV_INTR);
	assert_int_equal(RUN(0xf3, 0x6c), -1);
	assert_int_equal(s.c->regs[R_CX], 0);
	assert_int_equal(*data64(0), 0x464544);
}

/* INS that cannot store does not read the port; 16-bit indexes keep the upper half. */
static void string_io_faults_first(void **state)
{
	sys_protected(0);
	ports_start();
	s.c->seg[S_ES].limit = DATA;
	cpu_update_mode(s.c);
	s.c->regs[R_DX] = 0x70;
	s.c->regs[R_DI] = DATA;
	s.c->regs[R_CX] = 3;
	assert_int_equal(RUN(0xf3, 0x6c), V_GP);
	assert_int_equal(n_log, 1);
	assert_int_equal(s.c->regs[R_CX], 2);
	assert_int_equal(s.c->regs[R_DI], DATA + 1);
	sys_protected(3);
	s.c->rflags |= FL_AC | FL_IOPL;
	s.c->cr0 |= CR0_AM;
	cpu_update_mode(s.c);
	s.c->regs[R_DX] = 0x70;
	s.c->regs[R_DI] = DATA + 1;
	assert_int_equal(RUN(0x66, 0x6d), V_AC); /* INSW */
	assert_int_equal(n_log, 1);
	sys_real();
	s.c->regs[R_DX] = 0x70;
	s.c->regs[R_DI] = 0xabcdffff;
	assert_int_equal(RUN(0x6c), -1);
	assert_int_equal(s.c->regs[R_DI], 0xabcd0000);
}

/* ---- waiting --------------------------------------------------------------------------------------------------------------- */

static void halt_and_monitor(void **state)
{
	sys_long(0);
	assert_int_equal(RUN(0xf4), -1);
	assert_int_equal(s.c->activity, ACT_HLT);
	s.c->activity = ACT_RUN;
	assert_int_equal(RUN(0x0f, 0x01, 0xc9), -1); /* MWAIT with nothing armed */
	assert_int_equal(s.c->activity, ACT_RUN);
	s.c->regs[R_AX] = DATA + 70;
	*data64(64) = 0x1234;
	assert_int_equal(RUN(0x0f, 0x01, 0xc8), -1); /* MONITOR */
	assert_true(s.c->monitor_armed);
	assert_int_equal(s.c->monitor_gpa, DATA + 64);
	assert_memory_equal(s.c->monitor_line, data64(64), 64);
	s.c->regs[R_CX] = 2;
	assert_int_equal(RUN(0x0f, 0x01, 0xc9), V_GP);
	assert_int_equal(RUN(0x0f, 0x01, 0xc8), V_GP);
	s.c->regs[R_CX] = 1;
	assert_int_equal(RUN(0x0f, 0x01, 0xc9), -1);
	assert_int_equal(s.c->activity, ACT_MWAIT);
}

/* ---- caches, translations, state --------------------------------------------------------------------------------------------- */

static void cache_instructions(void **state)
{
	sys_long(3);
	s.c->regs[R_AX] = 0x8000000000;
	assert_int_equal(RUN(0x0f, 0xae, 0x38), V_PF); /* CLFLUSH of nothing */
	assert_int_equal(RUN(0x0f, 0x18, 0x08), -1);   /* PREFETCHT0: never */
	s.c->regs[R_AX] = DATA;
	assert_int_equal(RUN(0x0f, 0xae, 0x38), -1);
	assert_int_equal(RUN(0x0f, 0xae, 0xf0), -1); /* MFENCE */
	assert_int_equal(RUN(0xf3, 0x0f, 0x1e, 0xfa), -1); /* ENDBR64 */
	sys_model("max,vendor=amd");
	sys_long(3);
	memset(s.mem.ram + DATA, 0xff, 192);
	s.c->regs[R_AX] = DATA + 64 + 17;
	assert_int_equal(RUN(0x0f, 0x01, 0xfc), -1); /* CLZERO: the line, no more */
	assert_int_equal(*data64(56), ~0ull);
	assert_int_equal(*data64(64) | *data64(120), 0);
	assert_int_equal(*data64(128), ~0ull);
}

static void invalidation(void **state)
{
	sys_long(0);
	u64 *pte = (u64 *)(void *)(s.mem.ram + 0xa000);
	s.c->regs[R_BX] = DATA;
	*data64(0) = 42;
	assert_int_equal(mem_ld64(s.c, 0x200000 + DATA), 0); /* caches the translation */
	pte[1] = 0xe7; /* now the first 2 MiB */
	assert_int_equal(mem_ld64(s.c, 0x200000 + DATA), 0);
	s.c->regs[R_AX] = 0x200000 + DATA;
	assert_int_equal(RUN(0x0f, 0x01, 0x38), -1); /* INVLPG [rax] */
	assert_int_equal(mem_ld64(s.c, 0x200000 + DATA), 42);
	pte[1] = 1 << 21 | 0xe7;
	*data64(16) = 0;
	*data64(24) = 0;
	s.c->regs[R_AX] = 2;
	s.c->regs[R_BX] = DATA + 16;
	assert_int_equal(RUN(0x66, 0x0f, 0x38, 0x82, 0x03), -1); /* INVPCID rax, [rbx]: all */
	assert_int_equal(mem_ld64(s.c, 0x200000 + DATA), 0);
	s.c->regs[R_AX] = 4;
	assert_int_equal(RUN(0x66, 0x0f, 0x38, 0x82, 0x03), V_GP);
	s.c->regs[R_AX] = 1ull << 32;
	assert_int_equal(RUN(0x66, 0x0f, 0x38, 0x82, 0x03), V_GP);
	s.c->regs[R_AX] = 2;
	*data64(16) = 0x1000;
	assert_int_equal(RUN(0x66, 0x0f, 0x38, 0x82, 0x03), V_GP);
}

static void whole_state(void **state)
{
	sys_long(0);
	s.c->cr4 |= CR4_OSFXSR | CR4_OSXSAVE;
	s.c->xcr0 = 3;
	cpu_update_mode(s.c);
	assert_int_equal(RUN(0xdb, 0xe3), -1); /* FNINIT: x87 as XSAVE takes for its initial state */
	memset(s.c->zmm[3], 0x5a, 16);
	s.c->regs[R_BX] = DATA;
	assert_int_equal(RUN(0x0f, 0xae, 0x03), -1); /* FXSAVE [rbx] */
	assert_int_equal(*data64(160 + 48), 0x5a5a5a5a5a5a5a5a);
	memset(s.c->zmm[3], 0, 16);
	assert_int_equal(RUN(0x48, 0x0f, 0xae, 0x0b), -1); /* FXRSTOR64 */
	assert_int_equal(ld64(s.c->zmm[3]), 0x5a5a5a5a5a5a5a5a);
	s.c->regs[R_AX] = 3;
	s.c->regs[R_DX] = 0;
	assert_int_equal(RUN(0x0f, 0xae, 0x63, 0x40), -1); /* XSAVE [rbx+64] */
	assert_int_equal(*data64(64 + 512), 2);            /* only SSE is in use */
	memset(s.c->zmm[3], 0, 16);
	assert_int_equal(RUN(0x0f, 0xae, 0x6b, 0x40), -1); /* XRSTOR */
	assert_int_equal(ld64(s.c->zmm[3]), 0x5a5a5a5a5a5a5a5a);
	s.c->regs[R_BX] = DATA + 8;
	assert_int_equal(RUN(0x0f, 0xae, 0x03), V_GP);
	assert_int_equal(RUN(0x0f, 0xae, 0x23), V_GP);
	s.c->cr0 |= CR0_TS;
	cpu_update_mode(s.c);
	assert_int_equal(RUN(0x0f, 0xae, 0x03), V_NM);
	assert_int_equal(RUN(0x0f, 0xae, 0x23), V_NM);
	assert_int_equal(RUN(0xd9, 0x33), V_NM); /* FNSTENV */
	s.c->cr0 = (s.c->cr0 & ~(u64)CR0_TS) | CR0_EM;
	cpu_update_mode(s.c);
	assert_int_equal(RUN(0x0f, 0xae, 0x03), V_UD);
	assert_int_equal(RUN(0xd9, 0x33), V_NM);
	s.c->cr4 &= ~(u64)CR4_OSXSAVE;
	assert_int_equal(RUN(0x0f, 0xae, 0x23), V_UD);
}

static bool ferr_level;
static void on_ferr(void *arg, bool level) { ferr_level = level; }

/* FLDENV loads a pending exception; the next waiting instruction of these two meets it. */
static void environment_waits(void **state)
{
	sys_long(0);
	s.c->cr0 |= CR0_NE;
	cpu_update_mode(s.c);
	s.c->regs[R_BX] = DATA;
	assert_int_equal(RUN(0xd9, 0x33), -1); /* FNSTENV: 28 bytes */
	assert_int_equal(ld16(data64(0)), 0x40); /* as after reset */
	st16(data64(0), 0x37e); /* unmask invalid operation */
	st16(data64(4), 0x8081); /* pending */
	assert_int_equal(RUN(0xd9, 0x23), -1); /* FLDENV */
	assert_int_equal(RUN(0xd9, 0x23), V_MF);
	assert_int_equal(RUN(0xdd, 0x23), V_MF); /* FRSTOR */
	assert_int_equal(RUN(0xdd, 0x33), -1);   /* FNSAVE does not wait */
	assert_int_equal(ld16(data64(0)), 0x37e);
	assert_int_equal(RUN(0xdd, 0x23), -1); /* nothing pending: FRSTOR brings it back */
	assert_int_equal(RUN(0xd9, 0x23), V_MF);
	/* CR0.NE clear: FERR# instead, and the instruction starts again; FNSAVE takes it back. */
	s.hooks.ferr = on_ferr;
	s.c->cr0 &= ~(u64)CR0_NE;
	assert_int_equal(RUN(0xd9, 0x23), 0xff);
	assert_true(ferr_level);
	assert_int_equal(RUN(0xdd, 0x33), -1);
	assert_false(ferr_level);
}

#define T(f) cmocka_unit_test_setup_teardown(f, sys_up, sys_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(cli_sti), T(sti_twice_has_one_shadow), T(pushf), T(popf), T(popf_vme), T(privileged),
		T(protected_mode_only), T(umip), T(not_here), T(control_registers), T(machine_status_word),
		T(extended_control), T(time_stamp), T(msr_instructions), T(segment_bases), T(descriptor_tables),
		T(moves_to_segments), T(push_pop_segments), T(descriptor_queries), T(far_transfers), T(in_out),
		T(port_permission), T(string_io), T(string_io_is_interruptible), T(string_io_faults_first),
		T(halt_and_monitor), T(cache_instructions), T(invalidation), T(whole_state), T(environment_waits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
