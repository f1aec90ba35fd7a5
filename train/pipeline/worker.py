"""A worker process of the loader: receives packs to make, lends them made, ends with its rank.

A program of its own (`python -m train.pipeline.worker FD`) and not a `multiprocessing` process: that would run the
rank's main module again in each worker, and with it import torch and deepspeed.
"""

import socket
import sys
import traceback
from dataclasses import asdict

from data.schema import UserError
from train.pipeline.encode import EncoderSettings, Job, PackMaker
from train.pipeline.passing import Lender, receive


def serve(end: socket.socket) -> None:
    """Make packs until the other side closes, which also happens when the rank is killed.

    The first request is the settings. Each further one names shards to be fetched ahead or has a job; a job is answered
    by a loan: the pack, or {"error": text, "trace": text or None}.
    """
    lender = Lender(end)
    maker: PackMaker | None = None
    problem: dict[str, str | None] | None = None
    while True:
        try:
            request = receive(end)
            if "settings" in request:
                try:
                    maker = PackMaker(EncoderSettings.from_json(request["settings"]))
                except Exception as error:
                    problem = told(error)
                continue
            if "prefetch" in request:
                if maker:
                    maker.prefetch(request["prefetch"])
                continue
            try:
                if maker is None:
                    assert problem is not None, "a job came before the settings"
                    lender.lend(problem, {})
                    continue
                made = maker.make(Job.from_json(request["job"]), lender.take)
            except Exception as error:
                lender.lend(told(error), {})
                continue
            text = {
                "batch": made.batch.plain(),
                "seconds": made.seconds,
                "events": [asdict(one) for one in made.events],
            }
            lender.lend(text, made.batch.arrays())
            del made
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def told(error: Exception) -> dict[str, str | None]:
    """An error as it goes to the rank; with its traceback unless a person can mend it."""
    return {"error": str(error), "trace": None if isinstance(error, UserError) else traceback.format_exc()}


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
