/* control: a running machine, told what to do from outside: `ring3 ctl`. */
#ifndef RING3_CONTROL_H
#define RING3_CONTROL_H

#include "machine/machine.h"

/* ---- the machine's end: everything on the loop's thread ---- */
struct control;
/* Listens for a machine of that name. False in *e: the name is not one, or taken. */
struct control *control_open(struct machine *m, const char *name, struct error *e);
void control_close(struct control *c);

/* ---- the other end (client.c) ---- */
/* Sends one command, and with it the descriptor fd unless that is -1; and returns its answer, malloced, *len bytes and a 0 that does not count. NULL: e says
 * why: there is no such machine, or what the machine says. */
char *control_ask(const char *name, const char *command, int fd, size_t *len, struct error *e);
/* Names of the machines that answer, malloced, NULL at the end. */
char **control_names(void);
/* Where the socket of a machine is; false: the name cannot be one's. */
bool control_path(const char *name, char *buf, size_t cap, struct error *e);

#endif
