"""A reranker on Ray Serve: two replicas that become up to four under load, behind one address.

    pip install "crossforge[cpu,ray]"
    python examples/ray_serve.py BUNDLE

A Ray cluster that runs on this machine, or at RAY_ADDRESS, is used; otherwise one is started.
"""

import sys
from pathlib import Path

import httpx
import ray
from ray import serve

from crossforge.runtime.distributed.deployment import NAME, ReplicaSettings, build_app

settings = ReplicaSettings(bundle=str(Path(sys.argv[1]).resolve()), min_replicas=2, max_replicas=4, cpus_per_replica=0.5)
ray.init(include_dashboard=False, log_to_driver=False)
serve.start(http_options={"port": 8010})
serve.run(build_app(settings))

passages = ["Berlin is known for its museums.", "Berlin has about 3.8 million inhabitants."]
body = {"query": "How many people live in Berlin?", "texts": passages}
answer = httpx.post("http://localhost:8010/rerank", json=body, timeout=60).raise_for_status()
for row in answer.json():
    print(f"{row['score']:.3f}", passages[row["index"]])

print("health:", httpx.get("http://localhost:8010/health", timeout=60).json()["status"])
states = serve.status().applications["default"].deployments[NAME].replica_states
print("replicas:", dict(states))
serve.shutdown()
