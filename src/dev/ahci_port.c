/* A port of the AHCI controller: its registers, the link to its drive, start and stop. AHCI 1.3.1, 3.3,
 * 5.3, 10.3, 10.4; Serial ATA 3.0, 10.5 (FISes).
 *
 * The link comes up by itself, and after each reset; with it the drive sends its signature. A port's receive area
 * gets FISes while PxCMD.FRE is set; the first one after a reset waits for that.
 *
 * Invariant: PxCI and PxSACT are 0 while ST is. */
#include "dev/ahci_impl.h"

enum { PX_CLB = 0x00, PX_CLBU = 0x04, PX_FB = 0x08, PX_FBU = 0x0c, PX_IS = 0x10, PX_IE = 0x14, PX_CMD = 0x18, PX_TFD = 0x20,
       PX_SIG = 0x24, PX_SSTS = 0x28, PX_SCTL = 0x2c, PX_SERR = 0x30, PX_SACT = 0x34, PX_CI = 0x38 };
enum { DET_NONE = 0, DET_RESET = 1, DET_UP = 3, DET_OFFLINE = 4 };
#define IE_BITS 0xfdc000ffu
#define IS_CLEARED_BY_SERR (IS_PCS | IS_PRCS)
#define CMD_KEPT (CMD_ST | CMD_FRE | CMD_ATAPI | CMD_DLAE)
#define SCTL_KEPT 0xfffu
#define SSTS_UP 0x123u          /* active, 3 Gbit/s, established */
#define RECEIVE_D2H 0x40u

/* ---- FISes ---------------------------------------------------------------------------------------- */

void ahci_post(struct ahci_port *p, unsigned off, const u8 *fis, unsigned bytes)
{
	if ((p->cmd & CMD_FRE) && pci_is_master(&p->ahci->pci))
		mem_write(p->ahci->d.mem, p->fb + off, fis, bytes);
}

void ahci_post_registers(struct ahci_port *p, bool interrupt)
{
	const struct ata_drive *d = &p->drive;
	u8 fis[20] = { 0x34, interrupt ? 0x40 : 0, d->status, d->error, d->lba[0][0], d->lba[1][0], d->lba[2][0], d->device,
		       d->lba[0][1], d->lba[1][1], d->lba[2][1], 0, d->count[0], d->count[1] };

	ahci_post(p, RECEIVE_D2H, fis, sizeof(fis));
	p->is |= (interrupt ? IS_DHRS : 0) | (d->status & ST_ERR ? IS_TFES : 0);
}

/* ---- resets ----------------------------------------------------------------------------------------- */

static void send_signature(struct ahci_port *p)
{
	const struct ata_drive *d = &p->drive;

	p->sig = d->count[0] | (u32)d->lba[0][0] << 8 | (u32)d->lba[1][0] << 16 | (u32)d->lba[2][0] << 24;
	p->fis_waits = !(p->cmd & CMD_FRE);
	ahci_post_registers(p, false);
}

static void link_up(struct ahci_port *p)
{
	if (!ahci_present(p))
		return;
	ata_reset(&p->drive); /* what SET FEATURES set stays: 13.5, Software Settings Preservation */
	p->srst = 0;
	p->serr |= SERR_N | SERR_X;
	send_signature(p);
}

void ahci_port_abort(struct ahci_port *p)
{
	for (unsigned k = 0; p->command && k < AHCI_SLOTS; k++)
		p->command[k].active = false;
	p->queued = 0;
	p->ending = p->in_flight > 0;
}

void ahci_port_reset_now(struct ahci_port *p)
{
	enum ahci_reset r = p->reset;

	p->reset = RESET_NONE;
	if (r == RESET_SOFT) {
		ata_reset(&p->drive);
		send_signature(p);
	} else if (r == RESET_LINK) {
		link_up(p);
	}
	ahci_update_irq(p->ahci);
}

void ahci_port_reset(struct ahci_port *p, enum ahci_reset r)
{
	ahci_port_abort(p);
	p->reset = r;
	if (p->ending)
		p->drive.status = ST_BSY;
	else
		ahci_port_reset_now(p);
}

void ahci_port_clear(struct ahci_port *p)
{
	ahci_port_abort(p);
	p->clb = p->fb = 0;
	p->is = p->ie = p->cmd = p->sctl = p->serr = p->sact = p->ci = 0;
	p->sig = ~0u;
	p->ccs = p->halted = p->fis_waits = 0;
	p->reset = RESET_NONE;
	link_up(p);
}

/* ---- registers ---------------------------------------------------------------------------------------- */

u32 ahci_port_is(const struct ahci_port *p)
{
	return p->is | (p->serr & SERR_X ? IS_PCS : 0) | (p->serr & SERR_N ? IS_PRCS : 0);
}

