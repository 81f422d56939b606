"""Let each framework's reranker rank, in the environment of tests/clients_requirements.txt.

Takes the service's address, a model's name, a query and texts; prints {name: [[text, score], ...]} as JSON.
"""

from __future__ import annotations

import json
import sys

from langchain_cohere import CohereRerank as LangChainCohere
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaIndexCohere
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

url, model, query, *texts = sys.argv[1:]


def langchain() -> list[tuple[str, float]]:
    reranker = LangChainCohere(model=model, cohere_api_key="key", base_url=url, top_n=len(texts))
    ranked = reranker.compress_documents([Document(page_content=text) for text in texts], query)
    return [(row.page_content, row.metadata["relevance_score"]) for row in ranked]


def llama_index(reranker: object) -> list[tuple[str, float]]:
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in texts]
    return [(row.node.get_content(), row.score) for row in reranker.postprocess_nodes(nodes, query_str=query)]


answers = {
    "LangChain's CohereRerank": langchain(),
    "LlamaIndex's CohereRerank": llama_index(LlamaIndexCohere(model=model, api_key="key", base_url=url, top_n=len(texts))),
    "LlamaIndex's TextEmbeddingInference": llama_index(TextEmbeddingInference(base_url=url, top_n=len(texts))),
    "LlamaIndex's JinaRerank": llama_index(
        JinaRerank(base_url=f"{url}/jina/v1", api_key="key", model=model, top_n=len(texts))
    ),
}
sys.stdout.write(json.dumps(answers))
