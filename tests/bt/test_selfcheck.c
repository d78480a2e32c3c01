/* Which pages come to hold blocks that check themselves, and which versions of a place stay. The
 * times of selfcheck.c are set here, not waited for. */
#include "bt_rig.h"

#define AT (CODE + 0x200)
ASM(one, "mov eax, 1\n add rax, 5\n inc ecx\n ret");
ASM(two, "mov eax, 1\n add rax, 5\n dec ecx\n ret");
ASM(imm, "mov eax, 0x11223344\n add rax, 7\n inc ecx\n ret");
ASM(store, "inc eax\n mov [rbx], eax\n inc ecx\n ret");

static struct page_code *page_of(u64 phys) { return &r.mem.code[phys >> 12]; }
static void churn(u64 phys, unsigned times)
{
	for (unsigned k = 0; k < times; k++)
		selfcheck_churn(r.bt, page_of(phys), CHURN_HIT);
}
#define MANY 5 /* of hits, at once: enough to begin, and not twice */

static struct block *put(u64 at, const u8 *code, size_t n)
{
	rig_code(at, code, n);
	struct block *k = rig_block(at);
	assert_non_null(k);
	return k;
}
#define PUT(name) put(AT, asm_##name, ASM_SIZE(name))

/* A page that is not written is watched; one that is, is not, until its time is over. */
static void pages_come_and_go(void **state)
{
	struct block *k = PUT(one);
	assert_null(k->made_from);
	assert_true(page_of(AT)->lines);
	churn(AT, MANY);
	assert_false(k->valid);
	assert_int_equal(page_of(AT)->lines, 0);
	k = rig_block(AT);
	assert_non_null(k->made_from);
	assert_int_equal(page_of(AT)->lines, 0);
	page_of(AT)->check_until = 1;
	struct block *after = rig_block(AT);
	assert_false(k->valid);
	assert_null(after->made_from);
	assert_true(page_of(AT)->lines);
	u32 term = page_of(AT)->check_term;
	churn(AT, MANY);
	assert_non_null(rig_block(AT)->made_from);
	churn(AT, MANY); /* as when another processor's are still watched */
	assert_int_equal(page_of(AT)->check_term, term);
	/* Again at once when it is over: for longer. */
	page_of(AT)->check_until = __builtin_ia32_rdtsc() - 1;
	churn(AT, MANY);
	assert_int_equal(page_of(AT)->check_term, 2 * term);
	/* And after a long rest as the first time. */
	page_of(AT)->check_until = 1;
	churn(AT, MANY);
	assert_int_equal(page_of(AT)->check_term, term);
	/* Slow hits do not add up. */
	page_of(AT)->check_until = 0;
	k = rig_block(AT);
	for (unsigned n = 0; n < 100; n++) {
		page_of(AT)->churn_since = 0;
		churn(AT, 1);
	}
	assert_null(rig_block(AT)->made_from);
}

static void chosen_by_option(void **state)
{
	r.bt->code = CODE_WATCHED;
	struct block *k = PUT(one);
	churn(AT, MANY);
	assert_ptr_equal(rig_block(AT), k);
	assert_null(k->made_from);
	r.bt->code = CODE_CHECKED;
	cache_flush(r.bt);
	assert_non_null(rig_block(AT)->made_from);
}

static void versions(void **state)
{
	r.bt->code = CODE_CHECKED;
	struct block *one = PUT(one), *two = PUT(two);
	assert_ptr_not_equal(one, two);
	u64 made = r.bt->stats.translated;
	for (unsigned k = 0; k < 10; k++) {
		assert_ptr_equal(PUT(one), one);
		assert_ptr_equal(PUT(two), two);
	}
	assert_int_equal(r.bt->stats.translated, made);
	/* An immediate that changes is read from then on; what says less goes. */
	struct block *k = PUT(imm);
	assert_int_equal(k->varies, 0x1eull | 1ull << 8);
	assert_true(selfcheck_holds(k));
	u8 code[16];
	memcpy(code, asm_imm, ASM_SIZE(imm));
	for (unsigned n = 0; n < 300; n++) {
		code[1 + n % 4] ^= (u8)n;
		code[8] = (u8)n;
		assert_ptr_equal(put(AT, code, ASM_SIZE(imm)), k);
	}
	assert_false(one->valid);
	code[5] ^= 1; /* no immediate */
	rig_code(AT, code, ASM_SIZE(imm));
	assert_false(selfcheck_holds(k));
	/* Not more than a few. */
	memset(code, 0x90, sizeof(code));
	code[15] = 0xc3;
	for (unsigned n = 0; n < 14; n++) {
		code[n] = 0xf8; /* clc */
		put(AT, code, sizeof(code));
	}
	unsigned n = 0;
	for (struct block *b = *block_hash_of(r.bt, AT, rig_block(AT)->page); b; b = b->hash_next)
		n += b->lin == AT;
	assert_in_range(n, 2, 4);
}

/* A store ends the block; so does the 64th byte. */
static void ends(void **state)
{
	r.bt->code = CODE_CHECKED;
	assert_int_equal(PUT(store)->n, 2);
	u8 nops[256];
	memset(nops, 0x90, sizeof(nops));
	assert_int_equal(put(AT + 0x400, nops, sizeof(nops))->guest_bytes, 48); /* as many as a block has */
	for (unsigned k = 0; k < sizeof(nops); k += 7)
		memcpy(nops + k, "\x0f\x1f\x80\0\0\0\0", k + 7 <= sizeof(nops) ? 7 : 1);
	struct block *k = put(AT + 0x600, nops, sizeof(nops));
	assert_in_range(k->guest_bytes, 50, SELFCHECK_BYTES);
}

/* Of one that crosses, both pages: whichever was written. */
static void crossing(void **state)
{
	static const u8 mov[] = { 0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xc3 };
	for (unsigned n = 0; n < 2; n++) {
		u64 first = CODE + 0x4000 + 0x4000 * n, at = first + 4096 - 4, other = n ? first : first + 4096;
		struct block *k = put(at, mov, sizeof(mov)), *beside = put(n ? at - 64 : at + 64, asm_one, ASM_SIZE(one));
		assert_non_null(k->page2);
		assert_null(k->made_from);
		churn(n ? first + 4096 : first, MANY);
		k = rig_block(at);
		assert_non_null(k->page2);
		assert_non_null(k->made_from);
		assert_true(k->page->selfcheck && k->page2->selfcheck);
		assert_true(selfcheck_wanted(r.bt, page_of(other)));
		assert_false(beside->valid);
		assert_true(selfcheck_holds(k));
		rig_code(at + 5, "\x77", 1);
		assert_false(selfcheck_holds(k));
		assert_ptr_not_equal(rig_block(at), k);
	}
}

/* At two addresses, each checks for itself. */
static void aliases(void **state)
{
	struct block *a = PUT(one);
	rig_map(0x7f1234567000 + 0x200 - (AT & PAGE_MASK), AT & ~PAGE_MASK, PG_P | PG_U);
	u64 at = 0x7f1234567000 + 0x200 - (AT & PAGE_MASK) + (AT & PAGE_MASK);
	struct block *c = rig_block(at);
	assert_ptr_not_equal(a, c);
	churn(AT, MANY);
	assert_false(a->valid || c->valid);
	a = rig_block(AT);
	c = rig_block(at);
	assert_true(a->made_from && c->made_from);
	rig_code(AT, asm_two, ASM_SIZE(two));
	assert_false(selfcheck_holds(a) || selfcheck_holds(c));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(pages_come_and_go, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(chosen_by_option, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(versions, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(ends, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(crossing, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(aliases, rig_up, rig_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
