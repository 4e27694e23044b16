"""Units to speech: durations, flow matching, vocoder."""

from cslm.decoder.speech_decoder import DecoderConfig, SpeechDecoder, UnknownVoice

__all__ = ["DecoderConfig", "SpeechDecoder", "UnknownVoice"]
