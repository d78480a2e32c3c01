/* Real mode: vector table, faults, limits, wrap-around, unreal mode, the way to protected mode
 * and back. SDM vol. 3 ch. 20 (8086 emulation), 6.4; AMD APM vol. 2 ch. 1. Snippets run at
 * 1000:0000 and see interrupts by lib's vector table, so the frame that the processor pushed is
 * what trap.f shows. */
#include "guest.h"

const char guest_name[] = "real";

static struct regs r;
#define START() (r = regs16())
static u8 *at(u32 lin) { u8 *p = (u8 *)(uptr)lin; __asm__("" : "+r"(p)); return p; }
static u16 get16(u32 lin) { u16 v; memcpy(&v, at(lin), 2); return v; }
static void set16(u32 lin, u16 v) { memcpy(at(lin), &v, 2); }

/* ---- registers, flags ------------------------------------------------------------------------ */

CODE16_SNIPPET(s_add, "add %bx,%ax; pushfw; popw %cx");
CODE16_SNIPPET(s_add32, "add %ebx,%eax");
CODE16_SNIPPET(s_pushf, "movw $0xfeff,%ax; pushw %ax; popfw; pushfw; popw %ax; pushw $2; popfw");
CODE16_SNIPPET(s_pushfd, "pushl $0x00240202; popfl; pushfl; popl %eax; pushl $2; popfl");
CODE16_SNIPPET(s_mulw, "mulw %bx");
CODE16_SNIPPET(s_divw, "divw %bx");
CODE16_SNIPPET(s_idivb, "idivb %bl");
CODE16_SNIPPET(s_aam, "aam $7");
CODE16_SNIPPET(s_aam0, "aam $0");
CODE16_SNIPPET(s_daa, "daa");
CODE16_SNIPPET(s_loop, "1: inc %bx; loop 1b");
CODE16_SNIPPET(s_jcxz, "jcxz 1f; mov $1,%bx; 1:");
CODE16_SNIPPET(s_loop32, "1: inc %bx; addr32 loop 1b");
CODE16_SNIPPET(s_enter, "enter $16,$3; mov %sp,%ax; mov %bp,%bx; leave; mov %sp,%cx");
CODE16_SNIPPET(s_pushsp, "push %sp; pop %ax");
CODE16_SNIPPET(s_pusha, "pushaw; mov %sp,%bp; movw 6(%bp),%cx; popaw");
CODE16_SNIPPET(s_bound, "boundw %ax,(%bx)");
CODE16_SNIPPET(s_into, "into");
CODE16_SNIPPET(s_int3, "int3");
CODE16_SNIPPET(s_cd03, ".byte 0xcd,3");
CODE16_SNIPPET(s_ud2, "ud2");
CODE16_SNIPPET(s_lar, "larw %ax,%bx");
CODE16_SNIPPET(s_arpl, "arpl %ax,%bx");
CODE16_SNIPPET(s_str, "str %ax");
CODE16_SNIPPET(s_sldt, "sldt %ax");
CODE16_SNIPPET(s_verr, "verr %ax");
CODE16_SNIPPET(s_lldt, "lldt %ax");
CODE16_SNIPPET(s_ltr, "ltr %ax");
CODE16_SNIPPET(s_sysenter, "sysenter");
CODE16_SNIPPET(s_lockud, ".byte 0xf0; nop");
CODE16_SNIPPET(s_long, ".fill 15,1,0x26; nop");
CODE16_SNIPPET(s_14, ".fill 14,1,0x26; nop");
CODE16_SNIPPET(s_int21, "stc; sti; int $0x21");
CODE16_SNIPPET(s_hltless, "cli; nop; sti; nop; pushfw; pop %ax; cli");
CODE16_SNIPPET(s_salc, "stc; .byte 0xd6; mov %al,%bl; clc; .byte 0xd6");
CODE16_SNIPPET(s_xlat, "xlatb");
CODE16_SNIPPET(s_lds, "lds (%bx),%si; mov %ds,%ax");
CODE16_SNIPPET(s_les, "les (%bx),%di; mov %es,%ax");
CODE16_SNIPPET(s_lss, "lss (%bx),%sp; mov %sp,%ax; mov %ss,%cx; mov $0x4000,%dx; mov %dx,%ss; mov $0x8000,%sp");
CODE16_SNIPPET(s_movseg, "mov %cs,%ax; mov %ss,%bx; push %cs; pop %cx; push %fs; pop %dx");
CODE16_SNIPPET(s_movcs, ".byte 0x8e,0xc8");

