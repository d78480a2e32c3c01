/* bzImage: a kernel made here, of a header and two entry points that look at what they were
 * given; what is malformed is refused by name. Documentation/arch/x86/boot.rst. */
#include <stdio.h>

#include "machine_rig.h"

#define SETUP 1024u  /* boot sector and one setup sector */
#define BODY 0x2000u
static u8 image[SETUP + BODY];

/* Ends with status 0x21 if ESI (RSI) points to boot_params with the magic, else 0x7f. The same bytes in
 * 32- and 64-bit mode: cmp dword [rsi + 0x202], 'HdrS'; jne +7. */
#define ENTRY(code) 0x81, 0xbe, 0x02, 0x02, 0x00, 0x00, 'H', 'd', 'r', 'S', 0x75, 0x07, EXIT_CODE(code), EXIT_CODE(0x7f)

static void make_image(void)
{
	static const u8 entry32[] = { ENTRY(0x21) }, entry64[] = { ENTRY(0x22) };
	memset(image, 0, sizeof(image));
	image[0x1f1] = 1;
	st32(image + 0x1f4, BODY / 16);
	st16(image + 0x1fe, 0xaa55);
	image[0x200] = 0xeb;
	image[0x201] = 0x66;
	st32(image + 0x202, 0x53726448);
	st16(image + 0x206, 0x20f);
	image[0x211] = 1;
	st32(image + 0x22c, 0x7fffffff);
	st32(image + 0x230, 0x200000);
	image[0x234] = 1;
	st16(image + 0x236, 3);
	st32(image + 0x238, 100);
	st64(image + 0x250, 0x1234); /* setup data of the file: not ours to pass on */
	st64(image + 0x258, 0x1000000);
	st32(image + 0x260, 0x100000);
	memcpy(image + SETUP, entry32, sizeof(entry32));
	memcpy(image + SETUP + 0x200, entry64, sizeof(entry64));
}

static int setup(void **state) { make_image(); return 0; }

static struct vm_config config(void)
{
	struct vm_config cfg = rig_config();
	cfg.kernel.path = rig_file(FILE_KERNEL, image, sizeof(image));
	return cfg;
}

static void entry_64(void **state)
{
	struct vm_config cfg = config();
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x22));
}

static void entry_32(void **state)
{
	static char linux32[] = "linux32", cpu[] = "max,-lm";
	struct vm_config cfg = config();
	cfg.kernel.format = linux32;
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x21));
	/* So for a kernel without a 64-bit entry, */
	image[0x236] = 0;
	cfg = config();
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x21));
	make_image();
	/* and for a processor without long mode. */
	cfg = config();
	cfg.cpu = cpu;
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x21));
}

static void boot_params(void **state)
{
	static char append[] = "console=ttyS0 root=/dev/none";
	u8 rd[5000];
	memset(rd, 0x5a, sizeof(rd));
	struct vm_config cfg = config();
	cfg.append = append;
	cfg.initrd = rig_file(FILE_INITRD, rd, sizeof(rd));
	struct machine *m = rig_build(&cfg);
	u64 p = 0x10000;
	char line[sizeof(append)];
	mem_read(&m->mem, guest32(m, p + 0x228), line, sizeof(line));
	assert_string_equal(line, append);
	assert_int_equal(guest64(m, p + 0x250), 0);
	assert_int_equal(guest64(m, p + 0x70), 0xf0000);
	assert_int_equal((u8)guest32(m, p + 0x210), 0xff);
	assert_int_equal((u8)guest32(m, p + 0x211), 1);
	assert_int_equal(guest32(m, p + 0x214), 0x1000000);
	u64 at = guest32(m, p + 0x218);
	assert_int_equal(guest32(m, p + 0x21c), sizeof(rd));
	assert_int_equal(at & PAGE_MASK, 0);
	assert_true(at >= 0x1100000 && at + sizeof(rd) <= boot_acpi_base(m));
	assert_int_equal((u8)guest32(m, at), 0x5a);
	assert_int_equal((u8)guest32(m, at + sizeof(rd) - 1), 0x5a);
	struct e820 map[16];
	assert_int_equal((u8)guest32(m, p + 0x1e8), boot_e820(m, map, 16));
	assert_int_equal(guest64(m, p + 0x2d0 + 8), map[0].size);
	machine_free(m);
}

static void initrd_above_4g(void **state)
{
	u8 rd[100] = { 1, 2, 3 };
	st32(image + 0x22c, 0x10fffff); /* the kernel takes no initrd above 17 MiB, where it ends itself */
	struct vm_config cfg = config();
	cfg.initrd = rig_file(FILE_INITRD, rd, sizeof(rd));
	cfg.mem_bytes = 5ull << 30;
	struct machine *m = rig_build(&cfg);
	u64 at = guest32(m, 0x10218) | (u64)guest32(m, 0x100c0) << 32;
	assert_true(at >= MEM_4G && at < 6ull << 30);
	assert_int_equal(guest32(m, at), 0x00030201);
	machine_free(m);
	/* Not above where there is no RAM, or where the kernel does not allow it. */
	cfg.mem_bytes = 64 << 20;
	rig_refuses(&cfg, "do not fit");
	cfg.mem_bytes = 5ull << 30;
	image[0x236] = 1;
	rig_file(FILE_KERNEL, image, sizeof(image));
	rig_refuses(&cfg, "do not fit");
}

static void command_line_limit(void **state)
{
	char text[102];
	memset(text, 'x', 101);
	text[101] = 0;
	struct vm_config cfg = config();
	cfg.append = text;
	rig_refuses(&cfg, "at most 100");
	text[100] = 0;
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x22));
}

static void small_memory(void **state)
{
	struct vm_config cfg = config();
	cfg.mem_bytes = 16 << 20; /* below the preferred address: a relocatable kernel goes to 1 MiB */
	struct machine *m = rig_build(&cfg);
	assert_int_equal(m->entry, 0x100200);
	machine_free(m);
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x22));
	image[0x234] = 0;
	rig_file(FILE_KERNEL, image, sizeof(image));
	rig_refuses(&cfg, "try -m");
	make_image();
	st32(image + 0x260, 0xffffffff);
	rig_file(FILE_KERNEL, image, sizeof(image));
	rig_refuses(&cfg, "try -m");
}

static void change8(unsigned at, u8 v, const char *word)
{
	make_image();
	image[at] = v;
	struct vm_config cfg = config();
	rig_refuses(&cfg, word);
}

static void malformed(void **state)
{
	static char format[] = "linux";
	change8(0x207, 1, "too old");
	change8(0x211, 0, "zImage");
	change8(0x1f1, 200, "cut off");
	change8(0x1f6, 0x10, "cut off");
	make_image();
	st64(image + 0x258, 0xfffffffffffff000ull);
	image[0x234] = 0;
	struct vm_config cfg = config();
	rig_refuses(&cfg, "try -m");
	make_image();
	/* Cut anywhere: refused, or (behind what syssize promises) nothing is missing. */
	for (size_t len = 1; len < sizeof(image) - 16; len += 97) {
		cfg = config();
		cfg.kernel.format = format;
		rig_file(FILE_KERNEL, image, len);
		rig_refuses(&cfg, "--kernel");
	}
	make_image();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(entry_64, setup), cmocka_unit_test_setup(entry_32, setup),
		cmocka_unit_test_setup(boot_params, setup), cmocka_unit_test_setup(initrd_above_4g, setup),
		cmocka_unit_test_setup(command_line_limit, setup), cmocka_unit_test_setup(small_memory, setup),
		cmocka_unit_test_setup(malformed, setup),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	rig_remove_files();
	return failed;
}
