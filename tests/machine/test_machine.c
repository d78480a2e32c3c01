/* A machine as a whole: flat programs in each mode, the memory map, ACPI tables, ends and resets,
 * several in a process, state hashes. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "machine_rig.h"

static char flat[] = "flat";

static struct vm_config flat_config(const u8 *code, size_t len, u64 mode)
{
	struct vm_config cfg = rig_config();
	cfg.kernel.path = rig_file(FILE_KERNEL, code, len);
	cfg.kernel.format = flat;
	cfg.kernel.mode = mode;
	return cfg;
}

/* ---- flat programs ----------------------------------------------------------------------------- */

static void flat_modes(void **state)
{
	/* mov eax, cr0; and al, 1 (PE); add al, 0x40; out 0xf4, al; in 16-bit code and the same in the others */
	static const u8 real[] = { 0x0f, 0x20, 0xc0, 0x24, 0x01, 0x04, 0x40, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd };
	/* push 0x21 leaves 4 or 8 bytes: mov ecx, esp; push 0; sub ecx, esp; mov al, cl */
	static const u8 width[] = { 0x89, 0xe1, 0x6a, 0x00, 0x29, 0xe1, 0x88, 0xc8, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd };
	struct vm_config cfg = flat_config(real, sizeof(real), 16);
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x40));
	cfg = flat_config(real, sizeof(real), 32);
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x41));
	cfg = flat_config(real, sizeof(real), 64);
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x41));
	cfg = flat_config(width, sizeof(width), 32);
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(4));
	cfg = flat_config(width, sizeof(width), 64);
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(8));
}

static void flat_places(void **state)
{
	static const u8 code[] = { 0x90, 0x90, EXIT_CODE(9) };
	static const u64 real[] = { 0x7c00, 0x1000, 0xfffd, 0x12345, 0x9fff0, 0x100000, 0x10ff00 };
	for (size_t k = 0; k < ARRAY_LEN(real); k++) {
		struct vm_config cfg = flat_config(code, sizeof(code), 16);
		cfg.kernel.addr = real[k];
		cfg.kernel.addr_set = true;
		struct machine *m = rig_build(&cfg);
		struct cpu *c = m->cpus[0].cpu;
		assert_int_equal(c->seg[S_CS].base + c->rip, real[k]);
		assert_true(c->rip <= 0xffff);
		machine_free(m);
		if (real[k] != 0xfffd) /* its code would run over the segment's end */
			assert_int_equal(rig_run(&cfg), EXIT_STATUS(9));
	}
	struct vm_config cfg = flat_config(code, sizeof(code), 16);
	cfg.kernel.entry = 0x10fff0;
	cfg.kernel.entry_set = true;
	rig_refuses(&cfg, "real mode reaches");
	cfg = flat_config(code, sizeof(code), 64);
	cfg.kernel.entry = 0x100002;
	cfg.kernel.entry_set = true;
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(9));
	static char cpu[] = "max,-lm";
	cfg.cpu = cpu;
	rig_refuses(&cfg, "no long mode");
	cfg = flat_config(code, sizeof(code), 17);
	rig_refuses(&cfg, "16, 32 or 64");
}

static void firmware(void **state)
{
	static u8 rom[65536];
	static const u8 code[] = { EXIT_CODE(0x17) };
	memset(rom, 0xff, sizeof(rom));
	memcpy(rom + 0xfff0, code, sizeof(code));
	struct vm_config cfg = rig_config();
	cfg.firmware.path = rig_file(FILE_OTHER, rom, sizeof(rom));
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x17));
	rig_file(FILE_OTHER, rom, 65535);
	rig_refuses(&cfg, "multiple of 4 KiB");
}

static void set_pam(struct machine *m, unsigned reg, u8 val)
{
	mem_port_write(&m->mem, 0xcf8, 0x80000000 | (reg & ~3u), 4);
	mem_port_write(&m->mem, (u16)(0xcfc + (reg & 3)), val, 1);
}

