/* virtio-console: consoles and named channels between guest and host. VIRTIO 1.2, 5.3.
 *
 *   queue 0, 1       port 0: to the guest, from it       2, 3   control, likewise
 *   queue 2n+2, 2n+3 port n
 *   control message  u32 port, u16 event, u16 value, and a name with PORT_NAME
 *
 * A port without a name is a console of the guest (hvc0, ...); one with a name is a channel
 * (/dev/virtio-ports/NAME).
 *
 * Invariants
 *  1. What the host is still to say of a port is a set of bits (tell), sent in their order as the
 *     driver gives buffers: a driver that asks again and again makes no queue of messages.
 *  2. Output that the back end did not take stays in the driver's buffer: the chain is taken back,
 *     and sent[] says how much of it is done.
 *  3. Input that finds no buffer, or a port that is closed in the guest, stays with the back end. */
#define LOG_TOPIC "virtio"
#include "dev/virtio.h"

#include <string.h>

#define QUEUE_SIZE 64u
#define CONTROL_IN 2u
#define CONTROL_OUT 3u
#define CHUNK 4096u

enum { F_MULTIPORT = 1 << 1, F_EMERG_WRITE = 1 << 2 };
enum { CFG_MAX_PORTS = 4, CFG_EMERG = 8, CFG_BYTES = 12 };
enum { DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME };
enum { TELL_ADD = 1, TELL_CONSOLE = 2, TELL_NAME = 4, TELL_OPEN = 8 };

struct virtio_console {
	struct virtio v;
	unsigned n_ports;
	struct char_backend be[VIRTIO_CONSOLE_PORTS];
	char name[VIRTIO_CONSOLE_PORTS][VIRTIO_CONSOLE_NAME];
	/* State. */
	u8 tell[VIRTIO_CONSOLE_PORTS];   /* invariant 1 */
	u8 open[VIRTIO_CONSOLE_PORTS];   /* in the guest */
	u32 sent[VIRTIO_CONSOLE_PORTS];  /* invariant 2 */
};

static struct virtio_console *console_of(struct virtio *v) { return container_of(v, struct virtio_console, v); }
static unsigned queue_in(unsigned port) { return port ? 2 * port + 2 : 0; }
static unsigned queue_out(unsigned port) { return queue_in(port) + 1; }
static bool multiport(const struct virtio_console *c) { return virtio_has(&c->v, F_MULTIPORT); }

static bool is_open(const struct virtio_console *c, unsigned port)
{
	return multiport(c) ? c->open[port] : port == 0;
}

static void invite(struct virtio_console *c, unsigned port)
{
	if (port < c->n_ports && is_open(c, port) && c->be[port].can_receive && !virtq_is_empty(&c->v, queue_in(port)))
		c->be[port].can_receive(c->be[port].arg, CHUNK);
}

/* ---- control ---------------------------------------------------------------------------- */

static u8 lowest(u8 bits) { return (u8)(bits & -bits); }

/* Sends what is to be said as far as the driver has buffers. */
static void tell_all(struct virtio_console *c)
{
	static const struct { u8 bit, event, value; } events[] = {
		{ TELL_ADD, PORT_ADD, 1 }, { TELL_CONSOLE, CONSOLE_PORT, 1 }, { TELL_NAME, PORT_NAME, 1 }, { TELL_OPEN, PORT_OPEN, 1 },
	};
	struct virtq_chain chain;

	for (unsigned port = 0; port < c->n_ports; port++)
		while (c->tell[port] && virtq_pop(&c->v, CONTROL_IN, &chain)) {
			unsigned k = (unsigned)__builtin_ctz(c->tell[port]);
			u8 message[8 + VIRTIO_CONSOLE_NAME];
			size_t len = 8;

			c->tell[port] &= (u8)~lowest(c->tell[port]);
			st32(message, port);
			st16(message + 4, events[k].event);
			st16(message + 6, events[k].value);
			if (events[k].event == PORT_NAME) {
				memcpy(message + 8, c->name[port], strlen(c->name[port]) + 1);
				len += strlen(c->name[port]) + 1;
			}
			virtq_push(&c->v, &chain, chain_write(&chain, 0, message, len));
		}
	virtq_notify(&c->v, CONTROL_IN);
}

static void heard(struct virtio_console *c, u32 port, u16 event, u16 value)
{
	if (event == DEVICE_READY && value == 1) {
		for (unsigned k = 0; k < c->n_ports; k++)
			c->tell[k] |= TELL_ADD;
		return;
	}
	if (port >= c->n_ports)
		return;
	if (event == PORT_READY && value == 1)
		c->tell[port] |= c->name[port][0] ? TELL_NAME | TELL_OPEN : TELL_CONSOLE | TELL_OPEN;
	if (event == PORT_OPEN) {
		c->open[port] = value != 0;
		invite(c, port);
	}
}

static void serve_control(struct virtio *v, struct virtq_chain *chain)
{
	u8 m[8];

	if (chain_read(chain, 0, m, sizeof(m)) == sizeof(m))
		heard(console_of(v), ld32(m), ld16(m + 4), ld16(m + 6));
	virtq_push(v, chain, 0);
}

/* ---- output ------------------------------------------------------------------------------- */

/* Gives a chain's bytes to the back end. False: it did not take them all. */
static bool write_chain(struct virtio_console *c, unsigned port, const struct virtq_chain *chain)
{
	const struct char_backend *be = &c->be[port];
	u8 buf[CHUNK];

	while (c->sent[port] < chain->out_len) {
		size_t n = chain_read(chain, c->sent[port], buf, sizeof(buf));
		size_t taken = be->write ? be->write(be->arg, buf, n) : n;

		c->sent[port] += (u32)MIN(taken, n);
		if (taken < n)
			return false;
	}
	c->sent[port] = 0;
	return true;
}

