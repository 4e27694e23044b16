"""Speed, measured as ratios: ours and a baseline by turns in one run (`make bench`; the figures: speed.md)."""