static void flags(void)
{
	START(); r.ax = 0x7fff; r.bx = 1;
	REAL(s_add, &r);
	check_eq("add ax", trap.f.ax, 0x8000);
	check_eq("add flags OF SF AF PF", trap.f.cx & 0x8d5, 0x894);
	START(); r.ax = 0xffffffff; r.bx = 2;
	REAL(s_add, &r);
	check_eq("16-bit add keeps the upper half", trap.f.ax, 0xffff0001);
	START(); r.ax = 0xffffffff; r.bx = 2;
	REAL(s_add32, &r);
	check_eq("operand size prefix: 32-bit add", trap.f.ax, 1);
	START();
	REAL(s_pushf, &r);
	check_eq("POPF in real mode: IOPL, NT, TF off after INT, all others", trap.f.ax & ~0x100u, 0x7ed7);
	START();
	REAL(s_pushfd, &r);
	check_eq("POPFD in real mode: AC, ID", trap.f.ax & 0x260200, 0x240200);
	START(); r.ax = 0x1234; r.bx = 0x1000;
	REAL(s_mulw, &r);
	check("mul ax", (u16)trap.f.ax == 0x4000 && (u16)trap.f.dx == 0x123);
	START(); r.dx = 1; r.ax = 5; r.bx = 0x10;
	REAL(s_divw, &r);
	check("div", trap.vec == DONE && (u16)trap.f.ax == 0x1000 && (u16)trap.f.dx == 5);
	START(); r.bx = 0;
	REAL(s_divw, &r);
	check("#DE: vector 0, IP of the instruction", trap.vec == DE && trap.f.ip == 0);
	START(); r.dx = 2; r.ax = 0; r.bx = 2;
	REAL(s_divw, &r);
	check("#DE: quotient too large", trap.vec == DE && trap.f.dx == 2 && trap.f.ax == 0);
	START(); r.ax = 0x8000; r.bx = 0xff;
	REAL(s_idivb, &r);
	check("idiv -32768/-1 byte: #DE", trap.vec == DE);
	START(); r.ax = 0xff80; r.bx = 1;
	REAL(s_idivb, &r);
	check("idiv -128/1 byte", trap.vec == DONE && (u16)trap.f.ax == 0x0080);
	START(); r.ax = 52;
	REAL(s_aam, &r);
	check_eq("aam 7", (u16)trap.f.ax, 0x0703);
	START();
	REAL(s_aam0, &r);
	check_eq("aam 0: #DE", trap.vec, DE);
	START(); r.ax = 0x3d;
	REAL(s_daa, &r);
	check_eq("daa", (u8)trap.f.ax, 0x43);
	START(); r.cx = 0x10005;
	REAL(s_loop, &r);
	check("loop counts CX", trap.f.bx == 5 && trap.f.cx == 0x10000);
	START(); r.cx = 0x10000;
	REAL(s_jcxz, &r);
	check_eq("jcxz looks at CX", trap.f.bx, 0);
	START(); r.cx = 0x10001;
	REAL(s_loop32, &r);
	check("addr32 loop counts ECX", (u16)trap.f.bx == 1 && trap.f.cx == 0);
	START(); r.bp = 0x9000;
	REAL(s_enter, &r);
	check("enter 16,3 and leave", (u16)trap.f.bx == 0x7ffe && (u16)trap.f.ax == 0x8000 - 2 - 6 - 16 && (u16)trap.f.cx == 0x8000 &&
	      trap.f.bp == 0x9000);
	START();
	REAL(s_pushsp, &r);
	check_eq("push sp pushes the old value", (u16)trap.f.ax, 0x8000);
	START(); r.cx = 0x77;
	REAL(s_pusha, &r);
	check("pusha: SP in it, CX back", (u16)trap.f.sp == 0x8000 && trap.f.cx == 0x77 && get16(0x40000 + 0x7ff6) == 0x8000);
	set16(0x20010, 5); set16(0x20012, 9);
	for (int v = 4; v <= 10; v += 1) {
		START(); r.bx = 0x10; r.ax = (uptr)v;
		REAL(s_bound, &r);
		check_eq(fmt("bound %d in 5..9", v), trap.vec, v < 5 || v > 9 ? BR : DONE);
	}
	check_eq("bound: IP is the instruction's", trap.f.ip, 0);
	START(); r.flags |= FL_OF;
	REAL(s_into, &r);
	check("into with OF: vector 4, IP after", trap.vec == OF && trap.f.ip == 1);
	START();
	REAL(s_into, &r);
	check_eq("into without OF", trap.vec, DONE);
	START();
	REAL(s_int3, &r);
	check("int3: vector 3, IP after", trap.vec == BP && trap.f.ip == 1);
	START();
	REAL(s_cd03, &r);
	check("int 3, long form", trap.vec == BP && trap.f.ip == 2);
	START();
	REAL(s_salc, &r);
	check("salc", (u8)trap.f.bx == 0xff && (u8)trap.f.ax == 0);
	START(); r.bx = 0xfff0; r.ax = 0x20; at(0x20010)[0] = 0x99;
	REAL(s_xlat, &r);
	check_eq("xlat wraps at 64 KiB", (u8)trap.f.ax, 0x99);
}

