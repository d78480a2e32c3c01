/* Gates and what returns from them: call gates of both sizes, interrupt and trap gates, task
 * gates, DPL rules, error codes, far returns and IRET to outer rings, data segments nulled there.
 * SDM vol. 3 5.8, 6.11 to 6.13; vol. 2 CALL, RET, INT n, IRET. */
#include "guest.h"

const char guest_name[] = "gates";

enum { G = FREE, C = FREE + 1, X = FREE + 2, V = 0x50 };
static const u32 codes[4] = { CODE, CODE1, CODE2, UCODE }, datas[4] = { DATA, DATA1, DATA2, UDATA };
static struct { u32 off; u16 s; } __attribute__((packed)) target;
extern const u8 do_call[], do_jmp[], do_call16[], inner[], inner_ret[], int_v[], int3_[], into_[], iret_[], user_done[], inner16[], outer_back[];
static volatile u32 seen[8];

/* Where call gates lead: what was pushed, then out by INT. */
__asm__(".text\n"
	"do_call: lcall *(%ebx)\nouter_back: int $0x80\n"
	"do_jmp: ljmp *(%ebx)\nint $0x80\n"
	"inner: int $0x80\n"
	"inner_ret: mov %ss:8(%esp),%eax; lret $8\n"
	"inner16: lretw\n"
	"int_v: int $0x50\nint $0x80\n"
	"int3_: int3\nint $0x80\n"
	"into_: into\nint $0x80\n"
	"iret_: iret\n"
	"user_done: int $0x80\n");

static struct regs at_cpl(unsigned cpl, const u8 *code)
{
	struct regs r = user_regs(code);
	r.cs = codes[cpl];
	r.ss = datas[cpl];
	if (!cpl)
		r.ds = r.es = r.fs = r.gs = DATA;
	r.bx = (uptr)&target;
	return r;
}
static int run_at(unsigned cpl, const u8 *code)
{
	struct regs r = at_cpl(cpl, code);
	return go(&r);
}
static u8 stack1[4096], stack0[4096];

/* ---- call gates ------------------------------------------------------------------------------- */

static void call_dpl(void)
{
	/* DPL >= CPL and RPL, target DPL <= CPL; JMP: the same level. */
	for (unsigned jmp = 0; jmp < 2; jmp++)
		for (unsigned cpl = 0; cpl < 4; cpl++) {
			unsigned bad = 0, first = 0, bad_cs = 0;
			for (unsigned n = 0; n < 4 * 4 * 8; n++) {
				unsigned dpl = n & 3, rpl = n >> 2 & 3, tdpl = n >> 4 & 3;
				bool conf = n >> 6 & 1;
				gdt[C] = desc(0, 0xfffff, (conf ? A_CONF : A_XR) | tdpl << 5, F_G | F_B);
				gdt[G] = gate(sel(C, 3), (uptr)inner, A_CALL32 | dpl << 5, 0);
				tss.t.esp1 = tss.t.esp2 = (uptr)stack1 + sizeof(stack1);
				tss.t.ss1 = DATA1;
				tss.t.ss2 = DATA2;
				target.s = sel(G, rpl);
				target.off = 0xdeadbeef;
				int want, got = run_at(cpl, jmp ? do_jmp : do_call);
				u32 ec = sel(G, 0);
				if (dpl < cpl || dpl < rpl)
					want = GP;
				else if (tdpl > cpl || (jmp && !conf && tdpl != cpl))
					want = GP, ec = sel(C, 0);
				else
					want = DONE;
				if ((got != want || (want == GP && trap.err != ec)) && !bad++)
					first = n;
				if (got == DONE && trap.f.cs != sel(C, conf ? cpl : tdpl))
					bad_cs++;
			}
			check_eq(fmt("%s through a gate at CPL %d: all DPL, RPL, target DPL, conforming", jmp ? "jmp" : "call", cpl), bad ? first : 0x1000, 0x1000);
			check_eq(fmt("%s through a gate at CPL %d: CS of the target", jmp ? "jmp" : "call", cpl), bad_cs, 0);
		}
}

