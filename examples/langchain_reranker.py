"""A bundle as the second stage of a LangChain retriever.

pip install "crossforge[cpu,langchain]"
"""

import sys

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from crossforge.runtime.adapters.langchain import CrossforgeReranker

bundle = sys.argv[1] if len(sys.argv) > 1 else "demo-bundle"
passages = [
    "Berlin is known for its museums.",
    "Berlin has about 3.8 million inhabitants.",
    "A violin has four strings.",
]

# The first stage: embeddings that know nothing, for want of a model to download.
store = InMemoryVectorStore.from_texts(passages, DeterministicFakeEmbedding(size=8))

reranker = CrossforgeReranker(model=bundle, top_n=2)
retriever = RunnableParallel(documents=store.as_retriever(), query=RunnablePassthrough()) | RunnableLambda(
    lambda found: reranker.compress_documents(found["documents"], found["query"])
)

for document in retriever.invoke("How many people live in Berlin?"):
    print(f"{document.metadata['relevance_score']:.3f}  {document.page_content}")
reranker.close()