static void undefined(void)
{
	static const struct { const u8 *code, *end; const char *name; } uds[] = {
#define U(n, text) { s_##n, s_##n##_end, text }
		U(ud2, "ud2"), U(lar, "lar"), U(arpl, "arpl"), U(str, "str"), U(sldt, "sldt"), U(verr, "verr"), U(lldt, "lldt"),
		U(ltr, "ltr"), U(lockud, "lock nop"), U(movcs, "mov cs,ax"),
	};
	for (unsigned k = 0; k < ARRAY_LEN(uds); k++) {
		START();
		put16(uds[k].code, uds[k].end);
		real_run(&r, false);
		check(fmt("real mode #UD: %s", uds[k].name), trap.vec == UD && trap.f.ip == 0 && trap.f.cs == SNIP_SEG);
	}
	START();
	REAL(s_sysenter, &r);
	check_eq("real mode sysenter: #GP", trap.vec, GP);
	START();
	REAL(s_long, &r);
	check("16 bytes of prefixes: #GP", trap.vec == GP && trap.f.ip == 0);
	START();
	REAL(s_14, &r);
	check_eq("15 bytes are an instruction", trap.vec, DONE);
	START();
	REAL(s_int21, &r);
	check("int 21: IP, CS, FLAGS pushed", trap.vec == 0x21 && trap.f.ip == 4 && trap.f.cs == SNIP_SEG && (trap.f.flags & 0x201) == 0x201);
	check_eq("int: SP down by 6", (u16)trap.f.sp, 0x8000);
	START();
	REAL(s_hltless, &r);
	check("sti sets IF", trap.f.ax & FL_IF);
	set16(0x20010, 0x1111); set16(0x20012, 0x2222);
	START(); r.bx = 0x10;
	REAL(s_lds, &r);
	check("lds", (u16)trap.f.si == 0x1111 && (u16)trap.f.ax == 0x2222 && trap.f.ds == 0x2222);
	START(); r.bx = 0x10;
	REAL(s_les, &r);
	check("les", (u16)trap.f.di == 0x1111 && trap.f.es == 0x2222);
	START(); r.bx = 0x10;
	REAL(s_lss, &r);
	check("lss", (u16)trap.f.ax == 0x1111 && (u16)trap.f.cx == 0x2222);
	START();
	REAL(s_movseg, &r);
	check("mov from segments", (u16)trap.f.ax == SNIP_SEG && (u16)trap.f.bx == 0x4000 && (u16)trap.f.cx == SNIP_SEG && (u16)trap.f.dx == 0x2000);
}

