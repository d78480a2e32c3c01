/* Which bytes of RAM are code, as some engine knows it: the decoder's half.
 *
 * The decoder sets line bits, then reads the bytes. A writer stores, then reads the bits. Of
 * the two, at least one must see the other, or stale code runs on. That needs a full barrier
 * on each side; the writer's, on every guest store, would cost too much. So the decoder pays
 * for both: membarrier(PRIVATE_EXPEDITED) is a barrier on all threads of the process.
 *
 * Where the kernel has none, unmapping a page that was written does the same: every CPU that
 * runs a thread of this process must be interrupted to forget the page. */
#define LOG_TOPIC "mem"
#include "mem/map.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int membarrier(int cmd)
{
	return (int)syscall(SYS_membarrier, cmd, 0, 0);
}

void code_init(void)
{
	/* Once for the process; a second machine's call changes nothing. */
	if (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) < 0)
		log_info("no membarrier on this host (errno %d): translating code is slower", errno);
}

static void barrier_by_unmapping(void)
{
	volatile u8 *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		bug("no page for a memory barrier");
	*p = 1;
	munmap((void *)p, PAGE_SIZE);
}

u32 mem_code_mark(struct page_code *p, unsigned off, unsigned len)
{
	unsigned a = off >> 6, b = (off + len - 1) >> 6;

	if (unlikely(len == 0 || off + len > PAGE_SIZE))
		bug("code mark of %u bytes at %#x of a page", len, off);
	u64 mask = (b - a == 63 ? ~0ull : (1ull << (b - a + 1)) - 1) << a;
	for (;;) {
		if ((atomic_load(&p->lines) & mask) != mask || atomic_load(&p->marking)) {
			atomic_fetch_add(&p->marking, 1);
			atomic_fetch_or(&p->lines, mask);
			if (membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) < 0)
				barrier_by_unmapping();
			atomic_fetch_sub(&p->marking, 1);
		}
		u32 gen = atomic_load(&p->gen);
		if ((atomic_load(&p->lines) & mask) == mask)
			return gen; /* cleared after this, gen changes */
	}
}

void mem_code_clear(struct page_code *p)
{
	atomic_store(&p->lines, 0);
	atomic_fetch_add(&p->gen, 1);
}
