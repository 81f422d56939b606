"""A bundle as a node postprocessor of a LlamaIndex query engine.

pip install "crossforge[cpu,llama-index]"
"""

import sys

from llama_index.core import SummaryIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

from crossforge.runtime.adapters.llama_index import CrossforgeReranker

bundle = sys.argv[1] if len(sys.argv) > 1 else "demo-bundle"
passages = [
    "Berlin is known for its museums.",
    "Berlin has about 3.8 million inhabitants.",
    "A violin has four strings.",
]

# The index gives every node to the reranker; the language model repeats what it is told, for want of one to ask.
index = SummaryIndex([TextNode(text=passage) for passage in passages])
reranker = CrossforgeReranker(bundle, top_n=2)
engine = index.as_query_engine(llm=MockLLM(), node_postprocessors=[reranker])

for node in engine.query("How many people live in Berlin?").source_nodes:
    print(f"{node.score:.3f}  {node.text}")
reranker.close()
