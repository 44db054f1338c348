/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the C language and the kernel give: integer types, byte order, helpers.
 */
#ifndef XMASQ_DEFS_H
#define XMASQ_DEFS_H

#include <linux/types.h>

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
/* Keeps LLVM from merging stores to adjacent context fields, which the verifier refuses. */
#define barrier() asm volatile("" ::: "memory")

/* Hides what LLVM knows of a number, so that it keeps the masks that the verifier wants to see. */
#define opaque(x) asm volatile("" : "+r"(x))

/* All targets that BCC supports here are little endian. */
#define be16(x) ((__u16)__builtin_bswap16(x))
#define be32(x) ((__u32)__builtin_bswap32(x))

#define NSEC_PER_MSEC 1000000ULL
#define NSEC_PER_SEC 1000000000ULL

#define ETH_HLEN 14
#define ETH_ALEN 6
#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_LOCAL 0x88b5 /* IEEE 802, local experimental */

#define IPPROTO_HOPOPTS 0
#define IPPROTO_ICMP 1
#define IPPROTO_IPIP 4
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_IPV6 41
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_GRE 47
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_NONE 59
#define IPPROTO_DSTOPTS 60
#define IPPROTO_MH 135
#define IPPROTO_UDPLITE 136
#define IPPROTO_HIP 139
#define IPPROTO_SHIM6 140

#define UDP_HDR_LEN 8
#define VXLAN_HDR_LEN 8

#define PACKET_HOST 0
#define XM_AF_INET 2
#define XM_ENODEV 19
/* Actions of the clsact chain (linux/pkt_cls.h). UNSPEC lets the next program run. */
#define ACT_UNSPEC (-1)
#define ACT_SHOT 2

/*
 * Helpers by number (uapi/linux/bpf.h, enum bpf_func_id): BCC declares some of them with
 * an older prototype, and not all.
 */
static int (*xm_skb_store_bytes)(void *skb, __u32 off, const void *from, __u32 len,
				 __u64 flags) = (void *)9;
static int (*xm_l3_csum_replace)(void *skb, __u32 off, __u64 from, __u64 to,
				 __u64 size) = (void *)10;
static int (*xm_l4_csum_replace)(void *skb, __u32 off, __u64 from, __u64 to,
				 __u64 flags) = (void *)11;
static int (*xm_clone_redirect)(void *skb, __u32 ifindex, __u64 flags) = (void *)13;
static int (*xm_skb_get_tunnel_key)(void *skb, void *key, __u32 size, __u64 flags) = (void *)20;
static int (*xm_skb_set_tunnel_key)(void *skb, const void *key, __u32 size,
				    __u64 flags) = (void *)21;
static int (*xm_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static int (*xm_skb_load_bytes)(const void *skb, __u32 off, void *to, __u32 len) = (void *)26;
static int (*xm_skb_change_tail)(void *skb, __u32 len, __u64 flags) = (void *)38;
static int (*xm_skb_pull_data)(void *skb, __u32 len) = (void *)39;
static __s64 (*xm_csum_update)(void *skb, __u32 diff) = (void *)40;
static int (*xm_skb_change_head)(void *skb, __u32 len, __u64 flags) = (void *)43;
static int (*xm_skb_adjust_room)(void *skb, __s32 diff, __u32 mode, __u64 flags) = (void *)50;
static int (*xm_fib_lookup)(void *ctx, void *params, int plen, __u32 flags) = (void *)69;
static void (*xm_spin_lock)(void *lock) = (void *)93;
static void (*xm_spin_unlock)(void *lock) = (void *)94;
#ifdef XM_CLOCK
/* For tests: time stands still, however slow the machine is (tests/unit/harness.py). */
#define xm_boot_ns() ((__u64)XM_CLOCK)
#else
/* Runs on during suspend, so a lease does not sleep with the machine (kernel 5.8). */
static __u64 (*xm_boot_ns)(void) = (void *)125;
#endif
/* Inlined: costs next to nothing (kernel 5.6). */
static __u64 (*xm_jiffies)(void) = (void *)118;
static int (*xm_redirect_neigh)(__u32 ifindex, void *params, int plen, __u64 flags) = (void *)152;
static __u32 (*xm_random)(void) = (void *)7;
static __u32 (*xm_cpu)(void) = (void *)8;

#define F_INGRESS (1ULL << 0)
#define F_RECOMPUTE_CSUM (1ULL << 0)
#define F_MARK_MANGLED_0 (1ULL << 5)
#define F_PSEUDO_HDR (1ULL << 4)
#define F_ADJ_ROOM_FIXED_GSO (1ULL << 0)
#define F_ADJ_ROOM_NO_CSUM_RESET (1ULL << 5)
#define FIB_LOOKUP_OUTPUT (1U << 1)

struct eth_hdr {
	__u8 dst[ETH_ALEN];
	__u8 src[ETH_ALEN];
	__be16 proto;
};

struct udp_hdr {
	__be16 src;
	__be16 dst;
	__be16 len;
	__sum16 check;
};

#define TCP_RST 0x04 /* at byte 13 of its header */
#define TCP_CHECK 16 /* bytes in front of its checksum */

struct icmp_hdr {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 rest; /* the next hop's MTU, where there is one */
};

#endif
