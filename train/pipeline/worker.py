"""A worker process of the loader: receives packs to make, sends them back made, ends with its rank.

A program of its own (`python -m train.pipeline.worker FD`) and not a `multiprocessing` process: that would run the
rank's main module again in each worker, and with it import torch and deepspeed.
"""

import socket
import sys
import traceback

from data.schema import UserError
from train.pipeline.encode import PackMaker
from train.pipeline.passing import receive, send


def serve(end: socket.socket) -> None:
    """Make packs until the other side closes, which also happens when the rank is killed.

    The first request is the settings, each further one a job. An error goes back as {"error": text, "trace": text or
    None}.
    """
    maker: PackMaker | None = None
    while True:
        try:
            request, _ = receive(end)
        except EOFError:
            return
        try:
            if maker is None:
                maker = PackMaker(request)
                continue
            batch = maker.make(request)
        except Exception as error:
            trace = None if isinstance(error, UserError) else traceback.format_exc()
            answer: tuple[dict, dict] = ({"error": str(error), "trace": trace}, {})
        else:
            answer = ({"batch": batch.plain()}, batch.arrays())
        try:
            send(end, *answer)
        except (BrokenPipeError, ConnectionResetError):
            return


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
