/* What ties the host's consoles (display/) to serial ports and to the ports of virtio-console.
 * Threading: consoles call on the loop's thread, without the machine lock. */
#define LOG_TOPIC "machine"
#include <stdlib.h>
#include <string.h>

#include "machine/machine_impl.h"

/* The device's end of a console, the same for both kinds of device. */
struct console_link {
	struct machine *m;
	struct device *dev;
	unsigned port;       /* of virtio-console */
	bool is_uart;
};

size_t machine_console_write(void *arg, const u8 *buf, size_t len) { return console_write(arg, buf, len); }

static size_t from_host(void *arg, const u8 *buf, size_t len)
{
	struct console_link *s = arg;
	mem_lock(&s->m->mem);
	size_t n = s->is_uart ? ns16550_receive(s->dev, buf, len) : virtio_console_receive(s->dev, s->port, buf, len);
	mem_unlock(&s->m->mem);
	return n;
}
static void host_writable(void *arg)
{
	struct console_link *s = arg;
	mem_lock(&s->m->mem);
	if (s->is_uart)
		ns16550_can_write(s->dev);
	else
		virtio_console_can_write(s->dev, s->port);
	mem_unlock(&s->m->mem);
}
static void host_quit(void *arg)
{
	struct console_link *s = arg;
	machine_want_end(s->m, END_USER, "Ctrl-A x");
}
static void host_break(void *arg)
{
	struct console_link *s = arg;
	mem_lock(&s->m->mem);
	if (s->is_uart)
		ns16550_break(s->dev);
	mem_unlock(&s->m->mem);
}
static char *host_screen(void *arg)
{
	struct error e = { "" };
	char *text = machine_screen_text(((struct console_link *)arg)->m, &e);

	return text ? text : strdup(e.msg);
}
static void guest_has_room(void *arg, size_t room)
{
	if (room)
		console_ready(arg);
}

static bool is_stdio(const struct serial_config *s) { return !s->kind || !strcmp(s->kind, "stdio"); }

/* Two consoles cannot share standard input. */
static bool check_stdio(const struct machine *m, const struct serial_config *s, const char *option, struct error *e)
{
	int n = 0;
	for (int k = 0; k < m->cfg->n_serial; k++)
		n += is_stdio(&m->cfg->serial[k]);
	for (int k = 0; k < m->cfg->n_consoles; k++)
		n += is_stdio(&m->cfg->console[k]);
	return !is_stdio(s) || n < 2 ||
	       error_set(e, "%s stdio: given twice; another console or serial port may be a file, pty or socket", option);
}

static bool open_one(struct machine *m, const struct serial_config *s, const char *option, struct console_link link,
		     struct console **out, struct error *e)
{
	if (!check_stdio(m, s, option, e))
		return false;
	struct console_link *l = calloc(1, sizeof(*l));
	if (!l)
		return error_set(e, "out of memory");
	*l = link;
	m->console_link[m->n_links++] = l;
	struct console_ops ops = { from_host, host_writable, host_quit, host_break, host_screen, l };
	*out = console_open(s->kind ? s->kind : "stdio", s->path, m->cfg->dry_run, m->loop, &ops, e);
	if (!*out)
		return error_prefix(e, "%s", option);
	struct char_backend be = { *out, machine_console_write, guest_has_room };
	if (l->is_uart)
		ns16550_attach(l->dev, &be);
	else
		virtio_console_add(l->dev, &be, s->name);
	return true;
}

bool machine_serial_open(struct machine *m, int k, struct error *e)
{
	return open_one(m, &m->cfg->serial[k], "--serial", (struct console_link){ .m = m, .dev = m->uart[k], .is_uart = true },
			&m->console[k], e);
}

bool machine_consoles_open(struct machine *m, struct device *virtio_console, struct error *e)
{
	for (int k = 0; k < m->cfg->n_consoles; k++)
		if (!open_one(m, &m->cfg->console[k], "--console", (struct console_link){ m, virtio_console, (unsigned)k, false },
			      &m->virtio_console[k], e))
			return false;
	return true;
}

bool machine_on_terminal(const struct machine *m)
{
	bool any = false;

	for (int k = 0; k < MAX_SERIAL; k++)
		any |= m->console[k] && console_is_terminal(m->console[k]);
	for (int k = 0; k < MAX_CONSOLES; k++)
		any |= m->virtio_console[k] && console_is_terminal(m->virtio_console[k]);
	return any;
}

void machine_consoles_close(struct machine *m)
{
	for (int k = 0; k < MAX_SERIAL; k++)
		if (m->console[k])
			console_close(m->console[k]);
	for (int k = 0; k < MAX_CONSOLES; k++)
		if (m->virtio_console[k])
			console_close(m->virtio_console[k]);
	for (int k = 0; k < m->n_links; k++)
		free(m->console_link[k]);
}
