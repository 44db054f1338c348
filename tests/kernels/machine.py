# SPDX-License-Identifier: Apache-2.0
"""A virtual machine: one QEMU process without KVM, and when to give up on it."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import image
from .fetch import Kernel
from .suites import KernelsError

_GUEST = Path(__file__).resolve().parent / "guest"


@dataclass(frozen=True)
class Limits:
    """How long a guest may take, in seconds: to boot, to say nothing, and for what it is there for.

    If it does not come to an end by itself then, it has as long as for the boot and for silence.
    """

    boot: float = 300
    silence: float = 600
    total: float = 3 * 3600


@dataclass
class Machine:
    """A guest that runs ``job.sh`` of ``directory``, and leaves ``status`` and more there.

    ``nics`` are QEMU's words for the network; there is none by default. ``netns`` names the network
    namespace that QEMU runs in; empty: this one. Raises :class:`KernelsError` when it does not boot,
    hangs or crashes.
    """

    kernel: Kernel
    directory: Path
    cpus: int = 2
    memory: int = 2048
    nics: Sequence[str] = ("-nic", "none")
    netns: str = ""
    options: str = ""
    limits: Limits = field(default_factory=Limits)

    def command(self) -> list[str]:
        """The QEMU command line; the job's output is QEMU's own."""
        share = "security_model=none,multidevs=remap"
        words = [
            # Not KVM, which is often missing where tests run. No AVX: the C library would use it, and
            # emulated it is slower than plain code.
            *("-machine", "q35,usb=off,vmport=off,hpet=off"),
            *("-accel", "tcg,thread=multi,tb-size=512"),
            *("-cpu", "Nehalem"),
            *("-smp", str(self.cpus), "-m", str(self.memory)),
            *("-nodefaults", "-display", "none", "-no-reboot", "-no-user-config"),
            *("-device", "virtio-rng-pci"),
            *("-serial", f"file:{self.console}", "-serial", "stdio"),
            *("-virtfs", f"local,path=/,mount_tag=machine,readonly=on,{share}"),
            *("-virtfs", f"local,path={self.directory},mount_tag=job,{share}"),
            *("-kernel", str(self.kernel.image), "-initrd", str(self.directory / "initramfs")),
            *("-append", self._append()),
            *self.nics,
        ]
        enter = ["nsenter", f"--net=/run/netns/{self.netns}", "--"] if self.netns else []
        # It ends with this process, however that ends.
        return [*enter, "setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64", *words]

    def _append(self) -> str:
        words = [
            "console=ttyS0,115200 panic=-1 oops=panic nokaslr mitigations=off preempt=full tsc=reliable",
            "nmi_watchdog=0 no_timer_check audit=0 random.trust_cpu=on net.ifnames=0",
            # Hardening that Debian's kernels have on, and that no test is about.
            "init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off",
            f"xmasq.modules={self.kernel.modules.resolve()} xmasq.guest={_GUEST} {self.options}",
        ]
        return " ".join(words)

    @property
    def console(self) -> Path:
        """What the kernel says."""
        return self.directory / "console"

    def run(self, say: Callable[[str], None]) -> int:
        """Boots, gives each line of the job's output to ``say``, and returns the job's exit status."""
        with self.started() as process:
            return self.wait(process, say)

    @contextlib.contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Starts QEMU; ends it at the end of the ``with``."""
        image.build(self.kernel, self.directory)
        (self.directory / "status").unlink(missing_ok=True)
        if shutil.which("qemu-system-x86_64") is None:
            raise KernelsError("qemu-system-x86_64 is not installed (.ci/setup kernels)")
        process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def wait(self, process: subprocess.Popen[bytes], say: Callable[[str], None]) -> int:
        """What :meth:`run` does with a machine that is already started."""
        assert process.stdout is not None
        begin = heard = time.monotonic()
        up, rest = False, b""
        os.set_blocking(process.stdout.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(timeout=1):
                    data = process.stdout.read(65536)
                    if data == b"":
                        break
                    if data:
                        heard = time.monotonic()
                        *lines, rest = (rest + data).split(b"\n")
                        for line in lines:
                            text = line.decode(errors="replace").rstrip("\r")
                            up = up or text.startswith("guest: ")
                            say(text)
                now = time.monotonic()
                if rest and now - heard > 5:  # pytest's dots
                    say(rest.decode(errors="replace"))
                    rest = b""
                if not up and now - begin > self.limits.boot:
                    raise self._error(f"has not booted after {self.limits.boot:g} s")
                if up and now - heard > self.limits.silence:
                    raise self._error(f"hangs: it has said nothing for {self.limits.silence:g} s")
                if now - begin > self.limits.boot + self.limits.total + self.limits.silence:
                    raise self._error(f"is not done after {now - begin:.0f} s")
        process.wait(timeout=30)
        try:
            return int((self.directory / "status").read_text())
        except (FileNotFoundError, ValueError):
            said = rest.decode(errors="replace")
            what = "ended without a result" if up else f"did not boot (QEMU: {process.returncode} {said})"
            raise self._error(what) from None

    def _error(self, what: str) -> KernelsError:
        with contextlib.suppress(OSError):
            tail = self.console.read_text(errors="replace").splitlines()[-15:]
            what += f"; the last lines of {self.console}:\n" + "\n".join(f"  {line}" for line in tail)
        return KernelsError(f"kernel {self.kernel.version} {what}")
