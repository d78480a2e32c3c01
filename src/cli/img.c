/* `ring3 img`: disk images made, described, checked, converted. One table of options for all of its verbs; what
 * they do is in block/ (image_api.h). */
#define LOG_TOPIC "cli"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "block/image_api.h"
#include "cli/cli.h"
#include "cli/img.h"

#define EXIT_CORRUPT 2 /* check: what is wrong is left */
#define EXIT_LEAKS 3

enum { CREATE = 1, INFO = 2, CHECK = 4, CONVERT = 8, SNAPSHOT = 16, RESIZE = 32, ALL = 63 };

struct args {
	char *format, *out_format, *backing, *backing_format, *options, *make, *apply, *delete, *snapshot;
	bool json, repair, compress, list, shrink, quiet, help;
	char *files[2];
	int n_files;
};
struct row {
	const char *name;
	char letter;
	unsigned verbs;
	size_t offset;
	const char *arg; /* NULL: a flag */
	const char *help;
};
#define ARG(f) offsetof(struct args, f)
static const struct row rows[] = {
	{ "format", 'f', ALL, ARG(format), "FORMAT", "raw or qcow2; default: by content, or what is made by its name (.qcow2)" },
	{ "backing", 'b', CREATE, ARG(backing), "FILE", "what is below: the new image holds what differs; relative to it" },
	{ "backing-format", 'F', CREATE, ARG(backing_format), "FORMAT", "and the format of that; default: by content" },
	{ "to-format", 'O', CONVERT, ARG(out_format), "FORMAT", "of the new image" },
	{ "options", 'o', CREATE | CONVERT, ARG(options), "KEY=VALUE,...", "of a new qcow2 image, below" },
	{ "compress", 'c', CONVERT, ARG(compress), NULL, "pack the clusters" },
	{ "snapshot", 's', CONVERT, ARG(snapshot), "NAME", "the disk as it was in that snapshot" },
	{ "list", 'l', SNAPSHOT, ARG(list), NULL, "show them (the default)" },
	{ "create", 'c', SNAPSHOT, ARG(make), "NAME", "make one of the disk as it is" },
	{ "apply", 'a', SNAPSHOT, ARG(apply), "NAME", "go back to it; what the disk holds now is lost" },
	{ "delete", 'd', SNAPSHOT, ARG(delete), "NAME", "delete it, by name or number" },
	{ "repair", 'r', CHECK, ARG(repair), NULL, "mend what is wrong" },
	{ "shrink", 0, RESIZE, ARG(shrink), NULL, "also to a smaller size: what is behind it is lost" },
	{ "json", 0, INFO, ARG(json), NULL, "for programs" },
	{ "quiet", 'q', CHECK | CONVERT, ARG(quiet), NULL, "no progress, no list" },
	{ "help", 'h', ALL, ARG(help), NULL, "this text" },
};

static const char *const compressions[] = { "zlib", "zstd", NULL };
static const struct kv_key create_keys[] = {
	{ "cluster-size", KV_SIZE, offsetof(struct image_create, cluster_size), "512 to 2M; default 64K", 512, 2 << 20 },
	{ "version", KV_UINT, offsetof(struct image_create, version), "2 or 3, the default", 2, 3 },
	{ "refcount-bits", KV_UINT, offsetof(struct image_create, refcount_bits), "1 to 64; default 16", 1, 64 },
	{ "lazy-refcounts", KV_BOOL, offsetof(struct image_create, lazy_refcounts), "fewer writes, a repair after a crash" },
	{ "compression", KV_WORD, offsetof(struct image_create, compression), "of packed clusters; default zlib", .words = compressions },
};

static int fail(int status, const struct error *e)
{
	fprintf(stderr, "ring3: img: %s\n", e->msg);
	return status;
}

/* ---- verbs ------------------------------------------------------------------------------ */

/* of: the option that text is the value of. */
static bool format_word(const char *of, const char *text, u32 *format, struct error *e)
{
	static const struct kv_key key = { "format", KV_WORD, 0, "", .words = block_format_words };

	*format = BLOCK_AUTO;
	return !text || kv_parse(of, text, &key, 1, format, e);
}

