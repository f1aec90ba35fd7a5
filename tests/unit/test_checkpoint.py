"""Checkpoints: whole or not there, read by ranges, pruned to the newest and the best."""

import json
from pathlib import Path

import pytest
import torch

from train import checkpoint
from train.checkpoint import CheckpointError, Manifest, Reader, Slice, finish, full_tensors, newest, problem, prune

SHAPES = {"a": [3, 5], "b": [4]}


def value(kind: str, name: str) -> torch.Tensor:
    """Distinct numbers for each kind and parameter, in the parameter's shape."""
    size = torch.Size(SHAPES[name]).numel()
    start = 1000 * checkpoint.KINDS.index(kind) + 100 * sorted(SHAPES).index(name)
    return torch.arange(start, start + size, dtype=torch.float32).reshape(SHAPES[name])


def write(run: Path, step: int, ranks: int = 2) -> Path:
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
        validation_loss=None,
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
    assert len(said) == 4
    for line, words in zip(said, ("manifest.json", "missing", "5 bytes", "SHA-256"), strict=True):
        assert words in line
    assert problem(good) is None


def test_a_checkpoint_of_another_format_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 7}))
    with pytest.raises(CheckpointError, match="format 7, this version reads 1"):
        Manifest.load(folder)


def test_an_unfinished_one_is_no_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
    aside = tmp_path / "checkpoints/.step-000003.tmp"
    aside.mkdir(parents=True)
    (aside / "rank-00000.safetensors").write_bytes(b"x")
    kept = write(tmp_path, 2)
    assert newest(tmp_path) == kept
    checkpoint.clear_unfinished(tmp_path)
    assert not aside.exists()
    assert kept.exists()


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    prune(tmp_path, keep_last=2, best="step-000002")
    assert [folder.name for folder in checkpoint.found(tmp_path)] == ["step-000002", "step-000004", "step-000005"]


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
