/* Virtual-8086 mode: IOPL 3 and below, with and without VME; INT n through the redirection
 * bitmap; VIF and VIP; I/O bitmap; entry, exit and the frames of both. SDM vol. 3 ch. 20,
 * table 20-2 (methods of handling INT n). */
#include "guest.h"

const char guest_name[] = "v86";

static struct regs r;
static void start(unsigned iopl) { r = regs16(); r.flags = 2 | FL_VM | iopl << 12; }
static u8 *at(u32 lin) { u8 *p = (u8 *)(uptr)lin; __asm__("" : "+r"(p)); return p; }
static u16 get16(u32 lin) { u16 v; memcpy(&v, at(lin), 2); return v; }
static void set16(u32 lin, u16 v) { memcpy(at(lin), &v, 2); }
static void vme(bool on) { write_cr4(on ? read_cr4() | 1 : read_cr4() & ~1ul); }

/* Ends without INT: hlt is a #GP in V86 mode whatever IOPL is. */
#define SNIP(name, text) CODE16_SNIPPET(name, text "; hlt")
SNIP(v_regs, "mov %cs,%ax; mov %ds,%bx; mov %es,%cx; mov %ss,%dx; mov %fs,%si; mov %gs,%di");
SNIP(v_load, "mov $0x2222,%ax; mov %ax,%ds; movw 0,%bx; mov %ds,%cx");
SNIP(v_far, "ljmp $0x1800,$4");
SNIP(v_ld, "movw (%bx),%ax");
SNIP(v_ldss, "movw (%bp),%ax");
SNIP(v_push, "pushw %ax");
SNIP(v_cli, "cli");
SNIP(v_sti, "sti");
SNIP(v_pushf, "pushfw; popw %ax");
SNIP(v_pushfd, "pushfl; popl %eax");
SNIP(v_popf, "pushw %ax; popfw");
SNIP(v_popfd, "pushl %eax; popfl");
SNIP(v_iret, "pushw %ax; pushw $0x1000; pushw $(1f-v_iret); iretw; 1:");
SNIP(v_iretd, "pushl %eax; pushl $0x1000; pushl $(1f-v_iretd); iretl; 1:");
SNIP(v_int, "int $0x40");
SNIP(v_int3, "int3");
SNIP(v_into, "into");
SNIP(v_icebp, ".byte 0xf1");
SNIP(v_in, "in %dx,%al");
SNIP(v_out, "out %al,%dx");
SNIP(v_inw, "in %dx,%ax");
SNIP(v_ins, "insb");
SNIP(v_hlt, "hlt");
SNIP(v_lgdt, "lgdt (%bx)");
SNIP(v_cr0, "mov %cr0,%eax");
SNIP(v_clts, "clts");
SNIP(v_lar, "larw %ax,%bx");
SNIP(v_arpl, "arpl %ax,%bx");
SNIP(v_sldt, "sldt %ax");
SNIP(v_smsw, "smsw %ax");
SNIP(v_div, "xor %bl,%bl; div %bl");
SNIP(v_ud, "ud2");
SNIP(v_stistep, "sti; nop; nop");
SNIP(v_sysenter, "sysenter");

#define RUN(name) V86(name, &r)
/* The hlt at the end lies before the INT that CODE16_SNIPPET appends. */
#define OFF(name) ((uptr)(name##_end - name) - 3)
#define HALTED(name) (trap.vec == GP && trap.err == 0 && trap.f.ip == OFF(name) && trap.f.cs == SNIP_SEG)

