/* Keys by name, by X11 keysym and by their number in scan code set 1, as the bytes of a PS/2 keyboard:
 * scan code set 2 (IBM PS/2 Hardware Interface Technical Reference, "Keyboard", table of scan code
 * set 2), US layout. */
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
	{ "kp0", 0x70, NULL }, { "kp1", 0x69, NULL }, { "kp2", 0x72, NULL }, { "kp3", 0x7a, NULL }, { "kp4", 0x6b, NULL },
	{ "kp5", 0x73, NULL }, { "kp6", 0x74, NULL }, { "kp7", 0x6c, NULL }, { "kp8", 0x75, NULL }, { "kp9", 0x7d, NULL },
	{ "kpdot", 0x71, NULL }, { "kpplus", 0x79, NULL }, { "kpminus", 0x7b, NULL }, { "kpstar", 0x7c, NULL },
	{ "kpslash", 0xe04a, NULL }, { "kpenter", 0xe05a, NULL }, { "102nd", 0x61, NULL },
	{ "print", KEY_PRINT, NULL }, { "pause", KEY_PAUSE, NULL },
};
#define SHIFT 0x12

size_t key_code_bytes(u16 code, bool down, u8 *to)
{
	static const u8 print[2][5] = { { 0xe0, 0xf0, 0x7c, 0xe0, 0xf0 }, { 0xe0, 0x12, 0xe0, 0x7c } };
	static const u8 pause[] = { 0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77 };
	size_t n = 0;

	if (code == KEY_PAUSE) { /* makes and breaks at once */
		memcpy(to, pause, sizeof(pause));
		return down ? sizeof(pause) : 0;
	}
	if (code == KEY_PRINT) { /* with a shift of its own */
		memcpy(to, print[down], 5);
		to[5] = 0x12;
		return down ? 4 : 6;
	}
	if (code >> 8)
		to[n++] = 0xe0;
	if (!down)
		to[n++] = 0xf0;
	to[n++] = (u8)code;
	return n;
}

/* Keys go up in the opposite order. */
static void press(struct key_bytes *k, u16 code)
{
	u8 up[KEY_CODE_BYTES];
	size_t n = key_code_bytes(code, false, up);

	memmove(k->release + n, k->release, k->n_release);
	memcpy(k->release, up, n);
	k->n_release += n;
	k->n_make += key_code_bytes(code, true, k->make + k->n_make);
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

/* ---- by number, by keysym ------------------------------------------------------------------------ */

/* The inverse of the keyboard controller's translation; 0: no key. */
static const u8 set2_of[0x80] = {
	0x00, 0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d,
	0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14, 0x1c, 0x1b,
	0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a,
	0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03,
	0x0b, 0x83, 0x0a, 0x01, 0x09, 0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69,
	0x72, 0x7a, 0x70, 0x71, 0x84, 0x60, 0x61, 0x78, 0x07, 0x0f, 0x17, 0x1f, 0x27, 0x2f, 0x37, 0x3f,
	0x47, 0x4f, 0x56, 0x5e, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x57, 0x6f,
	0x13, 0x19, 0x39, 0x51, 0x53, 0x5c, 0x5f, 0x62, 0x63, 0x64, 0x65, 0x67, 0x68, 0x6a, 0x6d, 0x6e,
};

u16 key_of_set1(u8 code)
{
	u8 set2 = set2_of[code & 0x7f];

	if (code == 0xc6)
		return KEY_PAUSE;
	if (code == 0xb7 || code == 0x54)
		return KEY_PRINT;
	return set2 && code & 0x80 ? (u16)(0xe000 | set2) : set2;
}

/* X11's keysymdef.h, of keys that type no character. */
static const struct { u16 keysym, code; } keysyms[] = {
	{ 0xff08, 0x66 }, { 0xff09, 0x0d }, { 0xfe20, 0x0d }, { 0xff0d, 0x5a }, { 0xff13, KEY_PAUSE }, { 0xff6b, KEY_PAUSE },
	{ 0xff14, 0x7e }, { 0xff15, KEY_PRINT }, { 0xff61, KEY_PRINT }, { 0xff1b, 0x76 }, { 0xffff, 0xe071 },
	{ 0xff50, 0xe06c }, { 0xff51, 0xe06b }, { 0xff52, 0xe075 }, { 0xff53, 0xe074 }, { 0xff54, 0xe072 }, { 0xff55, 0xe07d },
	{ 0xff56, 0xe07a }, { 0xff57, 0xe069 }, { 0xff63, 0xe070 }, { 0xff67, 0xe02f }, { 0xff7f, 0x77 },
	{ 0xff8d, 0xe05a }, { 0xff95, 0x6c }, { 0xff96, 0x6b }, { 0xff97, 0x75 }, { 0xff98, 0x74 }, { 0xff99, 0x72 }, { 0xff9a, 0x7d },
	{ 0xff9b, 0x7a }, { 0xff9c, 0x69 }, { 0xff9d, 0x73 }, { 0xff9e, 0x70 }, { 0xff9f, 0x71 }, { 0xffaa, 0x7c }, { 0xffab, 0x79 },
	{ 0xffac, 0x71 }, { 0xffad, 0x7b }, { 0xffae, 0x71 }, { 0xffaf, 0xe04a }, { 0xffb0, 0x70 }, { 0xffb1, 0x69 }, { 0xffb2, 0x72 },
	{ 0xffb3, 0x7a }, { 0xffb4, 0x6b }, { 0xffb5, 0x73 }, { 0xffb6, 0x74 }, { 0xffb7, 0x6c }, { 0xffb8, 0x75 }, { 0xffb9, 0x7d },
	{ 0xffbe, 0x05 }, { 0xffbf, 0x06 }, { 0xffc0, 0x04 }, { 0xffc1, 0x0c }, { 0xffc2, 0x03 }, { 0xffc3, 0x0b }, { 0xffc4, 0x83 },
	{ 0xffc5, 0x0a }, { 0xffc6, 0x01 }, { 0xffc7, 0x09 }, { 0xffc8, 0x78 }, { 0xffc9, 0x07 },
	{ 0xffe1, SHIFT }, { 0xffe2, KEY_RIGHT_SHIFT }, { 0xffe3, 0x14 }, { 0xffe4, 0xe014 }, { 0xffe5, 0x58 }, { 0xffe7, 0x11 },
	{ 0xffe8, 0xe011 }, { 0xffe9, 0x11 }, { 0xffea, 0xe011 }, { 0xffeb, 0xe01f }, { 0xffec, 0xe027 }, { 0xfe03, 0xe011 }, { 0xff7e, 0xe011 },
};

u16 key_of_keysym(u32 keysym, enum key_shift *shift)
{
	const char text[2] = { keysym < 0x7f ? (char)keysym : 0 };

	*shift = KEY_SHIFT_ANY;
	for (size_t i = 0; i < ARRAY_LEN(keysyms); i++)
		if (keysyms[i].keysym == keysym)
			return keysyms[i].code;
	for (size_t i = 0; *text && i < ARRAY_LEN(keys); i++) {
		bool plain = !strcmp(keys[i].name, *text == '-' ? "minus" : *text == ' ' ? "space" : text);

		if (plain || (keys[i].shifted && !strcmp(keys[i].shifted, text))) {
			*shift = *text == ' ' ? KEY_SHIFT_ANY : plain ? KEY_SHIFT_UP : KEY_SHIFT_DOWN;
			return keys[i].code;
		}
	}
	return 0;
}
