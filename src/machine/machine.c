/* A machine's life: build, run the event loop, reset, end. The loop's thread owns it; vCPU
 * threads and devices only ask (machine_want_*), which the loop carries out between turns. */
#define LOG_TOPIC "machine"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "machine/machine_impl.h"

/* ---- requests, from any thread ------------------------------------------------------------ */

void machine_wake(struct machine *m) { loop_wake(m->loop); }

void machine_want_reset(struct machine *m, const char *why)
{
	if (m->cfg->no_reboot) {
		machine_want_end(m, END_RESET, why);
		return;
	}
	log_info("reset: %s", why);
	int none = WANT_NONE;
	atomic_compare_exchange_strong(&m->want, &none, WANT_RESET);
	machine_stop_cpus_soon(m);
}

/* The first reason stays. */
void machine_want_end(struct machine *m, enum machine_end end, const char *why)
{
	if (atomic_exchange(&m->want, WANT_END) != WANT_END) {
		m->end = end;
		snprintf(m->end_text, sizeof(m->end_text), "%s", why);
	}
	machine_stop_cpus_soon(m);
}

void machine_stop_cpus_soon(struct machine *m)
{
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_hold(m->cpus[k].vcpu); /* nothing of the guest's runs after its last word */
	machine_wake(m);
}

void machine_triple_fault(struct machine *m, struct cpu *c)
{
	char dump[4096];
	cpu_dump(c, dump, sizeof(dump));
	if (m->cfg->triple_fault_reset) {
		log_info("triple fault on processor %u\n%s", c->index, dump);
		machine_want_reset(m, "triple fault");
	} else {
		log_error("triple fault on processor %u: the machine stops\n%s", c->index, dump);
		machine_want_end(m, END_TRIPLE_FAULT, "triple fault");
	}
}

void machine_quit(struct machine *m)
{
	atomic_store(&m->quit, true);
	loop_wake(m->loop);
}

void machine_ask_stats(struct machine *m)
{
	atomic_store(&m->stats_asked, true);
	loop_wake(m->loop);
}

/* ---- building ------------------------------------------------------------------------------- */

static void clock_moved(void *arg) { machine_wake(arg); }

static bool fit_model(struct machine *m, const struct engine_choice *to, struct error *e)
{
	return !to->ops || !to->ops->fit_model || to->ops->fit_model(&m->model, to->options, e);
}

/* Where auto has taken an engine that cannot have the processors that were asked for, the next one may. */
static bool fit_engine(struct machine *m, struct error *e)
{
	const struct cpu_model asked = m->model;
	if (fit_model(m, &m->engine, e))
		return true;
	if (!m->engine.why[0])
		return false;
	struct error why = *e;
	m->model = asked;
	return engine_choose_next(m->cfg->engine ? m->cfg->engine : "auto", m->cfg->icount, why.msg, &m->engine, e) && fit_engine(m, e);
}

struct machine *machine_new(const struct vm_config *cfg, struct error *e)
{
	struct machine *m = calloc(1, sizeof(*m));
	if (!m) {
		error_set(e, "out of memory");
		return NULL;
	}
	m->cfg = cfg;
	m->mem.fd = -1; /* nothing to close until pc_build */
	m->flash_fd = -1;
	if (cfg->cpus < 1 || cfg->cpus > MAX_CPUS) {
		error_set(e, "-c %llu: between 1 and %d processors", (unsigned long long)cfg->cpus, MAX_CPUS);
		goto fail;
	}
	if (cfg->icount && cfg->cpus != 1) {
		error_set(e, "--icount: deterministic time works with -c 1 only");
		goto fail;
	}
	if (!engine_choose(cfg->engine ? cfg->engine : "auto", cfg->icount, &m->engine, e) || !hop_choose(m, e) || !clock_init(&m->clock, cfg->icount, e))
		goto fail;
	m->clock.timers.wake = clock_moved;
	m->clock.timers.wake_arg = m;
	if (!cpu_model_parse(&m->model, cfg->cpu ? cfg->cpu : "max", &m->clock, e) ||
	    !fit_engine(m, e) || !fit_model(m, &m->hop_to, e) || !(m->loop = loop_new(e)))
		goto fail;
	/* OVMF maps all of the physical address space in pages of 2 MiB before it does anything else: with
	 * 46 bits that takes 256 MiB and a minute. 40 are what QEMU's guests have. */
	if (cfg->firmware.path && !strcmp(cfg->firmware.path, "uefi") && cfg->mem_bytes < 1ull << 39)
		m->model.phys_bits = MIN(m->model.phys_bits, (u8)40);
	if (cfg->icount) /* two runs must draw the same numbers: none */
		m->model.has[FEAT_RDRAND] = m->model.has[FEAT_RDSEED] = false;
	if (cfg->debugcon) {
		static const struct console_ops none = { 0 };
		m->debugcon = console_open("file", cfg->debugcon, cfg->dry_run, m->loop, &none, e);
		if (!m->debugcon) {
			error_prefix(e, "--debugcon");
			goto fail;
		}
	}
	if (!seat_new(m, e) || !pc_open_nets(m, e) || !pc_build(m, e) || !seat_open_vnc(m, e))
		goto fail;
	pc_reset(m);
	if (!boot_load(m, e) || !trace_start(m, e))
		goto fail;
	hop_start(m);
	return m;
fail:
	machine_free(m);
	return NULL;
}

