"""What tells a model its task: prompts of github.com/ictnlp/CSLM, and two of ours (repeat, full chain)."""

from __future__ import annotations

from collections.abc import Iterable

LANGUAGE_NAMES = {
    "en": "English",
    "zh": "Chinese",
    "es": "Spanish",
    "fr": "French",
    "de": "German",
    "it": "Italian",
    "pt": "Portuguese",
    "hi": "Hindi",
    "ja": "Japanese",
    "ko": "Korean",
    "ru": "Russian",
    "ar": "Arabic",
}
ASR_PROMPT = "Please transcribe the speech to text. This is input: "
TTS_PROMPT = "Please read the text aloud. This is input: "
REPEAT_PROMPT = "Please repeat the text. This is input: "
MT_PROMPT = "Please translate the text to {language}. This is input: "
DIRECT_PROMPT = "Please directly answer the questions in the user's speech."
ANSWER_PROMPT = "Please answer the questions in the user's speech in {language}."
ANSWER_PROMPTS = {"zh": "用中文回答用户语音中的问题。"}
FULL_CHAIN_PROMPT = " Write the whole answer before you speak."
INPUT_PROMPT = " This is input: "


def prompts(languages: Iterable[str]) -> list[str]:
    """The pieces that prompts are made of, for a tokenizer that gives each a token of its own."""
    names = {code: LANGUAGE_NAMES.get(code, code) for code in languages}
    return [
        ASR_PROMPT,
        TTS_PROMPT,
        REPEAT_PROMPT,
        *(MT_PROMPT.format(language=name) for name in names.values()),
        DIRECT_PROMPT,
        *(ANSWER_PROMPT.format(language=name) for name in names.values()),
        *(prompt for code, prompt in ANSWER_PROMPTS.items() if code in names),
        FULL_CHAIN_PROMPT,
        INPUT_PROMPT,
    ]
