"""Every pair of TREC DL19: the checkpoint in sentence-transformers, and each variant of the bundle made of it.

python benchmarks/fidelity.py [--queries 43]
"""

from __future__ import annotations

import argparse
import warnings

from common import demo_bundle, demo_checkpoint, scores_by_query, workload
from sentence_transformers import CrossEncoder

from crossforge.export.gates import OPEN_GATE
from crossforge.export.parity import compare_logits
from crossforge.export.quality import measure_quality, read_qrels
from crossforge.profiles import Precision
from crossforge.runtime import Reranker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=None)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    work = workload(arguments.queries)
    if work.qrels is None:
        raise SystemExit("TREC DL19 is not at hand")
    judgements = read_qrels(work.qrels)
    bundle = demo_bundle()
    teacher = CrossEncoder(str(demo_checkpoint()), device="cpu", max_length=512)
    logits = {"sentence-transformers": teacher.predict(work.pairs, batch_size=32, show_progress_bar=True)[:, None]}
    for precision in (Precision.FP32, Precision.INT8):
        with Reranker.load(bundle, precision=precision) as reranker:
            logits[str(precision)] = reranker.score_pairs(work.pairs).logits
    print(f"\n{len(work.records)} queries, {len(work.pairs)} pairs\n")
    print("| variant               | nDCG@10 | max diff. | mean diff. | Kendall tau | top-10 overlap |")
    print("|-----------------------|---------|-----------|------------|-------------|----------------|")
    reference = logits["sentence-transformers"]
    for name, values in logits.items():
        parity = compare_logits(reference, values, work.records, ranking_label=0, name="checkpoint", gate=OPEN_GATE)
        quality = measure_quality(scores_by_query(values[:, 0], work.records), judgements)
        print(
            f"| {name:<21} | {quality.ndcg_at_10:.4f}  | {parity.max_abs_diff:<9.2g} | {parity.mean_abs_diff:<10.2g} "
            f"| {parity.kendall_tau:<11.4f} | {parity.top10_overlap:<14.3f} |"
        )


if __name__ == "__main__":
    main()