/* ---- limits and wrap ---------------------------------------------------------------------------- */

CODE16_SNIPPET(s_ldw, "movw (%bx),%ax");
CODE16_SNIPPET(s_ldb, "movb (%bx),%al");
CODE16_SNIPPET(s_stw, "movw %ax,(%bx)");
CODE16_SNIPPET(s_ldd, "movl (%bx),%eax");
CODE16_SNIPPET(s_ldbp, "movw (%bp),%ax");
CODE16_SNIPPET(s_ldbpds, "movw %ds:(%bp),%ax");
CODE16_SNIPPET(s_ld32, "addr32 movb (%ebx),%al");
CODE16_SNIPPET(s_ldsib, "addr32 movb (%ebx,%ecx,4),%al");
CODE16_SNIPPET(s_ldwrap, "movb 0x10(%bx,%si),%al");
CODE16_SNIPPET(s_ldesp, "addr32 movw (%esp),%ax");
CODE16_SNIPPET(s_push, "pushw %ax");
CODE16_SNIPPET(s_pushl, "pushl %eax");
CODE16_SNIPPET(s_popw, "popw %ax; mov %sp,%bx; mov $0x8000,%sp");
CODE16_SNIPPET(s_lodsw, "lodsw");
CODE16_SNIPPET(s_movsb, "rep movsb");
CODE16_SNIPPET(s_movsw, "rep movsw");
CODE16_SNIPPET(s_stosd, "std; rep stosl; cld");
CODE16_SNIPPET(s_movsb32, "addr32 rep movsb");
CODE16_SNIPPET(s_scas, "repne scasb");
CODE16_SNIPPET(s_cmps, "repe cmpsb");
CODE16_SNIPPET(s_jmpfar, "ljmp *(%bx)");
CODE16_SNIPPET(s_callfar, "lcall *(%bx)");
CODE16_SNIPPET(s_retf4, "pushw $0x77; pushw $0x66; pushw $0x1000; pushw $(1f-s_retf4); lret $2; nop; 1: popw %ax");
CODE16_SNIPPET(s_jmpnear32, "jmpl *%eax");
CODE16_SNIPPET(s_jmp16, "jmp *%ax");
CODE16_SNIPPET(s_callnear, "call 1f; 1: pop %ax");

