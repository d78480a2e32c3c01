/* The translation lookaside buffers: filling, flushing, PCIDs. SDM vol. 3 4.10.
 *
 * Invariants
 *  1. An entry is live iff its tag's low 12 bits are the current epoch. An epoch belongs to one
 *     address space (PCID) of one struct tlb_space (the host's, or a guest's by its ASID or VPID)
 *     since its last flush; epochs count up, and when they run out all arrays and epochs are cleared.
 *  2. Entries are 4-KiB fragments, whatever the page's size. tlb_large says where larger pages
 *     may have fragments; INVLPG then drops all of a fragment's neighbours too.
 *  3. Global pages are not told apart: a flush that may keep them drops them. INVLPG clears a
 *     slot whatever its epoch, so that a page that is global goes from every address space.
 *  4. wtag is set only for RAM that the index may write and whose leaf is dirty: a later store
 *     needs neither a check nor a bit. MMU_CHECK's array is never filled.
 *  5. What entries depend on beside the tables: CR0.PG, CR0.WP, CR4.{PSE,PAE,LA57,SMEP,PKE,PKS,
 *     PGE,PCIDE}, EFER.{NXE,LMA}, PKRU, IA32_PKRS, the memory map. Whoever changes one calls mmu_flush_all (the map:
 *     mmu_spaces_flush). CR4.SMAP and AC need none: they choose another array. An entry or exit that
 *     comes back to a tlb_space with another one than it was left with drops it. */
#include <string.h>

#include "cpu/mmu.h"
#include "cpu/nested_api.h"

static void tell_engine(struct cpu *c, u64 lin, u64 mask)
{
	if (c->on_tlb_flush)
		c->on_tlb_flush(c, lin, mask);
}

/* Nothing that was cached is live any more: unless other spaces have something. */
static void forget_large(struct cpu *c)
{
	if (c->tlb_large.any && !c->space_clock)
		c->tlb_large = (struct tlb_large){0};
}

static void forget_epochs(struct tlb_space *s) { memset(s->pcid_epoch, 0, sizeof(s->pcid_epoch)); }

static void forget_spaces(struct cpu *c)
{
	for (unsigned k = 0; k < TLB_SPACES; k++) {
		if (k && !c->spaces[k].used)
			continue;
		forget_epochs(&c->spaces[k]);
		if (k != c->space)
			c->spaces[k].used = 0;
	}
	c->tlb_large = (struct tlb_large){0};
}

static u64 epoch_take(struct cpu *c)
{
	if (unlikely(c->epoch_next >= 0xfff)) {
		memset(c->tlbs, 0, sizeof(c->tlbs));
		memset(c->code_tlb, 0, sizeof(c->code_tlb));
		forget_spaces(c);
		c->epoch_next = 0;
		tell_engine(c, 0, ~0ull);
	}
	return ++c->epoch_next;
}

static unsigned pcid_current(const struct cpu *c)
{
	return c->cr4 & CR4_PCIDE ? c->cr3 & 0xfff : 0;
}

void mmu_flush_current(struct cpu *c)
{
	c->epoch = epoch_take(c);
	c->pcid_epoch[pcid_current(c)] = (u16)c->epoch;
}

void mmu_flush_all(struct cpu *c)
{
	forget_epochs(&c->spaces[c->space]);
	forget_large(c);
	mmu_flush_current(c);
}

void mmu_spaces_flush(struct cpu *c)
{
	forget_spaces(c);
	mmu_flush_current(c);
}

/* ---- spaces: the host's and guests' ---------------------------------------------------------- */

/* What invariant 5 lists, but for the map. */
static u64 paging_mode(const struct cpu *c)
{
	const u64 of_cr4 = CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP | CR4_PKE | CR4_PKS;
	return (c->cr4 & of_cr4) | (c->cr0 & CR0_PG ? 1 : 0) | (c->cr0 & CR0_WP ? 2 : 0) | (c->efer & EFER_NXE ? 4 : 0) |
	       (c->efer & EFER_LMA ? 8 : 0) | (u64)c->pkru << 32;
}
static u64 only_cr3(const struct cpu *c) { return c->cr4 & CR4_PCIDE ? 0 : c->cr3; }

void mmu_space_leave(struct cpu *c)
{
	struct tlb_space *s = &c->spaces[c->space];
	s->mode = paging_mode(c);
	s->cr3 = only_cr3(c);
	s->pkrs = c->msr.pkrs;
}

/* The space of tag and root, or the guest's that was not used longest, empty. */
static unsigned space_find(struct cpu *c, u64 tag, u64 root)
{
	unsigned oldest = 1;
	if (!tag)
		return 0;
	for (unsigned k = 1; k < TLB_SPACES; k++) {
		struct tlb_space *s = &c->spaces[k];
		if (s->used && s->tag == tag && s->root == root)
			return k;
		if (s->used < c->spaces[oldest].used)
			oldest = k;
	}
	forget_epochs(&c->spaces[oldest]);
	c->spaces[oldest].tag = tag;
	c->spaces[oldest].root = root;
	return oldest;
}

static void space_flush(struct cpu *c, struct tlb_space *s)
{
	forget_epochs(s);
	c->nested_counts.flushes++;
}

