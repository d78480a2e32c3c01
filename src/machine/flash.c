/* UEFI's flash: OVMF's code as a ROM that ends at 4 GiB, and below it its variables as flash (pflash.c)
 * whose bytes are a file of the user's, made from OVMF's template where it is not there; without one
 * they are forgotten at the end.
 *
 * The file is mapped shared: what the guest has written is in it at once, also when ring3 is
 * killed; machine_free makes it durable. It is locked against a second machine. */
#define LOG_TOPIC "boot"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/machine_impl.h"

#define VARS_MAX (16ull << 20)

/* Code and the variables that it starts from, which belong together. */
static const struct { const char *code, *vars; } builds[] = {
	{ "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd" },
	{ "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd" },
	{ "/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd" },
};

/* A new file with these bytes, whole or not at all. */
static bool make_file(const char *path, const struct blob *b, struct error *e)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	bool ok = fd >= 0;

	for (u64 done = 0; ok && done < b->size;) {
		ssize_t n = write(fd, b->data + done, b->size - done);
		ok = n > 0 || (n < 0 && errno == EINTR);
		done += n > 0 ? (u64)n : 0;
	}
	ok = ok && fsync(fd) == 0;
	if (!ok) {
		error_set(e, "--firmware vars=%s: %s", path, strerror(errno));
		if (fd >= 0)
			unlink(path);
	}
	if (fd >= 0)
		close(fd);
	return ok;
}

static bool map_file(struct machine *m, const char *path, u64 size, struct error *e)
{
	struct stat st;
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY);

	if (fd < 0)
		return error_set(e, "--firmware vars=%s: %s", path, strerror(errno));
	m->flash_fd = fd; /* holds the lock */
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || (u64)st.st_size != size)
		return error_set(e, "--firmware vars=%s: not a variable store of this firmware, which has %llu bytes", path, (unsigned long long)size);
	if (flock(fd, LOCK_EX | LOCK_NB))
		return error_set(e, "--firmware vars=%s: another machine uses it", path);
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return error_set(e, "--firmware vars=%s: %s", path, strerror(errno));
	m->flash = (struct blob){ p, size };
	return true;
}

static bool map_copy(struct machine *m, const struct blob *b, struct error *e)
{
	void *p = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return error_set(e, "--firmware: out of memory for its variables");
	memcpy(p, b->data, b->size);
	m->flash = (struct blob){ p, b->size };
	log_info("--firmware uefi without vars=FILE: its variables are forgotten at the end");
	return true;
}

static bool map_vars(struct machine *m, const struct blob *template, struct error *e)
{
	const char *path = m->cfg->firmware.vars;

	if (!path || m->cfg->dry_run)
		return map_copy(m, template, e);
	if (access(path, F_OK) && !make_file(path, template, e))
		return false;
	return map_file(m, path, template->size, e);
}

const char *flash_code_path(void)
{
	for (size_t k = 0; k < ARRAY_LEN(builds); k++)
		if (!access(builds[k].code, R_OK) && !access(builds[k].vars, R_OK))
			return builds[k].code;
	return NULL;
}

bool flash_open(struct machine *m, const char *code, struct error *e)
{
	const char *vars = builds[0].vars;
	struct blob template;

	for (size_t k = 0; k < ARRAY_LEN(builds); k++)
		if (!strcmp(builds[k].code, code))
			vars = builds[k].vars;
	if (!blob_read(&template, "--firmware uefi", vars, VARS_MAX, e))
		return false;
	bool ok = template.size & PAGE_MASK ? error_set(e, "--firmware uefi: %s: not a multiple of 4 KiB", vars) : map_vars(m, &template, e);
	blob_free(&template);
	struct device *d;
	if (!ok || !pc_add_device(m, &pflash_class, &d, e))
		return false;
	pflash_attach(d, MEM_4G - m->firmware.size - m->flash.size, m->flash.data, m->flash.size);
	return true;
}

void flash_close(struct machine *m)
{
	if (m->flash.data) {
		if (m->flash_fd >= 0 && msync(m->flash.data, m->flash.size, MS_SYNC))
			log_error("--firmware vars=%s: %s", m->cfg->firmware.vars, strerror(errno));
		munmap(m->flash.data, m->flash.size);
	}
	if (m->flash_fd >= 0)
		close(m->flash_fd);
}
