"""A match as a transcoder: how well features of one layer predict the stream at a later layer (appendix F)."""
