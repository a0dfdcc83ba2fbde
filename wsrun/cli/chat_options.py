"""Options of wsrun chat; nothing heavy is imported, as in options.py."""

import socket
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction

from wsrun.cli.options import SHIPPED, Model, check_delta, check_folder, split_delta


@dataclass(frozen=True)
class Chat(Model):
    """Talk to a model and to its steered twin, side by side.

    /help lists its commands, Ctrl-C stops an answer, the end of input ends it.
    """

    model: str = "smollm2"
    """model folder, GGUF file, smollm2 or hub name"""
    delta: Annotated[tuple[str, ...], UseAppendAction] = ()
    """file of a dW (t0_train writes some), and how much of it: PATH or PATH:ALPHA; given several
    times: their sum, which alpha scales"""
    adapters: Path | None = None
    """or a pair of adapters, pos and neg: its folder, or that of <family>-s<seed>; the shipped one
    if neither is given"""
    family: str = "lora"
    """family of the pair in --adapters"""
    adapter_seed: int = 0
    """seed of the pair in --adapters"""
    alpha: float = 1.0
    """coefficient alpha of dW to begin with"""
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
        """Raise ValueError for a change that is not there."""
        super().refuse()
        if self.web:
            check_web(self.host, self.port)
        if self.delta and self.adapters:
            raise ValueError("--delta and --adapters both name a change; give one of them")
        for path, _ in map(split_delta, self.delta):
            check_delta(path)
        if not self.delta:
            self.pair()

    def pair(self) -> Path:
        """The folder of the pair of adapters: a pair itself, or the one of family and seed."""
        shipped = SHIPPED.get(self.model.rstrip("/"))
        folder = self.adapters or shipped
        if folder is None:
            raise ValueError(
                f"no adapters are shipped for {self.model!r}; give --delta or --adapters"
            )
        check_folder("adapters", folder, "run where the repository is, or train a pair")
        if (folder / "pos").is_dir():
            return folder
        name = f"{self.family}-s{self.adapter_seed}"
        check_folder("adapters", folder / name, "name another --family or --adapter-seed")
        return folder / name


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
