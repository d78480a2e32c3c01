/* The PC, read top to bottom: memory, processors' interrupt side, chips, wires, serial ports.
 * After the i440FX board: two i8259, i8254, mc146818, i8042, LAPICs, IOAPIC, HPET, ACPI PM, PCI
 * host, fw_cfg, ports for debugging and tests. SDM vol. 3 10 (APIC), chips' datasheets.
 *
 * Threading: built and destroyed on the loop's thread while no vCPU runs. */
#define LOG_TOPIC "machine"
#include <stdio.h>
#include <string.h>

#include "machine/machine_impl.h"

/* ---- what processors ask of the board ------------------------------------------------- */

static int on_int_ack(void *arg)
{
	struct machine_cpu *mc = arg;
	struct machine *m = mc->m;
	int vector = lapic_ack(mc->lapic); /* takes the lock itself; -1 where the LAPICs are lent */
	if (vector >= 0)
		return vector;
	struct i8259 *pic = (struct i8259 *)m->pic;
	mem_lock(&m->mem);
	if (lapic_accepts_pic(mc->lapic) && i8259_output(pic))
		vector = i8259_ack(pic);
	mem_unlock(&m->mem);
	return vector;
}
static bool on_apic_read(void *arg, u32 msr, u64 *val) { return lapic_msr_read(((struct machine_cpu *)arg)->lapic, msr, val); }
static bool on_apic_write(void *arg, u32 msr, u64 val) { return lapic_msr_write(((struct machine_cpu *)arg)->lapic, msr, val); }
static u8 on_get_tpr(void *arg) { return lapic_get_tpr(((struct machine_cpu *)arg)->lapic); }
static void on_set_tpr(void *arg, u8 tpr) { lapic_set_tpr(((struct machine_cpu *)arg)->lapic, tpr); }
static void on_tsc_adjust(void *arg, u64 adjust) { lapic_set_tsc_adjust(((struct machine_cpu *)arg)->lapic, adjust); }
static void on_triple_fault(void *arg)
{
	struct machine_cpu *mc = arg;
	machine_triple_fault(mc->m, mc->cpu);
}
static void on_apic_lend(void *arg, const struct apic_runner *r) { lapic_bus_lend((struct lapic_bus *)((struct machine_cpu *)arg)->m->lapic_bus, r); }
static void on_apic_get(void *arg, struct apic_state *s) { lapic_get_state(((struct machine_cpu *)arg)->lapic, s); }
static void on_apic_set(void *arg, const struct apic_state *s) { lapic_set_state(((struct machine_cpu *)arg)->lapic, s); }
static void on_apic_eoi(void *arg, u8 vector)
{
	struct machine *m = ((struct machine_cpu *)arg)->m;
	mem_lock(&m->mem);
	ioapic_eoi((struct ioapic *)m->ioapic, vector);
	mem_unlock(&m->mem);
}
static void on_failed(void *arg, const char *why) { machine_want_end(((struct machine_cpu *)arg)->m, END_ERROR, why); }
static void on_ferr(void *arg, bool level)
{
	struct machine *m = ((struct machine_cpu *)arg)->m;
	mem_lock(&m->mem);
	irq_set(&m->irqs, 13, level);
	mem_unlock(&m->mem);
}

/* A deadline of VT-x's preemption timer: the processor looks at its TSC itself. Machine lock held. */
static void wakeup_arm(struct machine_cpu *mc)
{
	struct clock *k = &mc->m->clock;
	u64 now = clock_tsc(k), at = mc->wakeup_tsc, hz = k->tsc_hz ? k->tsc_hz : 1000000000;
	unsigned __int128 ns = at > now ? ((unsigned __int128)(at - now) * 1000000000 + hz - 1) / hz : 0;
	timer_arm(&mc->wakeup, clock_ns(k) + (ns >> 62 ? 1ull << 62 : (u64)ns));
}

/* The TSC's rate is known but nearly, and the host's clock is steered: it may be too early. */
static void wakeup_fire(void *arg)
{
	struct machine_cpu *mc = arg;
	if (clock_tsc(&mc->m->clock) < mc->wakeup_tsc)
		wakeup_arm(mc);
	else
		vcpu_post(mc->vcpu, EV_NESTED);
}

static void on_set_wakeup(void *arg, u64 tsc)
{
	struct machine_cpu *mc = arg;
	mem_lock(&mc->m->mem);
	mc->wakeup_tsc = tsc - mc->cpu->msr.tsc_adjust;
	wakeup_arm(mc);
	mem_unlock(&mc->m->mem);
}
static void on_init(void *arg) { lapic_init_taken(((struct machine_cpu *)arg)->lapic); }
static void on_eoi(void *arg) { lapic_eoi_processor(((struct machine_cpu *)arg)->lapic); }

