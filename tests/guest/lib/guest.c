/* What guest.h promises, for both widths. */
#include "guest.h"

static u32 passed, failed;

/* ---- text -------------------------------------------------------------------------------- */

static char *put_num(char *p, u64 v, unsigned shift_or_dec, bool neg)
{
	char tmp[24];
	int n = 0;
	if (neg)
		*p++ = '-';
	if (shift_or_dec == 10) {
		u32 d = (u32)v;
		do
			tmp[n++] = (char)('0' + d % 10);
		while (d /= 10);
	} else {
		do
			tmp[n++] = "0123456789abcdef"[v & 15];
		while (v >>= 4);
	}
	while (n)
		*p++ = tmp[--n];
	return p;
}

static void format(char *p, char *end, const char *f, __builtin_va_list ap)
{
	for (; *f && end - p > 24; f++) {
		if (*f != '%') {
			*p++ = *f;
			continue;
		}
		switch (*++f) {
		case 's':
			for (const char *s = __builtin_va_arg(ap, const char *); *s && end - p > 2;)
				*p++ = *s++;
			break;
		case 'd': {
			int d = __builtin_va_arg(ap, int);
			p = put_num(p, d < 0 ? (u32)-d : (u32)d, 10, d < 0);
			break;
		}
		case 'u': p = put_num(p, __builtin_va_arg(ap, u32), 10, false); break;
		case 'x': p = put_num(p, __builtin_va_arg(ap, u32), 16, false); break;
		case 'X': p = put_num(p, __builtin_va_arg(ap, u64), 16, false); break;
		case 'c': *p++ = (char)__builtin_va_arg(ap, int); break;
		default: *p++ = *f;
		}
	}
	*p = 0;
}

const char *fmt(const char *f, ...)
{
	static char ring[8][160];
	static unsigned at;
	char *p = ring[at++ & 7];
	__builtin_va_list ap;
	__builtin_va_start(ap, f);
	format(p, p + sizeof(ring[0]), f, ap);
	__builtin_va_end(ap);
	return p;
}

void say(const char *f, ...)
{
	static char line[400];
	__builtin_va_list ap;
	__builtin_va_start(ap, f);
	format(line, line + sizeof(line), f, ap);
	__builtin_va_end(ap);
	for (const char *p = line; *p; p++)
		outb(0xe9, (u8)*p);
}

void guest_exit(u32 code)
{
	for (;;)
		__asm__ volatile("outl %0,%w1; cli; hlt" : : "a"(code), "d"(0xf4));
}

void die(const char *why)
{
	say("FAIL %s: %s\nguest %s: %u passed, %u failed\n", guest_name, why, guest_name, passed, failed + 1);
	guest_exit(2);
}

void check(const char *name, bool ok)
{
	say("%s %s\n", ok ? "ok" : "FAIL", name);
	*(ok ? &passed : &failed) += 1;
}

void check_eq(const char *name, u64 got, u64 want)
{
	if (got == want)
		say("ok %s\n", name);
	else
		say("FAIL %s got %X want %X\n", name, got, want);
	*(got == want ? &passed : &failed) += 1;
}

void check_trap(const char *name, int vector, u32 error)
{
	bool ok = trap.vec == vector && (error == EC_ANY || vector == NONE || trap.err == error);
	if (ok)
		say("ok %s\n", name);
	else
		say("FAIL %s got #%d(%x) at %x cr2 %X want #%d(%x)\n", name, trap.vec, trap.err, (u32)trap.f.ip, (u64)trap.cr2, vector, error);
	*(ok ? &passed : &failed) += 1;
}

void skip(const char *name, const char *why) { say("skip %s: %s\n", name, why); }

void *memset(void *p, int c, uptr n) { u8 *d = p; while (n--) *d++ = (u8)c; return p; }
void *memcpy(void *p, const void *q, uptr n) { u8 *d = p; const u8 *s = q; while (n--) *d++ = *s++; return p; }
int memcmp(const void *a, const void *b, uptr n)
{
	const u8 *p = a, *q = b;
	for (; n--; p++, q++)
		if (*p != *q)
			return *p - *q;
	return 0;
}

/* ---- tables ------------------------------------------------------------------------------ */

u64 gdt[GDT_N] __attribute__((aligned(16)));
u64 idt[512] __attribute__((aligned(16)));
extern const u8 stubs[]; /* 256, of 16 bytes */

u64 desc(u32 base, u32 limit, u32 access, u32 flags)
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
	       (u64)flags << 52 | (u64)(base >> 24) << 56;
}

u64 gate(u32 s, u32 offset, u32 access, u32 params)
{
	return (offset & 0xffff) | (u64)(s & 0xffff) << 16 | (u64)params << 32 | (u64)access << 40 | (u64)(offset >> 16) << 48;
}

struct trap trap;
bool (*trap_hook)(struct frame *f);

#ifdef __x86_64__
struct tss64 tss;

