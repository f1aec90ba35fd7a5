"""Serves the pictures of a sample catalogue over HTTP on this machine, for trying a catalogue of URLs."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data.sample.catalogue import CATALOGUE, PICTURES, URLS, rows_of, write_rows
from data.schema import UserError

HOST = "127.0.0.1"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: thousands of lines of access log would hide what the person watches."""


def picture_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a sample's folder on 127.0.0.1, not yet serving; writes catalogue_urls.csv, whose imageurl name it.

    port: 0 takes any free one (`server_address[1]` tells which).
    Raises UserError where the port cannot be had.
    """
    try:
        server = ThreadingHTTPServer((HOST, port), partial(_Quiet, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} of {HOST} cannot be served: {error}; name another one, or 0 for any") from error
    root = f"http://{HOST}:{server.server_address[1]}/"
    rows = rows_of(folder / CATALOGUE)
    for row in rows:
        if row["imageurl"].startswith(f"{PICTURES}/"):
            row["imageurl"] = root + row["imageurl"]
    write_rows(folder / URLS, rows)
    return server
