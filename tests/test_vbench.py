"""Videos for the public VBench tool: names, counts, resuming."""

import json
from pathlib import Path

import av
import pytest
from tiny import tiny_config, tiny_model, write_weights

from engine.__main__ import main
from engine.config import PRESETS
from engine.live.generator import Generator
from engine.training import vbench


def test_every_prompt_is_wanted_five_times(tmp_path: Path) -> None:
    """Empty lines and repeated prompts do not count."""
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball\n\na blue boat, drifting\na red ball\n", encoding="utf-8")
    assert vbench.read_prompts(path) == [("a red ball", 5), ("a blue boat, drifting", 5)]


def test_prompts_for_flicker_are_wanted_more_often(tmp_path: Path) -> None:
    """The tool's own list says which dimensions a prompt is for; flicker is measured on 25 videos."""
    path = tmp_path / "VBench_full_info.json"
    entries = [
        {"prompt_en": "a ball", "dimension": ["color"]},
        {"prompt_en": "a boat", "dimension": ["temporal_flickering"]},
    ]
    path.write_text(json.dumps(entries))
    assert vbench.read_prompts(path) == [("a ball", 5), ("a boat", 25)]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.txt", b"caf\xe9", "UTF-8"),
        ("p.txt", b"a ball\nthis / that", "prompt 2 cannot be part of a file name"),
        ("p.txt", b"x" * 240, "prompt 1 cannot be part of a file name"),
        ("p.txt", b"a\x07ball", "prompt 1: the prompt has control characters"),
        ("p.json", b"{", "cannot be read"),
        ("p.json", b'[{"text": "a"}]', "entry 1 has no prompt_en"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    """The error names the file and the prompt."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        vbench.read_prompts(path)


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(ValueError, match=r"none\.txt cannot be read"):
        vbench.read_prompts(tmp_path / "none.txt")


def test_videos_have_the_names_that_the_tool_expects(tmp_path: Path) -> None:
    """Samples differ, are 49 frames long, and those that exist are not made again."""
    generator = Generator(tiny_model())
    out = tmp_path / "out"
    assert vbench.write_videos(generator, [("a red ball", 2)], out, 0) == 2
    assert {path.name for path in out.iterdir()} == {"a red ball-0.mp4", "a red ball-1.mp4"}
    assert (out / "a red ball-0.mp4").read_bytes() != (out / "a red ball-1.mp4").read_bytes()
    with av.open(str(out / "a red ball-1.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 49
    (out / "a red ball-1.mp4").unlink()
    assert vbench.write_videos(generator, [("a red ball", 2)], out, 0) == 1


def test_the_command_writes_videos_of_any_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate --vbench` needs prompts, no judge and no figures."""
    monkeypatch.setitem(PRESETS, "tiny", tiny_config)
    monkeypatch.setattr(vbench, "SAMPLES", 1)
    write_weights(tmp_path / "weights")
    (tmp_path / "prompts.txt").write_text("the sea\n")
    given = ["evaluate", "--preset", "tiny", "--weights", str(tmp_path / "weights"), "--vbench", str(tmp_path / "out")]
    assert main([*given, "--prompts", str(tmp_path / "prompts.txt")]) == 0
    assert (tmp_path / "out" / "the sea-0.mp4").stat().st_size > 500
    assert main([*given, "--prompts", str(tmp_path / "none.txt")]) == 2
    with pytest.raises(SystemExit):
        main(given)
    assert "--vbench and --prompts belong together" in capsys.readouterr().err
