/* Private to e1000*.c: Intel's 82540EM, a PCI network card. "PCI/PCI-X Family of Gigabit Ethernet Controllers
 * Software Developer's Manual" (317453): 3.2 receiving, 3.3 to 3.5 sending, 5 EEPROM, 8 PHY, 13 registers.
 *
 *   e1000.c        registers, interrupts, life
 *   e1000_phy.c    what stands behind two of them: the PHY (MDIC), the EEPROM (EECD, EERD)
 *   e1000_rx.c     filters, frames into the receive ring
 *   e1000_tx.c     frames out of the transmit ring; checksums, segmentation
 *
 * Invariants
 *  1. A descriptor is read once. Rings have as many as their length says; a head or tail beyond is a ring
 *     without any.
 *  2. A frame to be sent is taken when all of it is in the ring; TDH moves when it is done. So nothing of
 *     a frame is state but how much of it has been sent in segments (tx_sent).
 *  3. A frame is received as a whole or not at all; the back end holds it until there are descriptors.
 *  4. The machine lock is not held while a back end works; epoch tells whether the card was reset meanwhile.
 * Left out: wake-up, flow control frames, delays of interrupts other than ITR, writing the EEPROM, 82542's
 * addresses of registers. */
#ifndef RING3_E1000_IMPL_H
#define RING3_E1000_IMPL_H

#include "dev/pci_api.h"
#include "net/net.h"

#define E1000_REGS 0x6000u       /* bytes of registers; the rest of the BAR reads as 0 */
#define E1000_EEPROM 64u         /* words */
#define E1000_TAG 4u             /* bytes of a VLAN tag, behind both addresses */
#define E1000_FRAME_MAX 0x40000u /* bytes that one packet of the ring may have, for segmentation */

enum e1000_reg {
	R_CTRL = 0x0000, R_STATUS = 0x0008, R_EECD = 0x0010, R_EERD = 0x0014, R_CTRL_EXT = 0x0018, R_FLA = 0x001c, R_MDIC = 0x0020,
	R_FCAL = 0x0028, R_VET = 0x0038, R_ICR = 0x00c0, R_ITR = 0x00c4, R_ICS = 0x00c8, R_IMS = 0x00d0, R_IMC = 0x00d8, R_RCTL = 0x0100,
	R_FCTTV = 0x0170, R_TXCW = 0x0178, R_TCTL = 0x0400, R_TIPG = 0x0410, R_AIFS = 0x0458, R_LEDCTL = 0x0e00, R_PBA = 0x1000,
	R_FCRTL = 0x2160, R_FCRTH = 0x2168,
	R_RDBAL = 0x2800, R_RDBAH = 0x2804, R_RDLEN = 0x2808, R_RDH = 0x2810, R_RDT = 0x2818, R_RDTR = 0x2820, R_RXDCTL = 0x2828,
	R_RADV = 0x282c, R_RSRPD = 0x2c00, R_TXDMAC = 0x3000,
	R_TDBAL = 0x3800, R_TDBAH = 0x3804, R_TDLEN = 0x3808, R_TDH = 0x3810, R_TDT = 0x3818, R_TIDV = 0x3820, R_TXDCTL = 0x3828,
	R_TADV = 0x382c, R_TSPMT = 0x3830,
	R_STATS = 0x4000, R_MPC = 0x4010, R_GPRC = 0x4074, R_BPRC = 0x4078, R_MPRC = 0x407c, R_GPTC = 0x4080, R_GORCL = 0x4088,
	R_GOTCL = 0x4090, R_RNBC = 0x40a0, R_TORL = 0x40c0, R_TOTL = 0x40c8, R_TPR = 0x40d0, R_TPT = 0x40d4, R_MPTC = 0x40f0, R_BPTC = 0x40f4,
	R_TSCTC = 0x40f8, R_STATS_END = 0x40fc,
	R_RXCSUM = 0x5000, R_MTA = 0x5200, R_RA = 0x5400, R_VFTA = 0x5600, R_WUC = 0x5800, R_WUFC = 0x5808, R_MANC = 0x5820,
};
/* CTRL, STATUS */
enum { CTRL_FD = 1 << 0, CTRL_SLU = 1 << 6, CTRL_RST = 1 << 26, CTRL_VME = 1 << 30 };
#define CTRL_PHY_RST (1u << 31)
enum { STATUS_FD = 1 << 0, STATUS_LU = 1 << 1, STATUS_1000 = 2 << 6, STATUS_ASDV_1000 = 2 << 8, STATUS_MTXCKOK = 1 << 10 };
/* ICR, ICS, IMS, IMC */
enum { INT_TXDW = 1 << 0, INT_TXQE = 1 << 1, INT_LSC = 1 << 2, INT_RXDMT0 = 1 << 4, INT_RXO = 1 << 6, INT_RXT0 = 1 << 7, INT_MDAC = 1 << 9 };
#define INT_ALL 0x1ffffu
/* RCTL, TCTL */
enum { RCTL_EN = 1 << 1, RCTL_UPE = 1 << 3, RCTL_MPE = 1 << 4, RCTL_LPE = 1 << 5, RCTL_BAM = 1 << 15, RCTL_VFE = 1 << 18, RCTL_BSEX = 1 << 25,
       RCTL_SECRC = 1 << 26 };
