"""A latency report as something to look at: one HTML file that needs no network, and a picture."""

from crossforge.export.latency_page.page import require_page_library, write_latency_page, write_latency_picture

__all__ = ["require_page_library", "write_latency_page", "write_latency_picture"]