static void call_gates(void)
{
	target.s = sel(G, 3);
	target.off = 0;
	gdt[C] = desc(0, 0xfffff, A_XR, F_G | F_B);
	tss.t.esp0 = (uptr)stack0 + sizeof(stack0);
	/* Parameters. */
	for (unsigned params = 0; params < 32; params += params == 4 ? 27 : 1) {
		gdt[G] = gate(sel(C, 0), (uptr)inner, A_CALL32 | A_DPL3, params);
		struct regs r = at_cpl(3, do_call);
		u32 *top = (u32 *)(user_stack_end - 256);
		for (unsigned k = 0; k < 32; k++)
			top[k] = 0x1000 + k;
		r.sp = (uptr)top;
		go(&r);
		u32 *s = (u32 *)trap.f.sp; /* at the inner stack's top: EIP CS params ESP SS */
		bool same = trap.vec == DONE && trap.f.cs == sel(C, 0) && s[0] == (uptr)outer_back && s[1] == UCODE;
		for (unsigned k = 0; k < params; k++)
			same = same && s[2 + k] == 0x1000 + k;
		check(fmt("32-bit gate to CPL 0, %u parameters", params), same && s[2 + params] == (uptr)top && s[3 + params] == UDATA &&
		      (uptr)&s[4 + params] == (uptr)stack0 + sizeof(stack0));
	}
	gdt[G] = gate(sel(C, 0), (uptr)inner_ret, A_CALL32 | A_DPL3, 2);
	struct regs r = at_cpl(3, do_call);
	u32 *top = (u32 *)(user_stack_end - 64);
	top[0] = 0x77;
	r.sp = (uptr)top;
	go(&r);
	check("lret 8 to CPL 3: parameters gone from both stacks", trap.vec == DONE && trap.f.ip == (uptr)outer_back + 2 && trap.f.sp == (uptr)(top + 2) &&
	      trap.f.cs == UCODE && trap.f.ss == UDATA && trap.f.ax == 0x77);
	/* 16-bit gates: words, 16-bit offset. */
	u8 *low = (u8 *)0x10000;
	memcpy(low, inner, 2);
	gdt[G] = gate(sel(C, 0), 0x10000, A_CALL16 | A_DPL3, 0);
	gdt[C] = desc(0x10000, 0xfffff, A_XR, F_G | F_B);
	*(volatile u64 *)&gdt[G] |= (u64)0x7777 << 48; /* must be ignored */
	r = at_cpl(3, do_call);
	u16 *top16 = (u16 *)top;
	top16[0] = 0xaaaa;
	top16[1] = 0xbbbb;
	gdt[G] |= 2ull << 32;
	go(&r);
	u16 *s = (u16 *)trap.f.sp;
	check("286 gate: 16-bit offset, upper half ignored", trap.vec == DONE && trap.f.ip == 2 && trap.f.cs == sel(C, 0));
	check("286 gate: 16-bit frame on the inner stack", s[0] == (u16)(uptr)outer_back && s[1] == UCODE && s[4] == (u16)(uptr)r.sp && s[5] == UDATA &&
	      (uptr)&s[6] == (uptr)stack0 + sizeof(stack0));
	r.sp = (uptr)top;
	go(&r);
	s = (u16 *)trap.f.sp;
	check("286 gate: parameters are words", s[2] == 0xaaaa && s[3] == 0xbbbb);
	/* Same level: no switch, parameters ignored. */
	gdt[C] = desc(0, 0xfffff, A_XR | A_DPL3, F_G | F_B);
	gdt[G] = gate(sel(C, 0), (uptr)inner, A_CALL32 | A_DPL3, 3);
	r.sp = (uptr)top;
	go(&r);
	check("gate to the same level: two words on the same stack", trap.vec == DONE && trap.f.sp == (uptr)top - 8 && trap.f.cs == sel(C, 3) && top[-1] == UCODE);
	gdt[C] = desc(0, 0xfffff, A_CONF, F_G | F_B);
	go(&r);
	check("gate to conforming code of DPL 0: CPL stays 3", trap.vec == DONE && trap.f.cs == sel(C, 3) && trap.f.sp == (uptr)top - 8);
	/* Errors. */
	gdt[C] = desc(0, 0xfffff, A_XR, F_G | F_B);
	gdt[G] = gate(sel(C, 0), (uptr)inner, (A_CALL32 | A_DPL3) & 0x7f, 0);
	run_at(3, do_call);
	check_trap("gate not present: #NP(gate)", NP, sel(G, 0));
	gdt[G] = gate(sel(C, 0), (uptr)inner, A_CALL32 | A_DPL3, 0);
	gdt[C] = desc(0, 0xfffff, A_XR & 0x7f, F_G | F_B);
	run_at(3, do_call);
	check_trap("target not present: #NP(target)", NP, sel(C, 0));
	gdt[C] = desc(0, 0xfffff, A_RW, F_G | F_B);
	run_at(3, do_call);
	check_trap("target is data: #GP(target)", GP, sel(C, 0));
	gdt[G] = gate(3, (uptr)inner, A_CALL32 | A_DPL3, 0);
	run_at(3, do_call);
	check_trap("target null: #GP(0)", GP, 0);
	gdt[G] = gate(sel(GDT_N, 1), (uptr)inner, A_CALL32 | A_DPL3, 0);
	run_at(3, do_call);
	check_trap("target beyond the GDT: #GP(selector)", GP, sel(GDT_N, 0));
	gdt[C] = desc(0, 0xfff, A_XR, F_B);
	gdt[G] = gate(sel(C, 0), 0x1000, A_CALL32 | A_DPL3, 0);
	run_at(3, do_call);
	check_trap("offset beyond the target's limit: #GP(0)", GP, 0);
	gdt[C] = desc(0, 0xfffff, A_XR | A_DPL1, F_G | F_B);
	gdt[G] = gate(sel(C, 0), (uptr)inner, A_CALL32 | A_DPL3, 0);
	static const struct { u32 ss; int vec; u32 ec; const char *name; } stacks[] = {
		{ 0, TS, 0, "null" }, { DATA1 - 1, TS, DATA1 & ~3, "RPL 0" }, { DATA | 1, TS, DATA, "DPL 0" },
		{ CODE1, TS, CODE1 & ~3, "code" }, { GDT_N * 8 + 1, TS, GDT_N * 8, "beyond the GDT" }, { X * 8 + 1, SS, X * 8, "not present" },
	};
	gdt[X] = desc(0, 0xfffff, (A_RW | A_DPL1) & 0x7f, F_G | F_B);
	for (unsigned k = 0; k < ARRAY_LEN(stacks); k++) {
		tss.t.ss1 = stacks[k].ss;
		tss.t.esp1 = (uptr)stack1 + sizeof(stack1);
		run_at(3, do_call);
		check_trap(fmt("inner SS of the TSS %s: #%s", stacks[k].name, stacks[k].vec == TS ? "TS" : "SS"), stacks[k].vec, stacks[k].ec);
	}
	gdt[X] = desc((uptr)stack1, 31, A_RW | A_DPL1, F_B);
	tss.t.ss1 = X * 8 + 1;
	tss.t.esp1 = 12;
	run_at(3, do_call);
	check_trap("inner stack too small: #SS(its selector)", SS, X * 8);
	check("the outer state is whole after that", trap.f.cs == UCODE && trap.f.ss == UDATA && trap.f.sp == (uptr)user_stack_end);
	tss.t.esp1 = 16;
	run_at(3, do_call);
	check_trap("inner stack just large enough", DONE, 0);
	/* A TSS too short for the level's stack. */
	tss.t.ss1 = DATA1;
	gdt[5] = desc((uptr)&tss, 0x0f, A_TSS32, 0);
	__asm__ volatile("ltr %w0" : : "r"(TSS_SEL));
	run_at(3, do_call);
	check_trap("TSS without that level's stack: #TS(TSS)", TS, TSS_SEL);
	gdt[5] = desc((uptr)&tss, sizeof(tss) - 1, A_TSS32, 0);
	__asm__ volatile("ltr %w0" : : "r"(TSS_SEL));
	tss.t.esp0 = (uptr)trap_stack_end;
}

