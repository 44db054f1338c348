/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * IPv4: the types that the tables and the wire format need. What is done with them is in ip4.h.
 */
#ifndef XMASQ_ADDR4_H
#define XMASQ_ADDR4_H

#include "defs.h"

typedef __be32 addr_t;
#define ADDR_ANY ((addr_t)0)

#define ETHERTYPE_IP ETHERTYPE_IPV4
#define IP_HDR_LEN 20
#define IP_DF 0x4000
#define IP_RESERVED 0x8000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff
#define PROTO_ICMP IPPROTO_ICMP
#define XM_AF 2 /* AF_INET */
#define XM_EXTERNAL 1 /* links in collect metadata mode: external.h */
#define F_STORE 0 /* for what a checksum in the packet makes up for */

#define VXLAN_OVERHEAD 50 /* IPv4, UDP, VXLAN, inner Ethernet */
#define PAIR_BLOCKS 128 /* 13 bits of key at most */
#define MAX_OPEN 16384 /* negotiations under way */
#define KEY_CHECK_BITS 0 /* the header's checksum covers the key */

/* Words of 64 bits in the sealed structures (maps.h, seal.h). */
#define ADDR_WORDS 1 /* of two addresses */
#define FLOW_WORDS 4
#define SLOT_WORDS 8
#define SOLICIT_WORDS 3
#define PENDING_WORDS 5
#define TXKEY_KEY_WORDS 2
#define HEADER_WORDS 12 /* of a fallback packet's headers, and of a control packet */
/* Fills structures whose addresses are longer up to whole words. */
#define ADDR_PAD(words)
/* Fills structures up to whole cache lines, in words of 64 bits: over IPv4, over IPv6. */
#define LINE_PAD(four, six) __u64 pad[four];

/*
 * Room for a control packet in front of the fallback packet that it is made of; the least that will
 * do; and how much of the old packet must stay: up to the end of an inner TCP checksum.
 */
#define CTL_HEADROOM 112
#define CTL_HEADROOM_MIN 16
#define CTL_TAIL 102
#define CTL_AUTH_WORDS 8

struct ip_hdr {
	__u8 ver_ihl;
	__u8 tos;
	__be16 len;
	__be16 id;
	__be16 frag;
	__u8 ttl;
	__u8 proto;
	__sum16 check;
	addr_t src;
	addr_t dst;
};

static __always_inline int addr_equal(addr_t a, addr_t b)
{
	return a == b;
}

static __always_inline int addr_is_set(addr_t a)
{
	return !!a;
}

/* The sum of both addresses, and of the complements of two others (RFC 1624), not folded. */
static __always_inline __u64 addr_sum(addr_t a, addr_t b)
{
	return (__u64)a + b;
}

static __always_inline __u64 addr_sum_not(addr_t a, addr_t b)
{
	return (__u64)(__u32)~a + (__u32)~b;
}

/* A number that differs for most pairs of addresses. */
static __always_inline __u32 addr_mix(addr_t a, addr_t b)
{
	return (a * 0x9e3779b1U + b * 0x85ebca77U) >> 16;
}

#endif
