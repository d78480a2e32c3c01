/* Virtual APIC: TPR shadow, APIC-access page, APIC-register virtualization, virtual-interrupt delivery, posted
 * interrupts. Intel SDM vol. 3 chapter 29.
 *
 *  1. The virtual-APIC page is guest memory of the host's: it is read and written in place, each access once.
 *  2. What a write brings about (TPR threshold, EOI, APIC-write exits) is an exit after the instruction:
 *     v->trap, performed by vmx_service(). */
#include "cpu/vmx.h"

enum { VTPR = 0x80, VPPR = 0xa0, VEOI = 0xb0, VISR = 0x100, VIRR = 0x200, VICR_LOW = 0x300, VICR_HIGH = 0x310 };

static u32 page_read(struct cpu *c, u32 reg) { return (u32)mem_phys_read(c->mem, VF(VIRTUAL_APIC_ADDR) + reg, 4); }
static void page_write(struct cpu *c, u32 reg, u32 v)
{
	vmx_phys_store(c, VF(VIRTUAL_APIC_ADDR) + reg, v, 4);
}

static void trap_after(struct cpu *c, unsigned reason, u64 qual)
{
	c->vmx->trap = (struct vmx_exit){ .reason = reason, .qualification = qual };
	c->vmx->trapped = true;
	cpu_post_event(c, EV_NESTED);
	if (c->on_device)
		c->on_device(c); /* the block ends here */
}

/* ---- virtual interrupts: SDM 29.2 ------------------------------------------------------------------- */

static u8 rvi(const struct cpu *c) { return (u8)VF(GUEST_INTR_STATUS); }
static u8 svi(const struct cpu *c) { return (u8)(VF(GUEST_INTR_STATUS) >> 8); }
static void set_status(struct cpu *c, u8 new_rvi, u8 new_svi) { VF(GUEST_INTR_STATUS) = new_rvi | (u64)new_svi << 8; }

/* The highest bit of a 256-bit register, 0 if none. */
static u8 highest(struct cpu *c, u32 reg)
{
	for (unsigned k = 8; k-- > 0;) {
		u32 v = page_read(c, reg + 16 * k);
		if (v)
			return (u8)(32 * k + 31 - (unsigned)__builtin_clz(v));
	}
	return 0;
}

static void vector_set(struct cpu *c, u32 reg, u8 vector, bool on)
{
	u32 at = reg + vector / 32 * 16, bit = 1u << (vector % 32), v = page_read(c, at);
	page_write(c, at, on ? v | bit : v & ~bit);
}

static void update_ppr(struct cpu *c)
{
	u8 tpr = (u8)page_read(c, VTPR), s = svi(c);
	page_write(c, VPPR, tpr >> 4 >= s >> 4 ? tpr : s & 0xf0);
}

/* Whether a virtual interrupt is to be delivered once IF lets it in. */
static void evaluate(struct cpu *c)
{
	bool pending = rvi(c) >> 4 > (page_read(c, VPPR) >> 4 & 15);
	if (pending)
		cpu_post_event(c, EV_VINTR);
	else if (!vmx_proc(c, PROC_INTR_WINDOW))
		cpu_clear_event(c, EV_VINTR);
}

void vmx_apic_enter(struct cpu *c)
{
	if (vmx_proc(c, PROC_INTR_WINDOW))
		cpu_post_event(c, EV_VINTR);
	if (vmx_proc2(c, PROC2_VIRTUAL_INTR)) {
		update_ppr(c);
		evaluate(c);
		return;
	}
	/* With virtualized accesses a TPR below the threshold is not refused, but exits. */
	if (vmx_proc(c, PROC_TPR_SHADOW) && vmx_proc2(c, PROC2_APIC_ACCESS) &&
	    (page_read(c, VTPR) >> 4 & 15) < VF(TPR_THRESHOLD))
		trap_after(c, EXIT_TPR_THRESHOLD, 0);
}

int vmx_virtual_interrupt(struct cpu *c)
{
	u8 vector = rvi(c);
	if (!vmx_proc2(c, PROC2_VIRTUAL_INTR) || vector >> 4 <= (page_read(c, VPPR) >> 4 & 15)) {
		cpu_clear_event(c, EV_VINTR);
		return -1;
	}
	vector_set(c, VISR, vector, true);
	page_write(c, VPPR, vector & 0xf0);
	vector_set(c, VIRR, vector, false);
	set_status(c, highest(c, VIRR), vector);
	cpu_clear_event(c, EV_VINTR);
	return vector;
}

