/* A processor's life: made, reset, shown, told of events. SDM vol. 3 9.1 (processor state
 * after reset), table 9-1; AMD APM vol. 2 14.1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/svm.h"
#include "cpu/vmx.h"

struct cpu *cpu_new(unsigned index, struct mem *mem, struct clock *clock, const struct cpu_model *model,
		    const struct cpu_hooks *hooks)
{
	/* Zeroed, page-aligned, and no page of the large arrays is touched before its use. */
	struct cpu *c = mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (c == MAP_FAILED)
		return NULL;
	c->index = index;
	c->n_cpus = 1;
	c->bsp = index == 0;
	c->mem = mem;
	c->clock = clock;
	c->model = model;
	c->hooks = hooks;
	c->maxphyaddr_mask = model->phys_bits >= 52 ? 0x000fffffffffffffull : (1ull << model->phys_bits) - 1;
	c->icount_limit = UINT64_MAX;
	c->pcid_epoch = c->spaces[0].pcid_epoch;
	c->svm = calloc(1, sizeof(*c->svm));
	c->vmx = calloc(1, sizeof(*c->vmx));
	if (!c->svm || !c->vmx) {
		cpu_free(c);
		return NULL;
	}
	cpu_reset(c, false);
	return c;
}

void cpu_free(struct cpu *c)
{
	if (!c)
		return;
	if (c->alias)
		munmap(c->alias, 2 * PAGE_SIZE);
	free(c->svm);
	free(c->vmx);
	free(c->engine_keeps);
	munmap(c, sizeof(*c));
}

/* What INIT leaves alone and power-on does not. */
static void reset_power_on(struct cpu *c)
{
	c->cr0 = 0x60000010; /* the kept bits of INIT: CD and NW */
	c->xcr0 = 1;
	c->xss = 0;
	c->pkru = 0;
	msr_power_on(c);
	memset(c->zmm, 0, sizeof(c->zmm));
	memset(c->k, 0, sizeof(c->k));
	fpu_reset(c, false);
	atomic_store(&c->events, 0);
	atomic_store(&c->nmis, 0);
	c->icount = 0;
	c->stopped = false;
}

void cpu_reset(struct cpu *c, bool init)
{
	if (!init)
		reset_power_on(c);
	memset(c->regs, 0, sizeof(c->regs));
	const struct cpu_model *m = c->model;
	c->regs[R_DX] = (u32)m->stepping | (m->model & 15u) << 4 | MIN(m->family, 15u) << 8 |
			(m->model >> 4) << 16 | (m->family > 15 ? m->family - 15u : 0) << 20;
	c->rflags = FL_1;
	c->rip = 0xfff0;
	c->cr0 = (c->cr0 & (CR0_CD | CR0_NW)) | CR0_ET;
	c->cr2 = c->cr3 = c->cr4 = 0;
	c->efer = 0;
	memset(c->dr, 0, sizeof(c->dr));
	c->dr[6] = 0xffff0ff0;
	c->dr[7] = 0x400;

	for (unsigned s = S_ES; s <= S_GS; s++)
		c->seg[s] = (struct segment){.attr = 0x93, .limit = 0xffff};
	c->seg[S_CS] = (struct segment){.sel = 0xf000, .attr = 0x9b, .limit = 0xffff, .base = 0xffff0000};
	c->seg[S_LDTR] = (struct segment){.attr = 0x82, .limit = 0xffff};
	c->seg[S_TR] = (struct segment){.attr = 0x8b, .limit = 0xffff};
	c->gdtr = c->idtr = (struct dtable){.limit = 0xffff};

	c->cpl = 0;
	c->shadow = 0;
	c->activity = c->bsp ? ACT_RUN : ACT_WAIT_SIPI;
	c->nmi_blocked = false;
	c->keep_rip = false;
	c->dr6_pending = 0;
	c->monitor_armed = false;
	c->delivering = -1;
	c->priv_back = 0;
	c->delivering_ext = false;
	memset(c->pdpte, 0, sizeof(c->pdpte));
	c->nested = (struct nested){ .mode = NEST_NONE, .apic_page = ~0ull };
	c->icpt = 0;
	c->engine_l2 = false;
	cpu_clear_event(c, EV_VINTR | EV_NESTED);
	svm_reset(c, init);
	vmx_reset(c, init);
	c->space = 0;
	c->pcid_epoch = c->spaces[0].pcid_epoch;
	mmu_spaces_flush(c);
	cpu_update_mode(c);
}

