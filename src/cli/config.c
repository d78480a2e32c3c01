/* Machine definitions: INI files, read by inih, whose lines are options of `ring3 run`.
 *
 *   memory = 2G                 an option, as on the command line: before the first section, or in [machine]
 *   disk = a.qcow2,snapshot
 *   [disk]                      one more disk: the option's keys, a line each; commas need no doubling
 *   file = b.qcow2
 *   bus = ide
 *
 * inih, as Debian builds it, tells neither lines' numbers nor where a section of the same name begins anew,
 * and cuts lines after 197 characters: what it reads comes through next_line, which knows. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"

struct reader {
	const char *path;
	const struct config_ops *ops;
	FILE *f;
	char *text;                /* the line */
	size_t cap;
	int line;
	bool indented;
	char section[64];          /* "": none, or [machine] */
	int section_line;
	char *value;               /* of the section so far: KEY=VALUE,KEY=VALUE */
	char *last, *last_name;    /* the option that an indented line goes on with */
	int last_line;
	struct error *e;
	int failed;                /* the line of the first error; 0: none */
};

static bool fail_at(struct reader *r, int line)
{
	if (!r->failed) {
		error_prefix(r->e, "%s:%d", r->path, line);
		r->failed = line;
	}
	return false;
}

static bool append_text(char **to, const char *sep, const char *text, bool double_commas)
{
	size_t have = *to ? strlen(*to) : 0;
	char *p = realloc(*to, have + strlen(sep) + 2 * strlen(text) + 1);

	if (!p)
		return false;
	*to = p;
	p = stpcpy(p + have, have ? sep : "");
	for (; *text; text++) {
		*p++ = *text;
		if (double_commas && *text == ',')
			*p++ = ',';
	}
	*p = 0;
	return true;
}

/* ---- what comes to its end ----------------------------------------------------------------------- */

/* An option may go on in the next line, so it is given on when that is seen not to be so. */
static bool end_option(struct reader *r)
{
	char *name = r->last_name, *value = r->last;
	bool ok = !name || r->failed || r->ops->option(r->ops->arg, name, value, r->e) || fail_at(r, r->last_line);

	r->last_name = r->last = NULL;
	free(name);
	free(value);
	return ok;
}

static bool end_section(struct reader *r)
{
	bool ok = end_option(r);

	if (ok && r->section[0] && !r->failed)
		ok = r->ops->option(r->ops->arg, r->section, r->value ? r->value : "", r->e) || fail_at(r, r->section_line);
	free(r->value);
	r->value = NULL;
	r->section[0] = 0;
	return ok;
}

/* ---- lines ------------------------------------------------------------------------------------------ */

static void begin_section(struct reader *r, const char *name)
{
	size_t n = strcspn(name, "]");

	if (!end_section(r))
		return;
	r->section_line = r->line;
	snprintf(r->section, sizeof(r->section), "%.*s", (int)MIN(n, sizeof(r->section) - 1), name);
	if (!strcmp(r->section, "machine"))
		r->section[0] = 0;
	else if (!r->ops->section(r->ops->arg, r->section, r->e))
		fail_at(r, r->line);
}

/* inih's fgets. */
static char *next_line(char *buf, int size, void *arg)
{
	struct reader *r = arg;
	ssize_t n = r->failed ? -1 : getline(&r->text, &r->cap, r->f);

	if (n < 0)
		return NULL;
	r->line++;
	if (n > 0 && r->text[n - 1] == '\n')
		r->text[--n] = 0;
	if (n + 3 > size || strlen(r->text) != (size_t)n) {
		if (n + 3 > size)
			error_set(r->e, "a line of %zd characters: at most %d; append goes on in the next line if that is indented", n, size - 3);
		else
			error_set(r->e, "a zero byte: this is no text");
		fail_at(r, r->line);
		return NULL;
	}
	const char *p = r->text + (r->line == 1 && !strncmp(r->text, "\xef\xbb\xbf", 3) ? 3 : 0), *start = p;
	while (isspace((u8)*p))
		p++;
	r->indented = p > start;
	if (*p == '[')
		begin_section(r, p + 1);
	memcpy(buf, r->text, (size_t)n);
	strcpy(buf + n, "\n");
	return buf;
}

/* [section]: the key is looked at now, so that an error names its line, and with the others at the end. */
static bool take_key(struct reader *r, const char *name, const char *value)
{
	char *item = NULL;

	if (!append_text(&item, "", name, false) || !append_text(&item, "", "=", false) || !append_text(&item, "", value, true) ||
	    !append_text(&r->value, ",", item, false)) {
		free(item);
		return error_set(r->e, "out of memory");
	}
	bool ok = r->ops->key(r->ops->arg, r->section, item, r->e);
	free(item);
	return ok;
}

static bool take_option(struct reader *r, const char *name, const char *value)
{
	if (!end_option(r))
		return false;
	r->last_name = strdup(name);
	r->last = strdup(value);
	r->last_line = r->line;
	return (r->last_name && r->last) || error_set(r->e, "out of memory");
}

static int on_value(void *arg, const char *section, const char *name, const char *value)
{
	struct reader *r = arg;
	bool ok;

	if (r->failed)
		return 0;
	if (r->indented && r->last_name && !strcmp(r->last_name, "append") && !strcmp(name, "append"))
		ok = append_text(&r->last, " ", value, false) || error_set(r->e, "out of memory");
	else if (r->indented)
		ok = error_set(r->e, "an indented line goes on with the one before, which only append can; begin it at the margin");
	else if (r->section[0])
		ok = take_key(r, name, value);
	else
		ok = take_option(r, name, value);
	return ok || fail_at(r, r->line);
}

/* Not a FIFO, and not something that never ends. */
static FILE *open_file(const char *path, struct error *e)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		error_set(e, "--config %s: %s", path, fd < 0 ? strerror(errno) : "not a regular file");
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	return fdopen(fd, "r");
}

bool config_read(const char *path, const struct config_ops *ops, struct error *e)
{
	struct reader r = { .path = path, .ops = ops, .e = e };

	if (!(r.f = open_file(path, e)))
		return false;
	int bad = ini_parse_stream(next_line, &r, on_value, &r);
	if (bad > 0 && (!r.failed || bad < r.failed)) {
		r.failed = 0;
		error_set(e, "neither KEY = VALUE nor [SECTION] nor a comment");
		fail_at(&r, bad);
	}
	end_section(&r);
	fclose(r.f);
	free(r.text);
	return !r.failed;
}

/* ---- the other way ---------------------------------------------------------------------------------------- */

#define WIDTH 150 /* of a line; inih takes 197 */

bool config_write(FILE *f, const char *name, const char *value, struct error *e)
{
	size_t n = strlen(value);
	bool spaces = n && (isspace((u8)value[0]) || isspace((u8)value[n - 1]));

	for (const char *p = value; *p && !spaces; p++)
		spaces = *p == '\n' || *p == '\r' || (*p == ';' && (p == value || isspace((u8)p[-1])));
	if (spaces)
		return error_set(e, "--%s %s: spaces at an end, and a ; behind one, cannot be written into a file", name, value);
	fprintf(f, "%s =", name);
	while (strlen(value) > WIDTH) {
		const char *at = !strcmp(name, "append") ? memrchr(value, ' ', WIDTH) : NULL;
		if (!at && n > 190 - strlen(name))
			return error_set(e, "--%s %.40s...: too long for a line of a file", name, value);
		if (!at)
			break;
		fprintf(f, " %.*s\n ", (int)(at - value), value);
		value = at + 1;
	}
	fprintf(f, " %s\n", value);
	return true;
}