void mmu_space_flush(struct cpu *c, u64 tag)
{
	for (unsigned k = 1; k < TLB_SPACES; k++)
		if (c->spaces[k].used && c->spaces[k].tag == tag)
			space_flush(c, &c->spaces[k]);
}

void mmu_root_flush(struct cpu *c, u64 root)
{
	for (unsigned k = 1; k < TLB_SPACES; k++)
		if (c->spaces[k].used && (!root || !((c->spaces[k].root ^ root) & ~PAGE_MASK)))
			space_flush(c, &c->spaces[k]);
}

void mmu_space_enter(struct cpu *c, u64 tag, u64 root, bool flush)
{
	if (flush)
		mmu_space_flush(c, tag);
	c->space = (u8)space_find(c, tag, root);
	struct tlb_space *s = &c->spaces[c->space];
	s->used = ++c->space_clock;
	c->pcid_epoch = s->pcid_epoch;
	if (s->mode != paging_mode(c) || s->cr3 != only_cr3(c) || s->pkrs != c->msr.pkrs)
		forget_epochs(s);
	u16 old = c->pcid_epoch[pcid_current(c)];
	if (old)
		c->epoch = old;
	else
		mmu_flush_current(c);
	struct nested_counts *n = &c->nested_counts;
	*(tag ? &n->entries : &n->exits) += 1;
	*(tag ? &n->entries_kept : &n->exits_kept) += old != 0;
}

/* CR3 holds val (bit 63 already taken off). noflush: the PCID's translations may stay. */
void mmu_set_cr3(struct cpu *c, u64 val, bool noflush)
{
	c->cr3 = val;
	u16 old = c->pcid_epoch[pcid_current(c)];
	if (noflush && (c->cr4 & CR4_PCIDE) && old) {
		c->epoch = old;
		return;
	}
	if (!(c->cr4 & CR4_PCIDE))
		forget_large(c);
	mmu_flush_current(c);
}

/* The bits of lin in c->tlb_large. */
static unsigned large_half(u64 lin, unsigned bits) { return (unsigned)(lin >> 63) << bits; }
static unsigned large_m4(u64 lin) { return ((lin >> 22) & 2047) | large_half(lin, 11); }
static unsigned large_g1(u64 lin) { return ((lin >> 30) & 31) | large_half(lin, 5); }

u64 mmu_page_mask(const struct cpu *c, u64 lin)
{
	const struct tlb_large *l = &c->tlb_large;
	if (!l->any)
		return PAGE_MASK;
	if (l->g1 >> large_g1(lin) & 1)
		return (1ull << 30) - 1;
	if (l->m4[large_m4(lin) / 64] >> (large_m4(lin) % 64) & 1)
		return (1ull << 22) - 1;
	return PAGE_MASK;
}

/* Drops entries of one array whose page differs from lin only in bits of mask, which are as many
 * slots side by side as the mask has pages. */
static void drop_range(struct tlb_entry *t, u64 lin, u64 mask)
{
	unsigned n = (unsigned)MIN((mask >> 12) + 1, TLB_SIZE);
	unsigned first = (unsigned)(lin >> 12) & (TLB_SIZE - 1) & ~(n - 1);
	for (unsigned k = first; k < first + n; k++) {
		if (!(((t[k].rtag | t[k].wtag) ^ lin) & ~mask)) /* rtag and wtag name one page or are 0 */
			t[k].rtag = t[k].wtag = 0;
	}
}

void mmu_invlpg(struct cpu *c, u64 lin)
{
	const u64 mask = mmu_page_mask(c, lin);
	for (unsigned m = 0; m < N_MMU; m++) {
		if (m == MMU_CHECK)
			continue;
		if (mask == PAGE_MASK) {
			struct tlb_entry *e = &c->tlbs[m][(lin >> 12) & (TLB_SIZE - 1)];
			e->rtag = e->wtag = 0;
		} else {
			drop_range(c->tlbs[m], lin, mask);
		}
	}
	for (unsigned u = 0; u < 2; u++) {
		struct code_tlb_entry *t = c->code_tlb[u];
		if (mask == PAGE_MASK) {
			t[(lin >> 12) & (CODE_TLB_SIZE - 1)].tag = 0;
			continue;
		}
		for (unsigned k = 0; k < CODE_TLB_SIZE; k++) {
			if (!((t[k].tag ^ lin) & ~mask))
				t[k].tag = 0;
		}
	}
	tell_engine(c, lin, mask);
}

void mmu_invpcid(struct cpu *c, u64 type, u64 pcid, u64 lin)
{
	if (type > 3 || pcid > 0xfff)
		cpu_gp0(c);
	if (type < 2 && pcid && !(c->cr4 & CR4_PCIDE))
		cpu_gp0(c);
	if (type == 0) {
		if (!cpu_address_valid(c, lin))
			cpu_gp0(c);
		mmu_invlpg(c, lin);
	} else if (type == 1) {
		if (pcid == pcid_current(c)) {
			mmu_flush_current(c);
		} else {
			c->pcid_epoch[pcid] = 0;
		}
	} else {
		mmu_flush_all(c);
	}
}

