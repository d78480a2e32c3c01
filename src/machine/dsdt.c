/* dsdt.asl as bytes. */
#include "dsdt.h"
#include "machine/machine_impl.h"

const u8 *const dsdt_aml = dsdt_aml_code;
const u32 dsdt_aml_size = sizeof(dsdt_aml_code);
