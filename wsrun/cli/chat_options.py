"""Options of wsrun chat; nothing heavy is imported, as in options.py."""

import socket
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address

from wsrun.cli.change_options import Changed


@dataclass(frozen=True)
class Chat(Changed):
    """Talk to a model and to its steered twin, side by side.

    /help lists its commands, Ctrl-C stops an answer, the end of input ends it.
    """

    system: str = field(default="", metadata={"prose": True})
    """system turn of both sides; none if empty"""
    seed: int = 0
    """of the draws; the same on both sides"""
    temperature: float = 0.7
    """0 takes the likeliest token, 1 draws from the model's own probabilities"""
    top_p: float = 0.9
    """share of the probability that tokens are drawn from"""
    max_new_tokens: int = 128
    """longest answer"""
    web: bool = False
    """a page for the browser in place of the terminal"""
    host: str = "127.0.0.1"
    """address of the page; the default is reached from this machine only"""
    port: int = 7860
    """port of the page"""

    def refuse(self) -> None:
        """Raise ValueError for a change that is not there, and a page that cannot be served."""
        super().refuse()
        if self.web:
            check_web(self.host, self.port)


GRADIO = (6, 31)
"""the first version whose page keeps no history of what is asked outside of it"""


def check_web(host: str, port: int) -> None:
    """Raise ValueError for no gradio, one that is too old, and an address that cannot be had."""
    remedy = "run pip install 'weight-steering[demo]', or leave --web out"
    try:
        found = version("gradio")
    except PackageNotFoundError as error:
        raise ValueError(f"--web: gradio is not installed; {remedy}") from error
    if tuple(map(int, found.split(".")[:2])) < GRADIO:
        raise ValueError(f"--web: gradio {found} is older than {GRADIO[0]}.{GRADIO[1]}; {remedy}")
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be between 1 and 65535, got {port}")
    try:
        kind = socket.AF_INET if ip_address(host).version == 4 else socket.AF_INET6
    except ValueError as error:
        raise ValueError(f"--host {host!r} is no IP address; give one, or leave it out") from error
    try:
        with socket.socket(kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port} cannot be served ({error.strerror}); give another --port,"
            " or an address of this machine"
        ) from error
