/* Names for translated code, for Linux's perf: a line "START SIZE NAME" in /tmp/perf-PID.map for each
 * block and each routine that blocks share. perf looks there for samples in memory that belongs to
 * no file: so the cache must be such memory (cache.c).
 *
 * Blocks that are made where others were evicted are added: perf then takes one of them, and the
 * file grows while blocks are made, up to LINES_MAX lines a processor. */
#define LOG_TOPIC "bt"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bt/bt.h"

#define LINES_MAX (4u << 20)

static void line(struct bt *b, const u8 *start, u64 size, const char *name)
{
	if (b->perf_lines == LINES_MAX)
		log_info("perf map of processor %u: no more than %u lines", b->cpu->index, LINES_MAX);
	if (b->perf_lines++ < LINES_MAX) /* one write: processors append to the same file */
		dprintf(b->perf_fd, "%llx %llx ring3:%s\n", (unsigned long long)(uintptr_t)start, (unsigned long long)size, name);
}

void perf_block(struct bt *b, const struct block *k)
{
	char name[32];
	if (b->perf_fd < 0)
		return;
	snprintf(name, sizeof(name), "%llx", (unsigned long long)k->lin);
	line(b, k->checked, k->bytes, name);
	snprintf(name, sizeof(name), "%llx.cold", (unsigned long long)k->lin);
	if (k->cold_bytes)
		line(b, k->cold, k->cold_bytes, name);
}

static void name_glue(struct bt *b)
{
	const struct { const u8 *at; const char *name; } parts[] = {
		{ b->exit_common, "leave" }, { (const u8 *)(uintptr_t)b->enter, "enter" }, { b->lookup_miss, "lookup_miss" },
		{ b->lookup, "lookup" }, { b->return_miss, "return_miss" },
	};
	for (unsigned k = 0; k < ARRAY_LEN(parts); k++) {
		const u8 *end = b->glue_end; /* each goes on to the next one's start */
		for (unsigned n = 0; n < ARRAY_LEN(parts); n++)
			if (parts[n].at > parts[k].at && parts[n].at < end)
				end = parts[n].at;
		line(b, parts[k].at, (u64)(end - parts[k].at), parts[k].name);
	}
}

bool perf_open(struct bt *b, struct error *e)
{
	char path[64];
	struct stat st;
	snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
	/* What is there is an earlier process's, of the same number. */
	int how = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | (b->cpu->index == 0 ? O_TRUNC : 0);
	b->perf_fd = open(path, how, 0600);
	if (b->perf_fd < 0)
		return error_set(e, "--engine bt,perf=on: %s cannot be written: %m", path);
	if (fstat(b->perf_fd, &st) || st.st_uid != geteuid())
		return error_set(e, "--engine bt,perf=on: %s is another user's; perf would not read it", path);
	name_glue(b);
	return true;
}

void perf_close(struct bt *b)
{
	if (b->perf_fd >= 0)
		close(b->perf_fd);
}
