/* Extended page tables: the second level of paging in VMX non-root operation. Intel SDM vol. 3 28.3.
 *
 *  1. A walk reads each entry once; rights are those of all levels together.
 *  2. Accessed and dirty flags, where EPTP asks for them, are set by compare-exchange against what was read;
 *     on a difference the walk starts over. Entries of the guest's own tables count as written then.
 *  3. ept_translate() never leaves: it notes what is to be told, ept_fault() leaves.
 * Left out: memory types other than their being valid, five levels, mode-based execute control, #VE. */
#include "cpu/mmu.h"
#include "cpu/vmx.h"

enum {
	EPT_R = 1, EPT_W = 2, EPT_X = 4, EPT_RWX = 7, EPT_PAGE = 0x80, EPT_A = 0x100, EPT_D = 0x200,
	EPTP_AD = 0x40,
};
/* Exit qualification of EPT violations, SDM table 27-7. */
enum {
	VIOL_READ = 1, VIOL_WRITE = 2, VIOL_FETCH = 4, VIOL_RIGHTS_SHIFT = 3, VIOL_LINEAR = 0x80, VIOL_TRANSLATED = 0x100,
	VIOL_NMI_UNBLOCK = 0x1000,
};

struct ept_path {
	u64 gpa[4], val[4];
	unsigned n;
	u8 rights;       /* EPT_RWX of all entries so far */
	u64 page_size, hpa;
};
enum ept_result { EPT_OK, EPT_VIOLATION, EPT_MISCONFIG };

static u64 entry_read(struct cpu *c, u64 at)
{
	const u8 *host = mem_ram(c->mem, at);
	return host ? __atomic_load_n((const u64 *)(const void *)host, __ATOMIC_ACQUIRE) : mem_phys_read(c->mem, at, 8);
}

