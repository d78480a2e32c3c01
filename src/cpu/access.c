/* Memory accesses that the inline fast paths of cpu.h do not settle: TLB misses, page
 * crossings, devices and ROM, alignment checks, data breakpoints, locked crossings, and the
 * implicit accesses of the processor itself. SDM vol. 3 4.6, 4.7, 6.15 (#AC), 8.1.
 *
 * Invariants
 *  1. An access that crosses into the next page has both pages translated before a byte of
 *     either is read or written: it happens whole or not at all.
 *  2. Addresses wrap at 32 bits outside 64-bit mode (implicit accesses: outside long mode).
 *  3. An alignment check comes after the segment's and canonical checks and before the page's
 *     (so AMD's processors do it; the manuals leave it open); a data breakpoint is noted last,
 *     only for an access that takes place.
 *  4. Every store to RAM is followed by mem_code_hit for what it touched.
 *  5. ROM and devices are written through the bus, which may ignore it. */
#include <string.h>
#include <sys/mman.h>

#include "cpu/mmu.h"
#include "cpu/nested_api.h"

/* ---- the pieces of one access: at most two pages ------------------------------------------ */

struct piece { u8 *host; struct page_code *code; u64 gpa; unsigned n; };
struct pieces { struct piece p[2]; unsigned n; };

/* lin cut to what the mode has. */
static u64 width(u64 lin, bool implicit, const struct cpu *c)
{
	return (implicit ? cpu_long(c) : cpu_code64(c)) ? lin : (u32)lin;
}

/* Translates lin..lin+n-1 (n <= 4096). Raises. */
static void pieces_resolve(struct cpu *c, u64 lin, unsigned n, enum access acc, bool implicit, struct pieces *s)
{
	enum mmu_index who = implicit ? mmu_index_implicit(c) : mmu_index_explicit(c);
	lin = width(lin, implicit, c);
	unsigned first = 4096 - (unsigned)(lin & PAGE_MASK);
	s->n = 1 + (first < n);
	if (s->n == 2)
		mmu_check_canonical(c, width(lin + n - 1, implicit, c)); /* before the first page's #PF */
	for (unsigned k = 0; k < s->n; k++) {
		struct mmu_page p;
		u64 at = k ? width(lin + first, implicit, c) : lin;
		mmu_resolve(c, at, acc, who, &p);
		s->p[k] = (struct piece){p.host, p.code, p.gpa, k ? n - first : MIN(n, first)};
	}
}

void mem_check_aligned(struct cpu *c, u64 lin, unsigned n)
{
	unsigned a = n == 10 ? 8 : MIN(n, 16); /* 80-bit operands: 8; wide vectors: 16 */
	if (likely(c->mmu != MMU_CHECK) || c->cpl != 3 || !(c->cr0 & CR0_AM) || !(c->rflags & FL_AC))
		return;
	if ((a & (a - 1)) || !(lin & (a - 1)) || (cpu_code64(c) && !(cpu_canonical(c, lin) && cpu_canonical(c, lin + n - 1))))
		return;
	cpu_raise_err(c, V_AC, 0);
}

/* The last check of MMU_CHECK, for an explicit access whose translation has succeeded. */
static void breakpoint_check(struct cpu *c, u64 lin, unsigned n, bool write)
{
	if (unlikely(c->mmu == MMU_CHECK))
		cpu_data_breakpoint(c, width(lin, false, c), n, write, false);
}

/* One host access where n is a size that the guest may rely on being atomic. */
static u64 host_load(const u8 *p, unsigned n)
{
	u64 v = 0;
	switch (n) {
	case 1: return *(const volatile u8 *)p;
	case 2: return *(const volatile u16_any *)p;
	case 4: return *(const volatile u32_any *)p;
	case 8: return *(const volatile u64_any *)p;
	default: memcpy(&v, p, n); return v;
	}
}

static void host_store(u8 *p, u64 v, unsigned n)
{
	switch (n) {
	case 1: *(volatile u8 *)p = (u8)v; break;
	case 2: *(volatile u16_any *)p = (u16)v; break;
	case 4: *(volatile u32_any *)p = (u32)v; break;
	case 8: *(volatile u64_any *)p = v; break;
	default: memcpy(p, &v, n);
	}
}

/* What is neither RAM nor ROM; in guest mode perhaps the virtual APIC. */
static u64 bus_read(struct cpu *c, u64 gpa, unsigned n)
{
	if (unlikely((gpa & ~PAGE_MASK) == c->nested.apic_page))
		return nested_apic_read(c, (u32)gpa & PAGE_MASK, n);
	return mem_phys_read(c->mem, gpa, n);
}

