/* Intercepts of AMD-V, and #VMEXIT. AMD APM vol. 2 15.6 to 15.15, appendix C.
 *
 *  1. svm_intercept() and its kin change nothing: they leave by svm_exit(), or return.
 *  2. svm_vmexit() runs with RIP where the manual has it saved: at the instruction for faults and
 *     instructions, behind it for traps and between instructions. It writes the VMCB that VMRUN was given,
 *     then loads what VMRUN saved; FS, GS, TR, LDTR and what else VMSAVE is for stay the guest's. */
#include <string.h>

#include "cpu/seg.h"
#include "cpu/svm.h"

/* ---- leaving -------------------------------------------------------------------------------- */

static void note(struct cpu *c, u64 code, u64 info1, u64 info2)
{
	struct svm *s = c->svm;
	s->exit_code = code;
	s->exit_info1 = info1;
	s->exit_info2 = info2;
	s->next_rip = 0;
	s->insn_len = 0;
	s->shadow = c->cur && !c->nested.vectoring ? c->shadow_before : 0;
}

_Noreturn void svm_exit(struct cpu *c, u64 code, u64 info1, u64 info2)
{
	note(c, code, info1, info2);
	nested_unwind(c);
}

static u64 insn_start(const struct cpu *c) { return c->regs[R_BLOCK] + c->cur->off; }

static u64 next_rip(const struct cpu *c)
{
	u64 next = insn_start(c) + c->cur->len;
	return cpu_code64(c) ? next : (u32)next;
}

/* Of an instruction: tells where the next one is. */
static _Noreturn void exit_insn(struct cpu *c, u64 code, u64 info1, u64 info2)
{
	note(c, code, info1, info2);
	if (c->cur && cpu_has(c, FEAT_NRIPS))
		c->svm->next_rip = next_rip(c);
	nested_unwind(c);
}

/* Up to 15 bytes at lin, as far as they are mapped. */
static u8 fetch(struct cpu *c, u64 lin, u8 *to)
{
	u8 n = 0;
	u64 gpa = 0;
	for (; n < 15; n++, gpa++) {
		u64 at = cpu_code64(c) ? lin + n : (u32)(lin + n);
		if ((!n || !(at & PAGE_MASK)) && !mmu_peek(c, at, &gpa))
			break;
		if (!mem_ram(c->mem, gpa))
			break;
		to[n] = (u8)mem_phys_read(c->mem, gpa, 1);
	}
	return n;
}

/* Not while an event is on its way: the bytes would be those of another. */
_Noreturn void svm_exit_bytes(struct cpu *c, u64 code, u64 info1, u64 info2)
{
	struct svm *s = c->svm;
	note(c, code, info1, info2);
	if (c->cur && !c->nested.vectoring && cpu_has(c, FEAT_DECODEASSISTS))
		s->insn_len = fetch(c, c->ebase[S_CS] + insn_start(c), s->insn_bytes);
	nested_unwind(c);
}

/* ---- registers --------------------------------------------------------------------------------- */

#define MOV_ASSIST (1ull << 63) /* EXITINFO1 names a general register: of MOV, not of LMSW, CLTS, SMSW */

static u64 cr_info(const struct cpu *c, enum cr_how how, unsigned gpr)
{
	return how == CR_MOV && cpu_has(c, FEAT_DECODEASSISTS) ? MOV_ASSIST | (gpr & 15) : 0;
}

u64 svm_cr_write(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr)
{
	if (svm_wants(c, SVM_EXIT_CR_WRITE + cr))
		exit_insn(c, SVM_EXIT_CR_WRITE + cr, cr_info(c, how, gpr), 0);
	/* What writes other bits than TS and MP; LMSW always. */
	if (cr == 0 && svm_wants(c, SVM_EXIT_CR0_SELECTIVE) && (how == CR_LMSW || ((c->cr0 ^ v) & ~(u64)(CR0_TS | CR0_MP))))
		exit_insn(c, SVM_EXIT_CR0_SELECTIVE, cr_info(c, how, gpr), 0);
	return v;
}

