"""Which network interface leads to the other nodes. No torch."""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import MutableMapping
from pathlib import Path

SIOCGIFADDR = 0x8915  # linux/sockios.h


def address_of(interface: str) -> str | None:
    """The IPv4 address of an interface, None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def interfaces() -> dict[str, str]:
    """The interfaces of this machine that have an IPv4 address, the loopback left out."""
    found = {name: address_of(name) for _, name in socket.if_nameindex()}
    return {name: address for name, address in found.items() if address and not address.startswith("127.")}


def interface_to(host: str) -> str | None:
    """The interface by which packets to `host` leave; None where it is not known or is the loopback."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((host, 9))  # sends nothing: it asks the routing table
            own = asking.getsockname()[0]
    except OSError:
        return None
    return next((name for name, address in interfaces().items() if address == own), None)


def is_here(host: str) -> bool:
    """Whether a name or an address is this machine's; also where it leads nowhere, which others say better."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as trying:
            trying.bind(address)
    except socket.gaierror:
        return True
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def default_interface(routes: Path = Path("/proc/net/route")) -> str | None:
    """The interface of the default route; without one, the only one there is."""
    lines = [line.split() for line in routes.read_text().splitlines()[1:]] if routes.is_file() else []
    default = next((fields[0] for fields in lines if len(fields) > 1 and fields[1] == "00000000"), None)
    there = list(interfaces())
    return default or (there[0] if len(there) == 1 else None)


def choose_interface(environment: MutableMapping[str, str], several_nodes: bool) -> str | None:
    """Tell gloo by which interface the other nodes are reached, unless somebody has; returns its name.

    Left to itself gloo takes the address that this machine's own name leads to. Where that is the loopback, as Debian
    writes it into /etc/hosts, the other nodes can never reach it.
    """
    if several_nodes and not environment.get("GLOO_SOCKET_IFNAME"):
        # On the first node itself the way to MASTER_ADDR may be the loopback.
        found = interface_to(environment["MASTER_ADDR"]) or default_interface()
        if found is not None:
            environment["GLOO_SOCKET_IFNAME"] = found
    return environment.get("GLOO_SOCKET_IFNAME")


def nominal_mb_s(interface: str) -> float | None:
    """What an interface says of its own speed, in MB/s; None where it does not say."""
    try:
        megabits = int((Path("/sys/class/net") / os.path.basename(interface) / "speed").read_text())
    except (OSError, ValueError):
        return None
    return megabits / 8 if megabits > 0 else None
