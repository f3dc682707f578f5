"""Play with a trained model in the browser: `python -m jepa_fast.play`, with or without RUNs of your own."""

import http.server
import logging
import webbrowser
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Open a page: draw the wall, drive the agent, see what the model imagines; click a goal and watch it plan."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, exports, or folders of them. Default: the trained models that come with the package."""
    out: cli.Chosen[Path] = None
    """Write the page to this file, which opens anywhere without a network, instead of serving it."""
    port: int = 0
    """Serve it on this port of this machine alone. Default: a free one."""
    browser: bool = True
    """Open it in the browser."""


def main(arguments: Arguments) -> None:
    """Build the page; write it, or serve it until Ctrl-C."""
    from jepa_fast.data.writing import write_text
    from jepa_fast.play.page import build
    from jepa_fast.play.playable import folders_of, playable, shipped

    require(0 <= arguments.port < 65536, "--port", arguments.port, "a port, or 0 for a free one")
    folders = folders_of(arguments.runs) if arguments.runs else shipped()
    page = build([playable(folder) for folder in folders])
    if arguments.out is not None:
        try:
            write_text(arguments.out, page)
        except OSError as error:
            raise InputError(f"--out: {arguments.out} cannot be written ({error.strerror})") from error
        print(arguments.out)
        return
    with serve(page, arguments.port) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        logger.info("%s: on this machine alone, until Ctrl-C", address)
        if arguments.browser:
            webbrowser.open(address)
        server.serve_forever()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every request for / with the page."""

    def __init__(self, page: bytes, *rest: object) -> None:
        self._page = page
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """The page, or that there is nothing else."""
        if self.path != "/":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self._page)))
        self.end_headers()
        self.wfile.write(self._page)

    def log_message(self, format: str, *words: object) -> None:
        """Nothing: whoever looks at the page is the one who serves it."""


def serve(page: str, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server of the page on this machine alone.

    Raises:
        OSError: the port is taken.
    """
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, page.encode()))


if __name__ == "__main__":
    cli.run(main, Arguments, "Play with a trained model in the browser.")
