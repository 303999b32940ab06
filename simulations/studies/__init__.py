"""Studies: what a choice costs and what it buys, over data sets and seeds, as tables, plots and a page."""
