/* Keys by name, by keysym, by number, and the bytes that they send. */
#include "test.h"
#include "display/display.h"

static void sends(const char *text, const char *make, size_t n_make, const char *release, size_t n_release)
{
	struct key_bytes k;
	struct error e;

	if (!key_parse(text, &k, &e))
		fail_msg("%s: %s", text, e.msg);
	assert_int_equal(k.n_make, n_make);
	assert_int_equal(k.n_release, n_release);
	assert_memory_equal(k.make, make, n_make);
	assert_memory_equal(k.release, release, n_release);
}
#define SENDS(text, make, release) sends(text, make, sizeof(make) - 1, release, sizeof(release) - 1)

static void by_name(void **state)
{
	SENDS("a", "\x1c", "\xf0\x1c");
	SENDS("A", "\x12\x1c", "\xf0\x1c\xf0\x12");
	SENDS("ctrl-alt-delete", "\x14\x11\xe0\x71", "\xe0\xf0\x71\xf0\x11\xf0\x14");
	SENDS("print", "\xe0\x12\xe0\x7c", "\xe0\xf0\x7c\xe0\xf0\x12");
	SENDS("pause", "\xe1\x14\x77\xe1\xf0\x14\xf0\x77", "");
	SENDS("kpenter", "\xe0\x5a", "\xe0\xf0\x5a");
	SENDS("-", "\x4e", "\xf0\x4e");
}

static void by_keysym(void **state)
{
	static const struct { u32 keysym; u16 code; enum key_shift shift; } known[] = {
		{ 'a', 0x1c, KEY_SHIFT_UP }, { 'A', 0x1c, KEY_SHIFT_DOWN }, { '-', 0x4e, KEY_SHIFT_UP }, { '_', 0x4e, KEY_SHIFT_DOWN },
		{ ' ', 0x29, KEY_SHIFT_ANY }, { '~', 0x0e, KEY_SHIFT_DOWN }, { 0xff1b, 0x76, KEY_SHIFT_ANY }, { 0xffeb, 0xe01f, KEY_SHIFT_ANY },
		{ 0xffb9, 0x7d, KEY_SHIFT_ANY }, { 0xff13, KEY_PAUSE, KEY_SHIFT_ANY },
	};
	enum key_shift shift;
	char buf[2];

	for (size_t k = 0; k < ARRAY_LEN(known); k++) {
		assert_int_equal(key_of_keysym(known[k].keysym, &shift), known[k].code);
		assert_int_equal(shift, known[k].shift);
	}
	/* Each printable character has a key: the one that key_parse presses for it. */
	for (u32 c = ' '; c < 0x7f; c++) {
		struct key_bytes k;
		struct error e;
		u16 code = key_of_keysym(c, &shift);

		assert_true(key_parse(key_of_char((char)c, buf), &k, &e));
		assert_int_equal(k.make[k.n_make - 1], code);
		assert_int_equal(k.n_make == 2, shift == KEY_SHIFT_DOWN);
	}
	assert_int_equal(key_of_keysym(0, &shift), 0);
	assert_int_equal(key_of_keysym(0x7f, &shift), 0);
	assert_int_equal(key_of_keysym(0x20ac, &shift), 0);
	assert_int_equal(key_of_keysym(0x10061, &shift), 0); /* no part of it is looked at */
	assert_int_equal(key_of_keysym(0x1ff1b, &shift), 0);
}

static void by_number(void **state)
{
	assert_int_equal(key_of_set1(0x1e), 0x1c);
	assert_int_equal(key_of_set1(0xc8), 0xe075);
	assert_int_equal(key_of_set1(0x41), 0x83); /* F7, whose code is the odd one */
	assert_int_equal(key_of_set1(0x57), 0x78);
	assert_int_equal(key_of_set1(0xc6), KEY_PAUSE);
	assert_int_equal(key_of_set1(0xb7), KEY_PRINT);
	assert_int_equal(key_of_set1(0), 0);
	assert_int_equal(key_of_set1(0x80), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(by_name), cmocka_unit_test(by_keysym), cmocka_unit_test(by_number) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
