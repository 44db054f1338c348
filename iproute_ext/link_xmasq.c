/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The iproute2 plugin: ip link add NAME type xmasq ..., ip link set NAME type xmasq ...
 *
 * ip loads this from its library directory when it meets the type, reads the words before "type"
 * into a netlink request, and hands the words behind it to parse_opt(). The kernel has no link
 * type xmasq, so the request is not sent: it is turned back into words, and the command xmasq
 * gets all of them. It runs in the namespace that `ip -n` has entered.
 */
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

#ifndef XMASQ_COMMAND
#define XMASQ_COMMAND "/usr/bin/xmasq"
#endif

/*
 * iproute2, ip/ip_common.h. No header of it is installed; the structure is the same from 4.20 to
 * 7.1. What ip may read of an older or younger one than ours lies behind the members we use.
 */
struct link_util {
	struct link_util *next;
	const char *id;
	int maxattr;
	int (*parse_opt)(struct link_util *lu, int argc, char **argv, struct nlmsghdr *n);
	void (*print_opt)(struct link_util *lu, FILE *f, struct rtattr *tb[]);
	void (*print_xstats)(struct link_util *lu, FILE *f, struct rtattr *tb);
	void (*print_help)(struct link_util *lu, int argc, char **argv, FILE *f);
	int (*parse_ifla_xstats)(struct link_util *lu, int argc, char **argv);
	int (*print_ifla_xstats)(struct nlmsghdr *n, void *arg);
	void *reserve[8];
};

_Static_assert(offsetof(struct link_util, id) == sizeof(void *), "iproute2's layout");
_Static_assert(offsetof(struct link_util, parse_opt) == 3 * sizeof(void *), "iproute2's layout");
_Static_assert(offsetof(struct link_util, print_help) == 6 * sizeof(void *), "iproute2's layout");
_Static_assert(offsetof(struct link_util, reserve) == 9 * sizeof(void *), "iproute2's layout");

/* ip's own: set while it reads commands from a file. */
extern int batch_mode __attribute__((weak));

static const char usage[] =
	"Usage: ... xmasq id VNI local ADDR [ dev PHYS_DEV ]\n"
	"		[ { group | remote } IP_ADDRESS ]\n"
	"		[ dstport PORT ] [ srcport MIN MAX ]\n"
	"		[ [no]learning ] [ ageing SECONDS ] [ maxaddress NUMBER ]\n"
	"		[ ttl TTL ] [ tos TOS ] [ df DF ] [ flowlabel LABEL ]\n"
	"		[ reserved_bits VALUE ]\n"
	"		[ [no]proxy ] [ [no]rsc ] [ [no]l2miss ] [ [no]l3miss ]\n"
	"		[ [no]udpcsum ] [ [no]udp6zerocsumtx ] [ [no]udp6zerocsumrx ]\n"
	"		[ [no]remcsumtx ] [ [no]remcsumrx ]\n"
	"		[ [no]localbypass ] [ [no]mcroute ]\n"
	"		[ lease TIME ] [ fastpath { on | off } ] [ secret-file PATH ]\n"
	"		[ segment-bits BITS ] [ key-bits BITS ]\n"
	"		[ mark DSCP ] [ bounce DSCP ] [ flows NUMBER ]\n"
	"\n"
	"Where:	VNI	:= 0-16777215\n"
	"	ADDR	:= an address of this host\n"
	"	TTL	:= { 1..255 | auto | inherit }\n"
	"	TOS	:= { NUMBER | inherit }\n"
	"	DF	:= { unset | set | inherit }\n"
	"	LABEL	:= 0-1048575\n"
	"	TIME	:= 1s to 60s\n"
	"	DSCP	:= { 3 | 7 | 11 | ... | 63 }\n"
	"\n"
	"xmasq link help, and xmasq(8), say more.\n";

/* The words for the command. */
struct words {
	char *word[256];
	int count;
	int failed;
};

static void add(struct words *w, const char *word)
{
	char *copy = strdup(word);

	if (!copy || w->count + 1 >= (int)(sizeof(w->word) / sizeof(w->word[0]))) {
		fprintf(stderr, "xmasq: %s: too many words\n", word);
		free(copy);
		w->failed = 1;
		return;
	}
	w->word[w->count++] = copy;
	w->word[w->count] = NULL;
}

static void add_two(struct words *w, const char *word, const char *value)
{
	add(w, word);
	add(w, value);
}

static void add_number(struct words *w, const char *word, const struct rtattr *a)
{
	unsigned int value = 0;
	size_t len = RTA_PAYLOAD(a);
	char text[16];

	memcpy(&value, RTA_DATA(a), len < sizeof(value) ? len : sizeof(value));
	snprintf(text, sizeof(text), "%u", value);
	add_two(w, word, text);
}

