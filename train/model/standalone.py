"""The model's code as files beside exported weights, so that a folder loads where this project is not installed."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What the Auto classes of transformers ask for by these names.
RENAMED = {
    "configuration": "configuration_phi3_v",
    "modeling": "modeling_phi3_v",
    "processing": "processing_phi3_v",
}
# The configuration too from the file of the model: transformers makes a module of each file that is named here, and
# two would be two classes.
AUTO_MAP = {
    "AutoConfig": "modeling_phi3_v.Phi3VConfig",
    "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
    "AutoModelForImageTextToText": "modeling_phi3_v.Phi3VForCausalLM",
}
PROCESSOR_MAP = {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"}
_IMPORT = re.compile(r"^(\s*)from (data|train\.model)\.(\w+) import", re.MULTILINE)
_OTHERS = re.compile(r"^\s*(?:from|import) (?:data|train)\b.*$", re.MULTILINE)


def model_code() -> dict[str, str]:
    """The files that the model and its processor consist of, by name, importing one another from their own folder.

    They are this project's own, with nothing changed but where they import each other from.
    """
    files: dict[str, str] = {}
    waiting = ["train/model/modeling.py", "train/model/processing.py"]
    while waiting:
        path = waiting.pop()
        name = _file_name(Path(path).stem)
        if name in files:
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        waiting += [f"{package.replace('.', '/')}/{module}.py" for _, package, module in _IMPORT.findall(text)]
        text = _IMPORT.sub(lambda found: f"{found[1]}from .{_file_name(found[3])[:-3]} import", text)
        left = _OTHERS.search(text)
        assert left is None, f"{path}: {left[0] if left else ''} does not work outside the project"
        files[name] = text
    return dict(sorted(files.items()))


def _file_name(module: str) -> str:
    return f"{RENAMED.get(module, module)}.py"