static void basics(void)
{
	start(0);
	RUN(v_regs);
	check("V86: segment registers as the IRET frame gave them", HALTED(v_regs) && (u16)trap.f.ax == SNIP_SEG && (u16)trap.f.bx == 0x2000 &&
	      (u16)trap.f.cx == 0x3000 && (u16)trap.f.dx == 0x4000 && (u16)trap.f.si == 0x2000 && (u16)trap.f.di == 0x3000);
	check("leaving: VM in the image, CPL 0 and VM clear in the handler", (trap.f.flags & FL_VM) && trap.entry_cs == CODE && trap.entry_ss == DATA);
	check("leaving: SS:ESP, ES, DS, FS, GS on the ring-0 stack", trap.f.ss == 0x4000 && trap.f.sp == 0x8000 && trap.f.vds == 0x2000 && trap.f.ves == 0x3000 &&
	      trap.f.vfs == 0x2000 && trap.f.vgs == 0x3000 && trap.at == (uptr)trap_stack_end - 40);
	set16(0x22220, 0xbeef);
	start(0);
	RUN(v_load);
	check("loads of selectors are shifts", HALTED(v_load) && (u16)trap.f.bx == 0xbeef && (u16)trap.f.cx == 0x2222);
	at(0x18004)[0] = 0xf4;
	start(0);
	RUN(v_far);
	check("far jmp", trap.vec == GP && trap.f.cs == 0x1800 && trap.f.ip == 4);
	start(0); r.bx = 0xffff;
	RUN(v_ld);
	check_trap("word at FFFF: #GP(0)", GP, 0);
	check_eq("at the instruction", trap.f.ip, 0);
	start(0); r.bp = 0xffff;
	RUN(v_ldss);
	check_trap("word at SS:FFFF: #SS(0)", SS, 0);
	start(0); r.sp = 0; r.ax = 0x1234;
	RUN(v_push);
	check("push at SP 0 wraps", HALTED(v_push) && get16(0x4fffe) == 0x1234);
	start(0);
	RUN(v_div);
	check("#DE in V86 mode goes to the IDT", trap.vec == DE && trap.f.ip == 2);
	start(0);
	RUN(v_ud);
	check("#UD", trap.vec == UD);
	static const struct { const u8 *code, *end; int vec; const char *name; } priv[] = {
#define P(n, v) { v_##n, v_##n##_end, v, #n }
		P(hlt, GP), P(lgdt, GP), P(cr0, GP), P(clts, GP), P(lar, UD), P(arpl, UD), P(sldt, UD), P(sysenter, GP) };
	for (unsigned iopl = 0; iopl < 4; iopl += 3)
		for (unsigned k = 0; k < ARRAY_LEN(priv); k++) {
			start(iopl);
			put16(priv[k].code, priv[k].end);
			go(&r);
			check(fmt("%s in V86 mode, IOPL %u", priv[k].name, iopl), trap.vec == priv[k].vec && trap.f.ip == 0 && trap.err == 0);
		}
	start(0);
	RUN(v_smsw);
	check("smsw works", HALTED(v_smsw) && (trap.f.ax & 1));
	/* IRET to V86 with EIP above 16 bits. */
	start(0); r.ip = 0x10000;
	go(&r);
	check_trap("IRET to V86 with EIP 10000: #GP(0)", GP, 0);
	/* The frame's selectors are not looked up: any will do. */
	start(0); r.ds = r.es = r.fs = r.gs = 0xffff;
	RUN(v_hlt);
	check_eq("any selector", trap.f.vgs, 0xffff);
	/* From CPL 3 an IRET image with VM does not enter V86 mode. */
	extern const u8 iret_vm[];
	struct regs u = user_regs(iret_vm);
	go(&u);
	check("IRET at CPL 3: VM in the image is ignored", trap.vec == DONE && !(trap.f.flags & FL_VM));
}
__asm__(".text\n.globl iret_vm\niret_vm: pushl $0x20002; push $0x1b; push $1f; iret\n1: int $0x80\n");

/* ---- IOPL-sensitive instructions without VME ------------------------------------------------------ */