/* Each area: ROM or nothing; RAM to read; to write; both. */
static void pam(void **state)
{
	static u8 rom[0x20000];
	static const struct { u32 base, end, rom; u8 reg, shift; } t[] = {
		{ 0xf0000, 0x100000, 0x10000, 0x59, 4 }, { 0xc0000, 0xc4000, 0, 0x5a, 0 }, { 0xc4000, 0xc8000, 0, 0x5a, 4 },
		{ 0xdc000, 0xe0000, 0, 0x5d, 4 }, { 0xe0000, 0xe4000, 1, 0x5e, 0 }, { 0xec000, 0xf0000, 0xc000, 0x5f, 4 },
	};
	for (size_t k = 0; k < sizeof(rom); k++)
		rom[k] = (u8)(k >> 8 ^ k);
	struct vm_config cfg = rig_config();
	cfg.firmware.path = rig_file(FILE_OTHER, rom, sizeof(rom));
	struct machine *m = rig_build(&cfg);
	struct mem *mem = &m->mem;
	for (size_t k = 0; k < ARRAY_LEN(t); k++) {
		u64 at = t[k].rom ? ld64(rom + (t[k].rom & ~1u)) : ~0ull, first = t[k].base, last = t[k].end - 8;
		memset(mem->ram + first, 0, t[k].end - first);
		assert_int_equal(mem_phys_read(mem, first, 8), at);
		mem_phys_write(mem, first, 1, 8);
		assert_int_equal(ld64(mem->ram + first), 0);
		set_pam(m, t[k].reg, (u8)(2 << t[k].shift));
		mem_phys_write(mem, first, 2, 8);
		mem_phys_write(mem, last, 0x0102030405060708, 8);
		assert_int_equal(mem_phys_read(mem, first, 8), at);
		set_pam(m, t[k].reg, (u8)(1 << t[k].shift));
		assert_int_equal(mem_phys_read(mem, first, 8), 2);
		assert_int_equal(mem_phys_read(mem, last, 8), 0x0102030405060708);
		mem_phys_write(mem, first, 3, 8);
		assert_int_equal(mem_phys_read(mem, first, 8), 2);
		set_pam(m, t[k].reg, (u8)(3 << t[k].shift));
		mem_phys_write(mem, first, 3, 8);
		assert_int_equal(mem_phys_read(mem, first, 8), 3);
		assert_non_null(mem_ram(mem, last));
		if (last + 8 < MEM_1M) /* the next one is as it was */
			assert_null(mem_ram(mem, last + 8));
		struct error e;
		pc_reset(m);
		assert_true(boot_load(m, &e));
		assert_int_equal(mem_phys_read(mem, first, 8), at);
		assert_int_equal(ld64(mem->ram + first), 3);
	}
	machine_free(m);
}

/* Firmware that copies itself into the RAM behind it and changes an instruction there. */
static void firmware_in_shadow_ram(void **state)
{
	static u8 rom[65536];
	static const u8 code[] = {
		0x66, 0xb8, 0x58, 0x00, 0x00, 0x80, 0xba, 0xf8, 0x0c, 0x66, 0xef, /* CONFIG_ADDRESS: 58h of 00:00.0 */
		0xba, 0xfd, 0x0c, 0xb0, 0x20, 0xee,                               /* PAM0: write RAM, read ROM */
		0xb8, 0x00, 0xf0, 0x8e, 0xd8, 0x8e, 0xc0,                         /* DS = ES = F000 */
		0x31, 0xf6, 0x31, 0xff, 0xb9, 0x00, 0x80, 0xfc, 0xf3, 0xa5,       /* all of it onto itself */
		0xb0, 0x30, 0xee,                                                 /* PAM0: RAM */
		0xc6, 0x06, 43, 0x00, 0x22,                                       /* the code that follows becomes 22h */
		EXIT_CODE(0x11),
	};
	static const u8 reset[] = { 0xea, 0x00, 0x00, 0x00, 0xf0 };
	memcpy(rom, code, sizeof(code));
	memcpy(rom + 0xfff0, reset, sizeof(reset));
	assert_int_equal(rom[43], 0x11);
	struct vm_config cfg = rig_config();
	cfg.firmware.path = rig_file(FILE_OTHER, rom, sizeof(rom));
	assert_int_equal(rig_run(&cfg), EXIT_STATUS(0x22));
}

