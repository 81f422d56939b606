"""The training recipes in ``examples/train/``: what they train on, what they minimize, and the whole way to a bundle."""

from __future__ import annotations

import importlib
import json
import runpy
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from crossforge.runtime import Reranker
from crossforge.runtime.records import Passage, QueryRecord
from support.tiny_models import MAX_LENGTH, save_tiny_model

pytest.importorskip("datasets", reason="the extra train is not installed")
pytest.importorskip("accelerate", reason="the extra train is not installed")

SCRIPTS = Path(__file__).resolve().parent.parent / "examples" / "train"
SUBJECTS = (
    *("Berlin", "Hamburg", "Schubert", "copper", "bread", "whales"),
    *("roses", "volcanoes", "lighthouses", "oranges", "contracts", "morphine"),
)


@pytest.fixture(scope="module", autouse=True)
def scripts_on_the_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return importlib.import_module("recipe")


@pytest.fixture(scope="module")
def training() -> ModuleType:
    return importlib.import_module("training")


@pytest.fixture(scope="module")
def mining() -> ModuleType:
    return importlib.import_module("mining")


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def records() -> list[QueryRecord]:
    """Two questions a passage; each lists three passages, its own in the second place."""
    passages = [Passage(id=f"p{i}", text=f"All there is to know about {name}.") for i, name in enumerate(SUBJECTS)]
    return [
        QueryRecord(
            qid=f"q{i}-{word}",
            query=f"{word} of {SUBJECTS[i]}?",
            passages=(passages[i - 1], passages[i], passages[i - 2]),
        )
        for i in range(len(SUBJECTS))
        for word in ("price", "history")
    ]


@pytest.fixture(scope="module")
def judgements(records: list[QueryRecord]) -> dict[str, dict[str, int]]:
    return {record.qid: {record.passages[1].id: 1, record.passages[0].id: 0} for record in records}


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory, records: list[QueryRecord], judgements: dict[str, dict[str, int]]
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    run, qrels = folder / "run.jsonl", folder / "qrels.txt"
    run.write_text(
        "".join(
            json.dumps({"qid": r.qid, "query": r.query, "passages": [{"id": p.id, "text": p.text} for p in r.passages]})
            + "\n"
            for r in records
        )
    )
    qrels.write_text("".join(f"{qid} 0 {i} {grade}\n" for qid, grades in judgements.items() for i, grade in grades.items()))
    return run, qrels


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_no_passage_is_on_both_sides(
    mining: ModuleType, records: list[QueryRecord], judgements: dict[str, dict[str, int]], fraction: float
) -> None:
    split = mining.split_by_passage(records, judgements, fraction=fraction)

    training = {passage for _, passage in split.pairs} | set(split.corpus)
    held_out = {passage.text for record in split.held_out for passage in record.passages}
    assert training
    assert held_out
    assert not training & held_out
    assert not {query for query, _ in split.pairs} & {record.query for record in split.held_out}
    assert len(split.pairs) + len(split.held_out) == len(records)
    for record in split.held_out:  # the order of the first stage, and the relevant passage still there
        ids = [passage.id for passage in record.passages]
        original = next(r for r in records if r.qid == record.qid)
        assert ids == [p.id for p in original.passages if p.id in ids]
        assert original.passages[1].id in ids


def test_a_split_that_holds_nothing_out_is_refused(
    mining: ModuleType, records: list[QueryRecord], judgements: dict[str, dict[str, int]]
) -> None:
    from crossforge.profiles import InputError

    with pytest.raises(InputError, match="one side without a question"):
        mining.split_by_passage(records, judgements, fraction=0.0)


@pytest.mark.slow
def test_negatives_are_neither_relevant_nor_repeated_nor_held_out(
    mining: ModuleType, tiny_base: Path, records: list[QueryRecord], judgements: dict[str, dict[str, int]]
) -> None:
    from sentence_transformers import SentenceTransformer

    # A question with two relevant passages: neither may become a negative of the other.
    twice = {qid: dict.fromkeys(grades, 1) if "price" in qid else grades for qid, grades in judgements.items()}
    split = mining.split_by_passage(records, twice, fraction=0.3)
    groups = mining.mine_negatives(split, SentenceTransformer(str(tiny_base), device="cpu"), negatives=3)

    relevant: dict[str, set[str]] = {}
    for query, passage in split.pairs:
        relevant.setdefault(query, set()).add(passage)
    assert {group.query for group in groups} == set(relevant)
    assert max(map(len, relevant.values())) == 2
    for group in groups:
        assert group.positive in relevant[group.query]
        assert len(set(group.negatives)) == 3
        assert not relevant[group.query] & set(group.negatives)
        assert set(group.negatives) <= set(split.corpus)


