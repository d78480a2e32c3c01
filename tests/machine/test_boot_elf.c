/* PVH and multiboot 1 with kernels made here: one segment whose code looks at its registers and
 * ends the machine; what is malformed is refused by name. */
#include <elf.h>
#undef PF_W

#include "machine_rig.h"

#define LOAD 0x200000u
#define CODE 0x400u  /* in the file */
static u8 file[0x1000];

/* cmp dword [ebx], magic; jne +7 */
#define PVH_CODE 0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, 0x75, 0x07, EXIT_CODE(0x31), EXIT_CODE(0x7f)
/* cmp eax, 0x2badb002; jne +7 */
#define MB_CODE 0x3d, 0x02, 0xb0, 0xad, 0x2b, 0x75, 0x07, EXIT_CODE(0x32), EXIT_CODE(0x7f)
static const u8 pvh_code[] = { PVH_CODE }, mb_code[] = { MB_CODE };

static void put_note(u8 *p, unsigned desc)
{
	st32(p, 4);
	st32(p + 4, desc);
	st32(p + 8, 18);
	memcpy(p + 12, "Xen", 4);
	st32(p + 16, LOAD);
}

static void make_elf32(void)
{
	memset(file, 0, sizeof(file));
	Elf32_Ehdr h = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS32, ELFDATA2LSB, 1 }, .e_type = ET_EXEC, .e_machine = EM_386,
			 .e_entry = LOAD, .e_phoff = 0x40, .e_phentsize = sizeof(Elf32_Phdr), .e_phnum = 2 };
	Elf32_Phdr load = { .p_type = PT_LOAD, .p_offset = CODE, .p_paddr = LOAD, .p_vaddr = LOAD, .p_filesz = 0x100, .p_memsz = 0x3000 };
	Elf32_Phdr note = { .p_type = PT_NOTE, .p_offset = 0x200, .p_filesz = 20, .p_memsz = 20 };
	memcpy(file, &h, sizeof(h));
	memcpy(file + 0x40, &load, sizeof(load));
	memcpy(file + 0x40 + sizeof(load), &note, sizeof(note));
	put_note(file + 0x200, 4);
	memcpy(file + CODE, pvh_code, sizeof(pvh_code));
}

static void make_elf64(void)
{
	memset(file, 0, sizeof(file));
	Elf64_Ehdr h = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1 }, .e_type = ET_EXEC, .e_machine = EM_X86_64,
			 .e_entry = LOAD, .e_phoff = 0x40, .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 2 };
	Elf64_Phdr load = { .p_type = PT_LOAD, .p_offset = CODE, .p_paddr = LOAD, .p_vaddr = 0xffffffff80000000, .p_filesz = 0x100, .p_memsz = 0x100 };
	Elf64_Phdr note = { .p_type = PT_NOTE, .p_offset = 0x200, .p_filesz = 24, .p_memsz = 24 };
	memcpy(file, &h, sizeof(h));
	memcpy(file + 0x40, &load, sizeof(load));
	memcpy(file + 0x40 + sizeof(load), &note, sizeof(note));
	put_note(file + 0x200, 8);
	memcpy(file + CODE, pvh_code, sizeof(pvh_code));
}

/* flags 0: the ELF says where; 0x10000: the header does. */
static void make_multiboot(u32 flags)
{
	make_elf32();
	if (flags & 0x10000)
		memset(file, 0, 0x100);
	u8 *h = file + 0x100;
	st32(h, 0x1badb002);
	st32(h + 4, flags);
	st32(h + 8, -(0x1badb002 + flags));
	st32(h + 12, LOAD + 0x100);  /* header, load, load end, bss end, entry */
	st32(h + 16, LOAD);
	st32(h + 20, LOAD + 0x800);
	st32(h + 24, LOAD + 0x4000);
	st32(h + 28, LOAD + CODE);
	memcpy(file + CODE, mb_code, sizeof(mb_code));
}

static struct vm_config config(size_t len)
{
	struct vm_config cfg = rig_config();
	cfg.kernel.path = rig_file(FILE_KERNEL, file, len);
	return cfg;
}

static void refuses(const char *word)
{
	struct vm_config cfg = config(sizeof(file));
	rig_refuses(&cfg, word);
}

static void pvh(void **state)
{
	make_elf32();
	struct vm_config cfg = config(sizeof(file));
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x31));
	make_elf64();
	rig_file(FILE_KERNEL, file, sizeof(file));
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x31));
}

/* A note that is not loaded: no memory, but its bytes are in the file. */
static void pvh_note_without_memory(void **state)
{
	make_elf32();
	st32(file + 0x40 + 32 + 20, 0);
	struct vm_config cfg = config(sizeof(file));
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x31));
	make_elf64();
	st64(file + 0x40 + 56 + 40, 0);
	rig_file(FILE_KERNEL, file, sizeof(file));
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x31));
}

