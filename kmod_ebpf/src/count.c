/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counts a link's packets by source and destination. Attached on demand in front of the link's own
 * programs, like capture.c, and an object of its own: the datapath counts no flows by itself.
 */
#include "maps.h"

#define MAX_COUNTED 16384

struct counted {
	__u64 packets;
	__u64 bytes;
};

BPF_TABLE("array", u32, struct conf, conf, 1); /* a copy of the datapath's */
BPF_TABLE("lru_percpu_hash", struct counted_key, struct counted, counted, MAX_COUNTED);

#include "state.h"

#define ETHERTYPE_V4 0x0800
#define ETHERTYPE_V6 0x86dd

static __always_inline int tally(struct __sk_buff *skb, __u8 direction)
{
	struct counted_key k = { .ifindex = skb->ifindex, .direction = direction };
	struct counted *c, first = { .packets = 1, .bytes = skb->len };

	if (skb->protocol == be16(ETHERTYPE_V4)) {
		k.family = 4;
		if (xm_skb_load_bytes(skb, ETH_HLEN + 12, k.src, 4) ||
		    xm_skb_load_bytes(skb, ETH_HLEN + 16, k.dst, 4))
			return ACT_UNSPEC;
	} else if (skb->protocol == be16(ETHERTYPE_V6)) {
		k.family = 6;
		if (xm_skb_load_bytes(skb, ETH_HLEN + 8, k.src, 16) ||
		    xm_skb_load_bytes(skb, ETH_HLEN + 24, k.dst, 16))
			return ACT_UNSPEC;
	} else {
		return ACT_UNSPEC;
	}
	c = counted.lookup(&k);
	if (c) {
		c->packets++;
		c->bytes += skb->len;
	} else {
		counted.update(&k, &first);
	}
	return ACT_UNSPEC;
}

int xmasq_count_in(struct __sk_buff *skb)
{
	return tally(skb, FRAME_IN);
}

int xmasq_count_out(struct __sk_buff *skb)
{
	struct conf *c;
	u32 k = 0;

	c = conf.lookup(&k);
	/* Not what our own programs send (capture.c). */
	if (c && (marked(skb, c) || (skb->ingress_ifindex && skb->cb[CB_RESTORED] == c->magic)))
		return ACT_UNSPEC;
	return tally(skb, FRAME_OUT);
}
