/* ns16550: serial port, National PC16550D datasheet.
 *
 *   off  read             write            with LCR.DLAB
 *   0    RBR received     THR to send      DLL divisor, low
 *   1    IER enables      IER              DLM divisor, high
 *   2    IIR cause        FCR FIFO control
 *   3    LCR line control
 *   4    MCR modem control: DTR RTS OUT1 OUT2 (gates the interrupt) LOOP
 *   5    LSR line status: DR OE PE FE BI THRE TEMT FIFO-error
 *   6    MSR modem status: deltas, CTS DSR RI DCD
 *   7    SCR scratch
 *
 *   cause in IIR by priority                     ends with
 *   06 line status (OE, PE, FE, BI)              a read of LSR
 *   04 data, FIFO at its trigger level           reads of RBR
 *   0c data in the FIFO for 4 characters' time   a read of RBR
 *   02 THR empty                                 a read of IIR that says so, a write of THR
 *   00 modem status                              a read of MSR
 *
 * Sending takes no time: a byte written to THR is in the backend before the write returns, and
 * THR is empty again. When the backend is full, bytes stay in the transmit FIFO, THRE stays
 * clear, and the guest waits by its own means; ns16550_can_write goes on. The processor never
 * waits. The interrupt line falls and rises for each THR-empty cause, because an edge-triggered
 * controller listens. Input that finds no room stays with the backend.
 *
 * Invariants
 *  1. rx_len and tx_len are at most fifo_size(): 16, or 1 with FIFOs off.
 *  2. irq_update() ends each change; nobody else drives the line.
 *  3. The backend may call ns16550_receive from within can_receive, never from within write.
 *
 * Left out: parity and framing errors (the line has none), DMA mode pins, the speed of the line
 * (the divisor only scales the receive timeout).
 * Threading: machine lock held. */
#define LOG_TOPIC "ns16550"
#include "dev/dev.h"

#include <string.h>

#define FIFO 16u
#define PORTS 8u
#define NOT_CONNECTED ~0u

enum { IER_RDI = 1, IER_THRI = 2, IER_RLSI = 4, IER_MSI = 8, IER_MASK = 0x0f };
enum { IIR_MSI = 0x00, IIR_NONE = 0x01, IIR_THRI = 0x02, IIR_RDI = 0x04, IIR_RLSI = 0x06, IIR_TIMEOUT = 0x0c, IIR_FIFO = 0xc0 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2, FCR_CLEAR_TX = 4 };
enum { LCR_BREAK = 0x40, LCR_DLAB = 0x80 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 0x10, MCR_MASK = 0x1f };
enum { LSR_DR = 1, LSR_OE = 2, LSR_BI = 0x10, LSR_ERRORS = 0x1e, LSR_THRE = 0x20, LSR_TEMT = 0x40, LSR_FIFO_ERROR = 0x80 };
enum { MSR_DCTS = 1, MSR_DDSR = 2, MSR_TERI = 4, MSR_DDCD = 8, MSR_DELTAS = 0x0f,
       MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80 };

#define MSR_ATTACHED (MSR_CTS | MSR_DSR | MSR_DCD) /* a terminal that is there and ready */

struct ns16550 {
	struct device d;
	u16 base;
	unsigned irq;
	struct char_backend be;
	u8 ier, fcr, lcr, mcr, msr, scr, dll, dlm;
	u8 overrun;               /* OE */
	u8 rx_error;              /* error bits of the oldest byte have been seen in LSR */
	u8 rx_len, tx_len;
	u8 rx[FIFO], rx_flags[FIFO]; /* oldest first; flags: LSR_BI */
	u8 tx[FIFO];
	u8 thr_cause;             /* THR became empty, or IER_THRI was set while it was */
	u8 timeout_cause;
	struct timer rx_timeout;
};

static bool fifo_on(const struct ns16550 *u)
{
	return u->fcr & FCR_ENABLE;
}

static unsigned fifo_size(const struct ns16550 *u)
{
	return fifo_on(u) ? FIFO : 1;
}

static unsigned rx_trigger(const struct ns16550 *u)
{
	static const u8 level[] = { 1, 4, 8, 14 };

	return fifo_on(u) ? level[u->fcr >> 6] : 1;
}