static void iopl(void)
{
	static const struct { const u8 *code, *end; const char *name; } s[] = {
#define S(n) { v_##n, v_##n##_end, #n }
		S(cli), S(sti), S(pushf), S(popf), S(iret), S(int), S(pushfd), S(popfd), S(iretd) };
	for (unsigned k = 0; k < ARRAY_LEN(s); k++)
		for (unsigned level = 0; level < 4; level++) {
			start(level);
			set_idt(0x40, A_INT32 | A_DPL3);
			r.ax = 2;
			put16(s[k].code, s[k].end);
			go(&r);
			bool moved = trap.vec == 0x40 ? trap.f.ip == 2 : trap.vec == GP && trap.f.ip == (uptr)(s[k].end - s[k].code) - 3;
			bool faulted = trap.vec == GP && trap.err == 0 && trap.f.ip < (uptr)(s[k].end - s[k].code) - 3;
			check(fmt("%s at IOPL %u", s[k].name, level), level == 3 ? moved : faulted);
		}
	start(3);
	RUN(v_cli);
	check_eq("cli clears IF", trap.f.flags & FL_IF, 0);
	start(3);
	RUN(v_sti);
	check_eq("sti sets IF", trap.f.flags & FL_IF, FL_IF);
	start(3); r.ax = 0xf00 | 2;
	r.ax &= ~0x100ul;
	RUN(v_popf);
	check_eq("popf: IF, DF, OF change, IOPL not", trap.f.flags & (FL_IF | FL_DF | FL_OF | FL_IOPL | FL_VM), FL_IF | FL_DF | FL_OF | FL_IOPL | FL_VM);
	start(3); r.ax = 0x2 | FL_RF | FL_VIF | FL_VIP;
	RUN(v_popfd);
	check_eq("popfd: VM, RF, VIF, VIP stay", trap.f.flags & (FL_VM | FL_VIF | FL_VIP | FL_IOPL), FL_VM | FL_IOPL);
	start(3);
	RUN(v_pushfd);
	check_eq("pushfd: VM and RF read as 0", trap.f.ax & (FL_VM | FL_RF), 0);
	start(3); r.ax = 2;
	RUN(v_iret);
	check_eq("iret leaves IOPL", trap.f.flags & FL_IOPL, FL_IOPL);
	/* INT n at IOPL 3: the gate must lead to CPL 0 and have DPL 3. */
	start(3);
	set_idt(0x40, A_INT32);
	RUN(v_int);
	check_trap("int n, gate DPL 0: #GP(vector*8+2)", GP, 0x40 * 8 + 2);
	idt[0x40] = gate(CODE1, (uptr)0x100000, A_INT32 | A_DPL3, 0);
	start(3);
	RUN(v_int);
	check_trap("int n to a handler of CPL 1: #GP(CS)", GP, CODE1 & ~3);
	gdt[FREE] = desc(0, 0xfffff, A_CONF, F_G | F_B);
	idt[0x40] = gate(FREE * 8, (uptr)0x100000, A_INT32 | A_DPL3, 0);
	start(3);
	RUN(v_int);
	check_trap("int n to conforming code: #GP(CS)", GP, FREE * 8);
	set_idt(0x40, A_INT32 | A_DPL3);
	for (unsigned level = 0; level < 4; level += 3) {
		start(level);
		RUN(v_int3);
		check(fmt("int3 at IOPL %u goes through the IDT", level), trap.vec == BP && trap.f.ip == 1);
		start(level); r.flags |= FL_OF;
		RUN(v_into);
		check(fmt("into at IOPL %u goes through the IDT", level), trap.vec == OF && trap.f.ip == 1);
		start(level);
		RUN(v_icebp);
		check(fmt("icebp at IOPL %u", level), trap.vec == DB && trap.f.ip == 1);
	}
	set_idt(BP, A_INT32);
	start(3);
	RUN(v_int3);
	check_trap("int3 whose gate has DPL 0: #GP(1a)", GP, 3 * 8 + 2);
	set_idt(BP, A_INT32 | A_DPL3);
	/* TF */
	start(3); r.flags |= FL_TF;
	RUN(v_pushf);
	check("TF in the IRET image: #DB after one instruction", trap.vec == DB && trap.f.ip == 1);
	write_dr6(0xffff0ff0);
}