u64 svm_cr_read(struct cpu *c, unsigned cr, u64 v, enum cr_how how, unsigned gpr)
{
	if (svm_wants(c, cr))
		exit_insn(c, cr, cr_info(c, how, gpr), 0);
	return v;
}

/* Two bits a register, read and write, in 2 KiB for each of three ranges; registers beyond are always wanted. */
static bool msr_wanted(struct cpu *c, u32 msr, bool write)
{
	static const u32 first[] = { 0, 0xc0000000, 0xc0010000 };
	if (!svm_wants(c, SVM_EXIT_MSR))
		return false;
	for (unsigned k = 0; k < ARRAY_LEN(first); k++) {
		u32 n = msr - first[k];
		if (n < 0x2000)
			return mem_phys_read(c->mem, c->svm->msrpm + 0x800 * k + n / 4, 1) >> (n % 4 * 2 + write) & 1;
	}
	return true;
}

bool svm_guest_msr_read(struct cpu *c, u32 msr, u64 *v)
{
	if (msr_wanted(c, msr, false))
		exit_insn(c, SVM_EXIT_MSR, 0, 0);
	if (msr != 0x10)
		return false;
	*v = svm_tsc(c, cpu_tsc(c));
	return true;
}

bool svm_guest_msr_write(struct cpu *c, u32 msr, u64 v)
{
	if (msr_wanted(c, msr, true))
		exit_insn(c, SVM_EXIT_MSR, 1, 0);
	return false;
}

/* ---- instructions ---------------------------------------------------------------------------------- */

/* EXITINFO1 of IN and OUT. */
enum { IOIO_IN = 1, IOIO_STRING = 4, IOIO_REP = 8, IOIO_SIZE_SHIFT = 4, IOIO_ADDRESS_SHIFT = 7, IOIO_SEG_SHIFT = 10, IOIO_PORT_SHIFT = 16 };

static void io(struct cpu *c, u64 info)
{
	u16 port = (u16)info;
	unsigned size = info >> 16 & 7;
	const struct insn *i = c->cur;
	u64 map = mem_phys_read(c->mem, c->svm->iopm + port / 8, 1);
	if (port % 8 + size > 8) /* of the last ports: the third page's */
		map |= mem_phys_read(c->mem, c->svm->iopm + port / 8 + 1, 1) << 8;
	if (!(map >> (port % 8) & ((1u << size) - 1)))
		return;
	u64 info1 = (u64)port << IOIO_PORT_SHIFT | (info & IO_IN ? IOIO_IN : 0) | size << IOIO_SIZE_SHIFT;
	if (i)
		info1 |= (u64)(i->adsz >> 1) << IOIO_ADDRESS_SHIFT; /* 16, 32, 64 bits: 1, 2, 4 */
	if (info & IO_STRING && i) {
		info1 |= IOIO_STRING | (i->flags & (IF_REP | IF_REPNE) ? IOIO_REP : 0);
		if (cpu_has(c, FEAT_DECODEASSISTS))
			info1 |= (u64)(info & IO_IN ? S_ES : i->seg) << IOIO_SEG_SHIFT;
	}
	exit_insn(c, SVM_EXIT_IOIO, info1, i ? next_rip(c) : 0);
}

/* PAUSE is let through so many times in a row; where there is a threshold, a longer time between two ends a row. */
static bool pause_filtered(struct cpu *c)
{
	struct svm *s = c->svm;
	if (!s->pause_count)
		return false;
	if (s->pause_threshold) {
		u64 now = cpu_tsc(c);
		if (now - s->pause_last > s->pause_threshold)
			s->pause_left = s->pause_count;
		s->pause_last = now;
	}
	if (!s->pause_left)
		return false;
	s->pause_left--;
	return true;
}

