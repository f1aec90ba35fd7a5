"""An object store of this machine: what s3:// means inside a block."""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import fsspec
import pytest


@contextmanager
def object_store() -> Iterator[Any]:
    """A server on loopback with an empty bucket `bucket`, also for the processes started within; its file system."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        # what is stored belongs to the process, not to its server: a second block would find the first one's bucket
        urllib.request.urlopen(urllib.request.Request(f"{settings['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST"))
        with mock.patch.dict(os.environ, settings):
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            system = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
            system.mkdir("bucket")
            yield system
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