/* ---- what the board does to processors -------------------------------------------------- */

static void sink_intr(void *arg, bool level)
{
	struct machine_cpu *mc = arg;
	if (level)
		vcpu_post(mc->vcpu, EV_INTR);
	else
		cpu_clear_event(mc->cpu, EV_INTR);
}
static void sink_nmi(void *arg) { vcpu_post(((struct machine_cpu *)arg)->vcpu, EV_NMI); }
static void sink_smi(void *arg) { vcpu_post(((struct machine_cpu *)arg)->vcpu, EV_SMI); }
static void sink_init(void *arg)
{
	struct machine_cpu *mc = arg;
	cpu_clear_event(mc->cpu, EV_SIPI); /* one that came before INIT starts nothing after it */
	vcpu_post(mc->vcpu, EV_INIT);
}
static void sink_sipi(void *arg, u8 vector)
{
	struct machine_cpu *mc = arg;
	mc->cpu->sipi_vector = vector;
	vcpu_post(mc->vcpu, EV_SIPI);
}
static void pic_output(void *arg, bool level)
{
	struct machine *m = arg;
	lapic_set_lint0(m->cpus[0].lapic, level);
}

static void hook_reset(void *arg) { machine_want_reset(arg, "a reset of the board"); }
static void hook_power_off(void *arg) { machine_want_end(arg, END_POWEROFF, "the guest powered off"); }
static void hook_exit_status(void *arg, u32 code)
{
	struct machine *m = arg;
	if (atomic_load(&m->want) != WANT_END) /* another processor's comes too late; the lock is held */
		m->debug_exit_code = code;
	machine_want_end(m, END_DEBUG_EXIT, "the guest wrote to isa-debug-exit");
}
/* From the keyboard controller and port 0x92. Without firmware nobody stands at the reset vector
 * to make a restart of it, so it is one. */
static void hook_init_signal(void *arg)
{
	struct machine *m = arg;
	if (!m->cfg->firmware.path) {
		machine_want_reset(m, "the keyboard controller's reset line");
		return;
	}
	vcpu_post(m->cpus[0].vcpu, EV_INIT);
}
/* A guest may put a LAPIC's page over RAM: nobody may go on using the RAM's host address. */
static void map_changed(void *arg)
{
	struct machine *m = arg;
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_post(m->cpus[k].vcpu, EV_TLB);
}
/* pc-testdev: whatever is cached of that page goes; dropping all is always right. */
static void hook_drop_page(void *arg, u64 gpa)
{
	(void)gpa;
	map_changed(arg);
}
/* S3 and S4 are not in the DSDT; a guest that writes their types all the same gets nothing. */
static void hook_sleep(void *arg, unsigned typ)
{
	(void)arg;
	log_guest("sleep type %u is not offered: ignored", typ);
}

/* ---- processors -------------------------------------------------------------------------- */

static void vcpu_thread_init(void *arg) { lapic_set_current(((struct machine_cpu *)arg)->lapic); }
static void vcpu_stopped(void *arg, struct cpu *c)
{
	(void)c;
	machine_wake(((struct machine_cpu *)arg)->m);
}

static bool add_cpu(struct machine *m, unsigned index, struct error *e)
{
	struct machine_cpu *mc = &m->cpus[index];
	*mc = (struct machine_cpu){ .m = m, .index = index };
	mc->hooks = (struct cpu_hooks){
		.arg = mc,
		.int_ack = on_int_ack,
		.apic_msr_read = on_apic_read,
		.apic_msr_write = on_apic_write,
		.get_tpr = on_get_tpr,
		.set_tpr = on_set_tpr,
		.set_tsc_adjust = on_tsc_adjust,
		.triple_fault = on_triple_fault,
		.ferr = on_ferr,
		.apic_lend = on_apic_lend,
		.apic_get = on_apic_get,
		.apic_set = on_apic_set,
		.apic_eoi = on_apic_eoi,
		.failed = on_failed,
		.set_wakeup = on_set_wakeup,
		.eoi = on_eoi,
		.init = on_init,
	};
	timer_queue_init(&mc->timers, &m->clock);
	timer_init(&mc->wakeup, &m->clock, wakeup_fire, mc);
	timer_move(&mc->wakeup, &mc->timers);
	mc->cpu = cpu_new(index, &m->mem, &m->clock, &m->model, &mc->hooks);
	if (!mc->cpu)
		return error_set(e, "-c %u: no memory for processor %u", (unsigned)m->cfg->cpus, index);
	mc->cpu->n_cpus = (unsigned)m->cfg->cpus;
	mc->cpu->bsp = index == 0;
	mc->cpu->engine_options = m->cfg->dry_run ? NULL : m->engine.options; /* they may ask for files */
	mc->cpu->measure = m->cfg->stats;
	struct irq_sink sink = { mc, sink_intr, sink_nmi, sink_smi, sink_init, sink_sipi };
	mc->lapic = lapic_add((struct lapic_bus *)m->lapic_bus, index, index == 0, &sink);
	if (!mc->lapic) {
		cpu_free(mc->cpu);
		return error_set(e, "-c %u: no memory for the LAPIC of processor %u", (unsigned)m->cfg->cpus, index);
	}
	lapic_set_features(mc->lapic, &(struct lapic_features){
		.maxphyaddr = m->model.phys_bits,
		.x2apic = m->model.has[FEAT_X2APIC],
		.tsc_deadline = m->model.has[FEAT_TSC_DEADLINE] });
	device_set_timers((struct device *)mc->lapic, &mc->timers);
	mc->vcpu = vcpu_start(mc->cpu, m->engine.ops, vcpu_stopped, mc, e);
	if (!mc->vcpu) {
		cpu_free(mc->cpu);
		return false;
	}
	vcpu_set_timers(mc->vcpu, &mc->timers);
	vcpu_set_thread_init(mc->vcpu, vcpu_thread_init, mc);
	m->n_cpus = index + 1;
	return true;
}

