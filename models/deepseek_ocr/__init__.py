"""The DeepSeek-OCR family: how it wants images cut and prompts written, and how its features are laid out."""