static void bus_write(struct cpu *c, u64 gpa, u64 v, unsigned n)
{
	if (unlikely((gpa & ~PAGE_MASK) == c->nested.apic_page))
		nested_apic_write(c, (u32)gpa & PAGE_MASK, v, n);
	else
		mem_phys_write(c->mem, gpa, v, n);
}

static u64 piece_load(struct cpu *c, const struct piece *p)
{
	if (p->host)
		return host_load(p->host, p->n);
	cpu_device_sync(c);
	return bus_read(c, p->gpa, p->n);
}

static void piece_store(struct cpu *c, const struct piece *p, u64 v)
{
	if (!p->code) {
		cpu_device_sync(c);
		bus_write(c, p->gpa, v, p->n);
		return;
	}
	host_store(p->host, v, p->n);
	mem_code_hit(c, p->code, (unsigned)((u64)p->host & PAGE_MASK), p->n);
}

/* Any length; devices in naturally aligned pieces of at most 8 bytes. */
static void piece_copy(struct cpu *c, const struct piece *p, u8 *buf, bool write)
{
	if (write ? p->code != NULL : p->host != NULL) {
		if (write) {
			memcpy(p->host, buf, p->n);
			mem_code_hit(c, p->code, (unsigned)((u64)p->host & PAGE_MASK), p->n);
		} else {
			memcpy(buf, p->host, p->n);
		}
		return;
	}
	cpu_device_sync(c);
	for (unsigned k = 0, m; k < p->n; k += m) {
		u64 v = 0;
		for (m = 8; m > p->n - k || ((p->gpa + k) & (m - 1)); m >>= 1)
			;
		if (write) {
			memcpy(&v, buf + k, m);
			bus_write(c, p->gpa + k, v, m);
		} else {
			v = bus_read(c, p->gpa + k, m);
			memcpy(buf + k, &v, m);
		}
	}
}

static u64 pieces_load(struct cpu *c, const struct pieces *s)
{
	u64 v = piece_load(c, &s->p[0]);
	if (s->n == 2)
		v |= piece_load(c, &s->p[1]) << (8 * s->p[0].n);
	return v;
}

static void pieces_store(struct cpu *c, const struct pieces *s, u64 v)
{
	piece_store(c, &s->p[0], v);
	if (s->n == 2)
		piece_store(c, &s->p[1], v >> (8 * s->p[0].n));
}

/* ---- 1 to 8 bytes ------------------------------------------------------------------------- */

u64 mem_ld_slow(struct cpu *c, u64 lin, unsigned size)
{
	struct pieces s;
	mem_check_aligned(c, lin, size);
	pieces_resolve(c, lin, size, ACC_READ, false, &s);
	breakpoint_check(c, lin, size, false);
	return pieces_load(c, &s);
}

void mem_st_slow(struct cpu *c, u64 lin, u64 val, unsigned size)
{
	struct pieces s;
	mem_check_aligned(c, lin, size);
	pieces_resolve(c, lin, size, ACC_WRITE, false, &s);
	breakpoint_check(c, lin, size, true);
	pieces_store(c, &s, val);
}

u64 sys_ld(struct cpu *c, u64 lin, unsigned size)
{
	struct pieces s;
	pieces_resolve(c, lin, size, ACC_READ, true, &s);
	return pieces_load(c, &s);
}

void sys_st(struct cpu *c, u64 lin, u64 val, unsigned size)
{
	struct pieces s;
	pieces_resolve(c, lin, size, ACC_WRITE, true, &s);
	pieces_store(c, &s, val);
}

void mem_code_hit(struct cpu *c, struct page_code *p, unsigned off, unsigned len)
{
	if (mem_code_written(p, off, len) && c->on_code_written)
		c->on_code_written(c, p, off, len);
}

/* The TLB's entry for bytes of one page, if it has them. */
static struct tlb_entry *tlb_known(struct cpu *c, u64 lin, unsigned n, bool write)
{
	struct tlb_entry *e = tlb_slot(c, lin);
	bool known = (write ? e->wtag : e->rtag) == ((lin & ~PAGE_MASK) | c->epoch) && (lin & PAGE_MASK) + n <= 4096;
	return known ? e : NULL;
}

/* ---- any number of bytes ------------------------------------------------------------------- */

void mem_probe(struct cpu *c, u64 lin, unsigned n, enum access acc)
{
	struct pieces s;
	if (acc != ACC_EXEC && tlb_known(c, lin, n, acc == ACC_WRITE))
		return;
	if (n > 1 && n <= 64 && (lin & PAGE_MASK) + n > 4096)
		mmu_check_canonical(c, width(lin + n - 1, false, c)); /* as one access */
	for (unsigned done = 0, m; done < n; done += m) {
		u64 at = width(lin + done, false, c);
		m = MIN(n - done, 4096 - (unsigned)(at & PAGE_MASK));
		if (acc == ACC_EXEC)
			mmu_fetch_page(c, at);
		else
			pieces_resolve(c, at, m, acc, false, &s);
	}
}

