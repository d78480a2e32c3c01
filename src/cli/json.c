/* JSON for programs that read what ring3 prints (RFC 8259). */
#include <stdio.h>

#include "cli/cli.h"

/* Bytes that are not UTF-8 become U+FFFD, as JSON has no other way. */
static unsigned utf8_length(const u8 *p)
{
	unsigned n = p[0] < 0x80 ? 1 : p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : p[0] >= 0xe0 && p[0] < 0xf0 ? 3 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : 0;

	for (unsigned k = 1; k < n; k++)
		if ((p[k] & 0xc0) != 0x80)
			return 0;
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
		return 0; /* overlong, surrogates, above U+10FFFF */
	return n;
}

void json_string(const char *text)
{
	putchar('"');
	for (const u8 *p = (const u8 *)text; *p;) {
		unsigned n = utf8_length(p);
		if (!n)
			fputs("\\ufffd", stdout), n = 1;
		else if (*p == '"' || *p == '\\')
			printf("\\%c", *p);
		else if (*p < ' ')
			printf("\\u%04x", *p);
		else
			fwrite(p, 1, n, stdout);
		p += n;
	}
	putchar('"');
}
