/* A board for tests of devices: 8 MiB of memory, the port bus, a clock that stands until it is moved
 * (in icount mode, an instruction a nanosecond), the interrupt router, hooks that count; with a
 * pair of 8259s, or bare. */
#ifndef TESTS_DEV_BOARD_H
#define TESTS_DEV_BOARD_H

#include "test.h"
#include "dev/dev.h"
#include "block/file.h"

struct board {
	struct mem mem;
	struct clock clock;
	struct irq_router irqs;
	struct machine_hooks hooks;
	struct device links;      /* for device_new */
	struct device *pic;       /* NULL: bare */
	struct device *pci;       /* the host bridge for those that need one; NULL: bare, or it is the one under test */
	struct device *dev;       /* the one under test, or NULL */
	int own_ports;            /* ranges of ports of the board itself; those of dev come behind */
	struct loop *loop;        /* turned by board_run and board_turn */
	int resets, inits, exits, drops, power_offs, sleeps;
	unsigned sleep_typ;
	u32 exit_code;
	u64 dropped_page;
	int rises;                /* of the pair's output */
	/* the other end of a character device */
	struct char_backend be;
	u8 sent[4096];
	size_t n_sent, be_room;   /* be_room: what the backend takes before it is full */
	size_t invited;           /* room of the last can_receive */
};

/* With the class under test (NULL: none), behind a host bridge with its BARs assigned if it is on PCI; the pair is initialized to vectors 0x20 and 0x28,
 * nothing masked. board_free ends it. */
struct board *board_new(const struct device_class *cls);
struct board *board_bare(void);
void board_free(struct board *b);
struct device *board_device(struct board *b, const struct device_class *cls);

u8 in8(struct board *b, u16 port);
void out8(struct board *b, u16 port, u8 val);

void board_pic_init(struct board *b, u8 icw4);
/* What was left to the loop is done. */
void board_turn(struct board *b);
/* Lets ns pass; timers run at their deadlines. */
void board_run(struct board *b, u64 ns);
/* Lets ns pass as if the process had been stopped: timers run only at the end. */
void board_stall(struct board *b, u64 ns);
/* Lets ns pass and takes each interrupt as it comes, with EOI. Returns how many had the vector. */
int board_run_counting(struct board *b, u64 ns, int vector);
/* INTA, and a specific EOI as the vector asks for; -1 when the output is low. */
int board_take(struct board *b);
/* Moves the clock to ns, or by ns, and runs what is due there. */
void board_at(struct board *b, u64 ns);
void board_advance(struct board *b, u64 ns);

/* An open disk of that many bytes, byte k of it k ^ k >> 9; turned by block_poll. */
struct block *board_image(const char *name, size_t bytes, bool read_only, const struct file_hooks *hooks);

/* Save, load into the same device, save: equal, and loading succeeds. */
void round_trip(struct device *d);
/* xorshift: the same accesses in each run. */
u64 next_random(u64 *s);
/* Mostly small or full of ones, at times anything: what finds borders. */
u64 random_value(u64 *s);

#endif