static void limits(void)
{
	at(0x2ffff)[0] = 0x12; at(0x20000)[0] = 0x34; at(0x30000)[0] = 0x56;
	START(); r.bx = 0xffff;
	REAL(s_ldb, &r);
	check_eq("byte at FFFF", (u8)trap.f.ax, 0x12);
	START(); r.bx = 0xffff;
	REAL(s_ldw, &r);
	check("word at FFFF: #GP, vector 13", trap.vec == GP && trap.f.ip == 0);
	START(); r.bx = 0xffff;
	REAL(s_stw, &r);
	check_eq("store of a word at FFFF: #GP", trap.vec, GP);
	START(); r.bx = 0xfffd;
	REAL(s_ldd, &r);
	check_eq("dword at FFFD: #GP", trap.vec, GP);
	START(); r.bx = 0xfffc;
	REAL(s_ldd, &r);
	check_eq("dword at FFFC", trap.vec, DONE);
	START(); r.bp = 0xffff;
	REAL(s_ldbp, &r);
	check_eq("word at SS:FFFF: #SS, vector 12", trap.vec, SS);
	START(); r.bp = 0xffff;
	REAL(s_ldbpds, &r);
	check_eq("word at DS:BP=FFFF: #GP", trap.vec, GP);
	START(); r.bx = 0x10000;
	REAL(s_ld32, &r);
	check_eq("32-bit address above the limit: #GP", trap.vec, GP);
	START(); r.bx = 0x10000;
	REAL(s_ldb, &r);
	check("16-bit address ignores the upper half", trap.vec == DONE && (u8)trap.f.ax == 0x34);
	START(); r.bx = 0xff00; r.cx = 0x40;
	at(0x20000)[0] = 0x34;
	REAL(s_ldsib, &r);
	check_eq("SIB address at 10000: #GP", trap.vec, GP);
	START(); r.bx = 0xfff0; r.si = 0;
	REAL(s_ldwrap, &r);
	check_eq("bx+si+disp wraps to 0", (u8)trap.f.ax, 0x34);
	START(); r.sp = 0xffff;
	REAL(s_ldesp, &r);
	check_eq("[esp] is SS: #SS", trap.vec, SS);
	/* Pushes: SP = 1 faults (#SS), SP = 0 wraps. */
	START(); r.sp = 0; r.ax = 0xabcd;
	REAL(s_push, &r);
	check("push at SP 0 wraps to FFFE", trap.vec == DONE && get16(0x4fffe) == 0xabcd);
	START(); r.sp = 2; r.ax = 0x55667788;
	set16(0x40000, 0);
	REAL(s_push, &r);
	check("push at SP 2", trap.vec == DONE && get16(0x40000) == 0x7788);
	START(); r.sp = 0xfffe; set16(0x4fffe, 0x4321);
	REAL(s_popw, &r);
	check("pop at FFFE: SP wraps to 0", (u16)trap.f.ax == 0x4321 && (u16)trap.f.bx == 0);
	START(); r.si = 0xffff;
	REAL(s_lodsw, &r);
	check("lodsw at FFFF: #GP, SI kept", trap.vec == GP && trap.f.si == 0xffff);
	/* Strings step 16 bits. */
	for (unsigned k = 0; k < 8; k++)
		at(0x2fffc)[0 + (k < 4 ? k : 0)] = (u8)(0xa0 + k);
	for (unsigned k = 0; k < 4; k++) {
		at(0x2fffc)[k] = (u8)(0xa0 + k);
		at(0x20000)[k] = (u8)(0xb0 + k);
	}
	START(); r.si = 0xfffc; r.di = 0xfffe; r.cx = 0x90006;
	REAL(s_movsb, &r);
	check("rep movsb wraps SI and DI, counts CX", trap.vec == DONE && (u16)trap.f.si == 2 && (u16)trap.f.di == 4 && trap.f.cx == 0x90000);
	check("rep movsb moved across the wrap", at(0x3fffe)[0] == 0xa0 && at(0x3ffff)[0] == 0xa1 && at(0x30000)[0] == 0xa2 && at(0x30003)[0] == 0xb1);
	START(); r.si = 0xfffb; r.di = 0x100; r.cx = 4;
	REAL(s_movsw, &r);
	check("rep movsw: stops at the limit with the rest counted", trap.vec == GP && trap.f.cx == 2 && trap.f.si == 0xffff && trap.f.di == 0x104 && trap.f.ip == 0);
	START(); r.di = 8; r.cx = 4; r.ax = 0x01020304;
	REAL(s_stosd, &r);
	check("std rep stosd: #GP when DI wraps to FFFC is no fault", trap.vec == DONE && (u16)trap.f.di == 0xfff8 && at(0x3fffc)[0] == 4);
	START(); r.si = 0xfffe; r.di = 0x10; r.cx = 4;
	REAL(s_movsb32, &r);
	check("addr32 rep movsb: no wrap, #GP at 10000", trap.vec == GP && trap.f.cx == 2 && trap.f.si == 0x10000);
	memset(at(0x30000), 0x11, 16); at(0x30005)[0] = 0x22;
	START(); r.ax = 0x22; r.cx = 16;
	REAL(s_scas, &r);
	check("repne scasb", trap.f.di == 6 && trap.f.cx == 10);
	memset(at(0x20000), 0x11, 16);
	START(); r.cx = 16;
	REAL(s_cmps, &r);
	check("repe cmpsb", trap.f.si == 6 && trap.f.cx == 10);
	/* Far transfers. */
	set16(0x20010, 2); set16(0x20012, 0x1800);
	at(0x18002)[0] = 0xcd; at(0x18003)[0] = 0x81;
	START(); r.bx = 0x10;
	REAL(s_jmpfar, &r);
	check("far jmp", trap.vec == 0x81 && trap.f.cs == 0x1800 && trap.f.ip == 4);
	START(); r.bx = 0x10;
	REAL(s_callfar, &r);
	check("far call pushes CS:IP", trap.vec == 0x81 && get16(0x47ffe) == SNIP_SEG && get16(0x47ffc) == 2 && trap.f.sp == 0x7ffc);
	START();
	REAL(s_retf4, &r);
	check_eq("retf 2 drops two bytes", (u16)trap.f.ax, 0x77);
	START(); r.ax = 0x12345;
	REAL(s_jmpnear32, &r);
	check("jmp eax beyond the limit: #GP", trap.vec == GP && trap.f.ip == 0);
	at(0x12345)[0] = 0xcd; at(0x12346)[0] = 0x82;
	START(); r.ax = 0x92345;
	REAL(s_jmp16, &r);
	check("jmp ax: 16 bits", trap.vec == 0x82 && trap.f.ip == 0x2347);
	START();
	REAL(s_callnear, &r);
	check_eq("near call", (u16)trap.f.ax, 3);
	/* An instruction that runs over the end of the segment; one that ends just there. */
	at(0x1ffff)[0] = 0xb8;
	START(); r.ax = 0xffff;
	REAL(s_jmp16, &r);
	check("fetch over FFFF: #GP", trap.vec == GP && trap.f.ip == 0xffff);
	at(0x1fffe)[0] = 0xcd; at(0x1ffff)[0] = 0x83;
	START(); r.ax = 0xfffe;
	REAL(s_jmp16, &r);
	check_eq("an INT in the last two bytes", trap.vec, 0x83);
	check("its return IP wraps to 0 or is 10000 cut", (u16)trap.f.ip == 0);
}

