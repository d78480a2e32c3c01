/* Where stubs live: one memfd, mapped once writable and once executable (never both), bounded.
 * Equal stubs are kept once, found by a hash of their code. Stubs hold no addresses, so that
 * they are code and key in one. One arena a vCPU, used by its thread alone. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "interp/native.h"

#define STUB_ALIGN 16u
#define STUBS_MAX (TABLE_SIZE / 4 * 3)
/* A stub in the arena: its length (4 bytes), then its code, aligned. */
#define HEAD 16u

bool arena_init(struct native *n, struct error *e)
{
	n->rw = n->rx = MAP_FAILED;
	n->table = MAP_FAILED;
	int fd = memfd_create("ring3-stubs", MFD_CLOEXEC);
	if (fd < 0)
		return error_set(e, "memory for executable stubs: memfd_create: %m");
	bool ok = ftruncate(fd, ARENA_SIZE) == 0;
	if (ok) {
		n->rw = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		n->rx = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
		n->table = mmap(NULL, TABLE_SIZE * sizeof(u32), PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		ok = n->rw != MAP_FAILED && n->rx != MAP_FAILED && n->table != MAP_FAILED;
	}
	if (!ok)
		error_set(e, "memory for executable stubs: %m");
	close(fd);
	if (!ok)
		arena_destroy(n);
	return ok;
}

void arena_destroy(struct native *n)
{
	if (n->rw != MAP_FAILED)
		munmap(n->rw, ARENA_SIZE);
	if (n->rx != MAP_FAILED)
		munmap(n->rx, ARENA_SIZE);
	if (n->table != MAP_FAILED)
		munmap(n->table, TABLE_SIZE * sizeof(u32));
}

static u32 hash(const u8 *p, unsigned len)
{
	u64 h = 0xcbf29ce484222325ull;
	for (unsigned k = 0; k < len; k++)
		h = (h ^ p[k]) * 0x100000001b3ull;
	return (u32)(h ^ h >> 29) & (TABLE_SIZE - 1);
}

void *arena_add(struct native *n, const u8 *code, unsigned len)
{
	u32 slot = hash(code, len);
	for (; n->table[slot]; slot = (slot + 1) & (TABLE_SIZE - 1)) {
		const u8 *p = n->rw + n->table[slot] - 1;
		if (ld32(p) == len && !memcmp(p + HEAD, code, len))
			return n->rx + n->table[slot] - 1 + HEAD;
	}
	u32 size = (HEAD + len + STUB_ALIGN - 1) & ~(STUB_ALIGN - 1);
	if (n->used + size > ARENA_SIZE || n->n_stubs >= STUBS_MAX)
		return NULL;
	u8 *p = n->rw + n->used;
	st32(p, len);
	memcpy(p + HEAD, code, len);
	void *stub = n->rx + n->used + HEAD;
	n->table[slot] = n->used + 1;
	n->used += size;
	n->n_stubs++;
	return stub;
}

/* Leaves room for what one block can still need. */
bool native_full(const struct cpu *c)
{
	const struct native *n = interp_of(c)->native;
	return n->used > ARENA_SIZE - ARENA_SIZE / 8 || n->n_stubs > STUBS_MAX - STUBS_MAX / 8;
}

void native_reset(struct cpu *c)
{
	struct native *n = interp_of(c)->native;
	memset(n->table, 0, TABLE_SIZE * sizeof(u32));
	n->used = 0;
	n->n_stubs = 0;
	n->resets++;
}

u64 native_resets(const struct cpu *c) { return interp_of(c)->native->resets; }
