/* What runs when a program faults: guest code, in pages that only the supervisor has.
 *
 * Halting, for faults and interrupts: the frame's RFLAGS lose their status flags (an engine may have let flags die that nothing
 * would have read; with exact flags nothing is lost), HLT.
 * Going on: #PF of a page that can be made accessible: makes it so, INVLPG, IRET; #DB: RIP, flags
 * and DR6 go into a running sum, IRET; INT3, INTO, INT 22h..27h, interrupts: counted, IRET; whatever else: IRET
 * to the program's resume label. On the program's own stack, which it may read, #PF and interrupts lose the flags, too.
 * Each takes fuel, and halts without. #DF and the end, INT 21h: HLT. */
#include <string.h>

#include "world.h"

struct code { u8 *at; u64 lin; };

static void put(struct code *c, const char *hex)
{
	for (; *hex; hex++) {
		if (*hex == ' ')
			continue;
		unsigned hi = *hex <= '9' ? *hex - '0' : *hex - 'a' + 10, lo = hex[1] <= '9' ? hex[1] - '0' : hex[1] - 'a' + 10;
		*c->at++ = (u8)(hi << 4 | lo);
		c->lin++;
		hex++;
	}
}
static void put32(struct code *c, u32 v) { st32(c->at, v); c->at += 4; c->lin += 4; }
/* The displacement of a RIP-relative operand or branch that ends `more` bytes after it. */
static void rel(struct code *c, u64 to, unsigned more) { put32(c, (u32)(to - (c->lin + 4 + more))); }

static bool has_error(unsigned v)
{
	return v == V_DF || v == V_TS || v == V_NP || v == V_SS || v == V_GP || v == V_PF || v == V_AC || v == V_CP;
}

enum { FRAME_FLAGS = 16 };

static void scrub(struct code *c, unsigned off, u32 mask)
{
	put(c, "48 81 64 24"); /* and qword [rsp + off], mask */
	*c->at++ = (u8)off;
	c->lin++;
	put32(c, mask);
}

static void halting_stubs(struct world *w, u32 mask)
{
	for (unsigned v = 0; v < 256; v++) {
		struct code c = { sys_page(w, SYS_STUBS) + v * STUB_STEP, sys_lin(w, SYS_STUBS) + v * STUB_STEP };
		if ((v < 32 && v != V_BP && v != V_OF) || v >= INTR_VECTORS)
			scrub(&c, FRAME_FLAGS + 8 * has_error(v), mask);
		put(&c, "f4");
	}
}

/* sub dword [counter], 1; js halt. Not DEC: it would leave the program's CF, dead or not. */
static void take_fuel(struct world *w, struct code *c, unsigned var, u64 halt)
{
	put(c, "83 2d");
	rel(c, vars_lin(w, var), 1);
	put(c, "01");
	put(c, "0f 88");
	rel(c, halt, 0);
}

static void skip(struct world *w, struct code *c, u32 mask, u64 halt)
{
	scrub(c, FRAME_FLAGS, mask);
	put(c, "50"); /* push rax */
	take_fuel(w, c, VAR_FUEL, halt);
	put(c, "48 8b 05"); /* mov rax, [resume] */
	rel(c, vars_lin(w, VAR_RESUME), 0);
	put(c, "48 89 44 24 08  58  48 cf"); /* mov [rsp + 8], rax; pop rax; iretq */
}

/* mask ~0: nothing is scrubbed, the flags must be what they were when the instruction starts again. */
static void page_fault(struct world *w, struct code *c, u32 mask, u64 halt, u64 skip_at)
{
	if (mask != ~0u)
		scrub(c, FRAME_FLAGS + 8, mask);
	put(c, "50 51 57 fc"); /* push rax; push rcx; push rdi; cld */
	take_fuel(w, c, VAR_FUEL, halt);
	put(c, "0f 20 d0  48 c1 e8 0c"); /* mov rax, cr2; shr rax, 12 */
	put(c, "48 8d 3d");              /* lea rdi, [pages] */
	rel(c, vars_lin(w, VAR_FIX), 0);
	put(c, "b9");
	put32(c, MAX_FIX);
	put(c, "f2 48 af"); /* repne scasq */
	put(c, "75 1b");    /* jne other */
	put(c, "48 8b 87"); /* mov rax, [rdi + entries - pages - 8] */
	put32(c, MAX_FIX * 8 - 8);
	put(c, "89 c1  83 e1 07  48 83 e0 f8  48 09 08"); /* mov ecx, eax; and ecx, 7; and rax, ~7; or [rax], rcx */
	put(c, "0f 20 d0  0f 01 38");                     /* mov rax, cr2; invlpg [rax] */
	put(c, "eb 0c");                                  /* jmp out */
	put(c, "5f 59 58  48 83 c4 08  e9");              /* other: pop rdi, rcx, rax; add rsp, 8; jmp skip */
	rel(c, skip_at, 0);
	put(c, "5f 59 58  48 83 c4 08  48 cf"); /* out: pop rdi, rcx, rax; add rsp, 8; iretq */
}

