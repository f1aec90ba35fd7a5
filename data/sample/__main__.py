"""`python -m data.sample DIR`: draw the sample catalogue; with --serve, offer its pictures over HTTP."""

import argparse
import sys
from pathlib import Path

from data.sample.catalogue import CATALOGUE, URLS, write_sample
from data.sample.serve import picture_server
from data.schema import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status (2: what the caller has to mend)."""
    parser = argparse.ArgumentParser(prog="python -m data.sample", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder, or one that holds this sample")
    parser.add_argument("--rows", type=int, default=3040, help="rows of the catalogue (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other rows (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="processes that draw (default: one a core)")
    parser.add_argument("--serve", type=int, metavar="PORT", help=f"write {URLS} and serve the pictures until Ctrl-C")
    options = parser.parse_args(arguments)
    try:
        summary = write_sample(options.folder, options.rows, options.seed, options.processes)
        if summary is None:
            print(f"{options.folder / CATALOGUE}: already whole")
        else:
            kinds = ", ".join(f"{count} {kind}" for kind, count in summary.broken.items())
            print(
                f"{options.folder / CATALOGUE}: {summary.rows} rows, {summary.pictures} pictures, "
                f"{sum(summary.broken.values())} rows broken on purpose ({kinds or 'none'}), "
                f"{summary.picture_bytes / 1e6:.1f} MB, {summary.seconds:.1f} s"
            )
        if options.serve is not None:
            _serve(options.folder, options.serve)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _serve(folder: Path, port: int) -> None:
    with picture_server(folder, port) as server:
        print(f"serving the pictures of {folder / URLS} on port {server.server_address[1]}; Ctrl-C ends", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    sys.exit(main())