static void add_text(struct words *w, const char *word, const struct rtattr *a)
{
	char text[1024];
	size_t len = RTA_PAYLOAD(a);

	if (len >= sizeof(text))
		len = sizeof(text) - 1;
	memcpy(text, RTA_DATA(a), len);
	text[len] = '\0';
	add_two(w, word, text);
}

static void add_lladdr(struct words *w, const char *word, const struct rtattr *a)
{
	const unsigned char *byte = RTA_DATA(a);
	size_t i, len = RTA_PAYLOAD(a);
	char text[3 * 32 + 1] = "";

	for (i = 0; i < len && i < 32; i++)
		sprintf(text + strlen(text), i ? ":%02x" : "%02x", byte[i]);
	add_two(w, word, text);
}

static void add_device(struct words *w, const char *word, unsigned int index)
{
	char name[IF_NAMESIZE];

	if (!if_indextoname(index, name)) {
		fprintf(stderr, "xmasq: %s: there is no device %u\n", word, index);
		w->failed = 1;
		return;
	}
	add_two(w, word, name);
}

static void add_master(struct words *w, const struct rtattr *a)
{
	unsigned int index;

	memcpy(&index, RTA_DATA(a), sizeof(index));
	if (index)
		add_device(w, "master", index);
	else
		add(w, "nomaster");
}

/* The only thing that ip puts there is addrgenmode. */
static void add_af_spec(struct words *w, const struct rtattr *a)
{
	static const char *const modes[] = { "eui64", "none", "stable_secret", "random" };
	const struct rtattr *family = RTA_DATA(a), *mode = RTA_DATA(family);
	unsigned char value;

	memcpy(&value, RTA_DATA(mode), 1);
	if (value < sizeof(modes) / sizeof(modes[0]))
		add_two(w, "addrgenmode", modes[value]);
}

/* Flags that are switched by words, and what a set bit is called. */
static const struct {
	unsigned int bit;
	const char *word, *set, *clear;
} flags[] = {
	{ IFF_NOARP, "arp", "off", "on" },
	{ IFF_PROMISC, "promisc", "on", "off" },
	{ IFF_ALLMULTI, "allmulticast", "on", "off" },
	{ IFF_MULTICAST, "multicast", "on", "off" },
	{ IFF_DYNAMIC, "dynamic", "on", "off" },
	{ IFF_NOTRAILERS, "trailers", "off", "on" },
};

static void add_flags(struct words *w, const struct ifinfomsg *i)
{
	size_t at;

	if (i->ifi_change & IFF_UP)
		add(w, i->ifi_flags & IFF_UP ? "up" : "down");
	for (at = 0; at < sizeof(flags) / sizeof(flags[0]); at++)
		if (i->ifi_change & flags[at].bit)
			add_two(w, flags[at].word,
				i->ifi_flags & flags[at].bit ? flags[at].set : flags[at].clear);
}

/* One attribute of the request, as the words that made it. */
static void add_attribute(struct words *w, const struct rtattr *a, int create)
{
	switch (a->rta_type & NLA_TYPE_MASK) {
	case IFLA_LINKINFO: /* what we are called for */
		break;
	case IFLA_IFNAME:
		if (!create)
			add_text(w, "name", a);
		break;
	case IFLA_MTU:
		add_number(w, "mtu", a);
		break;
	case IFLA_TXQLEN:
		add_number(w, "txqueuelen", a);
		break;
	case IFLA_ADDRESS:
		add_lladdr(w, "address", a);
		break;
	case IFLA_BROADCAST:
		add_lladdr(w, "broadcast", a);
		break;
	case IFLA_MASTER:
		add_master(w, a);
		break;
	case IFLA_IFALIAS:
		add_text(w, "alias", a);
		break;
	case IFLA_GROUP:
		add_number(w, "devgroup", a);
		break;
	case IFLA_NUM_TX_QUEUES:
		add_number(w, "numtxqueues", a);
		break;
	case IFLA_NUM_RX_QUEUES:
		add_number(w, "numrxqueues", a);
		break;
	case IFLA_GSO_MAX_SIZE:
		add_number(w, "gso_max_size", a);
		break;
	case IFLA_GSO_MAX_SEGS:
		add_number(w, "gso_max_segs", a);
		break;
	case IFLA_GRO_MAX_SIZE:
		add_number(w, "gro_max_size", a);
		break;
	case IFLA_AF_SPEC:
		add_af_spec(w, a);
		break;
	case IFLA_PROTO_DOWN: {
		unsigned char on;

		memcpy(&on, RTA_DATA(a), 1);
		add_two(w, "protodown", on ? "on" : "off");
		break;
	}
	/* Known to ip, and refused by xmasq, with the reason: */
	case IFLA_NET_NS_FD:
	case IFLA_NET_NS_PID:
		add_number(w, "netns", a);
		break;
	case IFLA_LINK:
		add_number(w, "link", a);
		break;
	default:
		fprintf(stderr,
			"xmasq: a word before \"type\" is not for an xmasq link "
			"(netlink attribute %d); allowed are those of \"xmasq link help\"\n",
			a->rta_type & NLA_TYPE_MASK);
		w->failed = 1;
	}
}

