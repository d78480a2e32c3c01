/* The pair of 8259As, as its datasheet tells. Vectors: 0x20 master, 0x28 slave. */
#include "board.h"

static void line(struct board *b, unsigned irq, bool level)
{
	i8259_set_irq(b->irqs.pic, irq, level);
}

static int ack(struct board *b)
{
	return i8259_ack(b->irqs.pic);
}

static bool asks(struct board *b)
{
	return i8259_output(b->irqs.pic);
}

static u8 isr(struct board *b, u16 base)
{
	out8(b, base, 0x0b);
	return in8(b, base);
}

static u8 irr(struct board *b, u16 base)
{
	out8(b, base, 0x0a);
	return in8(b, base);
}

static void test_initialization(void **state)
{
	struct board *b = board_new(NULL);

	out8(b, 0x21, 0x52);
	assert_int_equal(in8(b, 0x21), 0x52);
	line(b, 3, true);
	assert_true(asks(b));
	out8(b, 0x20, 0x11); /* ICW1 forgets edges and the mask; nothing comes before ICW4 */
	assert_int_equal(in8(b, 0x21), 0);
	assert_int_equal(in8(b, 0x20), 0); /* reads IRR again */
	line(b, 4, true);
	assert_false(asks(b));
	out8(b, 0x21, 0x43); /* low bits of the base do not count */
	out8(b, 0x21, 4);
	assert_false(asks(b));
	out8(b, 0x21, 1);
	assert_true(asks(b));
	assert_int_equal(ack(b), 0x44);
	line(b, 3, false);
	line(b, 3, true); /* only a new edge counts */
	assert_int_equal(ack(b), 0x43);
	board_free(b);
}

static void test_reset_is_silent(void **state)
{
	struct board *b = board_new(NULL);

	b->pic->cls->reset(b->pic);
	assert_int_equal(in8(b, 0x21), 0xff);
	assert_int_equal(in8(b, 0xa1), 0xff);
	line(b, 1, true);
	line(b, 9, true);
	assert_false(asks(b));
	board_free(b);
}

static void test_single_without_icw4(void **state)
{
	struct board *b = board_new(NULL);

	out8(b, 0x20, 0x12); /* SNGL, no ICW4: only ICW2 follows */
	out8(b, 0x21, 0x50);
	out8(b, 0x21, 0xfd);
	assert_int_equal(in8(b, 0x21), 0xfd);
	line(b, 1, true);
	assert_int_equal(ack(b), 0x51);
	board_free(b);
}

static void test_priority_and_nesting(void **state)
{
	struct board *b = board_new(NULL);

	line(b, 5, true);
	line(b, 3, true);
	assert_int_equal(irr(b, 0x20), 0x28);
	assert_int_equal(ack(b), 0x23);
	assert_int_equal(isr(b, 0x20), 0x08);
	assert_int_equal(irr(b, 0x20), 0x20);
	assert_false(asks(b)); /* 5 waits for 3 */
	line(b, 1, true);
	assert_true(asks(b)); /* 1 does not */
	assert_int_equal(ack(b), 0x21);
	assert_int_equal(isr(b, 0x20), 0x0a);
	out8(b, 0x20, 0x20); /* non-specific: the highest in service */
	assert_int_equal(isr(b, 0x20), 0x08);
	assert_false(asks(b));
	out8(b, 0x20, 0x63);
	assert_int_equal(isr(b, 0x20), 0);
	assert_int_equal(ack(b), 0x25);
	board_free(b);
}

static void test_edges_and_levels(void **state)
{
	struct board *b = board_new(NULL);

	line(b, 5, true);
	assert_int_equal(ack(b), 0x25);
	out8(b, 0x20, 0x20);
	assert_false(asks(b)); /* still high, but no edge */
	line(b, 5, false);
	line(b, 5, true);
	assert_true(asks(b));
	line(b, 5, false); /* withdrawn: the acknowledge finds nothing */
	assert_false(asks(b));

	out8(b, 0x4d0, 0xff);
	out8(b, 0x4d1, 0xff);
	assert_int_equal(in8(b, 0x4d0), 0xf8);
	assert_int_equal(in8(b, 0x4d1), 0xde);
	line(b, 5, true);
	assert_int_equal(ack(b), 0x25);
	assert_int_equal(irr(b, 0x20), 0x20);
	assert_false(asks(b));
	out8(b, 0x20, 0x20);
	assert_true(asks(b)); /* a level asks again */
	line(b, 5, false);
	assert_false(asks(b));
	board_free(b);
}

