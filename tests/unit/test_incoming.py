"""Downloads that wait to be checked: what was whole is found again, whatever was cut."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data import incoming, volumes
from data.asking import Visit
from data.incoming import Incoming, Stretch


def visited(attempts: int = 1) -> Visit:
    return Visit(host="shop.example", robots="allowed", attempts=attempts)


def bytes_of(stretch: Stretch) -> bytes:
    data = Path(stretch.path).read_bytes()
    return data[stretch.offset :] if stretch.bytes is None else data[stretch.offset : stretch.offset + stretch.bytes]


def opened(folder: Path, settle: Callable[[], None] = lambda: None) -> Incoming:
    return Incoming(folder / "incoming", folder / "volumes", settle)


def keep(folder: Incoming, count: int) -> list[Stretch]:
    return [folder.keep(f"url-{number}", visited(number + 1), b"%d " % number * 100) for number in range(count)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_start_finds_what_came_whole(tmp_path: Path) -> None:
    keep(opened(tmp_path), 3)
    again, visit = opened(tmp_path), Visit()
    found = again.find("url-1", visit)
    assert found is not None
    assert bytes_of(found) == b"1 " * 100
    assert (visit.attempts, visit.robots) == (2, "allowed")
    assert again.find("url-1", Visit()) is None
    assert again.find("url-7", Visit()) is None
    again.clear()
    # Of what was checked before this start nothing is known here: it may be what the ledger names.
    assert names(tmp_path / "volumes") == ["000001.pictures"]
    assert opened(tmp_path).find("url-2", Visit()) is None


@pytest.mark.parametrize("cut", [1, 60, 199, 230, 260])
def test_a_download_that_a_kill_cut_is_not_found_and_those_before_it_are(tmp_path: Path, cut: int) -> None:
    path = Path(keep(opened(tmp_path), 3)[0].path)
    path.write_bytes(path.read_bytes()[:-cut])
    again = opened(tmp_path)
    assert [again.find(f"url-{number}", Visit()) is not None for number in range(3)] == [True, cut < 250, False]


def test_bytes_that_are_not_those_that_came_are_not_found(tmp_path: Path) -> None:
    stretch = keep(opened(tmp_path), 1)[0]
    data = bytearray(Path(stretch.path).read_bytes())
    data[stretch.offset + 5] ^= 1
    Path(stretch.path).write_bytes(data)
    assert opened(tmp_path).find("url-0", Visit()) is None


def test_one_that_was_forgotten_is_not_found_and_those_behind_it_are(tmp_path: Path) -> None:
    stretches = keep(opened(tmp_path), 3)
    volumes.forget(stretches[1].path, stretches[1].offset)
    again = opened(tmp_path)
    assert [again.find(f"url-{number}", Visit()) is not None for number in range(3)] == [True, False, True]


@pytest.mark.parametrize("stays", [True, False])
def test_a_volume_is_settled_once_all_of_it_is_checked_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    monkeypatch.setattr(incoming, "VOLUME_BYTES", 600)
    settled: list[list[str]] = []
    folder = opened(tmp_path, lambda: settled.append(names(tmp_path / "volumes")))
    stretches = keep(folder, 6)
    both = ["000001.open", "000001.pictures", "000002.open", "000002.pictures"]
    assert names(tmp_path / "volumes") == both
    for stretch in stretches[:2]:
        folder.release(stretch.path, stays and stretch is stretches[0])
    assert names(tmp_path / "volumes") == both
    folder.release(stretches[2].path, False)
    assert names(tmp_path / "volumes") == both[1:][: 3 if stays else 0] + ([] if stays else both[2:])
    assert settled == [both]  # before it was


def test_a_volume_without_bytes_that_was_just_begun_does_no_harm(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    (tmp_path / "volumes" / "000004.open").touch()
    folder = opened(tmp_path)
    assert Path(keep(folder, 1)[0].path).name == "000005.pictures"
    folder.clear()
    assert names(tmp_path / "volumes") == []


def test_a_large_download_has_a_file_of_its_own(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    Path(folder.beside("large")).write_bytes(b"x" * 1000)
    folder.keep("large", visited(2), None)
    Path(folder.beside("half")).write_bytes(b"x")
    again, visit = opened(tmp_path), Visit()
    found = again.find("large", visit)
    assert found is not None
    assert bytes_of(found) == b"x" * 1000
    assert visit.attempts == 2
    again.release(found.path, False)
    assert not names(tmp_path / "incoming")
