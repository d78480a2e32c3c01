/* cli: options to one struct vm_config, and nothing else. */
#ifndef RING3_CLI_H
#define RING3_CLI_H

#include "machine/machine.h"

#define EXIT_USAGE 64  /* an option that is wrong */
#define EXIT_START 65  /* a machine that cannot be built: a file, memory, an engine */

int cli_run(int argc, char **argv);
int cli_diff(int argc, char **argv);
int cli_ctl(int argc, char **argv);
int cli_list(void);
int cli_img(int argc, char **argv);
/* Fills cfg from the options. False: error is set. *done: --help was served, leave with status 0. */
struct cli_extra { bool done; char *log, *log_file; };
bool options_parse(int argc, char **argv, struct vm_config *cfg, struct cli_extra *x, struct error *e);
void options_free(struct vm_config *cfg, struct cli_extra *x);

#endif
