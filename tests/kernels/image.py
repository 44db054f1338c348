# SPDX-License-Identifier: Apache-2.0
"""What a guest boots from: an initramfs, and the files that it should not have to ask for.

The initramfs is busybox, the few modules that reach the machine's file system, and
guest/initramfs.sh.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .fetch import Kernel
from .suites import KernelsError

_GUEST = Path(__file__).parent / "guest"
_ROOT = Path(__file__).resolve().parents[2]
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


def build(kernel: Kernel, directory: Path) -> Path:
    """Makes ``initramfs`` in ``directory`` and returns its path. Raises :class:`KernelsError`."""
    tree = directory / "initramfs.d"
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    busybox = shutil.which("busybox")
    if busybox is None:
        raise KernelsError("busybox is not installed (.ci/setup kernels)")
    shutil.copy(busybox, tree / "bin" / "busybox")
    shutil.copy(_GUEST / "initramfs.sh", tree / "init")
    (tree / "init").chmod(0o755)
    order = []
    for file in _insmod_order(kernel):
        name = file.name.split(".ko")[0]
        (tree / "modules" / f"{name}.ko").write_bytes(_plain(file))
        order.append(name)
    (tree / "modules" / "order").write_text("".join(f"{name}\n" for name in order))
    image = directory / "initramfs"
    names = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with open(image, "wb") as out:
        subprocess.run(
            ["cpio", "--null", "--create", "--format=newc", "--quiet"],
            input=names.encode(),
            stdout=out,
            cwd=tree,
            check=True,
        )
    shutil.rmtree(tree)
    _pack_repository(directory / "repository.tar")
    _pack_libraries(directory / "warm.tar", some=_by_the_page(kernel))
    return image


def _by_the_page(kernel: Kernel) -> bool:
    """Kernels before 5.17 read a mapped file over 9p page by page, which takes minutes for LLVM."""
    major, minor = kernel.version.split(".")[:2]
    return (int(major), int(minor)) < (5, 17)


def _pack_repository(archive: Path) -> None:
    """Packs the repository, so that nothing changes it under a guest's feet.

    Without what is made from it: a guest sees that in the machine's file system.
    """
    names = []
    for at, directories, files in os.walk(_ROOT):
        made = {"__pycache__", *(("build", "dist") if Path(at) == _ROOT else ())}
        directories[:] = [one for one in directories if one == ".ci" or (one[0] != "." and one not in made)]
        names += [str((Path(at) / file).relative_to(_ROOT)) for file in files]
    _tar(archive, _ROOT, names)


def _pack_libraries(archive: Path, *, some: bool) -> None:
    """Packs what warm.py lists, or nothing."""
    names: list[str] = []
    if some:
        words = [sys.executable, "-m", "tests.kernels.warm"]
        listed = subprocess.run(words, capture_output=True, text=True, cwd=_ROOT)
        if listed.returncode:
            raise KernelsError(f"listing what the tests load: {listed.stderr.strip().splitlines()[-1]}")
        names = [name.lstrip("/") for name in listed.stdout.splitlines()]
    _tar(archive, Path("/"), names)


def _tar(archive: Path, root: Path, names: list[str]) -> None:
    words = ["tar", "-C", str(root), "--null", "--verbatim-files-from", "--files-from=-", "-cf", str(archive)]
    subprocess.run(words, input="".join(f"{name}\0" for name in names), text=True, check=True)


def _insmod_order(kernel: Kernel) -> list[Path]:
    files: list[Path] = []
    for module in _MODULES:
        words = ["modprobe", "-d", str(kernel.root), "-S", kernel.release, "--show-depends", module]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise KernelsError(f"kernel {kernel.series.name}: no module {module}: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            words = line.split()
            if words[0] == "insmod" and Path(words[1]) not in files:  # else it is built in
                files.append(Path(words[1]))
    return files


def _plain(file: Path) -> bytes:
    if file.suffix == ".ko":
        return file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(file.read_bytes())
    raise KernelsError(f"{file.name}: modules with this compression are not understood")