void apic_write(u32 reg, u32 v) { *(volatile u32 *)(0xfee00000ul + reg) = v; }
u32 apic_read(u32 reg) { return *(volatile u32 *)(0xfee00000ul + reg); }

/* Channel 2 in mode 0: its output shows in port 61 when the count is over. At most 50 ms at once. */
void delay_us(u32 us)
{
	while (us) {
		u32 part = us > 50000 ? 50000 : us, ticks = part * 1193 / 1000 + 1;
		us -= part;
		outb(0x61, (inb(0x61) & ~2) | 1);
		outb(0x43, 0xb0);
		outb(0x42, (u8)ticks);
		outb(0x42, (u8)(ticks >> 8));
		while (!(inb(0x61) & 0x20))
			;
	}
}

void start_ap(u32 apic_id)
{
	extern const u8 ap_tramp[], ap_tramp_end[];
	memcpy((void *)0x8000, ap_tramp, (uptr)(ap_tramp_end - ap_tramp));
	apic_write(0xf0, 0x1ff);
	apic_write(0x310, apic_id << 24);
	apic_write(0x300, 0x4500);
	delay_us(10000);
	apic_write(0x310, apic_id << 24);
	apic_write(0x300, 0x4608);
}

void idt_set64(unsigned vector, u16 s, u64 offset, u32 access, unsigned ist)
{
	idt[2 * vector] = gate(s, (u32)offset, access, ist);
	idt[2 * vector + 1] = offset >> 32;
}
void set_idt(unsigned vector, u32 access) { idt_set64(vector, CODE, (uptr)(stubs + 16 * vector), access, 0); }

static void make_gdt(void)
{
	gdt[1] = desc(0, 0xfffff, A_XR | 1, F_G | F_L);
	gdt[2] = desc(0, 0xfffff, A_RW | 1, F_G | F_B);
	gdt[3] = desc(0, 0xfffff, A_XR | A_DPL3 | 1, F_G | F_B);
	gdt[4] = desc(0, 0xfffff, A_RW | A_DPL3 | 1, F_G | F_B);
	gdt[5] = desc(0, 0xfffff, A_XR | A_DPL3 | 1, F_G | F_L);
	gdt[6] = desc((u32)(uptr)&tss, sizeof(tss) - 1, A_TSS32, 0);
	gdt[8] = desc(0, 0xfffff, A_XR | 1, F_G | F_B);
	tss.rsp[0] = (uptr)trap_stack_end;
	tss.iomap = 0x68;
	memset(tss.bits, 0xff, sizeof(tss.bits));
}
#else
__typeof__(tss) tss;
u8 df_stack[1024];

void set_idt(unsigned vector, u32 access) { idt[vector] = gate(CODE, (uptr)(stubs + 16 * vector), access, 0); }

static void make_gdt(void)
{
	gdt[1] = desc(0, 0xfffff, A_XR | 1, F_G | F_B);
	gdt[2] = desc(0, 0xfffff, A_RW | 1, F_G | F_B);
	gdt[3] = desc(0, 0xfffff, A_XR | A_DPL3 | 1, F_G | F_B);
	gdt[4] = desc(0, 0xfffff, A_RW | A_DPL3 | 1, F_G | F_B);
	gdt[5] = desc((uptr)&tss, sizeof(tss) - 1, A_TSS32, 0);
	gdt[7] = desc(0, 0xffff, A_XR | 1, 0);
	gdt[8] = desc(0, 0xffff, A_RW | 1, 0);
	gdt[9] = desc(0, 0xfffff, A_XR | A_DPL1 | 1, F_G | F_B);
	gdt[10] = desc(0, 0xfffff, A_RW | A_DPL1 | 1, F_G | F_B);
	gdt[11] = desc(0, 0xfffff, A_XR | A_DPL2 | 1, F_G | F_B);
	gdt[12] = desc(0, 0xfffff, A_RW | A_DPL2 | 1, F_G | F_B);
	tss.t.esp0 = (uptr)trap_stack_end;
	tss.t.ss0 = DATA;
	tss.t.iomap = TSS_IOMAP;
	memset(tss.io, 0xff, sizeof(tss.io));
}
#endif

void load_tables(void)
{
	struct dtr g = { sizeof(gdt) - 1, (uptr)gdt }, i = { sizeof(void *) == 8 ? 4095 : 2047, (uptr)idt };
	__asm__ volatile("lgdt %0; lidt %1" : : "m"(g), "m"(i));
}

/* Of a guest at level 2 (inside.h). */
__attribute__((weak)) void level_enter(void);
__attribute__((weak)) void level_leave(void);

void guest_start(void)
{
	make_gdt();
	for (unsigned v = 0; v < 256; v++)
		set_idt(v, A_INT32 | (v == DONE || v == BP || v == OF ? A_DPL3 : 0));
	load_tables();
	__asm__ volatile("mov %0,%%ds; mov %0,%%es; mov %0,%%ss; mov %0,%%fs; mov %0,%%gs" : : "r"(DATA));
	__asm__ volatile("ltr %w0" : : "r"(TSS_SEL));
	/* Interrupt controllers: all masked. */
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	if (level_enter)
		level_enter();
	say("guest %s\n", guest_name);
	main();
	if (level_leave)
		level_leave();
	say("guest %s: %u passed, %u failed\n", guest_name, passed, failed);
	guest_exit(failed != 0);
}

