/* Keyboard controller, keyboard, mouse and port 0x92, driven as Linux's i8042 driver and old
 * software do. */
#include "board.h"

static u8 status(struct board *b)
{
	return in8(b, 0x64);
}

/* The next byte; it must be there. from_mouse: what status bit 5 must say. */
static u8 take(struct board *b, bool from_mouse)
{
	assert_int_equal(status(b) & 0x21, from_mouse ? 0x21 : 0x01);
	return in8(b, 0x60);
}

static void kbd_answers(struct board *b, u8 command, const u8 *expected, size_t n)
{
	out8(b, 0x60, command);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(take(b, false), expected[i]);
	assert_int_equal(status(b) & 1, 0);
}

static void mouse_answers(struct board *b, u8 command, const u8 *expected, size_t n)
{
	out8(b, 0x64, 0xd4);
	out8(b, 0x60, command);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(take(b, true), expected[i]);
	assert_int_equal(status(b) & 1, 0);
}

#define KBD(b, command, ...) kbd_answers(b, command, (const u8[]){ __VA_ARGS__ }, sizeof((u8[]){ __VA_ARGS__ }))
#define MOUSE(b, command, ...) mouse_answers(b, command, (const u8[]){ __VA_ARGS__ }, sizeof((u8[]){ __VA_ARGS__ }))

static u8 command_byte(struct board *b)
{
	out8(b, 0x64, 0x20);
	return take(b, false);
}

static void set_command_byte(struct board *b, u8 val)
{
	out8(b, 0x64, 0x60);
	out8(b, 0x60, val);
}

/* What Linux's i8042_controller_init and i8042_check_aux do. */
static void test_linux_probe(void **state)
{
	struct board *b = board_new(&i8042_class);

	assert_int_equal(status(b) & 1, 0);
	out8(b, 0x64, 0xaa);
	assert_int_equal(take(b, false), 0x55);
	u8 ctr = command_byte(b);
	set_command_byte(b, (u8)((ctr | 0x30) & ~3)); /* both off */
	assert_int_equal(command_byte(b), (ctr | 0x30) & ~3);
	out8(b, 0x64, 0xd3); /* AUX loop */
	out8(b, 0x60, 0x5a);
	assert_int_equal(take(b, true), 0x5a);
	out8(b, 0x64, 0xa8);
	assert_int_equal(command_byte(b) & 0x20, 0);
	out8(b, 0x64, 0xa7);
	assert_int_equal(command_byte(b) & 0x20, 0x20);
	out8(b, 0x64, 0xa9);
	assert_int_equal(take(b, false), 0x00);
	/* the interrupt of the mouse's port */
	set_command_byte(b, 0x12);
	assert_int_equal(board_take(b), -1);
	out8(b, 0x64, 0xd3);
	out8(b, 0x60, 0xa5);
	assert_int_equal(board_take(b), 0x2c);
	assert_int_equal(take(b, true), 0xa5);
	board_free(b);
}

static void test_controller(void **state)
{
	struct board *b = board_new(&i8042_class);

	assert_int_equal(status(b), 0x14); /* self-test passed, not locked */
	out8(b, 0x64, 0xab);
	assert_int_equal(status(b), 0x1d); /* the last write was a command */
	assert_int_equal(take(b, false), 0x00);
	out8(b, 0x64, 0xd2);
	out8(b, 0x60, 0x77);
	assert_int_equal(status(b), 0x15);
	assert_int_equal(take(b, false), 0x77);
	assert_int_equal(in8(b, 0x60), 0x77); /* an empty buffer keeps its byte */
	out8(b, 0x64, 0xad);
	assert_int_equal(command_byte(b) & 0x10, 0x10);
	out8(b, 0x64, 0xae);
	assert_int_equal(command_byte(b) & 0x10, 0);
	set_command_byte(b, 0x41);
	assert_int_equal(status(b) & 0x04, 0);
	out8(b, 0x64, 0x47); /* no such command: no answer */
	assert_int_equal(status(b) & 1, 0);
	board_free(b);
}