static void task_switch_exit(struct cpu *c, u64 info)
{
	enum task_why why = info >> 16 & 0xff;
	bool has_error = info >> 24 & 1;
	u64 info2 = has_error ? info >> 32 | 1ull << 44 : 0;
	info2 |= why == TASK_IRET ? 1ull << 36 : why == TASK_JMP ? 1ull << 38 : 0;
	info2 |= info & ICPT_TASK_RF ? 1ull << 48 : 0;
	if (svm_wants(c, SVM_EXIT_TASK_SWITCH))
		svm_exit(c, SVM_EXIT_TASK_SWITCH, (u16)info, info2);
}

static void vm_insn(struct cpu *c, enum vm_insn x)
{
	static const u8 code[] = {
		[VM_RUN] = SVM_EXIT_VMRUN, [VM_MCALL] = SVM_EXIT_VMMCALL, [VM_LOAD] = SVM_EXIT_VMLOAD, [VM_SAVE] = SVM_EXIT_VMSAVE,
		[VM_STGI] = SVM_EXIT_STGI, [VM_CLGI] = SVM_EXIT_CLGI, [VM_SKINIT] = SVM_EXIT_SKINIT, [VM_INVLPGA] = SVM_EXIT_INVLPGA,
	};
	if (svm_wants(c, code[x]))
		exit_insn(c, code[x], x == VM_INVLPGA && cpu_has(c, FEAT_DECODEASSISTS) ? c->regs[R_AX] : 0, 0);
}

/* Those that have one code and say nothing more. */
static unsigned code_of(enum intercept x)
{
	switch (x) {
	case ICPT_IDTR_READ: return SVM_EXIT_IDTR_READ;
	case ICPT_GDTR_READ: return SVM_EXIT_GDTR_READ;
	case ICPT_LDTR_READ: return SVM_EXIT_LDTR_READ;
	case ICPT_TR_READ: return SVM_EXIT_TR_READ;
	case ICPT_IDTR_WRITE: return SVM_EXIT_IDTR_WRITE;
	case ICPT_GDTR_WRITE: return SVM_EXIT_GDTR_WRITE;
	case ICPT_LDTR_WRITE: return SVM_EXIT_LDTR_WRITE;
	case ICPT_TR_WRITE: return SVM_EXIT_TR_WRITE;
	case ICPT_XSETBV: return SVM_EXIT_XSETBV;
	case ICPT_ICEBP: return SVM_EXIT_ICEBP;
	case ICPT_IRET: return SVM_EXIT_IRET;
	case ICPT_PUSHF: return SVM_EXIT_PUSHF;
	case ICPT_POPF: return SVM_EXIT_POPF;
	case ICPT_HLT: return SVM_EXIT_HLT;
	case ICPT_MONITOR: return SVM_EXIT_MONITOR;
	case ICPT_CPUID: return SVM_EXIT_CPUID;
	case ICPT_RDTSC: return SVM_EXIT_RDTSC;
	case ICPT_RDTSCP: return SVM_EXIT_RDTSCP;
	case ICPT_RDPMC: return SVM_EXIT_RDPMC;
	case ICPT_RSM: return SVM_EXIT_RSM;
	case ICPT_INVD: return SVM_EXIT_INVD;
	case ICPT_WBINVD: return SVM_EXIT_WBINVD;
	default: return 0;
	}
}

