/* What `ring3 img` prints: for people, for programs (JSON, with qemu-img's names where it has one), progress. */
#define LOG_TOPIC "cli"
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "cli/img.h"

/* ---- for people ------------------------------------------------------------------------- */

static const char *size_text(u64 v, char buf[32])
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double d = (double)v;
	unsigned u = 0;

	for (; d >= 1024 && u < 6; u++)
		d /= 1024;
	snprintf(buf, 32, d < 100 && d != (double)(u64)d ? "%.1f %s" : "%.0f %s", d, units[u]);
	return buf;
}

/* What an image calls something may hold anything; a terminal gets what is printable. */
static void print_text(const char *text)
{
	for (const u8 *p = (const u8 *)text; *p; p++)
		putchar(*p < ' ' || *p == 0x7f ? '?' : *p);
}

void img_print_snapshots(const struct image_info *info)
{
	char size[32], date[32] = "";

	if (info->n_snapshots)
		printf("%-4s %-20s %-10s %-10s %s\n", "id", "date", "disk", "vm state", "name");
	for (u32 k = 0; k < info->n_snapshots; k++) {
		const struct image_snapshot *s = &info->snapshots[k];
		time_t t = (time_t)s->date_sec;
		struct tm tm;
		if (localtime_r(&t, &tm))
			strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
		print_text(s->id);
		printf("%*s %-20s %-10s", (int)(strlen(s->id) < 4 ? 4 - strlen(s->id) : 0), "", date, size_text(s->disk_size, size));
		printf(" %-10s ", size_text(s->vm_state_size, size));
		print_text(s->name);
		putchar('\n');
	}
}

void img_print_info(const struct image_info *info)
{
	char a[32];

	printf("file       ");
	print_text(info->file);
	printf("\nformat     %s", block_format_words[info->format]);
	if (info->version)
		printf(", version %u", info->version);
	printf("\nsize       %s (%llu bytes)\n", size_text(info->size, a), (unsigned long long)info->size);
	printf("on disk    %s\n", size_text(info->allocated, a));
	if (info->cluster_size)
		printf("clusters   %s, refcounts of %u bits%s, packed by %s\n", size_text(info->cluster_size, a), info->refcount_bits,
		       info->lazy_refcounts ? ", lazy" : "", info->zstd ? "zstd" : "zlib");
	if (info->dirty)
		printf("state      not closed: it is repaired when it is opened for writing\n");
	if (info->corrupt)
		printf("state      damaged: ring3 img check --repair\n");
	if (info->backing) {
		printf("below      ");
		print_text(info->backing);
		printf(" (%s)", info->backing_format ? block_format_words[info->backing_format] : "by its content");
		if (strcmp(info->backing, info->backing_path)) {
			printf(", ");
			print_text(info->backing_path);
		}
		putchar('\n');
	}
	if (info->n_bitmaps)
		printf("bitmaps    %u, which are not kept up\n", info->n_bitmaps);
	if (info->n_snapshots) {
		printf("snapshots  %u\n", info->n_snapshots);
		img_print_snapshots(info);
	}
}

/* ---- for programs ----------------------------------------------------------------------- */

static void member(const char *name, const char *text)
{
	printf(",\n  \"%s\": ", name);
	json_string(text);
}

static void json_snapshot(const struct image_snapshot *s)
{
	printf("{ \"id\": ");
	json_string(s->id);
	printf(", \"name\": ");
	json_string(s->name);
	printf(", \"date-sec\": %llu, \"vm-state-size\": %llu, \"vm-clock-nsec\": %llu, \"disk-size\": %llu }", (unsigned long long)s->date_sec,
	       (unsigned long long)s->vm_state_size, (unsigned long long)s->vm_clock_ns, (unsigned long long)s->disk_size);
}

void img_print_json(const struct image_info *info)
{
	static const char *const truth[] = { "false", "true" };

	printf("{\n  \"filename\": ");
	json_string(info->file);
	member("format", block_format_words[info->format]);
	printf(",\n  \"virtual-size\": %llu,\n  \"actual-size\": %llu", (unsigned long long)info->size, (unsigned long long)info->allocated);
	if (info->cluster_size) {
		printf(",\n  \"cluster-size\": %llu,\n  \"version\": %u,\n  \"refcount-bits\": %u", (unsigned long long)info->cluster_size, info->version,
		       info->refcount_bits);
		printf(",\n  \"lazy-refcounts\": %s,\n  \"dirty-flag\": %s,\n  \"corrupt\": %s", truth[info->lazy_refcounts], truth[info->dirty], truth[info->corrupt]);
		member("compression-type", info->zstd ? "zstd" : "zlib");
		printf(",\n  \"bitmaps\": %u", info->n_bitmaps);
	}
	if (info->backing) {
		member("backing-filename", info->backing);
		member("full-backing-filename", info->backing_path);
		if (info->backing_format)
			member("backing-filename-format", block_format_words[info->backing_format]);
	}
	if (info->cluster_size) {
		printf(",\n  \"snapshots\": [");
		for (u32 k = 0; k < info->n_snapshots; k++) {
			fputs(k ? ",\n    " : "\n    ", stdout);
			json_snapshot(&info->snapshots[k]);
		}
		printf("%s]", info->n_snapshots ? "\n  " : "");
	}
	puts("\n}");
}

/* ---- progress --------------------------------------------------------------------------- */

#define BAR 50

void img_progress(void *progress, u64 done, u64 all)
{
	struct progress *p = progress;
	struct timespec ts;
	char bar[BAR + 1];

	clock_gettime(CLOCK_MONOTONIC, &ts);
	u64 now = (u64)ts.tv_sec * 1000000000u + (u64)ts.tv_nsec;
	if (now - p->last_ns < 100000000 && done != all)
		return;
	p->last_ns = now;
	p->drawn = true;
	double part = all ? (double)done / (double)all : 1;
	for (int k = 0; k < BAR; k++)
		bar[k] = k < (int)(part * BAR) ? '#' : '.';
	bar[BAR] = 0;
	fprintf(stderr, "\r[%s] %3d %%", bar, (int)(part * 100));
}

void img_progress_end(struct progress *p)
{
	if (p->drawn)
		fputc('\n', stderr);
}