def test_more_negatives_than_passages_are_refused(
    mining: ModuleType, records: list[QueryRecord], judgements: dict[str, dict[str, int]]
) -> None:
    from crossforge.profiles import InputError

    split = mining.split_by_passage(records, judgements, fraction=0.3)
    with pytest.raises(InputError, match="too few passages"):
        mining.mine_negatives(split, None, negatives=len(split.corpus))


@pytest.mark.slow
def test_losses_are_what_their_names_say(
    training: ModuleType, recipe: ModuleType, mining: ModuleType, tiny_base: Path
) -> None:
    import torch
    from sentence_transformers.cross_encoder.data_collator import CrossEncoderDataCollator
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    groups = [
        mining.Group(query="whales?", positive="Whales are mammals.", negatives=("Bees visit flowers.", "Bread rises.")),
        mining.Group(
            query="bread?", positive="Yeast turns sugar.", negatives=("Whales breathe air.", "Oranges and lemons.")
        ),
    ]

    def batch(loss: object) -> tuple[list[list[object]], object]:
        collated = CrossEncoderDataCollator(preprocess_fn=None)(list(training.training_set(groups, loss)))
        labels = collated.pop("label")
        return list(collated.values()), labels

    options = training.TrainingOptions(loss=training.Loss.LCE, max_length=MAX_LENGTH)
    model = training.load_base(str(tiny_base), options)
    model.eval()
    logits = [
        torch.tensor(recipe.logits_of(model)(group.query, [group.positive, *group.negatives]), dtype=torch.float64)
        for group in groups
    ]
    with torch.no_grad():
        lce = training.training_loss(model, training.Loss.LCE)(*batch(training.Loss.LCE))
        bce = training.training_loss(model, training.Loss.BCE)(*batch(training.Loss.BCE))
        inputs, _ = batch(training.Loss.LCE)
        plain = ListNetLoss(model)(inputs, [torch.tensor([1.0, 0.0, 0.0])] * 2)

    chosen = [row[0].exp() / row.exp().sum() for row in logits]
    assert float(lce) == pytest.approx(float(-sum(p.log() for p in chosen) / 2), abs=1e-5)
    right = [[row[0].sigmoid(), *(1 - row[1:].sigmoid())] for row in logits]
    assert float(bce) == pytest.approx(float(-sum(p.log() for row in right for p in row) / 6), abs=1e-5)
    assert abs(float(plain) - float(lce)) > 0.01  # why the labels are not 1 and 0


def test_queries_are_cut_at_a_token(mining: ModuleType, tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    query = "How many people live in the capital of Germany?"
    cut = mining.cut_query(query, tokenizer, max_tokens=4)
    assert query.startswith(cut)
    assert tokenizer.tokenize(cut) == tokenizer.tokenize(query)[:4]
    assert mining.cut_query(query, tokenizer, max_tokens=64) == query


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bce", "lce"])
def test_a_recipe_ends_in_a_bundle_that_was_evaluated(
    loss: str,
    tiny_base: Path,
    data: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the recipe asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    run, qrels = data
    arguments = {
        "run": run,
        "qrels": qrels,
        "test-run": run,
        "test-qrels": qrels,
        "candidates": 2,
        "out": tmp_path,
        "base": tiny_base,
        "bi-encoder": tiny_base,
        "held-out": 0.4,
        "negatives": 2,
        "epochs": 40,
        "learning-rate": 3e-3,
        "max-length": 48,
        "query-max-length": 16,
        "precision": "fp32",
    }
    argv = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", [f"{loss}.py", *argv])
    runpy.run_path(str(SCRIPTS / f"{loss}.py"), run_name="__main__")

    said = capsys.readouterr().out
    losses = [float(value) for value in said.split("every ten steps: ")[1].splitlines()[0].split(", ")]
    later = losses[len(losses) // 2 :]  # a step reads few pairs: single figures go up and down
    assert sum(later) / len(later) < losses[0]
    assert said.count("trained, fp32") == 2  # held out, and the further run
    tokenizer = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None
    with Reranker.load(tmp_path / "bundle") as reranker:
        assert reranker.manifest.truncation.max_length == 48
        assert len(reranker.rank("whales?", SUBJECTS)) == len(SUBJECTS)


def test_a_missing_file_is_named(
    recipe: ModuleType, training: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        recipe.main(training.Loss.BCE, ["--run", str(tmp_path / "none.jsonl"), "--qrels", str(tmp_path / "none.txt")])
    assert ended.value.code == 2
    assert "none.jsonl" in capsys.readouterr().err
