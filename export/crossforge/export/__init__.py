"""Make a bundle, and prove it. Needs the ``export`` extra; importing this package alone loads nothing heavy."""
