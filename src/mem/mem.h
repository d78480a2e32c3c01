/* mem: guest-physical memory. RAM in one memfd, ROM, the MMIO bus and the port bus; DMA,
 * the only way in which a device touches RAM; which bytes of RAM have been decoded as code.
 *
 * RAM is seen at 0..9ffff, c0000..low_size-1 and from 4 GiB on. a0000..bffff holds no RAM:
 * the VGA card's, or nothing. Where nothing is, reads give all ones and writes are ignored.
 *
 * A device's own memory (mem_device_ram) is RAM wherever the device shows it.
 *
 * Invariants
 *  1. RAM is mapped once, MAP_SHARED of a memfd; a page costs the host nothing until touched.
 *  2. The map (regions) changes only with the machine lock held and all vCPUs stopped or
 *     their TLBs flushed by the caller (mem->map_changed tells the machine to do so, with
 *     the lock held, after the change). Lookups by other threads meanwhile are safe: they
 *     see the map before or after.
 *  3. Whoever writes a byte of RAM calls mem_code_written() for it after the store
 *     (cpu/'s store path does so inline, DMA here), so that no engine runs stale code.
 *  4. MMIO and port handlers run with the machine lock held. */
#ifndef RING3_MEM_H
#define RING3_MEM_H

#include <pthread.h>

#include "base/base.h"

#define PAGE_SIZE 4096u
#define PAGE_MASK 4095ull

/* What an engine knows of one RAM page as code. lines: one bit for each 64-byte line that
 * some decoded or translated block covers; gen counts writes into such lines. An engine's
 * block remembers gen and is stale when it differs. Protocol against races: the decoder
 * sets the bits, issues membarrier(PRIVATE_EXPEDITED) if they were clear or whoever set them
 * may still be at it (marking: how many are), reads gen, reads the bytes; the writer stores,
 * then looks at the bits. */
struct page_code {
	_Atomic u64 lines;
	_Atomic u32 gen, marking;
	/* vCPUs (modulo 32) that may store here without looking at lines; that have translated code of it
	 * and must be told of writes. Theirs to keep. */
	_Atomic u32 writers, translators;
	/* Writes of late, since when, while code was known here; until when, and for how long at a time, code of
	 * it is not watched but checks itself (bt/selfcheck.c; the host's TSC ticks). */
	_Atomic u32 churn, check_term;
	_Atomic u64 churn_since, check_until;
};

struct mmio_ops {
	/* size: 1, 2, 4 or 8 bytes, already split to what min_size..max_size allow.
	 * off: from the region's base. */
	u64 (*read)(void *dev, u64 off, unsigned size);
	void (*write)(void *dev, u64 off, u64 val, unsigned size); /* val: zero above size */
	/* Handlers never see another size; 0 means 1 and 4. Larger accesses are split, low
	 * addresses first; memory accesses are also split where they are not aligned, port
	 * accesses are not (VBE has a word at 1cfh). Smaller ones are widened: reads read the
	 * aligned min_size around and take their part, writes write it, with the value in its
	 * place and zeros in the others (no read-modify-write: reads have side effects). */
	u8 min_size, max_size;
	/* Memory, of which a write only stores and which is read by whoever called mem_posted: an engine may carry out
	 * writes to it later, in their order, before anything else that a processor asks of a device. */
	bool posted;
	/* Registers of which a write only says that there is something to do: the n-th one, its offset in *off, and an
	 * eventfd that says the same, which stays as long as the region; -1: no more of them, or out of descriptors. An
	 * engine may have the host's kernel ring it in place of the write. NULL: it has none. Machine lock held. */
	int (*doorbell)(void *dev, unsigned n, u64 *off);
};

enum region_kind { REGION_RAM, REGION_ROM, REGION_MMIO };
struct region {
	u64 base, size;           /* bytes, page-aligned for RAM and ROM */
	enum region_kind kind;
	u8 *host;                 /* RAM, ROM */
	const struct mmio_ops *ops;
	void *dev;
	const char *name;
	int priority;             /* where regions overlap, the higher one is seen; of equal
	                           * ones the later. RAM has 0: what a guest places freely (PCI
	                           * BARs) should have less, so that it cannot hide RAM. */
	u64 offset;               /* of this piece in the region as declared */
};

struct port_range {
	u16 base; u16 count;
	const struct mmio_ops *ops;
	void *dev;
	const char *name;
};