/* Errors show when their byte is the oldest, once. */
static u8 line_errors(const struct ns16550 *u)
{
	return (u->overrun ? LSR_OE : 0) | (u->rx_len && !u->rx_error ? u->rx_flags[0] : 0);
}

static u8 line_status(const struct ns16550 *u)
{
	u8 lsr = line_errors(u);

	if (u->rx_len)
		lsr |= LSR_DR;
	if (u->tx_len == 0)
		lsr |= LSR_THRE | LSR_TEMT;
	for (unsigned i = 0; fifo_on(u) && i < u->rx_len; i++)
		if (u->rx_flags[i] && !(i == 0 && u->rx_error))
			lsr |= LSR_FIFO_ERROR;
	return lsr;
}

/* IIR without the FIFO bits. */
static u8 cause(const struct ns16550 *u)
{
	if ((u->ier & IER_RLSI) && line_errors(u))
		return IIR_RLSI;
	if ((u->ier & IER_RDI) && u->rx_len >= rx_trigger(u))
		return IIR_RDI;
	if ((u->ier & IER_RDI) && u->timeout_cause)
		return IIR_TIMEOUT;
	if ((u->ier & IER_THRI) && u->thr_cause)
		return IIR_THRI;
	if ((u->ier & IER_MSI) && (u->msr & MSR_DELTAS))
		return IIR_MSI;
	return IIR_NONE;
}

static void irq_update(struct ns16550 *u)
{
	irq_set(u->d.irqs, u->irq, cause(u) != IIR_NONE && (u->mcr & MCR_OUT2));
}

/* ---- receiving --------------------------------------------------------------------------- */

/* Starts or stops the wait of 4 characters' time that ends in the timeout cause. */
static void rx_timeout_restart(struct ns16550 *u)
{
	u64 divisor = (u64)u->dlm << 8 | u->dll;
	u64 bits = 1 + 5 + (u->lcr & 3) + (u->lcr >> 3 & 1) + 1 + (u->lcr >> 2 & 1);

	u->timeout_cause = 0;
	if (fifo_on(u) && u->rx_len) /* 1.8432 MHz / 16 / divisor bits a second */
		timer_arm(&u->rx_timeout, clock_ns(u->d.clock) + 4 * bits * MAX(divisor, 1) * 1000000000 / 115200);
	else if (timer_armed(&u->rx_timeout))
		timer_cancel(&u->rx_timeout);
}

static void rx_timeout_fn(void *arg)
{
	struct ns16550 *u = arg;

	u->timeout_cause = u->rx_len != 0;
	irq_update(u);
}

static void rx_push(struct ns16550 *u, u8 byte, u8 flags)
{
	if (u->rx_len >= fifo_size(u)) {
		u->overrun = 1;
		if (fifo_on(u)) /* the FIFO is kept, the shift register is overwritten */
			return;
		u->rx_len = 0;
	}
	if (u->rx_len == 0)
		u->rx_error = 0;
	u->rx[u->rx_len] = byte;
	u->rx_flags[u->rx_len++] = flags;
	rx_timeout_restart(u);
}

static u8 rx_pop(struct ns16550 *u)
{
	u8 byte = u->rx[0]; /* an empty one gives the last byte again */

	if (u->rx_len) {
		u->rx_len--;
		memmove(u->rx, u->rx + 1, u->rx_len);
		memmove(u->rx_flags, u->rx_flags + 1, u->rx_len);
		u->rx_error = 0;
	}
	rx_timeout_restart(u);
	return byte;
}

static void rx_clear(struct ns16550 *u)
{
	u->rx_len = 0;
	u->overrun = 0;
	rx_timeout_restart(u);
}

static size_t rx_room(const struct ns16550 *u)
{
	return u->mcr & MCR_LOOP ? 0 : fifo_size(u) - u->rx_len; /* in loopback the line is cut */
}

/* Tells the backend, after everything else, for it may answer with input at once. */
static void rx_invite(struct ns16550 *u)
{
	size_t room = rx_room(u);

	if (room && u->be.can_receive)
		u->be.can_receive(u->be.arg, room);
}

size_t ns16550_receive(struct device *d, const u8 *buf, size_t len)
{
	struct ns16550 *u = (struct ns16550 *)d;
	size_t n = MIN(len, rx_room(u));

	for (size_t i = 0; i < n; i++)
		rx_push(u, buf[i], 0);
	irq_update(u);
	return n;
}

