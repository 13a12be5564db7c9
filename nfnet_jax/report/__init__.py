"""Reports of runs as pages for a browser, and model cards.

`found` reads what a run recorded, `curves` and `tested` turn it into tables and series, and `page`
writes the page. Its plots are uPlot's, which is in the page, as is everything else.
"""

from nfnet_jax.report.page import write, write_beside

__all__ = ["write", "write_beside"]