static void test_mask(void **state)
{
	struct board *b = board_new(NULL);

	out8(b, 0x21, 0x08);
	line(b, 3, true);
	assert_false(asks(b));
	assert_int_equal(irr(b, 0x20), 0x08);
	out8(b, 0x21, 0);
	assert_true(asks(b));
	board_free(b);
}

static void test_cascade(void **state)
{
	struct board *b = board_new(NULL);

	line(b, 12, true);
	assert_int_equal(irr(b, 0x20), 0x04);
	assert_int_equal(ack(b), 0x2c);
	assert_int_equal(isr(b, 0x20), 0x04);
	assert_int_equal(isr(b, 0xa0), 0x10);
	line(b, 8, true); /* higher on the slave, but its master is in service */
	assert_false(asks(b));
	line(b, 1, true);
	assert_int_equal(ack(b), 0x21);
	out8(b, 0x20, 0x20);
	out8(b, 0xa0, 0x20);
	assert_false(asks(b));
	out8(b, 0x20, 0x20);
	assert_int_equal(ack(b), 0x28);
	out8(b, 0xa0, 0x20);
	out8(b, 0x20, 0x20);
	assert_false(asks(b));
	line(b, 2, true); /* there is no such pin */
	assert_false(asks(b));
	board_free(b);
}

static void test_two_on_the_slave(void **state)
{
	struct board *b = board_new(NULL);

	board_pic_init(b, 0x03); /* AEOI: the slave's output never stays low by itself */
	line(b, 14, true);
	line(b, 11, true);
	assert_int_equal(ack(b), 0x2b);
	assert_int_equal(ack(b), 0x2e);
	assert_false(asks(b));
	assert_int_equal(isr(b, 0x20) | isr(b, 0xa0), 0);
	board_free(b);
}

static void test_special_fully_nested(void **state)
{
	struct board *b = board_new(NULL);

	board_pic_init(b, 0x11);
	line(b, 12, true);
	assert_int_equal(ack(b), 0x2c);
	line(b, 13, true);
	assert_false(asks(b)); /* lower on the slave */
	line(b, 3, true);
	assert_false(asks(b)); /* lower on the master */
	line(b, 8, true);
	assert_true(asks(b));
	assert_int_equal(ack(b), 0x28);
	assert_int_equal(isr(b, 0xa0), 0x11);
	board_free(b);
}

static void test_spurious(void **state)
{
	struct board *b = board_new(NULL);

	assert_int_equal(ack(b), 0x27);
	assert_int_equal(isr(b, 0x20), 0);
	/* What the slave withdraws, its output withdraws from the master. */
	out8(b, 0x4d1, 0x02);
	line(b, 9, true);
	line(b, 9, false);
	assert_false(asks(b));
	assert_int_equal(ack(b), 0x27);
	assert_int_equal(isr(b, 0x20) | isr(b, 0xa0), 0);
	line(b, 9, true);
	assert_int_equal(ack(b), 0x29);
	out8(b, 0xa0, 0x20);
	out8(b, 0x20, 0x20);
	line(b, 9, false);
	assert_int_equal(ack(b), 0x27);
	board_free(b);
}

