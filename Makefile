# SPDX-License-Identifier: Apache-2.0
# Everything here works on a fresh Debian 12, as root, with nothing but make installed.

SHELL := /bin/bash
PYTHON := .venv/bin/python
# Two workers: most tests wait for timers, but the key negotiation is timed in milliseconds.
JOBS ?= 2
ARGS ?=
KERNEL ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-kernels lint soak bench plugin wheel install uninstall

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: Debian packages and a Python environment in .venv
	@.ci/setup

demo: setup ## Show xmasq, VXLAN and plain routing side by side (under a minute)
	@$(PYTHON) -m tests.demo $(ARGS)

test: setup ## Run the tests; ARGS= goes to pytest, JOBS= says how many at a time
	@$(PYTHON) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-kernels: setup ## Run them on kernels 5.10 to the newest, in virtual machines (hours); KERNEL= says on which
	@.ci/setup kernels
	@$(PYTHON) -m tests.kernels $(addprefix --kernel=,$(KERNEL)) -- $(ARGS)

lint: setup ## Check style and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy --strict xmasq_link kmod_ebpf
	@find kmod_ebpf/src iproute_ext -name '*.[ch]' -print0 | xargs -0 clang-format --dry-run -Werror

soak: setup ## Run the mixture of all faults for ten minutes; ARGS= goes to it
	@$(PYTHON) -m tests.soak $(ARGS)

bench: setup ## Measure speed beside plain routing and VXLAN (about ten minutes); ARGS= goes to it
	@.ci/setup-bench
	@$(PYTHON) -m tests.perf $(ARGS)

plugin: setup ## Build the iproute2 plugin, build/link_xmasq.so
	@$(MAKE) -s -C iproute_ext plugin

wheel: setup ## Build the Python package: wheel and source archive in dist/
	@$(PYTHON) -m build --outdir dist .

install: setup ## Install for use without this tree; DESTDIR=, PREFIX= (/usr/local), IP_LIB_DIR=
	@$(MAKE) -s -C iproute_ext install

uninstall: ## Take away what make install has put there; with the same DESTDIR=, PREFIX=
	@$(MAKE) -s -C iproute_ext uninstall