/* ---- tables -------------------------------------------------------------------------------------- */

static const u8 stop[] = { EXIT_CODE(0) };

static void memory_map(void **state)
{
	static const u64 sizes[] = { 2ull << 20, 3 << 20, (64 << 20) + 4096, 512ull << 20, 3ull << 30, (3ull << 30) + 4096, 4ull << 30, 9ull << 30 };
	for (size_t s = 0; s < ARRAY_LEN(sizes); s++) {
		struct vm_config cfg = flat_config(stop, sizeof(stop), 16);
		cfg.mem_bytes = sizes[s];
		struct machine *m = rig_build(&cfg);
		struct e820 map[16];
		int n = boot_e820(m, map, 16);
		u64 end = 0, ram = 0;
		for (int k = 0; k < n; k++) {
			assert_true(map[k].base >= end && map[k].size > 0);
			end = map[k].base + map[k].size;
			if (map[k].type == 1 || map[k].type == 3) {
				ram += map[k].size;
				assert_non_null(mem_ram(&m->mem, map[k].base));
				assert_non_null(mem_ram(&m->mem, end - 1));
			}
		}
		/* All but what lies between 639 KiB and 1 MiB. */
		assert_int_equal(ram, sizes[s] - 0x100000 + 0x9fc00);
		machine_free(m);
	}
}

static u8 byte_sum(struct machine *m, u64 gpa, u32 len)
{
	u8 sum = 0, b;
	for (u32 k = 0; k < len; k++) {
		assert_true(mem_read(&m->mem, gpa + k, &b, 1));
		sum = (u8)(sum + b);
	}
	return sum;
}

/* Writes a table to a file and has it disassembled, where there is iasl. */
static void disassemble(struct machine *m, u64 gpa, u32 len, const char *sig)
{
	static u8 table[65536];
	assert_true(len <= sizeof(table));
	mem_read(&m->mem, gpa, table, len);
	char *path = rig_file(FILE_OTHER, table, len), command[300], dsl[80], text[100000];
	snprintf(dsl, sizeof(dsl), "%s.dsl", path);
	snprintf(command, sizeof(command), "iasl -d -p %s %s >/dev/null 2>&1", path, path);
	assert_int_equal(system(command), 0);
	FILE *f = fopen(dsl, "r");
	assert_non_null(f);
	text[fread(text, 1, sizeof(text) - 1, f)] = 0;
	fclose(f);
	unlink(dsl);
	if (!strstr(text, sig) || strstr(text, "Invalid") || strstr(text, "should be"))
		fail_msg("iasl does not like %s:\n%.3000s", sig, text);
}

