/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Seals: a linear sum over the words of a table entry with odd 64-bit constants, so that a mix
 * of two entries does not pass for one. Not a secret: it guards against races, not attackers.
 */
#ifndef XMASQ_SEAL_H
#define XMASQ_SEAL_H

#include "maps.h"

#define SEAL_ENTRY_WORDS 7
#define SEAL_SLOT_WORDS 7
#define FLOW_WORDS 4

_Static_assert(__builtin_offsetof(struct entry, seal) == 8 * SEAL_ENTRY_WORDS, "entry seal");
_Static_assert(__builtin_offsetof(struct slot, seal) == 8 * SEAL_SLOT_WORDS, "slot seal");
_Static_assert(sizeof(struct flow) == 8 * FLOW_WORDS, "flow words");

#define SEAL_C0 0x9e3779b97f4a7c15ULL
#define SEAL_C1 0xbf58476d1ce4e5b9ULL
#define SEAL_C2 0x94d049bb133111ebULL
#define SEAL_C3 0xd6e8feb86659fd93ULL
#define SEAL_C4 0xa0761d6478bd642fULL
#define SEAL_C5 0xe7037ed1a0b428dbULL
#define SEAL_C6 0x8ebc6af09c88c6e3ULL
#define SEAL_C7 0x589965cc75374cc3ULL
#define SEAL_C8 0x1d8e4e27c47d124fULL
#define SEAL_C9 0xeb44accab455d165ULL
#define SEAL_C10 0xc6a4a7935bd1e995ULL
#define SEAL_ONE 0x27d4eb2f165667c5ULL

static __always_inline __u64 seal_flow(const struct flow *f)
{
	const __u64 *w = (const __u64 *)f;

	return w[0] * SEAL_C7 + w[1] * SEAL_C8 + w[2] * SEAL_C9 + w[3] * SEAL_C10;
}

/* w: seven words of an entry or a slot. */
static __always_inline __u64 seal_words(const __u64 *w)
{
	return SEAL_ONE + w[0] * SEAL_C0 + w[1] * SEAL_C1 + w[2] * SEAL_C2 + w[3] * SEAL_C3 +
	       w[4] * SEAL_C4 + w[5] * SEAL_C5 + w[6] * SEAL_C6;
}

/* Copies words that may change meanwhile, each read once. */
#define copy_words(to, from, n)                                                                    \
	do {                                                                                       \
		_Pragma("unroll") for (int i_ = 0; i_ < (n); i_++)((__u64 *)(to))[i_] =            \
			((const volatile __u64 *)(from))[i_];                                      \
	} while (0)

static __always_inline __u64 seal_entry(const struct flow *f, const struct entry *e)
{
	return seal_words((const __u64 *)e) + seal_flow(f);
}

static __always_inline __u64 seal_solicit(const struct flow *f, const struct solicit *s)
{
	const __u64 *w = (const __u64 *)s;

	return SEAL_ONE + w[0] * SEAL_C0 + w[1] * SEAL_C1 + w[2] * SEAL_C2 + seal_flow(f);
}

static __always_inline __u64 seal_pending(const struct flow *f, const struct pending *p)
{
	const __u64 *w = (const __u64 *)p;

	return SEAL_ONE + w[0] * SEAL_C0 + w[1] * SEAL_C1 + w[2] * SEAL_C2 + w[3] * SEAL_C3 +
	       w[4] * SEAL_C4 + seal_flow(f);
}

static __always_inline __u64 seal_txkey(const struct txkey_key *k, const struct txkey *t)
{
	const __u64 *w = (const __u64 *)k;

	return SEAL_ONE + w[0] * SEAL_C0 + w[1] * SEAL_C1 + t->until * SEAL_C2 +
	       seal_flow(&t->flow);
}

#endif