void machine_free(struct machine *m)
{
	if (!m)
		return;
	struct error lost; /* machine_run has told it */
	hop_stop(m);
	seat_close_vnc(m);
	seat_free(m);
	pc_destroy(m);
	pc_close_nets(m);
	trace_stop(m, &lost);
	machine_consoles_close(m);
	if (m->debugcon)
		console_close(m->debugcon);
	if (m->loop)
		loop_free(m->loop);
	clock_destroy(&m->clock);
	flash_close(m);
	boot_close(m);
	blob_free(&m->firmware);
	engine_options_free(m->engine.ops, m->engine.options);
	free(m);
}

/* ---- running --------------------------------------------------------------------------------- */

static void do_reset(struct machine *m)
{
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_pause(m->cpus[k].vcpu);
	/* An end that was asked for meanwhile comes before the reset. */
	int reset = WANT_RESET;
	if (!atomic_compare_exchange_strong(&m->want, &reset, WANT_NONE))
		return;
	struct error e;
	seat_reset(m);
	pc_reset(m);
	if (!boot_load(m, &e)) {
		log_error("reset: %s", e.msg);
		machine_want_end(m, END_ERROR, "the kernel could not be loaded again");
		return;
	}
	for (unsigned k = 0; k < m->n_cpus && !m->paused; k++)
		vcpu_resume(m->cpus[k].vcpu);
}

struct loop *machine_loop(struct machine *m) { return m->loop; }
bool machine_is_paused(const struct machine *m) { return m->paused; }
void machine_reset(struct machine *m) { machine_want_reset(m, "the reset button"); }

void machine_pause(struct machine *m)
{
	if (m->paused)
		return;
	m->paused = true;
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_pause(m->cpus[k].vcpu);
	mem_lock(&m->mem);
	clock_pause(&m->clock);
	mem_unlock(&m->mem);
}

/* Nothing of the guest's runs after its last word: where that was a reset, do_reset resumes the processors. */
void machine_resume(struct machine *m)
{
	if (!m->paused)
		return;
	m->paused = false;
	mem_lock(&m->mem);
	clock_resume(&m->clock);
	mem_unlock(&m->mem);
	for (unsigned k = 0; k < m->n_cpus && atomic_load(&m->want) == WANT_NONE; k++)
		vcpu_resume(m->cpus[k].vcpu);
}

void machine_power_button(struct machine *m)
{
	mem_lock(&m->mem);
	acpi_pm_power_button(m->acpi_pm);
	mem_unlock(&m->mem);
}

static int exit_status(const struct machine *m)
{
	switch (m->end) {
	case END_DEBUG_EXIT: return (int)((m->debug_exit_code << 1 | 1) & 0xff);
	case END_TRIPLE_FAULT: return 66;
	case END_USER: return 67;
	case END_LIMIT: return 68;
	case END_ERROR: return 70;
	default: return 0;
	}
}

/* On the processor's thread, with deterministic time. The loop is looked at before and after: between disks and
 * loop, too, requests are handed on. */
static bool under_way(void *arg)
{
	struct machine *m = arg;
	u32 before, after;
	bool busy = !loop_is_idle(m->loop, &before);

	mem_lock(&m->mem);
	for (int k = 0; !busy && k < m->cfg->n_disks; k++)
		busy = m->disk[k] && block_is_busy(m->disk[k]);
	mem_unlock(&m->mem);
	for (int k = 0; !busy && k < m->cfg->n_shares; k++)
		busy = share_is_busy(m->share[k]);
	return busy || !loop_is_idle(m->loop, &after) || before != after;
}

