from __future__ import annotations

from typing import Any

import pytest

from crossforge.profiles import InputError
from crossforge.runtime.distributed.deployment import ReplicaSettings
from crossforge.runtime.distributed.settings import RaySettings
from crossforge.runtime.distributed.tally import Tally


def test_arguments_of_a_command_line_are_read_by_their_kinds() -> None:
    settings = ReplicaSettings.parse({"bundle": "demo", "max_replicas": "8", "cpus_per_replica": 0.5})
    assert settings == ReplicaSettings(bundle="demo", max_replicas=8, cpus_per_replica=0.5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "'bundle' is missing"),
        ({"bundle": "demo", "replicas": "2"}, "unknown argument 'replicas'; allowed: bundle, provider"),
        ({"bundle": "demo", "min_replicas": "two"}, "min_replicas is not a number"),
        ({"bundle": "demo", "min_replicas": "5"}, "got min_replicas 5, max_replicas 4"),
        ({"bundle": "demo", "target_ongoing_requests": "0"}, "target_ongoing_requests is too small"),
        ({"bundle": "demo", "gpus_per_replica": "-1"}, "gpus_per_replica is too small"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        ReplicaSettings.parse(arguments)


@pytest.mark.parametrize("wrong", [{"actors": 0}, {"cpus_per_actor": 0}, {"gpus_per_actor": -0.5}])
def test_actors_need_something_to_run_on(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="too small"):
        RaySettings(**wrong)


def test_progress_is_told_every_few_seconds_with_speed_padding_and_what_is_left() -> None:
    from crossforge.runtime.distributed.scorer import Receipt

    now, said = [0.0], list[str]()
    tally = Tally(total=4_000, done=1_000, say=said.append, clock=lambda: now[0])
    receipt = Receipt(
        shard=0, pairs=500, tokens=900, padded_tokens=1_000, truncated=0, seconds=2.0, worker="host:1", peak_mb=1.0
    )
    for seconds in (2.0, 10.0, 12.0):
        now[0] = seconds
        tally.add(receipt)
    assert said == ["2,000 of 4,000 pairs, 100 pairs/s on 1 workers, 10.0% padding, about 20 s left"]
