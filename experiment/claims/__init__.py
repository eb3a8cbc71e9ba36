"""The paper's claims, tested on variants of an experiment: cells, comparisons, figures, the page."""