enum { TCTL_EN = 1 << 1, TCTL_PSP = 1 << 3 };

/* A context descriptor, as checksums and segmentation need it: plain bytes, saved. */
struct e1000_context {
	u8 ip_start, ip_at, tu_start, tu_at; /* where sums begin and go, in bytes from the frame's begin */
	u16 ip_end, tu_end;                  /* the last byte that counts; 0: to the end */
	u16 mss;
	u8 header, command;
	u32 payload;
};

struct e1000 {
	struct device d;
	struct pci_function pci;
	struct net *net;             /* NULL: no cable */
	u8 mac[NET_MAC_BYTES];
	u16 eeprom[E1000_EEPROM];    /* as configured */
	struct loop_task task;       /* the transmit ring */
	u32 epoch;                   /* counts resets */
	unsigned budget;             /* frames that this turn of the loop may still send */
	u8 *packet, *segment;        /* the loop's thread's: E1000_FRAME_MAX, NET_FRAME_MAX bytes, before them room for a tag */
	/* State. */
	u32 reg[E1000_REGS / 4];
	u16 phy[32];
	u32 io_addr;                 /* of the I/O BAR's window */
	struct e1000_context context[2]; /* for checksums; for segmentation */
	u32 tx_sent;                 /* payload of the segmented packet at TDH that has been sent */
	struct { u8 bits, command, level, pad; u16 shift, out; } ee; /* the EEPROM's serial interface, e1000_phy.c */
	u8 irq;                      /* the level of the pin */
	u64 irq_next;                /* ns: not to be raised before then */
	struct timer throttle;
};

static inline u32 *e1000_reg(struct e1000 *e, unsigned off) { return &e->reg[off / 4]; }

void e1000_cause(struct e1000 *e, u32 causes);   /* sets bits of ICR */
void e1000_count(struct e1000 *e, unsigned reg, u64 n, bool wide); /* a statistic; wide: with the upper half behind it */
bool e1000_link(const struct e1000 *e);

/* e1000_phy.c */
void e1000_phy_reset(struct e1000 *e);
void e1000_mdic_write(struct e1000 *e, u32 val);
bool e1000_loops_back(const struct e1000 *e);    /* what is sent is received */
void e1000_eeprom_fill(struct e1000 *e);         /* from mac */
void e1000_eecd_write(struct e1000 *e, u32 val);
u32 e1000_eecd_read(struct e1000 *e);
void e1000_eerd_write(struct e1000 *e, u32 val);

bool e1000_send_buffers(struct e1000 *e);        /* e1000_tx.c: false: no memory */
void e1000_free_buffers(struct e1000 *e);

/* e1000_rx.c. False: there are not enough descriptors. */
bool e1000_receive(struct e1000 *e, const u8 *frame, size_t len, bool checked);

/* e1000_tx.c: the loop's thread, lock not held. */
void e1000_send_all(void *e1000);
/* The internet's checksum: bytes added up, in network order, folded to 16 bits. sum: what they are added to. */
u16 e1000_sum(const u8 *p, size_t len, u64 sum);

#endif