void ns16550_break(struct device *d)
{
	struct ns16550 *u = (struct ns16550 *)d;

	if (u->mcr & MCR_LOOP)
		return;
	rx_push(u, 0, LSR_BI);
	irq_update(u);
}

/* ---- sending ------------------------------------------------------------------------------ */

/* Moves what the backend takes; an empty THR is a cause. */
static void tx_drain(struct ns16550 *u)
{
	size_t n = u->tx_len;

	if (n == 0)
		return;
	if (u->mcr & MCR_LOOP) {
		for (size_t i = 0; i < n; i++)
			rx_push(u, u->tx[i], 0);
	} else if (u->be.write) {
		size_t taken = u->be.write(u->be.arg, u->tx, n);

		n = MIN(taken, n);
	}
	u->tx_len -= (u8)n;
	memmove(u->tx, u->tx + n, u->tx_len);
	if (u->tx_len == 0)
		u->thr_cause = 1;
}

static void thr_write(struct ns16550 *u, u8 val)
{
	u->thr_cause = 0;
	irq_update(u); /* the falling edge */
	if (u->tx_len < fifo_size(u))
		u->tx[u->tx_len++] = val;
	else if (!fifo_on(u))
		u->tx[0] = val; /* THR is overwritten; a full FIFO loses the new byte */
	tx_drain(u);
}

void ns16550_can_write(struct device *d)
{
	struct ns16550 *u = (struct ns16550 *)d;

	tx_drain(u);
	irq_update(u);
}

/* ---- registers ------------------------------------------------------------------------------ */

static void modem_update(struct ns16550 *u)
{
	u8 was = u->msr, now = MSR_ATTACHED;

	if (u->mcr & MCR_LOOP)
		now = (u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) |
		      (u->mcr & MCR_OUT1 ? MSR_RI : 0) | (u->mcr & MCR_OUT2 ? MSR_DCD : 0);
	u8 changed = (was ^ now) & (u8)~MSR_DELTAS;

	if (!(was & MSR_RI)) /* TERI is for the trailing edge only */
		changed &= (u8)~MSR_RI;
	u->msr = now | (was & MSR_DELTAS) | changed >> 4;
}

static void ier_write(struct ns16550 *u, u8 val)
{
	u8 set = val & (u8)~u->ier;

	u->ier = val & IER_MASK;
	if ((set & IER_THRI) && u->tx_len == 0) {
		u->thr_cause = 0; /* it falls first: a driver may enable it anew for a new edge */
		irq_update(u);
		u->thr_cause = 1;
	}
}

static void fcr_write(struct ns16550 *u, u8 val)
{
	bool toggled = (val ^ u->fcr) & FCR_ENABLE;

	/* The other bits are taken only together with the enable bit. */
	u->fcr = val & FCR_ENABLE ? val & (u8)~(FCR_CLEAR_RX | FCR_CLEAR_TX) : 0;
	if (toggled || (val & FCR_ENABLE && val & FCR_CLEAR_RX))
		rx_clear(u);
	if ((toggled || (val & FCR_ENABLE && val & FCR_CLEAR_TX)) && u->tx_len) {
		u->tx_len = 0;
		u->thr_cause = 1;
	}
}

static void lcr_write(struct ns16550 *u, u8 val)
{
	bool breaks = val & (u8)~u->lcr & LCR_BREAK;

	u->lcr = val;
	if (breaks && (u->mcr & MCR_LOOP))
		rx_push(u, 0, LSR_BI);
}

static u64 uart_read(void *dev, u64 off, unsigned size)
{
	struct ns16550 *u = dev;
	u8 val;

	if ((u->lcr & LCR_DLAB) && off < 2)
		return off ? u->dlm : u->dll;
	switch (off) {
	case 0:
		val = rx_pop(u);
		irq_update(u);
		rx_invite(u);
		return val;
	case 1:
		return u->ier;
	case 2:
		val = cause(u);
		if (val == IIR_THRI)
			u->thr_cause = 0;
		irq_update(u);
		return val | (fifo_on(u) ? IIR_FIFO : 0);
	case 3:
		return u->lcr;
	case 4:
		return u->mcr;
	case 5:
		val = line_status(u);
		u->overrun = 0;
		u->rx_error = 1;
		irq_update(u);
		return val;
	case 6:
		val = u->msr;
		u->msr &= (u8)~MSR_DELTAS;
		irq_update(u);
		return val;
	default:
		return u->scr;
	}
}

