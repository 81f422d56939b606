"""Latency: measured, reported, predicted and tuned. A measurement is a *report*; a *profile* is a shape or a deployment."""
