"""Causal rerankers: language models that answer yes or no. What stands around a pair, and which tokens are the answer.

Nothing here is guessed. Either sentence-transformers wrote down how its ``CrossEncoder`` scores with the checkpoint (a
``LogitScore`` module and a chat template with the roles ``query`` and ``document``), or whoever exports says it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossforge.export.json_files import read_json_if_there, read_object_if_there
from crossforge.export.options import CausalOptions
from crossforge.profiles import Prompt, SourceError, Truncation, TruncationSide
from crossforge.runtime.prompts import PromptTokenizer
from crossforge.runtime.templates import derive_prompt_template

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

QWEN3 = Prompt(
    prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
    body="<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {passage}",
    suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    instruction="Given a web search query, retrieve relevant passages that answer the query",
)
"""The text that Qwen3-Reranker was trained on, from its model card."""
PROMPTS: Mapping[str, Prompt] = {"qwen3": QWEN3}
MODEL_TYPES = ("qwen3", "qwen2", "llama", "gemma")
"""Decoders that are known to be traced rightly; each is in the tests."""
_MODULE = "LogitScore"
_SIZE_ARGUMENTS = frozenset({"padding", "truncation", "max_length", "return_tensors", "restore_suffix"})
_ROPES = (None, "default", "linear", "llama3", "yarn")
"""Rotary position embeddings that do not depend on a batch's length."""
_PROBES = (
    ("a", "b"),
    (" What is it? ", " It is.\n"),
    ("\n\nq\t", "\n p \n\n"),
    ("問い？", "答え。🦀"),
    ("(x)", "...3,141!"),
)


@dataclass(frozen=True, kw_only=True)
class CausalSource:
    """How a language model scores a pair."""

    prompt: Prompt
    true_token_id: int
    """The score is this token's logit at the last position,"""
    false_token_id: int | None
    """less this one's, where there is one: the log-odds of yes."""
    label: str


def read_causal(source: str, facts: Path | None, tokenizer: PreTrainedTokenizerFast, options: CausalOptions) -> CausalSource:
    """Find out how a language model scores a pair.

    Args:
        source: What an error calls it.
        facts: The folder with what sentence-transformers wrote beside it, if there is one.
        tokenizer: Its tokenizer.
        options: What was said about it; wins over what the folder says.

    Raises:
        SourceError: It does not say, or in a way that crossforge does not know.
    """
    module = None if facts is None else _find_logit_score(source, facts)
    if options.template is not None:
        prompt = _read_prompt(options.template)
    elif facts is not None and module is not None:
        prompt = _read_chat_template(source, facts, tokenizer)
    else:
        raise SourceError(
            f"{source} is a language model and does not say how it scores a pair",
            allowed="a LogitScore module of sentence-transformers, or a template",
            fix=f"If it is a reranker that answers yes or no, say what it was trained on. {_NAME_IT}",
        )
    if options.instruction is not None:
        if prompt.instruction is None:
            raise SourceError("the template has no place for an instruction", got=options.instruction)
        prompt = replace(prompt, instruction=options.instruction)
    if module is not None and options.yes_token is None and options.no_token is None:
        true_token_id, false_token_id = int(module["true_token_id"]), module.get("false_token_id")
    else:
        true_token_id = _find_token(tokenizer, options.yes_token or "yes")
        false_token_id = _find_token(tokenizer, options.no_token or "no")
    if true_token_id == false_token_id:
        raise SourceError("yes and no are the same token", got=true_token_id)
    names = tokenizer.convert_ids_to_tokens([i for i in (true_token_id, false_token_id) if i is not None])
    return CausalSource(
        prompt=prompt,
        true_token_id=true_token_id,
        false_token_id=None if false_token_id is None else int(false_token_id),
        label=" - ".join(map(str, names)),
    )


def _find_logit_score(source: str, facts: Path) -> dict[str, Any] | None:
    """The settings of the module by which sentence-transformers scores with a language model, if there is one."""
    modules = read_json_if_there(facts / "modules.json")
    for module in modules if isinstance(modules, list) else ():
        if str(module.get("type", "")).rpartition(".")[2] == _MODULE:
            settings = read_json_if_there(facts / str(module.get("path", "")) / "config.json")
            if not isinstance(settings, dict) or type(settings.get("true_token_id")) is not int:
                raise SourceError(f"{source} names a {_MODULE} module without a true_token_id", got=settings)
            return settings
    return None


def check_decoder(source: str, config: PretrainedConfig) -> None:
    """Refuse what the traced graph would compute otherwise on inputs that the verification pairs do not show.

    Raises:
        SourceError: It is such a decoder, or one that nobody tried.
    """
    kind = str(getattr(config, "model_type", ""))
    if kind not in MODEL_TYPES:
        raise SourceError(f"{source} is a decoder that crossforge does not know", got=kind, allowed=", ".join(MODEL_TYPES))
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if layers or getattr(config, "sliding_window", None) is not None:
        raise SourceError(f"{source} attends to a sliding window in some layers", allowed="full attention in every layer")
    scaling = getattr(config, "rope_scaling", None) or {}
    rope = scaling.get("rope_type", scaling.get("type"))
    if rope not in _ROPES:
        raise SourceError(
            f"{source} has positions that depend on the length of a batch",
            got=rope,
            allowed=", ".join(str(name) for name in _ROPES if name),
        )


