/* Guests that try to reach the VMM: every one has the host's addresses in its registers and runs with
 * all blocks verified. What counts is that canaries around RAM, in the heap and out of sight stay as
 * they are, that no secret comes into the guest, and that the process goes on. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "hostile.h"

/* ---- by the host's addresses ------------------------------------------------------------------------- */

/* Each general register holds some address of the host's: loads, stores, all kinds through each. */
static void addresses(void **state)
{
	hostile_up();
	static const u8 base[] = { 0, 1, 2, 3, 6, 7, 8, 9, 10, 12, 13, 14 };
	static const struct { const char *name; u8 code[8], n; } kinds[] = {
		{ "load", { 0x48, 0x8b, 0x28 }, 3 },             /* mov rbp, [r] */
		{ "store", { 0x48, 0x89, 0x28 }, 3 },
		{ "add to", { 0x48, 0x01, 0x28 }, 3 },
		{ "byte store", { 0x48, 0x88, 0x28 }, 3 },
		{ "exchange", { 0x48, 0x87, 0x28 }, 3 },
		{ "vector load", { 0x48, 0x0f, 0x10, 0x28 }, 4 },
		{ "vector store", { 0x48, 0x0f, 0x11, 0x28 }, 4 },
		{ "call by", { 0x48, 0xff, 0x10 }, 3 },
		{ "jump by", { 0x48, 0xff, 0x20 }, 3 },
		{ "push of", { 0x48, 0xff, 0x30 }, 3 },
	};
	char name[64];
	for (unsigned cpl = 0; cpl <= 3; cpl += 3)
		for (unsigned k = 0; k < ARRAY_LEN(kinds); k++)
			for (unsigned b = 0; b < ARRAY_LEN(base); b++) {
				u8 code[24], n = 0;
				for (unsigned twice = 0; twice < 2; twice++) { /* cold, and again */
					code[n] = kinds[k].code[0] | (base[b] >> 3);
					memcpy(code + n + 1, kinds[k].code + 1, kinds[k].n - 1u);
					unsigned rm = n + kinds[k].n - 1u;
					unsigned low = base[b] & 7;
					n += kinds[k].n;
					if (low == 5 || low == 4) { /* disp8, SIB */
						code[rm] |= 0x40 | low;
						if (low == 4)
							code[n++] = 0x24;
						code[n++] = 0;
					} else {
						code[rm] |= low;
					}
				}
				code[n++] = 0xf4;
				snprintf(name, sizeof(name), "%s host register %u at CPL %u", kinds[k].name, base[b], cpl);
				hostile_run(name, cpl, code, n);
			}
	hostile_down();
}

/* ---- addresses that share an entry --------------------------------------------------------------------------------- */

/* A page is used, for loads and stores; then every canonical address that shares its entry. */
static void aliases(void **state)
{
	hostile_up();
	ASM(alias, "mov rax, [rbp]\n mov [rbp], rax\n mov rcx, [rdi]\n mov [rsi], rcx\n hlt");
	ASM(alias_store, "mov rax, [rbp]\n mov [rbp], rax\n mov [rdi], rax\n hlt");
	ASM(alias_string, "mov rax, [rbp]\n mov [rbp], rax\n mov ecx, 8\n rep stosb\n hlt");
	ASM(alias_call, "mov rax, [rbp]\n mov [rbp], rax\n lea rsp, [rdi + 8]\n call . + 5\n hlt");
	static const struct { const char *name; const u8 *at; size_t n; } programs[] = {
		{ "load", asm_alias, 0 }, { "store", asm_alias_store, 0 }, { "string", asm_alias_string, 0 }, { "call", asm_alias_call, 0 },
	};
	const size_t sizes[] = { ASM_SIZE(alias), ASM_SIZE(alias_store), ASM_SIZE(alias_string), ASM_SIZE(alias_call) };
	char name[64];
	for (unsigned p = 0; p < ARRAY_LEN(programs); p++)
		for (i64 k = -128; k < 128; k++) {
			if (k == 0)
				continue;
			hostile_fresh(p == 1 ? 3 : 0);
			rig_code(CODE, programs[p].at, sizes[p]);
			r.c->regs[R_BP] = DATA + 0x100;
			r.c->regs[R_SI] = DATA + 0x200;
			r.c->regs[R_DI] = DATA + 0x100 + (u64)k * MEM_ALIAS_STEP;
			hostile_go();
			snprintf(name, sizeof(name), "%s of what shares an entry, %ld", programs[p].name, (long)k);
			if (r.c->regs[R_DI] == DATA + 0x100 + (u64)k * MEM_ALIAS_STEP && ld64(r.mem.ram + DATA + 0x200))
				fail_msg("%s came through", name);
			hostile_check(name);
		}
	hostile_down();
}

