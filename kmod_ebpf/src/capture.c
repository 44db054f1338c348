/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shows a link's packets to user space. Attached on demand in front of the link's own programs
 * (kmod_ebpf/capture.py): at egress a packet is seen as it came, before encode; at ingress as it
 * goes on, after decode or after the vxlan driver. When nobody reads, the output call fails early.
 *
 * An object of its own, with maps of its own: nothing of it is loaded while nobody captures.
 */
#include "maps.h"

struct capture_conf {
	__u32 snaplen; /* at most so many bytes of a packet are shown */
};

#define ENOSPC 28

BPF_TABLE("array", u32, struct conf, conf, 1); /* a copy of the datapath's */
BPF_TABLE("array", u32, struct capture_conf, capture, 1);
BPF_TABLE("percpu_array", u32, u64, dropped, 1); /* packets that nobody had room for */
BPF_PERF_OUTPUT(frames);

#include "state.h"

static __always_inline int show(struct __sk_buff *skb, __u8 direction)
{
	struct frame f = { .at = xm_boot_ns(), .len = skb->len, .direction = direction };
	struct capture_conf *c;
	u64 *lost;
	u32 k = 0;
	int err;

	c = capture.lookup(&k);
	if (!c)
		return ACT_UNSPEC;
	f.ifindex = skb->ifindex;
	f.caplen = f.len < c->snaplen ? f.len : c->snaplen;
	if (skb->vlan_present) {
		f.vlan_tci = skb->vlan_tci;
		f.vlan_proto = skb->vlan_proto;
	}
	err = frames.perf_submit_skb(skb, f.caplen, &f, sizeof(f));
	if (err == -ENOSPC) {
		lost = dropped.lookup(&k);
		if (lost)
			++*lost;
	}
	return ACT_UNSPEC;
}

int xmasq_show_in(struct __sk_buff *skb)
{
	return show(skb, FRAME_IN);
}

int xmasq_show_out(struct __sk_buff *skb)
{
	struct conf *c;
	u32 k = 0;

	c = conf.lookup(&k);
	/* Not what our own programs send: questions to the FDB (encode.h, ask), what has bounced.
	 */
	if (c && (marked(skb, c) || (skb->ingress_ifindex && skb->cb[CB_RESTORED] == c->magic)))
		return ACT_UNSPEC;
	return show(skb, FRAME_OUT);
}
