/* The paging product, shared by paging32.c and paging64.c: every combination of P, W, U, NX and
 * reserved bits over the levels of a walk, against CPL, WP, SMEP, SMAP, AC and protection keys.
 * What must happen is computed by expect() straight from SDM vol. 3 4.6 (access rights), 4.7 (error
 * code) and 4.8 (accessed and dirty). The page under test lies at VA, its tables in own pages. */
#ifndef PAGING_H
#define PAGING_H
#include "guest.h"

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, BIG = 0x80, GLOBAL = 0x100 };
enum { EC_P = 1, EC_W = 2, EC_U = 4, EC_RSVD = 8, EC_I = 16, EC_PK = 32 };
enum access { READ, WRITE, FETCH };

struct rules { bool cpl3, wp, smep, smap, ac, nxe, pke, pks; u32 pkru, pkrs; };
struct entry { bool p, w, u, nx, rsvd; };

/* -1: allowed; else the error code. levels from the top; key: of the leaf. */
static int expect(const struct entry *e, unsigned n, enum access a, const struct rules *r, unsigned key)
{
	int ec = (a == WRITE ? EC_W : 0) | (r->cpl3 ? EC_U : 0) | (a == FETCH && (r->nxe || r->smep) ? EC_I : 0);
	bool w = true, u = true, nx = false;
	for (unsigned k = 0; k < n; k++) {
		if (!e[k].p)
			return ec;
		if (e[k].rsvd || (e[k].nx && !r->nxe))
			return ec | EC_P | EC_RSVD;
		w &= e[k].w;
		u &= e[k].u;
		nx |= e[k].nx;
	}
	bool bad;
	if (r->cpl3)
		bad = !u || (a == WRITE && !w) || (a == FETCH && nx);
	else if (a == FETCH)
		bad = nx || (u && r->smep);
	else
		bad = (u && r->smap && !r->ac) || (a == WRITE && !w && r->wp);
	if ((u ? r->pke : r->pks) && a != FETCH) {
		u32 bits = (u ? r->pkru : r->pkrs) >> 2 * key;
		if (bits & 1 || (a == WRITE && (bits & 2) && ((u && r->cpl3) || r->wp)))
			return ec | EC_P | EC_PK;
	}
	return bad ? ec | EC_P : -1;
}

#endif
