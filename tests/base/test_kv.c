/* Key=value options: values, the first key, commas, sizes, and what errors say. */
#include "test.h"
#include "base/base.h"

struct disk {
	char *file, *format;
	bool snapshot, readonly;
	u64 queues, size, depth, block;
	u32 mode;
};
static const char *const modes[] = { "read", "write", "append", NULL };

static const struct kv_key keys[] = {
	{ "file", KV_STR, offsetof(struct disk, file), "image" },
	{ "format", KV_STR, offsetof(struct disk, format), "raw or qcow2" },
	{ "snapshot", KV_BOOL, offsetof(struct disk, snapshot), "discard writes" },
	{ "readonly", KV_BOOL, offsetof(struct disk, readonly), "no writes" },
	{ "queues", KV_UINT, offsetof(struct disk, queues), "how many" },
	{ "size", KV_SIZE, offsetof(struct disk, size), "bytes" },
};
static const struct kv_key limited[] = {
	{ "mode", KV_WORD, offsetof(struct disk, mode), "how", .words = modes },
	{ "depth", KV_UINT, offsetof(struct disk, depth), "requests", 2, 64 },
	{ "block", KV_SIZE, offsetof(struct disk, block), "bytes", 512, 3 << 20 },
};

static struct disk d;
static struct error e;

static bool parse(const char *text)
{
	free(d.file);
	free(d.format);
	memset(&d, 0, sizeof(d));
	memset(&e, 0, sizeof(e));
	return kv_parse("--disk", text, keys, ARRAY_LEN(keys), &d, &e);
}

static void assert_fails(const char *text, const char *says)
{
	assert_false(parse(text));
	if (!strstr(e.msg, says))
		fail_msg("\"%s\": \"%s\" does not say \"%s\"", text, e.msg, says);
	assert_non_null(strstr(e.msg, "--disk"));
}

static void values(void **state)
{
	assert_true(parse("disk.qcow2,snapshot,size=4G,queues=0x10,readonly=off,format=qcow2"));
	assert_string_equal(d.file, "disk.qcow2");
	assert_string_equal(d.format, "qcow2");
	assert_true(d.snapshot);
	assert_false(d.readonly);
	assert_int_equal(d.size, 4ull << 30);
	assert_int_equal(d.queues, 16);
}

static void first_key(void **state)
{
	assert_true(parse("size=1K"));
	assert_null(d.file);
	assert_int_equal(d.size, 1024);
	assert_true(parse("snapshot")); /* the first bare item is the file, whatever it says */
	assert_string_equal(d.file, "snapshot");
	assert_false(d.snapshot);
	assert_true(parse(""));
	assert_null(d.file);
	assert_true(parse("file=a=b"));
	assert_string_equal(d.file, "a=b");
}

static void last_counts(void **state)
{
	assert_true(parse("a,file=b,snapshot=on,snapshot=off"));
	assert_string_equal(d.file, "b");
	assert_false(d.snapshot);
}

static void commas(void **state)
{
	assert_true(parse("a,,b,format=,,,snapshot"));
	assert_string_equal(d.file, "a,b");
	assert_string_equal(d.format, ",");
	assert_true(d.snapshot);
	assert_true(parse(",,,,"));
	assert_string_equal(d.file, ",,");
	assert_fails("a,", "empty item");
	assert_fails(",a", "empty item");
	assert_fails("a,snapshot,,readonly", "snapshot,readonly");
}

static void errors(void **state)
{
	assert_fails("a,snapshto", "did you mean \"snapshot\"");
	assert_fails("a,fromat=raw", "did you mean \"format\"");
	assert_fails("a,zzz=1", "there are: file, format, snapshot, readonly, queues, size");
	assert_fails("a,size", "needs a value: size=SIZE");
	assert_fails("a,size=4X", "size=4X: not a size");
	assert_fails("a,queues=-1", "queues=-1: not a number");
	assert_fails("a,queues=", "not a number");
	assert_fails("a,queues=3a", "queues=3a");
	assert_fails("a,queues=99999999999999999999", "not a number");
	assert_fails("a,snapshot=maybe", "use on or off");
}

