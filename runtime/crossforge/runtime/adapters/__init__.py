"""Rerankers for LangChain, LlamaIndex and Haystack, one module each; each imports its own framework and no other.

::

    from crossforge.runtime.adapters.langchain import CrossforgeReranker
    from crossforge.runtime.adapters.llama_index import CrossforgeReranker
    from crossforge.runtime.adapters.haystack import CrossforgeReranker
"""
