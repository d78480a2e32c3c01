/* Machines for tests: a kernel made of bytes goes into a file, a machine is built of it, looked
 * into, and run to its end. Time follows instructions, so nothing depends on the host's pace. */
#ifndef TESTS_MACHINE_RIG_H
#define TESTS_MACHINE_RIG_H

#include "test.h"
#include "machine/machine_impl.h"

/* A file of these bytes; its name, good until the process ends. k: which of the rig's files. */
enum { FILE_KERNEL, FILE_INITRD, FILE_OTHER, N_FILES };
char *rig_file(int k, const void *data, size_t len);
void rig_remove_files(void);

/* 64 MiB, one processor, no console, deterministic time. */
struct vm_config rig_config(void);
/* Builds, or fails the test with the machine's own words. cfg must live as long. */
struct machine *rig_build(const struct vm_config *cfg);
/* Must not be built, for a reason that has this word in it. */
void rig_refuses(const struct vm_config *cfg, const char *word);
/* Builds, runs to the end, frees; the exit status. */
int rig_run(const struct vm_config *cfg);

/* Code that ends the machine with status code << 1 | 1, in any mode: mov al, code; out 0xf4, al; hlt; jmp. */
#define EXIT_CODE(code) 0xb0, (code), 0xe6, 0xf4, 0xf4, 0xeb, 0xfd
#define EXIT_STATUS(code) ((code) << 1 | 1)

u32 guest32(struct machine *m, u64 gpa);
u64 guest64(struct machine *m, u64 gpa);

#endif