static void test_rotation(void **state)
{
	struct board *b = board_new(NULL);

	line(b, 3, true);
	assert_int_equal(ack(b), 0x23);
	out8(b, 0x20, 0xa0); /* rotate on non-specific EOI: 3 is lowest now */
	line(b, 3, false);
	line(b, 3, true);
	line(b, 4, true);
	line(b, 1, true);
	assert_int_equal(ack(b), 0x24);
	out8(b, 0x20, 0xe4); /* rotate on specific EOI: 4 is lowest */
	assert_int_equal(ack(b), 0x21);
	out8(b, 0x20, 0x61);
	assert_int_equal(ack(b), 0x23);
	out8(b, 0x20, 0x63);
	out8(b, 0x20, 0xc1); /* set priority: 1 is lowest, 3 above 0 */
	line(b, 0, true);
	line(b, 3, false);
	line(b, 3, true);
	assert_int_equal(ack(b), 0x23);
	board_free(b);
}

static void test_automatic_eoi(void **state)
{
	struct board *b = board_new(NULL);

	board_pic_init(b, 0x03);
	line(b, 6, true);
	line(b, 7, true);
	assert_int_equal(ack(b), 0x26);
	assert_int_equal(isr(b, 0x20), 0);
	assert_int_equal(ack(b), 0x27);
	assert_false(asks(b));
	out8(b, 0x20, 0x80); /* rotate in automatic EOI */
	line(b, 0, true);
	assert_int_equal(ack(b), 0x20);
	line(b, 0, false);
	line(b, 0, true);
	line(b, 6, false);
	line(b, 6, true);
	assert_int_equal(ack(b), 0x26); /* 0 is lowest */
	out8(b, 0x20, 0x00);
	assert_int_equal(ack(b), 0x20);
	board_free(b);
}

static void test_special_mask(void **state)
{
	struct board *b = board_new(NULL);

	line(b, 1, true);
	assert_int_equal(ack(b), 0x21);
	line(b, 6, true);
	assert_false(asks(b));
	out8(b, 0x21, 0x02);
	out8(b, 0x20, 0x68);
	assert_true(asks(b)); /* the masked level in service does not stop lower ones */
	assert_int_equal(ack(b), 0x26);
	out8(b, 0x20, 0x20); /* nor is it the one that ends */
	assert_int_equal(isr(b, 0x20), 0x02);
	out8(b, 0x20, 0x20);
	assert_int_equal(isr(b, 0x20), 0x02);
	out8(b, 0x20, 0x48); /* out of special mask mode */
	out8(b, 0x20, 0x20);
	assert_int_equal(isr(b, 0x20), 0);
	board_free(b);
}

static void test_poll(void **state)
{
	struct board *b = board_new(NULL);

	out8(b, 0x20, 0x0c);
	assert_int_equal(in8(b, 0x20), 0x00);
	line(b, 10, true);
	out8(b, 0x20, 0x0c);
	assert_int_equal(in8(b, 0x20), 0x82);
	assert_int_equal(isr(b, 0x20), 0x04);
	out8(b, 0xa0, 0x0c);
	assert_int_equal(in8(b, 0xa1), 0x82); /* either address */
	assert_int_equal(isr(b, 0xa0), 0x04);
	assert_int_equal(in8(b, 0xa1), 0); /* one read only: the mask again */
	assert_false(asks(b));
	board_free(b);
}

static void test_output_pulses(void **state)
{
	struct board *b = board_new(NULL);

	b->rises = 0;
	board_pic_init(b, 0x03);
	line(b, 3, true);
	line(b, 4, true);
	assert_int_equal(b->rises, 1);
	assert_int_equal(ack(b), 0x23);
	assert_int_equal(b->rises, 2); /* fell at the acknowledge, rose for the next */
	board_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_initialization),
		cmocka_unit_test(test_reset_is_silent),
		cmocka_unit_test(test_single_without_icw4),
		cmocka_unit_test(test_priority_and_nesting),
		cmocka_unit_test(test_edges_and_levels),
		cmocka_unit_test(test_mask),
		cmocka_unit_test(test_cascade),
		cmocka_unit_test(test_two_on_the_slave),
		cmocka_unit_test(test_special_fully_nested),
		cmocka_unit_test(test_spurious),
		cmocka_unit_test(test_rotation),
		cmocka_unit_test(test_automatic_eoi),
		cmocka_unit_test(test_special_mask),
		cmocka_unit_test(test_poll),
		cmocka_unit_test(test_output_pulses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
