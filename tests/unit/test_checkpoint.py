"""Checkpoints: whole or not there, read by ranges, pruned to the newest and the best."""

import json
from pathlib import Path

import pytest
import torch

from train import checkpoint, keeping
from train.checkpoint import CheckpointError, Manifest, Reader, Slice, finish, full_tensors, problem
from train.keeping import best_known, found, newest, prune, remove

SHAPES = {"a": [3, 5], "b": [4]}


def value(kind: str, name: str) -> torch.Tensor:
    """Distinct numbers for each kind and parameter, in the parameter's shape."""
    size = torch.Size(SHAPES[name]).numel()
    start = 1000 * checkpoint.KINDS.index(kind) + 100 * sorted(SHAPES).index(name)
    return torch.arange(start, start + size, dtype=torch.float32).reshape(SHAPES[name])


def write(run: Path, step: int, ranks: int = 2, loss: float | None = None) -> Path:
    """A checkpoint written by so many ranks; the last slices are shorter, or none."""
    aside = run / "checkpoints" / f".step-{step:06d}.tmp"
    aside.mkdir(parents=True)
    files = {}
    for rank in range(ranks):
        slices = []
        for name, shape in SHAPES.items():
            length = -(-torch.Size(shape).numel() // ranks)
            tensors = {kind: value(kind, name).flatten()[rank * length :][:length] for kind in checkpoint.KINDS}
            if tensors["weight"].numel():
                slices.append(Slice(name=name, offset=rank * length, tensors=tensors))
        name, written = checkpoint.write_slices(aside, rank, slices)
        files[name] = written
    manifest = Manifest(
        step=step,
        adam_step=step,
        world_size=ranks,
        plan="p",
        config={"optim": {"lr": 1.0}},
        base={"path": "m", "fingerprint": "f"},
        shapes=SHAPES,
        files=files,
        validation_loss=loss,
        versions={},
    )
    return finish(aside, manifest)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_any_range_can_be_read_whoever_wrote_it(tmp_path: Path, ranks: int) -> None:
    reader = Reader(write(tmp_path, 1, ranks))
    for kind in checkpoint.KINDS:
        for name in SHAPES:
            whole = value(kind, name).flatten()
            for start in range(len(whole)):
                for end in range(start, len(whole) + 1):
                    assert reader.read(kind, name, start, end - start).equal(whole[start:end])


def test_full_tensors_have_their_shapes(tmp_path: Path) -> None:
    tensors = dict(full_tensors(write(tmp_path, 1, 3)))
    assert set(tensors) == set(SHAPES)
    assert all(tensor.equal(value("weight", name)) for name, tensor in tensors.items())


def test_a_range_that_is_not_held_is_an_error(tmp_path: Path) -> None:
    reader = Reader(write(tmp_path, 1))
    with pytest.raises(CheckpointError, match="holds 1 of 3 elements of weight of b"):
        reader.read("weight", "b", 3, 3)
    with pytest.raises(CheckpointError, match="holds 0 of 1"):
        reader.read("weight", "c", 0, 1)


def test_the_newest_whole_one_is_chosen_and_each_other_is_named(tmp_path: Path) -> None:
    write(tmp_path, 9)
    good = write(tmp_path, 10)
    flipped, cut, gone, unfinished = (write(tmp_path, step) for step in (100, 200, 300, 400))
    content = bytearray((flipped / "rank-00001.safetensors").read_bytes())
    content[-1] ^= 1
    (flipped / "rank-00001.safetensors").write_bytes(content)
    (cut / "rank-00000.safetensors").write_bytes(b"short")
    (gone / "rank-00000.safetensors").unlink()
    (unfinished / "manifest.json").unlink()
    said: list[str] = []
    assert newest(tmp_path, said.append) == good
    reasons = ("manifest.json", "missing", "5 bytes", "SHA-256", "older than step-000010")
    assert [words for line, words in zip(said, reasons, strict=True) if words not in line] == []
    assert problem(good) is None


def test_a_folder_that_a_person_renamed_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 6).rename(tmp_path / "checkpoints/step-000006.kept")
    assert names(tmp_path) == [3]
    assert newest(tmp_path) == tmp_path / "checkpoints/step-000003"


def test_a_checkpoint_of_another_format_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 7}))
    with pytest.raises(CheckpointError, match="format 7, this version reads 1 to 3"):
        Manifest.load(folder)