static void acpi_tables(void **state)
{
	bool iasl = system("command -v iasl >/dev/null") == 0;
	struct vm_config cfg = flat_config(stop, sizeof(stop), 16);
	cfg.cpus = 3;
	cfg.icount = false;
	struct machine *m = rig_build(&cfg);
	u64 rsdp = 0xf0000;
	assert_int_equal(guest64(m, rsdp), 0x2052545020445352ull);
	assert_int_equal(byte_sum(m, rsdp, 20), 0);
	assert_int_equal(byte_sum(m, rsdp, 36), 0);
	u64 xsdt = guest64(m, rsdp + 24);
	u32 rsdt = guest32(m, rsdp + 16), len = guest32(m, xsdt + 4);
	assert_int_equal(byte_sum(m, xsdt, len), 0);
	assert_int_equal(byte_sum(m, rsdt, guest32(m, rsdt + 4)), 0);
	assert_int_equal((len - 36) / 8, (guest32(m, rsdt + 4) - 36) / 4);
	unsigned cpus = 0;
	bool dsdt_seen = false;
	for (u32 k = 36; k < len; k += 8) {
		u64 t = guest64(m, xsdt + k);
		u32 sig = guest32(m, t), size = guest32(m, t + 4);
		char name[5] = { 0 };
		memcpy(name, &sig, 4);
		assert_int_equal(byte_sum(m, t, size), 0);
		assert_true(t >= boot_acpi_base(m) && t + size <= m->mem.low_size);
		if (iasl)
			disassemble(m, t, size, name);
		for (u32 at = 44; !strcmp(name, "APIC") && at < size; at += guest32(m, t + at) >> 8 & 0xff)
			cpus += (u8)guest32(m, t + at) == 0;
		if (!strcmp(name, "FACP")) {
			u64 dsdt = guest32(m, t + 40);
			assert_int_equal(byte_sum(m, dsdt, guest32(m, dsdt + 4)), 0);
			assert_int_equal(guest32(m, guest32(m, t + 36)), 0x53434146); /* FACS; both by two pointers that agree */
			assert_int_equal(guest32(m, t + 132), guest32(m, t + 36));
			assert_int_equal(guest32(m, t + 140), dsdt);
			assert_int_equal(guest32(m, t + 136) | guest32(m, t + 144), 0);
			dsdt_seen = guest32(m, dsdt) == 0x54445344;
			if (iasl)
				disassemble(m, dsdt, guest32(m, dsdt + 4), "DSDT");
		}
	}
	assert_int_equal(cpus, 3);
	assert_true(dsdt_seen);
	machine_free(m);
}

/* ---- ends ------------------------------------------------------------------------------------------ */

static void ends(void **state)
{
	static const u8 triple[] = { 0x0f, 0x01, 0x1e, 0x04, 0x00, 0xfa, 0xcc };                 /* lidt [4]; cli; int3 */
	static const u8 power[] = { 0xb8, 0x00, 0x34, 0xba, 0x04, 0x06, 0xef, 0xf4, 0xeb, 0xfd }; /* 0x604: SLP_EN, S5 */
	static const u8 cf9[] = { 0xb0, 0x06, 0xba, 0xf9, 0x0c, 0xee, 0xf4, 0xeb, 0xfd };
	static const u8 spin[] = { 0xfa, 0xeb, 0xfe };
	struct vm_config cfg = flat_config(triple, sizeof(triple), 16);
	(void)log_configure("error", "/dev/null", &(struct error){ 0 });
	assert_int_equal(rig_run(&cfg), 66);
	cfg.triple_fault_reset = cfg.no_reboot = true;
	assert_int_equal(rig_run(&cfg), 0);
	cfg = flat_config(power, sizeof(power), 16);
	assert_int_equal(rig_run(&cfg), 0);
	cfg = flat_config(cf9, sizeof(cf9), 16);
	cfg.no_reboot = true;
	assert_int_equal(rig_run(&cfg), 0);
	cfg = flat_config(spin, sizeof(spin), 16);
	cfg.max_insns = 12345;
	struct machine *m = rig_build(&cfg);
	int status;
	assert_int_equal(machine_run(m, &status), END_LIMIT);
	assert_int_equal(status, 68);
	assert_int_equal(m->cpus[0].cpu->icount, 12345);
	machine_free(m);
}

/* Counts to 200 over as many resets, in memory that a reset keeps, then ends. */
static void many_resets(void **state)
{
	/* inc byte [0x6000]; cmp byte [0x6000], 200; je end; mov al, 0xfe; out 0x64, al; hlt; jmp $-1; end: */
	static const u8 code[] = { 0xfe, 0x06, 0x00, 0x60, 0x80, 0x3e, 0x00, 0x60, 200, 0x74, 0x07, 0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd,
				   EXIT_CODE(3) };
	for (u64 cpus = 1; cpus <= 3; cpus++) {
		struct vm_config cfg = flat_config(code, sizeof(code), 16);
		cfg.cpus = cpus;
		cfg.icount = cpus == 1;
		assert_int_equal(rig_run(&cfg), EXIT_STATUS(3));
	}
}