/* ---- tables, registers of the system ---------------------------------------------------------------- */

CODE16_SNIPPET(s_lidt, "lidtl (%bx); int $0xff");
CODE16_SNIPPET(s_lidt_ok, "lidtl (%bx); int $0x30");
CODE16_SNIPPET(s_sidt, "lidtl (%bx); sidtl (%si); lidtl %cs:(1f-s_sidt); jmp 2f; 1: .word 0x3ff; .long 0; 2:");
CODE16_SNIPPET(s_smsw, "smsw %ax");
CODE16_SNIPPET(s_lmsw, "smsw %ax; mov %ax,%bx; or $8,%ax; lmsw %ax; smsw %cx; clts; smsw %dx");
CODE16_SNIPPET(s_cr0, "mov %cr0,%eax");
CODE16_SNIPPET(s_pg, "mov %cr0,%eax; or $0x80000000,%eax; mov %eax,%cr0");
CODE16_SNIPPET(s_iret, "pushw $0x7202; pushw $0x1000; pushw $(1f-s_iret); iretw; 1: pushfw; pop %ax; pushw $2; popfw");
CODE16_SNIPPET(s_tf, "pushw $0x102; popfw; nop");
CODE16_SNIPPET(s_icebp, ".byte 0xf1");
CODE16_SNIPPET(s_in, "inb $0x92,%al");
CODE16_SNIPPET(s_a20off, "inb $0x92,%al; and $0xfc,%al; outb %al,$0x92");
CODE16_SNIPPET(s_a20, "movw $0xffff,%ax; mov %ax,%fs; movb %fs:0x510,%bl; "
	"inb $0x92,%al; and $0xfc,%al; outb %al,$0x92; movb %fs:0x510,%bh; or $2,%al; outb %al,$0x92; movb %fs:0x510,%cl");
CODE16_SNIPPET(s_pe, /* real -> protected 16-bit -> real */
	"lgdtl %cs:(3f-s_pe); mov %cr0,%eax; or $1,%al; mov %eax,%cr0; ljmp $8,$(1f-s_pe)\n"
	"1: mov $0x10,%ax; mov %ax,%es; movb %es:0,%dl; smsw %cx; mov %cs,%si; mov %cr0,%eax; and $0xfe,%al; mov %eax,%cr0\n"
	"ljmp $0x1000,$(2f-s_pe); 2: mov %cs,%di; mov $0x3000,%ax; mov %ax,%es; movb %es:0,%dh; jmp 4f\n"
	"3: .word 23; .long 0x10000+(5f-s_pe)\n"
	".align 8; 5: .quad 0, 0x00009b010000ffff, 0x000093020000ffff\n4:");

