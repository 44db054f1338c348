/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What may be encoded at all (I3), and what MARK and key look like in an IPv4 header.
 */
#ifndef XMASQ_PARSE_H
#define XMASQ_PARSE_H

#include "state.h"
#include "wire.h"

/*
 * 0, or the counter of the reason why a packet with this header always takes the fallback.
 * Sets the flow's variant.
 */
static __always_inline int ip_reason(const struct ip_hdr *ip, __u8 dmac0, __u8 *variant)
{
	*variant = 0;
	if (ip->ver_ihl != 0x45)
		return C_FB_OPTIONS;
	if (ip->frag != be16(IP_DF)) {
		if (ip->frag)
			return C_FB_FRAGMENT;
		if (be16(ip->len) > XM_NODF_MAX)
			return C_FB_DF_CLEAR;
		*variant = XM_VAR_NODF;
	}
	if (be16(ip->len) <= IP_HDR_LEN)
		return C_FB_LENGTH; /* an empty bounced packet takes a key back */
	/*
	 * Within tunnels GRO looks at the innermost IDs only, so it could join packets with
	 * different keys.
	 */
	if (ip->proto == IPPROTO_IPIP || ip->proto == IPPROTO_IPV6 || ip->proto == IPPROTO_GRE)
		return C_FB_TUNNEL_PROTO;
	if (ip->ttl < XM_MIN_TTL)
		return C_FB_TTL;
	if (dmac0 & 1)
		return C_FB_MULTICAST;
	return 0;
}

static __always_inline __u32 key_bits(const struct conf *conf)
{
	return 16 - (conf->seg_bits & 15) + (conf->xbits & 3);
}

static __always_inline int key_ok(const struct conf *conf, __u32 key)
{
	return key && key < (1U << key_bits(conf)) && key < BLOCK_KEYS * PAIR_BLOCKS;
}

static __always_inline __be16 key_wire_id(const struct conf *conf, __u32 key)
{
	return be16((__u16)(key << (conf->seg_bits & 15)));
}

/* base: conf.mark or conf.bounce. */
static __always_inline __u8 key_wire_dscp(const struct conf *conf, __u8 base, __u32 key)
{
	return base + ((key >> (16 - (conf->seg_bits & 15))) << 3);
}

/* Is this DSCP MARK, or BOUNCE, with any further key bits in use? */
static __always_inline int dscp_is(const struct conf *conf, __u8 base, __u8 dscp)
{
	__u8 x = dscp - base;

	return !(x & 7) && x < (8U << (conf->xbits & 3));
}

static __always_inline __u32 wire_key(const struct conf *conf, __u8 base, const struct ip_hdr *ip)
{
	__u32 bits = conf->seg_bits & 15;
	__u32 high = (__u8)((ip->tos >> 2) - base) >> 3;

	return (high << (16 - bits)) | (be16(ip->id) >> bits);
}

#endif
