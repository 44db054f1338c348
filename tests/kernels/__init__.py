# SPDX-License-Identifier: Apache-2.0
"""Runs the tests on other kernels, in virtual machines: ``python -m tests.kernels``.

============== ==========================================================================
``suites.py``  which kernels there are, and the Debian suites that they come from
``fetch.py``   gets one with apt, into a cache, and unpacks it
``image.py``   the initramfs that makes this machine's file system the guest's
``machine.py`` one QEMU process, and when to give up on it
``job.py``     what a guest runs, and what comes back
``pair.py``    two guests on one wire
``table.py``   the table in docs/compatibility.md
``guest/``     what runs inside: the init, and tests of devices that not every kernel has
============== ==========================================================================
"""
