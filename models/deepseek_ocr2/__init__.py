"""The DeepSeek-OCR-2 family: DeepSeek-OCR's prompts, decoder and grounding behind another second stage of vision."""