/* What the loader puts into memory after the kernel must not land on it. */
static void places(void **state)
{
	static const struct { u32 pvh; u32 at, size; const char *word; } t[] = {
		{ 1, 0x500, 0x100, "the GDT" }, { 0, 0x51f, 0x100, "the GDT" },
		{ 1, 0x637f, 0x100, "the start info" }, { 1, 0x5000, 0x1001, "the start info" },
		{ 1, 0x5000, 0x1000, NULL }, { 1, 0x6380, 0x19c80, NULL }, { 1, 0x6380, 0x19c81, "the command line" },
		{ 1, 0xf0020, 0x100, "the ACPI root pointer" }, { 1, 0xf0024, 0x100, NULL },
		{ 1, (64 << 20) - 0x20000 - 0x1000, 0x1000, NULL }, { 1, (64 << 20) - 0x20000 - 0x1000, 0x1001, "the ACPI tables" },
		{ 0, 0x3ff, 0x100, "the interrupt vectors" }, { 0, 0x400, 0x100, NULL },
		{ 0, 0x6100, 0x100, "the multiboot information" }, { 0, 0x20000, 0x100, "the command line" },
		{ 0, 0xf8000, 0x100, "the interrupt handlers" },
	};
	for (size_t k = 0; k < ARRAY_LEN(t); k++) {
		for (u32 flags = 0; flags <= (t[k].pvh ? 0 : 0x10000); flags += 0x10000) {
			if (t[k].pvh)
				make_elf32();
			else
				make_multiboot(flags);
			st32(file + 0x40 + 12, t[k].at);        /* p_paddr, p_memsz */
			st32(file + 0x40 + 20, t[k].size);
			if (flags) { /* header's and load address, load end, bss end */
				st32(file + 0x10c, t[k].at + 0x10);
				st32(file + 0x110, t[k].at);
				st32(file + 0x114, t[k].at + 0x20);
				st32(file + 0x118, t[k].at + t[k].size);
			}
			struct vm_config cfg = config(sizeof(file));
			if (t[k].word)
				rig_refuses(&cfg, t[k].word);
			else
				machine_free(rig_build(&cfg));
		}
	}
}

static void pvh_start_info(void **state)
{
	static char append[] = "a b";
	make_elf32();
	struct vm_config cfg = config(sizeof(file));
	cfg.append = append;
	cfg.initrd = rig_file(FILE_INITRD, "module!", 7);
	struct machine *m = rig_build(&cfg);
	u64 info = m->cpus[0].cpu->regs[R_BX];
	assert_int_equal(guest32(m, info), 0x336ec578);
	assert_int_equal(guest32(m, info + 12), 1);
	u64 mod = guest64(m, info + 16);
	assert_int_equal(guest64(m, mod + 8), 7);
	assert_int_equal(guest32(m, guest64(m, mod)), 0x75646f6d);
	assert_int_equal(guest32(m, guest64(m, info + 24)), 0x00622061);
	assert_int_equal(guest64(m, info + 32), 0xf0000);
	struct e820 map[16];
	assert_int_equal(guest32(m, info + 48), boot_e820(m, map, 16));
	assert_int_equal(guest64(m, guest64(m, info + 40) + 8), map[0].size);
	machine_free(m);
}

static void multiboot(void **state)
{
	static char format[] = "multiboot", append[] = "x=1";
	for (u32 flags = 0; flags <= 0x10000; flags += 0x10000) {
		make_multiboot(flags | 3);
		struct vm_config cfg = config(sizeof(file));
		assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x32));
		cfg.kernel.format = format;
		cfg.append = append;
		cfg.initrd = rig_file(FILE_INITRD, "module!", 7);
		struct machine *m = rig_build(&cfg);
		u64 info = m->cpus[0].cpu->regs[R_BX];
		assert_int_equal(m->cpus[0].cpu->regs[R_AX], 0x2badb002);
		assert_int_equal(guest32(m, info) & 0x4d, 0x4d);
		assert_int_equal(guest32(m, info + 4), 639);
		assert_int_equal(guest32(m, info + 20), 1);
		u64 mod = guest32(m, info + 24);
		assert_int_equal(guest32(m, mod + 4) - guest32(m, mod), 7);
		assert_int_equal(guest32(m, guest32(m, mod)), 0x75646f6d);
		char line[64];
		mem_read(&m->mem, guest32(m, info + 16), line, sizeof(line));
		assert_non_null(strstr(line, "-0 x=1")); /* the file's name comes first */
		assert_null(strchr(line, '/'));
		assert_int_equal(guest32(m, info + 44) % 24, 0);
		assert_int_equal(guest32(m, guest32(m, info + 48)), 20);
		machine_free(m);
	}
}

