"""Publishing a bundle on the model hub: what goes, its card, and the one commit."""