static bool eoi_exits(struct cpu *c, u8 vector) { return c->vmx->vmcs.f[VMCS_EOI_EXIT0 + vector / 64] >> (vector % 64) & 1; }

static void virtual_eoi(struct cpu *c)
{
	u8 vector = svi(c);
	vector_set(c, VISR, vector, false);
	set_status(c, rvi(c), highest(c, VISR));
	update_ppr(c);
	if (eoi_exits(c, vector))
		trap_after(c, EXIT_EOI, vector);
	else
		evaluate(c);
}

static void self_ipi(struct cpu *c, u8 vector)
{
	vector_set(c, VIRR, vector, true);
	set_status(c, MAX(rvi(c), vector), svi(c));
	evaluate(c);
}

/* What a new VTPR brings about. */
static void tpr_written(struct cpu *c)
{
	if (vmx_proc2(c, PROC2_VIRTUAL_INTR)) {
		update_ppr(c);
		evaluate(c);
	} else if ((page_read(c, VTPR) >> 4 & 15) < VF(TPR_THRESHOLD)) {
		trap_after(c, EXIT_TPR_THRESHOLD, 0);
	}
}

/* The notification vector has come: what the descriptor has is requested. SDM 29.6. */
void vmx_posted(struct cpu *c)
{
	u64 at = VF(POSTED_DESC_ADDR);
	u8 top = 0;
	u8 *desc = mem_ram(c->mem, at);
	c->nested_counts.posted++;
	if (c->hooks->eoi)
		c->hooks->eoi(c->hooks->arg);
	if (!desc)
		return;
	atomic_fetch_and((_Atomic u32 *)(void *)(desc + 32), ~1u); /* outstanding notification */
	for (unsigned k = 0; k < 8; k++) {
		u32 bits = atomic_exchange((_Atomic u32 *)(void *)(desc + 4 * k), 0);
		if (!bits)
			continue;
		page_write(c, VIRR + 16 * k, page_read(c, VIRR + 16 * k) | bits);
		top = (u8)(32 * k + 31 - (unsigned)__builtin_clz(bits));
	}
	set_status(c, MAX(rvi(c), top), svi(c));
	evaluate(c);
}

/* ---- CR8 ---------------------------------------------------------------------------------------------- */

bool vmx_tpr_read(struct cpu *c, u8 *tpr)
{
	if (!vmx_proc(c, PROC_TPR_SHADOW))
		return false;
	*tpr = (u8)page_read(c, VTPR);
	return true;
}

bool vmx_tpr_write(struct cpu *c, u8 tpr)
{
	if (!vmx_proc(c, PROC_TPR_SHADOW))
		return false;
	page_write(c, VTPR, tpr);
	tpr_written(c);
	return true;
}

/* ---- x2APIC's MSRs: SDM 29.5 ------------------------------------------------------------------------------ */

enum { X2_TPR = 0x808, X2_EOI = 0x80b, X2_SELF_IPI = 0x83f, X2_FIRST = 0x800, X2_LAST = 0x8ff };

bool vmx_apic_msr_read(struct cpu *c, u32 msr, u64 *v)
{
	if (!vmx_proc2(c, PROC2_X2APIC) || msr < X2_FIRST || msr > X2_LAST)
		return false;
	if (!vmx_proc2(c, PROC2_APIC_REGS) && msr != X2_TPR)
		return false;
	*v = mem_phys_read(c->mem, VF(VIRTUAL_APIC_ADDR) + (msr & 0xff) * 16, 8);
	return true;
}

bool vmx_apic_msr_write(struct cpu *c, u32 msr, u64 v)
{
	if (!vmx_proc2(c, PROC2_X2APIC))
		return false;
	bool vid = vmx_proc2(c, PROC2_VIRTUAL_INTR);
	if (msr == X2_TPR) {
		if (v >> 8)
			cpu_gp0(c);
		vmx_phys_store(c, VF(VIRTUAL_APIC_ADDR) + VTPR, v, 8);
		tpr_written(c);
		return true;
	}
	if (msr == X2_EOI && vid) {
		if (v)
			cpu_gp0(c);
		vmx_phys_store(c, VF(VIRTUAL_APIC_ADDR) + VEOI, 0, 4);
		virtual_eoi(c);
		return true;
	}
	if (msr == X2_SELF_IPI && vid) {
		if (v >> 8)
			cpu_gp0(c);
		vmx_phys_store(c, VF(VIRTUAL_APIC_ADDR) + 0x3f0, v, 8);
		if (v < 16)
			trap_after(c, EXIT_APIC_WRITE, 0x3f0);
		else
			self_ipi(c, (u8)v);
		return true;
	}
	return false;
}