/* ---- far return to outer rings ------------------------------------------------------------------ */

static int ret_frame(u32 ip, u32 cs, u32 sp, u32 ss)
{
	return TRY(__asm__ volatile("push %3; push %2; push %1; push %0; lret" : : "r"(ip), "r"(cs), "r"(sp), "r"(ss)));
}
static int iret_frame(u32 ip, u32 cs, u32 fl, u32 sp, u32 ss)
{
	volatile u32 f[5] = { ip, cs, fl, sp, ss };
	return TRY(__asm__ volatile("mov %%esp,%%ebx; push 16(%0); push 12(%0); push 8(%0); push 4(%0); push (%0); iret" : : "a"(f) : "ebx", "memory"));
}

static void returns(void)
{
	u32 usp = (uptr)user_stack_end;
	for (unsigned cpl = 1; cpl < 4; cpl++) {
		ret_frame((uptr)user_done, codes[cpl], usp, datas[cpl]);
		check(fmt("lret to CPL %u", cpl), trap.vec == DONE && trap.f.cs == codes[cpl] && trap.f.ss == datas[cpl] && trap.f.sp == usp);
		iret_frame((uptr)user_done, codes[cpl], 2, usp, datas[cpl]);
		check(fmt("iret to CPL %u", cpl), trap.vec == DONE && trap.f.cs == codes[cpl] && trap.f.ss == datas[cpl] && trap.f.sp == usp);
	}
	static const struct { u32 cs, ss; int vec; u32 ec; const char *name; } cases[] = {
		{ 3, UDATA, GP, 0, "null CS" }, { UDATA, UDATA, GP, UDATA & ~3, "CS is data" }, { CODE | 3, UDATA, GP, CODE, "CS's DPL is not RPL" },
		{ GDT_N * 8 + 3, UDATA, GP, GDT_N * 8, "CS beyond the GDT" }, { UCODE, 3, GP, 0, "null SS" }, { UCODE, DATA | 3, GP, DATA, "SS of DPL 0" },
		{ UCODE, UDATA - 1, GP, UDATA & ~3, "SS's RPL is not CPL" }, { UCODE, UCODE, GP, UCODE & ~3, "SS is code" },
		{ C * 8 + 3, UDATA, NP, C * 8, "CS not present" }, { UCODE, X * 8 + 3, SS, X * 8, "SS not present" },
		{ UCODE, GDT_N * 8 + 3, GP, GDT_N * 8, "SS beyond the GDT" },
	};
	gdt[C] = desc(0, 0xfffff, (A_XR | A_DPL3) & 0x7f, F_G | F_B);
	gdt[X] = desc(0, 0xfffff, (A_RW | A_DPL3) & 0x7f, F_G | F_B);
	for (unsigned k = 0; k < ARRAY_LEN(cases); k++) {
		ret_frame((uptr)user_done, cases[k].cs, usp, cases[k].ss);
		check_trap(fmt("lret: %s", cases[k].name), cases[k].vec, cases[k].ec);
		iret_frame((uptr)user_done, cases[k].cs, 2, usp, cases[k].ss);
		check_trap(fmt("iret: %s", cases[k].name), cases[k].vec, cases[k].ec);
		check(fmt("iret: %s: still at CPL 0", cases[k].name), trap.f.cs == CODE);
	}
	/* A return goes outward only. */
	extern const u8 to_inner[];
	__asm__ volatile("" : : : "memory");
	run_at(3, to_inner);
	check_trap("iret at CPL 3 to CPL 0: #GP(CS)", GP, CODE);
	/* Conforming code. */
	gdt[C] = desc(0, 0xfffff, A_CONF, F_G | F_B);
	ret_frame((uptr)user_done, C * 8 + 3, usp, UDATA);
	check("lret to conforming code of DPL 0 with RPL 3: CPL 3", trap.vec == DONE && trap.f.cs == C * 8 + 3);
	gdt[C] = desc(0, 0xfffff, A_CONF | A_DPL3, F_G | F_B);
	ret_frame((uptr)user_done, C * 8 + 1, usp, DATA1);
	check_trap("lret to conforming code with DPL above RPL: #GP", GP, C * 8);
	/* Data segments of inner levels become null; conforming code and outer ones stay. */
	gdt[C] = desc(0, 0xfffff, A_CONF, F_G | F_B);
	TRY(__asm__ volatile("mov %0,%%ds; mov %1,%%es; mov %2,%%fs; mov %3,%%gs\n"
		"push %1; push %4; push %5; push %6; lret" : : "r"(DATA), "r"(UDATA), "r"(C * 8), "r"(DATA1), "m"(*(u32 *)&usp), "i"(UCODE), "i"(user_done)));
	check_eq("return to CPL 3: DS of DPL 0 is null", (u16)trap.f.ds, 0);
	check_eq("ES of DPL 3 stays", (u16)trap.f.es, UDATA);
	check_eq("FS, conforming code of DPL 0, stays", (u16)trap.f.fs, C * 8);
	check_eq("GS of DPL 1 is null", (u16)trap.f.gs, 0);
	/* Flags. */
	iret_frame((uptr)user_done, UCODE, 2 | FL_IOPL | FL_IF | FL_AC | 0x200000, usp, UDATA);
	check_eq("iret from CPL 0 sets IOPL, IF, AC, ID", trap.f.flags & (FL_IOPL | FL_IF | FL_AC | 0x200000), FL_IOPL | FL_IF | FL_AC | 0x200000);
	extern const u8 user_iret[];
	struct regs r = at_cpl(3, user_iret);
	go(&r);
	check_eq("iret at CPL 3, IOPL 0: IOPL and IF stay", trap.f.flags & (FL_IOPL | FL_IF), 0);
	r.flags = 2 | FL_IOPL;
	go(&r);
	check_eq("iret at CPL 3, IOPL 3: IF changes, IOPL not", trap.f.flags & (FL_IOPL | FL_IF), FL_IOPL | FL_IF);
	r.flags = 2 | FL_IF;
	r.ip = (uptr)user_done;
	extern const u8 user_popf[];
	r.ip = (uptr)user_popf;
	go(&r);
	check_eq("popf at CPL 3, IOPL 0: IF and IOPL kept", trap.f.flags & (FL_IOPL | FL_IF), FL_IF);
	r.flags = 2 | FL_IOPL | FL_IF;
	go(&r);
	check_eq("popf at CPL 3, IOPL 3: IF changes, IOPL not", trap.f.flags & (FL_IOPL | FL_IF), FL_IOPL);
	extern const u8 user_cli[], user_sti[], user_in[];
	r = at_cpl(3, user_cli);
	go(&r);
	check_trap("cli at CPL 3, IOPL 0: #GP(0)", GP, 0);
	r.ip = (uptr)user_sti;
	go(&r);
	check_trap("sti at CPL 3, IOPL 0: #GP(0)", GP, 0);
	r.flags = 2 | FL_IOPL;
	go(&r);
	check("sti at CPL 3, IOPL 3", trap.vec == DONE && (trap.f.flags & FL_IF));
	for (unsigned cpl = 1; cpl < 4; cpl++)
		for (unsigned iopl = 0; iopl < 4; iopl++) {
			r = at_cpl(cpl, user_cli);
			r.flags = 2 | iopl << 12 | FL_IF;
			go(&r);
			check(fmt("cli at CPL %u, IOPL %u", cpl, iopl), trap.vec == (cpl <= iopl ? DONE : GP));
		}
	/* The I/O bitmap. */
	r = at_cpl(3, user_in);
	r.dx = 0x61;
	go(&r);
	check_trap("in, bit set: #GP(0)", GP, 0);
	tss.io[0x61 / 8] &= ~2;
	go(&r);
	check_trap("in, bit clear", DONE, 0);
	extern const u8 user_inw[], user_inl[];
	r.ip = (uptr)user_inw;
	r.dx = 0x60;
	go(&r);
	check_trap("inw, one of two bits set: #GP(0)", GP, 0);
	tss.io[0x61 / 8] = 0xff;
	tss.io[0x87 / 8] = 0x7f; tss.io[0x88 / 8] = 0xfe;
	r.dx = 0x87;
	go(&r);
	check_trap("inw across two bytes of the bitmap", DONE, 0);
	r.ip = (uptr)user_inl;
	go(&r);
	check_trap("inl across: a bit of the second byte", GP, 0);
	tss.io[0x87 / 8] = tss.io[0x88 / 8] = 0xff;
	tss.t.iomap = 0xffff;
	r.ip = (uptr)user_in;
	r.dx = 0;
	go(&r);
	check_trap("bitmap beyond the TSS: #GP(0)", GP, 0);
	tss.t.iomap = TSS_IOMAP;
	r.flags = 2 | FL_IOPL;
	r.dx = 0x61;
	go(&r);
	check_trap("in with IOPL 3: no bitmap asked", DONE, 0);
}
__asm__(".text\n"
	"to_inner: push $2; push $8; push $user_done; iret\n"
	".globl to_inner,user_iret,user_popf,user_cli,user_sti,user_in,user_inw,user_inl\n"
	"user_iret: pushl $0x1202; push $0x1b; push $user_done; iret\n"
	"user_popf: pushl $0x1002; popfl; int $0x80\n"
	"user_cli: cli; int $0x80\nuser_sti: sti; int $0x80\nuser_in: in %dx,%al; int $0x80\nuser_inw: in %dx,%ax; int $0x80\nuser_inl: in %dx,%eax; int $0x80\n");

