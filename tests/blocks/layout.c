/* Where everything is: windows, and the physical pages behind them. */
#include "blocks.h"

const char *const code_letters[N_WINDOWS] = { "XxAX-n", "xXxX-n", "XxAX-n" };

u64 window_base(enum code_mode m, enum window w)
{
	static const u64 wide[N_WINDOWS] = { 0, 0x620000000000ull, 0xffff800000000000ull };
	static const u64 narrow[N_WINDOWS] = { 0, 0x60000000, 0xc0000000 };
	return m == CODE64 ? wide[w] : narrow[w];
}

/* Page k of a program's physical memory: never beside page k - 1. */
static u64 scattered(unsigned k) { return REGION + (k * 37 + 5) % 512 * 4096ull; }

u64 code_phys(unsigned space, unsigned page) { return scattered(space * N_CODE_LETTERS + page); }

/* page: counted among the data pages that are there. Each window and space has its own order. */
u64 data_phys(unsigned space, enum window w, unsigned page)
{
	static const u8 step[N_WINDOWS] = { 1, 3, 5 };
	return scattered(N_SPACES * N_CODE_LETTERS + (page * step[w] + 5u * w + 3 * space) % N_DATA_PHYS);
}