static void test_resets_and_a20(void **state)
{
	struct board *b = board_new(&i8042_class);

	out8(b, 0x64, 0xd0);
	assert_int_equal(take(b, false) & 0x03, 0x03);
	out8(b, 0x64, 0xd1);
	out8(b, 0x60, 0xdd); /* A20 off */
	assert_int_equal(in8(b, 0x92) & 2, 0);
	out8(b, 0x92, 0x02);
	out8(b, 0x64, 0xd0);
	assert_int_equal(take(b, false) & 0x02, 0x02);
	out8(b, 0x64, 0xdd);
	assert_int_equal(in8(b, 0x92), 0);
	out8(b, 0x64, 0xdf);
	assert_int_equal(in8(b, 0x92), 2);
	assert_int_equal(b->inits, 0);
	out8(b, 0x64, 0xff); /* pulses nothing */
	assert_int_equal(b->inits, 0);
	out8(b, 0x64, 0xfe);
	assert_int_equal(b->inits, 1);
	out8(b, 0x64, 0xd1);
	out8(b, 0x60, 0xde);
	assert_int_equal(b->inits, 2);
	out8(b, 0x92, 0x03);
	assert_int_equal(b->inits, 3);
	out8(b, 0x92, 0x03); /* only its rise counts */
	assert_int_equal(b->inits, 3);
	out8(b, 0x92, 0x02);
	out8(b, 0x92, 0x03);
	assert_int_equal(b->inits, 4);
	assert_int_equal(b->resets, 0);
	board_free(b);
}

static void test_keyboard(void **state)
{
	struct board *b = board_new(&i8042_class);

	set_command_byte(b, 0x04); /* no translation, no interrupt */
	KBD(b, 0xff, 0xfa, 0xaa);
	KBD(b, 0xf2, 0xfa, 0xab, 0x83);
	KBD(b, 0xed, 0xfa);
	KBD(b, 0x07, 0xfa);
	KBD(b, 0xf3, 0xfa);
	KBD(b, 0x00, 0xfa);
	KBD(b, 0xf0, 0xfa);
	KBD(b, 0x00, 0xfa, 0x02);
	KBD(b, 0xf0, 0xfa);
	KBD(b, 0x03, 0xfa);
	KBD(b, 0xf0, 0xfa);
	KBD(b, 0x00, 0xfa, 0x03);
	KBD(b, 0xf0, 0xfa);
	KBD(b, 0x04, 0xfe);
	KBD(b, 0xed, 0xfa); /* a command in an argument's place wins */
	KBD(b, 0xee, 0xee);
	KBD(b, 0xfe, 0xee);
	KBD(b, 0xf6, 0xfa);
	KBD(b, 0xf4, 0xfa);
	KBD(b, 0xfb, 0xfa);
	KBD(b, 0x1c, 0xfa);
	KBD(b, 0x1d, 0xfa);
	KBD(b, 0xf5, 0xfa);
	KBD(b, 0x55, 0xfe);
	board_free(b);
}

static void test_keyboard_interrupt(void **state)
{
	struct board *b = board_new(&i8042_class);

	set_command_byte(b, 0x45);
	out8(b, 0x60, 0xf2);
	/* one edge a byte */
	assert_int_equal(board_take(b), 0x21);
	assert_int_equal(board_take(b), -1);
	assert_int_equal(take(b, false), 0xfa);
	assert_int_equal(board_take(b), 0x21);
	assert_int_equal(take(b, false), 0xab);
	assert_int_equal(board_take(b), 0x21);
	assert_int_equal(take(b, false), 0x41); /* 83 translated */
	assert_int_equal(board_take(b), -1);
	/* A disabled port holds its bytes back; speaking to it opens it. */
	out8(b, 0x64, 0xad);
	i8042_key(b->dev, (const u8[]){ 0x1c }, 1);
	assert_int_equal(status(b) & 1, 0);
	out8(b, 0x64, 0xae);
	assert_int_equal(take(b, false), 0x1e);
	board_free(b);
}