enum machine_end machine_run(struct machine *m, int *status)
{
	if (m->clock.icount_mode)
		vcpu_set_under_way(m->cpus[0].vcpu, under_way, m);
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_resume(m->cpus[k].vcpu);
	for (;;) {
		if (atomic_load(&m->quit))
			machine_want_end(m, END_USER, "asked to end by a signal");
		if (atomic_exchange(&m->stats_asked, false))
			machine_print_stats(m);
		int want = atomic_load(&m->want);
		if (want == WANT_END)
			break;
		if (want == WANT_RESET)
			do_reset(m);
		if (atomic_exchange(&m->hop_due, false))
			hop_carry_out(m);
		u64 next = UINT64_MAX;
		if (!m->clock.icount_mode && !m->paused) {
			mem_lock(&m->mem);
			next = timer_queue_run(&m->clock.timers);
			mem_unlock(&m->mem);
		}
		loop_turn(m->loop, next);
		if (m->clock.icount_mode)
			vcpu_look_again(m->cpus[0].vcpu);
	}
	for (unsigned k = 0; k < m->n_cpus; k++)
		vcpu_pause(m->cpus[k].vcpu);
	struct error e;
	if (!trace_stop(m, &e)) {
		m->end = END_ERROR; /* whatever the guest did: who compares hashes must know */
		snprintf(m->end_text, sizeof(m->end_text), "%s", e.msg);
	}
	*status = exit_status(m);
	return m->end;
}

const char *machine_serial_text(const struct machine *m, int k) { return console_describe(m->console[k]); }

const char *machine_console_text(const struct machine *m, int k) { return console_describe(m->virtio_console[k]); }

const char *machine_end_text(const struct machine *m) { return m->end_text; }

void machine_print(const struct machine *m)
{
	const struct vm_config *f = m->cfg;
	printf("engine     %s: %s\n", m->engine.ops->name, m->engine.ops->help);
	if (m->engine.why[0])
		printf("           by auto: %s\n", m->engine.why);
	printf("processors %llu, model %s (%s), family %u model %u\n", (unsigned long long)f->cpus, f->cpu ? f->cpu : "max",
	       m->model.vendor, m->model.family, m->model.model);
	printf("memory     %llu MiB: %llu MiB below 4 GiB, %llu MiB above\n", (unsigned long long)(m->mem.ram_size >> 20),
	       (unsigned long long)(m->mem.low_size >> 20), (unsigned long long)((m->mem.ram_size - m->mem.low_size) >> 20));
	printf("boot       %s, entry 0x%llx\n", m->boot_kind ? m->boot_kind : "nothing", (unsigned long long)m->entry);
	for (int k = 0; k < f->n_serial; k++)
		printf("serial %d   %s\n", k, console_describe(m->console[k]));
	for (int k = 0; k < f->n_consoles; k++)
		printf("console %d  %s%s%s\n", k, console_describe(m->virtio_console[k]), f->console[k].name ? ", channel " : "",
		       f->console[k].name ? f->console[k].name : "");
	for (int k = 0; k < f->n_disks; k++)
		printf("disk %d     %s%s, %s\n", k, pc_disk_bus(&f->disk[k]), f->disk[k].cd ? " CD drive" : "",
		       f->disk[k].image.file ? f->disk[k].image.file : "no file");
	for (int k = 0; k < f->n_nets; k++)
		printf("net %d      %s, %s\n", k, net_model_words[f->net[k].model], net_describe(m->net[k]));
	for (int k = 0; k < f->n_shares; k++)
		printf("share %d    %s, tag %s%s\n", k, f->share[k].path, share_tag(m->share[k]), f->share[k].read_only ? ", read-only" : "");
	if (m->vnc)
		printf("vnc        %s%s\n", vnc_describe(m->vnc), f->vnc.password_file ? ", with a password" : "");
	printf("memory map\n");
	for (int k = 0; k < m->mem.n_regions; k++) {
		const struct region *r = &m->mem.regions[k];
		static const char *const kinds[] = { "RAM", "ROM", "device" };
		printf("  %012llx-%012llx %-6s %s\n", (unsigned long long)r->base, (unsigned long long)(r->base + r->size - 1),
		       kinds[r->kind], r->name);
	}
	printf("ports\n");
	for (int k = 0; k < m->mem.n_ports; k++) {
		const struct port_range *p = &m->mem.ports[k];
		printf("  %04x-%04x %s\n", p->base, p->base + p->count - 1, p->name);
	}
}