void svm_intercept(struct cpu *c, enum intercept x, u64 info)
{
	bool assists = cpu_has(c, FEAT_DECODEASSISTS);
	switch (x) {
	case ICPT_INTR: svm_exit(c, SVM_EXIT_INTR, 0, 0);
	case ICPT_NMI: svm_exit(c, SVM_EXIT_NMI, 0, 0);
	case ICPT_INIT: svm_exit(c, SVM_EXIT_INIT, 0, 0);
	case ICPT_SMI:
		cpu_clear_event(c, EV_SMI); /* the host's handler would be transparent */
		svm_exit(c, SVM_EXIT_SMI, 0, 0);
	case ICPT_SHUTDOWN: svm_exit(c, SVM_EXIT_SHUTDOWN, 0, 0);
	case ICPT_FERR_FREEZE: exit_insn(c, SVM_EXIT_FERR_FREEZE, 0, 0);
	case ICPT_TASK_SWITCH: task_switch_exit(c, info); break;
	case ICPT_IO: io(c, info); break;
	case ICPT_VM: vm_insn(c, (enum vm_insn)info); break;
	case ICPT_DR_READ: case ICPT_DR_WRITE: {
		unsigned code = (unsigned)info + (x == ICPT_DR_READ ? SVM_EXIT_DR_READ : SVM_EXIT_DR_WRITE);
		if (svm_wants(c, code))
			exit_insn(c, code, assists && c->cur ? x == ICPT_DR_READ ? c->cur->r : c->cur->rm : 0, 0);
		break;
	}
	case ICPT_INTN: exit_insn(c, SVM_EXIT_INTN, assists ? info : 0, 0);
	case ICPT_INVLPG: exit_insn(c, SVM_EXIT_INVLPG, assists ? info : 0, 0);
	case ICPT_INVPCID: /* the descriptor's address, the type */
		exit_insn(c, SVM_EXIT_INVPCID, info, c->cur ? c->regs[c->cur->r] & (cpu_code64(c) ? ~0ull : 0xffffffff) : 0);
	case ICPT_MWAIT:
		if (svm_wants(c, SVM_EXIT_MWAIT))
			exit_insn(c, SVM_EXIT_MWAIT, info, 0);
		if (info && svm_wants(c, SVM_EXIT_MWAIT_ARMED))
			exit_insn(c, SVM_EXIT_MWAIT_ARMED, 1, 0);
		break;
	case ICPT_PAUSE:
		if (!pause_filtered(c))
			exit_insn(c, SVM_EXIT_PAUSE, 0, 0);
		break;
	default:
		if (code_of(x))
			exit_insn(c, code_of(x), 0, 0);
	}
}

/* #DB has DR6 and DR7 as its handler would find them; #PF tells its address, and CR2 stays. */
void svm_exception(struct cpu *c, const struct exception *x)
{
	u64 code = SVM_EXIT_EXCEPTION + x->vector;
	if (x->vector > 31 || !svm_wants(c, (unsigned)code))
		return;
	if (x->vector == V_DB && !x->soft) {
		c->dr[6] = (c->dr[6] & ~15ull) | x->dr6;
		c->dr[7] &= ~(u64)DR7_GD;
		c->msr.debugctl &= ~3ull;
		cpu_update_events(c);
	}
	if (x->vector == V_PF)
		svm_exit_bytes(c, code, x->error, x->cr2);
	if (x->soft)
		exit_insn(c, code, 0, 0);
	svm_exit(c, code, x->has_error ? x->error : 0, 0);
}

/* ---- #VMEXIT --------------------------------------------------------------------------------------------- */

static void save_guest(struct cpu *c, u8 *v)
{
	static const struct { u16 at; u8 seg; } segs[] = { { VMCB_ES, S_ES }, { VMCB_CS, S_CS }, { VMCB_SS, S_SS }, { VMCB_DS, S_DS } };
	for (unsigned k = 0; k < ARRAY_LEN(segs); k++)
		svm_segment_put(v + segs[k].at, &c->seg[segs[k].seg]);
	st64(v + VMCB_GDTR + 8, c->gdtr.base);
	st32(v + VMCB_GDTR + 4, c->gdtr.limit);
	st64(v + VMCB_IDTR + 8, c->idtr.base);
	st32(v + VMCB_IDTR + 4, c->idtr.limit);
	v[VMCB_CPL] = c->cpl;
	st64(v + VMCB_EFER, c->efer);
	st64(v + VMCB_CR0, c->cr0);
	st64(v + VMCB_CR2, c->cr2);
	st64(v + VMCB_CR3, c->cr3);
	st64(v + VMCB_CR4, c->cr4);
	st64(v + VMCB_DR6, c->dr[6]);
	st64(v + VMCB_DR7, c->dr[7]);
	st64(v + VMCB_RFLAGS, c->rflags);
	st64(v + VMCB_RIP, c->rip);
	st64(v + VMCB_RSP, c->regs[R_SP]);
	st64(v + VMCB_RAX, c->regs[R_AX]);
	if (c->nested.paging)
		st64(v + VMCB_PAT, c->msr.pat);
	if (!(c->svm->virt_ext & VIRT_LBR))
		return;
	st64(v + VMCB_DEBUGCTL, c->msr.debugctl);
	for (unsigned k = 0; k < ARRAY_LEN(c->lbr); k++)
		st64(v + VMCB_LBR + 8 * k, c->lbr[k]);
}

