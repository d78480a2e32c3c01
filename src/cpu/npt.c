/* Nested paging: from guest-physical addresses to the machine's, by tables of the format that the host's own
 * paging has. AMD APM vol. 2 15.25.
 *
 *  1. Every access is a user's: entries need U. An access to an entry of the guest's tables counts as a write,
 *     so what those lie in needs W, and gets its dirty bit (15.25.5).
 *  2. Of the host's control bits EFER.NXE, CR4.PAE and LA57 and EFER.LMA count, as VMRUN found them; CR0.WP
 *     does not (15.25.3).
 *  3. As in walk.c accessed and dirty bits are set once the access is known to be allowed, by
 *     compare-exchange, and on a difference the walk starts over. */
#include "cpu/mmu.h"
#include "cpu/svm.h"

enum { NPTE_P = 1, NPTE_W = 2, NPTE_U = 4, NPTE_A = 0x20, NPTE_D = 0x40, NPTE_PS = 0x80, NPTE_8 = 0x100 };
#define NPTE_NX (1ull << 63)

struct npt_walk {
	struct { u8 *host; u64 val; } e[5];
	unsigned n, entry_size;
	u64 gpa, page_size, rights; /* rights: W and U of all entries, and NX of any */
	u32 error;                  /* P and RSVD */
};

static u64 npt_entry(struct cpu *c, struct npt_walk *w, u64 at)
{
	u8 *host = mem_ram(c->mem, at);
	u64 val;
	if (!host)
		val = mem_phys_read(c->mem, at, w->entry_size);
	else if (w->entry_size == 8)
		val = __atomic_load_n((u64 *)(void *)host, __ATOMIC_ACQUIRE);
	else
		val = __atomic_load_n((u32 *)(void *)host, __ATOMIC_ACQUIRE);
	w->e[w->n].host = host;
	w->e[w->n++].val = val;
	w->rights = (w->rights & (val | NPTE_NX)) | (val & NPTE_NX);
	return val;
}