static u32 cmd_read(const struct ahci_port *p)
{
	return p->cmd | CMD_SUD | CMD_POD | (u32)p->ccs << 8 | (p->cmd & CMD_FRE ? CMD_FR : 0) |
	       (p->cmd & CMD_ST || p->in_flight ? CMD_CR : 0);
}

/* 10.3: from now on nothing is fetched; what is under way is forgotten. */
static void stop(struct ahci_port *p)
{
	ahci_port_abort(p);
	p->ci = p->sact = 0;
	p->ccs = p->halted = 0;
	if (p->drive.status & ST_BSY && !p->reset) /* the command that it was for will not end */
		p->drive.status = ST_DRDY | ST_DSC;
}

static void cmd_write(struct ahci_port *p, u32 val)
{
	u32 was = p->cmd;

	p->cmd = val & CMD_KEPT;
	if (was & ~val & CMD_ST)
		stop(p);
	if (!(was & CMD_ST) && (val & CMD_CLO))
		p->drive.status &= (u8)~(ST_BSY | ST_DRQ);
	if ((val & CMD_FRE) && p->fis_waits) {
		p->fis_waits = 0;
		ahci_post_registers(p, false);
	}
	if (val & ~was & CMD_ST)
		ahci_run(p);
	ahci_update_irq(p->ahci);
}

static u32 ssts_read(const struct ahci_port *p)
{
	u32 det = p->sctl & 15;

	if (det == DET_OFFLINE)
		return DET_OFFLINE;
	return det == DET_RESET || p->reset == RESET_LINK ? DET_RESET : SSTS_UP;
}

/* 10.4.2: COMRESET lasts while DET is 1. */
static void sctl_write(struct ahci_port *p, u32 val)
{
	u32 was = p->sctl & 15, det = val & 15;

	p->sctl = val & SCTL_KEPT;
	if (det == was)
		return;
	if (det == DET_RESET || det == DET_OFFLINE) {
		ahci_port_abort(p);
		p->reset = RESET_NONE;
		p->ci = p->sact = 0;
		p->drive.status = ST_BSY;
	} else if (was == DET_RESET || was == DET_OFFLINE) {
		ahci_port_reset(p, RESET_LINK);
	}
}

u32 ahci_port_read(struct ahci_port *p, unsigned reg)
{
	switch (reg) {
	case PX_CLB: return (u32)p->clb;
	case PX_CLBU: return (u32)(p->clb >> 32);
	case PX_FB: return (u32)p->fb;
	case PX_FBU: return (u32)(p->fb >> 32);
	case PX_IS: return ahci_port_is(p);
	case PX_IE: return p->ie;
	case PX_CMD: return cmd_read(p);
	case PX_TFD: return p->drive.status | (u32)p->drive.error << 8;
	case PX_SIG: return p->sig;
	case PX_SSTS: return ssts_read(p);
	case PX_SCTL: return p->sctl;
	case PX_SERR: return p->serr;
	case PX_SACT: return p->sact;
	case PX_CI: return p->ci;
	default: return 0;
	}
}

void ahci_port_write(struct ahci_port *p, unsigned reg, u32 val)
{
	switch (reg) {
	case PX_CLB: p->clb = (p->clb & ~0xffffffffull) | (val & ~0x3ffu); return;
	case PX_CLBU: p->clb = (u32)p->clb | (u64)val << 32; return;
	case PX_FB: p->fb = (p->fb & ~0xffffffffull) | (val & ~0xffu); return;
	case PX_FBU: p->fb = (u32)p->fb | (u64)val << 32; return;
	case PX_IS: p->is &= ~val; break;
	case PX_IE: p->ie = val & IE_BITS; break;
	case PX_CMD: cmd_write(p, val); return;
	case PX_SCTL: sctl_write(p, val); break;
	case PX_SERR: p->serr &= ~val; break;
	case PX_SACT:
		if (p->cmd & CMD_ST)
			p->sact |= val;
		return;
	case PX_CI:
		if (p->cmd & CMD_ST)
			p->ci |= val & ~p->queued; /* not those whose command is not at its end */
		ahci_run(p);
		break;
	default: return;
	}
	ahci_update_irq(p->ahci);
}

/* Values that only a damaged file can hold become ones that the code can meet. */
void ahci_port_loaded(struct ahci_port *p)
{
	ahci_port_abort(p);
	p->reset = RESET_NONE;
	ata_loaded(&p->drive);
	p->clb &= ~0x3ffull;
	p->fb &= ~0xffull;
	p->ie &= IE_BITS;
	p->is &= IE_BITS & ~(u32)IS_CLEARED_BY_SERR;
	p->cmd &= CMD_KEPT;
	p->sctl &= SCTL_KEPT;
	p->ccs &= AHCI_SLOTS - 1;
	if (!(p->cmd & CMD_ST))
		p->ci = p->sact = 0;
}