/* The types of VT-x that AMD-V does not have are exceptions. */
static u64 exit_int_info(u64 vectoring)
{
	unsigned type = vectoring >> 8 & 7;
	if (type == VEC_INT1 || type == VEC_SOFT_EXCEPTION)
		vectoring = (vectoring & ~0x700ull) | VEC_EXCEPTION << 8;
	return vectoring;
}

static void save_control(struct cpu *c, u8 *v)
{
	const struct svm *s = c->svm;
	const u32 changes = V_TPR | V_IRQ | V_GIF;
	st64(v + VMCB_EXITCODE, s->exit_code);
	st64(v + VMCB_EXITINFO1, s->exit_info1);
	st64(v + VMCB_EXITINFO2, s->exit_info2);
	st64(v + VMCB_EXITINTINFO, exit_int_info(c->nested.vectoring));
	st32(v + VMCB_EVENTINJ, ld32(v + VMCB_EVENTINJ) & ~(u32)VEC_VALID);
	st32(v + VMCB_VINTR, (ld32(v + VMCB_VINTR) & ~changes) | (s->vintr & changes));
	st64(v + VMCB_SHADOW, c->shadow | s->shadow ? 1 : 0);
	st64(v + VMCB_NRIP, s->next_rip);
	v[VMCB_INSN_LEN] = s->insn_len;
	memcpy(v + VMCB_INSN_LEN + 1, s->insn_bytes, s->insn_len);
}

static void load_host(struct cpu *c)
{
	const struct svm_host *h = &c->svm->host;
	c->seg[S_ES] = h->es;
	c->seg[S_CS] = h->cs;
	c->seg[S_SS] = h->ss;
	c->seg[S_DS] = h->ds;
	c->gdtr = h->gdtr;
	c->idtr = h->idtr;
	c->efer = h->efer;
	c->cr0 = h->cr0;
	c->cr3 = h->cr3;
	c->cr4 = h->cr4;
	memcpy(c->pdpte, h->pdpte, sizeof(h->pdpte));
	c->rflags = h->rflags;
	c->rip = h->rip;
	c->regs[R_SP] = h->rsp;
	c->regs[R_AX] = h->rax;
	c->dr[7] = 0x400; /* no breakpoints */
	c->cpl = 0;
	c->shadow = 0;
	c->activity = ACT_RUN;
	if (c->nested.paging)
		c->msr.pat = h->pat;
	if (!(c->svm->virt_ext & VIRT_LBR))
		return;
	c->msr.debugctl = h->debugctl;
	memcpy(c->lbr, h->lbr, sizeof(h->lbr));
}

void svm_vmexit(struct cpu *c)
{
	svm_count_exit(c, c->svm->exit_code);
	u8 *v = mem_ram(c->mem, c->svm->vmcb);
	if (v) { /* else a device lies over it now */
		save_guest(c, v);
		save_control(c, v);
		svm_written(c, v, VMCB_BYTES);
	}
	mmu_space_leave(c);
	load_host(c);
	c->nested.mode = NEST_NONE;
	c->nested.paging = false;
	c->nested.vectoring = 0;
	c->icpt = 0;
	c->svm->virt_ext = 0;
	c->svm->gif = false;
	c->nested.held = true;
	c->monitor_armed = false;
	cpu_clear_event(c, EV_VINTR | EV_NESTED);
	mmu_space_enter(c, 0, 0, false);
	cpu_update_mode(c);
	if (c->rflags & FL_TF) { /* VMRUN's trap */
		c->dr6_pending |= DR6_BS;
		cpu_post_event(c, EV_TRAP);
	}
}