void cpu_post_event(struct cpu *c, u32 ev)
{
	if (ev & EV_NMI)
		atomic_fetch_add(&c->nmis, 1);
	atomic_fetch_or(&c->events, ev);
}

void cpu_clear_event(struct cpu *c, u32 ev)
{
	atomic_fetch_and(&c->events, ~ev);
	if (ev & EV_NMI)
		atomic_store(&c->nmis, 0);
}

/* ---- for people ------------------------------------------------------------------------------ */

/* Appends to buf; what does not fit is cut. */
static void PRINTF_LIKE(4, 5) put(char *buf, size_t cap, size_t *at, const char *fmt, ...)
{
	if (*at >= cap)
		return;
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(buf + *at, cap - *at, fmt, ap);
	va_end(ap);
	if (n > 0)
		*at += (size_t)n;
}

void cpu_dump(const struct cpu *c, char *buf, size_t cap)
{
	static const char *const reg[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					    "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15"};
	static const char *const seg[N_SREGS] = {"es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"};
	static const char *const mode[] = {"16-bit", "32-bit", "64-bit"};
	static const char *const guest[] = {"", ", guest mode of AMD-V", ", guest mode of VT-x"};
	static const char *const act[] = {"running", "halted", "shut down", "waiting for SIPI", "in MWAIT"};
	size_t at = 0;
	if (!cap)
		return;
	buf[0] = 0;
	put(buf, cap, &at, "cpu %u: %s code, %s, CPL %u, %s%s, %llu instructions\n", c->index, mode[c->code_mode],
	    cpu_real(c) ? "real mode" : cpu_v86(c) ? "V86" : cpu_long(c) ? "long mode" : "protected mode", c->cpl,
	    act[c->activity], guest[c->nested.mode], (unsigned long long)c->icount);
	for (unsigned r = 0; r < 16; r++)
		put(buf, cap, &at, "%s %016llx%s", reg[r], (unsigned long long)c->regs[r], r % 4 == 3 ? "\n" : "  ");
	put(buf, cap, &at, "rip %016llx  rflags %08llx%s%s%s%s%s%s%s%s%s%s%s\n", (unsigned long long)c->rip,
	    (unsigned long long)c->rflags, c->rflags & FL_CF ? " CF" : "", c->rflags & FL_PF ? " PF" : "",
	    c->rflags & FL_AF ? " AF" : "", c->rflags & FL_ZF ? " ZF" : "", c->rflags & FL_SF ? " SF" : "",
	    c->rflags & FL_TF ? " TF" : "", c->rflags & FL_IF ? " IF" : "", c->rflags & FL_DF ? " DF" : "",
	    c->rflags & FL_OF ? " OF" : "", c->rflags & FL_VM ? " VM" : "", c->rflags & FL_AC ? " AC" : "");
	for (unsigned s = 0; s < N_SREGS; s++)
		put(buf, cap, &at, "%-4s %04x base %016llx limit %08x attr %05x\n", seg[s], c->seg[s].sel,
		    (unsigned long long)c->seg[s].base, c->seg[s].limit, c->seg[s].attr);
	put(buf, cap, &at, "gdtr %016llx limit %04x  idtr %016llx limit %04x\n", (unsigned long long)c->gdtr.base,
	    c->gdtr.limit, (unsigned long long)c->idtr.base, c->idtr.limit);
	put(buf, cap, &at, "cr0 %08llx  cr2 %016llx  cr3 %016llx  cr4 %08llx  efer %08llx\n",
	    (unsigned long long)c->cr0, (unsigned long long)c->cr2, (unsigned long long)c->cr3,
	    (unsigned long long)c->cr4, (unsigned long long)c->efer);
	put(buf, cap, &at, "dr0 %llx dr1 %llx dr2 %llx dr3 %llx dr6 %llx dr7 %llx  xcr0 %llx  pkru %08x\n",
	    (unsigned long long)c->dr[0], (unsigned long long)c->dr[1], (unsigned long long)c->dr[2],
	    (unsigned long long)c->dr[3], (unsigned long long)c->dr[6], (unsigned long long)c->dr[7],
	    (unsigned long long)c->xcr0, c->pkru);
	put(buf, cap, &at, "events %02x mask %02x slow %02x shadow %u%s; last exception: vector %u error %x\n",
	    atomic_load(&((struct cpu *)(u64)c)->events), c->event_mask, c->slow, c->shadow,
	    c->nmi_blocked ? ", NMI blocked" : "", c->exc.vector, c->exc.error);
}
