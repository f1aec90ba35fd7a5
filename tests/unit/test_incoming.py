"""Downloads that wait to be checked: what was whole is found again, whatever was cut."""

from pathlib import Path

import pytest

from data import incoming
from data.asking import Visit
from data.incoming import Incoming, Stretch


def visited(attempts: int = 1) -> Visit:
    return Visit(host="shop.example", robots="allowed", attempts=attempts)


def bytes_of(stretch: Stretch) -> bytes:
    data = Path(stretch.path).read_bytes()
    return data[stretch.offset :] if stretch.bytes is None else data[stretch.offset : stretch.offset + stretch.bytes]


def keep(folder: Incoming, count: int) -> list[Stretch]:
    return [folder.keep(f"url-{number}", visited(number + 1), b"%d " % number * 100) for number in range(count)]


def test_a_new_start_finds_what_came_whole(tmp_path: Path) -> None:
    keep(Incoming(tmp_path, lambda: None), 3)
    again, visit = Incoming(tmp_path, lambda: None), Visit()
    found = again.find("url-1", visit)
    assert found is not None
    assert bytes_of(found) == b"1 " * 100
    assert (visit.attempts, visit.robots) == (2, "allowed")
    assert again.find("url-1", Visit()) is None
    assert again.find("url-7", Visit()) is None
    again.clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 60, 199, 230, 260])
def test_a_download_that_a_kill_cut_is_not_found_and_those_before_it_are(tmp_path: Path, cut: int) -> None:
    keep(Incoming(tmp_path, lambda: None), 3)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    again = Incoming(tmp_path, lambda: None)
    assert [again.find(f"url-{number}", Visit()) is not None for number in range(3)] == [True, cut < 240, False]


def test_bytes_that_are_not_those_that_came_are_not_found(tmp_path: Path) -> None:
    stretch = keep(Incoming(tmp_path, lambda: None), 1)[0]
    data = bytearray(Path(stretch.path).read_bytes())
    data[stretch.offset + 5] ^= 1
    Path(stretch.path).write_bytes(data)
    assert Incoming(tmp_path, lambda: None).find("url-0", Visit()) is None


def test_a_file_goes_once_all_of_it_is_checked_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "FILE_BYTES", 500)
    settled: list[int] = []
    folder = Incoming(tmp_path, lambda: settled.append(len(list(tmp_path.iterdir()))))
    stretches = keep(folder, 6)
    assert len(list(tmp_path.iterdir())) == 2
    for stretch in stretches[:2]:
        folder.release(stretch.path)
    assert len(list(tmp_path.iterdir())) == 2
    folder.release(stretches[2].path)
    assert [path.name for path in tmp_path.iterdir()] == [Path(stretches[3].path).name]
    assert settled == [2]  # before it went


def test_a_large_download_has_a_file_of_its_own(tmp_path: Path) -> None:
    folder = Incoming(tmp_path, lambda: None)
    Path(folder.beside("large")).write_bytes(b"x" * 1000)
    folder.keep("large", visited(2), None)
    Path(folder.beside("half")).write_bytes(b"x")
    again, visit = Incoming(tmp_path, lambda: None), Visit()
    found = again.find("large", visit)
    assert found is not None
    assert bytes_of(found) == b"x" * 1000
    assert visit.attempts == 2
    again.release(found.path)
    assert not list(tmp_path.iterdir())
