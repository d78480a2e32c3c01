/* The command line: arguments separated by zero bytes; files of options (what begins with [ or #); and
 * processor models (after an @), sizes, key=value lists and log levels by themselves. Accepted or refused with one sentence. */
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "cli/cli.h"

struct fields { char *text; bool flag; u64 number, size; u32 word; };
static const char *const words[] = { "yes", "no", "maybe", NULL };

static void by_themselves(const char *text)
{
	static const struct kv_key keys[] = {
		{ "text", KV_STR, offsetof(struct fields, text), "" }, { "flag", KV_BOOL, offsetof(struct fields, flag), "" },
		{ "number", KV_UINT, offsetof(struct fields, number), "" }, { "size", KV_SIZE, offsetof(struct fields, size), "" },
		{ "word", KV_WORD, offsetof(struct fields, word), "", .words = words },
		{ "few", KV_UINT, offsetof(struct fields, number), "", 2, 9 },
	};
	struct fields f = { 0 };
	struct error e = { "" };
	struct clock clock;
	struct cpu_model model;
	struct engine_choice choice;
	u64 n;

	if (!kv_parse("--x", text, keys, ARRAY_LEN(keys), &f, &e) && !e.msg[0])
		bug("refused without a reason");
	free(f.text);
	if (!strstr(text, "auto") && engine_choose(text, false, &choice, &e)) /* auto measures the host, which takes long */
		engine_options_free(choice.ops, choice.options);
	parse_size(text, &n);
	parse_number(text, &n);
	/* After an @ only: it asks the host's CPUID for everything, which takes long in a virtual machine. */
	if (text[0] == '@' && clock_init(&clock, true, &e)) {
		cpu_model_parse(&model, text + 1, &clock, &e);
		clock_destroy(&clock);
	}
	if (log_configure(text, NULL, &e))
		log_configure("error", NULL, &e);
}

/* Whatever is in a file; what it says is read again as it was read. */
static void as_file(const u8 *data, size_t size)
{
	char path[40], *argv[] = { "--config", path, "--print-config" };
	struct vm_config cfg;
	struct cli_extra extra;
	struct error e = { "" };
	int fd = memfd_create("config", 0);

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (write(fd, data, size) == (ssize_t)size) {
		if (!options_parse(ARRAY_LEN(argv), argv, &cfg, &extra, &e) && !e.msg[0])
			bug("refused without a reason");
		options_free(&cfg, &extra);
	}
	close(fd);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static bool quiet;
	char text[2048], *argv[32];
	struct vm_config cfg;
	struct cli_extra extra;
	struct error e = { "" };
	int argc = 0;

	if (!quiet)
		quiet = freopen("/dev/null", "w", stdout) != NULL; /* help */
	size = MIN(size, sizeof(text) - 1);
	memcpy(text, data, size);
	text[size] = 0;
	if (size && (text[0] == '[' || text[0] == '#')) {
		as_file(data, size);
		return 0;
	}
	by_themselves(text);
	for (size_t at = 0; at < size && argc < (int)ARRAY_LEN(argv); at += strlen(text + at) + 1)
		argv[argc++] = text + at;
	if (!options_parse(argc, argv, &cfg, &extra, &e) && !e.msg[0])
		bug("refused without a reason");
	options_free(&cfg, &extra);
	return 0;
}
