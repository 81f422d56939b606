"""The HTTP service: one model or several, in the dialects that rerank clients already speak.

Needs ``pip install "crossforge[serve]"``; nothing else of the runtime imports it.
"""
