"""Pictures a second from web server to shards, beside img2dataset at its best settings, in the same run.

python -m tests.benchmarks.download [--material DIR] [--times 4] [--rounds 3] [--work build/download]

A local nginx serves the photographs of DIR/clothing several times over, each copy with bytes of its own. Both start
from nothing each round and end with tars: ours by `data.build` (robots.txt asked for, every picture decoded in full,
SHA-256, perceptual hash, groups, splits, index), img2dataset in an environment of its own under the work folder. The
limit: two processes that fetch each picture over a connection that stays open, decode it by Pillow, take its SHA-256
and write nothing. Three times img2dataset is asked, as far as it looks at pictures; its unchecked copies stand beside.
Needs nginx (Debian: nginx-light) and, for that environment, a package index.
"""

import argparse
import csv
import hashlib
import http.client
import io
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

from PIL import Image

from tests.benchmarks.figures import Figure, Unavailable, command, of_rounds
from tests.benchmarks.pairs import in_turns, print_table
from tests.conftest import MATERIAL, ROOT

MAPPING = """\
key: sku
pictures: [url]
prompt: "<|image_1|>\\nWhat is this?"
answer: "{category}"
fields:
  category: {column: category, type: category}
chat_template: phi3v
split:
  fractions: {train: 0.9, test: 0.1}
"""
NGINX = """\
worker_processes 2;
daemon off;
pid {work}/nginx.pid;
error_log {work}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  open_file_cache max=20000;
  client_body_temp_path {work}/nginx; proxy_temp_path {work}/nginx; fastcgi_temp_path {work}/nginx;
  uwsgi_temp_path {work}/nginx; scgi_temp_path {work}/nginx;
  types {{ image/jpeg jpg; }}
  server {{ listen 127.0.0.1:{port}; root {work}/served; }}
}}
"""
# Keeping the bytes as they are is what img2dataset is quickest at; the second checks and keeps what it can.
MODES = {
    "unchecked": ["--disable_all_reencoding", "True"],
    "decoded": ["--resize_mode", "no", "--skip_reencode", "True"],
}
NGINX_PROGRAM = shutil.which("nginx") or "/usr/sbin/nginx"
PROCESSES = 2
TIMES_THEIRS = 3.0
LIMIT = "fetched and decoded, nothing written"
PROCESSES_AND_THREADS = ((1, 64), (2, 32), (2, 128))


