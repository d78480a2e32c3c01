/* The hostile programs once more, each as the guest of a hypervisor in the machine (hostile_guest.c): a guest of the guest's
 * is no wider a way out. Fewer of the random ones. */
#include "hostile.h"

static void as_guest(enum hostile_host host)
{
	hostile_under(host);
	hostile_all();
	hostile_end_of_ram();
	hostile_chosen_pages();
	hostile_random(100);
}
static void of_svm(void **state) { as_guest(HOST_SVM); }
static void of_vmx(void **state) { as_guest(HOST_VMX); }

static void count(void **state)
{
	print_message("%u hostile programs\n", hostile_programs);
	assert_true(hostile_programs >= 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(of_svm),
		cmocka_unit_test(of_vmx),
		cmocka_unit_test(count),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
