/* sandbox: what a process may still ask of the kernel once a guest runs in it.
 *
 * Two walls, one behind the other. seccomp: a list of calls and arguments (calls.c); anything else ends the
 * process, with the call's name on standard error and status SANDBOX_STATUS (paths.c has a few that the C
 * library makes by itself: they fail). No call on the lists opens,
 * makes, removes or looks up a file, starts a program or a process, signals another process, or maps memory
 * that can be executed. Landlock: no file by any path, should seccomp's wall have a hole.
 *
 * A machine that shares folders with its guest has the calls for files; which files, Landlock says: those
 * folders. What Landlock does not know stays possible to it there: to look at a file's attributes, and, with
 * a folder that is writable, to change modes, owners and times, of any file that is the user's own.
 *
 * What a process needs is open before it enters. Descriptors that it has keep working. */
#ifndef RING3_SANDBOX_H
#define RING3_SANDBOX_H

#include "base/base.h"

enum sandbox_mode { SANDBOX_AUTO, SANDBOX_ON, SANDBOX_OFF }; /* auto: what this host offers; on: both, or an error */
extern const char *const sandbox_words[];
#define SANDBOX_STATUS 71

struct sandbox_folder { const char *path; bool writable; };

/* The process of a machine, all its threads, and those that they start, with n folders that it shares. kvm: its
 * engine is KVM, whose descriptors are open. last:
 * called before the process ends by what it must not do; async-signal-safe, may be NULL. False: e says what
 * this host lacks. */
bool sandbox_enter(enum sandbox_mode mode, const struct sandbox_folder *folders, int n, bool kvm, void (*last)(void), struct error *e);
/* The helper of the user-mode network, one thread: sockets of the Internet, and of files the content of
 * /etc/resolv.conf, which is opened here; other paths are refused to it (EACCES), which ends nothing. */
bool sandbox_enter_net(enum sandbox_mode mode, struct error *e);

/* What this host has of either. */
bool sandbox_has_seccomp(void);
int sandbox_landlock_abi(void); /* 0: none */

#endif
