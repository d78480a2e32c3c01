/* Page walks: 32-bit with PSE and PSE-36, PAE, 4 and 5 levels. SDM vol. 3 chapter 4; AMD APM
 * vol. 2 chapter 5.
 *
 * Invariants
 *  1. A walk reads each entry once; rights are judged on what was read. Accessed and dirty
 *     bits are set, from the root to the leaf, only once the access is known to be allowed,
 *     by compare-exchange against what was read; on a difference the walk starts over.
 *  2. Nothing here raises: the caller gets the error code. What the second level of paging refuses, in
 *     guest mode, leaves the guest from mmu_walk().
 *  3. Tables outside RAM are read with mem_phys_read (all ones where nothing is) and their
 *     accessed and dirty bits stay as they are.
 *  4. With a second level (nested_api.h) each address that an entry is read from is a guest-physical one
 *     and translated, and so is the page at the end, after the guest's own rights have been judged.
 * Not modelled: paging-structure caches, memory types. Shadow stacks are absent. */
#include "cpu/mmu.h"
#include "cpu/nested_api.h"

enum { PTE_P = 1, PTE_W = 2, PTE_U = 4, PTE_A = 0x20, PTE_D = 0x40, PTE_PS = 0x80 };
#define PTE_NX (1ull << 63)
#define PDPTE_RESERVED(c) (~(c)->maxphyaddr_mask | 0x1e6) /* 63:M, 8:5, 2:1 */

enum walk_result { WALK_OK, WALK_FAULT, WALK_AGAIN, WALK_SECOND /* the second level refuses: path.refused */ };

/* The entries that a walk used, root first. */
struct path {
	struct { u8 *host; u64 val, gpa; } e[5];
	unsigned n;
	unsigned entry_size; /* 4 or 8 bytes */
	bool peek;           /* nothing may change */
	bool fresh;          /* by a page of the second level, then, that was not used so before */
	u64 final, second_size; /* guest-physical address at the end; size of the second level's page there */
	struct { u64 gpa; enum access acc; enum nested_what what; } refused;
};

/* *gpa from guest-physical to the machine's. False: refused. */
static bool second_level(struct cpu *c, struct path *p, u64 *gpa, enum access acc, enum nested_what what, struct nested_page *np)
{
	if (nested_translate(c, *gpa, acc, p->peek ? NP_PEEK : what, np)) {
		*gpa = np->gpa;
		p->fresh |= !np->used || (what == NP_TABLE && !np->dirty);
		return true;
	}
	p->refused.gpa = *gpa;
	p->refused.acc = acc;
	p->refused.what = what;
	return false;
}

static bool entry_read(struct cpu *c, struct path *p, u64 gpa, u64 *e)
{
	struct nested_page np;
	p->e[p->n].gpa = gpa;
	if (unlikely(c->nested.paging) && !second_level(c, p, &gpa, ACC_READ, NP_TABLE, &np))
		return false;
	u8 *host = mem_ram(c->mem, gpa);
	u64 val;
	if (likely(host != NULL)) {
		val = p->entry_size == 8 ? __atomic_load_n((u64 *)(void *)host, __ATOMIC_ACQUIRE)
					 : __atomic_load_n((u32 *)(void *)host, __ATOMIC_ACQUIRE);
	} else {
		val = mem_phys_read(c->mem, gpa, p->entry_size);
	}
	p->e[p->n].host = host;
	p->e[p->n].val = val;
	p->n++;
	*e = val;
	return true;
}