/* The file is the one that was opened, whatever becomes of its name; but it may become empty. */
static void kernel_gone_at_reset(void **state)
{
	static const u8 cf9[] = { 0xb0, 0x06, 0xba, 0xf9, 0x0c, 0xee, 0xf4, 0xeb, 0xfd };
	struct vm_config cfg = flat_config(cf9, sizeof(cf9), 16);
	struct machine *m = rig_build(&cfg);
	int status;
	(void)log_configure("error", "/dev/null", &(struct error){ 0 });
	assert_int_equal(truncate(cfg.kernel.path, 0), 0);
	unlink(cfg.kernel.path);
	assert_int_equal(machine_run(m, &status), END_ERROR);
	assert_int_equal(status, 70);
	machine_free(m);
}

static void *quit_soon(void *arg)
{
	usleep(20000);
	machine_quit(arg);
	return NULL;
}

/* Each kind of guest ends when asked to, from another thread. */
static void quit(void **state)
{
	static const u8 spin[] = { 0xfa, 0xeb, 0xfe }, halt[] = { 0xfa, 0xf4, 0xeb, 0xfd }, idle[] = { 0xfb, 0xf4, 0xeb, 0xfd };
	static const u8 rep[] = { 0xfc, 0xb9, 0xff, 0xff, 0xf3, 0xaa, 0xeb, 0xf8 }, port[] = { 0xe4, 0x64, 0xeb, 0xfc };
	/* UD2 with a handler of its own at the same place: faults for ever */
	static const u8 faults[] = { 0xc7, 0x06, 0x18, 0x00, 0x0c, 0x7c, 0xc7, 0x06, 0x1a, 0x00, 0x00, 0x00, 0xbc, 0x00, 0x70, 0x0f, 0x0b };
	static const struct { const u8 *code; size_t len; } guests[] = {
		{ spin, sizeof(spin) }, { halt, sizeof(halt) }, { idle, sizeof(idle) }, { rep, sizeof(rep) }, { port, sizeof(port) },
		{ faults, sizeof(faults) },
	};
	for (size_t k = 0; k < ARRAY_LEN(guests); k++)
		for (u64 cpus = 0; cpus < 3; cpus++) { /* 0: one, with deterministic time */
			struct vm_config cfg = flat_config(guests[k].code, guests[k].len, 16);
			cfg.cpus = MAX(cpus, 1);
			cfg.icount = !cpus;
			struct machine *m = rig_build(&cfg);
			pthread_t t;
			int status;
			pthread_create(&t, NULL, quit_soon, m);
			assert_int_equal(machine_run(m, &status), END_USER);
			assert_int_equal(status, 67);
			pthread_join(t, NULL);
			machine_free(m);
		}
}

/* ---- several, and the same twice ----------------------------------------------------------------------- */

static void *run_one(void *arg)
{
	int status;
	machine_run(arg, &status);
	return (void *)(intptr_t)status;
}

static void two_at_once(void **state)
{
	static const u8 code[] = { 0xb9, 0xff, 0xff, 0xe2, 0xfe, EXIT_CODE(5) };
	struct vm_config a = flat_config(code, sizeof(code), 16), b = a;
	struct machine *ma = rig_build(&a), *mb = rig_build(&b);
	pthread_t ta, tb;
	void *sa, *sb;
	pthread_create(&ta, NULL, run_one, ma);
	pthread_create(&tb, NULL, run_one, mb);
	pthread_join(ta, &sa);
	pthread_join(tb, &sb);
	assert_int_equal((intptr_t)sa, EXIT_STATUS(5));
	assert_int_equal((intptr_t)sb, EXIT_STATUS(5));
	machine_free(ma);
	machine_free(mb);
}