static void uart_write(void *dev, u64 off, u64 val64, unsigned size)
{
	struct ns16550 *u = dev;
	size_t room = rx_room(u);
	u8 val = (u8)val64;

	if ((u->lcr & LCR_DLAB) && off < 2) {
		*(off ? &u->dlm : &u->dll) = val;
		return;
	}
	switch (off) {
	case 0: thr_write(u, val); break;
	case 1: ier_write(u, val); break;
	case 2: fcr_write(u, val); break;
	case 3: lcr_write(u, val); break;
	case 4:
		u->mcr = val & MCR_MASK;
		modem_update(u);
		break;
	case 7: u->scr = val; break;
	default: break; /* LSR and MSR: factory tests only */
	}
	irq_update(u);
	if (rx_room(u) > room)
		rx_invite(u);
}

static const struct mmio_ops uart_ops = { uart_read, uart_write, 1, 1 };

/* ---- class ------------------------------------------------------------------------------------ */

void ns16550_configure(struct device *d, u16 base, unsigned irq)
{
	struct ns16550 *u = (struct ns16550 *)d;
	struct error e;

	u->base = base;
	u->irq = irq;
	if (!mem_add_ports(d->mem, "ns16550", base, PORTS, &uart_ops, d, &e))
		log_error("serial port at 0x%x: %s", base, e.msg);
	irq_update(u);
}

void ns16550_attach(struct device *d, const struct char_backend *be)
{
	struct ns16550 *u = (struct ns16550 *)d;

	u->be = be ? *be : (struct char_backend){ 0 };
	tx_drain(u);
	irq_update(u);
	rx_invite(u);
}

static bool ns16550_init(struct device *d, struct error *e)
{
	struct ns16550 *u = (struct ns16550 *)d;

	u->irq = NOT_CONNECTED; /* until ns16550_configure */
	timer_init(&u->rx_timeout, d->clock, rx_timeout_fn, u);
	return true;
}

static void ns16550_reset(struct device *d)
{
	struct ns16550 *u = (struct ns16550 *)d;

	/* The divisor, THR, RBR and the scratch register are not reset. */
	u->ier = u->fcr = u->lcr = u->mcr = 0;
	u->msr = MSR_ATTACHED;
	u->thr_cause = 0;
	u->tx_len = 0;
	rx_clear(u);
	irq_update(u);
	rx_invite(u);
}

/* Values that only a damaged file can hold become ones that the code above can meet. */
static void ns16550_loaded(struct device *d)
{
	struct ns16550 *u = (struct ns16550 *)d;

	u->rx_len = (u8)MIN(u->rx_len, fifo_size(u));
	u->tx_len = (u8)MIN(u->tx_len, fifo_size(u));
	u->ier &= IER_MASK;
	u->mcr &= MCR_MASK;
	irq_update(u);
	rx_invite(u);
}

static const struct state_field ns16550_state[] = {
	STATE(struct ns16550, ier), STATE(struct ns16550, fcr), STATE(struct ns16550, lcr),
	STATE(struct ns16550, mcr), STATE(struct ns16550, msr), STATE(struct ns16550, scr),
	STATE(struct ns16550, dll), STATE(struct ns16550, dlm),
	STATE(struct ns16550, overrun), STATE(struct ns16550, rx_error),
	STATE(struct ns16550, rx_len), STATE(struct ns16550, tx_len),
	STATE(struct ns16550, rx), STATE(struct ns16550, rx_flags), STATE(struct ns16550, tx),
	STATE(struct ns16550, thr_cause), STATE(struct ns16550, timeout_cause),
	STATE_TIMER(struct ns16550, rx_timeout),
	STATE_END
};

const struct device_class ns16550_class = {
	.name = "ns16550",
	.help = "16550A serial port",
	.size = sizeof(struct ns16550),
	.init = ns16550_init,
	.reset = ns16550_reset,
	.loaded = ns16550_loaded,
	.state = ns16550_state,
};
