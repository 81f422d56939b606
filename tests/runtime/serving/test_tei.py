from __future__ import annotations

from support.serving import fake_service


def test_texts_come_back_best_first() -> None:
    with fake_service() as service:
        rows = service.post("/rerank", {"query": "where is the city", "texts": ["a passage", "berlin is the city"]}).json()

    assert {row["index"] for row in rows} == {0, 1}
    assert rows[0]["score"] >= rows[1]["score"]