def test_an_unfinished_one_is_no_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
    aside = tmp_path / "checkpoints/.step-000003.tmp"
    aside.mkdir(parents=True)
    (aside / "rank-00000.safetensors").write_bytes(b"x")
    kept = write(tmp_path, 2)
    assert newest(tmp_path) == kept
    keeping.clear_unfinished(tmp_path)
    assert not aside.exists()
    assert kept.exists()


def names(run: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return [keeping.step_of(folder) for folder in found(run)]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, 0.9), (2, 0.3), (3, None), (4, 0.4), (5, 0.5), (6, None), (7, None)):
        write(tmp_path, step, loss=loss)
    # What claims to be newer than the run is: it was damaged and passed over, and saves no other one's place.
    write(tmp_path, 90)
    gone = prune(tmp_path, keep_last=2, keep_best=2, upto=7)
    assert names(tmp_path) == [2, 4, 6, 7, 90]
    assert all(folder.is_dir() for folder in gone)
    remove(gone)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob(".*")) == []


@pytest.mark.parametrize("left", [None, b"", b'{"step": 4, "loss": 0.1', b"[4]", b"\xff"])
def test_the_best_is_known_also_without_a_whole_best_json(tmp_path: Path, left: bytes | None) -> None:
    assert best_known(tmp_path) == {}
    for step, loss in ((2, 0.9), (4, 0.3), (6, 0.5), (8, None)):
        write(tmp_path, step, loss=loss)
    if left is not None:
        (tmp_path / "best.json").write_bytes(left)
    assert best_known(tmp_path) == {"step": 4, "checkpoint": "checkpoints/step-000004", "loss": 0.3}
    told = {"step": 1, "checkpoint": "checkpoints/step-000001", "loss": 0.2}
    (tmp_path / "best.json").write_text(json.dumps(told))
    assert best_known(tmp_path) == told


@pytest.mark.parametrize("file", ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"])
def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, file: str) -> None:
    folder = write(tmp_path, 3, loss=0.25)
    content = (folder / file).read_bytes()
    assert problem(folder) is None
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (folder / file).write_bytes(flipped)
        assert problem(folder) is not None, f"byte {place} of {file}"


def test_what_was_written_is_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(write(tmp_path, 1, 1) / "rank-00000.safetensors")
    assert set(tensors) == {f"{kind}:{name}@0" for kind in checkpoint.KINDS for name in SHAPES}
    assert all(tensors[f"{kind}:a@0"].equal(value(kind, "a").flatten()) for kind in checkpoint.KINDS)


def test_the_command_lists_verifies_and_prunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, loss in ((1, 0.5), (2, 0.25), (3, 0.75), (4, None), (5, 0.4)):
        write(tmp_path, step, loss=loss)
    victim = tmp_path / "checkpoints/step-000005/rank-00000.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert keeping.main(["list", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"step-{step:06d}" for step in (1, 2, 3, 4, 5)]
    assert [line.endswith("best") for line in lines] == [False, True, False, False, False]
    assert keeping.main(["verify", str(tmp_path)]) == keeping.DAMAGED
    assert "step-000005  not whole" in capsys.readouterr().out
    assert keeping.main(["prune", str(tmp_path), "--keep-last", "1", "--keep-best", "1"]) == 0
    # The damaged one is neither counted nor removed.
    assert names(tmp_path) == [2, 4, 5]
    assert "step-000005  left alone" in capsys.readouterr().out
    assert keeping.main(["list", str(tmp_path / "none")]) == keeping.USER_ERROR
    assert "has no checkpoints" in capsys.readouterr().err


def test_a_disk_without_room_is_told_with_both_figures(tmp_path: Path) -> None:
    assert keeping.lacking_space(tmp_path, 1) is None
    assert "GB free and a checkpoint takes 1000000.00 GB" in str(keeping.lacking_space(tmp_path, 10**15))


def test_a_model_folder_is_recognised_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(300000))
    first = checkpoint.fingerprint_model(tmp_path)
    (tmp_path / "notes.txt").write_text("beside the point")
    assert checkpoint.fingerprint_model(tmp_path) == first
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(200000)
        file.write(b"x")
    assert checkpoint.fingerprint_model(tmp_path) != first
