/* cli: options to one struct vm_config, and nothing else. */
#ifndef RING3_CLI_H
#define RING3_CLI_H

#include "machine/machine.h"

#define EXIT_USAGE 64  /* an option that is wrong */
#define EXIT_START 65  /* a machine that cannot be built: a file, memory, an engine */

int cli_run(int argc, char **argv);
int cli_diff(int argc, char **argv);
int cli_ctl(int argc, char **argv);
int cli_list(int argc, char **argv);
int cli_img(int argc, char **argv);
int cli_doctor(int argc, char **argv);
void json_string(const char *text); /* to standard output, quoted (json.c) */
/* Fills cfg from the options. False: error is set. *done: --help was served, leave with status 0. */
struct cli_extra { bool done, print_config; char *config, *log, *log_file; };
bool options_parse(int argc, char **argv, struct vm_config *cfg, struct cli_extra *x, struct error *e);
void options_free(struct vm_config *cfg, struct cli_extra *x);

/* config.c: a file of options. Each is given on when it is there as a whole, a section as the option of its
 * name with all its keys; before that the section's name, and each KEY=VALUE of it, so that an error is that
 * line's. An error that they set gets the file and line before it. */
struct config_ops {
	void *arg;
	bool (*section)(void *arg, const char *name, struct error *e);
	bool (*key)(void *arg, const char *section, const char *item, struct error *e);
	bool (*option)(void *arg, const char *name, const char *value, struct error *e);
};
bool config_read(const char *path, const struct config_ops *ops, struct error *e);
/* One option, as config_read reads it. False: no line can say it. */
bool config_write(FILE *f, const char *name, const char *value, struct error *e);

#endif
