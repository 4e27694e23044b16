"""Supervised semantic speech tokenizer: 16 kHz speech in, 25 units a second out.

The design of CosyVoice's S3 tokenizer (arXiv 2407.05407, section 2.1): an encoder that learns to
recognise speech through a quantised bottleneck, so that its codes keep what is said and lose who says
it. Here the quantiser is finite scalar (arXiv 2309.15505) and the recogniser a CTC head.
"""

from cslm.tokenizer.speech_tokenizer import SpeechTokenizer

__all__ = ["SpeechTokenizer"]
