/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an installed command is: starts Python on one function of the package.
 *
 * Python takes some 20 ms until it runs code of ours. A signal in that time would end it with a
 * traceback, or by Python's own handler. So signals are held back here (HOLD_SIGNALS); the command
 * lets them in when it has its handlers (xmasq_link/_cli/interrupt.py).
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define START                                                                                      \
	"import sys; sys.path.insert(0, '" LIBRARY "'); sys.argv[0] = '" NAME "'; from " MODULE    \
	" import " FUNCTION "; sys.exit(" FUNCTION "())"

int main(int argc, char **argv)
{
	char **words = calloc((size_t)argc + 4, sizeof(*words));
#ifdef HOLD_SIGNALS
	sigset_t set;
#endif
	int at;

	if (!words) {
		fputs(NAME ": out of memory\n", stderr);
		return 1;
	}
	words[0] = PYTHON;
	words[1] = "-I"; /* nothing of the user's environment or directory */
	words[2] = "-c";
	words[3] = START;
	for (at = 1; at < argc; at++)
		words[at + 3] = argv[at];
#ifdef HOLD_SIGNALS
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	setenv("XMASQ_SIGNALS_HELD", "1", 1);
#endif
	execv(PYTHON, words);
	fprintf(stderr, NAME ": cannot run %s: %s\n", PYTHON, strerror(errno));
	return errno == ENOENT ? 127 : 126;
}