static void programs(void **state) { hostile_all(); }
static void end_of_ram(void **state) { hostile_end_of_ram(); }
static void chosen_pages(void **state) { hostile_chosen_pages(); }
static void random_bytes(void **state) { hostile_random(600); }

/* ---- two processors --------------------------------------------------------------------------------------------------------------------------- */

/* The second runs the code at CODE + 1000h on the same RAM while the first runs that at CODE. */
static struct second { struct cpu *c; pthread_t thread; _Atomic bool ready, done, left, over; } two;

static void *second_thread(void *arg)
{
	struct error e;
	two.c = cpu_new(1, &r.mem, &r.clock, &r.model, &r.hooks);
	if (!two.c || !bt_engine.vcpu_init(two.c, &e))
		return NULL;
	bt_of(two.c)->verify_every = 1;
	struct cpu *c = two.c;
	cpu_reset(c, false);
	c->activity = ACT_RUN;
	c->gdtr = r.c->gdtr;
	c->idtr = r.c->idtr;
	memcpy(c->seg, r.c->seg, sizeof(c->seg));
	c->cpl = 0;
	c->cr0 = r.c->cr0;
	c->cr3 = r.c->cr3;
	c->cr4 = r.c->cr4;
	c->xcr0 = r.c->xcr0;
	c->efer = r.c->efer;
	memcpy(c->regs, r.c->regs, sizeof(c->regs));
	c->regs[R_SP] = STACK + 0x4000;
	c->rip = CODE + 0x1000;
	mmu_flush_all(c);
	cpu_update_mode(c);
	cpu_update_fpu(c);
	two.ready = true;
	while (!two.done && bt_engine.run(c) == RUN_EVENT)
		cpu_clear_event(c, EV_EXIT);
	two.left = true;
	while (!two.over)
		nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	bt_engine.vcpu_destroy(c);
	cpu_free(c);
	return NULL;
}

