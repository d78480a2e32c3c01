/* Stands in for libFuzzer where clang is not: runs each file of the folders given, then for so
 * many seconds simple mutations of them.
 *   fuzz_x SECONDS DIR... */
#include <dirent.h>
#include <stdio.h>
#include <time.h>

#include "fuzz.h"

#define MAX_FILES 4096
#define MAX_SIZE 16384
static struct { u8 *data; size_t size; } files[MAX_FILES];
static int n_files;
static u64 seed = 88172645463325252ull;

static u64 rnd(u64 below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

static void read_file(const char *path)
{
	FILE *f = fopen(path, "r");
	u8 *data = malloc(MAX_SIZE);

	if (!f || !data || n_files == MAX_FILES) {
		fprintf(stderr, "%s: cannot be read\n", path);
		exit(1);
	}
	files[n_files].size = fread(data, 1, MAX_SIZE, f);
	files[n_files++].data = data;
	fclose(f);
}

static void read_folder(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	char name[4096];

	while (d && (e = readdir(d)))
		if (e->d_name[0] != '.') {
			snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
			read_file(name);
		}
	if (d)
		closedir(d);
}

static size_t mutate(u8 *buf)
{
	static const u64 values[] = { 0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, ~0ull, 1ull << 63 };
	int a = (int)rnd((u64)n_files), b = (int)rnd((u64)n_files);
	size_t n = files[a].size;

	memcpy(buf, files[a].data, n);
	if (!rnd(8)) { /* cross over */
		size_t at = rnd(n + 1), from = rnd(files[b].size + 1), len = MIN(files[b].size - from, MAX_SIZE - at);
		memcpy(buf + at, files[b].data + from, len);
		n = MAX(n, at + len);
	}
	for (u64 k = rnd(8) + 1; k-- && n;) {
		size_t at = rnd(n), len = MIN((size_t)1 << rnd(4), n - at);
		switch (rnd(4)) {
		case 0: buf[at] ^= (u8)(1 << rnd(8)); break;
		case 1: memcpy(buf + at, &values[rnd(ARRAY_LEN(values))], len); break;
		case 2: buf[at] = (u8)rnd(256); break;
		case 3:
			if (!rnd(4))
				n = at + 1;
		}
	}
	return n;
}

int main(int argc, char **argv)
{
	static u8 buf[MAX_SIZE];
	u64 runs = 0;

	for (int k = 2; k < argc; k++)
		read_folder(argv[k]);
	for (int k = 0; k < n_files; k++, runs++)
		LLVMFuzzerTestOneInput(files[k].data, files[k].size);
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 0);
	for (; n_files && time(NULL) < end; runs++) {
		size_t n = mutate(buf);
		u8 *exact = malloc(n + !n);
		memcpy(exact, buf, n);
		LLVMFuzzerTestOneInput(exact, n);
		free(exact);
	}
	fprintf(stderr, "%d files, %llu runs\n", n_files, (unsigned long long)runs);
	return n_files ? 0 : 1;
}
