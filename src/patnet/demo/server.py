"""The server of the page, Gradio's own: for this machine unless `--host` says otherwise, and nothing stays behind."""

import ipaddress
import os
import signal
import socket
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console

from ..errors import InputError
from ..models import Loaded

if TYPE_CHECKING:
    from ..detection import DetectorLoaded

LAUNCH: dict[str, Any] = {"prevent_thread_lock": True, "quiet": True, "show_error": True, "footer_links": []}
LAUNCH |= dict.fromkeys(("share", "run_history", "enable_monitoring", "ssr_mode", "pwa", "mcp_server"), False)

# The browser refuses whatever would be loaded from, or sent to, another host.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; object-src 'none'"


def _own_host_only(app: Any) -> Any:
    """ASGI middleware that adds the policy to every response."""

    async def with_policy(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return with_policy


def check_host(host: str) -> bool:
    """Whether other machines can reach an address of this machine.

    Raises:
        InputError: If it is no address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(address[:2], family=family).close()
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: is no address of this machine; leave it out for 127.0.0.1") from error
    return not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback


def serve(
    loaded: Loaded,
    name: str,
    *,
    detector: "tuple[DetectorLoaded, str] | None" = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_mb: float = 20.0,
    max_megapixels: float = 50.0,
) -> None:
    """Serve a page for a classifier and, in a tab of its own, a detector until Ctrl-C; the names are shown.

    The options are those of `patnet demo`. Environment variables of Gradio and Pillow's limit of pixels are set in this
    process.

    Raises:
        InputError: If `host` is no address of this machine, or the port is not free.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if port is not None and not 0 < port < 65536:
        raise InputError(f"--port {port}: must lie in 1 to 65535")
    exposed = check_host(host)
    # So that the folder of the uploads and drawings is removed then too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="patnet-demo-", ignore_cleanup_errors=True) as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        from starlette.middleware import Middleware  # Gradio reads the variables when it is imported

        from .classifier import ImageClassifier
        from .page import CSS, build_page, theme

        Image.MAX_IMAGE_PIXELS = round(1e6 * max_megapixels)
        page = build_page(ImageClassifier(loaded, name), detector, max_pixels=Image.MAX_IMAGE_PIXELS)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                max_file_size=round(2**20 * max_mb),
                theme=theme(),
                css=CSS,
                app_kwargs={"openapi_url": None, "middleware": [Middleware(_own_host_only)]},
                **LAUNCH,
            )
        except OSError as error:
            ports = "7860 to 7959" if port is None else port
            raise InputError(f"--port {ports}: not free, or not permitted; give another --port") from error
        if exposed:
            console.print(
                f"Warning: whoever reaches {host} over the network can use the page, without password and encryption; "
                "leave out --host to keep it to this machine",
                style="yellow",
            )
        console.print(f"Open {page.local_url} in a browser; Ctrl-C ends it.")
        page.block_thread()
    console.print("Ended. No image was kept.")