void mmu_set_pkru(struct cpu *c, u32 val)
{
	if (c->pkru == val)
		return;
	c->pkru = val;
	if (c->cr4 & CR4_PKE)
		mmu_flush_all(c);
}

/* ---- filling ------------------------------------------------------------------------------ */

/* Where gpa is in the host. */
static void locate(struct cpu *c, u64 gpa, struct mmu_page *p)
{
	p->gpa = gpa;
	if (unlikely((gpa & ~PAGE_MASK) == c->nested.apic_page)) { /* never by way of the TLB */
		p->host = NULL;
		p->code = NULL;
		return;
	}
	p->host = mem_ram(c->mem, gpa);
	if (likely(p->host != NULL)) {
		p->code = mmu_code_of(c, p->host);
		return;
	}
	struct mem_page rom = mem_page(c->mem, gpa);
	p->host = rom.host ? rom.host + (gpa & PAGE_MASK) : NULL;
	p->code = rom.writable ? rom.code : NULL;
}

void mmu_note_size(struct cpu *c, u64 lin, const struct walk *w)
{
	struct tlb_large *l = &c->tlb_large;
	if (w->guest_page_size <= 4096)
		return;
	l->any = true;
	if (w->guest_page_size > 1u << 22)
		l->g1 |= 1ull << large_g1(lin);
	else
		l->m4[large_m4(lin) / 64] |= 1ull << (large_m4(lin) % 64);
}

/* Outside long mode addresses have 32 bits and none is wrong. In long mode: #SS(0) if the
 * access was through SS, else #GP(0). Accesses carry no segment by the time that they get
 * here, so the instruction under way tells: of one that has a memory operand and uses the stack
 * (PUSH, CALL), what lies near the operand's address is the operand's. */
void mmu_check_canonical(struct cpu *c, u64 lin)
{
	if (!cpu_long(c) || likely(cpu_canonical(c, lin)))
		return;
	const struct insn *i = c->cur;
	bool stack = false;
	if (cpu_code64(c) && i) {
		bool operand = i->flags & IF_MEM;
		if (operand && (i->flags & IF_STACK)) {
			u64 ea = c->regs[i->base] + (c->regs[i->index] << i->scale) + (u64)i->disp;
			if (i->adsz == 4)
				ea = (u32)ea;
			operand = lin - (ea + c->ebase[i->seg]) < 4096;
		}
		stack = operand ? i->seg == S_SS : (i->flags & IF_STACK) != 0;
	}
	cpu_raise_err(c, stack ? V_SS : V_GP, 0);
}

void mmu_resolve(struct cpu *c, u64 lin, enum access acc, enum mmu_index who, struct mmu_page *p)
{
	struct tlb_entry *e = &c->tlbs[who][(lin >> 12) & (TLB_SIZE - 1)];
	const u64 tag = (lin & ~PAGE_MASK) | c->epoch;
	if ((acc == ACC_WRITE ? e->wtag : e->rtag) == tag) {
		p->host = (u8 *)(lin + e->addend);
		p->code = e->code;
		p->gpa = 0;
		return;
	}
	mmu_check_canonical(c, lin);
	struct walk w;
	u32 err;
	if (!mmu_walk(c, lin, acc, who, &w, &err))
		cpu_raise_pf(c, lin, err);
	locate(c, w.gpa, p);
	if (!p->host)
		return;
	unsigned may = mmu_rights(c, &w, who);
	mmu_note_size(c, lin, &w);
	e->rtag = may & MAY_READ ? tag : 0;
	e->wtag = (may & MAY_WRITE) && w.dirty && p->code ? tag : 0;
	e->addend = (u64)p->host - lin;
	e->code = p->code;
}

const struct code_tlb_entry *mmu_fetch_page(struct cpu *c, u64 lin)
{
	bool user = c->cpl == 3;
	if (!cpu_code64(c))
		lin = (u32)lin;
	struct code_tlb_entry *e = &c->code_tlb[user][(lin >> 12) & (CODE_TLB_SIZE - 1)];
	const u64 tag = (lin & ~PAGE_MASK) | c->epoch;
	if (e->tag == tag)
		return e;
	if (cpu_long(c) && !cpu_canonical(c, lin))
		cpu_gp0(c);
	struct walk w;
	u32 err;
	if (!mmu_walk(c, lin, ACC_EXEC, user ? MMU_USER : MMU_KERNEL, &w, &err))
		cpu_raise_pf(c, lin, err);
	struct mmu_page p;
	locate(c, w.gpa & ~PAGE_MASK, &p);
	if (unlikely(p.gpa == c->nested.apic_page))
		nested_apic_fetch(c, lin);
	mmu_note_size(c, lin, &w);
	if (!p.code && p.host && (u64)(p.host - c->mem->ram) < c->mem->ram_size)
		p.code = mmu_code_of(c, p.host); /* read-only here, but somebody may write it elsewhere, or later: shadow RAM */
	*e = (struct code_tlb_entry){.tag = tag, .gpa_page = w.gpa & ~PAGE_MASK, .host = p.host, .code = p.code};
	return e;
}
