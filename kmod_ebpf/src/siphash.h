/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SipHash-2-4 (Aumasson, Bernstein 2012) over a whole number of 64-bit words.
 */
#ifndef XMASQ_SIPHASH_H
#define XMASQ_SIPHASH_H

#include "defs.h"

#define SIP_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIP_ROUND                                                                                  \
	do {                                                                                       \
		v0 += v1;                                                                          \
		v2 += v3;                                                                          \
		v1 = SIP_ROTL(v1, 13) ^ v0;                                                        \
		v3 = SIP_ROTL(v3, 16) ^ v2;                                                        \
		v0 = SIP_ROTL(v0, 32);                                                             \
		v2 += v1;                                                                          \
		v0 += v3;                                                                          \
		v1 = SIP_ROTL(v1, 17) ^ v2;                                                        \
		v3 = SIP_ROTL(v3, 21) ^ v0;                                                        \
		v2 = SIP_ROTL(v2, 32);                                                             \
	} while (0)

static __always_inline __u64 siphash_words(const __u64 *w, int n, __u64 k0, __u64 k1)
{
	__u64 v0 = k0 ^ 0x736f6d6570736575ULL, v1 = k1 ^ 0x646f72616e646f6dULL;
	__u64 v2 = k0 ^ 0x6c7967656e657261ULL, v3 = k1 ^ 0x7465646279746573ULL;
	__u64 b = (__u64)n * 8 << 56;

#pragma clang loop unroll(disable)
	for (int i = 0; i < n; i++) {
		v3 ^= w[i];
		SIP_ROUND;
		SIP_ROUND;
		v0 ^= w[i];
	}
	v3 ^= b;
	SIP_ROUND;
	SIP_ROUND;
	v0 ^= b;
	v2 ^= 0xff;
	SIP_ROUND;
	SIP_ROUND;
	SIP_ROUND;
	SIP_ROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

#endif
