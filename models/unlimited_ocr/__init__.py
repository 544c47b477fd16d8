"""The Unlimited-OCR family: DeepSeek-OCR's tower and weights layout, answers of any length, several pages at once."""