static void debug_trap(struct world *w, struct code *c, u32 mask, u64 halt)
{
	put(c, "50"); /* push rax */
	take_fuel(w, c, VAR_STEPS, halt);
	put(c, "48 8b 44 24 08"); /* mov rax, [rsp + 8]: RIP */
	put(c, "48 01 05");
	rel(c, vars_lin(w, VAR_TRACE), 0);
	put(c, "48 8b 44 24 18  25"); /* mov rax, [rsp + 24]: RFLAGS; and eax, mask */
	put32(c, mask);
	put(c, "48 01 05");
	rel(c, vars_lin(w, VAR_TRACE), 0);
	put(c, "0f 21 f0  48 01 05"); /* mov rax, dr6; add [trace], rax */
	rel(c, vars_lin(w, VAR_TRACE), 0);
	put(c, "48 c1 05"); /* rol qword [trace], 5 */
	rel(c, vars_lin(w, VAR_TRACE), 1);
	put(c, "05");
	put(c, "31 c0  0f 23 f0  58  48 cf"); /* xor eax, eax; mov dr6, rax; pop rax; iretq */
}

static void counted(struct world *w, struct code *c, u64 halt)
{
	put(c, "ff 05"); /* inc dword [count] */
	rel(c, vars_lin(w, VAR_COUNT), 0);
	take_fuel(w, c, VAR_FUEL, halt);
	put(c, "48 cf");
}

static void going_stubs(struct world *w, u32 mask)
{
	struct code c = { sys_page(w, SYS_HANDLERS), sys_lin(w, SYS_HANDLERS) };
	u64 halt = c.lin;
	put(&c, "f4");
	u64 error = c.lin;
	put(&c, "48 83 c4 08"); /* add rsp, 8 */
	u64 other = c.lin;
	skip(w, &c, mask, halt);
	u64 fault = c.lin;
	page_fault(w, &c, ~0u, halt, other);
	u64 trap = c.lin;
	debug_trap(w, &c, mask, halt);
	u64 count = c.lin;
	counted(w, &c, halt);
	if (c.at > sys_page(w, SYS_HANDLERS) + PF_STACK_AT)
		bug("the handlers overlap");
	c = (struct code){ sys_page(w, SYS_HANDLERS) + PF_STACK_AT, sys_lin(w, SYS_HANDLERS) + PF_STACK_AT };
	page_fault(w, &c, mask, halt, other);
	c = (struct code){ sys_page(w, SYS_HANDLERS) + INTR_STACK_AT, sys_lin(w, SYS_HANDLERS) + INTR_STACK_AT };
	scrub(&c, FRAME_FLAGS, mask);
	counted(w, &c, halt);
	c = (struct code){ sys_page(w, SYS_HANDLERS) + SYSCALL_AT, sys_lin(w, SYS_HANDLERS) + SYSCALL_AT };
	take_fuel(w, &c, VAR_FUEL, halt);
	put(&c, "48 0f 07"); /* sysretq */
	for (unsigned v = 0; v < 256; v++) {
		struct code s = { sys_page(w, SYS_GO_STUBS) + v * STUB_STEP, sys_lin(w, SYS_GO_STUBS) + v * STUB_STEP };
		bool back = v == V_BP || v == V_OF || v == V_NMI || v - IRET_VECTORS < N_IRET_VECTORS || v >= INTR_VECTORS;
		if (v == END_VECTOR || v == V_DF) {
			if (v == V_DF)
				scrub(&s, FRAME_FLAGS + 8, mask);
			put(&s, "f4");
			continue;
		}
		put(&s, "e9");
		rel(&s, v == V_PF ? fault : v == V_DB ? trap : back ? count : has_error(v) ? error : other, 0);
	}
}

void handlers64(struct world *w, bool exact_flags)
{
	u32 mask = exact_flags ? ~0u : ~(u32)FL_STATUS;
	halting_stubs(w, mask);
	going_stubs(w, mask);
}
