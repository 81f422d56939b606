"""Train a reranker with binary cross-entropy, as monoBERT is trained: each pair is relevant or not.

pip install "crossforge[cpu,export,demo,train]"
python examples/train/bce.py --run run.jsonl --qrels qrels.txt
"""

from recipe import main
from training import Loss

main(Loss.BCE)