static void test_keys(void **state)
{
	struct board *b = board_new(&i8042_class);
	static const u8 set2[] = { 0x1c, 0xf0, 0x1c, 0xe0, 0xf0, 0x75 };
	int n = 0;

	assert_true(i8042_key(b->dev, set2, sizeof(set2)));
	assert_int_equal(take(b, false), 0x1e);
	assert_int_equal(take(b, false), 0x9e);
	assert_int_equal(take(b, false), 0xe0);
	assert_int_equal(take(b, false), 0xc8);
	assert_int_equal(status(b) & 1, 0);
	set_command_byte(b, 0x05);
	assert_true(i8042_key(b->dev, set2, 3));
	assert_int_equal(take(b, false), 0x1c);
	assert_int_equal(take(b, false), 0xf0);
	assert_int_equal(take(b, false), 0x1c);
	KBD(b, 0xf5, 0xfa);
	assert_false(i8042_key(b->dev, set2, 1)); /* told not to scan */
	KBD(b, 0xf4, 0xfa);
	while (n < 100 && i8042_key(b->dev, set2, 3))
		n++;
	assert_in_range(n, 5, 20); /* a full queue takes no part of a key */
	for (int i = 0; i < 3 * n; i++)
		assert_int_equal(take(b, false), set2[i % 3]);
	assert_int_equal(status(b) & 1, 0);
	board_free(b);
}

static void test_mouse(void **state)
{
	struct board *b = board_new(&i8042_class);
	static const u8 packet[] = { 0x09, 5, 7 };

	assert_false(i8042_mouse(b->dev, 5, 7, 0, 1));
	MOUSE(b, 0xff, 0xfa, 0xaa, 0x00);
	MOUSE(b, 0xf2, 0xfa, 0x00);
	MOUSE(b, 0xe9, 0xfa, 0x00, 0x02, 0x64);
	MOUSE(b, 0xf4, 0xfa);
	MOUSE(b, 0xe7, 0xfa);
	MOUSE(b, 0xe8, 0xfa);
	MOUSE(b, 0x03, 0xfa);
	MOUSE(b, 0xf3, 0xfa);
	MOUSE(b, 0xc8, 0xfa); /* 200, above the commands' first */
	MOUSE(b, 0xe9, 0xfa, 0x30, 0x03, 0xc8);
	set_command_byte(b, 0x47);
	assert_true(i8042_mouse(b->dev, 5, 7, 3, 1)); /* a wheel that nobody has heard of */
	for (int i = 0; i < 3; i++) {
		assert_int_equal(board_take(b), 0x2c);
		assert_int_equal(take(b, true), packet[i]);
	}
	MOUSE(b, 0xee, 0xfa);
	MOUSE(b, 0xf4, 0xf4); /* wrap */
	MOUSE(b, 0xec, 0xfa);
	MOUSE(b, 0xf0, 0xfa);
	assert_true(i8042_mouse(b->dev, -1, 300, 0, 0)); /* remote: only when asked */
	assert_true(i8042_mouse(b->dev, -1, 0, 0, 0));
	assert_int_equal(status(b) & 1, 0);
	MOUSE(b, 0xeb, 0xfa, 0x18, 0xfe, 0xff);
	MOUSE(b, 0xeb, 0xfa, 0x08, 0x00, 45);
	MOUSE(b, 0xeb, 0xfa, 0x08, 0x00, 0x00);
	MOUSE(b, 0x11, 0xfe);
	board_free(b);
}

static void knock(struct board *b, u8 r1, u8 r2, u8 r3)
{
	const u8 rates[] = { r1, r2, r3 };

	for (unsigned k = 0; k < 3; k++) {
		MOUSE(b, 0xf3, 0xfa);
		MOUSE(b, rates[k], 0xfa);
	}
}

static void packet_is(struct board *b, const u8 *bytes, size_t n)
{
	for (size_t k = 0; k < n; k++)
		assert_int_equal(take(b, true), bytes[k]);
	assert_int_equal(status(b) & 1, 0);
}
#define PACKET(b, ...) packet_is(b, (const u8[]){ __VA_ARGS__ }, sizeof((u8[]){ __VA_ARGS__ }))

