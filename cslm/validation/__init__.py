"""What makes an utterance, a dialogue or a translation usable: pure checks with reasons in plain words."""