static void system(void)
{
	START(); r.bx = 0x10;
	set16(0x20010, 0x3fe); set16(0x20012, 0); set16(0x20014, 0);
	REAL(s_lidt, &r);
	check("INT beyond the table's limit: #GP", trap.vec == GP && trap.f.ip == 6 - 0 - 2);
	START(); r.bx = 0x10;
	memset(at(0x50000), 0, 1024);
	memcpy(at(0x50000), at(0), 1024);
	set16(0x20010, 0x3ff); set16(0x20012, 0); set16(0x20014, 5);
	memcpy(at(0x50000 + 4 * 0x30), at(4 * 0x31), 4);
	REAL(s_lidt_ok, &r);
	check_eq("a vector table elsewhere", trap.vec, 0x31);
	START(); r.bx = 0x10; r.si = 0x20;
	set16(0x20010, 0x1234); set16(0x20012, 0x5678); set16(0x20014, 0x9abc);
	REAL(s_sidt, &r);
	check("sidt", get16(0x20020) == 0x1234 && get16(0x20022) == 0x5678 && get16(0x20024) == 0x9abc);
	START();
	REAL(s_smsw, &r);
	check_eq("smsw: PE clear, ET", trap.f.ax & 0x11, 0x10);
	START();
	REAL(s_lmsw, &r);
	check("lmsw sets TS, clts clears it", !(trap.f.bx & 8) && (trap.f.cx & 8) && !(trap.f.dx & 8));
	START();
	REAL(s_cr0, &r);
	check("mov from CR0", !(trap.f.ax & 0x80000001) && trap.vec == DONE);
	START();
	REAL(s_pg, &r);
	check("PG without PE: #GP", trap.vec == GP);
	START();
	REAL(s_iret, &r);
	check_eq("iret in real mode sets IOPL, NT, IF", (u16)trap.f.ax, 0x7202);
	START();
	REAL(s_tf, &r);
	check("TF set by POPF: #DB after the next instruction", trap.vec == DB && trap.f.ip == 5 && (trap.f.flags & FL_TF));
	write_dr6(0xffff0ff0);
	START();
	REAL(s_icebp, &r);
	check("icebp: vector 1", trap.vec == DB && trap.f.ip == 1);
	START();
	REAL(s_in, &r);
	check("port 92: A20 open", trap.f.ax & 2);
	at(0x100500)[0] += 0; /* the guest itself lies there: read only */
	at(0x500)[0] = (u8)~at(0x100500)[0];
	START();
	REAL(s_a20, &r);
	check("A20: FFFF:0510 is 100500", (u8)trap.f.bx == (u8)~at(0x500)[0] && (u8)trap.f.cx == (u8)trap.f.bx);
	at(0x20000)[0] = 0x5a; at(0x30000)[0] = 0xa5;
	START();
	REAL(s_pe, &r);
	check("to 16-bit protected mode", (trap.f.cx & 1) && trap.f.si == 8 && (u8)trap.f.dx == 0x5a);
	check("and back to real mode", trap.f.di == SNIP_SEG && (u8)(trap.f.dx >> 8) == 0xa5 && trap.vec == DONE);
}

/* ---- HLT ---------------------------------------------------------------------------------------- */

#define SLEEP_PIT(mode) "mov $0x30+2*" #mode ",%al; outb %al,$0x43; mov $0xa9,%al; outb %al,$0x40; mov $4,%al; outb %al,$0x40\n"
CODE16_SNIPPET(s_hlt, "cli\n" SLEEP_PIT(0) "sti; hlt; cli");
CODE16_SNIPPET(s_hlt3, "cli; xor %bx,%bx; mov %bx,%es; movw $2f-s_hlt3,%es:0x1c0; movw %cs,%es:0x1c2\n" SLEEP_PIT(2)
	"mov $3,%cx; 1: sti; hlt; cli; inc %dx; loop 1b; jmp 3f\n"
	"2: inc %bx; mov $0x20,%al; outb %al,$0x20; iretw; 3:");

