"""Stand-ins for `clip` and `open_clip`: programs written for them run with one import line changed.

    from hf_clip.compat import clip
    from hf_clip.compat import open_clip

Checkpoints are found, read and run by this package. Functions, return types, pixels and token ids are the originals'.
"""
