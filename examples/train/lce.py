"""Train a reranker with localized contrastive estimation: of one relevant passage and its hard negatives, choose the first.

pip install "crossforge[cpu,export,demo,train]"
python examples/train/lce.py --run run.jsonl --qrels qrels.txt
"""

from recipe import main
from training import Loss

main(Loss.LCE)
