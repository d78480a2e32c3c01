/* RAM: one memfd, mapped once, and its place in the guest-physical map.
 *
 * The memfd can be handed to other processes (vhost-user) and mapped again (windows, kvm); it
 * is sealed against change of size, so that nobody can make our accesses fault.
 * Threading: mem_init and mem_destroy before and after all vCPUs and devices. */
#define LOG_TOPIC "mem"
#include "mem/map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIN_RAM (1ull << 20)
#define VGA_HOLE 0xa0000ull
#define VGA_HOLE_END 0xc0000ull

static bool check_size(u64 size, struct error *e)
{
	unsigned long long bytes = size;

	if (size < MIN_RAM)
		return error_set(e, "memory of %llu bytes: a PC has at least 1M", bytes);
	if (size > MEM_MAX_RAM)
		return error_set(e, "memory of %lluG: more than this machine can address; at most %lluG",
				 bytes >> 30, MEM_MAX_RAM >> 30);
	if (size & PAGE_MASK)
		return error_set(e, "memory of %llu bytes: not a multiple of 4K; the nearest is %lluK", bytes,
				 (bytes & ~PAGE_MASK) >> 10);

	u64 host = (u64)sysconf(_SC_PHYS_PAGES) * (u64)sysconf(_SC_PAGESIZE);
	if (size > host)
		log_warn("the guest's memory (%lluM) is more than the host's (%lluM)", bytes >> 20,
			 (unsigned long long)host >> 20);
	return true;
}

/* The places at multiples of MEM_ALIAS_STEP from p: all taken (true), or none. */
#define USER_END (1ull << 47)
static bool take_aliases(u8 *p, u64 size)
{
	u64 first = (u64)p % MEM_ALIAS_STEP;
	for (u64 at = first; at < USER_END; at += MEM_ALIAS_STEP) {
		if (at == (u64)p || at < 65536)
			continue;
		void *q = at + size > USER_END - PAGE_SIZE ? MAP_FAILED : mmap((void *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		if (q == (void *)at)
			continue;
		if (q != MAP_FAILED) /* a kernel that does not know NOREPLACE */
			munmap(q, size);
		while (at >= MEM_ALIAS_STEP) {
			at -= MEM_ALIAS_STEP;
			if (at != (u64)p && at >= 65536)
				munmap((void *)at, size);
		}
		return false;
	}
	return true;
}

static void free_aliases(const struct mem *m)
{
	for (u64 at = (u64)m->ram % MEM_ALIAS_STEP; at < USER_END; at += MEM_ALIAS_STEP)
		if (at != (u64)m->ram && at >= 65536)
			munmap((void *)at, m->map_size);
}

/* A place for RAM with nothing at its aliases, and those kept free. NULL: there is none. */
static void *place_ram(struct mem *m)
{
	enum { TRIES = 24 };
	void *tried[TRIES];
	int n = 0;
	for (; n < TRIES && !m->apart && m->map_size <= MEM_ALIAS_STEP / 2; n++) {
		tried[n] = mmap(NULL, m->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (tried[n] == MAP_FAILED)
			break;
		m->apart = take_aliases(tried[n], m->map_size);
	}
	void *found = m->apart ? tried[n - 1] : NULL;
	for (int k = 0; k < n - m->apart; k++)
		munmap(tried[k], m->map_size);
	return found;
}

static bool map_ram(struct mem *m, struct error *e)
{
	unsigned long long mib = m->ram_size >> 20;

	m->fd = memfd_create("ring3-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (m->fd < 0)
		return error_set(e, "memory: memfd_create: %s", strerror(errno));
	if (ftruncate(m->fd, (off_t)m->map_size) < 0)
		return error_set(e, "memory of %lluM: the host refuses the size: %s", mib, strerror(errno));
	if (fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return error_set(e, "memory: sealing the size: %s", strerror(errno));
	void *place = place_ram(m);
	void *p = mmap(place, m->map_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | (place ? MAP_FIXED : 0), m->fd, 0);
	if (p == MAP_FAILED)
		return error_set(e, "memory of %lluM: the host refuses to map it: %s (is an address-space limit set? ulimit -v)",
				 mib, strerror(errno));
	m->ram = p;
	p = mmap(NULL, m->map_size / PAGE_SIZE * sizeof(struct page_code), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return error_set(e, "memory of %lluM: no room for its bookkeeping: %s", mib, strerror(errno));
	m->code = p;
	return true;
}

static bool add_ram(struct mem *m, u64 base, u64 end, u64 ram_off, struct error *e)
{
	struct region r = { .base = base, .size = end - base, .kind = REGION_RAM,
			    .host = m->ram + ram_off, .name = "ram", .priority = 0 };

	return base >= end || map_add(m, &r, e);
}

bool mem_init(struct mem *m, u64 ram_size, struct error *e)
{
	memset(m, 0, sizeof(*m));
	m->fd = -1;
	pthread_mutex_init(&m->lock, NULL);
	code_init();
	m->ram_size = ram_size;
	m->map_size = ram_size + MEM_DEVICE_RAM;
	m->low_size = MIN(ram_size, MEM_HOLE_START);
	if (!check_size(ram_size, e) || !map_ram(m, e) ||
	    !add_ram(m, 0, VGA_HOLE, 0, e) ||
	    !add_ram(m, VGA_HOLE_END, m->low_size, VGA_HOLE_END, e) ||
	    !add_ram(m, MEM_4G, MEM_4G + (ram_size - m->low_size), m->low_size, e)) {
		mem_destroy(m);
		return false;
	}
	m->port_map = calloc(65536, sizeof(struct port_range *));
	if (!m->port_map) {
		mem_destroy(m);
		return error_set(e, "memory: out of memory for the port map");
	}
	return true;
}

u8 *mem_device_ram(struct mem *m, u64 size)
{
	if (size > MEM_DEVICE_RAM - m->device_used)
		return NULL;
	u8 *host = m->ram + m->ram_size + m->device_used;
	m->device_used += size;
	return host;
}

u64 mem_hole(const struct mem *m, const u8 *host)
{
	off_t at = host - m->ram, data = lseek(m->fd, at, SEEK_DATA);

	return data >= at ? (u64)(data - at) : errno == ENXIO ? m->map_size - (u64)at : 0;
}

void mem_destroy(struct mem *m)
{
	if (m->code)
		munmap(m->code, m->map_size / PAGE_SIZE * sizeof(struct page_code));
	if (m->ram && m->apart)
		free_aliases(m);
	if (m->ram)
		munmap(m->ram, m->map_size);
	if (m->fd >= 0)
		close(m->fd);
	map_free(m);
	free(m->ports);
	free(m->port_map);
	pthread_mutex_destroy(&m->lock);
	memset(m, 0, sizeof(*m));
	m->fd = -1;
}
