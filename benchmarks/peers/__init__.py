"""The parts of ``benchmarks/peers.py``: who takes part, where each lives, what is asked, and what is made of the answers."""
