# SPDX-License-Identifier: Apache-2.0
"""podman on the lab's hosts, each with its own storage and its own view of the file system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.lab import Host
from tests.lab.process import Finished, run

from .cni import PLUGINS, Network
from .observe import until

#: What podman keeps in places that all hosts would share: each gets its own.
_PRIVATE = ("/run/netns", "/var/lib/cni", "/dev/shm", "/run/libpod", "/run/containers")
#: No images: the distribution itself is the root file system, read-only but for these.
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_EMPTY = ("usr", "proc", "sys", "dev", "etc", "run", "tmp", "var/lib", "var/log", "srv")

_CONF = """\
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
netns = "xmasq"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
static_dir = "{directory}/static"
tmp_dir = "{directory}/tmp"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{programs}", "{plugins}"]
network_config_dir = "{directory}/net.d"
default_network = "xmasq"
"""


class Podman:
    """podman on a host, with the network's configuration as its only one."""

    def __init__(self, network: Network, host: Host) -> None:
        self.host = host
        self.directory = network.directory(host) / "podman"
        self.rootfs = self.directory / "rootfs"
        (self.directory / "net.d").mkdir(parents=True)
        for name in _EMPTY:
            (self.rootfs / name).mkdir(parents=True, exist_ok=True)
        for name, target in _LINKS.items():
            (self.rootfs / name).symlink_to(target)
        for name in ("passwd", "group", "nsswitch.conf"):
            (self.rootfs / "etc" / name).write_bytes(Path("/etc", name).read_bytes())
        plugin = network.config(host)
        version = plugin.pop("cniVersion")
        plugin.pop("name")
        conflist = {"cniVersion": version, "name": "xmasq", "plugins": [plugin]}
        (self.directory / "net.d" / "10-xmasq.conflist").write_text(json.dumps(conflist))
        programs = Path(sys.executable).parent
        conf = _CONF.format(directory=self.directory, programs=programs, plugins=PLUGINS)
        self.conf = self.directory / "containers.conf"
        self.conf.write_text(conf)
        self._keeper = self._mounts()
        # Containers are in namespaces that the lab knows nothing of.
        host.lab.at_exit(self.remove_all)

    def _mounts(self) -> subprocess.Popen[str]:
        """A mount namespace, kept by a process: tmpfs where hosts would get into each other's way."""
        lines = ["set -e", "mount --make-rprivate /"]
        lines += [f"mkdir -p {path}; mount -t tmpfs tmpfs {path}" for path in _PRIVATE]
        # crun takes a tree of cgroups of one version only.
        lines += ["umount -R /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup"]
        lines += ["echo ready", "exec sleep 600"]
        keeper = self.host.popen(["unshare", "--mount", "sh", "-c", "\n".join(lines)])
        assert keeper.stdout is not None
        if keeper.stdout.readline() != "ready\n":
            assert keeper.stderr is not None
            raise AssertionError(keeper.stderr.read())
        return keeper

    def words(self, *words: str) -> list[str]:
        start = ["nsenter", f"--target={self._keeper.pid}", "--mount", "--net", "--"]
        start += ["env", f"CONTAINERS_CONF={self.conf}", "podman"]
        return [
            *start,
            "--root",
            str(self.directory / "root"),
            "--runroot",
            str(self.directory / "run"),
            *words,
        ]

    def __call__(self, *words: str, check: bool = True, timeout: float = 60.0) -> Finished:
        return run(self.words(*words), check=check, timeout=timeout)

    def remove_all(self) -> None:
        """Ends and removes all containers."""
        self("rm", "--force", "--all", "--time", "0")

    def run(self, name: str, *command: str, detach: bool = True) -> str:
        """Runs a container; returns its address if it is detached, otherwise what it printed."""
        options = ["--name", name, "-v", "/usr:/usr:ro", "--tmpfs", "/srv"]
        words = ["run", *(["-d"] if detach else ["--rm"]), *options, "--rootfs", str(self.rootfs), *command]
        said = self(*words).stdout
        return self.address(name) if detach else said

    def address(self, name: str) -> str:
        (info,) = json.loads(self("inspect", name).stdout)
        return str(info["NetworkSettings"]["Networks"]["xmasq"]["IPAddress"])

    def exec(self, name: str, *command: str) -> str:
        return self("exec", name, *command).stdout

    def wait(self, name: str, *command: str) -> None:
        """Runs a command in a container again and again until it succeeds."""
        until(
            lambda: self("exec", name, *command, check=False).returncode == 0,
            f"{command} in {name} works",
            timeout=20,
        )
