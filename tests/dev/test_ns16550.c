/* The serial port, as its datasheet tells and as Linux's 8250 driver probes it. */
#include "board.h"

#include <string.h>

#define COM1 0x3f8
#define IRQ4 0x24

enum { RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR };

static struct board *port(void)
{
	struct board *b = board_new(&ns16550_class);

	ns16550_configure(b->dev, COM1, 4);
	ns16550_attach(b->dev, &b->be);
	return b;
}

static u8 get(struct board *b, unsigned reg)
{
	return in8(b, (u16)(COM1 + reg));
}

static void set(struct board *b, unsigned reg, u8 val)
{
	out8(b, (u16)(COM1 + reg), val);
}

static size_t feed(struct board *b, const char *text)
{
	return ns16550_receive(b->dev, (const u8 *)text, strlen(text));
}

static void test_registers(void **state)
{
	struct board *b = port();

	assert_int_equal(get(b, IER), 0);
	assert_int_equal(get(b, IIR), 0x01);
	assert_int_equal(get(b, LSR), 0x60);
	assert_int_equal(get(b, MSR), 0xb0);
	set(b, IER, 0xff);
	assert_int_equal(get(b, IER), 0x0f);
	set(b, IER, 0);
	set(b, MCR, 0xff);
	assert_int_equal(get(b, MCR), 0x1f);
	set(b, SCR, 0xa5);
	assert_int_equal(get(b, SCR), 0xa5);
	set(b, LCR, 0x83);
	set(b, RBR, 0x01);
	set(b, IER, 0x02);
	assert_int_equal(get(b, RBR), 0x01);
	assert_int_equal(get(b, IER), 0x02);
	set(b, LCR, 0x03);
	assert_int_equal(get(b, IER), 0);
	assert_int_equal(b->n_sent, 0);
	board_free(b);
}

/* The steps of Linux's autoconfig and startup, with what they conclude from. */
static void test_linux_probe(void **state)
{
	struct board *b = port();
	u8 iir1, iir2;

	set(b, IER, 0);
	assert_int_equal(get(b, IER) & 0x0f, 0);
	set(b, IER, 0x0f);
	assert_int_equal(get(b, IER) & 0x0f, 0x0f);
	set(b, IER, 0);
	set(b, MCR, 0x1a); /* LOOP, OUT2, RTS */
	assert_int_equal(get(b, MSR) & 0xf0, 0x90);
	set(b, MCR, 0);
	set(b, LCR, 0xbf);
	set(b, IIR, 0); /* would be EFR elsewhere */
	set(b, LCR, 0);
	set(b, IIR, 0x01);
	assert_int_equal(get(b, IIR) >> 6, 3); /* a 16550A */
	set(b, LCR, 0xbf);
	assert_int_not_equal(get(b, IIR), 0); /* no EFR */
	set(b, LCR, 0);
	set(b, IIR, 0x21);
	assert_int_equal(get(b, IIR) >> 5, 6); /* not a 16750 */
	set(b, LCR, 0x80);
	set(b, IIR, 0x21);
	assert_int_equal(get(b, IIR) >> 5, 6);
	set(b, LCR, 0);
	set(b, IER, 0x40); /* not an XScale */
	assert_int_equal(get(b, IER), 0);
	/* startup: FIFOs cleared, nothing pending, a port is there */
	set(b, IIR, 0x07);
	set(b, IIR, 0);
	get(b, LSR);
	get(b, RBR);
	get(b, IIR);
	get(b, MSR);
	assert_int_not_equal(get(b, LSR), 0xff);
	/* THRE test: the cause comes at each enabling */
	set(b, IER, 0x02);
	iir1 = get(b, IIR);
	set(b, IER, 0);
	set(b, IER, 0x02);
	iir2 = get(b, IIR);
	set(b, IER, 0);
	assert_int_equal(iir1 & 0x0f, 0x02);
	assert_int_equal(iir2 & 0x0f, 0x02);
	/* TXEN test */
	set(b, IER, 0x02);
	assert_int_equal(get(b, LSR) & 0x40, 0x40);
	assert_int_equal(get(b, IIR) & 1, 0);
	set(b, IER, 0);
	board_free(b);
}

