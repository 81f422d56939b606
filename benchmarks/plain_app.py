"""What a service without a batcher looks like: FastAPI around sentence-transformers, as tutorials write it.

python benchmarks/plain_app.py CHECKPOINT PORT
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

app = FastAPI()
model = CrossEncoder(sys.argv[1], device="cpu", max_length=512)


class Body(BaseModel):
    query: str
    documents: list[str]


@app.post("/rerank")
def rerank(body: Body) -> list[float]:
    pairs = [(body.query, document) for document in body.documents]
    return [float(score) for score in model.predict(pairs, show_progress_bar=False)]


@app.get("/health")
def health() -> str:
    return "ok"


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
