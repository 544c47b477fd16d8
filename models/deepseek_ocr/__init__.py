"""The DeepSeek-OCR family: cutting of images, prompts, and the order of features."""