static void test_sending(void **state)
{
	struct board *b = port();

	set(b, IIR, 0x01);
	for (const char *s = "hello"; *s; s++) {
		assert_int_equal(get(b, LSR) & 0x60, 0x60);
		set(b, RBR, (u8)*s);
	}
	assert_int_equal(b->n_sent, 5);
	assert_memory_equal(b->sent, "hello", 5);
	board_free(b);
}

static void test_thr_interrupt(void **state)
{
	struct board *b = port();

	set(b, IER, 0x02);
	assert_int_equal(board_take(b), -1); /* OUT2 gates it */
	set(b, MCR, 0x08);
	assert_int_equal(board_take(b), IRQ4);
	assert_int_equal(get(b, IIR), 0x02);
	assert_int_equal(get(b, IIR), 0x01); /* the read ended it */
	set(b, RBR, 'a');
	assert_int_equal(board_take(b), IRQ4); /* an edge for each byte */
	set(b, RBR, 'b');
	assert_int_equal(board_take(b), IRQ4);
	set(b, IER, 0);
	set(b, IER, 0x02);
	assert_int_equal(board_take(b), IRQ4);
	get(b, IIR);
	set(b, IER, 0x02); /* already on: no new cause */
	assert_int_equal(get(b, IIR), 0x01);
	board_free(b);
}

static void test_backend_full(void **state)
{
	struct board *b = port();

	set(b, IIR, 0x01);
	set(b, IER, 0x02);
	set(b, MCR, 0x08);
	get(b, IIR);
	while (board_take(b) >= 0)
		;
	b->be_room = 2;
	for (char c = 'a'; c < 'a' + 18; c++)
		set(b, RBR, (u8)c);
	assert_int_equal(b->n_sent, 2);
	assert_int_equal(get(b, LSR) & 0x60, 0);
	get(b, IIR);
	while (board_take(b) >= 0)
		;
	set(b, RBR, '!'); /* the FIFO is full: lost */
	b->be_room = 10;
	ns16550_can_write(b->dev);
	assert_int_equal(b->n_sent, 12);
	assert_int_equal(get(b, LSR) & 0x60, 0);
	assert_int_equal(board_take(b), -1);
	b->be_room = SIZE_MAX;
	ns16550_can_write(b->dev);
	assert_memory_equal(b->sent, "abcdefghijklmnopqr", 18);
	assert_int_equal(b->n_sent, 18);
	assert_int_equal(get(b, LSR) & 0x60, 0x60);
	assert_int_equal(board_take(b), IRQ4);
	/* Without FIFOs a byte that waits is overwritten. */
	set(b, IIR, 0);
	b->be_room = 0;
	set(b, RBR, '1');
	set(b, RBR, '2');
	b->be_room = SIZE_MAX;
	ns16550_can_write(b->dev);
	assert_int_equal(b->n_sent, 19);
	assert_int_equal(b->sent[18], '2');
	/* FCR's clear drops what waits. */
	set(b, IIR, 0x01);
	b->be_room = 0;
	set(b, RBR, 'x');
	set(b, IIR, 0x05);
	assert_int_equal(get(b, LSR) & 0x60, 0x60);
	board_free(b);
}

static void test_receiving(void **state)
{
	struct board *b = port();

	set(b, MCR, 0x08);
	set(b, IER, 0x01);
	assert_int_equal(feed(b, "ab"), 1); /* no FIFO: one byte */
	assert_int_equal(board_take(b), IRQ4);
	assert_int_equal(get(b, IIR), 0x04);
	assert_int_equal(get(b, LSR), 0x61);
	b->invited = 0;
	assert_int_equal(get(b, RBR), 'a');
	assert_int_equal(b->invited, 1);
	assert_int_equal(get(b, LSR), 0x60);
	assert_int_equal(get(b, IIR), 0x01);

	set(b, IIR, 0x81); /* FIFOs, trigger at 8 */
	assert_int_equal(feed(b, "1234567"), 7);
	assert_int_equal(get(b, IIR), 0xc1);
	assert_int_equal(feed(b, "8"), 1);
	assert_int_equal(get(b, IIR), 0xc4);
	assert_int_equal(feed(b, "9abcdefghij"), 8);
	for (const char *s = "123456789abcdefg"; *s; s++)
		assert_int_equal(get(b, RBR), *s);
	assert_int_equal(get(b, LSR) & 1, 0);
	feed(b, "zz");
	set(b, IIR, 0x83);
	assert_int_equal(get(b, LSR) & 1, 0);
	board_free(b);
}