/* Woken by the i8254 through the i8259, whose INTR comes by LINT0. */
static void halts(void)
{
	*(volatile u32 *)0xfee000f0 = 0x1ff;
	*(volatile u32 *)0xfee00350 = 0x700;
	outb(0x20, 0x11); outb(0x21, 0x70); outb(0x21, 4); outb(0x21, 1);
	outb(0x21, 0xfe);
	START();
	REAL(s_hlt, &r);
	outb(0x20, 0x20);
	check_eq("STI HLT in real mode: woken by IRQ 0", trap.vec, 0x70);
	const u8 *ip = at(SNIP_LIN + (u16)trap.f.ip);
	check("its return IP is behind HLT, IF set", ip[-1] == 0xf4 && ip[0] == 0xfa && (trap.f.flags & FL_IF));
	START();
	r.dx = 0;
	REAL(s_hlt3, &r);
	outb(0x21, 0xff);
	check("three times with a handler of 16-bit code", trap.vec == DONE && trap.f.dx == 3 && trap.f.bx >= 3 /* one more may come before CLI */ && (u16)trap.f.cx == 0);
	outb(0x20, 0x11); outb(0x21, 0x20); outb(0x21, 4); outb(0x21, 1);
	outb(0x21, 0xff);
	*(volatile u32 *)0xfee00350 = 0x10000;
}

/* ---- unreal mode --------------------------------------------------------------------------------------- */

CODE16_SNIPPET(s_big, "addr32 movb (%ebx),%al; mov %ds,%cx; mov %cx,%ds; addr32 movb (%ebx),%ah");
CODE16_SNIPPET(s_bigst, "addr32 movl %eax,%fs:(%ebx)");
CODE16_SNIPPET(s_bigsel, "mov $0x2345,%ax; mov %ax,%ds; addr32 movb (%ebx),%dl");
CODE16_SNIPPET(s_bigstr, "cld; addr32 rep movsb");
CODE16_SNIPPET(s_bigss, "addr32 movb %ss:(%ebx),%al");

static void unreal(void)
{
	u32 big = 0x200000;
	at(big)[0] = 0x77;
	START(); r.bx = big - 0x20000;
	UNREAL(s_big, &r);
	check("unreal: 32-bit offset through DS", trap.vec == DONE && (u8)trap.f.ax == 0x77);
	check("unreal: a load of DS keeps the limit", (u8)(trap.f.ax >> 8) == 0x77);
	START(); r.bx = big - 0x20000 + 16; r.ax = 0xcafebabe;
	UNREAL(s_bigst, &r);
	u32 v;
	memcpy(&v, at(big + 16), 4);
	check_eq("unreal: store through FS", v, 0xcafebabe);
	START(); r.bx = big - 0x23450;
	UNREAL(s_bigsel, &r);
	check_eq("unreal: a new selector moves the base", (u8)trap.f.dx, 0x77);
	memcpy(at(big + 0x40), "unreal", 6);
	START(); r.si = big + 0x40 - 0x20000; r.di = big + 0x80 - 0x30000; r.cx = 6;
	UNREAL(s_bigstr, &r);
	check("unreal: addr32 rep movsb", trap.vec == DONE && !memcmp(at(big + 0x80), "unreal", 6) && trap.f.cx == 0);
	START(); r.bx = 0x10000;
	UNREAL(s_bigss, &r);
	check_eq("SS kept 64 KiB: #SS", trap.vec, SS);
	START(); r.bx = 0x10000;
	REAL(s_ld32, &r);
	check_eq("64-KiB limits are back: #GP", trap.vec, GP);
}

int main(void)
{
	flags();
	undefined();
	limits();
	system();
	halts();
	unreal();
	return 0;
}
