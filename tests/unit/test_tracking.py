"""Which W&B mode is taken, and that its troubles end nothing."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from train.config_schema import WandbSection
from train.tracking import Tracker, choose_mode


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "environment", "mode"),
    [
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("auto", {"WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "disabled"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {}, "offline"),
    ],
)
def test_auto_takes_the_environment_then_a_key_then_offline(
    home: Path, setting: str, environment: dict[str, str], mode: str
) -> None:
    assert choose_mode(setting, environment) == mode


def test_a_key_in_netrc_counts(home: Path) -> None:
    (home / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (home / ".netrc").chmod(0o600)
    assert choose_mode("auto", {}) == "online"
    assert choose_mode("auto", {"WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"


def test_a_failing_service_is_told_once_and_training_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    fake = SimpleNamespace(log=refuse, finish=refuse, dir=str(home))
    module = SimpleNamespace(init=lambda **kwargs: fake, Settings=lambda **kwargs: None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = Tracker(WandbSection(mode="offline"), home, "name", {})
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 1.0})
    tracker.finish()
    assert capsys.readouterr().out.count("ConnectionError: no route") == 1


def test_a_run_keeps_its_id(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    module = SimpleNamespace(init=lambda **kwargs: ids.append(kwargs["id"]), Settings=lambda **kwargs: None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for _ in range(2):
        Tracker(WandbSection(mode="offline"), home, "name", {})
    assert ids[0] == ids[1]


def test_disabled_never_imports_wandb(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = Tracker(WandbSection(mode="disabled"), home, "name", {})
    tracker.log(1, {"loss": 1.0})
    tracker.finish()
