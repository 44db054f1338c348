/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Seals: a linear sum over the words of a table entry with odd 64-bit constants, so that a mix
 * of two entries does not pass for one. Not a secret: it guards against races, not attackers.
 */
#ifndef XMASQ_SEAL_H
#define XMASQ_SEAL_H

#include "maps.h"

_Static_assert(__builtin_offsetof(struct entry, seal) == 8 * SEAL_WORDS, "entry seal");
_Static_assert(__builtin_offsetof(struct slot, seal) == 8 * SEAL_WORDS, "slot seal");
_Static_assert(__builtin_offsetof(struct solicit, seal) == 8 * SOLICIT_WORDS, "solicit seal");
_Static_assert(__builtin_offsetof(struct pending, seal) == 8 * PENDING_WORDS, "pending seal");
_Static_assert(sizeof(struct txkey_key) == 8 * TXKEY_KEY_WORDS, "txkey words");
_Static_assert(sizeof(struct flow) == 8 * FLOW_WORDS, "flow words");

#define SEAL_ONE 0x27d4eb2f165667c5ULL

/* The sum over n words, n being a constant. */
static __always_inline __u64 seal_words(const __u64 *w, int n)
{
	__u64 sum = SEAL_ONE + w[0] * 0x9e3779b97f4a7c15ULL + w[1] * 0xbf58476d1ce4e5b9ULL;

	if (n > 2)
		sum += w[2] * 0x94d049bb133111ebULL;
	if (n > 3)
		sum += w[3] * 0xd6e8feb86659fd93ULL + w[4] * 0xa0761d6478bd642fULL;
	if (n > 5)
		sum += w[5] * 0xe7037ed1a0b428dbULL + w[6] * 0x8ebc6af09c88c6e3ULL;
	if (n > 7)
		sum += w[7] * 0xa24baed4963ee407ULL + w[8] * 0x9fb21c651e98df25ULL +
		       w[9] * 0xcb7e9b2b5f1d3a6dULL + w[10] * 0xb492b66fbe98f273ULL +
		       w[11] * 0x9ae16a3b2f90404fULL + w[12] * 0xc949d7c7509e6557ULL;
	return sum;
}

static __always_inline __u64 seal_flow(const struct flow *f)
{
	const __u64 *w = (const __u64 *)f;
	__u64 sum = w[0] * 0x589965cc75374cc3ULL + w[1] * 0x1d8e4e27c47d124fULL +
		    w[2] * 0xeb44accab455d165ULL + w[3] * 0xc6a4a7935bd1e995ULL;

#if FLOW_WORDS > 4
	sum += w[4] * 0xff51afd7ed558ccdULL + w[5] * 0xc4ceb9fe1a85ec53ULL +
	       w[6] * 0x87c37b91114253d5ULL + w[7] * 0x4cf5ad432745937fULL +
	       w[8] * 0x52dce729da3ed6b1ULL;
#endif
	return sum;
}

/* Copies words that may change meanwhile, each read once. */
#define copy_words(to, from, n)                                                                    \
	do {                                                                                       \
		_Pragma("unroll") for (int i_ = 0; i_ < (n); i_++)((__u64 *)(to))[i_] =            \
			((const volatile __u64 *)(from))[i_];                                      \
	} while (0)

static __always_inline __u64 seal_entry(const struct flow *f, const struct entry *e)
{
	return seal_words((const __u64 *)e, SEAL_WORDS) + seal_flow(f);
}

static __always_inline __u64 seal_slot(const struct slot *s)
{
	return seal_words((const __u64 *)s, SEAL_WORDS);
}

static __always_inline __u64 seal_solicit(const struct flow *f, const struct solicit *s)
{
	return seal_words((const __u64 *)s, SOLICIT_WORDS) + seal_flow(f);
}

static __always_inline __u64 seal_pending(const struct flow *f, const struct pending *p)
{
	return seal_words((const __u64 *)p, PENDING_WORDS) + seal_flow(f);
}

static __always_inline __u64 seal_txkey(const struct txkey_key *k, const struct txkey *t)
{
	return seal_words((const __u64 *)k, TXKEY_KEY_WORDS) + t->until * 0x94d049bb133111ebULL +
	       seal_flow(&t->flow);
}

#endif