def serve(material: Path, work: Path, times: int) -> tuple[Path, int]:
    """Lay out the pictures and the catalogues. Returns the port, and the number of pictures."""
    with (material / "clothing" / "rows.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, copies in (("one", 1), ("all", times)):
        with (work / f"{name}.csv").open("w", newline="") as lines:
            writer = csv.writer(lines)
            writer.writerow(("sku", "url", "category"))
            for copy in range(copies):
                for row in rows:
                    url = f"http://127.0.0.1:{port}/{copy}/{row['id']}.jpg"
                    writer.writerow((f"{row['id']}-{copy}", url, row["category"]))
    for copy in range(times):
        folder = work / "served" / str(copy)
        if folder.is_dir():
            continue
        folder.mkdir(parents=True)
        for row in rows:
            data = (material / "clothing" / row["image"]).read_bytes()
            comment = f"{copy:08d}".encode()
            (folder / f"{row['id']}.jpg").write_bytes(data[:2] + b"\xff\xfe\0\x0a" + comment + data[2:])
    return port, times * len(rows)


@contextmanager
def nginx(work: Path, port: int) -> Iterator[None]:
    """A web server of our own while the block runs."""
    (work / "nginx").mkdir(exist_ok=True)
    (work / "nginx.conf").write_text(NGINX.format(work=work, port=port))
    with subprocess.Popen([NGINX_PROGRAM, "-c", work / "nginx.conf", "-e", work / "nginx.log"]) as server:
        try:
            wait_for(port, server)
            yield
        finally:
            server.terminate()


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Return once something answers at the port. Raises SystemExit if the server has ended."""
    while server.poll() is None:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("nginx has ended; see nginx.log in the work folder")


def peer_program(work: Path) -> Path:
    """Where img2dataset lies once its environment is made."""
    return work / "img2dataset" / "bin" / "img2dataset"


def peer(work: Path) -> Path:
    """The img2dataset of an environment of its own, which is made if it is not there."""
    program = peer_program(work)
    if not program.is_file():
        venv.create(program.parents[1], with_pip=True)
        python = program.parent / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "img2dataset", "setuptools<81"], check=True)
    return program


def fresh(work: Path, name: str) -> Path:
    """A folder that is not there. Those of earlier runs are left until the end: a disk from which thousands of files
    were removed a moment ago takes several times as long to make new ones (ext4 looks for inodes that are not)."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work / "out")) / "out"


def fetch_and_decode(port: int, paths: Sequence[str]) -> int:
    """What nobody can do without who looks at pictures: fetched, decoded, SHA-256; how many."""
    line = http.client.HTTPConnection("127.0.0.1", port)
    for path in paths:
        line.request("GET", path)
        content = line.getresponse().read()
        hashlib.sha256(content).digest()
        Image.open(io.BytesIO(content)).load()
    return len(paths)


def bare(port: int, work: Path, pictures: int) -> None:
    """All pictures through `fetch_and_decode` in two processes."""
    served = work / "served"
    paths = [f"/{path.relative_to(served)}" for path in sorted(served.glob("*/*.jpg"))]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        done = sum(pool.map(fetch_and_decode, repeat(port), [paths[number::PROCESSES] for number in range(PROCESSES)]))
    if done != pictures:
        raise SystemExit(f"{done} pictures were fetched, {pictures} are served; empty the work folder")


def build(work: Path, pictures: int) -> None:
    """Our build, from nothing."""
    out = fresh(work, "ours")
    command = [sys.executable, "-m", "data.build", "--preset", work / "mapping.yaml", "--source", work / "all.csv"]
    command += ["--output", out, "--workers", "2", "--allow-host", "127.0.0.1", "--per-host-rate", "0"]
    with (work / "ours.log").open("w") as log:
        subprocess.run([*command, "--connections-per-host", "32"], check=True, stdout=log, stderr=log, cwd=ROOT)
    kept = sum(1 for _ in out.glob("*/*.tar"))
    reasons = {json.loads(line)["reason"] for line in (out / "rejected.jsonl").read_text().splitlines()}
    # Photographs of one product under several numbers may stand in different splits, which costs the later one.
    if not kept or reasons - {"leak"}:
        raise SystemExit(f"our build rejected rows; see {out / 'rejected.jsonl'}")


def download(program: Path, work: Path, name: str, pictures: int, mode: str, processes: int, threads: int) -> None:
    """img2dataset, from nothing."""
    out = fresh(work, "theirs")
    command = [program, "--url_list", work / f"{name}.csv", "--input_format", "csv", "--url_col", "url"]
    command += ["--caption_col", "category", "--output_folder", out, "--output_format", "webdataset"]
    command += ["--processes_count", str(processes), "--thread_count", str(threads), "--number_sample_per_shard"]
    command += ["500" if name == "one" else "1000", *MODES[mode]]
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    with (work / "theirs.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment, cwd=work)
    if sum(path.stat().st_size for path in out.glob("*.tar")) < pictures * 10_000:
        raise SystemExit(f"img2dataset did not write all pictures; see {work / 'theirs.log'}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--material", type=Path, default=MATERIAL, help="folder that holds clothing/")
    arguments.add_argument("--times", type=int, default=4, help="how often each photograph is served")
    arguments.add_argument("--rounds", type=int, default=3, help="pairs of runs")
    arguments.add_argument("--work", type=Path, default=ROOT / "build" / "download", help="folder for everything")
    arguments.add_argument("--no-install", action="store_true", help="do not make img2dataset's environment")
    return arguments


def check(material: Path, work: Path, install: bool) -> None:
    """Raise Unavailable for what is not here."""
    if not Path(NGINX_PROGRAM).is_file():
        raise Unavailable("there is no nginx (Debian: apt-get install nginx-light)")
    if not (material / "clothing" / "rows.csv").is_file():
        raise Unavailable(f"there are no photographs in {material / 'clothing'}; name their folder by --material")
    if not install and not peer_program(work).is_file():
        raise Unavailable("img2dataset is not there; `python -m tests.benchmarks.download` makes its environment")


def measure(options: argparse.Namespace) -> list[Figure]:
    """Pictures a second of a build from a web server, beside img2dataset's two modes."""
    work = options.work.resolve()
    check(options.material, work, not options.no_install)
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "out", ignore_errors=True)
    (work / "out").mkdir()
    (work / "mapping.yaml").write_text(MAPPING)
    program = peer(work)
    port, count = serve(options.material, work, options.times)
    with nginx(work, port):
        best = best_settings(program, work, count // options.times)
        ways = {"data.build": lambda: build(work, count), LIMIT: lambda: bare(port, work, count)}
        for mode, setting in best.items():
            name = f"img2dataset, {mode}, {setting[1]} × {setting[2]}"
            ways[name] = lambda setting=setting: download(program, work, "all", count, *setting)  # type: ignore[misc]
        timings = in_turns(ways, options.rounds, warm_up=0, before=os.sync)
    shutil.rmtree(work / "out")
    ours = timings["data.build"]
    print_table(
        (f"{count:,} pictures, {os.cpu_count()} cores", "pictures/s", "data.build is"),
        [
            (name, f"{count / one.median_s:,.0f}", f"{ours.times_faster_than(one):.2f}×")
            for name, one in timings.items()
        ],
    )
    rates = {name: [count / taken for taken in timing.seconds] for name, timing in timings.items()}
    own, limit = rates.pop("data.build"), (LIMIT, rates.pop(LIMIT))
    figures = {
        mode: of_rounds(f"{count:,} photographs, beside {mode}", own, "pictures/s", baseline=theirs, limit=limit)
        for mode, theirs in zip(best, rates.items(), strict=True)
    }
    looked_at = figures["decoded"]
    assert looked_at.baseline is not None
    figures["decoded"] = looked_at.asking(f"{TIMES_THEIRS:g}× theirs", looked_at.baseline.ratio >= TIMES_THEIRS)
    return list(figures.values())


def best_settings(program: Path, work: Path, pictures: int) -> dict[str, tuple[str, int, int]]:
    """The quickest processes and threads of img2dataset, by its mode."""
    tried = {}
    for mode in MODES:
        for processes, threads in PROCESSES_AND_THREADS:
            start = time.perf_counter()
            download(program, work, "one", pictures, mode, processes, threads)
            tried[mode, processes, threads] = rate = pictures / (time.perf_counter() - start)
            print(f"img2dataset, {mode}, {processes} × {threads}: {rate:,.0f}/s", flush=True)
    return {mode: max((one for one in tried if one[0] == mode), key=tried.__getitem__) for mode in MODES}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
