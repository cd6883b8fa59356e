"""The page's server: on this machine alone unless told otherwise, without a trace once it ends."""

import errno
import ipaddress
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from PIL import Image
from rich.console import Console

from ..errors import InputError
from .answers import Classifying

__all__ = ["DEMO_RUN", "serve"]

DEMO_RUN = Path("runs/demo")  # where `make demo` puts it

# The browser itself refuses whatever would be loaded from, or sent to, anywhere else.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; object-src 'none'"
PORTS = 100  # that are tried


class _AtHome:
    """An ASGI application whose pages may load from their own server alone."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket at `port`, or at the next one that is free.

    Raises:
        InputError: If `host` is no address of this machine, or no port is free.
    """
    if not 0 <= port < 65536:
        raise InputError(f"--port {port}: must lie between 0 and 65535; 0 takes any that is free")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: is no address of this machine; leave it out for 127.0.0.1") from error
    family, address = found[0], found[4][0]
    for candidate in range(port, min(port + PORTS, 65536)):
        opened = socket.socket(family, socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address, candidate))
            opened.listen()
        except OSError as error:
            opened.close()
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno == errno.EACCES:
                raise InputError(f"--port {candidate}: is not for everyone to use; give one above 1023") from error
            raise InputError(f"--host {host}: is no address of this machine; leave it out for 127.0.0.1") from error
        return opened
    raise InputError(f"--port {port}: is in use, and so are the next {PORTS}; give another")


def is_local(address: str) -> bool:
    """Whether none but this machine reaches this address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


@contextmanager
def _settings(max_pixels: int) -> Iterator[None]:
    """A folder for what the page keeps for a while, removed in the end, and nothing told to anyone."""
    wanted = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_RUN_HISTORY": "False"}
    before = {name: os.environ.get(name) for name in [*wanted, "GRADIO_TEMP_DIR"]}
    bombs = Image.MAX_IMAGE_PIXELS
    with tempfile.TemporaryDirectory(prefix="patnet-demo-", ignore_cleanup_errors=True) as folder:
        os.environ.update(wanted, GRADIO_TEMP_DIR=folder)
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = bombs
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # which leaves by way of the folder's removal


def _warm_up(classifying: Classifying) -> None:
    """The first picture shall not wait for what is made once."""
    grey = Image.new("RGB", (64, 64), "grey")
    for pictures in classifying.prepare(grey).values():
        classifying.answer(pictures)
        classifying.inspect(pictures)


def _make_app(classifying: Classifying, detecting: Any, max_mb: float, max_pixels: int) -> Any:
    """The ASGI application of the page, warmed up."""
    from fastapi import FastAPI
    from gradio import mount_gradio_app

    from .page import CSS, build_page, theme

    _warm_up(classifying)
    return _AtHome(
        mount_gradio_app(
            FastAPI(openapi_url=None),
            build_page(classifying, detecting, max_pixels=max_pixels),
            path="",
            max_file_size=round(2**20 * max_mb),
            footer_links=[],
            run_history=False,
            show_error=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme(),
            css=CSS,
            app_kwargs={"openapi_url": None},
        )
    )


def _announce(listening: socket.socket, port: int) -> Iterator[str]:
    """Where the page is, a line for each thing that one should know of it."""
    address, taken = listening.getsockname()[:2]
    if port and taken != port:
        yield f"Port {port} is in use, {taken} is taken instead."
    if not is_local(address):
        yield (
            f"Warning: at {address} whoever reaches this machine over the network can use the page, without a password "
            "and unencrypted; leave out --host to keep it to this machine"
        )
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    yield f"Open http://{f'[{reached}]' if ':' in reached else reached}:{taken}/ in a browser; Ctrl-C ends it."


def _run(app: Any, listening: socket.socket) -> None:
    """Serve until Ctrl-C; SIGTERM leaves with `SystemExit`."""
    import uvicorn

    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(
    run: str | None = None,
    *,
    which: str = "best",
    detector: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_mb: float = 20.0,
    max_megapixels: float = 50.0,
    console: Console | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        run: A run folder, any checkpoint, or a file that `patnet export` wrote; the run of `make demo` by default.
        which: `"best"` or `"last"` weights of a run folder.
        detector: A run of `patnet detect train`, for a page of its own.
        host: Address to listen at.
        port: To listen at, or the next free one.
        max_mb: Largest file that is taken, MiB.
        max_megapixels: Largest picture that is taken, million pixels.
        console: Where to say what goes on.

    Raises:
        InputError: If gradio is not installed, a checkpoint cannot be used, or there is no such address.
    """
    console = console or Console(stderr=True)

    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)

    if find_spec("gradio") is None:
        raise InputError("patnet demo needs gradio, not installed here: pip install 'patnet[demo]'")
    for option, value in (("--max_mb", max_mb), ("--max_megapixels", max_megapixels)):
        if not 0 < value < float("inf"):
            raise InputError(f"{option} {value:g}: must be a number above 0")
    if run is None:
        if not DEMO_RUN.exists():
            raise InputError(f"there is no {DEMO_RUN}; make demo makes it, or name a run: patnet demo RUN")
        run = str(DEMO_RUN)
    with open_socket(host, port) as listening:
        say(f"Loading {run} ...")
        classifying = Classifying(run, which)
        detecting = None
        if detector is not None:
            from .detecting import Detecting  # which takes seconds

            detecting = Detecting(detector)
        with _settings(max_pixels := round(1e6 * max_megapixels)):
            app = _make_app(classifying, detecting, max_mb, max_pixels)
            for line in _announce(listening, port):
                say(line, "yellow" if line.startswith("Warning") else None)
            _run(app, listening)
    say("Ended. No picture was kept.")