/* Microsoft, "Communicating with the IntelliMouse", and its sequel with five buttons. */
static void test_wheel(void **state)
{
	struct board *b = board_new(&i8042_class);

	knock(b, 200, 100, 60);
	MOUSE(b, 0xf2, 0xfa, 0x00);
	knock(b, 200, 100, 80);
	MOUSE(b, 0xf2, 0xfa, 0x03);
	MOUSE(b, 0xf4, 0xfa);
	i8042_mouse(b->dev, 1, -1, 1, 0);
	PACKET(b, 0x28, 1, 0xff, 1);
	i8042_mouse(b->dev, 0, 0, -10, 0x18); /* more than one packet takes; buttons that it has not */
	PACKET(b, 0x08, 0, 0, 0xf9, 0x08, 0, 0, 0xfd);
	knock(b, 200, 200, 80);
	MOUSE(b, 0xf2, 0xfa, 0x04);
	i8042_mouse(b->dev, 0, 0, -1, 0x09);
	PACKET(b, 0x09, 0, 0, 0x1f);
	i8042_mouse(b->dev, 0, 0, 0, 0x10);
	PACKET(b, 0x08, 0, 0, 0x20);
	MOUSE(b, 0xeb, 0xfa, 0x08, 0, 0, 0x20);
	round_trip(b->dev);
	MOUSE(b, 0xf2, 0xfa, 0x04);
	MOUSE(b, 0xf6, 0xfa); /* the settings, not the kind */
	MOUSE(b, 0xf2, 0xfa, 0x04);
	MOUSE(b, 0xff, 0xfa, 0xaa, 0x00);
	MOUSE(b, 0xf2, 0xfa, 0x00);
	board_free(b);
}

/* What moves while nobody reads adds up, and comes. */
static void test_mouse_waits(void **state)
{
	struct board *b = board_new(&i8042_class);
	int dx = 0, packets = 0;

	MOUSE(b, 0xf4, 0xfa);
	for (int k = 0; k < 1000; k++)
		assert_true(i8042_mouse(b->dev, 3, 0, 0, 0));
	while (status(b) & 1) {
		assert_int_equal(take(b, true), 0x08);
		dx += take(b, true);
		assert_int_equal(take(b, true), 0);
		packets++;
	}
	assert_int_equal(dx, 3000);
	assert_in_range(packets, 12, 30);
	MOUSE(b, 0xf5, 0xfa);
	assert_false(i8042_mouse(b->dev, 3, 0, 0, 0));
	MOUSE(b, 0xf4, 0xfa);
	assert_int_equal(status(b) & 1, 0);
	board_free(b);
}

/* The numbers that viewers know keys by are what the controller makes of the keys' codes. */
static void test_translation_and_numbers(void **state)
{
	struct board *b = board_new(&i8042_class);
	int known = 0;

	for (u32 number = 1; number < 256; number++) {
		u16 code = key_of_set1((u8)number);
		u8 bytes[KEY_CODE_BYTES];

		if (!code || code == KEY_PAUSE || code == KEY_PRINT)
			continue;
		assert_true(i8042_key(b->dev, bytes, key_code_bytes(code, true, bytes)));
		if (number & 0x80)
			assert_int_equal(take(b, false), 0xe0);
		assert_int_equal(take(b, false), number & 0x7f);
		assert_true(i8042_key(b->dev, bytes, key_code_bytes(code, false, bytes)));
		if (number & 0x80)
			assert_int_equal(take(b, false), 0xe0);
		assert_int_equal(take(b, false), 0x80 | number);
		known++;
	}
	assert_in_range(known, 200, 255);
	board_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_linux_probe),
		cmocka_unit_test(test_controller),
		cmocka_unit_test(test_resets_and_a20),
		cmocka_unit_test(test_keyboard),
		cmocka_unit_test(test_keyboard_interrupt),
		cmocka_unit_test(test_keys),
		cmocka_unit_test(test_mouse),
		cmocka_unit_test(test_wheel),
		cmocka_unit_test(test_mouse_waits),
		cmocka_unit_test(test_translation_and_numbers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