static void bytes_copy(struct cpu *c, u64 lin, u8 *buf, unsigned n, bool write)
{
	struct pieces s;
	enum access acc = write ? ACC_WRITE : ACC_READ;
	if (!n)
		return;
	struct tlb_entry *e = tlb_known(c, lin, n, write);
	if (e) {
		piece_copy(c, &(struct piece){ (u8 *)(lin + e->addend), e->code, 0, n }, buf, write);
		return;
	}
	if ((lin & PAGE_MASK) + n > 4096)
		mem_probe(c, lin, n, acc);
	for (unsigned done = 0, m; done < n; done += m) {
		u64 at = width(lin + done, false, c);
		m = MIN(n - done, 4096 - (unsigned)(at & PAGE_MASK));
		pieces_resolve(c, at, m, acc, false, &s);
		piece_copy(c, &s.p[0], buf + done, write);
	}
	breakpoint_check(c, lin, n, write);
}

void mem_ld_bytes(struct cpu *c, u64 lin, void *buf, unsigned n)
{
	bytes_copy(c, lin, buf, n, false);
}

void mem_st_bytes(struct cpu *c, u64 lin, const void *buf, unsigned n)
{
	bytes_copy(c, lin, (u8 *)(u64)buf, n, true); /* only read when write is true */
}

/* ---- host pointers ---------------------------------------------------------------------------- */

/* The two pages of RAM of s, one after the other in the host's address space, so that the host's
 * own locked instruction covers both. NULL when the host has no room: the caller copies. */
static u8 *alias_map(struct cpu *c, const struct pieces *s)
{
	const u8 *ram = c->mem->ram;
	if (!c->alias) {
		void *p = mmap(NULL, 2 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p == MAP_FAILED)
			return NULL;
		c->alias = p;
		c->alias_off[0] = c->alias_off[1] = UINT64_MAX;
	}
	for (unsigned k = 0; k < 2; k++) {
		u64 off = (u64)(s->p[k].host - ram) & ~PAGE_MASK;
		if (c->alias_off[k] == off)
			continue;
		c->alias_off[k] = UINT64_MAX;
		if (mmap(c->alias + k * PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 c->mem->fd, (off_t)off) == MAP_FAILED)
			return NULL;
		c->alias_off[k] = off;
	}
	return c->alias;
}

u8 *mem_begin_slow(struct cpu *c, struct mem_ref *r, u64 lin, unsigned n, bool read, bool write, bool locked)
{
	struct pieces s;
	if (n > 128)
		bug("mem_begin of %u bytes", n);
	mem_check_aligned(c, lin, n);
	pieces_resolve(c, lin, n, write ? ACC_WRITE : ACC_READ, false, &s);
	breakpoint_check(c, lin, n, write);
	r->lin = width(lin, false, c);
	r->n = n;
	r->write = write;
	r->alias = false;
	if (s.n == 1 && (write ? s.p[0].code != NULL : s.p[0].host != NULL)) {
		r->copied = false;
		r->code = s.p[0].code;
		return r->host = s.p[0].host;
	}
	r->copied = true;
	r->code = NULL;
	r->n_parts = (u8)s.n;
	for (unsigned k = 0; k < s.n; k++) {
		r->part[k].host = s.p[k].host;
		r->part[k].code = s.p[k].code;
		r->part[k].gpa = s.p[k].gpa;
		r->part[k].n = s.p[k].n;
	}
	if (locked && write && s.n == 2 && s.p[0].code && s.p[1].code) {
		u8 *both = alias_map(c, &s);
		if (both) {
			r->alias = true;
			return r->host = both + (lin & PAGE_MASK);
		}
	}
	r->host = r->buf + (lin & 63);
	if (read) {
		piece_copy(c, &s.p[0], r->host, false);
		if (s.n == 2)
			piece_copy(c, &s.p[1], r->host + s.p[0].n, false);
	}
	return r->host;
}

/* r was written and is a copy or an alias. Does not raise: the pages were settled by mem_begin. */
void mem_end_slow(struct cpu *c, struct mem_ref *r)
{
	u8 *from = r->host;
	for (unsigned k = 0; k < r->n_parts; k++) {
		struct piece p = {r->part[k].host, r->part[k].code, r->part[k].gpa, r->part[k].n};
		if (r->alias)
			mem_code_hit(c, p.code, (unsigned)((u64)p.host & PAGE_MASK), p.n);
		else
			piece_copy(c, &p, from, true);
		from += p.n;
	}
}