/* vram: a byte of the display's memory, which no instruction looks at. */
static size_t hashes_with(u64 every, u8 vram, char *text, size_t cap)
{
	/* The 8254 interrupts while a loop adds up the time stamp counter: any other order would show. */
	static const u8 code[] = {
		0xc7, 0x06, 0x20, 0x00, 0x30, 0x7c, 0xc7, 0x06, 0x22, 0x00, 0x00, 0x00,             /* vector 8: 0x7c30 */
		0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x08, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21, 0xb0, 0xfe, 0xe6, 0x21,
		0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x20, 0xe6, 0x40, 0xb0, 0x00, 0xe6, 0x40,             /* every 27 us */
		0xfb, 0xeb, 0x0a, 0x90,
		0xff, 0x06, 0x00, 0x60, 0xb0, 0x20, 0xe6, 0x20, 0xcf, 0x90,                         /* 0x7c30: inc; EOI; iret */
		0x0f, 0x31, 0x01, 0xc3, 0xeb, 0xfa,                                                 /* rdtsc; add bx, ax; jmp */
	};
	static char path[] = "/tmp/ring3-test-hashes-XXXXXX", standard[] = "std";
	struct vm_config cfg = flat_config(code, sizeof(code), 16);
	int fd = mkstemp(strcpy(path, "/tmp/ring3-test-hashes-XXXXXX"));
	assert_true(fd >= 0);
	cfg.hash_file = path;
	cfg.hash_every = every;
	cfg.max_insns = 200000;
	cfg.vga = standard;
	struct machine *m = rig_build(&cfg);
	int status;
	m->mem.ram[m->mem.ram_size + 12345] = vram;
	machine_run(m, &status);
	assert_int_equal(status, 68);
	machine_free(m);
	ssize_t n = read(fd, text, cap - 1);
	close(fd);
	unlink(path);
	assert_true(n > 0);
	text[n] = 0;
	return (size_t)n;
}

static size_t hashes(u64 every, char *text, size_t cap) { return hashes_with(every, 0, text, cap); }

static void hashes_see_the_display(void **state)
{
	static char a[1 << 20], b[1 << 20];
	assert_int_equal(hashes_with(50000, 1, a, sizeof(a)), hashes_with(50000, 2, b, sizeof(b)));
	char *mem_a = strstr(a, "mem="), *mem_b = strstr(b, "mem=");
	assert_non_null(mem_a);
	assert_memory_not_equal(mem_a, mem_b, strlen("mem=") + 16);
	assert_memory_equal(a, b, (size_t)(mem_a - a));
}

static void deterministic(void **state)
{
	static char a[1 << 20], b[1 << 20];
	size_t n = hashes(1000, a, sizeof(a));
	assert_int_equal(hashes(1000, b, sizeof(b)), n);
	assert_string_equal(a, b);
	assert_non_null(strstr(a, "mem="));
	/* Finer checkpoints do not change the run: each line of the coarse one is in the fine one, but for mem=. */
	n = hashes(500, b, sizeof(b));
	char *line = strstr(a, "\n100000 "), *fine = strstr(b, "\n100000 ");
	assert_non_null(line);
	assert_non_null(fine);
	assert_memory_equal(line, fine, strcspn(line + 1, "m") - 1);
	assert_memory_equal(strstr(line, "rip="), strstr(fine, "rip="), strcspn(strstr(line, "rip="), "\n"));
}

/* ---- what cannot be built ------------------------------------------------------------------------------- */

