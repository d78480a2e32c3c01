#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "board.h"

static void on_reset(void *arg) { ((struct board *)arg)->resets++; }
static void on_init(void *arg) { ((struct board *)arg)->inits++; }
static void on_power_off(void *arg) { ((struct board *)arg)->power_offs++; }
static void on_sleep(void *arg, unsigned typ)
{
	struct board *b = arg;

	b->sleeps++;
	b->sleep_typ = typ;
}

static void on_exit_status(void *arg, u32 code)
{
	struct board *b = arg;

	b->exits++;
	b->exit_code = code;
}

static void on_drop(void *arg, u64 page)
{
	struct board *b = arg;

	b->drops++;
	b->dropped_page = page;
}

static void on_output(void *arg, bool level)
{
	((struct board *)arg)->rises += level;
}

static size_t be_write(void *arg, const u8 *buf, size_t len)
{
	struct board *b = arg;
	size_t n = MIN(MIN(len, b->be_room), sizeof(b->sent) - b->n_sent);

	memcpy(b->sent + b->n_sent, buf, n);
	b->n_sent += n;
	b->be_room -= n;
	return n;
}

static void be_invite(void *arg, size_t room)
{
	((struct board *)arg)->invited = room;
}

struct board *board_bare(void)
{
	struct board *b = calloc(1, sizeof(*b));
	struct error e;

	assert_non_null(b);
	if (!mem_init(&b->mem, 8 << 20, &e) || !clock_init(&b->clock, true, &e))
		fail_msg("%s", e.msg);
	b->hooks = (struct machine_hooks){
		.arg = b, .reset = on_reset, .power_off = on_power_off, .exit_status = on_exit_status,
		.cpu_init_signal = on_init, .drop_page = on_drop, .acpi_sleep = on_sleep,
	};
	b->be = (struct char_backend){ .arg = b, .write = be_write, .can_receive = be_invite };
	b->be_room = SIZE_MAX;
	b->loop = loop_new(&e);
	assert_non_null(b->loop);
	b->links = (struct device){ .mem = &b->mem, .clock = &b->clock, .irqs = &b->irqs, .hooks = &b->hooks, .loop = b->loop };
	return b;
}

struct device *board_device(struct board *b, const struct device_class *cls)
{
	struct error e;
	struct device *d = device_new(cls, &b->links, &e);

	if (!d)
		fail_msg("%s", e.msg);
	return d;
}

struct board *board_new(const struct device_class *cls)
{
	struct board *b = board_bare();

	b->pic = board_device(b, &i8259_class);
	b->irqs.pic = (struct i8259 *)b->pic;
	i8259_set_output(b->irqs.pic, on_output, b);
	board_pic_init(b, 0x01);
	if (cls != &pci_host_class)
		b->links.pci = b->pci = board_device(b, &pci_host_class);
	b->own_ports = b->mem.n_ports;
	if (cls)
		b->dev = board_device(b, cls);
	if (b->pci)
		pci_assign(b->pci, (const u8[4]){ 10, 11, 10, 11 });
	return b;
}

void board_free(struct board *b)
{
	device_free(b->dev);
	device_free(b->pci);
	device_free(b->pic);
	loop_free(b->loop);
	clock_destroy(&b->clock);
	mem_destroy(&b->mem);
	free(b);
}

u8 in8(struct board *b, u16 port)
{
	return (u8)mem_port_read(&b->mem, port, 1);
}

void out8(struct board *b, u16 port, u8 val)
{
	mem_port_write(&b->mem, port, val, 1);
}

void board_pic_init(struct board *b, u8 icw4)
{
	static const u16 base[] = { 0x20, 0xa0 };

	for (unsigned i = 0; i < 2; i++) {
		out8(b, base[i], 0x11);
		out8(b, base[i] + 1, i ? 0x28 : 0x20);
		out8(b, base[i] + 1, i ? 2 : 4);
		out8(b, base[i] + 1, icw4);
		out8(b, base[i] + 1, 0);
	}
}

static void run_due(struct board *b)
{
	mem_lock(&b->mem);
	timer_queue_run(&b->clock.timers);
	mem_unlock(&b->mem);
}

/* Time goes to the next deadline, or to end if that comes first. False at the end. */
static bool step(struct board *b, u64 end)
{
	u64 next = b->clock.timers.next_deadline;

	if (next > end) {
		b->clock.icount = end;
		return false;
	}
	b->clock.icount = MAX(next, b->clock.icount);
	run_due(b);
	return true;
}

void board_turn(struct board *b)
{
	loop_turn(b->loop, 0);
}

void board_run(struct board *b, u64 ns)
{
	u64 end = b->clock.icount + ns;

	while (step(b, end))
		;
	board_turn(b);
}

void board_stall(struct board *b, u64 ns)
{
	b->clock.icount += ns;
	run_due(b);
}

int board_run_counting(struct board *b, u64 ns, int vector)
{
	u64 end = b->clock.icount + ns;
	int n = 0, v;
	bool more;

	do {
		more = step(b, end);
		while ((v = board_take(b)) >= 0)
			n += v == vector;
	} while (more);
	return n;
}

int board_take(struct board *b)
{
	if (!i8259_output(b->irqs.pic))
		return -1;
	mem_lock(&b->mem);
	int v = i8259_ack(b->irqs.pic);
	mem_unlock(&b->mem);
	if (v >= 0x28) {
		out8(b, 0xa0, (u8)(0x60 | (v & 7)));
		out8(b, 0x20, 0x62);
	} else {
		out8(b, 0x20, (u8)(0x60 | (v & 7)));
	}
	return v;
}

void board_at(struct board *b, u64 ns)
{
	clock_advance_to(&b->clock, ns);
	run_due(b);
}

void board_advance(struct board *b, u64 ns)
{
	board_at(b, clock_ns(&b->clock) + ns);
}

struct block *board_image(const char *name, size_t bytes, bool read_only, const struct file_hooks *hooks)
{
	struct error e;
	char path[64];
	u8 *content = malloc(bytes);
	int fd = memfd_create(name, 0);

	for (size_t k = 0; k < bytes; k++)
		content[k] = (u8)(k ^ k >> 9);
	assert_int_equal(pwrite(fd, content, bytes, 0), bytes);
	free(content);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	struct block *d = block_open(&(struct block_options){ .file = path, .format = BLOCK_RAW, .read_only = read_only,
							      .aio = BLOCK_AIO_THREADS, .hooks = hooks }, NULL, &e);
	if (!d)
		fail_msg("%s", e.msg);
	close(fd); /* the disk has its own */
	return d;
}

void round_trip(struct device *d)
{
	static u8 a[1 << 20], b[1 << 20];
	struct error e;
	size_t n = device_save(d, a, sizeof(a));

	mem_lock(d->mem);
	if (!device_load(d, a, n, &e))
		fail_msg("%s", e.msg);
	mem_unlock(d->mem);
	assert_int_equal(device_save(d, b, sizeof(b)), n);
	assert_memory_equal(a, b, n);
}

u64 next_random(u64 *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

u64 random_value(u64 *s)
{
	u64 v = next_random(s), pick = v >> 60;

	v = next_random(s);
	if (pick < 4)
		return v & 0xff;
	if (pick < 7)
		return v & 0xfffff;
	if (pick < 8)
		return UINT64_MAX << (v & 63);
	if (pick < 9)
		return 1ull << (v & 63);
	return v;
}