static void race(const char *name, const u8 *first, size_t n1, const u8 *second, size_t n2)
{
	hostile_fresh(0);
	rig_code(CODE, first, n1);
	rig_code(CODE + 0x1000, second, n2);
	two.ready = two.done = two.left = two.over = false;
	assert_int_equal(pthread_create(&two.thread, NULL, second_thread, NULL), 0);
	while (!two.ready)
		nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	hostile_go();
	two.done = true;
	cpu_post_event(two.c, EV_EXIT);
	while (!two.left) {
		cpu_post_event(two.c, EV_EXIT);
		bt_engine.kick(two.c);
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	two.over = true;
	pthread_join(two.thread, NULL);
	hostile_check(name);
}

ASM(r_forever, "1: mov rax, [0x20000]\n mov [0x20008], rax\n add qword ptr [0x20010], 1\n jmp 1b");
ASM(r_patch, "1: xor byte ptr [0x11040], 1\n mov word ptr [0x11042], 0x9090\n pause\n jmp 1b");
ASM(r_patched, ".rept 64\n nop\n .endr\n .byte 0x40\n nop\n nop\n nop\n jmp . - 68");
ASM(r_patch_syscall, "1: mov dword ptr [0x11040], 0x90900b0f\n mov dword ptr [0x11040], 0x9090050f\n mov dword ptr [0x11040], 0x90909090\n jmp 1b");
ASM(r_execute, "mov eax, 231\n mov edi, 77\n .rept 53\n nop\n .endr\n nop\n nop\n nop\n nop\n jmp . - 63");
ASM(r_unmap, "1: and qword ptr [0x103100], -2\n invlpg [0x20000]\n or qword ptr [0x103100], 1\n jmp 1b");
ASM(r_remap, "mov rcx, [0x103100]\n1: mov rax, 0xfff067\n mov [0x103100], rax\n invlpg [0x20000]\n mov [0x103100], rcx\n invlpg [0x20000]\n jmp 1b");
ASM(r_strings, "1: mov edi, 0x20000\n mov esi, 0x21000\n mov ecx, 512\n rep movsq\n mov edi, 0x20000\n mov ecx, 4096\n rep stosb\n jmp 1b");
ASM(r_write_code, "1: mov edi, 0x11000\n mov ecx, 512\n mov rax, 0x9090909090909090\n rep stosq\n mov word ptr [0x11ff0], 0xfeeb\n jmp 1b");
ASM(r_code, "1: .rept 200\n nop\n .endr\n jmp 1b");
ASM(r_vectors, "1: vmovdqu64 zmm0, [0x20000]\n vmovdqu64 [0x20fe0], zmm0\n movups [0x20ff8], xmm1\n jmp 1b");
ASM(r_calls, "1: mov rsp, 0x28000\n call 2f\n jmp 1b\n2: push rax\n push rbx\n pop rbx\n pop rax\n ret");
ASM(r_stack_code, "1: mov rsp, 0x11010\n push rax\n push rax\n mov rsp, 0x30000\n jmp 1b");

static void races(void **state)
{
	hostile_up();
#define RACE(a, b) race(#a " beside " #b, asm_##a, ASM_SIZE(a), asm_##b, ASM_SIZE(b))
	RACE(r_forever, r_forever);
	RACE(r_patch, r_patched);
	RACE(r_patch_syscall, r_execute);
	RACE(r_unmap, r_forever);
	RACE(r_remap, r_forever);
	RACE(r_remap, r_strings);
	RACE(r_remap, r_vectors);
	RACE(r_unmap, r_strings);
	RACE(r_unmap, r_calls);
	RACE(r_write_code, r_code);
	RACE(r_strings, r_forever);
	RACE(r_stack_code, r_code);
	RACE(r_stack_code, r_patched);
	hostile_down();
}

/* What verify_form.c takes for granted of the host's processor: an aligned move under a mask faults
 * at any other address, unless the mask is 0 and nothing is accessed. */
static sigjmp_buf unaligned;
static void on_unaligned(int sig) { siglongjmp(unaligned, 1); }
static void masked_alignment(void **state)
{
	if (!__builtin_cpu_supports("avx512f"))
		skip();
	static _Alignas(64) u8 area[256];
	void (*before)(int) = signal(SIGSEGV, on_unaligned);
	for (volatile unsigned off = 4; off < 64; off += 4)
		for (volatile unsigned mask = 1; mask < 0x10000; mask *= 2) {
			volatile bool faulted = false;
			if (sigsetjmp(unaligned, 1))
				faulted = true;
			else
				__asm__ volatile("kmovw %1, %%k1\n vmovdqa32 %%zmm0, (%0)%{%%k1%}" :: "r"(area + off), "r"(mask) : "memory");
			assert_true(faulted);
		}
	signal(SIGSEGV, before);
}

static void count(void **state)
{
	print_message("%u hostile programs\n", hostile_programs);
	assert_true(hostile_programs >= 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(addresses),
		cmocka_unit_test(programs),
		cmocka_unit_test(end_of_ram),
		cmocka_unit_test(aliases),
		cmocka_unit_test(chosen_pages),
		cmocka_unit_test(random_bytes),
		cmocka_unit_test(races),
		cmocka_unit_test(masked_alignment),
		cmocka_unit_test(count),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