static void limits(void **state)
{
	static const struct { const char *text, *says; } bad[] = {
		{ "depth=1", "depth=1: too small; the least is 2" }, { "depth=65", "depth=65: too large; the most is 64" },
		{ "block=0", "block=0: too small; the least is 512" }, { "block=4M", "block=4M: too large; the most is 3M" },
		{ "raed", "mode=raed: no such value; did you mean read?" }, { "mode=wri", "did you mean write?" },
		{ "mode=xyzzy", "no such value; there are: read, write, append" }, { "mode=", "there are: read, write, append" },
		{ "read,mode", "needs a value: mode=TEXT" },
	};
	assert_true(kv_parse("--disk", "append,depth=2,block=3M", limited, ARRAY_LEN(limited), &d, &e));
	assert_int_equal(d.mode, 2);
	assert_int_equal(d.depth, 2);
	assert_int_equal(d.block, 3 << 20);
	assert_true(kv_parse("--disk", "mode=read,depth=64,block=512", limited, ARRAY_LEN(limited), &d, &e));
	assert_int_equal(d.mode, 0);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_false(kv_parse("--disk", bad[i].text, limited, ARRAY_LEN(limited), &d, &e));
		if (!strstr(e.msg, bad[i].says))
			fail_msg("\"%s\": \"%s\" does not say \"%s\"", bad[i].text, e.msg, bad[i].says);
	}
}

static void sizes(void **state)
{
	static const struct { const char *text; u64 size; } good[] = {
		{ "0", 0 }, { "1", 1 }, { "512", 512 }, { "4k", 4096 }, { "512M", 512ull << 20 },
		{ "2G", 2ull << 30 }, { "3T", 3ull << 40 }, { "0x1000", 0x1000 }, { "0x10K", 0x4000 },
		{ "18446744073709551615", UINT64_MAX }, { "16777215T", 16777215ull << 40 },
	};
	static const char *const bad[] = { "", "K", "-1", "+1", " 1", "1 ", "1KK", "1.5G", "G1", "0x",
		"1B", "18446744073709551616", "16777216T", "99999999999999999999999999999999999999" };
	u64 v;

	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		v = 77;
		if (!parse_size(good[i].text, &v) || v != good[i].size)
			fail_msg("%s: %llu", good[i].text, (unsigned long long)v);
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		if (parse_size(bad[i], &v))
			fail_msg("\"%s\" was taken for %llu", bad[i], (unsigned long long)v);
	}
}

static void nearest(void **state)
{
	static const char *const engines[] = { "interp", "bt", "kvm", "auto" };
	static const char *const devices[] = { "virtio-blk", "virtio-net", "i8254", "e1000" };
	const size_t n = ARRAY_LEN(engines);

	assert_string_equal(nearest_word("intrep", engines, n), "interp"); /* a swap is one edit */
	assert_string_equal(nearest_word("KVM", engines, n), "kvm");
	assert_string_equal(nearest_word("kvn", engines, n), "kvm");
	assert_string_equal(nearest_word("int", engines, n), "interp"); /* cut short */
	assert_string_equal(nearest_word("virtio-nte", devices, 4), "virtio-net");
	assert_string_equal(nearest_word("virtio-bl", devices, 4), "virtio-blk");
	assert_null(nearest_word("qemu", engines, n));
	assert_null(nearest_word("xx", engines, n));
	assert_null(nearest_word("", engines, n));
	assert_null(nearest_word("a-word-of-more-than-forty-eight-letters-is-near-to-nothing", engines, n));
}

static int tear_down(void **state)
{
	free(d.file);
	free(d.format);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(values), cmocka_unit_test(first_key), cmocka_unit_test(last_counts),
		cmocka_unit_test(commas), cmocka_unit_test(errors), cmocka_unit_test(sizes),
		cmocka_unit_test(nearest), cmocka_unit_test(limits),
	};

	return cmocka_run_group_tests(tests, NULL, tear_down);
}
