/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Incremental checksums (RFC 1624): what was wrong stays wrong, what was right stays right.
 */
#ifndef XMASQ_CSUM_H
#define XMASQ_CSUM_H

#include "family.h"

/* The complement of a sum of any number of words that there may be in a header. */
static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)~sum;
}

/* Such a sum as the kernel's helpers take it (__wsum). */
static __always_inline __u32 csum_short(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)sum;
}

/* The difference that two changed addresses make to a pseudo header's sum. */
static __always_inline __u32 csum_diff(addr_t src, addr_t dst, addr_t new_src, addr_t new_dst)
{
	__u64 sum = addr_sum_not(src, dst);

	opaque(sum); /* or all words are loaded first, for which there is no room */
	return csum_short(sum + addr_sum(new_src, new_dst));
}

/*
 * Copies what follows the IP header. Most often it lies in the packet's linear part, where a look
 * is cheaper than the helper's call. size: a constant.
 */
static __always_inline int l4_read(struct __sk_buff *skb, void *to, const __u32 size)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (likely(data + ETH_HLEN + IP_HDR_LEN + size <= end)) {
		__builtin_memcpy(to, data + ETH_HLEN + IP_HDR_LEN, size);
		return 0;
	}
	return xm_skb_load_bytes(skb, ETH_HLEN + IP_HDR_LEN, to, size);
}

/* One word of it. at: a constant, whole words. It lies on a word in memory, too (state.h, eth_to).
 */
static __always_inline int l4_word(struct __sk_buff *skb, const __u32 at, __u32 *word)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (likely(data + ETH_HLEN + IP_HDR_LEN + at + sizeof(*word) <= end)) {
		*word = *(__u32 *)(data + ETH_HLEN + IP_HDR_LEN + at);
		return 0;
	}
	return xm_skb_load_bytes(skb, ETH_HLEN + IP_HDR_LEN + at, word, sizeof(*word));
}

/*
 * UDP. A container's own tunnel may send a packet whose UDP checksum is complete, while its
 * innermost one is still to be written by a device (local checksum offload): then the helper takes
 * the complete one for unfinished. An unfinished one is the pseudo header's sum.
 */
static __always_inline int udp_csum_shift(struct __sk_buff *skb, addr_t src, addr_t dst, __u32 diff)
{
	__u32 off = ETH_HLEN + IP_HDR_LEN, word;
	__u16 want, have, len;

	/* Length and checksum. */
	if (l4_word(skb, 4, &word))
		return -1;
	len = word;
	have = word >> 16;
	if (!have)
		return 0;
	if (xm_l4_csum_replace(skb, off + 6, 0, diff, F_PSEUDO_HDR | F_MARK_MANGLED_0))
		return -1;
	if (likely(have == (__u16)~csum_fold(addr_sum(src, dst) + be16(IPPROTO_UDP) + len)))
		return 0;
	want = csum_fold((__u64)diff + (__u16)~have);
	if (!want)
		want = 0xffff;
	if (l4_word(skb, 4, &word))
		return -1;
	have = word >> 16;
	return have == want ? 0 : xm_skb_store_bytes(skb, off + 6, &want, sizeof(want), 0);
}

/* Where in its header a protocol has a checksum over the pseudo header; 0: it has none. */
static __always_inline __u32 l4_csum_off(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
	case IPPROTO_DCCP:
	case IPPROTO_UDPLITE:
		return 6;
#if XM_FAMILY == 6
	case IPPROTO_ICMPV6:
		return 2;
#endif
	}
	return 0;
}

/*
 * Moves the L4 checksum, where a protocol has one over the pseudo header, by a difference.
 * Works for CHECKSUM_PARTIAL and _COMPLETE too. l4_len: bytes behind the IP header.
 */
static __always_inline int l4_csum_shift(struct __sk_buff *skb, const struct ip_hdr *ip,
					 __u32 l4_len, __u32 diff)
{
	__u32 off = ETH_HLEN + IP_HDR_LEN;
	__u8 proto = ip->proto;

	if (proto == IPPROTO_TCP) {
		if (l4_len < 18)
			return 0;
		return xm_l4_csum_replace(skb, off + 16, 0, diff, F_PSEUDO_HDR);
	}
	if (proto == IPPROTO_UDP) {
		if (l4_len < UDP_HDR_LEN)
			return 0;
		return udp_csum_shift(skb, ip->src, ip->dst, diff);
	}
	if (proto == IPPROTO_DCCP || proto == IPPROTO_UDPLITE) {
		if (l4_len < UDP_HDR_LEN)
			return 0;
		return xm_l4_csum_replace(skb, off + 6, 0, diff, F_PSEUDO_HDR);
	}
#if XM_FAMILY == 6
	if (proto == IPPROTO_ICMPV6) {
		if (l4_len < 4)
			return 0;
		return xm_l4_csum_replace(skb, off + 2, 0, diff, F_PSEUDO_HDR);
	}
#endif
	return 0;
}

#endif
