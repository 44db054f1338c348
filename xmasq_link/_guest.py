# SPDX-License-Identifier: Apache-2.0
"""Programs that stand in front of a link's own for as long as somebody looks: captures and counts.

They are found by their names. Each looker holds a name in the network namespace; one that is free has
been killed, and its programs are left over: the next looker at the link takes them away.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pyroute2 import IPRoute

from kmod_ebpf import loader
from kmod_ebpf import maps as m

from ._errors import XmasqError
from ._hooks import EGRESS, INGRESS, Filter, attach, detach, filters
from ._link import find_link
from ._look import GUEST
from ._looker import lease
from ._netns import here, locked, netns


def _guests(ipr: IPRoute, ifindex: int) -> list[Filter]:
    return filters(ipr, ifindex, lambda name: name.startswith(GUEST))


def _remove_leftovers(ipr: IPRoute, ifindex: int) -> None:
    for f in _guests(ipr, ifindex):
        free = lease(f.name[:-1])
        if free:
            free.close()
            detach(ipr, f)


@dataclass(frozen=True)
class Guest:
    """What stands in front of a link's hooks now."""

    ipr: IPRoute
    ifindex: int
    loaded: loader.Loaded


@contextlib.contextmanager
def guest(
    link: str, load: Callable[[m.Conf, Mapping[str, str]], loader.Loaded], programs: tuple[str, str]
) -> Iterator[Guest]:
    """Puts two programs in front of a link's hooks, and takes them away again.

    load: gets the datapath's settings and the programs' names. programs: for ingress and egress.
    Raises InputError, XmasqError.
    """
    with contextlib.ExitStack() as undo:
        name = GUEST + secrets.token_hex(4)  # and a letter: 15 bytes at most
        held = lease(name)
        if held is None:
            raise XmasqError("the name of a program is taken; try again")
        undo.callback(held.close)
        home = here()
        undo.callback(os.close, home)
        ipr = undo.enter_context(IPRoute())
        with locked(), find_link(ipr, link) as (dp, _, found):
            _remove_leftovers(ipr, found.ifindex)
            called = {programs[0]: f"{name}i", programs[1]: f"{name}o"}
            try:
                loaded = load(dp.conf(), called)
            except (loader.CompileError, loader.LoadError) as e:
                raise XmasqError(str(e)) from e
            undo.callback(loaded.close)

            def leave(ifindex: int = found.ifindex) -> None:
                with netns(home):  # the caller may be elsewhere by now
                    for f in _guests(ipr, ifindex):
                        if f.name.startswith(name):
                            detach(ipr, f)

            undo.callback(leave)
            for parent, program in zip((INGRESS, EGRESS), programs, strict=True):
                attach(ipr, found.ifindex, parent, called[program], loaded.programs[program])
        yield Guest(ipr, found.ifindex, loaded)
