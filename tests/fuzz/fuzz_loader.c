/* The boot loaders: any bytes as a kernel, any as its initrd or module, several sizes of memory.
 * Loaded or refused, never more; after a success the processor's state is entered as well.
 *
 * Input: u8 format (bits 0-2) and memory (3-4), u16 length of the initrd, u8 of the command line,
 * initrd, command line, kernel. */
#define LOG_TOPIC "fuzz"
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "machine/machine_impl.h"

static struct machine *machines[4];
static int initrd_fd, kernel_fd;
static char initrd_path[64], kernel_path[64];

/* As much of a machine as loaders look at; made once for each size. */
static struct machine *machine_of(unsigned which)
{
	static const u64 sizes[] = { 2ull << 20, 8ull << 20, (32ull << 20) + 4096, (3ull << 30) + (64 << 20) };
	struct machine *m = machines[which];
	struct error e;

	if (m)
		return m;
	m = calloc(1, sizeof(*m));
	if (!m || !mem_init(&m->mem, sizes[which], &e) || !clock_init(&m->clock, true, &e) ||
	    !cpu_model_parse(&m->model, "max", &m->clock, &e))
		abort();
	static struct cpu_hooks hooks;
	m->cpus[0].cpu = cpu_new(0, &m->mem, &m->clock, &m->model, &hooks);
	m->n_cpus = 1;
	if (!m->cpus[0].cpu)
		abort();
	return machines[which] = m;
}

static void set_file(int fd, const u8 *data, size_t len)
{
	if (ftruncate(fd, 0) || pwrite(fd, data, len, 0) != (ssize_t)len)
		abort();
}

static void load(struct machine *m, unsigned format, const struct blob *k)
{
	struct error e;
	bool ok = false;

	switch (format) {
	case 0: case 1: ok = boot_linux(m, k, &e); break;
	case 2: ok = boot_elf(m, k, &e); break;
	case 3: ok = boot_multiboot(m, k, &e); break;
	case 4: ok = boot_flat(m, k, &e); break;
	default: { /* by content, as most users do */
		if (k->size >= 0x206 && ld32(k->data + 0x202) == 0x53726448)
			ok = boot_linux(m, k, &e);
		else
			ok = boot_multiboot(m, k, &e) || boot_elf(m, k, &e);
	} }
	if (ok) {
		cpu_reset(m->cpus[0].cpu, false);
		m->enter(m, m->cpus[0].cpu);
	} else if (!memchr(e.msg, 0, sizeof(e.msg)) || strncmp(e.msg, "--", 2) != 0) {
		bug("an error that names no option: %.100s", e.msg); /* each must tell the user what to change */
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static char *formats[] = { "linux", "linux32", "pvh", "multiboot", "flat", NULL, NULL, NULL };
	struct input in = { data, size };

	if (!kernel_path[0]) {
		initrd_fd = memfd_create("initrd", 0);
		kernel_fd = memfd_create("kernel", 0);
		snprintf(initrd_path, sizeof(initrd_path), "/proc/self/fd/%d", initrd_fd);
		snprintf(kernel_path, sizeof(kernel_path), "/proc/self/fd/%d", kernel_fd);
	}
	unsigned pick = (unsigned)take(&in, 1), format = pick & 7;
	size_t rd = take_length(&in, 2);
	struct machine *m = machine_of(pick >> 3 & 3);
	struct vm_config cfg = { .mem_bytes = m->mem.ram_size, .cpus = 1 };
	cfg.kernel.path = kernel_path;
	cfg.kernel.format = formats[format];
	set_file(initrd_fd, in.p, rd);
	cfg.initrd = pick & 0x20 ? initrd_path : NULL;
	in.p += rd;
	in.left -= rd;
	char line[256] = "";
	size_t n = take_length(&in, 1);
	memcpy(line, in.p, n);
	cfg.append = pick & 0x40 ? line : NULL;
	in.p += n;
	in.left -= n;
	cfg.kernel.mode = format == 4 ? (const u64[]){ 16, 32, 64, 0 }[pick >> 5 & 3] : 0;
	/* A copy of its own size, so that ASan sees a byte too much. */
	struct blob k = { malloc(in.left + !in.left), in.left };
	memcpy(k.data, in.p, in.left);
	m->cfg = &cfg;
	load(m, format, &k);
	free(k.data);
	return 0;
}
