/* Keys by name, as the bytes of a PS/2 keyboard: scan code set 2 (IBM PS/2 Hardware Interface
 * Technical Reference, "Keyboard", table of scan code set 2), US layout. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "display/display.h"

/* code: 0xe0xx keys have the prefix. shifted: what the key types with shift. */
static const struct key { const char *name; u16 code; const char *shifted; } keys[] = {
	{ "a", 0x1c, "A" }, { "b", 0x32, "B" }, { "c", 0x21, "C" }, { "d", 0x23, "D" }, { "e", 0x24, "E" }, { "f", 0x2b, "F" },
	{ "g", 0x34, "G" }, { "h", 0x33, "H" }, { "i", 0x43, "I" }, { "j", 0x3b, "J" }, { "k", 0x42, "K" }, { "l", 0x4b, "L" },
	{ "m", 0x3a, "M" }, { "n", 0x31, "N" }, { "o", 0x44, "O" }, { "p", 0x4d, "P" }, { "q", 0x15, "Q" }, { "r", 0x2d, "R" },
	{ "s", 0x1b, "S" }, { "t", 0x2c, "T" }, { "u", 0x3c, "U" }, { "v", 0x2a, "V" }, { "w", 0x1d, "W" }, { "x", 0x22, "X" },
	{ "y", 0x35, "Y" }, { "z", 0x1a, "Z" }, { "1", 0x16, "!" }, { "2", 0x1e, "@" }, { "3", 0x26, "#" }, { "4", 0x25, "$" },
	{ "5", 0x2e, "%" }, { "6", 0x36, "^" }, { "7", 0x3d, "&" }, { "8", 0x3e, "*" }, { "9", 0x46, "(" }, { "0", 0x45, ")" },
	{ "`", 0x0e, "~" }, { "minus", 0x4e, "_" }, { "=", 0x55, "+" }, { "[", 0x54, "{" }, { "]", 0x5b, "}" }, { "\\", 0x5d, "|" },
	{ ";", 0x4c, ":" }, { "'", 0x52, "\"" }, { ",", 0x41, "<" }, { ".", 0x49, ">" }, { "/", 0x4a, "?" }, { "space", 0x29, NULL },
	{ "enter", 0x5a, NULL }, { "tab", 0x0d, NULL }, { "backspace", 0x66, NULL }, { "esc", 0x76, NULL }, { "capslock", 0x58, NULL },
	{ "shift", 0x12, NULL }, { "ctrl", 0x14, NULL }, { "alt", 0x11, NULL }, { "rightshift", 0x59, NULL },
	{ "rightctrl", 0xe014, NULL }, { "altgr", 0xe011, NULL }, { "super", 0xe01f, NULL }, { "menu", 0xe02f, NULL },
	{ "f1", 0x05, NULL }, { "f2", 0x06, NULL }, { "f3", 0x04, NULL }, { "f4", 0x0c, NULL }, { "f5", 0x03, NULL }, { "f6", 0x0b, NULL },
	{ "f7", 0x83, NULL }, { "f8", 0x0a, NULL }, { "f9", 0x01, NULL }, { "f10", 0x09, NULL }, { "f11", 0x78, NULL }, { "f12", 0x07, NULL },
	{ "up", 0xe075, NULL }, { "down", 0xe072, NULL }, { "left", 0xe06b, NULL }, { "right", 0xe074, NULL },
	{ "home", 0xe06c, NULL }, { "end", 0xe069, NULL }, { "pageup", 0xe07d, NULL }, { "pagedown", 0xe07a, NULL },
	{ "insert", 0xe070, NULL }, { "delete", 0xe071, NULL }, { "scrolllock", 0x7e, NULL }, { "numlock", 0x77, NULL },
};
#define SHIFT 0x12

static void add(u8 *to, size_t *n, u16 code, bool release)
{
	if (code >> 8)
		to[(*n)++] = 0xe0;
	if (release)
		to[(*n)++] = 0xf0;
	to[(*n)++] = (u8)code;
}

/* Keys go up in the opposite order. */
static void press(struct key_bytes *k, u16 code)
{
	u8 up[3];
	size_t n = 0;

	add(up, &n, code, true);
	memmove(k->release + n, k->release, k->n_release);
	memcpy(k->release, up, n);
	k->n_release += n;
	add(k->make, &k->n_make, code, false);
}

static bool press_named(struct key_bytes *k, const char *name, struct error *e)
{
	const char *names[ARRAY_LEN(keys)];

	for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
		bool shifted = keys[i].shifted && !strcmp(keys[i].shifted, name);
		names[i] = keys[i].name;
		if (strcmp(keys[i].name, name) && !shifted)
			continue;
		if (shifted)
			press(k, SHIFT);
		press(k, keys[i].code);
		return true;
	}
	const char *near = nearest_word(name, names, ARRAY_LEN(names));
	return error_set(e, "%s: no such key; %s%s%s", name, near ? "did you mean " : "keys are named as in a, A, enter, f12, ctrl-alt-delete",
			 near ? near : "", near ? "?" : "");
}

bool key_parse(const char *text, struct key_bytes *k, struct error *e)
{
	*k = (struct key_bytes){ .n_make = 0 };
	for (int n = 0;; n++) {
		char name[16];
		size_t len = strcspn(*text ? text + 1 : text, "-") + (*text != 0);

		if (!len || len >= sizeof(name) || n == 6)
			return error_set(e, "%s: no such key; keys are named as in a, A, enter, f12, ctrl-alt-delete", text);
		memcpy(name, text, len);
		name[len] = 0;
		if (!press_named(k, !strcmp(name, "-") ? "minus" : name, e))
			return false;
		if (!text[len])
			return true;
		text += len + 1;
	}
}

const char *key_of_char(char c, char *buf)
{
	buf[0] = c;
	buf[1] = 0;
	switch (c) {
	case ' ': return "space";
	case '\n': return "enter";
	case '\t': return "tab";
	case '-': return "minus";
	default: return c > ' ' && c < 0x7f ? buf : NULL;
	}
}