def _read_prompt(template: str) -> Prompt:
    if template in PROMPTS:
        return PROMPTS[template]
    shape = "prefix, body with {query} and {passage}, suffix and, where the body has {instruction}, instruction"
    try:
        document = tomllib.loads(Path(template).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"cannot read the template {template} ({error})", allowed=f"{', '.join(PROMPTS)}, or a TOML file with {shape}"
        ) from error
    try:
        if wrong := [name for name, value in document.items() if not isinstance(value, str)]:
            raise TypeError(f"{wrong[0]} is not a text")
        return Prompt(**{"instruction": None, **document})
    except (TypeError, ValueError) as error:
        raise SourceError(f"{template} is not a template ({error})", allowed=shape) from error


def _find_token(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise SourceError(
            "the vocabulary has no such token",
            got=repr(token),
            allowed="a token as tokenizer.json spells it",
            fix="Name the two answers with --yes-token and --no-token.",
        )
    return int(vocabulary[token])


def _read_chat_template(source: str, facts: Path, tokenizer: PreTrainedTokenizerFast) -> Prompt:
    """The prompt that a chat template makes of a pair, read off its rendering and checked against its tokens."""
    settings = read_object_if_there(facts / "sentence_bert_config.json")
    arguments = (settings.get("processing_kwargs") or {}).get("chat_template") or {}
    arguments = {name: value for name, value in arguments.items() if name not in _SIZE_ARGUMENTS}
    own = read_object_if_there(facts / "config_sentence_transformers.json")
    name = own.get("default_prompt_name")
    default = (own.get("prompts") or {}).get(name) if name else None

    def messages(query: str, passage: str, system: str | None) -> list[dict[str, str]]:
        pair = [{"role": "query", "content": query}, {"role": "document", "content": passage}]
        return [*([] if system is None else [{"role": "system", "content": system}]), *pair]

    def render(system: str | None) -> str:
        try:
            marked = messages(_MARKS[1], _MARKS[2], system)
            return str(tokenizer.apply_chat_template(marked, tokenize=False, **arguments))
        except Exception as error:
            raise SourceError(f"the chat template of {source} cannot be rendered ({error})", fix=_NAME_IT) from error

    prompt = _cut_rendering(source, render(_MARKS[0]), render(default), default, tokenizer)
    contract = Truncation(max_length=10**6, query_max_length=10**5, side=TruncationSide.RIGHT)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    ours = PromptTokenizer(backend, prompt, derive_prompt_template(backend, prompt), contract)
    for query, passage in _PROBES:
        pairs = ours.encode(query, [passage])
        ids = [*pairs.heads[0].tolist(), *pairs.passages[0].tolist(), *ours.template.suffix.ids]
        if ids != list(tokenizer.apply_chat_template(messages(query, passage, default), tokenize=True, **arguments)):
            raise SourceError(
                f"the chat template of {source} changes the texts that it is given, or its parts are not tokenized apart",
                got=f"other tokens for {query!r} and {passage!r}",
                fix=_NAME_IT,
            )
    return prompt


def _cut_rendering(source: str, marked: str, plain: str, default: str | None, tokenizer: PreTrainedTokenizerFast) -> Prompt:
    """Cut a rendering at the special tokens around the texts: nothing merges across one.

    Args:
        source: What an error calls the checkpoint.
        marked: The rendering with a mark in the place of the instruction.
        plain: The rendering with the instruction that is used by itself.
        default: That instruction, where sentence-transformers sends one; else the template's own may be in the rendering.
        tokenizer: Knows the special tokens.
    """
    instruction_mark, query_mark, passage_mark = _MARKS
    if plain.count(query_mark) != 1 or plain.count(passage_mark) != 1:
        raise SourceError(f"the chat template of {source} does not show query and document once each", fix=_NAME_IT)
    text, instruction = plain, None
    before, _, after = marked.partition(instruction_mark)
    if marked.count(instruction_mark) == 1 and plain.startswith(before) and plain.endswith(after):
        text, instruction = marked, plain[len(before) : len(plain) - len(after)]
    elif default is not None:
        raise SourceError(f"the chat template of {source} does not show the system message once", fix=_NAME_IT)
    start = min(text.index(mark) for mark in _MARKS if mark in text)
    end = text.index(passage_mark) + len(passage_mark)
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if not (token.lstrip or token.rstrip)]
    opening = max((text.rfind(token, 0, start) + len(token) for token in added if token in text[:start]), default=0)
    if not any(text.startswith(token, end) for token in added):
        raise SourceError(
            f"the chat template of {source} has no special token right after the document, so its end cannot be protected",
            got=repr(text[end : end + 20]),
            fix=_NAME_IT,
        )
    body = text[opening:end].replace(query_mark, "{query}").replace(passage_mark, "{passage}")
    try:
        return Prompt(
            prefix=text[:opening],
            body=body.replace(instruction_mark, "{instruction}"),
            suffix=text[end:],
            instruction=instruction,
        )
    except ValueError as error:
        raise SourceError(f"the chat template of {source} is not a prompt ({error})", fix=_NAME_IT) from error


_MARKS = ("instruction7f3a", "query7f3a", "passage7f3a")
_NAME_IT = f"Name the text with --template {'|'.join(PROMPTS)}|FILE."