static void run_output(struct virtio_console *c, unsigned port)
{
	struct virtio *v = &c->v;
	unsigned q = queue_out(port), n = 0;
	struct virtq_chain chain;

	virtq_kicks_off(v, q);
	for (; n < QUEUE_SIZE && virtq_pop(v, q, &chain); n++) {
		/* Overlapping buffers could make a chain of hundreds of GiB. */
		bool whole = chain.out_len > UINT32_MAX / 2 || write_chain(c, port, &chain);
		if (!whole) {
			virtq_unpop(v, &chain);
			virtq_notify(v, q);
			return; /* virtio_console_can_write goes on */
		}
		virtq_push(v, &chain, 0);
	}
	virtq_notify(v, q);
	if (virtq_kicks_on(v, q))
		virtio_kick(v, q);
}

void virtio_console_can_write(struct device *d, unsigned port)
{
	struct virtio_console *c = container_of(d, struct virtio_console, v.d);

	if (port < c->n_ports)
		virtio_kick(&c->v, queue_out(port));
}

/* ---- input ---------------------------------------------------------------------------------- */

size_t virtio_console_receive(struct device *d, unsigned port, const u8 *buf, size_t len)
{
	struct virtio_console *c = container_of(d, struct virtio_console, v.d);
	struct virtq_chain chain;
	size_t done = 0;

	if (port >= c->n_ports || !is_open(c, port))
		return 0;
	/* Bounded also by the number of chains: a driver may make empty ones available for ever. */
	for (unsigned k = 0; k < QUEUE_SIZE && done < len && virtq_pop(&c->v, queue_in(port), &chain); k++) {
		size_t n = chain_write(&chain, 0, buf + done, len - done);

		done += n;
		virtq_push(&c->v, &chain, n);
	}
	virtq_notify(&c->v, queue_in(port));
	if (done < len)
		virtq_kicks_on(&c->v, queue_in(port));
	return done;
}

static void console_run(struct virtio *v, unsigned q)
{
	struct virtio_console *c = console_of(v);
	unsigned port = q < 2 ? 0 : q / 2 - 1;

	if (q == CONTROL_OUT)
		virtq_each(v, q, serve_control);
	if (q == CONTROL_IN || q == CONTROL_OUT)
		tell_all(c);
	else if (q & 1)
		run_output(c, port);
	else
		invite(c, port);
}

/* ---- configuration ----------------------------------------------------------------------------- */

static void console_config_read(struct virtio *v, u8 *cfg)
{
	st32(cfg + CFG_MAX_PORTS, console_of(v)->n_ports);
}

static void console_config_write(struct virtio *v, unsigned off, const u8 *buf, unsigned len)
{
	struct virtio_console *c = console_of(v);

	if (off == CFG_EMERG && c->n_ports && c->be[0].write)
		c->be[0].write(c->be[0].arg, buf, 1);
}

static void console_forget(struct virtio *v)
{
	struct virtio_console *c = console_of(v);

	memset(c->tell, 0, sizeof(c->tell));
	memset(c->open, 0, sizeof(c->open));
	memset(c->sent, 0, sizeof(c->sent));
}

static const struct virtio_type console_type = {
	.name = "virtio-console",
	.id = VIRTIO_ID_CONSOLE,
	.class_code = 0x078000,
	.features = F_MULTIPORT | F_EMERG_WRITE,
	.config_read = console_config_read,
	.config_write = console_config_write,
	.run = console_run,
	.reset = console_forget,
};

unsigned virtio_console_add(struct device *d, const struct char_backend *be, const char *name)
{
	struct virtio_console *c = container_of(d, struct virtio_console, v.d);
	unsigned port = c->n_ports++;

	c->be[port] = *be;
	if (name)
		strncpy(c->name[port], name, VIRTIO_CONSOLE_NAME - 1);
	return port;
}

/* ---- class ------------------------------------------------------------------------------------- */

static bool console_init(struct device *d, struct error *e)
{
	struct virtio_console *c = container_of(d, struct virtio_console, v.d);

	c->v.n_queues = 2 * VIRTIO_CONSOLE_PORTS + 2;
	for (unsigned k = 0; k < c->v.n_queues; k++)
		c->v.queue_size[k] = QUEUE_SIZE;
	c->v.config_size = CFG_BYTES;
	return virtio_init(&c->v, &console_type, e);
}

static void console_reset(struct device *d) { virtio_reset(container_of(d, struct virtio, d)); }

static void console_loaded(struct device *d)
{
	struct virtio_console *c = container_of(d, struct virtio_console, v.d);

	for (unsigned k = 0; k < VIRTIO_CONSOLE_PORTS; k++) {
		c->tell[k] &= TELL_ADD | TELL_CONSOLE | TELL_NAME | TELL_OPEN;
		c->open[k] = c->open[k] != 0;
	}
	virtio_loaded(&c->v);
}

static void console_destroy(struct device *d) { virtio_destroy(container_of(d, struct virtio, d)); }

static const struct state_field console_state[] = {
	VIRTIO_STATE(struct virtio_console), STATE(struct virtio_console, tell), STATE(struct virtio_console, open),
	STATE(struct virtio_console, sent), STATE_END
};

const struct device_class virtio_console_class = {
	.name = "virtio_console",
	.help = "virtio consoles and named channels",
	.size = sizeof(struct virtio_console),
	.init = console_init,
	.reset = console_reset,
	.destroy = console_destroy,
	.loaded = console_loaded,
	.state = console_state,
};
