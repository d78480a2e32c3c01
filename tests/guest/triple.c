/* A triple fault: an exception, then a double fault, with no table to handle them. The machine
 * stops with status 66. SDM vol. 3 6.15, #DF. */
#include "guest.h"

const char guest_name[] = "triple";

int main(void)
{
	struct dtr none = { 0, 0 };
	check("before", true);
	__asm__ volatile("lidt %0; ud2" : : "m"(none));
	check("the processor goes on after a triple fault", false);
	return 0;
}
