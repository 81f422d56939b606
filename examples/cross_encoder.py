"""Code for sentence_transformers.CrossEncoder, on a bundle: only the import changes.

pip install "crossforge[cpu]"
"""

import sys

from crossforge.runtime import CrossEncoder

bundle = sys.argv[1] if len(sys.argv) > 1 else "demo-bundle"
query = "How many people live in Berlin?"
passages = [
    "Berlin is known for its museums.",
    "Berlin has about 3.8 million inhabitants.",
    "A violin has four strings.",
]

with CrossEncoder(bundle) as model:
    for row in model.rank(query, passages, top_k=2, return_documents=True):
        print(f"{row['score']:.3f}  {row['text']}")
    print(model.predict([(query, passage) for passage in passages]))