static void bss_is_zero_after_a_reset(void **state)
{
	make_multiboot(0x10000);
	struct vm_config cfg = config(sizeof(file));
	struct machine *m = rig_build(&cfg);
	u64 mark = ~0ull;
	struct error e;
	mem_write(&m->mem, LOAD + 0x3ff8, &mark, 8);
	mem_write(&m->mem, LOAD + 0x4000, &mark, 8);
	pc_reset(m);
	assert_true(boot_load(m, &e));
	assert_int_equal(guest64(m, LOAD + 0x3ff8), 0);
	assert_int_equal(guest64(m, LOAD + 0x4000), mark);
	machine_free(m);
}

static void malformed_elf(void **state)
{
	make_elf32();
	memset(file + 0x200, 0, 20);
	refuses("without a PVH entry note");
	make_elf32();
	st32(file + 0x200, 0xfffffff0);
	refuses("without a PVH entry note");
	make_elf32();
	st32(file + 0x204, 0xfffffff0);
	refuses("without a PVH entry note");
	make_elf32();
	st32(file + 0x40 + 4, 0xfffff000);    /* p_offset */
	refuses("outside the file");
	make_elf32();
	st32(file + 0x40 + 16, 0x8000);       /* p_filesz above p_memsz */
	refuses("malformed");
	make_elf32();
	st32(file + 0x40 + 20, 0);            /* the same: p_memsz 0 */
	refuses("malformed");
	make_elf32();
	st32(file + 0x40 + 20, 0x7fffffff);   /* p_memsz */
	refuses("-m");
	make_elf32();
	st32(file + 0x40 + 12, 0xe0000000);   /* p_paddr */
	refuses("not RAM");
	make_elf32();
	st32(file + 0x40, PT_NULL);
	refuses("nothing to load");
	make_elf32();
	st16(file + 0x2c, 0xffff);            /* e_phnum */
	refuses("malformed");
	make_elf32();
	st16(file + 0x12, EM_ARM);
	refuses("not an x86 ELF");
	make_elf32();
	for (size_t len = 1; len < CODE + 0x100; len += 13) {
		struct vm_config cfg = config(len);
		rig_refuses(&cfg, "--kernel");
	}
	make_elf64();
	st64(file + 0x40 + 24, 0xffffffffffffff80); /* p_paddr + p_memsz wraps */
	refuses("-m");
}

static void many_segments(void **state)
{
	/* 100 times the same large segment: not an hour of clearing memory. */
	make_elf32();
	st16(file + 0x2c, 30);
	for (unsigned k = 2; k < 30; k++)
		if (0x40 + k * 32 + 32 <= 0x200)
			memcpy(file + 0x40 + k * 32, file + 0x40, 32);
	for (unsigned k = 0; k < 14; k++)
		st32(file + 0x40 + k * 32 + 20, k == 1 ? 20 : 50 << 20);
	refuses("more bytes than -m");
}

static void malformed_multiboot(void **state)
{
	make_multiboot(0x10000);
	st32(file + 0x10c, LOAD - 1);
	refuses("contradict");
	make_multiboot(0x10000);
	st32(file + 0x10c, LOAD + 0x200);
	refuses("contradict");
	make_multiboot(0x10000);
	st32(file + 0x114, LOAD + 0x8000);
	refuses("cut off");
	make_multiboot(0x10000);
	st32(file + 0x114, LOAD - 0x8000);
	refuses("cut off");
	make_multiboot(0x10000);
	st32(file + 0x118, 0xfffff000);
	refuses("bss");
	make_multiboot(0x10000 | 0x8000);
	refuses("features");
	make_multiboot(0);
	memset(file, 0, 16);
	refuses("ELF");
	make_multiboot(0x10000);
	struct vm_config cfg = config(0x110);
	rig_refuses(&cfg, "cut off");
}

static void module_does_not_fit(void **state)
{
	static u8 big[3 << 20];
	make_multiboot(0x10000);
	struct vm_config cfg = config(sizeof(file));
	cfg.initrd = rig_file(FILE_INITRD, big, sizeof(big));
	cfg.mem_bytes = 4 << 20;
	rig_refuses(&cfg, "--initrd");
	cfg.mem_bytes = 2560 << 10;
	rig_refuses(&cfg, "--initrd");
	cfg.mem_bytes = 8 << 20;
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x32));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pvh), cmocka_unit_test(pvh_note_without_memory), cmocka_unit_test(places), cmocka_unit_test(pvh_start_info), cmocka_unit_test(multiboot),
		cmocka_unit_test(bss_is_zero_after_a_reset), cmocka_unit_test(malformed_elf), cmocka_unit_test(many_segments),
		cmocka_unit_test(malformed_multiboot), cmocka_unit_test(module_does_not_fit),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	rig_remove_files();
	return failed;
}
