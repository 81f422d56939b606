"""Run a bundle: tokenize, batch, compute, rank. Nothing heavy is imported here."""

from crossforge.profiles import (
    Activation,
    CrossforgeError,
    DeploymentProfile,
    ExecutionProvider,
    InputError,
    Precision,
)
from crossforge.profiles.telemetry import switch_off_telemetry
from crossforge.runtime.batching import BatchPlan, plan_batches
from crossforge.runtime.bundle import Bundle
from crossforge.runtime.cross_encoder import CrossEncoder
from crossforge.runtime.embedder import Embedder
from crossforge.runtime.providers import ProviderPlan, select_providers
from crossforge.runtime.ranking import RankedPassage
from crossforge.runtime.reranker import Reranker
from crossforge.runtime.scored import EmbeddedTexts, ScoredPairs
from crossforge.runtime.sessions import FakeSession, Session
from crossforge.runtime.tokenization import EncodedPairs, PairTokenizer
from crossforge.runtime.windows import Chunking, Window

__all__ = [
    "Activation",
    "BatchPlan",
    "Bundle",
    "Chunking",
    "CrossEncoder",
    "CrossforgeError",
    "DeploymentProfile",
    "EmbeddedTexts",
    "Embedder",
    "EncodedPairs",
    "ExecutionProvider",
    "FakeSession",
    "InputError",
    "PairTokenizer",
    "Precision",
    "ProviderPlan",
    "RankedPassage",
    "Reranker",
    "ScoredPairs",
    "Session",
    "Window",
    "plan_batches",
    "select_providers",
]

switch_off_telemetry()  # nothing above imports ONNX Runtime