/* ---- chips ------------------------------------------------------------------------------- */

bool pc_add_device(struct machine *m, const struct device_class *cls, struct device **out, struct error *e)
{
	if (m->n_devices == (int)ARRAY_LEN(m->devices))
		return error_set(e, "%s: a machine has at most %zu devices", cls->name, ARRAY_LEN(m->devices));
	struct device links = { cls, &m->mem, &m->clock, &m->irqs, &m->hooks, m->loop, NULL, m->pci };
	struct device *d = device_new(cls, &links, e);
	if (!d)
		return false;
	m->devices[m->n_devices++] = d;
	if (out)
		*out = d;
	return true;
}

static void add_memory_facts(struct machine *m)
{
	u64 high = m->mem.ram_size - m->mem.low_size;
	mc146818_set_memory(m->rtc, m->mem.low_size, high);
	u16 cpus = (u16)m->cfg->cpus;
	fw_cfg_add_key(m->fw_cfg, 0x03, &m->mem.ram_size, 8);
	fw_cfg_add_key(m->fw_cfg, 0x05, &cpus, 2);
	fw_cfg_add_key(m->fw_cfg, 0x0f, &cpus, 2);
	/* kvm-unit-tests reads the most RAM there may be at 0x11 (as QEMU's FW_CFG_MAX_RAM did). */
	fw_cfg_add_key(m->fw_cfg, 0x11, &m->mem.ram_size, 8);
}

/* A screen is there where firmware is, which writes to it, or where somebody asks for it. */
static bool has_vga(const struct vm_config *f)
{
	return f->vga ? !strcmp(f->vga, "std") : f->firmware.path || f->vnc.at;
}

static bool add_chips(struct machine *m, struct error *e)
{
	if (!pc_add_device(m, &i8259_class, &m->pic, e) || !pc_add_device(m, &lapic_bus_class, &m->lapic_bus, e) ||
	    !pc_add_device(m, &ioapic_class, &m->ioapic, e))
		return false;
	m->irqs.pic = (struct i8259 *)m->pic;
	m->irqs.ioapic = (struct ioapic *)m->ioapic;
	m->irqs.lapic_bus = (struct lapic_bus *)m->lapic_bus;
	ioapic_connect(m->irqs.ioapic, m->irqs.lapic_bus);
	i8259_set_output(m->irqs.pic, pic_output, m);
	for (unsigned k = 0; k < m->cfg->cpus; k++)
		if (!add_cpu(m, k, e))
			return false;
	if (!pc_add_device(m, &i8254_class, &m->pit, e) || !pc_add_device(m, &mc146818_class, &m->rtc, e) ||
	    !pc_add_device(m, &i8042_class, &m->ps2, e) || !pc_add_device(m, &hpet_class, &m->hpet, e) ||
	    !pc_add_device(m, &pci_host_class, &m->pci, e) || !pc_add_device(m, &acpi_pm_class, &m->acpi_pm, e) ||
	    !pc_add_device(m, &fw_cfg_class, &m->fw_cfg, e) || !pc_add_device(m, &isa_debug_exit_class, NULL, e))
		return false;
	/* Ticks are the boot processor's: what its thread comes to late it makes up for while the guest runs, where edges
	 * from another thread would meet in the LAPIC as one while it does not. */
	struct device *ticking[] = { m->pit, m->rtc, m->hpet };
	for (unsigned k = 0; k < ARRAY_LEN(ticking); k++)
		device_set_timers(ticking[k], &m->cpus[0].timers);
	pam_init(m);
	struct device *dbg;
	if (!pc_add_device(m, &debugcon_class, &dbg, e))
		return false;
	if (m->debugcon)
		debugcon_attach(dbg, &(struct char_backend){ m->debugcon, machine_console_write, NULL });
	if (m->cfg->testdev && !pc_add_device(m, &testdev_class, NULL, e))
		return false;
	if (has_vga(m->cfg) && !pc_add_device(m, &vga_class, &m->vga, e))
		return false;
	add_memory_facts(m);
	return true;
}

