/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Seals: a linear sum over the words of a table entry with odd 64-bit constants, so that a mix
 * of two entries does not pass for one. Not a secret: it guards against races, not attackers.
 */
#ifndef XMASQ_SEAL_H
#define XMASQ_SEAL_H

#include "maps.h"

_Static_assert(__builtin_offsetof(struct entry, gen) == 8 * ENTRY_WORDS, "entry words");
_Static_assert(__builtin_offsetof(struct entry, local) % 8 == 0 &&
		       __builtin_offsetof(struct entry, nexthop) ==
			       __builtin_offsetof(struct entry, local) + 8 * ADDR_WORDS,
	       "entry ends");
_Static_assert(__builtin_offsetof(struct slot, until) == 8 * SLOT_WORDS, "slot words");
_Static_assert(__builtin_offsetof(struct solicit, seal) == 8 * SOLICIT_WORDS, "solicit seal");
_Static_assert(__builtin_offsetof(struct pending, seal) == 8 * PENDING_WORDS, "pending seal");
_Static_assert(sizeof(struct txkey_key) == 8 * TXKEY_KEY_WORDS, "txkey words");
_Static_assert(sizeof(struct flow) == 8 * FLOW_WORDS, "flow words");

#define SEAL_ONE 0x27d4eb2f165667c5ULL

/*
 * The sum over n words, n being a constant. The constants are odd, and short enough to be part of
 * the instruction that multiplies with them.
 */
static __always_inline __u64 seal_words(const __u64 *w, int n)
{
	__u64 sum = w[0] * 0x6c8e9cf5 + w[1] * 0x5bd1e995;

	if (n > 2)
		sum += w[2] * 0x38495ab5;
	if (n > 3)
		sum += w[3] * 0x7feb352d + w[4] * 0x1b873593;
	if (n > 5)
		sum += w[5] * 0x2c1b3c6d;
	if (n > 6)
		sum += w[6] * 0x297a2d39;
	if (n > 7)
		sum += w[7] * 0x4f4c574b + w[8] * 0x6b43a9b5 + w[9] * 0x45d9f3b3 +
		       w[10] * 0x3c6ef363 + w[11] * 0x52dce729;
	return sum;
}

static __always_inline __u64 seal_flow(const struct flow *f)
{
	const __u64 *w = (const __u64 *)f;
	__u64 sum = SEAL_ONE + w[0] * 0x165667b1 + w[1] * 0x27d4eb2f + w[2] * 0x1a85ec53 +
		    w[3] * 0x4cf5ad43;

#if FLOW_WORDS > 4
	sum += w[4] * 0x58996501 + w[5] * 0x44ccab45 + w[6] * 0x3b9b1111 + w[7] * 0x73a3d4e7 +
	       w[8] * 0x6659fd93;
#endif
	return sum;
}

/* Copies words that may change meanwhile, each read once. */
#define copy_words(to, from, n)                                                                    \
	do {                                                                                       \
		_Pragma("unroll") for (int i_ = 0; i_ < (n); i_++)((__u64 *)(to))[i_] =            \
			((const volatile __u64 *)(from))[i_];                                      \
	} while (0)

/* For words that stand behind the others. */
#define SEAL_LAST 0x2545f491

/* The sum over two addresses, one behind the other. */
static __always_inline __u64 seal_ends(const addr_t *ends)
{
	const __u64 *w = (const __u64 *)ends;
	__u64 sum = w[0] * 0x5851f42d;

#if ADDR_WORDS > 1
	sum += w[1] * 0x4c957f2d + w[2] * 0x14057b7f + w[3] * 0x369dea0f;
#endif
	return sum;
}

static __always_inline __u64 seal_entry(const struct flow *f, const struct entry *e)
{
	const __u64 *w = (const __u64 *)e;

	return seal_words(w + 1, ENTRY_WORDS - 2) +
	       (w[ENTRY_WORDS - 1] << 16) * SEAL_LAST + /* without sent */
	       seal_ends(&e->local) + seal_flow(f);
}

static __always_inline __u64 seal_slot(const struct slot *s)
{
	const __u64 *w = (const __u64 *)s;

	return SEAL_ONE + seal_words(w + 1, SLOT_WORDS - 2) +
	       (w[SLOT_WORDS - 1] << 32) * SEAL_LAST; /* without used */
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
	return seal_words((const __u64 *)k, TXKEY_KEY_WORDS) + t->until * SEAL_LAST +
	       seal_flow(&t->flow);
}

#endif
