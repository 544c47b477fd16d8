"""The LightOnOCR family: whole pages as Markdown, by a small decoder that needs no instruction."""
