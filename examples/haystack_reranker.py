"""A bundle as the ranker of a Haystack pipeline.

pip install "crossforge[cpu,haystack]"
"""

import sys

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from crossforge.runtime.adapters.haystack import CrossforgeReranker

bundle = sys.argv[1] if len(sys.argv) > 1 else "demo-bundle"
passages = [
    "Berlin is known for its museums.",
    "Berlin has about 3.8 million inhabitants.",
    "A violin has four strings.",
]
query = "How many people live in Berlin?"

store = InMemoryDocumentStore()
store.write_documents([Document(content=passage) for passage in passages])

pipeline = Pipeline()
pipeline.add_component("retriever", InMemoryBM25Retriever(store))
pipeline.add_component("ranker", CrossforgeReranker(bundle, top_k=2))
pipeline.connect("retriever.documents", "ranker.documents")

for document in pipeline.run({"retriever": {"query": query}, "ranker": {"query": query}})["ranker"]["documents"]:
    print(f"{document.score:.3f}  {document.content}")
pipeline.close()