/* Sets bits in entry k of the path. WALK_AGAIN: it has changed since. */
static enum walk_result entry_set(struct cpu *c, struct path *p, unsigned k, u64 bits)
{
	u64 old = p->e[k].val, new = old | bits, gpa = p->e[k].gpa;
	u8 *host = p->e[k].host;
	struct nested_page np;
	if (old == new || !host)
		return WALK_OK;
	if (unlikely(c->nested.paging) && !second_level(c, p, &gpa, ACC_WRITE, NP_TABLE, &np))
		return WALK_SECOND;
	bool done;
	if (p->entry_size == 8) {
		done = __atomic_compare_exchange_n((u64 *)(void *)host, &old, new, false,
						   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	} else {
		u32 old32 = (u32)old;
		done = __atomic_compare_exchange_n((u32 *)(void *)host, &old32, (u32)new, false,
						   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
	if (!done)
		return WALK_AGAIN;
	p->e[k].val = new;
	mem_code_hit(c, mmu_code_of(c, host), (unsigned)((u64)(host - c->mem->ram) & PAGE_MASK), p->entry_size);
	return WALK_OK;
}

/* What every 64-bit entry must keep clear. */
static u64 reserved64(const struct cpu *c)
{
	u64 r = ~c->maxphyaddr_mask & 0x000fffffffffffffull;
	if (!cpu_long(c))
		r |= 0x7ff0000000000000ull; /* PAE: 62:52; ignored with 4 and 5 levels */
	if (!(c->efer & EFER_NXE))
		r |= PTE_NX;
	return r;
}

/* Walks 64-bit entries from `table`, whose entries are of `level` (5: PML5E .. 1: PTE). */
static enum walk_result walk64(struct cpu *c, u64 lin, u64 table, unsigned level, struct path *p,
			       struct walk *w, u32 *err)
{
	const u64 rsvd_all = reserved64(c);
	const bool has_1g = cpu_has(c, FEAT_PDPE1GB);
	for (;; level--) {
		unsigned shift = 12 + 9 * (level - 1);
		u64 e;
		if (!entry_read(c, p, table + ((lin >> shift) & 511) * 8, &e))
			return WALK_SECOND;
		if (!(e & PTE_P)) {
			*err = 0;
			return WALK_FAULT;
		}
		u64 rsvd = rsvd_all;
		bool leaf = level == 1;
		if (level > 1 && (e & PTE_PS)) {
			if (level == 2 || (level == 3 && has_1g)) {
				leaf = true;
				rsvd |= ((1ull << shift) - 1) & ~0x1fffull; /* up to the PAT bit */
			} else {
				rsvd |= PTE_PS;
			}
		}
		if (e & rsvd) {
			*err = PF_P | PF_RSVD;
			return WALK_FAULT;
		}
		w->user = w->user && (e & PTE_U);
		w->writable = w->writable && (e & PTE_W);
		w->nx = w->nx || (e & PTE_NX);
		if (leaf) {
			w->page_size = 1ull << shift;
			w->gpa = (e & c->maxphyaddr_mask & ~(w->page_size - 1)) | (lin & (w->page_size - 1));
			if (cpu_long(c))
				w->pkey = (e >> 59) & 15;
			return WALK_OK;
		}
		table = e & c->maxphyaddr_mask & ~PAGE_MASK;
	}
}

static enum walk_result walk32(struct cpu *c, u64 lin, struct path *p, struct walk *w, u32 *err)
{
	u64 e;
	*err = 0;
	if (!entry_read(c, p, (c->cr3 & 0xfffff000) + ((lin >> 22) & 1023) * 4, &e))
		return WALK_SECOND;
	if (!(e & PTE_P))
		return WALK_FAULT;
	w->user = e & PTE_U;
	w->writable = e & PTE_W;
	if ((e & PTE_PS) && (c->cr4 & CR4_PSE)) {
		/* PSE-36: bits 20:13 are bits 39:32 of the address, as far as they exist. */
		u64 high = cpu_has(c, FEAT_PSE36) ? (c->maxphyaddr_mask >> 32) & 0xff : 0;
		if (e & (0x3fe000 & ~(high << 13))) {
			*err = PF_P | PF_RSVD;
			return WALK_FAULT;
		}
		w->page_size = 1u << 22;
		w->gpa = (e & 0xffc00000) | (((e >> 13) & high) << 32) | (lin & 0x3fffff);
		return WALK_OK;
	}
	if (!entry_read(c, p, (e & 0xfffff000) + ((lin >> 12) & 1023) * 4, &e))
		return WALK_SECOND;
	if (!(e & PTE_P))
		return WALK_FAULT;
	w->user = w->user && (e & PTE_U);
	w->writable = w->writable && (e & PTE_W);
	w->page_size = 4096;
	w->gpa = (e & 0xfffff000) | (lin & PAGE_MASK);
	return WALK_OK;
}

/* Under AMD's nested paging PDPTEs are no registers, but read in each walk (APM vol. 2 15.25.10). */
static bool pdptes_in_memory(const struct cpu *c) { return c->nested.paging && c->nested.mode == NEST_SVM; }

static enum walk_result walk_pae(struct cpu *c, u64 lin, struct path *p, struct walk *w, u32 *err)
{
	u64 pdpte = c->pdpte[(lin >> 30) & 3];
	*err = 0;
	if (unlikely(pdptes_in_memory(c))) {
		if (!entry_read(c, p, (c->cr3 & 0xffffffe0) + ((lin >> 30) & 3) * 8, &pdpte))
			return WALK_SECOND;
		p->n = 0; /* it has no accessed bit */
		if ((pdpte & PTE_P) && (pdpte & PDPTE_RESERVED(c))) {
			*err = PF_P | PF_RSVD;
			return WALK_FAULT;
		}
	}
	if (!(pdpte & PTE_P))
		return WALK_FAULT;
	return walk64(c, lin, pdpte & c->maxphyaddr_mask & ~PAGE_MASK, 2, p, w, err);
}

/* Fills p and w from the tables of the current mode; paging is on. */
static enum walk_result walk_tables(struct cpu *c, u64 lin, struct path *p, struct walk *w, u32 *err)
{
	*w = (struct walk){.user = true, .writable = true, .second = MAY_ALL};
	p->n = 0;
	p->entry_size = 8;
	if (cpu_long(c))
		return walk64(c, lin, c->cr3 & c->maxphyaddr_mask & ~PAGE_MASK, c->cr4 & CR4_LA57 ? 5 : 4, p, w, err);
	if (c->cr4 & CR4_PAE)
		return walk_pae(c, lin, p, w, err);
	p->entry_size = 4;
	return walk32(c, lin, p, w, err);
}

static void walk_identity(const struct cpu *c, u64 lin, struct walk *w)
{
	*w = (struct walk){.gpa = lin & c->maxphyaddr_mask, .page_size = 4096, .user = true, .writable = true, .dirty = true,
			   .second = MAY_ALL};
}

/* The page that w ends at, for acc. */
static enum walk_result walk_second(struct cpu *c, struct path *p, struct walk *w, enum access acc)
{
	struct nested_page np;
	w->guest_page_size = w->page_size;
	if (likely(!c->nested.paging))
		return WALK_OK;
	if (!second_level(c, p, &w->gpa, acc, NP_FINAL, &np))
		return WALK_SECOND;
	p->second_size = np.page_size;
	w->page_size = MIN(w->page_size, np.page_size);
	w->second = np.may;
	w->dirty = w->dirty && np.dirty;
	return WALK_OK;
}

/* What the page's protection key refuses: of user pages by PKRU, of supervisor pages by IA32_PKRS, whoever asks.
 * SDM vol. 3 4.6.2. */
enum { PKEY_AD = 1, PKEY_WD = 2 };
static unsigned pkey_bits(const struct cpu *c, const struct walk *w)
{
	if (!cpu_long(c) || !(c->cr4 & (w->user ? CR4_PKE : CR4_PKS)))
		return 0;
	return (w->user ? c->pkru : (u32)c->msr.pkrs) >> (2 * w->pkey) & (PKEY_AD | PKEY_WD);
}

unsigned mmu_rights(const struct cpu *c, const struct walk *w, enum mmu_index who)
{
	if (!(c->cr0 & CR0_PG))
		return w->second;
	unsigned may = 0;
	bool wp = c->cr0 & CR0_WP;
	if (who == MMU_USER) {
		if (w->user)
			may = MAY_READ | MAY_EXEC | (w->writable ? MAY_WRITE : 0);
	} else {
		if (!w->user || who == MMU_KERNEL)
			may = MAY_READ | (w->writable || !wp ? MAY_WRITE : 0);
		if (!w->user || !(c->cr4 & CR4_SMEP))
			may |= MAY_EXEC;
	}
	if (w->nx)
		may &= ~MAY_EXEC;
	unsigned key = pkey_bits(c, w);
	if (key & PKEY_AD)
		may = (may & ~(MAY_READ | MAY_WRITE)) | MAY_PKEY;
	else if ((key & PKEY_WD) && (wp || (who == MMU_USER && w->user)))
		may = (may & ~MAY_WRITE) | MAY_PKEY;
	return may & (w->second | (unsigned)MAY_PKEY);
}

/* Whether a protection key alone refuses acc: bit PK is set whatever else refuses it too. */
static bool pkey_refuses(const struct cpu *c, const struct walk *w, enum access acc, unsigned may)
{
	if (acc == ACC_EXEC || !(may & MAY_PKEY))
		return false;
	return acc == ACC_WRITE || (pkey_bits(c, w) & PKEY_AD);
}

static bool fetch_bit(const struct cpu *c)
{
	return (c->cr4 & CR4_SMEP) || ((c->cr4 & CR4_PAE) && (c->efer & EFER_NXE));
}

static enum walk_result walk_once(struct cpu *c, u64 lin, enum access acc, enum mmu_index who, struct path *p, struct walk *w, u32 *err)
{
	u32 mode = (acc == ACC_WRITE ? PF_W : 0) | (who == MMU_USER ? PF_U : 0) |
		   (acc == ACC_EXEC && fetch_bit(c) ? PF_I : 0);
	enum walk_result r = walk_tables(c, lin, p, w, err);
	if (r != WALK_OK) {
		*err |= mode;
		return r;
	}
	unsigned may = mmu_rights(c, w, who);
	unsigned want = acc == ACC_READ ? MAY_READ : acc == ACC_WRITE ? MAY_WRITE : MAY_EXEC;
	if (!(may & want)) {
		*err = PF_P | mode | (pkey_refuses(c, w, acc, may) ? PF_PK : 0);
		return WALK_FAULT;
	}
	for (unsigned k = 0; k < p->n; k++) {
		bool leaf = k == p->n - 1;
		r = entry_set(c, p, k, PTE_A | (leaf && acc == ACC_WRITE ? PTE_D : 0));
		if (r != WALK_OK)
			return r;
	}
	w->dirty = p->e[p->n - 1].val & PTE_D;
	return walk_second(c, p, w, acc);
}

bool mmu_walk(struct cpu *c, u64 lin, enum access acc, enum mmu_index who, struct walk *w, u32 *err)
{
	struct path p;
	enum walk_result r;
	p.peek = p.fresh = false;
	if (!(c->cr0 & CR0_PG)) {
		walk_identity(c, lin, w);
		r = walk_second(c, &p, w, acc);
	} else {
		do {
			r = walk_once(c, lin, acc, who, &p, w, err);
		} while (unlikely(r == WALK_AGAIN));
	}
	if (unlikely(r == WALK_SECOND))
		nested_paging_fault(c, lin, p.refused.gpa, p.refused.acc, p.refused.what);
	return r == WALK_OK;
}

bool mmu_peek(struct cpu *c, u64 lin, u64 *gpa)
{
	struct path p;
	struct walk w;
	u32 err;
	p.peek = true;
	p.fresh = false;
	if (!(c->cr0 & CR0_PG)) {
		walk_identity(c, lin, &w);
	} else {
		if (!cpu_long(c))
			lin = (u32)lin;
		else if (!cpu_canonical(c, lin))
			return false;
		if (walk_tables(c, lin, &p, &w, &err) != WALK_OK)
			return false;
	}
	if (walk_second(c, &p, &w, ACC_READ) != WALK_OK)
		return false;
	*gpa = w.gpa;
	return true;
}

/* The walk, if the present access might have been made before by way of these very entries. */
static bool walk_used(struct cpu *c, u64 lin, bool write, struct path *p, struct walk *w)
{
	const u64 used = PTE_P | PTE_A | (write ? PTE_D : 0);
	unsigned asked = MAY_READ | (write ? MAY_WRITE : 0);
	u32 err;
	p->peek = true;
	p->fresh = false;
	if (!cpu_long(c) || !cpu_canonical(c, lin) || walk_tables(c, lin, p, w, &err) != WALK_OK)
		return false;
	for (unsigned k = 0; k + 1 < p->n; k++)
		if (!(p->e[k].val & PTE_A))
			return false;
	if (!p->e[p->n - 1].host || (p->e[p->n - 1].val & used) != used)
		return false;
	p->final = w->gpa;
	w->dirty = write;
	if (walk_second(c, p, w, write ? ACC_WRITE : ACC_READ) != WALK_OK || p->fresh || w->dirty != write)
		return false;
	return (mmu_rights(c, w, c->mmu) & asked) == asked && (c->nested.apic_page ^ w->gpa) >= w->page_size;
}

bool mmu_used(struct cpu *c, u64 lin, bool write, struct walk *w)
{
	struct path p;
	if (!walk_used(c, lin, write, &p, w))
		return false;
	mmu_note_size(c, lin, w);
	return true;
}

/* *gpa, of a page beside the one that p and w are of, to the machine's. False: its rights are others, or it was not used. */
static bool second_beside(struct cpu *c, const struct path *p, const struct walk *w, bool write, u64 *gpa)
{
	struct nested_page np;
	if (likely(!c->nested.paging))
		return *gpa != c->nested.apic_page;
	if ((*gpa ^ p->final) < p->second_size) {
		*gpa += (w->gpa & ~PAGE_MASK) - (p->final & ~PAGE_MASK);
	} else {
		if (!nested_translate(c, *gpa, write ? ACC_WRITE : ACC_READ, NP_PEEK, &np) || !np.used || np.may != w->second || (write && !np.dirty))
			return false;
		*gpa = np.gpa;
	}
	return *gpa != c->nested.apic_page;
}

u32 mmu_neighbours(struct cpu *c, u64 lin, bool write, u64 *gpa)
{
	struct path p;
	struct walk w;
	u32 found = 0;
	const u64 address = c->maxphyaddr_mask & ~PAGE_MASK;
	if (!walk_used(c, lin, write, &p, &w) || mmu_page_mask(c, lin) < w.guest_page_size - 1u)
		return 0;
	const u8 *host = p.e[p.n - 1].host;
	u64 leaf = p.e[p.n - 1].val;
	unsigned self = (unsigned)(lin >> 12) & (MMU_GROUP - 1);
	gpa[self] = w.gpa & address;
	for (unsigned k = 0; k < MMU_GROUP; k++) {
		u64 e = leaf;
		if (k == self)
			continue;
		if (w.guest_page_size == 4096) {
			e = __atomic_load_n((const u64 *)(const void *)(host + 8 * ((i64)k - (i64)self)), __ATOMIC_ACQUIRE);
			gpa[k] = e & address;
		} else {
			gpa[k] = (p.final & address & ~(u64)(MMU_GROUP * 4096 - 1)) + k * 4096;
		}
		/* The rights are the same, and accessed and dirty. */
		if (!((e ^ leaf) & ~address & ~(u64)(write ? 0 : PTE_D)) && second_beside(c, &p, &w, write, &gpa[k]))
			found |= 1u << k;
	}
	return found;
}

/* PDPTEs are registers: loaded and checked when CR3 (or CR0, CR4) is, SDM vol. 3 4.4.1. */
bool mmu_load_pdptes(struct cpu *c, u64 cr3)
{
	u64 v[4], at = cr3 & 0xffffffe0;
	struct path p;
	struct nested_page np;
	p.peek = p.fresh = false;
	if (pdptes_in_memory(c))
		return true;
	if (c->nested.paging && !second_level(c, &p, &at, ACC_READ, NP_TABLE, &np))
		nested_paging_fault(c, at, at, ACC_READ, NP_TABLE);
	for (unsigned k = 0; k < 4; k++) {
		v[k] = mem_phys_read(c->mem, at + 8 * k, 8);
		if ((v[k] & PTE_P) && (v[k] & PDPTE_RESERVED(c)))
			return false;
	}
	for (unsigned k = 0; k < 4; k++)
		c->pdpte[k] = v[k];
	return true;
}
