"""Speed against plain equivalents, as ratios of one run: `make bench`."""