static void io(void)
{
	static const struct { const u8 *code, *end; const char *name; } s[] = { S(in), S(out), S(inw), S(ins) };
	for (unsigned k = 0; k < ARRAY_LEN(s); k++)
		for (unsigned level = 0; level < 4; level += 3)
			for (unsigned clear = 0; clear < 2; clear++) {
				start(level); r.dx = 0x80; r.di = 0x100;
				tss.io[0x10] = clear ? 0xfc : 0xff;
				put16(s[k].code, s[k].end);
				go(&r);
				check(fmt("%s, bitmap %s, IOPL %u", s[k].name, clear ? "clear" : "set", level),
				      trap.vec == GP && (trap.f.ip == 0) == !clear);
			}
	start(0); r.dx = 0x80;
	tss.io[0x10] = 0xfd;
	RUN(v_inw);
	check("inw, the second port's bit set: #GP at it", trap.vec == GP && trap.f.ip == 0);
	tss.io[0x10] = 0xff;
}

/* ---- VME ------------------------------------------------------------------------------------------------ */

static void redirect(unsigned v, bool to_idt) { tss.redirect[v / 8] = (u8)((tss.redirect[v / 8] & ~(1 << (v & 7))) | to_idt << (v & 7)); }

static void vme_on(void)
{
	if (!has(1, 3, 1)) {
		skip("VME", "not there");
		return;
	}
	vme(true);
	memset(tss.redirect, 0xff, 32);
	/* Methods 1 to 6: IOPL 3 or not, bit set or not. The 8086 handler at 5000:0100 halts. */
	set16(0x40 * 4, 0x100); set16(0x40 * 4 + 2, 0x5000);
	at(0x50100)[0] = 0xf4;
	for (unsigned level = 0; level < 4; level += 3)
		for (unsigned bit = 0; bit < 2; bit++) {
			start(level); r.flags |= FL_IF | FL_VIF;
			redirect(0x40, bit);
			RUN(v_int);
			const char *n = fmt("VME: int n, IOPL %u, bitmap %u", level, bit);
			if (bit && level == 3)
				check(n, trap.vec == 0x40 && trap.f.ip == 2);
			else if (bit)
				check(n, trap.vec == GP && trap.f.ip == 0);
			else {
				check(n, trap.vec == GP && trap.f.cs == 0x5000 && trap.f.ip == 0x100);
				check(fmt("%s: frame on the 8086 stack", n), trap.f.sp == 0x7ffa && get16(0x47ffa) == 2 && get16(0x47ffc) == SNIP_SEG);
				u16 f = get16(0x47ffe);
				check_eq(fmt("%s: flags image: IF from VIF, IOPL 3", n), f & (FL_IF | FL_IOPL), FL_IF | FL_IOPL);
				check_eq(fmt("%s: IF or VIF clear in the handler", n), trap.f.flags & (FL_IF | FL_VIF), level == 3 ? FL_VIF : FL_IF);
			}
		}
	start(0); r.flags |= FL_IF;
	redirect(0x40, false);
	RUN(v_int);
	check_eq("VME: int n with VIF clear: IF clear in the image", get16(0x47ffe) & FL_IF, 0);
	/* CLI, STI, PUSHF, POPF, IRET at IOPL 0. */
	start(0); r.flags |= FL_VIF | FL_IF;
	RUN(v_cli);
	check("VME: cli clears VIF, not IF", HALTED(v_cli) && (trap.f.flags & (FL_VIF | FL_IF)) == FL_IF);
	start(0);
	RUN(v_sti);
	check("VME: sti sets VIF, not IF", HALTED(v_sti) && (trap.f.flags & (FL_VIF | FL_IF)) == FL_VIF);
	start(0); r.flags |= FL_VIP;
	RUN(v_sti);
	check("VME: sti with VIP: #GP(0)", trap.vec == GP && trap.f.ip == 0 && !(trap.f.flags & FL_VIF));
	start(0); r.flags |= FL_VIF;
	RUN(v_pushf);
	check("VME: pushf: VIF as IF, IOPL 3", HALTED(v_pushf) && (trap.f.ax & (FL_IF | FL_IOPL)) == (FL_IF | FL_IOPL));
	start(0); r.flags |= FL_IF;
	RUN(v_pushf);
	check_eq("VME: pushf with VIF clear", trap.f.ax & FL_IF, 0);
	start(0); r.ax = FL_IF | 2;
	RUN(v_popf);
	check("VME: popf sets VIF, not IF", HALTED(v_popf) && (trap.f.flags & (FL_VIF | FL_IF)) == FL_VIF);
	start(0); r.flags |= FL_IF | FL_VIF; r.ax = 2;
	RUN(v_popf);
	check("VME: popf clears VIF, not IF", HALTED(v_popf) && (trap.f.flags & (FL_VIF | FL_IF)) == FL_IF);
	start(0); r.ax = FL_IF | 2; r.flags |= FL_VIP;
	RUN(v_popf);
	check("VME: popf with IF while VIP: #GP(0)", trap.vec == GP && trap.f.ip == 1 && trap.f.sp == 0x7ffe);
	start(0); r.ax = FL_TF | 2;
	RUN(v_popf);
	check("VME: popf with TF: #GP(0)", trap.vec == GP && trap.f.ip == 1);
	start(0); r.ax = FL_IF | 2;
	RUN(v_iret);
	check("VME: iret sets VIF, not IF", HALTED(v_iret) && (trap.f.flags & (FL_VIF | FL_IF)) == FL_VIF && !(trap.f.flags & FL_IOPL));
	start(0); r.ax = FL_IF | 2; r.flags |= FL_VIP;
	RUN(v_iret);
	check("VME: iret with IF while VIP: #GP(0)", trap.vec == GP && trap.f.ip == 7 && trap.f.sp == 0x7ffa);
	static const struct { const u8 *code, *end; const char *name; } wide[] = { S(pushfd), S(popfd), S(iretd) };
	for (unsigned k = 0; k < ARRAY_LEN(wide); k++) {
		start(0); r.ax = 2;
		put16(wide[k].code, wide[k].end);
		go(&r);
		check(fmt("VME: %s at IOPL 0: #GP(0)", wide[k].name), trap.vec == GP && trap.f.ip < (uptr)(wide[k].end - wide[k].code) - 3);
	}
	start(3); r.flags |= FL_VIF | FL_IF;
	RUN(v_cli);
	check("VME at IOPL 3: cli clears IF, not VIF", HALTED(v_cli) && (trap.f.flags & (FL_VIF | FL_IF)) == FL_VIF);
	start(0);
	RUN(v_int3);
	check_eq("VME: int3 is not redirected", trap.vec, BP);
	/* The bitmap beyond the TSS. */
	u16 map = tss.t.iomap;
	tss.t.iomap = 0xffff;
	start(0);
	RUN(v_int);
	check_trap("VME: bitmap beyond the TSS: #GP", GP, 0);
	tss.t.iomap = map;
	vme(false);
	/* PVI: the same flags for 32-bit code at CPL 3. */
	extern const u8 pvi_cli[], pvi_sti[], pvi_pushf[];
	write_cr4(read_cr4() | 2);
	struct regs u = user_regs(pvi_sti);
	go(&u);
	check("PVI: sti sets VIF", trap.vec == DONE && (trap.f.flags & (FL_VIF | FL_IF)) == FL_VIF);
	u = user_regs(pvi_cli);
	u.flags |= FL_VIF | FL_IF;
	go(&u);
	check("PVI: cli clears VIF", trap.vec == DONE && (trap.f.flags & (FL_VIF | FL_IF)) == FL_IF);
	u.ip = (uptr)pvi_sti;
	u.flags = 2 | FL_VIP;
	go(&u);
	check_trap("PVI: sti with VIP: #GP(0)", GP, 0);
	u.ip = (uptr)pvi_pushf;
	u.flags = 2 | FL_VIF;
	go(&u);
	check_eq("PVI: pushf shows IF itself", trap.f.ax & FL_IF, 0);
	write_cr4(read_cr4() & ~2ul);
	u.ip = (uptr)pvi_sti;
	u.flags = 2;
	go(&u);
	check_trap("PVI off: #GP(0)", GP, 0);
}
__asm__(".text\n.globl pvi_cli,pvi_sti,pvi_pushf\npvi_cli: cli; int $0x80\npvi_sti: sti; int $0x80\npvi_pushf: pushfl; popl %eax; int $0x80\n");

int main(void)
{
	basics();
	iopl();
	io();
	vme_on();
	return 0;
}
