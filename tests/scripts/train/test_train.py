"""Training must learn, and an interrupted run must end where an uninterrupted one does."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import msgspec
import pytest
import torch
import yaml
from msgspec.structs import replace
from transformers import AutoTokenizer

from marctl.build.adopt import adopt
from marctl.build.recipe import Training, TrainingRun, Version, read_version
from marctl.build.weights import load_weights
from marctl.core.errors import UserError
from marctl.train import loop as train_module
from marctl.train.batches import Example, Step, tokenize
from marctl.train.job import contrasts, draw, train_version
from marctl.train.loop import step_loss
from marctl.train.questions import Dataset, LabelledQuestion, find_split
from marctl_handlers.tasks.multiple_choice.reference import plain_probabilities
from marctl_handlers.text.tokenization import PairEncoder, Row
from tests.tiny_models import CORPUS, save_tiny

WORDS = [word for word in " ".join(CORPUS).split() if word != "knife,"]


def write_data(folder: Path, count: int = 160) -> Path:
    """Questions whose right choice is the one with a knife in it, 2 or 3 choices each."""
    dice = random.Random(0)
    lines = []
    for i in range(count):
        choices = [" ".join(dice.sample(WORDS, 2)) for _ in range(2 + i % 2)]
        label = dice.randrange(len(choices))
        choices[label] += " knife"
        lines.append(json.dumps({"question": " ".join(dice.sample(WORDS, 3)), "choices": choices, "label": label}))
    (folder / "knives").mkdir(parents=True)
    (folder / "knives" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def recipe(
    tmp_path: Path, base: Path, version: str = "2.0", layers: list[int] | None = None, **training: object
) -> Version:
    adopted = adopt(base, "quiz", version, tmp_path / "recipes", precision="float32")
    path = adopted.folder / "model.yaml"
    content = yaml.safe_load(path.read_text())
    content["weights"] |= {"delta": "delta.safetensors"} | ({"layers": layers} if layers is not None else {})
    run = {"epochs": 3, "learning_rate": 0.003, "seed": 1}
    content["training"] = {"runs": [run], "questions_per_step": 16, **training}
    path.write_text(yaml.safe_dump(content))
    return read_version(adopted.folder)


def accuracy(version: Version, data: Path) -> float:
    model, tokenizer = load_weights(version)
    dataset = find_split(data, "train")[0]
    hits = 0
    for question in dataset.questions:
        asked = {"question": question.question, "choices": question.choices}
        probabilities = plain_probabilities(model, tokenizer, asked, 64)
        hits += probabilities.index(max(probabilities)) == question.label
    return hits / len(dataset.questions)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("base") / "model", scale=2.0)


def test_training_learns_and_a_student_learns_from_its_teacher(tmp_path: Path, base: Path) -> None:
    data = write_data(tmp_path / "data")
    teacher = recipe(tmp_path, base)
    path = train_version(teacher, data, tmp_path / "work", lambda _: None)
    assert path == teacher.folder / "delta.safetensors"
    teacher = read_version(teacher.folder)
    assert accuracy(teacher, data) > 0.9
    assert teacher.metadata["training_files"]["knives"]["questions"] == 160
    assert "fine-tuned, 3 epochs" in (teacher.folder / "MODEL_CARD.md").read_text()
    student = recipe(tmp_path, base, "1.0", layers=[0], start="2.0", teacher="2.0", noisy_copies=1)
    train_version(student, data, tmp_path / "work-1.0", lambda _: None)
    student = read_version(student.folder)
    assert load_weights(student)[0].config.num_hidden_layers == 1
    assert accuracy(student, data) > 0.9


def test_a_version_starts_from_another_that_is_trained_first(tmp_path: Path, base: Path) -> None:
    data = write_data(tmp_path / "data")
    start = recipe(tmp_path, base, "start")
    standing = {"runs": [{"epochs": 1, "learning_rate": 0.0, "seed": 1}]}
    version = recipe(tmp_path, base, start="start", **standing)
    train_version(version, data, tmp_path / "work", lambda _: None)
    assert accuracy(read_version(start.folder), data) > 0.9
    version = read_version(version.folder)
    begun, found = (load_weights(read_version(folder))[0].state_dict() for folder in (start.folder, version.folder))
    for name, weight in begun.items():
        assert torch.allclose(weight, found[name], atol=2e-3), name
    delta = hashlib.sha256((start.folder / "delta.safetensors").read_bytes()).hexdigest()
    assert version.metadata["trained_with"]["start"] == {"start": {"delta_sha256": delta}}
    assert "fine-tuned, starting from start, 1 epoch," in (version.folder / "MODEL_CARD.md").read_text()
    shallow = recipe(tmp_path, base, "shallow", layers=[1], start="start", **standing)
    train_version(shallow, data, tmp_path / "work-shallow", lambda _: None)
    [last] = [weight for name, weight in begun.items() if name.endswith("layer.1.output.dense.weight")]
    kept = load_weights(read_version(shallow.folder))[0].state_dict()
    [found_last] = [weight for name, weight in kept.items() if name.endswith("layer.0.output.dense.weight")]
    assert torch.allclose(last, found_last, atol=2e-3)


def test_what_cannot_go_on_from_a_start_is_refused_before_that_is_trained(tmp_path: Path, base: Path) -> None:
    data = write_data(tmp_path / "data", 8)
    version = recipe(tmp_path, base, start="start")
    start = recipe(tmp_path, save_tiny("bert", tmp_path / "other"), "start")
    with pytest.raises(UserError, match=r"training\.start: quiz start has other base weights than quiz 2\.0"):
        train_version(version, data, tmp_path / "work", lambda _: None)
    assert not (start.folder / "delta.safetensors").exists()
    version = recipe(tmp_path / "unknown", base, start="start", contrast={"knives": "forks"})
    start = recipe(tmp_path / "unknown", base, "start")
    with pytest.raises(UserError, match=r"training\.contrast: no data set forks"):
        train_version(version, data, tmp_path / "unknown" / "work", lambda _: None)
    assert not (start.folder / "delta.safetensors").exists()
    version = recipe(tmp_path / "again", base, start="start")
    recipe(tmp_path / "again", base, "start", layers=[0])
    with pytest.raises(UserError, match=r"training\.start: quiz start keeps other layers than quiz 2\.0"):
        train_version(version, data, tmp_path / "again" / "work", lambda _: None)
    version = recipe(tmp_path / "itself", base, teacher="2.0")
    with pytest.raises(UserError, match=r"quiz 2\.0: its teacher 2\.0 is quiz 2\.0 itself; name another version"):
        train_version(version, data, tmp_path / "itself" / "work", lambda _: None)


def test_a_teacher_of_another_family_is_trained_first_and_asked_where_the_recipe_says(
    tmp_path: Path, base: Path
) -> None:
    data = write_data(tmp_path / "data")
    (data / "spoons").mkdir()
    (data / "spoons" / "train.jsonl").write_text((data / "knives" / "train.jsonl").read_text())
    other = save_tiny("roberta", tmp_path / "roberta", scale=2.0)
    draw = {"knives": 320}
    teacher = recipe(tmp_path / "teachers", other, "teacher", draw=draw)
    drawn = {"knives": 160, "spoons": 40}
    student = recipe(tmp_path, base, draw=drawn, teacher={"knives": str(teacher.folder)})
    train_version(student, data, tmp_path / "work", lambda _: None)
    assert accuracy(read_version(teacher.folder), data) > 0.9
    assert accuracy(read_version(student.folder), data) > 0.9
    logits = torch.load(tmp_path / "work" / "teacher.pt", weights_only=True)
    assert [one is not None for one in logits] == [True] * 160 + [False] * 40
    assert list(read_version(teacher.folder).metadata["training_files"]) == ["knives"]
    delta = hashlib.sha256((teacher.folder / "delta.safetensors").read_bytes()).hexdigest()
    noted = read_version(student.folder).metadata["trained_with"]["teachers"]
    assert noted == {"../../teachers/recipes/quiz/teacher": {"delta_sha256": delta, "taught": ["knives"]}}
    assert f"distilled on knives from {teacher.folder}" in (student.folder / "MODEL_CARD.md").read_text()


def test_every_set_is_answered_by_the_teacher_that_the_recipe_gives_it(tmp_path: Path, base: Path) -> None:
    data = write_data(tmp_path / "data", 20)
    for name in ("forks", "spoons"):
        (data / name).mkdir()
        (data / name / "train.jsonl").write_text((data / "knives" / "train.jsonl").read_text())
    families = {"knives": "roberta", "forks": "bert"}
    teachers = {}
    for dataset, family in families.items():
        other = recipe(tmp_path / dataset, save_tiny(family, tmp_path / family, scale=2.0), "teacher")
        teachers[dataset] = str(other.folder)
    student = recipe(tmp_path, base, teacher=teachers)
    train_version(student, data, tmp_path / "work", lambda _: None)
    logits = torch.load(tmp_path / "work" / "teacher.pt", weights_only=True)
    forks, knives, spoons = logits[:20], logits[20:40], logits[40:]
    assert spoons == [None] * 20
    for dataset, found in (("forks", forks), ("knives", knives)):
        model, tokenizer = load_weights(read_version(Path(teachers[dataset])))
        for question, given in zip(find_split(data, "train")[0].questions, found, strict=True):
            asked = {"question": question.question, "choices": question.choices}
            expected = torch.tensor(plain_probabilities(model, tokenizer, asked, 64))
            assert torch.softmax(given, -1).sub(expected).abs().max() < 0.05


def test_a_teacher_of_a_set_that_is_not_drawn_is_refused(tmp_path: Path, base: Path) -> None:
    student = recipe(tmp_path, base, teacher={"forks": "teacher"})
    with pytest.raises(UserError, match=r"training\.teacher: no data set forks; drawn are knives"):
        train_version(student, write_data(tmp_path / "data", 8), tmp_path / "work", lambda _: None)


def test_without_a_teacher_the_label_alone_counts_and_without_a_label_the_teacher() -> None:
    rows = [Row([1], 1, False)] * 2
    step = Step.of([Example(rows, 1, 0), Example(rows, 0, 1), Example(rows, None, 2)], 0)
    settings = Training([TrainingRun(1, 0.1, 1)], teacher_weight=0.75, temperature=1.0)
    logits = torch.tensor([[0.5, -1.0], [2.0, 1.0], [0.5, -1.0]])
    taught = torch.tensor([3.0, -3.0])
    loss = step_loss(logits, step, settings, [taught, None, taught])
    labels = -torch.log_softmax(logits[:2], -1)[[0, 1], [1, 0]]
    share = torch.softmax(taught, -1)
    divergence = (share * (torch.log(share) - torch.log_softmax(logits[0], -1))).sum()
    mean = (0.75 * divergence + 0.25 * labels[0] + labels[1] + divergence) / 3
    assert loss.item() == pytest.approx(mean.item(), abs=1e-6)


def test_a_right_choice_is_held_against_the_contexts_beside_its_own(base: Path) -> None:
    def dataset(name: str, *questions: LabelledQuestion) -> Dataset:
        return Dataset(name, Path(), "", list(questions))

    statements = dataset("statements", LabelledQuestion("which", ("a knife", "a pillow"), 0))
    known = LabelledQuestion("why", ("knife", "cut the bread"), 1, context="a knife")
    alone = LabelledQuestion("which", ("a fork",), 0)
    statements.questions.append(alone)
    reasons = dataset("reasons", known, replace(known, context="told nowhere"), replace(known, context="a fork"))
    training = Training([TrainingRun(1, 0.1, 1)], contrast={"reasons": "statements"})
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoder = PairEncoder(tokenizer, 64)
    asked = draw([reasons, statements], training)
    [found] = tokenize(encoder, contrasts([reasons, statements], training, asked), 7)
    assert (found.label, found.index) == (0, 7)
    texts = [tokenizer.decode(row.ids, skip_special_tokens=True) for row in found.rows]
    assert texts == ["a knife why cut the bread", "a pillow why cut the bread"]
    with pytest.raises(UserError, match=r"training\.contrast: no data set forks; there are reasons, statements"):
        contrasts([reasons, statements], replace(training, contrast={"reasons": "forks"}), asked)
    with pytest.raises(UserError, match="no question drawn of statements has a context that is a choice in reasons"):
        contrasts([reasons, statements], replace(training, contrast={"statements": "reasons"}), asked)


def test_masks_fall_on_half_of_the_questions_and_on_no_special_token() -> None:
    ids = [1, *range(10, 60), 2]
    step = Step.of([Example([Row(ids, 20, False)] * 2, 0, i) for i in range(200)], 0)
    torch.manual_seed(0)
    hit = step.masked(0.2, 3, torch.tensor([0, 1, 2])).input_ids == 3
    assert not hit[..., [0, -1]].any()
    chosen = hit.any(-1).any(-1)
    assert chosen.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert hit[chosen][..., 1:-1].float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_masks_for_a_tokenizer_without_a_mask_token_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path / "maskless")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)
    version = recipe(tmp_path, folder, input_mask_share=0.1)
    with pytest.raises(UserError, match="its tokenizer has no mask token; take input_mask_share"):
        train_version(version, write_data(tmp_path / "data", 8), tmp_path / "work", lambda _: None)


def test_training_learns_beside_masks_and_contrasts(tmp_path: Path, base: Path) -> None:
    data = write_data(tmp_path / "data")
    questions = [msgspec.json.decode(line) for line in (data / "knives" / "train.jsonl").read_text().splitlines()]
    (data / "reasons").mkdir()
    reasons = [
        one | {"context": one["choices"][one["label"]], "choices": ["knife", "bread", "water"]} for one in questions
    ]
    (data / "reasons" / "train.jsonl").write_bytes(b"\n".join(msgspec.json.encode(one) for one in reasons))
    version = recipe(tmp_path, base, contrast={"reasons": "knives"}, input_mask_share=0.1)
    train_version(version, data, tmp_path / "work", lambda _: None)
    assert accuracy(read_version(version.folder), data) > 0.9


def test_drawing_repeats_a_set_that_is_too_small_and_takes_part_of_a_large_one(tmp_path: Path) -> None:
    [dataset] = find_split(write_data(tmp_path, 10), "train")
    training = Training([TrainingRun(1, 0.1, 1)], draw={"knives": 25})
    found = [one.question for one in draw([dataset], training)]
    assert found[:20] == dataset.questions * 2
    assert len(set(found[20:])) == 5
    with pytest.raises(UserError, match="no data set forks; there are knives"):
        draw([dataset], Training([TrainingRun(1, 0.1, 1)], draw={"forks": 1}))


def test_a_teacher_with_another_tokenizer_cannot_label_noisy_copies(tmp_path: Path, base: Path) -> None:
    data = write_data(tmp_path / "data", 8)
    teacher = recipe(tmp_path / "teachers", save_tiny("roberta", tmp_path / "roberta"), "teacher")
    student = recipe(tmp_path, base, teacher=str(teacher.folder), noisy_copies=1)
    with pytest.raises(UserError, match="another tokenizer"):
        train_version(student, data, tmp_path / "work", lambda _: None)


def test_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data", 64)
    version = recipe(tmp_path, base, input_mask_share=0.2)
    whole = train_version(version, data, tmp_path / "whole", lambda _: None).read_bytes()
    monkeypatch.setattr(train_module, "CHECKPOINT_EVERY_STEPS", 4)
    real, calls = train_module.step_loss, 0

    def stop_at_seventh(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]  # passed through as they came

    monkeypatch.setattr(train_module, "step_loss", stop_at_seventh)
    with pytest.raises(KeyboardInterrupt):
        train_version(version, data, tmp_path / "broken", lambda _: None)
    monkeypatch.setattr(train_module, "step_loss", real)
    resumed = train_version(version, data, tmp_path / "broken", lambda _: None).read_bytes()
    assert resumed == whole


def test_a_checkpoint_of_another_recipe_or_other_data_is_not_gone_on_with(tmp_path: Path, base: Path) -> None:
    data, work = write_data(tmp_path / "data", 16), tmp_path / "work"
    version = recipe(tmp_path, base)
    first = train_version(version, data, work, lambda _: None).read_bytes()
    assert train_version(version, data, work, lambda _: None).read_bytes() == first
    path = version.folder / "model.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.003", "learning_rate: 0.002"))
    version = read_version(version.folder)
    with pytest.raises(UserError, match=r"work: its checkpoint was made with other training; forget it \(--restart\)"):
        train_version(version, data, work, lambda _: None)
    assert (version.folder / "delta.safetensors").read_bytes() == first
    (work / "run-1.pt").unlink()
    assert train_version(version, data, work, lambda _: None).read_bytes() != first
    questions = data / "knives" / "train.jsonl"
    questions.write_text("".join(questions.read_text().splitlines(keepends=True)[:8]))
    with pytest.raises(UserError, match="its checkpoint was made with other data;"):
        train_version(version, data, work, lambda _: None)


def test_several_runs_are_averaged(tmp_path: Path, base: Path) -> None:
    data = write_data(tmp_path / "data", 32)
    one, two = ({"epochs": 1, "learning_rate": 0.003, "seed": seed} for seed in (1, 2))
    weights = {}
    for name, runs in (("one", [one]), ("two", [two]), ("both", [one, two])):
        version = recipe(tmp_path, base, name, runs=runs)
        train_version(version, data, tmp_path / f"work-{name}", lambda _: None)
        weights[name] = load_weights(read_version(version.folder))[0].state_dict()
    for name, both in weights["both"].items():
        torch.testing.assert_close(both, (weights["one"][name] + weights["two"][name]) / 2, atol=2e-4, rtol=0)


def test_recipe_without_training_says_so(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UserError, match="its recipe does not say how to train it"):
        train_version(adopt(base, "quiz", "1.0", tmp_path), tmp_path, tmp_path / "work", lambda _: None)


def test_missing_data_says_where_it_was_looked_for(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UserError, match=r"no \*/train\.jsonl"):
        train_version(recipe(tmp_path, base), tmp_path / "nowhere", tmp_path / "work", lambda _: None)