static void refused(void **state)
{
	static char none[] = "none", bad[] = "nosuch", missing[] = "/nonexistent/file", file[] = "file";
	struct vm_config cfg = flat_config(stop, sizeof(stop), 16);
	const struct vm_config good = cfg;
	cfg.cpus = 0;
	rig_refuses(&cfg, "between 1 and");
	cfg.cpus = MAX_CPUS + 1;
	rig_refuses(&cfg, "between 1 and");
	cfg.cpus = 2;
	rig_refuses(&cfg, "--icount");
	cfg = good;
	cfg.engine = bad;
	rig_refuses(&cfg, "no such engine");
	cfg = good;
	cfg.cpu = bad;
	rig_refuses(&cfg, "nosuch");
	cfg = good;
	cfg.mem_bytes = 12345;
	rig_refuses(&cfg, "at least 1M");
	cfg = good;
	cfg.debugcon = missing;
	rig_refuses(&cfg, "--debugcon");
	cfg = good;
	cfg.kernel.path = missing;
	rig_refuses(&cfg, "No such file");
	cfg = good;
	cfg.initrd = NULL;
	cfg.serial[0].kind = bad;
	rig_refuses(&cfg, "--serial");
	cfg.serial[0].kind = none;
	cfg.serial[1].kind = file;
	cfg.serial[1].path = missing;
	cfg.n_serial = 2;
	rig_refuses(&cfg, "cannot be written");
	cfg = good;
	cfg.post_port = 0x10000;
	rig_refuses(&cfg, "--post-port");
}

/* Reads file `name` of fw_cfg, at most cap bytes; its size, 0: there is none. */
static u32 fw_file(struct machine *m, const char *name, u8 *to, u32 cap)
{
	u8 entry[64], number[4];
	u32 size = 0, n;

	mem_port_write(&m->mem, 0x510, 0x19, 2);
	for (int k = 0; k < 4; k++)
		number[k] = (u8)mem_port_read(&m->mem, 0x511, 1);
	n = __builtin_bswap32(ld32(number));
	for (u32 f = 0; f < n && !size; f++) {
		for (unsigned k = 0; k < sizeof(entry); k++)
			entry[k] = (u8)mem_port_read(&m->mem, 0x511, 1);
		if (!strcmp((char *)entry + 8, name))
			size = __builtin_bswap32(ld32(entry));
	}
	if (size)
		mem_port_write(&m->mem, 0x510, __builtin_bswap16(ld16(entry + 4)), 2);
	for (u32 k = 0; k < MIN(size, cap); k++)
		to[k] = (u8)mem_port_read(&m->mem, 0x511, 1);
	return size;
}

/* As many devices as there is room for, in an order that names their kind three times. */
static void boot_order_names_each_once(void **state)
{
	static u8 rom[0x20000], text[4096];
	struct vm_config cfg = rig_config();

	cfg.firmware.path = rig_file(FILE_KERNEL, rom, sizeof(rom));
	cfg.boot.order = "ccc";
	cfg.dry_run = true;
	for (cfg.n_disks = 0; cfg.n_disks < MAX_DISKS; cfg.n_disks++)
		cfg.disk[cfg.n_disks].image.file = "none";
	struct machine *m = rig_build(&cfg);
	u32 size = fw_file(m, "bootorder", text, sizeof(text) - 1), lines = 0;
	assert_in_range(size, 1, sizeof(text) - 1);
	for (u32 k = 0; k < size; k++)
		lines += text[k] == '\n' || !text[k];
	assert_int_equal(lines, MAX_DISKS);
	machine_free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(flat_modes), cmocka_unit_test(flat_places), cmocka_unit_test(firmware), cmocka_unit_test(pam), cmocka_unit_test(firmware_in_shadow_ram), cmocka_unit_test(memory_map),
		cmocka_unit_test(acpi_tables), cmocka_unit_test(ends), cmocka_unit_test(many_resets), cmocka_unit_test(kernel_gone_at_reset), cmocka_unit_test(boot_order_names_each_once),
		cmocka_unit_test(quit), cmocka_unit_test(two_at_once), cmocka_unit_test(deterministic), cmocka_unit_test(hashes_see_the_display), cmocka_unit_test(refused),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	rig_remove_files();
	return failed;
}