static void test_receive_timeout(void **state)
{
	struct board *b = port();

	set(b, MCR, 0x08);
	set(b, LCR, 0x83);
	set(b, RBR, 12); /* 9600 baud */
	set(b, IER, 0);
	set(b, LCR, 0x03);
	set(b, IER, 0x01);
	set(b, IIR, 0xc1); /* trigger at 14 */
	feed(b, "abc");
	board_run(b, 4000000); /* 4 characters of 10 bits: 4.17 ms */
	assert_int_equal(get(b, IIR), 0xc1);
	board_run(b, 200000);
	assert_int_equal(board_take(b), IRQ4);
	assert_int_equal(get(b, IIR), 0xcc);
	assert_int_equal(get(b, RBR), 'a');
	assert_int_equal(get(b, IIR), 0xc1); /* starts anew */
	board_run(b, 4200000);
	assert_int_equal(get(b, IIR), 0xcc);
	get(b, RBR);
	get(b, RBR);
	board_run(b, 10000000);
	assert_int_equal(get(b, IIR), 0xc1);
	board_free(b);
}

static void test_errors_and_priorities(void **state)
{
	struct board *b = port();

	set(b, MCR, 0x08);
	set(b, IIR, 0x01);
	feed(b, "a");
	ns16550_break(b->dev);
	feed(b, "b");
	assert_int_equal(get(b, LSR), 0xe1); /* an error is in the FIFO, not on top */
	set(b, IER, 0x0f);
	assert_int_equal(get(b, IIR), 0xc4);
	assert_int_equal(get(b, RBR), 'a');
	assert_int_equal(get(b, IIR), 0xc6); /* line status is first */
	assert_int_equal(get(b, LSR), 0xf1);
	assert_int_equal(get(b, LSR), 0x61); /* once */
	assert_int_equal(get(b, IIR), 0xc4);
	assert_int_equal(get(b, RBR), 0);
	assert_int_equal(get(b, RBR), 'b');
	assert_int_equal(get(b, IIR), 0xc2);
	set(b, MCR, 0x18); /* CTS, DSR and DCD change: DCD stays by OUT2 */
	assert_int_equal(get(b, IIR), 0xc0);
	assert_int_equal(get(b, MSR), 0x83);
	assert_int_equal(get(b, MSR), 0x80);
	assert_int_equal(get(b, IIR), 0xc1);
	board_free(b);
}

static void test_loopback(void **state)
{
	struct board *b = port();

	set(b, IIR, 0x01);
	set(b, MCR, 0x10);
	assert_int_equal(get(b, MSR) & 0xf0, 0);
	get(b, MSR);
	for (unsigned i = 0; i < 4; i++) {
		static const u8 expected[] = { 0x20, 0x10, 0x40, 0x80 };
		set(b, MCR, (u8)(0x10 | 1 << i));
		assert_int_equal(get(b, MSR) & 0xf0, expected[i]);
	}
	get(b, MSR);
	set(b, MCR, 0x14);
	get(b, MSR);
	set(b, MCR, 0x10);
	assert_int_equal(get(b, MSR), 0x04); /* TERI: the trailing edge alone */
	set(b, MCR, 0x14);
	assert_int_equal(get(b, MSR), 0x40);
	for (int i = 0; i < 17; i++)
		set(b, RBR, (u8)i);
	assert_int_equal(b->n_sent, 0);
	assert_int_equal(get(b, LSR), 0x63); /* the seventeenth overran */
	assert_int_equal(feed(b, "x"), 0); /* the line is cut */
	for (int i = 0; i < 16; i++)
		assert_int_equal(get(b, RBR), i);
	assert_int_equal(get(b, LSR), 0x60);
	set(b, LCR, 0x43);
	assert_int_equal(get(b, LSR) & 0x11, 0x11);
	b->invited = 0;
	set(b, MCR, 0);
	assert_int_equal(b->invited, 15); /* input may come again */
	board_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_registers),
		cmocka_unit_test(test_linux_probe),
		cmocka_unit_test(test_sending),
		cmocka_unit_test(test_thr_interrupt),
		cmocka_unit_test(test_backend_full),
		cmocka_unit_test(test_receiving),
		cmocka_unit_test(test_receive_timeout),
		cmocka_unit_test(test_errors_and_priorities),
		cmocka_unit_test(test_loopback),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
