"""Which servers the user of this machine has connected.

A family's record may come from anybody, and says where conversations go and which environment
variable goes along as a key. So a remote tier is asked only where `tierwise connect` was run for
it; a server on this very machine that wants no key needs no such leave.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from urllib.parse import urlsplit

from tierwise.runtime.files import home, write_atomically
from tierwise.runtime.remote_tier import RemoteTier

_FILE = "remotes.json"


def allow(tier: RemoteTier) -> None:
    """Lets the tier be asked from now on, whatever family has it.

    Raises:
        OSError: The file cannot be written.
    """
    allowed = {*_allowed(), _key(tier)}
    home().mkdir(parents=True, exist_ok=True)
    write_atomically(home() / _FILE, json.dumps({"allowed": sorted(allowed)}, indent=2) + "\n")


def refusal(tier: RemoteTier) -> str:
    """Why the tier may not be asked, in English; "" if it may."""
    if (_is_here(tier.url) and not tier.api_key_env) or _key(tier) in _allowed():
        return ""
    key = f" --key-variable {tier.api_key_env}" if tier.api_key_env else ""
    return (
        f"it was not connected on this machine, and anybody may have written it into the family. "
        f"If you want calls to go there: tierwise connect FAMILY {tier.name} --url {tier.url} "
        f"--model {tier.model}{key}"
    )


def _key(tier: RemoteTier) -> str:
    return hashlib.sha256(f"{tier.url}\0{tier.model}\0{tier.api_key_env}".encode()).hexdigest()


def _allowed() -> set[str]:
    try:
        found = json.loads((home() / _FILE).read_text(encoding="utf-8"))
        return {str(one) for one in found["allowed"]}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