/* ---- the APIC-access page: SDM 29.4 --------------------------------------------------------------------------- */

/* Bits by register number (offset / 16) of those that a read, and a write, of a virtualized register finds. */
#define REGS_0_31(isr) (1u << 2 | 1u << 3 | 1u << 8 | 1u << 11 | 1u << 13 | 1u << 14 | 1u << 15 | (isr))
static const u32 readable[2] = {
	REGS_0_31(0xffff0000u),
	0xffu /* IRR */ | 1u << 8 /* ESR */ | 0x1ffu << 16 /* ICR, LVT, initial count */ | 1u << 30 /* divide */,
};
static const u32 writable[2] = {
	REGS_0_31(0u) & ~(1u << 3),
	1u << 8 | 0x1ffu << 16 | 1u << 30,
};
enum { ACCESS_READ = 0, ACCESS_WRITE = 1, ACCESS_FETCH = 2, ACCESS_EVENT = 3 };

static _Noreturn void access_exit(struct cpu *c, u32 off, unsigned type)
{
	if (c->nested.vectoring)
		type = ACCESS_EVENT;
	vmx_leave_with(c, (struct vmx_exit){ .reason = EXIT_APIC_ACCESS, .qualification = off | type << 12,
					     .set_rf = !c->nested.vectoring });
}

_Noreturn void nested_apic_fetch(struct cpu *c, u64 lin) { access_exit(c, (u32)lin & PAGE_MASK, ACCESS_FETCH); }

static bool virtualized(struct cpu *c, u32 off, unsigned n, bool write)
{
	u32 reg = off & ~15u;
	if (!vmx_proc(c, PROC_TPR_SHADOW) || c->nested.vectoring || (off & 15) + n > 4)
		return false;
	if (vmx_proc2(c, PROC2_APIC_REGS))
		return reg < 0x400 && (write ? writable : readable)[reg / 0x200] >> (reg / 16 % 32) & 1;
	return reg == VTPR || (write && vmx_proc2(c, PROC2_VIRTUAL_INTR) && (reg == VEOI || reg == VICR_LOW));
}

u64 nested_apic_read(struct cpu *c, u32 off, unsigned n)
{
	if (!virtualized(c, off, n, false))
		access_exit(c, off, ACCESS_READ);
	return mem_phys_read(c->mem, VF(VIRTUAL_APIC_ADDR) + off, n);
}

/* ICR: a fixed, edge-triggered interrupt to oneself needs no exit. */
static bool icr_is_self(u32 v)
{
	const u32 shorthand = 3u << 18, self = 1u << 18, mode = 7u << 8, level = 1u << 15, status = 1u << 12;
	return (v & shorthand) == self && !(v & (mode | level | status)) && (v & 0xf0);
}

/* What a write has brought about, SDM 29.4.3.2. */
static void apic_written(struct cpu *c, u32 reg)
{
	bool vid = vmx_proc2(c, PROC2_VIRTUAL_INTR);
	switch (reg) {
	case VTPR:
		page_write(c, VTPR, page_read(c, VTPR) & 0xff);
		tpr_written(c);
		return;
	case VEOI:
		if (vid) {
			page_write(c, VEOI, 0);
			virtual_eoi(c);
			return;
		}
		break;
	case VICR_LOW:
		if (vid && icr_is_self(page_read(c, VICR_LOW))) {
			self_ipi(c, (u8)page_read(c, VICR_LOW));
			return;
		}
		break;
	case VICR_HIGH:
		page_write(c, VICR_HIGH, page_read(c, VICR_HIGH) & 0xff000000);
		return;
	default: break;
	}
	trap_after(c, EXIT_APIC_WRITE, reg);
}

void nested_apic_write(struct cpu *c, u32 off, u64 v, unsigned n)
{
	if (!virtualized(c, off, n, true))
		access_exit(c, off, ACCESS_WRITE);
	vmx_phys_store(c, VF(VIRTUAL_APIC_ADDR) + off, v, n);
	apic_written(c, off & ~15u);
}