/* False: the entry has changed since. */
static bool entry_set(struct cpu *c, u64 at, u64 old, u64 bits)
{
	u8 *host = mem_ram(c->mem, at);
	if ((old & bits) == bits || !host)
		return true;
	if (!__atomic_compare_exchange_n((u64 *)(void *)host, &old, old | bits, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	mem_code_hit(c, mmu_code_of(c, host), (unsigned)(at & PAGE_MASK), 8);
	return true;
}

/* Memory types 2, 3 and 7 do not exist. */
static bool type_valid(u64 e)
{
	unsigned t = e >> 3 & 7;
	return t != 2 && t != 3 && t != 7;
}

/* level: 4 PML4E .. 1 PTE. What makes a present entry a misconfiguration, SDM 28.3.3.1. */
static bool misconfigured(const struct cpu *c, u64 e, unsigned level, bool leaf)
{
	if ((e & (EPT_R | EPT_W)) == EPT_W || (e & ~c->maxphyaddr_mask & 0x000fffffffffffffull))
		return true;
	if (!leaf)
		return level == 4 ? (e & 0xf8) != 0 : (e & 0x78) != 0;
	u64 offset = (1ull << (12 + 9 * (level - 1))) - 1;
	return !type_valid(e) || (e & offset & ~PAGE_MASK);
}

static enum ept_result walk(struct cpu *c, u64 gpa, struct ept_path *p)
{
	u64 table = VF(EPTP) & c->maxphyaddr_mask & ~PAGE_MASK;
	p->n = 0;
	p->rights = EPT_RWX;
	if (gpa >> 48) {
		p->rights = 0;
		return EPT_VIOLATION;
	}
	for (unsigned level = 4;; level--) {
		unsigned shift = 12 + 9 * (level - 1);
		u64 at = table + (gpa >> shift & 511) * 8, e = entry_read(c, at);
		p->gpa[p->n] = at;
		p->val[p->n++] = e;
		if (!(e & EPT_RWX)) {
			p->rights = 0;
			return EPT_VIOLATION;
		}
		bool leaf = level == 1 || ((e & EPT_PAGE) && level <= 3);
		if (misconfigured(c, e, level, leaf))
			return EPT_MISCONFIG;
		p->rights &= e & EPT_RWX;
		if (leaf) {
			p->page_size = 1ull << shift;
			p->hpa = (e & c->maxphyaddr_mask & ~(p->page_size - 1)) | (gpa & (p->page_size - 1));
			return EPT_OK;
		}
		table = e & c->maxphyaddr_mask & ~PAGE_MASK;
	}
}

/* The page-modification log gets gpa. False: it is full, an exit is due. SDM 28.3.6. */
static bool log_dirty(struct cpu *c, u64 gpa)
{
	u64 index = VF(PML_INDEX);
	if (index > 511)
		return false;
	vmx_phys_store(c, (VF(PML_ADDR) & ~PAGE_MASK) + index * 8, gpa & ~PAGE_MASK, 8);
	VF(PML_INDEX) = (index - 1) & 0xffff;
	return true;
}

/* Accessed flags of the path, dirty for a write. */
enum marks { MARKED, MARK_AGAIN, MARK_LOG_FULL };
static enum marks set_marks(struct cpu *c, struct ept_path *p, u64 gpa, bool write)
{
	bool was_dirty = p->val[p->n - 1] & EPT_D;
	if (write && !was_dirty && vmx_proc2(c, PROC2_PML) && VF(PML_INDEX) > 511)
		return MARK_LOG_FULL;
	for (unsigned k = 0; k < p->n; k++) {
		bool leaf = k == p->n - 1;
		if (!entry_set(c, p->gpa[k], p->val[k], EPT_A | (leaf && write ? EPT_D : 0)))
			return MARK_AGAIN;
	}
	if (write && !was_dirty && vmx_proc2(c, PROC2_PML))
		log_dirty(c, gpa);
	return MARKED;
}

static unsigned wanted(enum access acc)
{
	return acc == ACC_WRITE ? EPT_W : acc == ACC_EXEC ? EPT_X : EPT_R;
}

/* What a violation tells. */
static u64 violation(enum access acc, unsigned rights, bool as_write)
{
	u64 q = acc == ACC_WRITE ? VIOL_WRITE : acc == ACC_EXEC ? VIOL_FETCH : VIOL_READ;
	return q | (as_write ? VIOL_READ | VIOL_WRITE : 0) | (u64)rights << VIOL_RIGHTS_SHIFT;
}

bool ept_translate(struct cpu *c, u64 gpa, enum access acc, enum nested_what what, struct nested_page *np)
{
	struct ept_path p = { 0 };
	struct vmx_exit *x = &c->vmx->second;
	const bool ad = VF(EPTP) & EPTP_AD, as_write = what == NP_TABLE && (ad || acc == ACC_WRITE); /* setting a bit reads, too */
	for (;;) {
		enum ept_result r = walk(c, gpa, &p);
		*x = (struct vmx_exit){ .reason = EXIT_EPT_VIOLATION, .physical = gpa };
		if (r == EPT_MISCONFIG) {
			x->reason = EXIT_EPT_MISCONFIG;
			return false;
		}
		unsigned want = wanted(acc) | (as_write ? EPT_R | EPT_W : 0);
		if (r == EPT_VIOLATION || (p.rights & want) != want) {
			x->qualification = violation(acc, p.rights, as_write);
			return false;
		}
		if (!ad || what == NP_PEEK)
			break;
		enum marks m = set_marks(c, &p, gpa, acc == ACC_WRITE || as_write);
		if (m == MARK_LOG_FULL) {
			x->reason = EXIT_PML_FULL;
			return false;
		}
		if (m == MARKED)
			break;
	}
	np->gpa = p.hpa;
	np->page_size = p.page_size;
	np->may = (u8)((p.rights & EPT_R ? MAY_READ : 0) | (p.rights & EPT_W ? MAY_WRITE : 0) | (p.rights & EPT_X ? MAY_EXEC : 0));
	np->used = true;
	for (unsigned k = 0; k < p.n && ad && what == NP_PEEK; k++)
		np->used &= (p.val[k] & EPT_A) != 0;
	np->dirty = !ad || (what != NP_PEEK && (acc == ACC_WRITE || as_write)) || (p.val[p.n - 1] & EPT_D);
	return true;
}

_Noreturn void ept_fault(struct cpu *c, u64 lin, u64 gpa, enum access acc, enum nested_what what)
{
	struct vmx_exit x = c->vmx->second;
	x.linear = lin;
	x.set_rf = !c->nested.vectoring;
	if (x.reason == EXIT_EPT_VIOLATION)
		x.qualification |= VIOL_LINEAR | (what == NP_TABLE ? 0 : VIOL_TRANSLATED);
	if (x.reason != EXIT_EPT_MISCONFIG && vmx_iret_unblocked(c))
		x.qualification |= VIOL_NMI_UNBLOCK;
	vmx_leave_with(c, x);
}