struct mem {
	int fd;                   /* memfd of RAM */
	u8 *ram;                  /* host mapping of RAM, ram_size bytes */
	u64 ram_size;             /* bytes */
	bool apart;               /* nothing else is mapped at any multiple of MEM_ALIAS_STEP from RAM */
	u64 low_size;             /* bytes of RAM below the 32-bit hole */
	u64 map_size;             /* bytes mapped at ram: ram_size, then MEM_DEVICE_RAM */
	u64 device_used;          /* of the latter, given out */
	struct page_code *code;   /* one a page of the mapping, indexed by offset in ram >> 12 */
	struct region *regions;   /* flattened, sorted, without overlap */
	int n_regions;
	struct region *declared;  /* as added */
	int n_declared;
	struct port_range *ports;
	int n_ports;
	const struct port_range **port_map; /* 65536 entries */
	pthread_mutex_t lock;     /* the machine lock: devices, interrupt controllers, timers */
	void (*map_changed)(void *arg);
	void *map_changed_arg;
	/* DMA has hit code (gen has changed): an engine that does not look at gen. Machine lock held. */
	void (*code_hit)(struct mem *m, struct page_code *p, unsigned off, unsigned len);
	void *engine;             /* that engine's own */
	void (*posted)(struct mem *m); /* carries out the posted writes that an engine has kept; NULL: it keeps none */
	/* Of pages that the guest has written: mem_written. NULL: nobody knows. */
	bool (*written)(struct mem *m, const u8 *host, u64 bytes, u64 *pages);
	_Atomic bool device_wrote; /* mem_device_wrote */
	/* Bytes from 1 MiB and from 4 GiB on that are RAM with nothing over it: of all there, or 0. */
	_Atomic u64 plain_low, plain_high;
	struct map_table *_Atomic map; /* private to map.c: what regions points into */
	_Atomic u32 map_seq;      /* odd while the map is being changed */
	int cap_declared, cap_ports;
};

#define MEM_HOLE_START 0xc0000000ull /* RAM above this goes to 4 GiB and up */
#define MEM_1M 0x100000ull
#define MEM_4G 0x100000000ull
#define MEM_ALIAS_STEP (1ull << 40)  /* see bt/space.c, which needs it */
#define MEM_MAX_RAM (1ull << 40)     /* bytes; what mem_init takes at most */
#define MEM_DEVICE_RAM (32ull << 20) /* bytes; for the memory of devices: a display's */

/* ram_size: bytes, multiple of 4 KiB, at least 1 MiB. Reserves, does not touch. */
bool mem_init(struct mem *m, u64 ram_size, struct error *e);
void mem_destroy(struct mem *m);

/* The map. Names are kept by pointer. host: page-aligned, stays the caller's. Machine lock held,
 * or before there are vCPUs; so for ports. The message of *e names the region and what is wrong. */
bool mem_add_rom(struct mem *m, const char *name, u64 base, u64 size, u8 *host, int priority, struct error *e);
/* As ROM, but writes go to ops. */
bool mem_add_flash(struct mem *m, const char *name, u64 base, u64 size, u8 *host, const struct mmio_ops *ops,
		   void *dev, int priority, struct error *e);
bool mem_add_mmio(struct mem *m, const char *name, u64 base, u64 size, const struct mmio_ops *ops,
		  void *dev, int priority, struct error *e);
/* Memory of a device, which vCPUs use as RAM: in the same memfd and mapping, zeros at first, not in
 * ram_size. Until mem_destroy; costs nothing until touched. size: a multiple of 4 KiB. NULL: no room. */
u8 *mem_device_ram(struct mem *m, u64 size);
/* Bytes from host on, a page's start in RAM or a device's, that the host holds no memory for: they are zeros, and
 * looking at them would make it. */
u64 mem_hole(const struct mem *m, const u8 *host);
/* host: within what mem_device_ram gave. */
bool mem_add_ram(struct mem *m, const char *name, u64 base, u64 size, u8 *host, int priority, struct error *e);
void mem_remove(struct mem *m, const char *name, u64 base); /* nothing if there is none; never the machine's RAM */
/* Ports base..base+count-1; off passed to handlers is relative to base. A later call wins. */
bool mem_add_ports(struct mem *m, const char *name, u16 base, unsigned count, const struct mmio_ops *ops,
		   void *dev, struct error *e);
void mem_remove_ports(struct mem *m, const char *name, u16 base);