/* False: the entry has changed. */
static bool npt_set(struct cpu *c, struct npt_walk *w, unsigned k, u64 bits)
{
	u64 old = w->e[k].val, new = old | bits;
	u8 *host = w->e[k].host;
	bool done;
	if (old == new || !host)
		return true;
	if (w->entry_size == 8) {
		done = __atomic_compare_exchange_n((u64 *)(void *)host, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	} else {
		u32 old32 = (u32)old;
		done = __atomic_compare_exchange_n((u32 *)(void *)host, &old32, (u32)new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
	if (!done)
		return false;
	w->e[k].val = new;
	mem_code_hit(c, mmu_code_of(c, host), (unsigned)((u64)(host - c->mem->ram) & PAGE_MASK), w->entry_size);
	return true;
}

/* 8-byte entries, from the table of `level` on. False: not present or reserved bits. */
static bool npt_walk64(struct cpu *c, struct npt_walk *w, u64 gpa, u64 table, unsigned level)
{
	u64 always = ~c->maxphyaddr_mask & 0x000fffffffffffffull;
	if (!(c->svm->host.efer & EFER_NXE))
		always |= NPTE_NX;
	for (;; level--) {
		unsigned shift = 12 + 9 * (level - 1);
		u64 e = npt_entry(c, w, table + ((gpa >> shift) & 511) * 8), reserved = always;
		bool leaf = level == 1 || ((e & NPTE_PS) && (level == 2 || (level == 3 && cpu_has(c, FEAT_PDPE1GB))));
		w->error = 0;
		if (!(e & NPTE_P))
			return false;
		if (leaf && level > 1)
			reserved |= ((1ull << shift) - 1) & ~0x1fffull;
		else if (level > 2)
			reserved |= NPTE_PS | NPTE_8;
		if (e & reserved) {
			w->error = PF_P | PF_RSVD;
			return false;
		}
		if (leaf) {
			w->page_size = 1ull << shift;
			w->gpa = (e & c->maxphyaddr_mask & ~(w->page_size - 1)) | (gpa & (w->page_size - 1));
			return true;
		}
		table = e & c->maxphyaddr_mask & ~PAGE_MASK;
	}
}

static bool npt_walk32(struct cpu *c, struct npt_walk *w, u64 gpa)
{
	u64 e = npt_entry(c, w, (c->svm->ncr3 & 0xfffff000) + ((gpa >> 22) & 1023) * 4);
	w->error = 0;
	if (!(e & NPTE_P))
		return false;
	if ((e & NPTE_PS) && (c->svm->host.cr4 & CR4_PSE)) {
		u64 high = cpu_has(c, FEAT_PSE36) ? (c->maxphyaddr_mask >> 32) & 0xff : 0;
		if (e & (0x3fe000 & ~(high << 13))) {
			w->error = PF_P | PF_RSVD;
			return false;
		}
		w->page_size = 1u << 22;
		w->gpa = (e & 0xffc00000) | (((e >> 13) & high) << 32) | (gpa & 0x3fffff);
		return true;
	}
	e = npt_entry(c, w, (e & 0xfffff000) + ((gpa >> 12) & 1023) * 4);
	if (!(e & NPTE_P))
		return false;
	w->page_size = 4096;
	w->gpa = (e & 0xfffff000) | (gpa & PAGE_MASK);
	return true;
}

static bool npt_tables(struct cpu *c, struct npt_walk *w, u64 gpa)
{
	const struct svm_host *h = &c->svm->host;
	w->n = 0;
	w->entry_size = 8;
	w->rights = NPTE_W | NPTE_U;
	w->error = 0;
	if (h->efer & EFER_LMA)
		return npt_walk64(c, w, gpa, c->svm->ncr3 & c->maxphyaddr_mask & ~PAGE_MASK, h->cr4 & CR4_LA57 ? 5 : 4);
	if (gpa >> 32)
		return false;
	if (!(h->cr4 & CR4_PAE)) {
		w->entry_size = 4;
		return npt_walk32(c, w, gpa);
	}
	u64 pdpte = mem_phys_read(c->mem, (c->svm->ncr3 & 0xffffffe0) + (gpa >> 30 & 3) * 8, 8);
	if (!(pdpte & NPTE_P))
		return false;
	if (pdpte & (~c->maxphyaddr_mask | 0x1e6)) {
		w->error = PF_P | PF_RSVD;
		return false;
	}
	return npt_walk64(c, w, gpa, pdpte & c->maxphyaddr_mask & ~PAGE_MASK, 2);
}

bool npt_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *p)
{
	const struct svm_host *h = &c->svm->host;
	const bool write = acc == ACC_WRITE || what == NP_TABLE, fetch = acc == ACC_EXEC && what != NP_TABLE;
	struct npt_walk w;
	bool again;
	do {
		again = false;
		bool found = npt_tables(c, &w, gpa);
		if (!found || !(w.rights & NPTE_U) || (write && !(w.rights & NPTE_W)) || (fetch && w.rights & NPTE_NX)) {
			bool tells = (h->efer & EFER_NXE) || (h->cr4 & CR4_SMEP);
			c->svm->np_error = (found ? PF_P : w.error) | PF_U | (write ? PF_W : 0) | (fetch && tells ? PF_I : 0);
			return false;
		}
		for (unsigned k = 0; k < w.n && what != NP_PEEK && !again; k++)
			again = !npt_set(c, &w, k, NPTE_A | (write && k == w.n - 1 ? NPTE_D : 0));
	} while (unlikely(again));
	bool used = true;
	for (unsigned k = 0; k < w.n; k++)
		used &= (w.e[k].val & NPTE_A) != 0;
	*p = (struct nested_page){ .gpa = w.gpa, .page_size = w.page_size, .used = used, .dirty = w.e[w.n - 1].val & NPTE_D,
				   .may = (u8)(MAY_READ | (w.rights & NPTE_W ? MAY_WRITE : 0) | (w.rights & NPTE_NX ? 0 : MAY_EXEC)) };
	return true;
}

#define NPF_FINAL (1ull << 32)
#define NPF_TABLE (1ull << 33)
_Noreturn void npt_fault(struct cpu *c, u64 gpa, enum access acc, enum nested_what what)
{
	u64 info = c->svm->np_error | (what == NP_TABLE ? NPF_TABLE : NPF_FINAL);
	if (acc == ACC_EXEC)
		svm_exit(c, SVM_EXIT_NPF, info, gpa);
	svm_exit_bytes(c, SVM_EXIT_NPF, info, gpa);
}