/* ---- exceptions -------------------------------------------------------------------------- */

/* From the stubs. sp: the stack pointer before the stub pushed vector (and a 0 for the error). */
void trap_entry(struct frame *f)
{
	if (trap_hook && trap_hook(f))
		return;
	__asm__ volatile("mov %%cr2,%0" : "=r"(trap.cr2));
	trap.vec = (int)f->vec;
	trap.err = (u32)f->err;
	bool code = f->vec == DF || (f->vec >= TS && f->vec <= PF) || f->vec == AC || f->vec == 21;
	uptr *at = (uptr *)(code ? &f->err : &f->ip);
	trap.at = (uptr)at;
	memcpy(trap.raw, at, sizeof(trap.raw));
	trap.f = *f;
#ifndef __x86_64__
	if (!(f->flags & FL_VM) && !(f->cs & 3)) {
		trap.f.sp = (uptr)&f->sp; /* not pushed: what it was */
		trap.f.ss = DATA;
	}
	if (f->flags & FL_VM) {
		trap.f.ds = f->vds;
		trap.f.es = f->ves;
		trap.f.fs = f->vfs;
		trap.f.gs = f->vgs;
	}
#endif
	u32 ss, cs;
	__asm__ volatile("mov %%ss,%0; mov %%cs,%1" : "=r"(ss), "=r"(cs));
	trap.entry_ss = ss;
	trap.entry_cs = cs;
	if (catch_armed)
		catch_return();
	say("unexpected exception %d(%x) at %x:%X flags %x cr2 %X\n", trap.vec, trap.err, (u32)f->cs, (u64)f->ip, (u32)f->flags,
	    (u64)trap.cr2);
	die("unexpected exception");
}

struct regs user_regs(const void *ip)
{
	return (struct regs){ .ip = (uptr)ip, .sp = (uptr)user_stack_end, .flags = 2, .cs = UCODE, .ss = UDATA,
			      .ds = UDATA, .es = UDATA, .fs = UDATA, .gs = UDATA };
}
int user(const void *ip)
{
	struct regs r = user_regs(ip);
	return go(&r);
}
extern void go_asm(const struct regs *r);
int go(const struct regs *r) { return TRY(go_asm(r)); }

#ifndef __x86_64__
/* ---- 16-bit code ------------------------------------------------------------------------- */

extern const u8 tramp[], tramp_end[];
#define TRAMP 0x8000u   /* as in real.S */
#define REAL_IN 0x7000u
#define REAL_OUT 0x7080u
#define REAL_BIG 0x70fcu

struct regs regs16(void)
{
	return (struct regs){ .flags = 2 | FL_VM | FL_IOPL, .cs = SNIP_SEG, .ds = 0x2000, .es = 0x3000, .fs = 0x2000, .gs = 0x3000,
			      .ss = 0x4000, .sp = 0x8000 };
}

void put16(const u8 *from, const u8 *end) { memcpy((void *)(uptr)SNIP_LIN, from, (uptr)(end - from)); }

int real_run(const struct regs *r, bool big)
{
	u32 *ivt = NULL;
	__asm__("" : "+r"(ivt)); /* address 0 is an address */
	memcpy((void *)TRAMP, tramp, (uptr)(tramp_end - tramp));
	struct regs in = *r;
	in.flags &= ~(uptr)FL_VM;
	memcpy((void *)REAL_IN, &in, sizeof(in));
	*(volatile u32 *)REAL_BIG = big;
	for (unsigned v = 0; v < 256; v++) {
		u8 *stub = (u8 *)0x9000 + 8 * v;
		/* pushw $v; jmp common, which real.S keeps at TRAMP + 4 */
		stub[0] = 0x68;
		stub[1] = (u8)v;
		stub[2] = 0;
		stub[3] = 0xe9;
		u16 rel = (u16)(TRAMP + 4 - (0x9000 + 8 * v + 6));
		stub[4] = (u8)rel;
		stub[5] = (u8)(rel >> 8);
		ivt[v] = 0x9000 + 8 * v;
	}
	extern void real_switch(void);
	real_switch();
	load_tables();
	const volatile u32 *o = (u32 *)REAL_OUT;
	trap.vec = (int)(u16)o[8];
	trap.err = 0;
	trap.f = (struct frame){ .ax = o[0], .cx = o[1], .dx = o[2], .bx = o[3], .sp = o[4], .bp = o[5], .si = o[6], .di = o[7],
				 .ip = o[9], .cs = o[10], .flags = o[11], .ds = o[12], .es = o[13], .fs = o[14], .gs = o[15], .ss = o[16] };
	return trap.vec;
}
#endif
