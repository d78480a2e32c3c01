/* isa-debug-exit, debugcon and pc-testdev. */
#include "board.h"

static void test_debug_exit(void **state)
{
	struct board *b = board_new(&isa_debug_exit_class);

	out8(b, 0xf4, 0x31);
	assert_int_equal(b->exits, 1);
	assert_int_equal(b->exit_code, 0x31);
	mem_port_write(&b->mem, 0xf4, 0x1234, 2);
	assert_int_equal(b->exit_code, 0x1234);
	mem_port_write(&b->mem, 0xf4, 0x12345678, 4);
	assert_int_equal(b->exit_code, 0x12345678);
	out8(b, 0xf7, 0);
	assert_int_equal(b->exit_code, 0);
	assert_int_equal(b->exits, 4); /* one a write, whatever its size */
	assert_int_equal(mem_port_read(&b->mem, 0xf4, 4), 0);
	assert_int_equal(b->exits, 4);
	board_free(b);
}

static void test_debugcon(void **state)
{
	struct board *b = board_new(&debugcon_class);

	out8(b, 0xe9, 'x'); /* nobody listens */
	debugcon_attach(b->dev, &b->be);
	assert_int_equal(in8(b, 0xe9), 0xe9);
	assert_int_equal(in8(b, 0x402), 0xe9);
	out8(b, 0xe9, 'a');
	out8(b, 0x402, 'b');
	b->be_room = 0;
	out8(b, 0x402, 'c'); /* lost */
	b->be_room = 1;
	out8(b, 0x402, 'd');
	assert_int_equal(b->n_sent, 3);
	assert_memory_equal(b->sent, "abd", 3);
	board_free(b);
}

static void test_testdev_latch(void **state)
{
	struct board *b = board_new(&testdev_class);

	mem_port_write(&b->mem, 0xe0, 0x12345678, 4);
	assert_int_equal(mem_port_read(&b->mem, 0xe0, 4), 0x12345678);
	assert_int_equal(mem_port_read(&b->mem, 0xe8, 4), 0x12345678);
	out8(b, 0xe9, 0xaa);
	assert_int_equal(mem_port_read(&b->mem, 0xe0, 4), 0x1234aa78);
	mem_port_write(&b->mem, 0xe2, 0xbeef, 2);
	assert_int_equal(mem_port_read(&b->mem, 0xea, 2), 0xbeef);
	mem_port_write(&b->mem, 0xe8, 0x01020304, 4);
	assert_int_equal(in8(b, 0xe3), 1);
	board_free(b);
}

static void test_testdev_flush(void **state)
{
	struct board *b = board_new(&testdev_class);

	mem_port_write(&b->mem, 0xe4, 0xfedcb123, 4);
	assert_int_equal(b->drops, 1);
	assert_int_equal(b->dropped_page, 0xfedcb000);
	mem_port_write(&b->mem, 0xe4, 0x1000, 2);
	assert_int_equal(b->drops, 1);
	board_free(b);
}

static void test_testdev_lines(void **state)
{
	struct board *b = board_new(&testdev_class);

	out8(b, 0x2005, 1);
	assert_int_equal(in8(b, 0x2005), 1);
	assert_int_equal(board_take(b), 0x25);
	out8(b, 0x2005, 0);
	out8(b, 0x200e, 1);
	assert_int_equal(board_take(b), 0x2e);
	out8(b, 0x2017, 1); /* GSI 23: not of the pair */
	assert_int_equal(board_take(b), -1);
	assert_int_not_equal(b->irqs.level[23], 0);
	assert_int_equal(in8(b, 0x2018), 0xff);
	/* A device that drives the same line is not disturbed. */
	irq_set(&b->irqs, 5, true);
	out8(b, 0x2005, 1);
	out8(b, 0x2005, 0);
	assert_int_not_equal(b->irqs.level[5], 0);
	board_free(b);
}

static void test_testdev_memory(void **state)
{
	struct board *b = board_new(&testdev_class);

	mem_phys_write(&b->mem, 0xff000ff8, 0x1122334455667788, 8);
	assert_int_equal(mem_phys_read(&b->mem, 0xff000ffa, 4), 0x33445566);
	mem_phys_write(&b->mem, 0xff00ffff, 0xab, 1);
	assert_int_equal(mem_phys_read(&b->mem, 0xff00ffff, 1), 0xab);
	assert_null(mem_page(&b->mem, 0xff000000).host); /* it traps */
	board_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_debug_exit),
		cmocka_unit_test(test_debugcon),
		cmocka_unit_test(test_testdev_latch),
		cmocka_unit_test(test_testdev_flush),
		cmocka_unit_test(test_testdev_lines),
		cmocka_unit_test(test_testdev_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
