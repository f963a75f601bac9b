"""One router, and one set of loaded tiers, for all models of a process that may share them.

Models over the same family differ mostly in sampling, which is a matter of each call: so a
copy, a clone that ``configurable_fields`` makes for one call, or a second agent's model find
the tiers loaded, and their calls end up in one batch. A router stays as long as a model lives
that could use it, though only copies of it were ever asked; or until it is closed.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tierwise.routing.budget import Budget
from tierwise.routing.calibration_store import FOUND, calibration_of
from tierwise.routing.decision_log import DecisionLog
from tierwise.routing.router import Router
from tierwise.routing.variants import Deriver
from tierwise.runtime.context import KVType
from tierwise.runtime.family import MANIFEST, Family
from tierwise.runtime.pool import Pool


@dataclass(frozen=True)
class RouterSettings:
    """What models must agree on to share a router.

    Args:
        family: Folder of the family.
        memory_bytes: Cap for all loaded tiers together.
        threads: For llama.cpp.
        tiers: Those that may be used; None for all.
        kv_type: How keys and values are stored; None for what each tier's record says.
        log: File of the decision log; None for none.
        log_text: Whether that holds calls and replies as well.
        adapt: Whether cheaper variants of tiers are made where memory asks for them.
    """

    family: str
    memory_bytes: int | None = None
    threads: int | None = None
    tiers: tuple[str, ...] | None = None
    kv_type: KVType | None = None
    log: str | None = None
    log_text: bool = False
    adapt: bool = False


@dataclass(eq=False)
class _Shared:
    settings: RouterSettings
    stamp: tuple[int, int, int]
    """Of manifest and calibration when they were read: a family that was built or calibrated
    anew is another one."""
    router: Router | None = None
    """None until it is open; who opens it holds ``opening``."""
    opening: threading.Lock = field(default_factory=threading.Lock)
    users: set[int] = field(default_factory=set)


class User(Protocol):
    """A model that may want a router."""

    @property
    def router_settings(self) -> RouterSettings: ...


# Held for moments only, and never while a router opens or closes: a finalizer may run at any
# allocation, so also in a thread that holds it already, or that a router waits for.
_lock = threading.RLock()
_shared: list[_Shared] = []
_by_user: dict[int, _Shared] = {}
_living: dict[int, weakref.ref[User]] = {}


def enrol(user: User) -> None:
    """From now on, and as long as it lives, no router that it could use goes unless closed."""
    with _lock:
        if id(user) not in _living:
            _living[id(user)] = weakref.ref(user)
            weakref.finalize(user, _gone, id(user)).atexit = False


def router_for(user: User) -> Router:
    """The router for its settings, opened if nobody uses one yet; it stays until `release`.

    Raises:
        FamilyError, ConfigError: The family or the settings are not usable.
    """
    if (router := opened_router(user)) is not None:
        return router
    enrol(user)
    while True:
        found, left = _join(user)
        _close(left)
        with found.opening:
            if _by_user.get(id(user)) is not found:
                continue  # another thread could not open it, and nobody would know of it
            if found.router is None:
                try:
                    found.router = _open(found.settings)
                except BaseException:
                    _leave(id(user))
                    raise
            return found.router


def _join(user: User) -> tuple[_Shared, _Shared | None]:
    """What the user shares from now on, and what it was the last one to use, to be closed."""
    settings = user.router_settings
    stamp = _stamp(settings.family)
    with _lock:
        found = _by_user.get(id(user))
        if found is not None and found.settings == settings:  # another thread opens it
            return found, None
        left = _leave(id(user))  # its settings were changed
        same = [s for s in _shared if s.settings == settings and s.stamp == stamp]
        found = same[0] if same else _Shared(settings, stamp)
        if not same:
            _shared.append(found)
        found.users.add(id(user))
        _by_user[id(user)] = found
        return found, left


def opened_router(user: User) -> Router | None:
    """The router that this user has already; reads no files."""
    with _lock:
        shared = _by_user.get(id(user))
        return shared.router if shared and shared.settings == user.router_settings else None


def release(user: User) -> None:
    """Ends a user's use. The last one unloads all tiers. Safe to call twice."""
    _close(_leave(id(user)))
    with _lock:
        settings = user.router_settings
        idle = [s for s in _shared if s.settings == settings and not s.users]
        _shared[:] = [s for s in _shared if s not in idle]
    for shared in idle:  # that its copies have left to it
        _close(shared)


def _leave(user: int) -> _Shared | None:
    """Ends a user's use; what nobody uses any more, and is to be closed."""
    with _lock:
        shared = _by_user.pop(user, None)
        if shared is None:
            return None
        shared.users.discard(user)
        if shared.users:
            return None
        _shared.remove(shared)
        return shared


def _close(shared: _Shared | None) -> None:
    if shared is not None and shared.router is not None:
        shared.router.close()


def _gone(user: int) -> None:
    """A finalizer: lets routers go that nobody uses and nobody who lives could use. It does not
    close them: closing waits for threads, and a finalizer may run in any of them."""
    with _lock:
        _living.pop(user, None)
        left = _by_user.pop(user, None)
        if left is not None:
            left.users.discard(user)
        idle = [shared for shared in _shared if not shared.users]
        if not idle:
            return
        living = [model for ref in _living.values() if (model := ref()) is not None]
        wanted = [model.router_settings for model in living]
        for shared in idle:
            if shared.settings not in wanted:
                _shared.remove(shared)


def _stamp(folder: str) -> tuple[int, int, int]:
    path = Path(folder).expanduser()
    manifest = path if path.name == MANIFEST else path / MANIFEST
    calibrated = 0
    with suppress(OSError):
        calibrated = (manifest.parent / FOUND).stat().st_mtime_ns
    try:
        status = manifest.stat()
    except OSError:
        return 0, 0, 0  # loading the family says what is wrong
    return status.st_mtime_ns, status.st_ino, calibrated


def _open(settings: RouterSettings) -> Router:
    family = Family.load(settings.family)
    pool = Pool(
        family,
        memory_bytes=settings.memory_bytes,
        threads=settings.threads,
        kv_type=settings.kv_type,
    )
    budget = Budget(memory=settings.memory_bytes)
    calibration = calibration_of(family)
    log = None
    if settings.log is not None:
        log = DecisionLog(Path(settings.log).expanduser(), text=settings.log_text)
    deriver: Deriver | None = None
    if settings.adapt:
        from tierwise.compression.derive import derive

        deriver = derive
    return Router(
        family,
        pool,
        budget,
        tiers=settings.tiers,
        calibration=calibration,
        log=log,
        deriver=deriver,
    )
