from __future__ import annotations

import numpy as np
import pytest

from crossforge.profiles import EngineError, ExecutionProvider
from crossforge.runtime.sessions import FakeSession, Session

BATCH = {
    "input_ids": np.asarray([[10, 20, 30], [7, 0, 0]]),
    "attention_mask": np.asarray([[1, 1, 1], [1, 0, 0]]),
    "token_type_ids": np.zeros((2, 3), dtype=np.int64),
}


def test_a_fake_session_is_a_session() -> None:
    session: Session = FakeSession()

    assert session.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert session.provider is ExecutionProvider.CPU


def test_a_row_is_scored_without_its_padding() -> None:
    logits = FakeSession(lambda ids: float(ids.sum())).run(BATCH)

    assert logits.dtype == np.float32
    assert logits.tolist() == [[60.0], [7.0]]


def test_further_labels_count_up_from_the_logit() -> None:
    assert FakeSession(len, labels=3).run(BATCH).tolist() == [[3, 4, 5], [1, 2, 3]]


def test_every_batch_is_remembered() -> None:
    session = FakeSession()
    session.run(BATCH)
    session.run({name: array[:1] for name, array in BATCH.items()})

    assert [len(batch["input_ids"]) for batch in session.batches] == [2, 1]


def test_a_closed_session_refuses_batches() -> None:
    session = FakeSession()
    session.close()

    with pytest.raises(EngineError, match="the session is closed"):
        session.run(BATCH)