static bool create_options(const struct args *a, struct image_create *c, struct error *e)
{
	return (!a->options || kv_parse("-o", a->options, create_keys, ARRAY_LEN(create_keys), c, e)) &&
	       format_word("--backing-format", a->backing_format, &c->backing_format, e);
}

static int verb_create(struct args *a, u32 format, struct error *e)
{
	struct image_create c = { .file = a->files[0], .format = format, .backing = a->backing };

	if (!create_options(a, &c, e))
		return EXIT_USAGE;
	if (a->n_files < 2 && !a->backing) {
		error_set(e, "create %s: how large? as in 10G", a->files[0]);
		return EXIT_USAGE;
	}
	if (a->n_files == 2 && !parse_size(a->files[1], &c.size)) {
		error_set(e, "create %s: not a size; use digits and K, M, G or T, as in 10G", a->files[1]);
		return EXIT_USAGE;
	}
	return image_create(&c, e) ? 0 : EXIT_START;
}

static int verb_info(struct args *a, u32 format, struct error *e)
{
	struct image_info info;

	if (!image_info_get(a->files[0], format, &info, e))
		return EXIT_START;
	if (a->json)
		img_print_json(&info);
	else
		img_print_info(&info);
	image_info_free(&info);
	return 0;
}

static void say(void *arg, const char *text)
{
	u64 *n = arg;

	if (++*n <= 100)
		puts(text);
	else if (*n == 101)
		puts("... and more");
}

static int verb_check(struct args *a, u32 format, struct error *e)
{
	struct image_check r;
	u64 said = 0;

	if (!image_check(a->files[0], format, a->repair, &r, a->quiet ? NULL : say, &said, e))
		return EXIT_START;
	u64 corruptions = r.corruptions - r.corruptions_mended, leaks = r.leaks - r.leaks_mended;
	if (r.corruptions_mended || r.leaks_mended)
		printf("mended: %llu corruptions, %llu leaked clusters\n", (unsigned long long)r.corruptions_mended, (unsigned long long)r.leaks_mended);
	if (!corruptions && !leaks)
		printf("%s: no errors\n", a->files[0]);
	else
		printf("%s: %llu corruptions, %llu leaked clusters; %s\n", a->files[0], (unsigned long long)corruptions, (unsigned long long)leaks,
		       a->repair ? "these cannot be mended; ring3 img convert may save what can be read" :
		       corruptions ? "--repair mends them, a copy first is wise" : "nothing is lost but space; --repair frees them");
	if (!a->quiet)
		printf("%llu clusters in the file, %llu with data, %llu of them packed\n", (unsigned long long)r.clusters,
		       (unsigned long long)r.data_clusters, (unsigned long long)r.compressed);
	return corruptions ? EXIT_CORRUPT : leaks ? EXIT_LEAKS : 0;
}

static int verb_convert(struct args *a, u32 format, struct error *e)
{
	struct progress bar = { 0 };
	struct image_convert c = { .from = a->files[0], .from_format = format, .from_snapshot = a->snapshot, .compress = a->compress,
				   .to.file = a->files[1], .arg = &bar };

	if (!create_options(a, &c.to, e) || !format_word("--to-format", a->out_format, &c.to.format, e))
		return EXIT_USAGE;
	if (!a->quiet && isatty(STDERR_FILENO))
		c.progress = img_progress;
	bool ok = image_convert(&c, e);
	img_progress_end(&bar);
	return ok ? 0 : EXIT_START;
}

