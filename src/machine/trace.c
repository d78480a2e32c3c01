/* State hashes: one line per checkpoint, "icount cpu=... mem=... rip=... rflags=... rax=..." ,
 * so that two runs (two engines, two builds) can be compared and the first instruction at which
 * they part be found (ring3 diff). Needs deterministic time (--icount).
 *
 * The memory hash is a sum over pages of hash(page, address), a page of zeros counting 0, so
 * that touched and untouched pages of the same content are the same; pages that the host does
 * not hold are skipped. The memory of devices counts as RAM. Below MEM_EVERY instructions between checkpoints it is left out: the
 * registers name the instruction, the coarser run has named the interval. */
#define LOG_TOPIC "trace"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/nested_api.h"
#include "machine/machine_impl.h"

#define MEM_EVERY 1000u

static u64 mix(u64 h, u64 v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15ull;
	return h ^ h >> 29;
}

static u64 hash_bytes(const void *data, size_t len, u64 seed)
{
	const u8 *p = data;
	u64 h = seed;
	for (; len >= 8; p += 8, len -= 8)
		h = mix(h, ld64(p));
	while (len--)
		h = mix(h, *p++);
	return h;
}

static u64 hash_cpu(const struct cpu *c)
{
	u64 h = hash_bytes(c->regs, 16 * 8, 1);
	h = mix(mix(h, c->rip), c->rflags);
	for (unsigned s = 0; s < N_SREGS; s++)
		h = mix(mix(mix(h, c->seg[s].sel | (u64)c->seg[s].attr << 16), c->seg[s].base), c->seg[s].limit);
	const u64 rest[] = { c->cr0, c->cr2, c->cr3, c->cr4, c->efer, c->xcr0, c->dr[6], c->dr[7], c->gdtr.base, c->idtr.base,
			     c->msr.star, c->msr.lstar, c->msr.kernel_gs_base, c->cpl, c->activity, c->pkru, c->msr.pkrs };
	u64 nested[NESTED_STATE_MAX];
	h = hash_bytes(rest, sizeof(rest), h);
	h = hash_bytes(nested, nested_state(c, nested) * sizeof(*nested), h);
	h = hash_bytes(c->zmm, sizeof(c->zmm), h);
	h = hash_bytes(c->k, sizeof(c->k), h);
	/* FCW, FSW, FTW, MXCSR, ST0-7: what fpu_save left; not the host's instruction pointers. */
	h = hash_bytes(c->fxarea, 5, h);
	h = mix(h, ld32(c->fxarea + 24));
	return hash_bytes(c->fxarea + 32, 128, h);
}

static u64 hash_ram(const struct mem *m)
{
	static const u8 zeros[PAGE_SIZE];
	u64 size = m->ram_size + m->device_used, pages = size / PAGE_SIZE, total = 0;
	u8 *present = malloc(pages);
	if (!present || mincore(m->ram, size, present))
		memset(present, 1, present ? pages : 0);
	for (u64 k = 0; present && k < pages; k++) {
		const u8 *p = m->ram + k * PAGE_SIZE;
		if ((present[k] & 1) && memcmp(p, zeros, PAGE_SIZE))
			total += hash_bytes(p, PAGE_SIZE, k + 1);
	}
	free(present);
	return total;
}

static void write_line(struct machine *m, const struct cpu *c)
{
	FILE *f = m->hash_out;
	fprintf(f, "%llu cpu=%016llx", (unsigned long long)c->icount, (unsigned long long)hash_cpu(c));
	if (m->cfg->hash_every >= MEM_EVERY)
		fprintf(f, " mem=%016llx", (unsigned long long)hash_ram(&m->mem));
	static const char *const names[] = { "ax", "cx", "dx", "bx", "sp", "bp", "si", "di", "8", "9", "10", "11", "12", "13", "14", "15" };
	fprintf(f, " cs=%04x rip=%llx rflags=%llx", c->seg[S_CS].sel, (unsigned long long)c->rip, (unsigned long long)c->rflags);
	for (unsigned r = 0; r < 16; r++)
		fprintf(f, " r%s=%llx", names[r], (unsigned long long)c->regs[r]);
	fputc('\n', f);
}

/* On the vCPU's thread, between two instructions; returns the next count to stop at. */
static u64 checkpoint(void *arg, struct cpu *c)
{
	struct machine *m = arg;
	const struct vm_config *f = m->cfg;
	if (f->max_insns && c->icount >= f->max_insns) {
		machine_want_end(m, END_LIMIT, "--max-insns was reached");
		return UINT64_MAX;
	}
	u64 next = f->max_insns ? f->max_insns : UINT64_MAX;
	if (m->hash_out && c->icount >= f->hash_from && (!f->hash_to || c->icount <= f->hash_to)) {
		write_line(m, c);
		if (!f->hash_to || c->icount < f->hash_to)
			next = MIN(next, c->icount + f->hash_every);
		else
			fflush(m->hash_out);
		if (ferror(m->hash_out)) {
			m->hash_errno = errno;
			machine_want_end(m, END_ERROR, "--hash-file cannot be written");
			return UINT64_MAX;
		}
	}
	return next;
}

bool trace_start(struct machine *m, struct error *e)
{
	const struct vm_config *f = m->cfg;
	if (!f->hash_every && !f->max_insns)
		return true;
	u64 first = f->max_insns ? f->max_insns : UINT64_MAX;
	if (f->dry_run)
		return !f->hash_file || file_check_writable("--hash-file", f->hash_file, e);
	if (f->hash_every) {
		int fd = f->hash_file ? file_open_write("--hash-file", f->hash_file, O_TRUNC, e) : -1;
		if (f->hash_file && fd < 0)
			return false;
		m->hash_out = f->hash_file ? fdopen(fd, "w") : stderr;
		if (!m->hash_out)
			return close(fd), error_set(e, "--hash-file %s: %s", f->hash_file, strerror(errno));
		first = MIN(first, f->hash_from ? f->hash_from : f->hash_every);
	}
	vcpu_set_checkpoint(m->cpus[0].vcpu, first, checkpoint, m);
	return true;
}

bool trace_stop(struct machine *m, struct error *e)
{
	FILE *f = m->hash_out;
	m->hash_out = NULL;
	if (f && (f == stderr ? fflush(f) : fclose(f)) && !m->hash_errno)
		m->hash_errno = errno;
	return !m->hash_errno || error_set(e, "--hash-file %s: cannot be written: %s; it is not whole",
					   m->cfg->hash_file ? m->cfg->hash_file : "(standard error)", strerror(m->hash_errno));
}