static bool add_serial(struct machine *m, struct error *e)
{
	static const struct { u16 base; u8 irq; } ports[MAX_SERIAL] = { { 0x3f8, 4 }, { 0x2f8, 3 }, { 0x3e8, 4 }, { 0x2e8, 3 } };
	for (int k = 0; k < m->cfg->n_serial; k++) {
		if (!pc_add_device(m, &ns16550_class, &m->uart[k], e))
			return false;
		ns16550_configure(m->uart[k], ports[k].base, ports[k].irq);
		if (!machine_serial_open(m, k, e))
			return false;
	}
	return true;
}

static u64 post_read(void *dev, u64 off, unsigned size) { (void)dev; (void)off; (void)size; return 0xff; }
static void post_write(void *dev, u64 off, u64 val, unsigned size)
{
	struct machine *m = dev;
	(void)off;
	(void)size;
	fprintf(stderr, "POST %02x\n", (unsigned)(u8)val);
	(void)m;
}
static const struct mmio_ops post_ops = { post_read, post_write, 1, 1 };

bool pc_build(struct machine *m, struct error *e)
{
	m->hooks = (struct machine_hooks){ m, hook_reset, hook_power_off, hook_exit_status, hook_init_signal,
					   hook_drop_page, hook_sleep };
	if (m->cfg->post_port > 0xffff)
		return error_set(e, "--post-port %llu: ports go to 65535", (unsigned long long)m->cfg->post_port);
	if (!mem_init(&m->mem, m->cfg->mem_bytes, e))
		return error_prefix(e, "-m");
	m->mem.map_changed = map_changed;
	m->mem.map_changed_arg = m;
	if (!add_chips(m, e) || !add_serial(m, e) || !pc_add_disks(m, e) || !pc_add_virtio(m, e))
		return false;
	return !m->cfg->post_port ||
	       mem_add_ports(&m->mem, "post", (u16)m->cfg->post_port, 1, &post_ops, m, e);
}

static void drain_devices(struct machine *m)
{
	for (int k = 0; k < m->n_devices; k++)
		if (m->devices[k]->cls->drain)
			m->devices[k]->cls->drain(m->devices[k]);
}

/* Machine lock not held; all vCPUs paused (or not started). RAM is kept. */
void pc_reset(struct machine *m)
{
	drain_devices(m);
	mem_lock(&m->mem);
	for (int k = 0; k < m->n_devices; k++)
		if (m->devices[k]->cls->reset)
			m->devices[k]->cls->reset(m->devices[k]);
	for (unsigned k = 0; k < m->n_cpus; k++)
		lapic_reset(m->cpus[k].lapic);
	mem_unlock(&m->mem);
	for (unsigned k = 0; k < m->n_cpus; k++) {
		/* What was counted stays counted: --max-insns, hashes and statistics are of the whole run. */
		u64 icount = m->cpus[k].cpu->icount;
		cpu_reset(m->cpus[k].cpu, false);
		m->cpus[k].cpu->icount = icount;
		lapic_set_tsc_adjust(m->cpus[k].lapic, 0); /* cpu_reset has cleared its own copy */
	}
	add_memory_facts(m);
}

/* All vCPUs paused (or not started). */
void pc_destroy(struct machine *m)
{
	drain_devices(m); /* what comes to its end interrupts processors: while there are some */
	m->mem.map_changed = NULL; /* devices take their regions away below */
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_destroy(m->cpus[k].vcpu);
	for (unsigned k = 0; k < m->n_cpus; k++)
		if (timer_armed(&m->cpus[k].wakeup))
			timer_cancel(&m->cpus[k].wakeup);
	pc_close_disks(m);
	pc_close_shares(m);
	for (int k = m->n_devices; k-- > 0;)
		device_free(m->devices[k]);
	for (unsigned k = 0; k < m->n_cpus; k++) {
		timer_queue_destroy(&m->cpus[k].timers);
		cpu_free(m->cpus[k].cpu);
	}
	mem_destroy(&m->mem);
}