static int verb_snapshot(struct args *a, u32 format, struct error *e)
{
	struct image_info info;
	int ops = !!a->make + !!a->apply + !!a->delete + a->list;

	if (ops > 1) {
		error_set(e, "snapshot: --list, --create, --apply and --delete exclude each other");
		return EXIT_USAGE;
	}
	if (a->make || a->apply || a->delete)
		return image_snapshot(a->files[0], format, a->make ? SNAPSHOT_MAKE : a->apply ? SNAPSHOT_APPLY : SNAPSHOT_DELETE,
				      a->make ? a->make : a->apply ? a->apply : a->delete, e) ? 0 : EXIT_START;
	if (!image_info_get(a->files[0], format, &info, e))
		return EXIT_START;
	img_print_snapshots(&info);
	image_info_free(&info);
	return 0;
}

static int verb_resize(struct args *a, u32 format, struct error *e)
{
	struct image_info info;
	const char *text = a->files[1];
	u64 size, by;

	if (!parse_size(text + (*text == '+' || *text == '-'), &by)) {
		error_set(e, "resize %s: not a size; use digits and K, M, G or T, as in 10G, +2G or -2G", text);
		return EXIT_USAGE;
	}
	size = by;
	if (*text == '+' || *text == '-') {
		if (!image_info_get(a->files[0], format, &info, e))
			return EXIT_START;
		size = *text == '+' ? info.size + by : info.size - by;
		bool small = *text == '-' && by > info.size, large = *text == '+' && size < by;
		image_info_free(&info);
		if (small || large) {
			error_set(e, "resize %s: %s", text, small ? "the disk is smaller than that" : "too large");
			return EXIT_USAGE;
		}
	}
	return image_resize(a->files[0], format, size, a->shrink, e) ? 0 : EXIT_START;
}

static const struct verb {
	const char *name;
	unsigned bit;
	int min_files, max_files;
	int (*run)(struct args *a, u32 format, struct error *e);
	const char *usage, *help;
} verbs[] = {
	{ "create", CREATE, 1, 2, verb_create, "FILE [SIZE]", "a new image; SIZE as in 10G, default that of what is below" },
	{ "info", INFO, 1, 1, verb_info, "FILE", "what an image is" },
	{ "check", CHECK, 1, 1, verb_check, "FILE", "whether a qcow2 image is sound" },
	{ "convert", CONVERT, 2, 2, verb_convert, "FROM TO", "copy a disk into a new image" },
	{ "snapshot", SNAPSHOT, 1, 1, verb_snapshot, "FILE", "snapshots inside a qcow2 image" },
	{ "resize", RESIZE, 2, 2, verb_resize, "FILE SIZE", "another size; +SIZE and -SIZE change it by that" },
};

/* ---- options ---------------------------------------------------------------------------- */

static void help_verb(const struct verb *v)
{
	printf("ring3 img %s [OPTION ...] %s: %s\n\n", v->name, v->usage, v->help);
	for (size_t k = 0; k < ARRAY_LEN(rows); k++) {
		char left[64];
		if (!(rows[k].verbs & v->bit))
			continue;
		snprintf(left, sizeof(left), "  %c%c%s --%s %s", rows[k].letter ? '-' : ' ', rows[k].letter ? rows[k].letter : ' ',
			 rows[k].letter ? "," : " ", rows[k].name, rows[k].arg ? rows[k].arg : "");
		printf("%-34s%s\n", left, rows[k].help);
	}
	if (v->bit & (CREATE | CONVERT)) {
		puts("\nKeys of --options:");
		kv_help_keys(create_keys, ARRAY_LEN(create_keys));
	}
	if (v->bit & CHECK)
		puts("\nExit status: 0 sound or mended, 2 corruptions, 3 leaks only, 65 it could not be checked.");
}

static int help_all(FILE *f)
{
	fputs("ring3 img: disk images, raw and qcow2\n\n", f);
	for (size_t k = 0; k < ARRAY_LEN(verbs); k++)
		fprintf(f, "  ring3 img %-9s%-12s %s\n", verbs[k].name, verbs[k].usage, verbs[k].help);
	fputs("\nring3 img VERB --help lists a verb's options. Sizes take K, M, G, T.\n", f);
	return f == stdout ? 0 : EXIT_USAGE;
}

