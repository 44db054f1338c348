/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The way of an encoded packet out of the host: the link layer addresses, remembered for as long as
 * a tick, which is 1 to 10 ms.
 *
 * bpf_redirect_neigh looks the route up for each packet, and then the neighbour. With the next hop
 * given to it, it would not look the route up, but if the neighbour has to be resolved, the packet
 * waits with its route to the link, and the kernel then sends it by that route's neighbour
 * (neigh_update): to a wrong address. So the first packet in a tick goes that way, with no next
 * hop, which also keeps the neighbour's state going; the second one asks the routing table, and if
 * the neighbour is there, the others of this tick get the same addresses, and leave at once. A
 * change of the route or the neighbour is followed a tick later at most, as it is by packets in a
 * queue.
 */
#ifndef XMASQ_HOP_H
#define XMASQ_HOP_H

#include "parse.h"
#include "state.h"

#define HOP_ASK 1 /* one packet has left in this tick */
#define HOP_KNOWN 2
#define HOP_NONE 3 /* the routing table could not tell */

/* Puts the link layer addresses in, if this hop has them by now. */
static __always_inline int hop_put(struct __sk_buff *skb, struct hop *h, const struct entry *e)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (h->state == HOP_ASK) {
		struct bpf_fib_lookup fib = {};
		addr_t nexthop;

		h->state = HOP_NONE;
		fib.ifindex = e->oif;
		if (ip_fib(skb, &fib, e->local, e->peer, 0, &nexthop) != BPF_FIB_LKUP_RET_SUCCESS ||
		    fib.ifindex != e->oif)
			return 0;
		__builtin_memcpy(h->eth, fib.dmac, ETH_ALEN);
		__builtin_memcpy(h->eth + ETH_ALEN, fib.smac, ETH_ALEN);
		h->state = HOP_KNOWN;
	}
	if (h->state != HOP_KNOWN || data + ETH_HLEN > end)
		return 0;
	__builtin_memcpy(data, h->eth, 2 * ETH_ALEN);
	return 1;
}

/* Sends an encoded packet out. */
static __always_inline int forward(struct __sk_buff *skb, const struct entry *e)
{
	struct hop *h = hop_at(e->pair % HOPS);
	__u64 tick = xm_jiffies();

	if (h) {
		if (likely(h->tick == tick && h->pair == e->pair && h->gen == e->pair_gen &&
			   h->oif == e->oif)) {
			if (likely(hop_put(skb, h, e)))
				return xm_redirect(e->oif, 0);
		} else if (h->tick != tick) {
			h->tick = tick;
			h->pair = e->pair;
			h->gen = e->pair_gen;
			h->oif = e->oif;
			h->state = HOP_ASK;
		}
	}
	return redirect_routed(skb, e->oif);
}

#endif
