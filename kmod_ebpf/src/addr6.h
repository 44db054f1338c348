/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * IPv6: the types that the tables and the wire format need. What is done with them is in ip6.h.
 */
#ifndef XMASQ_ADDR6_H
#define XMASQ_ADDR6_H

#include "defs.h"

typedef struct {
	__be32 w[4];
} addr_t;
#define ADDR_ANY ((addr_t){})

#define ETHERTYPE_IP ETHERTYPE_IPV6
#define IP_HDR_LEN 40
#define XM_AF 10 /* AF_INET6 */
#define XM_EXTERNAL 0
#define PROTO_ICMP IPPROTO_ICMPV6
#define F_STORE F_RECOMPUTE_CSUM /* the pseudo header's part of a checksum is not in the packet */

#define VXLAN_OVERHEAD 70 /* IPv6, UDP, VXLAN, inner Ethernet */
#define PAIR_BLOCKS 256 /* 16,383 keys of a pair */
#define MAX_OPEN 8192 /* negotiations under way */
/*
 * No checksum covers the flow label. So that a damaged one is not another flow's key, the lowest
 * bits of a key are a check of the others.
 */
#define KEY_CHECK_BITS 4

/* Words of 64 bits in the sealed structures (maps.h, seal.h). */
#define ADDR_WORDS 4 /* of two addresses */
#define FLOW_WORDS 9
#define SLOT_WORDS 14
#define SOLICIT_WORDS 5
#define PENDING_WORDS 7
#define TXKEY_KEY_WORDS 5
#define HEADER_WORDS 17 /* of a fallback packet's headers, and of a control packet */
/* Fills structures up to whole words. */
#define ADDR_PAD(words) __u32 addr_pad[words];
/* Fills structures up to whole cache lines, in words of 64 bits: over IPv4, over IPv6. */
#define LINE_PAD(four, six) LINE_PAD_##six
#define LINE_PAD_0
#define LINE_PAD_1 __u64 pad[1];

/*
 * Room for a control packet in front of the fallback packet that it is made of. The outer UDP
 * checksum may be what is still due, so there is no smaller room that would do. And how much of the
 * old packet must stay: up to the end of an inner TCP checksum.
 */
#define CTL_HEADROOM 152
#define CTL_HEADROOM_MIN CTL_HEADROOM
#define CTL_TAIL 142
#define CTL_AUTH_WORDS 14

struct ip_hdr {
	__be32 flow; /* version, traffic class, flow label */
	__be16 len; /* of what follows */
	__u8 proto; /* next header */
	__u8 hops;
	addr_t src;
	addr_t dst;
};

static __always_inline int addr_equal(addr_t a, addr_t b)
{
	return !((a.w[0] ^ b.w[0]) | (a.w[1] ^ b.w[1]) | (a.w[2] ^ b.w[2]) | (a.w[3] ^ b.w[3]));
}

static __always_inline int addr_is_set(addr_t a)
{
	return !!(a.w[0] | a.w[1] | a.w[2] | a.w[3]);
}

/* The sum of both addresses, and of the complements of two others (RFC 1624), not folded. */
static __always_inline __u64 addr_sum(addr_t a, addr_t b)
{
	return (__u64)a.w[0] + a.w[1] + a.w[2] + a.w[3] + b.w[0] + b.w[1] + b.w[2] + b.w[3];
}

static __always_inline __u64 addr_sum_not(addr_t a, addr_t b)
{
	return (__u64)(__u32)~a.w[0] + (__u32)~a.w[1] + (__u32)~a.w[2] + (__u32)~a.w[3] +
	       (__u32)~b.w[0] + (__u32)~b.w[1] + (__u32)~b.w[2] + (__u32)~b.w[3];
}

/* A number that differs for most pairs of addresses. */
static __always_inline __u32 addr_mix(addr_t a, addr_t b)
{
	__u64 x = (__u64)(a.w[0] ^ a.w[2]) << 32 | (a.w[1] ^ a.w[3]);
	__u64 y = (__u64)(b.w[0] ^ b.w[2]) << 32 | (b.w[1] ^ b.w[3]);

	return (x * 0x9e3779b97f4a7c15ULL + y * 0xd6e8feb86659fd93ULL) >> 32;
}

#endif