/* The page at gpa as an engine may map it. host NULL: MMIO or nothing there. */
struct mem_page {
	u8 *host;                 /* start of the 4-KiB page */
	bool writable;            /* RAM; false: ROM */
	struct page_code *code;   /* NULL for ROM */
};
struct mem_page mem_page(struct mem *m, u64 gpa);

/* RAM at gpa (no ROM): the fast path of page walks. NULL if not RAM; valid to the page's end. */
static inline u8 *mem_ram(struct mem *m, u64 gpa)
{
	if (likely(gpa - MEM_1M < atomic_load_explicit(&m->plain_low, memory_order_relaxed)))
		return m->ram + gpa;
	if (gpa - MEM_4G < atomic_load_explicit(&m->plain_high, memory_order_relaxed))
		return m->ram + m->low_size + (gpa - MEM_4G);
	struct mem_page p = mem_page(m, gpa);
	return p.host && p.writable ? p.host + (gpa & PAGE_MASK) : NULL;
}

/* Guest-physical access from a vCPU: RAM, ROM or device. size 1..8, may cross pages and from
 * one into the other. Takes the machine lock itself for devices (must not be held). */
u64 mem_phys_read(struct mem *m, u64 gpa, unsigned size);
void mem_phys_write(struct mem *m, u64 gpa, u64 val, unsigned size);
/* Posted writes: all that were made are there, after the first; the second is the engine's, of one that it kept.
 * Machine lock held. */
static inline void mem_posted(struct mem *m)
{
	if (m->posted)
		m->posted(m);
}
void mem_posted_write(struct mem *m, u64 gpa, u64 val, unsigned size);
/* Pages of a device's memory that were written since the last question, of which there is one asker: bit k of pages,
 * which are zeros, is the k-th from host on, a page's start. False: nobody knows, it may be all. Machine lock held. */
bool mem_written(struct mem *m, const u8 *host, u64 bytes, u64 *pages);
/* Such memory has been written (it is done) otherwise than by a guest's store: the next answer is "all". Any thread. */
static inline void mem_device_wrote(struct mem *m) { atomic_store_explicit(&m->device_wrote, true, memory_order_release); }
/* Ports; size 1, 2, 4. Nothing there: all ones. Takes the machine lock (must not be held). */
u32 mem_port_read(struct mem *m, u16 port, unsigned size);
void mem_port_write(struct mem *m, u16 port, u32 val, unsigned size);

/* DMA: what a device does. Returns false if part of the range is not RAM (reads of that part
 * give zeros; ROM can be read). Any thread. */
bool mem_read(struct mem *m, u64 gpa, void *buf, u64 len);
bool mem_write(struct mem *m, u64 gpa, const void *buf, u64 len);
/* DMA in place. The host's address of the RAM at gpa, and in *len (in: bytes wanted) how many bytes of
 * them are there in one piece; NULL: not RAM. RAM does not move while the machine is there.
 * mem_dma_written after bytes were stored, with such an address. Any thread. */
u8 *mem_dma(struct mem *m, u64 gpa, u64 *len);
void mem_dma_written(struct mem *m, u8 *host, u64 len);

/* After a store of len >= 1 bytes (within one page) at page offset off of page p. True if code was hit. */
static inline bool mem_code_written(struct page_code *p, unsigned off, unsigned len)
{
	atomic_signal_fence(memory_order_seq_cst); /* the compiler keeps the store before the load */
	u64 lines = atomic_load_explicit(&p->lines, memory_order_relaxed);
	if (likely(!lines))
		return false;
	unsigned a = off >> 6, b = (off + len - 1) >> 6;
	u64 mask = (b - a == 63 ? ~0ull : ((1ull << (b - a + 1)) - 1)) << a;
	if (!(lines & mask))
		return false;
	atomic_fetch_add(&p->gen, 1);
	return true;
}
/* The decoder's half of the protocol: bytes off..off+len-1 (within the page) become code;
 * returns gen. Read the bytes after this call; any thread, no lock needed. */
u32 mem_code_mark(struct page_code *p, unsigned off, unsigned len);
/* Nothing of the page is code any more: for whoever knows that no block of it is in use. Blocks made
 * meanwhile see gen change. */
void mem_code_clear(struct page_code *p);

static inline void mem_lock(struct mem *m) { pthread_mutex_lock(&m->lock); }
static inline void mem_unlock(struct mem *m) { pthread_mutex_unlock(&m->lock); }

#endif
