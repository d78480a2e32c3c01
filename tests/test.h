/* What every cmocka test begins with: cmocka and the headers that it asks to come before it. */
#ifndef RING3_TEST_H
#define RING3_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#endif
