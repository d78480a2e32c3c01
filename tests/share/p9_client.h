/* What the tests of the server of 9P2000.L share: a client, which speaks to it as a guest could, and the scratch folder in
 * which its folder lies beside a secret. Requests return 0, or the error of the reply. */
#ifndef TESTS_SHARE_P9_CLIENT_H
#define TESTS_SHARE_P9_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "test.h"
#include "share/p9.h"

enum { TSTATFS = 8, TLOPEN = 12, TLCREATE = 14, TSYMLINK = 16, TMKNOD = 18, TRENAME = 20, TREADLINK = 22, TGETATTR = 24, TSETATTR = 26,
       TXATTRWALK = 30, TREADDIR = 40, TFSYNC = 50, TLOCK = 52, TGETLOCK = 54, TLINK = 70, TMKDIR = 72, TRENAMEAT = 74, TUNLINKAT = 76,
       TVERSION = 100, TATTACH = 104, TFLUSH = 108, TWALK = 110, TREAD = 116, TWRITE = 118, TCLUNK = 120, TREMOVE = 122 };
#define NOFID 0xffffffffu
#define ROOT 0u

struct p9_client {
	char dir[64];            /* of all; the folder is dir/in, the secret dir/secret */
	struct loop *loop;
	struct share *share;
	u8 out[16384];
	size_t len;
	u8 in[1 << 20];
	struct share_request r;
	bool done;
};
extern struct p9_client t;

void add(u64 val, unsigned bytes);
void add_text(const char *text);
void begin(u8 type);
int send_raw(u64 in_len);
int send_message(void);
int version(u32 msize, const char *text);
int attach(u32 fid);
int walk(u32 fid, u32 new_fid, const char *path);
int lopen(u32 fid, u32 flags);
int lcreate(u32 fid, const char *name, u32 flags, u32 mode);
int write_file(u32 fid, u64 offset, const char *text);
int read_file(u32 fid, u64 offset, u32 count);
int clunk(u32 fid);
int mkdir_in(u32 fid, const char *name, u32 mode);
int symlink_in(u32 fid, const char *name, const char *target);
int mknod_in(u32 fid, const char *name, u32 mode);
int link_in(u32 dir, u32 fid, const char *name);
int renameat_in(u32 from_dir, const char *from, u32 to_dir, const char *to);
int unlink_in(u32 dir, const char *name, u32 flags);
int with_fid(u8 type, u32 fid);
int getattr(u32 fid);
u64 attr_size(void);
u64 attr_path(void);
int setattr(u32 fid, u32 valid, u32 mode, u64 size);
const char *path_of(const char *name);
void host_write(const char *name, const char *text);
void host_has(const char *name, const char *want);
bool host_is(const char *name);
void open_share(bool read_only);
int setup(void **state);
int teardown(void **state);
unsigned count_fds(void); /* descriptors that this process has open */

#endif
