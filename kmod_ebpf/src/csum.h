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

/* skb->ip_summed (linux/skbuff.h): who is to see to a packet's checksum. Others: nobody. */
#define CHECKSUM_COMPLETE 2 /* skb->csum is the sum of the packet, and has to stay so */
#define CHECKSUM_PARTIAL 3 /* a device: only the pseudo header's sum is in the checksum's place */

/*
 * Where the kernel lets a program see it, the loader has this read skb->ip_summed, which costs next
 * to nothing. Elsewhere it has it say COMPLETE, for which all that follows asks the helper
 * (summed.py).
 */
#define IP_SUMMED 0x786d6971
static const void *(*xm_kernel_skb)(void *skb) = (void *)IP_SUMMED;

static __always_inline __u64 ip_summed(struct __sk_buff *skb)
{
	const void *kernel_skb = xm_kernel_skb(skb);
	__u64 summed;

	asm volatile("%0 = *(u8 *)(%1 + 0)\n\t"
		     "%0 &= %2\n\t"
		     "%0 >>= 0"
		     : "=r"(summed)
		     : "r"(kernel_skb), "i"(IP_SUMMED));
	return summed;
}

/*
 * A checksum after what it covers has changed by diff, as the kernel's own
 * inet_proto_csum_replace_by_diff (net/core/utils.c) has it. partial: it is the sum that a device
 * is to go on with, not the complement.
 */
static __always_inline __u16 csum_move(__u16 have, __u32 diff, int partial)
{
	if (partial)
		return ~csum_fold((__u64)diff + have);
	return csum_fold((__u64)diff + (__u16)~have);
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
 * A container's own tunnel may send a packet whose UDP checksum is complete, while its innermost
 * one is still to be written by a device (local checksum offload). An unfinished one is the pseudo
 * header's sum.
 */
static __always_inline int udp_unfinished(const struct ip_hdr *ip, __be16 len, __u16 have)
{
	return have == (__u16)~csum_fold(addr_sum(ip->src, ip->dst) + be16(IPPROTO_UDP) + len);
}

static __always_inline __u16 udp_csum_move(const struct ip_hdr *ip, __be16 len, __u16 have,
					   __u32 diff, int partial)
{
	__u16 want = csum_move(have, diff, partial && udp_unfinished(ip, len, have));

	return !have ? 0 : want ? want : 0xffff;
}

/* UDP by the helper, which takes a complete checksum for unfinished if an inner one is. */
static __always_inline int udp_csum_shift(struct __sk_buff *skb, const struct ip_hdr *ip,
					  __u32 diff)
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
	if (likely(udp_unfinished(ip, len, have)))
		return 0;
	want = udp_csum_move(ip, len, have, diff, 0);
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
		return TCP_CHECK;
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
 * Moves the L4 checksum, where a protocol has one over the pseudo header, by a difference, whatever
 * ip_summed says. l4_len: bytes behind the IP header.
 */
static __always_inline int l4_csum_shift(struct __sk_buff *skb, const struct ip_hdr *ip,
					 __u32 l4_len, __u32 diff)
{
	__u32 off = ETH_HLEN + IP_HDR_LEN;
	__u8 proto = ip->proto;

	if (proto == IPPROTO_TCP) {
		if (l4_len < TCP_CHECK + sizeof(__sum16))
			return 0;
		return xm_l4_csum_replace(skb, off + TCP_CHECK, 0, diff, F_PSEUDO_HDR);
	}
	if (proto == IPPROTO_UDP) {
		if (l4_len < UDP_HDR_LEN)
			return 0;
		return udp_csum_shift(skb, ip, diff);
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

/* The same, directly in the packet where that will do, which only programs on the link may. */
static __always_inline int l4_csum_write(struct __sk_buff *skb, const struct ip_hdr *ip,
					 __u32 l4_len, __u32 diff, __u64 summed)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct udp_hdr *udp = data + ETH_HLEN + IP_HDR_LEN;
	__sum16 *check = (void *)udp + TCP_CHECK;

	if (likely(summed != CHECKSUM_COMPLETE)) {
		int partial = summed == CHECKSUM_PARTIAL;

		if (ip->proto == IPPROTO_TCP && (void *)(check + 1) <= end) {
			*check = csum_move(*check, diff, partial);
			return 0;
		}
		if (ip->proto == IPPROTO_UDP && (void *)(udp + 1) <= end) {
			udp->check = udp_csum_move(ip, udp->len, udp->check, diff, partial);
			return 0;
		}
	}
	return l4_csum_shift(skb, ip, l4_len, diff);
}

/* The beginning of an L4 header, as far as to behind its checksum. */
struct l4_head {
	__u32 w[TCP_CHECK / 4];
	__sum16 check;
};

/*
 * The same in a copy, to be stored along with other headers: returns its length. 0 if there is
 * nothing to be stored; -1 on error.
 */
static __always_inline int l4_csum_copy(struct __sk_buff *skb, const struct ip_hdr *ip,
					__u32 l4_len, __u32 diff, __u64 summed, struct l4_head *to)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct l4_head *l4 = data + ETH_HLEN + IP_HDR_LEN;

	if (likely(summed != CHECKSUM_COMPLETE)) {
		int partial = summed == CHECKSUM_PARTIAL;

		if (ip->proto == IPPROTO_TCP && (void *)&l4->check + sizeof(l4->check) <= end) {
			to->w[0] = l4->w[0];
			to->w[1] = l4->w[1];
			to->w[2] = l4->w[2];
			to->w[3] = l4->w[3];
			to->check = csum_move(l4->check, diff, partial);
			return TCP_CHECK + sizeof(to->check);
		}
		if (ip->proto == IPPROTO_UDP && (void *)&l4->w[2] <= end) {
			__u32 word = l4->w[1]; /* length and checksum */

			to->w[0] = l4->w[0];
			to->w[1] = (__be16)word |
				   (__u32)udp_csum_move(ip, word, word >> 16, diff, partial) << 16;
			return UDP_HDR_LEN;
		}
	}
	return l4_csum_shift(skb, ip, l4_len, diff) ? -1 : 0;
}

#endif
