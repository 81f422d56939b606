from __future__ import annotations

from pathlib import Path

from crossforge.export.hub.push import push_bundle
from crossforge.runtime import Reranker
from support.builders import write_bundle
from support.fake_hub import FakeHub


def test_what_was_pushed_is_loaded(hub: FakeHub, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", external_data=True)
    push = push_bundle(bundle, "org/name")
    print(push, hub.asked())
    print(push.card)
    with Reranker.load("org/name") as reranker, Reranker.load(bundle) as local:
        assert (reranker.score("where is", ["berlin"]) == local.score("where is", ["berlin"])).all()
    print(hub.asked())
    with Reranker.load("org/name") as reranker:
        pass
    print(hub.asked(), hub.user_agents)
    return
    import time

    t = time.time()
    with Reranker.load("org/name") as reranker:
        pass
    print(time.time() - t)