static const struct rtattr *find(const struct rtattr *a, int len, int type)
{
	for (; RTA_OK(a, len); a = RTA_NEXT(a, len))
		if ((a->rta_type & NLA_TYPE_MASK) == type)
			return a;
	return NULL;
}

/* The whole command: what ip has read into the request, and the words behind "type xmasq". */
static int collect(struct words *w, const char *command, struct nlmsghdr *n, int argc, char **argv)
{
	int create = n->nlmsg_flags & NLM_F_CREATE;
	struct ifinfomsg *i = NLMSG_DATA(n);
	const struct rtattr *first = IFLA_RTA(i), *a;
	int len = (int)IFLA_PAYLOAD(n), rest;
	char text[16];

	if (create && n->nlmsg_flags & NLM_F_REPLACE) {
		fprintf(stderr,
			"xmasq: replace: not for an xmasq link; allowed are add, set and delete\n");
		return -1;
	}
	add(w, command);
	add(w, "link");
	add(w, create ? "add" : "set");
	if (create) {
		a = find(first, len, IFLA_IFNAME);
		if (!a) {
			fprintf(stderr, "xmasq: name: missing; \"link add\" needs a NAME\n");
			return -1;
		}
		add_text(w, "name", a);
		if (i->ifi_index) {
			snprintf(text, sizeof(text), "%d", i->ifi_index);
			add_two(w, "index", text);
		}
	} else {
		add_device(w, "dev", (unsigned int)i->ifi_index);
	}
	add_flags(w, i);
	for (a = first, rest = len; RTA_OK(a, rest); a = RTA_NEXT(a, rest))
		/* ip has opened the nest of the type, and not closed it: the last one. */
		if ((a->rta_type & NLA_TYPE_MASK) != IFLA_LINKINFO && a->rta_len)
			add_attribute(w, a, create);
		else
			break;
	add_two(w, "type", "xmasq");
	while (argc-- > 0)
		add(w, *argv++);
	return w->failed ? -1 : 0;
}

static void run(char **word)
{
	execvp(word[0], word);
	if (errno == ENOENT && !getenv("XMASQ"))
		execvp("xmasq", word);
	fprintf(stderr, "xmasq: cannot run %s: %s\n", word[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

/* Runs the command, and goes on; returns its exit status. */
static int run_and_wait(char **word)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN }, was_int, was_quit;
	int status = 0;
	pid_t child;

	/* Ctrl-C is for the command, which cleans up. */
	sigaction(SIGINT, &ignore, &was_int);
	sigaction(SIGQUIT, &ignore, &was_quit);
	child = fork();
	if (!child) {
		sigaction(SIGINT, &was_int, NULL);
		sigaction(SIGQUIT, &was_quit, NULL);
		run(word);
	}
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	sigaction(SIGINT, &was_int, NULL);
	sigaction(SIGQUIT, &was_quit, NULL);
	if (child < 0) {
		fprintf(stderr, "xmasq: cannot start a process: %s\n", strerror(errno));
		return 1;
	}
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int xmasq_parse_opt(struct link_util *lu, int argc, char **argv, struct nlmsghdr *n)
{
	const char *command = getenv("XMASQ");
	struct words w = { .count = 0 };
	int at, status = -1;

	(void)lu;
	for (at = 0; at < argc; at++) {
		if (!strcmp(argv[at], "help")) {
			fputs(usage, stderr);
			return -1;
		}
	}
	if (n->nlmsg_type == RTM_DELLINK)
		return 0; /* `ip link del NAME type xmasq ...`: the kernel's business */
	if (collect(&w, command && *command ? command : XMASQ_COMMAND, n, argc, argv))
		goto out;
	fflush(stdout);
	if (&batch_mode && !batch_mode)
		run(w.word);
	status = run_and_wait(w.word);
	if (status && !(&batch_mode && batch_mode))
		exit(status);
	if (!status) {
		/* It is done. What ip sends now asks for nothing but an acknowledgement. */
		n->nlmsg_type = NLMSG_NOOP;
		n->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	}
out:
	for (at = 0; at < w.count; at++)
		free(w.word[at]);
	return status ? -1 : 0;
}

static void xmasq_print_help(struct link_util *lu, int argc, char **argv, FILE *f)
{
	(void)lu;
	(void)argc;
	(void)argv;
	fputs(usage, f);
}

struct link_util xmasq_link_util = {
	.id = "xmasq",
	.parse_opt = xmasq_parse_opt,
	.print_help = xmasq_print_help,
};