static const struct row *find_row(const char *arg, const struct verb *v, const char **value, struct error *e)
{
	const char *names[ARRAY_LEN(rows)];
	size_t n_names = 0;

	*value = NULL;
	for (size_t k = 0; k < ARRAY_LEN(rows); k++) {
		size_t n = strlen(rows[k].name);
		if (!(rows[k].verbs & v->bit))
			continue;
		names[n_names++] = rows[k].name;
		if (arg[1] == '-' && !strncmp(arg + 2, rows[k].name, n) && (!arg[2 + n] || arg[2 + n] == '=')) {
			*value = arg[2 + n] ? arg + 3 + n : NULL;
			return &rows[k];
		}
		if (arg[1] != '-' && rows[k].letter && arg[1] == rows[k].letter) {
			*value = arg[2] ? arg + 2 : NULL;
			return &rows[k];
		}
	}
	const char *near = nearest_word(arg[1] == '-' ? arg + 2 : arg + 1, names, n_names);
	error_set(e, "%s: %s: no such option; %s%s%s", v->name, arg, near ? "did you mean --" : "see ring3 img --help", near ? near : "", near ? "?" : "");
	return NULL;
}

static bool set(struct args *a, const struct verb *v, const struct row *o, const char *value, struct error *e)
{
	if (!o->arg && value)
		return error_set(e, "%s: --%s: takes no value", v->name, o->name);
	if (!o->arg)
		*(bool *)((char *)a + o->offset) = true;
	else
		*(const char **)((char *)a + o->offset) = value;
	return true;
}

static bool parse(int argc, char **argv, const struct verb *v, struct args *a, struct error *e)
{
	bool only_files = false;
	const char *value;

	for (int k = 0; k < argc; k++) {
		char *arg = argv[k];
		if (!only_files && !strcmp(arg, "--")) {
			only_files = true;
			continue;
		}
		bool less = v->bit & RESIZE && a->n_files == 1 && arg[0] == '-' && arg[1] >= '0' && arg[1] <= '9'; /* -2G */
		if (only_files || less || arg[0] != '-' || !arg[1]) {
			if (a->n_files == v->max_files)
				return error_set(e, "%s: %s: one too many; ring3 img %s %s", v->name, arg, v->name, v->usage);
			a->files[a->n_files++] = arg;
			continue;
		}
		const struct row *o = find_row(arg, v, &value, e);
		if (!o)
			return false;
		if (o->arg && !value) {
			if (k + 1 == argc)
				return error_set(e, "%s: %s: needs a value: --%s %s", v->name, arg, o->name, o->arg);
			value = argv[++k];
		}
		if (!set(a, v, o, value, e))
			return false;
	}
	return a->help || a->n_files >= v->min_files || error_set(e, "%s: too few names; ring3 img %s %s", v->name, v->name, v->usage);
}

int cli_img(int argc, char **argv)
{
	const char *names[ARRAY_LEN(verbs)];
	struct args a = { 0 };
	struct error e;
	u32 format;

	if (argc < 1)
		return help_all(stderr);
	if (!strcmp(argv[0], "--help") || !strcmp(argv[0], "-h") || !strcmp(argv[0], "help"))
		return help_all(stdout);
	for (size_t k = 0; k < ARRAY_LEN(verbs); k++) {
		names[k] = verbs[k].name;
		if (strcmp(argv[0], verbs[k].name))
			continue;
		if (!parse(argc - 1, argv + 1, &verbs[k], &a, &e))
			return fail(EXIT_USAGE, &e);
		if (a.help)
			return help_verb(&verbs[k]), 0;
		if (!format_word("--format", a.format, &format, &e))
			return fail(EXIT_USAGE, &e);
		int status = verbs[k].run(&a, format, &e);
		return status == EXIT_USAGE || status == EXIT_START ? fail(status, &e) : status;
	}
	const char *near = nearest_word(argv[0], names, ARRAY_LEN(verbs));
	error_set(&e, "%s: no such verb; %s%s%s", argv[0], near ? "did you mean " : "see ring3 img --help", near ? near : "", near ? "?" : "");
	return fail(EXIT_USAGE, &e);
}