/* ---- interrupt gates --------------------------------------------------------------------------------- */

static void int_gates(void)
{
	struct regs r;
	for (unsigned cpl = 0; cpl < 4; cpl++)
		for (unsigned dpl = 0; dpl < 4; dpl++) {
			set_idt(V, A_INT32 | dpl << 5);
			run_at(cpl, int_v);
			check_trap(fmt("int n at CPL %u through a gate of DPL %u", cpl, dpl), dpl < cpl ? GP : V, dpl < cpl ? V * 8 + 2 : 0);
		}
	set_idt(BP, A_INT32);
	run_at(3, int3_);
	check_trap("int3 at CPL 3, DPL 0: #GP(vector*8+2)", GP, BP * 8 + 2);
	set_idt(OF, A_INT32);
	r = at_cpl(3, into_);
	r.flags = 2 | FL_OF;
	go(&r);
	check_trap("into at CPL 3, DPL 0: #GP(vector*8+2)", GP, OF * 8 + 2);
	set_idt(BP, A_INT32 | A_DPL3);
	set_idt(OF, A_INT32 | A_DPL3);
	run_at(3, int3_);
	check("int3: EIP after it", trap.vec == BP && trap.f.ip == (uptr)int3_ + 1);
	run_at(3, (const u8 *)"\x0f\x0b");
	check_trap("#UD at CPL 3 ignores the gate's DPL", UD, 0);
	/* IF, TF, NT, RF. */
	for (unsigned trapg = 0; trapg < 2; trapg++) {
		set_idt(V, (trapg ? A_TRAP32 : A_INT32) | A_DPL3);
		r = at_cpl(3, int_v);
		r.flags = 2 | FL_IF | FL_NT | FL_AC | FL_IOPL;
		extern u32 flags_in_handler;
		extern const u8 flag_probe[];
		idt[V] = gate(CODE, (uptr)flag_probe, (trapg ? A_TRAP32 : A_INT32) | A_DPL3, 0);
		go(&r);
		check_eq(fmt("%s gate: flags in the handler", trapg ? "trap" : "interrupt"), flags_in_handler & (FL_IF | FL_NT | FL_TF | FL_AC | FL_IOPL),
			 (trapg ? FL_IF : 0) | FL_AC | FL_IOPL);
		check_eq(fmt("%s gate: flags pushed", trapg ? "trap" : "interrupt"), trap.f.flags & (FL_IF | FL_NT | FL_AC | FL_IOPL), FL_IF | FL_NT | FL_AC | FL_IOPL);
	}
	/* 286 gates push words. */
	static u16 *low;
	low = (u16 *)0x10000;
	extern const u8 probe16[], probe16_end[];
	memcpy(low, probe16, (uptr)(probe16_end - probe16));
	gdt[C] = desc(0x10000, 0xfffff, A_XR, F_G | F_B);
	idt[V] = gate(C * 8, 0, A_INT16 | A_DPL3, 0) | (u64)0x1234 << 48;
	r = at_cpl(3, int_v);
	go(&r);
	u16 *s = (u16 *)trap.f.sp;
	check("286 interrupt gate: five words, 16-bit offset", trap.vec == DONE && trap.f.cs == C * 8 && s[0] == (u16)((uptr)int_v + 2) && s[1] == UCODE &&
	      s[3] == (u16)(uptr)user_stack_end && s[4] == UDATA && (uptr)(s + 5) == (uptr)trap_stack_end);
	/* Error codes: only exceptions push them. */
	idt[V] = gate(CODE, (uptr)user_done, A_INT32, 0);
	TRY(__asm__ volatile("mov %esp,%edx; int $0x50"));
	check("int n: EFLAGS, CS, EIP", trap.f.sp == trap.f.dx - 12);
	set_idt(GP, A_INT32 | A_DPL3);
	TRY(__asm__ volatile("mov %esp,%edx; int $13"));
	/* the stub for 13 took EIP for an error code */
	check("int 13: no error code", trap.vec == GP && trap.raw[1] == CODE && (trap.raw[2] & 2) && trap.at == trap.f.dx - 12);
	set_idt(GP, A_INT32);
	TRY(__asm__ volatile("mov %esp,%edx; mov $0xfff8,%eax; mov %ax,%fs"));
	check("#GP: an error code", trap.raw[0] == 0xfff8 && trap.raw[2] == CODE && trap.at == trap.f.dx - 16);
	/* Bad gates. */
	static const struct { u64 g; int vec; u32 ec; const char *name; } bad[] = {
		{ 0, GP, V * 8 + 2, "zero" },
		{ 0x00008e0000080000ull & ~(0x80ull << 40), NP, V * 8 + 2, "not present" },
		{ 0x00008c0000080000ull, GP, V * 8 + 2, "a call gate" },
		{ 0x00009a0000080000ull, GP, V * 8 + 2, "a code descriptor" },
		{ 0x0000890000080000ull, GP, V * 8 + 2, "a TSS" },
		{ 0x00008e0000000000ull, GP, 0, "to a null CS" },
		{ 0x00008e0000100000ull, GP, DATA, "to data" },
		{ 0x00008e0008000000ull, GP, 0x800, "to beyond the GDT" },
		{ 0x00008e00001b0000ull, GP, 0x18, "to an outer level" },
		{ 0x0000850000100000ull, GP, DATA, "a task gate to data" },
		{ 0x0000850000000000ull, GP, 0, "a task gate to null" },
		{ 0x0000850000280000ull, GP, TSS_SEL, "a task gate to a busy TSS" },
	};
	for (unsigned k = 0; k < ARRAY_LEN(bad); k++) {
		idt[V] = bad[k].g;
		TRY(__asm__ volatile("int $0x50"));
		check_trap(fmt("a gate that is %s", bad[k].name), bad[k].vec, bad[k].ec);
	}
	gdt[C] = desc(0, 0xfffff, A_XR & 0x7f, F_G | F_B);
	idt[V] = gate(C * 8, (uptr)user_done, A_INT32, 0);
	TRY(__asm__ volatile("int $0x50"));
	check_trap("gate's CS not present: #NP(CS)", NP, C * 8);
	gdt[C] = desc(0, 0xfff, A_XR, F_B);
	idt[V] = gate(C * 8, 0x1000, A_INT32, 0);
	TRY(__asm__ volatile("int $0x50"));
	check_trap("gate's offset beyond CS's limit: #GP(0)", GP, 0);
	struct dtr d = { V * 8 + 6, (uptr)idt };
	TRY(__asm__ volatile("lidt %0; int $0x50" : : "m"(d)));
	load_tables();
	check_trap("vector beyond the IDT: #GP(vector*8+2)", GP, V * 8 + 2);
	/* EXT: an exception on the way of delivering another one that is no INT n. */
	u64 old = idt[UD];
	idt[UD] = old & ~(0x80ull << 40);
	TRY(__asm__ volatile("ud2"));
	check_trap("#UD whose gate is not present: #NP with EXT", NP, UD * 8 + 3);
	check("the frame is the ud2's", *(u16 *)trap.f.ip == 0x0b0f);
	idt[UD] = gate(0, 0, A_INT32, 0);
	TRY(__asm__ volatile("ud2"));
	check_trap("#UD whose gate has a null CS: #GP(EXT)", GP, 1);
	idt[UD] = old;
	/* Conforming handler: stays at CPL 3 on the user's stack. */
	gdt[C] = desc(0, 0xfffff, A_CONF, F_G | F_B);
	extern const u8 conf_handler[];
	idt[V] = gate(C * 8, (uptr)conf_handler, A_INT32 | A_DPL3, 0);
	run_at(3, int_v);
	check("conforming handler: CPL 3, three words on the same stack", trap.vec == DONE && trap.f.cs == C * 8 + 3 && trap.f.sp == (uptr)user_stack_end - 12);
	/* Rings 1 and 2. */
	for (unsigned cpl = 1; cpl < 3; cpl++) {
		idt[V] = gate(codes[cpl] & ~3u, (uptr)user_done, A_INT32 | A_DPL3, 0);
		tss.t.ss1 = DATA1;
		tss.t.ss2 = DATA2;
		tss.t.esp1 = tss.t.esp2 = (uptr)stack1 + sizeof(stack1);
		run_at(3, int_v);
		check(fmt("handler at CPL %u", cpl), trap.vec == DONE && trap.f.cs == codes[cpl] && trap.f.ss == datas[cpl] &&
		      trap.f.sp == (uptr)stack1 + sizeof(stack1) - 20);
	}
	set_idt(V, A_INT32);
}
__asm__(".text\n.globl flag_probe,probe16,probe16_end,conf_handler,flags_in_handler\n"
	"flag_probe: pushfl; pop %eax; mov %ds,%ecx; push $0x10; pop %ds; mov %eax,flags_in_handler; mov %ecx,%ds; jmp stubs+16*0x50\n"
	"probe16: int $0x80\nprobe16_end: nop\n"
	"conf_handler: int $0x80\n"
	".data\nflags_in_handler: .long 0\n.text\n");

int main(void)
{
	call_dpl();
	call_gates();
	returns();
	int_gates();
	return 0;
}
